"""TD3 (Fujimoto et al. 2018, arXiv:1802.09477): DDPG with twin critics, delayed actors and smoothed targets.

y   = r + γ min_i Q̄_i(s′, clip(π̄(s′) + ε)),   ε = clip(σ·N(0, 1), −c, c)        (1)
L_Q = Σ_i mean (Q_i(s, a) − y)²                                                 (2)
L_π = −mean Q_1(s, π(s))                                                        (3)

The exploring policy adds Gaussian noise to actions, or to the actor's parameters (core/parameter_noise.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from herdbook.core.config import COUNT, FRACTION, LIMIT, NOT_NEGATIVE, POSITIVE, UNIT, Config
from herdbook.core.exploration import decayed, exploring_actor, steps_between_updates, updates_after
from herdbook.core.learner import Adam, Learner, Params, Setup
from herdbook.core.needs import Needs
from herdbook.core.networks import Critic, DeterministicActor
from herdbook.core.off_policy import restore_state, whole_state
from herdbook.core.parameter_noise import noise_on_actor
from herdbook.core.spaces import check_action_space
from herdbook.core.types import Metrics, Policy, Replay, Spec, Transitions
from herdbook.core.units import RunningUnits


@dataclass(frozen=True, kw_only=True)
class TD3Config(Config):
    """Settings of TD3; the defaults are those of the authors' code, with the paper's warm-up for its smaller tasks."""

    algorithm: ClassVar[str] = "td3"
    discount: float = 0.99  # γ, discount factor
    tau: float = 0.005  # target networks: θ̄ ← (1 − tau) θ̄ + tau θ with each actor update
    policy_noise: float = 0.2  # σ, standard deviation of the target policy's noise, eq. 1
    noise_clip: float = 0.5  # c, bound of the target policy's noise, eq. 1
    policy_delay: int = 2  # critic updates per update of the actor and the targets
    exploration_noise: float = 0.1  # standard deviation of the exploration noise on actions in [−1, 1]
    parameter_noise: float | None = None  # δ: parameter noise that moves actions by δ replaces action noise; paper: 0.2
    batch_size: int = 256  # transitions per update
    actor_lr: float = 3e-4  # learning rate of the actor
    critic_lr: float = 3e-4  # learning rate of the critics
    hidden_sizes: tuple[int, ...] = (256, 256)  # widths of the hidden layers of all networks
    n_step: int = 1  # n of the n-step return: rewards summed before bootstrapping
    warmup_steps: int = 1_000  # steps of uniform actions before the first update; paper: 10,000 on HalfCheetah and Ant
    updates_per_step: float = 1.0  # updates per environment step
    max_grad_norm: float | None = None  # clip the gradients of actor and critic each to this norm; None: no clipping
    decay_lr: bool = False  # learning rates fall linearly to 0 over decay_steps
    decay_steps: int | None = None  # environment steps until learning rates reach 0; None: all steps of the run
    normalise_observations: bool = False  # standardise vectors by their running mean and std, saved with the policy
    scale_rewards: bool = False  # divide rewards by the running standard deviation of their discounted sum
    replay_steps: int = 1_000_000  # capacity of the replay buffer in environment steps

    def __post_init__(self) -> None:
        self.require(discount=UNIT, tau=FRACTION, actor_lr=POSITIVE, critic_lr=POSITIVE, updates_per_step=POSITIVE)
        self.require(max_grad_norm=POSITIVE, parameter_noise=POSITIVE, n_step=COUNT, policy_delay=COUNT)
        self.require(batch_size=COUNT, hidden_sizes=COUNT, replay_steps=COUNT, decay_steps=COUNT, noise_clip=LIMIT)
        self.require(policy_noise=NOT_NEGATIVE, exploration_noise=NOT_NEGATIVE, warmup_steps=NOT_NEGATIVE)


def critic_loss(q: Tensor, target: Tensor) -> Tensor:
    """Eq. 2. q: Q_i(s, a) [critics, B]; target: y [B] → []."""
    return (q - target).square().mean(-1).sum()


class TD3:
    """TD3. `networks` may replace `actor` ([B, …] → [B, A] in [−1, 1]) and `critic` (→ [critics, B])."""

    needs: ClassVar[Needs] = Needs(environment=True, actions="box", follows=True)

    def __init__(self, config: TD3Config, spec: Spec, **setup: Unpack[Setup]) -> None:
        self.config = c = config
        check_action_space(spec.action_space, self.needs.actions, c.algorithm)
        c.expect_together("decay_lr", "decay_steps")
        self.units = RunningUnits(spec, c, setup.get("device", "cpu"))
        self.scaling, self.follows = self.units.scaling, self.units.follows
        space, size = spec.observation_space, self.scaling.action_size
        adam = partial(Adam, max_grad_norm=c.max_grad_norm)
        self.learner = Learner(
            {
                "actor": lambda: DeterministicActor(space, size, c.hidden_sizes),
                "critic": lambda: Critic(space, size, c.hidden_sizes),
            },
            {"critic": adam(lr=c.critic_lr), "actor": adam(lr=c.actor_lr)},
            targets=("actor", "critic"),
            **setup,
        )
        self.actor, self.critic = self.learner.networks["actor"], self.learner.networks["critic"]
        self.noise = noise_on_actor(self.learner, self.scaling, c.parameter_noise)

    def sample(self, replay: Replay, generators: Sequence[torch.Generator]) -> Transitions:
        c = self.config
        return replay.sample(c.batch_size, generators, discount=c.discount, n_step=c.n_step)

    def update(self, batch: Transitions) -> Metrics:
        batch = self.units(batch)
        return self.update_critic(batch) | self.update_actor(batch)

    def update_critic(self, batch: Transitions) -> Metrics:
        """The first part of an update, from a batch in the units of the networks."""
        self.learner.rate_scale = decayed(self.config, self.learner.updates)
        self.learner.updates += 1
        noise = self.learner.normal(*batch.actions.shape[-2:])
        return self.learner.step("critic", self.critic_objective, batch, noise)

    def update_actor(self, batch: Transitions) -> Metrics:
        """The second part, which moves the targets too; it may have other transitions than the first one."""
        metrics: Metrics = {}
        if self.learner.updates % self.config.policy_delay == 0:
            metrics = self.learner.step("actor", self.actor_objective, batch)
            self.learner.move_targets(self.config.tau)
        if self.noise is not None:
            metrics |= self.noise.adapt(batch.observations)
        return metrics

    def critic_objective(self, params: Params, batch: Transitions, noise: Tensor) -> tuple[Tensor, Metrics]:
        c = self.config
        with torch.no_grad():
            noise = (c.policy_noise * noise).clamp(-c.noise_clip, c.noise_clip)
            next_actions = (self.actor(params.target["actor"], batch.next_observations) + noise).clamp(-1, 1)  # [B, A]
            next_q = self.critic(params.target["critic"], batch.next_observations, next_actions).amin(0)  # [B]
            target = batch.rewards + batch.discounts * next_q  # eq. 1
        q = self.critic(params["critic"], batch.observations, batch.actions)  # [2, B]
        return critic_loss(q, target), {"q": q.mean()}  # eq. 2

    def actor_objective(self, params: Params, batch: Transitions) -> tuple[Tensor, Metrics]:
        actions = self.actor(params["actor"], batch.observations)  # [B, A]
        first = self.critic.first_copy(params["critic"])
        return -self.critic(first, batch.observations, actions)[0].mean(), {}  # eq. 3

    def policy(self, seed_index: int = 0, *, deterministic: bool = True, step: int | None = None) -> Policy:
        """The actor, or the exploring policy at environment step `step`: uniform in the warm-up, then with noise."""
        c, act = self.config, partial(self.actor, self.learner.parameters_of("actor", seed_index))
        if self.noise is not None and not deterministic and (step is None or step >= c.warmup_steps):
            return self.noise.policies[seed_index]
        return exploring_actor(
            self.scaling, act, c.exploration_noise, c.warmup_steps, deterministic=deterministic, step=step
        )

    def round_steps(self, num_envs: int) -> int:
        return steps_between_updates(self.config.updates_per_step, num_envs)

    def updates_due(self, episodes: int, steps: int) -> int:
        return updates_after(steps, self.config.warmup_steps, self.config.updates_per_step)

    def state_dict(self) -> dict[str, Any]:
        return whole_state(self.learner, self.units, self.noise)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        restore_state(state, self.learner, self.units, self.noise)
