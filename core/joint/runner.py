"""`JointRunner`: plays episodes with many agents, for evaluation, collection and online learning.

Environments run in this process, one per lane, in lockstep: the policy is called once per step for all lanes and
agents. Every episode is reset with its own seed and played to its end.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor

from herdbook.core.environments import EnvironmentUnavailable
from herdbook.core.joint.boundary import BadGame, naming
from herdbook.core.joint.environments import (
    JointEnvironment,
    JointSource,
    Rows,
    check_reset,
    make_joint_environment,
    with_others,
)
from herdbook.core.joint.games import IllegalAction
from herdbook.core.joint.rounds import in_rounds
from herdbook.core.joint.types import ByKind, JointEpisode, JointSpec, all_legal
from herdbook.core.notices import notice
from herdbook.core.registry import cause
from herdbook.core.runner import UNDECLARED_LIMIT, EnvironmentFailed, PolicyFailed, no_limit
from herdbook.core.spaces import alike, executed, zeros
from herdbook.core.trees import indexed, mapped, write
from herdbook.core.types import Array, Policy, Step, Turn, to_numpy, tree_leaves

ROWS = 64
"""Initial number of rows of a log."""


@dataclass(frozen=True)
class PlayedEpisodes:
    """Episodes of a list of reset seeds."""

    episodes: list[JointEpisode | None]
    """In the order of the seeds; None where the environment failed."""
    failures: list[str]
    """Environment, reset seed, step and cause of each failure."""


class JointRunner:
    """Plays whole episodes in parallel environments with a joint policy.

    Args:
        source: The environment, as in `make_joint_environment`.
        num_envs: Number of environments (lanes).
        max_steps: Truncate episodes after this many steps, on top of the environment's own limit; turns of one agent in
            a turn-based game.
        device: Device of the policy.
        spec: The task that the policy was trained on; it must be the environment's.
        learners: Names or patterns of the agents that the policy plays; None: all.
        others: Policy of the other agents, as in `with_others`, copied for each lane; None: random.
        state: Record the global state, if there is one.

    An environment whose `reset(seed)` does not determine its state is rebuilt for each episode, with a notice.

    Raises:
        EnvironmentUnavailable: The environment cannot be made, breaks PettingZoo's interface in its first steps, or has
            other agents or spaces than `spec`.
        EnvironmentFailed: The environment raised in its first steps.
        IllegalAction: `others` gave an illegal action, now or later.
    """

    def __init__(
        self,
        source: JointSource,
        num_envs: int,
        *,
        max_steps: int | None = None,
        device: str | torch.device = "cpu",
        spec: JointSpec | None = None,
        learners: Sequence[str] | None = None,
        others: Any = None,
        state: bool = True,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"expected num_envs >= 1, got {num_envs}")
        if max_steps is not None and max_steps < 1:
            raise ValueError(f"expected max_steps >= 1, got {max_steps}")
        if others is not None and learners is None:
            raise ValueError(f"expected learners beside others, got others={others!r} alone")
        self.envs: list[JointEnvironment] = []
        for _ in range(num_envs):  # the other agents' policy is copied, so that each lane has a memory of its own
            env = make_joint_environment(source)
            self.envs.append(env if learners is None else with_others(env, learners, copy.deepcopy(others)))
        if len({id(env.game.env.unwrapped) for env in self.envs}) < num_envs:
            raise ValueError(f"expected a new environment from each call of {source}, got the same one again")
        env = self.envs[0]
        self.device, self.state = torch.device(device), state
        self.limit_declared = max_steps is not None or env.declares_limit
        limits = [limit for limit in (max_steps, env.max_steps) if limit is not None]
        if not self.limit_declared:
            limits.append(UNDECLARED_LIMIT)
        for each in self.envs:
            each.max_steps, each.with_state, each.told = min(limits, default=None), state, env.told
        try:
            with naming(env.name):
                self.rebuild = not check_reset(env)
        except (EnvironmentUnavailable, IllegalAction):  # the latter of the other agents' policy
            raise
        except Exception as error:  # an environment may raise anything, here and below
            raise EnvironmentFailed(f"{env.name}: its first steps raised {cause(error)}") from error
        for each in self.envs:
            each.spec = env.spec
        self.spec = env.spec
        if spec is not None:
            _check_spec(spec, self.spec, env.name)
        if self.rebuild:
            notice(f"{env.name}: reset(seed) does not determine the state, so it is rebuilt for each episode")
        self._nothing = {k.name: _nothing(k.action_space, num_envs, len(k.agents)) for k in self.spec.kinds}
        self._inexact: dict[str, list[tuple[int, spaces.Box]]] = {k.name: [] for k in self.spec.kinds}
        """Row and space of the agents whose Box is not of float32."""
        for kind in self.spec.kinds:
            for row, agent in enumerate(kind.agents):
                space = self.spec.action_spaces[agent]
                if isinstance(space, spaces.Box) and space.dtype != np.float32:
                    self._inexact[kind.name].append((row, space))
        self._numbers = {k.name: [self.spec.index[agent] for agent in k.agents] for k in self.spec.kinds}

    def run(
        self,
        policy: Policy,
        seeds: Iterable[int],
        generator: torch.Generator | None = None,
        *,
        watch: Callable[[JointEnvironment], object] | None = None,
    ) -> PlayedEpisodes:
        """Play one episode for every reset seed; a free lane takes the next seed.

        If an environment raises or gives NaN, its episode is lost and the environment is rebuilt; the others go on.
        `watch` is called with each playing environment before every step and after its last.

        Raises:
            PolicyFailed: The policy gave an action that is not finite.
            ValueError: The policy's actions have the wrong shape or type, or are illegal.
        """
        seeds, lanes = [int(seed) for seed in seeds], range(len(self.envs))
        played, log = PlayedEpisodes([None] * len(seeds), []), _Log(self.spec, len(lanes), self.state)
        waiting, current = (Turn(*each) for each in enumerate(seeds)), dict[int, _Begun]()
        for lane in lanes:
            self._begin(lane, current, waiting, log, played)
        carry, previous = policy.initial(len(lanes)), self._nothing
        acted = np.zeros((len(lanes), len(self.spec.agents)), dtype=np.bool_)
        while current:
            rows, row = log.now, log.row
            if watch is not None:
                for lane in current:
                    watch(self.envs[lane])
            first = np.array([lane not in current or current[lane].start == row for lane in lanes])
            previous = {name: _where(first, self._nothing[name], leaf) for name, leaf in previous.items()}
            acted &= ~first[:, None]
            with torch.no_grad():
                chosen, carry = policy(self._seen(rows, previous, acted, first), carry, generator)
            actions = self._checked(chosen)
            for name, leaf in actions.items():
                acting = rows.alive[:, self._numbers[name]]
                log.actions[name][log.index] = _where(acting, leaf, self._nothing[name])
                previous[name] = _where(acting, leaf, previous[name])  # in a turn-based game, of the agent's last turn
            acted |= rows.alive
            log.advance(min(begun.start for begun in current.values()))
            for lane, fault in self._step(current, actions, log).items():
                begun = current.pop(lane)
                if watch is not None:
                    watch(self.envs[lane])
                if fault is None:
                    played.episodes[begun.turn.number] = self._episode(lane, begun, log)
                else:
                    self._lose(lane, fault, begun.turn.seed, row - begun.start, played)
                self._begin(lane, current, waiting, log, played)
        return played

    def close(self) -> None:
        for env in self.envs:
            env.close()

    def _begin(
        self, lane: int, current: dict[int, _Begun], waiting: Iterator[Turn], log: _Log, played: PlayedEpisodes
    ) -> None:
        """Begin the next episode in a lane, skipping seeds whose reset fails; the lane rests when none is left."""
        for turn in waiting:
            try:
                if self.rebuild:
                    self.envs[lane].renew()
                log.write(lane, self.envs[lane].reset(turn.seed))
                fault = log.fault(lane)
            except IllegalAction:
                raise
            except Exception as error:
                fault = _described(error)
            if fault is None:
                current[lane] = _Begun(turn, log.row)
                return
            self._lose(lane, fault, turn.seed, 0, played)
        log.write(lane, log.blank)

    def _step(self, current: Mapping[int, _Begun], actions: ByKind, log: _Log) -> dict[int, str | None]:
        """Step the playing lanes. Returns lanes whose episode is over: None, or the cause of its loss."""
        over: dict[int, str | None] = {}
        for lane in current:
            try:
                log.write(lane, self.envs[lane].step({name: leaf[lane] for name, leaf in actions.items()}))
            except IllegalAction:
                raise
            except Exception as error:
                over[lane] = _described(error)
        if not log.finite():
            faults = {lane: log.fault(lane) for lane in current if lane not in over}
            over |= {lane: fault for lane, fault in faults.items() if fault is not None}
        return over | {lane: None for lane in current if lane not in over and not log.plays(lane)}

    def _lose(self, lane: int, fault: str, seed: int, step: int, played: PlayedEpisodes) -> None:
        name = self.envs[lane].name
        played.failures.append(f"{name} {fault} (reset seed {seed}, step {step}); this episode is lost")
        self.envs[lane].renew()

    def _episode(self, lane: int, begun: _Begun, log: _Log) -> JointEpisode:
        episode = log.episode(lane, begun)
        if self.spec.turn_based:
            episode = in_rounds(self.spec, episode)
        if not self.limit_declared and len(episode) >= UNDECLARED_LIMIT and episode.truncated[-1].any():
            notice(no_limit(self.envs[lane].name, UNDECLARED_LIMIT))
        return episode

    def _seen(self, rows: Rows, previous: ByKind, acted: Array, first: Array) -> Step:
        begins = self._tensor(first)
        return Step(
            observations=mapped(self._tensor, rows.observations),
            previous_actions=mapped(self._tensor, previous),
            previous_rewards=self._tensor(np.where(acted, rows.rewards, 0).astype(np.float32)),
            first=begins,
            reset=begins,
            action_mask=mapped(self._tensor, rows.action_mask),
            alive=self._tensor(rows.alive),
        )

    def _tensor(self, array: Array) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _checked(self, chosen: Any) -> ByKind:
        """The policy's actions as arrays, Box actions clipped. Raises ValueError or PolicyFailed."""
        if not isinstance(chosen, Mapping) or chosen.keys() != self._nothing.keys():
            given = list(chosen) if isinstance(chosen, Mapping) else type(chosen).__name__
            raise ValueError(f"expected actions of the kinds {list(self._nothing)}, the policy gave {given}")
        actions = {}
        for kind in self.spec.kinds:
            array, space, shape = to_numpy(chosen[kind.name]), kind.action_space, self._nothing[kind.name].shape
            if array.shape != shape:
                raise ValueError(f"expected actions of shape {shape} for {kind.name}, the policy gave {array.shape}")
            if isinstance(space, spaces.Discrete):
                if array.dtype.kind not in "iu":
                    raise ValueError(f"expected integer actions of {kind.name}, {space}, the policy gave {array.dtype}")
                actions[kind.name] = array.astype(np.int64)
                continue
            if not np.isfinite(array).all():
                raise PolicyFailed(f"the policy gave an action of {kind.name} that is not finite: {array.tolist()}")
            assert isinstance(space, spaces.Box)
            clipped = np.clip(array.astype(np.float32), space.low, space.high)
            for row, own in self._inexact[kind.name]:
                clipped[:, row] = executed(own, clipped[:, row])
            actions[kind.name] = clipped
        return actions


