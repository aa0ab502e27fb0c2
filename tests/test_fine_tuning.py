"""Fine-tuning: the mixed replay, the policy that plays, the run that goes on in an environment, and its mistakes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sameness import equal, same

import herdbook
from herdbook.cli.main import main
from herdbook.core.environments import EnvironmentSpec, EnvironmentUnavailable
from herdbook.core.exploration import NoisyPolicy
from herdbook.core.fine_tuning import FineTuned, collapsed, score_of, watched
from herdbook.core.loop import train_online
from herdbook.core.runs import Run
from herdbook.core.types import Spec, Step, Steps
from herdbook.datasets.episodes import Episodes
from herdbook.datasets.mixed import MixedReplay
from herdbook.datasets.replay import ReplayBuffer
from herdbook.datasets.rewards import RewardMap, reward_map, transform_rewards
from herdbook.experiments.catalogue import UserError, algorithm_class
from herdbook.experiments.train import resume
from herdbook.offline.td3_bc import TD3BC, TD3BCConfig

SPEC = Spec(spaces.Box(-np.inf, np.inf, (1,)), spaces.Box(-1, 1, (1,)))


def dataset(lengths: tuple[int, ...] = (3, 2), **fields: Any) -> Episodes:
    """Observations 0, 1, 2 …, rewards 10, 11 …; every episode terminates."""
    rows, at, step = [], 0, 0
    for length in lengths:
        rows.append(
            {
                "observations": np.arange(at, at + length + 1, dtype=np.float32)[:, None],
                "actions": np.zeros((length, 1), np.float32),
                "rewards": 10.0 + np.arange(step, step + length),
                "terminated": np.arange(length) == length - 1,
                "truncated": np.zeros(length, dtype=bool),
            }
        )
        at, step = at + length + 1, step + length
    return Episodes.from_episodes(
        rows, observation_space=SPEC.observation_space, action_space=SPEC.action_space, **fields
    )


def mixed(share: float | None = None, rewards: RewardMap | None = None, added: int = 0, lanes: int = 1) -> MixedReplay:
    replay = MixedReplay(ReplayBuffer(dataset()), ReplayBuffer.online(SPEC, 20, lanes, reward_transform=rewards), share)
    for step in range(added):
        play(replay, step, lanes)
    return replay


def play(replay: MixedReplay, step: int, lanes: int = 1) -> None:
    """One step of an endless episode: observations 100, 101 …, rewards 0, 1 …"""
    ones = np.ones((lanes, 1), np.float32)
    never = np.zeros(lanes, dtype=bool)
    replay.add(Steps(ones * (100 + step), ones, np.full(lanes, float(step)), never, never, ones * (101 + step)))


# --- the replay -----------------------------------------------------------------------------------------------------


def test_every_step_is_as_likely_old_or_new() -> None:
    replay = mixed(added=3)
    assert len(replay) == 8
    batch = replay.sample(40_000, [torch.Generator().manual_seed(0)], discount=0.9)
    rewards, counts = batch.rewards.unique(return_counts=True)
    assert rewards.tolist() == [0, 1, 2, 10, 11, 12, 13, 14]
    assert counts.tolist() == pytest.approx([5_000] * 8, abs=5 * (40_000 * 7 / 64) ** 0.5)


def test_a_batch_is_what_both_replays_hold() -> None:
    replay = mixed(added=3)
    batch = replay.sample(200, [torch.Generator().manual_seed(1)], discount=0.9, n_step=2, next_actions=True)
    # (observation, two-step return, discount, observation after) of every step, by hand
    expected = {
        0.0: (10 + 0.9 * 11, 0.9**2, 2.0),
        1.0: (11 + 0.9 * 12, 0.0, 3.0),
        2.0: (12.0, 0.0, 3.0),
        4.0: (13 + 0.9 * 14, 0.0, 6.0),
        5.0: (14.0, 0.0, 6.0),
        100.0: (0 + 0.9 * 1, 0.9**2, 102.0),
        101.0: (1 + 0.9 * 2, 0.9**2, 103.0),
        102.0: (2.0, 0.9, 103.0),
    }
    seen = set()
    for row in range(200):
        observation = batch.observations[row].item()
        values = (batch.rewards[row].item(), batch.discounts[row].item(), batch.next_observations[row].item())
        assert values == pytest.approx(expected[observation], rel=1e-6)
        assert batch.actions[row].item() == (1.0 if observation >= 100 else 0.0)
        seen.add(observation)
    assert seen == set(expected)
    assert batch.next_action_mask is not None and batch.next_action_mask.shape == (200,)


@pytest.mark.parametrize(("share", "new"), [(0.0, 0), (0.01, 1), (0.25, 2), (0.5, 4), (0.99, 7), (1.0, 8)])
def test_a_share_is_kept_in_every_batch(share: float, new: int) -> None:
    replay = mixed(share, added=2)
    for seed in range(5):
        batch = replay.sample(8, [torch.Generator().manual_seed(seed)], discount=0.9)
        assert int((batch.observations >= 100).sum()) == new


@pytest.mark.parametrize("share", [None, 0.5, 1.0])
def test_before_the_first_step_it_is_the_dataset(share: float | None) -> None:
    batch = mixed(share).sample(64, [torch.Generator().manual_seed(0)], discount=0.9)
    assert batch.observations.shape == (64, 1) and float(batch.observations.max()) < 100


def test_new_rewards_are_mapped_as_the_datasets_were() -> None:
    data = dataset()  # returns 33 and 27
    for name, expected in (
        ("none", [0.0, 1.0]),
        ("minus_one", [-1.0, 0.0]),
        ("return_range", [0.0, 1000 / 6]),
        ("scale:0.5", [0.0, 0.5]),
        ("standardise", [-12 / 2**0.5, -11 / 2**0.5]),  # mean 12, variance 2
    ):
        replay = mixed(1.0, reward_map(name, data), added=2)
        rewards = replay.sample(32, [torch.Generator().manual_seed(0)], discount=0.9).rewards.unique()
        assert rewards.tolist() == pytest.approx(expected, rel=1e-6), name


def test_a_state_brings_the_new_steps_back() -> None:
    replay, again = mixed(added=5), mixed()
    again.load_state_dict(replay.state_dict())
    assert len(again) == len(replay) == 10
    ours, theirs = (r.sample(50, [torch.Generator().manual_seed(3)], discount=0.9) for r in (replay, again))
    assert torch.equal(ours.observations, theirs.observations) and torch.equal(ours.rewards, theirs.rewards)
    with pytest.raises(ValueError, match="expected"):
        again.load_state_dict(mixed(added=4, lanes=2).state_dict())


def test_what_does_not_mix_is_refused() -> None:
    offline, online = ReplayBuffer(dataset()), ReplayBuffer.online(SPEC, 20)
    for share in (-0.1, 1.5):
        with pytest.raises(ValueError, match=rf"share of online steps in \[0, 1\], got {share}"):
            MixedReplay(offline, online, share=share)
    with pytest.raises(TypeError, match="an offline replay"):
        MixedReplay(online, online)
    with pytest.raises(TypeError, match="an offline replay"):
        MixedReplay(offline, offline)
    with pytest.raises(ValueError, match="one time_limit, got 'bootstrap' and 'terminal'"):
        MixedReplay(offline, ReplayBuffer.online(SPEC, 20, time_limit="terminal"))
    with pytest.raises(ValueError, match="expected one generator"):
        MixedReplay(offline, online).sample(4, [torch.Generator(), torch.Generator()], discount=0.9)
    with pytest.raises(ValueError, match="batch size of at least 1"):
        MixedReplay(offline, online).sample(0, [torch.Generator()], discount=0.9)


# --- who plays ------------------------------------------------------------------------------------------------------


def observed(count: int) -> Step:
    zeros = torch.zeros(count)
    return Step(
        observations=torch.randn(count, 1, generator=torch.Generator().manual_seed(0)),
        previous_actions=torch.zeros(count, 1),
        previous_rewards=zeros,
        first=zeros.bool(),
        reset=zeros.bool(),
    )


def test_the_policy_that_plays_has_the_noise_and_the_evaluated_one_has_none() -> None:
    algorithm = TD3BC(TD3BCConfig(hidden_sizes=(8,)), dataset().spec())
    player = FineTuned(algorithm, SPEC.action_space, noise=0.1)
    step = observed(2_000)
    own = algorithm.policy()(step, None)[0]
    assert torch.equal(player.policy()(step, None)[0], own)
    played = player.policy(deterministic=False, step=7)(step, None, torch.Generator().manual_seed(0))[0]
    inside = own.abs() < 0.5  # there nothing is clipped
    assert inside.sum() > 500
    assert float((played - own)[inside].std()) == pytest.approx(0.1, rel=0.1)
    assert float((played - own)[inside].mean()) == pytest.approx(0.0, abs=0.02)
    quiet = FineTuned(algorithm, SPEC.action_space)
    assert not isinstance(quiet.policy(deterministic=False), NoisyPolicy)


def test_the_weight_of_cloning_changes_where_playing_begins() -> None:
    algorithm = TD3BC(TD3BCConfig(hidden_sizes=(8,), alpha=2.0, online_alpha=5.0), dataset().spec())
    player = FineTuned(algorithm, SPEC.action_space)
    assert algorithm.alpha == 2.0
    player.begin()
    assert algorithm.alpha == 5.0
    same = TD3BC(TD3BCConfig(hidden_sizes=(8,), alpha=2.0), dataset().spec())
    FineTuned(same, SPEC.action_space).begin()
    assert same.alpha == 2.0


def test_updates_keep_to_their_ratio() -> None:
    algorithm = TD3BC(TD3BCConfig(hidden_sizes=(8,)), dataset().spec())
    player = FineTuned(algorithm, SPEC.action_space, updates_per_step=0.5)
    assert [player.updates_due(3, steps) for steps in (0, 1, 2, 7, 100)] == [0, 0, 1, 3, 50]


def test_which_scores_have_collapsed() -> None:
    assert [collapsed(score, 40.0) for score in (40, 20, 19.9, -5)] == [False, False, True, True]
    assert [collapsed(score, -200.0) for score in (-100, -300, -301)] == [False, False, True]
    assert score_of({"return_mean": 3.0, "normalized_score": None}) == 3.0
    assert score_of({"return_mean": 3.0, "normalized_score": 50.0}) == 50.0
    told: list[Any] = []
    lines = {0: {"return_mean": 10.0, "normalized_score": None}, 1: {"return_mean": 4.0, "normalized_score": None}}
    function = watched(lambda index, step: lines[index], {0: 10.0, 1: 10.0}, lambda *what: told.append(what))
    assert function(0, 7) == lines[0] and function(1, 8) == {**lines[1], "collapsed": True}
    assert told == [(1, 8, 4.0)]


# --- runs -----------------------------------------------------------------------------------------------------------

CONFIGS: dict[str, dict[str, Any]] = {
    "td3_bc": {"online_alpha": 10.0},
    "cql": {"num_actions": 2},
    "iql": {"reward_transform": "return_range", "online_share": 0.5},
}


@pytest.fixture(scope="module")
def pendulum() -> Episodes:
    """300 steps of random torque, in episodes of 50."""
    env = gymnasium.make("Pendulum-v1", max_episode_steps=50)
    env.action_space.seed(0)
    rows = []
    for episode in range(6):
        seen, actions, rewards = [env.reset(seed=episode)[0]], [], []
        for _ in range(50):
            actions.append(env.action_space.sample())
            observation, reward, *_ = env.step(actions[-1])
            seen.append(observation)
            rewards.append(reward)
        truncated = np.arange(50) == 49
        rows.append(
            {
                "observations": np.array(seen),
                "actions": np.array(actions),
                "rewards": np.array(rewards, dtype=float),
                "terminated": np.zeros(50, dtype=bool),
                "truncated": truncated,
            }
        )
    return Episodes.from_episodes(
        rows, observation_space=env.observation_space, action_space=env.action_space, source="random pendulum"
    )


def go(data: Episodes, path: str = "run", algorithm: str = "td3_bc", **options: Any) -> Run:
    defaults: dict[str, Any] = {
        "env": "Pendulum-v1",
        "steps": 40,
        "online_steps": 60,
        "seeds": (0, 1),
        "batch_size": 8,
        "hidden_sizes": (8, 8),
        "eval_episodes": 1,
        "log_every": 10,
        "evaluate_every": 25,
        "checkpoint_every": 15,
        "quiet": True,
    }
    return herdbook.train(algorithm, dataset=data, run_dir=path, **(defaults | CONFIGS.get(algorithm, {}) | options))


def test_a_run_goes_on_in_the_environment(pendulum: Episodes) -> None:
    run = go(pendulum, online_updates=2.0)
    steps = [line["step"] for line in run.evaluations() if line["seed"] == 0]
    assert steps == [25, 40, 50, 75, 100]
    assert run.checkpoints.last() == 100
    assert run.checkpoints.steps() == [40, 90, 100]  # the last two, and where playing began
    state = run.checkpoints.load()
    replays = run.checkpoints.load_replay(state)["replays"]
    assert [len(replay["rewards"]) for replay in replays] == [60, 60]
    assert not torch.equal(replays[0]["rewards"], replays[1]["rewards"])
    assert [one["updates"] for one in state["state"]["seed_by_seed"]] == [160, 160]  # 40, and two for each step
    assert {"collected/lost", "loss/critic"} <= run.metrics()[-1].keys()


def test_the_last_part_is_that_of_its_own_weight(pendulum: Episodes) -> None:
    ends = [go(pendulum, f"run-{alpha}", online_alpha=alpha, seeds=(0,)).checkpoints for alpha in (None, 0.0)]
    offline, tuned = ([end.load(step)["state"]["seed_by_seed"][0]["online"] for end in ends] for step in (40, None))
    assert equal(*offline) and not equal(*tuned)


@pytest.mark.parametrize("algorithm", CONFIGS)
def test_the_first_part_is_the_offline_run(pendulum: Episodes, algorithm: str) -> None:
    both = (
        go(pendulum, "both", algorithm, seeds=(0,), actor_decay_updates=40)
        if algorithm == "iql"
        else go(pendulum, "both", algorithm, seeds=(0,))
    )
    alone = go(pendulum, "alone", algorithm, seeds=(0,), online_steps=0, online_share=None)
    offline = alone.checkpoints.load()["state"]
    assert equal(both.checkpoints.load(40)["state"]["seed_by_seed"][0], offline)
    lines = [line for line in both.evaluations() if line["step"] <= 40]
    assert lines == alone.evaluations()


def test_a_seed_is_the_same_alone_and_beside_others(pendulum: Episodes) -> None:
    pair, alone = go(pendulum, "pair"), go(pendulum, "alone", seeds=(1,))
    assert [line for line in pair.evaluations() if line["seed"] == 1] == alone.evaluations()


@pytest.mark.parametrize(
    ("algorithm", "when"),
    [
        ("td3_bc", ("update", 20)),
        ("td3_bc", ("update", 90)),  # 80 are the offline ones of two seeds
        ("td3_bc", ("checkpoint", 5)),  # the one where playing begins, which is written twice
        ("td3_bc", ("add", 77)),
        ("cql", ("update", 150)),
        ("cql", ("line", 24)),
        ("iql", ("checkpoint", 6)),
        ("iql", ("link", 8)),
    ],
)
def test_a_run_that_dies_anywhere_resumes_to_the_bit(
    pendulum: Episodes, algorithm: str, when: tuple[str, int], die_at: Any
) -> None:
    whole = go(pendulum, "whole", algorithm)
    die_at(*when, algorithm_class(algorithm), lambda: go(pendulum, "cut", algorithm))
    cut, continued = resume("cut", dataset=pendulum, quiet=True)
    assert continued and same(cut, whole)
    assert resume("cut", dataset=pendulum, quiet=True)[1] is False


def test_it_is_extended_to_the_bit(pendulum: Episodes) -> None:
    cadence = {"evaluate_every": 20, "checkpoint_every": 20}
    whole = go(pendulum, "whole", **cadence)
    go(pendulum, "part", online_steps=20, **cadence)
    part, continued = resume("part", online_steps=60, dataset=pendulum, quiet=True)
    assert continued and same(part, whole)
    assert part.options["online_steps"] == 60


def test_the_policy_of_every_part_is_loaded(pendulum: Episodes) -> None:
    run = go(pendulum, seeds=(3, 4))
    state = np.array([1.0, 0.0, 0.5], np.float32)
    before, after = (herdbook.load(run.path, step=step, seed=4).act(state) for step in (40, None))
    assert before.shape == after.shape == (1,) and not np.array_equal(before, after)


@pytest.mark.parametrize("algorithm", ["bc", "bcq"])
def test_others_are_fine_tuned_too(pendulum: Episodes, algorithm: str) -> None:
    run = go(pendulum, algorithm=algorithm, steps=4, online_steps=6, seeds=(0,))
    assert run.checkpoints.last() == 10


@pytest.mark.parametrize("algorithm", ["discrete_cql", "discrete_bcq"])
def test_discrete_actions_are_fine_tuned_too(algorithm: str) -> None:
    run = herdbook.train(
        algorithm,
        dataset="classic/cartpole",
        run_dir="run",
        steps=20,
        online_steps=30,
        online_noise=0.2,
        num_envs=2,
        batch_size=8,
        hidden_sizes=(8,),
        eval_episodes=1,
        quiet=True,
    )
    replay = run.checkpoints.load_replay(run.checkpoints.load())["replays"][0]
    assert len(replay["rewards"]) == 30 and set(replay["actions"].tolist()) == {0, 1}


def test_it_can_begin_without_an_offline_part(pendulum: Episodes) -> None:
    run = go(pendulum, steps=0)
    assert [line["step"] for line in run.evaluations() if line["seed"] == 0] == [0, 25, 50, 60]
    assert run.checkpoints.steps()[0] == 0  # kept


class Fickle(gymnasium.Env[Any, Any]):
    """Every step pays `Fickle.pay`; episodes of five steps."""

    pay = 1.0
    observation_space: Any = SPEC.observation_space
    action_space: Any = SPEC.action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return np.zeros(1, np.float32), Fickle.pay, False, self.t == 5, {}


def test_a_collapse_is_told_and_recorded(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def then_it_pays_less(*arguments: Any, **keywords: Any) -> Any:
        monkeypatch.setattr(Fickle, "pay", 0.25)
        return train_online(*arguments, **keywords)

    monkeypatch.setattr(Fickle, "pay", 1.0)
    monkeypatch.setattr("herdbook.experiments.train.train_online", then_it_pays_less)
    run = go(
        dataset(), env=Fickle, steps=5, online_steps=10, seeds=(0,), evaluate_every=100, log_every=100, quiet=False
    )
    lines = [(line["step"], line["return_mean"], line.get("collapsed")) for line in run.evaluations()]
    assert lines == [(5, 5.0, None), (15, 1.25, True)]
    said = capsys.readouterr().out
    assert "warning: seed 0 has collapsed at step 15: 1.2, it began with 5.0" in said
    assert "run: continues from step 5" in said


# --- mistakes -------------------------------------------------------------------------------------------------------


def test_mistakes_are_told_in_a_line_and_leave_nothing(pendulum: Episodes) -> None:
    for words, options in (
        ("online_steps: expected 0 or more, got -1", {"online_steps": -1}),
        ("online_updates: expected a finite number above 0, got 0", {"online_updates": 0.0}),
        ("online_noise: expected a finite number of 0 or more, got -1", {"online_noise": -1.0}),
        (r"online_share: expected a number in \[0, 1\], got 2", {"online_share": 2.0}),
        ("online_replay: expected 1 or more, got 0", {"online_replay": 0}),
        ("online_replay: expected .*capacity >= lanes", {"online_replay": 2, "num_envs": 3}),
        ("online_share: expected --online-steps beside it, got 0.5", {"online_share": 0.5, "online_steps": 0}),
        ("workers: expected 0, the learner steps one agent itself; got 2", {"workers": 2}),
        ("random pendulum: names no environment to learn in; name one with --env", {"env": None}),
    ):
        with pytest.raises(UserError, match=words):
            go(pendulum, **options)
    with pytest.raises(UserError, match=r"online_noise: expected noise in \[0, 1\], got 1.5"):
        herdbook.train(
            "discrete_cql", dataset="classic/cartpole", online_steps=5, online_noise=1.5, run_dir="run", quiet=True
        )
    with pytest.raises(UserError, match="online_steps: expected 0, all steps of SAC are those of an environment"):
        herdbook.train("sac", env="Pendulum-v1", online_steps=5, run_dir="run", quiet=True)
    assert not Path("run").exists()


def test_what_cannot_be_extended_is_said(pendulum: Episodes, capsys: pytest.CaptureFixture[str]) -> None:
    go(pendulum, "tuned")
    with pytest.raises(UserError, match="steps: tuned is fine-tuned after 40; expected online_steps, got 80"):
        resume("tuned", steps=80, dataset=pendulum)
    with pytest.raises(UserError, match="online_steps: expected 1 or more, got 0"):
        resume("tuned", online_steps=0, dataset=pendulum)
    with pytest.raises(UserError, match="online_steps: expected at least 60, where tuned is, got 10"):
        resume("tuned", online_steps=10, dataset=pendulum)
    assert main(["resume", "tuned"]) == 0
    assert "finished at step 100; nothing to do (--online-steps N extends it)" in capsys.readouterr().out


def test_code_that_a_dataset_names_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("sentinel_code.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(Path.cwd())
    data = dataset(environment=EnvironmentSpec(id="sentinel_code:make"))
    with pytest.raises(EnvironmentUnavailable, match="code that a file names is not imported"):
        go(data, env=None)
    assert not Path("run").exists()


def test_rewards_that_were_changed_before_are_refused(pendulum: Episodes) -> None:
    with pytest.raises(UserError, match=r"they were changed: rewards: scale:0.5; give the raw data"):
        go(transform_rewards(pendulum, "scale:0.5"))


def test_a_seed_that_stopped_offline_hides_no_other(pendulum: Episodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses of those that go on are read anew, and one that fails later stops too."""
    update, calls = TD3BC.update, dict[int, int]()

    def failing(self: TD3BC, batch: Any) -> Any:
        seed = self.learner.seeds[0]
        calls[seed] = calls.get(seed, 0) + 1
        metrics = update(self, batch)
        bad = (seed == 0 and calls[seed] == 20) or (seed == 1 and calls[seed] == 70)
        return metrics | ({"loss/critic": torch.tensor(torch.nan)} if bad else {})

    monkeypatch.setattr(TD3BC, "update", failing)
    run = go(pendulum, seeds=(0, 1, 2))
    lines = {seed: [line for line in run.metrics() if line["seed"] == seed] for seed in (0, 1, 2)}
    assert [lines[seed][-1]["step"] for seed in (0, 1, 2)] == [20, 70, 100]
    later = [line["loss/critic"] for line in lines[2] if line["step"] > 40]
    assert len(set(later)) == len(later) == 6 and "collected/lost" in lines[2][-1]


def test_the_record_says_how_it_was_tuned(pendulum: Episodes) -> None:
    run = go(pendulum, seeds=(0,), online_share=0.5)
    options = json.loads((run.path / "config.json").read_text())["run"]
    assert (options["steps"], options["online_steps"], options["online_share"]) == (40, 60, 0.5)
    assert options["num_envs"] == 1


def test_the_adapter_plays_step_by_step_whatever_the_algorithm_declares() -> None:
    """It takes steps from a replay and has no `follows` of its own."""

    class Follower(TD3BC):
        needs = replace(TD3BC.needs, follows=True, num_envs=4)

    spec = Spec(spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, (1,)))
    needs = FineTuned(
        Follower(TD3BCConfig(hidden_sizes=(4,), standardise_observations=False), spec), spec.action_space
    ).needs
    assert (needs.interaction, needs.environment, needs.follows, needs.num_envs) == ("steps", True, False, 1)
