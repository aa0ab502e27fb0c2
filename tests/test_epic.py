"""EPIC distance: by hand, its invariances, terminal states, and samples that cover a table."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from herdbook.core.random import scoped_seed
from herdbook.core.types import Transitions
from herdbook.datasets.episodes import Episodes
from herdbook.evaluation.correlations import Undefined, pearson, pearson_distance, spearman
from herdbook.evaluation.epic import (
    SampledCoverage,
    TabularCoverage,
    canonically_shaped,
    epic_distance,
    sampled_epic_distance,
)
from herdbook.irl.rewards import LearnedReward, RewardDesign

GAMMA = 0.9
STATES, ACTIONS = 4, 2
ENDS = np.array([False, False, False, True])


def random_table(seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal((STATES, ACTIONS, STATES))


def shaped(table: Any, potential: Any, terminal: Any = None, discount: float = GAMMA) -> Any:
    """R + γ h(s′) − h(s), with h = 0 in terminal states."""
    h = np.asarray(potential, np.float64)
    after = h if terminal is None else np.where(terminal, 0.0, h)
    return table + discount * after - h[:, None, None]


def random_coverage(seed: int, terminal: Any = None) -> TabularCoverage:
    rng = np.random.default_rng(seed)
    goes_on = np.ones(STATES) if terminal is None else 1.0 - terminal
    transitions = rng.random((STATES, ACTIONS, STATES)) * goes_on[:, None, None]
    states = rng.random(STATES) * goes_on
    return TabularCoverage(
        transitions=transitions / transitions.sum(),
        states=states / states.sum(),
        actions=np.array([0.3, 0.7]),
        discount=GAMMA,
        terminal=terminal,
    )


# --- correlations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "y", "linear", "ranks"),
    [
        ([1, 2, 3], [2, 4, 6], 1.0, 1.0),
        ([1, 2, 3], [1, 8, 27], 26 / math.sqrt(2 * 362), 1.0),  # deviations −11, −4, 15
        ([1, 2, 3], [3, 1, 2], -0.5, -0.5),
        ([1, 1, 2, 2], [1, 2, 2, 2], 1 / math.sqrt(3), 1 / math.sqrt(3)),  # ranks 1.5, 1.5, 3.5, 3.5 and 1, 3, 3, 3
    ],
)
def test_correlations_by_hand(x: list[float], y: list[float], linear: float, ranks: float) -> None:
    assert pearson(x, y) == pytest.approx(linear, abs=1e-12)
    assert spearman(x, y) == pytest.approx(ranks, abs=1e-12)
    assert pearson_distance(x, y) == pytest.approx(math.sqrt((1 - linear) / 2), abs=1e-8)


def test_a_constant_has_no_correlation() -> None:
    for function in (pearson, spearman, pearson_distance):
        with pytest.raises(Undefined, match="the first"):
            function([0.1, 0.1, 0.1], [1, 2, 3])
    with pytest.raises(ValueError, match="of equal length"):
        pearson([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="expected finite rewards"):
        pearson([1, math.nan], [1, 2])


def test_pearson_distance_is_weighted() -> None:
    """Equal weights of repeated values are the weights of single ones."""
    repeated = pearson_distance([1, 2, 2, 5], [0, 3, 3, 4])
    assert pearson_distance([1, 2, 5], [0, 3, 4], [0.25, 0.5, 0.25]) == pytest.approx(repeated, abs=1e-12)


# --- exact ------------------------------------------------------------------------------------------------------------


def test_two_states_by_hand() -> None:
    """One action, uniform coverage, γ = 1/2, R = [[0, 1], [2, 4]], and R′ = 1 for staying.

    M = (1/2, 3), m = 7/4: C = R + M(s′)/2 − M(s) − 7/8 = [[−9/8, 9/8], [−13/8, 13/8]].
    M′ = (1/2, 1/2), m′ = 1/2: C′ = R′ + 1/4 − 1/2 − 1/4 = [[1/2, −1/2], [−1/2, 1/2]].
    The means are 0, ΣCC′ = −9/8 + 13/8 = 1/2, ΣC² = 2 (81 + 169)/64 = 125/16, ΣC′² = 1: ρ = 2/√125.
    """
    coverage = TabularCoverage.uniform(2, 1, discount=0.5)
    table, other = np.array([[[0.0, 1.0]], [[2.0, 4.0]]]), np.eye(2)[:, None]
    np.testing.assert_allclose(canonically_shaped(table, coverage)[:, 0], [[-9 / 8, 9 / 8], [-13 / 8, 13 / 8]])
    np.testing.assert_allclose(canonically_shaped(other, coverage)[:, 0], [[0.5, -0.5], [-0.5, 0.5]])
    assert epic_distance(table, other, coverage) == pytest.approx(math.sqrt((1 - 2 / math.sqrt(125)) / 2), abs=1e-12)


def test_a_terminal_state_by_hand() -> None:
    """State 1 is terminal, γ = 1/2, one action; R(0, 0) = 1 and R(0, end) = 5: M(0) = m = 1.

    C(0, 0) = 1 + 1/2 − 1 − 1/2 = 0 (eq. 1), and C(0, end) = 5 − 1 − (1/2) · 1 / (1/2) = 3 (eq. 5).
    """
    coverage = TabularCoverage.uniform(2, 1, discount=0.5, terminal=np.array([False, True]))
    table = np.array([[[1.0, 5.0]], [[7.0, 9.0]]])  # rewards out of the terminal state are ignored
    np.testing.assert_allclose(canonically_shaped(table, coverage)[:, 0], [[0, 3], [0, 0]])


@pytest.mark.parametrize("terminal", [None, ENDS], ids=["endless", "terminal"])
@pytest.mark.parametrize("seed", range(5))
def test_shaped_and_scaled_copies_have_distance_0_and_the_negated_reward_1(seed: int, terminal: Any) -> None:
    coverage, table = random_coverage(seed, terminal), random_table(seed)
    potential = 10 * np.random.default_rng(seed + 100).standard_normal(STATES)
    copy = 3 * shaped(table, potential, terminal)
    assert epic_distance(table, copy, coverage) < 1e-6
    assert epic_distance(table, -copy, coverage) == pytest.approx(1, abs=1e-9)
    assert 0.05 < epic_distance(table, random_table(seed + 1), coverage) < 1


def test_a_potential_that_is_not_0_at_the_end_is_no_shaping() -> None:
    coverage, table = random_coverage(0, ENDS), random_table(0)
    assert epic_distance(table, shaped(table, 10 * np.ones(STATES)), coverage) > 0.1


@pytest.mark.parametrize("seed", range(10))
def test_the_distance_is_symmetric_and_obeys_the_triangle_inequality(seed: int) -> None:
    coverage = random_coverage(seed, ENDS if seed % 2 else None)
    tables = [random_table(10 * seed + i) for i in range(3)]
    tables[2] = tables[0] + 0.3 * tables[2]  # one near pair, for which the inequality is tight
    for a, b, c in itertools.permutations(tables):
        assert epic_distance(a, b, coverage) == pytest.approx(epic_distance(b, a, coverage), abs=1e-12)
        assert epic_distance(a, c, coverage) <= epic_distance(a, b, coverage) + epic_distance(b, c, coverage) + 1e-12


def test_a_constant_matters_only_where_episodes_end() -> None:
    """A bonus for each step is survival; without an end it is nothing, and its distance is undefined."""
    one = np.ones((STATES, ACTIONS, STATES))
    with pytest.raises(Undefined, match="the first reward is constant") as first:
        epic_distance(one, random_table(0), random_coverage(0))
    with pytest.raises(Undefined, match="the second reward is constant") as second:
        epic_distance(random_table(0), shaped(one, [1e3, -1e3, 5, 7]), random_coverage(0))
    assert (first.value.constant, second.value.constant) == (0, 1)
    ending = random_coverage(0, ENDS)
    assert epic_distance(one, 5 * one, ending) < 1e-9
    assert epic_distance(one, -one, ending) == pytest.approx(1)
    assert epic_distance(random_table(0), random_table(0) + 5, random_coverage(0)) < 1e-6
    assert epic_distance(random_table(0), random_table(0) + 5, ending) > 0.1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"states": np.full(4, 0.3)}, "states: expected a distribution"),
        ({"transitions": np.full((4, 2, 3), 1 / 24)}, "transitions: expected a distribution"),
        ({"terminal": ENDS}, "expected no weight on terminal states"),
        ({"discount": 1.5}, "expected γ in"),
    ],
)
def test_wrong_coverage_is_refused(change: dict[str, Any], told: str) -> None:
    uniform = TabularCoverage.uniform(4, 2, discount=GAMMA)
    fields = {name: getattr(uniform, name) for name in ("transitions", "states", "actions", "discount")}
    with pytest.raises(ValueError, match=told):
        TabularCoverage(**{**fields, **change})
    with pytest.raises(ValueError, match="expected γ < 1 where episodes can end"):
        TabularCoverage.uniform(4, 2, discount=1.0, terminal=ENDS)


# --- from samples -----------------------------------------------------------------------------------------------------


def lookup(table: Any) -> Any:
    return lambda step: torch.as_tensor(table)[step.observations, step.actions, step.next_observations]


def covering(terminal: Any) -> SampledCoverage:
    """Every transition out of a state that goes on, and every pair of such a state and an action, once."""
    goes_on = np.arange(STATES) if terminal is None else np.flatnonzero(~terminal)
    rows = torch.tensor(list(itertools.product(goes_on, range(ACTIONS), range(STATES))))
    pairs = torch.tensor(list(itertools.product(goes_on, range(ACTIONS))))
    ends = torch.zeros(len(rows), dtype=torch.bool) if terminal is None else torch.as_tensor(terminal)[rows[:, 2]]
    return SampledCoverage(
        transitions=Transitions(rows[:, 0], rows[:, 1], torch.zeros(len(rows)), GAMMA * (~ends).float(), rows[:, 2]),
        states=pairs[:, 0],
        actions=pairs[:, 1],
        discount=GAMMA,
    )


@pytest.mark.parametrize("batch_size", [1, 10, 4096])
@pytest.mark.parametrize("terminal", [None, ENDS], ids=["endless", "terminal"])
def test_samples_that_cover_a_table_give_the_exact_distance(terminal: Any, batch_size: int) -> None:
    one, other = random_table(1), random_table(2)
    exact = epic_distance(one, other, TabularCoverage.uniform(STATES, ACTIONS, discount=GAMMA, terminal=terminal))
    found = sampled_epic_distance(lookup(one), lookup(other), covering(terminal), batch_size=batch_size)
    assert found == pytest.approx(exact, abs=1e-12)


def box_episodes(seed: int = 0, ends: bool = True) -> Episodes:
    rng = np.random.default_rng(seed)
    episodes = [
        {
            "observations": rng.standard_normal((n + 1, 3)),
            "actions": rng.uniform(-1, 1, (n, 2)),
            "rewards": rng.standard_normal(n),
            "terminated": ends,
            "truncated": not ends,
        }
        for n in (20, 7, 33)
    ]
    space, actions = spaces.Box(-10, 10, (3,), np.float32), spaces.Box(-1, 1, (2,), np.float32)
    return Episodes.from_episodes(episodes, observation_space=space, action_space=actions)


def networks(episodes: Episodes) -> LearnedReward:
    """A shaped reward with random networks, whose potential is large."""
    from herdbook.core.policy import Scaling

    design, spec = RewardDesign(inputs="transition", shaped=True), episodes.spec()
    with scoped_seed(0):
        parameters = {name: value.detach() for name, value in design.build(Scaling(spec)).named_parameters()}
    parameters["potential.head.layers.2.weight"] *= 10
    return LearnedReward(design=design, spec=spec, discount=GAMMA, members=(parameters,))


@pytest.mark.parametrize("ends", [True, False])
def test_a_shaped_network_has_distance_0_on_few_samples_of_data(ends: bool) -> None:
    episodes = box_episodes(ends=ends)
    reward = networks(episodes)
    coverage = SampledCoverage.from_episodes(episodes, discount=GAMMA, transitions=40, samples=8)
    assert coverage.ends.sum() == (coverage.transitions.discounts == 0).sum() == ends
    gap = (reward(coverage.transitions) - reward.unshaped()(coverage.transitions)).std()
    assert gap > reward.unshaped()(coverage.transitions).std()  # the shaping is larger than the reward
    assert sampled_epic_distance(reward, reward.unshaped(), coverage) < 1e-5
    assert sampled_epic_distance(reward, lambda step: -reward.unshaped()(step), coverage) == pytest.approx(1, abs=1e-9)


def test_pure_shaping_is_undefined_in_single_precision_too() -> None:
    episodes = box_episodes()
    reward, base = networks(episodes), networks(episodes).unshaped()
    coverage = SampledCoverage.from_episodes(episodes, discount=GAMMA)
    with pytest.raises(Undefined, match="the first reward"):
        sampled_epic_distance(lambda step: reward(step) - base(step), base, coverage)


def test_memory_is_bounded_and_masked_steps_are_left_out() -> None:
    episodes = box_episodes().subsample(2)
    seen: list[int] = []

    def counted(step: Transitions) -> torch.Tensor:
        seen.append(len(step.rewards))
        return step.actions.sum(-1)

    coverage = SampledCoverage.from_episodes(episodes, discount=GAMMA, samples=16)
    coverage.canonically_shaped(counted, batch_size=64)
    assert len(coverage.transitions.rewards) == len(range(0, 20, 2)) + len(range(0, 7, 2)) + len(range(0, 33, 2))
    assert max(seen[1:]) == 64 and sum(seen[1:]) == (2 * seen[0] + 16) * 16


def test_sampling_follows_the_seed() -> None:
    episodes = box_episodes()
    draws = [SampledCoverage.from_episodes(episodes, discount=GAMMA, transitions=9, seed=s) for s in (3, 3, 4)]
    assert torch.equal(draws[0].states, draws[1].states) and not torch.equal(draws[0].states, draws[2].states)
    assert torch.equal(draws[0].transitions.actions, draws[1].transitions.actions)
    with pytest.raises(ValueError, match="expected γ < 1 where episodes can end"):
        SampledCoverage.from_episodes(episodes, discount=1.0)
