"""`JointEpisodes`: a dataset of many agents in memory.

The layout is that of `Episodes` (`datasets.layout`). Arrays whose shape depends on the kind are a dict by kind, leaves
`[…, N_kind, …]`; scalars per agent are `[…, N]` in the order of `JointSpec.agents`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
from gymnasium import Space, spaces

from herdbook.core.joint.types import ByKind, JointEpisode, JointSpec, Kind, discrete_kinds
from herdbook.core.spaces import BadValues, cast
from herdbook.core.trees import indexed, mapped
from herdbook.core.types import Array, Tree
from herdbook.datasets import validation
from herdbook.datasets.layout import locate, offsets_of, place, row_offsets
from herdbook.datasets.recorded import Recorded, digest, joined, space_text, summary
from herdbook.datasets.validation import DataError, located

logger = logging.getLogger("herdbook")


@dataclass(frozen=True, kw_only=True, eq=False)
class JointEpisodes(Recorded[JointEpisode]):
    """Recorded episodes of many agents, immutable and validated when built.

    Values are cast; arrays of the right type are not copied. An agent whose last step has neither flag counts as
    truncated there, with a warning in the log. Where an agent does not act, its discrete action is the first of its
    space.

    Raises DataError, with field, agent, episode and step, for NaN or infinite values, lengths that disagree, T instead
    of T+1 rows, values outside their space, illegal actions, an agent that acts after its end or at a final row,
    observations or actions of an absent agent that are not zero, a step at which no agent acts (except the only step of
    an episode that ended at once), and empty data.
    """

    step_fields: ClassVar[tuple[str, ...]] = ("actions", "rewards", "terminated", "truncated")
    row_fields: ClassVar[tuple[str, ...]] = ("observations", "alive", "action_mask", "state")

    observations: ByKind
    """Leaves `[steps + episodes, N_kind, …]`: float32 vectors, uint8 images, int64 discrete; a dict of these."""
    actions: ByKind
    """`[steps, N_kind, A]` float32, or `[steps, N_kind]` int64, numbered as in the Discrete space."""
    rewards: Array
    """`[steps, N]` float64."""
    terminated: Array
    """`[steps, N]` bool: the MDP ended here for this agent."""
    truncated: Array
    alive: Array
    """`[steps + episodes, N]` bool: the agent acts at this row."""
    spec: JointSpec
    action_mask: ByKind | None = None
    """`[steps + episodes, N_kind, n]` bool for each kind with discrete actions, if `spec.masked`."""
    state: Tree | None = None
    """Leaves `[steps + episodes, …]` in `spec.state_space`; None if not recorded."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Versions of the environment's packages: a reward can change without a new environment id."""

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        source, spec = self.source, self.spec
        _check_parts(source, spec, self.observations, self.actions, self.action_mask, self.state)
        put("offsets", validation.checked_offsets(source, self.offsets))
        starts, row_starts = self.offsets, row_offsets(self.offsets)
        for name, at, kinds in (
            ("observations", row_starts, spec.kinds),
            ("actions", starts, spec.kinds),
            ("action_mask", row_starts, [kind for kind, _ in masked_kinds(spec)]),
        ):
            if kinds:
                of = getattr(self, name)
                put(name, {k.name: _cast(source, name, at, k.agents, of[k.name], _kind_cast(name, k)) for k in kinds})
        for name in _PER_AGENT:
            at, dtype = row_starts if name == "alive" else starts, np.float64 if name == "rewards" else np.bool_
            put(name, _cast(source, name, at, spec.agents, getattr(self, name), partial(cast, dtype=dtype)))
        if spec.state_space is not None and self.state is not None:
            with located(source, "state", row_starts):
                put("state", validation.cast_observations(spec.state_space, self.state))
        validation.check_steps(source, starts, self._arrays(self.step_fields))
        validation.check_rows(source, starts, self._arrays(self.row_fields))
        self._check_shapes()
        last = _check_alive(self)
        put("truncated", self._truncated_at_open_ends(last))
        put("actions", {kind.name: self._idle_as_first(kind) for kind in spec.kinds})
        _check_values(self, last)
        self._check_metadata()

    def _check_shapes(self) -> None:
        for kind in self.spec.kinds:
            lead = (len(kind.agents),)
            for name, space in (("observations", kind.observation_space), ("actions", kind.action_space)):
                tree = getattr(self, name)[kind.name]
                validation.check_shape(self.source, f"{name}[{kind.name!r}]", space, tree, lead)
        for kind, actions in masked_kinds(self.spec):
            assert self.action_mask is not None
            mask, legal = self.action_mask[kind.name], spaces.MultiBinary(actions)
            validation.check_shape(self.source, f"action_mask[{kind.name!r}]", legal, mask, (len(kind.agents),))
        if self.state is not None and self.spec.state_space is not None:
            validation.check_shape(self.source, "state", self.spec.state_space, self.state)
        for name in _PER_AGENT:
            shape, agents = getattr(self, name).shape, len(self.spec.agents)
            if shape[1:] != (agents,):
                raise DataError(f"{self.source}: expected {name} of {agents} agents in each row, got shape {shape}")

    def _idle_as_first(self, kind: Kind) -> Array:
        """The actions of a kind, with the first action of the space for agents that do not act."""
        actions: Array = self.actions[kind.name]
        start = int(getattr(kind.action_space, "start", 0))
        if start == 0:
            return actions
        acts = self.alive[self.step_rows][:, [self.spec.index[agent] for agent in kind.agents]]
        return np.where(acts | (actions != 0), actions, start)

    def _truncated_at_open_ends(self, last: Array) -> Array:
        """`last` `[episodes, N]`: the last step at which each agent acts, or -1."""
        numbers, agents = np.nonzero(last >= 0)
        ends = last[numbers, agents]
        unflagged = ~(self.terminated | self.truncated)[ends, agents]
        if not unflagged.any():
            return self.truncated
        counts = f"{len(np.unique(numbers[unflagged]))} of {len(self)} episodes"
        logger.warning("%s: in %s agents end with neither flag; they count as truncated", self.source, counts)
        truncated = self.truncated.copy()
        truncated[ends[unflagged], agents[unflagged]] = True
        return truncated

    @classmethod
    def from_episodes(cls, episodes: Iterable[JointEpisode], spec: JointSpec, **fields: Any) -> JointEpisodes:
        """Build from single episodes; `fields` are further fields of `JointEpisodes`."""
        items, source = list(episodes), fields.get("source", "episodes")
        if not items:
            raise DataError(f"{source}: the dataset is empty (0 episodes)")
        for number, item in enumerate(items):
            _check_episode(source, number, item)
        metadata = tuple(item.metadata for item in items)
        return cls(
            **{name: _gathered(source, name, items) for name in (*cls.step_fields, *cls.row_fields)},
            offsets=offsets_of([len(item) for item in items]),
            spec=spec,
            **{"episode_metadata": metadata if any(metadata) else (), **fields},
        )

    def returns(self) -> Array:
        """Undiscounted team return of each episode, the sum over agents. `[episodes]` float64"""
        return np.add.reduceat(self.rewards.sum(1), self.offsets[:-1])

    def agent_returns(self) -> Array:
        """Undiscounted return of each agent. `[episodes, N]` float64"""
        return np.add.reduceat(self.rewards, self.offsets[:-1], axis=0)

    def terminated_for_all(self) -> Array:
        """`[episodes]` bool: every agent still in the game terminated at the episode's last step."""
        last = self.offsets[1:] - 1
        terminated = self.terminated[last]
        inside = self.alive[self.step_rows[last]] | terminated | self.truncated[last]
        return np.asarray((terminated | ~inside).all(1) & inside.any(1))  # without agents nothing terminated

    def episode(self, number: int) -> JointEpisode:
        """One episode, a view of these arrays. Raises IndexError outside `[0, len)`."""
        if not 0 <= number < len(self):
            raise IndexError(f"expected an episode in [0, {len(self) - 1}], got {number}")
        start, end = self.offsets[number], self.offsets[number + 1]
        return JointEpisode(
            **self._at(slice(start, end), slice(start + number, end + number + 1)),
            metadata=self.episode_metadata[number] if self.episode_metadata else {},
        )

    def concat(self, *others: JointEpisodes) -> JointEpisodes:
        """These episodes followed by those of `others`.

        Environment, packages and reference scores are kept if all parts agree. `learned_by` is joined. Raises DataError
        unless specs are equal, and all parts or none have the state.
        """
        parts = (self, *others)
        for other in others:
            if other.spec != self.spec:
                raise DataError(f"{other.source}: expected {self.spec} as in {self.source}, got {other.spec}")
            if (other.state is None) != (self.state is None):
                advice = "replace(episodes, state=None) leaves it out"
                raise DataError(
                    f"{other.source}: expected the global state if and only if {self.source} has it; {advice}"
                )
        return replace(
            self,
            **{name: _gathered(self.source, name, parts) for name in (*self.step_fields, *self.row_fields)},
            packages=self.packages if all(part.packages == self.packages for part in others) else {},
            **self._followed_by(others),
        )

    def statistics(self) -> dict[str, float]:
        """Summary statistics; team values are sums over agents, and `return_mean/x` is agent x's."""
        over, means = self.terminated_for_all(), self.agent_returns().mean(0)
        numbers = {
            "episodes": len(self),
            "steps": self.num_steps,
            "agents": len(self.spec.agents),
            **summary("team_return", self.returns(), "mean", "std", "min", "max"),
            **{f"return_mean/{agent}": mean for agent, mean in zip(self.spec.agents, means, strict=True)},
            **summary("length", self.lengths(), "mean", "min", "max"),
            **summary("team_reward", self.rewards.sum(1), "mean", "min", "max"),
            "agents_acting_mean": self.alive[self.step_rows].sum(1).mean(),
            "terminated_episodes": over.sum(),
            "truncated_episodes": (~over).sum(),
        }
        return {name: float(value) for name, value in numbers.items()}

    def fingerprint(self) -> str:
        """SHA-256 (hex) of every array and of the spec."""
        spec, arrays = self.spec, self._arrays((*self.step_fields, *self.row_fields, "offsets"))
        texts = [
            f"{agent} {space_text(spec.observation_spaces[agent])} {space_text(spec.action_spaces[agent])};"
            for agent in spec.agents
        ]
        state = None if spec.state_space is None else space_text(spec.state_space)
        return digest(arrays, [*texts, f"state {state} masked {spec.masked} turns {spec.turn_based}"])


