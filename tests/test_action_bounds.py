"""`action_bounds`: learning where a Box of actions has no bounds, and from data that lie slightly outside of them."""

from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest
from gymnasium import spaces

import herdbook
from herdbook.cli.main import main
from herdbook.core.environments import EnvironmentUnavailable
from herdbook.core.random_policy import RandomPolicy
from herdbook.core.types import Spec
from herdbook.datasets.arrays import from_arrays
from herdbook.datasets.episodes import DataError, Episodes
from herdbook.datasets.load import load_dataset
from herdbook.datasets.minari import write_minari
from herdbook.evaluation.evaluate import evaluate
from herdbook.experiments.catalogue import UserError
from herdbook.experiments.collect import collect
from herdbook.experiments.evaluate import evaluate_run
from herdbook.experiments.train import train

TINY: dict[str, Any] = {"quiet": True, "hidden_sizes": (8, 8), "batch_size": 4, "eval_episodes": 2, "steps": 40}


class Free(gymnasium.Env[Any, Any]):
    """The first of two actions is unbounded above, the second lies in [-3, 3]; observations are the largest so far."""

    observation_space: Any = spaces.Box(-9, 99, (2,), np.float32)
    action_space: Any = spaces.Box(np.float32([-5, -3]), np.float32([np.inf, 3]))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.t, self.largest = 0, np.zeros(2, np.float32)
        return self.largest.copy(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t, self.largest = self.t + 1, np.maximum(self.largest, np.abs(action))
        return self.largest.copy(), 0.0, False, self.t == 6, {}


@pytest.fixture
def free_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The environment as the module `free`."""
    (tmp_path / "free.py").write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "free:Free"


@pytest.mark.parametrize("algorithm", ["sac", "td3", "ppo"])
def test_an_unbounded_environment_is_learned_in_within_the_bounds_that_are_given(algorithm: str) -> None:
    options = TINY | ({} if algorithm == "ppo" else {"warmup_steps": 10})
    options = options | ({"rollout_steps": 20} if algorithm == "ppo" else {})
    with pytest.raises(UserError, match=r"expected bounded actions, .*; give bounds with --action-bounds LOW HIGH"):
        train(algorithm, env=Free, run_dir="refused", **options)
    run = train(algorithm, env=Free, run_dir="run", action_bounds=(-2, 4), **options)
    assert run.options["action_bounds"] == [-2, 4]
    assert evaluate_run("run", env=Free, episodes=2)["seeds"][0]["lengths"] == [6, 6]
    played, _ = collect(run.path, env=Free, episodes=3, out=f"mine/{algorithm}-v0", deterministic=False)
    space = played.action_space
    assert space == spaces.Box(np.float32([-5, -3]), np.float32([4, 3]))  # bounds of its own are kept
    assert (played.actions >= space.low).all() and (played.actions <= space.high).all()


def test_random_actions_fill_the_bounds(free_module: str, minari_root: Path) -> None:
    words = ["collect", "random", "--env", free_module, "--episodes", "40"]
    assert main([*words, "--out", "mine/free-v0"]) == 2
    assert main([*words, "--out", "mine/free-v0", "--action-bounds", "-2", "4"]) == 0
    actions = load_dataset("mine/free-v0").actions  # type: ignore[union-attr]  # of one agent
    np.testing.assert_allclose(actions.min(0), [-5, -3], atol=0.3)
    np.testing.assert_allclose(actions.max(0), [4, 3], atol=0.3)


def test_a_bounded_environment_must_still_have_the_bounds_of_the_policy() -> None:
    spec = Spec(spaces.Box(-1, 1, (3,), np.float32), spaces.Box(-1, 1, (1,), np.float32))  # Pendulum's are [-2, 2]
    with pytest.raises(EnvironmentUnavailable, match="expected actions in Box"):
        evaluate(RandomPolicy(spec.action_space), "Pendulum-v1", 1, seed=0, spec=spec)


def _columns(actions: Any) -> tuple[Any, ...]:
    n = len(actions)
    ends = np.arange(n) % 5 == 4
    return np.random.default_rng(0).normal(size=(n, 2)), actions, np.ones(n), ends, np.zeros(n, bool)


SLOPPY = np.float32([[0.5], [1.02], [-1.001], [0], [1], [0.1], [0.2], [0.3], [-1], [0.4]])


def _sloppy(**options: Any) -> Episodes:
    observations, *rest = _columns(SLOPPY)
    return from_arrays(observations, *rest, next_observations=observations + 1, **options)


def test_data_slightly_outside_of_their_bounds_are_clipped_on_request(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DataError, match="give action_bounds or the action_space"):
        _sloppy()
    with pytest.raises(DataError, match=r"clip them with action_bounds \(--action-bounds LOW HIGH\)"):
        _sloppy(action_space=spaces.Box(-1, 1, (1,), np.float32))
    assert not caplog.messages
    for options in ({}, {"action_space": spaces.Box(-1, 1, (1,), np.float32)}):
        data = _sloppy(action_bounds=(-1, 1), **options)
        assert data.action_space == spaces.Box(-1, 1, (1,), np.float32)
        np.testing.assert_array_equal(data.actions, SLOPPY.clip(-1, 1))
        told = "clipped 2 of 10 actions to their bounds (the largest change is 0.02)"
        assert data.transforms == (told,) and caplog.messages.pop() == f"arrays: {told}"


def test_data_without_bounds_take_those_that_are_given(minari_root: Path, caplog: pytest.LogCaptureFixture) -> None:
    unbounded = _sloppy(action_space=spaces.Box(-np.inf, np.inf, (1,), np.float32))
    write_minari(unbounded, "mine/unbounded-v0")
    with pytest.raises(UserError, match="give bounds with --action-bounds LOW HIGH"):
        train("td3_bc", dataset="mine/unbounded-v0", **TINY)
    run = train("td3_bc", dataset="mine/unbounded-v0", run_dir="run", action_bounds=(-2, 2), **TINY)
    assert not [text for text in caplog.messages if "clipped" in text]
    action = herdbook.load(run.path).act(np.zeros(2))
    assert abs(action.item()) <= 2
    clipped = load_dataset("mine/unbounded-v0", action_bounds=(-1, 1))
    assert isinstance(clipped, Episodes) and clipped.actions.max() == 1
    assert "mine/unbounded-v0: clipped 2 of 10 actions" in caplog.text


def test_a_d4rl_file_with_actions_beyond_one_is_read_with_bounds(tmp_path: Path) -> None:
    observations, actions, rewards, terminals, timeouts = _columns(SLOPPY)
    path = tmp_path / "pen-test-v0.hdf5"
    with h5py.File(path, "w") as file:
        columns = {"actions": actions, "rewards": rewards, "terminals": terminals, "timeouts": timeouts}
        for name, values in {"observations": observations, **columns}.items():
            file[name] = values
    with pytest.raises(DataError, match="give action_bounds"):
        load_dataset(path)
    data = load_dataset(path, action_bounds=(-1, 1))
    assert isinstance(data, Episodes) and data.actions.max() == 1


@pytest.mark.parametrize("bounds", [(1, 1), (2, 1), (0, float("inf")), (float("nan"), 1)])
def test_bounds_that_are_none_are_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="action_bounds: expected two finite numbers, the lower one first"):
        train("sac", env=Free, action_bounds=bounds)


def test_discrete_actions_have_no_bounds() -> None:
    with pytest.raises(UserError, match="action_bounds: expected Box actions, got Discrete"):
        train("dqn", env="CartPole-v1", action_bounds=(-1, 1))
