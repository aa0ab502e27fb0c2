"""Reward functions in a finite MDP: tables and functions into each other, and the expected value difference.

    π̂ = the optimal policy for the learned reward, or the soft-optimal one                       (1)
    EVD = Σ_s μ(s) (V*(s) − V^π̂(s)),   both under the true reward                                (2)

Eq. 2 is the score of Levine, Popović & Koltun 2011. It is 0 if π̂ is optimal for the true reward, too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from herdbook.core.types import RewardFunction, Transitions
from herdbook.tabular.mdp import MDP, Floats
from herdbook.tabular.planning import evaluate_policy, policy_iteration, soft_value_iteration, uniform


class TableReward:
    """The reward function of a table R(s, a, s′) `[S, A, S]`; states and actions are numbered from 0.

    Implements `core.types.RewardFunction`.
    """

    def __init__(self, table: ArrayLike, *, device: str | torch.device = "cpu") -> None:
        self.table = torch.tensor(np.asarray(table, np.float64), device=device)

    def __call__(self, transitions: Transitions) -> Tensor:
        return self.table[transitions.observations, transitions.actions, transitions.next_observations]


def reward_table(
    reward: RewardFunction, mdp: MDP, *, discount: float | None = None, batch_size: int = 65_536
) -> Floats:
    """The rewards R(s, a, s′) of a function `[S, A, S]`, for states and actions that are numbered from 0.

    Args:
        reward: Reads transitions with the discount γ, and 0 into terminal states; `rewards` are those of the MDP.
        mdp: The MDP.
        discount: γ, by default that of the MDP.
        batch_size: Transitions at once.

    Rewards out of terminal states are 0.
    """
    gamma = mdp.discount if discount is None else discount
    table = np.zeros(mdp.transitions.shape)
    goes_on = np.broadcast_to(~mdp.ends[:, None, None], table.shape)
    rows = np.argwhere(goes_on)  # [N, 3]
    for first in range(0, len(rows), batch_size):
        s, a, t = rows[first : first + batch_size].T
        step = Transitions(
            observations=torch.as_tensor(s),
            actions=torch.as_tensor(a),
            rewards=torch.as_tensor(mdp.rewards[s, a, t], dtype=torch.float32),
            discounts=torch.as_tensor(gamma * ~mdp.ends[t], dtype=torch.float32),
            next_observations=torch.as_tensor(t),
        )
        table[s, a, t] = reward(step).detach().cpu().numpy()
    return table


@dataclass(frozen=True, kw_only=True)
class ValueDifference:
    """Values under the true reward, averaged over the initial states."""

    optimal: float
    """The value of an optimal policy."""
    achieved: float
    """The value of the policy of the learned reward."""
    random: float
    """The value of the uniform policy."""

    @property
    def difference(self) -> float:
        """Eq. 2, at least 0 up to rounding."""
        return self.optimal - self.achieved

    @property
    def relative(self) -> float | None:
        """The difference as a share of |optimal|; None if the optimal value is 0."""
        return self.difference / abs(self.optimal) if self.optimal else None

    @property
    def regret(self) -> float | None:
        """The difference as a share of optimal − random: 0 optimal, 1 random; None if the two are equal."""
        gap = self.optimal - self.random
        return self.difference / gap if gap > 1e-12 * max(1.0, abs(self.optimal)) else None

    def json(self) -> dict[str, Any]:
        """The values and their differences as JSON values."""
        derived = {"difference": self.difference, "relative": self.relative, "regret": self.regret}
        return {**asdict(self), **derived}


def expected_value_difference(mdp: MDP, learned: ArrayLike, *, temperature: float = 0.0) -> ValueDifference:
    """The loss in true value of a policy that is optimal for a learned reward, eq. 2.

    Args:
        mdp: The MDP with its true reward.
        learned: The learned reward, in one of the forms that `MDP` accepts: `[S]`, `[S, A]` or `[S, A, S]`.
        temperature: 0 for an optimal policy of the learned reward, τ > 0 for its soft-optimal policy.

    Of several optimal policies, the one with the first of equally good actions in each state is taken. Raises
    ValueError as the planning methods do, and for a negative temperature.
    """
    if temperature < 0:
        raise ValueError(f"temperature: expected at least 0, got {temperature}")
    believed = replace(mdp, rewards=np.asarray(learned, np.float64))
    plan = soft_value_iteration(believed, temperature=temperature) if temperature else policy_iteration(believed)

    def value(pi: Floats) -> float:
        return float(mdp.initial @ evaluate_policy(mdp, pi))

    return ValueDifference(
        optimal=value(policy_iteration(mdp).policy), achieved=value(plan.policy), random=value(uniform(mdp))
    )