_PER_AGENT = ("rewards", "terminated", "truncated", "alive")


def masked_kinds(spec: JointSpec) -> list[tuple[Kind, int]]:
    """(kind, number of actions) of each kind with an action mask: discrete actions, in a task with masks."""
    return discrete_kinds(spec) if spec.masked else []


def present_rows(alive: Array, step_rows: Array) -> Array:
    """`[rows, N]` bool: the agent acts at this row, or acted in the step before."""
    present = alive.copy()
    present[step_rows + 1] |= alive[step_rows]
    return present


def longest_pause(episodes: JointEpisodes) -> int:
    """The most steps that an agent is absent before it acts, where one acts again after a pause; 0 where none does."""
    acts = episodes.alive[episodes.step_rows]  # [steps, N]
    if acts.all():
        return 0
    steps = np.arange(len(acts))[:, None]
    starts = np.repeat(episodes.offsets[:-1], episodes.lengths())[:, None]
    before = np.maximum.accumulate(np.where(acts, steps, -1))
    before = np.concatenate([np.full_like(before[:1], -1), before[:-1]])  # the last step so far at which it acted
    paused = acts & (before >= starts) & (before < steps - 1)
    if not paused.any():
        return 0
    waits = np.where(acts, steps - np.maximum(before, starts - 1) - 1, 0)
    return int(waits.max())


