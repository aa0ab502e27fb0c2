"""The report on a reward function: its numbers, and the cases in which there is none."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from herdbook.core.types import Transitions
from herdbook.datasets.episodes import Episodes
from herdbook.datasets.relabel import relabel
from herdbook.evaluation.rewards import draw_scatter, judge

GAMMA = 0.9


def true_reward(step: Transitions) -> torch.Tensor:
    return step.observations[:, 0] - 0.5 * step.actions[:, 0]


def constant(step: Transitions) -> torch.Tensor:
    return torch.ones(len(step.discounts))


def potential(observations: torch.Tensor) -> torch.Tensor:
    return 3 * torch.sin(observations).sum(-1)


def shaped(step: Transitions) -> torch.Tensor:
    return 2 * true_reward(step) + step.discounts * potential(step.next_observations) - potential(step.observations)


def recorded(reward: Any = true_reward, ends: bool = True) -> Episodes:
    rng = np.random.default_rng(0)
    episodes = [
        {
            "observations": rng.standard_normal((n + 1, 2)),
            "actions": rng.uniform(-1, 1, (n, 1)),
            "rewards": np.zeros(n),
            "terminated": ends,
            "truncated": not ends,
        }
        for n in (40, 60)
    ]
    space, actions = spaces.Box(-10, 10, (2,), np.float32), spaces.Box(-1, 1, (1,), np.float32)
    data = Episodes.from_episodes(episodes, observation_space=space, action_space=actions, source="mine")
    return replace(relabel(data, reward, discount=GAMMA, description=""), transforms=())


def test_the_true_reward_is_judged_perfect_and_a_shaped_copy_by_epic_alone() -> None:
    report = judge(true_reward, recorded(), true_reward, discount=GAMMA, samples=32)
    assert (report.pearson, report.spearman) == (pytest.approx(1), pytest.approx(1))
    assert report.epic is not None and report.epic < 1e-5 and report.notices == ()
    report = judge(shaped, recorded(), true_reward, discount=GAMMA, samples=32)
    assert report.pearson is not None and abs(report.pearson) < 0.9
    assert report.epic is not None and report.epic < 1e-5
    negated = judge(lambda step: -shaped(step), recorded(), true_reward, discount=GAMMA, samples=32)
    assert (negated.pearson, negated.epic) == (pytest.approx(-report.pearson), pytest.approx(1))


def test_spearman_reads_ranks_only() -> None:
    report = judge(lambda step: true_reward(step).exp(), recorded(), discount=GAMMA)
    assert report.spearman == pytest.approx(1) and report.pearson is not None and report.pearson < 0.99


def test_without_a_true_function_there_is_no_epic_distance() -> None:
    report = judge(true_reward, recorded(), discount=GAMMA)
    assert report.epic is None and report.pearson == pytest.approx(1)
    assert "needs the true reward as a function" in report.notices[0]


def test_a_constant_true_reward_has_no_correlations_and_an_epic_distance_only_where_episodes_end() -> None:
    """As CartPole's: 1 at every step. Where episodes end it rewards survival; without an end it says nothing."""
    endless = judge(true_reward, recorded(constant, ends=False), constant, discount=GAMMA)
    assert (endless.pearson, endless.spearman, endless.epic) == (None, None, None)
    assert "the true reward is 1 at every step: correlations with it are undefined" in endless.notices
    assert "the true reward is zero up to shaping: its EPIC distance is undefined" in endless.notices
    ending = judge(lambda step: 3 * constant(step), recorded(constant), constant, discount=GAMMA)
    assert ending.pearson is None and ending.epic == pytest.approx(0, abs=1e-5)
    assert judge(lambda step: -constant(step), recorded(constant), constant, discount=GAMMA).epic == pytest.approx(1)


def test_a_constant_learned_reward_is_reported_as_such() -> None:
    report = judge(constant, recorded(ends=False), true_reward, discount=GAMMA)
    assert (report.pearson, report.epic) == (None, None)
    assert "the learned reward is zero up to shaping: its EPIC distance is undefined" in report.notices


def test_without_discount_the_epic_distance_is_undefined_where_episodes_end() -> None:
    report = judge(true_reward, recorded(), true_reward, discount=1.0)
    assert report.epic is None and report.pearson == pytest.approx(1)
    assert report.notices == (
        "the EPIC distance is undefined: discount: expected γ < 1 where episodes can end, got 1, for which eq. 5 has "
        "no value",
    )
    assert judge(true_reward, recorded(ends=False), true_reward, discount=1.0).epic == pytest.approx(0, abs=1e-5)


def test_rewards_that_are_not_the_true_ones_are_noticed() -> None:
    data = recorded()
    scaled = data.with_rewards(2 * data.rewards, "scale:2")
    report = judge(true_reward, scaled, true_reward, discount=GAMMA)
    assert report.notices[0] == "the recorded rewards are not the environment's: rewards: scale:2"
    assert report.notices[1].startswith("the true reward function differs from the recorded rewards by up to ")
    assert report.pearson == pytest.approx(1)


def test_only_the_steps_in_the_mask_count() -> None:
    data = recorded()
    rewards = data.rewards.copy()
    rewards[1::2] = 1e6
    report = judge(true_reward, data.with_rewards(rewards, "").subsample(2), discount=GAMMA)
    assert report.steps == 50 and report.pearson == pytest.approx(1)


def test_a_report_is_json_and_a_scatter_is_drawn(tmp_path: Any) -> None:
    report = judge(true_reward, recorded(), discount=GAMMA)
    loaded = json.loads(json.dumps(report.json(), allow_nan=False))
    assert loaded["dataset"] == "mine" and loaded["steps"] == 100 and loaded["epic"] is None
    draw_scatter([1, 2, 3], [1, 4, 9], tmp_path / "scatter.png", title="reward")
    assert (tmp_path / "scatter.png").read_bytes().startswith(b"\x89PNG")
