"""Environments with many agents, behind one flat interface: what a game says of agents by name, as arrays by kind.

It is turned into arrays once, at the door; names are those of `core.joint.games`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from gymnasium import Space, spaces
from gymnasium.envs.registration import EnvSpec

from herdbook.core.environments import EnvironmentSpec, EnvironmentUnavailable
from herdbook.core.joint.games import Game, Moment, Others, is_gymnasium, make_game, playable, random_action, split_mask
from herdbook.core.joint.types import ByKind, JointSpec
from herdbook.core.registry import making
from herdbook.core.spaces import flat_space, flatten, zeros
from herdbook.core.trees import write
from herdbook.core.types import Array, Tree, tree_leaves

JointSource = str | EnvironmentSpec | EnvSpec | Callable[..., Any]
"""An id, `module:callable`, a recorded spec, or a callable that returns a ParallelEnv, an AECEnv or a gymnasium.Env."""


class Rows(NamedTuple):
    """One environment at one moment: what is seen now, and what the step that led here gave.

    In a turn-based game only the agent whose turn it is sees, and those who left the game since the last turn; their
    rewards are those since their own last turn.
    """

    observations: ByKind
    """Leaves `[N_kind, …]`, flat; zeros for an agent that does not see."""
    action_mask: ByKind | None
    """`[N_kind, n]` bool: legal actions; all True where there is nothing to choose."""
    alive: Array
    """`[N]` bool: acts next. Nobody does when the episode is over."""
    state: Tree | None
    rewards: Array
    """`[N]` float64."""
    terminated: Array
    truncated: Array


class JointEnvironment:
    """An environment with many agents as arrays by kind.

    Args:
        make: Gives a new game.
        name: What errors call it.

    Raises EnvironmentUnavailable if it cannot be reset, or its agents or spaces cannot be handled.
    """

    max_steps: int | None = None
    """Steps (in a turn-based game, turns of an agent) after which an episode is cut."""
    with_state: bool = True
    """Whether the global state is asked for, where there is one."""

    def __init__(self, make: Callable[[], Game], name: str) -> None:
        self.make, self.name = make, name
        self.game = make()
        with making(name, {}):
            opening = self.game.reset(0)  # masks in infos, and the state, are known only now
            state = _state(self.game.env)
            self._state_space = None if state is None else _space_of(state)
            self.spec = _spec(self.game, opening, self._state_space)
            self._places = {agent: _Place.of(self.spec, agent) for agent in self.spec.agents}
        self._masks: ByKind | None = None
        self._opening: Rows | None = None

    @property
    def declares_limit(self) -> bool:
        """Whether the length of its episodes is bounded by a number that it declares."""
        return self.max_steps is not None or getattr(self.game.env.unwrapped, "max_cycles", None) is not None

    def reset(self, seed: int) -> Rows:
        """Begin an episode, whose only randomness is the seed. Rewards before the first step are given with it."""
        self._steps, self._turns = 0, dict.fromkeys(self.spec.agents, 0)
        self._opening = rows = self._rows(self.game.reset(int(seed)))
        nobody = np.zeros_like(rows.alive)
        return rows._replace(rewards=np.zeros_like(rows.rewards), terminated=nobody, truncated=nobody)

    def step(self, actions: ByKind) -> Rows:
        """Step once with actions `[N_kind]` or `[N_kind, A]`, of which only those of agents that act now are read.

        Box actions are clipped. An episode that was over before anyone could act has one step, in which nobody does.

        Raises IllegalAction for an action outside its space, or not legal; it names agent and action.
        """
        opening, self._opening = self._opening, None
        if opening is not None and not opening.alive.any():
            return opening
        chosen: dict[str, Any] = {}
        for agent in self.game.agents:
            place = self._places[agent]
            mask = None if self._masks is None else self._masks.get(place.kind)
            chosen[agent] = playable(
                agent, place.action_space, actions[place.kind][place.row], None if mask is None else mask[place.row]
            )
            self._turns[agent] += 1
        self._steps += 1
        moment = self.game.step(chosen)
        if self.max_steps is not None and self.game.agents:
            length = self._turns[self.game.agents[0]] if self.game.turn_based else self._steps
            if length >= self.max_steps:
                moment = self.game.cut(moment)
        rows = self._rows(moment)
        if opening is None:
            return rows
        return rows._replace(
            rewards=rows.rewards + opening.rewards,
            terminated=rows.terminated | opening.terminated,
            truncated=rows.truncated | opening.truncated,
        )

    def render(self) -> Any:
        """What the environment draws; it must have been made with a `render_mode`."""
        return self.game.env.render()

    def renew(self) -> None:
        """Make the environment anew: after an error, or where a reset does not put everything back."""
        self.close()
        self.game = self.make()

    def close(self) -> None:
        """Release what the environment holds."""
        with suppress(Exception):  # one that is broken may not close either, and nobody reads from it any more
            self.game.env.close()

    def _rows(self, moment: Moment) -> Rows:
        places, spec = self._places, self.spec
        if unknown := moment.observations.keys() - places.keys():
            raise ValueError(f"{sorted(unknown)} take part and are not among its possible_agents")
        observations = {kind.name: zeros(kind.observation_space, len(kind.agents)) for kind in spec.kinds}
        masks = all_legal(spec) if spec.masked else None
        for agent, observation in moment.observations.items():
            place = places[agent]
            if masks is not None:
                observation, mask = split_mask(observation, moment.infos.get(agent))
                if mask is not None and np.any(mask):
                    masks[place.kind][place.row] = mask
            place.write(observations[place.kind], observation)
        rewards = np.zeros(len(places))
        alive, terminated, truncated = np.zeros((3, len(places)), dtype=np.bool_)
        for agent in self.game.agents:
            if agent not in moment.observations:
                raise ValueError(f"{agent} acts next and was given no observation")
            alive[places[agent].number] = True
        for row, given in ((rewards, moment.rewards), (terminated, moment.terminated), (truncated, moment.truncated)):
            for agent, value in given.items():
                row[places[agent].number] = value
        state = None
        if self.with_state and self._state_space is not None:
            state = flatten(self._state_space, self.game.env.state())
        self._masks = masks
        return Rows(observations, masks, alive, state, rewards, terminated, truncated)


def make_joint_environment(source: JointSource, **kwargs: Any) -> JointEnvironment:
    """Make one environment with many agents; one with a single agent is the case N = 1.

    Args:
        source: A name, a recorded spec, or a callable that returns a ParallelEnv, an AECEnv or a gymnasium.Env.
        kwargs: Passed to the environment; they replace recorded ones of the same name.

    Raises:
        EnvironmentUnavailable: The name is unknown (the nearest one is named), a package is missing (the extra that
            brings it is named), the environment refuses the arguments, or its agents or spaces cannot be handled.
    """
    if isinstance(source, EnvSpec):
        source = EnvironmentSpec.from_gymnasium(source)
    if isinstance(source, str):
        source = EnvironmentSpec(id=source)
    name = source.id if isinstance(source, EnvironmentSpec) else getattr(source, "__qualname__", repr(source))
    env = JointEnvironment(partial(make_game, source, name, kwargs), name)
    if isinstance(source, EnvironmentSpec) and not is_gymnasium(source.id):  # whose limit is a wrapper's
        env.max_steps = source.max_episode_steps
    return env


def with_others(env: JointEnvironment, learners: Sequence[str], policy: Any = None) -> JointEnvironment:
    """The environment as those see it who learn; the others play too, and are seen by nobody but the game.

    Args:
        env: Used up.
        learners: Names of agents, or patterns (`adversary_*`).
        policy: Who plays the others: an object with `reset()` and `act(observations) -> actions`, dicts by agent, the
            observations as the environment gives them, or with a mask as `{"observation", "action_mask"}`. None: they
            play uniformly among their legal actions, with randomness of the reset seed.

    Raises EnvironmentUnavailable for a pattern that no agent fits, and for random actions in an unbounded box.
    """
    agents = env.spec.agents
    for pattern in learners:
        if not any(fnmatchcase(agent, pattern) for agent in agents):
            raise EnvironmentUnavailable(f"{env.name}: no agent fits {pattern!r}; the agents are {', '.join(agents)}")
    chosen = [agent for agent in agents if any(fnmatchcase(agent, pattern) for pattern in learners)]
    if not chosen:
        raise EnvironmentUnavailable(f"{env.name}: expected agents that learn, got none; they are {', '.join(agents)}")
    if len(chosen) == len(agents):
        return env
    for agent in set(agents) - set(chosen):
        space = env.spec.action_spaces[agent]
        if policy is None and isinstance(space, spaces.Box) and not space.is_bounded():
            raise EnvironmentUnavailable(f"{env.name}: expected bounded actions of {agent}, to be random; got {space}")
    env.close()
    make = env.make
    theirs = JointEnvironment(lambda: Others(make(), chosen, policy), env.name)
    theirs.max_steps, theirs.with_state = env.max_steps, env.with_state
    return theirs


def check_reset(env: JointEnvironment, *, seed: int = 0, steps: int = 23) -> bool:
    """Whether `reset(seed)` determines the whole state: two resets and some steps of equal actions look the same.

    The number of steps is prime, so that a periodic counter that no reset puts back is out of step in the second run.
    """
    first, second = (_trace(env, seed, steps) for _ in range(2))
    return len(first) == len(second) and all(
        np.array_equal(a, b)
        for rows, others in zip(first, second, strict=True)
        for a, b in zip(tree_leaves(rows), tree_leaves(others), strict=True)
    )


def all_legal(spec: JointSpec, *lead: int) -> ByKind:
    """Masks `[*lead, N_kind, n]` of every kind with discrete actions, all True."""
    return {
        kind.name: np.ones((*lead, len(kind.agents), int(kind.action_space.n)), dtype=np.bool_)
        for kind in spec.kinds
        if isinstance(kind.action_space, spaces.Discrete)
    }


def _spec(game: Game, opening: Moment, state_space: Space[Any] | None) -> JointSpec:
    """What a game declares. Raises ValueError for agents or spaces that cannot be handled."""
    agents = tuple(game.possible_agents)
    if unnamed := [agent for agent in agents if not isinstance(agent, str)]:
        raise ValueError(f"expected agents named by strings, got {unnamed}")
    observation_spaces, masked = {}, False
    for agent in agents:
        space = game.env.observation_space(agent)
        if isinstance(space, spaces.Dict) and {"observation", "action_mask"} <= space.keys():
            space, masked = space["observation"], True
        observation_spaces[agent] = space
    spec = JointSpec(
        agents=agents,
        observation_spaces=observation_spaces,
        action_spaces={agent: game.env.action_space(agent) for agent in agents},
        state_space=None if state_space is None else flat_space(state_space),
        masked=masked or any("action_mask" in (info or {}) for info in opening.infos.values()),
        turn_based=game.turn_based,
    )
    assert spec.kinds  # a space that cannot be handled raises now
    return spec


def _state(env: Any) -> Tree | None:
    """The global state, where `state` is a method that gives one; some have, under wrappers, data of that name."""
    if not all(callable(getattr(each, "state", None)) for each in (env, env.unwrapped)):
        return None
    try:
        return env.state()
    except NotImplementedError:
        return None


def _space_of(value: Tree) -> Space[Any]:
    """The space of a state like this one: few environments declare it, and some wrongly."""
    if isinstance(value, Mapping):
        return spaces.Dict({str(key): _space_of(part) for key, part in value.items()})
    array = np.asarray(value)
    if array.dtype == np.uint8:
        return spaces.Box(0, 255, array.shape, np.uint8)
    return spaces.Box(-np.inf, np.inf, array.shape, np.float32)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an agent stands: its number, its row in its kind, and its own spaces."""

    number: int
    kind: str
    row: int
    space: Space[Any]
    action_space: Space[Any]

    @classmethod
    def of(cls, spec: JointSpec, agent: str) -> _Place:
        kind = next(kind for kind in spec.kinds if agent in kind.agents)
        spaces_of_agent = spec.observation_spaces[agent], spec.action_spaces[agent]
        return cls(spec.index[agent], kind.name, kind.agents.index(agent), *spaces_of_agent)

    def write(self, table: Tree, observation: Any) -> None:
        """Put an observation, flat, into its row of the kind's."""
        if not isinstance(self.space, spaces.Box):
            write(table, self.row, flatten(self.space, observation))
            return
        array = np.asarray(observation)
        if array.shape != self.space.shape or (table.dtype == np.uint8 and array.dtype != np.uint8):
            raise ValueError(f"expected an observation in {self.space}, got {array.dtype} of shape {array.shape}")
        table[self.row] = array.reshape(table.shape[1:])  # which casts, once


def _trace(env: JointEnvironment, seed: int, steps: int) -> list[Rows]:
    generator = np.random.default_rng(seed)
    trace = [env.reset(seed)]
    while len(trace) <= steps and trace[-1].alive.any():
        masks = trace[-1].action_mask or {}
        actions = {
            kind.name: np.array(
                [
                    random_action(kind.action_space, masks[kind.name][row] if kind.name in masks else None, generator)
                    for row in range(len(kind.agents))
                ]
            )
            for kind in env.spec.kinds
        }
        trace.append(env.step(actions))
    return trace
