"""Settings per task: which rows apply to which environments and datasets, and where they are not applied."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest

import herdbook
import herdbook.tabular.environment
from herdbook.cli.main import main
from herdbook.core.environments import EnvironmentSpec
from herdbook.core.registry import joint_names
from herdbook.core.runs import Run
from herdbook.datasets.load import dataset_name, load_dataset
from herdbook.datasets.minari import write_minari
from herdbook.experiments.catalogue import ALGORITHMS, algorithm_class
from herdbook.experiments.settings import SETTINGS, Setting, settings_for
from herdbook.experiments.tasks import settings_of
from herdbook.offline.cql import CQLConfig
from herdbook.offline.iql import IQL, IQLConfig

MANY = {"independent_q", "vdn", "qmix", "maddpg", "matd3", "matd3_bc", "qmix_cql"}
IMITATION = {"iq_learn", "ls_iq"}
ATARI = {"dqn", "discrete_cql", "discrete_bcq", "bc"}
MAZES = ("UMaze", "Open", "Medium", "Large")
DIVERSE = [f"{maze}_Diverse_{goals}" for maze in MAZES[1:] for goals in ("G", "GR")]
TABLE: dict[str, set[str]] = {
    "CartPole-v1": {"dqn", "a2c", "ppo", "iq_learn"},
    "Acrobot-v1": {"dqn", "ppo", "iq_learn"},
    "LunarLander-v3": {"dqn", "iq_learn"},
    "herdbook/FixedHorizonCartPole-v0": {"gail", "airl"},
    "Pendulum-v1": IMITATION | {"cql", "ppo", "gail", "airl", "dac"},
    **{
        f"{robot}-v{n}": {"iql", "iq_learn", "ls_iq"}
        for robot in ("HalfCheetah", "Hopper", "Walker2d")
        for n in (2, 3, 4, 5)
    },
    **{f"Ant-v{n}": {"iq_learn", "ls_iq"} for n in (2, 3, 4, 5)},
    **{f"Humanoid-v{n}": {"ls_iq"} for n in (2, 3, 4, 5)},
    **{f"AdroitHand{task}-v{n}": {"iql"} for task in ("Pen", "Door", "Hammer", "Relocate") for n in (1, 2)},
    "FrankaKitchen-v1": {"iql"},
    **{f"AntMaze_{maze}-v{n}": {"iql"} for maze in (*MAZES, *DIVERSE) for n in (3, 4, 5)},
    **{
        f"mpe2/{game}": MANY
        for game in (
            "collect_treasure_v1",
            "simple_adversary_v3",
            "simple_crypto_v3",
            "simple_formation_v1",
            "simple_line_v1",
            "simple_push_v3",
            "simple_reference_v3",
            "simple_speaker_listener_v4",
            "simple_spread_v3",
            "simple_tag_v3",
            "simple_v3",
            "simple_world_comm_v3",
        )
    },
}
"""The environments that have settings, beside Atari's games, and the algorithms that have some there."""
ROBOTS = ("ant", "halfcheetah", "hopper", "humanoid", "humanoidstandup", "invertedpendulum", "inverteddoublependulum")
ROBOTS += ("pusher", "reacher", "swimmer", "walker2d")
MINARI = {
    *(f"mujoco/{robot}/{policy}-v0" for robot in ROBOTS for policy in ("simple", "medium", "expert")),
    *(f"D4RL/antmaze/{maze}-v1" for maze in ("umaze", "umaze-diverse", "medium-play", "medium-diverse")),
    *(f"D4RL/antmaze/{maze}-v1" for maze in ("large-play", "large-diverse")),
    *(f"D4RL/pointmaze/{maze}{d}-v2" for maze in ("open", "umaze", "medium", "large") for d in ("", "-dense")),
    *(f"D4RL/{hand}/{policy}-v2" for hand in ("door", "hammer", "pen", "relocate") for policy in ("human", "cloned")),
    *(f"D4RL/{hand}/expert-v2" for hand in ("door", "hammer", "pen", "relocate")),
    *(f"D4RL/kitchen/{part}-v2" for part in ("complete", "mixed", "partial")),
    *(f"D4RL/minigrid/{rooms}-v0" for rooms in ("fourrooms", "fourrooms-random")),
    *(f"atari/{game}/expert-v0" for game in ("breakout", "pong", "qbert", "seaquest")),
    *(f"rlzoo/{robot}/expert-v0" for robot in ("hopper", "halfcheetah", "walker2d", "ant")),
}
LOCOMOTION = ("halfcheetah", "hopper", "walker2d")
TUNED = ("antmaze", "pen", "door", "hammer", "relocate", "kitchen")


