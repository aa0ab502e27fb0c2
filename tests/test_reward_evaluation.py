"""`herdbook reward eval`, and the true rewards of known environments."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from herdbook.cli.main import main
from herdbook.core.environments import EnvironmentSpec, ReferenceScores, make_environment
from herdbook.core.policy import Scaling
from herdbook.core.random_policy import RandomPolicy
from herdbook.core.runs import Run
from herdbook.core.types import Spec
from herdbook.datasets.load import load_dataset
from herdbook.datasets.minari import write_minari
from herdbook.evaluation.epic import SampledCoverage, sampled_epic_distance
from herdbook.evaluation.evaluate import evaluate
from herdbook.evaluation.rewards import step_rewards
from herdbook.experiments import reward_evaluation
from herdbook.experiments.catalogue import UserError
from herdbook.experiments.reward_evaluation import evaluate_reward
from herdbook.experiments.true_rewards import true_reward
from herdbook.irl.rewards import LearnedReward, RewardDesign, load_reward
from herdbook.online.ppo import PPO

SMALL: dict[str, Any] = {"rollout_steps": 8, "num_envs": 1, "eval_episodes": 0, "quiet": True}


def cosine(spec: Spec) -> LearnedReward:
    """The cosine of Pendulum's angle, shaped by a potential that must not be used."""
    design = RewardDesign(inputs="state", hidden_sizes=(), shaped=True, shaping_sizes=())
    parameters = {name: torch.full_like(value, 0.0) for name, value in design.build(Scaling(spec)).named_parameters()}
    parameters["base.head.layers.0.weight"][0, 0] = 1
    parameters["potential.head.layers.0.weight"][0, 1] = 1e3
    return LearnedReward(design=design, spec=spec, discount=0.9, members=(parameters,), about={"from": "a test"})


@pytest.fixture
def saved(small_dataset: str, tmp_path: Path) -> Path:
    return cosine(load_dataset(small_dataset).spec()).save(tmp_path / "saved")


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("Pendulum-v1", 200),
        ("CartPole-v1", 200),
        ("FrozenLake-v1", 50),
        ("herdbook/GridWorld-v0", 50),
        ("herdbook/FixedHorizonCartPole-v0", 200),
        ("herdbook/PointMass-v0", 100),
    ],
)
def test_true_rewards_are_those_of_the_environments(name: str, steps: int) -> None:
    space = make_environment(name).action_space
    played = evaluate(RandomPolicy(space), name, 3, 0, max_steps=steps)
    true = true_reward(name)
    assert true is not None
    np.testing.assert_allclose(step_rewards(true, played, discount=0.9), played.rewards, atol=2e-5)


def test_an_impossible_transition_of_toy_text_has_the_mean_reward() -> None:
    """FrozenLake pays 1 for the goal, 15. A move to the right from 14 slips to 10 or stays, and never goes to 13."""
    true = true_reward("FrozenLake-v1")
    assert true is not None
    table = true.table  # type: ignore[attr-defined]
    assert table[14, 2, 15] == 1 and table[14, 2, 10] == 0 and table[14, 2, 13] == pytest.approx(1 / 3)
    assert true_reward("MountainCar-v0") is None


def test_the_true_reward_of_cartpole_is_unknown_with_other_rewards() -> None:
    """Of Sutton & Barto, it is 0 at every step and −1 at the end."""
    assert true_reward(EnvironmentSpec(id="CartPole-v1", kwargs={"sutton_barto_reward": True})) is None
    assert true_reward(EnvironmentSpec(id="CartPole-v1", kwargs={"sutton_barto_reward": False})) is not None


def test_the_true_reward_of_cartpole_asks_for_survival() -> None:
    """It is constant, so it has an EPIC distance only because episodes end."""
    data = evaluate(RandomPolicy(spaces.Discrete(2)), "CartPole-v1", 5, 0)
    true = true_reward("CartPole-v1")
    assert true is not None
    coverage = SampledCoverage.from_episodes(data, discount=0.99, samples=16)
    assert sampled_epic_distance(true, lambda step: 5 * true(step), coverage) == pytest.approx(0, abs=1e-5)
    assert sampled_epic_distance(true, lambda step: -true(step), coverage) == pytest.approx(1)


