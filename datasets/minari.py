"""Reading and writing single-agent datasets as Minari datasets; Minari does not validate data, `Episodes` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from herdbook.core.environments import EnvironmentSpec, make_environment, registered_only
from herdbook.core.spaces import flat_action_space, flat_space, flatten_batch, select_keys, unflatten_batch
from herdbook.datasets import storage
from herdbook.datasets.d4rl import over_d4rl_horizon
from herdbook.datasets.episodes import DataError, Episodes
from herdbook.datasets.layout import row_offsets
from herdbook.datasets.learned import learned_metadata, read_learned
from herdbook.datasets.preferences import PreferencePairs, pairs_from_record
from herdbook.datasets.validation import bounded_actions, located

TRANSFORMS = "herdbook_transforms"
"""The metadata key that keeps `Episodes.transforms`."""
PREFERENCES = "herdbook_preferences"
"""The metadata key of preference pairs: {"format": 1, "episodes", "starts", "lengths", "labels", "labelled_by"}."""


def read_minari(
    dataset: str | Path,
    *,
    data_dir: str | Path | None = None,
    observation_keys: Sequence[str] | None = None,
    action_bounds: tuple[float, float] | None = None,
) -> Episodes:
    """Read a Minari dataset from this machine, by its folder or its id under `minari_root(data_dir)`.

    Code that the files name is never imported: spaces that are not stored are those of a registered environment.

    observation_keys: the parts of a Dict observation that are used.
    action_bounds: as in `load_dataset`.

    Raises DataError for a folder without a dataset, a truncated or corrupt file, and data that do not satisfy
    `Episodes`; ValueError for an unknown observation key.
    """
    folder, metadata = storage.read_metadata(dataset, data_dir=data_dir)
    source = str(metadata.get("dataset_id", folder))
    if storage.JOINT in metadata:
        raise DataError(f"{source}: expected a dataset of one agent, got one of many; read it with load_dataset")
    environment = environment_of(source, metadata)
    references = storage.reference_scores(source, metadata, environment)
    environment = over_d4rl_horizon(source, environment, references)
    raw_space, raw_actions = _spaces(source, metadata, environment)
    chosen = select_keys(raw_space, observation_keys)
    try:
        space, action_space = flat_space(chosen), flat_action_space(raw_actions)
    except ValueError as error:
        raise DataError(f"{source}: {error}") from error
    wanted = [
        *storage.space_fields(chosen, "observations", extra=1),
        *storage.space_fields(raw_actions, "actions"),
        *storage.STEPS,
    ]
    stored = storage.read_fields(source, folder, metadata, chosen, wanted)
    offsets, actions = stored.offsets, stored.arrays["actions"]
    actions = actions.reshape(len(actions), -1) if isinstance(action_space, spaces.Box) else actions
    action_space, actions, notes = bounded_actions(source, action_space, actions, action_bounds)
    with located(source, "observations", row_offsets(offsets)):
        flat = flatten_batch(chosen, stored.tree(chosen, "observations"))
    return Episodes(
        observations=flat,
        actions=actions,
        rewards=stored.arrays["rewards"],
        terminated=stored.arrays["terminations"],
        truncated=stored.arrays["truncations"],
        offsets=offsets,
        episode_metadata=stored.episode_metadata,
        observation_space=space,
        action_space=action_space,
        raw_observation_space=raw_space,
        observation_keys=None if observation_keys is None else tuple(observation_keys),
        environment=environment,
        reference_scores=references,
        source=source,
        transforms=(*metadata.get(TRANSFORMS, ()), *notes),
        learned_by=read_learned(source, metadata),
        preferences=pairs_from_record(source, metadata[PREFERENCES]) if PREFERENCES in metadata else None,
    )


def save_preferences(pairs: PreferencePairs, dataset: str | Path, *, data_dir: str | Path | None = None) -> Path:
    """Store preference pairs in the metadata of a Minari dataset on this machine, in place of earlier ones.

    The recorded steps do not change. In plain Minari, the pairs are
    `minari.load_dataset(id).storage.metadata["herdbook_preferences"]`, in the form of `PreferencePairs.record`; other
    programs store them with `storage.update_metadata`. Returns the folder of the dataset.

    Raises DataError if there is no such dataset of one agent, if a segment does not lie within an episode, and for a
    dataset of Minari before 0.5, which has no metadata.json.
    """
    from minari.dataset.minari_storage import MinariStorage

    folder, metadata = storage.read_metadata(dataset, data_dir=data_dir)
    if not (folder / storage.MINARI_FILES[0]).is_file() or storage.JOINT in metadata:
        raise DataError(
            f"{dataset}: expected a dataset of one agent with {storage.MINARI_FILES[0]} (Minari 0.5 or later)"
        )
    stored = MinariStorage.read(folder)
    episodes = stored.get_episode_metadata(range(stored.total_episodes))
    pairs.check_inside(str(dataset), np.array([episode["total_steps"] for episode in episodes]))
    stored.update_metadata({PREFERENCES: pairs.record()})
    return folder


def environment_of(source: str, metadata: Mapping[str, Any]) -> EnvironmentSpec | None:
    """The environment in metadata.json, the evaluation environment if there is one. Raises DataError without an id."""
    text = metadata.get("eval_env_spec") or metadata.get("env_spec")
    try:
        return EnvironmentSpec.from_json(text) if text else None
    except ValueError as error:
        raise DataError(f"{source}: {error}") from error


def _spaces(
    source: str, metadata: Mapping[str, Any], environment: EnvironmentSpec | None
) -> tuple[Space[Any], Space[Any]]:
    found = [metadata.get("observation_space"), metadata.get("action_space")]
    if all(found):
        return storage.read_space(source, found[0]), storage.read_space(source, found[1])
    if environment is None:
        raise DataError(f"{source}: metadata.json holds neither both spaces nor an environment to take them from")
    try:
        env = make_environment(registered_only(environment))
    except (ValueError, KeyError, TypeError) as error:  # unavailable, or a malformed spec
        raise DataError(f"{source}: metadata.json does not hold both spaces, and {error}") from error
    return env.observation_space, env.action_space


def environment_json(environment: EnvironmentSpec) -> str:
    """An environment as Minari stores it. Raises DataError if its arguments are not JSON values."""
    try:
        return environment.to_json()
    except (TypeError, ValueError) as error:
        raise DataError(f"{environment.id}: expected JSON values as the environment's arguments: {error}") from error


def write_minari(episodes: Episodes, dataset_id: str, *, data_dir: str | Path | None = None, **metadata: Any) -> Path:
    """Write `episodes` as a Minari dataset under `minari_root(data_dir)` and return its folder.

    It opens in plain Minari, with observations in the structure of the environment's own space, and reads back to equal
    `Episodes`; images are stored losslessly. `metadata` is added to metadata.json (`description`, `algorithm_name`,
    `author`, …). An interrupted write leaves no dataset.

    Raises DataError if the id is malformed or taken, or the episodes have a mask (select episodes instead).
    """
    if episodes.mask is not None:
        raise DataError(f"{episodes.source}: subsampled steps cannot be stored; write the whole episodes")
    space = select_keys(episodes.raw_observation_space or episodes.observation_space, episodes.observation_keys)
    known: dict[str, Any] = {}
    if episodes.environment is not None:
        known["env_spec"] = environment_json(episodes.environment)
    if episodes.transforms:
        known[TRANSFORMS] = list(episodes.transforms)
    if episodes.preferences is not None:
        known[PREFERENCES] = episodes.preferences.record()
    columns = [
        *storage.space_columns(space, "observations", unflatten_batch(space, episodes.observations), extra=1),
        storage.Column("actions", episodes.actions),
        storage.Column("rewards", episodes.rewards),
        storage.Column("terminations", episodes.terminated),
        storage.Column("truncations", episodes.truncated),
    ]
    return storage.write_dataset(
        dataset_id,
        data_dir=data_dir,
        observation_space=space,
        action_space=episodes.action_space,
        offsets=episodes.offsets,
        columns=columns,
        episode_metadata=episodes.episode_metadata,
        references=episodes.reference_scores,
        metadata={**learned_metadata(episodes.learned_by), **metadata, **known},
    )
