"""AIRL: adversarial inverse reinforcement learning (Fu, Luo & Levine 2018, arXiv:1710.11248), on PPO.

    f(s, a, s′) = g(s, a) + γ (1 − terminated) h(s′) − h(s)                         (1)  the paper's eq. 4
    z = log D − log(1 − D) = f(s, a, s′) − log π(a|s)                               (2)  D = exp f / (exp f + π)
    L = −mean_E log D − mean_π log(1 − D)                                           (3)
    r = z                                                                           (4)

π is the current policy for the expert's steps, the rollout's and those of earlier rollouts, and its log-probabilities
have no gradient in eq. 3. γ is PPO's. At the optimum f is the expert's log π, up to what is constant in a: its
advantage in the soft problem. If g depends on the state alone, it recovers the reward up to a constant and can be used
under other dynamics (the paper's theorem 5.1): `reward().unshaped()`. log π is that of actions in [−1, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Unpack, get_args

import torch
from torch import Tensor

from herdbook.core.config import COUNT, NOT_NEGATIVE, POSITIVE, Config
from herdbook.core.learner import Params, Setup
from herdbook.core.needs import Needs
from herdbook.core.types import Metrics, Policy, Segments, Spec, Transitions, Tree
from herdbook.datasets.replay import ReplayBuffer
from herdbook.irl.adversarial import AdversarialPair, check_half_batches, transitions_of
from herdbook.irl.discriminator import accuracies, logistic_loss
from herdbook.irl.rewards import LearnedReward, RewardDesign, RewardInputs
from herdbook.online.ppo import PPOConfig

PolicyReward = Literal["f - log pi", "f"]


@dataclass(frozen=True, kw_only=True)
class AIRLConfig(Config):
    """Settings of AIRL; the defaults are those of the paper and its code, for the reward."""

    algorithm: ClassVar[str] = "airl"
    ppo: PPOConfig = PPOConfig()  # the generator; for transfer, the paper has entropy_weight 0.1
    policy_reward: PolicyReward = "f - log pi"  # eq. 4; "f" leaves the entropy to PPO's entropy_weight
    reward_inputs: RewardInputs = "state_action"  # inputs of g; "state" for a reward that transfers to other dynamics
    hidden_sizes: tuple[int, ...] = (32, 32)  # widths of the hidden layers of g; none: g is linear
    shaped: bool = True  # add γ h(s′) − h(s) to g, eq. 1
    shaping_sizes: tuple[int, ...] = (32, 32)  # widths of the hidden layers of h
    discriminator_updates: int = 10  # updates of f after each rollout
    batch_size: int = 64  # transitions per update of f, half of them the expert's
    lr: float = 1e-3  # learning rate of f
    old_rollouts: int = 20  # earlier rollouts, from which samples of the policy come too
    standardise_observations: bool = True  # those of g and h, by the mean and std of the demonstrations
    allow_variable_horizon: bool = False  # accept demonstrations that terminate or whose lengths differ

    def __post_init__(self) -> None:
        self.require(hidden_sizes=COUNT, shaping_sizes=COUNT, discriminator_updates=COUNT, batch_size=COUNT)
        self.require(lr=POSITIVE, old_rollouts=NOT_NEGATIVE)
        check_half_batches(self, self.batch_size)
        self.require_one_of(policy_reward=get_args(PolicyReward))


def airl_logit(f: Tensor, log_prob: Tensor) -> Tensor:
    """Eq. 2. f: f(s, a, s′) [*B]; log_prob: log π(a|s) [*B], which gets no gradient → [*B]."""
    return f - log_prob.detach()


class AIRL:
    """AIRL. `networks` may replace PPO's `actor` and `critic`."""

    needs: ClassVar[Needs] = Needs(
        data=True, environment=True, interaction="rollouts", num_envs=8, seeds_together=False, reward=True
    )

    def __init__(
        self, config: AIRLConfig, spec: Spec, *, demonstrations: ReplayBuffer | None = None, **setup: Unpack[Setup]
    ) -> None:
        self.config = c = config
        design = RewardDesign(
            inputs=c.reward_inputs, hidden_sizes=c.hidden_sizes, shaped=c.shaped, shaping_sizes=c.shaping_sizes
        )
        self.pair = AdversarialPair(c, design, spec, demonstrations, setup)
        self.ppo, self.learner, self.f = self.pair.ppo, self.pair.learner, self.pair.network

    def update(self, rollout: Segments) -> Metrics:
        self.learner.updates += 1
        for raw in self.pair.batches(rollout):
            log_probs = [self.log_prob(half.observations, half.actions) for half in raw]
            metrics = self.learner.step("discriminator", self.objective, *map(self.pair.scaling, raw), *log_probs)
        rewards = self.pair.outputs(rollout)
        if self.config.policy_reward == "f - log pi":
            steps = transitions_of(rollout, self.config.ppo.discount)
            log_prob = self.log_prob(steps.observations, steps.actions)
            rewards = airl_logit(rewards, log_prob.view_as(rewards))  # eq. 4
        return metrics | {"reward": rewards.mean()} | self.ppo.update(replace(rollout, rewards=rewards))

    def objective(
        self,
        params: Params,
        expert: Transitions,
        policy: Transitions,
        expert_log_prob: Tensor,
        policy_log_prob: Tensor,
    ) -> tuple[Tensor, Metrics]:
        expert_logits = airl_logit(self.f(params["reward"], expert), expert_log_prob)  # [B]
        policy_logits = airl_logit(self.f(params["reward"], policy), policy_log_prob)  # [B]
        return logistic_loss(expert_logits, policy_logits), accuracies(expert_logits, policy_logits)  # eq. 3

    @torch.no_grad()
    def log_prob(self, observations: Tree, actions: Tensor) -> Tensor:
        """log π(a|s) of raw steps under the present policy. [B, …], [B, …] → [B]"""
        scaling = self.ppo.units.scaling
        policy = self.ppo.actor(self.ppo.learner.parameters_of("actor"), scaling.observations(observations))
        log_prob: Tensor = policy.log_prob(scaling.actions(actions))
        return log_prob

    def policy(self, seed_index: int = 0, *, deterministic: bool = True, step: int | None = None) -> Policy:
        return self.ppo.policy(seed_index, deterministic=deterministic, step=step)

    def reward(self, seed_index: int = 0) -> LearnedReward:
        """f of eq. 1; `unshaped()` gives g."""
        return self.pair.reward(seed_index)

    def round_steps(self, num_envs: int) -> int:
        return self.ppo.round_steps(num_envs)

    def updates_due(self, episodes: int, steps: int) -> int:
        return self.ppo.updates_due(episodes, steps)

    def state_dict(self) -> dict[str, Any]:
        return self.pair.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.pair.load_state_dict(state)
