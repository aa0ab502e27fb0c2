"""Minari datasets in and out.

Minari's own reader opens five HDF5 datasets per episode through its object layer and returns a list of episodes; this
one reads each of them once, straight into flat arrays. Minari validates nothing of what it stores: `Episodes` does.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from gymnasium import Space, spaces
from h5py import h5a, h5d, h5g, h5s, h5t

from herdbook.core.environments import EnvironmentSpec, ReferenceScores, make_environment, registered_only
from herdbook.core.spaces import (
    cast,
    flat_action_space,
    flat_space,
    flatten_batch,
    is_image,
    select_keys,
    unflatten_batch,
)
from herdbook.core.types import Array, Tree
from herdbook.datasets.d4rl import d4rl_references
from herdbook.datasets.episodes import DataError, Episodes
from herdbook.datasets.validation import located

REFERENCE_SOURCE = "herdbook_reference_source"
"""The metadata key that keeps where reference scores come from; Minari has none for it."""
TRANSFORMS = "herdbook_transforms"
"""The metadata key that keeps `Episodes.transforms`."""


def minari_root(data_dir: str | Path | None = None) -> Path:
    """Where Minari datasets lie: `data_dir`, else $MINARI_DATASETS_PATH, else ~/.minari/datasets. Not created."""
    if data_dir is not None:
        return Path(data_dir).expanduser()
    return Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")


def read_minari(
    dataset: str | Path, *, data_dir: str | Path | None = None, observation_keys: Sequence[str] | None = None
) -> Episodes:
    """Read a Minari dataset from this machine: its folder, or its id under `minari_root(data_dir)`.

    observation_keys: the parts of a Dict observation that are used.

    Raises `DataError` for a folder without a dataset, a truncated or corrupt file, and data that does not satisfy
    `Episodes`; ValueError for an unknown observation key. Code that the files name is never imported: where spaces are
    not stored, they are those of a registered environment.
    """
    folder, metadata = read_metadata(dataset, data_dir=data_dir)
    source = str(metadata.get("dataset_id", folder))
    environment = _environment(source, metadata)
    raw_space, raw_actions = _spaces(source, metadata, environment)
    chosen = select_keys(raw_space, observation_keys)
    try:
        space, action_space = flat_space(chosen), flat_action_space(raw_actions)
    except ValueError as error:
        raise DataError(f"{source}: {error}") from error
    direct = metadata.get("data_format", "hdf5") == "hdf5" and not _has_jpeg(metadata, chosen)
    if not direct and not (metadata.get("observation_space") and metadata.get("action_space")):
        raise DataError(  # Minari would make the environment of env_spec, whatever code that names
            f"{source}: expected both spaces in metadata.json, as datasets that Minari itself decodes (JPEG, Arrow) "
            "need; add observation_space and action_space"
        )
    read = _read_hdf5 if direct else _read_through_minari
    observations, actions, fields = read(source, folder, chosen, raw_actions)
    offsets = fields["offsets"]
    with located(source, "observations", offsets + np.arange(len(offsets))):
        flat = flatten_batch(chosen, observations)
    return Episodes(
        observations=flat,
        actions=actions.reshape(len(actions), -1) if isinstance(action_space, spaces.Box) else actions,
        **fields,
        observation_space=space,
        action_space=action_space,
        raw_observation_space=raw_space,
        observation_keys=None if observation_keys is None else tuple(observation_keys),
        environment=environment,
        reference_scores=_reference_scores(source, metadata, environment),
        source=source,
        transforms=tuple(metadata.get(TRANSFORMS, ())),
    )


def read_metadata(dataset: str | Path, *, data_dir: str | Path | None = None) -> tuple[Path, dict[str, Any]]:
    """The folder that holds a dataset's files, and its metadata.json. Raises `DataError` where there is none."""
    candidates = [Path(dataset).expanduser(), minari_root(data_dir) / str(dataset)]
    for folder in (c / sub for c in candidates for sub in ("data", ".")):
        path = folder / "metadata.json"
        if path.is_file():
            try:
                metadata = json.loads(path.read_text())
            except (ValueError, OSError) as error:
                raise DataError(f"{path}: expected a Minari dataset's metadata as JSON: {error}") from error
            if not isinstance(metadata, dict):
                raise DataError(f"{path}: expected a JSON object, got {type(metadata).__name__}")
            return folder, metadata
    raise DataError(f"{dataset}: no Minari dataset there (looked for data/metadata.json in {candidates[-1]})")


