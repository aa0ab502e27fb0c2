"""The declarations of algorithms, and the errors of a class that declares nothing or something untrue."""

import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest

import herdbook
from herdbook.cli.main import main
from herdbook.core.config import Config
from herdbook.core.needs import Needs
from herdbook.datasets.load import load_dataset
from herdbook.experiments.catalogue import ALGORITHMS, UserError, algorithm_class, config_class, needs_of
from herdbook.experiments.options import GROUPS, RunOptions, descriptions, options_for
from herdbook.experiments.train import resume, train
from herdbook.online.sac import SAC, SACConfig


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, "expected data=True, environment=True or both; got neither"),
        ({"data": "optional"}, "expected environment=True or 'optional' beside data='optional', got False"),
        ({"data": 1}, "expected data as True, False or 'optional', got 1"),
        ({"data": "yes"}, "expected data as True, False or 'optional', got 'yes'"),
        ({"environment": "optional"}, "expected data=True or 'optional' beside environment='optional', got data=False"),
        ({"data": True, "agents": "two"}, "expected agents among one, many, got 'two'"),
        ({"data": True, "actions": "continuous"}, "expected actions among box, discrete, any, got 'continuous'"),
        ({"environment": True, "interaction": "stepwise"}, "expected interaction among steps, rollouts, episodes"),
        ({"environment": True, "num_envs": 2, "max_envs": 1}, "expected 1 <= num_envs <= max_envs, got 2 and 1"),
        ({"environment": True, "interaction": "episodes"}, "expected acting=(…), the networks that play"),
        ({"data": True, "interaction": "rollouts"}, "expected environment=True beside interaction='rollouts'"),
        ({"environment": True, "acting": "actor"}, "expected acting as a tuple of names, got 'actor'"),
        ({"data": True, "expert": True}, "expected environment=True and one agent beside expert=True"),
        ({"environment": True, "agents": "many", "expert": True}, "expected environment=True and one agent beside exp"),
        ({"data": True, "dynamics": True, "agents": "many"}, "expected agents='one' beside dynamics=True, got 'many'"),
        ({"data": True, "online_noise": -1.0}, "expected online_noise >= 0 and finite, got -1.0"),
    ],
)
def test_contradictions_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        Needs(**wrong)


@pytest.mark.parametrize(
    ("data", "environment", "plays"),
    [
        (True, False, (None, False)),
        (False, True, (True, None)),
        (True, True, (None, True)),
        ("optional", True, (True, True)),
        ("optional", "optional", (True, False)),
    ],
)
def test_which_needs_make_an_algorithm_play(data: Any, environment: Any, plays: tuple[Any, Any]) -> None:
    """Without a dataset, and with one; None where that does not occur."""
    needs = Needs(data=data, environment=environment)
    for has_data in (False, True):
        if plays[has_data] is not None:
            assert needs.plays(has_data) is plays[has_data]


def test_with_data_for_certain_the_config_says_whether_it_plays() -> None:
    needs = Needs(data=True, environment="optional")
    assert needs.plays(True, online=True) and not needs.plays(True, online=False)
    assert needs.demonstrations and not replace(needs, data="optional").demonstrations
    assert Needs(data=True, environment=True).demonstrations and not Needs(data=True).demonstrations


class Silent:
    def __init__(self, config: Config, spec: Any, **setup: Any) -> None: ...


class Stepping(Silent):
    """Learns from data, it says, and has what steps an environment."""

    needs = Needs(data=True)

    def round_steps(self, num_envs: int) -> int:
        return 1


class Standing(Silent):
    needs = Needs(environment=True)


class Offline(Silent):
    needs = Needs(data=True, goes_online=True)


class Misspelt(Silent):
    need = Needs(data=True)


class Plain:
    """Its config is a dataclass, and no `Config`."""

    @dataclass(frozen=True)
    class Settings:
        lr: float = 1.0

    needs = Needs(data=True)

    def __init__(self, config: Settings, spec: Any, **setup: Any) -> None: ...


