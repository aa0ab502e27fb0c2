"""Flattening of observation and action spaces to the inputs and outputs of networks.

A Dict or Tuple of vectors becomes one vector by Gymnasium's rule (`gymnasium.spaces.utils.flatten`): parts in the
space's order, discrete parts one-hot. A composite with an image becomes a flat Dict whose images keep their shape.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
from gymnasium import Space, spaces

from herdbook.core.needs import ActionKind
from herdbook.core.types import Array, Tree

Keys = Sequence[str] | None  # parts of a Dict observation to use; None uses all


class BadValues(ValueError):
    """Invalid values; names what was expected, what came, the part of the tree and the first bad row."""

    def __init__(self, expected: str, got: Any, *, part: str = "", row: int | None = None) -> None:
        place = "" if row is None else f" in row {row}"
        super().__init__(f"expected values{part} {expected}, got {got}{place}")
        self.expected, self.got, self.part, self.row = expected, got, part, row


def cast(values: Any, dtype: Any, part: str = "") -> Array:
    """Convert values to a contiguous array of `dtype` without changing them; copies only if the type differs.

    Floats are rounded; a float beyond the range of `dtype` becomes infinite, which `check_finite` reports.

    Raises `BadValues` for ragged or non-numeric values, for integers that are fractional or out of range, and for
    booleans other than 0 and 1.
    """
    wanted = np.dtype(dtype)
    try:
        array = np.asarray(values)
        if array.dtype.kind == "O":
            array = np.asarray(array.tolist())
    except (ValueError, TypeError) as error:
        raise BadValues(f"as an array of {wanted}", f"{type(values).__name__} ({error})", part=part) from error
    if array.dtype.kind not in "biuf" or not array.ndim:
        came = f"{array.dtype} of shape {array.shape}" if array.ndim else type(values).__name__
        raise BadValues(f"as an array of {wanted}", came, part=part)
    with np.errstate(over="ignore", invalid="ignore"):
        converted = np.ascontiguousarray(array, dtype=wanted)
        if wanted.kind == "f" or np.can_cast(array.dtype, wanted):
            return converted
        if wanted.kind == "b":
            expected, bad = "as booleans (0 or 1)", (array != 0) & (array != 1)
        else:
            low, high = np.iinfo(wanted).min, np.iinfo(wanted).max
            expected = f"as whole numbers in [{low}, {high}]" if wanted.itemsize < 8 else "as whole numbers"
            inside = (array >= low) & (array <= high if array.dtype.kind in "iu" else array < float(high) + 1)
            bad = ~inside | (array != converted)
    if bad.any():
        row = int(np.argwhere(bad)[0][0])
        raise BadValues(expected, array[bad].flat[0], part=part, row=row)
    return converted


def is_image(space: Space[Any]) -> TypeGuard[spaces.Box]:
    """True if observations are images: uint8 `[height, width, channels]`, channels first, or grey `[height, width]`.

    Four axes are a stack of such images, its frames on the first axis. A grey image must span the range 0 to 255, since
    a board with numbered cells is no image.
    """
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8:
        return False
    if len(space.shape) == 2:
        return not space.low.any() and bool(space.high.min() == 255)
    return len(space.shape) in (3, 4)


def channels_first(shape: Sequence[int]) -> bool:
    """True if the first axis of a picture `[x, y, z]` is its channels, False if the last one is.

    Up to 4 channels are first before two longer sides that are equal or at least 8, more channels before two longer
    sides that are equal and at least 16.
    """
    first, height, width = shape
    if first == 1 or width <= 4:
        return first == 1 and width not in (1, 3)
    if first <= 4 and min(height, width) >= 8:
        return True
    return first < height == width and (first <= 4 or width >= 16)


def flat_space(space: Space[Any], keys: Keys = None) -> Space[Any]:
    """The input space of the networks.

    Box (not an image), MultiDiscrete, MultiBinary, Dict and Tuple become a Box `[D]` float32. Discrete and images are
    unchanged. A composite with an image becomes a Dict of such spaces, one level deep (`"wrist.camera"`).

    Raises ValueError for a key that the space does not have and for spaces of variable size (Text, Graph, Sequence).
    """
    space = select_keys(space, keys)
    if _has_image_part(space):
        return spaces.Dict({name: flat_space(part) for name, _, part in _parts(space)})
    if isinstance(space, spaces.Discrete) or is_image(space):
        return space
    _check_fixed_size(space)
    flat = spaces.utils.flatten_space(space)
    assert isinstance(flat, spaces.Box)
    return spaces.Box(_single(flat.low), _single(flat.high), dtype=np.float32)


def flatten(space: Space[Any], observation: Tree, keys: Keys = None) -> Tree:
    """Convert one observation of `space` to `flat_space(space, keys)`: `[D]` float32, an image or an int64 scalar."""
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return np.asarray(observation, dtype=np.float32)
    if isinstance(observation, np.ndarray) and observation.dtype == np.uint8 and is_image(space):
        return observation
    space = select_keys(space, keys)
    flat = flatten_batch(space, _expand(space, observation, ""))
    return {name: part[0] for name, part in flat.items()} if isinstance(flat, dict) else flat[0]


def checked_row(space: Space[Any], flat: Space[Any], observation: Any, keys: Keys = None) -> Tree:
    """A copy of `flatten(space, observation, keys)`, which must have the shapes of `flat`.

    Raises `BadValues` for an observation that is not in `space`.
    """
    try:
        row = flatten(space, observation, keys)
    except BadValues:
        raise
    except (ValueError, TypeError) as error:
        raise BadValues(f"in {space}", f"{type(observation).__name__} ({error})") from error
    if not isinstance(flat, spaces.Dict):
        _check_leaf(flat, row, np.shape(observation), "")
        return row.copy()
    for name, part in flat.spaces.items():
        _check_leaf(part, row[name], row[name].shape, f"[{name!r}]")
    return {name: part.copy() for name, part in row.items()}


def _check_leaf(space: Space[Any], leaf: Array, came: tuple[int, ...], at: str) -> None:
    if leaf.shape != space.shape:
        raise BadValues(f"of shape {space.shape}", came, part=at)
    if isinstance(space, spaces.Discrete) and not space.start <= leaf < space.start + space.n:
        raise BadValues(f"in {space}", leaf, part=at)


def flatten_batch(space: Space[Any], observations: Tree, keys: Keys = None) -> Tree:
    """Convert N observations at once, given and returned with leaves `[N, …]`.

    Raises `BadValues` if a part is missing, has a wrong shape or length, or holds invalid values: fractions or NaN as
    integers, or a category outside the space.
    """
    return _flatten(select_keys(space, keys), observations, "")


def _flatten(space: Space[Any], observations: Tree, at: str) -> Tree:
    """`at`: path to `observations` in the tree for error messages, such as `['arm']['angle']`."""
    if _has_image_part(space):
        flat = {}
        for name, path, part in _parts(space):
            values, place = observations, at
            for index in path:
                values, place = _part(values, index, place), f"{place}[{index!r}]"
            flat[name] = _flatten(part, values, place)
        return flat
    if isinstance(space, spaces.Discrete) or is_image(space):
        return cast(observations, np.uint8 if is_image(space) else np.int64, at)
    _check_fixed_size(space)
    columns = _columns(space, observations, at)
    if len({len(column) for column in columns}) > 1:
        raise BadValues("with as many rows in each part", sorted({len(column) for column in columns}), part=at)
    return columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)


def unflatten_batch(space: Space[Any], values: Tree) -> Tree:
    """The inverse of `flatten_batch(space, …)`: observations `[N, …]` in the structure and types of `space`."""
    if _has_image_part(space):
        return _unflatten_dict(space, values, "")
    if isinstance(space, spaces.Discrete) or is_image(space):
        return np.asarray(values, dtype=space.dtype)
    return _from_columns(space, iter(np.split(values, np.cumsum(_widths(space))[:-1], axis=1)))


def flat_action_space(space: Space[Any]) -> Space[Any]:
    """The space of stored actions: any Box becomes a Box `[A]` float32, Discrete is unchanged.

    Raises ValueError for other spaces.
    """
    if isinstance(space, spaces.Discrete):
        return space
    if isinstance(space, spaces.Box):
        low = np.where(space.bounded_below, space.low, -np.inf)  # an integer type cannot represent infinity
        high = np.where(space.bounded_above, space.high, np.inf)
        return spaces.Box(_single(low.reshape(-1)), _single(high.reshape(-1)), dtype=np.float32)
    raise ValueError(f"expected a Box or Discrete action space, got {space}; convert the actions to one of the two")


def with_bounds(space: Space[Any], low: Array | float, high: Array | float) -> Space[Any]:
    """A flat action space whose infinite bounds are replaced. Raises ValueError unless it is a Box."""
    if not isinstance(space, spaces.Box):
        raise ValueError(f"action_bounds: expected Box actions, got {space}")
    lows, highs = np.where(np.isfinite(space.low), space.low, low), np.where(np.isfinite(space.high), space.high, high)
    return spaces.Box(lows.astype(np.float32), highs.astype(np.float32), dtype=np.float32)


def raw_actions(space: spaces.Box, actions: Array) -> Array:
    """Convert stored actions `[*B, A]` float32 to executable ones, `[*B, *space.shape]` in the type of `space`.

    They are within its bounds, which float32 may not represent. The range of an integer Box is divided into one equal
    part for each integer: every integer keeps its value, and uniform actions give each integer the same share.
    """
    shaped = np.reshape(actions, (*np.shape(actions)[:-1], *space.shape))
    if np.issubdtype(space.dtype, np.integer):
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        inside, span = np.clip(shaped.astype(np.float64), low, high), np.maximum(high - low, 1)
        shaped = np.floor(low + (inside - low) * (1 + 1 / span))
    return np.minimum(np.maximum(shaped.astype(space.dtype), space.low), space.high)


def executed(space: spaces.Box, actions: Array) -> Array:
    """Replace stored actions `[*B, A]` by those that the environment executes, see `raw_actions`."""
    if space.dtype == np.float32:
        return actions
    return raw_actions(space, actions).reshape(actions.shape).astype(np.float32)


def leaf_spaces(space: Space[Any]) -> list[Space[Any]]:
    """The leaves of a flat space."""
    return list(space.spaces.values()) if isinstance(space, spaces.Dict) else [space]


def zeros(space: Space[Any], *lead: int) -> Tree:
    """Zeros `[*lead, …]` of a flat space."""
    if isinstance(space, spaces.Dict):
        return {name: zeros(part, *lead) for name, part in space.spaces.items()}
    return np.zeros((*lead, *(space.shape or ())), dtype=space.dtype)


def check_action_space(space: Space[Any], kind: ActionKind, algorithm: str) -> None:
    """Raise ValueError unless `algorithm`, which handles actions of `kind`, can learn in `space`.

    A Box must be bounded with low < high, because actions are rescaled to [−1, 1].
    """
    if kind != "discrete" and isinstance(space, spaces.Box):
        if not space.is_bounded():
            told = "give bounds with --action-bounds LOW HIGH (action_bounds in Python)"
            raise ValueError(f"{algorithm}: expected bounded actions, got {space}; {told}")
        if not (space.low < space.high).all():
            raise ValueError(f"{algorithm}: expected low < high for every action, got {space}; remove fixed dimensions")
        return
    if kind != "box" and isinstance(space, spaces.Discrete):
        return
    wanted = {"box": "continuous (Box)", "discrete": "discrete", "any": "Box or discrete"}[kind]
    names = {
        "box": "bc, discrete_bcq or discrete_cql, or in an environment dqn or discrete_sac",
        "discrete": "bc, bcq, cql, td3_bc or iql, or in an environment ddpg, td3 or sac",
    }
    hint = f"; try {names[kind]}" if kind in names and isinstance(space, (spaces.Box, spaces.Discrete)) else ""
    raise ValueError(f"{algorithm}: expected {wanted} actions, got {space}{hint}")


def select_keys(space: Space[Any], keys: Keys) -> Space[Any]:
    """The parts of a Dict space named by `keys`, in the space's order. Raises ValueError for unknown or no keys."""
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


