"""D4RL files in each of their layouts, by path; no package is needed."""

from __future__ import annotations

import logging
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from herdbook.cli.main import main
from herdbook.core.environments import EnvironmentSpec, ReferenceScores
from herdbook.datasets.d4rl import d4rl_differences, d4rl_name, d4rl_references, read_d4rl, task_of
from herdbook.datasets.episodes import DataError, Episodes
from herdbook.datasets.load import load_dataset
from herdbook.datasets.minari import write_minari
from herdbook.evaluation.scores import find_references

# Episodes of 4, 3 and 2 steps: timed out, terminated, cut by the end of the file.
LENGTHS, ENDS = (4, 3, 2), ("timeout", "terminal", "open")


def write(path: Path, *, next_observations: bool, ends: tuple[str, ...] = ENDS, **changes: Any) -> Path:
    """Episode e, step t: observation [10 e + t, 0]; the successor of an episode's last step is 10 e + T."""
    starts = [10.0 * e + np.arange(n) for e, n in enumerate(LENGTHS)]
    first = np.concatenate(starts)
    fields: dict[str, Any] = {
        "observations": np.stack([first, np.zeros(9)], axis=1).astype(np.float32),
        "actions": (first[:, None] / 100).astype(np.float32),
        "rewards": first.astype(np.float32),
        "terminals": np.zeros(9, dtype=bool),
        "timeouts": np.zeros(9, dtype=bool),
        "infos/qpos": np.zeros((9, 3)),
        "metadata/algorithm": b"SAC",
    }
    if next_observations:
        fields["next_observations"] = fields["observations"] + np.float32([1, 0])
    for last, end in zip(np.cumsum(LENGTHS) - 1, ends, strict=True):
        if end != "open":
            fields[f"{end}s"][last] = True
    with h5py.File(path, "w") as file:
        for name, values in (fields | changes).items():
            if values is not None:
                file[name] = values
    return path


def rows(data: Episodes) -> list[float]:
    return [float(x) for x in data.observations[:, 0]]


def test_gym_mujoco_keeps_every_step_with_its_own_successor(tmp_path: Path) -> None:
    """No last transition of a timed-out episode is dropped, and timeouts are no terminals."""
    data = read_d4rl(write(tmp_path / "hopper_medium-v2.hdf5", next_observations=True))
    assert data.lengths().tolist() == [4, 3, 2]
    assert rows(data) == [0, 1, 2, 3, 4, 10, 11, 12, 13, 20, 21, 22]
    assert np.flatnonzero(data.terminated).tolist() == [6]
    assert np.flatnonzero(data.truncated).tolist() == [3, 8]
    assert data.transforms == ()
    assert data.environment is not None and data.environment.id == "Hopper-v5"
    assert data.reference_scores is not None and data.reference_scores.maximum == 3234.3
    assert data.reference_scores.source == "D4RL (Fu et al. 2020), applied to Hopper-v5 by convention"


