"""DDPG (Lillicrap et al. 2016, arXiv:1509.02971): an actor that climbs its critic.

    y   = r + γ Q̄(s′, π̄(s′))              (1)
    L_Q = mean (Q(s, a) − y)²             (2)
    L_π = −mean Q(s, π(s))                (3)

It explores by N(0, σ²) on actions in [−1, 1], where the paper has an Ornstein-Uhlenbeck process: uncorrelated noise
does as well (Fujimoto et al. 2018). Widths, rates and batch are those of that paper's code for TD3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from herdbook.core.config import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, UNIT, require
from herdbook.core.exploration import exploring_actor, updates_after
from herdbook.core.learner import Adam, Learner, Params, Setup
from herdbook.core.networks import Critic, DeterministicActor
from herdbook.core.policy import Scaling
from herdbook.core.spaces import ActionKind, check_action_space
from herdbook.core.types import Metrics, Policy, Replay, Spec, Transitions


@dataclass(frozen=True, kw_only=True)
class DDPGConfig:
    """Settings of DDPG."""

    algorithm: ClassVar[str] = "ddpg"
    discount: float = 0.99  # γ
    tau: float = 0.005  # speed of the targets
    exploration_noise: float = 0.1  # σ, on actions in [−1, 1]
    batch_size: int = 256
    actor_lr: float = 3e-4
    critic_lr: float = 3e-4
    hidden_sizes: tuple[int, ...] = (256, 256)
    n_step: int = 1  # rewards summed before bootstrapping
    warmup_steps: int = 1_000  # of uniform actions, before the first update
    updates_per_step: float = 1.0  # of the environment
    replay_steps: int = 1_000_000

    def __post_init__(self) -> None:
        require(self, discount=UNIT, tau=FRACTION, actor_lr=POSITIVE, critic_lr=POSITIVE, batch_size=COUNT)
        require(self, exploration_noise=NOT_NEGATIVE, hidden_sizes=COUNT, n_step=COUNT)
        require(self, warmup_steps=NOT_NEGATIVE, updates_per_step=POSITIVE, replay_steps=COUNT)


def critic_loss(q: Tensor, target: Tensor) -> Tensor:
    """Eq. 2. q: Q(s, a) [B]; target: y [B]."""
    return (q - target).square().mean()


class DDPG:
    """`networks` may replace `actor` ([B, …] → [B, A] in [−1, 1]) and `critic` (→ [1, B])."""

    action_space: ClassVar[ActionKind] = "box"
    round_steps: ClassVar[int] = 1
    num_envs: ClassVar[int] = 1

    def __init__(self, config: DDPGConfig, spec: Spec, **setup: Unpack[Setup]) -> None:
        self.config = c = config
        check_action_space(spec.action_space, self.action_space, c.algorithm)
        self.scaling = Scaling(spec, device=setup.get("device", "cpu"))
        space, size = spec.observation_space, self.scaling.action_size
        self.learner = Learner(
            {
                "actor": lambda: DeterministicActor(space, size, c.hidden_sizes),
                "critic": lambda: Critic(space, size, c.hidden_sizes, copies=1),
            },
            {"critic": Adam(lr=c.critic_lr), "actor": Adam(lr=c.actor_lr)},
            targets=("actor", "critic"),
            **setup,
        )
        self.actor, self.critic = self.learner.networks["actor"], self.learner.networks["critic"]

    def sample(self, replay: Replay, generators: Sequence[torch.Generator]) -> Transitions:
        c = self.config
        return replay.sample(c.batch_size, generators, discount=c.discount, n_step=c.n_step)

    def update(self, batch: Transitions) -> Metrics:
        batch = self.scaling(batch)
        self.learner.updates += 1
        metrics = self.learner.step("critic", self.critic_objective, batch)
        metrics |= self.learner.step("actor", self.actor_objective, batch)
        self.learner.move_targets(self.config.tau)
        return metrics

    def critic_objective(self, params: Params, batch: Transitions) -> tuple[Tensor, Metrics]:
        with torch.no_grad():
            next_actions = self.actor(params.target["actor"], batch.next_observations)  # [B, A]
            next_q = self.critic(params.target["critic"], batch.next_observations, next_actions)[0]  # [B]
            target = batch.rewards + batch.discounts * next_q  # eq. 1
        q = self.critic(params["critic"], batch.observations, batch.actions)[0]  # [B]
        return critic_loss(q, target), {"q": q.mean()}  # eq. 2

    def actor_objective(self, params: Params, batch: Transitions) -> tuple[Tensor, Metrics]:
        actions = self.actor(params["actor"], batch.observations)  # [B, A]
        return -self.critic(params["critic"], batch.observations, actions)[0].mean(), {}  # eq. 3

    def policy(self, seed_index: int = 0, *, deterministic: bool = True, step: int | None = None) -> Policy:
        """The actor, or with its noise: as at environment step `step`, which may be in the warm-up."""
        c, actor = self.config, self.learner.parameters_of("actor", seed_index)
        return exploring_actor(
            self.scaling,
            lambda o: self.actor(actor, o),
            c.exploration_noise,
            c.warmup_steps,
            deterministic=deterministic,
            step=step,
        )

    def updates_due(self, episodes: int, steps: int) -> int:
        """How many updates should have been made after so many environment steps."""
        return updates_after(steps, self.config.warmup_steps, self.config.updates_per_step)

    def state_dict(self) -> dict[str, Any]:
        return self.learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state)
