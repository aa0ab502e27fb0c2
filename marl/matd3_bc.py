"""MATD3+BC (Pan et al. 2022, arXiv:2111.11188, its baseline): TD3+BC (Fujimoto & Gu 2021) for each agent.

    y_i = r_i + γ min_k Q̄_ik(x′, a′_1, …, a′_N),   a′_j = clip(μ̄_j(o′_j) + ε),  ε = clip(σ·N(0, 1), −c, c)    (1)
    L_Q = Σ_k mean (Q_ik(x, a_1, …, a_N) − y_i)²                                                              (2)
    L_i = −λ_i mean Q_i1(x, a_1, …, μ_i(o_i), …, a_N) + mean (μ_i(o_i) − a_i)²,   λ_i = α / mean |Q_i1|       (3)

Means run over the steps at which an agent acts; the mean of the cloning term also runs over the dimensions of its
action. The actors minimise the mean of L_i over the agents. x is the global state, or all observations where there is
none. With independent critics, Q_ik(o_i, a_i) replaces Q_ik(x, a_1, …, a_N) everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, Unpack

import torch
from torch import Tensor, nn

from herdbook.core.config import COUNT, FRACTION, LIMIT, NOT_NEGATIVE, POSITIVE, UNIT, Config
from herdbook.core.joint.actions import check_joint
from herdbook.core.joint.networks import AgentNetworks, Sharing, transition_views
from herdbook.core.joint.policy import Actors, beside
from herdbook.core.joint.types import JointSpec, JointTransitions
from herdbook.core.learner import Adam, Learner, Network, Parameters, Params, Setup
from herdbook.core.needs import Needs
from herdbook.core.types import Metrics, Policy, Tree
from herdbook.marl.independent_q import mean_where, td_loss
from herdbook.marl.maddpg import with_own


@dataclass(frozen=True, kw_only=True)
class MATD3BCConfig(Config):
    """Settings of MATD3+BC; the defaults are those of TD3+BC, and those of MATD3 for many agents."""

    algorithm: ClassVar[str] = "matd3_bc"
    alpha: float = 2.5  # α, weight of Q_i1 relative to the cloning term, eq. 3
    centralised: bool = True  # critics see x and all actions; else only their agent's observation and action
    discount: float = 0.99  # γ, discount factor
    tau: float = 0.01  # target networks: θ̄ ← (1 − tau) θ̄ + tau θ with each actor update
    policy_noise: float = 0.2  # σ, standard deviation of the noise on target actions, eq. 1
    noise_clip: float = 0.5  # c, bound of the noise on target actions, eq. 1
    policy_delay: int = 2  # critic updates per update of the actors and the targets
    batch_size: int = 1024  # environment steps per update
    actor_lr: float = 5e-4  # learning rate of the actors
    critic_lr: float = 5e-4  # learning rate of the critics
    decay_lr: bool = False  # the actors' learning rate decays to 0 by a cosine over decay_updates
    decay_updates: int | None = None  # updates until the actors' learning rate reaches 0; None: all of the run
    hidden_sizes: tuple[int, ...] = (64, 64)  # widths of the hidden layers of actors and critics
    sharing: Sharing = "kind"  # agents that share parameters: all, those with equal spaces (a kind), or none
    agent_id: bool = True  # append the agent's one-hot index to its input where parameters are shared
    horizon: int | None = None  # append elapsed steps / horizon to all inputs (Pardo et al. 2018, arXiv:1712.00378)

    def __post_init__(self) -> None:
        self.require(alpha=NOT_NEGATIVE, discount=UNIT, tau=FRACTION, actor_lr=POSITIVE, critic_lr=POSITIVE)
        self.require(policy_noise=NOT_NEGATIVE, noise_clip=LIMIT, policy_delay=COUNT)
        self.require(batch_size=COUNT, hidden_sizes=COUNT, horizon=COUNT, decay_updates=COUNT)

    def for_run(self, steps: int) -> Self:
        """The config for a run of `steps` updates, over which the actors' learning rate decays if `decay_lr`."""
        return replace(self, decay_updates=max(steps, 1)) if self.decay_lr and self.decay_updates is None else self


def actor_loss(q: Tensor, cloning: Tensor, alive: Tensor, alpha: float) -> Tensor:
    """The mean of L_i, eq. 3. q: Q_i1 [B, N]; cloning: (μ_i − a_i)², averaged over dimensions [B, N] → []."""
    steps = alive.sum(0).clamp_min(1)  # [N]; an agent may be absent from a batch
    value, size, error = ((x * alive).sum(0) / steps for x in (q, q.abs(), cloning))
    weight = alpha / size.detach().clamp_min(1e-6)
    return (-weight * value + error).mean()


