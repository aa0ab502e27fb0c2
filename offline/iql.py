"""Implicit Q-learning (Kostrikov, Nair & Levine 2021, arXiv:2110.06169): Q is evaluated at actions of the data only.

    L_V = mean L₂^τ(min_i Q̄_i(s, a) − V(s)),   L₂^τ(u) = |τ − 1(u < 0)| u²                 (5)
    L_Q = mean Σ_i (r + γ V(s′) − Q_i(s, a))²                                              (6)
    L_π = −mean exp(β (min_i Q̄_i(s, a) − V(s))) log π(a|s)                                (7)

The weight in (7) is clipped at 100. One step minimises the sum of the three losses, each of which moves only its own
network: V(s′) of (6) and the weight of (7) are constants computed before the step. π is a Gaussian without tanh, whose
log σ does not depend on the state. In (7), but not when it acts, π may drop out hidden units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, Unpack

import torch
from torch import Tensor

from herdbook.core.config import COUNT, FRACTION, LIMIT, NOT_NEGATIVE, POSITIVE, UNIT, Config
from herdbook.core.learner import Adam, Learner, Params, Setup
from herdbook.core.needs import Needs
from herdbook.core.networks import Critic, GaussianActor, StateValue, dropout
from herdbook.core.policy import FeedForwardPolicy, Scaling
from herdbook.core.spaces import check_action_space
from herdbook.core.types import Metrics, Policy, Replay, Spec, Transitions


@dataclass(frozen=True, kw_only=True)
class IQLConfig(Config):
    """Settings of IQL; the defaults are the paper's for locomotion (docs/algorithms.md)."""

    algorithm: ClassVar[str] = "iql"
    expectile: float = 0.7  # τ, expectile of eq. 5; the paper: 0.9 on antmaze
    beta: float = 3.0  # β, inverse temperature of eq. 7; the paper: 10 on antmaze, 0.5 on Adroit and kitchen
    max_weight: float = 100.0  # largest value of the exponential weight in eq. 7
    discount: float = 0.99  # γ, discount factor
    tau: float = 0.005  # target critics: θ̄ ← (1 − tau) θ̄ + tau θ after each update
    batch_size: int = 256  # transitions per update
    actor_lr: float = 3e-4  # learning rate of π
    critic_lr: float = 3e-4  # learning rate of Q
    value_lr: float = 3e-4  # learning rate of V
    actor_decay_updates: int | None = (
        None  # updates over which π's rate decays to 0 by a cosine; None: those of the run
    )
    hidden_sizes: tuple[int, ...] = (256, 256)  # widths of the hidden layers of all networks
    dropout: float = 0.0  # probability of dropping a hidden unit of π in eq. 7; the paper: 0.1 on Adroit and kitchen
    n_step: int = 1  # n of the n-step return: rewards summed before bootstrapping
    standardise_observations: bool = False  # networks see (s − μ) / (σ + 1e-3), μ and σ of the dataset; vectors only

    def __post_init__(self) -> None:
        self.require(expectile=UNIT, discount=UNIT, tau=FRACTION, beta=NOT_NEGATIVE, max_weight=LIMIT)
        self.require(batch_size=COUNT, n_step=COUNT, hidden_sizes=COUNT, actor_decay_updates=COUNT)
        self.require(actor_lr=POSITIVE, critic_lr=POSITIVE, value_lr=POSITIVE, dropout=(0, 0.99))

    def for_run(self, steps: int) -> Self:
        """The config for a run of `steps` updates, over which π's learning rate decays, as in the authors' code."""
        return replace(self, actor_decay_updates=max(steps, 1)) if self.actor_decay_updates is None else self


def expectile_loss(difference: Tensor, expectile: float) -> Tensor:
    """L₂^τ(u) of eq. 5, elementwise: τ u² where u > 0, (1 − τ) u² where u < 0."""
    return torch.where(difference < 0, 1 - expectile, expectile) * difference.square()


