"""Loading datasets by name: a Minari id, a recipe, or the path of a D4RL file, a d3rlpy file or a Minari folder."""

from __future__ import annotations

import difflib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from herdbook.core.environments import EnvironmentSpec
from herdbook.core.runs import RunError, locked
from herdbook.datasets.d3rlpy import is_d3rlpy, read_d3rlpy
from herdbook.datasets.d4rl import d4rl_name, read_d4rl, read_d4rl_package
from herdbook.datasets.episodes import DataError, Episodes
from herdbook.datasets.joint.episodes import JointEpisodes
from herdbook.datasets.joint.minari import joint_environment, read_joint
from herdbook.datasets.minari import environment_of, read_minari, write_minari
from herdbook.datasets.storage import JOINT, MINARI_FILES, list_minari, minari_root, read_metadata

if TYPE_CHECKING:
    from herdbook.datasets.recipes.recipe import Recipe

logger = logging.getLogger("herdbook")
_HDF5 = (".hdf5", ".h5")


def load_dataset(
    name: str | Path,
    *,
    data_dir: str | Path | None = None,
    observation_keys: Sequence[str] | None = None,
    action_bounds: tuple[float, float] | None = None,
    download: bool = True,
    episode_steps: int | None = None,
) -> Episodes | JointEpisodes:
    """Load the episodes of a dataset by name; `JointEpisodes` if its metadata declares many agents.

    - a Minari id (`D4RL/pointmaze/umaze-v2`): from this machine, else downloaded if `download`; an id without a version
      means the newest version on this machine;
    - a recipe (`classic/pendulum`, or `herdbook/classic/pendulum-v0`): made on first use and stored as a Minari
      dataset. If its policies must be trained, an interrupted first use keeps the run, and the next use resumes it;
    - the path of a D4RL file or a dump of d3rlpy (`.hdf5`, `.h5`), or of a Minari dataset's folder;
    - `d4rl:hopper-medium-v2`: through the `d4rl` package.

    data_dir: folder in which datasets are looked up and stored, instead of the Minari root.
    observation_keys: the parts of a Dict observation that are used.
    action_bounds: low and high of a Box of actions that has no bounds of its own. Actions beyond the bounds of their
        space are then clipped, and a notice says how many.
    episode_steps: that of `d4rl_episodes`, for a D4RL file without timeouts.

    Raises DataError for an unknown name (with the nearest ones), a dataset that cannot be downloaded (with ways to get
    one), and corrupt or invalid data. For a recipe, raises what `Recipe.make` raises.
    """
    text = str(name)
    if text.startswith("d4rl:"):
        return _whole(read_d4rl_package(text.removeprefix("d4rl:"), action_bounds=action_bounds), observation_keys)
    path = _located(name, data_dir, download)
    hdf5 = path.suffix in _HDF5
    if hdf5 and not is_d3rlpy(path):
        return _whole(read_d4rl(path, action_bounds=action_bounds, episode_steps=episode_steps), observation_keys)
    if episode_steps is not None:
        raise DataError(f"{name}: expected no episode_steps, which is for D4RL files; got {episode_steps}")
    if hdf5:
        return _whole(read_d3rlpy(path, action_bounds=action_bounds), observation_keys)
    return _read(path, observation_keys, action_bounds)


def recorded_environment(name: str | Path, *, data_dir: str | Path | None = None) -> EnvironmentSpec | None:
    """The environment of a dataset; None if it is not recorded.

    A dataset that is not on this machine is downloaded or made, as by `load_dataset`. Raises DataError for unknown
    names and damaged metadata.
    """
    folder = None if str(name).startswith("d4rl:") else _located(name, data_dir, download=True)
    if folder is None or folder.suffix in _HDF5:
        return None
    _, metadata = read_metadata(folder)
    read = joint_environment if JOINT in metadata else environment_of
    return read(str(folder), metadata)