class MATD3BC:
    """MATD3+BC. `networks` may replace `actor` (signature of `AgentNetworks`) and the critics `critic` and `twin`.

    Centralised critics have the signature of `JointCritic`; independent ones that of `AgentNetworks`, with the agent's
    action as `extra`. With a horizon, the elapsed time ends every `extra` and is part of the critics' `view`.
    """

    needs: ClassVar[Needs] = Needs(data=True, agents="many", actions="box", state=True)

    def __init__(self, config: MATD3BCConfig, spec: JointSpec, **setup: Unpack[Setup]) -> None:
        self.config = c = config
        check_joint(spec, self.needs.actions, c.algorithm)
        c.expect_together("decay_lr", "decay_updates")
        self.spec, self.actors = spec, Actors(spec, c, setup)
        self.actions = self.actors.actions

        def critic() -> nn.Module:
            if c.centralised:
                return self.actors.make_critic()
            extra = self.actions.size + (c.horizon is not None)
            return AgentNetworks(spec, 1, c.hidden_sizes, extra=extra, sharing=c.sharing, agent_id=c.agent_id)

        decay = max(c.decay_updates // c.policy_delay, 1) if c.decay_updates else None
        self.learner = Learner(
            {"actor": self.actors.make, "critic": critic, "twin": critic},
            {
                "critic": Adam(lr=c.critic_lr, networks=("critic", "twin")),
                "actor": Adam(lr=c.actor_lr, cosine_updates=decay),
            },
            targets=("actor", "critic", "twin"),
            **setup,
        )
        self.actors.network = self.learner.networks["actor"]
        self.critic, self.twin = self.learner.networks["critic"], self.learner.networks["twin"]

    def sample(self, replay: Any, generators: Sequence[torch.Generator]) -> JointTransitions:
        c = self.config
        batch: JointTransitions = replay.sample(c.batch_size, generators, discount=c.discount)
        return batch

    def update(self, batch: JointTransitions) -> Metrics:
        learner = self.learner
        learner.updates += 1
        noise = learner.normal(*batch.alive.shape[-2:], self.actions.size)  # [B, N, A]
        metrics = learner.step("critic", self.critic_objective, batch, noise)
        if learner.updates % self.config.policy_delay == 0:
            metrics |= learner.step("actor", self.actor_objective, batch)
            learner.move_targets(self.config.tau)
        return metrics

    def views(self, batch: JointTransitions) -> tuple[Tree, Tree]:
        """The inputs of the critics, except for actions, at each step and at the next step."""
        if self.config.centralised:
            return transition_views(self.spec, batch, self.config.horizon)
        time = self.actors.time
        return (batch.observations, time(batch.timesteps)), (batch.next_observations, time(batch.timesteps + 1))

    def value(self, critic: Network, parameters: Parameters, view: Tree, others: Tensor, own: Tensor) -> Tensor:
        """Q_i of each agent's `own` action, with the other agents' actions from `others`. [B, N, A] twice → [B, N]."""
        if self.config.centralised:
            value: Tensor = critic(parameters, view, with_own(others, own))
        else:
            observations, time = view
            value = critic(parameters, observations, beside(own, time))[0].squeeze(-1)
        return value

    def critic_objective(self, params: Params, batch: JointTransitions, noise: Tensor) -> tuple[Tensor, Metrics]:
        c, target = self.config, params.target
        now, later = self.views(batch)
        with torch.no_grad():
            outputs = self.actors.after(target["actor"], batch)  # [B, N, A]
            noise = (c.policy_noise * noise).clamp(-c.noise_clip, c.noise_clip)
            next_actions = self.actions.trimmed((self.actions.greedy(outputs) + noise).clamp(-1, 1))
            next_actions = next_actions * batch.next_alive.unsqueeze(-1)
            next_q = torch.minimum(
                self.value(self.critic, target["critic"], later, next_actions, next_actions),
                self.value(self.twin, target["twin"], later, next_actions, next_actions),
            )  # [B, N]
            y = batch.rewards + batch.discounts * next_q  # eq. 1
        actions = self.actions.vectors(batch.actions, batch.alive)
        q = self.value(self.critic, params["critic"], now, actions, actions)  # [B, N]
        twin_q = self.value(self.twin, params["twin"], now, actions, actions)
        loss = td_loss(q, y, batch.in_game) + td_loss(twin_q, y, batch.in_game)  # eq. 2
        return loss, {"q": mean_where(q, batch.alive)}

    def actor_objective(self, params: Params, batch: JointTransitions) -> tuple[Tensor, Metrics]:
        now, _ = self.views(batch)
        own = self.actions.greedy(self.actors.before(params["actor"], batch))  # [B, N, A]
        actions = self.actions.vectors(batch.actions, batch.alive)
        q = self.value(self.critic, params["critic"], now, actions, own)  # [B, N]
        cloning = (own - actions).square().sum(-1) / self.actions.sizes
        return actor_loss(q, cloning, batch.alive, self.config.alpha), {}  # eq. 3

    def policy(self, seed_index: int = 0, *, deterministic: bool = True, step: int | None = None) -> Policy:
        """The actors, without noise; `deterministic` and `step` have no effect."""
        actor = self.learner.parameters_of("actor", seed_index)
        return self.actors.policy(actor, 0.0, deterministic=True)

    def state_dict(self) -> dict[str, Any]:
        return self.learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state)
