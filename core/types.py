"""The types that every layer shares: batches, what a policy sees, and the protocols between the layers.

Batches are frozen dataclasses of tensors registered as pytrees, so that `torch.vmap`, `torch.compile` and
`tree_map` see through them. A field that is None is absent from the tree. Any number of leading axes is allowed:
`[B, …]` for one seed, `[S, B, …]` for S seeds that train together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from gymnasium import Space
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from herdbook.core.needs import Needs

Tree = Any
"""A tensor (or an array), or a dict or tuple of trees: observations and actions of composite spaces."""
Array = NDArray[Any]
Metrics = dict[str, Tensor]
"""Name (`loss/critic`, `q`) to a scalar, or to `[S]` for S seeds. Stays on the device until it is logged."""
Carry = Any
"""What a policy remembers between steps: None, a recurrent state, a context. Leaves are `[environments, …]`."""
TimeLimit = Literal["bootstrap", "terminal"]
"""Whether values are bootstrapped through a truncation, or the time limit is part of the task and ends it."""

Batch = TypeVar("Batch")
_T = TypeVar("_T")


def batch_type(cls: type[_T]) -> type[_T]:
    """Register a frozen dataclass of tensors as a pytree; fields that are None are left out of it."""
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
    """Steps drawn from a replay. Every field is `[*B, …]`; an update reads `rewards + discounts * next_value`."""

    observations: Tree
    actions: Tree
    rewards: Tensor
    """The reward, or the n-step return when n > 1."""
    discounts: Tensor
    """γⁿ · (1 − terminated), n the real length of the window. Truncation zeroes it only if time_limit="terminal"."""
    next_observations: Tree
    next_actions: Tree | None = None
    """The action taken in `next_observations`; undefined where `next_action_mask` is False (the episode ended)."""
    next_action_mask: Tensor | None = None
    indices: Tensor | None = None
    """Step numbers in the replay, `[*B]` int64."""
    weights: Tensor | None = None
    """Importance weights of prioritised replay."""
    task: Tensor | None = None


@batch_type
@dataclass(frozen=True, slots=True)
class Segments:
    """Windows of T successive steps of one episode, padded at the end. Every field is `[*B, T, …]`.

    A rollout is T steps of each lane, which may be of several episodes: the flags and `timesteps` tell them apart.
    """

    observations: Tree
    actions: Tree
    rewards: Tensor
    mask: Tensor
    """False where the window reaches beyond its episode's last step."""
    terminated: Tensor
    truncated: Tensor
    next_observations: Tree
    returns_to_go: Tensor | None = None
    """Undiscounted sum of rewards from this step to the episode's end."""
    timesteps: Tensor | None = None
    """Position of the step in its episode, from 0."""
    reset: Tensor | None = None
    """In rollouts: the policy's carry was forgotten before this step, as in `Step`."""
    task: Tensor | None = None
    """In rollouts: the task of the step, int64, where the schedule gave any."""


@batch_type
@dataclass(frozen=True, slots=True)
class Step:
    """What a policy sees. Every leaf is `[environments, …]`; of many agents with an agent axis after it, by kind."""

    observations: Tree
    previous_actions: Tree
    """Of the step before; zeros where `reset`."""
    previous_rewards: Tensor
    first: Tensor
    """A new episode begins here."""
    reset: Tensor
    """Forget the carry here: `first`, except inside a meta-RL trial."""
    action_mask: Tree | None = None
    """Legal actions."""
    alive: Tensor | None = None
    """Many agents: `[environments, N]`, who acts now."""


class Turn(NamedTuple):
    """An episode that a schedule gives to a lane that is free."""

    number: int
    """The episode's number, which its record is known by."""
    seed: int
    """The environment is reset with it."""
    reset: bool = True
    """The policy's carry is forgotten before the episode: always, except inside a meta-RL trial."""
    task: int | None = None
    """The task that the episode is of; a schedule has tasks in every turn or in none."""


@dataclass(frozen=True, slots=True)
class Steps:
    """Played steps, as arrays on the host: leaves `[T, lanes, …]`, or `[lanes, …]` for one step of every lane."""

    observations: Tree
    """What was acted on."""
    actions: Tree
    """`[…, A]` float32, clipped to the action space, or `[…]` int64."""
    rewards: Array
    """float64, as the environment gave them."""
    terminated: Array
    truncated: Array
    next_observations: Tree
    """What the step led to: at an episode's end its own final observation."""
    reset: Array | None = None
    """The policy's carry was forgotten before this step. None: wherever an episode begins."""
    task: Array | None = None
    """The task of each step, int64. None: there are no tasks."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What an algorithm must know of its task: the spaces, and statistics of the data.

    `observation_space` is what the networks see: a Dict or Tuple of vectors is already flattened. The environment's
    own space is `raw_observation_space`, and `observation_keys` the parts of it that are used.
    """

    observation_space: Space[Any]
    action_space: Space[Any]
    raw_observation_space: Space[Any] | None = None
    observation_keys: tuple[str, ...] | None = None
    observation_mean: Array | None = None
    """Mean of each observation dimension over the data; None where the observations are not a vector."""
    observation_std: Array | None = None


