"""Runs as a library: exact resume, cadences, seeds that stop, run directories, and what config.json may do."""

import dataclasses
import errno
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from sameness import equal

import herdbook
from herdbook.core import runs
from herdbook.core.checkpoint import CheckpointError, Checkpoints
from herdbook.core.config import Config
from herdbook.core.environments import EnvironmentSpec, EnvironmentUnavailable, ReferenceScores
from herdbook.core.loop import Cadence
from herdbook.core.runs import JSONLines, Run, RunError, RunFailed, create_run, locked, to_json
from herdbook.datasets.episodes import Episodes
from herdbook.datasets.load import load_dataset
from herdbook.experiments.catalogue import UserError
from herdbook.experiments.evaluate import evaluate_run
from herdbook.experiments.records import config_from_values, config_values, with_length
from herdbook.experiments.train import resume
from herdbook.marl.matd3_bc import MATD3BCConfig
from herdbook.offline.iql import IQL, IQLConfig
from herdbook.online.dqn import DQNConfig
from herdbook.online.sac import SACConfig

MINE = "user_code:Mine"
FILES = ("metrics.jsonl", "evaluations.jsonl")


def go(dataset: str, path: Path | str = "run", **options: object) -> Run:
    defaults: dict = {"steps": 40, "seeds": (0, 1), "eval_episodes": 2, "quiet": True}
    return herdbook.train(MINE, dataset=dataset, run_dir=path, **(defaults | options))


def same(a: Run, b: Run) -> bool:
    """Lines and parameters equal to the bit."""
    lines = all((a.path / name).read_bytes() == (b.path / name).read_bytes() for name in FILES)
    one, other = a.checkpoints.load(), b.checkpoints.load()
    return lines and torch.equal(one["state"]["weights"], other["state"]["weights"]) and one["step"] == other["step"]


@pytest.fixture(autouse=True)
def _code(user_module: str) -> None:
    pass


def test_two_equal_runs_write_equal_bytes(small_dataset: str) -> None:
    a, b = go(small_dataset, "a"), go(small_dataset, "b")
    assert same(a, b)
    assert b"seconds" not in (a.path / "metrics.jsonl").read_bytes()
    assert not same(a, go(small_dataset, "c", seeds=(0, 2)))


def test_a_config_object_is_taken_as_it_is(small_dataset: str) -> None:
    from herdbook.offline.td3_bc import TD3BCConfig

    config = TD3BCConfig(hidden_sizes=(8,), alpha=1)
    options: dict = {"dataset": small_dataset, "steps": 2, "eval_episodes": 0, "quiet": True, "seeds": [5]}
    run = herdbook.train(config, run_dir="run", **options)
    assert run.algorithm == "td3_bc" and run.config["config"]["hidden_sizes"] == [8] and run.seeds == (5,)
    assert run.options["run_dir"] == "run" and run.config["settings"] == []
    with pytest.raises(UserError, match=r"unknown option 'alfa'.*config object"):
        herdbook.train(config, alfa=3, **options)
    with pytest.raises(UserError, match=r"TD3BCConfig has no field 'alfa'; did you mean 'alpha'\?"):
        herdbook.train("td3_bc", alfa=3, **options)
    with pytest.raises(UserError, match="train\\(Mine, config="):
        herdbook.train(3, **options)
    assert herdbook.train("td3_bc", **options).path == Path("runs/td3_bc-tests-pendulum-random-v0")
    assert herdbook.train("td3_bc", **options).path == Path("runs/td3_bc-tests-pendulum-random-v0-2")
    assert herdbook.train("td3_bc", name="mine", **options).path == Path("runs/mine")


def test_a_run_holds_what_is_promised(small_dataset: str) -> None:
    run = go(small_dataset)
    names = {p.name for p in run.path.iterdir()}
    assert {"config.json", "metrics.jsonl", "evaluations.jsonl", "timing.jsonl", "checkpoints"} < names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert (run.path / "checkpoints" / "last").is_symlink()
    assert run.checkpoints.steps() == [38, 40]
    config = run.config
    assert config["dataset"]["fingerprint"] == load_dataset(small_dataset).fingerprint()
    assert config["algorithm"] == MINE and config["seeds"] == [0, 1] and config["config"]["lr"] == 0.1
    assert config["time_limit"] == "bootstrap" and config["versions"]["torch"] == torch.__version__
    first = run.evaluations()[0]
    assert first.keys() == {"step", "seed", "return_mean", "return_std", "normalized_score", "returns", "lengths"}
    assert [(line["step"], line["seed"]) for line in run.evaluations()[-2:]] == [(40, 0), (40, 1)]
    assert len(first["returns"]) == 2 and first["lengths"] == [20, 20]