class _Begun(NamedTuple):
    turn: Turn
    start: int  # row of the first observation


class _Log:
    """Rows and actions of all lanes since the start of the oldest unfinished episode: leaves `[rows, lanes, …]`.

    Row numbers count from the beginning of the run. The rewards and flags of a row are the outcome of the step that led
    to it, as in `Rows`; the actions of a row are taken there.
    """

    def __init__(self, spec: JointSpec, lanes: int, state: bool) -> None:
        self.spec, self.lanes, self.state = spec, lanes, state and spec.state_space is not None
        self.row, self.dropped = 0, 0
        self._allocate(ROWS)
        self.blank = _rows(lambda leaf: leaf[0, 0].copy(), self.rows)

    @property
    def index(self) -> int:
        """Position of the present row in the tables."""
        return self.row - self.dropped

    @property
    def now(self) -> Rows:
        """The present row: leaves `[lanes, …]`."""
        return _rows(lambda leaf: leaf[self.index], self.rows)

    def plays(self, lane: int) -> bool:
        return bool(self.rows.alive[self.index, lane].any())

    def write(self, lane: int, rows: Rows) -> None:
        """Store a lane's part of the present row."""
        for table, value in zip(self.rows, rows, strict=True):
            if table is not None:
                write(table, (self.index, lane), value)

    def advance(self, oldest: int) -> None:
        """Begin the next row. Rows before `oldest` are no longer needed."""
        self.row += 1
        if self.index < len(self.rows.alive):
            return
        old, kept = (self.actions, *self.rows), slice(oldest - self.dropped, None)
        self.dropped = oldest
        self._allocate(max(ROWS, 2 * self.index))
        for table, leaves in zip((self.actions, *self.rows), old, strict=True):
            if table is not None:
                write(table, slice(self.index), indexed(leaves, kept))

    def finite(self) -> bool:
        """True if every value of the present row is finite."""
        return all(np.isfinite(leaf[self.index]).all() for leaf in self._floats)

    def fault(self, lane: int) -> str | None:
        """Description of the first non-finite value of a lane's present row; None if all are finite."""
        rows = self.now
        for kind in self.spec.kinds:
            for leaf in tree_leaves(rows.observations[kind.name]):
                finite = np.isfinite(leaf[lane]).reshape(len(kind.agents), -1).all(1)
                if not finite.all():
                    return f"gave {kind.agents[int(finite.argmin())]} an observation that is not finite"
        if not np.isfinite(rows.rewards[lane]).all():
            return f"gave rewards that are not finite, {rows.rewards[lane].tolist()}"
        if not all(np.isfinite(leaf[lane]).all() for leaf in tree_leaves(rows.state) if leaf is not None):
            return "gave a state that is not finite"
        return None

    def episode(self, lane: int, begun: _Begun) -> JointEpisode:
        """The record of an episode, from its first row to the present one."""
        window = slice(begun.start - self.dropped, self.index + 1)
        rows = _rows(lambda leaf: leaf[window, lane].copy(), self.rows)._asdict()
        outcomes = {name: rows[name][1:] for name in ("rewards", "terminated", "truncated")}
        actions = {name: leaf[window, lane][:-1].copy() for name, leaf in self.actions.items()}
        if not self.spec.turn_based:
            _end_at_last_acts(rows["alive"], outcomes["terminated"], outcomes["truncated"])
        return JointEpisode(**{**rows, **outcomes}, actions=actions, metadata={"seed": begun.turn.seed})

    def _allocate(self, rows: int) -> None:
        """Make new tables. In unwritten rows no agent is alive and every action is legal."""
        lead, spec = (rows, self.lanes), self.spec
        alive, terminated, truncated = np.zeros((3, *lead, len(spec.agents)), dtype=np.bool_)
        self.rows = Rows(
            observations={k.name: zeros(k.observation_space, *lead, len(k.agents)) for k in spec.kinds},
            action_mask=all_legal(spec, *lead) if spec.masked else None,
            alive=alive,
            state=zeros(spec.state_space, *lead) if self.state and spec.state_space is not None else None,
            rewards=np.zeros((*lead, len(spec.agents))),
            terminated=terminated,
            truncated=truncated,
        )
        self.actions = {k.name: zeros(k.action_space, *lead, len(k.agents)) for k in spec.kinds}
        self._floats = [leaf for leaf in tree_leaves(self.rows) if leaf is not None and leaf.dtype.kind == "f"]


