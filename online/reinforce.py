"""REINFORCE (Williams 1992), with or without a learned baseline (Sutton & Barto 2018, 13.3 and 13.4).

    G_t = Σ_k γ^k r_{t+k}, to the end of the episode               (1)
    L_π = −mean log π(a_t|s_t) (G_t − b(s_t))                      (2)
    L_b = mean (b(s_t) − G_t)²                                     (3)

It learns from whole episodes of one policy. As everywhere in practice, (2) leaves out the factor γ^t of the discounted
objective's gradient. Where the time limit is none of the task's, the baseline stands for what would have followed;
without one nothing does, and a truncated return is only what was earned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from herdbook.core.config import COUNT, NOT_NEGATIVE, POSITIVE, UNIT, Config
from herdbook.core.learner import Adam, Params, Setup
from herdbook.core.needs import Needs
from herdbook.core.on_policy import ActorCritic, Experience, minibatches, standardised, steps_of
from herdbook.core.returns import discounted_returns
from herdbook.core.types import Metrics, Policy, Segments, Spec, tree_leaves, tree_map


@dataclass(frozen=True, kw_only=True)
class ReinforceConfig(Config):
    """Settings of REINFORCE."""

    algorithm: ClassVar[str] = "reinforce"
    discount: float = 0.99  # γ
    baseline: bool = True  # b of eq. 2, else 0
    episodes_per_update: int = 4  # for each step of the policy
    baseline_epochs: int = 5  # passes over these episodes for eq. 3 …
    batch_size: int = 64  # … in parts of so many steps
    normalise_advantages: bool = True  # G − b less its mean and over its deviation
    entropy_weight: float = 0.0
    lr: float = 3e-3
    baseline_lr: float = 3e-3
    max_grad_norm: float | None = None  # None: gradients are not clipped
    hidden_sizes: tuple[int, ...] = (64, 64)
    initial_std: float = 1.0  # σ of continuous actions in [−1, 1]
    normalise_observations: bool = False  # by their running mean and deviation, which are saved with the policy
    scale_rewards: bool = False  # by the running deviation of their discounted sum

    def __post_init__(self) -> None:
        self.require(discount=UNIT, episodes_per_update=COUNT, baseline_epochs=COUNT, batch_size=COUNT)
        self.require(entropy_weight=NOT_NEGATIVE, lr=POSITIVE, baseline_lr=POSITIVE, max_grad_norm=POSITIVE)
        self.require(hidden_sizes=COUNT, initial_std=POSITIVE)


def policy_loss(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """Eq. 2. log_probs: log π(a|s) [N]; advantages: G − b [N] → []."""
    return -(log_probs * advantages).mean()


def baseline_loss(values: Tensor, returns: Tensor) -> Tensor:
    """Eq. 3. values: b(s) [N]; returns: G [N] → []."""
    return (values - returns).square().mean()


class Reinforce:
    """`networks` may replace `actor` ([B, …] → `Categorical` or `ClippedNormal`) and `baseline` ([B, …] → [B])."""

    # One environment: another would be in the middle of an episode where the policy changes.
    needs: ClassVar[Needs] = Needs(environment=True, interaction="rollouts", max_envs=1, seeds_together=False)

    def __init__(self, config: ReinforceConfig, spec: Spec, **setup: Unpack[Setup]) -> None:
        self.config = c = config
        optimisers = {
            "actor": Adam(lr=c.lr, max_grad_norm=c.max_grad_norm),
            "baseline": Adam(lr=c.baseline_lr, max_grad_norm=c.max_grad_norm),
        }
        self.agent = ActorCritic(c, spec, optimisers, setup, value="baseline")
        self.units, self.learner = self.agent.units, self.agent.learner
        self.actor, self.baseline = self.agent.actor, self.agent.value

    def update(self, rollout: Segments) -> Metrics:
        """rollout: whole episodes, one after the other, [1, T]."""
        c = self.config
        self.learner.updates += 1
        scaled = self.units.rollout(rollout)
        with torch.no_grad():
            values, next_values = self.values(scaled.observations), self.values(scaled.next_observations)
            returns = discounted_returns(
                scaled.rewards, scaled.terminated, scaled.truncated, next_values, c.discount
            )  # eq. 1
        steps = steps_of(scaled, returns - values, returns)
        metrics = self.learner.step("actor", self.policy_objective, steps)
        if c.baseline:
            for batch in minibatches(steps, c.batch_size, c.baseline_epochs, self.learner.generators[0]):
                metrics |= self.learner.step("baseline", self.baseline_objective, batch)
        self.units.see(rollout.observations)
        return metrics

    def values(self, observations: Any) -> Tensor:
        """b, or 0 without a baseline: [lanes, T, …] → [lanes, T]."""
        leaf = tree_leaves(observations)[0]
        if not self.config.baseline:
            return torch.zeros(leaf.shape[:2], device=leaf.device)
        flat = tree_map(lambda leaf: leaf.flatten(0, 1), observations)
        values: Tensor = self.baseline(self.learner.parameters_of("baseline"), flat)
        return values.view(leaf.shape[:2])

    def policy_objective(self, params: Params, batch: Experience) -> tuple[Tensor, Metrics]:
        c = self.config
        advantages = standardised(batch.advantages) if c.normalise_advantages else batch.advantages
        policy = self.actor(params["actor"], batch.observations)
        entropy = policy.entropy().mean()
        loss = policy_loss(policy.log_prob(batch.actions), advantages)  # eq. 2
        return loss - c.entropy_weight * entropy, {"entropy": entropy}

    def baseline_objective(self, params: Params, batch: Experience) -> tuple[Tensor, Metrics]:
        return baseline_loss(self.baseline(params["baseline"], batch.observations), batch.returns), {}  # eq. 3

    def policy(self, seed_index: int = 0, *, deterministic: bool = True, step: int | None = None) -> Policy:
        """The mode, or a sample; `step` changes nothing."""
        return self.agent.policy(seed_index, deterministic)

    def round_steps(self, num_envs: int) -> int:
        """Whether enough episodes have ended is asked after each step."""
        return 1

    def updates_due(self, episodes: int, steps: int) -> int:
        """How many updates should have been made after so many episodes."""
        return episodes // self.config.episodes_per_update

    def state_dict(self) -> dict[str, Any]:
        return self.agent.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.agent.load_state_dict(state)
