"""QMIX (Rashid et al. 2018, arXiv:1803.11485; 2020, JMLR 21:178): the team's value grows with each of its agents'.

    Q_tot(o, a, s) = |w₂(s)|ᵀ elu(|W₁(s)|ᵀ q + b₁(s)) + v(s),   q_i = Q_i(o_i, a_i)       (1)
    y = Σ_i r_i + γ Q̄_tot(o′, a′, s′),   a′_i = argmax Q_i(o′_i, ·)                       (2)
    L = mean (Q_tot(o, a, s) − y)²                                                        (3)

Hypernetworks make W₁ [N, embedding], w₂ [embedding], b₁ and v from the state s: W₁ and w₂ have a hidden layer of their
own, as in PyMARL, v one as wide as the embedding, b₁ none. Absolute weights make ∂Q_tot/∂q_i >= 0, and so the actions
that are best for each agent best for the team (2). Agents that are absent count as q_i = 0. Settings follow EPyMARL
(Papoudakis et al. 2021, arXiv:2006.07869), whose agents may share parameters; only legal actions are ever chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from herdbook.core.config import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, UNIT, Config
from herdbook.core.exploration import linear_schedule
from herdbook.core.joint.actions import check_joint, only_legal
from herdbook.core.joint.networks import Sharing, StateEncoder, joint_view, row_times, rows_present
from herdbook.core.joint.policy import AgentValues
from herdbook.core.joint.types import JointSegments, JointSpec
from herdbook.core.learner import Adam, Learner, Params, Setup
from herdbook.core.needs import Needs
from herdbook.core.networks import Linear
from herdbook.core.types import Metrics, Policy, Tree, tree_map
from herdbook.marl.independent_q import greedy_value, mean_where, td_loss


@dataclass(frozen=True, kw_only=True)
class QMIXConfig(Config):
    """Settings of QMIX; the defaults are EPyMARL's but for agents without memory."""

    algorithm: ClassVar[str] = "qmix"
    discount: float = 0.99  # γ
    double_q: bool = True  # the online network chooses a′ of eq. 2; else the target network does
    batch_size: int = 32  # whole episodes
    lr: float = 5e-4
    max_grad_norm: float | None = 10.0  # None: gradients are not clipped
    target_period: int = 200  # updates (not episodes) between moves of the target network …
    tau: float = 1.0  # … by this much: 1 copies it; soft targets are target_period=1, tau=0.01
    hidden_sizes: tuple[int, ...] = (64, 64)
    mixer_embedding: int = 32  # width of W₁, eq. 1
    mixer_hidden: int = 64  # hidden width of the hypernetworks of W₁ and w₂
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
        self.require(discount=UNIT, epsilon_start=UNIT, epsilon_end=UNIT, tau=FRACTION, lr=POSITIVE)
        self.require(max_grad_norm=POSITIVE, episodes_per_update=POSITIVE, batch_size=COUNT, target_period=COUNT)
        self.require(horizon=COUNT, hidden_sizes=COUNT, mixer_embedding=COUNT, mixer_hidden=COUNT, epsilon_steps=COUNT)
        self.require(replay_steps=COUNT, warmup_episodes=NOT_NEGATIVE)


