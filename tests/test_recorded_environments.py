"""The environment of a run or a dataset, named again: its arguments, time limit and wrappers are kept."""

import copy
import dataclasses
import functools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import WrapperSpec

import herdbook
from herdbook.core.environments import EnvironmentSpec, EnvironmentUnavailable, describe_environment, make_environment
from herdbook.core.runs import Run
from herdbook.datasets.load import load_dataset
from herdbook.experiments.collect import collect
from herdbook.experiments.environments import as_recorded
from herdbook.experiments.evaluate import evaluate_run
from herdbook.experiments.train import resume
from herdbook.experiments.video import record

PAID = '''
"""An environment of the user: each step pays `pay`, and an episode is cut after `limit` steps."""
import gymnasium
import numpy as np


class Paid(gymnasium.Env):
    metadata = {"render_modes": ["rgb_array"]}
    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, pay=1.0, limit=8, render_mode=None):
        self.pay, self.limit, self.render_mode = pay, limit, render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(2, np.float32), self.pay, False, self.steps >= self.limit, {}

    def render(self):
        return np.zeros((8, 8, 3), np.uint8)


def make(**arguments):
    return Paid(**arguments)


gymnasium.register("Paid-v0", Paid, max_episode_steps=3)
'''
SMALL: dict[str, Any] = {"steps": 16, "eval_episodes": 1, "quiet": True, "seeds": (0,), "hidden_sizes": (8,)}


@pytest.fixture
def paid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The name of the user's module, which is not imported yet."""
    (tmp_path / "paid_envs.py").write_text(PAID)
    monkeypatch.syspath_prepend(tmp_path)
    yield "paid_envs"
    sys.modules.pop("paid_envs", None)
    gymnasium.registry.pop("Paid-v0", None)


@pytest.fixture
def run(paid: str) -> Run:
    arguments = {"pay": 5.0, "limit": 4}
    return herdbook.train("dqn", env=f"{paid}:make", env_kwargs=arguments, run_dir="run", **SMALL)


def returned(run: Run, **chosen: Any) -> tuple[float, int]:
    """Mean return and length of an evaluation."""
    (line,) = evaluate_run(run.path, episodes=2, **chosen)["seeds"]
    return line["return_mean"], line["lengths"][0]


def test_an_evaluation_keeps_the_arguments_of_the_run(run: Run, paid: str) -> None:
    assert returned(run, env=f"{paid}:make") == (20.0, 4)
    assert returned(run, env=f"{paid}:make", env_kwargs={"pay": 2.0}) == (8.0, 4)
    assert returned(run, env=f"{paid}:Paid") == (8.0, 8)  # another environment


def test_a_callable_keeps_the_arguments_of_the_run_too(run: Run, paid: str) -> None:
    make = sys.modules[paid].make
    assert returned(run, env=make) == (20.0, 4)
    assert returned(run, env=functools.partial(make, limit=2)) == (10.0, 2)
    recorded = EnvironmentSpec(id=f"{paid}:make", kwargs={"pay": 5.0}, max_episode_steps=3)
    limited = as_recorded(make, recorded)
    assert isinstance(limited, EnvironmentSpec) and limited.max_episode_steps == 3


def test_collected_episodes_are_played_and_recorded_with_the_arguments_of_the_run(
    run: Run, paid: str, minari_root: Path
) -> None:
    for number, env in enumerate((f"{paid}:make", sys.modules[paid].make)):
        episodes, _ = collect(run.path, env=env, episodes=2, out=f"mine/paid-v{number}")
        assert episodes.returns().tolist() == [20.0, 20.0]
        read = load_dataset(f"mine/paid-v{number}").environment
        assert read is not None and (read.id, read.kwargs) == (f"{paid}:make", {"pay": 5.0, "limit": 4})


def test_arguments_that_json_cannot_hold_leave_no_name_that_would_make_another_environment(paid: str) -> None:
    make = make_environment(f"{paid}:make") and sys.modules[paid].make
    assert describe_environment(functools.partial(make, pay=np.float64(2.0))) is not None
    assert describe_environment(functools.partial(make, pay=object())) is None
    assert describe_environment(functools.partial(make, 2.0)) is None


def test_a_video_keeps_the_arguments_of_the_run(run: Run, paid: str) -> None:
    frames = record(run.path, "whole.gif", env=f"{paid}:Paid")
    assert record(run.path, "kept.gif", env=f"{paid}:make") == frames - 4  # 4 steps, not 8


