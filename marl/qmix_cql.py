"""QMIX with conservative Q-learning (Kumar et al. 2020, arXiv:2006.04779), for teams that learn from a dataset.

    L   = mean (Q_tot(o, a, s) − y)² + α C,   y = Σ_i r_i + γ Q̄_tot(o′, a′, s′),   a′_i = argmax Q_i(o′_i, ·)     (1)
    C   = mean [log Σ_b exp Q_i(o_i, b) − Q_i(o_i, a_i)]                                                         (2)
    C   = mean [log Σ_b exp Q_tot(o, b, s) − Q_tot(o, a, s)]                                                     (3)
    L   = mean (Q_i(o_i, a_i) − r_i − γ Q̄_i(o′_i, a′_i))² + α C                                                  (4)

Q_tot is the mixture of QMIX (Rashid et al. 2018). C is the regulariser of the agents (2), whose sum is exact, or of the
team (3), as in OG-MARL (Formanek et al. 2023, arXiv:2302.00521), whose sum runs over the recorded joint action and n
random legal ones. Independent critics (4) have no mixture: each agent is a conservative double DQN with its own reward
and regulariser (2). Means of an agent's terms run over the steps at which it acts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from herdbook.core.config import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, UNIT, Config
from herdbook.core.joint.actions import check_joint, only_legal
from herdbook.core.joint.networks import Sharing
from herdbook.core.joint.policy import AgentValues
from herdbook.core.joint.types import JointSegments, JointSpec
from herdbook.core.learner import Adam, Learner, Params, Setup
from herdbook.core.needs import Needs
from herdbook.core.types import Metrics, Policy, tree_map
from herdbook.marl.independent_q import greedy_value, mean_where, td_loss, td_target
from herdbook.marl.qmix import StateMixer, mixer_view


@dataclass(frozen=True, kw_only=True)
class QMIXCQLConfig(Config):
    """Settings of QMIX+CQL; the defaults are those of QMIX, with soft targets."""

    algorithm: ClassVar[str] = "qmix_cql"
    alpha: float = 1.0  # α, weight of the regulariser, eq. 1 and 4
    centralised: bool = True  # mix all agents' values by QMIX, eq. 1; else independent critics, eq. 4
    joint_actions: int | None = None  # n, random joint actions in the team's regulariser, eq. 3; None: eq. 2
    discount: float = 0.99  # γ, discount factor
    double_q: bool = True  # the online network selects a′ of eq. 1 and 4; else the target network does
    batch_size: int = 32  # whole episodes per update
    lr: float = 5e-4  # learning rate
    max_grad_norm: float | None = 10.0  # clip the gradient to this norm; None: no clipping
    target_period: int = 1  # updates from one move of the target networks to the next
    tau: float = 0.005  # target networks: θ̄ ← (1 − tau) θ̄ + tau θ every target_period updates
    hidden_sizes: tuple[int, ...] = (64, 64)  # widths of the agents' hidden layers
    mixer_embedding: int = 32  # embedding, width of QMIX's W₁
    mixer_hidden: int = 64  # width of the hidden layers of the hypernetworks of W₁ and w₂
    recurrent: bool = False  # make the last hidden layer a GRU
    sharing: Sharing = "kind"  # agents that share parameters: all, those with equal spaces (a kind), or none
    agent_id: bool = True  # append the agent's one-hot index to its input where parameters are shared
    last_action: bool = False  # append the agent's previous action to its input
    horizon: int | None = None  # append elapsed steps / horizon to the inputs (Pardo et al. 2018, arXiv:1712.00378)
    reward_scaling: bool = True  # divide rewards by their standard deviation, without subtracting a mean

    def __post_init__(self) -> None:
        self.require(alpha=NOT_NEGATIVE, joint_actions=COUNT, discount=UNIT, tau=FRACTION, lr=POSITIVE)
        self.require(max_grad_norm=POSITIVE, batch_size=COUNT, target_period=COUNT, horizon=COUNT, hidden_sizes=COUNT)
        self.require(mixer_embedding=COUNT, mixer_hidden=COUNT)
        if self.joint_actions is not None and not self.centralised:
            raise ValueError("QMIXCQLConfig: joint_actions regularises the team's value, which needs centralised=True")

    @property
    def team_reward(self) -> bool:
        return self.centralised


def conservative_gap(q: Tensor, data_q: Tensor) -> Tensor:
    """The bracket of eq. 2 and 3. q: values of the actions b [*B, n], −∞ if illegal; data_q: [*B] → [*B]."""
    return q.logsumexp(-1) - data_q


def random_indices(uniform: Tensor, legal: Tensor | None) -> Tensor:
    """Indices of uniformly random legal actions. uniform: independent noise [*B, n] → [*B]."""
    return only_legal(uniform, legal).argmax(-1)


class QMIXCQL:
    """QMIX+CQL. `networks` may replace `agents` (signature of `AgentNetworks`) and `mixer` (that of `StateMixer`).

    Independent critics have no mixer.
    """

    needs: ClassVar[Needs] = Needs(data=True, agents="many", actions="discrete", state=True)

    def __init__(self, config: QMIXCQLConfig, spec: JointSpec, **setup: Unpack[Setup]) -> None:
        self.config = c = config
        check_joint(spec, self.needs.actions, c.algorithm)
        self.q = AgentValues(spec, c, setup)
        self.actions = self.q.actions
        networks: dict[str, Callable[[], nn.Module]] = {"agents": self.q.make}
        if c.centralised:
            sizes = {"embedding": c.mixer_embedding, "hidden": c.mixer_hidden}
            networks["mixer"] = partial(StateMixer, spec, **sizes, timed=c.horizon is not None)
        adam = Adam(lr=c.lr, networks=tuple(networks), max_grad_norm=c.max_grad_norm)
        self.learner = Learner(networks, {"team": adam}, targets=tuple(networks), **setup)
        self.q.network = self.learner.networks["agents"]
        self.spec, self.mixer = spec, self.learner.networks.get("mixer")
        self.objective = self.team_objective if c.centralised else self.independent_objective

    def sample(self, replay: Any, generators: Sequence[torch.Generator]) -> JointSegments:
        c = self.config
        batch: JointSegments = replay.sample_episodes(c.batch_size, generators, discount=c.discount)
        if not c.reward_scaling:
            return batch
        rewards, team_rewards = batch.rewards / replay.reward_std, batch.team_rewards / replay.team_reward_std
        return replace(batch, rewards=rewards, team_rewards=team_rewards)

    def update(self, batch: JointSegments) -> Metrics:
        self.learner.updates += 1
        n, shape = self.config.joint_actions, batch.alive.shape[-3:]  # [B, T, N]
        uniform = [] if n is None else [self.learner.uniform(n, *shape, self.actions.size)]
        metrics = self.learner.step("team", self.objective, batch, *uniform)
        if self.learner.updates % self.config.target_period == 0:
            self.learner.move_targets(self.config.tau)
        return metrics

    def values(self, params: Params, batch: JointSegments) -> tuple[Tensor, Tensor, Tensor]:
        """Q_i(o_i, ·) with −∞ for illegal actions [B, T, N, n]; Q_i(o_i, a_i) and Q̄_i(o′_i, a′_i) [B, T, N]."""
        legal = self.actions.legal(batch.action_mask)
        all_q = self.q.over(params["agents"], batch)  # [B, T + 1, N, n]
        with torch.no_grad():
            target_q = self.q.over(params.target["agents"], batch)
            chooser = only_legal(all_q if self.config.double_q else target_q, legal)
            next_q = greedy_value(chooser[:, 1:], target_q[:, 1:])
        actions = self.actions.indices(batch.actions)
        q = all_q[:, :-1].gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        return only_legal(all_q, legal)[:, :-1], q, next_q

    def team_objective(
        self, params: Params, batch: JointSegments, uniform: Tensor | None = None
    ) -> tuple[Tensor, Metrics]:
        """uniform: noise for the random joint actions of eq. 3 [n, B, T, N, actions]."""
        assert self.mixer is not None
        now, later = mixer_view(self.spec, batch, self.config.horizon)
        candidates, q, next_q = self.values(params, batch)
        with torch.no_grad():
            next_q_total = self.mixer(params.target["mixer"], next_q * batch.next_alive, later)  # [B, T]
            target = batch.team_rewards + batch.team_discounts * next_q_total
        q_total = self.mixer(params["mixer"], q * batch.alive, now)  # [B, T]
        if uniform is None:
            gap = mean_where(conservative_gap(candidates, q), batch.alive)  # eq. 2
        else:
            chosen = random_indices(uniform, candidates.isfinite()).unsqueeze(-1)  # [n, B, T, N, 1]
            others = candidates.expand(len(chosen), *candidates.shape).gather(-1, chosen).squeeze(-1) * batch.alive
            repeated = tree_map(lambda leaf: leaf.expand(len(chosen), *leaf.shape), now)
            totals = self.mixer(params["mixer"], others, repeated)  # [n, B, T]
            totals = torch.cat([totals, q_total.unsqueeze(0)]).movedim(0, -1)
            gap = mean_where(conservative_gap(totals, q_total), batch.mask)  # eq. 3
        loss = td_loss(q_total, target, batch.mask) + self.config.alpha * gap  # eq. 1
        return loss, {"conservative_gap": gap, "q": mean_where(q_total, batch.mask)}

    def independent_objective(self, params: Params, batch: JointSegments) -> tuple[Tensor, Metrics]:
        candidates, q, next_q = self.values(params, batch)
        target = td_target(batch.rewards, batch.discounts, next_q, batch.waiting)
        gap = mean_where(conservative_gap(candidates, q), batch.alive)  # eq. 2
        loss = td_loss(q, target, batch.alive) + self.config.alpha * gap  # eq. 4
        return loss, {"conservative_gap": gap, "q": mean_where(q, batch.alive)}

    def policy(self, seed_index: int = 0, *, deterministic: bool = True, step: int | None = None) -> Policy:
        """The greedy policy, without exploration; `deterministic` and `step` have no effect."""
        return self.q.policy(self.learner.parameters_of("agents", seed_index), 0.0, deterministic=True)

    def state_dict(self) -> dict[str, Any]:
        return self.learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state)
