"""Expert policies of gridworlds, which `datasets.recipes.gridworld` records as demonstrations."""

from __future__ import annotations

import numpy as np

from herdbook.tabular.gridworld import GridWorld
from herdbook.tabular.mdp import Floats
from herdbook.tabular.planning import soft_value_iteration
from herdbook.tabular.policy import TabularPolicy

DISCOUNT = 0.99


def gridworld_expert(grid: GridWorld, temperature: float) -> TabularPolicy:
    """The soft-optimal policy at a temperature and γ = 0.99, sampled; at temperature 0, `shortest_paths`."""
    if temperature == 0:
        return TabularPolicy(shortest_paths(grid), deterministic=False)
    policy = soft_value_iteration(grid.mdp(discount=DISCOUNT), temperature=temperature).policy
    return TabularPolicy(policy, deterministic=False)


def shortest_paths(grid: GridWorld) -> Floats:
    """Uniform over the first moves of all shortest paths to a goal, without slips. `[S, 4]`

    All moves are equally probable in goals and pits, and where no goal can be reached.
    """
    distances = grid.distances()
    after = distances[grid.successors()]  # [S, 4]
    good = (after < distances[:, None]) & ~grid.ends[:, None]
    good |= ~good.any(-1, keepdims=True)
    policy: Floats = good / good.sum(-1, keepdims=True)
    return np.asarray(policy)
