"""Runs that go on otherwise than they began: with other learning rates, or in an environment after offline training."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from sameness import FILES, equal

import herdbook
from herdbook.cli.main import main
from herdbook.core.runs import Run
from herdbook.evaluation.compare import compare
from herdbook.experiments.catalogue import UserError
from herdbook.experiments.train import resume

SMALL: dict[str, Any] = {"batch_size": 4, "hidden_sizes": (4,), "eval_episodes": 1, "quiet": True}
CADENCE: dict[str, Any] = {"log_every": 5, "evaluate_every": 10, "checkpoint_every": 10}


def go(dataset: str, path: str = "run", algorithm: str = "iql", **options: Any) -> Run:
    chosen = {"steps": 20, "seeds": (0, 1), **SMALL, **CADENCE, **options}
    return herdbook.train(algorithm, dataset=dataset, run_dir=path, **chosen)


# --- learning rates -------------------------------------------------------------------------------------------------


def test_a_run_goes_on_with_another_learning_rate(small_dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    go(small_dataset, "run", "td3_bc", critic_lr=1e-3)
    go(small_dataset, "other", "td3_bc", critic_lr=1e-3)
    before = Run("run").config
    assert main(["resume", "run", "--steps", "30", "--set", "critic_lr", "1e-4", "actor_lr", "1e-5"]) == 0
    said = capsys.readouterr().out
    assert "from step 20 on: critic_lr is 0.0001 instead of 0.001" in said
    changed = Run("run").config
    assert changed["changes"] == [
        {"step": 20, "config": {"critic_lr": {"from": 0.001, "to": 0.0001}, "actor_lr": {"from": 0.0003, "to": 1e-05}}}
    ]
    kept = set(before) - {"run", "config"}
    assert {name: before[name] for name in kept} == {name: changed[name] for name in kept}
    resume("other", steps=30, quiet=True)
    ends = [Run(path).checkpoints.load() for path in ("run", "other")]
    assert [end["config"]["critic_lr"] for end in ends] == [1e-4, 1e-3]
    assert not equal(ends[0]["state"]["online"]["critic"], ends[1]["state"]["online"]["critic"])


def test_a_rate_belongs_to_its_network_alone(small_dataset: str) -> None:
    """With a rate of next to nothing, parameters stay as they are."""
    run = go(small_dataset, algorithm="td3_bc")
    before = run.checkpoints.load()["state"]["online"]
    tiny = 1e-30
    after = resume(run.path, steps=30, rates={"critic_lr": tiny}, quiet=True)[0].checkpoints.load()["state"]["online"]
    assert equal(after["critic"], before["critic"]) and not equal(after["actor"], before["actor"])


def test_a_run_killed_after_its_rate_changed_keeps_the_new_one(small_dataset: str, at_every_rename: Any) -> None:
    go(small_dataset)
    copies = at_every_rename(Path("run"), lambda: resume("run", steps=30, rates={"actor_lr": 1e-2}, quiet=True))
    whole = Run("run")
    for path in copies[1:]:  # the first is before config.json is replaced
        resume(path, quiet=True)
        assert equal(Run(path).checkpoints.load(), whole.checkpoints.load())
        assert Run(path).config == whole.config
    assert Run(copies[0]).config.get("changes") is None and not resume(copies[0], quiet=True)[1]


def test_changes_add_up_and_a_restart_forgets_them(small_dataset: str) -> None:
    run = go(small_dataset, actor_lr=1e-3)
    resume("run", steps=30, rates={"actor_lr": 1e-4}, quiet=True)
    resume("run", steps=40, rates={"actor_lr": 1e-5}, quiet=True)
    steps = [(change["step"], change["config"]["actor_lr"]["to"]) for change in Run("run").config["changes"]]
    assert steps == [(20, 1e-4), (30, 1e-5)]
    kept = resume("run", steps=50, rates={"actor_lr": 1e-5}, quiet=True)[0].config["changes"][-1]
    assert (kept["step"], kept["config"]) == (
        40,
        {"actor_decay_updates": {"from": 40, "to": 50}},
    )
    shutil.rmtree(run.checkpoints.directory)
    again = resume("run", restart=True, quiet=True)[0]
    assert again.config["changes"] == [] and again.config["config"]["actor_lr"] == 1e-3
    assert again.config["config"]["actor_decay_updates"] == 50


def test_runs_with_and_without_a_change_share_no_row(small_dataset: str) -> None:
    go(small_dataset, "plain", seeds=(0,), steps=30)
    go(small_dataset, "changed", seeds=(1,))
    resume("changed", steps=30, rates={"actor_lr": 1e-2}, quiet=True)
    rows = compare(["plain", "changed"]).rows
    assert [row.seeds for row in rows] == [(0,), (1,)] and "changes" in rows[1].algorithm


def test_what_cannot_change_is_refused(small_dataset: str) -> None:
    run = go(small_dataset)
    before = (run.path / "config.json").read_bytes()
    for rates, words in (
        ({"hidden_sizes": (8,)}, "set: hidden_sizes cannot change in a run that has begun"),
        ({"batch_size": 8}, "expected a learning rate: actor_lr, critic_lr, value_lr"),
        ({"actor_rl": 1e-3}, "did you mean 'actor_lr'"),
        ({"actor_lr": -1.0}, "expected actor_lr > 0"),
        ({"actor_lr": "fast"}, "set: expected actor_lr as a number, got 'fast'"),
    ):
        with pytest.raises(UserError, match=words):
            resume(run.path, steps=30, rates=rates, quiet=True)
    with pytest.raises(UserError, match="set: expected more steps beside it, run is finished at step 20"):
        resume(run.path, rates={"actor_lr": 1e-3}, quiet=True)
    assert main(["resume", "run", "--steps", "30", "--set", "actor_lr"]) == 2
    assert (run.path / "config.json").read_bytes() == before


# --- fine-tuning of a finished run ----------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["iql", "td3_bc", "cql", "bc", "bcq"])
@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_a_finished_run_is_fine_tuned_like_one_begun_so(
    small_dataset: str, algorithm: str, seeds: tuple[int, ...]
) -> None:
    """Seeds that trained together offline differ from seeds alone by rounding, and by nothing else."""
    own: dict[str, Any] = {"num_actions": 2} if algorithm == "cql" else {}
    online: dict[str, Any] = {"online_steps": 10, "online_noise": 0.2, "num_envs": 2}
    constant = (
        {"actor_decay_updates": 10**9} if algorithm == "iql" else {}
    )  # to tell the offline parts apart by nothing
    begun = go(small_dataset, "begun", algorithm, seeds=seeds, **own, **constant, **online)
    go(small_dataset, "plain", algorithm, seeds=seeds, **own, **constant)
    fine_tuning = {name: value for name, value in online.items() if name != "online_steps"}
    plain, went_on = resume("plain", online_steps=10, fine_tuning=fine_tuning, quiet=True)
    assert went_on and plain.options == {**begun.options, "run_dir": "plain"}
    assert plain.checkpoints.steps() == begun.checkpoints.steps()
    if len(seeds) == 1:
        for name in FILES:
            assert (plain.path / name).read_bytes() == (begun.path / name).read_bytes()
        assert equal(state_of(plain), state_of(begun))
    assert {line["step"] for line in plain.evaluations()} == {10, 20, 30}
    assert resume("plain", online_steps=20, quiet=True)[0].checkpoints.last() == 40
    assert herdbook.load("plain", step=20, seed=seeds[-1]) and herdbook.load("plain", seed=seeds[-1])


def state_of(run: Run) -> dict[str, Any]:
    state = run.checkpoints.load()
    return {**state, "replay": run.checkpoints.load_replay(state)}


def test_seeds_that_trained_together_are_taken_apart(small_dataset: str) -> None:
    run = go(small_dataset, algorithm="td3_bc", seeds=(3, 5))
    together = run.checkpoints.load()["state"]
    resume(run.path, online_steps=10, quiet=True)
    apart = run.checkpoints.load(20)["state"]["seed_by_seed"]
    for index, (seed, one) in enumerate(zip((3, 5), apart, strict=True)):
        assert one["seeds"] == [seed] and one["updates"] == together["updates"]
        for part in ("online", "target"):
            for network, parameters in together[part].items():
                assert equal({k: v[index : index + 1] for k, v in parameters.items()}, one[part][network])


def test_a_decayed_learning_rate_is_constant_again(small_dataset: str) -> None:
    run = go(small_dataset)
    assert run.config["config"]["actor_decay_updates"] == 20
    tuned = resume(run.path, online_steps=10, quiet=True)[0]
    assert tuned.config["config"]["actor_decay_updates"] is None
    assert tuned.config["changes"] == [{"step": 20, "config": {"actor_decay_updates": {"from": 20, "to": None}}}]
    offline, end = (tuned.checkpoints.load(step)["state"]["seed_by_seed"][0]["online"] for step in (20, None))
    assert not equal(offline["actor"], end["actor"])


def test_a_restart_goes_through_both_parts_again(small_dataset: str) -> None:
    run = go(small_dataset)
    resume(run.path, online_steps=10, quiet=True)
    shutil.rmtree(run.checkpoints.directory)
    again = resume(run.path, restart=True, quiet=True)[0]
    assert again.checkpoints.last() == 30 and again.config["config"]["actor_decay_updates"] is None


def test_a_kill_where_fine_tuning_begins_loses_nothing(small_dataset: str, at_every_rename: Any) -> None:
    go(small_dataset)
    copies = at_every_rename(Path("run"), lambda: resume("run", online_steps=10, quiet=True))
    for path in copies:
        resume(path, **({"online_steps": 10} if path == copies[0] else {}), quiet=True)
        assert equal(state_of(Run(path)), state_of(Run("run"))) and Run(path).config == Run("run").config


def test_the_command_fine_tunes(small_dataset: str) -> None:
    go(small_dataset, algorithm="td3_bc")
    assert main(["resume", "run", "--online-steps", "10", "--online-noise", "0.3", "--online-share", "0.5"]) == 0
    options = json.loads(Path("run/config.json").read_text())["run"]
    assert (options["online_steps"], options["online_noise"], options["online_share"]) == (10, 0.3, 0.5)


def test_what_cannot_be_fine_tuned_is_refused(small_dataset: str) -> None:
    run = go(small_dataset, algorithm="td3_bc", steps=10)
    with pytest.raises(UserError, match="online_steps: expected a finished run, run is at step 10 of 30"):
        resume(run.path, steps=30, online_steps=10)
    with pytest.raises(UserError, match="online_noise: expected it only where fine-tuning begins, with online_steps"):
        resume(run.path, steps=30, fine_tuning={"online_noise": 0.1})
    with pytest.raises(UserError, match=r"online_share: expected a number in \[0, 1\], got 2"):
        resume(run.path, online_steps=10, fine_tuning={"online_share": 2.0})
    online = herdbook.train("ppo", env="CartPole-v1", run_dir="online", steps=10, rollout_steps=5, eval_episodes=0)
    with pytest.raises(UserError, match="online_steps: expected 0, all steps of PPO are those of an environment"):
        resume(online.path, online_steps=10)
    assert "online_steps" not in Run("online").config.get("changes", {}) and Run("online").options["online_steps"] == 0
