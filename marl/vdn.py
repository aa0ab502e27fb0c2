"""Value decomposition networks (Sunehag et al. 2018, arXiv:1706.05296): the team's value is the sum of its agents'.

    Q_tot(o, a) = Σ_i Q_i(o_i, a_i)                             (1)
    y = Σ_i r_i + γ Q̄_tot(o′, a′),   a′_i = argmax Q_i(o′_i, ·)   (2)
    L = mean (Q_tot(o, a) − y)²                                 (3)

The sums of values run over the agents that act. Settings follow EPyMARL (Papoudakis et al. 2021, arXiv:2006.07869),
whose agents may share parameters and which values a′ by a target network; only legal actions are ever chosen.
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
    """Settings of VDN; the defaults are EPyMARL's but for agents without memory."""

    algorithm: ClassVar[str] = "vdn"
    discount: float = 0.99  # γ
    double_q: bool = True  # the online network chooses a′ of eq. 2; else the target network does
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
    reward_scaling: bool = True  # divide rewards by their running standard deviation; nothing is subtracted
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


def team_value(q: Tensor, alive: Tensor) -> Tensor:
    """Eq. 1: [*B, N] → [*B]."""
    return (q * alive).sum(-1)


class VDN:
    """`networks` may replace `agents`, which is called as `AgentNetworks` is."""

    needs: ClassVar[Needs] = Needs(
        environment=True, agents="many", actions="discrete", interaction="episodes", num_envs=8, acting=("agents",)
    )

    def __init__(self, config: VDNConfig, spec: JointSpec, **setup: Unpack[Setup]) -> None:
        self.config = c = config
        check_joint(spec, self.needs.actions, c.algorithm)
        self.q = AgentValues(spec, c, setup)
        self.actions = self.q.actions
        self.learner = Learner(
            {"agents": self.q.make},
            {"team": Adam(lr=c.lr, networks=("agents",), max_grad_norm=c.max_grad_norm)},
            targets=("agents",),
            **setup,
        )
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
