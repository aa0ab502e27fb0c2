"""Behavioural cloning (Pomerleau 1989): supervised learning of the recorded actions.

L_π = mean (π(s) − a)²         for continuous actions and a deterministic tanh policy         (1)
L_π = −mean log π(a|s)         for discrete actions                                           (2)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from herdbook.core.config import COUNT, POSITIVE, Config
from herdbook.core.distributions import Categorical, Deterministic
from herdbook.core.learner import Adam, Learner, Params, Setup
from herdbook.core.needs import Needs
from herdbook.core.networks import DeterministicActor, Head
from herdbook.core.policy import FeedForwardPolicy, Scaling
from herdbook.core.spaces import check_action_space
from herdbook.core.types import Metrics, Policy, Replay, Spec, Transitions, Tree


@dataclass(frozen=True, kw_only=True)
class BCConfig(Config):
    """Settings of behavioural cloning."""

    algorithm: ClassVar[str] = "bc"
    batch_size: int = 256  # transitions per update
    lr: float = 3e-4  # learning rate
    hidden_sizes: tuple[int, ...] = (256, 256)  # widths of the policy's hidden layers
    frame_stack: int = 1  # successive observations that form one input of the networks
    standardise_observations: bool = True  # networks see (s − μ) / (σ + 1e-3), μ and σ of the dataset; vectors only

    def __post_init__(self) -> None:
        self.require(batch_size=COUNT, hidden_sizes=COUNT, frame_stack=COUNT, lr=POSITIVE)


def regression_loss(actions: Tensor, data_actions: Tensor) -> Tensor:
    """Eq. 1, a mean over batch and action dimensions. actions, data_actions: [B, A] in [−1, 1] → []."""
    return (actions - data_actions).square().mean()


def classification_loss(logits: Tensor, data_actions: Tensor) -> Tensor:
    """Eq. 2. logits: [B, n]; data_actions: indices [B] → []."""
    return -Categorical(logits).log_prob(data_actions).mean()


class BC:
    """Behavioural cloning. `networks` may replace `actor`: [B, …] → actions [B, A] in [−1, 1], or logits [B, n]."""

    needs: ClassVar[Needs] = Needs(data=True, online_noise=0.1)

    def __init__(self, config: BCConfig, spec: Spec, **setup: Unpack[Setup]) -> None:
        self.config = c = config
        check_action_space(spec.action_space, self.needs.actions, c.algorithm)
        self.scaling = Scaling(
            spec, standardise=c.standardise_observations, frame_stack=c.frame_stack, device=setup.get("device", "cpu")
        )
        space, size = self.scaling.observation_space, self.scaling.action_size
        head = Head if self.scaling.discrete else DeterministicActor
        self.learner = Learner({"actor": lambda: head(space, size, c.hidden_sizes)}, {"actor": Adam(lr=c.lr)}, **setup)
        self.actor = self.learner.networks["actor"]
        self.loss = classification_loss if self.scaling.discrete else regression_loss
        self.head: type[Categorical] | type[Deterministic] = Categorical if self.scaling.discrete else Deterministic

    def sample(self, replay: Replay, generators: Sequence[torch.Generator]) -> Transitions:
        c = self.config
        return replay.sample(c.batch_size, generators, discount=1.0, frame_stack=c.frame_stack)

    def update(self, batch: Transitions) -> Metrics:
        self.learner.updates += 1
        observations = self.scaling.observations(batch.observations)
        return self.learner.step("actor", self.objective, observations, self.scaling.actions(batch.actions))

    def objective(self, params: Params, observations: Tree, actions: Tensor) -> tuple[Tensor, Metrics]:
        return self.loss(self.actor(params["actor"], observations), actions), {}

    def policy(self, seed_index: int = 0, *, deterministic: bool = True) -> Policy:
        """The cloned policy. With discrete actions it takes the most likely one, or samples."""
        actor = self.learner.parameters_of("actor", seed_index)
        return FeedForwardPolicy(self.scaling, lambda o: self.head(self.actor(actor, o)), deterministic=deterministic)

    def state_dict(self) -> dict[str, Any]:
        return self.learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state)
