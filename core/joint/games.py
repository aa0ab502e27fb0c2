"""Games: one interface, with values by agent, for environments of PettingZoo's parallel and AEC APIs and Gymnasium.

A name is a Gymnasium id (the registry is asked first; the only agent is called `agent`), `package/name_v<n>`, or
`module:callable`. `package/name_v<n>` is PettingZoo's if the package is butterfly, sisl, classic or atari, else the
module `package.name_v<n>` (`mpe2/simple_spread_v3`, `magent2.environments/battle_v4`). The parallel API is preferred
where a module has both.
"""

from __future__ import annotations

import importlib
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np
from gymnasium import Space, spaces
from pettingzoo import AECEnv, ParallelEnv
from pettingzoo.utils.conversions import aec_to_parallel_wrapper, parallel_to_aec_wrapper

from herdbook.core.environments import EnvironmentSpec, EnvironmentUnavailable, make_environment
from herdbook.core.joint.parallel import Cycle, Single, unchecked
from herdbook.core.registry import import_callable, is_callable_name, joint_module, making, unknown_environment
from herdbook.core.spaces import raw_actions

OTHERS = 1  # random stream, beside a reset seed, for agents that do not learn; the seed itself is the game's


class IllegalAction(ValueError):
    """An action that is missing, illegal, or outside its agent's space."""


class Moment(NamedTuple):
    """Outcome of a reset or a step, by agent, for the agents that act next and those that left with this step."""

    observations: dict[str, Any]
    rewards: dict[str, float]
    terminated: dict[str, bool]
    truncated: dict[str, bool]
    infos: dict[str, Any]


class Game(Protocol):
    """An environment whose values are dicts by agent."""

    env: Any
    """The PettingZoo environment, for spaces, state and pictures."""
    possible_agents: list[str]
    agents: list[str]
    """The agents that act next; empty when the episode is over."""
    turn_based: bool

    def reset(self, seed: int) -> Moment: ...
    def step(self, actions: Mapping[str, Any]) -> Moment:
        """Step with the actions of all `agents`."""

    def cut(self, moment: Moment) -> Moment:
        """End the episode here: return `moment`, the last one, with every agent still in the game truncated."""


def make_game(source: EnvironmentSpec | Callable[..., Any], name: str, kwargs: Mapping[str, Any]) -> Game:
    """The game of a recorded spec or a callable. Raises EnvironmentUnavailable if it cannot be made."""
    with making(name, kwargs):
        if isinstance(source, EnvironmentSpec):
            if is_gymnasium(source.id):
                return _Simultaneous(Single(make_environment(source, **kwargs)))
            kwargs = {**source.kwargs, **kwargs}
            source = import_callable(source.id) if is_callable_name(source.id) else _import_factory(source.id)
        return _game(source(**kwargs), name)


def is_gymnasium(name: str) -> bool:
    """True if a name can only be a Gymnasium id."""
    return joint_module(name) is None and not is_callable_name(name)


def split_mask(observation: Any, info: Any) -> tuple[Any, Any]:
    """(observation, action mask or None). PettingZoo keeps the mask in the observation or in the info."""
    if isinstance(observation, Mapping) and "action_mask" in observation and "observation" in observation:
        return observation["observation"], observation["action_mask"]
    return observation, info.get("action_mask") if info else None


def random_action(space: Space[Any], mask: Any, generator: np.random.Generator) -> Any:
    """One uniform action among the legal ones (`mask`; None: all) or in a box; normal where the box is unbounded."""
    if isinstance(space, spaces.Discrete):
        legal = np.arange(int(space.n)) if mask is None or not np.any(mask) else np.flatnonzero(mask)
        return int(space.start + legal[generator.integers(len(legal))])
    assert isinstance(space, spaces.Box)
    if space.is_bounded():
        return generator.uniform(space.low, space.high)
    return np.clip(generator.normal(size=space.shape), space.low, space.high)


def playable(agent: str, space: Space[Any], action: Any, mask: Any) -> Any:
    """One action in the agent's own space; Box actions are clipped. Raises IllegalAction."""
    if isinstance(space, spaces.Discrete):
        try:
            index = operator.index(action) - int(space.start)
        except TypeError:
            index = -1
        if not 0 <= index < space.n:
            raise IllegalAction(f"{agent} cannot play {action}: expected an action in {space}")
        if mask is not None and not mask[index] and np.any(mask):
            legal = (np.flatnonzero(mask) + space.start).tolist()
            raise IllegalAction(f"{agent} cannot play {action} now: expected one of the legal actions {legal}")
        return int(action)
    assert isinstance(space, spaces.Box)
    return raw_actions(space, np.reshape(action, -1))