def test_resume_keeps_the_arguments_of_the_run(run: Run, paid: str) -> None:
    resume(run.path, steps=20, env=f"{paid}:make", quiet=True)
    assert Run(run.path).evaluations()[-1]["returns"] == [20.0]


def limited_and_clipped() -> EnvironmentSpec:
    """CartPole of 7 steps that pay a half."""
    spec = copy.deepcopy(gymnasium.spec("CartPole-v1"))
    clip = WrapperSpec(
        "ClipReward", "gymnasium.wrappers.transform_reward:ClipReward", {"min_reward": 0.0, "max_reward": 0.5}
    )
    spec.max_episode_steps, spec.additional_wrappers = 7, (clip,)
    return EnvironmentSpec.from_gymnasium(spec)


def test_the_time_limit_and_the_wrappers_are_kept() -> None:
    run = herdbook.train("dqn", env=limited_and_clipped(), run_dir="run", **SMALL)
    assert returned(run, env="CartPole-v1") == (3.5, 7)
    for chosen in ({}, {"env": "CartPole-v1"}):
        steps = 4 + Run(run.path).options["steps"]
        resume(run.path, steps=steps, quiet=True, **chosen)
        assert Run(run.path).evaluations()[-1]["returns"] == [3.5]


def test_a_wrapper_that_is_code_is_refused_and_not_left_out() -> None:
    run = herdbook.train("dqn", env="CartPole-v1", run_dir="run", **SMALL)
    config = json.loads((run.path / "config.json").read_text())
    config["environment"]["gymnasium"]["additional_wrappers"] = [{"name": "W", "entry_point": "own:W", "kwargs": {}}]
    (run.path / "config.json").write_text(json.dumps(config))
    with pytest.raises(EnvironmentUnavailable, match=r"CartPole-v1 is code, own:W.*module:callable that makes it"):
        evaluate_run(run.path, env="CartPole-v1", episodes=1)


def test_the_environment_of_a_dataset_named_again_keeps_its_time_limit(small_dataset: str) -> None:
    """Six episodes of 20 steps; Pendulum-v1 by itself has 200."""
    run = herdbook.train("td3_bc", dataset=small_dataset, env="Pendulum-v1", run_dir="run", **SMALL)
    assert run.evaluations()[-1]["lengths"] == [20]


def test_data_of_a_retired_version_train_and_say_which_version_there_is(
    small_dataset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {"id": "Pendulum-v0", "entry_point": "gymnasium.envs.classic_control:PendulumEnv", "max_episode_steps": 20}
    old = EnvironmentSpec.from_json(json.dumps(known))
    data = dataclasses.replace(load_dataset(small_dataset), environment=old)
    options = {**SMALL, "quiet": False}
    assert not herdbook.train("td3_bc", dataset=data, run_dir="old", **options).evaluations()
    assert "without evaluation: environment Pendulum-v0 is not registered" in capsys.readouterr().out
    run = herdbook.train("td3_bc", dataset=data, env="Pendulum-v1", run_dir="new", **options)
    assert run.evaluations()[-1]["lengths"] == [200]


@pytest.mark.parametrize("name", ["paid_envs:Paid", "paid_envs:Paid-v0"])
def test_code_that_a_file_names_keeps_its_arguments_when_it_is_given(paid: str, name: str) -> None:
    """A registered name whose registration is not there: its class, or the module that registers it."""
    known = {"id": "Paid-v0", "entry_point": "paid_envs:Paid", "kwargs": {"pay": 5.0}, "max_episode_steps": 3}
    recorded = EnvironmentSpec.from_json(json.dumps(known))
    with pytest.raises(EnvironmentUnavailable, match="Paid-v0 is code"):
        as_recorded("Paid-v0", recorded)
    env = make_environment(as_recorded(name, recorded))
    env.reset(seed=0)
    assert [env.step(0)[1:4] for _ in range(3)][-1] == (5.0, False, True)
    known["additional_wrappers"] = [{"name": "W", "entry_point": "own:W", "kwargs": {}}]
    with pytest.raises(EnvironmentUnavailable, match="recorded with the wrappers own:W"):
        as_recorded(name, EnvironmentSpec.from_json(json.dumps(known)))


def test_a_spec_is_taken_as_it_is() -> None:
    given = EnvironmentSpec(id="CartPole-v1")
    assert as_recorded(given, limited_and_clipped()) is given
    assert as_recorded("Pendulum-v1", limited_and_clipped()) == "Pendulum-v1"
