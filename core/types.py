"""Types shared by all layers: batches, the input of a policy, and the protocols between layers.

Batches are frozen dataclasses of tensors registered as pytrees, so that `torch.vmap`, `torch.compile` and
`tree_map` can traverse them. A field that is None is left out of the tree. Any number of leading axes is allowed:
`[B, …]` for one seed, `[S, B, …]` for S seeds that train together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from gymnasium import Space
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from herdbook.core.needs import Needs

Tree = Any  # a tensor or array, or a dict or tuple of trees: observations and actions of composite spaces
Array = NDArray[Any]
Metrics = dict[str, Tensor]  # name (`loss/critic`, `q`) to a scalar, or `[S]` for S seeds; on the device until logged
Carry = Any  # memory of a policy: None, a recurrent state or a context; leaves are `[environments, …]`
TimeLimit = Literal["bootstrap", "terminal"]  # a truncation is bootstrapped, or it is part of the task and ends it

Batch = TypeVar("Batch")
_T = TypeVar("_T")


def batch_type(cls: type[_T]) -> type[_T]:
    """Register a frozen dataclass of tensors as a pytree without the fields that are None."""
    names = tuple(f.name for f in fields(cls))  # type: ignore[arg-type]  # every caller is a dataclass

    def flatten(batch: Any) -> tuple[list[Any], tuple[str, ...]]:
        present = tuple(n for n in names if getattr(batch, n) is not None)
        return [getattr(batch, n) for n in present], present

    def unflatten(values: Iterable[Any], present: tuple[str, ...]) -> _T:
        return cls(**{**dict.fromkeys(names), **dict(zip(present, values, strict=True))})

    pytree.register_pytree_node(cls, flatten, unflatten, serialized_type_name=f"herdbook.{cls.__name__}")
    return cls


@batch_type
@dataclass(frozen=True, slots=True)
class Transitions:
    """Transitions sampled from a replay, `[*B, …]` each; the value target is `rewards + discounts * next_value`."""

    observations: Tree
    actions: Tree
    rewards: Tensor  # n-step returns if n > 1
    discounts: Tensor  # γⁿ · (1 − terminated), n the actual length; a truncation zeroes it if time_limit="terminal"
    next_observations: Tree
    next_actions: Tree | None = None  # undefined where `next_action_mask` is False: the episode has ended
    next_action_mask: Tensor | None = None
    indices: Tensor | None = None  # step numbers in the replay, `[*B]` int64
    weights: Tensor | None = None  # importance weights of prioritised replay
    task: Tensor | None = None
    between: Tree | None = None  # observations after 1 … n − 1 steps, `[*B, n − 1, …]`, if requested and n > 1
    between_discounts: Tensor | None = None  # their γ¹ … γⁿ⁻¹, `[*B, n − 1]`; 0 from the episode's end on


@batch_type
@dataclass(frozen=True, slots=True)
class Segments:
    """Windows of T consecutive steps of one episode, padded at the end. Every field is `[*B, T, …]`.

    A rollout holds T steps of each lane (environment). Its windows may span several episodes, as the flags and
    `timesteps` show.
    """

    observations: Tree
    actions: Tree
    rewards: Tensor
    mask: Tensor  # False in the padding
    terminated: Tensor
    truncated: Tensor
    next_observations: Tree
    returns_to_go: Tensor | None = None  # undiscounted sum of rewards from this step to the end of the episode
    timesteps: Tensor | None = None  # position of the step in its episode, from 0
    reset: Tensor | None = None  # in rollouts: the policy's carry was reset before this step, as in `Step`
    task: Tensor | None = None  # in rollouts: the task of the step, int64, if the schedule has tasks


@batch_type
@dataclass(frozen=True, slots=True)
class Step:
    """Input of a policy, leaves `[environments, …]`; for many agents, one leaf per kind `[environments, N_kind, …]`."""

    observations: Tree
    previous_actions: Tree  # zeros where `reset`
    previous_rewards: Tensor
    first: Tensor  # True at the first step of an episode
    reset: Tensor  # True where the policy must reset its carry: `first`, except inside a meta-RL trial
    action_mask: Tree | None = None  # legal actions
    alive: Tensor | None = None  # many agents: `[environments, N]`, True for the agents that act now


class Turn(NamedTuple):
    """The next episode of a free lane, as a schedule assigns it."""

    number: int  # identifies the episode in records
    seed: int  # the environment is reset with this seed
    reset: bool = True  # the policy's carry is reset before the episode: always, except inside a meta-RL trial
    task: int | None = None  # the episode's task; a schedule sets it in every turn or in none


@dataclass(frozen=True, slots=True)
class Steps:
    """Environment steps as arrays on the host: leaves `[T, lanes, …]`, or `[lanes, …]` for one step of every lane."""

    observations: Tree  # before the action
    actions: Tree  # `[…, A]` float32, clipped to the action space, or `[…]` int64
    rewards: Array  # float64, unscaled
    terminated: Array
    truncated: Array
    next_observations: Tree  # after the action; at the end of an episode, its final observation
    reset: Array | None = None  # the policy's carry was reset before this step; None: at the start of every episode
    task: Array | None = None  # the task of each step, int64; None without tasks


@dataclass(frozen=True, slots=True)
class Spec:
    """Spaces of a task and statistics of its data, from which an algorithm is built.

    `observation_space` is the input space of the networks: a Dict or Tuple of vectors is already flattened.
    `raw_observation_space` is the environment's own space, and `observation_keys` selects the parts of it to use.
    """

    observation_space: Space[Any]
    action_space: Space[Any]
    raw_observation_space: Space[Any] | None = None
    observation_keys: tuple[str, ...] | None = None
    observation_mean: Array | None = None  # `[D]`, over the data; None without data and unless observations are vectors
    observation_std: Array | None = None
    raw_action_space: Space[Any] | None = None  # the environment's own Box if its type is not float32


class Distribution(Protocol):
    """A policy's distribution over raw actions, one per environment."""

    def sample(self, generator: torch.Generator | None = None) -> Tree: ...
    def mode(self) -> Tree: ...
    def log_prob(self, actions: Tree) -> Tensor: ...


