"""Environments by name, recorded and rebuilt; what is said where that is impossible."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from herdbook.core.environments import (
    EnvironmentSpec,
    EnvironmentUnavailable,
    check_reset,
    describe_environment,
    make_environment,
    registered_only,
)
from herdbook.core.joint.environments import make_joint_environment
from herdbook.core.registry import newest_version


class Drifting(gymnasium.Env[Any, Any]):
    """Forgets to put part of its state back at a reset."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,))
    action_space = spaces.Discrete(2)

    def __init__(self, forgetful: bool = True) -> None:
        self.forgetful, self.total = forgetful, 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if not self.forgetful:
            self.total = 0.0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.total += 1
        return np.array([self.total], np.float32), 0.0, False, False, {}


USER_MODULE = """
import gymnasium
def make(env_id="CartPole-v1", **kwargs):
    return gymnasium.make(env_id, **kwargs)
not_callable = 3
def not_an_env():
    return 7
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_envs.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_envs", raising=False)
    return "my_envs"


def test_a_gymnasium_id() -> None:
    env = make_environment("CartPole-v1", max_episode_steps=7)
    assert env.spec is not None
    assert env.spec.max_episode_steps == 7


def test_module_and_callable(user_module: str) -> None:
    env = make_environment(f"{user_module}:make", env_id="Pendulum-v1", g=9.0)
    assert env.unwrapped.g == 9.0  # type: ignore[attr-defined]


def test_a_callable_with_a_time_limit() -> None:
    env = make_environment(Drifting, forgetful=False, max_episode_steps=3)
    env.reset(seed=0)
    assert [env.step(0)[3] for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Hoper-v5", "did you mean 'Hopper-v5'"),
        ("Taxi-v3", "did you mean 'Taxi-v4'"),
        ("my_envs:mak", "did you mean 'make'"),
        ("my_envs:not_callable", "expected a callable"),
        ("my_envs:not_an_env", "expected a gymnasium.Env, got int"),
        ("no_such_module_here:make", "no module 'no_such_module_here'"),
    ],
)
def test_unknown_names_say_what_is_near(user_module: str, name: str, words: str) -> None:
    with pytest.raises(EnvironmentUnavailable, match=words):
        make_environment(name)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("Hopper-v5", "mujoco", "mujoco"),
        ("PointMaze_UMaze-v3", "gymnasium_robotics", "robotics"),
        ("ALE/Pong-v5", "ale_py", "atari"),
        ("Meta-World/MT1", "metaworld", "metaworld"),
    ],
)
def test_a_missing_package_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str, extra: str
) -> None:
    for loaded in [m for m in sys.modules if m.split(".")[0] == package or "envs.mujoco" in m]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EnvironmentUnavailable, match=rf"herdbook\[{extra}\]"):
        make_environment(name)


def test_an_extra_that_is_installed_is_not_asked_for() -> None:
    """Gymnasium says of Hopper-v2 that it needs the old MuJoCo; ours being there, its own words are what helps."""
    with pytest.raises(EnvironmentUnavailable) as told:
        make_environment("Hopper-v2")
    assert "herdbook[mujoco]" not in str(told.value)


def test_a_spec_out_of_a_file_names_no_code() -> None:
    wrapper = {"name": "W", "entry_point": "os:system", "kwargs": {"command": "true"}}
    known = {"id": "Pendulum-v1", "entry_point": "os:system"}
    for spec, words in (
        (EnvironmentSpec(id="os:system", kwargs={"command": "true"}), "is code, os:system"),
        (EnvironmentSpec(id="os:Name-v0"), "is code, os:Name-v0"),
        (EnvironmentSpec(id="Own-v0", gymnasium_json='{"id": "Own-v0", "entry_point": "os:system"}'), "os:system"),
        (
            EnvironmentSpec(id="Pendulum-v1", gymnasium_json=json.dumps(known | {"additional_wrappers": [wrapper]})),
            "os:system",
        ),
    ):
        with pytest.raises(EnvironmentUnavailable, match=words):
            registered_only(spec)
    safe = registered_only(EnvironmentSpec(id="Pendulum-v1", kwargs={"g": 9.0}, gymnasium_json=json.dumps(known)))
    assert make_environment(safe).unwrapped.g == 9.0  # type: ignore[attr-defined]  # the registry's own entry point


def test_a_spec_with_another_time_limit_writes_that_one() -> None:
    recorded = EnvironmentSpec.from_gymnasium(gymnasium.spec("Pendulum-v1"))
    changed = dataclasses.replace(recorded, max_episode_steps=7)
    assert EnvironmentSpec.from_json(changed.to_json()).max_episode_steps == 7


def test_arguments_that_the_environment_refuses() -> None:
    with pytest.raises(EnvironmentUnavailable, match=r"Pendulum-v1 with \{'gravity': 3\}.*gravity"):
        make_environment("Pendulum-v1", gravity=3)


def test_a_recorded_spec_round_trips_and_is_gymnasiums_own_json() -> None:
    env = gymnasium.make("Pendulum-v1", g=9.0, max_episode_steps=50)
    assert env.spec is not None
    spec = EnvironmentSpec.from_gymnasium(env.spec)
    again = EnvironmentSpec.from_json(spec.to_json())
    assert again == spec
    assert gymnasium.envs.registration.EnvSpec.from_json(again.to_json()).kwargs["g"] == 9.0
    rebuilt = make_environment(again)
    assert rebuilt.unwrapped.g == 9.0  # type: ignore[attr-defined]
    assert rebuilt.spec is not None
    assert rebuilt.spec.max_episode_steps == 50


def test_specs_of_other_gymnasium_versions_are_read() -> None:
    known = json.loads(gymnasium.spec("CartPole-v1").to_json()) | {"autoreset": False, "apply_api_compatibility": False}
    assert make_environment(EnvironmentSpec.from_json(json.dumps(known))).observation_space.shape == (4,)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"id": 3}'])
def test_a_spec_without_an_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="with an id"):
        EnvironmentSpec.from_json(text)


def test_what_is_recorded_of_a_name_makes_the_same_environment(user_module: str) -> None:
    spec = describe_environment(f"{user_module}:make", env_id="Pendulum-v1")
    assert spec is not None
    assert make_environment(EnvironmentSpec.from_json(spec.to_json())).action_space.shape == (1,)
    changed = describe_environment("Pendulum-v1", g=3.0)
    assert changed is not None
    rebuilt = make_environment(EnvironmentSpec.from_json(changed.to_json()))
    assert rebuilt.unwrapped.g == 3.0  # type: ignore[attr-defined]
    assert describe_environment(lambda: gymnasium.make("CartPole-v1")) is None


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "Taxi-v4"])
def test_reset_determines_the_state(name: str) -> None:
    assert check_reset(make_environment(name))


def test_reset_that_forgets_state_is_found_out() -> None:
    assert check_reset(Drifting(forgetful=False))
    assert not check_reset(Drifting(forgetful=True))


MUJOCO_WARNING = """
import os, sys
import numpy as np
from herdbook.core.environments import make_environment
env = make_environment("Hopper-v5")
env.reset(seed=0)
env.unwrapped.data.qpos[:] = np.nan
env.step(env.action_space.sample())
"""


def test_mujoco_writes_no_log_into_the_working_directory(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    done = subprocess.run(
        [sys.executable, "-c", MUJOCO_WARNING], cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" in done.stderr + done.stdout  # it did warn: only the file is kept away
    assert list(tmp_path.iterdir()) == []


def test_point_mazes_are_registered_when_named() -> None:
    pytest.importorskip("gymnasium_robotics")
    env = make_environment("PointMaze_UMaze-v3")
    assert isinstance(env.observation_space, spaces.Dict)
    assert check_reset(env)


@pytest.mark.parametrize("name", ["FetchReach-v4", "FrankaKitchen-v1"])
def test_the_robotics_extra_has_a_mujoco_that_its_environments_work_with(name: str) -> None:
    pytest.importorskip("gymnasium_robotics")
    env = make_environment(name)
    env.reset(seed=0)
    env.action_space.seed(0)
    observation, reward, *_ = env.step(env.action_space.sample())
    assert env.observation_space.contains(observation) and np.isfinite(reward)


@pytest.mark.parametrize(
    "name", ["simple spread", "Pendulum", "mpe2.simple_spread_v3", "nowhere.at/all_v0", "Hoper-v5"]
)
@pytest.mark.parametrize("kwargs", [{}, {"g": 3.0}])
def test_an_unknown_name_is_told_with_arguments_and_without(name: str, kwargs: dict[str, Any]) -> None:
    spec = describe_environment(name, **kwargs)
    assert spec is not None and spec.kwargs == kwargs
    make: Any = make_joint_environment if "/" in name else make_environment
    with pytest.raises(EnvironmentUnavailable, match=rf"unknown environment '{name}'"):
        make(spec)


def test_a_name_described_before_it_is_registered_keeps_its_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of packages that register their environments when they are imported."""
    spec = describe_environment("Later-v0", forgetful=False)
    monkeypatch.setitem(gymnasium.registry, "Later-v0", EnvSpec("Later-v0", Drifting, max_episode_steps=3))
    env = make_environment(spec)
    assert env.spec is not None and env.spec.max_episode_steps == 3
    assert not env.unwrapped.forgetful  # type: ignore[attr-defined]


