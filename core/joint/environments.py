"""Environments with many agents behind one flat interface: a game's values by agent become arrays by kind.

`core.joint.games` resolves environment names.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from gymnasium import Space, spaces
from gymnasium.envs.registration import EnvSpec

from herdbook.core.environments import EnvironmentSpec, EnvironmentUnavailable, check_source
from herdbook.core.joint.boundary import BadGame, legal_actions, naming, number, split_mask, without_mask
from herdbook.core.joint.games import Game, Moment, Others, is_gymnasium, make_game, playable, random_action
from herdbook.core.joint.types import ByKind, JointSpec, all_legal
from herdbook.core.registry import cause, making
from herdbook.core.spaces import flat_space, flatten, zeros
from herdbook.core.trees import indexed, mapped, write
from herdbook.core.types import Array, Tree, tree_leaves

logger = logging.getLogger("herdbook")

JointSource = str | EnvironmentSpec | EnvSpec | Callable[..., Any]
"""An id, `module:callable`, a recorded spec, or a callable that returns a ParallelEnv, an AECEnv or a gymnasium.Env."""


class Rows(NamedTuple):
    """One environment at one moment: the observations now, and the outcome of the step that led here.

    In a turn-based game, the agent whose turn it is and the agents that left since the last turn have observations.
    Their rewards accumulate since their own last turns.
    """

    observations: ByKind
    """Leaves `[N_kind, …]`, flat; zeros for an agent without an observation."""
    action_mask: ByKind | None
    """`[N_kind, n]` bool: legal actions; all True for an agent without a choice."""
    alive: Array
    """`[N]` bool: the agent acts next; all False when the episode is over."""
    state: Tree | None
    rewards: Array
    """`[N]` float64."""
    terminated: Array
    truncated: Array


class JointEnvironment:
    """An environment with many agents as arrays by kind.

    Args:
        make: Returns a new game.
        name: Name of the environment in error messages.

    Raises EnvironmentUnavailable if the game cannot be reset, or its agents or spaces are not supported.
    """

    max_steps: int | None = None
    """Steps (turns of one agent, in a turn-based game) after which an episode is truncated."""
    with_state: bool = True
    """Read the global state, if the environment has one."""
    trying: bool = False
    """In its first steps: a mask of legal actions that appears makes the task one with masks."""

    def __init__(self, make: Callable[[], Game], name: str) -> None:
        self.make, self.name = make, name
        self.game = make()
        self.told: set[str] = set()
        self._stateless: str | None = None
        with making(name, {}), naming(name):
            opening = self.game.reset(0)  # masks in infos and the state exist only after a reset
            state = self._first_state()
            self._state_space = None if state is None else _space_of(state)
            self._state_shapes = None if self._state_space is None else _shapes(flat_space(self._state_space))
            self.spec, beside = _spec(self.game, opening, self._state_space)
            self._places = {agent: _Place.of(self.spec, agent, beside[agent]) for agent in self.spec.agents}
        self._masks: ByKind | None = None
        self._opening: Rows | None = None
        self._state: Tree | None = None

    @property
    def declares_limit(self) -> bool:
        """True if the environment declares a limit on the length of its episodes."""
        return self.max_steps is not None or getattr(self.game.env.unwrapped, "max_cycles", None) is not None

    def reset(self, seed: int) -> Rows:
        """Begin an episode from a seed. The first step returns the rewards and flags of moves made before it."""
        self._steps, self._turns = 0, dict.fromkeys(self.spec.agents, 0)
        self._gone, self._seen, self._state = dict[str, int](), ByKind(), None
        if self.with_state and self._stateless is not None:
            self._tell(self._stateless)
        self._opening = rows = self._rows(self.game.reset(int(seed)))
        nobody = np.zeros_like(rows.alive)
        return rows._replace(rewards=np.zeros_like(rows.rewards), terminated=nobody, truncated=nobody)

    def step(self, actions: ByKind) -> Rows:
        """Step once with actions `[N_kind]` or `[N_kind, A]`; only the agents that act now are read.

        Box actions are clipped. An episode that ended before any agent could act has one step without actions.

        Raises IllegalAction, with agent and action, for an action that is illegal or outside its space, and BadGame,
        with field and agent, for an answer that breaks PettingZoo's interface.
        """
        opening, self._opening = self._opening, None
        if opening is not None and not opening.alive.any():
            return opening
        chosen: dict[str, Any] = {}
        masks = self._masks or {}
        for agent in self.game.agents:
            place = self._places[agent]
            mask = masks[place.kind][place.row] if place.kind in masks else None
            chosen[agent] = playable(agent, place.action_space, actions[place.kind][place.row], mask)
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
        """The environment's picture; the environment must have been made with a `render_mode`."""
        return self.game.env.render()

    def renew(self) -> None:
        """Replace the environment by a new one: after an error, or where a reset does not restore all state."""
        self.close()
        self.game = self.make()

    def close(self) -> None:
        """Close the environment."""
        with suppress(Exception):  # a broken environment may fail to close, and is not used again
            self.game.env.close()

    def _rows(self, moment: Moment) -> Rows:
        places, spec = self._places, self.spec
        if unknown := moment.observations.keys() - places.keys():
            raise BadGame(f"agents: expected agents among possible_agents, got {sorted(unknown)} too")
        observations = {kind.name: zeros(kind.observation_space, len(kind.agents)) for kind in spec.kinds}
        masks = all_legal(spec) if spec.masked else None
        for agent, observation in moment.observations.items():
            place, mask, info = places[agent], None, moment.infos.get(agent)
            if place.beside or type(info) is not dict or info:
                observation, mask = split_mask(agent, observation, place.beside, info)
            if mask is not None and place.actions:
                masks = self._new_masks(agent) if masks is None else masks
                legal = legal_actions(agent, mask, place.actions)
                if legal.any():
                    masks[place.kind][place.row] = legal
            if observation is not None:
                place.write(agent, observations[place.kind], observation)
            elif agent not in self.game.agents:
                write(observations[place.kind], place.row, indexed(self._seen[place.kind], place.row))
        rewards = np.zeros(len(places))
        alive, terminated, truncated = np.zeros((3, len(places)), dtype=np.bool_)
        for agent, value in moment.rewards.items():
            rewards[places[agent].number] = number("rewards", agent, value)
        for row, flags in ((terminated, moment.terminated), (truncated, moment.truncated)):
            for agent, ends in flags.items():
                row[places[agent].number] = ends
                if ends:
                    self._gone.setdefault(agent, self._steps)
        for agent in self.game.agents:
            if moment.observations.get(agent) is None:
                raise BadGame(f"observations: expected an observation of {agent}, which acts next, got none")
            if agent in self._gone:
                came = f"it is back after step {self._steps}, and its flag was set by step {self._gone[agent]}"
                advice = "an agent that pauses has no flag"
                raise BadGame(f"agents: expected {agent} to stay away after its end, but {came}; {advice}")
            alive[places[agent].number] = True
        state = None
        if self.with_state and self._state_space is not None:
            state = self._state = self._next_state(alive)
        self._masks, self._seen = masks, observations
        return Rows(observations, masks, alive, state, rewards, terminated, truncated)

    def _new_masks(self, agent: str) -> ByKind:
        """Masks of a task that had none so far. Raises BadGame after the first steps."""
        if not self.trying:
            advice = "give one from the reset on, all ones where every action is legal"
            raise BadGame(
                f"infos: expected no action_mask of {agent}, since the first steps had none, got one; {advice}"
            )
        self.spec = replace(self.spec, masked=True)
        return all_legal(self.spec)

    def _first_state(self) -> Tree | None:
        """The global state, or None. Some wrapped environments have an attribute `state` that is no method."""
        env = self.game.env
        if not all(callable(getattr(each, "state", None)) for each in (env, env.unwrapped)):
            return None
        try:
            return _keyed(env.state())
        except NotImplementedError:
            return None
        except Exception as error:  # an environment may raise anything
            self._stateless = f"state() raised {cause(error)} after a reset; the joint observation stands in for it"
            return None

    def _next_state(self, alive: Array) -> Tree:
        assert self._state_space is not None
        try:
            value = _keyed(self.game.env.state())
        except Exception as error:  # an environment may raise anything
            if alive.any() or self._state is None:
                raise BadGame(f"state() raised {cause(error)}") from error
            self._tell(f"state() raised {cause(error)} where an episode is over; the state before is repeated there")
            return self._state
        try:
            state = mapped(np.array, flatten(self._state_space, value))  # a copy
        except (ValueError, TypeError) as error:
            raise BadGame(f"state(): {error}") from error
        shapes = mapped(np.shape, state)
        if shapes != self._state_shapes:
            raise BadGame(f"state(): expected shape {self._state_shapes}, as after the first reset, got {shapes}")
        return state

    def _tell(self, text: str) -> None:
        """Log a notice once."""
        if text not in self.told:
            self.told.add(text)
            logger.warning("%s: %s", self.name, text)


