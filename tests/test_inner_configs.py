"""Configs that hold the config of an inner algorithm: by name, on the command line, in config.json and on resuming."""

import contextlib
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Unpack

import pytest

import herdbook
from herdbook.cli.main import main
from herdbook.core.config import Config, flat_fields, has_inner, with_values
from herdbook.core.learner import Setup
from herdbook.core.needs import Needs
from herdbook.core.types import Metrics, Policy, Segments, Spec
from herdbook.experiments.catalogue import UserError
from herdbook.experiments.records import (
    build_config,
    config_from_values,
    config_values,
    differences,
    with_length,
    with_rates,
)
from herdbook.experiments.train import resume
from herdbook.irl.gail import GAILConfig
from herdbook.online.ppo import PPO, PPOConfig


@dataclass(frozen=True, kw_only=True)
class OuterConfig(Config):
    """A config with an inner one."""

    lr: float = 0.5  # learning rate of the outer part
    ppo: PPOConfig = PPOConfig(lr=2e-4, epochs=2, rollout_steps=8, batch_size=8)  # the policy's settings

    def __post_init__(self) -> None:
        self.require(lr=(0.0, 1.0))


class Outer:
    """PPO inside another algorithm."""

    needs: ClassVar[Needs] = PPO.needs

    def __init__(self, config: OuterConfig, spec: Spec, **setup: Unpack[Setup]) -> None:
        self.config, self.inner = config, PPO(config.ppo, spec, **setup)

    def update(self, rollout: Segments) -> Metrics:
        return self.inner.update(rollout)

    def policy(self, seed_index: int = 0, *, deterministic: bool = True, step: int | None = None) -> Policy:
        return self.inner.policy(seed_index, deterministic=deterministic, step=step)

    def round_steps(self, num_envs: int) -> int:
        return self.inner.round_steps(num_envs)

    def updates_due(self, episodes: int, steps: int) -> int:
        return self.inner.updates_due(episodes, steps)

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self.inner.load_state_dict(state)


def test_inner_fields_have_names_with_a_dot() -> None:
    names = [name for name, _, _ in flat_fields(OuterConfig())]
    assert names[0] == "lr" and "ppo.lr" in names and "ppo" not in names
    assert has_inner(OuterConfig) and not has_inner(PPOConfig)
    changed = with_values(OuterConfig(), {"lr": 0.1, "ppo.lr": 1e-3, "ppo.clip": 0.3})
    assert changed == OuterConfig(lr=0.1, ppo=replace(OuterConfig().ppo, lr=1e-3, clip=0.3))


def test_values_by_name_change_only_what_they_name() -> None:
    expected = OuterConfig(ppo=replace(OuterConfig().ppo, lr=1e-3))
    assert build_config(OuterConfig, {"ppo.lr": 1e-3}) == expected
    assert build_config(OuterConfig, {"ppo": {"lr": 1e-3}}) == expected
    assert build_config(OuterConfig, {"ppo": PPOConfig(), "ppo.lr": 1e-3}).ppo == PPOConfig(lr=1e-3)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"ppo.learning_rate": 1.0}, "PPOConfig has no field 'learning_rate'"),
        ({"ppo.lr": -1.0}, "PPOConfig: expected lr > 0 and finite, got -1.0"),
        ({"pro.lr": 1.0}, "OuterConfig has no field 'pro.lr'"),
        ({"lr.ppo": 1.0}, "OuterConfig has no field 'lr.ppo'"),
    ],
)
def test_wrong_inner_values_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build_config(OuterConfig, values)


def test_inner_values_survive_json() -> None:
    config = OuterConfig(ppo=PPOConfig(hidden_sizes=(3, 4), clip=0.25))
    assert config_from_values(OuterConfig, json.loads(json.dumps(config_values(config)))) == config


def test_inner_schedules_last_for_the_run() -> None:
    config = OuterConfig(ppo=PPOConfig(decay_lr=True)).for_run(500)
    assert config.ppo.decay_steps == 500
    longer, told = with_length(config, 500, 900)
    assert longer.ppo.decay_steps == 900 and "schedule ppo.decay_steps" in told[0]


def test_inner_rates_may_change_in_a_run_that_has_begun() -> None:
    changed = with_rates(OuterConfig(), {"ppo.lr": 1e-5})
    assert differences(OuterConfig(), changed) == ["ppo.lr is 1e-05 instead of 0.0002"]
    with pytest.raises(UserError, match=r"set: ppo.clip cannot change"):
        with_rates(OuterConfig(), {"ppo.clip": 0.5})


def test_a_run_with_an_inner_config_trains_and_resumes() -> None:
    options: dict[str, Any] = {"env": "CartPole-v1", "eval_episodes": 1, "quiet": True, "num_envs": 2}
    run = herdbook.train(Outer, steps=32, run_dir="run", **{"ppo.lr": 1e-3, "lr": 0.25}, **options)
    assert (run.config["config"]["lr"], run.config["config"]["ppo"]["lr"]) == (0.25, 1e-3)
    again, more = resume("run", steps=48, algorithm=Outer, rates={"ppo.lr": 1e-4}, quiet=True)
    assert more and again.config["config"]["ppo"]["lr"] == 1e-4
    assert again.config["changes"] == [{"step": 32, "config": {"ppo.lr": {"from": 1e-3, "to": 1e-4}}}]
    restarted, _ = resume("run", steps=64, algorithm=Outer, quiet=True)
    assert restarted.config["config"]["ppo"]["lr"] == 1e-4


def test_the_command_keeps_the_prefix_of_inner_options(monkeypatch: pytest.MonkeyPatch) -> None:
    import herdbook.experiments.catalogue as catalogue

    monkeypatch.setattr(catalogue, "import_name", lambda name: Outer)
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main(["train", "tests.somewhere:Outer", "--help"])
    assert "--ppo.lr FLOAT" in text.getvalue() and "ppo options" in text.getvalue() and "--lr FLOAT" in text.getvalue()
    words = ["--env", "CartPole-v1", "--steps", "16", "--num-envs", "2", "--eval-episodes", "0", "--run-dir", "typed"]
    assert main(["train", "tests.somewhere:Outer", *words, "--ppo.lr", "5e-4", "--lr", "0.125"]) == 0
    config = json.loads(Path("typed/config.json").read_text())["config"]
    assert (config["lr"], config["ppo"]["lr"]) == (0.125, 5e-4)


def test_settings_reach_inner_configs_and_are_told_beside_a_config_of_ones_own(
    small_dataset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"dataset": small_dataset, "steps": 8, "num_envs": 1, "eval_episodes": 0}
    run = herdbook.train("gail", run_dir="named", **{"ppo.rollout_steps": 8, "allow_variable_horizon": True}, **options)
    assert run.config["config"]["ppo"]["discount"] == 0.9 and run.config["config"]["ppo"]["rollout_steps"] == 8
    own = GAILConfig(ppo=PPOConfig(rollout_steps=8), allow_variable_horizon=True)
    capsys.readouterr()
    run = herdbook.train(own, run_dir="own", **options)
    assert run.config["config"]["ppo"]["discount"] == 0.99
    assert "settings that do not apply beside a config of your own: gail on Pendulum-v1" in capsys.readouterr().out