class Mixer(nn.Module):
    """Q_tot of eq. 1: values of agents [*B, N] and the state [*B, S] → [*B]."""

    def __init__(self, agents: int, state_size: int, *, embedding: int = 32, hidden: int = 64) -> None:
        super().__init__()
        self.embedding = embedding
        self.widths = [hidden, hidden, embedding]  # hidden layers of W₁, w₂ and v
        self.first = Linear(state_size, sum(self.widths) + embedding)  # those, and b₁: one product
        self.weights = Linear(hidden, agents * embedding)  # W₁
        self.last_weights = Linear(hidden, embedding)  # w₂
        self.value = Linear(embedding, 1)  # v

    def forward(self, q: Tensor, state: Tensor) -> Tensor:
        lead, q = q.shape[:-1], q.flatten(0, -2)  # [M, N]
        hidden, bias = torch.split(self.first(state.flatten(0, -2)), [sum(self.widths), self.embedding], -1)
        of_weights, of_last, of_value = torch.split(F.relu(hidden), self.widths, -1)
        weights = self.weights(of_weights).abs().reshape(*q.shape, self.embedding)  # |W₁| [M, N, E]
        mixed = F.elu((q.unsqueeze(-1) * weights).sum(-2) + bias)  # [M, E]
        total: Tensor = (mixed * self.last_weights(of_last).abs()).sum(-1) + self.value(of_value).squeeze(-1)  # eq. 1
        return total.reshape(lead)


class StateMixer(nn.Module):
    """A `Mixer` behind the encoder of a task's state, and of the time that has passed where it is `timed`."""

    def __init__(self, spec: JointSpec, *, embedding: int, hidden: int, timed: bool = False) -> None:
        super().__init__()
        self.encoder = StateEncoder(spec, timed=timed)
        self.mixer = Mixer(len(spec.agents), self.encoder.size, embedding=embedding, hidden=hidden)

    def forward(self, q: Tensor, view: Tree) -> Tensor:
        """view: `mixer_view`."""
        total: Tensor = self.mixer(q, self.encoder(view))
        return total


def mixer_view(spec: JointSpec, batch: JointSegments, horizon: int | None) -> tuple[Tree, Tree]:
    """What a `StateMixer` reads at each step, and at the row after it: leaves [B, T, …]."""
    time = None if horizon is None else row_times(batch, horizon)
    view = joint_view(spec, batch.state, batch.observations, rows_present(batch), time)
    return tree_map(lambda leaf: leaf[:, :-1], view), tree_map(lambda leaf: leaf[:, 1:], view)


class QMIX:
    """`networks` may replace `agents`, called as `AgentNetworks` is, and `mixer`, called as `StateMixer` is."""

    needs: ClassVar[Needs] = Needs(
        environment=True,
        agents="many",
        actions="discrete",
        state=True,
        interaction="episodes",
        num_envs=8,
        acting=("agents",),
    )

    def __init__(self, config: QMIXConfig, spec: JointSpec, **setup: Unpack[Setup]) -> None:
        self.config = c = config
        check_joint(spec, self.needs.actions, c.algorithm)
        self.q = AgentValues(spec, c, setup)
        self.actions = self.q.actions
        self.learner = Learner(
            {
                "agents": self.q.make,
                "mixer": lambda: StateMixer(
                    spec, embedding=c.mixer_embedding, hidden=c.mixer_hidden, timed=c.horizon is not None
                ),
            },
            {"team": Adam(lr=c.lr, networks=("agents", "mixer"), max_grad_norm=c.max_grad_norm)},
            targets=("agents", "mixer"),
            **setup,
        )
        self.spec, self.mixer = spec, self.learner.networks["mixer"]
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
        now, later = mixer_view(self.spec, batch, self.config.horizon)
        all_q = self.q.over(params["agents"], batch)  # [B, T + 1, N, n]
        with torch.no_grad():
            target_q = self.q.over(params.target["agents"], batch)  # [B, T + 1, N, n]
            chooser = only_legal(all_q if self.config.double_q else target_q, legal)
            next_q = greedy_value(chooser[:, 1:], target_q[:, 1:]) * batch.next_alive  # [B, T, N]
            next_q_total = self.mixer(params.target["mixer"], next_q, later)  # [B, T]
            target = batch.team_rewards + batch.team_discounts * next_q_total  # eq. 2
        actions = self.actions.indices(batch.actions)
        q = all_q[:, :-1].gather(-1, actions.unsqueeze(-1)).squeeze(-1)  # [B, T, N]
        q_total = self.mixer(params["mixer"], q * batch.alive, now)  # eq. 1: [B, T]
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
