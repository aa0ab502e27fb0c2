"""Games: one interface, with values by agent, for environments of PettingZoo's parallel and AEC APIs and Gymnasium.

A name is a Gymnasium id (the registry is asked first; the only agent is called `agent`), `package/name_v<n>`, or
`module:callable`. `package/name_v<n>` is PettingZoo's if the package is butterfly, sisl, classic or atari, else the
module `package.name_v<n>` (`mpe2/simple_spread_v3`, `magent2.environments/battle_v4`). The parallel API is preferred
where a module has both.
"""

from __future__ import annotations

import copy
import importlib
import itertools
import operator
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np
from gymnasium import Space, spaces
from pettingzoo import AECEnv, ParallelEnv
from pettingzoo.utils.conversions import aec_to_parallel_wrapper, parallel_to_aec_wrapper

from herdbook.core.environments import EnvironmentSpec, EnvironmentUnavailable, make_environment
from herdbook.core.joint.boundary import (
    EVERYONE,
    Agents,
    BadGame,
    flag,
    legal_actions,
    naming,
    number,
    parts,
    split_mask,
    without_mask,
)
from herdbook.core.joint.parallel import Cycle, Single, unchecked
from herdbook.core.registry import import_callable, is_callable_name, joint_module, making, unknown_environment
from herdbook.core.spaces import raw_actions

OTHERS = 1  # random stream, beside a reset seed, for agents that do not learn; the seed itself is the game's
PATIENCE = 1000
"""Steps for which a game goes on without learners that left it without a flag."""


class IllegalAction(ValueError):
    """An action that is missing, illegal, or outside its agent's space."""


class Moment(NamedTuple):
    """Outcome of a reset or a step, by agent, for the agents that act next and those that left with this step."""

    observations: dict[str, Any]
    """None for an agent that left and got no observation: its last one is repeated."""
    rewards: dict[str, Any]
    terminated: dict[str, bool]
    truncated: dict[str, bool]
    infos: dict[str, Any]


class Game(Protocol):
    """An environment whose values are dicts by agent."""

    env: Any
    """The PettingZoo environment, for state and pictures."""
    possible_agents: list[str]
    agents: list[str]
    """The agents that act next; empty when the episode is over."""
    turn_based: bool

    def spaces(self, agent: str) -> tuple[Space[Any], Space[Any]]:
        """(observation space, action space) of an agent."""

    def reset(self, seed: int) -> Moment: ...
    def step(self, actions: Mapping[str, Any]) -> Moment:
        """Step with the actions of all `agents`."""

    def cut(self, moment: Moment) -> Moment:
        """End the episode here: return `moment`, the last one, with every agent still in the game truncated."""


def make_game(source: EnvironmentSpec | Callable[..., Any], name: str, kwargs: Mapping[str, Any]) -> Game:
    """The game of a recorded spec or a callable. Raises EnvironmentUnavailable if it cannot be made."""
    with making(name, kwargs), naming(name):
        if isinstance(source, EnvironmentSpec):
            if is_gymnasium(source.id):
                return _Simultaneous(Single(make_environment(source, **kwargs)))
            kwargs = {**source.kwargs, **kwargs}
            source = import_callable(source.id) if is_callable_name(source.id) else _import_factory(source.id)
        return _game(source(**kwargs), name)


