"""`Episodes`: a dataset in memory.

Flat arrays over all steps, an offset per episode, and T+1 observations for T actions (`datasets.layout`), so next
observations are never stored twice. Offsets, not flags, separate episodes; `terminated` and `truncated` record how each
episode ended.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from gymnasium import Space, spaces

from herdbook.core.spaces import cast
from herdbook.core.types import Array, Spec, Tree
from herdbook.datasets import validation
from herdbook.datasets.layout import offsets_of, positions_in_episodes, row_offsets
from herdbook.datasets.preferences import PreferencePairs
from herdbook.datasets.recorded import Recorded, digest, joined, space_text, summary
from herdbook.datasets.validation import DataError, located

__all__ = ["DataError", "Episodes"]

logger = logging.getLogger("herdbook")
_REWARDS = "rewards: "


@dataclass(frozen=True, kw_only=True, eq=False)
class Episodes(Recorded["Episodes"]):
    """Recorded episodes, immutable and validated when built.

    Values are cast to the types of the fields below; arrays of the right type are not copied. An episode whose last
    step has neither flag counts as truncated, with a warning in the log.

    Raises DataError, with field, episode and step, for NaN or infinite values, lengths that disagree, T instead of T+1
    observations, values outside their space, a flag inside an episode, and empty data.
    """

    step_fields: ClassVar[tuple[str, ...]] = ("actions", "rewards", "terminated", "truncated", "mask")
    row_fields: ClassVar[tuple[str, ...]] = ("observations",)

    observations: Tree
    """Leaves `[steps + episodes, …]`: float32 vectors, uint8 images, int64 discrete; a dict of these for a Dict."""
    actions: Array
    """`[steps, A]` float32, or `[steps]` int64, numbered as in the Discrete space."""
    rewards: Array
    """`[steps]` float64."""
    terminated: Array
    """`[steps]` bool: the MDP ended here."""
    truncated: Array
    """`[steps]` bool: the episode was cut off here."""
    observation_space: Space[Any]
    """The flat space of the observations (`core.spaces.flat_space`)."""
    action_space: Space[Any]
    raw_observation_space: Space[Any] | None = None
    """The environment's own space; None if it equals `observation_space`."""
    observation_keys: tuple[str, ...] | None = None
    transforms: tuple[str, ...] = ()
    """Changes of the recorded values, in order: `"rewards: minus_one"`."""
    mask: Array | None = None
    """`[steps]` bool: the steps that a replay samples; None: all."""
    preferences: PreferencePairs | None = None
    """Labelled pairs of segments of these episodes."""

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        source = self.source
        put("offsets", validation.checked_offsets(source, self.offsets))
        steps, rows = self.offsets, row_offsets(self.offsets)
        with located(source, "observations", rows):
            put("observations", validation.cast_observations(self.observation_space, self.observations))
        action_type = np.int64 if isinstance(self.action_space, spaces.Discrete) else np.float32
        types = {"actions": action_type, "rewards": np.float64, "terminated": np.bool_, "truncated": np.bool_}
        for name, dtype in types.items():
            with located(source, name, steps):
                put(name, cast(getattr(self, name), dtype))
        validation.check_steps(source, steps, self._arrays(types))
        validation.check_rows(source, steps, self._arrays(self.row_fields))
        validation.check_shape(source, "observations", self.observation_space, self.observations)
        validation.check_shape(source, "actions", self.action_space, self.actions)
        validation.check_inside(source, "observations", rows, self.observation_space, self.observations)
        validation.check_finite(source, "rewards", self.rewards, steps)
        validation.check_actions(source, steps, self.action_space, self.actions)
        validation.check_flags(source, steps, self.terminated, self.truncated)
        put("truncated", self._truncated_at_open_ends())
        if self.mask is not None:
            with located(source, "mask", steps):
                put("mask", cast(self.mask, np.bool_))
            if self.mask.shape != self.rewards.shape or not self.mask.any():
                wanted, came = f"{self.num_steps} steps with at least one True", f"shape {self.mask.shape} with"
                raise DataError(f"{source}: expected a mask of {wanted}, got {came} {int(self.mask.sum())}")
        self._check_metadata()
        if self.preferences is not None:
            self.preferences.check_inside(source, self.lengths())

    def _of_episodes(self, chosen: Array) -> dict[str, Any]:
        pairs = None if self.preferences is None else self.preferences.selected(chosen, len(self))
        return {**super()._of_episodes(chosen), "preferences": pairs}

    def _truncated_at_open_ends(self) -> Array:
        last = self.offsets[1:] - 1
        open_ends = last[~(self.terminated[last] | self.truncated[last])]
        if not len(open_ends):
            return self.truncated
        counts = f"{len(open_ends)} of {len(self)} episodes"
        logger.warning("%s: %s end with neither flag; they count as truncated", self.source, counts)
        truncated = self.truncated.copy()
        truncated[open_ends] = True
        return truncated

    @classmethod
    def from_episodes(
        cls,
        episodes: Iterable[Mapping[str, Any]],
        *,
        observation_space: Space[Any],
        action_space: Space[Any],
        **fields: Any,
    ) -> Episodes:
        """Build from one mapping per episode.

        Each mapping holds `observations` (leaves `[T + 1, …]`, in the structure of `observation_space`), `actions`
        `[T, …]`, `rewards` `[T]`, `terminated` and `truncated` (a bool for the last step, or `[T]`), and optionally
        `metadata`. `fields` are further fields of `Episodes`.
        """
        items, source = list(episodes), fields.get("source", "episodes")
        if not items:
            raise DataError(f"{source}: the dataset is empty (0 episodes)")
        lengths = [len(item["rewards"]) for item in items]
        for number, (item, length) in enumerate(zip(items, lengths, strict=True)):
            _check_episode(source, number, item, length)
        metadata = tuple(item.get("metadata", {}) for item in items)
        values = ("observations", "actions", "rewards")
        return cls(
            **{name: joined(source, name, [item[name] for item in items]) for name in values},
            terminated=np.concatenate([_flags(item["terminated"], n) for item, n in zip(items, lengths, strict=True)]),
            truncated=np.concatenate([_flags(item["truncated"], n) for item, n in zip(items, lengths, strict=True)]),
            offsets=offsets_of(lengths),
            observation_space=observation_space,
            action_space=action_space,
            **{"episode_metadata": metadata if any(metadata) else (), **fields},
        )

    @property
    def num_sampled(self) -> int:
        """Number of steps that a replay samples: those in `mask`."""
        return self.num_steps if self.mask is None else int(self.mask.sum())

    def returns(self) -> Array:
        """Undiscounted return of each episode. `[episodes]` float64"""
        return np.add.reduceat(self.rewards, self.offsets[:-1])

    def episode(self, number: int) -> Episodes:
        """One episode, as `Episodes` of length 1."""
        return self.select([number])

    def with_rewards(self, rewards: Array | Callable[[Episodes], Array], name: str) -> Episodes:
        """The same steps with rewards `[steps]`, or with the result of a function of these episodes.

        `name` is recorded in `transforms`.
        """
        values = rewards(self) if callable(rewards) else rewards
        return replace(self, rewards=values, transforms=(*self.transforms, f"{_REWARDS}{name}"))

    def subsample(self, every: int, offset: int | Array = 0) -> Episodes:
        """Sample only every `every`-th step of each episode, from its step `offset` (one, or `[episodes]`) on.

        This sets a mask over steps. Storage and next observations are unchanged. Raises ValueError for `every` below 1
        and for an offset outside [0, every).
        """
        if every < 1:
            raise ValueError(f"expected every >= 1, got {every}")
        first = np.broadcast_to(np.asarray(offset, dtype=np.int64), (len(self),))
        if (first < 0).any() or (first >= every).any():
            raise ValueError(f"expected offsets in [0, {every - 1}], got {first.min()} to {first.max()}")
        mask = positions_in_episodes(self.offsets) % every == np.repeat(first, self.lengths())
        return replace(self, mask=mask if self.mask is None else mask & self.mask)

    def concat(self, *others: Episodes) -> Episodes:
        """These episodes followed by those of `others`.

        Environment and reference scores are kept if all parts agree. Notes in `transforms`, `learned_by` and
        preferences are joined.
        A part without a mask counts as all True. Raises DataError unless spaces, observation keys and reward transforms
        are equal.
        """
        parts = (self, *others)
        for other in others:
            for name in ("observation_space", "action_space", "raw_observation_space", "observation_keys"):
                mine, theirs = getattr(self, name), getattr(other, name)
                if name == "raw_observation_space":  # None: the same as `observation_space`
                    mine, theirs = (p.observation_space if s is None else s for p, s in ((self, mine), (other, theirs)))
                if mine != theirs:
                    raise DataError(f"{other.source}: expected {name} {mine} as in {self.source}, got {theirs}")
            mine, theirs = self.reward_transforms(), other.reward_transforms()
            if mine != theirs:
                advice = "transform the rewards after concatenating"
                raise DataError(
                    f"{other.source}: expected the transforms {mine} as in {self.source}, got {theirs}; {advice}"
                )
        notes = dict.fromkeys((p.source, t) for p in parts for t in p.transforms if not t.startswith(_REWARDS))
        masks = [np.ones(p.num_steps, dtype=np.bool_) if p.mask is None else p.mask for p in parts]
        recorded = ("observations", "actions", "rewards", "terminated", "truncated")
        return replace(
            self,
            **{name: joined(self.source, name, [getattr(p, name) for p in parts]) for name in recorded},
            mask=None if all(p.mask is None for p in parts) else np.concatenate(masks),
            transforms=(*(note for _, note in notes), *self.reward_transforms()),
            preferences=_joined_preferences(parts),
            **self._followed_by(others),
        )

    def reward_transforms(self) -> tuple[str, ...]:
        """The transforms of rewards; the other entries are notes on how the data were read."""
        return tuple(t for t in self.transforms if t.startswith(_REWARDS))

    def statistics(self) -> dict[str, float]:
        """Summary statistics: steps, episodes, returns, lengths, rewards, and ends of episodes."""
        last = self.offsets[1:] - 1
        numbers = {
            "episodes": len(self),
            "steps": self.num_steps,
            **summary("return", self.returns(), "mean", "std", "min", "max"),
            **summary("length", self.lengths(), "mean", "min", "max"),
            **summary("reward", self.rewards, "mean", "min", "max"),
            "terminated_episodes": self.terminated[last].sum(),
            "truncated_episodes": (self.truncated[last] & ~self.terminated[last]).sum(),
        }
        if isinstance(self.action_space, spaces.Box):
            at_bound = (self.actions <= self.action_space.low) | (self.actions >= self.action_space.high)
            numbers["actions_at_bound"] = at_bound.mean()
        return {name: float(value) for name, value in numbers.items()}

    def spec(self) -> Spec:
        """Specification of the task for an algorithm.

        The mean and standard deviation of vector observations are over the steps in `mask`, without final
        observations; None for other observations.
        """
        mean = std = None
        if isinstance(self.observation_space, spaces.Box) and len(self.observation_space.shape) == 1:
            mean, std = _moments(self.observations, self.step_rows if self.mask is None else self.step_rows[self.mask])
        return Spec(
            observation_space=self.observation_space,
            action_space=self.action_space,
            raw_observation_space=self.raw_observation_space,
            observation_keys=self.observation_keys,
            observation_mean=mean,
            observation_std=std,
        )

    def fingerprint(self) -> str:
        """SHA-256 (hex) of every array and of both spaces; preferences are no part of it."""
        arrays = self._arrays(("observations", "actions", "rewards", "terminated", "truncated", "offsets", "mask"))
        parts = (("observation", self.observation_space), ("action", self.action_space))
        return digest(arrays, [f"{name} {space_text(part)};" for name, part in parts])


