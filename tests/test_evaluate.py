"""Stepping and evaluation, on probe environments whose returns are known."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from herdbook.core.distributions import Uniform
from herdbook.core.environments import EnvironmentUnavailable
from herdbook.core.random_policy import RandomPolicy
from herdbook.core.runner import (
    EndlessEpisodes,
    EnvironmentFailed,
    PolicyFailed,
    VectorRunner,
    VectorStep,
    fixed_episodes,
)
from herdbook.core.types import Carry, Spec, Step
from herdbook.evaluation.evaluate import evaluate, score


class Probe(gymnasium.Env[Any, Any]):
    """Reward 1 a step; the length of an episode is 1 + seed mod 7, and observations are (seed, step)."""

    observation_space: Any = spaces.Box(-np.inf, np.inf, (2,))
    action_space: Any = spaces.Discrete(2)

    def __init__(self, ending: str = "terminated") -> None:
        self.ending, self.seed, self.t = ending, 0, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        assert type(seed) is int
        self.seed, self.t = seed, 0
        return self._look(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        over = self.t >= 1 + self.seed % 7
        return self._look(), 1.0, over and self.ending == "terminated", over and self.ending == "truncated", {}

    def _look(self) -> Any:
        return np.array([self.seed, self.t], np.float64)  # an environment that declares float32


class Continuous(Probe):
    """Actions of shape (2, 1) in [−2, 2], recorded."""

    action_space = spaces.Box(-2.0, 2.0, (2, 1), np.float64)

    def __init__(self) -> None:
        super().__init__()
        self.received: list[Any] = []

    def step(self, action: Any) -> Any:
        assert action.shape == (2, 1)
        assert action.dtype == np.float64
        self.received.append(action)
        return super().step(action)


class Constant:
    """A policy that gives one action and records what it saw."""

    def __init__(self, action: Any) -> None:
        self.action = torch.as_tensor(action)
        self.seen: list[Step] = []

    def initial(self, num_envs: int) -> Carry:
        return torch.zeros(num_envs)

    def __call__(self, step: Step, carry: Carry, generator: torch.Generator | None = None) -> tuple[Tensor, Carry]:
        self.seen.append(step)
        carry = torch.where(step.reset, 0, carry) + 1  # steps of this episode, as a recurrent policy would count them
        assert ((carry == step.observations[..., 1] + 1) | step.first).all()  # resting lanes count as first
        return self.action.expand(len(step.first), *self.action.shape), carry

    def distribution(self, step: Step, carry: Carry) -> tuple[Any, Carry]:
        raise NotImplementedError


LEFT = 0


@pytest.mark.parametrize("num_envs", [1, 3, 8, 50])
def test_every_episode_counts_once_so_short_ones_are_not_over_represented(num_envs: int) -> None:
    episodes = evaluate(Constant(LEFT), Probe, episodes=20, seed=100, num_envs=num_envs)
    expected = [1 + (100 + i) % 7 for i in range(20)]
    assert episodes.lengths().tolist() == expected
    assert episodes.returns().tolist() == expected
    assert [m["seed"] for m in episodes.episode_metadata] == list(range(100, 120))


@pytest.mark.parametrize("num_envs", [2, 5])
def test_the_result_does_not_depend_on_the_number_of_environments(num_envs: int) -> None:
    one, many = (evaluate(Constant(LEFT), Probe, 9, 3, num_envs=n).fingerprint() for n in (1, num_envs))
    assert one == many


@pytest.mark.parametrize("num_envs", [1, 3])
def test_scores_are_those_of_the_episodes_that_are_not_kept(num_envs: int) -> None:
    policy = RandomPolicy(spaces.Discrete(2))
    kept = evaluate(policy, Probe, 10, seed=3, num_envs=num_envs)
    scores = score(policy, Probe, 10, seed=3, num_envs=num_envs)
    assert scores.returns().tolist() == kept.returns().tolist() == [float(1 + (3 + i) % 7) for i in range(10)]
    assert scores.lengths().tolist() == kept.lengths().tolist()


def test_the_final_observation_of_an_episode_is_its_own() -> None:
    episodes = evaluate(Constant(LEFT), Probe, episodes=10, seed=0, num_envs=3)
    for number in range(10):
        length = 1 + number % 7
        expected = [[number, t] for t in range(length + 1)]
        assert episodes.episode(number).observations.tolist() == expected


@pytest.mark.parametrize("ending", ["terminated", "truncated"])
def test_a_timeout_is_not_a_termination(ending: str) -> None:
    episodes = evaluate(Constant(LEFT), lambda: Probe(ending), episodes=5, seed=0)
    last = episodes.offsets[1:] - 1
    assert episodes.terminated[last].all() == (ending == "terminated")
    assert episodes.truncated[last].all() == (ending == "truncated")
    assert episodes.terminated.sum() + episodes.truncated.sum() == 5


def test_max_steps_truncates_endless_episodes() -> None:
    episodes = evaluate(Constant(LEFT), lambda: Probe("never"), episodes=3, seed=0, max_steps=11)
    assert episodes.lengths().tolist() == [11, 11, 11]
    assert episodes.truncated[episodes.offsets[1:] - 1].all()
    assert not episodes.terminated.any()


def test_max_steps_leaves_a_termination_at_that_step_alone() -> None:
    episodes = evaluate(Constant(LEFT), Probe, episodes=1, seed=4, max_steps=5)
    assert episodes.terminated.tolist() == [False] * 4 + [True]
    assert not episodes.truncated.any()


def test_an_environment_without_a_limit_does_not_hang(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """CliffWalking-v1 has none."""
    monkeypatch.setattr("herdbook.core.runner.UNDECLARED_LIMIT", 30)
    episodes = evaluate(Constant(LEFT), lambda: Probe("never"), episodes=1, seed=0)
    assert "Probe declares no time limit; its episodes are cut after 30 steps: choose another limit" in caplog.text
    assert episodes.lengths().tolist() == [30]


def test_random_policy_is_reproducible_from_the_seed() -> None:
    def run(seed: int) -> str:
        policy = RandomPolicy(gymnasium.make("CartPole-v1").action_space)
        return evaluate(policy, "CartPole-v1", episodes=5, seed=seed, num_envs=2).fingerprint()

    assert run(7) == run(7)
    assert run(7) != run(8)


def test_a_policy_sees_its_previous_actions_and_rewards_and_where_episodes_begin() -> None:
    policy = Constant(1)
    evaluate(policy, Probe, episodes=4, seed=1, num_envs=2)
    first = torch.stack([s.first for s in policy.seen[:7]])
    previous = torch.stack([s.previous_actions for s in policy.seen[:7]])
    rewards = torch.stack([s.previous_rewards for s in policy.seen[:7]])
    assert first[0].all()
    assert first[:, 0].tolist() == [True, False, True, False, False, False, True]  # lengths 2, 4; then it rests
    assert torch.equal(previous == 0, first)
    assert torch.equal(rewards == 0, first)


def test_actions_reach_a_box_in_its_own_shape_and_type_and_are_clipped() -> None:
    env = Continuous()
    episodes = evaluate(Constant([0.5, 9.0]), lambda: env, episodes=1, seed=3, num_envs=1)
    assert env.received[-1].tolist() == [[0.5], [2.0]]
    assert episodes.actions.tolist() == [[0.5, 2.0]] * 4


@pytest.mark.parametrize(
    ("env", "action", "words"),
    [
        (Probe, 2, "expected actions in Discrete"),
        (Probe, 0.0, "expected actions in Discrete"),
        (Continuous, [0.0, 0.0, 0.0], r"expected actions of shape \(1, 2\)"),
    ],
)
def test_actions_that_do_not_fit(env: Any, action: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        evaluate(Constant(action), env, episodes=1, seed=0)


def test_an_action_that_is_not_finite_is_the_policys_failure() -> None:
    with pytest.raises(PolicyFailed, match="not finite"):
        evaluate(Constant([0.0, float("nan")]), Continuous, episodes=1, seed=0)


class Broken(Probe):
    """Goes wrong in step 4 of the episode with seed 13, in one of several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        if self.seed == 13 and self.t == 4:
            if self.how == "raises":
                raise ZeroDivisionError("sparks")
            if self.how == "reward":
                reward = float("nan")
            if self.how == "observation":
                observation[1] = np.inf
            if self.how == "shape":
                observation = np.zeros(3)
        return observation, reward, *rest


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("raises", r"Broken raised ZeroDivisionError: sparks \(episode 3, reset seed 13, step 3\)"),
        ("reward", r"gave the reward nan \(episode 3, reset seed 13, step 3\)"),
        ("observation", r"gave an observation that is not finite \(episode 3, reset seed 13, step 3\)"),
        ("shape", r"expected an observation of shape \(2,\), got \(3,\) \(episode 3, reset seed 13, step 3\)"),
    ],
)
def test_an_environment_that_fails_is_named_with_episode_seed_and_step(how: str, words: str) -> None:
    with pytest.raises(EnvironmentFailed, match=words):
        evaluate(Constant(LEFT), lambda: Broken(how), episodes=5, seed=10, num_envs=5)