def is_gymnasium(name: str) -> bool:
    """True if a name can only be a Gymnasium id."""
    return joint_module(name) is None and not is_callable_name(name)


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
    """A game in which all agents act at once.

    An agent may leave without a flag and come back. One that is away when the episode ends counts as truncated.
    """

    turn_based = False

    def __init__(self, env: ParallelEnv) -> None:
        self.env, self._who = env, Agents(env)
        self.possible_agents, self.agents = self._who.names, list[str]()

    def spaces(self, agent: str) -> tuple[Space[Any], Space[Any]]:
        return self._who.spaces(agent)

    def reset(self, seed: int) -> Moment:
        observations, infos = parts("reset()", self.env.reset(seed=seed), "observations", "infos")
        observations, self.agents = self._who.named("observations", observations), self._who.listed(self.env.agents)
        self._away: list[str] = []
        seen = {agent: observations[agent] for agent in self.agents if agent in observations}
        return Moment(seen, {}, {}, {}, self._who.infos(infos))

    def step(self, actions: Mapping[str, Any]) -> Moment:
        who, given = self._who, self.env.step(self._who.to_own(actions))
        names = "observations", "rewards", "terminations", "truncations", "infos"
        observations, rewards, terminated, truncated, infos = parts("step()", given, *names)
        if self.env.agents == self.agents and not self._away and _nothing_happened(actions, *given[:4]):
            no = dict.fromkeys(actions, False)
            return Moment(observations, rewards, no, no, who.infos(infos))
        observations, rewards = who.named("observations", observations), who.named("rewards", rewards)
        present, acted = who.listed(self.env.agents), [*actions, *self._away]
        agents = {*acted, *present}
        ended = _flags("terminations", who.named("terminations", terminated, flags=True), agents)
        cut = _flags("truncations", who.named("truncations", truncated, flags=True), agents)
        self.agents = [agent for agent in present if not (ended[agent] or cut[agent])]
        left = [agent for agent in acted if agent not in self.agents]
        if not self.agents:
            cut |= {agent: True for agent in left if not ended[agent]}
        self._away = [agent for agent in left if not (ended[agent] or cut[agent])]
        seen = {agent: observations[agent] for agent in self.agents if agent in observations}
        seen |= {agent: observations.get(agent) for agent in left if agent in actions}
        ended, cut = ({agent: flags[agent] for agent in acted} for flags in (ended, cut))
        return Moment(seen, dict(rewards), ended, cut, who.infos(infos))

    def cut(self, moment: Moment) -> Moment:
        truncated = moment.truncated | dict.fromkeys(self.agents, True)
        self.agents = []
        return moment._replace(truncated=truncated)


class _Turns:
    """A turn-based game, through the AEC API."""

    turn_based = True

    def __init__(self, env: AECEnv) -> None:
        self.env, self._who = env, Agents(env)
        self.possible_agents, self.agents = self._who.names, list[str]()

    def spaces(self, agent: str) -> tuple[Space[Any], Space[Any]]:
        return self._who.spaces(agent)

    def reset(self, seed: int) -> Moment:
        self.env.reset(seed=seed)
        self._inside = dict.fromkeys(self._who.listed(self.env.agents))
        return self._advance()

    def step(self, actions: Mapping[str, Any]) -> Moment:
        self.env.step(actions[self.agents[0]])
        return self._advance()

    def _advance(self) -> Moment:
        """Go on to the next turn of an agent still in the game; remove ended agents on the way."""
        moment = Moment({}, {}, {}, {}, {})
        while self.env.agents:
            agent = self._who.name(self.env.agent_selection)
            names = "observation", "reward", "terminated", "truncated", "info"
            observation, reward, terminated, truncated, info = parts("last()", self.env.last(), *names)
            ended, cut = flag("terminations", agent, terminated), flag("truncations", agent, truncated)
            if ended or cut:  # the environment goes on, and may write into its own arrays
                observation, info = copy.deepcopy(observation), {}
            given = observation, number("rewards", agent, reward), ended, cut, info
            tables: tuple[dict[str, Any], ...] = moment
            for by_agent, value in zip(tables, given, strict=True):
                by_agent[agent] = value
            self._inside[agent] = None
            if not (ended or cut):
                self.agents = [agent]
                return moment
            del self._inside[agent]
            self.env.step(None)
        return self.cut(moment)  # agents that the game did not flag

    def cut(self, moment: Moment) -> Moment:
        observations, rewards, truncated = dict(moment.observations), dict(moment.rewards), dict(moment.truncated)
        for agent in self._inside:
            if agent not in observations:
                own = self._who.own[agent]
                observations[agent] = self.env.observe(own)
                rewards[agent] = self.env._cumulative_rewards.get(own, 0.0)
            truncated[agent] = True
        self._inside, self.agents = {}, []
        return moment._replace(observations=observations, rewards=rewards, truncated=truncated)


