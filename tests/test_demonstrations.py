"""Demonstrations: the part of a dataset that a run chooses, what it says about it, and that resuming checks it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sameness import FILES, equal

import herdbook
from herdbook.cli.main import main
from herdbook.core.runs import RunError
from herdbook.datasets.demonstrations import choose_demonstrations
from herdbook.datasets.episodes import DataError, Episodes
from herdbook.datasets.load import load_dataset
from herdbook.datasets.replay import ReplayBuffer
from herdbook.experiments.catalogue import UserError
from herdbook.experiments.train import resume
from herdbook.offline.bc import BC

TINY: dict[str, Any] = {"steps": 6, "batch_size": 4, "hidden_sizes": (4,), "eval_episodes": 0, "quiet": True}


def make(lengths: tuple[int, ...], rewards: tuple[float, ...], terminated: bool = False) -> Episodes:
    """Episode e, step t: observation 10 e + t, and a reward of `rewards[e]` in its last step alone."""
    return Episodes.from_episodes(
        [
            {
                "observations": 10.0 * e + np.arange(n + 1)[:, None],
                "actions": np.zeros((n, 1)),
                "rewards": np.append(np.zeros(n - 1), reward),
                "terminated": terminated,
                "truncated": not terminated,
            }
            for e, (n, reward) in enumerate(zip(lengths, rewards, strict=True))
        ],
        observation_space=spaces.Box(-np.inf, np.inf, (1,), np.float32),
        action_space=spaces.Box(-1, 1, (1,), np.float32),
        source="made",
    )


DATA = make((4, 2, 7, 3), (1, 5, 3, 4))


def sampled(episodes: Episodes) -> list[float]:
    """The observations of the steps that a replay can draw."""
    replay = ReplayBuffer(episodes)
    found: list[float] = replay.gather(replay.entries(_numbers(replay)), discount=0.9).observations[:, 0].tolist()
    return found


def _numbers(replay: ReplayBuffer) -> Any:
    return torch.arange(len(replay))


def test_the_best_episodes_then_the_first_then_every_kth_step() -> None:
    assert choose_demonstrations(DATA) is DATA
    assert sampled(choose_demonstrations(DATA, first=2)) == [0, 1, 2, 3, 10, 11]
    assert sampled(choose_demonstrations(DATA, min_return=4)) == [10, 11, 30, 31, 32]  # a return of 4 is kept
    assert sampled(choose_demonstrations(DATA, every=3)) == [0, 3, 10, 20, 23, 26, 30]  # from each first step
    chosen = choose_demonstrations(DATA, first=2, every=3, min_return=3)
    assert sampled(chosen) == [10, 20, 23, 26]  # the first two of those with a return of 3 or more
    assert chosen.num_sampled == 4 and DATA.num_sampled == DATA.num_steps == 16
    assert chosen.transforms == (
        "demonstrations: return >= 3",
        "demonstrations: the first 2",
        "demonstrations: 1 step in 3",
    )
    assert choose_demonstrations(chosen, every=100).num_sampled == 2


def test_subsampled_steps_keep_their_successors_and_the_ends_of_their_episodes() -> None:
    chosen = choose_demonstrations(make((4, 3), (0, 0), terminated=True), every=3)
    replay = ReplayBuffer(chosen)
    batch = replay.gather(replay.entries(_numbers(replay)), discount=0.5)
    assert batch.observations[:, 0].tolist() == [0, 3, 10]
    assert batch.next_observations[:, 0].tolist() == [1, 4, 11]
    assert batch.discounts.tolist() == [0.5, 0, 0.5]  # step 3 of 4 ends the first episode
    assert chosen.terminated.sum() == 2 and chosen.lengths().tolist() == [4, 3]


def test_the_statistics_are_those_of_the_steps_that_are_learned_from() -> None:
    spec = choose_demonstrations(DATA, first=3, every=3, min_return=3).spec()
    seen = np.array([10, 20, 23, 26, 30])
    assert spec.observation_mean is not None and spec.observation_std is not None
    np.testing.assert_allclose([spec.observation_mean[0], spec.observation_std[0]], [seen.mean(), seen.std()])


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"first": 5}, DataError, r"made: expected at least 5 episodes, got 4"),
        ({"first": 3, "min_return": 3.5}, DataError, r"at least 3 episodes with a return of at least 3.5, got 2"),
        ({"min_return": 5.5}, DataError, r"a return of at least 5.5; the best of 4 is 5"),
        ({"every": 0}, ValueError, r"every >= 1, got 0"),
        ({"first": 0}, ValueError, r"first >= 1, got 0"),
        ({"min_return": np.nan}, ValueError, r"finite min_return, got nan"),
    ],
)
def test_demonstrations_that_are_not_there(options: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        choose_demonstrations(DATA, **options)


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"demonstrations": 7}, DataError, r"expected at least 7 episodes, got 6"),
        ({"min_return": 0.0}, DataError, r"a return of at least 0; the best of 6 is -\d+\.\d+"),
        ({"subsample": 0}, UserError, r"subsample: expected 1 or more, got 0"),
        ({"demonstrations": 0}, UserError, r"demonstrations: expected 1 or more, got 0"),
        ({"min_return": float("inf")}, UserError, r"min_return: expected a finite number, got inf"),
    ],
)
def test_a_run_refuses_a_part_that_is_not_there(
    options: dict[str, Any], error: type[Exception], said: str, small_dataset: str
) -> None:
    with pytest.raises(error, match=said):
        herdbook.train("bc", dataset=small_dataset, run_dir="run", **TINY, **options)
    assert not Path("run").exists()


@pytest.mark.parametrize("option", [{"demonstrations": 2}, {"subsample": 2}, {"min_return": 0.0}])
def test_a_part_of_no_dataset_is_refused(option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(UserError, match=f"^{name}: expected a dataset beside it"):
        herdbook.train("sac", env="Pendulum-v1", run_dir="run", steps=2, quiet=True, **option)
    with pytest.raises(UserError, match=f"^{name}: expected none for data of many agents"):
        herdbook.train("matd3_bc", dataset="nothing/here-v0", run_dir="run", steps=2, quiet=True, **option)


def test_the_command_says_what_is_wrong_with_a_part(small_dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "bc", "--dataset", small_dataset, "--run-dir", "run", "--steps", "2", "--eval-episodes", "0"]
    assert main([*words, "--demonstrations", "7"]) == 2
    said = capsys.readouterr().err
    assert "expected at least 7 episodes, got 6" in said and "Traceback" not in said
    assert main([*words, "--demonstrations", "2", "--subsample", "5", "--min-return=-1e6"]) == 0
    assert herdbook.load("run").act(np.zeros(3)).shape == (1,)


def test_a_run_records_its_part_of_the_data_and_resumes_to_the_bit(
    small_dataset: str, die_at: Callable[[str, int, type, Callable[[], object]], None]
) -> None:
    part = {"demonstrations": 2, "subsample": 5}
    options: dict[str, Any] = {**TINY, **part, "seeds": (0, 1), "checkpoint_every": 2, "reward_transform": "scale:2"}
    whole = herdbook.train("bc", dataset=small_dataset, run_dir="whole", **options)
    record = whole.config["dataset"]
    chosen = choose_demonstrations(load_dataset(small_dataset), first=2, every=5)
    assert record["given"]["fingerprint"] == chosen.fingerprint()
    assert record["given"]["transforms"] == ["demonstrations: the first 2", "demonstrations: 1 step in 5"]
    assert record["transforms"] == [*record["given"]["transforms"], "rewards: scale:2"]
    assert record["statistics"]["episodes"] == 2
    np.testing.assert_array_equal(whole.checkpoints.load()["spec"]["observation_mean"], chosen.spec().observation_mean)
    die_at("update", 5, BC, lambda: herdbook.train("bc", dataset=small_dataset, run_dir="killed", **options))
    killed, _ = resume("killed", quiet=True)
    assert killed.checkpoints.last() == 6
    for name in FILES:
        assert (killed.path / name).read_bytes() == (whole.path / name).read_bytes()
    assert equal(killed.checkpoints.load(), whole.checkpoints.load())


def test_resuming_checks_the_chosen_part(small_dataset: str) -> None:
    run = herdbook.train("bc", dataset=small_dataset, run_dir="run", **TINY, demonstrations=2)
    episodes = load_dataset(small_dataset)
    resume("run", steps=7, dataset=episodes.select([0, 1, 5]), quiet=True)  # the others are not learned from
    with pytest.raises(RunError, match="the dataset has changed since the run began"):
        resume("run", steps=8, dataset=episodes.select([0, 2, 1]), quiet=True)
    run.update_config(run={**run.options, "demonstrations": 3})
    with pytest.raises(RunError, match="the dataset has changed since the run began"):
        resume("run", steps=8, quiet=True)


@pytest.mark.parametrize("name", ["gail --batch-size 8", "ls_iq --batch-size 8", "dac --td3.batch-size 8"])
def test_an_environment_with_other_spaces_than_the_demonstrations_is_refused(
    name: str, small_dataset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*name.split(), "--dataset", small_dataset, "--env", "MountainCarContinuous-v0", "--eval-episodes", "0"]
    assert main(["train", *words, "--run-dir", "run"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("herdbook: MountainCarContinuous-v0: expected observations in Box([-1. -1. -8.]")
    assert said.count("\n") == 1 and not Path("run").exists()


# --- few steps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sqil", "iq_learn", "ls_iq"])
def test_an_expert_buffer_smaller_than_half_a_batch_is_said(
    name: str, small_dataset: str, caplog: pytest.LogCaptureFixture
) -> None:
    """24 steps are sampled of 6 episodes, 20 of 5."""
    tiny: dict[str, Any] = {"steps": 2, "eval_episodes": 0, "quiet": True, "subsample": 5, "hidden_sizes": (4,)}
    online = {"online": True} if name == "iq_learn" else {}
    for number, demonstrations, batch_size in ((0, 6, 24), (1, 5, 24)):
        chosen: dict[str, Any] = {"demonstrations": demonstrations, "batch_size": batch_size, "run_dir": str(number)}
        herdbook.train(name, dataset=small_dataset, env="Pendulum-v1", **tiny, **chosen, **online)
    told = [record.message for record in caplog.records if "fewer than half a batch" in record.message]
    assert len(told) == 1 and told[0].startswith(f"{name}: 20 steps of demonstrations are fewer than half a batch, 24")