def _joined_preferences(parts: tuple[Episodes, ...]) -> PreferencePairs | None:
    """The pairs of all parts, numbered as the concatenated episodes."""
    found: PreferencePairs | None = None
    shift = 0
    for part in parts:
        if part.preferences is not None:
            moved = part.preferences.shifted(shift)
            found = moved if found is None else found.joined(moved)
        shift += len(part)
    return found


def _check_episode(source: str, number: int, item: Mapping[str, Any], length: int) -> None:
    """Check the lengths within one episode, before the arrays are concatenated."""
    for name, leaf in validation.leaves(item["observations"]):
        if len(leaf) != length + 1:
            raise DataError(
                f"{source}: expected T+1 = {length + 1} {name} for the T = {length} rewards of episode {number}, "
                f"got {len(leaf)}; append the episode's final observation"
            )
    if len(item["actions"]) != length:
        raise DataError(f"{source}: expected {length} actions in episode {number}, got {len(item['actions'])}")
    for name in ("terminated", "truncated"):
        if np.ndim(item[name]) and len(item[name]) != length:
            raise DataError(f"{source}: expected {length} values of {name} in episode {number}, got {len(item[name])}")


def _flags(flag: Any, length: int) -> Array:
    """One flag per step, from one per step or from that of the last step; `Episodes` checks the type."""
    flags = np.asarray(flag)
    if not flags.ndim:
        flags = np.zeros(length, dtype=flags.dtype)
        flags[length - 1 :] = flag
    return flags


def _moments(values: Array, rows: Array, chunk: int = 65_536) -> tuple[Array, Array]:
    """Mean and standard deviation `[D]` float32 over `rows`, computed in float64 without a copy of the data."""
    chunks = [rows[i : i + chunk] for i in range(0, len(rows), chunk)]
    mean = np.sum([values[c].sum(axis=0, dtype=np.float64) for c in chunks], axis=0) / len(rows)
    variance = np.sum([np.square(values[c] - mean).sum(axis=0) for c in chunks], axis=0) / len(rows)
    return np.asarray(mean, dtype=np.float32), np.sqrt(variance).astype(np.float32)
