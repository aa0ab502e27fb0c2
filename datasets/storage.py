"""Reading and writing Minari's files: arrays over all episodes, and metadata.json.

Minari's reader opens five HDF5 datasets per episode through h5py's object layer and returns a list of episodes. This
reader reads each dataset once, straight into flat arrays.
"""

from __future__ import annotations

import functools
import itertools
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

from herdbook.core.environments import EnvironmentSpec, ReferenceScores
from herdbook.core.runs import unwritable
from herdbook.core.spaces import cast, is_image
from herdbook.core.types import Array, Tree
from herdbook.datasets.d4rl import environment_references
from herdbook.datasets.layout import offsets_of
from herdbook.datasets.validation import DataError, located

REFERENCE_SOURCE = "herdbook_reference_source"
"""The metadata key of the source of reference scores, for which Minari has none."""
MINARI_FILES = ("metadata.json", "main_data.hdf5")
"""A folder with either holds a dataset: before Minari 0.5 there was no metadata.json."""
JOINT = "herdbook_many_agents"
"""The metadata key of a dataset of many agents, which `datasets.joint.minari` reads."""


class Field(NamedTuple):
    """One array of each episode: its path in the file, its type, and its number of rows beyond the steps."""

    path: str
    dtype: type[np.generic]
    extra: int = 0


STEPS = (Field("rewards", np.float64), Field("terminations", np.bool_), Field("truncations", np.bool_))


class Stored(NamedTuple):
    """The data read: one array per path over all episodes, the step offsets, and each episode's metadata."""

    arrays: Mapping[str, Array]
    offsets: Array
    episode_metadata: tuple[Mapping[str, Any], ...]

    def tree(self, space: Space[Any], path: str) -> Tree:
        """The arrays below `path` in the structure of `space`."""
        if isinstance(space, spaces.Dict):
            return {key: self.tree(part, f"{path}/{key}") for key, part in space.spaces.items()}
        if isinstance(space, spaces.Tuple):
            return tuple(self.tree(part, f"{path}/_index_{i}") for i, part in enumerate(space.spaces))
        return self.arrays[path]


def minari_root(data_dir: str | Path | None = None) -> Path:
    """The folder of Minari datasets: `data_dir`, else $MINARI_DATASETS_PATH, else ~/.minari/datasets. Not created."""
    if data_dir is not None:
        return Path(data_dir).expanduser()
    return Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")


def read_metadata(dataset: str | Path, *, data_dir: str | Path | None = None) -> tuple[Path, dict[str, Any]]:
    """The folder of a dataset's files, and its metadata. Raises DataError if there is none."""
    candidates = [Path(dataset).expanduser(), minari_root(data_dir) / str(dataset)]
    for folder in (c / sub for c in candidates for sub in ("data", ".")):
        path, data = (folder / name for name in MINARI_FILES)
        if path.is_file():
            try:
                metadata = json.loads(path.read_text())
            except (ValueError, OSError) as error:
                raise DataError(f"{path}: expected a Minari dataset's metadata as JSON: {error}") from error
            if not isinstance(metadata, dict):
                raise DataError(f"{path}: expected a JSON object, got {type(metadata).__name__}")
            return folder, metadata
        if data.is_file():
            return folder, _metadata_before_0_5(data)
    raise DataError(f"{dataset}: no Minari dataset there (looked for data/metadata.json in {candidates[-1]})")


def _metadata_before_0_5(path: Path) -> dict[str, Any]:
    """The attributes of main_data.hdf5, where Minari 0.3 and 0.4 keep what is now in metadata.json."""
    try:
        with h5py.File(path, "r") as file:
            stored = {
                key: value.tolist() if isinstance(value, np.generic | np.ndarray) else value
                for key, value in file.attrs.items()
            }
    except OSError as error:
        raise DataError(f"{path}: expected a Minari HDF5 file, but it is truncated or corrupt ({error})") from error
    if "total_episodes" not in stored:
        raise DataError(
            f"{path}: expected metadata.json beside it, or the attributes of Minari before 0.5 in it, got neither"
        )
    if stored.get("flatten_observation") or stored.get("flatten_action"):
        raise DataError(
            f"{path}: expected values in the structure of the spaces, got flattened ones, as Minari 0.3 could write; "
            "read it with minari<0.4 and give the arrays to herdbook.datasets.arrays.from_arrays"
        )
    return {**stored, "jpeg_encoding": False}