@runtime_checkable
class Policy(Protocol):
    """Maps raw observations to raw actions; the carry is the memory of recurrent networks, contexts and planners."""

    def initial(self, num_envs: int) -> Carry: ...
    def __call__(self, step: Step, carry: Carry, generator: torch.Generator | None = None) -> tuple[Tree, Carry]: ...
    def distribution(self, step: Step, carry: Carry) -> tuple[Distribution, Carry]: ...


@runtime_checkable
class Tabular(Protocol):
    """A policy over numbers of states and actions from 0, which other spaces may number otherwise."""

    def in_spaces(self, observation_space: Space[Any], action_space: Space[Any]) -> Policy:
        """The policy with the numbers of these spaces. Raises ValueError unless they fit the table."""


def in_spaces(policy: Policy, observation_space: Space[Any], action_space: Space[Any]) -> Policy:
    """The policy for these flat spaces: a `Tabular` one is numbered as they are, others are unchanged."""
    return policy.in_spaces(observation_space, action_space) if isinstance(policy, Tabular) else policy


class RewardFunction(Protocol):
    """Maps one-step transitions `[*B, …]`, in the units of the environment, to rewards `[*B]`.

    Their `rewards` are those of the environment, and their `discounts` are γ · (1 − terminated), by which a shaped
    reward weighs the potential of the next state.
    """

    def __call__(self, transitions: Transitions) -> Tensor: ...


class Replay(Protocol):
    """Recorded steps to sample from: indices are drawn (the only randomness), then gathered."""

    def sample(
        self,
        batch_size: int,
        generators: Sequence[torch.Generator],
        *,
        discount: float,
        n_step: int = 1,
        next_actions: bool = False,
        frame_stack: int = 1,
        between: bool = False,
    ) -> Transitions:
        """Uniform transitions `[B, …]`, or `[S, B, …]` for S > 1 generators, one per seed.

        frame_stack: k > 1 gives stacks of observations, `[B, k, …]`, oldest first.
        between: include the observations between the first and the last one of n steps.
        """

    def sample_segments(self, batch_size: int, length: int, generators: Sequence[torch.Generator]) -> Segments: ...

    def __len__(self) -> int: ...


