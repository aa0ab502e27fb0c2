"""Independent Q-learning (Tan 1993): each agent is a double DQN (van Hasselt et al. 2016, arXiv:1509.06461) of its own.

    y_i = r_i + γ Q̄_i(o′_i, argmax_a′ Q_i(o′_i, a′))      (1)
    L   = mean (Q_i(o_i, a_i) − y_i)²                     (2)

The mean of (2) runs over the steps at which an agent acts. Others are part of its environment, so it is the one of this
family that plays games of turns, where o′_i is what the agent sees at its next turn. Settings follow EPyMARL
(Papoudakis et al. 2021, arXiv:2006.07869), whose agents may share parameters; only legal actions are ever chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from herdbook.core.config import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, UNIT, Config
from herdbook.core.exploration import linear_schedule
from herdbook.core.joint.actions import check_joint, only_legal
from herdbook.core.joint.networks import Sharing
from herdbook.core.joint.policy import AgentValues
from herdbook.core.joint.types import JointSegments, JointSpec
from herdbook.core.learner import Adam, Learner, Params, Setup
from herdbook.core.needs import Needs
from herdbook.core.types import Metrics, Policy


@dataclass(frozen=True, kw_only=True)
class IndependentQConfig(Config):
    """Settings of independent Q-learning; the defaults are EPyMARL's but for agents without memory."""

    algorithm: ClassVar[str] = "independent_q"
    discount: float = 0.99  # γ
    team_reward: bool = False  # every agent learns from the sum of all rewards, not from its own
    double_q: bool = True  # the online network chooses a′ of eq. 1; else the target network does
    batch_size: int = 32  # whole episodes
    lr: float = 5e-4
    max_grad_norm: float | None = 10.0  # None: gradients are not clipped
    target_period: int = 200  # updates (not episodes) between moves of the target network …
    tau: float = 1.0  # … by this much: 1 copies it; soft targets are target_period=1, tau=0.01
    hidden_sizes: tuple[int, ...] = (64, 64)
    recurrent: bool = False  # the last hidden layer is a GRU
    sharing: Sharing = "kind"  # who has the same parameters: all agents, those of a kind, none
    agent_id: bool = True  # a one-hot number tells agents that share parameters apart
    last_action: bool = False  # agents see what they did before
    horizon: int | None = None  # they see how much of so many steps has passed (Pardo et al. 2018, arXiv:1712.00378)
    reward_scaling: bool = True  # divide rewards by their running standard deviation
    reward_centring: bool = False  # subtract their running mean: only where all episodes are of one length
    epsilon_start: float = 1.0  # ε of exploration at environment step 0 …
    epsilon_end: float = 0.05  # … and after
    epsilon_steps: int = 200_000  # environment steps of linear decay between the two
    warmup_episodes: int = 32  # collected before the first update
    episodes_per_update: float = 1.0  # collected for each update; 0.5: two updates per episode
    replay_steps: int = 125_000  # EPyMARL: 5,000 episodes, of 25 steps on MPE

    def __post_init__(self) -> None:
        self.require(discount=UNIT, tau=FRACTION, lr=POSITIVE, max_grad_norm=POSITIVE, batch_size=COUNT, horizon=COUNT)
        self.require(target_period=COUNT, hidden_sizes=COUNT, epsilon_start=UNIT, epsilon_end=UNIT, epsilon_steps=COUNT)
        self.require(warmup_episodes=NOT_NEGATIVE, episodes_per_update=POSITIVE, replay_steps=COUNT)


def greedy_value(chooser: Tensor, values: Tensor) -> Tensor:
    """The value of the action that `chooser` likes best, −∞ where it is illegal. [*B, n], [*B, n] → [*B]."""
    return values.gather(-1, chooser.argmax(-1, keepdim=True)).squeeze(-1)


def mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of `values` where `mask` is True. [*B] twice → []."""
    return (values * mask).sum() / mask.sum()


def td_loss(q: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error where `mask` is True. [*B] three times → []."""
    return mean_where((q - target).square(), mask)


class IndependentQ:
    """`networks` may replace `agents`, which is called as `AgentNetworks` is."""

    needs: ClassVar[Needs] = Needs(
        environment=True, agents="many", actions="discrete", interaction="episodes", num_envs=8, acting=("agents",)
    )

    def __init__(self, config: IndependentQConfig, spec: JointSpec, **setup: Unpack[Setup]) -> None:
        self.config = c = config
        check_joint(spec, self.needs.actions, c.algorithm, turn_based=True)
        self.q = AgentValues(spec, c, setup)
        self.actions = self.q.actions
        self.learner = Learner(
            {"agents": self.q.make},
            {"agents": Adam(lr=c.lr, max_grad_norm=c.max_grad_norm)},
            targets=("agents",),
            **setup,
        )
        self.q.network = self.learner.networks["agents"]

    def sample(self, replay: Any, generators: Sequence[torch.Generator]) -> JointSegments:
        c = self.config
        batch: JointSegments = replay.sample_episodes(c.batch_size, generators, discount=c.discount)
        rewards, mean, std = batch.rewards, replay.reward_mean, replay.reward_std
        if c.team_reward:
            rewards = batch.team_rewards.unsqueeze(-1).expand_as(rewards)
            mean, std = replay.team_reward_mean, replay.team_reward_std
        rewards = rewards - mean if c.reward_centring else rewards
        return replace(batch, rewards=rewards / std if c.reward_scaling else rewards)

    def update(self, batch: JointSegments) -> Metrics:
        self.learner.updates += 1
        metrics = self.learner.step("agents", self.objective, batch)
        if self.learner.updates % self.config.target_period == 0:
            self.learner.move_targets(self.config.tau)
        return metrics

    def objective(self, params: Params, batch: JointSegments) -> tuple[Tensor, Metrics]:
        legal = self.actions.legal(batch.action_mask)
        all_q = self.q.over(params["agents"], batch)  # [B, T + 1, N, n]
        with torch.no_grad():
            target_q = self.q.over(params.target["agents"], batch)  # [B, T + 1, N, n]
            chooser = only_legal(all_q if self.config.double_q else target_q, legal)
            next_q = greedy_value(chooser[:, 1:], target_q[:, 1:])  # [B, T, N]
            target = batch.rewards + batch.discounts * next_q  # eq. 1
        actions = self.actions.indices(batch.actions)
        q = all_q[:, :-1].gather(-1, actions.unsqueeze(-1)).squeeze(-1)  # [B, T, N]
        return td_loss(q, target, batch.alive), {"q": mean_where(q, batch.alive)}  # eq. 2

    def policy(self, seed_index: int = 0, *, deterministic: bool = True, step: int | None = None) -> Policy:
        """Greedy, or ε-greedy as at environment step `step` (None: after the schedule)."""
        c = self.config
        epsilon = linear_schedule(c.epsilon_start, c.epsilon_end, c.epsilon_steps, step)
        agents = self.learner.parameters_of("agents", seed_index)
        return self.q.policy(agents, epsilon, deterministic=deterministic)

    def updates_due(self, episodes: int, steps: int) -> int:
        """How many updates should have been made after so many collected episodes."""
        return int(max(episodes - self.config.warmup_episodes, 0) / self.config.episodes_per_update)

    def state_dict(self) -> dict[str, Any]:
        return self.learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state)
