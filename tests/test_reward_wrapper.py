"""The wrapper that pays a learned reward: values by hand, Gymnasium's contract, records, and refusals."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from herdbook.core.environments import EnvironmentSpec, make_environment
from herdbook.core.policy import Scaling
from herdbook.core.random import scoped_seed
from herdbook.core.random_policy import RandomPolicy
from herdbook.core.spaces import flat_action_space, flat_space
from herdbook.core.types import Spec
from herdbook.datasets.relabel import relabel
from herdbook.datasets.replay import ReplayBuffer
from herdbook.datasets.rewards import PlayedRewards
from herdbook.evaluation.epic import SampledCoverage
from herdbook.evaluation.evaluate import evaluate
from herdbook.evaluation.rewards import judge
from herdbook.irl.rewards import LearnedReward, RewardDesign, RewardError
from herdbook.irl.wrapper import RewardWrapper


def reward_of(env: gymnasium.Env[Any, Any], discount: float = 0.5, **design: Any) -> LearnedReward:
    """A reward with random networks in the spaces of an environment."""
    spec = Spec(flat_space(env.observation_space), flat_action_space(env.action_space))
    form = RewardDesign(**{"inputs": "transition", "shaped": True, **design})
    with scoped_seed(0):
        parameters = {name: value.detach() for name, value in form.build(Scaling(spec)).named_parameters()}
    return LearnedReward(design=form, spec=spec, discount=discount, members=(parameters,))


class Walk(gymnasium.Env[Any, Any]):
    """Observes the number of its steps in an array that it reuses; ends after three of them, or is cut off there."""

    def __init__(self, terminates: bool = True) -> None:
        self.observation_space = spaces.Box(0, 10, (1,), np.float32)
        self.action_space = spaces.Box(-2, 2, (1, 1), np.float64)
        self.terminates, self.seen = terminates, np.zeros(1, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.seen[0] = 0
        return self.seen, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.seen += 1
        over = bool(self.seen[0] == 3)
        return self.seen, 7.0, over and self.terminates, over and not self.terminates, {"more": True}


def linear(env: Walk) -> LearnedReward:
    """g(s, a) = s + 10 a / 2 (actions are scaled to [−1, 1]), h(s) = 100 + s."""
    names = {
        "base.head.layers.0.weight": [[1.0, 10.0]],
        "base.head.layers.0.bias": [0.0],
        "potential.head.layers.0.weight": [[1.0]],
        "potential.head.layers.0.bias": [100.0],
    }
    spec = Spec(flat_space(env.observation_space), flat_action_space(env.action_space))
    design = RewardDesign(inputs="state_action", hidden_sizes=(), shaped=True, shaping_sizes=())
    return LearnedReward(
        design=design, spec=spec, discount=0.5, members=({k: torch.tensor(v) for k, v in names.items()},)
    )


def paid(env: Any, actions: Any) -> list[float]:
    env.reset(seed=0)
    rewards = []
    for action in actions:
        _, reward, terminated, truncated, info = env.step(np.full((1, 1), action))
        assert info == {"more": True, "environment_reward": 7.0} and type(reward) is float
        rewards.append(reward)
    assert terminated or truncated
    return rewards


@pytest.mark.parametrize(("terminates", "last"), [(True, 2 - 102), (False, 2 + 0.5 * 103 - 102)])
def test_rewards_by_hand(terminates: bool, last: float) -> None:
    """The end has no potential, a cut has; an action outside the space is paid as the one that is executed."""
    env = Walk(terminates)
    assert paid(RewardWrapper(env, linear(env)), [0, 1, 5]) == [0, 1 + 5, 2 + 10]
    shaped = RewardWrapper(env, linear(env), shaped=True)
    for _ in range(2):  # nothing is carried into the next episode
        assert paid(shaped, [0, 0, 0]) == [0 + 0.5 * 101 - 100, 1 + 0.5 * 102 - 101, last]
    assert paid(RewardWrapper(env, linear(env), discount=0.0, shaped=True), [0, 0, 0]) == [-100, -100, -100]


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1", "Blackjack-v1"])
def test_what_is_paid_is_what_relabelling_gives(name: str) -> None:
    """Vectors, numbered states and tuples, discrete and continuous actions, ends and cuts."""
    reward = reward_of(gymnasium.make(name))
    policy = RandomPolicy(flat_action_space(gymnasium.make(name).action_space))
    plain = evaluate(policy, name, 2, 0, max_steps=30)
    wrapped = evaluate(
        policy, lambda: RewardWrapper(gymnasium.make(name), reward, discount=0.9, shaped=True), 2, 0, max_steps=30
    )
    expected = relabel(plain, reward, discount=0.9, description="").rewards
    np.testing.assert_allclose(wrapped.rewards, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(wrapped.observations, plain.observations)
    assert np.ptp(expected) > 0


@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version")  # it is: that is what is checked
def test_wrapped_environments_keep_gymnasiums_contract() -> None:
    env = gymnasium.make("MountainCarContinuous-v0").unwrapped
    check_env(RewardWrapper(env, reward_of(env)), skip_render_check=True)


def test_a_wrapper_with_a_directory_is_recorded_and_made_again(tmp_path: Path) -> None:
    env = gymnasium.make("Pendulum-v1")
    directory = reward_of(env).save(tmp_path / "reward")
    wrapped = RewardWrapper(env, directory, discount=0.9)
    spec = EnvironmentSpec.from_gymnasium(wrapped.spec)
    (wrapper,) = json.loads(spec.to_json())["additional_wrappers"]
    assert wrapper["kwargs"] == {"reward": str(directory), "discount": 0.9, "shaped": False}
    again = make_environment(spec)
    assert isinstance(again, RewardWrapper)
    for each in (again, pickle.loads(pickle.dumps(again))):  # noqa: S301
        each.reset(seed=1)
        wrapped.reset(seed=1)
        assert each.step(np.ones(1, np.float32))[1] == wrapped.step(np.ones(1, np.float32))[1]


def test_other_spaces_and_discounts_are_refused(tmp_path: Path) -> None:
    pendulum, cart = gymnasium.make("Pendulum-v1"), gymnasium.make("CartPole-v1")
    with pytest.raises(RewardError, match=r"CartPole-v1: expected the observation_space Box\(.* of the reward"):
        RewardWrapper(cart, reward_of(pendulum))
    with pytest.raises(RewardError, match="expected a saved reward function"):
        RewardWrapper(cart, tmp_path)
    with pytest.raises(ValueError, match=r"discount: expected γ in \[0, 1\], got 1.5"):
        RewardWrapper(pendulum, reward_of(pendulum), discount=1.5)


def test_a_reward_of_absorbing_states_is_refused_at_a_discount_of_0() -> None:
    """It recognises terminations by a discount of 0, so every step would get the value of an end."""
    env = gymnasium.make("CartPole-v1")
    plain = reward_of(env, shaped=False)
    reward = replace(plain, absorbing_reward=5.0)
    data = evaluate(RandomPolicy(spaces.Discrete(2)), "CartPole-v1", 1, 0)
    replay = ReplayBuffer(data)
    coverage = SampledCoverage.from_episodes(data, discount=0.0, samples=4)
    uses: list[Callable[[Any], Any]] = [
        lambda reward: RewardWrapper(env, reward, discount=0.0),
        lambda reward: PlayedRewards(reward, 0.0),
        lambda reward: relabel(data, reward, discount=0.0, description=""),
        lambda reward: replay.gather(torch.tensor([0]), discount=0.0, reward=reward),
        lambda reward: judge(reward, data, discount=0.0),
        lambda reward: coverage.canonically_shaped(reward),
    ]
    for use in uses:
        use(plain)
        with pytest.raises(ValueError, match="discount: expected γ > 0, since the reward of absorbing states"):
            use(reward)
    assert relabel(data, reward, discount=0.5, description="").rewards[-1] == pytest.approx(
        relabel(data, plain, discount=0.5, description="").rewards[-1] + 5
    )