class Algorithm(Protocol):
    """Interface of every algorithm. The constructor is `Name(config, spec, *, seeds, device, networks=None)`."""

    needs: Needs

    @property
    def config(self) -> Any: ...
    def policy(self, seed_index: int = 0, *, deterministic: bool = True) -> Policy: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class OffPolicy(Algorithm, Protocol[Batch]):
    """An algorithm that learns from batches of a replay."""

    def sample(self, replay: Replay, generators: Sequence[torch.Generator]) -> Batch:
        """Sample the batch of one `update`, with one generator per seed."""

    def update(self, batch: Batch) -> Metrics:
        """Update every parameter once. The batch is raw: the algorithm scales it as its policy does.

        The metrics may hold `priorities` [B], which online training gives to the replay.
        """


class OnPolicy(Algorithm, Protocol):
    """An algorithm that learns once from each rollout of its own policy."""

    def update(self, rollout: Segments) -> Metrics:
        """Make all updates from one rollout `[lanes, T, …]`."""


class LearnsReward(Protocol):
    """An algorithm with `needs.reward`, which learns a reward function."""

    def reward(self, seed_index: int = 0) -> RewardFunction: ...


class GoesOnline(Protocol):
    """An offline algorithm that changes when fine-tuning in an environment begins."""

    def go_online(self) -> None: ...


class Interactive(Algorithm, Protocol):
    """An algorithm of one seed that learns from the steps of its own policies; also an `OffPolicy` or `OnPolicy`.

    Its config has `replay_steps`, the capacity of its replay, and its `needs` declare how it interacts.
    """

    def policy(self, seed_index: int = 0, *, deterministic: bool = True, step: int | None = None) -> Policy:
        """The greedy policy, or the exploration policy at environment step `step` of its schedule."""

    def updates_due(self, episodes: int, steps: int) -> int:
        """Number of updates due in total after so many episodes and environment steps."""


class Stepwise(Interactive, Protocol):
    """An interactive algorithm whose rounds are a few steps long, or a rollout of fixed length."""

    def round_steps(self, num_envs: int) -> int:
        """Number of steps of each environment between updates."""


class Networks(Protocol):
    """Networks by name, as `core.learner.Learner` holds them."""

    def parameters_of(self, name: str, seed_index: int = 0) -> Mapping[str, Tensor]: ...


class Episodic(Interactive, Protocol):
    """An interactive algorithm whose rounds are whole episodes; the networks `needs.acting` act in them."""

    @property
    def learner(self) -> Networks: ...


class Round(Protocol):
    """Experience that one seed collected between two updates."""

    @property
    def failures(self) -> list[str]: ...  # why episodes were lost
    @property
    def policy_failed(self) -> str | None: ...  # why the policy could not act; None if it could
    @property
    def returns(self) -> list[float]: ...  # of each finished episode, summed over agents
    @property
    def lengths(self) -> list[int]: ...  # of each finished episode
    @property
    def count(self) -> int: ...  # environment steps
    def add_to(self, replay: Any) -> None: ...  # raises ValueError if the replay cannot hold the steps
    def state_dict(self) -> dict[str, Any]: ...  # dicts, lists and tensors for a checkpoint


def to_numpy(tree: Tree) -> Tree:
    """Convert every leaf of a tree to an array on the host."""
    return pytree.tree_map(lambda x: x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x), tree)


def tree_map(function: Any, tree: Tree, *rest: Tree) -> Tree:
    """Apply `function` to corresponding leaves of trees of the same structure."""
    if isinstance(tree, (Tensor, np.ndarray)):  # most trees are one leaf
        return function(tree, *rest)
    return pytree.tree_map(function, tree, *rest)


def tree_leaves(tree: Tree) -> list[Any]:
    """The leaves of a tree, in its order."""
    return pytree.tree_leaves(tree)