def make_joint_environment(source: JointSource, **kwargs: Any) -> JointEnvironment:
    """Make one environment with many agents; a single-agent environment is the case N = 1.

    Args:
        source: A name, a recorded spec, or a callable that returns a ParallelEnv, an AECEnv or a gymnasium.Env.
        kwargs: Arguments of the environment; they override recorded ones.

    Raises:
        EnvironmentUnavailable: The name is unknown (the message suggests the nearest), a package is missing (it gives
            the extra to install), the arguments are refused, or the agents or spaces are not supported.
    """
    check_source(source)
    if isinstance(source, EnvSpec):
        source = EnvironmentSpec.from_gymnasium(source)
    if isinstance(source, str):
        source = EnvironmentSpec(id=source)
    name = source.id if isinstance(source, EnvironmentSpec) else getattr(source, "__qualname__", repr(source))
    env = JointEnvironment(partial(make_game, source, name, kwargs), name)
    if isinstance(source, EnvironmentSpec) and not is_gymnasium(source.id):  # Gymnasium applies its own limit
        env.max_steps = source.max_episode_steps
    return env


def with_others(env: JointEnvironment, learners: Sequence[str], policy: Any = None) -> JointEnvironment:
    """The environment as the learners see it: the other agents are played by `policy` and hidden.

    Args:
        env: The whole environment; it is closed.
        learners: Names of agents, or patterns (`adversary_*`); the name of an agent is no pattern.
        policy: Policy of the other agents: an object with `reset()` and `act(observations) -> actions`, dicts by agent.
            Observations are the environment's, or `{"observation", "action_mask"}` where there is a mask. None: uniform
            among the legal actions, seeded by the reset seed.

    Raises EnvironmentUnavailable if a pattern matches no agent, or random actions would be in an unbounded box.
    """
    agents = env.spec.agents
    fitting = set[str]()
    for pattern in map(str, learners):
        fits = {pattern} if pattern in agents else {agent for agent in agents if fnmatchcase(agent, pattern)}
        if not fits:
            raise EnvironmentUnavailable(f"{env.name}: no agent fits {pattern!r}; the agents are {', '.join(agents)}")
        fitting |= fits
    chosen = [agent for agent in agents if agent in fitting]
    if not chosen:
        raise EnvironmentUnavailable(f"{env.name}: expected agents that learn, got none; they are {', '.join(agents)}")
    if len(chosen) == len(agents):
        return env
    for agent in set(agents) - set(chosen):
        space = env.spec.action_spaces[agent]
        if policy is None and isinstance(space, spaces.Box) and not space.is_bounded():
            raise EnvironmentUnavailable(f"{env.name}: random play needs bounded actions of {agent}, got {space}")
    env.close()
    make = env.make
    theirs = JointEnvironment(lambda: Others(make(), chosen, policy), env.name)
    theirs.max_steps, theirs.with_state = env.max_steps, env.with_state
    return theirs


