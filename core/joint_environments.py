"""Environments with many agents by name, behind one flat interface.

A name is a Gymnasium id (the registry is asked first; its one agent is called `agent`), `package/name_v<n>`, which is
PettingZoo's where the package is butterfly, sisl, classic or atari and else the module `package.name`
(`mpe2/simple_spread_v3`), or `module:callable`. The parallel API is preferred where a module has both.

There are two layers. A game speaks of agents by name, as PettingZoo does, and hides which API is behind it and who
plays the others. `JointEnvironment` turns what it says into arrays by kind, once, at the door.
"""

from __future__ import annotations

import importlib
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np
from gymnasium import Space, spaces
from gymnasium.envs.registration import EnvSpec
from pettingzoo import AECEnv, ParallelEnv
from pettingzoo.utils.conversions import aec_to_parallel_wrapper, parallel_to_aec_wrapper
from pettingzoo.utils.wrappers import AssertOutOfBoundsWrapper, ClipOutOfBoundsWrapper, OrderEnforcingWrapper
from torch.utils import _pytree as pytree

from herdbook.core.environments import (
    Env,
    EnvironmentSpec,
    EnvironmentUnavailable,
    import_callable,
    is_callable_name,
    joint_module,
    make_environment,
    making,
    unknown_environment,
)
from herdbook.core.joint import ByKind, JointSpec
from herdbook.core.spaces import flat_space, flatten
from herdbook.core.types import Array, Tree

JointSource = str | EnvironmentSpec | EnvSpec | Callable[..., Any]
"""An id, `module:callable`, a recorded spec, or a callable that returns a ParallelEnv, an AECEnv or a gymnasium.Env."""

OTHERS = 1  # stream of randomness of a reset seed: the moves of those who do not learn; the seed itself is the game's


class IllegalAction(ValueError):
    """An action that is outside its agent's space, not legal now, or missing."""


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


class Moment(NamedTuple):
    """What a game says after a reset or a step, by agent, of those that act next and those that left with this step."""

    observations: dict[str, Any]
    rewards: dict[str, float]
    terminated: dict[str, bool]
    truncated: dict[str, bool]
    infos: dict[str, Any]


class Game(Protocol):
    """An environment that speaks of agents by name."""

    env: Any
    """PettingZoo's own, for spaces, state and pictures."""
    possible_agents: list[str]
    agents: list[str]
    """Who acts next; nobody when the episode is over."""
    turn_based: bool

    def reset(self, seed: int) -> Moment: ...
    def step(self, actions: Mapping[str, Any]) -> Moment:
        """Takes the action of everyone in `agents`."""
        ...

    def cut(self, moment: Moment) -> Moment:
        """End the episode here: `moment`, the last one, with everyone who is still in the game truncated."""
        ...


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
            chosen[agent] = _playable(
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
    env = JointEnvironment(partial(_make, source, name, kwargs), name)
    if isinstance(source, EnvironmentSpec) and not _is_gymnasium(source.id):  # whose limit is a wrapper's
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
    theirs = JointEnvironment(lambda: _Others(make(), chosen, policy), env.name)
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
        for a, b in zip(pytree.tree_leaves(rows), pytree.tree_leaves(others), strict=True)
    )


def zeros(space: Space[Any], *lead: int) -> Tree:
    """Arrays `[*lead, …]` for values of a flat space."""
    if isinstance(space, spaces.Dict):
        return {name: zeros(part, *lead) for name, part in space.spaces.items()}
    return np.zeros((*lead, *(space.shape or ())), dtype=space.dtype)


def all_legal(spec: JointSpec, *lead: int) -> ByKind:
    """Masks `[*lead, N_kind, n]` of every kind with discrete actions, all True."""
    return {
        kind.name: np.ones((*lead, len(kind.agents), int(kind.action_space.n)), dtype=np.bool_)
        for kind in spec.kinds
        if isinstance(kind.action_space, spaces.Discrete)
    }


def write(table: Tree, index: Any, value: Tree) -> None:
    """`table[index] = value` in every leaf."""
    if isinstance(table, dict):
        for name, leaf in table.items():
            write(leaf, index, value[name])
    else:
        table[index] = value


def split_mask(observation: Any, info: Any) -> tuple[Any, Any]:
    """(what the network sees, legal actions or None): PettingZoo has them in the observation, or in the info."""
    if isinstance(observation, Mapping) and "action_mask" in observation and "observation" in observation:
        return observation["observation"], observation["action_mask"]
    return observation, info.get("action_mask") if info else None