def registered() -> Iterator[str]:
    """Every name of `herdbook list environments`, and Gymnasium's names of old versions."""
    gymnasium.register_envs(herdbook.tabular.environment)
    for package in ("gymnasium_robotics", "ale_py"):
        if importlib.util.find_spec(package) is not None:
            gymnasium.register_envs(importlib.import_module(package))
    yield from gymnasium.registry
    yield from joint_names()


def algorithms(*environments: str, **known: Any) -> set[str]:
    return {name for name in ALGORITHMS if settings_for(name, *environments, **known)}


def test_each_registered_environment_has_the_settings_of_the_table_and_no_others() -> None:
    names = set(registered())
    assert {"InvertedDoublePendulum-v5", "phys2d/Pendulum-v0", "mpe2/simple_spread_v3", "Hopper-v5"} <= names
    expected = {name: ATARI if name.startswith("ALE/") else TABLE.get(name, set()) for name in names | TABLE.keys()}
    assert {name: algorithms(name) for name in expected} == expected


def test_each_minari_id_has_the_settings_of_its_parts() -> None:
    parts = {name: name.split("/") for name in MINARI}
    expected = {
        name: {"iql"} if task in (TUNED if space == "D4RL" else LOCOMOTION) else set()
        for name, (space, task, _) in parts.items()
    }
    assert {name: algorithms(dataset=name) for name in MINARI} == expected


def test_each_row_applies_somewhere() -> None:
    known = [*TABLE, "ALE/Pong-v5"]
    for row in SETTINGS:
        assert any(row.source == found.source for name in known for found in settings_for(row.algorithm, name)), row


def test_iql_drops_out_units_on_adroit_and_kitchen() -> None:
    for known in ({"dataset": "D4RL/pen/human-v2"}, {"dataset": "d4rl:kitchen-mixed-v0"}):
        assert settings_for("iql", **known)[0].config == {"beta": 0.5, "dropout": 0.1}
    assert settings_for("iql", "AdroitHandPen-v1")[0].config == {"beta": 0.5, "dropout": 0.1}


def test_iql_scales_the_rewards_of_locomotion_and_shifts_those_of_sparse_mazes() -> None:
    def transforms(*environments: str, **known: Any) -> list[str]:
        return [row.run["reward_transform"] for row in settings_for("iql", *environments, **known)]

    assert transforms("Hopper-v5") == transforms(dataset="mujoco/hopper/expert-v0") == ["return_range"]
    assert transforms(dataset="d4rl:walker2d-medium-replay-v2") == ["return_range"]
    assert transforms("AntMaze_Medium_Diverse_GR-v4") == transforms(dataset="d4rl:antmaze-umaze-v2") == ["minus_one"]
    assert transforms("AntMaze_UMaze-v4", arguments={"reward_type": "sparse"}) == ["minus_one"]
    assert transforms("AntMaze_UMaze-v4", arguments={"reward_type": "dense"}) == []
    assert transforms("AntMaze_UMazeDense-v4") == []


def test_ls_iq_has_the_authors_policy_term_where_they_tuned_it() -> None:
    for robot in ("Ant", "HalfCheetah", "Hopper", "Walker2d"):
        assert [row.config for row in settings_for("ls_iq", f"{robot}-v5")] == [{"policy_term": "value"}]
    expected = {"policy_term": "replay", "temperature": 0.1}
    assert [row.config for row in settings_for("ls_iq", "Humanoid-v5")] == [expected]


def test_settings_of_online_runs_give_way_to_a_user_who_turns_online_off(
    small_dataset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {"dataset": small_dataset, "env": "Hopper-v5", "steps": 1, "eval_episodes": 0}
    run = herdbook.train("iq_learn", **given, online=False, batch_size=4, quiet=True)
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["train", "iq_learn", *words, "--no-online", "--batch-size", "4", "--run-dir", "named"]) == 0
    assert "settings" not in capsys.readouterr().out
    for config in (run.config, Run("named").config):
        chosen = [config["config"][name] for name in ("online", "value_term", "chi2", "critic_lr")]
        assert chosen == [False, "expert", "expert", 1e-4] and config["settings"] == []
    assert settings_for("iq_learn", "Hopper-v5")[0].config["online"] is True  # where nothing is said
    assert settings_for("iq_learn", "CartPole-v1", offline=True)  # a row of offline runs


@pytest.mark.parametrize(
    "name", ["games.hopper:make", "python:hopper", "me/Hopper-v5", "Hopper-v5/me", "hopper-v5", "MyHopper-v5", "mpe2"]
)
def test_a_name_that_only_contains_another_one_has_no_settings(name: str) -> None:
    assert algorithms(name) == algorithms(dataset=name) == set()