def check_reset(env: JointEnvironment, *, seed: int = 0, steps: int = 23) -> bool:
    """True if `reset(seed)` determines the whole state: two resets and equal actions give the same values.

    The number of steps is prime, so a periodic counter that a reset leaves alone differs in the second run. Masks of
    legal actions that appear in these steps make `env.spec` one with masks.
    """
    env.trying = True
    try:
        masked = env.spec.masked
        played = _trace(env, seed, steps)
        if env.spec.masked != masked:
            played = _trace(env, seed, steps)
        again = _trace(env, seed, steps)
    finally:
        env.trying = False
    first, second = tree_leaves(played), tree_leaves(again)
    return len(first) == len(second) and all(map(np.array_equal, first, second))


def _spec(game: Game, opening: Moment, state_space: Space[Any] | None) -> tuple[JointSpec, dict[str, tuple[str, ...]]]:
    """The specification of a game, and each agent's parts beside a mask in its observation.

    Raises ValueError for unsupported agents or spaces.
    """
    agents = tuple(game.possible_agents)
    both = {agent: game.spaces(agent) for agent in agents}
    seen = {agent: without_mask(agent, *own) for agent, own in both.items()}
    beside = {agent: names for agent, (_, names) in seen.items()}
    infos = [info for agent, info in opening.infos.items() if agent in beside and isinstance(info, Mapping)]
    spec = JointSpec(
        agents=agents,
        observation_spaces={agent: space for agent, (space, _) in seen.items()},
        action_spaces={agent: space for agent, (_, space) in both.items()},
        state_space=None if state_space is None else flat_space(state_space),
        masked=any(beside.values()) or any("action_mask" in info for info in infos),
        turn_based=game.turn_based,
    )
    assert spec.kinds  # raises for an unsupported space
    return spec, beside


