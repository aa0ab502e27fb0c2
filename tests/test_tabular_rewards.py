"""Rewards in finite MDPs: tables and functions, the expected value difference, and maps of a gridworld."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from herdbook.core.types import Spec, Transitions
from herdbook.evaluation.epic import TabularCoverage, epic_distance
from herdbook.irl.rewards import LearnedReward, RewardDesign
from herdbook.tabular.gridworld import GridWorld
from herdbook.tabular.mdp import MDP
from herdbook.tabular.picture import draw_rewards
from herdbook.tabular.rewards import TableReward, expected_value_difference, reward_table

GRID = GridWorld(text="S..\n.#.\n..G")


def two_states() -> MDP:
    """Action 0 stays in state 0 for reward 1, action 1 goes to state 1, where every step pays 3; γ = 1/2.

    V*(1) = 6, V*(0) = max(1 / (1 − 1/2), 0 + 6/2) = 3. Staying is worth 2. The uniform policy:
    V(0) = 1/2 (1 + V(0)/2) + 1/2 (6/2) = 2 + V(0)/4 = 8/3.
    """
    transitions = np.zeros((2, 2, 2))
    transitions[0, 0, 0] = transitions[0, 1, 1] = transitions[1, :, 1] = 1
    return MDP(transitions=transitions, rewards=np.array([[1, 0], [3, 3]]), initial=np.array([1, 0]), discount=0.5)


def test_the_expected_value_difference_by_hand() -> None:
    mdp = two_states()
    good = expected_value_difference(mdp, np.array([[0, 0], [1, 1]]))  # learned: state 1 is good
    assert (good.optimal, good.achieved, good.random) == pytest.approx((3, 3, 8 / 3))
    assert (good.difference, good.relative, good.regret) == pytest.approx((0, 0, 0), abs=1e-12)
    bad = expected_value_difference(mdp, np.array([1, 0]))  # learned: state 0 is good, as R(s)
    assert (bad.difference, bad.relative, bad.regret) == pytest.approx((1, 1 / 3, 3))
    assert bad.json() == {
        "optimal": pytest.approx(3),
        "achieved": pytest.approx(2),
        "random": pytest.approx(8 / 3),
        "difference": pytest.approx(1),
        "relative": pytest.approx(1 / 3),
        "regret": pytest.approx(3),
    }


def test_a_soft_policy_is_between_the_optimal_and_the_uniform_one() -> None:
    mdp = two_states()
    sharp = expected_value_difference(mdp, mdp.rewards, temperature=1e-3)
    assert sharp.difference == pytest.approx(0, abs=1e-9)
    soft = expected_value_difference(mdp, mdp.rewards, temperature=1.0)
    assert sharp.difference < soft.difference < soft.optimal - soft.random
    flat = expected_value_difference(mdp, mdp.rewards, temperature=1e6)
    assert flat.achieved == pytest.approx(flat.random, abs=1e-4)
    with pytest.raises(ValueError, match="temperature: expected at least 0"):
        expected_value_difference(mdp, mdp.rewards, temperature=-1.0)


def test_no_share_is_given_of_nothing() -> None:
    mdp = MDP(transitions=np.ones((1, 2, 1)), rewards=np.zeros(1), initial=np.ones(1), discount=0.5)
    nothing = expected_value_difference(mdp, np.ones(1))
    assert (nothing.difference, nothing.relative, nothing.regret) == (0, None, None)


@pytest.mark.parametrize("seed", range(4))
def test_shaping_and_scaling_cost_nothing_and_a_negated_reward_costs(seed: int) -> None:
    mdp = MDP.random(6, 3, discount=0.9, generator=np.random.default_rng(seed), num_terminal=1)
    potential = np.where(mdp.ends, 0.0, np.random.default_rng(seed).standard_normal(6))
    shaped = 4 * mdp.rewards + 0.9 * potential - potential[:, None, None]
    assert expected_value_difference(mdp, shaped).difference == pytest.approx(0, abs=1e-9)
    assert expected_value_difference(mdp, -mdp.rewards).difference > 0.1
    coverage = TabularCoverage.uniform(6, 3, discount=0.9, terminal=mdp.ends)
    assert epic_distance(mdp.rewards, shaped, coverage) < 1e-6


def learned(states: int, actions: int, **fields: Any) -> LearnedReward:
    spec = Spec(spaces.Discrete(states), spaces.Discrete(actions))
    design = RewardDesign(inputs="state", hidden_sizes=(), shaped=True, shaping_sizes=())
    parameters = {
        "base.head.layers.0.weight": torch.arange(states, dtype=torch.float32)[None],
        "base.head.layers.0.bias": torch.zeros(1),
        "potential.head.layers.0.weight": 10 * torch.ones(1, states),
        "potential.head.layers.0.bias": torch.zeros(1),
    }
    return LearnedReward(design=design, spec=spec, discount=0.5, members=(parameters,), **fields)


@pytest.mark.parametrize("batch_size", [1, 5, 1000])
def test_a_function_becomes_a_table_whose_terminal_states_have_no_potential(batch_size: int) -> None:
    mdp = MDP.random(4, 2, discount=0.9, generator=np.random.default_rng(0), num_terminal=1)
    table = reward_table(learned(4, 2), mdp, batch_size=batch_size)
    expected = np.arange(4.0)[:, None, None] + np.where(mdp.ends, 0.0, 9.0) - 10 + np.zeros((4, 2, 4))
    expected[3] = 0
    np.testing.assert_allclose(table, expected, atol=1e-5)
    np.testing.assert_allclose(reward_table(lambda step: step.rewards, mdp), mdp.rewards, atol=1e-6)
    np.testing.assert_array_equal(reward_table(TableReward(mdp.rewards), mdp), mdp.rewards)


def test_a_table_is_a_reward_function() -> None:
    table = np.arange(8.0).reshape(2, 2, 2)
    step = Transitions(torch.tensor([0, 1]), torch.tensor([1, 0]), torch.zeros(2), torch.ones(2), torch.tensor([1, 1]))
    assert TableReward(table)(step).tolist() == [3, 5]


def test_reward_maps_are_drawn_side_by_side(tmp_path: Path) -> None:
    states = len(GRID.cells)
    draw_rewards(GRID, {"true": np.arange(states), "learned": np.ones(states)}, path=tmp_path / "two.svg")
    drawing = (tmp_path / "two.svg").read_text()
    assert drawing.count("<!-- true -->") == drawing.count("<!-- learned -->") == 1
    with pytest.raises(ValueError, match=r"learned: expected \[8\], one of each state, got shape \(3,\)"):
        draw_rewards(GRID, {"learned": np.ones(3)}, path=tmp_path / "none.svg")
    with pytest.raises(ValueError, match="expected at least one map"):
        draw_rewards(GRID, {}, path=tmp_path / "none.svg")
