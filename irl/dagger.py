"""DAgger (Ross, Gordon & Bagnell 2011, arXiv:1011.0686): cloning an expert in the states that the learner visits.

    π_i = β_i π* + (1 − β_i) π̂_i                          (1)  acts in iteration i; a coin chooses at every step
    D ← D ∪ {(s, π*(s))} for every s that π_i visits        (2)
    π̂_{i+1} = argmin_π mean over D of ℓ(π(s), π*(s))       (3)  ℓ is the loss of behavioural cloning

The expert π* labels every visited state, whoever acted in it, so that the learner is trained on its own states.
Demonstrations are the first elements of D, with the actions that they hold. The gradient steps of
(3) begin from the parameters of the iteration before. The paper returns the best π̂_i, this file the last one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Unpack

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from herdbook.core.config import COUNT, NOT_NEGATIVE, POSITIVE, Config
from herdbook.core.distributions import Categorical, Deterministic
from herdbook.core.exploration import linear_schedule, updates_after
from herdbook.core.learner import Adam, Learner, Params, Setup
from herdbook.core.needs import Needs
from herdbook.core.networks import DeterministicActor, Head
from herdbook.core.policy import FeedForwardPolicy, Scaling
from herdbook.core.spaces import check_action_space
from herdbook.core.types import (
    Carry,
    Distribution,
    Metrics,
    Policy,
    Replay,
    Spec,
    Step,
    Transitions,
    Tree,
    in_spaces,
    tree_leaves,
    tree_map,
)
from herdbook.offline.bc import classification_loss, regression_loss

_TRIED = 8  # observations that an expert is tried on when it is given


@dataclass(frozen=True, kw_only=True)
class DAggerConfig(Config):
    """Settings of DAgger. The paper leaves networks and optimisers open; they are those of behavioural cloning."""

    algorithm: ClassVar[str] = "dagger"
    iteration_steps: int = 500  # environment steps of an iteration, of all environments together
    beta_steps: int = 1  # environment steps over which β falls linearly from 1 to 0; 1: β_1 = 1, then 0; 0: always 0
    updates_per_step: float = 1.0  # updates per environment step, made at the end of the iteration
    batch_size: int = 256  # labelled states per update
    lr: float = 3e-4  # learning rate
    hidden_sizes: tuple[int, ...] = (256, 256)  # widths of the policy's hidden layers
    replay_steps: int = 1_000_000  # visited states that D can hold; beyond them, the oldest are dropped

    def __post_init__(self) -> None:
        self.require(iteration_steps=COUNT, beta_steps=NOT_NEGATIVE, updates_per_step=POSITIVE, batch_size=COUNT)
        self.require(lr=POSITIVE, hidden_sizes=COUNT, replay_steps=COUNT)

    def beta(self, step: int) -> float:
        """β of eq. 1 in the iteration that begins at environment step `step`."""
        return linear_schedule(1.0, 0.0, self.beta_steps, step) if self.beta_steps else 0.0


class Labels:
    """π* of eq. 2: the modes of an expert's policy, from raw observations to raw actions within the action space.

    The expert sees single observations. Raises ValueError if it has a memory or no distribution over actions, or if
    its actions do not fit the spaces.
    """

    def __init__(self, expert: Policy, spec: Spec, device: str | torch.device = "cpu") -> None:
        self.policy, self.space = in_spaces(expert, spec.observation_space, spec.action_space), spec.action_space
        if isinstance(self.space, spaces.Box):
            self.low, self.high = (torch.as_tensor(b, device=device) for b in (self.space.low, self.space.high))
        space = copy.deepcopy(spec.observation_space)  # seeding it must not change the caller's
        space.seed(0)
        drawn = [space.sample() for _ in range(_TRIED)]
        self._check(self._modes(tree_map(lambda *rows: torch.as_tensor(np.stack(rows), device=device), *drawn), _TRIED))

    @torch.no_grad()
    def __call__(self, observations: Tree, lead: Sequence[int]) -> Tensor:
        """observations: [*lead, …] → actions [*lead, A], or [*lead] if they are discrete."""
        count = int(np.prod(lead))
        rows = tree_map(lambda leaf: leaf.reshape(count, *leaf.shape[len(lead) :]), observations)
        actions = self._modes(rows, count)
        actions = actions.clamp(self.low, self.high) if isinstance(self.space, spaces.Box) else actions
        return actions.reshape(*lead, *actions.shape[1:])

    def _modes(self, observations: Tree, count: int) -> Tensor:
        device = tree_leaves(observations)[0].device
        new = torch.ones(count, dtype=torch.bool, device=device)
        kind = torch.int64 if isinstance(self.space, spaces.Discrete) else torch.float32
        nothing = torch.zeros((count, *(self.space.shape or ())), dtype=kind, device=device)
        step = Step(observations, nothing, torch.zeros(count, device=device), new, new)
        try:
            distribution, carry = self.policy.distribution(step, self.policy.initial(count))
        except TypeError as error:
            raise ValueError(f"expert: expected a policy with a distribution over actions: {error}") from error
        if carry is not None:
            raise ValueError(
                "expert: expected a policy without a memory, because it labels single states; this one has a carry "
                "(a recurrent state, stacked frames, or a count of steps)"
            )
        modes: Tensor = distribution.mode()
        return modes

    def _check(self, actions: Tensor) -> None:
        space, discrete = self.space, isinstance(self.space, spaces.Discrete)
        if actions.shape != (_TRIED, *(space.shape or ())) or actions.is_floating_point() is discrete:
            raise ValueError(
                f"expert: expected actions in {space}, got {actions.dtype} {list(actions.shape)} for {_TRIED}"
            )
        if isinstance(space, spaces.Discrete):
            fine = (actions >= int(space.start)) & (actions < int(space.start + space.n))
        else:
            fine = actions.isfinite()
        if not bool(fine.all()):
            raise ValueError(f"expert: expected actions in {space}, got {actions[~fine][0].item()}")


class Mixture:
    """π_i of eq. 1: the expert's action with probability β, else the learner's."""

    def __init__(self, learner: Policy, expert: Labels, beta: float) -> None:
        self.learner, self.expert, self.beta = learner, expert, beta

    def initial(self, num_envs: int) -> Carry:
        return self.learner.initial(num_envs)

    def __call__(self, step: Step, carry: Carry, generator: torch.Generator | None = None) -> tuple[Tensor, Carry]:
        actions, carry = self.learner(step, carry, generator)
        coin = torch.rand(len(actions), generator=generator, device=actions.device) < self.beta
        return chosen(coin, self.expert(step.observations, (len(actions),)), actions), carry

    def distribution(self, step: Step, carry: Carry) -> tuple[Distribution, Carry]:
        raise TypeError("a mixture of two policies has no density of its own")


def chosen(first: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Rows of `one` where `first` [*B] is True, else those of `other`. one, other: [*B, …]."""
    return torch.where(first.reshape(*first.shape, *[1] * (one.dim() - first.dim())), one, other)


