"""Exact methods: MDPs worked by hand, methods that must agree, models of Gymnasium's environments, bad input."""

import copy
import functools
import pickle
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from herdbook.core.environments import check_reset, make_environment
from herdbook.evaluation.evaluate import evaluate
from herdbook.tabular.environment import ROOM, GridWorldEnv, MDPEnv
from herdbook.tabular.gridworld import GridWorld, random_maze
from herdbook.tabular.mdp import MDP
from herdbook.tabular.picture import draw
from herdbook.tabular.planning import (
    evaluate_policy,
    evaluate_policy_iteratively,
    greedy,
    occupancy,
    policy_iteration,
    q_values,
    soft_value_iteration,
    uniform,
    value_iteration,
    visitation,
)
from herdbook.tabular.policy import TabularPolicy

# State 0: action 0 stays (reward 1); action 1 goes to 1 or, as likely, ends in 2 (reward 4 either way).
# State 1: both actions go to 0 (reward 0).
HAND: dict[str, Any] = {
    "transitions": [[[1, 0, 0], [0, 0.5, 0.5]], [[1, 0, 0], [1, 0, 0]], [[0, 0, 0], [0, 0, 0]]],
    "rewards": [[1, 4], [0, 0], [7, 7]],  # those of the terminal state are not read
    "initial": [1, 0, 0],
    "terminal": [False, False, True],
}
HALF = MDP(discount=0.5, **HAND)


def random_mdp(seed: int, discount: float = 0.9, terminal: int = 1) -> MDP:
    generator = np.random.default_rng(seed)
    return MDP.random(7, 3, discount=discount, branching=3, num_terminal=terminal, generator=generator)


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_values_by_hand() -> None:
    # Staying: V(0) = 1 + V(0) / 2 = 2, V(1) = 1. Leaving: V(0) = 4 + V(1) / 4, V(1) = V(0) / 2: 32/7 and 16/7.
    stay, leave = np.array([[1.0, 0], [1, 0], [1, 0]]), np.array([[0, 1.0], [1, 0], [1, 0]])
    np.testing.assert_allclose(evaluate_policy(HALF, stay), [2, 1, 0], atol=1e-12)
    np.testing.assert_allclose(evaluate_policy(HALF, leave), [32 / 7, 16 / 7, 0], atol=1e-12)
    np.testing.assert_allclose(q_values(HALF, np.array([2.0, 1, 99])), [[2, 4.25], [1, 1], [0, 0]], atol=1e-12)
    best = policy_iteration(HALF)
    np.testing.assert_allclose(best.values, [32 / 7, 16 / 7, 0], atol=1e-12)
    assert best.policy[0].tolist() == [0, 1]


def test_soft_values_by_hand() -> None:
    solved = soft_value_iteration(HALF, temperature=2.0, horizon=2)
    last = 2 * np.log(np.exp(0.5) + np.exp(2.0))  # of state 0 with one step left
    log2 = 2 * np.log(2)
    np.testing.assert_allclose(solved.values[1], [last, log2, 0], atol=1e-12)
    q = np.array([1 + last / 2, 4 + log2 / 4])
    np.testing.assert_allclose(solved.q[0, 0], q, atol=1e-12)
    np.testing.assert_allclose(solved.values[0, 0], 2 * np.log(np.exp(q / 2).sum()), atol=1e-12)
    np.testing.assert_allclose(solved.policy[0, 0], np.exp(q / 2) / np.exp(q / 2).sum(), atol=1e-12)
    assert solved.values.shape == (3, 3) and not solved.values[2].any() and not solved.values[:, 2].any()


def test_occupancy_and_visitation_by_hand() -> None:
    leave = np.array([[0, 1.0], [0.5, 0.5], [1, 0]])
    # d(0) = 1 + d(1) / 2, d(1) = d(0) / 4.
    np.testing.assert_allclose(occupancy(HALF, leave), [[0, 8 / 7], [1 / 7, 1 / 7], [0, 0]], atol=1e-12)
    np.testing.assert_allclose(
        visitation(HALF, np.stack([leave] * 3)), [[1, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0, 0.25, 0.75]], atol=1e-12
    )


# --- agreement --------------------------------------------------------------------------------------------------------


def frozen_lake(discount: float) -> MDP:
    return MDP.from_gymnasium("FrozenLake-v1", discount=discount)