def _located(name: str | Path, data_dir: str | Path | None, download: bool) -> Path:
    """The HDF5 file or Minari folder of a name, downloaded or made if missing. Raises DataError."""
    text, path = str(name), local_path(name)
    if path is not None:
        if path.suffix in _HDF5 and not path.is_file():
            raise DataError(f"{path}: expected the path of a D4RL HDF5 file, but there is no such file")
        return path
    if Path(text).expanduser().is_file():
        raise DataError(
            f"{text}: expected a D4RL or d3rlpy file (.hdf5, .h5) or the folder of a Minari dataset; give the arrays "
            "of other formats to herdbook.datasets.arrays.from_arrays, and write them with write_minari"
        )
    found = find_dataset(text, data_dir=data_dir) or _make_recipe(text, data_dir) or _newest_version(text, data_dir)
    if found is not None:
        return found
    if not re.search(r"-v\d+$", text):
        raise DataError(f"{_not_here(text, data_dir)}; an id ends in its version, as in {text}-v0")
    if not download:
        raise DataError(f"{_not_here(text, data_dir)}; {_how_to_get(text, data_dir)}")
    return _download(text, data_dir)


def local_path(name: str | Path) -> Path | None:
    """The path of an HDF5 file (by its ending) or a folder with a Minari dataset; None if the name is an id."""
    path = Path(name).expanduser()
    if path.name == MINARI_FILES[1]:  # the data of such a folder
        return path.parent
    is_dataset = path.suffix in _HDF5 or any((path / sub / f).is_file() for sub in ("data", ".") for f in MINARI_FILES)
    return path if is_dataset else None


def dataset_name(name: str | Path) -> str | None:
    """The name of a dataset, wherever it lies: `d4rl:hopper-medium-v2`, or a Minari id; None if it has none.

    A D4RL file is known by its own name and a folder by its metadata: the folders on the way say nothing about the
    data. Raises DataError for damaged metadata.
    """
    path = local_path(name)
    if path is None:
        return str(name)
    if path.suffix in _HDF5:
        return f"d4rl:{d4rl_name(path.stem)}"
    known = read_metadata(path)[1].get("dataset_id")
    return known if isinstance(known, str) else None


def dataset_roots(data_dir: str | Path | None = None) -> list[Path]:
    """The folders in which datasets are looked up: `data_dir` alone, else the Minari root and the user's cache."""
    if data_dir is not None:
        return [minari_root(data_dir)]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [minari_root(), cache / "herdbook" / "datasets"]


def find_dataset(dataset_id: str, *, data_dir: str | Path | None = None) -> Path | None:
    """The folder of a dataset on this machine; None if there is none."""
    folders = (root / dataset_id for root in dataset_roots(data_dir))
    return next((folder for folder in folders if any((folder / "data" / f).is_file() for f in MINARI_FILES)), None)


def list_datasets(data_dir: str | Path | None = None) -> list[str]:
    """Ids of the datasets on this machine, sorted."""
    return sorted({name for root in dataset_roots(data_dir) for name in list_minari(root)})


def _read(
    folder: Path, observation_keys: Sequence[str] | None, action_bounds: tuple[float, float] | None
) -> Episodes | JointEpisodes:
    _, metadata = read_metadata(folder)
    if JOINT not in metadata:
        return read_minari(folder, observation_keys=observation_keys, action_bounds=action_bounds)
    if action_bounds is not None:
        raise DataError(f"{folder}: expected no action_bounds, which are for one agent; the data are of many")
    if observation_keys is not None:
        raise DataError(f"{folder}: expected no observation_keys, which are for one agent; the data are of many")
    return read_joint(folder)


def _whole(episodes: Episodes, observation_keys: Sequence[str] | None) -> Episodes:
    if observation_keys is not None:
        raise DataError(f"{episodes.source}: expected no observation_keys, which select from a Dict; got vectors")
    return episodes


