"""`JointRunner`: the one loop in which evaluation, collection and learning online play episodes with many agents.

Environments live in this process, one per lane, and step in lockstep: the policy is called once per step for all lanes
and agents. Every episode is reset with a seed of its own and played to its end, so that its final observations and
rewards are in its record.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor
from torch.utils._pytree import tree_leaves

from herdbook.core.environments import EnvironmentUnavailable
from herdbook.core.joint.environments import (
    JointEnvironment,
    JointSource,
    Rows,
    all_legal,
    check_reset,
    make_joint_environment,
    with_others,
)
from herdbook.core.joint.games import IllegalAction
from herdbook.core.joint.rounds import in_rounds
from herdbook.core.joint.types import ByKind, JointEpisode, JointSpec
from herdbook.core.runner import UNDECLARED_LIMIT, EnvironmentFailed, PolicyFailed
from herdbook.core.spaces import alike, zeros
from herdbook.core.trees import indexed, mapped, write
from herdbook.core.types import Array, Policy, Step, Turn, to_numpy

ROWS = 64
"""Steps that a log holds at first."""


@dataclass(frozen=True)
class PlayedEpisodes:
    """What became of a list of reset seeds."""

    episodes: list[JointEpisode | None]
    """In the order of the seeds; None where the environment failed."""
    failures: list[str]
    """Why: environment, reset seed, step and cause."""


class JointRunner:
    """Plays whole episodes in environments side by side with a joint policy.

    Args:
        source: What `make_joint_environment` takes.
        num_envs: Lanes.
        max_steps: Cut (truncate) episodes after so many steps, on top of the environment's own limit; in a turn-based
            game after so many turns of an agent.
        device: Where the policy's tensors live.
        spec: The task that the policy was trained on; it must be the environment's.
        learners: Names or patterns of the agents that the policy plays; None for all.
        others: Who plays the others, as `with_others` takes it, copied for each lane. None: they play at random.
        state: Whether the global state is recorded, where there is one.

    An environment whose `reset(seed)` does not determine its state is made anew for each episode, with a warning.

    Raises:
        EnvironmentUnavailable: The environment cannot be made, or has other agents or spaces than `spec`.
        EnvironmentFailed: It raised in its first steps.
        IllegalAction: `others` gave an action that is not legal, then or later.
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
            raise ValueError(f"expected learners, beside whom others play; got others={others!r} alone")
        self.envs = [_make(source, learners, others) for _ in range(num_envs)]
        if len({id(env.game.env.unwrapped) for env in self.envs}) < num_envs:
            raise ValueError(f"expected a new environment from each call of {source}, got the same one again")
        env = self.envs[0]
        self.spec, self.device, self.state = env.spec, torch.device(device), state
        if spec is not None:
            _check_spec(spec, self.spec, env.name)
        self.limit_declared = max_steps is not None or env.declares_limit
        limits = [limit for limit in (max_steps, env.max_steps) if limit is not None]
        if not self.limit_declared:
            limits.append(UNDECLARED_LIMIT)
        for each in self.envs:
            each.max_steps, each.with_state = min(limits, default=None), state
        try:
            self.rebuild = not check_reset(env)
        except IllegalAction:  # of those who play beside the learners
            raise
        except Exception as error:  # whatever the environment's own code raises; so below
            raise EnvironmentFailed(f"{env.name} raised {type(error).__name__} in its first steps: {error}") from error
        if self.rebuild:
            warnings.warn(
                f"{env.name}: reset(seed) does not determine the state, so it is made anew for each episode",
                stacklevel=2,
            )
        self._nothing = {k.name: _nothing(k.action_space, num_envs, len(k.agents)) for k in self.spec.kinds}
        self._numbers = {k.name: [self.spec.index[agent] for agent in k.agents] for k in self.spec.kinds}

    def run(
        self,
        policy: Policy,
        seeds: Iterable[int],
        generator: torch.Generator | None = None,
        *,
        watch: Callable[[JointEnvironment], object] | None = None,
    ) -> PlayedEpisodes:
        """Play one episode for every reset seed, to its end; a lane that is free takes the next seed.

        An environment that raises, or gives NaN, loses that episode and is made anew; the others go on. `watch` is
        called with each environment that plays, before every step and after its last.

        Raises:
            PolicyFailed: The policy gave an action that is not finite.
            ValueError: The policy's actions have the wrong shape or type, or are not legal.
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
                previous[name] = _where(acting, leaf, previous[name])  # of a turn-based game: of its last own turn
            acted |= rows.alive
            log.advance(min(begun.start for begun in current.values()))
            for lane, cause in self._step(current, actions, log).items():
                begun = current.pop(lane)
                if watch is not None:
                    watch(self.envs[lane])
                if cause is None:
                    played.episodes[begun.turn.number] = self._episode(lane, begun, log)
                else:
                    self._lose(lane, cause, begun.turn.seed, row - begun.start, played)
                self._begin(lane, current, waiting, log, played)
        return played

    def close(self) -> None:
        """Close every environment."""
        for env in self.envs:
            env.close()

    def _begin(
        self, lane: int, current: dict[int, _Begun], waiting: Iterator[Turn], log: _Log, played: PlayedEpisodes
    ) -> None:
        """Reset a lane with the next seed that its environment can be reset with; it rests when there is none."""
        for turn in waiting:
            try:
                if self.rebuild:
                    self.envs[lane].renew()
                log.write(lane, self.envs[lane].reset(turn.seed))
                cause = log.fault(lane)
            except IllegalAction:
                raise
            except Exception as error:
                cause = f"raised {type(error).__name__}: {error}"
            if cause is None:
                current[lane] = _Begun(turn, log.row)
                return
            self._lose(lane, cause, turn.seed, 0, played)
        log.write(lane, log.blank)

    def _step(self, current: Mapping[int, _Begun], actions: ByKind, log: _Log) -> dict[int, str | None]:
        """Step the lanes that play. Those whose episode is over: None, or why it is lost."""
        over: dict[int, str | None] = {}
        for lane in current:
            try:
                log.write(lane, self.envs[lane].step({name: leaf[lane] for name, leaf in actions.items()}))
            except IllegalAction:
                raise
            except Exception as error:
                over[lane] = f"raised {type(error).__name__}: {error}"
        if not log.finite():
            faults = {lane: log.fault(lane) for lane in current if lane not in over}
            over |= {lane: fault for lane, fault in faults.items() if fault is not None}
        return over | {lane: None for lane in current if lane not in over and not log.plays(lane)}

    def _lose(self, lane: int, cause: str, seed: int, step: int, played: PlayedEpisodes) -> None:
        name = self.envs[lane].name
        played.failures.append(f"{name} {cause} (reset seed {seed}, step {step}); this episode is lost")
        self.envs[lane].renew()

    def _episode(self, lane: int, begun: _Begun, log: _Log) -> JointEpisode:
        episode = log.episode(lane, begun)
        if self.spec.turn_based:
            episode = in_rounds(self.spec, episode)
        if not self.limit_declared and len(episode) >= UNDECLARED_LIMIT and episode.truncated[-1].any():
            warnings.warn(
                f"{self.envs[lane].name} declares no time limit; its episodes are cut after {UNDECLARED_LIMIT} steps: "
                "pass max_steps",
                stacklevel=3,
            )
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
        """The policy's actions as arrays, boxes clipped. Raises ValueError or PolicyFailed."""
        if not isinstance(chosen, Mapping) or chosen.keys() != self._nothing.keys():
            given = list(chosen) if isinstance(chosen, Mapping) else type(chosen).__name__
            raise ValueError(f"expected actions of the kinds {list(self._nothing)}, the policy gave {given}")
        actions = {}
        for kind in self.spec.kinds:
            array, space, expected = to_numpy(chosen[kind.name]), kind.action_space, self._nothing[kind.name]
            if array.shape != expected.shape:
                raise ValueError(
                    f"expected actions of shape {expected.shape} for {kind.name}, the policy gave {array.shape}"
                )
            if isinstance(space, spaces.Discrete):
                if array.dtype.kind not in "iu":
                    raise ValueError(f"expected whole actions of {kind.name} in {space}, the policy gave {array.dtype}")
                actions[kind.name] = array.astype(np.int64)
                continue
            if not np.isfinite(array).all():
                raise PolicyFailed(f"the policy gave an action of {kind.name} that is not finite: {array.tolist()}")
            assert isinstance(space, spaces.Box)
            actions[kind.name] = np.clip(array.astype(np.float32), space.low, space.high)
        return actions