class Distribution(Protocol):
    """A policy's distribution over raw actions, one per environment."""

    def sample(self, generator: torch.Generator | None = None) -> Tree: ...
    def mode(self) -> Tree: ...
    def log_prob(self, actions: Tree) -> Tensor: ...


class Policy(Protocol):
    """Raw observations in, raw actions out; the carry serves recurrent nets, contexts and planners."""

    def initial(self, num_envs: int) -> Carry: ...
    def __call__(self, step: Step, carry: Carry, generator: torch.Generator | None = None) -> tuple[Tree, Carry]: ...
    def distribution(self, step: Step, carry: Carry) -> tuple[Distribution, Carry]: ...


class Replay(Protocol):
    """Recorded steps that can be sampled: index drawing (the only randomness), then a pure gather."""

    def sample(
        self,
        batch_size: int,
        generators: Sequence[torch.Generator],
        *,
        discount: float,
        n_step: int = 1,
        next_actions: bool = False,
        frame_stack: int = 1,
    ) -> Transitions:
        """Uniform transitions `[B, …]`, or `[S, B, …]` for S > 1 generators, one per seed.

        frame_stack: k > 1 gives stacks of observations, `[B, k, …]`, oldest first.
        """
        ...

    def sample_segments(self, batch_size: int, length: int, generators: Sequence[torch.Generator]) -> Segments: ...

    def __len__(self) -> int: ...


class Algorithm(Protocol):
    """What every algorithm offers. Built as `Name(config, spec, *, seeds, device, networks=None)`."""

    needs: Needs

    @property
    def config(self) -> Any: ...
    def policy(self, seed_index: int = 0, *, deterministic: bool = True) -> Policy: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class OffPolicy(Algorithm, Protocol[Batch]):
    """An algorithm that learns from batches of a replay."""

    def sample(self, replay: Replay, generators: Sequence[torch.Generator]) -> Batch:
        """Draw what one `update` needs, one generator per seed."""
        ...

    def update(self, batch: Batch) -> Metrics:
        """One update of every parameter. The batch is raw: the algorithm scales it as its policy does."""
        ...


class OnPolicy(Algorithm, Protocol):
    """An algorithm that learns once from each rollout of its own policy."""

    def update(self, rollout: Segments) -> Metrics:
        """Every update that one rollout gives, `[lanes, T, ...]`."""
        ...


class GoesOnline(Protocol):
    """An offline algorithm that changes where fine-tuning in an environment begins."""

    def go_online(self) -> None: ...


class Interactive(Algorithm, Protocol):
    """An algorithm of one seed that learns from what its own policies play; it is `OffPolicy` or `OnPolicy`, too.

    Its config says how many `replay_steps` are kept, and its needs how it plays.
    """

    def policy(self, seed_index: int = 0, *, deterministic: bool = True, step: int | None = None) -> Policy:
        """Greedy, or exploring as its schedule says at environment step `step`."""
        ...

    def updates_due(self, episodes: int, steps: int) -> int:
        """How many updates should have been made after so many episodes and environment steps."""
        ...


class Stepwise(Interactive, Protocol):
    """An interactive algorithm whose rounds are steps: few of them, or a rollout of fixed length."""

    def round_steps(self, num_envs: int) -> int:
        """How many steps each of its environments takes between updates."""
        ...


class Networks(Protocol):
    """Holds networks by name; `core.learner.Learner` does."""

    def parameters_of(self, name: str, seed_index: int = 0) -> Mapping[str, Tensor]: ...


class Episodic(Interactive, Protocol):
    """An interactive algorithm whose rounds are whole episodes, played with the networks of `needs.acting`."""

    @property
    def learner(self) -> Networks: ...


class Round(Protocol):
    """What one seed played between two updates."""

    @property
    def failures(self) -> list[str]:
        """Why episodes were lost."""
        ...

    @property
    def policy_failed(self) -> str | None:
        """Why the policy could not act; None: it could."""
        ...

    @property
    def returns(self) -> list[float]:
        """The return of each episode that ended, of all agents together."""
        ...

    @property
    def lengths(self) -> list[int]:
        """The length of each episode that ended."""
        ...

    @property
    def count(self) -> int:
        """Environment steps."""
        ...

    def add_to(self, replay: Any) -> None:
        """Append everything to a replay of the domain. Raises ValueError where it cannot hold it."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """As dicts, lists and tensors, for a checkpoint."""
        ...


def to_numpy(tree: Tree) -> Tree:
    """Every tensor of a tree as an array on the host."""
    return pytree.tree_map(lambda x: x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x), tree)


def tree_map(function: Any, tree: Tree, *rest: Tree) -> Tree:
    """Apply `function` to corresponding leaves of trees of the same structure."""
    if isinstance(tree, (Tensor, np.ndarray)):  # most trees are one leaf
        return function(tree, *rest)
    return pytree.tree_map(function, tree, *rest)


def tree_leaves(tree: Tree) -> list[Any]:
    """The leaves of a tree, in its order."""
    return pytree.tree_leaves(tree)
