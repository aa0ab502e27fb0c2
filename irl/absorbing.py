"""Absorbing states (Kostrikov et al. 2019, arXiv:1809.02925, section 4.2): an episode that terminates goes on for ever.

    s → (s, 0),   s_abs = (0, 1)                                      (1)  states have an indicator of the absorbing one
    (s_T, a_T) → s_abs,   (s_abs, 0) → s_abs                          (2)  after termination, and from then on
    Q(s_T, a_T) = r(s_T, a_T) + γ Q(s_abs, 0),   Q(s_abs, 0) = r(s_abs, 0) / (1 − γ)                  (3)  values
    p = E / (N + E) = t / (1 + t),   t = E / N                        (4)  share of absorbing rows

The reward of the absorbing state is learned, as every other one, so that an early end is neither an advantage nor a
disadvantage by construction. No action is possible there: it is 0 in the units of the networks.

The authors' code stores one transition s_abs → s_abs for each episode that terminates. Of N steps with E terminations,
E / (N + E) of the transitions are therefore absorbing, eq. 4. It subsamples demonstrations by a rate k, but never their
absorbing transitions, and compensates for it by a weight of 1/k in the loss: N/k steps of weight 1 are mixed with E of
weight 1/k. Here nothing is stored. A row of a batch is replaced by an absorbing one with the probability p, in which N
and E count the full episodes, also where the demonstrations are subsampled. In expectation the two losses are
proportional, N L_steps + E L_absorbing, and the factor between them, (N + E) / (N + kE), is that of the authors' mean
over a batch whose weights are not all 1. A mean over rows of weight 1 keeps the mix of experts and policy at one half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor, nn

from herdbook.core.distributions import SquashedNormal
from herdbook.core.networks import Critic, Ensemble
from herdbook.core.types import Carry, Distribution, Policy, Step, Transitions, Tree


class Rows(NamedTuple):
    """Transitions of the environment `[B, …]`, and which of them are to be replaced by absorbing ones, `[B]` bool."""

    transitions: Transitions
    absorbing: Tensor


def extended_space(space: Space[Any], algorithm: str) -> spaces.Box:
    """The space of (s, 0) and s_abs, eq. 1. Raises ValueError unless observations are vectors."""
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise ValueError(f"{algorithm}: expected vector observations, to append an indicator to them, got {space}")
    low, high = (np.append(bound, last).astype(np.float32) for bound, last in ((space.low, 0), (space.high, 1)))
    return spaces.Box(low, high)


def absorbing_share(terminated_share: float) -> float:
    """p of eq. 4. terminated_share: t, the share of the steps that terminate their episode."""
    return terminated_share / (1 + terminated_share)


def absorbing_rows(count: int, share: float, generator: torch.Generator, device: torch.device) -> Tensor:
    """A mask of the absorbing rows of a batch, each drawn with the probability `share`. [count] bool"""
    return (torch.rand(count, generator=generator, device=generator.device) < share).to(device)


def with_indicator(observations: Tensor, absorbing: Tensor) -> Tensor:
    """Eq. 1: (s, 0), or s_abs where `absorbing`. [*B, D], [*B] bool → [*B, D + 1]"""
    seen = torch.where(absorbing.unsqueeze(-1), 0.0, observations.float())
    return torch.cat([seen, absorbing.unsqueeze(-1).float()], -1)


def extended(batch: Transitions, absorbing: Tensor, discount: float) -> Transitions:
    """Eq. 2: transitions [*B] of the environment, in the units of the networks, in the MDP without terminations.

    Rows where `absorbing` [*B] become s_abs → s_abs. The discount is γ everywhere. A batch in which it is 0 at γ > 0
    has terminated, and leads to s_abs; one that was truncated leads to its next state.
    """
    over = absorbing | (batch.discounts == 0)
    return replace(
        batch,
        observations=with_indicator(batch.observations, absorbing),
        actions=torch.where(absorbing.unsqueeze(-1), 0.0, batch.actions),
        discounts=torch.full_like(batch.discounts, discount),
        next_observations=with_indicator(batch.next_observations, over),
    )


# --- networks and policies of the extended MDP ------------------------------------------------------------------------


class AbsorbingCritic(nn.Module):
    """A critic that sees the action 0 in the absorbing state, whatever is chosen there, as eq. 3 has it."""

    def __init__(self, critic: nn.Module) -> None:
        super().__init__()
        self.critic = critic
        stacked: Sequence[str] = critic.stacked_prefixes if isinstance(critic, (Critic, Ensemble)) else ()
        self.stacked_prefixes = tuple(f"critic.{prefix}" for prefix in stacked)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        return self.critic(observations, actions * (1 - observations[..., -1:]))  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class AbsorbingDistribution:
    """A distribution over actions whose samples have the log-probability 0 in the absorbing state.

    The only action there has no entropy, whose bonus would be paid for ever.
    """

    base: SquashedNormal
    acting: Tensor  # 0 in the absorbing state, else 1; [*B]

    def rsample_with_log_prob(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        actions, log_prob = self.base.rsample_with_log_prob(noise)
        return actions, log_prob * self.acting

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.base.sample(generator)

    def mode(self) -> Tensor:
        return self.base.mode()

    def log_prob(self, actions: Tensor) -> Tensor:
        return self.base.log_prob(actions) * self.acting


class AbsorbingActor(nn.Module):
    """A stochastic actor without an entropy in the absorbing state."""

    def __init__(self, actor: nn.Module) -> None:
        super().__init__()
        self.actor = actor

    def forward(self, observations: Tensor) -> AbsorbingDistribution:
        return AbsorbingDistribution(self.actor(observations), 1 - observations[..., -1])


class IndicatorPolicy:
    """A policy of the extended MDP as one of the environment, whose states are never absorbing."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def initial(self, num_envs: int) -> Carry:
        return self.policy.initial(num_envs)

    def __call__(self, step: Step, carry: Carry, generator: torch.Generator | None = None) -> tuple[Tree, Carry]:
        return self.policy(_with_zeros(step), carry, generator)

    def distribution(self, step: Step, carry: Carry) -> tuple[Distribution, Carry]:
        return self.policy.distribution(_with_zeros(step), carry)


def _with_zeros(step: Step) -> Step:
    return replace(step, observations=with_indicator(step.observations, torch.zeros_like(step.first)))