def _has_image_part(space: Space[Any]) -> bool:
    """True if a space is a Dict or Tuple with an image at any depth."""
    return any(is_image(part) or _has_image_part(part) for _, _, part in _children(space))


def _children(space: Space[Any]) -> Iterator[tuple[str, str | int, Space[Any]]]:
    """(name, index into an observation, subspace) of each part of a Dict or Tuple; nothing for other spaces."""
    if isinstance(space, spaces.Dict):
        yield from ((key, key, part) for key, part in space.spaces.items())
    elif isinstance(space, spaces.Tuple):
        yield from ((str(i), i, part) for i, part in enumerate(space.spaces))


def _parts(space: Space[Any]) -> Iterator[tuple[str, tuple[str | int, ...], Space[Any]]]:
    """(name, path, subspace) of the leaves of a composite's flat Dict: its images, and its parts without images."""
    for name, index, part in _children(space):
        if _has_image_part(part):
            yield from ((f"{name}.{inner}", (index, *path), leaf) for inner, path, leaf in _parts(part))
        else:
            yield name, (index,), part


def _part(values: Tree, index: str | int, at: str) -> Tree:
    try:
        return values[index]
    except (KeyError, IndexError, TypeError) as error:
        came = f"the parts {', '.join(map(repr, values))}" if isinstance(values, Mapping) else type(values).__name__
        raise BadValues(f"with a part {index!r}", came, part=at) from error


