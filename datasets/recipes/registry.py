"""Lookup of recipes by name."""

from __future__ import annotations

from collections.abc import Mapping

from herdbook.datasets.recipes.cartpole import CARTPOLE
from herdbook.datasets.recipes.learners import ACROBOT_EXPERT, ACROBOT_MEDIUM, PENDULUM_MEDIUM_EXPERT, PENDULUM_REPLAY
from herdbook.datasets.recipes.pendulum import PENDULUM
from herdbook.datasets.recipes.pointmaze import LARGE, MEDIUM, UMAZE
from herdbook.datasets.recipes.recipe import Recipe

_PENDULUM = (PENDULUM, PENDULUM_REPLAY, PENDULUM_MEDIUM_EXPERT)
_ALL = (*_PENDULUM, CARTPOLE, ACROBOT_MEDIUM, ACROBOT_EXPERT, UMAZE, MEDIUM, LARGE)
RECIPES: Mapping[str, Recipe] = {recipe.id: recipe for recipe in _ALL}
"""Every recipe by its full id."""


def resolve(name: str) -> Recipe | None:
    """The recipe of a full id, an id without version, or a short name; None for any other name.

    `herdbook/classic/pendulum-v0`, `herdbook/classic/pendulum`, `classic/pendulum-v0` and `classic/pendulum` name one
    recipe.
    """
    for recipe in RECIPES.values():
        short, versioned = recipe.name, recipe.id.removeprefix("herdbook/")
        if name in (recipe.id, f"herdbook/{short}", versioned, short):
            return recipe
    return None