def random_action(space: Space[Any], mask: Any, generator: np.random.Generator) -> Any:
    """One action: uniform among the legal ones (`mask`, or None: all are) or in a box, normal where it is unbounded."""
    if isinstance(space, spaces.Discrete):
        legal = np.arange(int(space.n)) if mask is None or not np.any(mask) else np.flatnonzero(mask)
        return int(space.start + legal[generator.integers(len(legal))])
    assert isinstance(space, spaces.Box)
    if space.is_bounded():
        return generator.uniform(space.low, space.high)
    return np.clip(generator.normal(size=space.shape), space.low, space.high)


class _Simultaneous:
    """A game in which all act at once. Who vanishes from it without a flag was cut off there."""

    turn_based = False

    def __init__(self, env: ParallelEnv) -> None:
        self.env, self.possible_agents = env, env.possible_agents
        self.agents: list[str] = []

    def reset(self, seed: int) -> Moment:
        observations, infos = self.env.reset(seed=seed)
        self._last, self.agents = observations, list(self.env.agents)
        return Moment({agent: observations[agent] for agent in self.agents if agent in observations}, {}, {}, {}, infos)

    def step(self, actions: Mapping[str, Any]) -> Moment:
        observations, rewards, terminated, truncated, infos = self.env.step(dict(actions))
        present = self.env.agents
        self.agents = [agent for agent in present if not (terminated.get(agent) or truncated.get(agent))]
        ended = {agent: bool(terminated.get(agent)) for agent in actions}
        cut = {
            agent: bool(truncated.get(agent)) or (agent not in present and not flag) for agent, flag in ended.items()
        }
        seen = {agent: observations[agent] for agent in self.agents if agent in observations}
        for agent in actions:
            if agent not in seen and (ended[agent] or cut[agent]):  # without a last look, what it saw before must do
                seen[agent] = observations.get(agent, self._last.get(agent))
        self._last = observations
        return Moment(seen, rewards, ended, cut, infos)

    def cut(self, moment: Moment) -> Moment:
        truncated = moment.truncated | dict.fromkeys(self.agents, True)
        self.agents = []
        return moment._replace(truncated=truncated)


class _Turns:
    """A game in which one acts at a time, through the AEC API."""

    turn_based = True

    def __init__(self, env: AECEnv) -> None:
        self.env, self.possible_agents = env, env.possible_agents
        self.agents: list[str] = []

    def reset(self, seed: int) -> Moment:
        self.env.reset(seed=seed)
        self._inside = dict.fromkeys(self.env.agents)
        return self._advance()

    def step(self, actions: Mapping[str, Any]) -> Moment:
        self.env.step(actions[self.agents[0]])
        return self._advance()

    def _advance(self) -> Moment:
        """On to the next turn of one who is still in the game; those who are not are led out on the way."""
        moment = Moment({}, {}, {}, {}, {})
        while self.env.agents:
            agent = self.env.agent_selection
            observation, reward, terminated, truncated, info = self.env.last()
            moment.observations[agent], moment.rewards[agent] = observation, reward
            moment.terminated[agent], moment.truncated[agent] = bool(terminated), bool(truncated)
            moment.infos[agent] = info
            self._inside[agent] = None
            if not (terminated or truncated):
                self.agents = [agent]
                return moment
            del self._inside[agent]
            self.env.step(None)
        return self.cut(moment)  # whoever the game forgot to flag

    def cut(self, moment: Moment) -> Moment:
        observations, rewards, truncated = dict(moment.observations), dict(moment.rewards), dict(moment.truncated)
        for agent in self._inside:
            if agent not in observations:
                observations[agent] = self.env.observe(agent)
                rewards[agent] = self.env._cumulative_rewards.get(agent, 0.0)
            truncated[agent] = True
        self._inside, self.agents = {}, []
        return moment._replace(observations=observations, rewards=rewards, truncated=truncated)