def test_a_module_that_registers_its_environments_takes_arguments(user_module: str, tmp_path: Path) -> None:
    with (tmp_path / "my_envs.py").open("a") as file:
        file.write(
            "\ngymnasium.register('Mine-v0', 'gymnasium.envs.classic_control:PendulumEnv', max_episode_steps=3)\n"
        )
    try:
        env = make_environment(describe_environment(f"{user_module}:Mine-v0", g=3.0))
    finally:
        gymnasium.registry.pop("Mine-v0", None)
    assert env.unwrapped.g == 3.0  # type: ignore[attr-defined]
    assert env.spec is not None and env.spec.max_episode_steps == 3


@pytest.mark.parametrize(
    ("name", "newest"),
    [
        ("Taxi-v3", "Taxi-v4"),
        ("CliffWalking-v0", "CliffWalking-v1"),
        ("Hopper-v2", "Hopper-v5"),
        ("mpe2/simple_spread_v2", "mpe2/simple_spread_v3"),
        ("Hopper-v5", None),
        ("Hopper", None),
        ("user:make", None),
    ],
)
def test_the_newest_version_of_a_name(name: str, newest: str | None) -> None:
    assert newest_version(name) == newest


def test_a_retired_version_in_old_data_is_no_code_and_names_the_one_there_is() -> None:
    known = {"id": "Taxi-v3", "entry_point": "gymnasium.envs.toy_text.taxi:TaxiEnv", "kwargs": {"is_rainy": True}}
    with pytest.raises(EnvironmentUnavailable, match=r"give --env Taxi-v4 .*with the arguments {'is_rainy': True}"):
        registered_only(EnvironmentSpec.from_json(json.dumps(known)))
    for old in (json.dumps(known), json.dumps({"id": "Taxi-v3"})):
        with pytest.raises(EnvironmentUnavailable, match="Taxi-v4") as told:
            make_environment(registered_only(EnvironmentSpec.from_json(old)))
        assert "is code" not in str(told.value)
    with pytest.raises(EnvironmentUnavailable, match="Hopper-v5 is a newer version"):
        make_environment(registered_only(EnvironmentSpec(id="Hopper-v2")))
