"""MADDPG (Lowe et al. 2017, arXiv:1706.02275): centralised critics in training, decentralised actors.

    y_i = r_i + γ Q̄_i(x′, a′_1, …, a′_N),   a′_j = μ̄_j(o′_j)             (1)
    L_Q = mean (Q_i(x, a_1, …, a_N) − y_i)²                               (2)
    L_μ = −mean Q_i(x, a_1, …, μ_i(o_i), …, a_N) + ρ mean l_i²            (3)

x is the global state, or all observations where there is none. Means run over the agents that act; absent agents are
zeros in x and in the actions. l_i are the outputs of actor i. A Box action is tanh(l_i). A discrete action is one-hot:
the argmax of l_i in (1), and in (3) a sample with the gradient of its softmax (straight-through Gumbel-softmax, Jang et
al. 2017, arXiv:1611.01144). The settings follow EPyMARL (Papoudakis et al. 2021, arXiv:2006.07869): agents may share
parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from herdbook.core.config import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, UNIT, Config
from herdbook.core.joint.actions import check_joint, only_legal
from herdbook.core.joint.networks import Sharing, transition_views
from herdbook.core.joint.policy import Actors
from herdbook.core.joint.types import JointSpec, JointTransitions
from herdbook.core.learner import Adam, Learner, Params, Setup
from herdbook.core.needs import Needs
from herdbook.core.types import Metrics, Policy
from herdbook.marl.independent_q import mean_where, td_loss


@dataclass(frozen=True, kw_only=True)
class MADDPGConfig(Config):
    """Settings of MADDPG; the defaults are EPyMARL's, with the exceptions in docs/algorithms.md.

    The paper updates every 100 environment steps with a learning rate of 0.01.
    """

    algorithm: ClassVar[str] = "maddpg"
    discount: float = 0.99  # γ, discount factor
    tau: float = 0.01  # target networks: θ̄ ← (1 − tau) θ̄ + tau θ after each update
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
        self.require(logit_penalty=NOT_NEGATIVE, temperature=POSITIVE, exploration_noise=NOT_NEGATIVE)
        self.require(batch_size=COUNT, hidden_sizes=COUNT, horizon=COUNT, replay_steps=COUNT)
        self.require(warmup_steps=NOT_NEGATIVE, steps_per_update=POSITIVE)


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise from uniform noise in [−1, 1). [*B] → [*B]"""
    return -(-((uniform + 1) / 2).clamp(1e-8, 1 - 1e-7).log()).log()


def straight_through(logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """The one-hot sample argmax(logits + noise) with the gradient of its softmax. logits; noise: Gumbel [*B, n]."""
    soft = ((logits + noise) / temperature).softmax(-1)
    hard = F.one_hot(soft.argmax(-1), soft.shape[-1]).float()
    return hard + (soft - soft.detach())


def with_own(data: Tensor, own: Tensor) -> Tensor:
    """Row i: the joint action `data` with agent i's action replaced by `own`. [*B, N, A] twice → [*B, N, N, A]."""
    itself = torch.eye(data.shape[-2], dtype=torch.bool, device=data.device).unsqueeze(-1)
    return torch.where(itself, own.unsqueeze(-3), data.unsqueeze(-3))


def actor_loss(q: Tensor, outputs: Tensor, alive: Tensor, penalty: float) -> Tensor:
    """Eq. 3. q: Q_i(x, …, μ_i(o_i), …) [B, N]; outputs: l_i [B, N, A]; alive: the agent acts [B, N] → []."""
    objective = q - penalty * outputs.square().mean(-1)
    return -mean_where(objective, alive)


class MADDPG:
    """MADDPG. `networks` may replace `actor` (signature of `AgentNetworks`) and `critic` (that of `JointCritic`).

    With a horizon, the elapsed time is the `extra` input of the actor and part of the critic's `view`.
    """

    needs: ClassVar[Needs] = Needs(
        environment=True, agents="many", state=True, interaction="episodes", num_envs=8, acting=("actor",)
    )

    def __init__(self, config: MADDPGConfig, spec: JointSpec, **setup: Unpack[Setup]) -> None:
        self.config = c = config
        check_joint(spec, self.needs.actions, c.algorithm)
        self.spec, self.actors = spec, Actors(spec, c, setup)
        self.actions = self.actors.actions
        adam = partial(Adam, max_grad_norm=c.max_grad_norm)
        self.learner = Learner(
            {"actor": self.actors.make, "critic": self.actors.make_critic},
            {"critic": adam(lr=c.critic_lr), "actor": adam(lr=c.actor_lr)},
            targets=("actor", "critic"),
            **setup,
        )
        self.actors.network, self.critic = self.learner.networks["actor"], self.learner.networks["critic"]

    def sample(self, replay: Any, generators: Sequence[torch.Generator]) -> JointTransitions:
        c = self.config
        batch: JointTransitions = replay.sample(c.batch_size, generators, discount=c.discount)
        return replace(batch, rewards=batch.rewards / replay.reward_std) if c.reward_scaling else batch

    def update(self, batch: JointTransitions) -> Metrics:
        self.learner.updates += 1
        metrics = self.learner.step("critic", self.critic_objective, batch)
        uniform = [self.learner.uniform(*batch.alive.shape[-2:], self.actions.size)] if self.actions.discrete else []
        metrics |= self.learner.step("actor", self.actor_objective, batch, *uniform)
        self.learner.move_targets(self.config.tau)
        return metrics

    def critic_objective(self, params: Params, batch: JointTransitions) -> tuple[Tensor, Metrics]:
        view, next_view = transition_views(self.spec, batch, self.config.horizon)
        with torch.no_grad():
            outputs = self.actors.after(params.target["actor"], batch)  # [B, N, A]
            next_actions = self.actions.greedy(outputs, self.actions.legal(batch.next_action_mask))
            next_actions = (next_actions * batch.next_alive.unsqueeze(-1)).unsqueeze(-3)  # [B, 1, N, A]
            next_q = self.critic(params.target["critic"], next_view, next_actions)  # [B, N]
            target = batch.rewards + batch.discounts * next_q  # eq. 1
        actions = self.actions.vectors(batch.actions, batch.alive).unsqueeze(-3)  # [B, 1, N, A]
        q = self.critic(params["critic"], view, actions)  # [B, N]
        return td_loss(q, target, batch.in_game), {"q": mean_where(q, batch.alive)}  # eq. 2

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
        q = self.critic(params["critic"], view, actions)  # [B, N]
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