def list_minari(data_dir: str | Path | None = None) -> list[str]:
    """Ids of the datasets under `minari_root(data_dir)`, sorted."""
    root = minari_root(data_dir)
    found = {path.parent.parent.relative_to(root) for name in MINARI_FILES for path in root.glob(f"**/data/{name}")}
    return sorted(p.as_posix() for p in found if not any(part.startswith(".") for part in p.parts))


def read_space(source: str, text: Any) -> Space[Any]:
    """A space from Minari's text, with the parts of a Dict in stored order. Raises DataError."""
    from minari.serialization import deserialize_space

    try:
        return _in_stored_order(deserialize_space(text), json.loads(text))
    except (NotImplementedError, KeyError, ValueError, TypeError, AssertionError) as error:
        raise DataError(f"{source}: cannot read the spaces in metadata.json: {error}") from error


def _in_stored_order(space: Space[Any], stored: Mapping[str, Any]) -> Space[Any]:
    """Restore the key order of Dict spaces: Gymnasium sorts keys, which would move columns of the flat vector."""
    if isinstance(space, spaces.Dict):
        parts = stored["subspaces"].items()
        return spaces.Dict([(key, _in_stored_order(space.spaces[key], part)) for key, part in parts])
    if isinstance(space, spaces.Tuple):
        return spaces.Tuple(map(_in_stored_order, space.spaces, stored["subspaces"]))
    return space


def reference_scores(
    source: str, metadata: Mapping[str, Any], environment: EnvironmentSpec | None
) -> ReferenceScores | None:
    """The dataset's own reference scores, else D4RL's for the environment's family, labelled as a convention."""
    convention = None if environment is None else environment_references(environment)
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
    """True if some part is stored as JPEG, Minari's default since 0.5.3 for images of 32x32 and more."""
    from minari.dataset.minari_storage import is_image_space

    return bool(metadata.get("jpeg_encoding", True)) and any(is_image_space(leaf) for _, leaf in _leaves(space, ""))


# --- reading ---------------------------------------------------------------------------------------------------------


def space_fields(space: Space[Any], path: str, extra: int = 0) -> list[Field]:
    """The fields of a value of `space` stored at `path`."""
    return [Field(at, _dtype(leaf), extra) for at, leaf in _leaves(space, path)]


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


def _dtype(space: Space[Any]) -> type[np.generic]:
    if is_image(space):
        return np.uint8
    return np.float32 if isinstance(space, spaces.Box) else np.int64


def read_fields(
    source: str, folder: Path, metadata: Mapping[str, Any], observation_space: Space[Any], wanted: Sequence[Field]
) -> Stored:
    """Read the fields `wanted` of a dataset; `rewards` must be among them and gives the episodes' lengths.

    Raises DataError for a truncated or corrupt file, lengths that disagree, and values that a field cannot hold.
    """
    if metadata.get("data_format", "hdf5") == "hdf5" and not _has_jpeg(metadata, observation_space):
        return _read_hdf5(source, folder, wanted)
    if not (metadata.get("observation_space") and metadata.get("action_space")):
        # Without them Minari would make the environment of env_spec, and so run whatever code that names.
        wanted_for = "which datasets that Minari decodes (JPEG, Arrow) need; add observation_space and action_space"
        raise DataError(f"{source}: expected both spaces in metadata.json, {wanted_for}")
    return _read_through_minari(source, folder, wanted)


def _read_hdf5(source: str, folder: Path, wanted: Sequence[Field]) -> Stored:
    path = folder / "main_data.hdf5"
    try:
        with h5py.File(path, "r") as file:
            return _read_open(source, file, wanted)
    except DataError:
        raise
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, MemoryError) as error:  # h5py raises any of these
        cause = f"it is truncated, corrupt or lacks a field ({error}); download or make the dataset again"
        raise DataError(f"{path}: expected a Minari HDF5 file, but {cause}") from error


