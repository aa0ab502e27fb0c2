"""Learning with environments as runs: exact resume, workers, lost episodes, opponents, collection, and the command."""

import json
import math
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sameness import equal, same, state_of

import herdbook
from herdbook.cli.main import main
from herdbook.core.book import Book
from herdbook.core.checkpoint import Checkpoints
from herdbook.core.environments import EnvironmentSpec
from herdbook.core.episode_collector import EpisodeRound
from herdbook.core.joint.actor import JointActor
from herdbook.core.joint.environments import make_joint_environment
from herdbook.core.joint.types import JointEpisode
from herdbook.core.learner import Learner
from herdbook.core.registry import joint_names
from herdbook.core.runner import EnvironmentFailed
from herdbook.core.runs import Run, RunError, RunFailed
from herdbook.datasets.episodes import DataError
from herdbook.datasets.joint.episodes import JointEpisodes
from herdbook.datasets.learned import LearnedBy
from herdbook.datasets.load import load_dataset, recorded_environment
from herdbook.experiments.catalogue import UserError
from herdbook.experiments.collect import collect
from herdbook.experiments.evaluate import evaluate_run
from herdbook.experiments.opponents import RunPlayer, keep_opponents, opponents_of
from herdbook.experiments.records import options_of
from herdbook.experiments.sides import sides_of
from herdbook.experiments.train import resume

GAME = '''
"""A game for tests: both agents are paid for choosing the side that they see; episodes last 3 to 6 steps."""
import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv


class Sides(ParallelEnv):
    metadata = {"name": "sides_v0"}

    def __init__(self, fail_every=0, nan=False, agents=2, continuous=False):
        self.possible_agents = [f"player_{i}" for i in range(agents)]
        self.agents, self.fail_every, self.nan = [], fail_every, nan
        self.continuous = continuous

    def observation_space(self, agent):
        return spaces.Box(-1, 1, (2,), np.float32)

    def action_space(self, agent):
        return spaces.Box(-1, 1, (1,), np.float32) if self.continuous else spaces.Discrete(2)

    def state(self):
        return np.concatenate([self._see()[agent] for agent in self.possible_agents])

    def _see(self):
        return {a: np.array([self.side, self.t / 6], np.float32) for a in self.possible_agents}

    def reset(self, seed=None, options=None):
        self.random = np.random.default_rng(seed)
        self.seed, self.t, self.length = seed, 0, int(self.random.integers(3, 7))
        self.side = float(self.random.choice([-1, 1]))
        self.agents = list(self.possible_agents)
        return self._see(), {a: {} for a in self.agents}

    def step(self, actions):
        self.t += 1
        broken = self.fail_every and self.seed and self.seed % self.fail_every == 0  # 0 is the seed of the first check
        if broken and self.t == 2:
            if not self.nan:
                raise RuntimeError("the game broke")
            self.side = float("nan")
        chosen = {a: float(np.asarray(x).reshape(-1)[0]) for a, x in actions.items()}
        if not self.continuous:
            chosen = {a: 2 * x - 1 for a, x in chosen.items()}
        rewards = {a: x * self.side for a, x in chosen.items()}
        self.side = float(self.random.choice([-1, 1])) if not broken else self.side
        over = self.t == self.length
        flags = {a: over for a in self.agents}
        seen, infos = self._see(), {a: {} for a in self.agents}
        if over:
            self.agents = []
        return seen, rewards, flags, {a: False for a in flags}, infos
'''
SMALL: dict[str, Any] = {
    "hidden_sizes": (8, 8),
    "batch_size": 4,
    "warmup_episodes": 4,
    "epsilon_steps": 100,
    "replay_steps": 200,
    "target_period": 5,
}


@pytest.fixture
def game(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "sides.py").write_text(GAME)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "sides:Sides"


def go(game: str, path: Path | str = "run", algorithm: str = "vdn", **options: Any) -> Run:
    defaults: dict[str, Any] = {"steps": 200, "seeds": (0, 1), "eval_episodes": 2, "num_envs": 3, "quiet": True}
    return herdbook.train(algorithm, env=game, run_dir=path, **(defaults | SMALL | options))


def test_a_run_learns_and_says_what_it_did(game: str) -> None:
    run = go(game, steps=3000, seeds=(0,), epsilon_steps=1000, lr=5e-3)
    final = run.evaluations()[-1]
    assert final["step"] == 3000
    assert final["return_mean"] == pytest.approx(2 * np.mean(final["lengths"]))  # every step pays both agents
    assert final["return_mean"] == pytest.approx(sum(final["agent_returns"].values()))
    timing = json.loads((run.path / "timing.jsonl").read_text().splitlines()[-1])
    assert timing["environment_steps_per_second"] > timing["updates_per_second"] > 0
    assert run.config["dataset"] is None and run.config["environment"]["id"] == game
    assert run.metrics()[-1]["collected/lost"] == 0


@pytest.mark.parametrize(
    "when", [("update", 1), ("update", 31), ("checkpoint", 2), ("link", 3), ("line", 9), ("add_joint", 7)]
)
def test_a_run_that_dies_anywhere_resumes_to_the_bit(game: str, die_at: Any, when: tuple[str, int]) -> None:
    from herdbook.marl.vdn import VDN

    cadence = {"log_every": 20, "evaluate_every": 70, "checkpoint_every": 50}
    whole = go(game, "whole", **cadence)
    die_at(*when, VDN, lambda: go(game, "cut", **cadence))
    cut, continued = resume("cut", env=game, quiet=True)
    assert continued and same(cut, whole)