def test_spaces_other_than_the_datas_are_refused() -> None:
    spec = Spec(spaces.Box(-np.inf, np.inf, (3,)), spaces.Discrete(2))
    with pytest.raises(ValueError, match=r"expected observations in .*as in the data"):
        evaluate(Constant(LEFT), Probe, 1, 0, spec=spec)
    spec = Spec(Probe.observation_space, spaces.Discrete(3))
    with pytest.raises(ValueError, match=r"expected actions in .*as in the data"):
        evaluate(Constant(LEFT), Probe, 1, 0, spec=spec)
    spec = Spec(Probe.observation_space, spaces.Box(-1, 1, (2,)))
    with pytest.raises(ValueError, match=r"expected actions in .*as in the data"):
        evaluate(Constant([0.0, 0.0]), Continuous, 1, 0, spec=spec)


class Composite(Probe):
    observation_space = spaces.Dict({"goal": spaces.Box(0, 9, (1,)), "arm": spaces.Box(0, 9, (2,))})

    def _look(self) -> Any:
        return {"goal": np.full(1, 7.0), "arm": np.array([self.seed, self.t])}


class First:
    """A policy that does not look."""

    def initial(self, num_envs: int) -> Carry:
        return None

    def __call__(self, step: Step, carry: Carry, generator: torch.Generator | None = None) -> tuple[Tensor, Carry]:
        return torch.zeros(len(step.first), dtype=torch.int64), carry

    def distribution(self, step: Step, carry: Carry) -> tuple[Any, Carry]:
        raise NotImplementedError


