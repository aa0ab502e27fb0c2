"""Policy tables as policies for `evaluate` and `Actor`."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from gymnasium import Space, spaces
from numpy.typing import ArrayLike
from torch import Tensor

from herdbook.core.distributions import Categorical
from herdbook.core.policy import ScaledDistribution, Scaling
from herdbook.core.types import Carry, Spec, Step
from herdbook.tabular.mdp import check_distributions


class TabularPolicy:
    """A policy π(a | s) `[S, A]`, or one per step π_t(a | s) `[T, S, A]`, over Discrete observations and actions.

    States and actions are numbered from 0. In spaces that start at other numbers, `evaluate`, `Actor` and fitted Q
    evaluation use it `in_spaces`. It takes the most probable action (the first of several), or samples with
    `deterministic=False`. With one policy per step, the carry counts the steps, and the last policy is kept after
    step T; fitted Q evaluation, which sees single states, refuses it. Raises ValueError, naming the row, for an array
    that is no policy.
    """

    def __init__(self, policy: ArrayLike, *, deterministic: bool = True) -> None:
        probabilities = np.array(policy, np.float64)
        if probabilities.ndim not in (2, 3) or 0 in probabilities.shape:
            raise ValueError(f"policy: expected [S, A] or [T, S, A], got shape {probabilities.shape}")
        check_distributions("policy", probabilities, ("step", "state")[-(probabilities.ndim - 1) :])
        self.log_probs = torch.from_numpy(probabilities).log()
        self.deterministic = deterministic
        self.first_state, self.scaling = 0, Scaling(Spec(spaces.Discrete(1), spaces.Discrete(probabilities.shape[-1])))

    def in_spaces(self, observation_space: Space[Any], action_space: Space[Any]) -> TabularPolicy:
        """The policy whose first state and action are the first of the spaces.

        Raises ValueError unless the spaces are Discrete and of the table's size.
        """
        states, actions = observation_space, action_space
        if not isinstance(states, spaces.Discrete) or not isinstance(actions, spaces.Discrete):
            raise ValueError(f"policy: expected Discrete observations and actions for a table, got {states}, {actions}")
        if self.log_probs.shape[-2:] != (states.n, actions.n):
            size = list(self.log_probs.shape[-2:])
            raise ValueError(f"policy: expected spaces for a table {size}, got {states.n} states, {actions.n} actions")
        policy = copy.copy(self)
        policy.first_state, policy.scaling = int(states.start), Scaling(Spec(states, actions))
        return policy

    def initial(self, num_envs: int) -> Carry:
        return None if self.log_probs.dim() == 2 else torch.zeros(num_envs, dtype=torch.int64)

    def __call__(self, step: Step, carry: Carry, generator: torch.Generator | None = None) -> tuple[Tensor, Carry]:
        distribution, carry = self.distribution(step, carry)
        return distribution.mode() if self.deterministic else distribution.sample(generator), carry

    def distribution(self, step: Step, carry: Carry) -> tuple[ScaledDistribution, Carry]:
        states, table = step.observations.long() - self.first_state, self.log_probs.to(step.first.device)
        if carry is None:
            logits = table[states]
        else:
            now = torch.where(step.reset, 0, carry.to(step.reset.device))
            logits, carry = table[now.clamp(max=len(table) - 1), states], now + 1
        return ScaledDistribution(Categorical(logits), self.scaling), carry
