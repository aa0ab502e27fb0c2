"""Independent Q-learning (Tan 1993): each agent is a double DQN (van Hasselt et al. 2016, arXiv:1509.06461) of its own.

    y_i = r_i + γ Q̄_i(o′_i, argmax_a′ Q_i(o′_i, a′))      (1)
    L   = mean (Q_i(o_i, a_i) − y_i)²                     (2)

The mean of (2) runs over the steps at which agents act. If an agent pauses, o′_i is its observation when it acts again
and r_i the discounted sum of its rewards up to there. An agent treats the others as part of its environment, so this
algorithm also plays turn-based games, where o′_i is the agent's observation at its next turn. The settings follow
EPyMARL (Papoudakis et al. 2021, arXiv:2006.07869): agents may share parameters. Only legal actions are chosen.
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
    """Settings of independent Q-learning; the defaults are EPyMARL's, with the exceptions in docs/algorithms.md."""

    algorithm: ClassVar[str] = "independent_q"
    discount: float = 0.99  # γ, discount factor
    team_reward: bool = False  # every agent's reward is the sum of all agents' rewards; not in turn-based games
    double_q: bool = True  # the online network selects a′ of eq. 1; else the target network does
    batch_size: int = 32  # whole episodes per update
    lr: float = 5e-4  # learning rate
    max_grad_norm: float | None = 10.0  # clip the gradient to this norm; None: no clipping
    target_period: int = 200  # updates (not episodes) from one move of the target network to the next
    tau: float = 1.0  # target network: θ̄ ← (1 − tau) θ̄ + tau θ, for example 1 (copy), or 0.01 with target_period=1
    hidden_sizes: tuple[int, ...] = (64, 64)  # widths of the agents' hidden layers
    recurrent: bool = False  # make the last hidden layer a GRU
    sharing: Sharing = "kind"  # agents that share parameters: all, those with equal spaces (a kind), or none
    agent_id: bool = True  # append the agent's one-hot index to its input where parameters are shared
    last_action: bool = False  # append the agent's previous action to its input
    horizon: int | None = None  # append elapsed steps / horizon to the inputs (Pardo et al. 2018, arXiv:1712.00378)
    reward_scaling: bool = True  # divide rewards by their running standard deviation
    reward_centring: bool = False  # subtract the running mean of the rewards; refused if episodes differ in length
    epsilon_start: float = 1.0  # ε of ε-greedy exploration at environment step 0
    epsilon_end: float = 0.05  # ε from environment step epsilon_steps on
    epsilon_steps: int = 200_000  # environment steps over which ε falls linearly to epsilon_end
    warmup_episodes: int = 32  # episodes collected before the first update
    episodes_per_update: float = 1.0  # episodes collected per update; 0.5: two updates per episode
    replay_steps: int = 125_000  # replay capacity in environment steps; EPyMARL: 5,000 episodes (25 steps on MPE)

    def __post_init__(self) -> None:
        self.require(discount=UNIT, tau=FRACTION, lr=POSITIVE, max_grad_norm=POSITIVE, batch_size=COUNT, horizon=COUNT)
        self.require(target_period=COUNT, hidden_sizes=COUNT, epsilon_start=UNIT, epsilon_end=UNIT, epsilon_steps=COUNT)
        self.require(warmup_episodes=NOT_NEGATIVE, episodes_per_update=POSITIVE, replay_steps=COUNT)


def greedy_value(chooser: Tensor, values: Tensor) -> Tensor:
    """The entry of `values` at the argmax of `chooser`, which has −∞ for illegal actions. [*B, n] twice → [*B]."""
    return values.gather(-1, chooser.argmax(-1, keepdim=True)).squeeze(-1)


def mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of `values` where `mask` is True. [*B] twice → []."""
    return (values * mask).sum() / mask.sum()


def td_loss(q: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Eq. 2, the mean squared TD error where `mask` is True. [*B] three times → []."""
    return mean_where((q - target).square(), mask)


