"""Observation and action spaces: what the networks see of them.

A Dict or Tuple of vectors is one vector, by Gymnasium's own rule (`gymnasium.spaces.utils.flatten`): parts in the
space's order, discrete parts one-hot. One that holds an image becomes a flat Dict whose images keep their shape.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeGuard

import numpy as np
from gymnasium import Space, spaces

from herdbook.core.types import Array, Tree

Keys = Sequence[str] | None
"""Which parts of a Dict observation are used; None for all of them."""
ActionKind = Literal["box", "discrete", "any"]
"""Which actions an algorithm handles."""


def is_image(space: Space[Any]) -> TypeGuard[spaces.Box]:
    """Whether observations are pictures `[height, width, channels]` uint8."""
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3


def flat_space(space: Space[Any], keys: Keys = None) -> Space[Any]:
    """The space that the networks see.

    Box (not an image), MultiDiscrete, MultiBinary, Dict and Tuple become a Box `[D]` float32; Discrete and images pass
    through; a composite that holds an image becomes a Dict of such spaces, one level deep (`"wrist.camera"`).

    Raises ValueError for a key that the space does not have and for spaces of varying size (Text, Graph, Sequence).
    """
    space = select_keys(space, keys)
    if _holds_image(space) and not is_image(space):
        return spaces.Dict({name: flat_space(part) for name, part in _parts(space)})
    if isinstance(space, spaces.Discrete) or is_image(space):
        return space
    _check_fixed_size(space)
    flat = spaces.utils.flatten_space(space)
    assert isinstance(flat, spaces.Box)
    return spaces.Box(_single(flat.low), _single(flat.high), dtype=np.float32)


def flatten(space: Space[Any], observation: Tree, keys: Keys = None) -> Tree:
    """One observation of `space` as `flat_space(space, keys)` gives it: `[D]` float32, an image, an int64 scalar."""
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return np.asarray(observation, dtype=np.float32)
    flat = flatten_batch(space, _expand(space, observation), keys)
    return {name: part[0] for name, part in flat.items()} if isinstance(flat, dict) else flat[0]


def flatten_batch(space: Space[Any], observations: Tree, keys: Keys = None) -> Tree:
    """Many observations at once: every leaf of `observations` is `[N, …]`, and so is every leaf of the result."""
    space = select_keys(space, keys)
    if _holds_image(space) and not is_image(space):
        return {name: flatten_batch(part, values) for name, part, values in _parts_of(space, observations)}
    if is_image(space):
        return np.asarray(observations, dtype=np.uint8)
    if isinstance(space, spaces.Discrete):
        return np.asarray(observations, dtype=np.int64)
    _check_fixed_size(space)
    columns = _columns(space, observations)
    return columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)


def unflatten_batch(space: Space[Any], values: Tree) -> Tree:
    """The inverse of `flatten_batch(space, …)`: observations `[N, …]` in the structure and types of `space`."""
    if _holds_image(space) and not is_image(space):
        return _unflatten_dict(space, values, "")
    if isinstance(space, spaces.Discrete) or is_image(space):
        return np.asarray(values, dtype=space.dtype)
    return _from_columns(space, iter(np.split(values, np.cumsum(_widths(space))[:-1], axis=1)))


def flat_action_space(space: Space[Any]) -> Space[Any]:
    """The space of stored actions: Box of any shape -> Box `[A]` float32; Discrete passes through.

    Raises ValueError for anything else.
    """
    if isinstance(space, spaces.Discrete):
        return space
    if isinstance(space, spaces.Box):
        return spaces.Box(_single(space.low.reshape(-1)), _single(space.high.reshape(-1)), dtype=np.float32)
    raise ValueError(f"expected a Box or Discrete action space, got {space}; convert the actions to one of the two")


def check_action_space(space: Space[Any], kind: ActionKind, algorithm: str) -> None:
    """Raise ValueError unless `algorithm`, which handles actions of `kind`, can learn in `space`.

    A Box must be bounded and no dimension of it empty, because actions are rescaled to [-1, 1].
    """
    if kind != "discrete" and isinstance(space, spaces.Box):
        if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise ValueError(f"{algorithm}: expected bounded actions, got {space}; give the action space finite bounds")
        if not (space.low < space.high).all():
            raise ValueError(f"{algorithm}: expected low < high for every action, got {space}; leave out what is fixed")
        return
    if kind != "box" and isinstance(space, spaces.Discrete):
        return
    wanted = {"box": "continuous (Box)", "discrete": "discrete", "any": "Box or discrete"}[kind]
    names = {"box": "bc, discrete_bcq or discrete_cql", "discrete": "bc, bcq, cql, td3_bc or iql"}
    hint = f"; try {names[kind]}" if kind in names and isinstance(space, (spaces.Box, spaces.Discrete)) else ""
    raise ValueError(f"{algorithm}: expected {wanted} actions, got {space}{hint}")


def select_keys(space: Space[Any], keys: Keys) -> Space[Any]:
    """The parts of a Dict space named by `keys`, in the space's own order."""
    if keys is None:
        return space
    if not isinstance(space, spaces.Dict):
        raise ValueError(f"observation_keys chooses parts of a Dict observation; this space is {space}")
    for key in keys:
        if key not in space.spaces:
            near = difflib.get_close_matches(key, space.spaces, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"no observation key {key!r}; the keys are {', '.join(map(repr, space.spaces))}{hint}")
    if not keys:
        raise ValueError(f"observation_keys is empty; choose among {', '.join(map(repr, space.spaces))}")
    return spaces.Dict({key: part for key, part in space.spaces.items() if key in keys})


