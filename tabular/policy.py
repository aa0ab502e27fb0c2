"""Policy tables as policies for `evaluate` and `Actor`."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from herdbook.core.distributions import Categorical
from herdbook.core.types import Carry, Step
from herdbook.tabular.mdp import check_distributions


class TabularPolicy:
    """A policy π(a | s) `[S, A]` over Discrete observations and actions that start at 0.

    It takes the most probable action (the first of several), or samples with `deterministic=False`. Raises ValueError,
    naming the row, for an array that is no policy.
    """

    def __init__(self, policy: ArrayLike, *, deterministic: bool = True) -> None:
        probabilities = np.array(policy, np.float64)
        if probabilities.ndim != 2:
            raise ValueError(f"policy: expected [S, A], got shape {probabilities.shape}")
        check_distributions("policy", probabilities, ("state",))
        self.log_probs = torch.from_numpy(probabilities).log()
        self.deterministic = deterministic

    def initial(self, num_envs: int) -> Carry:
        return None

    def __call__(self, step: Step, carry: Carry, generator: torch.Generator | None = None) -> tuple[Tensor, Carry]:
        distribution, carry = self.distribution(step, carry)
        return distribution.mode() if self.deterministic else distribution.sample(generator), carry

    def distribution(self, step: Step, carry: Carry) -> tuple[Categorical, Carry]:
        return Categorical(self.log_probs.to(step.first.device)[step.observations.long()]), carry