def _keyed(value: Any) -> Any:
    """A state whose dicts have text as keys."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, Mapping):
        return {str(key): _keyed(part) for key, part in value.items()}
    return tuple(map(_keyed, value)) if isinstance(value, (tuple, list)) else value


def _shapes(space: Space[Any]) -> Any:
    """The shapes of the leaves of a flat space."""
    return {name: part.shape for name, part in space.items()} if isinstance(space, spaces.Dict) else space.shape


def _space_of(value: Tree) -> Space[Any]:
    """The space of a state, inferred: few environments declare it, and some declare it wrongly."""
    if isinstance(value, Mapping):
        return spaces.Dict({key: _space_of(part) for key, part in value.items()})
    try:
        array = np.asarray(value)
    except ValueError:  # parts of unequal shapes
        array = np.array(None)
    if array.dtype.kind not in "biuf":
        if isinstance(value, tuple):
            return spaces.Tuple([_space_of(part) for part in value])
        raise BadGame(f"state(): expected numbers, got {type(value).__name__} of {array.dtype}")
    if array.dtype == np.uint8:
        return spaces.Box(0, 255, array.shape, np.uint8)
    return spaces.Box(-np.inf, np.inf, array.shape, np.float32)


@dataclass(frozen=True, slots=True)
class _Place:
    """An agent's number, its row within its kind, its spaces, and the parts beside a mask in its observation."""

    number: int
    kind: str
    row: int
    space: Space[Any]
    action_space: Space[Any]
    beside: tuple[str, ...]
    actions: int
    """Number of discrete actions; 0 in a Box."""

    @classmethod
    def of(cls, spec: JointSpec, agent: str, beside: tuple[str, ...]) -> _Place:
        kind = next(kind for kind in spec.kinds if agent in kind.agents)
        space, action_space = spec.observation_spaces[agent], spec.action_spaces[agent]
        actions = int(action_space.n) if isinstance(action_space, spaces.Discrete) else 0
        return cls(spec.index[agent], kind.name, kind.agents.index(agent), space, action_space, beside, actions)

    def write(self, agent: str, table: Tree, observation: Any) -> None:
        """Write an observation, flattened, into the agent's row."""
        try:
            if not isinstance(self.space, spaces.Box):
                write(table, self.row, flatten(self.space, observation))
                return
            array = np.asarray(observation)
            if array.shape != self.space.shape or (table.dtype == np.uint8 and array.dtype != np.uint8):
                raise ValueError(f"expected an observation in {self.space}, got {array.dtype} of shape {array.shape}")
            table[self.row] = array.reshape(table.shape[1:])  # the assignment casts
        except (ValueError, TypeError) as error:
            raise BadGame(f"observations of {agent}: {error}") from error


def _trace(env: JointEnvironment, seed: int, steps: int) -> list[Rows]:
    generator = np.random.default_rng(seed)
    trace = [env.reset(seed)]
    while len(trace) <= steps and trace[-1].alive.any():
        masks, actions = trace[-1].action_mask or {}, {}
        for kind in env.spec.kinds:
            legal = masks.get(kind.name, [None] * len(kind.agents))
            actions[kind.name] = np.array([random_action(kind.action_space, row, generator) for row in legal])
        trace.append(env.step(actions))
    return trace
