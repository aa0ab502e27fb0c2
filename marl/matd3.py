"""MATD3 (Ackermann et al. 2019, arXiv:1910.01465): MADDPG with the changes of TD3 (Fujimoto et al. 2018).

    y_i = r_i + γ min_k Q̄_ik(x′, a′_1, …, a′_N),   a′_j = clip(μ̄_j(o′_j) + ε),  ε = clip(σ·N(0, 1), −c, c)    (1)
    L_Q = Σ_k mean (Q_ik(x, a_1, …, a_N) − y_i)²                                                              (2)
    L_μ = −mean Q_i1(x, a_1, …, μ_i(o_i), …, a_N) + ρ mean l_i²                                               (3)

Actors and targets are updated with every `policy_delay`-th update of the critics. x is the global state, or all
observations where there is none. Means run over the agents that act; absent agents are zeros in x and in the actions.
l_i are the outputs of actor i. A Box action is tanh(l_i). A discrete action is one-hot: the argmax of l_i in (1),
without noise, and in (3) a sample with the gradient of its softmax (straight-through Gumbel-softmax, Jang et al. 2017).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from herdbook.core.config import COUNT, FRACTION, LIMIT, NOT_NEGATIVE, POSITIVE, UNIT, Config
from herdbook.core.joint.actions import check_joint, only_legal
from herdbook.core.joint.networks import Sharing, transition_views
from herdbook.core.joint.policy import Actors
from herdbook.core.joint.types import JointSpec, JointTransitions
from herdbook.core.learner import Adam, Learner, Params, Setup
from herdbook.core.needs import Needs
from herdbook.core.types import Metrics, Policy
from herdbook.marl.independent_q import mean_where, td_loss
from herdbook.marl.maddpg import actor_loss, gumbel, straight_through, with_own


@dataclass(frozen=True, kw_only=True)
class MATD3Config(Config):
    """Settings of MATD3; the defaults are those of MADDPG, and those of TD3 for its changes."""

    algorithm: ClassVar[str] = "matd3"
    discount: float = 0.99  # γ, discount factor
    tau: float = 0.01  # target networks: θ̄ ← (1 − tau) θ̄ + tau θ with each actor update
    policy_noise: float = 0.2  # σ, standard deviation of the noise on target actions, eq. 1
    noise_clip: float = 0.5  # c, bound of the noise on target actions, eq. 1
    policy_delay: int = 2  # critic updates per update of the actors and the targets
    batch_size: int = 1024  # environment steps per update
    actor_lr: float = 5e-4  # learning rate of the actors
    critic_lr: float = 5e-4  # learning rate of the critics
    max_grad_norm: float | None = 10.0  # clip the gradients of actors and critics each to this norm; None: no clipping
    logit_penalty: float = 1e-3  # ρ, weight of the squared outputs of the actors in eq. 3
    temperature: float = 1.0  # temperature of the Gumbel-softmax for discrete actions
    exploration_noise: float = 0.1  # σ of exploration on Box actions, in half ranges; discrete actions are sampled
    hidden_sizes: tuple[int, ...] = (64, 64)  # widths of the hidden layers of actors and critics
    sharing: Sharing = "kind"  # agents that share parameters: all, those with equal spaces (a kind), or none
    agent_id: bool = True  # append the agent's one-hot index to its input where parameters are shared
    horizon: int | None = None  # append elapsed steps / horizon to all inputs (Pardo et al. 2018, arXiv:1712.00378)
    reward_scaling: bool = True  # divide rewards by their running standard deviation, without subtracting a mean
    warmup_steps: int = 1_024  # environment steps collected before the first update
    steps_per_update: float = 25.0  # environment steps collected per update
    replay_steps: int = 1_000_000  # capacity of the replay buffer in environment steps

    def __post_init__(self) -> None:
        self.require(discount=UNIT, tau=FRACTION, actor_lr=POSITIVE, critic_lr=POSITIVE, max_grad_norm=POSITIVE)
        self.require(policy_noise=NOT_NEGATIVE, noise_clip=LIMIT, policy_delay=COUNT, logit_penalty=NOT_NEGATIVE)
        self.require(temperature=POSITIVE, exploration_noise=NOT_NEGATIVE, batch_size=COUNT, hidden_sizes=COUNT)
        self.require(horizon=COUNT, replay_steps=COUNT, warmup_steps=NOT_NEGATIVE, steps_per_update=POSITIVE)


class MATD3:
    """MATD3. `networks` may replace `actor` (signature of `AgentNetworks`), `critic` and `twin` (of `JointCritic`).

    With a horizon, the elapsed time is the `extra` input of the actor and part of the critics' `view`.
    """

    needs: ClassVar[Needs] = Needs(
        environment=True, agents="many", state=True, interaction="episodes", num_envs=8, acting=("actor",)
    )

    def __init__(self, config: MATD3Config, spec: JointSpec, **setup: Unpack[Setup]) -> None:
        self.config = c = config
        check_joint(spec, self.needs.actions, c.algorithm)
        self.spec, self.actors = spec, Actors(spec, c, setup)
        self.actions = self.actors.actions
        self.learner = Learner(
            {"actor": self.actors.make, "critic": self.actors.make_critic, "twin": self.actors.make_critic},
            {
                "critic": Adam(lr=c.critic_lr, networks=("critic", "twin"), max_grad_norm=c.max_grad_norm),
                "actor": Adam(lr=c.actor_lr, max_grad_norm=c.max_grad_norm),
            },
            targets=("actor", "critic", "twin"),
            **setup,
        )
        self.actors.network = self.learner.networks["actor"]
        self.critic, self.twin = self.learner.networks["critic"], self.learner.networks["twin"]

    def sample(self, replay: Any, generators: Sequence[torch.Generator]) -> JointTransitions:
        c = self.config
        batch: JointTransitions = replay.sample(c.batch_size, generators, discount=c.discount)
        return replace(batch, rewards=batch.rewards / replay.reward_std) if c.reward_scaling else batch

    def update(self, batch: JointTransitions) -> Metrics:
        learner, discrete = self.learner, self.actions.discrete
        learner.updates += 1
        shape = (*batch.alive.shape[-2:], self.actions.size)  # [B, N, A]
        normal = [] if discrete else [learner.normal(*shape)]
        metrics = learner.step("critic", self.critic_objective, batch, *normal)
        if learner.updates % self.config.policy_delay == 0:
            uniform = [learner.uniform(*shape)] if discrete else []
            metrics |= learner.step("actor", self.actor_objective, batch, *uniform)
            learner.move_targets(self.config.tau)
        return metrics

    def critic_objective(
        self, params: Params, batch: JointTransitions, normal: Tensor | None = None
    ) -> tuple[Tensor, Metrics]:
        """normal: noise for the target actions of eq. 1 [B, N, A], None for discrete actions."""
        c = self.config
        view, next_view = transition_views(self.spec, batch, self.config.horizon)
        with torch.no_grad():
            outputs = self.actors.after(params.target["actor"], batch)  # [B, N, A]
            next_actions = self.actions.greedy(outputs, self.actions.legal(batch.next_action_mask))
            if normal is not None:
                noise = (c.policy_noise * normal).clamp(-c.noise_clip, c.noise_clip)
                next_actions = self.actions.trimmed((next_actions + noise).clamp(-1, 1))
            next_actions = (next_actions * batch.next_alive.unsqueeze(-1)).unsqueeze(-3)  # [B, 1, N, A]
            next_q = torch.minimum(
                self.critic(params.target["critic"], next_view, next_actions),
                self.twin(params.target["twin"], next_view, next_actions),
            )  # [B, N]
            target = batch.rewards + batch.discounts * next_q  # eq. 1
        actions = self.actions.vectors(batch.actions, batch.alive).unsqueeze(-3)
        q, twin_q = self.critic(params["critic"], view, actions), self.twin(params["twin"], view, actions)  # [B, N]
        loss = td_loss(q, target, batch.in_game) + td_loss(twin_q, target, batch.in_game)  # eq. 2
        return loss, {"q": mean_where(q, batch.alive)}

    def actor_objective(
        self, params: Params, batch: JointTransitions, uniform: Tensor | None = None
    ) -> tuple[Tensor, Metrics]:
        """uniform: noise for sampling discrete actions [B, N, A], None for Box actions."""
        c = self.config
        view, _ = transition_views(self.spec, batch, c.horizon)
        outputs = self.actors.before(params["actor"], batch)  # [B, N, A]
        if uniform is None:
            own = self.actions.greedy(outputs)
        else:
            logits = only_legal(outputs, self.actions.legal(batch.action_mask))
            own = straight_through(logits, gumbel(uniform), c.temperature)
        actions = with_own(self.actions.vectors(batch.actions, batch.alive), own)  # [B, N, N, A]
        q = self.critic(params["critic"], view, actions)  # [B, N]: eq. 3 has the first critics alone
        return actor_loss(q, outputs, batch.alive, c.logit_penalty), {}  # eq. 3

    def policy(self, seed_index: int = 0, *, deterministic: bool = True, step: int | None = None) -> Policy:
        """Greedy, or exploring: discrete actions are sampled, Box actions get Gaussian noise. `step` has no effect."""
        actor = self.learner.parameters_of("actor", seed_index)
        noise = 0.0 if deterministic else self.config.exploration_noise
        return self.actors.policy(actor, noise, deterministic=deterministic)

    def updates_due(self, episodes: int, steps: int) -> int:
        return int(max(steps - self.config.warmup_steps, 0) / self.config.steps_per_update)

    def state_dict(self) -> dict[str, Any]:
        return self.learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state)
