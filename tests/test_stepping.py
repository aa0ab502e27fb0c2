"""Learning step by step with one agent: rollouts that go on, exact resume, failures, and the command."""

import dataclasses
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sameness import equal, same, state_of

import herdbook
from herdbook.cli.collect import CollectArguments
from herdbook.cli.main import main
from herdbook.core.environments import EnvironmentUnavailable
from herdbook.core.exploration import NoisyPolicy
from herdbook.core.growing import Growing
from herdbook.core.moments import RewardScale
from herdbook.core.random_policy import RandomPolicy
from herdbook.core.runner import EndlessEpisodes, EnvironmentFailed, VectorRunner, VectorStep, fixed_episodes
from herdbook.core.runs import Run, RunFailed
from herdbook.core.step_collector import StepRound
from herdbook.core.types import Spec, Step, Steps, Turn
from herdbook.datasets.learned import LearnedBy
from herdbook.datasets.replay import ReplayBuffer
from herdbook.datasets.rollout_buffer import RolloutBuffer
from herdbook.experiments.catalogue import UserError, algorithm_class, config_class
from herdbook.experiments.collect import export_replay
from herdbook.experiments.train import resume
from herdbook.online.a2c import A2C, A2CConfig
from herdbook.online.dqn import DQN, DQNConfig
from herdbook.online.sac import SAC, SACConfig

SMALL: dict[str, Any] = {"hidden_sizes": (8, 8), "batch_size": 8, "warmup_steps": 20, "replay_steps": 150}
CADENCE = {"log_every": 20, "evaluate_every": 70, "checkpoint_every": 50}
RUNS: dict[str, dict[str, Any]] = {
    "dqn": {"env": "CartPole-v1", "num_envs": 3, "prioritised": True, "n_step": 3, "epsilon_steps": 100},
    "sac": {"env": "Pendulum-v1"},
    "td3": {"env": "HalfCheetah-v5", "num_envs": 2},
    "ppo": {"env": "Pendulum-v1", "num_envs": 3, "rollout_steps": 8, "normalise_observations": True},
    "reinforce": {"env": "CartPole-v1", "episodes_per_update": 2, "scale_rewards": True},
    "a2c": {"env": "CartPole-v1", "num_envs": 2, "scale_rewards": True, "decay_lr": True},
    "trpo": {"env": "CartPole-v1", "num_envs": 2, "rollout_steps": 10},
    "ddpg": {"env": "Pendulum-v1"},
    "discrete_sac": {"env": "CartPole-v1", "num_envs": 2},
}
STABLE: dict[str, Any] = {"normalise_observations": True, "scale_rewards": True, "decay_lr": True, "max_grad_norm": 0.5}
"""Every option that steadies an algorithm which learns from a replay, but for noise on parameters."""


class Counter(gymnasium.Env[Any, Any]):
    """Observations are (episode's seed, step); step `breaks` fails where the seed is a multiple of `every`."""

    observation_space: Any = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space: Any = spaces.Discrete(2)

    def __init__(self, every: int = 0, breaks: int = 3, nan: bool = False, length: int = 6) -> None:
        self.every, self.breaks, self.nan, self.length = every, breaks, nan, length

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        assert seed is not None
        self.seed, self.t = seed % 1000, 0  # numbers that float32 holds
        if self._broken(0):
            raise RuntimeError("it broke")
        return self._look(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        if self._broken(self.t):
            if not self.nan:
                raise RuntimeError("it broke")
            return self._look(), float("nan"), False, False, {}
        return self._look(), 1.0, False, self.t == self.length, {}

    def _broken(self, step: int) -> bool:
        return bool(self.every) and self.seed % self.every == 0 and self.seed > 0 and step == self.breaks

    def _look(self) -> Any:
        return np.array([self.seed, self.t], np.float64)


class Short(Counter):
    """Episodes of 6 steps with continuous actions, which are worth themselves."""

    action_space = spaces.Box(-1, 1, (1,))

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, infos = super().step(action)
        return observation, float(action[0]), terminated, truncated, infos


def go(algorithm: str, path: Path | str = "run", **options: Any) -> Run:
    """A short run of `RUNS`."""
    defaults: dict[str, Any] = {"steps": 130, "seeds": (0, 1), "eval_episodes": 1, "quiet": True}
    known = {field.name for field in dataclasses.fields(config_class(algorithm_class(algorithm)))}
    small = {name: value for name, value in SMALL.items() if name in known}
    chosen = defaults | small | CADENCE | RUNS[algorithm] | options
    return herdbook.train(algorithm, run_dir=path, **chosen)


# --- rollouts -------------------------------------------------------------------------------------------------------


def same_step(a: VectorStep, b: VectorStep) -> bool:
    left, right = ({**dataclasses.asdict(each), **dataclasses.asdict(each.played)} for each in (a, b))
    del left["played"], right["played"]
    return all(np.array_equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "HalfCheetah-v5"])
def test_a_rollout_goes_on_from_its_state(env: str) -> None:
    first, second = (EndlessEpisodes(4, 7) for _ in range(2))
    one, other = VectorRunner(env, 3, first), VectorRunner(env, 3, second)
    policy, noise = RandomPolicy(one.action_space), torch.Generator().manual_seed(0)
    for _ in range(37):  # in the middle of episodes
        one.step(policy, noise)
    second.begun = dict(first.begun)
    other.load_state_dict(one.state_dict())
    copied = torch.Generator()
    copied.set_state(noise.get_state())
    assert all(same_step(one.step(policy, noise), other.step(policy, copied)) for _ in range(40))


