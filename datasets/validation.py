"""Checks that every dataset must pass when it is built; errors give the field, the episode and the step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from herdbook.core.notices import logger
from herdbook.core.spaces import BadValues, cast, leaf_spaces, with_bounds
from herdbook.core.types import Array, Tree
from herdbook.datasets.layout import locate, place

ACTION_TOLERANCE = 1e-5
"""Largest distance of a stored float32 action from its space that is not an error."""


class DataError(ValueError):
    """A dataset that is missing, unreadable or invalid."""


def leaves(tree: Tree, name: str = "observations") -> Iterator[tuple[str, Array]]:
    """(name for messages, array) of each leaf of an observation tree."""
    if isinstance(tree, dict):
        for key, part in tree.items():
            yield from leaves(part, f"{name}[{key!r}]")
    else:
        yield name, tree


def cast_observations(space: Space[Any], observations: Tree, part: str = "") -> Tree:
    """Cast vectors to float32, images to uint8, discrete observations to int64; copy only if the type differs."""
    if isinstance(space, spaces.Dict):
        if not isinstance(observations, dict) or set(observations) != set(space.spaces):
            came = sorted(observations) if isinstance(observations, dict) else type(observations).__name__
            raise BadValues(f"with the keys {sorted(space.spaces)}", came, part=part)
        return {n: cast_observations(inner, observations[n], f"{part}[{n!r}]") for n, inner in space.spaces.items()}
    if isinstance(space, spaces.Discrete):
        return cast(observations, np.int64, part)
    image = isinstance(space, spaces.Box) and space.dtype == np.uint8
    return cast(observations, np.uint8 if image else np.float32, part)


@contextmanager
def located(source: str, name: str, starts: Array | None = None, *, episode: int | None = None) -> Iterator[None]:
    """Turn `BadValues` into a `DataError` with the field and the place.

    starts: the first row of each episode. episode: the number of the only episode, if the rows are one episode's.
    """
    try:
        yield
    except BadValues as error:
        where = "" if episode is None else f" in episode {episode}"
        if error.row is not None and starts is not None:
            where = f" at {place(error.row, starts)}"
        elif error.row is not None and episode is not None:
            where = f" at episode {episode}, step {error.row}"
        raise DataError(f"{source}: expected {name}{error.part} {error.expected}, got {error.got}{where}") from error


def checked_offsets(source: str, values: Any) -> Array:
    """Offsets as int64. Raises `DataError` unless they begin at 0 and no episode is empty."""
    with located(source, "offsets"):
        offsets = cast(values, np.int64)
    if offsets.ndim != 1:
        raise DataError(f"{source}: expected offsets of shape [episodes + 1], got {offsets.shape}")
    steps, episodes = int(offsets[-1]) if len(offsets) else 0, len(offsets) - 1
    if episodes < 1 or steps < 1:
        raise DataError(f"{source}: the dataset is empty ({max(episodes, 0)} episodes, {steps} steps)")
    lengths = np.diff(offsets)
    if offsets[0] != 0:
        raise DataError(f"{source}: expected offsets that begin at 0, got {offsets[0]}")
    if (lengths < 1).any():
        raise DataError(f"{source}: episode {int(np.argmin(lengths))} has {lengths.min()} steps; remove empty episodes")
    return offsets


def check_steps(source: str, offsets: Array, fields: Iterable[tuple[str, Array]]) -> None:
    """Check that the fields have one entry per step."""
    steps = int(offsets[-1])
    for name, values in fields:
        if len(values) != steps:
            raise DataError(f"{source}: expected {name} for {steps} steps (the last offset), got {len(values)}")


def check_rows(source: str, offsets: Array, fields: Iterable[tuple[str, Array]]) -> None:
    """Check that the fields have T+1 rows for T steps."""
    steps, episodes = int(offsets[-1]), len(offsets) - 1
    for name, leaf in fields:
        if len(leaf) != steps + episodes:
            fix = "append each episode's final observation, or read the data with from_arrays(…, next_observations=…)"
            rows = f"{steps + episodes} rows of {name} for {steps} steps in {episodes} episodes"
            came = f"T ({steps}); {fix}" if len(leaf) == steps else str(len(leaf))
            raise DataError(f"{source}: expected T+1 observations for T actions ({rows}), got {came}")


def check_shape(source: str, name: str, space: Space[Any], tree: Tree, lead: tuple[int, ...] = ()) -> None:
    """Check that the rows of every leaf are `[*lead, …]` with the shape of its space."""
    for (leaf_name, leaf), part in zip(leaves(tree, name), leaf_spaces(space), strict=True):
        expected = (*lead, *(part.shape or ()))
        if leaf.shape[1:] != expected:
            raise DataError(f"{source}: expected {leaf_name} of shape {expected} (from {part}), got {leaf.shape[1:]}")


def check_inside(source: str, name: str, starts: Array, space: Space[Any], tree: Tree) -> None:
    """Check that observations are finite, and inside a discrete space. `starts`: first row of each episode."""
    for (leaf_name, leaf), part in zip(leaves(tree, name), leaf_spaces(space), strict=True):
        check_finite(source, leaf_name, leaf, starts)
        if isinstance(part, spaces.Discrete):
            _check_discrete(source, leaf_name, leaf, starts, part)


def check_actions(source: str, offsets: Array, space: Any, actions: Array, name: str = "actions") -> None:
    """Check that actions are finite and inside their space, up to `ACTION_TOLERANCE`."""
    if isinstance(space, spaces.Discrete):
        _check_discrete(source, name, actions, offsets, space)
        return
    check_finite(source, name, actions, offsets)
    low, high = space.low - ACTION_TOLERANCE, space.high + ACTION_TOLERANCE
    if (actions.min(axis=0) >= low).all() and (actions.max(axis=0) <= high).all():
        return
    step, dimension = np.argwhere((actions < low) | (actions > high))[0]
    column = actions[:, dimension]
    raise DataError(
        f"{source}: expected {name} in [{space.low[dimension]:g}, {space.high[dimension]:g}], got "
        f"[{column.min():g}, {column.max():g}] in dimension {dimension}, first at {place(step, offsets)}; "
        "clip them with action_bounds (--action-bounds LOW HIGH), or give the action space that they were taken in"
    )


def bounded_actions(
    source: str, space: Space[Any], actions: Array, bounds: tuple[float, float] | None
) -> tuple[Space[Any], Array, tuple[str, ...]]:
    """A flat action space and actions `[N, A]` within it, and a note, which is logged, if actions are clipped.

    bounds: low and high of the dimensions of a Box that has none; None changes nothing.
    """
    if bounds is None:
        return space, actions, ()
    try:
        box = with_bounds(space, *bounds)
    except ValueError as error:
        raise DataError(f"{source}: {error}") from error
    assert isinstance(box, spaces.Box)
    check_finite(source, "actions", actions, np.array([0, len(actions)]))
    clipped = np.clip(actions.astype(np.float32), box.low, box.high)
    distances = np.abs(clipped - actions).max(axis=1)
    if not (distances > ACTION_TOLERANCE).any():
        return box, clipped, ()
    count = int((distances > ACTION_TOLERANCE).sum())
    note = f"clipped {count} of {len(actions)} actions to their bounds (the largest change is {distances.max():.3g})"
    logger.warning("%s: %s", source, note)
    return box, clipped, (note,)


def check_flags(source: str, offsets: Array, terminated: Array, truncated: Array) -> None:
    """Check that neither flag is set before an episode's last step."""
    last = np.zeros(len(terminated), dtype=bool)
    last[offsets[1:] - 1] = True
    for name, flags in (("terminated", terminated), ("truncated", truncated)):
        inside = flags & ~last
        if inside.any():
            episode, step = locate(int(np.argmax(inside)), offsets)
            length = offsets[episode + 1] - offsets[episode]
            raise DataError(
                f"{source}: {name} is set inside episode {episode}, at step {step} of {length}; "
                "split the episode there, or correct the flag"
            )


