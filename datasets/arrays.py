"""Episodes from plain arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from gymnasium import Space, spaces

from herdbook.core.spaces import flat_action_space, flat_space, flatten_batch
from herdbook.core.types import Array, Tree, tree_map
from herdbook.datasets.episodes import Episodes
from herdbook.datasets.layout import offsets_of, row_offsets
from herdbook.datasets.validation import ACTION_TOLERANCE, DataError, bounded_actions, checked_offsets, located


def from_arrays(
    observations: Tree,
    actions: Any,
    rewards: Any,
    terminated: Any,
    truncated: Any,
    *,
    next_observations: Tree | None = None,
    offsets: Any = None,
    observation_space: Space[Any] | None = None,
    action_space: Space[Any] | None = None,
    action_bounds: tuple[float, float] | None = None,
    **fields: Any,
) -> Episodes:
    """Episodes from arrays over N steps, with the episodes concatenated.

    `observations` has T+1 rows for each episode. With `next_observations` both have N rows, and only the last next
    observation of each episode is kept. Episode e is steps `offsets[e]:offsets[e + 1]`. Without offsets, an episode
    ends at a flag or at the end of the data. `action_bounds` are those of `load_dataset`. `fields` are further fields
    of `Episodes`.

    Spaces that are not given are inferred: uint8 `[N, H, W, C]`, `[N, C, H, W]`, `[N, H, W]` and stacks of images as
    images of the range 0 to 255 (0 to 1 if 1 is the largest value), integers `[N]` as Discrete, other
    observations as vectors, and actions within [-1, 1] as a Box with these bounds.

    Raises DataError for data that do not satisfy `Episodes`, for uint8 `[N, D]` without an observation space, and for
    actions beyond [-1, 1] without an action space.
    """
    source = fields.setdefault("source", "arrays")
    named = {"actions": actions, "rewards": rewards, "terminated": terminated, "truncated": truncated}
    actions, rewards, *flags = (_array(source, name, values) for name, values in named.items())
    if rewards.ndim != 1 or any(flag.shape != rewards.shape for flag in flags) or actions.shape[:1] != rewards.shape:
        raise DataError(
            f"{source}: expected rewards, terminated and truncated of shape [N] and N actions, "
            f"got {rewards.shape}, {flags[0].shape}, {flags[1].shape} and actions {actions.shape}"
        )
    if not len(rewards):
        raise DataError(f"{source}: the dataset is empty (0 steps)")
    if offsets is None:
        offsets = episode_offsets((flags[0] == 1) | (flags[1] == 1))
    offsets = checked_offsets(source, offsets)
    if observation_space is None:
        observation_space = _infer_space(source, "observations", observations)
    if action_space is None:
        action_space = infer_action_space(source, actions, action_bounds)
    flat, flat_actions = flat_space(observation_space), flat_action_space(action_space)
    actions = actions.reshape(len(actions), -1) if isinstance(flat_actions, spaces.Box) else actions
    flat_actions, actions, notes = bounded_actions(source, flat_actions, actions, action_bounds)
    fields["transforms"] = (*fields.get("transforms", ()), *notes)
    with located(source, "observations", row_offsets(offsets) if next_observations is None else offsets):
        rows = flatten_batch(observation_space, observations)
    if next_observations is not None:
        with located(source, "next_observations", offsets):
            following = flatten_batch(observation_space, next_observations)
        rows = tree_map(lambda leaf, after: with_final_rows(source, leaf, after, offsets), rows, following)
    return Episodes(
        observations=rows,
        actions=actions,
        rewards=rewards,
        terminated=flags[0],
        truncated=flags[1],
        offsets=offsets,
        observation_space=flat,
        action_space=flat_actions,
        raw_observation_space=observation_space,
        **fields,
    )


def episode_offsets(ends: Array) -> Array:
    """Offsets from `ends` `[N]` bool, the last steps of episodes; the end of the data ends an episode too."""
    offsets = np.concatenate([[0], np.flatnonzero(ends) + 1])
    return offsets if offsets[-1] == len(ends) else np.append(offsets, len(ends))


def with_final_rows(source: str, observations: Array, next_observations: Array, offsets: Array) -> Array:
    """T+1 rows per episode from observations `[N, …]` and the last next observation of each episode."""
    if len(observations) != offsets[-1] or observations.shape != next_observations.shape:
        raise DataError(
            f"{source}: expected observations and next_observations of {offsets[-1]} steps, "
            f"got shapes {observations.shape} and {next_observations.shape}"
        )
    last = offsets[1:] - 1
    rows = np.empty((len(observations) + len(last), *observations.shape[1:]), observations.dtype)
    steps = np.ones(len(rows), dtype=np.bool_)
    steps[row_offsets(offsets)[1:] - 1] = False
    rows[steps], rows[~steps] = observations, next_observations[last]
    return rows


class Complete(NamedTuple):
    """Steps that all have a successor, and their episodes; observations have T+1 rows per episode."""

    observations: Array
    actions: Array
    rewards: Array
    terminated: Array
    truncated: Array
    offsets: Array
    note: str
    """The number of steps that were dropped, in words."""


def with_successors(
    source: str, observations: Array, actions: Array, rewards: Array, terminated: Array, truncated: Array
) -> Complete:
    """Steps `[N]` of files without next observations: the last step of an episode has no successor.

    It is dropped unless the episode terminated, and the episode is truncated there. After a termination nothing is
    bootstrapped, so the last observation stands for its successor. Raises DataError if no step is left.
    """
    steps = len(observations)
    offsets = episode_offsets(terminated | truncated)
    last = offsets[1:] - 1
    cut = last[~terminated[last]]  # its observation becomes the final one of its episode
    lone = np.zeros(steps, dtype=np.bool_)
    lone[cut[np.isin(cut, offsets[:-1])]] = True  # an episode of one such step is dropped
    truncated = truncated.copy()
    truncated[cut[~lone[cut]] - 1] = True
    repeats = np.ones(steps, dtype=np.int64)
    repeats[terminated] = 2
    rows = np.repeat(observations, np.where(lone, 0, repeats), axis=0)
    kept = np.ones(steps, dtype=np.bool_)
    kept[cut] = False
    if not kept.any():
        cause = f"its {steps} steps are one-step episodes that timed out, without next_observations"
        raise DataError(f"{source}: the dataset is empty: {cause}")
    offsets = offsets_of(np.add.reduceat(kept.astype(np.int64), offsets[:-1]))
    return Complete(
        observations=rows,
        actions=actions[kept],
        rewards=rewards[kept],
        terminated=terminated[kept],
        truncated=truncated[kept],
        offsets=offsets[np.append(True, np.diff(offsets) > 0)],
        note=f"dropped the last step of {len(cut)} episodes that did not terminate (no next_observations)",
    )


def infer_action_space(source: str, actions: Array, bounds: tuple[float, float] | None = None) -> Space[Any]:
    """Discrete(largest + 1) for integers `[N]`, Box for numbers `[N, …]` within [-1, 1] or with the given bounds.

    Raises DataError otherwise.
    """
    if actions.dtype.kind in "iu" and actions.ndim == 1:
        if actions.min() < 0:
            raise DataError(f"{source}: expected actions from 0 on, got {actions.min()}; give the action_space")
        return spaces.Discrete(int(actions.max()) + 1)
    if actions.ndim < 2 or actions.dtype.kind not in "iuf":
        came = f"{actions.dtype} {actions.shape}"
        raise DataError(f"{source}: expected actions [N, A] of floats or [N] of integers, got {came}")
    if bounds is not None:
        return spaces.Box(-np.inf, np.inf, actions.shape[1:], np.float32)  # the caller bounds it
    if np.abs(actions).max() > 1 + ACTION_TOLERANCE:
        came = f"[{actions.min():g}, {actions.max():g}]"
        raise DataError(f"{source}: expected actions in [-1, 1], got {came}; give action_bounds or the action_space")
    return spaces.Box(-1.0, 1.0, actions.shape[1:], np.float32)


def _array(source: str, name: str, values: Any) -> Array:
    try:
        return np.asarray(values)
    except (ValueError, TypeError) as error:
        raise DataError(f"{source}: expected {name} as an array, got {type(values).__name__}: {error}") from error


def _infer_space(source: str, name: str, values: Tree) -> Space[Any]:
    if isinstance(values, dict):
        return spaces.Dict({key: _infer_space(source, f"{name}[{key!r}]", part) for key, part in values.items()})
    observations = _array(source, name, values)
    if observations.dtype == np.uint8 and observations.ndim in (3, 4, 5) and len(observations):
        bits = observations.max() == 1
        return spaces.Box(0, 1 if bits else 255, observations.shape[1:], np.uint8)
    if observations.dtype == np.uint8 and observations.ndim == 2:
        size = observations.shape[1]
        raise DataError(
            f"{source}: expected {name} of uint8 as images [N, H, W] or [N, H, W, C], got {observations.shape}; "
            f"reshape flattened images, or give observation_space=Box(0, 255, ({size},), np.uint8) for vectors"
        )
    if observations.dtype.kind in "iu" and observations.ndim == 1 and len(observations):
        return spaces.Discrete(int(observations.max()) + 1)
    return spaces.Box(-np.inf, np.inf, observations.shape[1:] or (1,), np.float32)