def test_the_first_checkpoint_is_of_step_0(small_dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    original = Checkpoints.save

    def save(self: Checkpoints, step: int, *rest: Any, **options: Any) -> None:
        saved.append(step)
        original(self, step, *rest, **options)

    monkeypatch.setattr(Checkpoints, "save", save)
    go(small_dataset, steps=100, checkpoint_every=None)
    assert saved == list(range(0, 101, 5))


@pytest.mark.parametrize(
    ("steps", "expected"), [(0, (1, 1, 1)), (300, (3, 30, 15)), (1_000_000, (1000, 100_000, 50_000))]
)
def test_default_cadences(steps: int, expected: tuple[int, int, int]) -> None:
    cadence = Cadence.of(steps, None, None, None)
    assert (cadence.log, cadence.evaluate, cadence.checkpoint) == expected


def test_zero_steps_evaluate_the_untrained_policy(small_dataset: str) -> None:
    run = go(small_dataset, steps=0)
    assert run.checkpoints.steps() == [0]
    assert [line["step"] for line in run.evaluations()] == [0, 0]


@pytest.mark.parametrize("when", [("update", 1), ("update", 23), ("checkpoint", 2), ("link", 3), ("line", 17)])
def test_a_run_that_dies_anywhere_resumes_to_the_bit(small_dataset: str, die_at: Any, when: tuple[str, int]) -> None:
    whole = go(small_dataset, "whole", log_every=3, evaluate_every=7, checkpoint_every=5)
    import user_code

    die_at(*when, user_code.Mine, lambda: go(small_dataset, "cut", log_every=3, evaluate_every=7, checkpoint_every=5))
    with (Path("cut") / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 999, "half')  # what a killed write may leave
    cut, continued = resume("cut", algorithm=MINE, quiet=True)
    assert continued and same(cut, whole)


def test_resume_of_a_finished_run_changes_nothing(small_dataset: str) -> None:
    run = go(small_dataset)
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in run.path.rglob("*") if p.is_file()}
    _, continued = resume(run.path, quiet=True)  # its algorithm need not be given to find that out
    assert not continued
    assert before == {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in run.path.rglob("*") if p.is_file()}


@pytest.mark.parametrize("how", ["checkpoints", "all but the link"])
def test_a_run_whose_checkpoints_are_gone_is_not_trained_again_unasked(small_dataset: str, how: str) -> None:
    run = go(small_dataset)
    lines = {name: (run.path / name).read_bytes() for name in (*FILES, "timing.jsonl")}
    if how == "checkpoints":
        shutil.rmtree(run.checkpoints.directory)
    else:
        for step in run.checkpoints.steps():
            shutil.rmtree(run.checkpoints.path(step))
    with pytest.raises(RunError, match=r"expected a checkpoint, since the run was at step 40, got none .* --restart"):
        resume(run.path, algorithm=MINE, quiet=True)
    assert lines == {name: (run.path / name).read_bytes() for name in lines}
    again, continued = resume(run.path, algorithm=MINE, restart=True, quiet=True)
    assert continued and same(again, go(small_dataset, "other"))
    assert all((run.path / name.replace(".", ".before-1.")).read_bytes() == old for name, old in lines.items())
    with pytest.raises(UserError, match="restart: expected a run whose checkpoints are gone, run has one of step 40"):
        resume(run.path, algorithm=MINE, restart=True)


def test_a_second_restart_keeps_the_lines_of_both(small_dataset: str) -> None:
    run = go(small_dataset)
    for _ in range(2):
        shutil.rmtree(run.checkpoints.directory)
        resume(run.path, algorithm=MINE, restart=True, quiet=True)
    assert [path.name for path in sorted(run.path.glob("metrics*"))] == [
        "metrics.before-1.jsonl",
        "metrics.before-2.jsonl",
        "metrics.jsonl",
    ]


def test_a_run_that_had_not_begun_needs_no_checkpoint(small_dataset: str) -> None:
    run = go(small_dataset, steps=0)
    shutil.rmtree(run.checkpoints.directory)
    assert resume(run.path, algorithm=MINE, quiet=True)[1] and run.checkpoints.last() == 0


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_finished_run_with_a_damaged_checkpoint_is_not_called_finished(small_dataset: str, file: str) -> None:
    run = go(small_dataset)
    damaged = run.checkpoints.path(40) / file
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=rf"step_40.{file}.*the checkpoint of step 38 is another one to try"):
        resume(run.path, quiet=True)