def check_finite(source: str, name: str, values: Array, starts: Array) -> None:
    """Check that values are finite. `starts`: first row of each episode, and the number of rows."""
    if values.dtype.kind != "f":
        return
    with np.errstate(invalid="ignore", over="ignore"):
        if np.isfinite(np.add.reduce(values, axis=None, dtype=np.float64)):
            return  # a finite sum has finite terms: one pass, no temporary
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(np.argwhere(bad)[0][0])
        raise DataError(
            f"{source}: expected finite {name}, got {values[row][bad[row]].flat[0]} at {place(row, starts)} "
            f"({int(bad.sum())} such values in all); remove those episodes"
        )


def single(source: str, offsets: Array, name: str, values: Array) -> Array:
    """`values` `[steps, …]` as float32. Raises DataError on overflow."""
    with np.errstate(over="ignore"):
        converted = values.astype(np.float32)
    check_finite(source, f"{name} as float32", converted, offsets)
    return converted


def _check_discrete(source: str, name: str, values: Array, starts: Array, space: spaces.Discrete) -> None:
    low, high = int(space.start), int(space.start + space.n) - 1
    outside = (values < low) | (values > high)
    if outside.any():
        raise DataError(
            f"{source}: expected {name} in [{low}, {high}] ({space}), got [{values.min()}, {values.max()}], "
            f"first at {place(int(np.argmax(outside)), starts)}; correct the space or the data"
        )