def test_an_episode_that_is_replayed_to_elsewhere_is_given_up() -> None:
    class Moody(Counter):
        """Every environment counts from a number of its own."""

        made = 0

        def __init__(self) -> None:
            super().__init__()
            Moody.made += 1
            self.own = Moody.made

        def _look(self) -> Any:
            return np.array([self.own, self.t], np.float64)

    lost: list[EnvironmentFailed] = []
    schedule = EndlessEpisodes(1)
    one = VectorRunner(Moody, 1, schedule)
    policy = RandomPolicy(one.action_space)
    one.step(policy)
    with pytest.raises(EnvironmentFailed, match="came to another observation when its actions were replayed"):
        VectorRunner(Moody, 1, EndlessEpisodes(1)).load_state_dict(one.state_dict())
    other = VectorRunner(Moody, 1, EndlessEpisodes(1), on_failure=lost.append)
    other.load_state_dict(one.state_dict())
    stepped = other.step(policy)
    assert len(lost) == 1 and stepped.cut.tolist() == stepped.first.tolist() == [True]


@pytest.mark.parametrize("nan", [False, True])
def test_an_environment_that_fails_loses_its_episode_and_no_other(nan: bool) -> None:
    lost: list[EnvironmentFailed] = []
    runner = VectorRunner(lambda: Counter(every=3, nan=nan), 4, EndlessEpisodes(0), on_failure=lost.append)
    steps = [runner.step(RandomPolicy(runner.action_space)) for _ in range(60)]
    assert len(lost) > 5 and all("reset seed" in str(failure) and "step 2" in str(failure) for failure in lost)
    for lane in range(4):
        previous = None
        for stepped in steps:
            seed, t = stepped.played.observations[lane]
            after, over = stepped.played.next_observations[lane], bool(stepped.played.truncated[lane])
            assert after.tolist() == [seed, t + 1]  # never from one episode into another
            assert stepped.played.rewards[lane] == 1 and bool(stepped.first[lane]) == (t == 0)
            if previous is not None:
                ended, (before, at) = previous
                goes_on = [before, at] == [seed, t]
                assert goes_on != (ended or bool(stepped.cut[lane]))
                assert not stepped.cut[lane] or (before % 3 == 0 and at == 2)
            previous = (over, after.tolist())


def test_what_is_not_finite_is_found_beside_another_lanes_failure() -> None:
    """In one step lane 0 raises and lane 1 gives NaN: both lose their episode, and nobody is given a NaN."""

    class Either(Counter):
        def __init__(self, lane: int) -> None:
            super().__init__(nan=lane == 1)
            self.lane = lane

        def _broken(self, step: int) -> bool:
            return self.lane < 2 and step == 2

    lost: list[EnvironmentFailed] = []
    runner = VectorRunner(Counter, 3, EndlessEpisodes(0), on_failure=lost.append)
    seeds = [env.seed for env in runner.envs]  # type: ignore[attr-defined]  # a Counter's
    for lane in range(3):
        runner.envs[lane] = Either(lane)
        runner.envs[lane].reset(seed=seeds[lane])
    policy = RandomPolicy(runner.action_space)
    runner.step(policy)
    stepped = runner.step(policy)
    assert [str(failure).split(" (")[0] for failure in lost] == [
        "Either raised RuntimeError: it broke",
        "Either gave the reward nan",
    ]
    assert stepped.cut.tolist() == [True, True, False] and stepped.played.rewards.tolist() == [1, 1, 1]
    assert stepped.played.next_observations[:, 1].tolist() == [1, 1, 2]


def test_a_reset_that_fails_is_passed_over() -> None:
    lost: list[EnvironmentFailed] = []
    runner = VectorRunner(lambda: Counter(every=2, breaks=0), 2, EndlessEpisodes(3), on_failure=lost.append)
    steps = [runner.step(RandomPolicy(runner.action_space)) for _ in range(40)]
    assert lost and all(s.played.observations[lane, 0] % 2 for s in steps for lane in range(2))
    assert not any(s.cut.any() for s in steps)  # nothing had been recorded of those episodes


def test_a_schedule_that_runs_out_after_a_failure_ends_the_rollout() -> None:
    class Broken(Counter):
        def step(self, action: Any) -> Any:
            raise RuntimeError("it broke")

    lost: list[EnvironmentFailed] = []
    runner = VectorRunner(Counter, 1, fixed_episodes(1, 5), on_failure=lost.append)
    runner.envs = [Broken()]
    stepped = runner.step(RandomPolicy(runner.action_space))
    assert len(lost) == 1 and not runner.active and not stepped.active.any()


@pytest.mark.parametrize("answer", [(np.zeros(2), 1.0, False, False), (np.zeros(3), 1.0, False, False, {}), None])
def test_an_answer_of_another_form_is_the_environments_failure(answer: Any) -> None:
    class Strange(Counter):
        def step(self, action: Any) -> Any:
            return answer if self.seed % 2 and self.t else super().step(action)

        def close(self) -> None:
            raise RuntimeError("it does not even close")

    lost: list[EnvironmentFailed] = []
    runner = VectorRunner(Strange, 2, EndlessEpisodes(0), on_failure=lost.append)
    steps = [runner.step(RandomPolicy(runner.action_space)) for _ in range(20)]
    assert lost and all(
        s.played.next_observations[lane, 1] == s.played.observations[lane, 1] + 1 for s in steps for lane in (0, 1)
    )
    with pytest.raises(EnvironmentFailed, match=r"at step: expected (an observation of shape|\(observation, reward)"):
        alone = VectorRunner(Strange, 8, EndlessEpisodes(0))
        for _ in range(20):
            alone.step(RandomPolicy(alone.action_space))


def test_a_carry_forgets_only_the_lanes_that_failed() -> None:
    class Watch(RandomPolicy):
        """Its carry counts the steps of an episode."""

        def initial(self, num_envs: int) -> Any:
            return torch.zeros(num_envs)

        def __call__(self, step: Any, carry: Any, generator: Any = None) -> Any:
            carry = torch.where(step.reset, 0, carry)
            assert torch.equal(carry, step.observations[:, 1])
            return super().__call__(step, carry, generator)[0], carry + 1

    runner = VectorRunner(lambda: Counter(every=3), 4, EndlessEpisodes(0), on_failure=lambda failure: None)
    watch = Watch(runner.action_space)
    assert sum(bool(runner.step(watch).cut.any()) for _ in range(60)) > 3