@pytest.mark.parametrize(
    "mdp", [*(random_mdp(seed) for seed in range(5)), random_mdp(5, terminal=0), frozen_lake(0.99)]
)
def test_all_exact_methods_agree(mdp: MDP) -> None:
    by_values, by_policies = value_iteration(mdp), policy_iteration(mdp)
    np.testing.assert_allclose(by_values.values, by_policies.values, atol=1e-8)
    np.testing.assert_allclose(evaluate_policy(mdp, by_values.policy), by_policies.values, atol=1e-8)
    np.testing.assert_allclose(evaluate_policy_iteratively(mdp, by_values.policy), by_policies.values, atol=1e-8)
    np.testing.assert_allclose(by_policies.q.max(-1)[~mdp.ends], by_policies.values[~mdp.ends], atol=1e-8)
    np.testing.assert_allclose(soft_value_iteration(mdp, temperature=1e-9).values, by_values.values, atol=1e-7)
    anyone = np.random.default_rng(0).dirichlet(np.ones(mdp.num_actions), mdp.num_states)
    np.testing.assert_allclose(
        evaluate_policy(mdp, anyone), evaluate_policy_iteratively(mdp, anyone, tolerance=1e-12), atol=1e-8
    )
    assert (evaluate_policy(mdp, anyone) <= by_policies.values + 1e-9).all()


PLANNERS = [value_iteration, policy_iteration]
ICE_FREE = MDP.from_gymnasium(functools.partial(gymnasium.make, "FrozenLake-v1", is_slippery=False), discount=1)
FREE_STEPS = GridWorld(text="S.#.\n..G.", step_reward=0, goal_reward=1).mdp(discount=1)


@pytest.mark.parametrize("plan", PLANNERS)
@pytest.mark.parametrize("mdp", [ICE_FREE, FREE_STEPS], ids=["lake", "free steps"])
def test_without_discount_the_policy_has_the_values_though_staying_is_as_good(plan: Any, mdp: MDP) -> None:
    solved = plan(mdp)
    assert solved.values[mdp.initial > 0] == pytest.approx(1, abs=1e-9)
    np.testing.assert_allclose(evaluate_policy(mdp, solved.policy), solved.values, atol=1e-9)
    assert (np.sort(solved.policy, axis=-1)[:, -1] == 1).all()  # deterministic


@pytest.mark.parametrize("discount", [0.9, 1.0])
def test_policy_iteration_ends_where_rounding_makes_equal_actions_differ(discount: float) -> None:
    """Walks over a torus of equal rewards, all of which lead to the same values but for rounding."""
    grid = np.arange(25).reshape(5, 5)
    moves = np.stack([np.roll(grid, shift, axis).ravel() for axis in (0, 1) for shift in (1, -1)], axis=1)
    transitions = 0.7 * np.eye(26)[np.vstack([moves, np.zeros((1, 4), int)])]
    transitions[..., 25] += 0.3
    rewards = np.full(26, 0.1)
    mdp = MDP(transitions=transitions, rewards=rewards, initial=np.eye(26)[0], discount=discount,
              terminal=np.arange(26) == 25)  # fmt: skip
    solved = policy_iteration(mdp)
    np.testing.assert_allclose(solved.values[:25], 0.1 / (1 - 0.7 * discount), rtol=1e-12)


@pytest.mark.parametrize("plan", PLANNERS)
def test_small_differences_beside_large_values_are_seen(plan: Any) -> None:
    stay = np.repeat(np.eye(3)[:, None], 2, axis=1)
    mdp = MDP(
        transitions=stay, rewards=[[0, 0.05], [1e9, 1e9], [0, 1e-11]], initial=[1, 0, 0], discount=0.99
    )  # fmt: skip
    solved = plan(mdp, **({"tolerance": 1e-14} if plan is value_iteration else {}))
    np.testing.assert_allclose(solved.values, [5, 1e11, 1e-9], rtol=1e-4)
    np.testing.assert_allclose(evaluate_policy(mdp, solved.policy), [5, 1e11, 1e-9], rtol=1e-9)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-6])