def test_fresh_policies_are_trained_on_the_reward_and_judged_by_the_true_one(
    small_dataset: str, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["reward", "eval", saved, "--env", "Pendulum-v1", "--steps", "16", "--seeds", "3", "4"]
    words += ["--dataset", small_dataset, "--episodes", "2", "--eval-seed", "7", "--out", "judged"]
    words += ["--options", "rollout_steps", "8", "num_envs", "1", "eval_episodes", "0"]
    assert main([str(word) for word in words]) == 0
    told = capsys.readouterr().out
    results = json.loads((tmp_path / "judged/reward_eval.json").read_text())
    run = Run("judged/run")
    assert (run.algorithm, run.seeds, run.options["reward"]) == ("ppo", (3, 4), str(saved))
    means = [line["return_mean"] for line in results["seeds"]]
    assert results["return"]["mean"] == pytest.approx(np.mean(means)) and max(means) < -100
    assert results["return"]["low"] < results["return"]["mean"] < results["return"]["high"]
    assert [len(line["returns"]) for line in results["seeds"]] == [2, 2]
    judged = results["judgement"]
    assert judged["dataset"] == small_dataset and judged["steps"] == 120 and judged["discount"] == 0.9
    assert judged["pearson"] > 0.3 and judged["spearman"] > 0.3 and 0 < judged["epic"] < 0.7 and judged["notices"] == []
    assert results["reward"]["about"] == {"from": "a test"}
    assert f"epic distance {judged['epic']:.3f}" in " ".join(told.split()) and "ppo, 16 steps, seeds 3, 4" in told
    assert (tmp_path / "judged/rewards.png").stat().st_size > 1000
    assert main([str(word) for word in words]) == 2
    assert "holds reward_eval.json already" in capsys.readouterr().err


def test_without_a_dataset_the_rewards_are_compared_on_played_episodes(saved: Path) -> None:
    results = evaluate_reward(saved, out="judged", steps=8, env="Pendulum-v1", episodes=2, **SMALL)
    assert results["judgement"]["steps"] == 2 * 2 * 200  # the random policy's and the fresh one's
    assert (results["references"], results["normalized_score"]) == (None, None)  # Pendulum has none
    stored = json.loads(Path("judged/reward_eval.json").read_text())
    assert stored["return"] == {"mean": results["return"]["mean"], "low": None, "high": None}  # one seed


def test_an_offline_algorithm_learns_from_the_dataset_whose_references_count_in_its_environment(
    small_dataset: str, saved: Path, tmp_path: Path
) -> None:
    data = load_dataset(small_dataset)
    scored = replace(data, reference_scores=ReferenceScores(-100.0, 0.0, "a test"))
    folder = write_minari(scored, "mine/scored-v0", data_dir=tmp_path / "minari")
    options: dict[str, Any] = {"algorithm": "td3_bc", "hidden_sizes": (4,), "episodes": 1, "quiet": True}
    results = evaluate_reward(saved, out="judged", steps=2, dataset=str(folder), **options)
    assert results["environment"]["id"] == "Pendulum-v1"  # the dataset's
    assert Run("judged/run").config["dataset"]["source"] == "mine/scored-v0"
    assert results["references"] == {"minimum": -100, "maximum": 0, "source": "a test"}
    assert results["normalized_score"] == pytest.approx(100 + results["return"]["mean"])
    kwargs = {"g": 5.0}
    other = evaluate_reward(saved, out="other", steps=2, dataset=str(folder), env_kwargs=kwargs, **options)
    assert other["references"] is None and other["environment"]["kwargs"] == kwargs


def test_what_is_missing_is_told_before_anything_is_trained(small_dataset: str, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected --env, the environment of the fresh policies"):
        evaluate_reward(saved, out="judged", steps=8, **SMALL)
    with pytest.raises(UserError, match="td3_bc learns from data: expected --dataset, got none"):
        evaluate_reward(saved, out="judged", steps=8, algorithm="td3_bc", env="Pendulum-v1", **SMALL)
    with pytest.raises(UserError, match="expected a learned reward"):
        evaluate_reward(tmp_path / "nothing", out="judged", steps=8, env="Pendulum-v1", **SMALL)
    with pytest.raises(UserError, match="--env: expected the observation_space"):
        evaluate_reward(saved, out="judged", steps=8, env="CartPole-v1", **SMALL)
    assert not Path("judged").exists()


def test_a_discount_of_1_where_episodes_end_leaves_the_epic_distance_undefined(tmp_path: Path) -> None:
    """As for rewards from preferences, whose discount is 1 by default."""
    spec = Spec(make_environment("CartPole-v1").observation_space, spaces.Discrete(2))
    reward = replace(cosine(spec), discount=1.0).save(tmp_path / "undiscounted")
    results = evaluate_reward(reward, out="judged", steps=8, env="CartPole-v1", episodes=1, **SMALL)
    judged = results["judgement"]
    assert (judged["epic"], judged["discount"]) == (None, 1.0)
    assert any("EPIC distance is undefined: discount: expected γ < 1 where" in notice for notice in judged["notices"])
    assert Path("judged/reward_eval.json").is_file()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"discount": 1.5}, r"discount: expected a number in \[0, 1\], got 1.5"),
        ({"discount": float("nan")}, r"discount: expected a number in \[0, 1\], got nan"),
        ({"episodes": 0}, "episodes: expected 1 or more, got 0"),
        ({"eval_seed": -1}, "eval_seed: expected 0 or more, got -1"),
        ({"steps": 0}, "steps: expected 1 or more, got 0"),
        ({"run_dir": "mine"}, "run_dir: expected none, the run is written to judged/run, got mine"),
        ({"algorithm": "preference_reward"}, "algorithm: expected one that learns a policy, got preference_reward"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_trained(
    saved: Path, small_dataset: str, wrong: dict[str, Any], told: str
) -> None:
    given: dict[str, Any] = {"steps": 8, "env": "Pendulum-v1", "dataset": small_dataset, "quiet": True}
    with pytest.raises(UserError, match=told):
        evaluate_reward(saved, out="judged", **{**given, **wrong})
    assert not Path("judged").exists()


def test_a_discount_of_0_is_refused_for_a_reward_of_absorbing_states(small_dataset: str, tmp_path: Path) -> None:
    reward = replace(cosine(load_dataset(small_dataset).spec()), absorbing_reward=1.0).save(tmp_path / "absorbing")
    with pytest.raises(UserError, match="discount: expected γ > 0, since the reward of absorbing states"):
        evaluate_reward(reward, out="judged", steps=8, env="Pendulum-v1", discount=0.0, **SMALL)
    assert not Path("judged").exists()


@pytest.mark.parametrize("words", ["steps 5", "run_dir x", "eval_seed 3", "env CartPole-v1", "reward y", "config 1"])
def test_options_that_repeat_an_argument_are_refused(
    saved: Path, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["reward", "eval", str(saved), "--env", "Pendulum-v1", "--steps", "8", "--out", "judged"]
    assert main([*given, "--options", *words.split()]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and f"got {words.split()[words.startswith('run_dir')]}" in told
    assert not Path("judged").exists()


class Mine(PPO):
    """An algorithm outside of the catalogue."""


class OwnValue(torch.nn.Module):
    """A critic that is linear in Pendulum's observations."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 1)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.linear(observations).squeeze(-1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("algorithm", [Mine, f"{__name__}:Mine"])
def test_the_policies_may_be_of_the_users_own_class(saved: Path, algorithm: Any) -> None:
    given: dict[str, Any] = {"env": "Pendulum-v1", "episodes": 1, "algorithm": algorithm, **SMALL}
    results = evaluate_reward(saved, out="judged", steps=8, networks={"critic": OwnValue}, **given)
    assert results["algorithm"] == f"{__name__}:Mine" == Run("judged/run").algorithm
    assert results["judgement"]["steps"] == 2 * 200


def test_an_interrupted_evaluation_goes_on_with_the_same_arguments(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill in the evaluation leaves a finished run of policies; one in the training, an unfinished run."""

    def killed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    given: dict[str, Any] = {"env": "Pendulum-v1", "episodes": 1, **SMALL}
    whole = evaluate_reward(saved, out="whole", steps=16, **given)
    with monkeypatch.context() as patch:
        patch.setattr(reward_evaluation, "evaluate_run", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate_reward(saved, out="judged", steps=16, **given)
    with monkeypatch.context() as patch:
        patch.setattr(PPO, "update", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate_reward(saved, out="early", steps=16, **given)
    for out in ("judged", "early"):
        for changed in ({"seeds": (1,)}, {"rollout_steps": 16}, {"steps": 24}, {"algorithm": "a2c"}, {"max_steps": 9}):
            asked: dict[str, Any] = {"steps": 16, **given, **changed}
            (name,) = changed
            with pytest.raises(UserError, match=f"{out}/run: holds an interrupted run; expected {name} "):
                evaluate_reward(saved, out=out, **asked)
        results = evaluate_reward(saved, out=out, steps=16, **given)
        assert results["return"] == whole["return"] and results["judgement"] == whole["judgement"]
    other = replace(cosine(load_reward(saved).spec), discount=0.5).save("other")
    Path("judged/reward_eval.json").unlink()
    with pytest.raises(UserError, match="expected reward .*, with which it was begun"):
        evaluate_reward(other, out="judged", steps=16, **given)