def _read_open(source: str, file: h5py.File, wanted: Sequence[Field]) -> Stored:
    groups = [h5g.open(file.id, f"episode_{i}".encode()) for i in range(len(file))]
    if not groups:
        raise DataError(f"{source}: the dataset is empty (0 episodes)")
    lengths = np.array([h5d.open(group, b"rewards").shape[0] for group in groups])
    offsets = offsets_of(lengths)
    columns = []
    for field in wanted:
        shape = h5d.open(groups[0], field.path.encode()).shape[1:]
        columns.append((field, np.empty((offsets[-1] + field.extra * len(groups), *shape), field.dtype)))
    direct: dict[str, h5t.TypeID] = {}
    for number, group in enumerate(groups):  # one pass through the file, in its order
        for field, array in columns:
            rows = array[offsets[number] + field.extra * number : offsets[number + 1] + field.extra * (number + 1)]
            stored = h5d.open(group, field.path.encode())
            _check_rows(source, field, number, rows.shape, stored.shape, lengths[number])
            kind = stored.get_type()
            if kind == direct.get(field.path) or _hdf5_converts(stored.dtype, rows.dtype):
                direct[field.path] = kind  # comparing HDF5 types is fast, making a dtype is slow
                stored.read(h5s.ALL, h5s.ALL, rows)
            else:
                with located(source, field.path, episode=number):
                    rows[...] = cast(h5py.Dataset(stored)[()], rows.dtype)
    for field, array in columns:
        if field.dtype is np.bool_:
            with located(source, field.path, offsets + field.extra * np.arange(len(offsets))):
                array[...] = cast(array.view(np.uint8), np.bool_)  # HDF5 stores bools as bytes and does not check them
    arrays = {field.path: array for field, array in columns}
    return Stored(arrays, offsets, _episode_metadata(_attributes(group) for group in groups))


def _check_rows(
    source: str, field: Field, number: int, expected: tuple[int, ...], shape: tuple[int, ...], length: int
) -> None:
    if shape != expected:
        raise DataError(
            f"{source}: expected {field.path} of shape {expected} in episode {number} "
            f"(T{'+1' if field.extra else ''} for its T = {length} rewards), got {shape}"
        )


def _attributes(group: h5g.GroupID) -> dict[str, Any]:
    """An episode's attributes; empty, because reading is slow, if there are only `id` and `total_steps`."""
    return {} if h5a.get_num_attrs(group) <= 2 else dict(h5py.Group(group).attrs)


def _hdf5_converts(stored: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """True between floats and from an integer to a wider one; otherwise HDF5 clips values that `cast` refuses."""
    if stored.kind == "f":
        return wanted.kind == "f"
    return stored == wanted or (stored.kind in "iu" and wanted.kind in "iu" and np.can_cast(stored, wanted))


def _read_through_minari(source: str, folder: Path, wanted: Sequence[Field]) -> Stored:
    """Read a format that Minari decodes: JPEG images, Arrow."""
    from minari.dataset.minari_storage import MinariStorage

    try:
        storage = MinariStorage.read(folder)
        numbers = range(storage.total_episodes)
        episodes = list(storage.get_episodes(numbers))
        metadata = _episode_metadata(storage.get_episode_metadata(numbers))
    except ImportError as error:
        raise DataError(f"{source}: {error}") from error
    except Exception as error:  # decoders raise anything on a broken file
        raise DataError(f"{folder}: Minari cannot read this dataset ({type(error).__name__}: {error})") from error
    if not episodes:
        raise DataError(f"{source}: the dataset is empty (0 episodes)")
    lengths = [len(_pick(source, number, episode, STEPS[0])) for number, episode in enumerate(episodes)]
    arrays = {}
    for field in wanted:
        parts = [_pick(source, number, episode, field) for number, episode in enumerate(episodes)]
        for number, (part, length) in enumerate(zip(parts, lengths, strict=True)):
            _check_rows(source, field, number, (length + field.extra, *parts[0].shape[1:]), part.shape, length)
        arrays[field.path] = np.concatenate(parts)
    return Stored(arrays, offsets_of(lengths), metadata)


def _at(value: Tree, path: str) -> Any:
    for key in filter(None, path.split("/")):
        value = value[int(key.removeprefix("_index_"))] if isinstance(value, tuple) else value[key]
    return value


def _pick(source: str, number: int, episode: Mapping[str, Any], field: Field) -> Array:
    try:
        values = _at(episode, field.path)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"{source}: expected {field.path} in episode {number}, got none") from error
    with located(source, field.path, episode=number):
        return cast(values, field.dtype)