def test_dict_observations_are_flattened_by_gymnasiums_rule() -> None:
    whole = evaluate(First(), Composite, 1, seed=1)
    assert whole.observations.tolist() == [[1, 0, 7], [1, 1, 7], [1, 2, 7]]
    assert whole.raw_observation_space == Composite.observation_space
    spec = Spec(spaces.Box(0, 9, (2,)), Composite.action_space, Composite.observation_space, ("arm",))
    part = evaluate(First(), Composite, 1, seed=1, spec=spec)
    assert part.observations.tolist() == [[1, 0], [1, 1], [1, 2]]
    assert part.observation_keys == ("arm",)


class Forgetful(Probe):
    """A reset that leaves a counter as it was."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def step(self, action: Any) -> Any:
        self.total += 1
        _, *rest = super().step(action)
        return np.array([self.total, self.t], np.float64), *rest


def test_an_environment_with_an_incomplete_reset_is_made_anew_for_each_episode(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for _ in range(2):
        episodes = evaluate(First(), Forgetful, episodes=6, seed=0, num_envs=2)
    told = "Forgetful: reset(seed) does not determine the state, so it is rebuilt for each episode"
    assert caplog.messages == [told]  # once
    assert episodes.episode(5).observations[:, 0].tolist() == [5, 1, 2, 3, 4, 5, 6]


def test_one_environment_in_every_lane_is_refused() -> None:
    env = Probe()
    with pytest.raises(ValueError, match="the same one again"):
        evaluate(First(), lambda: env, episodes=2, seed=0)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"episodes": 0}, "episodes >= 1"),
        ({"seed": -1}, "seed >= 0"),
        ({"num_envs": 0}, "num_envs >= 1"),
        ({"max_steps": 0}, "max_steps >= 1"),
    ],
)
def test_numbers_out_of_range(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        evaluate(First(), Probe, **{"episodes": 1, "seed": 0, **wrong})


def test_an_unknown_environment() -> None:
    with pytest.raises(EnvironmentUnavailable, match="CartPole-v1"):
        evaluate(First(), "CartPool-v1", 1, 0)


def test_endless_stepping_gives_each_episode_of_a_lane_its_own_seed() -> None:
    runner = VectorRunner(Probe, 3, EndlessEpisodes(5))
    steps = [runner.step(First()) for _ in range(40)]
    began = {(lane, float(s.played.observations[lane, 0])) for s in steps for lane in range(3) if s.first[lane]}
    assert len({seed for _, seed in began}) == len(began) > 12
    again = VectorRunner(Probe, 3, EndlessEpisodes(5))
    assert all(_same(a, again.step(First())) for a in steps)


def _same(a: VectorStep, b: VectorStep) -> bool:
    played = ("observations", "actions", "rewards", "next_observations", "terminated")
    return all(np.array_equal(getattr(a.played, name), getattr(b.played, name)) for name in played) and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ("episodes", "first")
    )


def test_what_was_given_out_is_not_changed_by_later_steps() -> None:
    runner = VectorRunner(Probe, 2, fixed_episodes(6, 0))
    kept, copies = [], []
    while runner.active:
        step = runner.step(First())
        kept.append((step.played.observations, step.played.next_observations, step.played.reset, step.first))
        copies.append([*map(np.copy, kept[-1])])
    for arrays, copied in zip(kept, copies, strict=True):
        assert all(map(np.array_equal, arrays, copied))


def test_another_policy_starts_with_a_fresh_carry() -> None:
    runner = VectorRunner(lambda: Probe("never"), 2, EndlessEpisodes(0), max_steps=100)
    for _ in range(3):
        runner.step(First())
    seen: list[Any] = []

    class Watch(First):
        def __call__(self, step: Step, carry: Carry, generator: torch.Generator | None = None) -> tuple[Tensor, Carry]:
            seen.append(carry)
            return super().__call__(step, carry, generator)

    runner.step(Watch())
    assert seen == [None]


def test_a_policy_with_parameters_that_are_trained_leaves_no_graph_behind() -> None:
    weight, carries = torch.ones(2, 1, requires_grad=True), []

    class Remembers(First):
        def __call__(self, step: Step, carry: Carry, generator: torch.Generator | None = None) -> tuple[Tensor, Carry]:
            carries.append(weight if carry is None else carry * weight)
            return super().__call__(step, carry, generator)[0], carries[-1]

    runner = VectorRunner(lambda: Probe("never"), 2, EndlessEpisodes(0), max_steps=100)
    policy = Remembers()
    for _ in range(3):
        runner.step(policy)
    assert [carry.requires_grad for carry in carries[1:]] == [False, False]


def test_random_policy_covers_the_box_and_scores_its_actions() -> None:
    policy = RandomPolicy(spaces.Box(np.array([-1, 0], np.float32), np.array([1, 4], np.float32)))
    step = Step(None, None, torch.zeros(1000), torch.ones(1000, dtype=torch.bool), torch.ones(1000, dtype=torch.bool))
    actions, _ = policy(step, None, torch.Generator().manual_seed(0))
    assert actions.shape == (1000, 2)
    assert actions.amin(0) == pytest.approx([-1, 0], abs=0.05)
    assert actions.amax(0) == pytest.approx([1, 4], abs=0.05)
    distribution, _ = policy.distribution(step, None)
    assert isinstance(distribution, Uniform)
    assert distribution.log_prob(actions)[0] == pytest.approx(-np.log(8))
    assert distribution.log_prob(actions + 5)[0] == -torch.inf
    assert distribution.mode()[0].tolist() == [0, 2]


def test_random_policy_in_discrete_spaces_that_do_not_start_at_zero() -> None:
    policy = RandomPolicy(spaces.Discrete(3, start=5))
    step = Step(None, None, torch.zeros(500), torch.ones(500, dtype=torch.bool), torch.ones(500, dtype=torch.bool))
    actions, _ = policy(step, None, torch.Generator().manual_seed(0))
    assert set(actions.tolist()) == {5, 6, 7}
    distribution, _ = policy.distribution(step, None)
    assert distribution.log_prob(actions)[0] == pytest.approx(-np.log(3))
    with pytest.raises(ValueError, match="bounded"):
        RandomPolicy(spaces.Box(-np.inf, np.inf, (1,)))
