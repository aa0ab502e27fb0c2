"""Soft actor-critic (Haarnoja et al. 2018, arXiv:1812.05905), with a learned or a fixed temperature.

    y   = r + γ [min_i Q̄_i(s′, a′) − α log π(a′|s′)],   a′ ~ π(·|s′)        (1)
    L_Q = Σ_i mean (Q_i(s, a) − y)²                                         (2)
    L_π = mean [α log π(a|s) − min_i Q_i(s, a)],   a ~ π(·|s)               (3)
    L_α = −log α · mean [log π(a|s) + H̄],   H̄ = −dim A                      (4)

With n-step returns, the sum of rewards in (1) has an entropy for each state between s and s′, by which the value of its
state is larger: −α γᵏ log π(ã|s_k), ã ~ π(·|s_k), 0 < k < n.

As in the authors' code, (4) has log α in place of the paper's α. With a fixed α, (4) is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from herdbook.core.config import COUNT, FINITE, FRACTION, NOT_NEGATIVE, POSITIVE, UNIT, Config
from herdbook.core.exploration import decayed, steps_between_updates, uniform_box, updates_after
from herdbook.core.learner import Adam, Learner, Params, Setup
from herdbook.core.needs import Needs
from herdbook.core.networks import Critic, Scalar, SquashedGaussianActor
from herdbook.core.off_policy import restore_state, whole_state
from herdbook.core.policy import FeedForwardPolicy
from herdbook.core.spaces import check_action_space
from herdbook.core.types import Metrics, Policy, Replay, Spec, Transitions, Tree, tree_map
from herdbook.core.units import RunningUnits


@dataclass(frozen=True, kw_only=True)
class SACConfig(Config):
    """Settings of SAC; the defaults are the paper's, and its code's for the warm-up."""

    algorithm: ClassVar[str] = "sac"
    discount: float = 0.99  # γ, discount factor
    tau: float = 0.005  # target critics: θ̄ ← (1 − tau) θ̄ + tau θ after each update
    initial_temperature: float = 1.0  # initial value of α, the entropy temperature
    tune_temperature: bool = True  # learn α by eq. 4; else α stays at initial_temperature
    target_entropy: float | None = None  # H̄ of eq. 4, the target entropy; None: −dim A
    batch_size: int = 256  # transitions per update
    actor_lr: float = 3e-4  # learning rate of the actor
    critic_lr: float = 3e-4  # learning rate of the critics
    temperature_lr: float = 3e-4  # learning rate of log α, eq. 4
    hidden_sizes: tuple[int, ...] = (256, 256)  # widths of the hidden layers of all networks
    n_step: int = 1  # n of the n-step return: rewards summed before bootstrapping
    warmup_steps: int = 1_000  # steps of uniform actions before the first update
    updates_per_step: float = 1.0  # updates per environment step
    max_grad_norm: float | None = None  # clip the gradients of actor and critic each to this norm; None: no clipping
    decay_lr: bool = False  # learning rates fall linearly to 0 over decay_steps
    decay_steps: int | None = None  # environment steps until learning rates reach 0; None: all steps of the run
    normalise_observations: bool = False  # standardise vectors by their running mean and std, saved with the policy
    scale_rewards: bool = False  # divide rewards by the running standard deviation of their discounted sum
    replay_steps: int = 1_000_000  # capacity of the replay buffer in environment steps

    def __post_init__(self) -> None:
        self.require(discount=UNIT, tau=FRACTION, actor_lr=POSITIVE, critic_lr=POSITIVE, temperature_lr=POSITIVE)
        self.require(initial_temperature=POSITIVE, updates_per_step=POSITIVE, max_grad_norm=POSITIVE, batch_size=COUNT)
        self.require(hidden_sizes=COUNT, n_step=COUNT, replay_steps=COUNT, decay_steps=COUNT, target_entropy=FINITE)
        self.require(warmup_steps=NOT_NEGATIVE)


def soft_target(rewards: Tensor, discounts: Tensor, q: Tensor, log_prob: Tensor, temperature: Tensor) -> Tensor:
    """Eq. 1. rewards, discounts: [B]; q: Q̄_i(s′, a′) [critics, B]; log_prob: log π(a′|s′) [B] → [B]."""
    return rewards + discounts * (q.amin(0) - temperature * log_prob)


def sampled_entropies(actor: Callable[[Tree], Any], observations: Tree, noise: Tensor) -> Tensor:
    """−log π(ã|s), ã ~ π(·|s). observations: [B, n − 1, …]; noise: N(0, 1), [B, n − 1, A] → [B, n − 1]."""
    policy = actor(tree_map(lambda leaf: leaf.flatten(0, 1), observations))
    log_prob: Tensor = policy.rsample_with_log_prob(noise.flatten(0, 1))[1]
    return -log_prob.view(noise.shape[:-1])


def soft_rewards(rewards: Tensor, discounts: Tensor, entropies: Tensor, temperature: Tensor) -> Tensor:
    """Rewards of n steps and the entropies of the states between: R + α Σ_k γᵏ H(π(·|s_k)), 0 < k < n.

    rewards: R [B]; discounts: γᵏ, 0 from the episode's end on; entropies: both [B, n − 1]; temperature: α [] → [B].
    """
    return rewards + temperature * (discounts * entropies).sum(-1)


def critic_loss(q: Tensor, target: Tensor) -> Tensor:
    """Eq. 2. q: Q_i(s, a) [critics, B]; target: y [B] → []."""
    return (q - target).square().mean(-1).sum()


def actor_loss(q: Tensor, log_prob: Tensor, temperature: Tensor) -> Tensor:
    """Eq. 3. q: Q_i(s, a) [critics, B]; log_prob: log π(a|s) [B]; temperature: α [] → []."""
    return (temperature * log_prob - q.amin(0)).mean()


def temperature_loss(log_temperature: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    """Eq. 4. log_temperature: log α []; log_prob: log π(a|s) [B] → []."""
    return -(log_temperature * (log_prob.detach() + target_entropy)).mean()


class SAC:
    """SAC. `networks` may replace `actor` ([B, …] → SquashedNormal) and `critic` (→ [critics, B])."""

    needs: ClassVar[Needs] = Needs(environment=True, actions="box", follows=True)

    def __init__(self, config: SACConfig, spec: Spec, **setup: Unpack[Setup]) -> None:
        self.config = c = config
        check_action_space(spec.action_space, self.needs.actions, c.algorithm)
        c.expect_together("decay_lr", "decay_steps")
        self.units = RunningUnits(spec, c, setup.get("device", "cpu"))
        self.scaling, self.follows = self.units.scaling, self.units.follows
        space, size = spec.observation_space, self.scaling.action_size
        self.target_entropy = -float(size) if c.target_entropy is None else c.target_entropy
        self.learner = Learner(
            {
                "actor": lambda: SquashedGaussianActor(space, size, c.hidden_sizes),
                "critic": lambda: Critic(space, size, c.hidden_sizes),
                "temperature": lambda: Scalar(math.log(c.initial_temperature)),  # log α
            },
            {
                "critic": Adam(lr=c.critic_lr, max_grad_norm=c.max_grad_norm),
                "actor": Adam(lr=c.actor_lr, max_grad_norm=c.max_grad_norm),
                "temperature": Adam(lr=c.temperature_lr),
            },
            targets=("critic",),
            **setup,
        )
        self.actor, self.critic = self.learner.networks["actor"], self.learner.networks["critic"]
        self.log_temperature = self.learner.networks["temperature"]
        self.actor_optimisers = ("actor", "temperature") if c.tune_temperature else ("actor",)

    def sample(self, replay: Replay, generators: Sequence[torch.Generator]) -> Transitions:
        c = self.config
        return replay.sample(c.batch_size, generators, discount=c.discount, n_step=c.n_step, between=c.n_step > 1)

    def update(self, batch: Transitions) -> Metrics:
        batch = self.units(batch)
        return self.update_critic(batch) | self.update_actor(batch)

    def update_critic(self, batch: Transitions) -> Metrics:
        """The first part of an update, from a batch in the units of the networks."""
        self.learner.rate_scale = decayed(self.config, self.learner.updates)
        self.learner.updates += 1
        size, dims = shape = batch.actions.shape[-2:]  # [B, A]
        between = [] if batch.between is None else [self.learner.normal(size, self.config.n_step - 1, dims)]
        return self.learner.step("critic", self.critic_objective, batch, self.learner.normal(*shape), *between)

    def update_actor(self, batch: Transitions) -> Metrics:
        """The second part, which moves the targets too; it may have other transitions than the first one."""
        noise = self.learner.normal(*batch.actions.shape[-2:])
        metrics = self.learner.step(self.actor_optimisers, self.actor_objective, batch, noise)
        self.learner.move_targets(self.config.tau)
        return metrics

    def critic_objective(
        self, params: Params, batch: Transitions, noise: Tensor, between_noise: Tensor | None = None
    ) -> tuple[Tensor, Metrics]:
        """noise: for a′ [B, A]; between_noise: for the actions at the states between [B, n − 1, A], None if n is 1."""
        with torch.no_grad():
            temperature = self.log_temperature(params["temperature"]).exp()
            policy = self.actor(params["actor"], batch.next_observations)
            next_actions, log_prob = policy.rsample_with_log_prob(noise)  # [B, A], [B]
            next_q = self.critic(params.target["critic"], batch.next_observations, next_actions)  # [2, B]
            rewards = batch.rewards
            if between_noise is not None and batch.between_discounts is not None:
                entropies = sampled_entropies(partial(self.actor, params["actor"]), batch.between, between_noise)
                rewards = soft_rewards(rewards, batch.between_discounts, entropies, temperature)
            target = soft_target(rewards, batch.discounts, next_q, log_prob, temperature)  # eq. 1
        q = self.critic(params["critic"], batch.observations, batch.actions)  # [2, B]
        return critic_loss(q, target), {"q": q.mean()}  # eq. 2

    def actor_objective(self, params: Params, batch: Transitions, noise: Tensor) -> tuple[Tensor, Metrics]:
        log_temperature = self.log_temperature(params["temperature"])
        temperature = log_temperature.detach().exp()
        actions, log_prob = self.actor(params["actor"], batch.observations).rsample_with_log_prob(noise)
        loss = actor_loss(self.critic(params["critic"], batch.observations, actions), log_prob, temperature)  # eq. 3
        metrics = {"entropy": -log_prob.mean(), "temperature": temperature}
        if self.config.tune_temperature:
            loss = loss + temperature_loss(log_temperature, log_prob, self.target_entropy)  # eq. 4
        return loss, metrics

    def policy(self, seed_index: int = 0, *, deterministic: bool = True, step: int | None = None) -> Policy:
        """The tanh of the mean, or a sample of the squashed Gaussian (in the warm-up, at `step`, a uniform action)."""
        actor = self.learner.parameters_of("actor", seed_index)
        if not deterministic and step is not None and step < self.config.warmup_steps:
            size = self.scaling.action_size
            return FeedForwardPolicy(self.scaling, lambda o: uniform_box(o, size), deterministic=False)
        return FeedForwardPolicy(self.scaling, lambda o: self.actor(actor, o), deterministic=deterministic)

    def round_steps(self, num_envs: int) -> int:
        return steps_between_updates(self.config.updates_per_step, num_envs)

    def updates_due(self, episodes: int, steps: int) -> int:
        return updates_after(steps, self.config.warmup_steps, self.config.updates_per_step)

    def state_dict(self) -> dict[str, Any]:
        return whole_state(self.learner, self.units)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        restore_state(state, self.learner, self.units)
