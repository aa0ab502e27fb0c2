"""DQN (Mnih et al. 2015) and what was added to it, each an option.

    y = R + γⁿ Q̄(s′, argmax_a Q̄(s′, a))                                    (1)  Mnih et al. 2015
    y = R + γⁿ Q̄(s′, argmax_a Q(s′, a))                                    (2)  double: van Hasselt et al. 2016
    Q(s, a) = V(s) + A(s, a) − mean_a′ A(s, a′)                            (3)  dueling: Wang et al. 2016
    P(i) = p_i^α / Σ_j p_j^α,   p_i = |δ_i| + 1e-6,   w_i = (N P(i))^−β    (4)  prioritised: Schaul et al. 2016
    L = mean w_i huber(δ_i),   δ_i = Q(s, a) − y                           (5)

R is the sum of n discounted rewards, s′ the observation after them (n-step: Sutton & Barto 2018, 7.1); an episode that
ends before shortens it. The weights of (4) are divided by the largest in the batch, and β grows to 1.
It explores ε-greedily, or by noise on the parameters of Q (core/parameter_noise.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, Unpack

import torch
import torch.nn.functional as F
from gymnasium import Space
from torch import Tensor, nn

from herdbook.core.config import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, UNIT, Config
from herdbook.core.distributions import EpsilonGreedy
from herdbook.core.exploration import decayed, linear_schedule, steps_before, steps_between_updates, updates_after
from herdbook.core.learner import Adam, Learner, Params, Setup
from herdbook.core.needs import Needs
from herdbook.core.networks import MLP, Encoder, Head
from herdbook.core.off_policy import restore_state, whole_state
from herdbook.core.parameter_noise import greedy_divergence, noise_on_values
from herdbook.core.policy import FeedForwardPolicy
from herdbook.core.spaces import check_action_space
from herdbook.core.types import Metrics, Policy, Spec, Transitions, Tree
from herdbook.core.units import RunningUnits


@dataclass(frozen=True, kw_only=True)
class DQNConfig(Config):
    """Settings of DQN; the defaults are ours for vectors, the papers train on Atari."""

    algorithm: ClassVar[str] = "dqn"
    double_q: bool = True  # eq. 2, else eq. 1
    dueling: bool = False  # eq. 3
    prioritised: bool = False  # eq. 4, else uniform
    priority_exponent: float = 0.6  # α, eq. 4
    importance_exponent: float = 0.4  # β at the start, eq. 4
    importance_updates: int | None = None  # updates over which β grows to 1; by default those of the whole run
    n_step: int = 1
    frame_stack: int = 1  # observations that the networks see at once
    discount: float = 0.99  # γ
    batch_size: int = 64
    lr: float = 1e-3
    max_grad_norm: float | None = 10.0  # None: gradients are not clipped
    target_period: int = 200  # updates between moves of the target network …
    tau: float = 1.0  # … by this much: 1 copies it; soft targets are target_period=1, tau=0.005
    hidden_sizes: tuple[int, ...] = (128, 128)
    epsilon_start: float = 1.0  # ε of exploration at environment step 0 …
    epsilon_end: float = 0.05  # … and after
    epsilon_steps: int = 10_000  # environment steps of linear decay between the two
    parameter_noise: bool = False  # instead of ε after the warm-up: noise on parameters that changes as much as ε would
    warmup_steps: int = 1_000  # before the first update
    updates_per_step: float = 0.5  # of the environment
    decay_lr: bool = False  # linearly to 0 …
    decay_steps: int | None = None  # … over so many environment steps; by default those of the run
    normalise_observations: bool = False  # by their running mean and deviation, which are saved with the policy
    scale_rewards: bool = False  # by the running deviation of their discounted sum
    replay_steps: int = 100_000

    def __post_init__(self) -> None:
        self.require(discount=UNIT, tau=FRACTION, lr=POSITIVE, max_grad_norm=POSITIVE, batch_size=COUNT)
        self.require(priority_exponent=UNIT, importance_exponent=UNIT, importance_updates=COUNT)
        self.require(
            n_step=COUNT,
            frame_stack=COUNT,
            target_period=COUNT,
            hidden_sizes=COUNT,
            epsilon_start=UNIT,
            epsilon_end=UNIT,
        )
        self.require(epsilon_steps=COUNT, warmup_steps=NOT_NEGATIVE, updates_per_step=POSITIVE, replay_steps=COUNT)
        self.require(decay_steps=COUNT)

    def for_run(self, steps: int) -> Self:
        """The config of a run of so many environment steps: β grows and rates decay over all of it."""
        c = super().for_run(steps)
        if not self.prioritised or self.importance_updates is not None:
            return c
        return replace(c, importance_updates=max(updates_after(steps, self.warmup_steps, self.updates_per_step), 1))


def td_loss(q: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    """Eq. 5. q: Q(s, a) [B]; target: y [B]; weights: [B], None for 1 → []."""
    if weights is None:
        return F.huber_loss(q, target)
    return (weights * F.huber_loss(q, target, reduction="none")).mean()


def q_target(rewards: Tensor, discounts: Tensor, chooser: Tensor | None, target_q: Tensor) -> Tensor:
    """Eq. 2: the best action of `chooser`, valued by the target network. [B], [B], [B, n], [B, n] → [B].

    Eq. 1, the target network's best value, where `chooser` is None.
    """
    if chooser is None:
        return rewards + discounts * target_q.amax(-1)
    return rewards + discounts * target_q.gather(-1, chooser.argmax(-1, keepdim=True)).squeeze(-1)


class DuelingHead(nn.Module):
    """Eq. 3, with a hidden stream for each part: [B, …] → [B, n]."""

    def __init__(self, space: Space[Any], actions: int, hidden_sizes: Sequence[int]) -> None:
        super().__init__()
        *shared, last = hidden_sizes
        self.encoder = Encoder(space)
        self.shared = MLP(self.encoder.size, shared[-1], shared[:-1]) if shared else None
        size = shared[-1] if shared else self.encoder.size
        self.value, self.advantage = MLP(size, 1, (last,)), MLP(size, actions, (last,))

    def forward(self, observations: Tree) -> Tensor:
        features = self.encoder(observations)
        features = features if self.shared is None else self.shared(features).relu()
        advantages = self.advantage(features)
        q: Tensor = self.value(features) + advantages - advantages.mean(-1, keepdim=True)
        return q


class DQN:
    """`networks` may replace `critic`: [B, …] → Q [B, n]."""

    needs: ClassVar[Needs] = Needs(environment=True, actions="discrete", follows=True)

    def __init__(self, config: DQNConfig, spec: Spec, **setup: Unpack[Setup]) -> None:
        self.config = c = config
        check_action_space(spec.action_space, self.needs.actions, c.algorithm)
        c.expect_together("prioritised", "importance_updates")
        c.expect_together("decay_lr", "decay_steps")
        self.units = RunningUnits(spec, c, setup.get("device", "cpu"), frame_stack=c.frame_stack)
        self.scaling, self.follows = self.units.scaling, self.units.follows
        head = DuelingHead if c.dueling else Head
        self.learner = Learner(
            {"critic": lambda: head(self.scaling.observation_space, self.scaling.action_size, c.hidden_sizes)},
            {"critic": Adam(lr=c.lr, max_grad_norm=c.max_grad_norm)},
            targets=("critic",),
            **setup,
        )
        self.critic = self.learner.networks["critic"]
        noisy = c.parameter_noise
        self.noise = noise_on_values(self.learner, self.scaling, self.divergence_after) if noisy else None

    def sample(self, replay: Any, generators: Sequence[torch.Generator]) -> Transitions:
        c = self.config
        options: dict[str, Any] = {"discount": c.discount, "n_step": c.n_step, "frame_stack": c.frame_stack}
        if c.prioritised:
            options["importance_exponent"] = linear_schedule(
                c.importance_exponent, 1.0, c.importance_updates or 1, self.learner.updates
            )
        batch: Transitions = replay.sample(c.batch_size, generators, **options)
        return batch

    def update(self, batch: Transitions) -> Metrics:
        batch = self.units(batch)
        self.learner.rate_scale = decayed(self.config, self.learner.updates)
        self.learner.updates += 1
        metrics = self.learner.step("critic", self.objective, batch)
        if self.learner.updates % self.config.target_period == 0:
            self.learner.move_targets(self.config.tau)
        if self.noise is not None:
            metrics |= self.noise.adapt(batch.observations)
        return metrics

    def divergence_after(self, updates: int) -> float:
        """How far noise on parameters is to move the policy: as far as the ε of so many updates would."""
        c = self.config
        step = steps_before(c, updates)
        epsilon = linear_schedule(c.epsilon_start, c.epsilon_end, c.epsilon_steps, step)
        return greedy_divergence(epsilon, self.scaling.action_size)

    def objective(self, params: Params, batch: Transitions) -> tuple[Tensor, Metrics]:
        all_q = self.critic(params["critic"], batch.observations)  # [B, n]
        q = all_q.gather(-1, batch.actions.unsqueeze(-1)).squeeze(-1)  # [B]
        with torch.no_grad():
            target_q = self.critic(params.target["critic"], batch.next_observations)  # [B, n]
            chooser = self.critic(params["critic"], batch.next_observations) if self.config.double_q else None
            target = q_target(batch.rewards, batch.discounts, chooser, target_q)  # eq. 1, 2
        metrics = {"q": all_q.mean()}
        if self.config.prioritised:
            metrics["priorities"] = (q - target).abs() + 1e-6  # eq. 4
        return td_loss(q, target, batch.weights), metrics  # eq. 5

    def policy(self, seed_index: int = 0, *, deterministic: bool = True, step: int | None = None) -> Policy:
        """Greedy, or ε-greedy as at environment step `step` (None: after the schedule), or greedy under its noise."""
        c = self.config
        if self.noise is not None and not deterministic and (step is None or step >= c.warmup_steps):
            return self.noise.policies[seed_index]
        critic = self.learner.parameters_of("critic", seed_index)
        epsilon = 0.0 if deterministic else linear_schedule(c.epsilon_start, c.epsilon_end, c.epsilon_steps, step)
        return FeedForwardPolicy(
            self.scaling, lambda o: EpsilonGreedy(self.critic(critic, o), None, epsilon), deterministic=deterministic
        )

    def round_steps(self, num_envs: int) -> int:
        """How many steps each environment takes between updates."""
        return steps_between_updates(self.config.updates_per_step, num_envs)

    def updates_due(self, episodes: int, steps: int) -> int:
        """How many updates should have been made after so many environment steps."""
        return updates_after(steps, self.config.warmup_steps, self.config.updates_per_step)

    def state_dict(self) -> dict[str, Any]:
        return whole_state(self.learner, self.units, self.noise)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        restore_state(state, self.learner, self.units, self.noise)