class DAgger:
    """DAgger. `networks` may replace `actor`: [B, …] → actions [B, A] in [−1, 1], or logits [B, n].

    expert: a policy of these spaces without a memory; None where only the learned policy is wanted.
    demonstrations: labelled steps with which D begins.
    """

    needs: ClassVar[Needs] = Needs(environment=True, data="optional", expert=True)

    def __init__(
        self,
        config: DAggerConfig,
        spec: Spec,
        *,
        expert: Policy | None = None,
        demonstrations: Replay | None = None,
        **setup: Unpack[Setup],
    ) -> None:
        self.config, self.demonstrations = config, demonstrations
        c = config
        device = setup.get("device", "cpu")
        check_action_space(spec.action_space, self.needs.actions, c.algorithm)
        self.expert = None if expert is None else Labels(expert, spec, device)
        self.scaling = Scaling(spec, device=device)
        space, size = self.scaling.observation_space, self.scaling.action_size
        network = Head if self.scaling.discrete else DeterministicActor
        adam = {"actor": Adam(lr=c.lr)}
        self.learner = Learner({"actor": lambda: network(space, size, c.hidden_sizes)}, adam, **setup)
        self.actor = self.learner.networks["actor"]
        self.loss = classification_loss if self.scaling.discrete else regression_loss
        self.head: type[Categorical] | type[Deterministic] = Categorical if self.scaling.discrete else Deterministic

    def sample(self, replay: Replay, generators: Sequence[torch.Generator]) -> Transitions:
        """Uniform elements of D: visited states with the expert's actions, and demonstrations with their own."""
        expert, size = self._expert(), self.config.batch_size
        visited = replay.sample(size, generators, discount=1.0)
        batch = replace(visited, actions=expert(visited.observations, visited.rewards.shape))  # eq. 2
        if self.demonstrations is None:
            return batch
        shown = self.demonstrations.sample(size, generators, discount=1.0)
        share = len(self.demonstrations) / (len(self.demonstrations) + len(replay))
        coins = [torch.rand(size, generator=generator, device=generator.device) < share for generator in generators]
        first = torch.stack(coins).reshape(batch.rewards.shape)
        mixed: Transitions = tree_map(lambda one, other: chosen(first, one, other), shown, batch)
        return mixed

    def update(self, batch: Transitions) -> Metrics:
        """One gradient step of eq. 3. The actions of the batch are the labels."""
        self.learner.updates += 1
        observations, labels = self.scaling.observations(batch.observations), self.scaling.actions(batch.actions)
        return self.learner.step("actor", self.objective, observations, labels)

    def objective(self, params: Params, observations: Tree, labels: Tensor) -> tuple[Tensor, Metrics]:
        return self.loss(self.actor(params["actor"], observations), labels), {}  # eq. 3

    def policy(self, seed_index: int = 0, *, deterministic: bool = True, step: int | None = None) -> Policy:
        """The learned policy; with a `step` and not deterministic, π_i of the iteration that begins there, eq. 1."""
        actor = self.learner.parameters_of("actor", seed_index)
        mixes = not deterministic and step is not None
        learner = FeedForwardPolicy(
            self.scaling, lambda o: self.head(self.actor(actor, o)), deterministic=deterministic or mixes
        )
        if step is None or deterministic:
            return learner
        return Mixture(learner, self._expert(), self.config.beta(step))

    def _expert(self) -> Labels:
        if self.expert is None:
            raise ValueError(f"{self.config.algorithm}: expected an expert to learn from, got None; pass a policy")
        return self.expert

    def round_steps(self, num_envs: int) -> int:
        return -(-self.config.iteration_steps // num_envs)

    def updates_due(self, episodes: int, steps: int) -> int:
        return updates_after(steps, 0, self.config.updates_per_step)

    def state_dict(self) -> dict[str, Any]:
        return self.learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state)
