"""Scripted controllers with random actions, and the distribution of their actions in a Box."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from gymnasium import spaces
from torch import Tensor

from herdbook.core.types import Carry, Distribution, Step


@dataclass(frozen=True, kw_only=True)
class Controller(ABC):
    """A scripted policy without a carry. Raises ValueError for a `random_fraction` outside [0, 1]."""

    random_fraction: float = 0.0
    """Probability with which an action is uniformly random instead."""

    def __post_init__(self) -> None:
        if not 0 <= self.random_fraction <= 1:
            raise ValueError(f"expected random_fraction in [0, 1], got {self.random_fraction}")

    def initial(self, num_envs: int) -> Carry:
        return None

    def __call__(self, step: Step, carry: Carry, generator: torch.Generator | None = None) -> tuple[Tensor, Carry]:
        distribution, carry = self.distribution(step, carry)
        return distribution.sample(generator), carry

    @abstractmethod
    def distribution(self, step: Step, carry: Carry) -> tuple[Distribution, Carry]:
        """The distribution of the actions, one per environment."""


@dataclass(frozen=True, slots=True)
class NoisyControl:
    """The distribution of a scripted controller's actions in a Box.

    Uniform over the box with probability `random_fraction`, else a Gaussian around the controller's action, truncated
    to the box; with `std` 0, that is the controller's action itself. `control`, `low`, `high`: [B, A].
    """

    control: Tensor
    low: Tensor
    high: Tensor
    std: float
    random_fraction: float

    @classmethod
    def within(cls, space: spaces.Box, control: Tensor, std: float, random_fraction: float) -> NoisyControl:
        """The distribution around `control` [B, A], clipped to the space."""
        low, high = (torch.as_tensor(bound).to(control).expand_as(control) for bound in (space.low, space.high))
        return cls(torch.clamp(control, low, high), low, high, std, random_fraction)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """[B, A]"""
        u, v = torch.rand((2, *self.control.shape), generator=generator).to(self.control)
        noisy = self.control
        if self.std > 0:
            below, above = self._tails()
            inside = torch.special.ndtri((below + u.double() * (above - below)).clamp(1e-12, 1 - 1e-12))
            noisy = torch.clamp(self.control + self.std * inside.to(self.control), self.low, self.high)
        random = torch.rand(self.control.shape[:-1], generator=generator).to(self.control) < self.random_fraction
        return torch.where(random.unsqueeze(-1), self.low + v * (self.high - self.low), noisy)

    def mode(self) -> Tensor:
        """The controller's action without noise [B, A]."""
        return self.control

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-density of the mixture at actions [B, A] within the box. [B] Raises ValueError for a `std` of 0."""
        if self.std == 0:
            raise ValueError("expected std > 0 for a density, got 0")
        below, above = self._tails()
        z = (actions - self.control).double() / self.std
        gaussian = -0.5 * (z.square() + math.log(2 * math.pi)) - math.log(self.std) - (above - below).log()
        uniform = -(self.high - self.low).double().log()
        weights = torch.tensor([1 - self.random_fraction, self.random_fraction], dtype=torch.float64).log()
        densities = torch.stack([gaussian.sum(-1), uniform.sum(-1)], dim=-1) + weights.to(actions.device)
        return densities.logsumexp(-1).to(actions.dtype)

    def _tails(self) -> tuple[Tensor, Tensor]:
        """Φ at both bounds, in float64; a control at one bound has half of the mass inside."""
        below = torch.special.ndtr((self.low - self.control).double() / self.std)
        above = torch.special.ndtr((self.high - self.control).double() / self.std)
        return below, above