def _check_parts(
    source: str, spec: JointSpec, observations: Any, actions: Any, action_mask: Any, state: Tree | None
) -> None:
    """Check that every kind has its arrays, and that masks and state exist only if the spec declares them."""
    masks = [kind for kind, _ in masked_kinds(spec)]
    for name, by_kind, kinds in (
        ("observations", observations, spec.kinds),
        ("actions", actions, spec.kinds),
        ("action_mask", action_mask, masks),
    ):
        if name == "action_mask" and (by_kind is None) != (not masks):
            wanted = "an action_mask (spec.masked)" if masks else "no action_mask (spec.masked is False)"
            raise DataError(f"{source}: expected {wanted}, got {'none' if by_kind is None else 'one'}")
        names = [kind.name for kind in kinds]
        if by_kind is not None and (not isinstance(by_kind, Mapping) or sorted(by_kind) != sorted(names)):
            came = sorted(by_kind) if isinstance(by_kind, Mapping) else type(by_kind).__name__
            raise DataError(f"{source}: expected {name} by kind, {names}, got {came}")
    if state is not None and spec.state_space is None:
        raise DataError(f"{source}: expected no state (spec.state_space is None), got one")


def _kind_cast(name: str, kind: Kind) -> Callable[[Tree], Tree]:
    """The cast of a field by kind."""
    if name == "observations":
        return partial(validation.cast_observations, kind.observation_space)
    discrete = isinstance(kind.action_space, spaces.Discrete)
    return partial(cast, dtype=np.bool_ if name == "action_mask" else np.int64 if discrete else np.float32)


