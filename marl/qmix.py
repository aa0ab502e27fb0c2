"""QMIX (Rashid et al. 2018, arXiv:1803.11485; 2020, JMLR 21:178): the team's value is monotonic in each agent's.

    Q_tot(o, a, s) = |w₂(s)|ᵀ elu(|W₁(s)|ᵀ q + b₁(s)) + v(s),   q_i = Q_i(o_i, a_i)       (1)
    y = Σ_i r_i + γ Q̄_tot(o′, a′, s′),   a′_i = argmax Q_i(o′_i, ·)                       (2)
    L = mean (Q_tot(o, a, s) − y)²                                                        (3)

Hypernetworks compute W₁ [N, embedding], w₂ [embedding], b₁ and v from the state s. As in PyMARL, those of W₁ and w₂
have a hidden layer each, that of v has one as wide as the embedding, and that of b₁ has none. The absolute values make
∂Q_tot/∂q_i ≥ 0, so that the best action of each agent is also the team's best (2). An absent agent counts as q_i = 0.
The settings follow EPyMARL (Papoudakis et al. 2021, arXiv:2006.07869): agents may share parameters. Only legal actions
are chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
    """Settings of QMIX; the defaults are EPyMARL's, with the exceptions in docs/algorithms.md."""

    algorithm: ClassVar[str] = "qmix"
    discount: float = 0.99  # γ, discount factor
    double_q: bool = True  # the online network selects a′ of eq. 2; else the target network does
    batch_size: int = 32  # whole episodes per update
    lr: float = 5e-4  # learning rate
    max_grad_norm: float | None = 10.0  # clip the gradient to this norm; None: no clipping
    target_period: int = 200  # updates (not episodes) from one move of the target network to the next
    tau: float = 1.0  # target network: θ̄ ← (1 − tau) θ̄ + tau θ, for example 1 (copy), or 0.01 with target_period=1
    hidden_sizes: tuple[int, ...] = (64, 64)  # widths of the agents' hidden layers
    mixer_embedding: int = 32  # embedding, width of W₁ in eq. 1
    mixer_hidden: int = 64  # width of the hidden layers of the hypernetworks of W₁ and w₂
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
        self.require(discount=UNIT, epsilon_start=UNIT, epsilon_end=UNIT, tau=FRACTION, lr=POSITIVE)
        self.require(max_grad_norm=POSITIVE, episodes_per_update=POSITIVE, batch_size=COUNT, target_period=COUNT)
        self.require(horizon=COUNT, hidden_sizes=COUNT, mixer_embedding=COUNT, mixer_hidden=COUNT, epsilon_steps=COUNT)
        self.require(replay_steps=COUNT, warmup_episodes=NOT_NEGATIVE)

    @property
    def team_reward(self) -> bool:
        return True


class Mixer(nn.Module):
    """Eq. 1: the agents' values q [*B, N] and the state s [*B, S] → Q_tot [*B]."""

    def __init__(self, agents: int, state_size: int, *, embedding: int = 32, hidden: int = 64) -> None:
        super().__init__()
        self.embedding = embedding
        self.widths = [hidden, hidden, embedding]  # hidden layers of W₁, w₂ and v
        self.first = Linear(state_size, sum(self.widths) + embedding)  # these hidden layers and b₁ in one product
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
    """A `Mixer` of the encoded global state; if `timed`, the elapsed time is part of the state."""

    def __init__(self, spec: JointSpec, *, embedding: int, hidden: int, timed: bool = False) -> None:
        super().__init__()
        self.encoder = StateEncoder(spec, timed=timed)
        self.mixer = Mixer(len(spec.agents), self.encoder.size, embedding=embedding, hidden=hidden)

    def forward(self, q: Tensor, view: Tree) -> Tensor:
        """q: the agents' values [*B, N]; view: see `mixer_view` → Q_tot [*B]."""
        total: Tensor = self.mixer(q, self.encoder(view))
        return total


def mixer_view(spec: JointSpec, batch: JointSegments, horizon: int | None) -> tuple[Tree, Tree]:
    """The views that a `StateMixer` reads at each step and at its next step, as `joint_view` makes them: [B, T, …]."""
    time = None if horizon is None else row_times(batch, horizon)
    view = joint_view(spec, batch.state, batch.observations, rows_present(batch), time)
    return tree_map(lambda leaf: leaf[:, :-1], view), tree_map(lambda leaf: leaf[:, 1:], view)


class QMIX:
    """QMIX. `networks` may replace `agents` (signature of `AgentNetworks`) and `mixer` (signature of `StateMixer`)."""

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
        timed, names = c.horizon is not None, ("agents", "mixer")
        mixer = partial(StateMixer, spec, embedding=c.mixer_embedding, hidden=c.mixer_hidden, timed=timed)
        adam = Adam(lr=c.lr, networks=names, max_grad_norm=c.max_grad_norm)
        self.learner = Learner({"agents": self.q.make, "mixer": mixer}, {"team": adam}, targets=names, **setup)
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
