"""Advantage actor-critic, the synchronous form of A3C (Mnih et al. 2016, arXiv:1602.01783).

    L_π = −mean log π(a|s) Â                              (1)
    L_V = ½ mean (V(s) − R)²,   R = Â + V(s)              (2)
    L   = L_π + c_V L_V − c_H mean H(π(·|s))              (3)

Â is the generalised advantage (core/returns.py); with λ = 1 it is the paper's, the n-step return minus V(s). Each
rollout gives one step of Adam, where the paper uses RMSprop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from herdbook.core.config import COUNT, NOT_NEGATIVE, POSITIVE, UNIT, Config
from herdbook.core.exploration import linear_schedule
from herdbook.core.learner import Adam, Params, Setup
from herdbook.core.needs import Needs
from herdbook.core.on_policy import ActorCritic, Experience, advantages_of, standardised, steps_of
from herdbook.core.types import Metrics, Policy, Segments, Spec


@dataclass(frozen=True, kw_only=True)
class A2CConfig(Config):
    """Settings of A2C; the defaults are OpenAI Baselines', with the exceptions in docs/algorithms.md."""

    algorithm: ClassVar[str] = "a2c"
    discount: float = 0.99  # γ, discount factor
    trace: float = 1.0  # λ of the generalised advantage estimator
    value_weight: float = 0.5  # c_V, weight of the value loss in eq. 3
    entropy_weight: float = 0.01  # c_H, weight of the entropy in eq. 3
    rollout_steps: int = 5  # steps of each environment per rollout
    normalise_advantages: bool = False  # standardise the advantages of each rollout
    lr: float = 1e-3  # learning rate
    decay_lr: bool = False  # learning rates fall linearly to 0 over decay_steps
    decay_steps: int | None = None  # environment steps until learning rates reach 0; None: all steps of the run
    max_grad_norm: float | None = 0.5  # clip the gradient to this norm; None: no clipping
    hidden_sizes: tuple[int, ...] = (64, 64)  # widths of the hidden layers of all networks
    initial_std: float = 1.0  # initial standard deviation of continuous actions in [−1, 1]
    normalise_observations: bool = False  # standardise vectors by their running mean and std, saved with the policy
    scale_rewards: bool = False  # divide rewards by the running standard deviation of their discounted sum

    def __post_init__(self) -> None:
        self.require(discount=UNIT, trace=UNIT, value_weight=NOT_NEGATIVE, entropy_weight=NOT_NEGATIVE)
        self.require(rollout_steps=COUNT, hidden_sizes=COUNT, decay_steps=COUNT)
        self.require(lr=POSITIVE, max_grad_norm=POSITIVE, initial_std=POSITIVE)


def policy_loss(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """Eq. 1. log_probs: log π(a|s) [N]; advantages: Â [N] → []."""
    return -(log_probs * advantages).mean()


def value_loss(values: Tensor, returns: Tensor) -> Tensor:
    """Eq. 2. values: V(s) [N]; returns: R [N] → []."""
    return 0.5 * (values - returns).square().mean()


class A2C:
    """A2C. `networks` may replace `actor` ([B, …] → `Categorical` or `ClippedNormal`) and `critic` (→ V [B])."""

    needs: ClassVar[Needs] = Needs(environment=True, interaction="rollouts", num_envs=8, seeds_together=False)

    def __init__(self, config: A2CConfig, spec: Spec, **setup: Unpack[Setup]) -> None:
        self.config = c = config
        c.expect_together("decay_lr", "decay_steps")
        adam = Adam(lr=c.lr, networks=("actor", "critic"), max_grad_norm=c.max_grad_norm)
        self.agent = ActorCritic(c, spec, {"agent": adam}, setup)
        self.units, self.learner = self.agent.units, self.agent.learner
        self.actor, self.critic = self.agent.actor, self.agent.value
        self.steps = 0

    def update(self, rollout: Segments) -> Metrics:
        c, critic = self.config, self.learner.parameters_of("critic")
        self.learner.updates += 1
        if c.decay_lr and c.decay_steps is not None:
            self.learner.rate_scale = linear_schedule(1.0, 0.0, c.decay_steps, self.steps)
        scaled = self.units.rollout(rollout)
        with torch.no_grad():
            advantages, returns = advantages_of(scaled, lambda o: self.critic(critic, o), c.discount, c.trace)
        metrics = self.learner.step("agent", self.objective, steps_of(scaled, advantages, returns))
        self.units.see(rollout.observations)
        self.steps += rollout.rewards.numel()
        return metrics

    def objective(self, params: Params, batch: Experience) -> tuple[Tensor, Metrics]:
        c = self.config
        advantages = standardised(batch.advantages) if c.normalise_advantages else batch.advantages
        policy = self.actor(params["actor"], batch.observations)
        policy_term = policy_loss(policy.log_prob(batch.actions), advantages)  # eq. 1
        value_term = value_loss(self.critic(params["critic"], batch.observations), batch.returns)  # eq. 2
        entropy = policy.entropy().mean()
        metrics = {"loss/policy": policy_term, "loss/value": value_term, "entropy": entropy}
        return policy_term + c.value_weight * value_term - c.entropy_weight * entropy, metrics  # eq. 3

    def policy(self, seed_index: int = 0, *, deterministic: bool = True, step: int | None = None) -> Policy:
        """The mode of π, or a sample; `step` has no effect."""
        return self.agent.policy(seed_index, deterministic)

    def round_steps(self, num_envs: int) -> int:
        return self.config.rollout_steps

    def updates_due(self, episodes: int, steps: int) -> int:
        return self.learner.updates + 1  # one update after each rollout

    def state_dict(self) -> dict[str, Any]:
        return {**self.agent.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.agent.load_state_dict(state)
        self.steps = int(state["steps"])