def _cast(
    source: str, name: str, starts: Array, agents: Sequence[str], values: Tree, one: Callable[[Tree], Tree]
) -> Tree:
    """`one(values)`, leaves `[…, agents, …]`; an error names the agent whose value does not fit."""
    with located(source, name, starts):
        try:
            return one(values)
        except BadValues as error:
            arrays = [leaf for _, leaf in validation.leaves(values)]
            if error.row is not None and all(np.shape(leaf)[1:2] == (len(agents),) for leaf in arrays):
                for number, agent in enumerate(agents):
                    with located(source, f"{name} of {agent}", starts):
                        one(mapped(partial(_column, number), values))
            raise


def _column(number: int, leaf: Any) -> Array:
    return np.asarray(leaf)[:, number]


def _check_alive(episodes: JointEpisodes) -> Array:
    """Check when agents act and how they end; returns the last step at which each acts, or -1. `[episodes, N]`"""
    source, agents, offsets = episodes.source, episodes.spec.agents, episodes.offsets
    acts = episodes.alive[episodes.step_rows]  # [steps, N]
    at_the_end = episodes.alive[row_offsets(offsets)[1:] - 1]
    if at_the_end.any():
        number, agent = np.argwhere(at_the_end)[0]
        where = f"the last row of episode {number}, its final observation"
        raise DataError(f"{source}: expected no agent to act at {where}, but {agents[agent]} is alive there")
    lengths = episodes.lengths()
    idle = ~acts.any(1) & np.repeat(lengths > 1, lengths)
    if idle.any():
        raise DataError(f"{source}: expected an agent that acts, got none at {place(int(np.argmax(idle)), offsets)}")
    steps = np.arange(len(acts))[:, None]
    last: Array = np.maximum.reduceat(np.where(acts, steps, -1), offsets[:-1])
    of_step = np.repeat(last, lengths, axis=0)  # [steps, N]
    for name in ("terminated", "truncated"):
        wrong = getattr(episodes, name) & (of_step != steps) & (of_step >= 0)  # agents that never act may end anywhere
        if wrong.any():
            step, agent = np.argwhere(wrong)[0]
            number, inside = locate(int(step), offsets)
            end = last[number, agent] - offsets[number]
            what = "acts after its end" if end > inside else "ends where it does not act"
            flag = f"it is {name} at episode {number}, step {inside}"
            raise DataError(f"{source}: {agents[agent]} {what}: {flag}, and acts last at step {end}")
    return last


