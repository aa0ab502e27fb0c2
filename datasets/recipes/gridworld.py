"""`gridworld/room/{expert,soft}`: shortest paths, and the soft-optimal policy, in a gridworld."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

from herdbook.core.environments import EnvironmentSpec, ReferenceScores, make_environment
from herdbook.datasets.recipes.recipe import OWN_SCORES, Behaviour, Recipe

EXPERT = "herdbook.tabular.experts:gridworld_expert"
"""The function that plans in the gridworld; a string, because this layer may not import exact methods."""
ROOM = EnvironmentSpec(id="herdbook/GridWorld-v0", kwargs={"text": ".....\n.....\n..#..\n.....\n....G"})
TEMPERATURE = 0.5


def behaviours(temperature: float) -> Callable[[], Sequence[Behaviour]]:
    """The policy that is soft-optimal at a temperature; 0 gives shortest paths."""

    def make() -> Sequence[Behaviour]:
        env = make_environment(ROOM)
        module, _, name = EXPERT.partition(":")
        policy = getattr(import_module(module), name)(env.unwrapped.grid, temperature)  # type: ignore[attr-defined]
        env.close()
        return [Behaviour(policy, episodes=200, metadata={"temperature": temperature})]

    return make


def _recipe(kind: str, content: str, temperature: float, maximum: float) -> Recipe:
    return Recipe(
        id=f"herdbook/gridworld/room/{kind}-v0",
        description=f"GridWorld, a room with a goal and uniform starts: {content}, 200 episodes",
        environment=ROOM,
        behaviours=behaviours(temperature),
        reference_scores=ReferenceScores(-87.0, maximum, OWN_SCORES),
    )


ROOM_EXPERT = _recipe("expert", "shortest paths", 0.0, -4.0)
ROOM_SOFT = _recipe("soft", f"soft-optimal policy at temperature {TEMPERATURE}", TEMPERATURE, -4.0)