def list_minari(data_dir: str | Path | None = None) -> list[str]:
    """Ids of the datasets under `minari_root(data_dir)`, sorted."""
    root = minari_root(data_dir)
    found = (path.parent.parent.relative_to(root) for path in root.glob("**/data/metadata.json"))
    return sorted(p.as_posix() for p in found if not any(part.startswith(".") for part in p.parts))


def _environment(source: str, metadata: Mapping[str, Any]) -> EnvironmentSpec | None:
    text = metadata.get("eval_env_spec") or metadata.get("env_spec")
    try:
        return EnvironmentSpec.from_json(text) if text else None
    except ValueError as error:
        raise DataError(f"{source}: {error}") from error


def _spaces(
    source: str, metadata: Mapping[str, Any], environment: EnvironmentSpec | None
) -> tuple[Space[Any], Space[Any]]:
    from minari.serialization import deserialize_space

    found = [metadata.get("observation_space"), metadata.get("action_space")]
    if all(found):
        try:
            return deserialize_space(found[0]), deserialize_space(found[1])
        except (NotImplementedError, KeyError, ValueError, TypeError) as error:
            raise DataError(f"{source}: cannot read the spaces in metadata.json: {error}") from error
    if environment is None:
        raise DataError(f"{source}: metadata.json holds neither both spaces nor an environment to take them from")
    try:
        env = make_environment(registered_only(environment))
    except (ValueError, KeyError, TypeError) as error:  # it is unavailable, or the spec is malformed
        raise DataError(f"{source}: metadata.json does not hold both spaces, and {error}") from error
    return env.observation_space, env.action_space


def _reference_scores(
    source: str, metadata: Mapping[str, Any], environment: EnvironmentSpec | None
) -> ReferenceScores | None:
    """The dataset's own; else D4RL's by the environment's family, which is a convention and labelled so."""
    convention = None if environment is None else d4rl_references(environment.id)
    low, high = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    if low is None or high is None:
        return convention
    if convention is not None and (convention.minimum, convention.maximum) == (low, high):
        return convention
    try:
        return ReferenceScores(low, high, metadata.get(REFERENCE_SOURCE, f"recorded in {source}"))
    except (ValueError, TypeError) as error:
        raise DataError(f"{source}: {error} (ref_min_score, ref_max_score in metadata.json)") from error


def _has_jpeg(metadata: Mapping[str, Any], space: Space[Any]) -> bool:
    """Whether some part is stored as JPEG, which Minari >= 0.5.3 does by default with images of 32x32 and more."""
    from minari.dataset.minari_storage import is_image_space

    return bool(metadata.get("jpeg_encoding", True)) and any(is_image_space(leaf) for _, leaf in _leaves(space, ""))


# --- reading ---------------------------------------------------------------------------------------------------------


def _leaves(space: Space[Any], path: str) -> Iterator[tuple[str, Space[Any]]]:
    """(path in the file, space) of each array of a value of `space`."""
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from _leaves(part, f"{path}/{key}")
    elif isinstance(space, spaces.Tuple):
        for i, part in enumerate(space.spaces):
            yield from _leaves(part, f"{path}/_index_{i}")
    else:
        yield path, space