def _check_values(episodes: JointEpisodes, last: Array) -> None:
    """Check that values are finite, inside their spaces and legal, and zero for absent agents."""
    source, spec, starts = episodes.source, episodes.spec, episodes.offsets
    rows, row_starts = episodes.step_rows, row_offsets(starts)
    acts, present = episodes.alive[rows], present_rows(episodes.alive, rows)
    looks = present | np.repeat(last < 0, episodes.lengths() + 1, axis=0)  # an agent without actions may observe
    if episodes.state is not None:
        assert spec.state_space is not None
        validation.check_inside(source, "state", row_starts, spec.state_space, episodes.state)
    for kind in spec.kinds:
        for member, agent in enumerate(kind.agents):
            number, mine, space = spec.index[agent], (slice(None), member), kind.action_space
            acting = acts[:, number]
            validation.check_finite(source, f"rewards of {agent}", episodes.rewards[:, number], starts)
            name, seen = f"observations of {agent}", indexed(episodes.observations[kind.name], mine)
            for leaf_name, leaf in validation.leaves(seen, name):
                _check_absent(source, leaf_name, leaf, looks[:, number], row_starts)
            seen = _filled(kind.observation_space, seen, present[:, number])
            validation.check_inside(source, name, row_starts, kind.observation_space, seen)
            name, actions = f"actions of {agent}", episodes.actions[kind.name][mine]
            _check_absent(source, name, actions, acting, starts, int(getattr(space, "start", 0)))
            validation.check_actions(source, starts, space, _filled(space, actions, acting), name)
            if episodes.action_mask is not None and isinstance(space, spaces.Discrete):
                legal = episodes.action_mask[kind.name][mine]  # [rows, n]
                chosen = legal[rows, actions - space.start] | ~acting
                _check_legal(source, agent, legal, chosen, actions, starts)


def _check_absent(source: str, name: str, values: Array, present: Array, starts: Array, nothing: int = 0) -> None:
    if present.all():
        return
    wrong = ~present & (values != nothing).reshape(len(values), -1).any(1)
    if wrong.any():
        row = int(np.argmax(wrong))
        came = values[row][values[row] != nothing].flat[0]
        raise DataError(f"{source}: expected {nothing} as {name} at {place(row, starts)}, an absent agent, got {came}")


def _filled(space: Space[Any], values: Tree, present: Array) -> Tree:
    """The values, with a value inside the space in place of an absent agent's zeros."""
    if present.all():
        return values
    if isinstance(space, spaces.Dict):
        return {name: _filled(part, values[name], present) for name, part in space.spaces.items()}
    if isinstance(space, spaces.Discrete):
        return np.where(present | (values != 0), values, space.start)
    assert isinstance(space, spaces.Box)
    inside = np.clip(np.zeros_like(space.low), space.low, space.high)
    column = present.reshape(-1, *(1,) * (values.ndim - 1))
    return np.where(column, values, inside) if inside.any() else values


def _check_legal(source: str, agent: str, legal: Array, chosen: Array, actions: Array, starts: Array) -> None:
    """Check the masks. `legal`: `[rows, n]`; `chosen`: `[steps]`, the action is legal or the agent does not act."""
    if not legal.any(1).all():
        where = place(int(np.argmin(legal.any(1))), row_offsets(starts))
        came = "got none; allow all actions of an absent agent"
        raise DataError(f"{source}: expected a legal action in action_mask of {agent} at {where}, {came}")
    if not chosen.all():
        number = int(np.argmin(chosen))
        came = f"{actions[number]} at {place(number, starts)}"
        raise DataError(f"{source}: expected actions of {agent} that action_mask allows, got {came}")


def _check_episode(source: str, number: int, episode: JointEpisode) -> None:
    """Check the lengths within one episode, before the arrays are concatenated."""
    steps = len(episode)
    for names, length, what in ((JointEpisodes.step_fields, steps, "T"), (JointEpisodes.row_fields, steps + 1, "T+1")):
        for name in names:
            tree = getattr(episode, name)
            for leaf_name, leaf in () if tree is None else validation.leaves(tree, name):
                if len(leaf) != length:
                    rows = f"{what} = {length} rows of {leaf_name}"
                    given = f"the T = {steps} rewards of episode {number}"
                    raise DataError(f"{source}: expected {rows} for {given}, got {len(leaf)}")


def _gathered(source: str, name: str, parts: Sequence[JointEpisode | JointEpisodes]) -> Tree:
    """One field of all parts, concatenated; None if no part has it."""
    values = [getattr(part, name) for part in parts]
    missing = [number for number, value in enumerate(values) if value is None]
    if len(missing) == len(values):
        return None
    if missing:
        raise DataError(f"{source}: expected {name} in every episode or in none, got none in episode {missing[0]}")
    return joined(source, name, values)
