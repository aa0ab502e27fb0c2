"""Soft actor-critic for discrete actions (Christodoulou 2019, arXiv:1910.07207), with exact expectations.

V̄(s) = Σ_a π(a|s) [min_i Q̄_i(s, a) − α log π(a|s)]                     (1)
L_Q  = Σ_i mean (Q_i(s, a) − y)²,   y = r + γ V̄(s′)                     (2)
L_π  = mean Σ_a π(a|s) [α log π(a|s) − min_i Q_i(s, a)]                 (3)
L_α  = log α · mean [H(π(·|s)) − H̄],   H̄ = h log |A|                    (4)

With n-step returns, r of (2) is the sum of n rewards and of α γᵏ H(π(·|s_k)) for the states between, 0 < k < n.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from herdbook.core.config import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, UNIT, Config
from herdbook.core.distributions import Categorical
from herdbook.core.exploration import decayed, steps_between_updates, updates_after
from herdbook.core.learner import Adam, Learner, Params, Setup
from herdbook.core.needs import Needs
from herdbook.core.networks import Head, Scalar
from herdbook.core.off_policy import restore_state, whole_state
from herdbook.core.policy import FeedForwardPolicy
from herdbook.core.spaces import check_action_space
from herdbook.core.types import Metrics, Policy, Replay, Spec, Transitions, tree_map
from herdbook.core.units import RunningUnits
from herdbook.online.sac import soft_rewards


@dataclass(frozen=True, kw_only=True)
class DiscreteSACConfig(Config):
    """Settings of discrete SAC. The defaults suit vector observations; the paper's are for Atari."""

    algorithm: ClassVar[str] = "discrete_sac"
    discount: float = 0.99  # γ, discount factor
    tau: float = 0.005  # target critics: θ̄ ← (1 − tau) θ̄ + tau θ after each update
    initial_temperature: float = 1.0  # initial value of α, the entropy temperature
    tune_temperature: bool = True  # learn α by eq. 4; else α stays at initial_temperature
    entropy_share: float = 0.3  # h of eq. 4: target entropy relative to that of the uniform policy; the paper: 0.98
    batch_size: int = 64  # transitions per update
    actor_lr: float = 1e-3  # learning rate of the actor
    critic_lr: float = 1e-3  # learning rate of the critics
    temperature_lr: float = 1e-3  # learning rate of log α, eq. 4
    hidden_sizes: tuple[int, ...] = (128, 128)  # widths of the hidden layers of all networks
    n_step: int = 1  # n of the n-step return: rewards summed before bootstrapping
    frame_stack: int = 1  # successive observations that form one input of the networks
    warmup_steps: int = 1_000  # environment steps before the first update
    updates_per_step: float = 0.5  # updates per environment step
    max_grad_norm: float | None = None  # clip the gradients of actor and critic each to this norm; None: no clipping
    decay_lr: bool = False  # learning rates fall linearly to 0 over decay_steps
    decay_steps: int | None = None  # environment steps until learning rates reach 0; None: all steps of the run
    normalise_observations: bool = False  # standardise vectors by their running mean and std, saved with the policy
    scale_rewards: bool = False  # divide rewards by the running standard deviation of their discounted sum
    replay_steps: int = 100_000  # capacity of the replay buffer in environment steps

    def __post_init__(self) -> None:
        self.require(discount=UNIT, entropy_share=UNIT, tau=FRACTION, actor_lr=POSITIVE, critic_lr=POSITIVE)
        self.require(temperature_lr=POSITIVE, initial_temperature=POSITIVE, updates_per_step=POSITIVE)
        self.require(max_grad_norm=POSITIVE, batch_size=COUNT, hidden_sizes=COUNT, n_step=COUNT, frame_stack=COUNT)
        self.require(replay_steps=COUNT, decay_steps=COUNT, warmup_steps=NOT_NEGATIVE)


def soft_value(q: Tensor, log_probs: Tensor, temperature: Tensor) -> Tensor:
    """Eq. 1. q: Q_i(s, ·) [critics, B, n]; log_probs: log π(·|s) [B, n]; temperature: α [] → [B]."""
    return (log_probs.exp() * (q.amin(0) - temperature * possible(log_probs))).sum(-1)


def entropy(log_probs: Tensor) -> Tensor:
    """H(π(·|s)) of eq. 4. log_probs: log π(·|s) [B, n] → [B]."""
    return -(log_probs.exp() * possible(log_probs)).sum(-1)


def possible(log_probs: Tensor) -> Tensor:
    """log π with −∞ replaced by 0, so that a forbidden action adds 0 to an expectation, and not 0 · ∞ = NaN."""
    return log_probs.masked_fill(log_probs == -torch.inf, 0.0)