class _Others:
    """A game as the learners see it: others make their moves between, or beside, theirs."""

    def __init__(self, game: Game, learners: Sequence[str], policy: Any) -> None:
        self.game, self.policy = game, policy
        self.env, self.turn_based = game.env, game.turn_based
        self.possible_agents = [agent for agent in game.possible_agents if agent in learners]
        self.agents: list[str] = []

    def reset(self, seed: int) -> Moment:
        self._random = np.random.default_rng((seed, OTHERS))
        self._expected = set(self.possible_agents)
        if self.policy is not None:
            self.policy.reset()
        return self._advance(self.game.reset(seed))

    def step(self, actions: Mapping[str, Any]) -> Moment:
        return self._advance(self.game.step({**actions, **self._moves()}))

    def cut(self, moment: Moment) -> Moment:
        moment, self.agents = self.game.cut(moment), []
        return Moment(*map(self._ours, moment))

    def _advance(self, moment: Moment) -> Moment:
        """On to where one of ours acts, or none of ours can any more."""
        total = Moment({}, {}, {}, {}, {})
        while True:
            self._moment = moment
            total.observations.update(self._ours(moment.observations))
            total.infos.update(self._ours(moment.infos))
            for agent, reward in self._ours(moment.rewards).items():
                total.rewards[agent] = total.rewards.get(agent, 0.0) + reward
            for flags, sums in ((moment.terminated, total.terminated), (moment.truncated, total.truncated)):
                for agent, flag in self._ours(flags).items():
                    sums[agent] = sums.get(agent, False) or flag
                    if flag:
                        self._expected.discard(agent)
            self.agents = [agent for agent in self.game.agents if agent in self.possible_agents]
            if self.agents or not self.game.agents or not self._expected:
                return total
            moment = self.game.step(self._moves())

    def _ours(self, by_agent: Mapping[str, Any]) -> dict[str, Any]:
        return {agent: by_agent[agent] for agent in self.possible_agents if agent in by_agent}

    def _moves(self) -> dict[str, Any]:
        """The others' actions at this moment."""
        acting = [agent for agent in self.game.agents if agent not in self.possible_agents]
        if not acting:
            return {}
        seen = {a: split_mask(self._moment.observations[a], self._moment.infos.get(a)) for a in acting}
        action_spaces = {agent: self.env.action_space(agent) for agent in acting}
        if self.policy is None:
            return {a: random_action(action_spaces[a], mask, self._random) for a, (_, mask) in seen.items()}
        given = self.policy.act(
            {
                agent: observation if mask is None else {"observation": observation, "action_mask": mask}
                for agent, (observation, mask) in seen.items()
            }
        )
        if missing := [agent for agent in acting if agent not in given]:
            raise IllegalAction(f"expected an action of {missing}, who do not learn; their policy gave none")
        return {agent: _playable(agent, action_spaces[agent], given[agent], mask) for agent, (_, mask) in seen.items()}


class _Cycle(ParallelEnv):  # type: ignore[misc]  # PettingZoo ships no types
    """PettingZoo's `aec_to_parallel_wrapper` without the look at every agent before it acts, which nobody reads.

    With the checks of `_unchecked` left out as well, mpe2 steps in 0.6 of the time.
    """

    def __init__(self, env: AECEnv) -> None:
        self.aec, self.possible_agents, self.metadata = env, env.possible_agents, env.metadata
        self.render_mode = getattr(env, "render_mode", None)
        # mpe2's state() makes all observations once more and joins them.
        self.state_is_joined = getattr(type(env).state, "__module__", "") == "mpe2._mpe_utils.simple_env"

    @property
    def unwrapped(self) -> Any:
        return self.aec.unwrapped

    def observation_space(self, agent: str) -> Any:
        return self.aec.observation_space(agent)

    def action_space(self, agent: str) -> Any:
        return self.aec.action_space(agent)

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        env = self.aec
        env.reset(seed=seed, options=options)
        self.agents = env.agents[:]
        self._seen = {a: env.observe(a) for a in env.agents if not (env.terminations[a] or env.truncations[a])}
        return self._seen, dict(env.infos)

    def step(self, actions: dict[str, Any]) -> tuple[Any, Any, Any, Any, Any]:
        env = self.aec
        rewards: dict[str, float] = dict.fromkeys(env.agents, 0.0)
        for agent in tuple(env.agents):
            if agent != env.agent_selection:
                raise RuntimeError(f"expected every agent to act once in a cycle, in order; {agent} was passed over")
            env.step(actions[agent])
            for earner in env.agents:
                rewards[earner] = rewards.get(earner, 0.0) + env.rewards[earner]
        given = dict(env.terminations), dict(env.truncations), dict(env.infos)
        self._seen = {agent: env.observe(agent) for agent in env.agents}
        while env.agents and (env.terminations[env.agent_selection] or env.truncations[env.agent_selection]):
            env.step(None)
        self.agents = env.agents
        return self._seen, rewards, *given

    def state(self) -> Any:
        if self.state_is_joined:
            return np.concatenate([self._seen[agent] for agent in self.possible_agents])
        return self.aec.state()

    def render(self) -> Any:
        return self.aec.render()

    def close(self) -> None:
        self.aec.close()