def _episode_metadata(attributes: Iterable[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """Each episode's metadata without `id` and `total_steps`; empty if no episode has any."""
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


class Column(NamedTuple):
    """One array over all episodes, written to `path` of each; an episode has its steps and `extra` rows."""

    path: str
    array: Array
    extra: int = 0


def space_columns(space: Space[Any], path: str, values: Tree, extra: int = 0) -> list[Column]:
    """The columns of `values`, in the structure of `space`, below `path`."""
    return [Column(at, _at(values, at[len(path) + 1 :]), extra) for at, _ in _leaves(space, path)]


def check_new(dataset_id: str, data_dir: str | Path | None) -> Path:
    """The folder of a new dataset. Raises DataError if its id is malformed or taken, or it cannot be written there."""
    from minari.dataset.minari_dataset import DATASET_ID_RE

    match = DATASET_ID_RE.fullmatch(dataset_id)
    if match is None or match["version"] is None:
        raise DataError(f"expected a Minari id such as 'namespace/name-v0', with a version, got {dataset_id!r}")
    root = minari_root(data_dir)
    if (target := root / dataset_id).exists():
        raise DataError(f"{dataset_id} exists at {target}; choose another id or version, or delete that folder")
    if (reason := unwritable(target)) is not None:
        raise DataError(f"{dataset_id} cannot be written: {reason}; choose another data_dir")
    return target


def write_dataset(
    dataset_id: str,
    *,
    data_dir: str | Path | None,
    observation_space: Space[Any],
    action_space: Space[Any],
    offsets: Array,
    columns: Sequence[Column],
    episode_metadata: Sequence[Mapping[str, Any]],
    references: ReferenceScores | None,
    metadata: Mapping[str, Any],
) -> Path:
    """Write a Minari dataset under `minari_root(data_dir)`, completely or not at all, and return its folder.

    Raises DataError if the id is malformed or taken.
    """
    from minari import __version__ as minari_version
    from minari.serialization import serialize_space

    root, target = minari_root(data_dir), check_new(dataset_id, data_dir)
    known: dict[str, Any] = {
        "total_episodes": len(offsets) - 1,
        "total_steps": int(offsets[-1]),
        "data_format": "hdf5",
        "jpeg_encoding": False,
        "observation_space": serialize_space(observation_space),
        "action_space": serialize_space(action_space),
        "dataset_id": dataset_id,
        "minari_version": minari_version,
    }
    if references is not None:
        low, high, source = references.minimum, references.maximum, references.source
        known |= {"ref_min_score": low, "ref_max_score": high, REFERENCE_SOURCE: source}
    authors = ("author", "author_email")  # Minari reads these back as sets
    known |= {name: [metadata[name]] for name in authors if isinstance(metadata.get(name), str)}
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".incomplete-", dir=root) as scratch:
        folder = Path(scratch) / "dataset" / "data"
        folder.mkdir(parents=True)
        _write_hdf5(folder / "main_data.hdf5", offsets, columns, episode_metadata)
        known["dataset_size"] = round((folder / "main_data.hdf5").stat().st_size / 1e6, 1)
        (folder / "metadata.json").write_text(json.dumps({**metadata, **known}))
        _make_namespaces(root, target.parent)
        try:
            folder.parent.rename(target)
        except OSError as error:
            if not target.exists():
                raise
            raise DataError(f"{dataset_id} exists at {target}: another process wrote it meanwhile") from error
    return target


def _write_hdf5(
    path: Path, offsets: Array, columns: Sequence[Column], episode_metadata: Sequence[Mapping[str, Any]]
) -> None:
    with h5py.File(path, "w", track_order=True) as file:
        for number, (start, end) in enumerate(itertools.pairwise(offsets)):
            group = file.create_group(f"episode_{number}")
            recorded = episode_metadata[number] if episode_metadata else {}
            group.attrs.update({**_flat(recorded), "id": number, "total_steps": int(end - start)})
            for name, array, extra in columns:
                group[name] = array[start + extra * number : end + extra * (number + 1)]


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested metadata with Minari's flat keys, such as `options/x`; without None, which HDF5 cannot store."""
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
