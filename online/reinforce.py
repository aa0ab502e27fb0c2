"""REINFORCE (Williams 1992), with or without a learned baseline (Sutton & Barto 2018, 13.3 and 13.4).

    G_t = Σ_k γ^k r_{t+k},   until the episode ends                (1)
    L_π = −mean log π(a_t|s_t) (G_t − b(s_t))                      (2)
    L_b = mean (b(s_t) − G_t)²                                     (3)

Each update learns from whole episodes of the current policy. As is usual, (2) leaves out the factor γ^t of the gradient
of the discounted objective. If a time limit that is not part of the task truncates an episode, the baseline's value of
the final observation continues the sum of (1). Without a baseline, the sum ends there, and no mean is subtracted from
G_t either: normalised returns are divided by their root mean square.
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
    discount: float = 0.99  # γ, discount factor
    baseline: bool = True  # learn the baseline b of eq. 2; else b = 0
    episodes_per_update: int = 4  # episodes per update of the policy
    baseline_epochs: int = 5  # passes over the episodes of an update to fit the baseline, eq. 3
    batch_size: int = 64  # steps per minibatch of the baseline's passes
    normalise_advantages: bool = True  # standardise G − b of eq. 2 over an update; if b = 0, only scale it
    entropy_weight: float = 0.0  # weight of an entropy bonus added to eq. 2
    lr: float = 3e-3  # learning rate of the policy
    baseline_lr: float = 3e-3  # learning rate of the baseline
    max_grad_norm: float | None = None  # clip the gradients of policy and baseline each to this norm; None: no clipping
    hidden_sizes: tuple[int, ...] = (64, 64)  # widths of the hidden layers of both networks
    initial_std: float = 1.0  # initial standard deviation of continuous actions in [−1, 1]
    normalise_observations: bool = False  # standardise vectors by their running mean and std, saved with the policy
    scale_rewards: bool = False  # divide rewards by the running standard deviation of their discounted sum

    def __post_init__(self) -> None:
        self.require(discount=UNIT, episodes_per_update=COUNT, baseline_epochs=COUNT, batch_size=COUNT)
        self.require(entropy_weight=NOT_NEGATIVE, lr=POSITIVE, baseline_lr=POSITIVE, max_grad_norm=POSITIVE)
        self.require(hidden_sizes=COUNT, initial_std=POSITIVE)


def policy_loss(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """Eq. 2. log_probs: log π(a|s) [N]; advantages: G − b [N] → []."""
    return -(log_probs * advantages).mean()


def rescaled(returns: Tensor) -> Tensor:
    """G divided by its root mean square. Unlike in `standardised`, no mean acts as a baseline. [N] → [N]."""
    return returns / (returns.square().mean().sqrt() + 1e-8)


def baseline_loss(values: Tensor, returns: Tensor) -> Tensor:
    """Eq. 3. values: b(s) [N]; returns: G [N] → []."""
    return (values - returns).square().mean()


class Reinforce:
    """REINFORCE. `networks` may replace `actor` ([B, …] → `Categorical` or `ClippedNormal`) and `baseline` (→ [B])."""

    # One environment: in a second one, the policy would change in the middle of an episode.
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
        """rollout: whole episodes in succession, [1, T]."""
        c = self.config
        self.learner.updates += 1
        scaled = self.units.rollout(rollout)
        with torch.no_grad():
            values, next_values = self.values(scaled.observations), self.values(scaled.next_observations)
            ends = scaled.terminated, scaled.truncated
            returns = discounted_returns(scaled.rewards, *ends, next_values, c.discount)  # eq. 1
        steps = steps_of(scaled, returns - values, returns)
        metrics = self.learner.step("actor", self.policy_objective, steps)
        if c.baseline:
            for batch in minibatches(steps, c.batch_size, c.baseline_epochs, self.learner.generators[0]):
                metrics |= self.learner.step("baseline", self.baseline_objective, batch)
        self.units.see(rollout.observations)
        return metrics

    def values(self, observations: Any) -> Tensor:
        """b(s), or 0 without a baseline. observations: [lanes, T, …] → [lanes, T]."""
        leaf = tree_leaves(observations)[0]
        if not self.config.baseline:
            return torch.zeros(leaf.shape[:2], device=leaf.device)
        flat = tree_map(lambda leaf: leaf.flatten(0, 1), observations)
        values: Tensor = self.baseline(self.learner.parameters_of("baseline"), flat)
        return values.view(leaf.shape[:2])

    def policy_objective(self, params: Params, batch: Experience) -> tuple[Tensor, Metrics]:
        c = self.config
        normalise = standardised if c.baseline else rescaled
        advantages = normalise(batch.advantages) if c.normalise_advantages else batch.advantages
        policy = self.actor(params["actor"], batch.observations)
        entropy = policy.entropy().mean()
        loss = policy_loss(policy.log_prob(batch.actions), advantages)  # eq. 2
        return loss - c.entropy_weight * entropy, {"entropy": entropy}

    def baseline_objective(self, params: Params, batch: Experience) -> tuple[Tensor, Metrics]:
        return baseline_loss(self.baseline(params["baseline"], batch.observations), batch.returns), {}  # eq. 3

    def policy(self, seed_index: int = 0, *, deterministic: bool = True, step: int | None = None) -> Policy:
        """The mode of π, or a sample; `step` has no effect."""
        return self.agent.policy(seed_index, deterministic)

    def round_steps(self, num_envs: int) -> int:
        return 1  # an episode can end after any step

    def updates_due(self, episodes: int, steps: int) -> int:
        return episodes // self.config.episodes_per_update

    def state_dict(self) -> dict[str, Any]:
        return self.agent.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.agent.load_state_dict(state)
