"""Value decomposition networks (Sunehag et al. 2018, arXiv:1706.05296): the team's value is the sum of its agents'.

    Q_tot(o, a) = Σ_i Q_i(o_i, a_i)                             (1)
    y = Σ_i r_i + γ Q̄_tot(o′, a′),   a′_i = argmax Q_i(o′_i, ·)   (2)
    L = mean (Q_tot(o, a) − y)²                                 (3)

The sum of (1) runs over the agents that act. The settings follow EPyMARL (Papoudakis et al. 2021, arXiv:2006.07869):
agents may share parameters, and a target network evaluates a′. Only legal actions are chosen.
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
from herdbook.marl.independent_q import greedy_value, mean_where, td_loss


@dataclass(frozen=True, kw_only=True)
class VDNConfig(Config):
    """Settings of VDN; the defaults are EPyMARL's, with the exceptions in docs/algorithms.md."""

    algorithm: ClassVar[str] = "vdn"
    discount: float = 0.99  # γ, discount factor
    double_q: bool = True  # the online network selects a′ of eq. 2; else the target network does
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
    reward_scaling: bool = True  # divide rewards by their running standard deviation, without subtracting a mean
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

    @property
    def team_reward(self) -> bool:
        return True


def team_value(q: Tensor, alive: Tensor) -> Tensor:
    """Eq. 1. q: Q_i(o_i, a_i) [*B, N]; alive: the agent acts [*B, N] → [*B]."""
    return (q * alive).sum(-1)


class VDN:
    """VDN. `networks` may replace `agents`, with the signature of `AgentNetworks`."""

    needs: ClassVar[Needs] = Needs(
        environment=True, agents="many", actions="discrete", interaction="episodes", num_envs=8, acting=("agents",)
    )

    def __init__(self, config: VDNConfig, spec: JointSpec, **setup: Unpack[Setup]) -> None:
        self.config = c = config
        check_joint(spec, self.needs.actions, c.algorithm)
        self.q = AgentValues(spec, c, setup)
        self.actions = self.q.actions
        adam = Adam(lr=c.lr, networks=("agents",), max_grad_norm=c.max_grad_norm)
        self.learner = Learner({"agents": self.q.make}, {"team": adam}, targets=("agents",), **setup)
        self.q.network = self.learner.networks["agents"]

    def sample(self, replay: Any, generators: Sequence[torch.Generator]) -> JointSegments:
        c = self.config
        batch: JointSegments = replay.sample_episodes(c.batch_size, generators, discount=c.discount)
        return replace(batch, team_rewards=batch.team_rewards / replay.team_reward_std) if c.reward_scaling else batch

    def update(self, batch: JointSegments) -> Metrics:
        self.learner.updates += 1
        metrics = self.learner.step("team", self.objective, batch)
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
            next_q_total = team_value(next_q, batch.next_alive)  # [B, T]
            target = batch.team_rewards + batch.team_discounts * next_q_total  # eq. 2
        actions = self.actions.indices(batch.actions)
        q = all_q[:, :-1].gather(-1, actions.unsqueeze(-1)).squeeze(-1)  # [B, T, N]
        q_total = team_value(q, batch.alive)  # eq. 1: [B, T]
        return td_loss(q_total, target, batch.mask), {"q": mean_where(q_total, batch.mask)}  # eq. 3

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
