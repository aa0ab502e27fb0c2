"""`Episodes`: a dataset in memory.

Flat arrays over all steps, an offset per episode, and T+1 observations for T actions (`datasets.layout`): next
observations are never stored twice. The boundary between episodes is the offset, not a flag; `terminated` and
`truncated` say how each episode ended.
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
from herdbook.datasets.recorded import Recorded, digest, joined, space_text
from herdbook.datasets.validation import DataError, located

__all__ = ["DataError", "Episodes"]

logger = logging.getLogger("herdbook")
_REWARDS = "rewards: "


@dataclass(frozen=True, kw_only=True, eq=False)
class Episodes(Recorded["Episodes"]):
    """Recorded episodes; immutable, and validated once when built.

    Values are cast at the door (float32 observations and actions, float64 rewards); arrays of the right type are kept
    without a copy. An episode whose last step carries neither flag counts as truncated, with a notice in the log.

    Raises `DataError`, naming the field, the episode and the step, for NaN or infinite values, lengths that disagree,
    T instead of T+1 observations, values outside their space, a flag inside an episode, and empty data.
    """

    step_fields: ClassVar[tuple[str, ...]] = ("actions", "rewards", "terminated", "truncated", "mask")
    row_fields: ClassVar[tuple[str, ...]] = ("observations",)

    observations: Tree
    """Leaves `[steps + episodes, …]`: float32 vectors, uint8 images, int64 discrete; a dict of these for a Dict."""
    actions: Array
    """`[steps, A]` float32, or `[steps]` int64 in the numbering of the Discrete space."""
    rewards: Array
    """`[steps]` float64."""
    terminated: Array
    """`[steps]` bool: the MDP ended here."""
    truncated: Array
    """`[steps]` bool: the episode was cut off here."""
    observation_space: Space[Any]
    """The flat view (`core.spaces.flat_space`)."""
    action_space: Space[Any]
    raw_observation_space: Space[Any] | None = None
    """The environment's own space; None where it is `observation_space`."""
    observation_keys: tuple[str, ...] | None = None
    transforms: tuple[str, ...] = ()
    """What was done to the recorded values, in order: `"rewards: minus_one"`."""
    mask: Array | None = None
    """`[steps]` bool: the steps that a replay draws; None for all."""

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
                raise DataError(
                    f"{source}: expected a mask of {self.num_steps} steps with at least one True, "
                    f"got shape {self.mask.shape} with {int(self.mask.sum())}"
                )
        self._check_metadata()

    def _truncated_at_open_ends(self) -> Array:
        last = self.offsets[1:] - 1
        open_ends = last[~(self.terminated[last] | self.truncated[last])]
        if not len(open_ends):
            return self.truncated
        logger.warning(
            "%s: %d of %d episodes end with neither flag; they count as truncated",
            self.source,
            len(open_ends),
            len(self),
        )
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

        Each holds `observations` (leaves `[T + 1, …]`, in the form of `observation_space`), `actions` `[T, …]`,
        `rewards` `[T]`, `terminated` and `truncated` (a bool for the last step, or `[T]`), and optionally `metadata`.
        `fields` are further fields of `Episodes`.
        """
        items = list(episodes)
        if not items:
            raise DataError(f"{fields.get('source', 'episodes')}: the dataset is empty (0 episodes)")
        lengths = np.array([len(item["rewards"]) for item in items])
        source = fields.get("source", "episodes")
        for number, (item, length) in enumerate(zip(items, lengths, strict=True)):
            _check_episode(source, number, item, int(length))
        metadata = tuple(item.get("metadata", {}) for item in items)
        return cls(
            observations=joined(source, "observations", [item["observations"] for item in items]),
            actions=joined(source, "actions", [item["actions"] for item in items]),
            rewards=joined(source, "rewards", [item["rewards"] for item in items]),
            terminated=np.concatenate([_flags(item["terminated"], n) for item, n in zip(items, lengths, strict=True)]),
            truncated=np.concatenate([_flags(item["truncated"], n) for item, n in zip(items, lengths, strict=True)]),
            offsets=offsets_of(lengths),
            observation_space=observation_space,
            action_space=action_space,
            **{"episode_metadata": metadata if any(metadata) else (), **fields},
        )

    def returns(self) -> Array:
        """`[episodes]` float64: undiscounted sum of the rewards of each episode."""
        return np.add.reduceat(self.rewards, self.offsets[:-1])

    def episode(self, number: int) -> Episodes:
        """One episode, as `Episodes` of length 1."""
        return self.select([number])

    def with_rewards(self, rewards: Array | Callable[[Episodes], Array], name: str) -> Episodes:
        """The same steps with other rewards `[steps]`, or a function of these episodes that gives them.

        `name` is recorded in `transforms`.
        """
        values = rewards(self) if callable(rewards) else rewards
        return replace(self, rewards=values, transforms=(*self.transforms, f"{_REWARDS}{name}"))

    def subsample(self, every: int, offset: int | Array = 0) -> Episodes:
        """Draw only every `every`-th step of each episode, from its step `offset` (one, or `[episodes]`) on.

        A mask over steps: the storage is unchanged, and next observations stay true.
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

        Spaces, observation keys and reward transforms must be equal (DataError otherwise); environment and reference
        scores are kept where all agree, what reading noted (`transforms`) and who learned (`learned_by`) of every part.
        A part without a mask counts as wholly drawn.
        """
        parts = (self, *others)
        for other in others:
            for name in ("observation_space", "action_space", "raw_observation_space", "observation_keys"):
                mine, theirs = getattr(self, name), getattr(other, name)
                if mine != theirs:
                    raise DataError(f"{other.source}: expected {name} {mine} as in {self.source}, got {theirs}")
            if other._rewards_done() != self._rewards_done():
                raise DataError(
                    f"{other.source}: expected the transforms {self._rewards_done()} as in {self.source}, "
                    f"got {other._rewards_done()}; transform the rewards after concatenating"
                )
        notes = dict.fromkeys((p.source, t) for p in parts for t in p.transforms if not t.startswith(_REWARDS))
        masks = [np.ones(p.num_steps, dtype=np.bool_) if p.mask is None else p.mask for p in parts]
        recorded = ("observations", "actions", "rewards", "terminated", "truncated")
        return replace(
            self,
            **{name: joined(self.source, name, [getattr(p, name) for p in parts]) for name in recorded},
            mask=None if all(p.mask is None for p in parts) else np.concatenate(masks),
            transforms=(*(note for _, note in notes), *self._rewards_done()),
            **self._followed_by(others),
        )

    def _rewards_done(self) -> tuple[str, ...]:
        """The transforms that changed values; the others note what reading did."""
        return tuple(t for t in self.transforms if t.startswith(_REWARDS))

    def statistics(self) -> dict[str, float]:
        """Numbers that describe the data: steps, episodes, returns, lengths, rewards, how episodes end."""
        returns, lengths = self.returns(), self.lengths()
        last = self.offsets[1:] - 1
        numbers = {
            "episodes": len(self),
            "steps": self.num_steps,
            "return_mean": returns.mean(),
            "return_std": returns.std(),
            "return_min": returns.min(),
            "return_max": returns.max(),
            "length_mean": lengths.mean(),
            "length_min": lengths.min(),
            "length_max": lengths.max(),
            "reward_mean": self.rewards.mean(),
            "reward_min": self.rewards.min(),
            "reward_max": self.rewards.max(),
            "terminated_episodes": self.terminated[last].sum(),
            "truncated_episodes": (self.truncated[last] & ~self.terminated[last]).sum(),
        }
        if isinstance(self.action_space, spaces.Box):
            at_bound = (self.actions <= self.action_space.low) | (self.actions >= self.action_space.high)
            numbers["actions_at_bound"] = at_bound.mean()
        return {name: float(value) for name, value in numbers.items()}

    def spec(self) -> Spec:
        """What an algorithm must know of this task.

        Mean and standard deviation are over the observations that are acted in (no episode's final one; only the
        steps in `mask`), for vector observations; None for others.
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
        """SHA-256 (hex) of every array and of both spaces; it changes when one value changes."""
        arrays = self._arrays(("observations", "actions", "rewards", "terminated", "truncated", "offsets", "mask"))
        parts = (("observation", self.observation_space), ("action", self.action_space))
        return digest(arrays, [f"{name} {space_text(part)};" for name, part in parts])


def _check_episode(source: str, number: int, item: Mapping[str, Any], length: int) -> None:
    """Lengths within one episode agree; named by episode, which the flat arrays could not."""
    observations = item["observations"]
    for name, leaf in validation.leaves(observations):
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
    """A bool for the last step, or one per step -> one per step; what is no bool stays, for `Episodes` to refuse."""
    flags = np.asarray(flag)
    if not flags.ndim:
        flags = np.zeros(length, dtype=flags.dtype)
        flags[length - 1 :] = flag
    return flags


def _moments(values: Array, rows: Array, chunk: int = 65_536) -> tuple[Array, Array]:
    """Mean and standard deviation `[D]` float32 over `rows`, summed in float64 without a copy of the data."""
    chunks = [rows[i : i + chunk] for i in range(0, len(rows), chunk)]
    mean = np.sum([values[c].sum(axis=0, dtype=np.float64) for c in chunks], axis=0) / len(rows)
    variance = np.sum([np.square(values[c] - mean).sum(axis=0) for c in chunks], axis=0) / len(rows)
    return np.asarray(mean, dtype=np.float32), np.sqrt(variance).astype(np.float32)