def advantage_weight(advantage: Tensor, beta: float, max_weight: float) -> Tensor:
    """The clipped weight exp(β A) of eq. 7. advantage: min_i Q̄_i(s, a) − V(s) [B] → [B]."""
    return (beta * advantage).exp().clamp(max=max_weight)


class IQL:
    """IQL. `networks` may replace `actor` ([B, …] → a distribution), `critic` (→ [critics, B]) and `value` (→ [B]).

    With dropout, the actor takes the factors of its hidden units as a second argument: see `core.networks.dropout`.
    """

    needs: ClassVar[Needs] = Needs(data=True, actions="box")

    def __init__(self, config: IQLConfig, spec: Spec, **setup: Unpack[Setup]) -> None:
        self.config = c = config
        check_action_space(spec.action_space, self.needs.actions, c.algorithm)
        self.scaling = Scaling(spec, standardise=c.standardise_observations, device=setup.get("device", "cpu"))
        space, size = spec.observation_space, self.scaling.action_size
        self.learner = Learner(
            {
                "actor": lambda: GaussianActor(space, size, c.hidden_sizes),
                "critic": lambda: Critic(space, size, c.hidden_sizes),
                "value": lambda: StateValue(space, c.hidden_sizes),
            },
            {
                "value": Adam(lr=c.value_lr),
                "critic": Adam(lr=c.critic_lr),
                "actor": Adam(lr=c.actor_lr, cosine_updates=c.actor_decay_updates),
            },
            targets=("critic",),
            **setup,
        )
        self.actor, self.critic, self.value = (self.learner.networks[n] for n in ("actor", "critic", "value"))

    def sample(self, replay: Replay, generators: Sequence[torch.Generator]) -> Transitions:
        c = self.config
        return replay.sample(c.batch_size, generators, discount=c.discount, n_step=c.n_step)

    def update(self, batch: Transitions) -> Metrics:
        self.learner.updates += 1
        widths = (batch.rewards.shape[-1], sum(self.config.hidden_sizes))
        uniform = [self.learner.uniform(*widths)] if self.config.dropout else []
        metrics = self.learner.step(("value", "critic", "actor"), self.objective, self.scaling(batch), *uniform)
        self.learner.move_targets(self.config.tau)
        return metrics

    def objective(self, params: Params, batch: Transitions, uniform: Tensor | None = None) -> tuple[Tensor, Metrics]:
        """uniform: noise of the dropout [B, hidden units of π], None without dropout."""
        c = self.config
        value = self.value(params["value"], batch.observations)  # [B]
        with torch.no_grad():
            target_q = self.critic(params.target["critic"], batch.observations, batch.actions).amin(0)  # [B]
            next_value = self.value(params.frozen["value"], batch.next_observations)  # [B]
            weight = advantage_weight(target_q - value, c.beta, c.max_weight)  # [B]
        value_loss = expectile_loss(target_q - value, c.expectile).mean()  # eq. 5

        q = self.critic(params["critic"], batch.observations, batch.actions)  # [2, B]
        target = batch.rewards + batch.discounts * next_value
        critic_loss = (q - target).square().mean(-1).sum()  # eq. 6

        kept = [] if uniform is None else [dropout(uniform, c.dropout)]
        log_prob = self.actor(params["actor"], batch.observations, *kept).log_prob(batch.actions)  # [B]
        actor_loss = -(weight * log_prob).mean()  # eq. 7
        losses = {"loss/value": value_loss, "loss/critic": critic_loss, "loss/actor": actor_loss}
        return value_loss + critic_loss + actor_loss, losses | {"value": value.mean(), "q": q.mean()}

    def policy(self, seed_index: int = 0, *, deterministic: bool = True) -> Policy:
        """The mean of the Gaussian, or a sample clipped to the action space."""
        actor = self.learner.parameters_of("actor", seed_index)
        return FeedForwardPolicy(self.scaling, lambda o: self.actor(actor, o), deterministic=deterministic)

    def state_dict(self) -> dict[str, Any]:
        return self.learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state)
