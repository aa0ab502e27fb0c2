"""A run of any kind that is killed at any rename in its directory is resumed, and ends like one that was not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sameness import FILES, equal

import herdbook
from herdbook.core.runs import Run
from herdbook.experiments.collect import collect
from herdbook.experiments.train import resume

SPREAD: dict[str, Any] = {"env": "mpe2/simple_spread_v3", "env_kwargs": {"N": 2, "max_cycles": 5}}
TINY: dict[str, Any] = {"hidden_sizes": (4,), "seeds": (0, 1), "eval_episodes": 1, "quiet": True}
CADENCE: dict[str, Any] = {"log_every": 5, "evaluate_every": 20, "checkpoint_every": 10}
OFFLINE: dict[str, Any] = {"steps": 20, "batch_size": 4}
JOINT: dict[str, Any] = {**SPREAD, "steps": 10, "batch_size": 2}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "offline": ("td3_bc", {**OFFLINE, "evaluate_every": 10}),
    "offline, no steps": ("td3_bc", {**OFFLINE, "steps": 0}),
    "online": (
        "dqn",
        {
            "env": "CartPole-v1",
            "steps": 10,
            "batch_size": 4,
            "warmup_steps": 5,
            "replay_steps": 50,
            "prioritised": True,
        },
    ),
    "on-policy": ("ppo", {"env": "CartPole-v1", "steps": 10, "rollout_steps": 5, "num_envs": 2}),
    "on-policy, whole episodes": ("reinforce", {"env": "CartPole-v1", "steps": 10, "episodes_per_update": 1}),
    "joint": ("vdn", {**JOINT, "warmup_episodes": 1, "replay_steps": 50, "num_envs": 2}),
    "joint, beside others": (
        "vdn",
        {**JOINT, "warmup_episodes": 1, "replay_steps": 50, "learn": "agent_0", "others": "others"},
    ),
    "joint, offline": ("matd3_bc", {**JOINT, "dataset": "tests/spread/random-v0"}),
    "fine-tuned": ("td3_bc", {**OFFLINE, "steps": 10, "online_steps": 10, "evaluate_every": 10}),
    "fine-tuned, no offline steps": ("iql", {**OFFLINE, "steps": 0, "online_steps": 10}),
}


@pytest.fixture
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The options of a kind of run, and its data."""
    algorithm, options = RUNS[request.param]
    if algorithm in ("td3_bc", "iql"):
        options = {**options, "dataset": request.getfixturevalue("small_dataset")}
    if algorithm == "matd3_bc":
        request.getfixturevalue("minari_root")
        spread = {**SPREAD, "env_kwargs": {**SPREAD["env_kwargs"], "continuous_actions": True}}
        collect("random", out="tests/spread/random-v0", episodes=4, **spread)
        options = {**options, **spread}
    if "others" in options:
        herdbook.train("vdn", **TINY, **SPREAD, steps=0, run_dir="others", warmup_episodes=1, replay_steps=50)
    return {"algorithm": algorithm, **TINY, **CADENCE, **options}


@pytest.mark.parametrize("options", RUNS, indirect=True)
def test_a_run_killed_at_any_rename_resumes_to_the_bit(options: dict[str, Any], at_every_rename: Any) -> None:
    copies = at_every_rename(Path("run"), lambda: herdbook.train(**options, run_dir="run"))
    checkpoints = 1 + (options["steps"] + options.get("online_steps", 0)) // 10
    assert len(copies) >= 3 * checkpoints
    all_end_as(Run("run"), copies, lambda path: resume(path, quiet=True))


@pytest.mark.parametrize("options", ["online", "fine-tuned"], indirect=True)
def test_a_resume_killed_at_any_rename_resumes_to_the_bit(options: dict[str, Any], at_every_rename: Any) -> None:
    """The second kill meets what the first one left, in a process of the same number, as containers have."""
    copies = at_every_rename(Path("run"), lambda: herdbook.train(**options, run_dir="run"))
    path = next(path for path in copies if (path / "checkpoints" / "step_10").is_dir())  # but `last` is step 0
    again = at_every_rename(path, lambda: resume(path, quiet=True))
    all_end_as(Run("run"), again, lambda path: resume(path, quiet=True))


def all_end_as(whole: Run, copies: list[Path], go_on: Callable[[Path], object]) -> None:
    """Every copy goes on to lines and a last checkpoint that are equal to those of the whole run."""
    for path in copies:
        go_on(path)
        assert Run(path).options == whole.options, path
        for name in FILES:
            assert (path / name).read_bytes() == (whole.path / name).read_bytes(), path
        assert equal(last_state(Run(path)), last_state(whole)), path


def last_state(run: Run) -> dict[str, Any]:
    """The last checkpoint with its replay, whose name is another where the step was written twice."""
    state = run.checkpoints.load()
    return {**state, "replay": run.checkpoints.load_replay(state) if "replay" in state else None}