def test_the_tolerance_bounds_the_error(tolerance: float) -> None:
    mdp = random_mdp(0, discount=0.99, terminal=0)
    exact = policy_iteration(mdp)
    for values, truth in (
        (value_iteration(mdp, tolerance=tolerance).values, exact.values),
        (evaluate_policy_iteratively(mdp, uniform(mdp), tolerance=tolerance), evaluate_policy(mdp, uniform(mdp))),
        (
            soft_value_iteration(mdp, tolerance=tolerance).values,
            soft_value_iteration(mdp, tolerance=1e-12).values,
        ),
    ):
        assert np.abs(values - truth).max() <= tolerance


@pytest.mark.parametrize("seed", range(3))
def test_occupancy_times_reward_is_the_value(seed: int) -> None:
    mdp = random_mdp(seed)
    policy = np.random.default_rng(seed).dirichlet(np.ones(3), 7)
    counts = occupancy(mdp, policy)
    assert (counts * mdp.expected_rewards).sum() == pytest.approx(mdp.initial @ evaluate_policy(mdp, policy), abs=1e-9)
    endless = random_mdp(seed, terminal=0)
    assert occupancy(endless, policy).sum() == pytest.approx(1 / (1 - 0.9), abs=1e-9)


def test_visits_weighted_by_the_discount_approach_the_occupancy() -> None:
    mdp, horizon = random_mdp(1, discount=0.8), 200
    policy = np.random.default_rng(1).dirichlet(np.ones(3), 7)
    visits = visitation(mdp, np.stack([policy] * horizon))
    np.testing.assert_allclose(visits.sum(-1), 1, atol=1e-12)
    discounted = (0.8 ** np.arange(horizon))[:, None] * visits[:-1]
    inside = ~mdp.ends
    np.testing.assert_allclose(discounted.sum(0)[inside], occupancy(mdp, policy).sum(-1)[inside], atol=1e-9)


