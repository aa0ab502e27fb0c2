"""The random joint policy: for collecting data, as a baseline, and to play beside learners."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from herdbook.core.distributions import Uniform, UniformIntegers
from herdbook.core.joint.types import JointSpec
from herdbook.core.types import Carry, Step


class JointRandomPolicy:
    """Uniform over the legal actions or over a bounded Box. Raises ValueError for an unbounded Box."""

    def __init__(self, spec: JointSpec) -> None:
        for kind in spec.kinds:
            space = kind.action_space
            if isinstance(space, spaces.Box) and not space.is_bounded():
                raise ValueError(f"expected bounded actions of {kind.name} for a random policy, got {space}")
        self.spec = spec

    def initial(self, num_envs: int) -> Carry:
        return None

    def __call__(
        self, step: Step, carry: Carry, generator: torch.Generator | None = None
    ) -> tuple[dict[str, Tensor], Carry]:
        distributions, carry = self.distribution(step, carry)
        return {name: distribution.sample(generator) for name, distribution in distributions.items()}, carry

    def distribution(self, step: Step, carry: Carry) -> tuple[Any, Carry]:
        """A distribution by kind, and the carry."""
        device, masks = step.first.device, step.action_mask or {}
        distributions: dict[str, Uniform | UniformIntegers] = {}
        for kind in self.spec.kinds:
            space, lead = kind.action_space, (len(step.first), len(kind.agents))
            if isinstance(space, spaces.Discrete):
                legal = masks[kind.name] if kind.name in masks else torch.ones(*lead, int(space.n), device=device)
                probs = legal / legal.sum(-1, keepdim=True)
                distributions[kind.name] = UniformIntegers(probs, int(space.start))
            else:
                assert isinstance(space, spaces.Box)
                bounds = (torch.as_tensor(bound, device=device) for bound in (space.low, space.high))
                distributions[kind.name] = Uniform(*(bound.expand(*lead, -1) for bound in bounds))
        return distributions, carry