class _Begun(NamedTuple):
    """The episode that a lane plays."""

    turn: Turn
    start: int
    """The row of its first observation."""


class _Log:
    """What all lanes saw, did and got since the first step of the oldest unfinished episode: leaves `[rows, lanes, …]`.

    Rows are counted from the beginning of the run. The rewards and flags of a row are those of the step that led to it,
    as in `Rows`; its actions are those that lead on.
    """

    def __init__(self, spec: JointSpec, lanes: int, state: bool) -> None:
        self.spec, self.lanes, self.state = spec, lanes, state and spec.state_space is not None
        self.row, self.dropped = 0, 0
        self._allocate(ROWS)
        self.blank = _rows(lambda leaf: leaf[0, 0].copy(), self.rows)

    @property
    def index(self) -> int:
        """Where the present row is stored."""
        return self.row - self.dropped

    @property
    def now(self) -> Rows:
        """The present row: leaves `[lanes, …]`."""
        return _rows(lambda leaf: leaf[self.index], self.rows)

    def plays(self, lane: int) -> bool:
        """Whether anyone acts next in a lane."""
        return bool(self.rows.alive[self.index, lane].any())

    def write(self, lane: int, rows: Rows) -> None:
        """What a lane sees now."""
        for table, value in zip(self.rows, rows, strict=True):
            if table is not None:
                write(table, (self.index, lane), value)

    def advance(self, oldest: int) -> None:
        """On to the next row. Rows before `oldest` are not needed any more."""
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
        """Whether everything in the present row is."""
        return all(np.isfinite(leaf[self.index]).all() for leaf in self._floats)

    def fault(self, lane: int) -> str | None:
        """What is not finite in what a lane sees now; None: everything is."""
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
        """What was played from an episode's first row to the present one."""
        window = slice(begun.start - self.dropped, self.index + 1)
        rows = _rows(lambda leaf: leaf[window, lane].copy(), self.rows)
        return JointEpisode(
            observations=rows.observations,
            actions={name: leaf[window, lane][:-1].copy() for name, leaf in self.actions.items()},
            rewards=rows.rewards[1:],
            terminated=rows.terminated[1:],
            truncated=rows.truncated[1:],
            alive=rows.alive,
            action_mask=rows.action_mask,
            state=rows.state,
            metadata={"seed": begun.turn.seed},
        )

    def _allocate(self, rows: int) -> None:
        """Fresh tables. Nothing is acting in a row that nobody wrote, and every action is legal there."""
        lead, spec = (rows, self.lanes), self.spec
        self.rows = Rows(
            observations={k.name: zeros(k.observation_space, *lead, len(k.agents)) for k in spec.kinds},
            action_mask=all_legal(spec, *lead) if spec.masked else None,
            alive=np.zeros((*lead, len(spec.agents)), dtype=np.bool_),
            state=zeros(spec.state_space, *lead) if self.state and spec.state_space is not None else None,
            rewards=np.zeros((*lead, len(spec.agents))),
            terminated=np.zeros((*lead, len(spec.agents)), dtype=np.bool_),
            truncated=np.zeros((*lead, len(spec.agents)), dtype=np.bool_),
        )
        self.actions = {k.name: zeros(k.action_space, *lead, len(k.agents)) for k in spec.kinds}
        self._floats = [leaf for leaf in tree_leaves(self.rows) if leaf is not None and leaf.dtype.kind == "f"]


def _make(source: JointSource, learners: Sequence[str] | None, others: Any) -> JointEnvironment:
    env = make_joint_environment(source)
    if learners is None:
        return env
    return with_others(env, learners, copy.deepcopy(others))  # a memory of its own for each lane


def _check_spec(wanted: JointSpec, found: JointSpec, name: str) -> None:
    """Raise EnvironmentUnavailable unless the environment has the agents and spaces that the policy was trained on."""

    def refuse(what: str, expected: Any, got: Any) -> None:
        raise EnvironmentUnavailable(
            f"{name}: expected {what} {expected}, as in training, got {got}; check the environment's id, version and "
            "keyword arguments, and who learns"
        )

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
    """Actions of those who do not act: zeros, or the first of discrete ones."""
    return np.full(lead, space.start) if isinstance(space, spaces.Discrete) else zeros(space, *lead)


def _where(condition: Array, yes: Any, no: Any) -> Array:
    """`np.where` for a condition of the leading axes."""
    chosen: Array = np.where(condition.reshape(*condition.shape, *(1,) * (np.ndim(no) - condition.ndim)), yes, no)
    return chosen


def _rows(function: Callable[[Array], Array], rows: Rows) -> Rows:
    return Rows(*[mapped(function, field) for field in rows])