class _Simultaneous:
    """A game in which all agents act at once. An agent that vanishes without a flag counts as truncated."""

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
        cut = {a: bool(truncated.get(a)) or (a not in present and not flag) for a, flag in ended.items()}
        seen = {agent: observations[agent] for agent in self.agents if agent in observations}
        for agent in actions:
            if agent not in seen and (ended[agent] or cut[agent]):  # the last observation may be missing: repeat one
                seen[agent] = observations.get(agent, self._last.get(agent))
        self._last = observations
        return Moment(seen, rewards, ended, cut, infos)

    def cut(self, moment: Moment) -> Moment:
        truncated = moment.truncated | dict.fromkeys(self.agents, True)
        self.agents = []
        return moment._replace(truncated=truncated)


class _Turns:
    """A turn-based game, through the AEC API."""

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
        """Go on to the next turn of an agent still in the game; remove ended agents on the way."""
        moment = Moment({}, {}, {}, {}, {})
        while self.env.agents:
            agent = self.env.agent_selection
            observation, reward, terminated, truncated, info = self.env.last()
            given = observation, reward, bool(terminated), bool(truncated), info
            parts: tuple[dict[str, Any], ...] = moment
            for by_agent, value in zip(parts, given, strict=True):
                by_agent[agent] = value
            self._inside[agent] = None
            if not (terminated or truncated):
                self.agents = [agent]
                return moment
            del self._inside[agent]
            self.env.step(None)
        return self.cut(moment)  # agents that the game did not flag

    def cut(self, moment: Moment) -> Moment:
        observations, rewards, truncated = dict(moment.observations), dict(moment.rewards), dict(moment.truncated)
        for agent in self._inside:
            if agent not in observations:
                observations[agent] = self.env.observe(agent)
                rewards[agent] = self.env._cumulative_rewards.get(agent, 0.0)
            truncated[agent] = True
        self._inside, self.agents = {}, []
        return moment._replace(observations=observations, rewards=rewards, truncated=truncated)


class Others:
    """A game as the learners see it: a policy plays the other agents, between or beside the learners' moves."""

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
        """Go on until a learner acts, or no learner can act any more."""
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
        acting = [agent for agent in self.game.agents if agent not in self.possible_agents]
        if not acting:
            return {}
        seen = {a: split_mask(self._moment.observations[a], self._moment.infos.get(a)) for a in acting}
        action_spaces = {agent: self.env.action_space(agent) for agent in acting}
        if self.policy is None:
            return {a: random_action(action_spaces[a], mask, self._random) for a, (_, mask) in seen.items()}
        views = {a: o if mask is None else {"observation": o, "action_mask": mask} for a, (o, mask) in seen.items()}
        given = self.policy.act(views)
        if missing := [agent for agent in acting if agent not in given]:
            raise IllegalAction(f"expected actions of {missing} from the policy of the other agents, got none")
        return {agent: playable(agent, action_spaces[agent], given[agent], mask) for agent, (_, mask) in seen.items()}


def _game(env: Any, name: str) -> Game:
    if isinstance(env, gymnasium.Env):
        return _Simultaneous(Single(env))
    if not isinstance(env, (AECEnv, ParallelEnv)):
        came = type(env).__name__
        raise EnvironmentUnavailable(f"{name}: expected a ParallelEnv, an AECEnv or a gymnasium.Env, got {came}")
    if not hasattr(env, "possible_agents"):
        raise EnvironmentUnavailable(f"{name}: expected an environment with possible_agents, got none")
    if type(env) is aec_to_parallel_wrapper:
        return _Simultaneous(Cycle(unchecked(env.aec_env)))
    if isinstance(env, ParallelEnv):
        return _Simultaneous(env)
    bare = unchecked(env)
    return _Simultaneous(bare.env) if isinstance(bare, parallel_to_aec_wrapper) else _Turns(bare)


def _import_factory(name: str) -> Callable[..., Any]:
    """`parallel_env`, else `env`, of a name's module. Raises EnvironmentUnavailable or ImportError."""
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
