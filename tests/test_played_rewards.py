"""Learned rewards of steps as they are played: rollouts and replays store them instead of the environment's."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from herdbook.core.growing import STEP_FIELDS
from herdbook.core.types import Spec, Steps, Transitions
from herdbook.datasets.prioritised import PrioritisedReplay
from herdbook.datasets.replay import ReplayBuffer
from herdbook.datasets.rewards import PlayedRewards
from herdbook.datasets.rollout_buffer import RolloutBuffer

SPEC = Spec(spaces.Box(-99, 99, (1,)), spaces.Discrete(3))


def steps(first: float = 0.0) -> Steps:
    """Two steps of two lanes; the first lane terminates at the second step, the other is truncated there."""
    observations = np.array([[[0.0], [10.0]], [[1.0], [11.0]]], np.float32) + first
    ends = np.array([[False, False], [True, False]])
    actions = np.array([[0, 1], [2, 1]])
    return Steps(observations, actions, np.full((2, 2), 7.0), ends, ends[:, ::-1].copy(), observations + 1)


def reward(step: Transitions) -> torch.Tensor:
    """100 s + 10 a + γ (1 − terminated) s′, and the environment's reward / 1000."""
    return (
        step.observations[:, 0] * 100
        + step.actions * 10
        + step.discounts * step.next_observations[:, 0]
        + step.rewards / 1000
    )


EXPECTED = [[0 + 0 + 0.5 + 0.007, 1000 + 10 + 5.5 + 0.007], [100 + 20 + 0 + 0.007, 1100 + 10 + 6.0 + 0.007]]
"""By step, then by lane."""


def test_played_rewards_by_hand() -> None:
    found = PlayedRewards(reward, 0.5)(steps())
    assert np.allclose(found.rewards, EXPECTED) and found.rewards.dtype == np.float64
    assert np.array_equal(found.observations, steps().observations) and np.array_equal(
        found.truncated, steps().truncated
    )


def test_a_rollout_holds_the_learned_rewards_and_transforms_them() -> None:
    buffer = RolloutBuffer(reward=PlayedRewards(reward, 0.5), reward_transform=lambda r: 2 * r)
    buffer.extend(steps())
    assert np.allclose(buffer.take().rewards, 2 * np.array(EXPECTED).T)


@pytest.mark.parametrize("prioritised", [False, True])
def test_a_replay_holds_the_learned_rewards(prioritised: bool) -> None:
    online = ReplayBuffer.online(SPEC, 100, 2, reward=PlayedRewards(reward, 0.5), reward_transform=lambda r: r + 1)
    replay: Any = PrioritisedReplay(online) if prioritised else online
    replay.extend(steps())
    batch = online.gather(torch.arange(4), discount=0.9)
    assert np.allclose(batch.rewards, np.array(EXPECTED).reshape(-1) + 1)
    restored = ReplayBuffer.online(SPEC, 100, 2, reward=PlayedRewards(reward, 0.5), reward_transform=lambda r: r + 1)
    restored.load_state_dict(online.state_dict())
    assert torch.equal(restored.gather(torch.arange(4), discount=0.9).rewards, batch.rewards)


def test_wrong_rewards_are_refused_and_nothing_is_added() -> None:
    for wrong, said in (
        (lambda step: step.observations, r"to give \[4\], got \[4, 1\]"),
        (lambda step: step.rewards * torch.nan, "expected finite rewards of the reward function"),
    ):
        replay = ReplayBuffer.online(SPEC, 100, 2, reward=PlayedRewards(wrong, 0.5))
        with pytest.raises(ValueError, match=said):
            replay.extend(steps())
        assert len(replay) == 0


def test_no_steps_have_no_rewards() -> None:
    nothing = Steps(*[getattr(steps(), name)[:0] for name in STEP_FIELDS[:6]])
    assert PlayedRewards(reward, 0.5)(nothing) is nothing