def _holds_image(space: Space[Any]) -> bool:
    if isinstance(space, spaces.Dict):
        return any(map(_holds_image, space.spaces.values()))
    if isinstance(space, spaces.Tuple):
        return any(map(_holds_image, space.spaces))
    return is_image(space)


def _children(space: Space[Any]) -> Iterator[tuple[str, str | int, Space[Any]]]:
    """(name, how to index an observation, subspace) of each part of a Dict or Tuple."""
    if isinstance(space, spaces.Dict):
        yield from ((key, key, part) for key, part in space.spaces.items())
    elif isinstance(space, spaces.Tuple):
        yield from ((str(i), i, part) for i, part in enumerate(space.spaces))


def _parts_of(space: Space[Any], observations: Tree) -> Iterator[tuple[str, Space[Any], Tree]]:
    """The leaves of the flat Dict of a composite that holds an image: its images, and its parts without one."""
    for name, index, part in _children(space):
        values = None if observations is None else observations[index]
        if _holds_image(part) and not is_image(part):
            yield from ((f"{name}.{inner}", leaf, leaves) for inner, leaf, leaves in _parts_of(part, values))
        else:
            yield name, part, values


def _parts(space: Space[Any]) -> Iterator[tuple[str, Space[Any]]]:
    return ((name, part) for name, part, _ in _parts_of(space, None))


def _columns(space: Space[Any], values: Tree) -> list[Array]:
    """The blocks `[N, d]` float32 whose concatenation is the flat vector."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        return [block for _, index, part in _children(space) for block in _columns(part, values[index])]
    if isinstance(space, spaces.Discrete):
        return [_one_hot(np.asarray(values) - space.start, int(space.n))]
    if isinstance(space, spaces.MultiDiscrete):
        indices = (np.asarray(values) - space.start).reshape(len(values), -1)
        return [_one_hot(indices[:, i], int(n)) for i, n in enumerate(space.nvec.reshape(-1))]
    values = np.asarray(values)
    with np.errstate(over="ignore"):  # an overflow to infinity is reported by whoever validates the values
        return [np.asarray(values, dtype=np.float32).reshape(len(values), -1)]


def _widths(space: Space[Any]) -> list[int]:
    """The width of each block of `_columns`."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        return [width for _, _, part in _children(space) for width in _widths(part)]
    if isinstance(space, spaces.MultiDiscrete):
        return [int(n) for n in space.nvec.reshape(-1)]
    return [int(spaces.utils.flatdim(space))]


def _from_columns(space: Space[Any], columns: Iterator[Array]) -> Tree:
    if isinstance(space, spaces.Dict):
        return {name: _from_columns(part, columns) for name, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_from_columns(part, columns) for part in space.spaces)
    if isinstance(space, spaces.Discrete):
        return next(columns).argmax(axis=1) + space.start
    if isinstance(space, spaces.MultiDiscrete):
        indices = np.stack([next(columns).argmax(axis=1) for _ in range(space.nvec.size)], axis=1)
        return indices.reshape(-1, *space.nvec.shape) + space.start
    block = next(columns)
    integer = np.issubdtype(space.dtype, np.integer)
    return block.reshape(len(block), *(space.shape or ())).astype(space.dtype if integer else np.float32)


def _unflatten_dict(space: Space[Any], values: Mapping[str, Tree], prefix: str) -> Tree:
    parts: dict[str, Tree] = {}
    for name, _, part in _children(space):
        inner = _holds_image(part) and not is_image(part)
        parts[name] = (
            _unflatten_dict(part, values, f"{prefix}{name}.")
            if inner
            else unflatten_batch(part, values[f"{prefix}{name}"])
        )
    return parts if isinstance(space, spaces.Dict) else tuple(parts.values())


def _one_hot(indices: Array, n: int) -> Array:
    encoded = np.zeros((len(indices), n), dtype=np.float32)
    encoded[np.arange(len(indices)), indices.astype(np.int64)] = 1
    return encoded


def _expand(space: Space[Any], observation: Tree) -> Tree:
    """A leading axis of one for every leaf."""
    if isinstance(space, spaces.Dict):
        assert isinstance(observation, Mapping)
        return {key: _expand(part, observation[key]) for key, part in space.spaces.items() if key in observation}
    if isinstance(space, spaces.Tuple):
        return tuple(_expand(part, value) for part, value in zip(space.spaces, observation, strict=True))
    return np.asarray(observation)[None]


def _single(bounds: Array) -> Array:
    with np.errstate(over="ignore"):
        return bounds.astype(np.float32)


def _check_fixed_size(space: Space[Any]) -> None:
    if not space.is_np_flattenable:
        raise ValueError(f"observations of {space} have no fixed size; choose other parts with observation_keys")