# --- trials: several episodes of one task, over which a policy remembers ----------------------------------------------


class Trials:
    """Trials of 3 episodes in each lane; task 10 · lane + the trial's number. Seeds count from 1."""

    def __init__(self) -> None:
        self.begun: dict[int, int] = {}

    def __call__(self, lane: int) -> Turn:
        k = self.begun.get(lane, 0)
        self.begun[lane] = k + 1
        return Turn(10 * k + lane, 1 + 2 * k + lane, reset=k % 3 == 0, task=10 * lane + k // 3)


class Remembers(RandomPolicy):
    """Its carry counts steps; `seen` holds what it was given, and the carry before each step."""

    def __init__(self, action_space: Any) -> None:
        super().__init__(action_space)
        self.seen: list[tuple[Step, torch.Tensor]] = []

    def initial(self, num_envs: int) -> Any:
        return torch.full((num_envs,), -100)

    def __call__(self, step: Any, carry: Any, generator: Any = None) -> Any:
        carry = torch.where(step.reset, 0, carry)
        self.seen.append((step, carry))
        return super().__call__(step, carry, generator)[0], carry + 1


def test_a_policy_remembers_over_the_episodes_of_a_trial() -> None:
    """2 lanes of episodes of 6 steps, 3 to a trial: the carry counts 0 … 17, and begins anew."""
    runner = VectorRunner(Counter, 2, Trials())
    policy, rollouts = Remembers(runner.action_space), RolloutBuffer()
    steps = [runner.step(policy, torch.Generator().manual_seed(t)) for t in range(40)]
    for t, (stepped, (seen, carry)) in enumerate(zip(steps, policy.seen, strict=True)):
        assert carry.tolist() == [t % 18] * 2
        assert seen.first.tolist() == stepped.first.tolist() == [t % 6 == 0] * 2
        assert seen.reset.tolist() == stepped.played.reset.tolist() == [t % 18 == 0] * 2
        assert seen.previous_rewards.tolist() == [float(t % 18 > 0)] * 2  # at a new episode the last one's
        before = np.zeros(2) if t % 18 == 0 else steps[t - 1].played.actions
        assert seen.previous_actions.tolist() == before.tolist()
        assert stepped.played.task.tolist() == [t // 18, 10 + t // 18]
        assert stepped.episodes.tolist() == [10 * (t // 6), 10 * (t // 6) + 1]
    StepRound(steps).add_to(rollouts)
    segments = rollouts.take()
    assert segments.reset.tolist() == [[t % 18 == 0 for t in range(40)]] * 2
    assert segments.task.tolist() == [[10 * lane + t // 18 for t in range(40)] for lane in (0, 1)]
    assert segments.timesteps.tolist() == [[t % 6 for t in range(40)]] * 2


@pytest.mark.parametrize("at", [6, 15, 18])
def test_a_trial_goes_on_from_its_state(at: int) -> None:
    """Before the second episode, inside the third, and between two trials; steps of the last round too."""
    first, second = Trials(), Trials()
    one, other = VectorRunner(Counter, 2, first), VectorRunner(Counter, 2, second)
    policies = [Remembers(one.action_space) for _ in range(2)]
    played = StepRound([one.step(policies[0], torch.Generator().manual_seed(t)) for t in range(at)])
    second.begun = dict(first.begun)
    other.load_state_dict(one.state_dict())
    for t in range(at, 40):
        noises = [torch.Generator().manual_seed(t) for _ in range(2)]
        steps = [
            runner.step(policy, noise, keep_carry=True)
            for runner, policy, noise in zip((one, other), policies, noises, strict=True)
        ]
        assert same_step(*steps)
        (mine, carry), (theirs, loaded) = (policy.seen[-1] for policy in policies)
        assert torch.equal(carry, loaded) and torch.equal(mine.reset, theirs.reset)
        assert torch.equal(mine.previous_actions, theirs.previous_actions)
        assert torch.equal(mine.previous_rewards, theirs.previous_rewards)
    again = StepRound.from_state(played.state_dict())
    assert all(same_step(a, b) for a, b in zip(played.steps, again.steps, strict=True))


def test_a_trial_whose_first_episode_fails_begins_with_the_next_one() -> None:
    """Lane 0's episodes have the seeds 1, 3, 5 | 7 …; 1 fails at its first step, and 7 at its reset."""
    lost: list[EnvironmentFailed] = []

    class Fails(Counter):
        def _broken(self, step: int) -> bool:
            return (self.seed, step) in ((1, 1), (7, 0))

    runner = VectorRunner(Fails, 1, Trials(), on_failure=lost.append)
    policy = Remembers(runner.action_space)
    steps = [runner.step(policy) for _ in range(30)]
    assert len(lost) == 2
    resets = {int(step.played.observations[0, 0]): bool(step.played.reset[0]) for step in steps if step.first[0]}
    assert resets == {3: True, 5: False, 9: True, 11: False, 13: True}
    assert [bool(step.played.reset[0]) for step in steps if not step.first[0]] == [False] * 25


def test_a_schedule_has_tasks_in_every_turn_or_in_none() -> None:
    turns = iter([Turn(0, 1), Turn(1, 2, task=5)])
    with pytest.raises(ValueError, match="expected a task in every turn of a schedule or in none, got Turn"):
        VectorRunner(Counter, 2, lambda lane: next(turns))


def test_states_from_before_there_were_trials_are_read() -> None:
    first, second = EndlessEpisodes(4, 7), EndlessEpisodes(4, 7)
    one, other = VectorRunner(Counter, 2, first), VectorRunner(Counter, 2, second)
    policy = RandomPolicy(one.action_space)
    played = StepRound([one.step(policy) for _ in range(6)])  # up to the end of an episode
    second.begun = dict(first.begun)
    other.load_state_dict(
        {k: v for k, v in one.state_dict().items() if k not in ("reset", "tasks", "previous_actions")}
    )
    noises = [torch.Generator().manual_seed(0) for _ in range(2)]
    assert all(same_step(one.step(policy, noises[0]), other.step(policy, noises[1])) for _ in range(20))
    state, rollouts = played.state_dict(), (RolloutBuffer(), RolloutBuffer(), RolloutBuffer())
    del state["steps"]["reset"]
    played.add_to(rollouts[0])
    StepRound.from_state(state).add_to(rollouts[1])
    saved = rollouts[0].state_dict()
    del saved["blocks"][0]["reset"]
    rollouts[2].load_state_dict(saved)
    resets = [rollout.take().reset.tolist() for rollout in rollouts]
    assert resets == [[[True] + [False] * 5] * 2] * 3


def test_a_step_after_a_cut_is_no_part_of_the_episode_before() -> None:
    """Three steps of reward 1, 2, 4, the episode given up after the second; γ = ½."""
    spec = Spec(spaces.Box(-np.inf, np.inf, (1,)), spaces.Discrete(2))
    replay = ReplayBuffer.online(spec, 8)
    flags = np.zeros(1, np.bool_)
    for number, reward in enumerate((1.0, 2.0, 4.0)):
        if number == 2:
            replay.cut(np.array([True]))
        now = np.array([[10.0 * number]])
        replay.add(Steps(now, np.zeros(1, np.int64), np.array([reward]), flags, flags, now + 1))
    batch = replay.gather(torch.arange(3), discount=0.5, n_step=3)
    assert batch.rewards.tolist() == [2.0, 2.0, 4.0]  # 1 + 2/2, 2, 4
    assert batch.discounts.tolist() == [0.25, 0.5, 0.5]  # bootstrapped, from the observation that followed
    assert batch.next_observations[:, 0].tolist() == [11.0, 11.0, 21.0]
    segments = replay.gather_segments(torch.arange(3), 2)
    assert segments.mask.tolist() == [[True, True], [True, False], [True, False]]
    assert not segments.terminated.any() and not segments.truncated.any()


def test_a_round_comes_back_from_a_checkpoint() -> None:
    runner = VectorRunner(lambda: Counter(every=3), 2, EndlessEpisodes(0), on_failure=lambda failure: None)
    steps = [runner.step(RandomPolicy(runner.action_space)) for _ in range(9)]
    played = StepRound(steps, returns=[6.0], lengths=[6], failures=["one"])
    again = StepRound.from_state(played.state_dict())
    assert all(same_step(a, b) for a, b in zip(played.steps, again.steps, strict=True))
    assert (again.returns, again.lengths, again.failures, again.policy_failed) == ([6.0], [6], ["one"], None)
    assert again.count == 18


class Recorder(Growing):
    """What was asked of it: the rewards of each block, and the lanes of each cut."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def extend(self, steps: Steps) -> None:
        self.calls.append(steps.rewards.tolist())

    def cut(self, lanes: Any) -> None:
        self.calls.append(lanes.tolist())


@pytest.mark.parametrize(
    ("cut_at", "calls"),
    [
        ([], [[[0.0], [1.0], [2.0], [3.0]]]),
        ([0], [[True], [[0.0], [1.0], [2.0], [3.0]]]),
        ([1, 2], [[[0.0]], [True], [[1.0]], [True], [[2.0], [3.0]]]),
        ([3], [[[0.0], [1.0], [2.0]], [True], [[3.0]]]),
    ],
)
def test_a_round_is_added_in_blocks_between_cuts(cut_at: list[int], calls: list[Any]) -> None:
    runner, steps = VectorRunner("CartPole-v1", 1, EndlessEpisodes(0)), StepRound()
    for number in range(4):
        stepped = runner.step(RandomPolicy(runner.action_space), torch.Generator())
        played = dataclasses.replace(stepped.played, rewards=np.array([float(number)]))
        steps.steps.append(dataclasses.replace(stepped, played=played, cut=np.array([number in cut_at])))
    recorder = Recorder()
    steps.add_to(recorder)
    assert recorder.calls == calls
    StepRound().add_to(recorder)
    assert recorder.calls == calls


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "when"),
    [
        ("dqn", ("update", 1)),
        ("dqn", ("update", 31)),
        ("dqn", ("checkpoint", 3)),
        ("dqn", ("link", 4)),
        ("dqn", ("add", 77)),
        ("sac", ("update", 150)),
        ("sac", ("line", 9)),
        ("td3", ("add", 120)),
        ("td3", ("checkpoint", 2)),
        ("ppo", ("update", 7)),
        ("ppo", ("checkpoint", 2)),
        ("a2c", ("checkpoint", 3)),
        ("trpo", ("update", 5)),
        ("ddpg", ("add", 99)),
        ("discrete_sac", ("update", 60)),
        ("reinforce", ("update", 2)),
        ("reinforce", ("link", 3)),
    ],
)
def test_a_run_that_dies_anywhere_resumes_to_the_bit(algorithm: str, when: tuple[str, int], die_at: Any) -> None:
    die_and_resume(algorithm, when, die_at)


@pytest.mark.parametrize(
    ("algorithm", "when", "options"),
    [
        ("dqn", ("add", 77), {"parameter_noise": True}),
        ("dqn", ("checkpoint", 3), {"parameter_noise": True, "env": "Acrobot-v1"}),
        ("dqn", ("add", 90), {"parameter_noise": True, "frame_stack": 3, "num_envs": 1}),
        ("ddpg", ("add", 71), {"parameter_noise": 0.2, "num_envs": 3}),
        ("ddpg", ("checkpoint", 2), {"parameter_noise": 0.2, "warmup_steps": 0}),
        ("ddpg", ("add", 130), {"parameter_noise": 0.2, "env": Short, "num_envs": 2}),
        ("td3", ("update", 60), {"parameter_noise": 0.2}),
        ("sac", ("update", 150), {}),
        ("sac", ("link", 4), {}),
        ("discrete_sac", ("line", 9), {}),
    ],
)
def test_a_run_with_every_option_resumes_to_the_bit(
    algorithm: str, when: tuple[str, int], options: dict[str, Any], die_at: Any
) -> None:
    whole = die_and_resume(algorithm, when, die_at, **STABLE, **options)
    (state, _) = whole.checkpoints.load()["state"]["seed_by_seed"]
    assert state["units"]["moments"]["count"] >= 130 and state["units"]["reward_scale"]["sums"].any()
    assert ("parameter_noise" in options) == (state["noise"] is not None)


def die_and_resume(algorithm: str, when: tuple[str, int], die_at: Any, **options: Any) -> Run:
    """A whole run, after one that was killed and resumed was found equal to it."""
    whole = go(algorithm, "whole", **options)
    die_at(*when, algorithm_class(algorithm), lambda: go(algorithm, "cut", **options))
    own = {"env": options["env"]} if callable(options.get("env")) else {}
    cut, continued = resume("cut", quiet=True, **own)
    assert continued and same(cut, whole)
    return whole


def test_resume_extends_to_the_bit() -> None:
    whole = go("sac", "whole", steps=200, checkpoint_every=100, evaluate_every=100)
    go("sac", "part", steps=100, checkpoint_every=100, evaluate_every=100)
    part, _ = resume("part", steps=200, quiet=True)
    assert equal(part.checkpoints.load()["state"], whole.checkpoints.load()["state"])
    assert part.evaluations() == whole.evaluations()


def test_updates_keep_to_their_ratio() -> None:
    run = go("dqn", num_envs=4, steps=100, warmup_steps=20, updates_per_step=0.25, seeds=(0,))
    state = run.checkpoints.load()
    assert state["loop"]["members"][0]["steps"] == 100
    assert state["loop"]["members"][0]["updates"] == 20  # (100 − 20) / 4
    assert run.config["config"]["importance_updates"] == 20  # β grows over all of them


def test_a_rollout_is_learned_from_once_and_whole() -> None:
    run = go("ppo", steps=100, seeds=(0,))
    state = run.checkpoints.load()
    assert state["step"] == 100 and state["loop"]["members"][0]["steps"] == 120  # 5 rounds of 3 · 8
    assert state["loop"]["members"][0]["updates"] == state["state"]["seed_by_seed"][0]["updates"] == 5
    assert state["state"]["seed_by_seed"][0]["units"]["moments"]["count"] == 120
    with pytest.raises(UserError, match="expected at most 1 for Reinforce, got 2"):
        go("reinforce", "other", num_envs=2)
    assert not Path("other").exists()


def test_the_schedules_of_a_run_that_is_extended_last_for_its_new_length(capsys: pytest.CaptureFixture[str]) -> None:
    go("ppo", steps=48, seeds=(0,), decay_lr=True)
    before = actors_of(Run("run"))
    run, _ = resume("run", steps=96)
    assert "the schedule decay_steps lasts for the new length of the run: 96 instead of 48" in capsys.readouterr().out
    assert run.config["config"]["decay_steps"] == 96 and run.options["steps"] == 96
    assert all((actors_of(run)[name] != value).any() for name, value in before.items())  # the rate is not 0 any more

    go("dqn", "importance", steps=100, seeds=(0,), warmup_steps=20, updates_per_step=0.25)
    assert resume("importance", steps=200, quiet=True)[0].config["config"]["importance_updates"] == 45  # (200 − 20) / 4

    go("ppo", "own", steps=48, seeds=(0,), decay_lr=True, decay_steps=24)
    capsys.readouterr()
    run, _ = resume("own", steps=96)
    assert "the schedule decay_steps=24 has its own length; the value stays at its end" in capsys.readouterr().out
    assert run.config["config"]["decay_steps"] == 24


def actors_of(run: Run) -> dict[str, Any]:
    """The actor's weights of the first seed in the last checkpoint."""
    state = run.checkpoints.load()["state"]
    return dict(state["seed_by_seed"][0]["online"]["actor"])


def test_the_rate_decays_with_the_steps_that_were_played() -> None:
    run = go("a2c", env="CartPole-v1", num_envs=2, rollout_steps=5, steps=40, decay_lr=True, seeds=(0,), lr=1e-2)
    state = run.checkpoints.load()["state"]["seed_by_seed"][0]
    assert state["steps"] == 40
    alone = A2C(A2CConfig(decay_lr=True, decay_steps=40), Spec(spaces.Box(-1, 1, (2,)), spaces.Discrete(2)))
    rates = []
    for _ in range(5):
        alone.update(_rollout())
        rates.append(alone.learner.rate_scale)
    assert rates == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])
    with pytest.raises(ValueError, match="expected decay_steps beside decay_lr"):
        A2C(A2CConfig(decay_lr=True), Spec(spaces.Box(-1, 1, (2,)), spaces.Discrete(2)))


def _rollout() -> Any:
    """5 steps of 2 lanes."""
    rollouts, flags = RolloutBuffer(), np.zeros(2, np.bool_)
    for _ in range(5):
        rows = np.zeros((2, 2), np.float32)
        rollouts.add(Steps(rows, np.zeros(2, np.int64), np.ones(2), flags, flags, rows))
    return rollouts.take()


def test_the_scale_of_rewards_begins_anew_with_each_episode() -> None:
    """γ = ½, one lane: 1, 1½ | 1 (given up) | 1: the sums whose deviation scales; over two rollouts."""
    rollouts, scale, no = RolloutBuffer(), RewardScale(0.5), np.zeros(1, np.bool_)
    for number in range(4):
        row = np.zeros((1, 1), np.float32)
        if number == 3:
            rollouts.cut(np.array([True]))
        rollouts.add(Steps(row, np.zeros(1, np.int64), np.ones(1), np.array([number == 1]), no, row))
        if number in (2, 3):
            rollout = rollouts.take()
            scale(rollout.rewards, rollout.timesteps == 0)
    assert float(scale.moments.mean) == pytest.approx((1 + 1.5 + 1 + 1) / 4)
    assert scale.moments.count == 4


def test_collected_returns_are_those_of_whole_episodes() -> None:
    run = go("dqn", steps=400, seeds=(0,), evaluate_every=400)
    line = run.metrics()[-1]
    assert line["collected/return"] == line["collected/length"] > 5  # CartPole pays 1 a step
    assert line["collected/lost"] == 0


@pytest.mark.parametrize("nan", [False, True])
def test_a_lost_episode_is_counted_and_the_run_goes_on(nan: bool, capsys: pytest.CaptureFixture[str]) -> None:
    run = go("dqn", env=lambda: Counter(every=5, nan=nan), steps=300, seeds=(0,), eval_episodes=0, quiet=False)
    lost = run.metrics()[-1]["collected/lost"]
    assert lost > 3
    assert f"an episode is lost ({lost:.0f} so far)" in capsys.readouterr().out
    state = run.checkpoints.load()
    replay = run.checkpoints.load_replay(state)["replays"][0]
    rows = replay["observations"][replay["rows"]]
    following = replay["observations"][(replay["rows"] + 3) % len(replay["observations"])]
    assert torch.equal(following, rows + torch.tensor([0.0, 1.0]))  # no transition from one episode into another


def test_an_environment_that_keeps_failing_ends_the_run_with_the_cause() -> None:
    with pytest.raises(RunFailed, match=r"failed in \d+ episodes in a row: .*it broke"):
        go("dqn", env=lambda: Counter(every=1), num_envs=1, eval_episodes=0)
    with pytest.raises(RunFailed, match=r"failed in 10 episodes in a row: .*it broke"):
        go("dqn", "other", env=lambda: Counter(every=1, breaks=1), num_envs=1, eval_episodes=0)


def test_failures_with_whole_episodes_in_between_end_no_long_round() -> None:
    run = go("ppo", env=lambda: Counter(every=3), steps=240, rollout_steps=120, num_envs=2, eval_episodes=0)
    assert run.metrics()[-1]["collected/lost"] > 10


def test_unfinished_episodes_that_cannot_be_replayed_are_lost_with_a_notice(caplog: pytest.LogCaptureFixture) -> None:
    class Moody(Counter):
        """From its third step on every environment shows a number of its own."""

        made = 0

        def __init__(self) -> None:
            super().__init__(length=50)
            Moody.made += 1
            self.own = Moody.made

        def _look(self) -> Any:
            return np.array([self.own if self.t > 2 else 0, self.t], np.float64)

    options: dict[str, Any] = {"env": Moody, "num_envs": 12, "eval_episodes": 0, "checkpoint_every": 60, "seeds": (0,)}
    go("dqn", steps=60, **options)
    run, continued = resume("run", steps=120, env=Moody, quiet=True)
    assert re.search("unfinished at the checkpoint is lost: .*came to another observation", caplog.text)
    assert continued and run.metrics()[-1]["step"] == 120 and run.metrics()[-1]["collected/lost"] == 0


def test_episodes_lost_before_the_first_step_are_counted_once_over_a_resume() -> None:
    """Those that are begun when a run goes on again were counted when it began."""

    class Late(Counter):
        """Every third episode cannot be begun."""

        def __init__(self) -> None:
            super().__init__(every=3, breaks=0)

    options: dict[str, Any] = {"env": Late, "num_envs": 3, "eval_episodes": 0, "seeds": (8,), "prioritised": False}
    options |= {"checkpoint_every": 30, "log_every": 30}
    whole = go("dqn", "whole", steps=60, **options)
    go("dqn", "parts", steps=30, **options)
    parts, _ = resume("parts", steps=60, env=Late, quiet=True)
    assert whole.metrics()[0]["collected/lost"] >= 3  # the first of every lane
    assert parts.metrics()[-1] == whole.metrics()[-1] and equal(state_of(parts), state_of(whole))


def test_an_environment_that_no_longer_resets_ends_a_resume_with_the_cause() -> None:
    class Worn(Counter):
        """It can be begun so often, in all."""

        left = 1_000

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            Worn.left -= 1
            if Worn.left < 0:
                raise RuntimeError("worn out")
            return super().reset(seed=seed)

    go("dqn", env=Worn, steps=40, num_envs=2, eval_episodes=0, seeds=(0,))
    told = []
    for left in range(1, 8):  # it breaks in its first steps, or as lanes begin, or unfinished episodes are replayed
        Worn.left = left
        with pytest.raises((RunFailed, EnvironmentFailed), match="worn") as caught:
            resume("run", steps=80, env=Worn, quiet=True)
        told.append(str(caught.value))
    assert any("fails when the run is resumed" in each for each in told)


def test_a_policy_that_fails_stops_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    update = SAC.update

    def spoil(self: SAC, batch: Any) -> Any:
        metrics = update(self, batch)
        if self.learner.seeds == (1,):
            for value in self.learner.parameters_of("actor").values():
                value.fill_(float("nan"))
        return metrics

    monkeypatch.setattr(SAC, "update", spoil)
    run = go("sac", eval_episodes=0, log_every=130, checkpoint_every=130)
    stopped = run.checkpoints.load()["stopped"]
    assert list(stopped) == ["1"] and "not finite" in stopped["1"]["reason"]
    assert run.metrics()[-1]["seed"] == 0


def test_the_command_trains_and_resumes_after_a_real_kill(tmp_path: Path) -> None:
    words = ["train", "dqn", "--env", "CartPole-v1", "--steps", "1500", "--seeds", "3", "--threads", "1"]
    words += ["--checkpoint-every", "100", "--eval-episodes", "2", "--hidden-sizes", "16", "--warmup-steps", "50"]
    words += ["--prioritised"]
    assert main([*words, "--run-dir", "whole"]) == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "herdbook.cli.main", *words, "--run-dir", "cut"], stdout=subprocess.DEVNULL
    )
    while not (Path("cut") / "checkpoints" / "step_300").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert main(["resume", "cut"]) == 0
    assert same(Run("cut"), Run("whole"))


def test_what_does_not_fit_one_agent_is_told_in_a_line() -> None:
    for words, options in (
        ("there is one agent", {"learn": ("a",)}),
        ("expected 0, the learner steps one agent itself; got 2", {"workers": 2}),
        ("shift:X where rewards are an environment's, got return_range", {"reward_transform": "return_range"}),
        ("observation_keys chooses parts of a Dict", {"observation_keys": ("a",)}),
        ("capacity >= lanes", {"replay_steps": 2, "num_envs": 3}),
    ):
        with pytest.raises(UserError, match=words):
            go("dqn", **options)
    with pytest.raises(EnvironmentUnavailable, match="has many agents"):
        go("dqn", env="mpe2/simple_spread_v3")
    with pytest.raises(UserError, match=r"expected discrete actions.*ddpg, td3 or sac"):
        go("dqn", env="Pendulum-v1")
    with pytest.raises(UserError, match=r"expected continuous \(Box\) actions.*dqn or discrete_sac"):
        go("sac", env="CartPole-v1")
    with pytest.raises(UserError, match="learns in an environment: give --env"):
        herdbook.train("sac", dataset="classic/pendulum", run_dir="run")
    assert not Path("run").exists()


def test_an_unbounded_action_space_is_refused() -> None:
    class Unbounded(Counter):
        action_space = spaces.Box(-np.inf, np.inf, (1,))

    with pytest.raises(UserError, match="expected bounded actions"):
        go("sac", env=Unbounded)


def test_a_dict_observation_is_learned_from_in_parts() -> None:
    class Parts(Counter):
        observation_space = spaces.Dict({"seed": spaces.Box(-1, 1e3, (1,)), "step": spaces.Box(0, 9, (1,))})

        def _look(self) -> Any:
            return {"seed": np.zeros(1, np.float32), "step": np.array([self.t], np.float32)}

    run = go("dqn", env=Parts, observation_keys=("step",), seeds=(0,))
    assert run.checkpoints.load()["state"]["seed_by_seed"][0]["online"]["critic"]["mlp.layers.0.weight"].shape[-1] == 1


def test_a_trained_policy_is_loaded_and_acts() -> None:
    run = go("sac", seeds=(0,))
    actor = herdbook.load(run.path)
    assert spaces.Box(-2, 2, (1,)).contains(actor.act(np.zeros(3, np.float32)))
    assert json.loads((run.path / "config.json").read_text())["environment"]["id"] == "Pendulum-v1"


def test_rewards_are_not_scaled_by_the_deviation_of_other_ones() -> None:
    with pytest.raises(UserError, match="scale_rewards: expected no reward_transform beside it.*got clip"):
        go("dqn", scale_rewards=True, reward_transform="clip")
    assert not Path("run").exists()


def test_a_loaded_policy_normalises_as_the_run_did() -> None:
    run = go("sac", seeds=(0,), normalise_observations=True)
    saved = run.checkpoints.load()["state"]["seed_by_seed"][0]
    spec = Spec(spaces.Box(-np.inf, np.inf, (3,)), spaces.Box(-2, 2, (1,)))
    plain = SAC(SACConfig(hidden_sizes=(8, 8)), spec)
    plain.load_state_dict({name: value for name, value in saved.items() if name != "units"})
    moments = saved["units"]["moments"]
    seen = np.array([0.3, -0.9, 2.0], np.float32)
    std = (moments["squares"] / moments["count"]).sqrt()
    flags = torch.zeros(1, dtype=torch.bool)

    def by_hand(observation: Any) -> float:
        step = Step(torch.as_tensor(observation, dtype=torch.float32)[None], flags, flags, flags, flags)
        return float(plain.policy()(step, None)[0])

    expected = by_hand((torch.as_tensor(seen) - moments["mean"]) / (std + 1e-3))
    assert float(herdbook.load(run.path).act(seen)[0]) == pytest.approx(expected, rel=1e-5)
    assert abs(expected - by_hand(seen)) > 1e-3


def test_warm_up_is_uniform_and_exploration_follows_its_schedule() -> None:
    spec = Spec(spaces.Box(-1, 1, (4,)), spaces.Discrete(2))
    dqn = DQN(DQNConfig(epsilon_start=1.0, epsilon_end=0.2, epsilon_steps=10, hidden_sizes=(4,)), spec)
    runner = VectorRunner("CartPole-v1", 1, EndlessEpisodes(0))
    seen: Any = None

    class Look(RandomPolicy):
        def __call__(self, step: Any, carry: Any, generator: Any = None) -> Any:
            nonlocal seen
            seen = step
            return super().__call__(step, carry, generator)

    runner.step(Look(runner.action_space))
    for step, least in ((0, 0.5), (5, 0.3), (10, 0.1), (None, 0.1)):
        probs = dqn.policy(deterministic=False, step=step).distribution(seen, None)[0].probs  # type: ignore[attr-defined]  # discrete
        assert float(probs.min()) == pytest.approx(least)
    sac = SAC(SACConfig(warmup_steps=5, hidden_sizes=(4,)), Spec(spec.observation_space, spaces.Box(-2, 2, (1,))))
    warm = sac.policy(deterministic=False, step=4).distribution(seen, None)[0]
    assert float(warm.log_prob(torch.tensor([[1.5]]))) == pytest.approx(-np.log(4))
    later = sac.policy(deterministic=False, step=5).distribution(seen, None)[0]
    assert float(later.log_prob(torch.tensor([[1.5]]))) != pytest.approx(-np.log(4))


# --- data out -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prioritised", [False, True])
def test_the_replay_of_a_run_becomes_a_dataset(prioritised: bool, minari_root: Path) -> None:
    run = go("dqn", seeds=(5, 6), steps=99, prioritised=prioritised, replay_steps=60, checkpoint_every=99)
    assert main(["collect", "run", "--replay", "--out", "mine/replay-v0", "--run-seed", "6"]) == 0
    data = herdbook.load_dataset("mine/replay-v0")
    state = run.checkpoints.load()
    kept = run.checkpoints.load_replay(state)["replays"][1]
    assert data.num_steps == 60 == len(kept["rows"])
    assert data.environment is not None and data.environment.id == "CartPole-v1"
    assert not (data.terminated & data.truncated).any()
    ends = data.offsets[1:] - 1
    assert (data.terminated | data.truncated)[ends].all() and int((data.terminated | data.truncated).sum()) == len(data)
    now = data.observations[data.step_rows]
    after = data.observations[data.step_rows + 1]
    stored = {tuple(row.tolist()) for row in kept["observations"][kept["rows"]]}
    assert {tuple(row.tolist()) for row in now} == stored
    # CartPole moves by its own speed: what follows a step is its own next observation, over ends of episodes too.
    np.testing.assert_allclose(after[:, 0], now[:, 0] + 0.02 * now[:, 1], atol=1e-6)
    herdbook.train("discrete_cql", dataset="mine/replay-v0", steps=2, run_dir="offline", eval_episodes=1, quiet=True)


def test_what_has_no_replay_is_refused(minari_root: Path) -> None:
    go("ppo", seeds=(0,), steps=24)
    with pytest.raises(UserError, match="expected a run of one agent .* keeps a replay, got one of ppo"):
        export_replay("run", out="mine/replay-v0")
    for name, value in (("episodes", 3), ("step", 500), ("noise", 0.1), ("env", "CartPole-v1"), ("seed", 4)):
        with pytest.raises(UserError, match=f"{name}: expected none beside --replay"):
            CollectArguments(policy="run", out="mine/replay-v0", replay=True, **{name: value})
    with pytest.raises(UserError, match="episodes: expected 1 or more, got None"):
        CollectArguments(policy="run", out="mine/replay-v0")


def test_collected_data_say_who_learned_the_policy(minari_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    go("dqn", seeds=(5, 6), steps=99, checkpoint_every=33, keep=9)
    words = ["collect", "run", "--run-seed", "6", "--out"]
    assert main([*words, "mine/played-v0", "--episodes", "2", "--step", "33"]) == 0
    assert main([*words, "mine/replay-v0", "--replay"]) == 0
    random = ["collect", "random", "--env", "CartPole-v1", "--episodes", "2", "--out", "mine/random-v0"]
    assert main(random) == 0
    for name, step in (("played", 33), ("replay", 99)):
        data = herdbook.load_dataset(f"mine/{name}-v0")
        assert data.learned_by == (LearnedBy(algorithm="dqn", step=step, seed=6),)
        capsys.readouterr()
        assert main(["data", "show", data.source]) == 0
        assert f"dqn (step {step}, seed 6)" in capsys.readouterr().out
        metadata = json.loads((minari_root / data.source / "data/metadata.json").read_text())
        assert metadata["algorithm_name"] == "dqn"  # Minari's own field
    assert herdbook.load_dataset("mine/random-v0").learned_by == ()


def test_noise_widens_what_is_collected(minari_root: Path) -> None:
    go("sac", seeds=(0,), steps=40)
    words = ["collect", "run", "--episodes", "2", "--out"]
    assert main([*words, "mine/plain-v0"]) == main([*words, "mine/noisy-v0", "--noise", "0.5"]) == 0
    plain, noisy = (herdbook.load_dataset(f"mine/{name}-v0") for name in ("plain", "noisy"))
    assert np.array_equal(plain.observations[0], noisy.observations[0])  # the same resets
    difference = noisy.actions[:, 0] - plain.actions[:, 0].mean()
    assert 0.5 < difference.std() < 1.2 and np.abs(noisy.actions).max() == 2  # σ is half of half the range, clipped
    assert plain.actions.std() < 0.2


def test_noise_by_hand() -> None:
    class Still(RandomPolicy):
        def __call__(self, step: Any, carry: Any, generator: Any = None) -> Any:
            middle = torch.full((len(step.first), 1), 4.0)
            return (torch.ones(len(step.first), dtype=torch.int64) if self.discrete else middle), carry

        @property
        def discrete(self) -> bool:
            return isinstance(self.action_space, spaces.Discrete)

    flags = torch.zeros(20_000, dtype=torch.bool)
    step = Step(torch.zeros(20_000, 1), torch.zeros(20_000), torch.zeros(20_000), flags, flags)
    wide = spaces.Box(0.0, 8.0, (1,))
    actions, _ = NoisyPolicy(Still(wide), wide, 0.25)(step, None, torch.Generator().manual_seed(0))
    assert float(actions.mean()) == pytest.approx(4, abs=0.05) and float(actions.std()) == pytest.approx(1, abs=0.05)
    four = spaces.Discrete(4)
    chosen, _ = NoisyPolicy(Still(four), four, 0.4)(step, None, torch.Generator().manual_seed(0))
    torch.testing.assert_close(chosen.bincount() / 20_000, torch.tensor([0.1, 0.7, 0.1, 0.1]), atol=0.02, rtol=0)
    none, _ = NoisyPolicy(Still(four), four, 0.0)(step, None, torch.Generator().manual_seed(0))
    assert bool((none == 1).all())
    for space, noise in ((four, 1.5), (wide, -0.1), (wide, float("inf"))):
        with pytest.raises(ValueError, match="expected noise in"):
            NoisyPolicy(Still(space), space, noise)
    with pytest.raises(TypeError, match="no density"):
        NoisyPolicy(Still(four), four, 0.4).distribution(step, None)
