"""Files that people have: D4RL without timeouts, dumps of d3rlpy, Minari before 0.5."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest
from gymnasium import spaces
from minari.serialization import serialize_space

from herdbook.cli.main import main
from herdbook.core.types import Array
from herdbook.datasets.d4rl import read_d4rl
from herdbook.datasets.episodes import DataError, Episodes
from herdbook.datasets.load import find_dataset, list_datasets, load_dataset, recorded_environment

LENGTHS = (4, 3, 2)  # cut, terminated, cut
FIRST = np.concatenate([10.0 * e + np.arange(n) for e, n in enumerate(LENGTHS)]).astype(np.float32)
ENDS = np.isin(np.arange(9), np.cumsum(LENGTHS) - 1)
TERMINALS = np.arange(9) == 6


def write(path: Path, fields: dict[str, Any]) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in fields.items():
            file[name] = values
    return path


def rows(data: Episodes) -> list[float]:
    return np.asarray(data.observations)[:, 0].tolist()


def vectors() -> dict[str, Array]:
    """Episode e, step t: observation [10 e + t, 0]."""
    return {
        "observations": np.stack([FIRST, np.zeros(9, np.float32)], axis=1),
        "actions": FIRST[:, None] / 100,
        "rewards": FIRST,
    }


def as_all_kept_but_successorless(data: Episodes) -> None:
    """The three episodes, without the last step of those that did not terminate."""
    assert data.lengths().tolist() == [3, 3, 1]
    assert rows(data) == [0, 1, 2, 3, 10, 11, 12, 12, 20, 21]
    assert np.flatnonzero(data.terminated).tolist() == [5]
    assert np.flatnonzero(data.truncated).tolist() == [2, 6]
    assert data.rewards.tolist() == [0, 1, 2, 10, 11, 12, 20]
    assert data.transforms == ("dropped the last step of 2 episodes that did not terminate (no next_observations)",)


# D4RL without timeouts


def test_a_d4rl_file_without_timeouts_ends_at_terminals_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "mine.hdf5", {**vectors(), "terminals": TERMINALS})
    with caplog.at_level(logging.WARNING, "herdbook"):
        data = load_dataset(path)
    assert isinstance(data, Episodes)
    assert data.lengths().tolist() == [7, 1]
    assert data.transforms[0] == "no timeouts: an episode ends at a terminal only (2 episodes, the longest of 7 steps)"
    assert "herdbook data convert FILE ID --episode-steps LIMIT" in caplog.text
    known = read_d4rl(write(tmp_path / "hopper_medium-v0.hdf5", {**vectors(), "terminals": TERMINALS}))
    assert known.transforms[0] == "no timeouts: episodes are cut after 1000 steps"  # the limit of D4RL's task


def test_a_d4rl_file_without_timeouts_is_cut_at_a_given_limit(tmp_path: Path) -> None:
    """Steps 0-3 and 4-6 (terminated), then 7 and 8, of which the file ends: the count begins anew after a terminal."""
    path = write(tmp_path / "mine.hdf5", {**vectors(), "terminals": TERMINALS})
    data = load_dataset(path, episode_steps=4)
    assert isinstance(data, Episodes)
    assert data.lengths().tolist() == [3, 3, 1]
    assert rows(data) == [0, 1, 2, 3, 10, 11, 12, 12, 20, 21]
    assert data.transforms[0] == "no timeouts: episodes are cut after 4 steps"
    assert read_d4rl(path, episode_steps=3).lengths().tolist() == [2, 2, 1, 1]
    with pytest.raises(DataError, match="expected episode_steps of 1 or more, got 0"):
        read_d4rl(path, episode_steps=0)


def test_the_command_that_the_notice_names_cuts_and_converts(minari_root: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "mine.hdf5", {**vectors(), "terminals": TERMINALS})
    assert main(["data", "convert", str(path), "mine/cut-v0", "--episode-steps", "4"]) == 0
    assert load_dataset("mine/cut-v0").lengths().tolist() == [3, 3, 1]


def test_a_limit_that_falls_on_a_terminal_is_no_timeout(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.hdf5", {**vectors(), "terminals": TERMINALS})
    data = read_d4rl(path, episode_steps=7)
    assert data.terminated.tolist() == [False] * 6 + [True] + [False]
    assert data.truncated.tolist() == [False] * 7 + [True]


def test_a_d4rl_file_without_timeouts_shows_its_episodes_by_their_successors(tmp_path: Path) -> None:
    fields = vectors()
    fields |= {"terminals": TERMINALS, "next_observations": fields["observations"] + np.float32([1, 0])}
    path = write(tmp_path / "mine.hdf5", fields)
    data = read_d4rl(path)
    assert data.lengths().tolist() == list(LENGTHS)
    assert data.transforms[0].startswith("no timeouts: an episode ends at a terminal, or where the next row")
    with pytest.raises(DataError, match="expected no episode_steps, since the file shows where episodes end"):
        read_d4rl(path, episode_steps=4)


# d3rlpy


def version_1(**changes: Any) -> dict[str, Any]:
    """As d3rlpy 1.1 writes it."""
    fields = {**vectors(), "terminals": TERMINALS.astype(np.float32), "episode_terminals": ENDS.astype(np.float32)}
    return {**fields, "discrete_action": False, "version": "1.0", **changes}


def version_2(columns: dict[str, Any], name: str = "2.1") -> dict[str, Any]:
    """As d3rlpy 2.8 writes it: one array per field and episode."""
    fields: dict[str, Any] = {"columns": [*columns, "terminated"], "num_episodes": 3, "version": name}
    for e, steps in enumerate(np.split(np.arange(9), np.cumsum(LENGTHS)[:-1])):
        fields |= {f"{column}_{e}": values[steps] for column, values in columns.items()}
        fields[f"terminated_{e}"] = e == 1
    return fields


def test_a_dump_of_d3rlpy_1(tmp_path: Path) -> None:
    as_all_kept_but_successorless(load_dataset(write(tmp_path / "mine.h5", version_1())))


def test_a_dump_of_d3rlpy_1_with_discrete_actions(tmp_path: Path) -> None:
    changed = version_1(actions=np.arange(9, dtype=np.int32) % 3, discrete_action=True)
    data = load_dataset(write(tmp_path / "mine.h5", changed))
    assert isinstance(data, Episodes)
    assert data.action_space == spaces.Discrete(3)
    assert data.actions.tolist() == [0, 1, 2, 1, 2, 0, 1]


def test_a_dump_of_d3rlpy_1_of_before_episode_terminals(tmp_path: Path) -> None:
    fields = version_1()
    del fields["episode_terminals"], fields["version"]
    assert load_dataset(write(tmp_path / "mine.h5", fields)).lengths().tolist() == [7, 1]


def test_a_dump_of_d3rlpy_2(tmp_path: Path) -> None:
    columns = vectors() | {"rewards": FIRST[:, None]}
    as_all_kept_but_successorless(load_dataset(write(tmp_path / "mine.h5", version_2(columns))))


def test_images_and_discrete_actions_of_d3rlpy_2(tmp_path: Path) -> None:
    """Images are stored channels first; ours are channels last."""
    pictures = np.random.default_rng(0).integers(0, 256, (9, 3, 5, 4), dtype=np.uint8)
    columns = {"observations": pictures, "actions": np.arange(9)[:, None] % 2, "rewards": FIRST[:, None]}
    data = load_dataset(write(tmp_path / "mine.h5", version_2(columns)))
    assert isinstance(data, Episodes)
    assert data.observation_space == spaces.Box(0, 255, (5, 4, 3), np.uint8)
    assert np.array_equal(np.asarray(data.observations)[2], pictures[2].transpose(1, 2, 0))
    assert data.action_space == spaces.Discrete(2)


def test_the_first_format_of_d3rlpy_2_has_episodes_of_one_length(tmp_path: Path) -> None:
    stacked = {name: values.reshape(3, 3, -1) for name, values in vectors().items()}
    fields = {"columns": [*stacked, "terminated"], "total_size": 3, "version": "2.0", **stacked}
    data = load_dataset(write(tmp_path / "mine.h5", {**fields, "terminated": [True, False, True]}))
    assert isinstance(data, Episodes)
    assert data.lengths().tolist() == [3, 2, 3]
    assert np.flatnonzero(data.terminated).tolist() == [2, 7]


def test_what_is_wrong_with_a_dump_of_d3rlpy(tmp_path: Path) -> None:
    parts = version_2(vectors())
    parts |= {"observations_0_0": parts.pop("observations_0"), "observations_0_1": np.zeros((4, 1))}
    missing = version_1()
    del missing["rewards"]
    for fields, words in (
        (parts, "expected observations of one part, got several; load the dump with d3rlpy"),
        (missing, "expected a dump of d3rlpy, but it is damaged or lacks a field"),
        (version_1(rewards=FIRST[:8]), "of one length above 0, got 9, 9, 8, 9"),
        (version_1(actions=100 * FIRST[:, None]), r"expected actions in \[-1, 1\]"),
    ):
        with pytest.raises(DataError, match=words):
            load_dataset(write(tmp_path / "mine.h5", fields))
    with pytest.raises(DataError, match="expected no episode_steps, which is for D4RL files"):
        load_dataset(write(tmp_path / "mine.h5", version_1()), episode_steps=3)


# Minari before 0.5


def write_old_minari(root: Path, dataset_id: str, *, spaces_stored: bool = True, **attributes: Any) -> Path:
    """As Minari 0.4 (0.3, without spaces) writes it: the metadata are attributes of the HDF5 file."""
    folder = root / dataset_id / "data"
    folder.mkdir(parents=True)
    env = gymnasium.make("CartPole-v1")
    known: dict[str, Any] = {"env_spec": gymnasium.spec("CartPole-v1").to_json(), "dataset_id": dataset_id}
    if spaces_stored:
        known["observation_space"] = serialize_space(env.observation_space)
        known["action_space"] = serialize_space(env.action_space)
    known |= {"total_episodes": np.int64(2), "total_steps": np.int64(7), "minari_version": "~=0.4.1", **attributes}
    with h5py.File(folder / "main_data.hdf5", "w", track_order=True) as file:
        file.attrs.update(known)
        for e, steps in enumerate((4, 3)):
            group = file.create_group(f"episode_{e}")
            group.attrs.update({"id": e, "total_steps": steps, "seed": 5 + e})
            group["observations"] = np.full((steps + 1, 4), e, np.float32)
            group["actions"] = np.arange(steps) % 2
            group["rewards"] = np.ones(steps)
            group["terminations"] = np.arange(steps) == (steps - 1 if e else -1)
            group["truncations"] = np.arange(steps) == (-1 if e else steps - 1)
            group["infos/x"] = np.zeros(steps + 1)
    return folder


@pytest.mark.parametrize("spaces_stored", [True, False])
def test_a_minari_dataset_of_before_0_5_is_read(minari_root: Path, spaces_stored: bool) -> None:
    folder = write_old_minari(minari_root, "cartpole-human-v0", spaces_stored=spaces_stored)
    assert list_datasets(minari_root) == ["cartpole-human-v0"]
    assert find_dataset("cartpole-human-v0") == folder.parent
    environment = recorded_environment("cartpole-human-v0")
    assert environment is not None and environment.max_episode_steps == 500
    for name in ("cartpole-human-v0", "cartpole-human", folder.parent, folder, folder / "main_data.hdf5"):
        data = load_dataset(name)
        assert isinstance(data, Episodes)
        assert data.source == "cartpole-human-v0" and data.environment == environment
        assert data.lengths().tolist() == [4, 3] and data.action_space == spaces.Discrete(2)
        assert np.flatnonzero(data.terminated).tolist() == [6] and np.flatnonzero(data.truncated).tolist() == [3]
        assert [m["seed"] for m in data.episode_metadata] == [5, 6]


def test_values_that_minari_0_3_flattened_are_refused_with_the_way(minari_root: Path) -> None:
    write_old_minari(minari_root, "cartpole-flat-v0", flatten_observation=np.bool_(True))
    with pytest.raises(DataError, match="got flattened ones, as Minari 0.3 could write; read it with minari<0.4"):
        load_dataset("cartpole-flat-v0")


def test_a_minari_file_that_lost_its_metadata(minari_root: Path) -> None:
    folder = write_old_minari(minari_root, "cartpole-lost-v0")
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        del file.attrs["total_episodes"]
    with pytest.raises(DataError, match="expected metadata.json beside it, or the attributes of Minari before 0.5"):
        load_dataset("cartpole-lost-v0")
    (folder / "main_data.hdf5").write_bytes(b"no HDF5")
    with pytest.raises(DataError, match="truncated or corrupt"):
        load_dataset("cartpole-lost-v0")
    (folder / "metadata.json").write_text(json.dumps({"data_format": "hdf5"}))
    with pytest.raises(DataError, match="neither both spaces nor an environment"):
        load_dataset("cartpole-lost-v0")


# Others


def test_a_file_of_another_format_names_those_that_are_read(tmp_path: Path) -> None:
    (tmp_path / "mine.npz").write_bytes(b"")
    with pytest.raises(DataError, match=r"expected a D4RL or d3rlpy file .*from_arrays"):
        load_dataset("mine.npz")
