"""Trust region policy optimisation (Schulman et al. 2015, arXiv:1502.05477).

    maximise  L(θ) = mean π_θ(a|s) / π_old(a|s) Â   subject to   mean KL(π_old ‖ π_θ) ≤ δ        (1)
    F x = g,   g = ∇L(θ_old),   F the Hessian of the mean KL at θ_old, by conjugate gradients     (2)
    θ = θ_old + α^j √(2δ / xᵀF x) x,   the first j for which L rises and the KL is at most δ      (3)
    L_V = ½ mean (V(s) − R)²,   R = Â + V_old(s)                                                  (4)

If no j satisfies (3), the policy does not change. F is damped by adding a multiple of the identity (appendix C).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from herdbook.core.config import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, UNIT, Config
from herdbook.core.learner import Adam, Parameters, Params, Setup
from herdbook.core.needs import Needs
from herdbook.core.on_policy import ActorCritic, Experience, advantages_of, minibatches, standardised, steps_of
from herdbook.core.types import Metrics, Policy, Segments, Spec


@dataclass(frozen=True, kw_only=True)
class TRPOConfig(Config):
    """Settings of TRPO; γ, δ and the conjugate gradients are the paper's (docs/algorithms.md has the rest)."""

    algorithm: ClassVar[str] = "trpo"
    discount: float = 0.99  # γ, discount factor
    trace: float = 0.95  # λ of the generalised advantage estimator
    max_divergence: float = 0.01  # δ, bound of the mean KL divergence in eq. 1
    conjugate_steps: int = 10  # iterations of the conjugate-gradient method, eq. 2
    damping: float = 0.1  # multiple of the identity that is added to F of eq. 2
    backtracks: int = 10  # step sizes tried in the line search of eq. 3: j < backtracks
    shrinkage: float = 0.8  # α, factor from one step size to the next in eq. 3
    rollout_steps: int = 256  # steps of each environment per rollout
    normalise_advantages: bool = True  # standardise the advantages of each rollout
    critic_epochs: int = 10  # passes of the critic over each rollout, eq. 4
    batch_size: int = 64  # steps per minibatch of the critic
    critic_lr: float = 1e-3  # learning rate of the critic
    hidden_sizes: tuple[int, ...] = (64, 64)  # widths of the hidden layers of both networks
    initial_std: float = 1.0  # initial standard deviation of continuous actions in [−1, 1]
    normalise_observations: bool = False  # standardise vectors by their running mean and std, saved with the policy
    scale_rewards: bool = False  # divide rewards by the running standard deviation of their discounted sum

    def __post_init__(self) -> None:
        self.require(discount=UNIT, trace=UNIT, max_divergence=POSITIVE, damping=NOT_NEGATIVE, shrinkage=FRACTION)
        self.require(conjugate_steps=COUNT, backtracks=COUNT, rollout_steps=COUNT, critic_epochs=COUNT)
        self.require(batch_size=COUNT, critic_lr=POSITIVE, hidden_sizes=COUNT, initial_std=POSITIVE)


