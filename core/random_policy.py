"""The uniformly random policy, for data collection and as a baseline."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import Space, spaces
from torch import Tensor

from herdbook.core.distributions import Uniform, UniformIntegers
from herdbook.core.spaces import flat_action_space
from herdbook.core.types import Carry, Step


class RandomPolicy:
    """Uniform actions in a bounded Box or a Discrete space. Raises ValueError for other spaces."""

    def __init__(self, action_space: Space[Any]) -> None:
        self.action_space = flat_action_space(action_space)
        if isinstance(self.action_space, spaces.Box) and not self.action_space.is_bounded():
            raise ValueError(f"expected bounded actions for a random policy, got {action_space}")

    def initial(self, num_envs: int) -> Carry:
        return None

    def __call__(self, step: Step, carry: Carry, generator: torch.Generator | None = None) -> tuple[Tensor, Carry]:
        distribution, carry = self.distribution(step, carry)
        return distribution.sample(generator), carry

    def distribution(self, step: Step, carry: Carry) -> tuple[Uniform | UniformIntegers, Carry]:
        count, device, space = len(step.first), step.first.device, self.action_space
        if isinstance(space, spaces.Discrete):
            n = int(space.n)
            return UniformIntegers(torch.full((count, n), 1 / n, device=device), int(space.start)), carry
        assert isinstance(space, spaces.Box)
        low, high = (torch.as_tensor(bound, device=device).expand(count, -1) for bound in (space.low, space.high))
        return Uniform(low, high), carry
