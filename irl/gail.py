"""GAIL: generative adversarial imitation learning (Ho & Ermon 2016, arXiv:1606.03476), on PPO.

    L = −mean_E log D(s, a) − mean_π log(1 − D(s, a)) + c P                         (1)
    r(s, a) = −log(1 − D(s, a)), or another convention                              (2)

D is the probability that (s, a) is the expert's, as in most code; the paper's D is one minus it. P is the gradient
penalty of irl/discriminator.py, off by default. After each rollout D is updated first, then PPO with the rewards of the
new D (the paper's algorithm 1, whose policy step is TRPO's). Conventions differ where episodes end early: see
irl/discriminator.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Unpack, cast

import torch
from torch import Tensor

from herdbook.core.config import COUNT, NOT_NEGATIVE, POSITIVE, Config
from herdbook.core.learner import Params, Setup
from herdbook.core.needs import Needs
from herdbook.core.types import Metrics, Policy, Segments, Spec, Transitions
from herdbook.datasets.replay import ReplayBuffer
from herdbook.irl.adversarial import AdversarialPair, check_half_batches
from herdbook.irl.discriminator import (
    RewardConvention,
    accuracies,
    check_convention,
    gradient_penalty,
    imitation_reward,
    logistic_loss,
)
from herdbook.irl.rewards import LearnedReward, RewardDesign, RewardInputs, RewardNetwork
from herdbook.online.ppo import PPOConfig


@dataclass(frozen=True, kw_only=True)
class GAILConfig(Config):
    """Settings of GAIL; the defaults are the paper's, with minibatches for the discriminator."""

    algorithm: ClassVar[str] = "gail"
    ppo: PPOConfig = PPOConfig(discount=0.995, trace=0.97, hidden_sizes=(100, 100))  # the generator
    reward_convention: RewardConvention = "-log(1-D)"  # the policy's reward, eq. 2
    reward_inputs: RewardInputs = "state_action"  # inputs of the discriminator
    hidden_sizes: tuple[int, ...] = (100, 100)  # widths of the discriminator's hidden layers, with tanh units
    discriminator_updates: int = 8  # updates of the discriminator after each rollout
    batch_size: int = 256  # transitions per update of the discriminator, half of them the expert's
    lr: float = 1e-3  # learning rate of the discriminator
    gradient_penalty: float = 0.0  # c, weight of the gradient penalty, eq. 1
    old_rollouts: int = 0  # earlier rollouts, from which the discriminator's samples of the policy come too
    standardise_observations: bool = True  # the discriminator's, by the mean and std of the demonstrations
    allow_variable_horizon: bool = False  # accept demonstrations that terminate or whose lengths differ

    def __post_init__(self) -> None:
        self.require(hidden_sizes=COUNT, discriminator_updates=COUNT, batch_size=COUNT, lr=POSITIVE)
        self.require(gradient_penalty=NOT_NEGATIVE, old_rollouts=NOT_NEGATIVE)
        check_half_batches(self, self.batch_size)
        check_convention(self.reward_convention)


class GAIL:
    """GAIL. `networks` may replace PPO's `actor` and `critic`."""

    needs: ClassVar[Needs] = Needs(
        data=True, environment=True, interaction="rollouts", num_envs=8, seeds_together=False, reward=True
    )

    def __init__(
        self, config: GAILConfig, spec: Spec, *, demonstrations: ReplayBuffer | None = None, **setup: Unpack[Setup]
    ) -> None:
        self.config = c = config
        design = RewardDesign(
            inputs=c.reward_inputs, hidden_sizes=c.hidden_sizes, activation="tanh", convention=c.reward_convention
        )
        compiled = c.gradient_penalty == 0
        self.pair = AdversarialPair(c, design, spec, demonstrations, setup, compiled=compiled)
        self.ppo, self.learner, self.logit = self.pair.ppo, self.pair.learner, self.pair.network

    def update(self, rollout: Segments) -> Metrics:
        self.learner.updates += 1
        for raw in self.pair.batches(rollout):
            expert, policy = map(self.pair.scaling, raw)
            mix = (self.learner.uniform(len(policy.rewards)) + 1) / 2
            metrics = self.learner.step("discriminator", self.objective, expert, policy, mix)
        rewards = imitation_reward(self.pair.outputs(rollout), self.config.reward_convention)  # eq. 2
        return metrics | {"reward": rewards.mean()} | self.ppo.update(replace(rollout, rewards=rewards))

    def objective(
        self, params: Params, expert: Transitions, policy: Transitions, mix: Tensor
    ) -> tuple[Tensor, Metrics]:
        c, logit = self.config, partial(self.logit, params["reward"])
        expert_logits, policy_logits = logit(expert), logit(policy)  # [B] each
        loss, metrics = logistic_loss(expert_logits, policy_logits), accuracies(expert_logits, policy_logits)
        if not c.gradient_penalty:
            return loss, metrics
        penalty = gradient_penalty(logit, self.features(expert), self.features(policy), mix)
        return loss + c.gradient_penalty * penalty, {**metrics, "gradient_penalty": penalty}  # eq. 1

    @torch.no_grad()
    def features(self, batch: Transitions) -> Tensor:
        """Inputs of the discriminator's perceptron; for images, the outputs of its convolutions. [B, K]"""
        return cast(RewardNetwork, self.logit.module).features(batch)

    def policy(self, seed_index: int = 0, *, deterministic: bool = True, step: int | None = None) -> Policy:
        return self.ppo.policy(seed_index, deterministic=deterministic, step=step)

    def reward(self, seed_index: int = 0) -> LearnedReward:
        """The reward of eq. 2 under the present discriminator."""
        return self.pair.reward(seed_index)

    def round_steps(self, num_envs: int) -> int:
        return self.ppo.round_steps(num_envs)

    def updates_due(self, episodes: int, steps: int) -> int:
        return self.ppo.updates_due(episodes, steps)

    def state_dict(self) -> dict[str, Any]:
        return self.pair.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.pair.load_state_dict(state)