def surrogate(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
    """L of eq. 1. log_probs, old_log_probs: log π_θ(a|s), log π_old(a|s) [N]; advantages: Â [N] → []."""
    return ((log_probs - old_log_probs).exp() * advantages).mean()


def conjugate_gradients(product: Callable[[Tensor], Tensor], g: Tensor, steps: int, residual: float = 1e-10) -> Tensor:
    """Solve F x = g of eq. 2 for a positive definite F. product: the map x ↦ F x; g: [P] → x [P]."""
    x, r, p = torch.zeros_like(g), g.clone(), g.clone()
    square = r @ r
    for _ in range(steps):
        if square < residual:
            break
        fp = product(p)
        alpha = square / (p @ fp)
        x, r = x + alpha * p, r - alpha * fp
        before, square = square, r @ r
        p = r + (square / before) * p
    return x


def value_loss(values: Tensor, returns: Tensor) -> Tensor:
    """Eq. 4. values: V(s) [N]; returns: R [N] → []."""
    return 0.5 * (values - returns).square().mean()


class TRPO:
    """TRPO. `networks` may replace `actor` ([B, …] → `Categorical` or `ClippedNormal`) and `critic` (→ V [B])."""

    needs: ClassVar[Needs] = Needs(environment=True, interaction="rollouts", num_envs=8, seeds_together=False)

    def __init__(self, config: TRPOConfig, spec: Spec, **setup: Unpack[Setup]) -> None:
        self.config = c = config
        self.agent = ActorCritic(c, spec, {"critic": Adam(lr=c.critic_lr)}, setup)
        self.units, self.learner = self.agent.units, self.agent.learner
        self.actor, self.critic = self.agent.actor, self.agent.value

    def update(self, rollout: Segments) -> Metrics:
        c, critic = self.config, self.learner.parameters_of("critic")
        self.learner.updates += 1
        scaled = self.units.rollout(rollout)
        with torch.no_grad():
            advantages, returns = advantages_of(scaled, lambda o: self.critic(critic, o), c.discount, c.trace)
        steps = steps_of(scaled, advantages, returns)
        if c.normalise_advantages:
            steps = replace(steps, advantages=standardised(steps.advantages))
        metrics = self.improve(steps)
        for batch in minibatches(steps, c.batch_size, c.critic_epochs, self.learner.generators[0]):
            metrics |= self.learner.step("critic", self.critic_objective, batch)
        self.units.see(rollout.observations)
        return metrics

    def improve(self, steps: Experience) -> Metrics:
        """Update the actor by eq. 1 to 3. The line search reads numbers from the device."""
        c = self.config
        own = self.learner.parameters_of("actor")
        before = {name: value.clone() for name, value in own.items()}
        moving = [name for name, value in self.learner.params.online["actor"].items() if value.requires_grad]
        theta = {name: value.clone().requires_grad_(name in moving) for name, value in own.items()}
        leaves = [theta[name] for name in moving]
        policy = self.actor(theta, steps.observations)
        log_probs = policy.log_prob(steps.actions)
        old_log_probs, old = log_probs.detach(), self.actor(before, steps.observations)
        objective = surrogate(log_probs, old_log_probs, steps.advantages)
        gradient = _flat(torch.autograd.grad(objective, leaves, retain_graph=True))
        slope = _flat(torch.autograd.grad(old.divergence(policy).mean(), leaves, create_graph=True))

        def fisher(vector: Tensor) -> Tensor:
            return _flat(torch.autograd.grad(slope @ vector, leaves, retain_graph=True)) + c.damping * vector

        direction = conjugate_gradients(fisher, gradient, c.conjugate_steps)  # eq. 2
        curvature = direction @ fisher(direction)
        step = (2 * c.max_divergence / curvature.clamp_min(1e-12)).sqrt() * direction
        start, fraction, accepted = objective.detach(), 1.0, 0.0
        gain, divergence = torch.zeros_like(start), torch.zeros_like(start)
        with torch.no_grad():
            for _ in range(c.backtracks):  # eq. 3
                _move(own, before, moving, fraction * step)
                policy = self.actor(own, steps.observations)
                gain = surrogate(policy.log_prob(steps.actions), old_log_probs, steps.advantages) - start
                divergence = old.divergence(policy).mean()
                if bool((gain > 0) & (divergence <= c.max_divergence)):
                    accepted = fraction
                    break
                fraction *= c.shrinkage
            else:
                _move(own, before, moving, torch.zeros_like(step))
                gain, divergence = torch.zeros_like(gain), torch.zeros_like(divergence)
        metrics = {"loss/policy": -objective.detach(), "gain": gain, "divergence": divergence}
        metrics["accepted"] = torch.full_like(gain, accepted)  # the share of the full step, 0 if all were rejected
        return metrics

    def critic_objective(self, params: Params, batch: Experience) -> tuple[Tensor, Metrics]:
        return value_loss(self.critic(params["critic"], batch.observations), batch.returns), {}  # eq. 4

    def policy(self, seed_index: int = 0, *, deterministic: bool = True, step: int | None = None) -> Policy:
        """The mode of π, or a sample; `step` has no effect."""
        return self.agent.policy(seed_index, deterministic)

    def round_steps(self, num_envs: int) -> int:
        return self.config.rollout_steps

    def updates_due(self, episodes: int, steps: int) -> int:
        return self.learner.updates + 1  # one update after each rollout

    def state_dict(self) -> dict[str, Any]:
        return self.agent.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.agent.load_state_dict(state)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _move(own: Parameters, before: Parameters, names: Sequence[str], by: Tensor) -> None:
    """own ← before + by, in place, for the parameters of these names. by: all their changes in one vector [P]."""
    for name, part in zip(names, torch.split(by, [own[name].numel() for name in names]), strict=True):
        own[name].copy_(before[name] + part.view_as(own[name]))
