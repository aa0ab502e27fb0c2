"""Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347), with the clipped objective.

    L_π = −mean min(ρ Â, clip(ρ, 1 − ε, 1 + ε) Â),   ρ = π(a|s) / π_old(a|s)        (1)
    L_V = ½ mean (V(s) − R)²,   R = Â + V_old(s)                                    (2)
    L   = L_π + c_V L_V − c_H mean H(π(·|s))                                        (3)

Â is the generalised advantage (core/returns.py), bootstrapped at truncations but not at terminations. By default it is
standardised in each minibatch. Details follow Andrychowicz et al. 2021 (arXiv:2006.05990) and Huang et al. 2022.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from herdbook.core.config import COUNT, NOT_NEGATIVE, POSITIVE, UNIT, Config
from herdbook.core.exploration import linear_schedule
from herdbook.core.learner import Adam, Params, Setup
from herdbook.core.needs import Needs
from herdbook.core.on_policy import ActorCritic, Experience, advantages_of, minibatches, standardised, steps_of
from herdbook.core.types import Metrics, Policy, Segments, Spec


@dataclass(frozen=True, kw_only=True)
class PPOConfig(Config):
    """Settings of PPO; the defaults are the paper's for control; a rollout is 256 steps of 8 environments."""

    algorithm: ClassVar[str] = "ppo"
    discount: float = 0.99  # γ, discount factor
    trace: float = 0.95  # λ of the generalised advantage estimator
    clip: float = 0.2  # ε, clipping range of the ratio ρ in eq. 1
    value_weight: float = 0.5  # c_V, weight of the value loss in eq. 3
    entropy_weight: float = 0.0  # c_H, weight of the entropy in eq. 3
    rollout_steps: int = 256  # steps of each environment per rollout
    epochs: int = 10  # passes over each rollout
    batch_size: int = 64  # steps per minibatch
    normalise_advantages: bool = True  # standardise the advantages of each minibatch
    lr: float = 3e-4  # learning rate
    decay_lr: bool = False  # learning rates fall linearly to 0 over decay_steps
    decay_steps: int | None = None  # environment steps until learning rates reach 0; None: all steps of the run
    max_grad_norm: float | None = 0.5  # clip the gradient to this norm; None: no clipping
    hidden_sizes: tuple[int, ...] = (64, 64)  # widths of the hidden layers of all networks
    initial_std: float = 1.0  # initial standard deviation of continuous actions in [−1, 1]
    normalise_observations: bool = False  # standardise vectors by their running mean and std, saved with the policy
    scale_rewards: bool = False  # divide rewards by the running standard deviation of their discounted sum

    def __post_init__(self) -> None:
        self.require(discount=UNIT, trace=UNIT, clip=POSITIVE, value_weight=NOT_NEGATIVE, entropy_weight=NOT_NEGATIVE)
        self.require(rollout_steps=COUNT, epochs=COUNT, batch_size=COUNT, hidden_sizes=COUNT, decay_steps=COUNT)
        self.require(lr=POSITIVE, max_grad_norm=POSITIVE, initial_std=POSITIVE)


def policy_loss(ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """Eq. 1. ratio: ρ [N]; advantages: Â [N] → []."""
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages).mean()


def value_loss(values: Tensor, returns: Tensor) -> Tensor:
    """Eq. 2. values: V(s) [N]; returns: R [N] → []."""
    return 0.5 * (values - returns).square().mean()


class PPO:
    """PPO. `networks` may replace `actor` ([B, …] → `Categorical` or `ClippedNormal`) and `critic` (→ V [B])."""

    needs: ClassVar[Needs] = Needs(environment=True, interaction="rollouts", num_envs=8, seeds_together=False)

    def __init__(self, config: PPOConfig, spec: Spec, **setup: Unpack[Setup]) -> None:
        self.config = c = config
        c.expect_together("decay_lr", "decay_steps")
        adam = Adam(lr=c.lr, networks=("actor", "critic"), max_grad_norm=c.max_grad_norm)
        self.agent = ActorCritic(c, spec, {"agent": adam}, setup)
        self.units, self.learner = self.agent.units, self.agent.learner
        self.actor, self.critic = self.agent.actor, self.agent.value
        self.steps = 0

    def update(self, rollout: Segments) -> Metrics:
        c, actor, critic = self.config, self.learner.parameters_of("actor"), self.learner.parameters_of("critic")
        self.learner.updates += 1
        if c.decay_lr and c.decay_steps is not None:
            self.learner.rate_scale = linear_schedule(1.0, 0.0, c.decay_steps, self.steps)
        scaled = self.units.rollout(rollout)
        with torch.no_grad():
            advantages, returns = advantages_of(scaled, lambda o: self.critic(critic, o), c.discount, c.trace)
            steps = steps_of(scaled, advantages, returns)
            steps = replace(steps, log_probs=self.actor(actor, steps.observations).log_prob(steps.actions))
        for batch in minibatches(steps, c.batch_size, c.epochs, self.learner.generators[0]):
            metrics = self.learner.step("agent", self.objective, batch)
        self.units.see(rollout.observations)
        self.steps += rollout.rewards.numel()
        return metrics

    def objective(self, params: Params, batch: Experience) -> tuple[Tensor, Metrics]:
        c = self.config
        advantages = standardised(batch.advantages) if c.normalise_advantages else batch.advantages
        policy = self.actor(params["actor"], batch.observations)
        log_ratio = policy.log_prob(batch.actions) - batch.log_probs  # [N]
        ratio = log_ratio.exp()
        policy_term = policy_loss(ratio, advantages, c.clip)  # eq. 1
        value_term = value_loss(self.critic(params["critic"], batch.observations), batch.returns)  # eq. 2
        entropy = policy.entropy().mean()
        metrics = {"loss/policy": policy_term, "loss/value": value_term, "entropy": entropy}
        metrics["divergence"] = (ratio - 1 - log_ratio).mean()  # an estimate of KL(π_old ‖ π) that is never negative
        metrics["clipped"] = ((ratio - 1).abs() > c.clip).float().mean()
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