def test_ram_has_no_settings_for_pixels() -> None:
    assert settings_for("dqn", "ALE/Pong-v5", arguments={"obs_type": "grayscale"})
    assert not settings_for("dqn", "ALE/Pong-v5", arguments={"obs_type": "ram"})


def test_rewards_are_centred_only_where_no_argument_ends_episodes_early() -> None:
    def centred(name: str, **arguments: Any) -> bool:
        rows = settings_for("independent_q", name, arguments=arguments)
        return any(row.config.get("reward_centring", False) for row in rows)

    games = [name for name in TABLE if name.startswith("mpe2/") and centred(name)]
    assert games == ["mpe2/simple_speaker_listener_v4", "mpe2/simple_spread_v3"]
    assert centred("mpe2/simple_spread_v3", terminate_on_success=False, max_cycles=50)
    assert not centred("mpe2/simple_spread_v3", terminate_on_success=True)
    options: dict[str, Any] = {"dataset": None, "data_dir": None, "env": "mpe2/simple_spread_v3"}
    for argument, expected in ((True, False), (False, True)):
        known = {**options, "env_kwargs": {"terminate_on_success": argument}}
        rows = settings_of("independent_q", algorithm_class("independent_q"), **known)
        assert any("reward_centring" in row.config for row in rows) is expected


def iql(dataset: Any) -> list[Setting]:
    return settings_of("iql", IQL, dataset=dataset, data_dir=None, env=None, env_kwargs={})


def test_the_folders_of_a_path_choose_no_settings(small_dataset: str, tmp_path: Path) -> None:
    episodes = load_dataset(small_dataset)
    write_minari(episodes, "me/swing-v0", data_dir=tmp_path / "hopper" / "antmaze")
    folder = tmp_path / "hopper" / "antmaze" / "me" / "swing-v0"
    assert dataset_name(folder) == "me/swing-v0"
    assert not iql(folder) and not iql(str(folder.relative_to(tmp_path))) and not iql(load_dataset(folder))
    file = tmp_path / "hopper" / "mine.hdf5"
    with h5py.File(file, "w") as opened:
        for field, width in (("observations", 3), ("actions", 1)):
            opened[field] = np.zeros((4, width), dtype=np.float32)
        for field in ("rewards", "terminals", "timeouts"):
            opened[field] = np.array([0, 1, 0, 1], dtype=np.float32 if field == "rewards" else np.bool_)
    assert not iql(file) and not iql(load_dataset(file))


@pytest.mark.parametrize(
    ("file", "transform"),
    [("hopper_medium-v2", "return_range"), ("Ant_maze_u-maze_noisy_multistart_False_multigoal_False", "minus_one")],
)
def test_a_d4rl_file_has_the_settings_of_its_own_name(file: str, transform: str, tmp_path: Path) -> None:
    path = tmp_path / f"{file}.hdf5"
    path.touch()
    (row,) = iql(path)
    assert row.run == {"reward_transform": transform}


def test_a_dataset_has_the_settings_of_the_environment_that_it_records(small_dataset: str, tmp_path: Path) -> None:
    episodes = load_dataset(small_dataset)
    rows = settings_of("cql", algorithm_class("cql"), dataset=episodes, data_dir=None, env=None, env_kwargs={})
    assert [row.patterns for row in rows] == [("Pendulum-v*",)]
    hopper = EnvironmentSpec(id="Hopper-v5")
    rows = settings_of("iql", IQL, dataset=episodes, data_dir=None, env=hopper, env_kwargs={})
    assert [row.run for row in rows] == [{"reward_transform": "return_range"}]


def test_a_config_of_ones_own_is_used_unchanged_and_a_notice_names_what_differs(
    small_dataset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    short: dict[str, Any] = {"dataset": small_dataset, "steps": 1, "eval_episodes": 0, "device": "cpu"}
    run = herdbook.train(CQLConfig(batch_size=4), **short)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("settings")]
    assert len(said) == 1 and said[0].startswith("settings that do not apply beside a config of your own: cql on Pend")
    assert "num_actions = 4" in said[0]
    assert run.config["settings"] == [] and run.config["config"]["num_actions"] == 10
    same = CQLConfig(batch_size=4, hidden_sizes=(64, 64), num_actions=4)
    herdbook.train("cql", config=same, **short)
    assert "settings" not in capsys.readouterr().out  # nothing differs
    herdbook.train(IQLConfig(batch_size=4, hidden_sizes=(8,)), **short)
    assert "settings" not in capsys.readouterr().out  # there are none
    words = [word for name, value in short.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["train", "cql", *words, "--batch-size", "4", "--run-dir", "named"]) == 0
    assert "settings: cql on Pendulum-v*: " in capsys.readouterr().out
    assert Run("named").config["config"]["num_actions"] == 4