def test_only_the_last_step_of_a_timed_out_episode_has_no_successor(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """antmaze, adroit: that one is dropped, the terminated episode keeps its last, and the count is reported."""
    with caplog.at_level(logging.WARNING, "herdbook"):
        data = read_d4rl(write(tmp_path / "door-human-v1.hdf5", next_observations=False))
    assert data.lengths().tolist() == [3, 3, 1]
    assert rows(data) == [0, 1, 2, 3, 10, 11, 12, 12, 20, 21]
    assert data.rewards.tolist() == [0, 1, 2, 10, 11, 12, 20]
    assert np.flatnonzero(data.terminated).tolist() == [5]
    assert np.flatnonzero(data.truncated).tolist() == [2, 6]
    assert "dropped the last step of 2 episodes" in caplog.text
    assert "dropped the last step of 2 episodes" in data.transforms[0]


def test_maze2d_boundaries_come_from_timeouts(tmp_path: Path) -> None:
    """Its terminals are all False."""
    path = write(tmp_path / "maze2d-umaze-sparse-v1.hdf5", next_observations=False, ends=("timeout",) * 3)
    data = read_d4rl(path)
    assert data.lengths().tolist() == [3, 2, 1] and not data.terminated.any() and data.truncated.sum() == 3
    assert data.reference_scores is not None and data.reference_scores.minimum == 23.85


def test_an_episode_of_one_timed_out_step_leaves_nothing(tmp_path: Path) -> None:
    timeouts = np.array([0, 0, 0, 1, 1, 0, 0, 0, 0], dtype=bool)
    terminals = np.array([0, 0, 0, 0, 0, 0, 1, 0, 0], dtype=bool)
    data = read_d4rl(
        write(tmp_path / "x.hdf5", next_observations=False, ends=("open",) * 3, timeouts=timeouts, terminals=terminals)
    )
    assert data.lengths().tolist() == [3, 2, 1]
    assert rows(data) == [0, 1, 2, 3, 11, 12, 12, 20, 21]


def test_one_step_episodes_that_timed_out_are_an_empty_dataset(tmp_path: Path) -> None:
    path = write(tmp_path / "x.hdf5", next_observations=False, ends=("open",) * 3, timeouts=np.ones(9, dtype=bool))
    with pytest.raises(DataError, match="x.hdf5: the dataset is empty: its 9 steps are one-step episodes"):
        read_d4rl(path)


def test_files_with_different_numbers_of_dropped_steps_are_concatenated(tmp_path: Path) -> None:
    one = read_d4rl(write(tmp_path / "a.hdf5", next_observations=False))
    other = read_d4rl(write(tmp_path / "b.hdf5", next_observations=False, ends=("timeout",) * 3))
    notes = one.concat(other).transforms
    assert ["last step of 2 episodes" in notes[0], "last step of 3 episodes" in notes[1], len(notes)] == [1, 1, 2]


MAZE = "Ant_maze_{}_noisy_multistart_{}_multigoal_{}_sparse"
ADROIT = {"pen": (100, 200), "hammer": (200, 600), "relocate": (200, 500), "door": (200, 300)}
HORIZONS = {  # max_episode_steps of D4RL's registrations
    1000: [
        *(
            "halfcheetah-random-v0",
            "hopper-medium-expert-v2",
            "walker2d-full-replay-v1",
            "ant-expert-v2",
            "walker_mixed",
        ),
        *("antmaze-medium-play-v0", "antmaze-large-diverse-v2", "antmaze-eval-large-play-v0", "carla-town-full-v0"),
        *("bullet-ant-medium-v0", MAZE.format("big-maze", True, True), MAZE.format("hardest-maze", True, False)),
    ],
    800: ["maze2d-large-v1", "maze2d-large-dense-v1", "maze2d-eval-large-v1", "bullet-maze2d-large-sparse"],
    750: ["flow-merge-random-v0"],
    700: ["antmaze-umaze-v0", "antmaze-umaze-diverse-v2", "antmaze-eval-umaze-v0", MAZE.format("u-maze", False, False)],
    600: ["maze2d-large-v0", "maze2d-large-sparse", "maze2d-medium-v1", "maze2d-medium-dense-v1"],
    500: ["flow-ring-v0-random"],
    300: ["maze2d-umaze-v1", "maze2d-umaze-dense-v1", "maze2d-eval-umaze-dense-v1"],
    280: ["kitchen-complete-v0", "kitchen-mixed-v0", "mini_kitchen_microwave_kettle_light_slider-v0"],
    250: ["maze2d-medium-v0", "maze2d-medium-dense", "carla-lane-v0"],
    150: ["maze2d-umaze-v0", "maze2d-umaze-sparse", "maze2d-open-dense-v0", "bullet-maze2d-open-v0"],
    50: ["minigrid-fourrooms-v0", "minigrid4rooms"],
}


@pytest.mark.parametrize(("name", "horizon"), [(name, steps) for steps, names in HORIZONS.items() for name in names])
def test_the_horizons_of_d4rls_tasks(name: str, horizon: int) -> None:
    task = task_of(d4rl_name(name))
    assert task is not None and task.horizon == horizon


@pytest.mark.parametrize("family", ADROIT)
def test_adroit_is_scored_over_d4rls_horizon(tmp_path: Path, family: str) -> None:
    """Today's environments have 200 steps; D4RL's pen has 100, and the data of people can be scored over more."""
    horizon, longer = ADROIT[family]
    for name, expected in (
        (f"{family}-v0_demos_clipped", horizon),
        (f"{family}-cloned-v1", horizon),
        (f"{family}-human-longhorizon-v1", longer),
    ):
        data = read_d4rl(write(tmp_path / f"{name}.hdf5", next_observations=True))
        assert data.environment is not None
        assert (data.environment.max_episode_steps or 200) == expected
        assert (data.environment.max_episode_steps is None) == (expected == 200)


@pytest.mark.parametrize(
    ("file", "environment", "expected"),
    [
        ("hopper_medium-v2", "Hopper-v5", (-20.272305, 3234.3)),
        ("halfcheetah_medium_replay-v2", "HalfCheetah-v5", (-280.178953, 12135.0)),
        ("walker_mixed", "Walker2d-v5", (1.629008, 4592.3)),
        ("ant_medium_expert-v2", None, (-325.6, 3879.7)),
        (MAZE.format("u-maze", False, False), None, (0, 1)),
        (MAZE.format("big-maze", True, True), None, (0, 1)),
        (MAZE.format("hardest-maze", True, False) + "_fixed", None, (0, 1)),
        ("maze2d-umaze-sparse-v1", None, (23.85, 161.86)),
        ("maze2d-large-sparse-v1", None, (6.7, 273.99)),
        ("maze2d-umaze-sparse", None, (0.94, 62.6)),
        ("maze2d-umaze-dense-v1", None, (68.537689, 193.66285642381482)),
        ("bullet-hopper_medium_replay", None, (20.058972, 1441.8059623430963)),
        ("flow-ring-v0-idm", None, (-165.22, 24.42)),
        ("minigrid4rooms_random", None, (0.01442, 2.89685)),
        ("ants_of_mine", None, None),
        ("pen-human-v1", "AdroitHandPen-v1", (96.262799, 3076.8331017826877)),
        ("hammer-demos-v0-bc-combined", "AdroitHandHammer-v1", (-274.856578, 12794.134825156867)),
        ("door-cloned-v1", "AdroitHandDoor-v1", (-56.512833, 2880.5693087298737)),
        ("relocate-expert-v1", "AdroitHandRelocate-v1", (-6.425911, 4233.877797728884)),
        ("mini_kitchen_microwave_kettle_light_slider-v0", None, (0, 4)),
        ("kitchen_microwave_kettle_bottomburner_light-v0", None, (0, 4)),
    ],
)
def test_the_files_that_d4rl_hosts(
    tmp_path: Path, file: str, environment: str | None, expected: tuple[float, float] | None
) -> None:
    """By their own names; references are a convention where we name an environment of today."""
    data = read_d4rl(write(tmp_path / f"{file}.hdf5", next_observations=True))
    scores = data.reference_scores
    assert (None if scores is None else (scores.minimum, scores.maximum)) == expected
    assert (None if data.environment is None else data.environment.id) == environment
    applied = "" if environment is None else f", applied to {environment} by convention"
    assert scores is None or scores.source == f"D4RL (Fu et al. 2020){applied}"


def test_columns_of_one_and_both_flags_at_once(tmp_path: Path) -> None:
    flags = np.zeros((9, 1))
    flags[[3, 6, 8]] = 1
    data = read_d4rl(
        write(tmp_path / "x.hdf5", next_observations=True, terminals=flags, timeouts=flags, rewards=np.ones((9, 1)))
    )
    assert data.rewards.shape == (9,) and data.terminated.sum() == 3 and data.truncated.sum() == 3


def test_a_jump_that_no_flag_marks_ends_an_episode(tmp_path: Path) -> None:
    """With next_observations, a step keeps its own successor whatever the flags say."""
    data = read_d4rl(write(tmp_path / "x.hdf5", next_observations=True, ends=("open", "terminal", "open")))
    assert data.lengths().tolist() == [4, 3, 2] and rows(data)[4] == 4
    assert "1 steps whose successor is not recorded next" in data.transforms[0]


def test_t_plus_one_alignment_survives_both_layouts(tmp_path: Path) -> None:
    exact = read_d4rl(write(tmp_path / "a.hdf5", next_observations=True))
    dropped = read_d4rl(write(tmp_path / "b.hdf5", next_observations=False))
    for data in (exact, dropped):
        at = data.step_rows
        before, after = data.observations[at, 0], data.observations[at + 1, 0]
        expected = np.where(data.terminated & (data is dropped), before, before + 1)
        np.testing.assert_array_equal(after, expected)
        np.testing.assert_array_equal(before, data.rewards)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"terminals": None}, "terminals is missing"),
        ({"rewards": np.zeros(8)}, "expected rewards for 9 steps"),
        ({"actions": np.zeros((8, 1))}, "as many actions as observations"),
        (
            {"terminals": np.array([0, 0, 0, 0, 0, np.nan, 0, 0, 0])},
            "terminals as booleans .* got nan at episode 1, step 1",
        ),
        ({"rewards": np.full(9, np.nan)}, "expected finite rewards, got nan at episode 0, step 0"),
        ({"actions": np.full((9, 1), 3.0)}, r"expected actions in \[-1, 1\], got \[3, 3\]"),
        ({"observations": np.zeros((9, 3))}, "expected observations and next_observations of 9 steps"),
    ],
)
def test_bad_files(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "bad.hdf5", next_observations=True, **changes)
    with pytest.raises(DataError, match=message):
        load_dataset(path)