@pytest.mark.parametrize(
    ("algorithm", "said"),
    [
        (Silent, "got none; write"),
        (Misspelt, "needs = Needs(data=True)  # it learns from a dataset"),
        (Stepping, "Stepping: expected no method round_steps beside Needs(data=True"),
        (Standing, "Standing: expected a method updates_due beside Needs("),
        (Offline, "Offline: expected a method go_online beside Needs("),
    ],
)
def test_a_class_with_missing_or_wrong_needs_is_told_what_to_write(algorithm: type[Any], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        needs_of(algorithm)


def test_a_config_that_is_none_of_ours_is_told_what_to_write() -> None:
    with pytest.raises(UserError, match=r"class MyConfig\(herdbook.core.config.Config\)"):
        config_class(Plain)


def test_a_class_without_needs_ends_the_command_with_status_2(
    user_module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"{user_module}.py"
    path.write_text(path.read_text().replace('    needs = Needs(data=True, actions="box")\n', ""))
    assert main(["train", f"{user_module}:Mine", "--dataset", "x", "--run-dir", "r"]) == 2
    said = capsys.readouterr().err
    assert "needs = Needs(data=True)" in said and "Traceback" not in said
    assert not Path("r").exists()


# --- options --------------------------------------------------------------------------------------------------------


def test_every_option_has_a_group_and_a_description() -> None:
    described = descriptions()
    for field in fields(RunOptions):
        assert field.metadata["group"] in GROUPS, field.name
        assert described[field.name].endswith("."), field.name


SHOWN: dict[str, tuple[set[str], set[str]]] = {
    "cql": ({"dataset", "env", "online_steps", "data_dir"}, {"learn", "others", "workers"}),
    "matd3_bc": ({"dataset", "env", "learn"}, {"online_steps", "workers", "num_envs", "reward_transform"}),
    "sac": ({"env", "num_envs", "reward_transform"}, {"dataset", "data_dir", "online_steps", "workers", "learn"}),
    "ppo": ({"env", "num_envs"}, {"dataset", "expert", "online_updates", "workers", "others"}),
    "dagger": ({"dataset", "env", "expert", "num_envs"}, {"online_steps", "workers", "others"}),
    "qmix": ({"env", "num_envs", "workers", "learn", "others"}, {"dataset", "online_steps", "observation_keys"}),
}
"""For an algorithm: options that apply to it, and options that do not."""


@pytest.mark.parametrize("name", SHOWN)
def test_help_shows_the_options_that_apply(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown, hidden = SHOWN[name]
    offered = {option for options in options_for(needs_of(algorithm_class(name))).values() for option in options}
    assert shown <= offered and not hidden & offered
    with pytest.raises(SystemExit):
        main(["train", name, "--help"])
    text = capsys.readouterr().out
    for option in shown:
        assert f"--{option.replace('_', '-')} " in text
    for option in hidden:
        assert f"--{option.replace('_', '-')} " not in text
    for group in ("algorithm", "environment", "evaluation", "run"):
        assert f"{group} options" in text


# --- datasets beside environments -----------------------------------------------------------------------------------


class Either(SAC):
    """Learns from a dataset if one is given, else in an environment."""

    needs = replace(SAC.needs, data="optional", environment="optional")


class Guided(SAC):
    """Plays, and counts the demonstrations that it was handed."""

    needs = replace(SAC.needs, data="optional", environment=True)
    handed: ClassVar[list[int]] = []

    def __init__(self, config: SACConfig, spec: Any, *, demonstrations: Any = None, **setup: Any) -> None:
        super().__init__(config, spec, **setup)
        self.handed.append(0 if demonstrations is None else len(demonstrations))


SMALL = SACConfig(hidden_sizes=(4,), batch_size=8, warmup_steps=10, replay_steps=100)
SHORT: dict[str, Any] = {"steps": 20, "eval_episodes": 1, "quiet": True, "seeds": (0, 1)}


def test_an_algorithm_for_either_takes_what_is_given(small_dataset: str) -> None:
    offline = train(Either, config=SMALL, dataset=small_dataset, run_dir="offline", **SHORT)
    online = train(Either, config=SMALL, env="Pendulum-v1", run_dir="online", **SHORT)
    assert offline.checkpoints.load()["state"]["updates"] == 20  # both seeds as one program
    states = online.checkpoints.load()["state"]["seed_by_seed"]
    assert [state["updates"] for state in states] == [10, 10]  # after the warm-up
    for run in (offline, online):
        assert run.evaluations()[-1]["step"] == 20
        assert herdbook.load(run.path, Either).act(np.zeros(3)).shape == (1,)


def test_data_beside_an_environment_are_demonstrations(small_dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    Guided.handed.clear()
    both = train(Guided, config=SMALL, dataset=small_dataset, env="Pendulum-v1", run_dir="both", **SHORT)
    alone = train(Guided, config=SMALL, env="Pendulum-v1", run_dir="alone", **SHORT)
    assert Guided.handed == [120, 120, 0, 0]
    assert both.config["dataset"]["source"] == small_dataset and alone.config["dataset"] is None
    assert both.config["environment"]["id"] == alone.config["environment"]["id"] == "Pendulum-v1"
    again, _ = resume(both.path, steps=25, algorithm=Guided, dataset=small_dataset, env="Pendulum-v1", quiet=True)
    assert again.checkpoints.last() == 25 and Guided.handed[4:] == [120, 120]
    with pytest.raises(UserError, match="online_steps: expected 0, all steps of Guided are those of an environment"):
        train(Guided, config=SMALL, dataset=small_dataset, env="Pendulum-v1", online_steps=5, run_dir="r", **SHORT)


def test_without_env_it_learns_in_the_environment_of_its_demonstrations(small_dataset: str) -> None:
    run = train(Guided, config=SMALL, dataset=small_dataset, run_dir="own", **SHORT)
    assert run.config["environment"]["id"] == "Pendulum-v1" and run.checkpoints.last() == 20
    nameless = replace(load_dataset(small_dataset), environment=None)
    with pytest.raises(UserError, match="names no environment to learn in; name one with --env"):
        train(Guided, config=SMALL, dataset=nameless, run_dir="r", **SHORT)
    with pytest.raises(UserError, match="an environment to learn in; got none"):
        train(Guided, config=SMALL, run_dir="r", **SHORT)


# --- needs against behaviour ----------------------------------------------------------------------------------------


class Cheating(Silent):
    """Declares that it learns from data, and steps an environment of its own."""

    needs = Needs(data=True)

    def update(self, batch: Any) -> dict[str, Any]:
        env = gymnasium.make("CartPole-v1")
        env.reset(seed=0)
        env.step(0)
        env.close()
        return {}


@pytest.mark.usefixtures("no_environment")
def test_an_algorithm_that_steps_an_environment_in_secret_is_caught() -> None:
    with pytest.raises(AssertionError, match="declare no environment"):
        Cheating(Config(), None).update(None)


def test_the_catalogue_declares_what_its_folders_say() -> None:
    for name, target in ALGORITHMS.items():
        needs, folder = needs_of(algorithm_class(name)), target.split(".")[1]
        assert (needs.agents == "many") is (folder == "marl"), name
        assert needs.dynamics is (name in {"maxent_irl", "mce_irl"}), name
        if folder == "irl":  # some play and some do not
            continue
        assert (needs.environment is True) is (folder == "online" or (folder == "marl" and not needs.data)), name
        assert needs.on_policy is (name in {"reinforce", "a2c", "ppo", "trpo"}), name
        assert bool(needs.data) is (folder == "offline" or name in {"matd3_bc", "qmix_cql"}), name
