"""DQN (Mnih et al. 2015) with its extensions as options.

    y = R + γⁿ Q̄(s′, argmax_a Q̄(s′, a))                                    (1)  Mnih et al. 2015
    y = R + γⁿ Q̄(s′, argmax_a Q(s′, a))                                    (2)  double: van Hasselt et al. 2016
    Q(s, a) = V(s) + A(s, a) − mean_a′ A(s, a′)                            (3)  dueling: Wang et al. 2016
    P(i) = p_i^α / Σ_j p_j^α,   p_i = |δ_i| + 1e-6,   w_i = (N P(i))^−β    (4)  prioritised: Schaul et al. 2016
    L = mean w_i huber(δ_i),   δ_i = Q(s, a) − y                           (5)

R is the sum of n discounted rewards and s′ the observation after them (n-step: Sutton & Barto 2018, 7.1); n is smaller
where the episode ends earlier. The weights of (4) are divided by the largest weight of the batch, and β rises to 1.
The exploring policy is ε-greedy, or it adds noise to the parameters of Q (core/parameter_noise.py).
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
    """Settings of DQN. The defaults suit vector observations; the papers train on Atari."""

    algorithm: ClassVar[str] = "dqn"
    double_q: bool = True  # double Q-learning: the target of eq. 2 instead of eq. 1
    dueling: bool = False  # dueling network, eq. 3
    prioritised: bool = False  # sample the replay by priority (eq. 4) instead of uniformly
    priority_exponent: float = 0.6  # α, exponent of the priorities in eq. 4
    importance_exponent: float = 0.4  # initial value of β, exponent of the importance weights in eq. 4
    importance_updates: int | None = None  # updates over which β of eq. 4 rises to 1; None: all updates of the run
    n_step: int = 1  # n of eq. 1 and 2: rewards summed before bootstrapping
    frame_stack: int = 1  # successive observations that form one input of the networks
    discount: float = 0.99  # γ, discount factor
    batch_size: int = 64  # transitions per update
    lr: float = 1e-3  # learning rate
    max_grad_norm: float | None = 10.0  # clip the gradient to this norm; None: no clipping
    target_period: int = 200  # updates from one move of the target network to the next
    tau: float = 1.0  # target network: θ̄ ← (1 − tau) θ̄ + tau θ, for example 1 (copy), or 0.005 with target_period=1
    hidden_sizes: tuple[int, ...] = (128, 128)  # widths of the hidden layers of Q
    epsilon_start: float = 1.0  # ε of ε-greedy exploration at environment step 0
    epsilon_end: float = 0.05  # ε from environment step epsilon_steps on
    epsilon_steps: int = 10_000  # environment steps over which ε falls linearly to epsilon_end
    parameter_noise: bool = False  # after the warm-up, replace ε-greedy by noise on parameters of equal divergence
    warmup_steps: int = 1_000  # environment steps before the first update
    updates_per_step: float = 0.5  # updates per environment step
    decay_lr: bool = False  # learning rates fall linearly to 0 over decay_steps
    decay_steps: int | None = None  # environment steps until learning rates reach 0; None: all steps of the run
    normalise_observations: bool = False  # standardise vectors by their running mean and std, saved with the policy
    scale_rewards: bool = False  # divide rewards by the running standard deviation of their discounted sum
    replay_steps: int = 100_000  # capacity of the replay buffer in environment steps

    def __post_init__(self) -> None:
        self.require(discount=UNIT, tau=FRACTION, lr=POSITIVE, max_grad_norm=POSITIVE, batch_size=COUNT, n_step=COUNT)
        self.require(priority_exponent=UNIT, importance_exponent=UNIT, importance_updates=COUNT, frame_stack=COUNT)
        self.require(target_period=COUNT, hidden_sizes=COUNT, epsilon_start=UNIT, epsilon_end=UNIT, epsilon_steps=COUNT)
        self.require(warmup_steps=NOT_NEGATIVE, updates_per_step=POSITIVE, replay_steps=COUNT, decay_steps=COUNT)

    def for_run(self, steps: int) -> Self:
        """The config for a run of `steps` environment steps, over which β rises and learning rates decay."""
        c = super().for_run(steps)
        if not self.prioritised or self.importance_updates is not None:
            return c
        return replace(c, importance_updates=max(updates_after(steps, self.warmup_steps, self.updates_per_step), 1))


def td_loss(q: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    """Eq. 5. q: Q(s, a) [B]; target: y [B]; weights: w [B], or None for weights of 1 → []."""
    if weights is None:
        return F.huber_loss(q, target)
    return (weights * F.huber_loss(q, target, reduction="none")).mean()


def q_target(rewards: Tensor, discounts: Tensor, chooser: Tensor | None, target_q: Tensor) -> Tensor:
    """Eq. 2, or eq. 1 without a chooser. chooser: Q(s′, ·) [B, n]; target_q: Q̄(s′, ·) [B, n]; the others [B] → [B]."""
    if chooser is None:
        return rewards + discounts * target_q.amax(-1)
    return rewards + discounts * target_q.gather(-1, chooser.argmax(-1, keepdim=True)).squeeze(-1)


class DuelingHead(nn.Module):
    """Q of eq. 3; V and A have a last hidden layer each and share the layers before. [B, …] → [B, n]."""

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
    """DQN. `networks` may replace `critic`: [B, …] → Q [B, n]."""

    needs: ClassVar[Needs] = Needs(environment=True, actions="discrete", follows=True)

    def __init__(self, config: DQNConfig, spec: Spec, **setup: Unpack[Setup]) -> None:
        self.config = c = config
        check_action_space(spec.action_space, self.needs.actions, c.algorithm)
        c.expect_together("prioritised", "importance_updates")
        c.expect_together("decay_lr", "decay_steps")
        self.units = RunningUnits(spec, c, setup.get("device", "cpu"), frame_stack=c.frame_stack)
        self.scaling, self.follows = self.units.scaling, self.units.follows
        head = DuelingHead if c.dueling else Head
        space, size = self.scaling.observation_space, self.scaling.action_size
        adam = Adam(lr=c.lr, max_grad_norm=c.max_grad_norm)
        networks = {"critic": lambda: head(space, size, c.hidden_sizes)}
        self.learner = Learner(networks, {"critic": adam}, targets=("critic",), **setup)
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
        """δ of the noise on parameters: the divergence of the ε-greedy policy after so many updates."""
        c = self.config
        epsilon = linear_schedule(c.epsilon_start, c.epsilon_end, c.epsilon_steps, steps_before(c, updates))
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
        """Greedy, or exploring as at environment step `step` (None: after the schedule of ε)."""
        c = self.config
        if self.noise is not None and not deterministic and (step is None or step >= c.warmup_steps):
            return self.noise.policies[seed_index]
        critic = self.learner.parameters_of("critic", seed_index)
        epsilon = 0.0 if deterministic else linear_schedule(c.epsilon_start, c.epsilon_end, c.epsilon_steps, step)
        return FeedForwardPolicy(
            self.scaling, lambda o: EpsilonGreedy(self.critic(critic, o), None, epsilon), deterministic=deterministic
        )

    def round_steps(self, num_envs: int) -> int:
        return steps_between_updates(self.config.updates_per_step, num_envs)

    def updates_due(self, episodes: int, steps: int) -> int:
        return updates_after(steps, self.config.warmup_steps, self.config.updates_per_step)

    def state_dict(self) -> dict[str, Any]:
        return whole_state(self.learner, self.units, self.noise)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        restore_state(state, self.learner, self.units, self.noise)