def _end_at_last_acts(alive: Array, terminated: Array, truncated: Array) -> None:
    """Move the end of each agent to the last step at which it acts; without a flag it is truncated there. In place.

    The flags of an agent that pauses may come while it is away.
    """
    acts = alive[:-1]
    last = len(acts) - 1 - acts[::-1].argmax(0)  # [N]
    agents = np.arange(acts.shape[1])
    unflagged = acts.any(0) & ~(terminated | truncated)[last, agents]
    for agent in np.flatnonzero(unflagged):
        away, end = slice(last[agent] + 1, None), last[agent]
        terminated[end, agent] = terminated[away, agent].any()
        truncated[end, agent] = truncated[away, agent].any() or not terminated[end, agent]
        terminated[away, agent] = truncated[away, agent] = False


def _described(error: Exception) -> str:
    return f"broke its interface: {error}" if isinstance(error, BadGame) else f"raised {cause(error)}"


def _check_spec(wanted: JointSpec, found: JointSpec, name: str) -> None:
    """Raise EnvironmentUnavailable unless the environment has the agents and spaces that the policy was trained on."""

    def refuse(what: str, expected: Any, got: Any) -> None:
        advice = "check the environment's id, version and keyword arguments, and the agents that learn"
        raise EnvironmentUnavailable(f"{name}: expected {what} {expected}, as in training, got {got}; {advice}")

    if wanted.agents != found.agents:
        refuse("the agents", list(wanted.agents), list(found.agents))
    for own, kind in zip(wanted.kinds, found.kinds, strict=False):
        if own.agents != kind.agents:
            refuse("agents of equal spaces", list(own.agents), list(kind.agents))
        for what in ("observation_space", "action_space"):
            mine, theirs = getattr(own, what), getattr(kind, what)
            same_bounds = what == "observation_space" or not isinstance(mine, spaces.Box) or mine == theirs
            if not (alike(mine, theirs) and same_bounds):
                refuse(f"{what} of {kind.name}", mine, theirs)
    for what in ("masked", "turn_based"):
        if getattr(wanted, what) != getattr(found, what):
            refuse(f"{what}:", getattr(wanted, what), getattr(found, what))


def _nothing(space: Space[Any], *lead: int) -> Array:
    """Actions of agents that do not act: zeros, or the first discrete action."""
    return np.full(lead, space.start) if isinstance(space, spaces.Discrete) else zeros(space, *lead)


def _where(condition: Array, yes: Any, no: Any) -> Array:
    """`np.where` with a condition over the leading axes."""
    chosen: Array = np.where(condition.reshape(*condition.shape, *(1,) * (np.ndim(no) - condition.ndim)), yes, no)
    return chosen


def _rows(function: Callable[[Array], Array], rows: Rows) -> Rows:
    return Rows(*[mapped(function, field) for field in rows])