def test_corrupt_files_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "cut.hdf5", next_observations=True)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match="cut.hdf5: expected a D4RL HDF5 file, but it is missing, truncated or corrupt"):
        load_dataset(path)
    with pytest.raises(DataError, match="there is no such file"):
        load_dataset(tmp_path / "absent.hdf5")
    with pytest.raises(DataError, match="observation_keys, which select from a Dict"):
        load_dataset(write(tmp_path / "good.hdf5", next_observations=True), observation_keys=["goal"])


def test_the_d4rl_package_is_used_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with h5py.File(write(tmp_path / "x.hdf5", next_observations=False)) as file:
        arrays = {name: file[name][()] for name in ("observations", "actions", "rewards", "terminals", "timeouts")}
    env = types.SimpleNamespace(get_dataset=lambda: arrays)
    monkeypatch.setitem(sys.modules, "gym", types.SimpleNamespace(make=lambda name: env))
    monkeypatch.setitem(sys.modules, "d4rl", types.ModuleType("d4rl"))
    data = load_dataset("d4rl:antmaze-umaze-v2")
    assert data.lengths().tolist() == [3, 3, 1] and data.source == "d4rl:antmaze-umaze-v2"
    assert data.reference_scores is not None and data.reference_scores.maximum == 1.0


def test_the_d4rl_package_fails_at_import_without_mujoco_2_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(name: str) -> Any:
        raise Exception("You appear to be missing MuJoCo. We expected to find the file here: mujoco210")

    monkeypatch.setitem(sys.modules, "gym", types.SimpleNamespace(make=explode))
    monkeypatch.setitem(sys.modules, "d4rl", types.ModuleType("d4rl"))
    with pytest.raises(DataError, match=r"cannot be used here \(Exception: You appear .* path of the dataset's .hdf5"):
        load_dataset("d4rl:hopper-medium-v2")
    monkeypatch.setitem(sys.modules, "gym", None)
    with pytest.raises(DataError, match="cannot be used here"):
        load_dataset("d4rl:hopper-medium-v2")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hopper-medium-v2", (-20.272305, 3234.3)),
        ("ant-expert-v2", (-325.6, 3879.7)),
        ("antmaze-large-play-v2", (0, 1)),
        ("maze2d-medium-v1", (13.13, 277.39)),
        ("Walker2d-v5", (1.629008, 4592.3)),
        ("maze2d-umaze-v0", (0.94, 62.6)),
        ("maze2d-eval-large-v1", (16.4, 302.22)),
        ("maze2d-umaze-dense-v1", (68.537689, 193.66285642381482)),
        ("maze2d-umaze-v7", None),
        ("Door-v0", None),
        ("Hopper-medium-v2", None),
        ("CartPole-v1", None),
        ("Pendulum-v1", None),
    ],
)
def test_reference_scores_by_name(name: str, expected: tuple[float, float] | None) -> None:
    scores = d4rl_references(name)
    assert (None if scores is None else (scores.minimum, scores.maximum)) == expected
    assert scores is None or ("convention" in scores.source) == (name == "Walker2d-v5")