def _tree(space: Space[Any], arrays: Iterator[Array]) -> Tree:
    """The arrays of `_leaves` in the structure of `space`."""
    if isinstance(space, spaces.Dict):
        return {key: _tree(part, arrays) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_tree(part, arrays) for part in space.spaces)
    return next(arrays)


def _dtype(space: Space[Any]) -> type[np.generic]:
    if is_image(space):
        return np.uint8
    return np.float32 if isinstance(space, spaces.Box) else np.int64


def _read_hdf5(
    source: str, folder: Path, space: Space[Any], action_space: Space[Any]
) -> tuple[Tree, Array, dict[str, Any]]:
    path = folder / "main_data.hdf5"
    try:
        with h5py.File(path, "r") as file:
            return _read_open(source, file, space, action_space)
    except DataError:
        raise
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, MemoryError) as error:  # as HDF5 sees fit
        raise DataError(
            f"{path}: expected a Minari HDF5 file, but it is truncated, corrupt or lacks a field ({error}); "
            "download or make the dataset again"
        ) from error


def _read_open(
    source: str, file: h5py.File, space: Space[Any], action_space: Space[Any]
) -> tuple[Tree, Array, dict[str, Any]]:
    groups = [h5g.open(file.id, f"episode_{i}".encode()) for i in range(len(file))]
    if not groups:
        raise DataError(f"{source}: the dataset is empty (0 episodes)")
    lengths = np.array([h5d.open(group, b"rewards").shape[0] for group in groups])
    offsets = np.concatenate([[0], np.cumsum(lengths)])

    def allocate(path: str, dtype: type[np.generic], extra: int = 0) -> _Field:
        shape = h5d.open(groups[0], path.encode()).shape[1:]
        return _Field(path, np.empty((offsets[-1] + extra * len(groups), *shape), dtype), extra)

    observations = [allocate(path, _dtype(leaf), extra=1) for path, leaf in _leaves(space, "observations")]
    actions = allocate("actions", _dtype(action_space))
    rewards = allocate("rewards", np.float64)
    terminated, truncated = allocate("terminations", np.bool_), allocate("truncations", np.bool_)
    direct: dict[str, h5t.TypeID] = {}
    for number, group in enumerate(groups):  # once through the file, in its order
        for field in (*observations, actions, rewards, terminated, truncated):
            rows = field.array[
                offsets[number] + field.extra * number : offsets[number + 1] + field.extra * (number + 1)
            ]
            stored = h5d.open(group, field.path.encode())
            if stored.shape != rows.shape:
                raise DataError(
                    f"{source}: expected {field.path} of shape {rows.shape} in episode {number} "
                    f"(T{'+1' if field.extra else ''} for its T = {lengths[number]} rewards), got {stored.shape}"
                )
            kind = stored.get_type()
            if kind == direct.get(field.path) or _hdf5_converts(stored.dtype, rows.dtype):
                direct[field.path] = kind  # comparing is fast, a dtype is not
                stored.read(h5s.ALL, h5s.ALL, rows)
            else:
                with located(source, field.path, episode=number):
                    rows[...] = cast(h5py.Dataset(stored)[()], rows.dtype)
    for field in (terminated, truncated):
        with located(source, field.path, offsets):  # HDF5 stores a bool as a byte, and does not look at it
            field.array[...] = cast(field.array.view(np.uint8), np.bool_)
    fields = {
        "rewards": rewards.array,
        "terminated": terminated.array,
        "truncated": truncated.array,
        "offsets": offsets,
        "episode_metadata": _episode_metadata(_attributes(group) for group in groups),
    }
    return _tree(space, iter([field.array for field in observations])), actions.array, fields


class _Field(NamedTuple):
    """One array of the file, over all episodes, each of which has its length + `extra` rows."""

    path: str
    array: Array
    extra: int


def _attributes(group: h5g.GroupID) -> dict[str, Any]:
    """Reading attributes is slow, and most episodes have no more than `id` and `total_steps`."""
    return {} if h5a.get_num_attrs(group) <= 2 else dict(h5py.Group(group).attrs)