def td_target(rewards: Tensor, discounts: Tensor, next_q: Tensor, waiting: Tensor | None) -> Tensor:
    """Eq. 1 over whole episodes. All [*B, T, N]; next_q: Q̄_i(o′_i, a′_i) → [*B, T, N].

    `waiting` (True where an agent is absent and acts later; None: nowhere) makes a transition span a pause: there the
    target of the following step stands in for `next_q`.
    """
    if waiting is None:
        return rewards + discounts * next_q
    targets = [rewards[..., -1, :] + discounts[..., -1, :] * next_q[..., -1, :]]
    for t in reversed(range(rewards.shape[-2] - 1)):
        following = torch.where(waiting[..., t + 1, :], targets[-1], next_q[..., t, :])
        targets.append(rewards[..., t, :] + discounts[..., t, :] * following)
    return torch.stack(targets[::-1], -2)


class IndependentQ:
    """Independent Q-learning. `networks` may replace `agents`, with the signature of `AgentNetworks`."""

    needs: ClassVar[Needs] = Needs(
        environment=True, agents="many", actions="discrete", interaction="episodes", num_envs=8, acting=("agents",)
    )

    def __init__(self, config: IndependentQConfig, spec: JointSpec, **setup: Unpack[Setup]) -> None:
        self.config = c = config
        check_joint(spec, self.needs.actions, c.algorithm, turn_based=True)
        if spec.turn_based and c.team_reward:  # others' k-th steps are not between an agent's turns k and k + 1
            raise ValueError(
                f"{c.algorithm}: expected team_reward=False in a turn-based game, got True, which would credit a turn "
                "with earlier rewards; let the environment give every agent the team's reward"
            )
        self.q = AgentValues(spec, c, setup)
        self.actions = self.q.actions
        adam = Adam(lr=c.lr, max_grad_norm=c.max_grad_norm)
        self.learner = Learner({"agents": self.q.make}, {"agents": adam}, targets=("agents",), **setup)
        self.q.network = self.learner.networks["agents"]

    def sample(self, replay: Any, generators: Sequence[torch.Generator]) -> JointSegments:
        c = self.config
        batch: JointSegments = replay.sample_episodes(c.batch_size, generators, discount=c.discount)
        rewards, mean, std = batch.rewards, replay.reward_mean, replay.reward_std
        if c.team_reward:
            rewards = batch.team_rewards.unsqueeze(-1).expand_as(rewards)
            mean, std = replay.team_reward_mean, replay.team_reward_std
        if c.reward_centring:  # else agents learn to end episodes, or to prolong them, for the mean's sake
            replay.require_equal_episodes(f"{c.algorithm}: reward_centring (--no-reward-centring switches it off)")
            rewards = rewards - mean
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
            target = td_target(batch.rewards, batch.discounts, next_q, batch.waiting)  # eq. 1
        actions = self.actions.indices(batch.actions)
        q = all_q[:, :-1].gather(-1, actions.unsqueeze(-1)).squeeze(-1)  # [B, T, N]
        return td_loss(q, target, batch.alive), {"q": mean_where(q, batch.alive)}  # eq. 2

    def policy(self, seed_index: int = 0, *, deterministic: bool = True, step: int | None = None) -> Policy:
        """Greedy, or ε-greedy as at environment step `step` (None: after the schedule of ε)."""
        c = self.config
        epsilon = linear_schedule(c.epsilon_start, c.epsilon_end, c.epsilon_steps, step)
        agents = self.learner.parameters_of("agents", seed_index)
        return self.q.policy(agents, epsilon, deterministic=deterministic)

    def updates_due(self, episodes: int, steps: int) -> int:
        return int(max(episodes - self.config.warmup_episodes, 0) / self.config.episodes_per_update)

    def state_dict(self) -> dict[str, Any]:
        return self.learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state)