def _make_recipe(name: str, data_dir: str | Path | None) -> Path | None:
    """The folder of a recipe's dataset, made if missing; None if the name is not a recipe's."""
    from herdbook.datasets.recipes.registry import resolve  # recipes import environments; loading a file does not

    recipe = resolve(name)
    if recipe is None:
        return None
    found = find_dataset(recipe.id, data_dir=data_dir)
    if found is not None:
        return found
    root = next((r for r in dataset_roots(data_dir) if _writable(r)), None)
    if root is None:
        tried = ", ".join(map(str, dataset_roots(data_dir)))
        raise DataError(f"{recipe.id}: expected a writable folder among {tried}, got none; give one with data_dir")
    logger.info("making %s in %s", recipe.id, root)
    with _training_folder(recipe, root) as folder:
        try:
            if (found := find_dataset(recipe.id, data_dir=root)) is not None:  # another process made it meanwhile
                return found
            episodes = recipe.make(folder)
            return write_minari(episodes, recipe.id, data_dir=root, description=recipe.description, author="herdbook")
        except DataError:  # another process was faster
            found = find_dataset(recipe.id, data_dir=root)
            if found is None:
                raise
            return found


@contextmanager
def _training_folder(recipe: Recipe, root: Path) -> Iterator[Path | None]:
    """The folder of a recipe's training run, kept until its data are stored; None for a recipe without training.

    Raises DataError if another process trains the same recipe.
    """
    if recipe.training is None:
        yield None
        return
    folder = root / f".training-{recipe.id.replace('/', '-')}"
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(locked(folder))
        except RunError as error:
            raise DataError(f"{recipe.id}: another process is training it, in {folder}; wait for it") from error
        try:
            yield folder
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            with suppress(OSError):
                folder.rmdir()  # if it is empty


def _writable(root: Path) -> bool:
    existing = next(p for p in (root, *root.parents) if p.exists())
    return existing.is_dir() and os.access(existing, os.W_OK)


def _newest_version(name: str, data_dir: str | Path | None) -> Path | None:
    """The folder of the newest version on this machine, for an id without a version."""
    versions = (re.fullmatch(rf"{re.escape(name)}-v(\d+)", known) for known in list_datasets(data_dir))
    numbers = [int(match[1]) for match in versions if match]
    return find_dataset(f"{name}-v{max(numbers)}", data_dir=data_dir) if numbers else None


def _not_here(name: str, data_dir: str | Path | None) -> str:
    from herdbook.datasets.recipes.registry import RECIPES

    known = list_datasets(data_dir) + [n for r in RECIPES.values() for n in (r.id, r.name)]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"no dataset {name!r} in {' or '.join(map(str, dataset_roots(data_dir)))}{hint}"


def _how_to_get(name: str, data_dir: str | Path | None) -> str:
    copy = f"copy the dataset's folder to {dataset_roots(data_dir)[0] / name} (`minari download {name}` fetches it)"
    return f"to place one, {copy}; to make one, use a recipe such as classic/pendulum"


def _download(name: str, data_dir: str | Path | None) -> Path:
    """Download a dataset into the first root; an interrupted download leaves nothing there."""
    import minari

    root = dataset_roots(data_dir)[0]
    target = root / name
    try:
        _check_network()
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".incomplete-", dir=root) as scratch:
            with _minari_root_set_to(scratch):
                minari.download_dataset(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            (Path(scratch) / name).rename(target)
    except Exception as error:  # no network, no huggingface_hub, an unknown id: each library has its own exceptions
        cause = f"it cannot be downloaded ({type(error).__name__}: {error})"
        raise DataError(f"{_not_here(name, data_dir)}, and {cause}; {_how_to_get(name, data_dir)}") from error
    return target


def _check_network() -> None:
    """Raise at once if the hub cannot be reached: its client would try for half a minute."""
    if os.environ.get("MINARI_REMOTE", "hf://").startswith("hf://"):
        from huggingface_hub import constants, get_session

        get_session().head(constants.ENDPOINT, timeout=5)  # any status is an answer


@contextmanager
def _minari_root_set_to(folder: str) -> Iterator[None]:
    """Set Minari's root, which it reads from an environment variable only."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before