class Others:
    """A game as the learners see it: a policy plays the other agents, between or beside the learners' moves.

    Steps in which no learner acts are joined to the step before.
    """

    def __init__(self, game: Game, learners: Sequence[str], policy: Any) -> None:
        self.game, self.policy = game, policy
        self.env, self.turn_based = game.env, game.turn_based
        self.possible_agents = [agent for agent in game.possible_agents if agent in learners]
        theirs = {agent: game.spaces(agent) for agent in game.possible_agents if agent not in learners}
        self._beside = {agent: without_mask(agent, *both)[1] for agent, both in theirs.items()}
        self.agents: list[str] = []

    def spaces(self, agent: str) -> tuple[Space[Any], Space[Any]]:
        return self.game.spaces(agent)

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
        for waited in itertools.count():
            self._moment = moment
            seen = {a: o for a, o in self._ours(moment.observations).items() if o is not None or a not in total[0]}
            total.observations.update(seen)
            total.infos.update(self._ours(moment.infos))
            for agent, reward in self._ours(moment.rewards).items():
                total.rewards[agent] = total.rewards.get(agent, 0.0) + number("rewards", agent, reward)
            for flags, sums in ((moment.terminated, total.terminated), (moment.truncated, total.truncated)):
                for agent, ends in self._ours(flags).items():
                    sums[agent] = sums.get(agent, False) or ends
                    if ends:
                        self._expected.discard(agent)
            self.agents = [agent for agent in self.game.agents if agent in self.possible_agents]
            if self.agents or not self.game.agents or not self._expected or waited == PATIENCE:
                break
            total.observations.update(copy.deepcopy(seen))  # the environment may write into its own arrays
            moment = self.game.step(self._moves())
        return total

    def _ours(self, by_agent: Mapping[str, Any]) -> dict[str, Any]:
        return {agent: by_agent[agent] for agent in self.possible_agents if agent in by_agent}

    def _moves(self) -> dict[str, Any]:
        acting = [agent for agent in self.game.agents if agent not in self.possible_agents]
        if not acting:
            return {}
        seen, action_spaces = {agent: self._seen(agent) for agent in acting}, {a: self.spaces(a)[1] for a in acting}
        if self.policy is None:
            return {a: random_action(action_spaces[a], mask, self._random) for a, (_, mask) in seen.items()}
        views = {a: o if mask is None else {"observation": o, "action_mask": mask} for a, (o, mask) in seen.items()}
        given = self.policy.act(views)
        if missing := [agent for agent in acting if agent not in given]:
            raise IllegalAction(f"expected actions of {missing} from the policy of the other agents, got none")
        return {agent: playable(agent, action_spaces[agent], given[agent], mask) for agent, (_, mask) in seen.items()}

    def _seen(self, agent: str) -> tuple[Any, Any]:
        """(observation, action mask or None) of an agent that acts now."""
        moment, (_, action_space) = self._moment, self.spaces(agent)
        if moment.observations.get(agent) is None:
            raise BadGame(f"observations: expected one of {agent}, which acts next, got none")
        given, info = moment.observations[agent], moment.infos.get(agent)
        observation, mask = split_mask(agent, given, self._beside[agent], info)
        if mask is None or not isinstance(action_space, spaces.Discrete):
            return observation, None
        return observation, legal_actions(agent, mask, int(action_space.n))


def _nothing_happened(actions: Mapping[str, Any], *given: Any) -> bool:
    """True if observations, rewards and flags are plain dicts of the agents that acted, and no flag is set.

    A quick answer for most steps.
    """
    if not all(type(part) is dict and part.keys() == actions.keys() for part in given):
        return False
    return all(value is False for flags in given[2:] for value in flags.values())


def _flags(field: str, given: Mapping[str, Any], agents: Iterable[str]) -> dict[str, bool]:
    """The flags of these agents; a missing one is False."""
    with suppress(ValueError):  # an array of several, which is named below
        if not any(given.values()):
            return dict.fromkeys(agents, False)
    everyone = flag(field, EVERYONE, given.get(EVERYONE, False))
    return {agent: everyone or flag(field, agent, given.get(agent, False)) for agent in agents}


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