def _hdf5_converts(stored: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Between floats, and from an integer to a wider one; elsewhere HDF5 clips and cuts, where `cast` refuses."""
    if stored.kind == "f":
        return wanted.kind == "f"
    return stored == wanted or (stored.kind in "iu" and wanted.kind in "iu" and np.can_cast(stored, wanted))


def _read_through_minari(
    source: str, folder: Path, space: Space[Any], action_space: Space[Any]
) -> tuple[Tree, Array, dict[str, Any]]:
    """Formats that Minari decodes itself: JPEG images, Arrow."""
    from minari.dataset.minari_storage import MinariStorage

    try:
        storage = MinariStorage.read(folder)
        numbers = range(storage.total_episodes)
        episodes = list(storage.get_episodes(numbers))
        metadata = _episode_metadata(storage.get_episode_metadata(numbers))
    except ImportError as error:
        raise DataError(f"{source}: {error}") from error
    except Exception as error:  # whatever a decoder raises on a broken file
        raise DataError(f"{folder}: Minari cannot read this dataset ({type(error).__name__}: {error})") from error
    if not episodes:
        raise DataError(f"{source}: the dataset is empty (0 episodes)")

    def gather(path: str, dtype: type[np.generic], extra: int = 0) -> Array:
        parts = [_pick(source, number, episode, path, dtype) for number, episode in enumerate(episodes)]
        for number, (part, length) in enumerate(zip(parts, lengths, strict=True)):
            expected = (length + extra, *parts[0].shape[1:])
            if part.shape != expected:
                raise DataError(
                    f"{source}: expected {path} of shape {expected} in episode {number} "
                    f"(T{'+1' if extra else ''} for its T = {length} rewards), got {part.shape}"
                )
        return np.concatenate(parts)

    lengths = [len(_pick(source, number, episode, "rewards", np.float64)) for number, episode in enumerate(episodes)]
    observations = _tree(space, (gather(path, _dtype(leaf), extra=1) for path, leaf in _leaves(space, "observations")))
    fields = {
        "rewards": gather("rewards", np.float64),
        "terminated": gather("terminations", np.bool_),
        "truncated": gather("truncations", np.bool_),
        "offsets": np.concatenate([[0], np.cumsum(lengths)]),
        "episode_metadata": metadata,
    }
    return observations, gather("actions", _dtype(action_space)), fields


def _at(value: Tree, path: str) -> Any:
    for key in path.split("/"):
        value = value[int(key.removeprefix("_index_"))] if isinstance(value, tuple) else value[key]
    return value


def _pick(source: str, number: int, episode: Mapping[str, Any], path: str, dtype: type[np.generic]) -> Array:
    try:
        values = _at(episode, path)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"{source}: expected {path} in episode {number}, but it is not there") from error
    with located(source, path, episode=number):
        return cast(values, dtype)


def _episode_metadata(attributes: Iterable[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """What Minari keeps of each episode, less what the arrays say; empty where there is nothing."""
    kept = []
    for stored in attributes:
        nested: dict[str, Any] = {}
        for key, value in stored.items():
            if key not in ("id", "total_steps"):
                *path, name = key.split("/")
                inner = functools.reduce(lambda level, part: level.setdefault(part, {}), path, nested)
                inner[name] = value.item() if isinstance(value, np.generic) else value
        kept.append(nested)
    return tuple(kept) if any(kept) else ()


# --- writing ---------------------------------------------------------------------------------------------------------


def write_minari(episodes: Episodes, dataset_id: str, *, data_dir: str | Path | None = None, **metadata: Any) -> Path:
    """Write `episodes` as a Minari dataset under `minari_root(data_dir)` and return its folder.

    It opens in plain Minari, in the structure of the environment's own observations, and reads back to equal
    `Episodes`: images are stored without loss. `metadata` is added to metadata.json (`description`, `algorithm_name`,
    `author`, …). An interrupted write leaves no dataset.

    Raises `DataError` where the id is malformed or taken, or the episodes carry a mask (select episodes instead).
    """
    from minari import __version__ as minari_version
    from minari.dataset.minari_dataset import DATASET_ID_RE
    from minari.serialization import serialize_space

    match = DATASET_ID_RE.fullmatch(dataset_id)
    if match is None or match["version"] is None:
        raise DataError(f"expected a Minari id such as 'namespace/name-v0', with a version, got {dataset_id!r}")
    if episodes.mask is not None:
        raise DataError(f"{episodes.source}: subsampled steps cannot be stored; write the whole episodes")
    target = minari_root(data_dir) / dataset_id
    if target.exists():
        raise DataError(f"{dataset_id} exists at {target}; choose another id or version, or delete that folder")
    raw_space = episodes.raw_observation_space or episodes.observation_space
    raw_space = select_keys(raw_space, episodes.observation_keys)
    known: dict[str, Any] = {
        "total_episodes": len(episodes),
        "total_steps": episodes.num_steps,
        "data_format": "hdf5",
        "jpeg_encoding": False,
        "observation_space": serialize_space(raw_space),
        "action_space": serialize_space(episodes.action_space),
        "dataset_id": dataset_id,
        "minari_version": minari_version,
    }
    if episodes.environment is not None:
        known["env_spec"] = episodes.environment.to_json()
    if episodes.reference_scores is not None:
        scores = episodes.reference_scores
        known |= {"ref_min_score": scores.minimum, "ref_max_score": scores.maximum, REFERENCE_SOURCE: scores.source}
    if episodes.transforms:
        known[TRANSFORMS] = list(episodes.transforms)
    for name in ("author", "author_email"):  # Minari reads these back as sets
        if isinstance(metadata.get(name), str):
            metadata[name] = [metadata[name]]
    root = minari_root(data_dir)
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".incomplete-", dir=root) as scratch:
        folder = Path(scratch) / "dataset" / "data"
        folder.mkdir(parents=True)
        _write_hdf5(episodes, raw_space, folder / "main_data.hdf5")
        known["dataset_size"] = round((folder / "main_data.hdf5").stat().st_size / 1e6, 1)
        (folder / "metadata.json").write_text(json.dumps({**metadata, **known}))
        _make_namespaces(root, target.parent)
        try:
            folder.parent.rename(target)
        except OSError as error:
            if not target.exists():
                raise
            raise DataError(f"{dataset_id} exists at {target}: it was written meanwhile") from error
    return target


def _write_hdf5(episodes: Episodes, raw_space: Space[Any], path: Path) -> None:
    values = unflatten_batch(raw_space, episodes.observations)
    columns = [(name, _at({"observations": values}, name)) for name, _ in _leaves(raw_space, "observations")]
    per_step = {
        "actions": episodes.actions,
        "rewards": episodes.rewards,
        "terminations": episodes.terminated,
        "truncations": episodes.truncated,
    }
    with h5py.File(path, "w", track_order=True) as file:
        for number, (start, end) in enumerate(zip(episodes.offsets[:-1], episodes.offsets[1:], strict=True)):
            group = file.create_group(f"episode_{number}")
            recorded = episodes.episode_metadata[number] if episodes.episode_metadata else {}
            group.attrs.update({**_flat(recorded), "id": number, "total_steps": int(end - start)})
            for name, rows in columns:
                group[name] = rows[start + number : end + number + 1]
            for name, array in per_step.items():
                group[name] = array[start:end]


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested metadata as Minari stores it: `options/x`. None is left out: HDF5 has no such value."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}/")
        elif value is not None:
            flat[prefix + key] = value
    return flat


def _make_namespaces(root: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    while folder != root:
        path = folder / "namespace_metadata.json"
        if not path.exists():
            path.write_text("{}")
        folder = folder.parent
