"""SQIL: soft Q imitation learning (Reddy, Dragan & Levine 2020, arXiv:1905.11108).

Reinforcement learning with the reward 1 for every demonstrated step and 0 for every step of the agent, on batches that
hold half of each:

    δ²(D, r) = mean over D of (Q(s, a) − r − γ V̄(s′))²,   V̄(s′) = α log Σ_a exp(Q̄(s′, a) / α)      (1)
    L_Q = δ²(demonstrations, 1) + δ²(agent, 0)                                                      (2)
    π(a|s) = exp(Q(s, a) / α) / Σ_a′ exp(Q(s, a′) / α)                                              (3)

This is soft Q-learning, for discrete actions. For continuous ones the paper uses SAC, and so does this file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from herdbook.core.config import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, UNIT, Config
from herdbook.core.distributions import Categorical
from herdbook.core.exploration import steps_between_updates, updates_after
from herdbook.core.learner import Adam, Learner, Params, Setup
from herdbook.core.needs import Needs
from herdbook.core.networks import Head
from herdbook.core.policy import FeedForwardPolicy, Scaling
from herdbook.core.spaces import check_action_space
from herdbook.core.types import Metrics, Policy, Replay, Spec, Transitions
from herdbook.datasets.replay import ReplayBuffer
from herdbook.irl.demonstrations import check_spaces, notice_few, required
from herdbook.irl.mixture import half_and_half
from herdbook.irl.rewards import soft_value
from herdbook.online.sac import SAC, SACConfig


@dataclass(frozen=True, kw_only=True)
class SQILConfig(Config):
    """Settings of SQIL: rewards, mix and α are the paper's, the others those of SAC."""

    algorithm: ClassVar[str] = "sqil"
    temperature: float = 1.0  # α; with continuous actions its initial value
    tune_temperature: bool = True  # continuous actions: learn α as SAC does
    discount: float = 0.99  # γ, discount factor
    tau: float = 0.005  # target critics: θ̄ ← (1 − tau) θ̄ + tau θ after each update
    batch_size: int = 128  # demonstrated transitions per update, and as many of the agent's own beside them
    lr: float = 3e-4  # learning rate of all networks
    hidden_sizes: tuple[int, ...] = (256, 256)  # widths of the hidden layers of all networks
    warmup_steps: int = 1_000  # environment steps before the first update; with continuous actions, of uniform actions
    updates_per_step: float = 1.0  # updates per environment step
    replay_steps: int = 1_000_000  # capacity of the replay buffer in environment steps

    def __post_init__(self) -> None:
        self.require(temperature=POSITIVE, discount=UNIT, tau=FRACTION, batch_size=COUNT, lr=POSITIVE)
        self.require(hidden_sizes=COUNT, warmup_steps=NOT_NEGATIVE, updates_per_step=POSITIVE, replay_steps=COUNT)

    def sac(self) -> SACConfig:
        """The settings of SAC, for continuous actions."""
        return SACConfig(
            discount=self.discount,
            tau=self.tau,
            initial_temperature=self.temperature,
            tune_temperature=self.tune_temperature,
            batch_size=2 * self.batch_size,
            actor_lr=self.lr,
            critic_lr=self.lr,
            temperature_lr=self.lr,
            hidden_sizes=self.hidden_sizes,
            warmup_steps=self.warmup_steps,
            updates_per_step=self.updates_per_step,
            replay_steps=self.replay_steps,
        )


def imitation_rewards(rewards: Tensor) -> Tensor:
    """1 for the first half, which is demonstrated, and 0 for the second. rewards: of any value [*S, 2B] → [*S, 2B]."""
    ones, zeros = rewards.chunk(2, -1)
    return torch.cat([torch.ones_like(ones), torch.zeros_like(zeros)], -1)


def soft_bellman_error(q: Tensor, rewards: Tensor, discounts: Tensor, next_q: Tensor, temperature: float) -> Tensor:
    """Eq. 1. q: Q(s, a); rewards: r; discounts: γ (1 − terminated), all [B]; next_q: Q̄(s′, ·) [B, n] → []."""
    return (q - rewards - discounts * soft_value(next_q, temperature)).square().mean()


