"""Conservative Q-learning (Kumar et al. 2020, arXiv:2006.04779) on soft actor-critic (Haarnoja et al. 2018), CQL(H).

    y    = r + γ min_i Q̄_i(s′, a′),   a′ ~ π(·|s′)                                                              (1)
    C_i  = mean [T log Σ_a exp(Q_i(s, a) / T) − Q_i(s, a_data)]                                                 (2)
    L_Q  = Σ_i [mean (Q_i(s, a_data) − y)² + α C_i]                                                             (3)
    L_Q  = Σ_i [mean (Q_i(s, a_data) − y)² + α′ (α C_i − τ)],  max over α′ ≥ 0, in the Lagrange form            (4)
    L_π  = mean [α_T log π(a|s) − min_i Q_i(s, a)],  a ~ π(·|s)                                                 (5)
    L_T  = −log α_T · mean [log π(a|s) + H̄],  H̄ = −dim A                                                       (6)

Two options change (1). Without `deterministic_backup`, −α_T log π(a′|s′) is added to the minimum, and with n-step
returns an entropy for each state between (online/sac.py). With
`max_target_backup`, each Q̄_i is first maximised over n actions from π(·|s′), and no entropy is added. The sum in (2) is
estimated by importance sampling (appendix F) from n actions each of U[−1, 1]^A, π(·|s) and π(·|s′): Q_i is evaluated at
s, and the action's log-density is subtracted from Q_i / T. Without importance sampling the densities are left out and
the data's action joins the sum, as in the authors' second version. The defaults follow the authors' code, which differs
from the paper's text (docs/algorithms.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from herdbook.core.chunked import CandidateCritic
from herdbook.core.config import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, UNIT, Config
from herdbook.core.learner import Adam, Learner, Params, Setup
from herdbook.core.needs import Needs
from herdbook.core.networks import Scalar, SquashedGaussianActor
from herdbook.core.policy import FeedForwardPolicy, Scaling
from herdbook.core.spaces import check_action_space
from herdbook.core.types import Metrics, Policy, Replay, Spec, Transitions
from herdbook.online.sac import sampled_entropies, soft_rewards


@dataclass(frozen=True, kw_only=True)
class CQLConfig(Config):
    """Settings of CQL(H) for continuous actions."""

    algorithm: ClassVar[str] = "cql"
    alpha: float = 5.0  # α, weight of the conservative term, eq. 3
    lagrange: bool = False  # tune α′ so that α C_i stays near τ (eq. 4), instead of eq. 3
    lagrange_threshold: float = 10.0  # τ, target value of α C_i in eq. 4
    lagrange_lr: float = 3e-4  # learning rate of α′, eq. 4
    num_actions: int = 10  # n, actions from each of the three proposals (uniform, π(·|s), π(·|s′)) in eq. 2
    temperature: float = 1.0  # T, temperature of the log-sum-exp in eq. 2
    importance_sampling: bool = True  # subtract log-densities in eq. 2; else the data's action joins the sum
    max_target_backup: bool = False  # maximise each Q̄_i over n actions before the minimum of eq. 1
    deterministic_backup: bool = True  # leave the entropy term −α_T log π(a′|s′) out of eq. 1
    discount: float = 0.99  # γ, discount factor
    tau: float = 0.005  # target critics: θ̄ ← (1 − tau) θ̄ + tau θ after each update
    initial_temperature: float = 1.0  # initial value of α_T, the entropy temperature of eq. 5
    batch_size: int = 256  # transitions per update
    actor_lr: float = 1e-4  # learning rate of the policy and of α_T
    critic_lr: float = 3e-4  # learning rate of the critics
    hidden_sizes: tuple[int, ...] = (256, 256, 256)  # widths of the hidden layers of all networks
    n_step: int = 1  # n of the n-step return: rewards summed before bootstrapping
    standardise_observations: bool = False  # networks see (s − μ) / (σ + 1e-3), μ and σ of the dataset; vectors only

    def __post_init__(self) -> None:
        self.require(discount=UNIT, tau=FRACTION, alpha=NOT_NEGATIVE, lagrange_threshold=NOT_NEGATIVE)
        self.require(num_actions=COUNT, batch_size=COUNT, n_step=COUNT, hidden_sizes=COUNT, actor_lr=POSITIVE)
        self.require(critic_lr=POSITIVE, lagrange_lr=POSITIVE, temperature=POSITIVE, initial_temperature=POSITIVE)


def conservative_gap(q: Tensor, data_q: Tensor, log_density: Tensor | float, temperature: float = 1.0) -> Tensor:
    """C_i of eq. 2 before the mean over the batch → [critics, B].

    q: Q_i of the sampled actions [critics, N, B]; data_q: Q_i(s, a_data) [critics, B]; log_density: log-density of each
    action under its proposal [N, B], or 0 without importance sampling.
    """
    return temperature * torch.logsumexp(q / temperature - log_density, 1) - data_q


def lagrange_multiplier(log_multiplier: Tensor) -> Tensor:
    """α′ of eq. 4, clamped to [0, 1e6]."""
    return log_multiplier.exp().clamp(0, 1e6)


class CQL:
    """CQL. `networks` may replace `actor` ([B, …] → SquashedNormal) and `critic` (a: [*N, B, A] → [critics, *N, B])."""

    needs: ClassVar[Needs] = Needs(data=True, actions="box")

    def __init__(self, config: CQLConfig, spec: Spec, **setup: Unpack[Setup]) -> None:
        self.config = c = config
        check_action_space(spec.action_space, self.needs.actions, c.algorithm)
        self.scaling = Scaling(spec, standardise=c.standardise_observations, device=setup.get("device", "cpu"))
        space, size = spec.observation_space, self.scaling.action_size
        self.target_entropy = -float(size)
        self.random_log_density = size * math.log(0.5)  # of U[−1, 1]^A
        self.learner = Learner(
            {
                "actor": lambda: SquashedGaussianActor(space, size, c.hidden_sizes),
                "critic": lambda: CandidateCritic(space, size, c.hidden_sizes),
                "temperature": lambda: Scalar(math.log(c.initial_temperature)),  # log α_T
                "multiplier": lambda: Scalar(0.0),  # log α′
            },
            {
                "actor": Adam(lr=c.actor_lr, networks=("actor", "temperature")),
                "critic": Adam(lr=c.critic_lr),
                "multiplier": Adam(lr=c.lagrange_lr),
            },
            targets=("critic",),
            **setup,
        )
        self.actor, self.critic = self.learner.networks["actor"], self.learner.networks["critic"]
        self.log_temperature = self.learner.networks["temperature"]
        self.log_multiplier = self.learner.networks["multiplier"]
        # The states between s and s′ whose entropies are part of the backup.
        self.soft_steps = 0 if c.deterministic_backup or c.max_target_backup else c.n_step - 1
        self.critic_optimisers = ("critic", "multiplier") if c.lagrange else ("critic",)

    def sample(self, replay: Replay, generators: Sequence[torch.Generator]) -> Transitions:
        c = self.config
        between = self.soft_steps > 0
        return replay.sample(c.batch_size, generators, discount=c.discount, n_step=c.n_step, between=between)

    def update(self, batch: Transitions) -> Metrics:
        self.learner.updates += 1
        batch = self.scaling(batch)
        n, shape = self.config.num_actions, batch.actions.shape[-2:]  # [B, A]
        random_actions = self.learner.uniform(n, *shape)
        noise, next_noise = self.learner.normal(n, *shape), self.learner.normal(n + 1, *shape)
        between = [self.learner.normal(shape[0], self.soft_steps, shape[1])] if self.soft_steps else []
        metrics = self.learner.step(
            self.critic_optimisers, self.critic_objective, batch, random_actions, noise, next_noise, *between
        )
        metrics |= self.learner.step("actor", self.actor_objective, batch, self.learner.normal(*shape))
        self.learner.move_targets(self.config.tau)
        return metrics

    def critic_objective(
        self,
        params: Params,
        batch: Transitions,
        random_actions: Tensor,
        noise: Tensor,
        next_noise: Tensor,
        between_noise: Tensor | None = None,
    ) -> tuple[Tensor, Metrics]:
        """random_actions, noise: [n, B, A]; next_noise: [n + 1, B, A], the last row for a′ of eq. 1; between_noise:
        for actions at the states between [B, n_step − 1, A], None if their entropies are not part of eq. 1.
        """
        c = self.config
        with torch.no_grad():
            policy = self.actor(params["actor"], batch.observations)
            next_policy = self.actor(params["actor"], batch.next_observations)
            actions, log_prob = policy.rsample_with_log_prob(noise)  # [n, B, A], [n, B]
            next_actions, next_log_prob = next_policy.rsample_with_log_prob(next_noise)  # [n + 1, …]
            if between_noise is not None and batch.between_discounts is not None:
                entropies = sampled_entropies(partial(self.actor, params["actor"]), batch.between, between_noise)
                temperature = self.log_temperature(params["temperature"]).exp()
                rewards = soft_rewards(batch.rewards, batch.between_discounts, entropies, temperature)
                batch = replace(batch, rewards=rewards)
            target = self.backup(params, batch, next_actions, next_log_prob)  # [B]
            proposals = torch.cat([random_actions, next_actions[:-1], actions, batch.actions.unsqueeze(0)])
            uniform = torch.full_like(log_prob, self.random_log_density)
            density = torch.cat([uniform, next_log_prob[:-1], log_prob])  # [3n, B]
        q = self.critic(params["critic"], batch.observations, proposals)  # [2, 3n + 1, B]
        data_q = q[:, -1]

        bellman = (data_q - target).square().mean(-1).sum()
        scored, log_density = (q[:, :-1], density) if c.importance_sampling else (q, 0.0)
        gap = conservative_gap(scored, data_q, log_density, c.temperature).mean(-1)  # C_i, eq. 2: [2]
        metrics = {"loss/bellman": bellman, "conservative_gap": gap.mean(), "q": data_q.mean(), "target": target.mean()}
        if not c.lagrange:
            return bellman + c.alpha * gap.sum(), metrics  # eq. 3
        multiplier = lagrange_multiplier(self.log_multiplier(params["multiplier"]))
        excess = c.alpha * gap - c.lagrange_threshold  # [2]
        conservative = (multiplier.detach() * excess).sum()  # eq. 4, minimised over the critics
        ascent = -multiplier * excess.detach().mean()  # eq. 4, maximised over α′
        return bellman + conservative + ascent, metrics | {"multiplier": multiplier}

    def backup(self, params: Params, batch: Transitions, next_actions: Tensor, next_log_prob: Tensor) -> Tensor:
        """Eq. 1. next_actions: [n + 1, B, A]; next_log_prob: [n + 1, B] → [B]."""
        c = self.config
        if c.max_target_backup:
            q = self.critic(params.target["critic"], batch.next_observations, next_actions[:-1])  # [2, n, B]
            next_q = q.amax(1).amin(0)
        else:
            next_q = self.critic(params.target["critic"], batch.next_observations, next_actions[-1]).amin(0)
            if not c.deterministic_backup:
                next_q = next_q - self.log_temperature(params["temperature"]).exp() * next_log_prob[-1]
        target: Tensor = batch.rewards + batch.discounts * next_q
        return target

    def actor_objective(self, params: Params, batch: Transitions, noise: Tensor) -> tuple[Tensor, Metrics]:
        log_temperature = self.log_temperature(params["temperature"])
        temperature = log_temperature.detach().exp()
        actions, log_prob = self.actor(params["actor"], batch.observations).rsample_with_log_prob(noise)
        q = self.critic(params["critic"], batch.observations, actions).amin(0)  # [B]
        actor_loss = (temperature * log_prob - q).mean()  # eq. 5
        temperature_loss = -(log_temperature * (log_prob.detach() + self.target_entropy)).mean()  # eq. 6
        return actor_loss + temperature_loss, {"entropy": -log_prob.mean(), "temperature": temperature}

    def policy(self, seed_index: int = 0, *, deterministic: bool = True) -> Policy:
        """The tanh of the Gaussian's mean, or a sample of the squashed Gaussian."""
        actor = self.learner.parameters_of("actor", seed_index)
        return FeedForwardPolicy(self.scaling, lambda o: self.actor(actor, o), deterministic=deterministic)

    def state_dict(self) -> dict[str, Any]:
        return self.learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state)