def test_resume_extends_to_the_bit(game: str) -> None:
    cadence = {"log_every": 20, "evaluate_every": 100, "checkpoint_every": 100}
    whole = go(game, "whole", steps=400, **cadence)
    go(game, "part", **cadence)
    part, continued = resume("part", steps=400, env=game, quiet=True)
    assert continued and part.options["steps"] == 400
    assert equal(state_of(part)["state"], state_of(whole)["state"])
    assert part.evaluations()[-2:] == whole.evaluations()[-2:]


def test_the_bits_do_not_depend_on_the_number_of_workers(game: str) -> None:
    runs = [go(game, f"run{workers}", workers=workers, steps=60, num_envs=9) for workers in (0, 1, 2)]
    assert same(runs[0], runs[1]) and same(runs[0], runs[2])


def test_a_worker_that_dies_ends_the_run_with_its_exit_code(game: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from herdbook.core import episode_collector

    submit = episode_collector._Worker.submit

    def kill_first(self: Any, task: Any) -> Any:
        self.process.kill()
        self.process.join()
        return submit(self, task)

    monkeypatch.setattr(episode_collector._Worker, "submit", kill_first)
    with pytest.raises(RunFailed, match=r"exit code -9"):
        go(game, workers=1)


def test_what_a_worker_raises_is_raised_here(game: str) -> None:
    with pytest.raises(RunFailed, match="the game broke"):
        go(game, workers=1, env_kwargs={"fail_every": 1}, eval_episodes=0)


def test_only_the_last_checkpoint_holds_a_replay(game: str) -> None:
    run = go(game, checkpoint_every=50, keep=3)
    assert len(run.checkpoints.steps()) == 3
    assert [path.name for path in (run.path / "checkpoints").glob("replay_*")] == [f"replay_{run.checkpoints.last()}"]
    shutil.rmtree(run.path / "checkpoints" / f"replay_{run.checkpoints.last()}")
    assert isinstance(herdbook.load(run.path), JointActor)  # a policy needs none
    with pytest.raises(RunError, match="replay cannot be restored"):
        resume(run.path, steps=300, env=game, quiet=True)


@pytest.mark.parametrize("nan", [False, True])
def test_a_lost_episode_is_counted_and_the_run_goes_on(
    game: str, nan: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run = go(game, env_kwargs={"fail_every": 4, "nan": nan}, eval_episodes=0, seeds=(0,), quiet=False)
    lost = run.metrics()[-1]["collected/lost"]
    assert lost > 0
    told = [line for line in capsys.readouterr().out.splitlines() if "episode is lost" in line]
    assert len(told) >= lost and "reset seed" in told[0]  # and what was played ahead


def test_an_environment_that_keeps_failing_ends_the_run_with_the_cause(game: str) -> None:
    with pytest.raises(RunFailed, match=r"failed in 1\d episodes in a row: .*the game broke"):
        go(game, env_kwargs={"fail_every": 1}, eval_episodes=0)


def test_a_failure_now_and_then_is_no_failure_in_a_row(game: str) -> None:
    run = go(game, env_kwargs={"fail_every": 2}, eval_episodes=0, steps=600, seeds=(0,))
    assert run.metrics()[-1]["collected/lost"] > 10


def test_a_seed_whose_loss_is_not_finite_stops_alone(game: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Learner.step

    def step(self: Learner, *arguments: Any) -> Any:
        metrics = original(self, *arguments)
        return {**metrics, "loss/team": metrics["loss/team"] * math.nan} if self.seeds == (1,) else metrics

    monkeypatch.setattr(Learner, "step", step)
    run = go(game, steps=400)
    assert {line["seed"] for line in run.metrics() if line["step"] == 400} == {0}
    assert [line["seed"] for line in run.evaluations()][-1] == 0
    assert "1" in run.checkpoints.load()["stopped"]


def test_the_algorithm_says_what_it_learns_from(game: str) -> None:
    with pytest.raises(UserError, match="give --env, not --dataset"):
        herdbook.train("qmix", dataset="classic/pendulum", steps=1)
    with pytest.raises(UserError, match="give --dataset"):
        herdbook.train("matd3_bc", env=game, steps=1)
    with pytest.raises(UserError, match="expected --env"):
        herdbook.train("qmix", steps=1)


def test_actions_that_do_not_fit_are_told_with_who_fits(game: str) -> None:
    with pytest.raises(UserError, match=r"expected discrete actions.*maddpg"):
        go(game, algorithm="qmix", env_kwargs={"continuous": True})


def test_agents_are_chosen_by_pattern_and_others_play(game: str) -> None:
    run = go(game, learn=("player_1",), env_kwargs={"agents": 3})
    assert set(run.evaluations()[-1]["agent_returns"]) == {"player_1"}
    again = go(
        game,
        "against",
        learn=("player_1",),
        others=str(go(game, "all", env_kwargs={"agents": 3}).path),
        env_kwargs={"agents": 3},
    )
    assert set(again.evaluations()[-1]["agent_returns"]) == {"player_1"}
    with pytest.raises(ValueError, match=r"nobody.*player_0, player_1, player_2|player_0.*nobody"):
        go(game, "none", learn=("nobody",), env_kwargs={"agents": 3})
    with pytest.raises(RunError, match="there is no run here"):
        go(game, "missing", learn=("player_1",), others="nowhere", env_kwargs={"agents": 3})
    with pytest.raises(UserError, match="expected --learn"):
        go(game, "unnamed", others="nowhere")


def test_an_environment_that_is_code_must_be_given_again(game: str) -> None:
    run = go(game)
    with pytest.raises(UserError, match="is not imported"):
        resume(run.path, steps=300, quiet=True)
    with pytest.raises(UserError, match="is not imported"):
        evaluate_run(run.path, episodes=1)
    results = evaluate_run(run.path, episodes=3, env=game, seed=5)
    assert [len(line["returns"]) for line in results["seeds"]] == [3, 3]


def test_an_actor_plays_a_game_by_hand(game: str) -> None:
    import sides  # type: ignore[import-not-found]  # written by the fixture

    run = go(game, steps=3000, seeds=(0,), epsilon_steps=1000, lr=5e-3)
    actor, env = herdbook.load(run.path), sides.Sides()
    assert isinstance(actor, JointActor)
    observations, _ = env.reset(seed=10_000)
    total = 0.0
    while env.agents:
        actions = actor.act(observations)
        assert all(type(action) is int for action in actions.values())
        observations, rewards, *_ = env.step(actions)
        total += sum(rewards.values())
    assert total == run.evaluations()[-1]["returns"][0]


@pytest.mark.parametrize(("algorithm", "continuous"), [("matd3_bc", True), ("qmix_cql", False)])
def test_collected_episodes_are_a_dataset_to_learn_from(
    game: str, algorithm: str, continuous: bool, minari_root: Path
) -> None:
    arguments = {"continuous": continuous}
    episodes, folder = collect("random", out="test/sides-v0", episodes=12, env=game, env_kwargs=arguments, seed=3)
    read = load_dataset("test/sides-v0")
    assert isinstance(episodes, JointEpisodes) and isinstance(read, JointEpisodes) and folder.is_dir()
    assert read.fingerprint() == episodes.fingerprint()
    assert [dict(m)["seed"] for m in read.episode_metadata] == list(range(3, 15))
    run = herdbook.train(
        algorithm,
        dataset="test/sides-v0",
        env=game,
        env_kwargs=arguments,
        steps=20,
        seeds=(0, 1),
        hidden_sizes=(8, 8),
        batch_size=4,
        eval_episodes=2,
        run_dir="offline",
        quiet=True,
    )
    assert len(run.evaluations()[-1]["agent_returns"]) == 2
    out, _ = collect(run.path, out="test/again-v0", episodes=2, env=game, env_kwargs=arguments)
    assert len(out) == 2


def test_one_agent_is_collected_as_one(minari_root: Path) -> None:
    assert main(["collect", "random", "--env", "CartPole-v1", "--episodes", "3", "--out", "test/cartpole-v0"]) == 0
    assert load_dataset("test/cartpole-v0").returns().shape == (3,)


def test_a_trained_run_is_collected_by_the_command(game: str, minari_root: Path) -> None:
    run = go(game)
    words = ["collect", str(run.path), "--env", game, "--episodes", "4", "--out", "test/sides-v0", "--run-seed", "1"]
    assert main(words) == 0
    policy = LearnedBy(algorithm="vdn", step=run.checkpoints.last(), seed=1)
    data = load_dataset("test/sides-v0")
    assert data.learned_by == data.concat(data).learned_by == data.select([0]).learned_by == (policy,)
    assert main([*words[:-1], "7"]) == 2  # no such seed
    assert main(["collect", "random", "--episodes", "4", "--out", "test/x-v0"]) == 2  # no environment


def test_a_gymnasium_environment_is_a_team_of_one(tmp_path: Path) -> None:
    run = herdbook.train(
        "independent_q", env="CartPole-v1", steps=200, num_envs=2, eval_episodes=2, run_dir="run", quiet=True, **SMALL
    )
    assert list(run.evaluations()[-1]["agent_returns"]) == ["agent"]


def test_the_command_trains_and_resumes_after_a_real_kill(game: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "herdbook.cli.main"]
    flags = ["--env", game, "--steps", "40000", "--num-envs", "2", "--workers", "1", "--eval-episodes", "0"]
    flags += ["--hidden-sizes", "8", "8", "--batch-size", "4", "--checkpoint-every", "50", "--run-dir", "run"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen([*words, "train", "vdn", *flags], env=environment, stdout=subprocess.DEVNULL)
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    while (checkpoints.last() or 0) < 100:
        assert process.poll() is None
    process.kill()
    process.wait()
    run, continued = resume("run", steps=max(400, (checkpoints.last() or 0) + 100), env=game, quiet=True)
    assert continued and run.checkpoints.last() == run.options["steps"]


def test_the_settings_of_mpe_are_those_of_its_published_numbers() -> None:
    run = herdbook.train(
        "qmix", env="mpe2/simple_spread_v3", steps=100, num_envs=2, eval_episodes=2, run_dir="run", quiet=True, **SMALL
    )
    assert run.options["time_limit"] == "terminal" and run.options["eval_episodes"] == 2
    assert run.config["environment"]["id"] == "mpe2/simple_spread_v3"
    assert [row["run"] for row in run.config["settings"]] == [{"time_limit": "terminal", "eval_episodes": 100}, {}]
    assert run.config["config"]["horizon"] == 25
    assert set(run.evaluations()[-1]["lengths"]) == {25}
    again, continued = resume(run.path, steps=200, quiet=True)  # a registered environment need not be given again
    assert continued and again.checkpoints.last() == 200


def test_centred_rewards_are_refused_where_episodes_end_at_different_times(
    game: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Agents would learn to end an episode, or to avoid its end, for the sake of the mean that is subtracted."""
    with pytest.raises(DataError, match=r"independent_q: reward_centring .*equal length, got 3 to 6 steps$"):
        go(game, algorithm="independent_q", reward_centring=True)
    words = ["train", "independent_q", "--env", game, "--steps", "60", "--workers", "0", "--warmup-episodes", "4"]
    assert main([*words, "--reward-centring", "--run-dir", "centred"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("herdbook: ")]
    assert "--no-reward-centring" in line

    task, short = "mpe2/simple_spread_v3", {"steps": 100, "num_envs": 2, "eval_episodes": 0, "quiet": True, **SMALL}
    run = herdbook.train("independent_q", env=task, **short)
    assert run.config["config"]["reward_centring"]
    ending = herdbook.train("independent_q", env=task, env_kwargs={"terminate_on_success": True}, **short)
    assert not ending.config["config"]["reward_centring"]


def test_a_team_reward_in_a_game_of_turns_is_refused_before_anything_is_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["train", "independent_q", "--env", "classic/tictactoe_v3", "--steps", "20", "--workers", "0"]
    assert main([*words, "--team-reward", "--run-dir", "run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("herdbook: independent_q: expected team_reward=False in a turn-based game")
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("name", "agents", "sides"),
    [
        ("mpe2/simple_tag_v3", "adversary_0 adversary_1 agent_0", ("adversary_*", "agent_*")),
        ("mpe2/simple_tag_v3", "adversary_0 adversary_1", None),  # one side learns
        ("mpe2/simple_crypto_v3", "eve_0 bob_0 alice_0", ("eve_*", "alice_* bob_*")),
        ("mpe2/simple_crypto_v3", "bob_0 alice_0", None),
        ("mpe2/simple_world_comm_v3", "leadadversary_0 agent_0", ("*adversary_*", "agent_*")),
        ("magent2.environments/battle_v4", "red_0 red_1 blue_0", ("red*", "blue*")),
        ("magent2.environments/gather_v5", "omnivore_0 omnivore_1", None),
        ("atari/pong_v3", "first_0 second_0", ("first_*", "second_*")),
        ("atari/entombed_cooperative_v3", "first_0 second_0", None),
        ("mpe2/simple_spread_v3", "agent_0 agent_1", None),
        ("mpe2/simple_speaker_listener_v4", "speaker_0 listener_0", None),
        ("mine:simple_tag_v3", "adversary_0 agent_0", None),  # may be anything
        ("mine/simple_tag_v3", "adversary_0 agent_0", None),
    ],
)
def test_the_sides_of_games_are_known_by_name(name: str, agents: str, sides: Any) -> None:
    assert sides_of(name, agents.split()) == sides


def test_the_games_of_mpe_with_sides_are_these() -> None:
    found = {}
    for name in joint_names():
        if name.startswith("mpe2/"):
            agents = make_joint_environment(name).spec.agents
            found[name] = sides_of(name, agents)
    games = ("simple_adversary_v3", "simple_crypto_v3", "simple_push_v3", "simple_tag_v3", "simple_world_comm_v3")
    assert {name for name, sides in found.items() if sides} == {f"mpe2/{game}" for game in games}


def test_a_sum_of_rewards_over_two_sides_is_noticed(
    game: str, minari_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def noticed(algorithm: str, env: str = "mpe2/simple_adversary_v3", **options: Any) -> list[str]:
        small = {"steps": 1, "batch_size": 2, "hidden_sizes": (8,), "eval_episodes": 0, "device": "cpu", **options}
        if "dataset" not in options:
            small |= {"env": env, "num_envs": 1, "warmup_episodes": 4}
        herdbook.train(algorithm, **small)
        return [line for line in capsys.readouterr().out.splitlines() if "sides" in line]

    (line,) = noticed("vdn")
    assert line == (
        "warning: mpe2/simple_adversary_v3 has sides, adversary_* against agent_*, but vdn learns from the sum of all "
        "agents' rewards; --learn adversary_* trains one side"
    )
    assert len(noticed("qmix")) == len(noticed("independent_q", team_reward=True)) == 1
    assert noticed("independent_q") == noticed("vdn", learn=("agent_*",)) == noticed("vdn", game) == []
    collect("random", out="mine/sides-v0", episodes=3, env="mpe2/simple_adversary_v3")
    (line,) = noticed("qmix_cql", dataset="mine/sides-v0")
    assert line.endswith("--learn adversary_* trains one side, which can then collect its data")
    assert noticed("qmix_cql", dataset="mine/sides-v0", centralised=False) == []


def test_the_settings_of_a_task_apply_to_data_of_it_under_any_name(minari_root: Path) -> None:
    collect("random", out="mine/anything-v0", episodes=3, env="mpe2/simple_spread_v3")
    for name in ("mine/anything-v0", "mine/anything"):
        assert getattr(recorded_environment(name), "id", None) == "mpe2/simple_spread_v3"
    recipe = recorded_environment("classic/cartpole")  # made on first use
    assert recipe is not None and recipe.id == "CartPole-v1"
    with pytest.raises(DataError, match="no dataset 'mine/nothing-v0'"):
        recorded_environment("mine/nothing-v0")
    run = herdbook.train(
        "qmix_cql", dataset="mine/anything-v0", steps=2, batch_size=2, eval_episodes=1, hidden_sizes=(8, 8), quiet=True
    )
    assert run.options["time_limit"] == "terminal" and run.config["config"]["horizon"] == 25
    words = [
        "train",
        "qmix_cql",
        "--dataset=mine/anything",
        "--steps",
        "2",
        "--batch-size",
        "2",
        "--eval-episodes",
        "0",
    ]
    assert main([*words, "--hidden-sizes", "8", "--time-limit", "bootstrap", "--run-dir", "asked"]) == 0
    assert Run("asked").options["time_limit"] == "bootstrap" and Run("asked").config["config"]["horizon"] == 25


def test_the_horizon_of_mpe_follows_the_length_of_the_game(minari_root: Path) -> None:
    task, options = "mpe2/simple_spread_v3", {"quiet": True, "eval_episodes": 1}
    short = herdbook.train("vdn", env=task, env_kwargs={"max_cycles": 7}, steps=14, num_envs=2, **options, **SMALL)
    assert short.config["config"]["horizon"] == 7 and set(short.evaluations()[-1]["lengths"]) == {7}
    assert [row["config"].get("horizon") for row in short.config["settings"]] == [None, 7, None]
    words = ["train", "vdn", "--env", task, "--env-kwargs", "max_cycles", "9", "--steps", "18", "--num-envs", "2"]
    words += ["--eval-episodes", "0", "--hidden-sizes", "8"]
    assert main([*words, "--run-dir", "nine"]) == 0 and Run("nine").config["config"]["horizon"] == 9
    assert main([*words, "--run-dir", "asked", "--horizon", "30"]) == 0
    assert Run("asked").config["config"]["horizon"] == 30  # the user's own flag

    collect("random", out="mine/short-v0", episodes=3, env=task, env_kwargs={"max_cycles": 8})
    data = {"dataset": "mine/short-v0", "steps": 1, "batch_size": 2, "hidden_sizes": (8, 8), **options}
    assert herdbook.train("qmix_cql", **data).config["config"]["horizon"] == 8  # recorded with the data
    longer = herdbook.train("qmix_cql", **data, env=task, env_kwargs={"max_cycles": 11})
    assert longer.config["config"]["horizon"] == 8  # that of what it learns from
    given = EnvironmentSpec(id=task, kwargs={"max_cycles": 6})
    spec = herdbook.train("vdn", env=given, steps=12, num_envs=2, **options, **SMALL)
    assert spec.config["config"]["horizon"] == 6 and spec.options["time_limit"] == "terminal"


def test_evaluations_and_comparisons_name_the_team_and_each_agent(
    game: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [go(game, name, algorithm=name) for name in ("vdn", "independent_q")]
    assert main(["eval", str(runs[0].path), "--env", game, "--episodes", "3"]) == 0
    out = capsys.readouterr().out
    assert "team return" in out and "player_0 " in out and "player_1 " in out
    assert main(["compare", *(str(run.path) for run in runs), "--out", "report"]) == 0
    assert "sum over agents" in capsys.readouterr().out
    records = json.loads(Path("report/marl_eval.json").read_text())
    lines = runs[0].evaluations()
    steps = records["gymnasium"][game]["vdn"]["seed_1"]
    assert steps["absolute_metrics"]["return"] == lines[-1]["returns"]
    assert steps["step_1"] == {"step_count": lines[1]["step"], "return": lines[1]["returns"]}
    assert records["gymnasium"][game]["independent_q"].keys() == {"seed_0", "seed_1"}


def test_an_episode_is_filmed(capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    run = herdbook.train(
        "vdn", env="mpe2/simple_spread_v3", steps=50, num_envs=2, eval_episodes=0, run_dir="run", quiet=True, **SMALL
    )
    assert main(["eval", str(run.path), "--episodes", "1", "--video", "film/episode.gif"]) == 0
    assert "26 frames" in capsys.readouterr().out  # T + 1
    with Image.open("film/episode.gif") as film:
        assert 13 < film.n_frames <= 26  # Pillow merges frames that are equal
    assert main(["eval", str(run.path), "--episodes", "1", "--video", "episode.txt"]) == 2


def test_a_users_own_networks_play_too(game: str) -> None:
    from functools import partial

    from herdbook.core.joint.environments import make_joint_environment
    from herdbook.core.joint.networks import AgentNetworks

    spec = make_joint_environment(game).spec
    own = {"agents": partial(AgentNetworks, spec, 2, (5, 5), sharing="kind", agent_id=True)}  # the config says (8, 8)
    runs = [go(game, f"run{workers}", networks=own, workers=workers) for workers in (0, 1)]
    assert same(*runs)
    with pytest.raises(UserError, match=r"another process can import.*workers=0"):
        go(game, "lambda", networks={"agents": lambda: own["agents"]()}, workers=1)
    assert not Path("lambda").exists()


@pytest.mark.parametrize("name", ["evil:Env", "evil/game_v0"])
def test_resume_imports_nothing_that_only_the_run_directory_names(game: str, tmp_path: Path, name: str) -> None:
    run = go(game)
    (tmp_path / "evil").mkdir()
    for module in ("__init__", "game_v0"):
        (tmp_path / "evil" / f"{module}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    config = json.loads((run.path / "config.json").read_text())
    config["environment"] = {"id": "CartPole-v1", "kwargs": {}, "max_episode_steps": 500}  # looks harmless
    config["run"]["env"] = name
    (run.path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="is not imported"):
        resume(run.path, steps=300, quiet=True)
    assert not (tmp_path / "imported").exists()


def test_metrics_of_a_play_are_where_the_losses_are() -> None:
    from types import SimpleNamespace

    from herdbook.core.member import Member
    from herdbook.core.needs import Needs

    player = SimpleNamespace(needs=Needs(environment=True))
    member = Member(player, SimpleNamespace(add=id), SimpleNamespace(device="meta"))  # type: ignore[arg-type]  # stand-ins
    flags, nobody = np.zeros((1, 2), dtype=np.bool_), np.zeros((2, 2), dtype=np.bool_)
    episode = JointEpisode({}, {}, rewards=np.ones((1, 2)), terminated=flags, truncated=flags, alive=nobody)
    member.add(EpisodeRound([episode], ["lost"]))
    assert {value.device.type for value in member.metrics.values()} == {"meta"} and len(member.metrics) == 3


def test_a_seed_that_stopped_is_stopped_once_and_stays_so_when_resumed(
    game: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, stops = Learner.step, []

    def step(self: Learner, *arguments: Any) -> Any:
        metrics = original(self, *arguments)
        if self.seeds == (1,) and self.updates >= 4:  # seen a round later
            for value in self.params.frozen["actor"].values():
                value.fill_(math.nan)
            metrics = {name: value * math.nan for name, value in metrics.items()}
        return metrics

    def stop(self: Book, step: int, seed: int, reason: str) -> None:
        stops.append((self.run.path.name, step, seed))
        stopped(self, step, seed, reason)

    stopped = Book.stop
    monkeypatch.setattr(Learner, "step", step)
    monkeypatch.setattr(Book, "stop", stop)
    shared: dict[str, Any] = {"env": game, "env_kwargs": {"continuous": True}, "seeds": (0, 1), "num_envs": 1}
    shared |= {"hidden_sizes": (8, 8), "batch_size": 4, "warmup_steps": 8, "steps_per_update": 4.0, "eval_episodes": 0}
    shared |= {"quiet": True, "log_every": 10, "checkpoint_every": 10, "replay_steps": 500}
    whole = herdbook.train("maddpg", run_dir="whole", steps=120, **shared)
    herdbook.train("maddpg", run_dir="part", steps=60, **shared)
    part, _ = resume("part", steps=120, env=game, quiet=True)
    assert [seed for name, _, seed in stops if name == "whole"] == [1]
    assert [seed for name, _, seed in stops if name == "part"] == [1]
    one, other = state_of(part), state_of(whole)
    assert one["stopped"] == other["stopped"] and list(one["stopped"]) == ["1"]
    assert equal(one["state"]["seed_by_seed"][0], other["state"]["seed_by_seed"][0])
    assert equal(one["replay"], other["replay"]) and equal(one["loop"]["played"], other["loop"]["played"])


def test_metrics_that_one_seed_alone_has_are_resumed(game: str) -> None:
    """One has begun to learn, the other, which lost episodes, has not: losses are logged once both have."""
    options: dict[str, Any] = {"log_every": 1, "num_envs": 1, "eval_episodes": 0, "warmup_episodes": 3}
    options |= {"env_kwargs": {"fail_every": 3}, "episodes_per_update": 4.0}
    whole = go(game, "whole", steps=80, **options)
    last = max(line["step"] for line in whole.metrics() if "loss/team" not in line)
    part = go(game, "part", steps=last, **options)
    updates = [member["updates"] for member in part.checkpoints.load()["loop"]["members"]]
    assert min(updates) == 0 < max(updates)
    resume(part.path, steps=80, env=game, quiet=True)
    assert part.metrics() == whole.metrics()


def test_updates_per_second_are_counted_from_where_a_run_goes_on(game: str) -> None:
    run = go(game, steps=400, seeds=(0,))
    resume(run.path, steps=440, env=game, quiet=True)
    lines = [json.loads(line) for line in (run.path / "timing.jsonl").read_text().splitlines()]
    first = next(line for line in lines if line["step"] > 400)
    made = first["updates_per_second"] / first["environment_steps_per_second"] * (first["step"] - 400)
    assert made < 20  # of more than 80 since the run began


def test_a_replay_that_does_not_hold_a_round_fails_in_a_line(game: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "vdn", "--env", game, "--replay-steps", "4", "--steps", "50", "--workers", "0"]
    assert main([*words, "--run-dir", "run"]) == 1
    assert "larger capacity" in capsys.readouterr().err


def test_a_signal_to_the_whole_group_ends_a_run_in_order(game: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "herdbook.cli.main", "train", "vdn", "--env", game, "--steps", "400000"]
    words += ["--workers", "1", "--eval-episodes", "0", "--hidden-sizes", "8", "--run-dir", "run"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(
        [*words, "--checkpoint-every", "50"], env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    while (checkpoints.last() or 0) < 100:
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait() == 143  # the worker has not died of it: what it plays is in the checkpoint


def test_others_are_found_from_another_directory(game: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go(game, "others", env_kwargs={"agents": 3})
    run = go(game, "run", learn="player_1", others="others", env_kwargs={"agents": 3})
    assert run.options["learn"] == ["player_1"]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    _, continued = resume(tmp_path / "run", steps=300, env=game, quiet=True)
    assert continued


def test_others_stay_who_they_were_when_the_run_began(game: str) -> None:
    """They go on learning, and the checkpoint that plays leaves their run: a copy of it is in the run."""
    other = go(game, "others", env_kwargs={"agents": 3})
    first, last = other.checkpoints.steps()[0], other.checkpoints.last()
    chosen: dict[str, Any] = {"learn": ("player_1",), "others": "others", "env_kwargs": {"agents": 3}}
    runs = [go(game, "run", **chosen), go(game, "first", others_step=first, **chosen)]
    assert [run.options["others_step"] for run in runs] == [last, first]
    before = [evaluate_run(run.path, episodes=4, env=game)["seeds"] for run in runs]
    resume(other.path, steps=other.options["steps"] + 500, env=game, quiet=True)
    assert last not in other.checkpoints.steps()
    for run, results in zip(runs, before, strict=True):
        assert evaluate_run(run.path, episodes=4, env=game)["seeds"] == results
        _, continued = resume(run.path, steps=300, env=game, workers=1, quiet=True)
        assert continued
    shutil.rmtree(other.path)
    assert opponents_of(options_of(runs[1]))["others"].step == first
    with pytest.raises(UserError, match="others_step: expected --others"):
        go(game, "alone", learn=("player_1",), others_step=3, env_kwargs={"agents": 3})


def test_workers_play_against_the_copy_of_the_others(game: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker loads the opponents when they first act; by then their own run may be gone."""
    other = go(game, "others", env_kwargs={"agents": 3})

    def keep_and_delete(run: Run, opponents: Any) -> None:
        keep_opponents(run, opponents)
        shutil.rmtree(other.path)

    monkeypatch.setattr("herdbook.experiments.train.keep_opponents", keep_and_delete)
    run = go(game, learn=("player_1",), others="others", env_kwargs={"agents": 3}, workers=1)
    assert run.checkpoints.last() == 200


def test_a_run_that_is_refused_leaves_no_worker(game: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    before = multiprocessing.active_children()
    with pytest.raises(UserError, match="wandb"):
        go(game, workers=1, wandb="project")
    assert multiprocessing.active_children() == before


def test_a_player_acts_as_the_run_at_its_step(game: str, tmp_path: Path) -> None:
    run = go(game, steps=3000, seeds=(0,), epsilon_steps=1000, lr=5e-3, keep=30)
    places = np.linspace(-1, 1, 21, dtype=np.float32)
    seen = [{f"player_{i}": np.array([place, 0.5], np.float32) for i in range(2)} for place in places]
    played = []
    for step in (run.checkpoints.steps()[0], run.checkpoints.last()):
        player = RunPlayer(run.path, step)
        player.move(tmp_path / f"copy{step}")
        player = pickle.loads(pickle.dumps(player))  # noqa: S301  # our own bytes, as they are sent to a worker
        played.append([player.act(observations) for observations in seen])
        assert played[-1] == [herdbook.load(run.path, step=step).act(observations) for observations in seen]
    assert played[0] != played[1]  # it has learned in between


def test_others_who_cannot_play_are_a_mistake_in_a_line(game: str) -> None:
    one = go(game, "one", learn=("player_1",), env_kwargs={"agents": 3})
    with pytest.raises(UserError, match=r"others: .*expected a run of player_0, player_2.*policies of player_1"):
        go(game, "two", learn=("player_1",), others=one.path, env_kwargs={"agents": 3})
    shared: dict[str, Any] = {"hidden_sizes": (8, 8), "eval_episodes": 0, "quiet": True, "steps": 20}
    arguments = {"continuous": True}
    herdbook.train("maddpg", env=game, env_kwargs=arguments, run_dir="continuous", num_envs=1, **shared)
    with pytest.raises(UserError, match="others: player_0 cannot play"):
        go(game, "three", learn=("player_1",), others="continuous")


def test_data_of_learners_alone_are_evaluated_in_their_company(game: str, minari_root: Path) -> None:
    arguments = {"agents": 3}
    run = go(game, learn=("player_1",), env_kwargs=arguments)
    collect(run.path, out="test/one-v0", episodes=6, env=game, env_kwargs=arguments)
    shared: dict[str, Any] = {"dataset": "test/one-v0", "env": game, "env_kwargs": arguments, "steps": 5, "quiet": True}
    shared |= {"hidden_sizes": (8, 8), "batch_size": 4, "eval_episodes": 2, "run_dir": "offline"}
    offline = herdbook.train("qmix_cql", learn=("player_1",), **shared)
    assert set(offline.evaluations()[-1]["agent_returns"]) == {"player_1"}


def test_teams_against_others_and_sizes_of_rounds_are_told_apart(game: str) -> None:
    from herdbook.evaluation.compare import compare

    shared: dict[str, Any] = {"seeds": (0,), "steps": 50, "env_kwargs": {"agents": 3}}
    runs = [
        go(game, "all", **shared),
        go(game, "first", learn=("player_0",), **shared),
        go(game, "second", learn=("player_1",), **shared),
        go(game, "five", learn=("player_1",), **{**shared, "num_envs": 5}),
    ]
    compared = compare([run.path for run in runs])
    assert len(compared.tasks) == 3 and len(compared.rows) == 4
    assert {row.algorithm for row in compared.rows[2:]} == {"vdn (num_envs=3)", "vdn (num_envs=5)"}
    records = json.loads(compared.write("report")["marl-eval"].read_text())["gymnasium"]
    assert sorted(len(algorithms) for algorithms in records.values()) == [1, 1, 2]


def test_arguments_that_no_run_can_record_are_refused(game: str) -> None:
    with pytest.raises(UserError, match=r"expected Python literals.*agents=<object"):
        go(game, env_kwargs={"agents": object()})


def test_a_callable_with_arguments_is_the_environment_that_its_name_and_they_make(game: str) -> None:
    import sides

    run = go(game, env_kwargs={"agents": 3})
    again, continued = resume(run.path, steps=300, env=sides.Sides, quiet=True)
    assert continued and again.config["environment"]["kwargs"] == {"agents": 3}
    other = herdbook.train(
        "vdn", env=sides.Sides, env_kwargs={"agents": 3}, steps=20, run_dir="other", quiet=True, **SMALL
    )
    assert other.config["environment"]["id"] == game and other.config["environment"]["kwargs"] == {"agents": 3}


def test_an_evaluation_loses_episodes_and_the_run_goes_on(game: str, caplog: pytest.LogCaptureFixture) -> None:
    run = go(game, env_kwargs={"fail_every": 4}, eval_episodes=8, seeds=(0,))
    assert len(run.evaluations()[-1]["returns"]) == 6  # of 10000 … 10007
    assert "2 of 8 episodes lost" in caplog.text and "reset seed 10000, step 1" in caplog.text
    with pytest.raises(EnvironmentFailed, match="the game broke"):
        evaluate_run(run.path, episodes=2, env=game, env_kwargs={"fail_every": 1}, seed=1)


def test_an_id_that_is_taken_is_refused_before_anything_is_played(game: str, minari_root: Path) -> None:
    collect("random", out="test/sides-v0", episodes=1, env=game)
    with pytest.raises(DataError, match="choose another id"):
        collect("random", out="test/sides-v0", episodes=1, env="there is none")


def test_a_film_without_an_ending_is_refused_before_anything_is_played(
    game: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = go(game)
    assert main(["eval", str(run.path), "--env", "there-is-none", "--video", "film.txt"]) == 2
    assert "ends in .gif or .mp4" in capsys.readouterr().err


def test_an_actor_remembers_what_each_agent_did_itself() -> None:
    """As `JointRunner` does: an agent whose turn it is not keeps its last action; the first of a space is none."""
    from gymnasium import spaces

    from herdbook.core.joint.types import JointSpec

    box, choice = spaces.Box(-1, 1, (1,)), spaces.Discrete(3, start=1)
    spec = JointSpec(
        agents=("a", "b"),
        observation_spaces={"a": box, "b": box},
        action_spaces={"a": choice, "b": choice},
        masked=True,
    )
    seen, legal = [], []

    class Counting:
        def initial(self, num_envs: int) -> None: ...
        def __call__(self, step: Any, carry: None, generator: Any = None) -> Any:
            seen.append(step.previous_actions["a"][0].tolist())
            legal.append(step.action_mask["a"][0].all(1).tolist())
            return {"a": torch.tensor([[1 + len(seen) % 3] * 2])}, None

    actor = JointActor(Counting(), spec)  # type: ignore[arg-type]  # a policy without a distribution
    nothing = {"action_mask": np.zeros(3, np.int8), "observation": [0.0]}  # nothing to choose: everything is legal
    assert [actor.act({agent: nothing}) for agent in "aba"] == [{"a": 2}, {"b": 3}, {"a": 1}]
    assert seen == [[1, 1], [2, 1], [2, 3]]
    assert legal == [[True, True]] * 3


def test_collected_data_say_which_packages_made_them(minari_root: Path) -> None:
    from importlib.metadata import version

    words = ["collect", "random", "--env", "mpe2/simple_spread_v3", "--episodes", "2", "--out", "test/spread-v0"]
    assert main(words) == 0
    read = load_dataset("test/spread-v0")
    assert isinstance(read, JointEpisodes) and read.packages == {p: version(p) for p in ("pettingzoo", "mpe2")}