def test_the_soft_policy_is_the_best_of_reward_and_entropy() -> None:
    """Its own soft value is that of eq. 6, and no perturbed policy has a larger one."""
    mdp, temperature = random_mdp(2), 0.7
    solved = soft_value_iteration(mdp, temperature=temperature, tolerance=1e-12)
    generator = np.random.default_rng(2)

    def soft_value(policy: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        bonus = -temperature * (policy * np.log(policy)).sum(-1)
        return evaluate_policy(mdp.with_rewards(mdp.expected_rewards + bonus[:, None]), policy)

    np.testing.assert_allclose(soft_value(solved.policy), solved.values, atol=1e-9)
    for _ in range(10):
        other = 0.9 * solved.policy + 0.1 * generator.dirichlet(np.ones(3), 7)
        assert (soft_value(other) <= solved.values + 1e-12).all()


@pytest.mark.parametrize("temperature", [1e-9, 1e-5, 1.0, 1e6])
def test_the_soft_policy_sums_to_one_at_every_temperature(temperature: float) -> None:
    mdp = GridWorld(text=ROOM, goal_reward=1000).mdp(discount=0.99)
    solved = soft_value_iteration(mdp, temperature=temperature, tolerance=1e-6)
    np.testing.assert_allclose(solved.policy.sum(-1), 1, atol=1e-14)
    np.testing.assert_allclose(soft_value_iteration(mdp, temperature=1e-9, horizon=9).policy.sum(-1), 1, atol=1e-14)


def test_only_what_is_reached_must_end() -> None:
    walled = GridWorld(text="S.G#.").mdp(discount=1)
    right = np.tile(np.eye(4)[1], (4, 1))
    assert occupancy(walled, right).sum(-1).tolist() == [1, 1, 0, 0]
    with pytest.raises(ValueError, match="from state 3 the policy never ends"):
        evaluate_policy(walled, right)
    with pytest.raises(ValueError, match="not converged after 50 iterations; .* from state 3 no episode can end"):
        value_iteration(walled, max_iterations=50)


def test_a_long_horizon_is_the_fixed_point() -> None:
    mdp = random_mdp(4)
    long, endless = soft_value_iteration(mdp, horizon=400), soft_value_iteration(mdp)
    np.testing.assert_allclose(long.values[0], endless.values, atol=1e-8)
    np.testing.assert_allclose(long.policy[0], endless.policy, atol=1e-8)


def test_a_constant_added_to_the_rewards_leaves_the_soft_policy_without_terminal_states() -> None:
    mdp = random_mdp(6, terminal=0)
    shifted = mdp.with_rewards(mdp.rewards + 3)
    np.testing.assert_allclose(soft_value_iteration(mdp).policy, soft_value_iteration(shifted).policy, atol=1e-8)


# --- models of environments -------------------------------------------------------------------------------------------


def test_frozen_lake_without_discount_is_the_chance_of_the_goal() -> None:
    mdp = frozen_lake(1.0)
    assert np.flatnonzero(mdp.ends).tolist() == [5, 7, 11, 12, 15]
    solved = value_iteration(mdp, tolerance=1e-12)
    assert solved.values[0] == pytest.approx(0.8235294117647, abs=1e-8)  # 14 / 17
    episodes = evaluate(TabularPolicy(solved.policy), "FrozenLake-v1", 400, seed=0)  # cut off at 100 steps
    assert episodes.returns().mean() == pytest.approx(0.74, abs=0.08)


def test_cliff_walking_is_thirteen_steps() -> None:
    for discount in (1.0, 0.99):
        solved = value_iteration(MDP.from_gymnasium("CliffWalking-v1", discount=discount))
        episodes = evaluate(TabularPolicy(solved.policy), "CliffWalking-v1", 1, seed=0, max_steps=100)
        assert episodes.returns().tolist() == [-13]
    assert value_iteration(MDP.from_gymnasium("CliffWalking-v1", discount=1)).values[36] == -13


def test_taxi_delivers_and_knows_what_it_will_get() -> None:
    mdp = MDP.from_gymnasium(gymnasium.make("Taxi-v4"), discount=1)
    solved = value_iteration(mdp)
    episodes = evaluate(TabularPolicy(solved.policy), "Taxi-v4", 50, seed=3)
    firsts = episodes.observations[episodes.offsets[:-1] + np.arange(50)]
    np.testing.assert_allclose(episodes.returns(), solved.values[firsts], atol=1e-9)
    assert (mdp.initial @ solved.values).round(2) == 7.93


def test_an_mdp_as_an_environment_gives_its_model_back() -> None:
    mdp = random_mdp(0, terminal=2)
    env = MDPEnv(mdp)
    check_env(env, skip_render_check=True)
    again = MDP.from_gymnasium(env, discount=mdp.discount)
    np.testing.assert_allclose(again.transitions, mdp.transitions, atol=1e-15)
    np.testing.assert_allclose(again.expected_rewards, mdp.expected_rewards, atol=1e-12)
    assert (again.ends == mdp.ends).all() and (again.initial == mdp.initial).all()
    policy = policy_iteration(mdp)
    episodes = evaluate(TabularPolicy(policy.policy), lambda: MDPEnv(mdp), 400, seed=0, max_steps=200)
    weights = mdp.discount ** np.concatenate([np.arange(n) for n in episodes.lengths()])
    returns = np.add.reduceat(weights * episodes.rewards, episodes.offsets[:-1])
    error = returns.std() / np.sqrt(len(returns))
    assert returns.mean() == pytest.approx(mdp.initial @ policy.values, abs=4 * error)


def test_a_policy_acts_by_its_mode_or_samples() -> None:
    mdp = random_mdp(0)
    probabilities = np.tile([0.2, 0.5, 0.3], (7, 1))
    for deterministic, shares in ((True, [0, 1, 0]), (False, [0.2, 0.5, 0.3])):
        policy = TabularPolicy(probabilities, deterministic=deterministic)
        taken = evaluate(policy, lambda: MDPEnv(mdp), 60, seed=0, max_steps=50).actions
        np.testing.assert_allclose(np.bincount(taken, minlength=3) / len(taken), shares, atol=0.08)


# --- gridworlds -------------------------------------------------------------------------------------------------------


GRID = GridWorld(text="S.#G\n.#..\n...X")


def test_a_grid_by_hand() -> None:
    assert GRID.cells == [(0, 0), (0, 1), (0, 3), (1, 0), (1, 2), (1, 3), (2, 0), (2, 1), (2, 2), (2, 3)]
    assert GRID.successors()[0].tolist() == [0, 1, 3, 0]  # up, right, down, left
    assert GRID.distances().tolist() == [7, 8, 0, 6, 2, 1, 5, 4, 3, np.inf]
    mdp = GRID.mdp(discount=1.0)
    assert np.flatnonzero(mdp.ends).tolist() == [2, 9] and mdp.initial.tolist() == [1, *[0] * 9]
    assert mdp.expected_rewards[8].tolist() == [-1, -101, -1, -1]
    np.testing.assert_array_equal(value_iteration(mdp).values[:9], -GRID.distances()[:9])


def test_slips_go_to_the_sides() -> None:
    icy = GridWorld(text=GRID.text, slip=0.2).mdp(discount=0.9)
    assert icy.transitions[8, 0].round(3)[[4, 7, 9]].tolist() == [0.8, 0.1, 0.1]  # up from beside the pit
    lake = GridWorld(text="SFFF\nFHFH\nFFFH\nHFFG".replace("F", ".").replace("H", "X"), slip=2 / 3, step_reward=0)
    ours = lake.mdp(discount=0.99).with_rewards(np.zeros(16))
    theirs = frozen_lake(0.99)
    np.testing.assert_allclose(ours.transitions[:, [3, 2, 1, 0]], theirs.transitions, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_a_maze_has_one_path_between_any_two_cells(seed: int) -> None:
    text = random_maze(4, 6, np.random.default_rng(seed))
    maze = GridWorld(text=text)
    assert maze.shape == (9, 13)
    distances = maze.distances()
    assert np.isfinite(distances).all()
    links = sum(int(s != t) for s, row in enumerate(maze.successors()) for t in row) // 2
    assert links == len(maze.cells) - 1  # a tree
    solved = value_iteration(maze.mdp(discount=1.0))
    np.testing.assert_array_equal(solved.values, -distances)
    assert text != random_maze(4, 6, np.random.default_rng(seed + 100))


# --- gridworlds as environments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("observation", ["state", "position"])
@pytest.mark.parametrize("name", ["herdbook/GridWorld-v0", "herdbook/Maze-v0"])
def test_our_environments_are_found_by_name(name: str, observation: str) -> None:
    env = make_environment(name, observation=observation, render_mode="rgb_array")
    check_env(env.unwrapped)
    assert check_reset(env)
    assert env.spec is not None and env.spec.id == name and env.spec.max_episode_steps == 500


def test_the_best_policy_walks_the_shortest_path() -> None:
    for seed in range(3):
        env: Any = make_environment("herdbook/Maze-v0", rows=4, columns=4, maze_seed=seed).unwrapped
        solved = value_iteration(env.grid.mdp(discount=1.0))
        make = functools.partial(make_environment, "herdbook/Maze-v0", rows=4, columns=4, maze_seed=seed)
        episodes = evaluate(TabularPolicy(solved.policy), make, 1, seed=7)
        assert episodes.lengths().tolist() == [env.shortest_path] and episodes.terminated[-1]
    assert make_environment("herdbook/GridWorld-v0", text="S#G").unwrapped.shortest_path == np.inf


@pytest.mark.parametrize("slip", [0.0, 0.3])
def test_the_environment_steps_as_its_mdp_says(slip: float) -> None:
    env = GridWorldEnv(GRID.text, slip=slip, goal_reward=5.0)
    mdp, generator = env.grid.mdp(discount=1.0), np.random.default_rng(0)
    counts = np.zeros(mdp.transitions.shape)
    for seed in range(300):
        state, _ = env.reset(seed=seed)
        for _ in range(30):
            action = generator.integers(4)
            after, reward, terminated, _, _ = env.step(action)
            counts[state, action, after] += 1
            assert reward == mdp.rewards[state, action, after] and terminated == mdp.ends[after]
            state = after
            if terminated:
                break
    visited = counts.sum(-1) > 100
    assert visited.sum() > 12
    shares = counts[visited] / counts[visited].sum(-1, keepdims=True)
    np.testing.assert_allclose(shares, mdp.transitions[visited], atol=0.12 if slip else 0)


def test_what_is_seen_of_a_grid() -> None:
    env: Any = make_environment("herdbook/GridWorld-v0", text=GRID.text, observation="position", render_mode="ansi")
    observation, _ = env.reset(seed=0)
    assert observation.tolist() == [0, 0] and env.render() == "@.#G\n.#..\n...X"
    observation, reward, terminated, truncated, _ = env.step(2)  # down
    assert observation.tolist() == [0.5, 0] and env.render() == "S.#G\n@#..\n...X"
    assert (reward, terminated, truncated) == (-1, False, False)
    picture: Any = make_environment("herdbook/GridWorld-v0", text=GRID.text, render_mode="rgb_array")
    picture.reset(seed=0)
    image = picture.render()
    assert image.shape == (48, 64, 3) and len({tuple(image[r, c]) for r in (8, 24, 40) for c in (8, 24, 40, 56)}) == 5
    with pytest.raises(ValueError, match="expected an action in 0 to 3, got -1"):
        picture.unwrapped.step(np.int64(-1))
    with pytest.raises(ValueError, match="expected a render_mode of ansi or rgb_array, given when"):
        GridWorldEnv().render()


def test_a_picture_is_written(tmp_path: Path) -> None:
    solved = value_iteration(GRID.mdp(discount=0.9))
    draw(GRID, solved.values, solved.policy, path=tmp_path / "grid.png")
    assert (tmp_path / "grid.png").read_bytes()[:4] == b"\x89PNG"
    image = GRID.picture(np.arange(10.0))
    assert np.isnan(image[0, 2]) and image[1, 2] == 4 and np.isnan(image).sum() == 2
    with pytest.raises(ValueError, match=r"expected \[10\], one of each state, got shape \(3,\)"):
        draw(GRID, np.zeros(3), path=tmp_path / "bad.png")
    with pytest.raises(ValueError, match=r"policy: expected \[10, 4\], got shape \(10, 3\)"):
        draw(GRID, np.zeros(10), np.zeros((10, 3)), path=tmp_path / "bad.png")


# --- bad input --------------------------------------------------------------------------------------------------------


def broken(**changes: Any) -> dict[str, Any]:
    return {"discount": 0.5, **{name: np.array(value, float) for name, value in HAND.items()}, **changes}


def changed(index: tuple[int, ...], value: float) -> Any:
    transitions = np.array(HAND["transitions"], float)
    transitions[index] = value
    return transitions


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transitions": changed((1, 0, 0), 0.9)}, "state 1, action 0: expected .* sum to 1, got a sum of 0.9"),
        ({"transitions": changed((0, 1, 1), -0.5)}, "transitions of state 0, action 1: expected probabilities, got"),
        ({"transitions": changed((0, 1, 1), np.nan)}, "transitions of state 0, action 1: expected probabilities, got"),
        ({"transitions": np.ones((3, 2))}, r"transitions: expected \[S, A, S\], got shape \(3, 2\)"),
        ({"rewards": np.ones(2)}, r"rewards: expected one of \[3\], \[3, 2\], \[3, 2, 3\], got shape \(2,\)"),
        ({"rewards": [[1, np.inf], [0, 0], [0, 0]]}, "rewards: expected finite values, got .* in state 0, action 1"),
        ({"initial": [0.5, 0, 0]}, "initial: expected probabilities that sum to 1, got a sum of 0.5"),
        ({"initial": [1, 0]}, r"initial: expected \[3\], got shape \(2,\)"),
        ({"initial": [0.5, 0, 0.5]}, "no episode can begin in the terminal state 2"),
        ({"terminal": [True]}, r"terminal: expected \[3\], got shape \(1,\)"),
        ({"discount": 1.5}, r"discount: expected a value in \[0, 1\], got 1.5"),
    ],
)  # fmt: skip
def test_an_invalid_mdp_is_refused_with_its_row(changes: dict[str, Any], message: str) -> None:
    MDP(**broken())
    with pytest.raises(ValueError, match=message):
        MDP(**broken(**changes))