def test_references_need_d4rls_time_limit() -> None:
    for limit, known in ((None, True), (1000, True), (500, False)):
        assert (find_references(None, EnvironmentSpec(id="Hopper-v5", max_episode_steps=limit)) is not None) == known


@pytest.mark.parametrize(("recorded", "low", "used"), [(200, 96.262799, 100), (100, 96.262799, 100), (200, 0.0, 200)])
def test_a_minari_dataset_is_played_over_the_horizon_of_its_references(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recorded: int, low: float, used: int
) -> None:
    """D4RL/pen/…-v2 holds D4RL's references, of 100 steps, beside an environment of 200."""
    source = read_d4rl(write(tmp_path / "pen-human-v1.hdf5", next_observations=True))
    environment = EnvironmentSpec(id="AdroitHandPen-v1", max_episode_steps=recorded)
    scores = ReferenceScores(low, 3076.8331017826877, "someone")
    write_minari(
        replace(source, environment=environment, reference_scores=scores), "me/pen/human-v0", data_dir=tmp_path
    )
    caplog.clear()
    data = load_dataset("me/pen/human-v0", data_dir=tmp_path)
    assert data.environment is not None and data.environment.max_episode_steps == used
    assert ("episodes of 100 steps" in caplog.text) == (used != recorded)


@pytest.mark.parametrize(
    ("file", "parts"),
    [
        ("pen-human-v1", ("100 steps an episode as in D4RL, AdroitHandPen-v1 alone has 200", "the pen is dropped")),
        ("door-human-v1", ("0.1 a step for each metre between palm and handle",)),
        ("walker_mixed", ("standing", "friction", "another version of MuJoCo")),
        ("halfcheetah_medium-v2", ("another version of MuJoCo",)),
        ("antmaze-umaze-v2", ("no current environment has these observations",)),
    ],
)
def test_data_show_says_how_todays_environment_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, parts: tuple[str, ...]
) -> None:
    assert main(["data", "show", str(write(tmp_path / f"{file}.hdf5", next_observations=True))]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("unlike D4RL"))
    assert all(part in line for part in parts)


def test_data_of_other_sources_are_not_compared_with_d4rl() -> None:
    own = ReferenceScores(0, 1, "own")
    for environment in (None, EnvironmentSpec(id="Hopper-v5"), EnvironmentSpec(id="CartPole-v1")):
        assert d4rl_differences(environment, own) is None
        assert d4rl_differences(environment, None) is None
