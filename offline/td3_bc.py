"""TD3+BC (Fujimoto & Gu 2021, arXiv:2106.06860): TD3 with a behaviour-cloning term in the actor's loss.

    y   = r + γ min_i Q̄_i(s′, clip(π̄(s′) + ε)),   ε = clip(σ·N(0, 1), −c, c)        (1)
    L_Q = Σ_i mean (Q_i(s, a) − y)²                                                 (2)
    L_π = −λ mean Q_1(s, π(s)) + mean (π(s) − a)²,   λ = α / mean |Q_1(s, π(s))|    (3)

The means of (3) run over the batch; the mean of the cloning term also runs over the action dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from herdbook.core.config import COUNT, FRACTION, LIMIT, NOT_NEGATIVE, POSITIVE, UNIT, Config
from herdbook.core.distributions import Deterministic
from herdbook.core.learner import Adam, Learner, Params, Setup
from herdbook.core.needs import Needs
from herdbook.core.networks import Critic, DeterministicActor
from herdbook.core.policy import FeedForwardPolicy, Scaling
from herdbook.core.spaces import check_action_space
from herdbook.core.types import Metrics, Policy, Replay, Spec, Transitions


@dataclass(frozen=True, kw_only=True)
class TD3BCConfig(Config):
    """Settings of TD3+BC; the defaults are the paper's."""

    algorithm: ClassVar[str] = "td3_bc"
    alpha: float = 2.5  # α, weight of Q relative to the cloning term, eq. 3
    online_alpha: float | None = None  # α of eq. 3 in online fine-tuning (cf. arXiv:2211.11802); None: the same α
    discount: float = 0.99  # γ, discount factor
    tau: float = 0.005  # target networks: θ̄ ← (1 − tau) θ̄ + tau θ with each actor update
    policy_noise: float = 0.2  # σ, standard deviation of the target policy's noise, eq. 1
    noise_clip: float = 0.5  # c, bound of the target policy's noise, eq. 1
    policy_delay: int = 2  # critic updates per update of the actor and the targets
    batch_size: int = 256  # transitions per update
    actor_lr: float = 3e-4  # learning rate of the actor
    critic_lr: float = 3e-4  # learning rate of the critics
    hidden_sizes: tuple[int, ...] = (256, 256)  # widths of the hidden layers of all networks
    n_step: int = 1  # n of the n-step return: rewards summed before bootstrapping
    standardise_observations: bool = True  # networks see (s − μ) / (σ + 1e-3), section 5; vectors only

    def __post_init__(self) -> None:
        self.require(discount=UNIT, tau=FRACTION, actor_lr=POSITIVE, critic_lr=POSITIVE)
        self.require(policy_delay=COUNT, batch_size=COUNT, n_step=COUNT, hidden_sizes=COUNT)
        self.require(alpha=NOT_NEGATIVE, online_alpha=NOT_NEGATIVE, policy_noise=NOT_NEGATIVE, noise_clip=LIMIT)


def critic_loss(q: Tensor, target: Tensor) -> Tensor:
    """Eq. 2. q: Q_i(s, a) [critics, B]; target: y [B] → []."""
    return (q - target).square().mean(-1).sum()


def actor_loss(q: Tensor, actions: Tensor, data_actions: Tensor, alpha: float) -> Tensor:
    """Eq. 3. q: Q_1(s, π(s)) [B]; actions, data_actions: [B, A] in [−1, 1] → []."""
    weight = alpha / q.abs().mean().detach()
    return -weight * q.mean() + (actions - data_actions).square().mean()


class TD3BC:
    """TD3+BC. `networks` may replace `actor` ([B, …] → [B, A] in [−1, 1]) and `critic` (→ [critics, B])."""

    needs: ClassVar[Needs] = Needs(data=True, actions="box", online_noise=0.1, goes_online=True)

    def __init__(self, config: TD3BCConfig, spec: Spec, **setup: Unpack[Setup]) -> None:
        self.config = c = config
        check_action_space(spec.action_space, self.needs.actions, c.algorithm)
        self.scaling = Scaling(spec, standardise=c.standardise_observations, device=setup.get("device", "cpu"))
        space, size = spec.observation_space, self.scaling.action_size
        self.learner = Learner(
            {
                "actor": lambda: DeterministicActor(space, size, c.hidden_sizes),
                "critic": lambda: Critic(space, size, c.hidden_sizes),
            },
            {"critic": Adam(lr=c.critic_lr), "actor": Adam(lr=c.actor_lr)},
            targets=("actor", "critic"),
            **setup,
        )
        self.actor, self.critic = self.learner.networks["actor"], self.learner.networks["critic"]
        self.alpha = c.alpha

    def sample(self, replay: Replay, generators: Sequence[torch.Generator]) -> Transitions:
        c = self.config
        return replay.sample(c.batch_size, generators, discount=c.discount, n_step=c.n_step)

    def update(self, batch: Transitions) -> Metrics:
        batch = self.scaling(batch)
        self.learner.updates += 1
        noise = self.learner.normal(*batch.actions.shape[-2:])
        metrics = self.learner.step("critic", self.critic_objective, batch, noise)
        if self.learner.updates % self.config.policy_delay == 0:
            metrics |= self.learner.step("actor", self.actor_objective, batch)
            self.learner.move_targets(self.config.tau)
        return metrics

    def critic_objective(self, params: Params, batch: Transitions, noise: Tensor) -> tuple[Tensor, Metrics]:
        c = self.config
        with torch.no_grad():
            noise = (c.policy_noise * noise).clamp(-c.noise_clip, c.noise_clip)
            next_actions = (self.actor(params.target["actor"], batch.next_observations) + noise).clamp(-1, 1)  # [B, A]
            next_q = self.critic(params.target["critic"], batch.next_observations, next_actions).amin(0)  # [B]
            target = batch.rewards + batch.discounts * next_q  # eq. 1
        q = self.critic(params["critic"], batch.observations, batch.actions)  # [2, B]
        return critic_loss(q, target), {"q": q.mean()}

    def actor_objective(self, params: Params, batch: Transitions) -> tuple[Tensor, Metrics]:
        actions = self.actor(params["actor"], batch.observations)  # [B, A]
        first = self.critic.first_copy(params["critic"])  # eq. 3 has Q_1 alone
        q = self.critic(first, batch.observations, actions)[0]  # [B]
        return actor_loss(q, actions, batch.actions, self.alpha), {}

    def go_online(self) -> None:
        """Use `online_alpha` from now on: online fine-tuning begins."""
        self.alpha = self.config.alpha if self.config.online_alpha is None else self.config.online_alpha

    def policy(self, seed_index: int = 0, *, deterministic: bool = True) -> Policy:
        """The actor, without noise; `deterministic` has no effect."""
        actor = self.learner.parameters_of("actor", seed_index)
        return FeedForwardPolicy(self.scaling, lambda o: Deterministic(self.actor(actor, o)))

    def state_dict(self) -> dict[str, Any]:
        return self.learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state)
