"""`--max-steps`: the limit of episodes in training, evaluation and collection, for one agent and for many."""

import json
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from pettingzoo import ParallelEnv

from herdbook.cli.main import main
from herdbook.core.runs import Run
from herdbook.datasets.load import load_dataset
from herdbook.experiments.evaluate import evaluate_run
from herdbook.experiments.train import resume, train

TINY: dict[str, Any] = {"quiet": True, "hidden_sizes": (8,), "batch_size": 4, "eval_episodes": 2, "steps": 60}


class Endless(gymnasium.Env[Any, Any]):
    """No episode ends, and no limit is declared."""

    observation_space: Any = spaces.Box(0, 1e9, (1,), np.float32)
    action_space: Any = spaces.Discrete(2)
    render_mode = "rgb_array"

    def __init__(self, render_mode: str | None = None) -> None:
        self.t = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return np.full(1, self.t, np.float32), 1.0, False, False, {}

    def render(self) -> Any:
        return np.full((16, 16, 3), self.t, np.uint8)


class EndlessGame(ParallelEnv):
    metadata: ClassVar[dict[str, Any]] = {"name": "endless_v0"}

    def __init__(self) -> None:
        self.possible_agents = ["a", "b"]

    def observation_space(self, agent: str) -> Any:
        return spaces.Box(0, 1e9, (1,), np.float32)

    def action_space(self, agent: str) -> Any:
        return spaces.Discrete(2)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.t, self.agents = 0, ["a", "b"]
        return dict.fromkeys(self.agents, np.zeros(1, np.float32)), {"a": {}, "b": {}}

    def step(self, actions: dict[str, Any]) -> Any:
        self.t += 1
        both = ("a", "b")
        seen = {agent: np.full(1, self.t, np.float32) for agent in both}
        flags = dict.fromkeys(both, False)
        return seen, dict.fromkeys(both, 0.5), flags, dict(flags), {"a": {}, "b": {}}


@pytest.fixture(autouse=True)
def _module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environments as the module `endless`."""
    (tmp_path / "endless.py").write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(
    ("algorithm", "env", "options"),
    [
        ("dqn", Endless, {"warmup_steps": 10}),
        ("ppo", Endless, {"rollout_steps": 20}),
        ("vdn", EndlessGame, {"num_envs": 2, "warmup_episodes": 2}),
    ],
)
def test_the_limit_holds_in_training_and_evaluation_and_is_recorded(algorithm: str, env: Any, options: Any) -> None:
    run = train(algorithm, env=env, run_dir="run", max_steps=7, **{**TINY, **options})
    assert run.options["max_steps"] == 7
    assert {tuple(line["lengths"]) for line in run.evaluations()} == {(7, 7)}
    assert run.metrics()[-1]["collected/length"] == 7.0
    assert evaluate_run("run", env=env, episodes=2)["seeds"][0]["lengths"] == [7, 7]
    assert evaluate_run("run", env=env, episodes=2, max_steps=4)["seeds"][0]["lengths"] == [4, 4]
    longer, _ = resume("run", steps=90, env=env, quiet=True)
    assert longer.evaluations()[-1]["lengths"] == [7, 7]


def test_an_environments_shorter_limit_still_holds() -> None:
    run = train("dqn", env="CartPole-v1", run_dir="run", max_steps=1_000, **{**TINY, "warmup_steps": 10})
    assert max(run.evaluations()[-1]["lengths"]) <= 500


def test_the_commands_have_the_option(monkeypatch: pytest.MonkeyPatch, minari_root: Path) -> None:
    words = "train dqn --env endless:Endless --max-steps 7 --steps 40 --warmup-steps 10 --run-dir run --eval-episodes 2"
    assert main([*words.split(), "--hidden-sizes", "8"]) == 0
    assert Run("run").evaluations()[-1]["lengths"] == [7, 7]
    there = ["--env", "endless:Endless"]
    assert main(["eval", "run", *there, "--episodes", "2", "--out", "own.json", "--video", "own.gif"]) == 0
    assert main(["eval", "run", *there, "--episodes", "2", "--max-steps", "3", "--out", "mine.json"]) == 0
    lengths = [json.loads(Path(name).read_text())["seeds"][0]["lengths"] for name in ("own.json", "mine.json")]
    assert lengths == [[7, 7], [3, 3]]
    for policy, env in (("run", "Endless"), ("random", "Endless"), ("random", "EndlessGame")):
        out = f"mine/{policy}-{env.lower()}-v0"
        words = f"collect {policy} --env endless:{env} --episodes 2 --max-steps 5 --out {out}"
        assert main(words.split()) == 0
        assert load_dataset(out).lengths().tolist() == [5, 5]


@pytest.mark.parametrize("command", ["eval run", "collect run --episodes 1 --out mine/x-v0"])
def test_a_limit_below_one_is_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*command.split(), "--max-steps", "0"])
    assert "max_steps: expected 1 or more, got 0" in capsys.readouterr().err


def test_an_evaluation_of_cliff_walking_is_as_long_as_the_user_says() -> None:
    run = train("dqn", env="CliffWalking-v1", run_dir="run", max_steps=30, **{**TINY, "warmup_steps": 10})
    assert max(run.evaluations()[-1]["lengths"]) <= 30