class _Single(ParallelEnv):  # type: ignore[misc]  # PettingZoo ships no types
    """A Gymnasium environment as one with a single agent."""

    def __init__(self, env: Env) -> None:
        self.possible_agents = ["agent"]
        self.single, self.metadata, self.render_mode = env, dict(env.metadata), env.render_mode
        self.max_cycles = (
            env.get_wrapper_attr("_max_episode_steps") if env.has_wrapper_attr("_max_episode_steps") else None
        )

    def observation_space(self, agent: str) -> Space[Any]:
        return self.single.observation_space

    def action_space(self, agent: str) -> Space[Any]:
        return self.single.action_space

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        observation, info = self.single.reset(seed=seed, options=options)
        self.agents = ["agent"]
        return {"agent": observation}, {"agent": info}

    def step(self, actions: dict[str, Any]) -> tuple[Any, Any, Any, Any, Any]:
        observation, reward, terminated, truncated, info = self.single.step(actions["agent"])
        if terminated or truncated:
            self.agents = []
        given = observation, float(reward), terminated, truncated, info
        return tuple({"agent": value} for value in given)  # type: ignore[return-value]  # five of them

    def render(self) -> Any:
        return self.single.render()

    def close(self) -> None:
        self.single.close()


def _make(source: EnvironmentSpec | Callable[..., Any], name: str, kwargs: Mapping[str, Any]) -> Game:
    with making(name, kwargs):
        if isinstance(source, EnvironmentSpec):
            if _is_gymnasium(source.id):
                return _Simultaneous(_Single(make_environment(source, **kwargs)))
            kwargs = {**source.kwargs, **kwargs}
            source = import_callable(source.id) if is_callable_name(source.id) else _import_factory(source.id)
        return _game(source(**kwargs), name)


def _is_gymnasium(name: str) -> bool:
    return joint_module(name) is None and not is_callable_name(name)


def _game(env: Any, name: str) -> Game:
    if isinstance(env, gymnasium.Env):
        return _Simultaneous(_Single(env))
    if not isinstance(env, (AECEnv, ParallelEnv)):
        raise EnvironmentUnavailable(
            f"{name}: expected a PettingZoo ParallelEnv or AECEnv, or a gymnasium.Env, got {type(env).__name__}"
        )
    if not hasattr(env, "possible_agents"):
        raise EnvironmentUnavailable(f"{name}: expected possible_agents, all who may ever take part; it has none")
    if type(env) is aec_to_parallel_wrapper:
        return _Simultaneous(_Cycle(_unchecked(env.aec_env)))
    if isinstance(env, ParallelEnv):
        return _Simultaneous(env)
    bare = _unchecked(env)
    return _Simultaneous(bare.env) if isinstance(bare, parallel_to_aec_wrapper) else _Turns(bare)


def _import_factory(name: str) -> Callable[..., Any]:
    """`parallel_env`, or else `env`, of the module behind a name. Raises EnvironmentUnavailable or ImportError."""
    module = joint_module(name)
    assert module is not None
    with warnings.catch_warnings():
        # From 1.27 on each of PettingZoo's modules recommends its registry, which 1.25 does not have.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            missing = error.name or ""
            if f"{module}.".startswith(f"{missing}.") and missing not in ("pettingzoo", "mpe2"):
                raise unknown_environment(name) from error
            raise
    for factory in ("parallel_env", "env"):
        if hasattr(found, factory):
            return getattr(found, factory)  # type: ignore[no-any-return]  # attribute of a module
    raise EnvironmentUnavailable(f"environment {name!r}: {module} has neither parallel_env nor env")


def _unchecked(env: AECEnv) -> AECEnv:
    """The environment without PettingZoo's outer checks, which we make ourselves: they take a third of mpe2's step.

    `TerminateIllegalWrapper` stays: what we refuse never reaches it, and it covers masks that we do not know of.
    """
    while type(env) in (OrderEnforcingWrapper, AssertOutOfBoundsWrapper, ClipOutOfBoundsWrapper):
        env = env.env
    return env


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


def _playable(agent: str, space: Space[Any], action: Any, mask: Any) -> Any:
    """One action in the agent's own space, clipped to a box. Raises IllegalAction."""
    if isinstance(space, spaces.Discrete):
        try:
            index = operator.index(action) - int(space.start)
        except TypeError:  # no integer
            index = -1
        if not 0 <= index < space.n:
            raise IllegalAction(f"{agent} cannot play {action}: expected an action in {space}")
        if mask is not None and not mask[index] and np.any(mask):
            legal = (np.flatnonzero(mask) + space.start).tolist()
            raise IllegalAction(f"{agent} cannot play {action} now: expected one of the legal actions {legal}")
        return int(action)
    assert isinstance(space, spaces.Box)
    return np.minimum(np.maximum(np.reshape(action, space.shape), space.low), space.high).astype(space.dtype)


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
