"""Lookup of recipes by name."""

from __future__ import annotations

from collections.abc import Mapping

from herdbook.datasets.recipes.acrobot import ACROBOT_SCRIPTED
from herdbook.datasets.recipes.cartpole import CARTPOLE, CARTPOLE_EXPERT, FIXED_HORIZON_EXPERT
from herdbook.datasets.recipes.gridworld import ROOM_EXPERT, ROOM_SOFT
from herdbook.datasets.recipes.learners import ACROBOT_EXPERT, ACROBOT_MEDIUM, PENDULUM_MEDIUM_EXPERT, PENDULUM_REPLAY
from herdbook.datasets.recipes.pendulum import PENDULUM, PENDULUM_EXPERT
from herdbook.datasets.recipes.point_mass import POINT_MASS_LEFT, POINT_MASS_RIGHT
from herdbook.datasets.recipes.pointmaze import LARGE, MEDIUM, UMAZE
from herdbook.datasets.recipes.recipe import Recipe

_PENDULUM = (PENDULUM, PENDULUM_EXPERT, PENDULUM_REPLAY, PENDULUM_MEDIUM_EXPERT)
_CARTPOLE = (CARTPOLE, CARTPOLE_EXPERT, FIXED_HORIZON_EXPERT)
_ACROBOT = (ACROBOT_SCRIPTED, ACROBOT_MEDIUM, ACROBOT_EXPERT)
_OWN = (POINT_MASS_LEFT, POINT_MASS_RIGHT, ROOM_EXPERT, ROOM_SOFT)
_ALL = (*_PENDULUM, *_CARTPOLE, *_ACROBOT, *_OWN, UMAZE, MEDIUM, LARGE)
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
