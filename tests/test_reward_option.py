"""`--reward`: every algorithm of one agent learns from a learned reward; and runs that learn one write it."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import herdbook
from herdbook.cli.main import main
from herdbook.core.policy import Scaling
from herdbook.core.random import scoped_seed
from herdbook.core.runs import Run, RunError, locked
from herdbook.core.types import Spec
from herdbook.datasets.load import load_dataset
from herdbook.datasets.replay import ReplayBuffer
from herdbook.experiments import tasks
from herdbook.experiments import train as training
from herdbook.experiments.catalogue import UserError
from herdbook.experiments.collect import replay_of
from herdbook.experiments.rewards import reward_directory
from herdbook.experiments.train import resume
from herdbook.irl.rewards import LearnedReward, RewardDesign, load_reward
from herdbook.offline.bc import BC, BCConfig

QUICK: dict[str, Any] = {"eval_episodes": 1, "quiet": True}


def linear(spec: Spec, **weights: float) -> LearnedReward:
    """A linear reward of the first entry of the observation (by `first`) and of the first action (by `action`)."""
    design = RewardDesign(inputs="state_action", hidden_sizes=())
    (weight,) = (value for key, value in design.build(Scaling(spec)).named_parameters() if key.endswith("weight"))
    values = torch.zeros_like(weight)
    values[0, 0], values[0, spec.observation_space.shape[0]] = weights.get("first", 0.0), weights.get("action", 0.0)
    members = ({"head.layers.0.weight": values, "head.layers.0.bias": torch.ones(1)},)
    return LearnedReward(design=design, spec=spec, discount=0.9, members=members)


@pytest.fixture
def saved(small_dataset: str, tmp_path: Path) -> Path:
    """1 + the cosine of Pendulum's angle."""
    return linear(load_dataset(small_dataset).spec(), first=1.0).save(tmp_path / "saved")


@pytest.mark.parametrize("name", ["sac", "ppo"])
def test_learning_in_an_environment_uses_the_reward_and_evaluation_does_not(name: str, saved: Path) -> None:
    options: dict[str, Any] = {"sac": {"warmup_steps": 20, "batch_size": 8}, "ppo": {"rollout_steps": 8}}[name]
    run = herdbook.train(name, env="Pendulum-v1", reward=saved, steps=24, num_envs=1, run_dir="run", **options, **QUICK)
    assert run.options["reward"] == str(saved)
    assert run.evaluations()[-1]["return_mean"] < -1  # Pendulum's own
    if name == "sac":
        replay = run.checkpoints.load_replay(run.checkpoints.load())["replays"][0]
        assert torch.allclose(replay["rewards"], 1 + replay["observations"][:24, 0])
        assert (replay["rewards"] >= 0).all()