class SoftQ:
    """Soft Q-learning on batches with half of each, for discrete actions."""

    def __init__(self, config: SQILConfig, spec: Spec, **setup: Unpack[Setup]) -> None:
        self.config = c = config
        self.scaling = Scaling(spec, device=setup.get("device", "cpu"))
        space, size = spec.observation_space, self.scaling.action_size
        networks = {"critic": lambda: Head(space, size, c.hidden_sizes)}
        self.learner = Learner(networks, {"critic": Adam(lr=c.lr)}, targets=("critic",), **setup)
        self.critic = self.learner.networks["critic"]

    def update(self, batch: Transitions) -> Metrics:
        self.learner.updates += 1
        metrics = self.learner.step("critic", self.objective, self.scaling(batch))
        self.learner.move_targets(self.config.tau)
        return metrics

    def objective(self, params: Params, batch: Transitions) -> tuple[Tensor, Metrics]:
        temperature = self.config.temperature
        next_q = self.critic(params.target["critic"], batch.next_observations)  # [2B, n]
        all_q = self.critic(params["critic"], batch.observations)  # [2B, n]
        q = all_q.gather(-1, batch.actions.unsqueeze(-1)).squeeze(-1)  # [2B]
        halves = (slice(self.config.batch_size), slice(self.config.batch_size, None))
        expert, agent = (
            soft_bellman_error(q[half], batch.rewards[half], batch.discounts[half], next_q[half], temperature)
            for half in halves
        )  # eq. 1
        return expert + agent, {"q": q.mean(), "error/expert": expert, "error/agent": agent}  # eq. 2

    def policy(self, seed_index: int = 0, *, deterministic: bool = True, step: int | None = None) -> Policy:
        critic, temperature = self.learner.parameters_of("critic", seed_index), self.config.temperature
        return FeedForwardPolicy(
            self.scaling, lambda o: Categorical(self.critic(critic, o) / temperature), deterministic=deterministic
        )

    def state_dict(self) -> dict[str, Any]:
        return self.learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state)


class SQIL:
    """SQIL. `networks` may replace `critic` ([B, …] → [B, n]) with discrete actions, and those of SAC with others."""

    needs: ClassVar[Needs] = Needs(data=True, environment=True)

    def __init__(
        self, config: SQILConfig, spec: Spec, *, demonstrations: ReplayBuffer | None = None, **setup: Unpack[Setup]
    ) -> None:
        self.config, self.demonstrations = config, demonstrations  # None where only the policy is wanted
        check_action_space(spec.action_space, self.needs.actions, config.algorithm)
        check_spaces(demonstrations, spec, config.algorithm)
        notice_few(demonstrations, config.batch_size, config.algorithm)
        discrete = Scaling(spec).discrete
        self.agent: SoftQ | SAC = SoftQ(config, spec, **setup) if discrete else SAC(config.sac(), spec, **setup)
        self.learner = self.agent.learner

    def sample(self, replay: Replay, generators: Sequence[torch.Generator]) -> Transitions:
        """The first half is demonstrated, the second the agent's own."""
        c = self.config
        demonstrations = required(self.demonstrations, c.algorithm)
        return half_and_half(demonstrations, replay, c.batch_size, generators, discount=c.discount)

    def update(self, batch: Transitions) -> Metrics:
        return self.agent.update(replace(batch, rewards=imitation_rewards(batch.rewards)))

    def policy(self, seed_index: int = 0, *, deterministic: bool = True, step: int | None = None) -> Policy:
        """The most probable action of eq. 3 or a sample; with continuous actions the policy of SAC."""
        return self.agent.policy(seed_index, deterministic=deterministic, step=step)

    def round_steps(self, num_envs: int) -> int:
        return steps_between_updates(self.config.updates_per_step, num_envs)

    def updates_due(self, episodes: int, steps: int) -> int:
        return updates_after(steps, self.config.warmup_steps, self.config.updates_per_step)

    def state_dict(self) -> dict[str, Any]:
        return self.agent.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.agent.load_state_dict(state)
