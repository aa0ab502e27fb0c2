"""Mistakes that show without work are told before it: before a dataset is made, an episode is played, a run begins."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest

import herdbook
from herdbook.cli.main import main
from herdbook.core.checkpoint import CheckpointError
from herdbook.core.runs import Run, RunError
from herdbook.datasets.episodes import DataError
from herdbook.experiments.catalogue import UserError
from herdbook.experiments.collect import collect, export_replay
from herdbook.experiments.evaluate import evaluate_run
from herdbook.experiments.train import resume
from herdbook.experiments.video import record

TINY: dict[str, Any] = {"steps": 2, "batch_size": 4, "hidden_sizes": (4,), "eval_episodes": 0, "quiet": True}


@pytest.fixture
def run(small_dataset: str) -> Run:
    """A finished run of two seeds."""
    return herdbook.train("td3_bc", dataset=small_dataset, run_dir="run", seeds=(0, 1), **TINY)


# --- train and resume -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"run_dir": "run"}, "already holds a run"),
        ({"run_dir": "run/config.json/deeper"}, "config.json is a file"),
        ({"device": "cuda:9"}, "device: cuda:9 is not there"),
        ({"wandb": "project"}, r"herdbook\[wandb\]"),
        ({"env": "Pendulom-v1", "eval_episodes": 1}, "did you mean 'Pendulum-v1'"),
        ({"env": "Pendulum-v1", "eval_episodes": 1, "env_kwargs": {"gravity": 1}}, "unexpected keyword argument"),
        ({"reward_transform": "return_rage"}, "did you mean 'return_range'"),
        ({"learn": "agent_0"}, "there is one agent"),
        ({"actor_rate": 1.0}, "has no field 'actor_rate'"),
    ],
)
def test_training_refuses_before_its_dataset_is_made(
    run: Run, options: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    chosen = {"run_dir": "new", **TINY, **options}
    with pytest.raises((UserError, RunError), match=words):
        herdbook.train("td3_bc", dataset="classic/pendulum", data_dir="data", **chosen)
    assert not Path("data").exists() and not Path("new").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--run-dir", "run"), "already holds a run"),
        (("--env", "Pendulom-v1"), "did you mean 'Pendulum-v1'"),
        (("--wandb", "project"), "herdbook[wandb]"),
    ],
)
def test_the_command_refuses_before_its_dataset_is_made(
    run: Run, words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(["train", "bc", "--dataset", "classic/pendulum", "--data-dir", "data", *words]) == 2
    assert said in capsys.readouterr().err and not Path("data").exists() and not Path("runs").exists()


class Refused(Exception):
    """Stands for `wandb.Error`."""


def test_weights_and_biases_that_does_not_start_leaves_no_run(
    small_dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise Refused("api_key not configured")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=refuse, Error=Refused))
    for _ in range(2):  # the second time, nothing is in the way
        with pytest.raises(UserError, match="--wandb project: Weights & Biases does not start: api_key"):
            herdbook.train("td3_bc", dataset=small_dataset, run_dir="new", wandb="project", **TINY)
    assert herdbook.train("td3_bc", dataset=small_dataset, run_dir="new", **TINY).checkpoints.last() == 2


def test_a_resume_that_is_refused_changes_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.update_config(run={**run.options, "wandb": "project"})
    before = (run.path / "config.json").read_bytes()
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"herdbook\[wandb\]"):
        resume(run.path, steps=4)
    assert (run.path / "config.json").read_bytes() == before


# --- eval, collect, convert and compare -----------------------------------------------------------------------------


@pytest.mark.usefixtures("no_environment")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--out", "."), "out: . cannot be written: . is a folder"),
        (("--out", "run/config.json/x.json"), "config.json is a file"),
        (("--video", "x.avi"), "expected a name that ends in .gif or .mp4"),
        (("--video", "x.mp4"), "video: .mp4 needs imageio_ffmpeg: pip install 'herdbook[video]'"),
        (("--video", "run/config.json/x.gif"), "config.json is a file"),
    ],
)
def test_eval_refuses_before_an_episode(
    run: Run, words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "imageio", types.ModuleType("imageio"))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert main(["eval", "run", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_film_that_fails_is_told_before_the_evaluation(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("herdbook.experiments.single_agent.SingleAgent.film", lambda *_: [None])
    monkeypatch.setattr("herdbook.experiments.evaluate.evaluate_run", lambda *_, **__: pytest.fail("it was evaluated"))
    assert main(["eval", "run", "--video", "x.gif"]) == 2
    assert "draws no pictures" in capsys.readouterr().err


def test_a_video_is_recorded_and_the_results_are_the_same(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "run", "--episodes", "2", "--out", "a.json"]) == 0
    assert main(["eval", "run", "--episodes", "2", "--out", "b.json", "--video", "x.gif"]) == 0
    assert Path("a.json").read_bytes() == Path("b.json").read_bytes() and Path("x.gif").is_file()
    assert "written: x.gif, 21 frames" in capsys.readouterr().out


@pytest.mark.usefixtures("no_environment")
def test_every_seed_is_restored_before_one_plays(run: Run) -> None:
    state = run.checkpoints.load()
    damaged = {**state, "stopped": {"1": {"step": 2, "reason": "loss", "checkpoint": 7}}}
    run.checkpoints.save(2, damaged, protected={0})
    with pytest.raises(CheckpointError, match="no checkpoint of step 7"):
        evaluate_run(run.path)


def test_seeds_that_share_a_checkpoint_are_evaluated_each_by_itself(run: Run) -> None:
    lines = evaluate_run(run.path, episodes=2)["seeds"]
    both = [herdbook.load(run.path, seed=seed) for seed in (0, 1)]
    assert lines[0]["returns"] != lines[1]["returns"] and both[0] is not both[1]


@pytest.mark.usefixtures("no_environment")
@pytest.mark.parametrize("out", ["no-version", "tests/pendulum/random-v0", "a b/c-v0"])
def test_ids_are_checked_before_anything_is_played_read_or_made(
    run: Run, out: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("herdbook.datasets.load.load_dataset", lambda *_, **__: pytest.fail("the dataset was read"))
    for call in (
        lambda: collect(run.path, out=out, episodes=3),
        lambda: collect("random", out=out, episodes=3, env="Pendulum-v1"),
        lambda: export_replay(run.path, out=out),
    ):
        with pytest.raises(DataError, match="expected a Minari id|exists at"):
            call()
    assert main(["data", "convert", "classic/pendulum", out]) == 2
    assert "expected a Minari id" in (err := capsys.readouterr().err) or "exists at" in err


def test_a_folder_that_cannot_hold_a_dataset_is_told_before_anything_is_played(no_environment: None) -> None:
    Path("file").touch()
    with pytest.raises(DataError, match=r"mine/x-v0 cannot be written: .*file is a file"):
        collect("random", out="mine/x-v0", episodes=3, env="Pendulum-v1", data_dir="file")


@pytest.mark.parametrize(
    ("env", "arguments"),
    [("Pendulum-v1", {"g": {1.0}}), ("mpe2/simple_spread_v3", {"N": 2, "render_mode": {1}})],
)
def test_arguments_that_no_dataset_can_hold_are_told_before_anything_is_played(
    env: str, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for domain in ("single_agent.SingleAgent", "many_agents.ManyAgents"):
        monkeypatch.setattr(f"herdbook.experiments.{domain}.play", lambda *_: pytest.fail("it was played"))
    with pytest.raises(DataError, match="expected JSON values as the environment's arguments"):
        collect("random", out="mine/x-v0", episodes=3, env=env, env_kwargs=arguments, data_dir="data")


def test_compare_checks_its_folder_first(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("herdbook.evaluation.compare.compare", lambda *_: pytest.fail("it was compared"))
    assert main(["compare", "run", "--out", "run/config.json"]) == 2
    assert "config.json is a file; choose another" in capsys.readouterr().err


def test_a_video_needs_a_folder(run: Run) -> None:
    with pytest.raises(UserError, match="video: .* cannot be written"):
        record(run.path, "run/config.json/x.gif")