def test_a_finished_run_with_a_damaged_replay_or_log_is_not_called_finished() -> None:
    small = {"steps": 10, "batch_size": 4, "hidden_sizes": (4,), "warmup_steps": 2, "eval_episodes": 0}
    run = herdbook.train("dqn", env="CartPole-v1", run_dir="run", replay_steps=20, quiet=True, **small)
    assert resume(run.path)[1] is False
    lines = (run.path / "metrics.jsonl").read_bytes()
    (run.path / "metrics.jsonl").write_bytes(lines[:20])
    with pytest.raises(RunError, match="expected at least"):
        resume(run.path)
    (run.path / "metrics.jsonl").write_bytes(lines)
    (run.path / "checkpoints" / "replay_10" / "tensors.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"replay_10.tensors.safetensors: truncated or corrupt"):
        resume(run.path)


def test_resume_extends(small_dataset: str) -> None:
    cadence = {"log_every": 5, "evaluate_every": 20, "checkpoint_every": 10}
    whole = go(small_dataset, "whole", steps=80, **cadence)
    go(small_dataset, "part", **cadence)
    part, continued = resume("part", steps=80, algorithm=MINE, quiet=True)
    assert continued and same(part, whole) and part.options["steps"] == 80
    assert not resume("part", quiet=True)[1]
    with pytest.raises(UserError, match="at least 80"):
        resume("part", steps=60)


def test_a_dataset_that_changed_is_refused(small_dataset: str) -> None:
    run = go(small_dataset)
    with pytest.raises(RunError, match="dataset has changed"):
        resume(run.path, steps=60, algorithm=MINE, dataset=load_dataset(small_dataset).select([0, 1, 2]))
    assert Run(run.path).options["steps"] == 40


def test_a_checkpoint_of_another_algorithm_is_refused(small_dataset: str) -> None:
    run = herdbook.train("td3_bc", dataset=small_dataset, steps=2, run_dir="run", eval_episodes=0, quiet=True)
    for call in (lambda: resume(run.path, steps=4, algorithm="iql"), lambda: herdbook.load(run.path, "iql")):
        with pytest.raises(RunError, match=r"expected a run of iql, got a run of td3_bc"):
            call()
    record = json.loads((run.path / "config.json").read_text()) | {"algorithm": "bc"}
    (run.path / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="no field"):
        resume(run.path, steps=4)


def test_a_foreign_checkpoint_in_a_run_is_refused(small_dataset: str) -> None:
    options: dict = {"dataset": small_dataset, "steps": 2, "eval_episodes": 0, "quiet": True}
    run, other = (herdbook.train(name, run_dir=name, **options) for name in ("td3_bc", "iql"))
    for step in run.checkpoints.steps():
        run.checkpoints.path(step).rename(run.path / f"moved_{step}")
        other.checkpoints.path(step).rename(run.checkpoints.path(step))
    with pytest.raises(RunError, match=r"expected a checkpoint of td3_bc with seeds \[0\], got iql"):
        resume(run.path, steps=4, quiet=True)
    with pytest.raises(RunError, match=r"expected a checkpoint of td3_bc, got one of iql"):
        herdbook.load(run.path)


@pytest.mark.parametrize("how", ["lost", "dereferenced"])
def test_a_copy_without_the_link_to_the_last_checkpoint_loses_nothing(small_dataset: str, how: str) -> None:
    run, whole = go(small_dataset), go(small_dataset, "whole", steps=60)
    link = run.path / "checkpoints" / "last"
    link.unlink()
    if how == "dereferenced":
        shutil.copytree(run.checkpoints.path(40), link)
    assert herdbook.load(run.path, MINE) is not None
    again, continued = resume(run.path, steps=60, algorithm=MINE, quiet=True)
    assert continued and link.is_symlink() and again.checkpoints.last() == 60
    kept = [line for line in whole.metrics() if line["step"] <= 40]
    assert [line for line in again.metrics() if line["step"] <= 40][: len(kept)] == kept
    assert torch.equal(again.checkpoints.load()["state"]["weights"], whole.checkpoints.load()["state"]["weights"])


def test_a_run_from_another_kind_of_device_goes_on_with_other_draws(small_dataset: str) -> None:
    """A CUDA generator's state has 16 bytes; the run must not fail on it, and go on the same way every time."""
    run = go(small_dataset)
    state = run.checkpoints.load()
    state["generators"] = [torch.zeros(16, dtype=torch.uint8) for _ in state["generators"]]
    run.checkpoints.save(40, state)
    shutil.copytree(run.path, "twin", symlinks=True)
    one, two = (resume(path, steps=44, algorithm=MINE, quiet=True)[0] for path in (run.path, "twin"))
    assert same(one, two) and one.checkpoints.last() == 44


def test_a_checkpoint_of_another_shape_is_refused(small_dataset: str) -> None:
    run = herdbook.train("td3_bc", dataset=small_dataset, steps=2, run_dir="run", eval_episodes=0, quiet=True)
    record = json.loads((run.path / "config.json").read_text())
    record["config"]["hidden_sizes"] = [8]
    (run.path / "config.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match="does not fit"):
        resume(run.path, steps=4, quiet=True)


def test_a_seed_that_is_not_finite_stops_and_the_others_go_on(
    small_dataset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cadence = {"log_every": 4, "evaluate_every": 10, "checkpoint_every": 5}
    run = go(small_dataset, fail_seed=1, fail_step=18, quiet=False, **cadence)
    assert "seed 1 stops at step 20: loss/clone is nan" in capsys.readouterr().out
    assert run.checkpoints.steps() == [15, 35, 40]  # 15 is the last good one of seed 1
    last = [line for line in run.metrics() if line["seed"] == 1][-1]
    assert last["step"] == 20 and last["loss/clone"] is None and last["stopped"] == "loss/clone is nan"
    assert [line["step"] for line in run.metrics() if line["seed"] == 0][-1] == 40
    assert [line["step"] for line in run.evaluations() if line["seed"] == 1] == [10]
    clean = go(small_dataset, "clean", **cadence)
    kept = [line for line in run.metrics() if line["seed"] == 0]
    assert kept == [line for line in clean.metrics() if line["seed"] == 0]
    expected = run.checkpoints.load(15)["state"]["weights"][1]
    observation = np.array([1.0, 0.5, -2.0], dtype=np.float32)
    action = herdbook.load(run.path, MINE, seed=1).act(observation)
    assert action == pytest.approx(2 * float((expected @ torch.from_numpy(observation)).clamp(-1, 1)), abs=1e-6)


@pytest.mark.parametrize("log_every", [4, 40])
@pytest.mark.parametrize("fail_step", [7, 10])
def test_a_seed_whose_actions_are_not_finite_stops_and_the_others_go_on(
    small_dataset: str, fail_step: int, log_every: int
) -> None:
    """Evaluation, at step 10, may come before the next look at the losses, or right after the update that broke it."""
    cadence = {"log_every": log_every, "evaluate_every": 10, "checkpoint_every": 5}
    run = go(small_dataset, fail_seed=1, fail_step=fail_step, fail_weights=True, **cadence)
    assert [line["step"] for line in run.evaluations() if line["seed"] == 0] == [10, 20, 30, 40]
    assert not [line for line in run.evaluations() if line["seed"] == 1]
    stopped = run.checkpoints.load()["stopped"]
    assert stopped.keys() == {"1"}
    assert stopped["1"]["checkpoint"] == (5 if fail_step == 10 else 0)  # the last that a later finite loss proved
    assert herdbook.load(run.path, MINE, seed=1).act(np.zeros(3, dtype=np.float32)) == pytest.approx(0)
    with pytest.raises(RunFailed, match="no seed is left: seed 1: the policy gave an action that is not finite"):
        go(small_dataset, "r2", seeds=(1,), fail_seed=1, fail_step=10, fail_weights=True, **cadence)


def test_a_run_whose_seeds_all_stop_fails_and_keeps_a_good_checkpoint(small_dataset: str) -> None:
    with pytest.raises(RunFailed, match=r"no seed is left: seed 0: loss/clone is nan at step 20"):
        go(small_dataset, seeds=(0,), fail_seed=0, fail_step=18, log_every=20, checkpoint_every=5)
    assert Run("run").checkpoints.last() == 15  # the checkpoint at 20 was not written: losses are checked before


def test_full_disk_while_a_checkpoint_is_written(small_dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 30:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    whole = go(small_dataset, "whole")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFailed, match="No space left on device"):
        go(small_dataset, "cut")
    monkeypatch.setattr(os, "fsync", fsync)
    run = Run("cut")
    assert run.checkpoints.load()["step"] == run.checkpoints.last() > 0
    assert not list((run.path / "checkpoints").glob(".step*"))
    assert same(resume("cut", algorithm=MINE, quiet=True)[0], whole)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
def test_full_disk_while_a_line_is_written(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    file = JSONLines(tmp_path / "metrics.jsonl")
    with pytest.raises(RunFailed, match=r"metrics.jsonl: cannot be written: No space left on device"):
        file.write({"step": 1})
    file.close()  # nothing is left over that would fail now


def test_full_disk_while_a_run_is_made_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: object, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(runs, "_write_all", full)
        with pytest.raises(RunError, match="cannot be made: No space left on device"):
            create_run(tmp_path / "r", {"algorithm": "bc", "seeds": [0], "run": {}})
    assert create_run(tmp_path / "r", {"algorithm": "bc", "seeds": [0], "run": {}}).seeds == (0,)


def test_a_directory_that_holds_a_run_is_refused(small_dataset: str) -> None:
    run = go(small_dataset)
    before = (run.path / "metrics.jsonl").read_bytes()
    with pytest.raises(RunError, match=r"already holds a run.*herdbook resume"):
        go(small_dataset)
    assert (run.path / "metrics.jsonl").read_bytes() == before


def test_nothing_is_written_for_a_run_that_cannot_begin(small_dataset: str) -> None:
    with pytest.raises(UserError, match="expected discrete actions.*cql"):
        herdbook.train("discrete_cql", dataset=small_dataset, steps=1, run_dir="run")
    with pytest.raises(UserError, match="unknown environment"):
        go(small_dataset, env="Pendulum-v99")
    assert not Path("run").exists()


def test_two_processes_cannot_write_one_run(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(RunError, match="another process"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_metrics_shortened_by_hand_are_noticed(small_dataset: str) -> None:
    run = go(small_dataset)
    (run.path / "metrics.jsonl").write_text("")
    with pytest.raises(RunError, match=r"metrics.jsonl: expected at least \d+ bytes"):
        resume(run.path, steps=60, algorithm=MINE, quiet=True)


def test_a_module_named_by_a_run_directory_is_never_imported(small_dataset: str) -> None:
    run = go(small_dataset, steps=2)
    record = json.loads((run.path / "config.json").read_text())
    record["algorithm"] = "stranger:Code"
    record["environment"] = {"id": "stranger:make", "kwargs": {}, "max_episode_steps": None}
    (run.path / "config.json").write_text(json.dumps(record))
    Path("stranger.py").write_text("raise SystemExit('imported')")
    calls = (lambda: herdbook.load("run"), lambda: evaluate_run("run"), lambda: resume("run", steps=4))
    for call in calls:
        with pytest.raises(UserError, match=r"is code.*not imported"):
            call()


def clipped(small_dataset: str) -> Episodes:
    """The small dataset, recorded through a wrapper of Gymnasium's that changes its rewards."""
    env = gymnasium.wrappers.ClipReward(gymnasium.make("Pendulum-v1", max_episode_steps=20), -0.5, 0.5)
    assert env.spec is not None
    return dataclasses.replace(load_dataset(small_dataset), environment=EnvironmentSpec.from_gymnasium(env.spec))


def test_a_run_is_evaluated_in_the_environment_it_was_trained_in_wrappers_included(small_dataset: str) -> None:
    run = go(clipped(small_dataset), steps=4)
    trained = [line["returns"] for line in run.evaluations() if line["step"] == 4]
    again = evaluate_run(run.path, episodes=2, seed=10_000, algorithm=MINE)
    assert [line["returns"] for line in again["seeds"]] == trained
    assert min(min(returns) for returns in trained) >= -10  # 20 steps of at least −0.5
    record = json.loads((run.path / "config.json").read_text())
    record["environment"]["gymnasium"]["additional_wrappers"][0]["entry_point"] = "stranger:Wrapper"
    (run.path / "config.json").write_text(json.dumps(record))
    with pytest.raises(EnvironmentUnavailable, match=r"is code, stranger:Wrapper; .* not imported"):
        evaluate_run(run.path, episodes=2, algorithm=MINE)


def test_code_that_a_dataset_names_is_not_run_and_training_goes_on(
    small_dataset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("stranger.py").write_text("raise SystemExit('imported')")
    for spec in (
        EnvironmentSpec(id="stranger:make"),
        EnvironmentSpec(id="Own-v0", gymnasium_json='{"id": "Own-v0", "entry_point": "stranger:Env"}'),
    ):
        episodes = dataclasses.replace(load_dataset(small_dataset), environment=spec)
        run = go(episodes, f"run-{spec.id}", steps=2, quiet=False)
        assert run.checkpoints.last() == 2 and not run.evaluations()
        told = capsys.readouterr().out
        assert "training goes on without evaluation" in told and "not imported" in told and "--env" in told


def test_an_environment_that_cannot_be_made_does_not_stop_training(
    small_dataset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    class Moody(gymnasium.Env):
        def __init__(self) -> None:
            raise RuntimeError("not today")

    gymnasium.register("Moody-v0", entry_point=Moody)
    episodes = dataclasses.replace(load_dataset(small_dataset), environment=EnvironmentSpec(id="Moody-v0"))
    try:
        run = go(episodes, steps=2, quiet=False)
    finally:
        gymnasium.registry.pop("Moody-v0")
    assert run.checkpoints.last() == 2 and not run.evaluations()
    assert "without evaluation: cannot make environment Moody-v0: RuntimeError: not today" in capsys.readouterr().out


def test_a_run_is_not_resumed_in_another_environment(small_dataset: str) -> None:
    run = go(small_dataset, steps=4)
    before = (run.path / "evaluations.jsonl").read_bytes()
    for env in (EnvironmentSpec(id="Pendulum-v1"), "user_code:make_pendulum"):  # the data's has 20 steps, not 200
        with pytest.raises(RunError, match=r"expected the environment that the run was begun with.*herdbook eval"):
            resume(run.path, steps=8, algorithm=MINE, env=env, quiet=True)
    assert (run.path / "evaluations.jsonl").read_bytes() == before


def test_arguments_that_json_changes_are_still_the_same_environment(small_dataset: str) -> None:
    """A tuple comes back as a list."""
    Path("tuples.py").write_text(
        "import gymnasium\n\ndef make(limits=(3, 4)):\n"
        "    return gymnasium.make('Pendulum-v1', max_episode_steps=limits[0])\n"
    )
    given = {"env": "tuples:make", "env_kwargs": {"limits": (5, 6)}}
    run = go(small_dataset, steps=4, **given)
    again, continued = resume(run.path, steps=8, algorithm=MINE, env="tuples:make", quiet=True)
    assert continued and again.evaluations()[-1]["lengths"] == [5, 5]


def test_reference_scores_belong_to_the_recorded_environment(small_dataset: str) -> None:
    episodes = dataclasses.replace(
        load_dataset(small_dataset), reference_scores=ReferenceScores(-200.0, 0.0, "our own")
    )
    import user_code

    assert go(episodes, "a", steps=2).evaluations()[-1]["normalized_score"] is not None
    for number, changes in enumerate(({"env": user_code.make_pendulum}, {"env_kwargs": {"g": 5.0}})):
        run = go(episodes, f"b{number}", steps=2, **changes)
        assert run.evaluations()[-1]["normalized_score"] is None and run.config["references"] is None
    assert evaluate_run("a", episodes=1, algorithm=MINE)["references"] is not None
    assert evaluate_run("a", episodes=1, algorithm=MINE, env_kwargs={"g": 5.0})["references"] is None


def test_load_gives_the_policy_that_was_evaluated(small_dataset: str) -> None:
    import gymnasium

    run = go(small_dataset)
    actor = herdbook.load(run.path, MINE, seed=1)
    env = gymnasium.make("Pendulum-v1", max_episode_steps=20)
    observation, _ = env.reset(seed=10_000)
    total, ended = 0.0, False
    actor.reset()
    while not ended:
        action = actor.act(observation)
        assert isinstance(action, np.ndarray) and action.shape == (1,)
        observation, reward, terminated, truncated, _ = env.step(action)
        total, ended = total + float(reward), terminated or truncated
    line = next(x for x in run.evaluations() if (x["step"], x["seed"]) == (40, 1))
    assert total == pytest.approx(line["returns"][0], rel=1e-5)
    results = evaluate_run(run.path, episodes=2, seed=10_000, algorithm=MINE)
    assert results["seeds"][1]["returns"] == line["returns"] and results["seeds"][1]["step"] == 40
    with pytest.raises(RunError, match="there is no seed 7; it has seeds 0, 1"):
        herdbook.load(run.path, MINE, seed=7)
    with pytest.raises(CheckpointError, match="no checkpoint of step 7"):
        herdbook.load(run.path, MINE, step=7)
    with pytest.raises(RunError, match="no run here"):
        herdbook.load("elsewhere")


def test_a_users_class_config_and_environment_serve_in_python(small_dataset: str) -> None:
    import user_code

    episodes = load_dataset(small_dataset)
    options: dict = {"dataset": episodes, "steps": 4, "eval_episodes": 1, "quiet": True, "run_dir": "run"}
    config = user_code.MineConfig(lr=0.2)
    run = herdbook.train(user_code.Mine, config=config, env=lambda: user_code.make_pendulum(7), **options)
    assert run.config["config"]["lr"] == 0.2
    assert run.evaluations()[-1]["lengths"] == [7]
    with pytest.raises(UserError, match="is code"):
        resume(run.path, steps=6, algorithm=user_code.Mine, dataset=episodes, quiet=True)
    env = lambda: user_code.make_pendulum(7)  # noqa: E731
    again, _ = resume(run.path, steps=6, algorithm=user_code.Mine, dataset=episodes, env=env, quiet=True)
    assert again.evaluations()[-1]["lengths"] == [7]
    assert evaluate_run(run.path, episodes=1, algorithm=user_code.Mine, env=env)["seeds"][0]["lengths"] == [7]


def test_a_users_own_network_must_be_given_again(small_dataset: str) -> None:
    class Actor(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 1)

        def forward(self, observations: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.layer(observations))

    options: dict = {"dataset": small_dataset, "steps": 2, "eval_episodes": 0, "quiet": True}
    run = herdbook.train("td3_bc", networks={"actor": Actor}, run_dir="run", **options)
    for call in (lambda: resume(run.path, steps=3), lambda: herdbook.load(run.path)):
        with pytest.raises(UserError, match=r"expected networks= for actor, as the run was begun with, got none"):
            call()
    resume(run.path, steps=3, networks={"actor": Actor}, quiet=True)
    assert herdbook.load(run.path, networks={"actor": Actor}).act(np.zeros(3)).shape == (1,)


def test_a_dataset_whose_environment_cannot_be_made_still_trains(
    small_dataset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    from herdbook.core.environments import EnvironmentSpec

    episodes = replace(load_dataset(small_dataset), environment=EnvironmentSpec(id="Gone-v0"))
    run = go(episodes, quiet=False)  # type: ignore[arg-type]
    assert "training goes on without evaluation" in capsys.readouterr().out
    assert run.evaluations() == [] and run.checkpoints.last() == 40
    with pytest.raises(ValueError, match="Gone-v0"):
        evaluate_run(run.path, algorithm=MINE)


def test_json_lines_hold_no_nan(tmp_path: Path) -> None:
    file = JSONLines(tmp_path / "x.jsonl")
    file.write({"a": math.nan, "b": [math.inf, 1], "c": np.float32(0.5), "d": np.arange(2)})
    file.close()
    assert json.loads((tmp_path / "x.jsonl").read_text()) == {"a": None, "b": [None, 1], "c": 0.5, "d": [0, 1]}
    assert to_json(Path("x")) == "x"


def test_a_corrupt_config_is_named(tmp_path: Path) -> None:
    create_run(tmp_path / "run", {"algorithm": "cql", "seeds": [0], "run": {}})
    (tmp_path / "run" / "config.json").write_text('{"algorithm": ')
    with pytest.raises(RunError, match=r"config\.json: truncated or corrupt"):
        Run(tmp_path / "run")


def test_infinite_config_values_survive(small_dataset: str) -> None:
    import user_code

    run = go(small_dataset, steps=2, pause=0.0, fail_step=3)
    config = user_code.MineConfig(lr=math.inf)
    assert config_from_values(user_code.MineConfig, json.loads(json.dumps(config_values(config)))) == config
    assert config_from_values(user_code.MineConfig, run.config["config"]) == user_code.MineConfig(fail_step=3)


def test_iqls_actor_decays_over_the_run_unless_told_otherwise(small_dataset: str) -> None:
    from herdbook.experiments.train import train

    def decay(name: str, config: IQLConfig) -> int:
        run = train(config, dataset=small_dataset, steps=3, eval_episodes=0, run_dir=name, quiet=True)
        return int(run.config["config"]["actor_decay_updates"])

    assert decay("whole", IQLConfig(hidden_sizes=(4,))) == 3
    assert decay("longer", IQLConfig(hidden_sizes=(4,), actor_decay_updates=100)) == 100


def test_an_extended_run_goes_on_training_the_policy(
    small_dataset: str, die_at: Callable[[str, int, type, Callable[[], object]], None]
) -> None:
    """IQL's rate of the actor has decayed to 0 at the end of the run; it decays over the new length then."""
    options: dict = {"dataset": small_dataset, "steps": 4, "eval_episodes": 0, "quiet": True, "hidden_sizes": (4,)}
    for name in ("whole", "cut"):
        herdbook.train("iql", run_dir=name, checkpoint_every=1, **options)
    actor = Run("whole").checkpoints.load()["state"]["online"]["actor"]
    whole, _ = resume("whole", steps=8, quiet=True)
    assert whole.config["config"]["actor_decay_updates"] == whole.options["steps"] == 8
    after = whole.checkpoints.load()["state"]["online"]["actor"]
    assert not any(torch.equal(after[key], value) for key, value in actor.items())
    die_at("update", 3, IQL, lambda: resume("cut", steps=8, quiet=True))
    cut, continued = resume("cut", quiet=True)
    assert continued and equal(cut.checkpoints.load()["state"], whole.checkpoints.load()["state"])


def test_schedules_that_last_for_the_run_follow_its_length() -> None:
    def lengths(config: Config, before: int, steps: int) -> tuple[dict[str, object], int]:
        new, notices = with_length(config, before, steps)
        changed = {f.name for f in dataclasses.fields(new) if getattr(new, f.name) != getattr(config, f.name)}
        return {name: getattr(new, name) for name in changed}, len(notices)

    assert lengths(IQLConfig().for_run(10), 10, 30) == ({"actor_decay_updates": 30}, 1)
    assert lengths(IQLConfig(actor_decay_updates=7).for_run(10), 10, 30) == ({}, 1)
    assert lengths(MATD3BCConfig(decay_lr=True).for_run(10), 10, 30) == ({"decay_updates": 30}, 1)
    assert lengths(SACConfig(decay_lr=True).for_run(10), 10, 30) == ({"decay_steps": 30}, 1)
    assert lengths(SACConfig(target_entropy=3.0), 10, 30) == ({}, 0)  # None by default, and no schedule
    both = DQNConfig(decay_lr=True, prioritised=True, warmup_steps=2, updates_per_step=0.5).for_run(10)
    assert lengths(both, 10, 30) == ({"decay_steps": 30, "importance_updates": 14}, 2)