def test_an_mdp_does_not_share_the_callers_arrays() -> None:
    transitions = np.array(HAND["transitions"], float)
    mdp = MDP(**broken(transitions=transitions))
    assert transitions[2].sum() == 0  # the terminal rows of the caller stay
    transitions[0] = 9
    assert mdp.transitions[0, 0, 0] == 1
    for same in (mdp, copy.deepcopy(mdp), pickle.loads(pickle.dumps(mdp))):  # noqa: S301  # what this test made
        with pytest.raises(ValueError, match="read-only"):
            same.transitions[0] = 0


def test_policies_that_are_none_are_refused() -> None:
    for method in (evaluate_policy, evaluate_policy_iteratively, policy_iteration, occupancy):
        with pytest.raises(ValueError, match=r"policy: expected \[3, 2\], got shape \(2, 2\)"):
            method(HALF, np.eye(2))
        with pytest.raises(ValueError, match="policy of state 1: expected probabilities that sum to 1, got a sum of 2"):
            method(HALF, [[1, 0], [1, 1], [1, 0]])
    with pytest.raises(ValueError, match=r"policy: expected \[T, 3, 2\], got shape \(3, 2\)"):
        visitation(HALF, uniform(HALF))
    with pytest.raises(ValueError, match=r"policy: expected \[S, A\] or \[T, S, A\], got shape \(2,\)"):
        TabularPolicy([0.5, 0.5])
    with pytest.raises(ValueError, match="policy of state 0: expected probabilities, got -1.0"):
        TabularPolicy([[2, -1], [0.5, 0.5]])