def critic_loss(q: Tensor, target: Tensor) -> Tensor:
    """Eq. 2. q: Q_i(s, a) [critics, B]; target: y [B] → []."""
    return (q - target).square().mean(-1).sum()


def temperature_loss(log_temperature: Tensor, entropy: Tensor, target_entropy: float) -> Tensor:
    """Eq. 4. log_temperature: log α []; entropy: H(π(·|s)) [B] → []."""
    return (log_temperature * (entropy.detach() - target_entropy)).mean()


class DiscreteSAC:
    """Discrete SAC. `networks` may replace `actor` ([B, …] → logits [B, n]) and `critic` ([B, …] → [critics, B, n]).

    An actor forbids an action by a logit of −∞.
    """

    needs: ClassVar[Needs] = Needs(environment=True, actions="discrete", follows=True)

    def __init__(self, config: DiscreteSACConfig, spec: Spec, **setup: Unpack[Setup]) -> None:
        self.config = c = config
        check_action_space(spec.action_space, self.needs.actions, c.algorithm)
        c.expect_together("decay_lr", "decay_steps")
        self.units = RunningUnits(spec, c, setup.get("device", "cpu"), frame_stack=c.frame_stack)
        self.scaling, self.follows = self.units.scaling, self.units.follows
        space, size = self.scaling.observation_space, self.scaling.action_size
        self.target_entropy = c.entropy_share * math.log(size)
        self.learner = Learner(
            {
                "actor": lambda: Head(space, size, c.hidden_sizes),
                "critic": lambda: Head(space, size, c.hidden_sizes, copies=2),
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
        window: dict[str, Any] = {"n_step": c.n_step, "frame_stack": c.frame_stack, "between": c.n_step > 1}
        return replay.sample(c.batch_size, generators, discount=c.discount, **window)

    def update(self, batch: Transitions) -> Metrics:
        batch = self.units(batch)
        self.learner.rate_scale = decayed(self.config, self.learner.updates)
        self.learner.updates += 1
        metrics = self.learner.step("critic", self.critic_objective, batch)
        metrics |= self.learner.step(self.actor_optimisers, self.actor_objective, batch)
        self.learner.move_targets(self.config.tau)
        return metrics

    def critic_objective(self, params: Params, batch: Transitions) -> tuple[Tensor, Metrics]:
        with torch.no_grad():
            temperature = self.log_temperature(params["temperature"]).exp()
            next_log_probs = self.actor(params["actor"], batch.next_observations).log_softmax(-1)  # [B, n]
            next_q = self.critic(params.target["critic"], batch.next_observations)  # [2, B, n]
            rewards = batch.rewards
            if batch.between is not None and batch.between_discounts is not None:
                inside = self.actor(params["actor"], tree_map(lambda leaf: leaf.flatten(0, 1), batch.between))
                entropies = entropy(inside.log_softmax(-1)).view_as(batch.between_discounts)
                rewards = soft_rewards(rewards, batch.between_discounts, entropies, temperature)
            target = rewards + batch.discounts * soft_value(next_q, next_log_probs, temperature)  # eq. 1, 2
        q = self.critic(params["critic"], batch.observations)  # [2, B, n]
        chosen = q.gather(-1, batch.actions[None, :, None].expand(len(q), -1, 1)).squeeze(-1)  # [2, B]
        return critic_loss(chosen, target), {"q": chosen.mean()}  # eq. 2

    def actor_objective(self, params: Params, batch: Transitions) -> tuple[Tensor, Metrics]:
        log_temperature = self.log_temperature(params["temperature"])
        temperature = log_temperature.detach().exp()
        log_probs = self.actor(params["actor"], batch.observations).log_softmax(-1)  # [B, n]
        q = self.critic(params["critic"], batch.observations)  # [2, B, n]
        loss = -soft_value(q, log_probs, temperature).mean()  # eq. 3
        spread = entropy(log_probs)  # [B]
        if self.config.tune_temperature:
            loss = loss + temperature_loss(log_temperature, spread, self.target_entropy)  # eq. 4
        return loss, {"entropy": spread.mean(), "temperature": temperature}

    def policy(self, seed_index: int = 0, *, deterministic: bool = True, step: int | None = None) -> Policy:
        """The most probable action, or a sample of π; `step` has no effect."""
        actor = self.learner.parameters_of("actor", seed_index)
        return FeedForwardPolicy(self.scaling, lambda o: Categorical(self.actor(actor, o)), deterministic=deterministic)

    def round_steps(self, num_envs: int) -> int:
        return steps_between_updates(self.config.updates_per_step, num_envs)

    def updates_due(self, episodes: int, steps: int) -> int:
        return updates_after(steps, self.config.warmup_steps, self.config.updates_per_step)

    def state_dict(self) -> dict[str, Any]:
        return whole_state(self.learner, self.units)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        restore_state(state, self.learner, self.units)
