"""Checks of an environment's answers: an error names the method or field and the agent, what was expected and came."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from herdbook.core.registry import EnvironmentUnavailable, cause
from herdbook.core.types import Array

EVERYONE = "__all__"
"""Key of a flag that holds for every agent, as RLlib's environments give it."""


class BadGame(EnvironmentUnavailable):
    """An answer that breaks PettingZoo's interface."""


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Convert BadGame to EnvironmentUnavailable that names the environment."""
    try:
        yield
    except BadGame as error:
        raise EnvironmentUnavailable(f"{name}: {error}") from error


class Agents:
    """The agents of an environment by name. Names that are integers become text; the environment still gets its own.

    Raises BadGame for names of another type, and for `possible_agents` without an order.
    """

    def __init__(self, env: Any) -> None:
        given = env.possible_agents
        if isinstance(given, (set, frozenset, str)) or not isinstance(given, Iterable):
            raise BadGame(f"possible_agents: expected a list, which has an order, got a {type(given).__name__}")
        listed = list(given)
        if odd := [a for a in listed if not isinstance(a, (str, Integral))]:
            raise BadGame(f"possible_agents: expected agents named by strings or integers, got {odd}")
        self.env, self.own = env, {str(agent): agent for agent in listed}
        self.names = [str(agent) for agent in listed]
        if len(self.own) < len(listed):
            raise BadGame(f"possible_agents: expected distinct agents, got {listed}")
        self._spaces: dict[str, tuple[Space[Any], Space[Any]]] = {}
        self._plain = all(isinstance(agent, str) for agent in listed)
        self._known = frozenset(self.names)
        self._flagged = self._known | {EVERYONE}

    def name(self, agent: Any) -> str:
        return agent if self._plain else str(agent)

    def listed(self, agents: Iterable[Any]) -> list[str]:
        return list(agents) if self._plain else [*map(str, agents)]

    def to_own(self, by_agent: Mapping[str, Any]) -> dict[Any, Any]:
        """A dict by name as the environment's own."""
        return dict(by_agent) if self._plain else {self.own[agent]: value for agent, value in by_agent.items()}

    def named(self, field: str, given: Any, *, flags: bool = False) -> Mapping[str, Any]:
        """The environment's dict, by name. Raises BadGame if it is no dict, or has keys that are no agents."""
        if type(given) is not dict and not isinstance(given, Mapping):  # the first is the fast one
            raise BadGame(f"{field}: expected a dict by agent, got {type(given).__name__}")
        values: Mapping[str, Any] = given if self._plain else {str(agent): value for agent, value in given.items()}
        if not values.keys() <= (self._flagged if flags else self._known):
            strays = sorted(map(str, values.keys() - self._known))
            raise BadGame(f"{field}: expected agents among possible_agents, got {strays} too")
        return values

    def infos(self, values: Any) -> dict[str, Any]:
        """The environment's infos, by name; entries that belong to no agent are harmless."""
        if values is None:
            return {}
        if not isinstance(values, Mapping):
            raise BadGame(f"infos: expected a dict by agent, got {type(values).__name__}")
        return dict(values) if self._plain else {str(agent): value for agent, value in values.items()}

    def spaces(self, agent: str) -> tuple[Space[Any], Space[Any]]:
        """(observation space, action space) of an agent."""
        if agent not in self._spaces:
            self._spaces[agent] = self._space("observation_space", agent), self._space("action_space", agent)
        return self._spaces[agent]

    def _space(self, method: str, agent: str) -> Space[Any]:
        call, own = f"{method}({agent!r})", self.own[agent]
        try:
            given = getattr(self.env, method)
            if isinstance(given, Mapping):
                space = given[own]
            elif callable(given):
                space = given(own)
            else:
                came = f"an attribute, {type(given).__name__}"
                raise BadGame(f"{method}: expected a method that gives the space of an agent, got {came}")
        except BadGame:
            raise
        except Exception as error:  # whatever the environment's own code raises
            raise BadGame(f"{call} raised {cause(error)}") from error
        if not isinstance(space, Space):
            raise BadGame(f"{call}: expected a space of Gymnasium, got {type(space).__name__}")
        return space


def parts(call: str, given: Any, *names: str) -> Any:
    """The answer of `reset` or `step`, which must have these parts."""
    if not isinstance(given, (tuple, list)) or len(given) != len(names):
        came = f"{len(given)} values" if isinstance(given, (tuple, list)) else type(given).__name__
        raise BadGame(f"{call}: expected ({', '.join(names)}), got {came}")
    return given


def number(field: str, agent: str, value: Any) -> float:
    """A number, or an array of one."""
    if isinstance(value, float):
        return value
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise BadGame(f"{field} of {agent}: expected a number, got {type(value).__name__} ({error})") from error
    if array.size != 1 or array.dtype.kind not in "biuf":
        came = f"an array of shape {array.shape}" if array.ndim else repr(value)[:60]
        raise BadGame(f"{field} of {agent}: expected a number, got {came}")
    return float(array.item())


def flag(field: str, agent: str, value: Any) -> bool:
    """A boolean, a number, or an array of one."""
    return value if value is True or value is False else bool(number(field, agent, value))


def legal_actions(agent: str, mask: Any, actions: int) -> Array:
    """A mask of legal actions as booleans `[actions]`."""
    array = np.asarray(mask)
    if array.shape != (actions,):
        wanted = f"shape ({actions},), one entry for each action"
        raise BadGame(f"action_mask of {agent}: expected {wanted}, got {array.shape}")
    legal = array.astype(np.bool_)
    if array.dtype != np.bool_ and not np.array_equal(array, legal):
        raise BadGame(f"action_mask of {agent}: expected 1 for legal actions and 0 for others, got {array.tolist()}")
    return legal


def without_mask(agent: str, space: Space[Any], action_space: Space[Any]) -> tuple[Space[Any], tuple[str, ...]]:
    """The space of an agent's observations without the mask of legal actions, and the names of the parts beside it.

    The mask is the part `action_mask` of a Dict, for discrete actions; the names are empty if there is none. One other
    part is the observation, several are a Dict.
    """
    if not isinstance(space, spaces.Dict) or "action_mask" not in space.spaces:
        return space, ()
    if not isinstance(action_space, spaces.Discrete):
        return space, ()
    if space["action_mask"].shape != (action_space.n,):
        came = f"expected shape ({action_space.n},), one entry for each action, got {space['action_mask']}"
        raise BadGame(f"action_mask in observation_space({agent!r}): {came}")
    rest = {name: part for name, part in space.spaces.items() if name != "action_mask"}
    if not rest:
        raise BadGame(f"observation_space({agent!r}): expected an observation beside the action_mask, got none")
    return next(iter(rest.values())) if len(rest) == 1 else spaces.Dict(rest), tuple(rest)


def split_mask(agent: str, observation: Any, beside: tuple[str, ...], info: Any) -> tuple[Any, Any]:
    """(observation, action mask or None). PettingZoo keeps the mask in the observation or in the info."""
    if beside and isinstance(observation, Mapping) and "action_mask" in observation:
        mask = observation["action_mask"]
        if missing := [name for name in beside if name not in observation]:
            raise BadGame(f"observations of {agent}: expected the parts {missing} too, got {list(observation)}")
        return observation[beside[0]] if len(beside) == 1 else {n: observation[n] for n in beside}, mask
    return observation, info.get("action_mask") if isinstance(info, Mapping) else None