def test_a_dataset_is_relabelled_and_the_reward_is_kept_with_the_run(small_dataset: str, saved: Path) -> None:
    options: dict[str, Any] = {"dataset": small_dataset, "reward": saved, "hidden_sizes": (4,), **QUICK}
    whole = herdbook.train("td3_bc", steps=6, run_dir="whole", **options)
    part = herdbook.train("td3_bc", steps=3, run_dir="part", **options)
    plain = herdbook.train("td3_bc", steps=3, run_dir="plain", **{**options, "reward": None})
    prints = {run.path.name: run.config["dataset"]["fingerprint"] for run in (whole, part, plain)}
    assert prints["whole"] == prints["part"] != prints["plain"]
    shutil.rmtree(saved)
    resume(part.path, steps=6, quiet=True)
    states = [run.checkpoints.load()["state"]["online"]["critic"] for run in (whole, part)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert load_reward(part.path / "reward").digest() == load_reward(whole.path / "reward").digest()


def test_fine_tuning_scales_played_rewards_as_those_of_the_dataset(
    small_dataset: str, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """return_range is that of the learned rewards in both, although the environment's have another one."""
    online, maps = ReplayBuffer.online, list[Any]()
    monkeypatch.setattr(ReplayBuffer, "online", lambda *a, **k: maps.append(k["reward_transform"]) or online(*a, **k))
    options: dict[str, Any] = {"steps": 2, "online_steps": 4, "batch_size": 4, "hidden_sizes": (4,), **QUICK}
    options |= {"dataset": small_dataset, "reward": saved, "reward_transform": "shift:-1,return_range"}
    herdbook.train("td3_bc", env="Pendulum-v1", run_dir="tuned", **options)
    data = load_dataset(small_dataset)
    returns = [data.episode(number).observations[:-1, 0].sum() for number in range(len(data))]  # of the cosines
    (used,) = maps
    assert used.scale == pytest.approx(1000 / np.ptp(returns), rel=1e-5)
    assert used.shift == pytest.approx(-used.scale)


def test_a_reward_of_other_spaces_is_refused(saved: Path) -> None:
    with pytest.raises(UserError, match="expected the observation_space Box.* of the reward function"):
        herdbook.train("dqn", env="CartPole-v1", reward=saved, run_dir="run", **QUICK)
    assert not Path("run").exists()
    with pytest.raises(UserError, match="expected a learned reward"):
        herdbook.train("sac", env="Pendulum-v1", reward="nowhere", run_dir="run", **QUICK)
    with pytest.raises(UserError, match="reward: expected none for many agents, got saved"):
        herdbook.train("vdn", env="mpe2/simple_spread_v3", reward="saved", run_dir="run", **QUICK)
    with pytest.raises(UserError, match="scale_rewards: expected no reward beside it"):
        herdbook.train("sac", env="Pendulum-v1", reward=saved, scale_rewards=True, run_dir="run", **QUICK)


def test_the_shaping_is_left_out(small_dataset: str, tmp_path: Path) -> None:
    data = load_dataset(small_dataset)
    design = RewardDesign(shaped=True)
    with scoped_seed(0):
        members = ({k: v.detach() for k, v in design.build(Scaling(data.spec())).named_parameters()},)
    shaped = LearnedReward(design=design, spec=data.spec(), discount=0.9, members=members)
    prints = [
        herdbook.train(
            "bc", dataset=small_dataset, reward=reward.save(tmp_path / name), steps=1, run_dir=name, **QUICK
        ).config["dataset"]["fingerprint"]
        for name, reward in (("shaped", shaped), ("unshaped", shaped.unshaped()))
    ]
    assert prints[0] == prints[1]


# --- runs that learn a reward ---------------------------------------------------------------------------------------


class Rewarding(BC):
    """Behavioural cloning whose 'learned' reward is linear in its first weight."""

    needs: ClassVar = replace(BC.needs, reward=True)

    def __init__(self, config: BCConfig, spec: Spec, **setup: Any) -> None:
        super().__init__(config, spec, **setup)
        self.spec = spec

    def reward(self, seed_index: int = 0) -> LearnedReward:
        weights = self.learner.parameters_of("actor", seed_index)
        return linear(self.spec, first=float(next(iter(weights.values())).reshape(-1)[0]))


def test_a_run_writes_the_reward_of_each_seed(small_dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"dataset": small_dataset, "hidden_sizes": (4,), "seeds": (3, 5), **QUICK}
    run = herdbook.train(Rewarding, steps=4, run_dir="learned", **options)
    rewards = {seed: load_reward(run.path / "rewards" / f"seed_{seed}") for seed in (3, 5)}
    assert rewards[3].digest() != rewards[5].digest()
    about: Mapping[str, Any] = rewards[5].about
    assert (about["seed"], about["step"], about["run"]) == (5, 4, "learned")
    assert about["dataset"]["fingerprint"] == run.config["dataset"]["fingerprint"]
    state = run.checkpoints.load()["state"]["online"]["actor"]
    first = next(iter(state.values()))[1].reshape(-1)[0]
    seen = np.array([[1.0, 0.0, 0.0]], np.float32)
    assert rewards[5].at(seen, np.zeros((1, 1), np.float32)) == pytest.approx(1 + float(first))
    shutil.rmtree(run.path / "rewards" / "seed_5")
    assert resume(run.path, algorithm=Rewarding, quiet=True)[1] is False
    assert load_reward(run.path / "rewards" / "seed_5").digest() == rewards[5].digest()
    words = ["td3_bc", "--dataset", small_dataset, "--steps", "1", "--eval-episodes", "0", "--run-dir", "typed"]
    assert main(["train", *words, "--reward", "learned/rewards/seed_3"]) == 0
    with pytest.raises(UserError, match="expected one of the seeds 3, 5"):
        herdbook.train("td3_bc", dataset=small_dataset, reward="learned", run_dir="x", steps=1, **QUICK)


def test_needs_and_the_method_agree() -> None:
    class Silent(BC):
        needs = replace(BC.needs, reward=True)

    with pytest.raises(UserError, match="expected a method reward beside Needs"):
        herdbook.train(Silent, dataset="nothing", run_dir="x", **QUICK)


def test_a_run_that_goes_on_has_no_rewards_until_its_end(small_dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"dataset": small_dataset, "hidden_sizes": (4,), **QUICK}
    run = herdbook.train(Rewarding, steps=2, run_dir="learned", **options)
    begin, seen = training._Trainer.run, []

    def watched(trainer: Any, run: Run, *rest: Any) -> None:
        seen.append((run.path / "rewards").exists())
        begin(trainer, run, *rest)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training._Trainer, "run", watched)
        patch.setattr(training, "write_rewards", killed)
        with pytest.raises(KeyboardInterrupt):
            resume(run.path, algorithm=Rewarding, steps=4, quiet=True)
    assert seen == [False]
    with pytest.raises(UserError, match="expected a run that learned a reward, got a"):
        reward_directory(run.path)
    assert resume(run.path, algorithm=Rewarding, quiet=True)[1] is False
    assert load_reward(reward_directory(run.path)).about["step"] == 4
    assert not [path.name for path in (run.path / "rewards").iterdir() if path.name != "seed_0"]


def test_a_reward_of_an_earlier_step_is_written_again_under_the_lock(small_dataset: str) -> None:
    options: dict[str, Any] = {"dataset": small_dataset, "hidden_sizes": (4,), **QUICK}
    run = herdbook.train(Rewarding, steps=2, run_dir="learned", **options)
    own = load_reward(reward_directory(run.path))
    replace(own, about={**own.about, "step": 1}).save(reward_directory(run.path))
    with locked(run.path), pytest.raises(RunError, match="another process is writing this run"):
        resume(run.path, algorithm=Rewarding, quiet=True)
    resume(run.path, algorithm=Rewarding, quiet=True)
    assert load_reward(reward_directory(run.path)).about["step"] == 2
    with locked(run.path):  # nothing is written now
        resume(run.path, algorithm=Rewarding, quiet=True)


def test_a_wrong_reward_is_told_before_a_dataset_is_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def made(*_: Any, **__: Any) -> Any:
        raise AssertionError("the dataset is loaded")

    monkeypatch.setattr(tasks, "load_dataset", made)
    monkeypatch.setattr(tasks, "recorded_environment", made)
    with pytest.raises(UserError, match="nowhere: expected a learned reward"):
        herdbook.train("td3_bc", dataset="classic/pendulum/expert", reward="nowhere", steps=1, **QUICK)
    assert main(["train", "td3_bc", "--dataset", "classic/pendulum/expert", "--reward", "nowhere"]) == 2
    assert "nowhere: expected a learned reward" in capsys.readouterr().err


def test_the_replay_of_a_run_on_a_learned_reward_says_whose_rewards_it_holds(saved: Path) -> None:
    sizes: dict[str, Any] = {"warmup_steps": 9, "batch_size": 2, "hidden_sizes": (4,)}
    options: dict[str, Any] = {"env": "Pendulum-v1", "steps": 10, **sizes, **QUICK}
    plain = replay_of(herdbook.train("sac", run_dir="plain", **options))
    run = herdbook.train("sac", run_dir="run", reward=saved, **options)
    shutil.rmtree(saved)
    data = replay_of(run)
    assert plain.transforms == () and plain.rewards.max() <= 0 <= data.rewards.min()
    assert data.reward_transforms() == (f"rewards: reward: {load_reward(run.path / 'reward').digest()}",)