def _columns(space: Space[Any], values: Tree, at: str) -> list[Array]:
    """Blocks `[N, d]` float32 whose concatenation is the flat vector."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        parts = ((part, _part(values, index, at), f"{at}[{index!r}]") for _, index, part in _children(space))
        return [block for part, inner, place in parts for block in _columns(part, inner, place)]
    discrete = isinstance(space, (spaces.Discrete, spaces.MultiDiscrete))
    array = cast(values, np.int64 if discrete else np.float32, at)
    width = int(np.prod(space.shape or (), dtype=np.int64))
    if array[:1].size != width and len(array):
        raise BadValues(f"of shape {space.shape} in each row (from {space})", array.shape[1:], part=at)
    rows = array.reshape(len(array), width)
    if isinstance(space, spaces.Discrete):
        return [_one_hot(rows[:, 0], int(space.start), int(space.n), space, at)]
    if isinstance(space, spaces.MultiDiscrete):
        sizes = zip(space.start.reshape(-1), space.nvec.reshape(-1), strict=True)
        return [_one_hot(rows[:, i], int(start), int(n), space, at) for i, (start, n) in enumerate(sizes)]
    return [rows]


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
        if _has_image_part(part):
            parts[name] = _unflatten_dict(part, values, f"{prefix}{name}.")
        else:
            parts[name] = unflatten_batch(part, values[f"{prefix}{name}"])
    return parts if isinstance(space, spaces.Dict) else tuple(parts.values())


def _one_hot(values: Array, start: int, n: int, space: Space[Any], at: str) -> Array:
    outside = (values < start) | (values >= start + n)
    if outside.any():
        row = int(np.argmax(outside))
        raise BadValues(f"in [{start}, {start + n - 1}] (from {space})", values[row], part=at, row=row)
    encoded = np.zeros((len(values), n), dtype=np.float32)
    encoded[np.arange(len(values)), values - start] = 1
    return encoded


def _expand(space: Space[Any], observation: Any, at: str) -> Tree:
    """Add a leading axis of one to every leaf."""
    if isinstance(space, spaces.Dict):
        if not isinstance(observation, Mapping):
            raise BadValues("as a dict", type(observation).__name__, part=at)
        parts = [key for key in space.spaces if key in observation]
        return {key: _expand(space.spaces[key], observation[key], f"{at}[{key!r}]") for key in parts}
    if isinstance(space, spaces.Tuple):
        if not isinstance(observation, (tuple, list)) or len(observation) != len(space.spaces):
            came = f"{len(observation)} parts" if isinstance(observation, (tuple, list)) else type(observation).__name__
            raise BadValues(f"as a tuple of {len(space.spaces)} parts", came, part=at)
        pairs = enumerate(zip(space.spaces, observation, strict=True))
        return tuple(_expand(part, value, f"{at}[{i}]") for i, (part, value) in pairs)
    return np.asarray(observation)[None]


def _single(bounds: Array) -> Array:
    with np.errstate(over="ignore"):
        return bounds.astype(np.float32)


def _check_fixed_size(space: Space[Any]) -> None:
    if not space.is_np_flattenable or _has_text(space):
        raise ValueError(f"observations of {space} have no fixed size; choose other parts with observation_keys")


def _has_text(space: Space[Any]) -> bool:
    return isinstance(space, spaces.Text) or any(_has_text(part) for _, _, part in _children(space))


def alike(a: Space[Any], b: Space[Any]) -> bool:
    """True if two spaces are equal apart from the bounds of Boxes, which environments declare loosely."""
    if isinstance(a, spaces.Dict) and isinstance(b, spaces.Dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, spaces.Box) and isinstance(b, spaces.Box):
        return a.shape == b.shape and a.dtype == b.dtype
    return a == b