def test_without_discount_a_policy_must_end() -> None:
    mdp = MDP(discount=1.0, **HAND)
    stay = np.array([[1.0, 0], [1, 0], [1, 0]])
    for method in (evaluate_policy, occupancy):
        with pytest.raises(ValueError, match="from state 0 the policy never ends, so with discount 1 it has no value"):
            method(mdp, stay)
    with pytest.raises(ValueError, match=r"not converged after 50 iterations; .* a policy that need not end has none"):
        evaluate_policy_iteratively(mdp, stay, max_iterations=50)
    with pytest.raises(ValueError, match="not converged after 50 iterations"):
        value_iteration(mdp, max_iterations=50)
    with pytest.raises(ValueError, match="not converged after 3 iterations$"):
        soft_value_iteration(HALF, max_iterations=3)
    leave = np.array([[0, 1.0], [1, 0], [1, 0]])
    np.testing.assert_allclose(evaluate_policy(mdp, leave), [8, 8, 0], atol=1e-12)


def test_other_bad_settings() -> None:
    with pytest.raises(ValueError, match="temperature: expected a value > 0, got 0"):
        soft_value_iteration(HALF, temperature=0)
    with pytest.raises(ValueError, match="horizon: expected at least 1 step, got 0"):
        soft_value_iteration(HALF, horizon=0)
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match="branching: expected 1 to 3"):
        MDP.random(3, 2, discount=0.5, branching=4, generator=generator)
    with pytest.raises(ValueError, match="num_terminal: expected 0 to 2, got 3"):
        MDP.random(3, 2, discount=0.5, num_terminal=3, generator=generator)
    with pytest.raises(ValueError, match="expected an environment that exposes its model"):
        MDP.from_gymnasium("CartPole-v1", discount=1)
    for text, message in (
        ("S.\n.", r"row 1: expected 2 cells as in row 0, got 1: '.'"),
        ("S?", r"row 0: expected cells of #.SGX, got '\?'"),
        ("#G", "expected a cell to begin in"),
    ):
        with pytest.raises(ValueError, match=message):
            GridWorld(text=text)
    with pytest.raises(ValueError, match=r"slip: expected a probability, got 2"):
        GridWorld(text="SG", slip=2)
    with pytest.raises(ValueError, match="observation: expected state or position, got 'pixels'"):
        GridWorldEnv(observation="pixels")  # type: ignore[arg-type]  # the mistake that is tested
    with pytest.raises(ValueError, match="render_mode: expected ansi or rgb_array, got 'human'"):
        GridWorldEnv(render_mode="human")
    with pytest.raises(ValueError, match="expected at least two cells, got 1 × 1"):
        random_maze(1, 1, generator)


def test_a_model_whose_ends_depend_on_more_than_the_state_is_refused() -> None:
    env = MDPEnv(random_mdp(0))

    class Twice(MDPEnv):
        @property
        def P(self) -> Any:
            model = super().P
            model[0][0] = [(0.5, 1, 0.0, True), (0.5, 1, 0.0, False)]
            return model

    assert MDP.from_gymnasium(env, discount=0.9).terminal.sum() == 1
    with pytest.raises(ValueError, match="state 1 is entered both with and without an end of the episode"):
        MDP.from_gymnasium(Twice(random_mdp(0)), discount=0.9)


def test_greedy_takes_the_first_of_several() -> None:
    assert greedy(np.array([[1.0, 1, 0], [0, 2, 2]])).tolist() == [[1, 0, 0], [0, 1, 0]]
