"""Sampled methods: tables by hand, methods that must be equal, known behaviours on the cliff."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from herdbook.core.actor import Actor
from herdbook.datasets.episodes import DataError, Episodes
from herdbook.evaluation.evaluate import evaluate
from herdbook.evaluation.fqe import FQEConfig, fitted_q_evaluation
from herdbook.tabular.control import Learned, monte_carlo_control, q_learning, sarsa
from herdbook.tabular.environment import MDPEnv
from herdbook.tabular.mdp import MDP
from herdbook.tabular.planning import evaluate_policy, greedy, policy_iteration, uniform
from herdbook.tabular.policy import TabularPolicy
from herdbook.tabular.prediction import monte_carlo, n_step_td, td_lambda, td_zero

Array = np.ndarray[Any, Any]


def episodes_of(*paths: tuple[list[int], list[float], bool], size: int = 4, start: int = 0) -> Episodes:
    return Episodes.from_episodes(
        [
            {
                "observations": np.array(states) + start,
                "actions": np.zeros(len(rewards), np.int64),
                "rewards": np.array(rewards, float),
                "terminated": terminated,
                "truncated": not terminated,
            }
            for states, rewards, terminated in paths
        ],
        observation_space=spaces.Discrete(size, start=start),
        action_space=spaces.Discrete(1),
    )


# 0 → 1 → 0 → 3, which is the end.
LOOP = episodes_of(([0, 1, 0, 3], [1, 2, 4], True))
# The same, cut off in 3.
CUT = episodes_of(([0, 1, 0, 3], [1, 2, 4], False))
BEGIN = [10.0, 20, 30, 40]


# --- by hand: γ = 1/2, α = 1/2 ----------------------------------------------------------------------------------------


def test_monte_carlo_by_hand() -> None:
    # Returns: 4 from the last 0; 2 + 2 = 4 from 1; 1 + 2 = 3 from the first 0.
    assert monte_carlo(LOOP, discount=0.5).tolist() == [3, 4, 0, 0]
    assert monte_carlo(LOOP, discount=0.5, first_visit=False).tolist() == [3.5, 4, 0, 0]
    both = monte_carlo(LOOP, discount=0.5, step_size=0.5, first_visit=False, values=BEGIN)
    assert both.tolist() == [10 + (3 - 10) / 2 + (4 - 10) / 2, 20 + (4 - 20) / 2, 30, 40]
    # Cut off, V(3) = 40 follows: 24 from the last 0; 14 from 1; 8 from the first 0.
    cut = monte_carlo(CUT, discount=0.5, step_size=0.5, first_visit=False, values=BEGIN)
    assert cut.tolist() == [10 + (8 - 10) / 2 + (24 - 10) / 2, 20 + (14 - 20) / 2, 30, 40]


def test_the_mean_of_returns_runs_over_episodes() -> None:
    three = episodes_of(([0, 3], [1], True), ([1, 0, 3], [0, 2], True), ([0, 0, 3], [0, 6], True))
    assert monte_carlo(three, discount=1).tolist() == [3, 2, 0, 0]  # 1, 2, 6
    assert monte_carlo(three, discount=1, first_visit=False).tolist() == [15 / 4, 2, 0, 0]  # 1, 2, 6, 6


@pytest.mark.parametrize(("data", "last"), [(LOOP, 0.0), (CUT, 40.0)], ids=["terminated", "truncated"])
def test_td_zero_by_hand(data: Episodes, last: float) -> None:
    first = 10 + (1 + 20 / 2 - 10) / 2  # 10.5
    second = 20 + (2 + first / 2 - 20) / 2  # 13.625
    third = first + (4 + last / 2 - first) / 2
    assert td_zero(data, discount=0.5, step_size=0.5, values=BEGIN).tolist() == [third, second, 30, 40]
    later = td_zero(data, discount=0.5, step_size=0.5, online=False, values=BEGIN)
    assert later.tolist() == [10 + (11 - 10) / 2 + (4 + last / 2 - 10) / 2, 20 + (2 + 5 - 20) / 2, 30, 40]


@pytest.mark.parametrize(("data", "last"), [(LOOP, 0.0), (CUT, 40.0)], ids=["terminated", "truncated"])
def test_two_step_td_by_hand(data: Episodes, last: float) -> None:
    targets = [1 + 2 / 2 + 10 / 4, 2 + 4 / 2 + last / 4, 4 + last / 2]  # the last window is one step long
    later = n_step_td(data, n=2, discount=0.5, step_size=0.5, online=False, values=BEGIN)
    assert later.tolist() == [10 + (targets[0] - 10) / 2 + (targets[2] - 10) / 2, 20 + (targets[1] - 20) / 2, 30, 40]
    first = 10 + (targets[0] - 10) / 2
    second = 20 + (targets[1] - 20) / 2
    online = n_step_td(data, n=2, discount=0.5, step_size=0.5, values=BEGIN)
    assert online.tolist() == [first + (targets[2] - first) / 2, second, 30, 40]


@pytest.mark.parametrize(("trace", "again"), [("accumulating", 1 + 1 / 16), ("replacing", 1.0)])
def test_traces_by_hand(trace: Any, again: float) -> None:
    """γ = λ = 1/2: a trace decays to a quarter; the state 0 is visited again after two steps."""
    errors = [1 + 20 / 2 - 10, 2 + 10 / 2 - 20, 4 - 10.0]  # with the values of the beginning
    values = td_lambda(LOOP, decay=0.5, discount=0.5, step_size=0.5, trace=trace, online=False, values=BEGIN)
    expected = [errors[0] + errors[1] / 4 + errors[2] * again, errors[1] + errors[2] / 4]
    np.testing.assert_allclose(values, [10 + expected[0] / 2, 20 + expected[1] / 2, 30, 40], rtol=1e-15)


def test_online_traces_by_hand() -> None:
    values = np.array(BEGIN)
    values[0] += 1 / 2 * (1 + values[1] / 2 - values[0])
    error = 2 + values[0] / 2 - values[1]
    values[:2] += 1 / 2 * error * np.array([1 / 4, 1])
    error = 4 - values[0]
    values[:2] += 1 / 2 * error * np.array([1 + 1 / 16, 1 / 4])
    ours = td_lambda(LOOP, decay=0.5, discount=0.5, step_size=0.5, values=BEGIN)
    np.testing.assert_allclose(ours, values, rtol=1e-15)


# --- equal methods ----------------------------------------------------------------------------------------------------

MODEL = MDP.random(6, 2, discount=0.9, branching=3, num_terminal=1, generator=np.random.default_rng(0))


@pytest.fixture(scope="module")
def played() -> Episodes:
    """Episodes of the uniform policy, some of them cut off."""
    policy = TabularPolicy(uniform(MODEL), deterministic=False)
    episodes = evaluate(policy, lambda: MDPEnv(MODEL), 200, seed=0, max_steps=6)
    assert 0.2 < episodes.truncated.sum() / 200 < 0.8
    return episodes


def test_td_lambda_is_td_zero_at_0_and_monte_carlo_at_1_when_updated_at_the_end(played: Episodes) -> None:
    settings: dict[str, Any] = {"discount": 0.9, "step_size": 0.05}
    lambda_zero = td_lambda(played, decay=0, online=False, **settings)
    np.testing.assert_allclose(lambda_zero, td_zero(played, online=False, **settings), atol=1e-12)
    np.testing.assert_allclose(td_lambda(played, decay=0, **settings), td_zero(played, **settings), atol=1e-12)
    lambda_one = td_lambda(played, decay=1, online=False, **settings)
    np.testing.assert_allclose(lambda_one, monte_carlo(played, first_visit=False, **settings), atol=1e-12)
    assert np.abs(lambda_one - lambda_zero).max() > 0.01
    online = td_lambda(played, decay=1, **settings)
    assert np.abs(online - lambda_one).max() > 1e-3  # online it is not Monte Carlo


def test_n_step_td_is_td_zero_at_1_and_monte_carlo_at_the_length(played: Episodes) -> None:
    settings: dict[str, Any] = {"discount": 0.9, "step_size": 0.05}
    for online in (True, False):
        one = n_step_td(played, n=1, online=online, **settings)
        np.testing.assert_allclose(one, td_zero(played, online=online, **settings), atol=1e-12)
    whole = n_step_td(played, n=6, online=False, **settings)
    np.testing.assert_allclose(whole, monte_carlo(played, first_visit=False, **settings), atol=1e-12)


METHODS: dict[str, Callable[..., Array]] = {
    "first visits": lambda data, **s: monte_carlo(data, **{**s, "step_size": None}),
    "every visit": lambda data, **s: monte_carlo(data, first_visit=False, **{**s, "step_size": None}),
    "td(0)": td_zero,
    "3-step": lambda data, **s: n_step_td(data, n=3, **s),
    "td(0.7)": lambda data, **s: td_lambda(data, decay=0.7, **s),
    "replacing": lambda data, **s: td_lambda(data, decay=0.7, trace="replacing", **s),
}


@pytest.fixture(scope="module")
def whole() -> Episodes:
    """Many episodes of the uniform policy, none of them cut off."""
    policy = TabularPolicy(uniform(MODEL), deterministic=False)
    episodes = evaluate(policy, lambda: MDPEnv(MODEL), 4_000, seed=1, num_envs=100, max_steps=1_000)
    assert not episodes.truncated.any()
    return episodes


@pytest.mark.parametrize("name", METHODS)
def test_every_method_finds_the_value_of_the_policy(name: str, whole: Episodes) -> None:
    truth = evaluate_policy(MODEL, uniform(MODEL))
    values = METHODS[name](whole, discount=0.9, step_size=0.005)
    np.testing.assert_allclose(values, truth, atol=0.3)
    assert np.abs(truth).max() > 3


def test_states_are_numbered_from_the_start_of_their_space() -> None:
    shifted = episodes_of(([0, 1, 0, 3], [1, 2, 4], True), start=5)
    assert monte_carlo(shifted, discount=0.5).tolist() == [3, 4, 0, 0]


# --- control ----------------------------------------------------------------------------------------------------------


def walk(learned: Learned) -> tuple[float, set[int]]:
    """The greedy policy on the cliff: its return and the states that it sees."""
    episodes = evaluate(TabularPolicy(greedy(learned.q)), "CliffWalking-v1", 1, seed=0, max_steps=100)
    return float(episodes.returns()[0]), {int(state) for state in episodes.observations}


CLIFF: dict[str, Any] = {"episodes": 1_500, "discount": 1.0, "step_size": 0.1, "epsilon": 0.1, "max_steps": 1_000}


@pytest.mark.parametrize("seed", range(3))
def test_on_the_cliff_q_learning_takes_the_edge_and_sarsa_the_safe_path(seed: int) -> None:
    """Sutton & Barto 2018, example 6.6."""
    env = gymnasium.make("CliffWalking-v1")
    edge, safe = (method(env, generator=np.random.default_rng(seed), **CLIFF) for method in (q_learning, sarsa))
    result, _ = walk(edge)
    assert result == -13
    result, seen = walk(safe)
    beside_the_cliff = set(range(25, 35))  # row 2, without its ends
    assert -17 <= result <= -15 and len(seen & beside_the_cliff) <= 2
    assert safe.returns[-300:].mean() > edge.returns[-300:].mean() + 5  # while exploring the edge is worse


@pytest.mark.parametrize("n", [1, 3])
def test_sarsa_of_n_steps_by_hand(n: int) -> None:
    """One episode along a corridor of four states, one action: rewards 1, 2, 4; γ = α = 1/2."""
    corridor = np.zeros((4, 1, 4))
    corridor[[0, 1, 2], 0, [1, 2, 3]] = 1
    mdp = MDP(
        transitions=corridor, rewards=[1, 2, 4, 0], initial=[1, 0, 0, 0], discount=0.5, terminal=[0, 0, 0, 1]
    )  # fmt: skip
    learned = sarsa(
        MDPEnv(mdp), episodes=1, discount=0.5, step_size=0.5, epsilon=0, n=n, generator=np.random.default_rng(0)
    )
    expected = [0.5, 1, 2] if n == 1 else [(1 + 2 / 2 + 4 / 4) / 2, (2 + 4 / 2) / 2, 4 / 2]
    assert learned.q[:3, 0].tolist() == expected and learned.q[3, 0] == 0
    assert learned.returns.tolist() == [7] and learned.lengths.tolist() == [3]


class Forced(np.random.Generator):
    """A generator whose random actions are these, at every choice; ε is 1."""

    def __init__(self, actions: list[int]) -> None:
        super().__init__(np.random.PCG64(0))
        self.actions = iter(actions)

    def random(self, *shape: Any, **options: Any) -> Any:
        return 0.0

    def integers(self, low: Any, *rest: Any, **options: Any) -> Any:
        return 0 if low > 2 else next(self.actions)  # a reset seed, or one of two actions


TWO_ACTIONS = MDP(
    transitions=np.stack([np.eye(4)[[1, 2, 3, 3]], np.eye(4)], axis=1),  # right, stay
    rewards=[[1, 10], [2, 20], [4, 40], [0, 0]],
    initial=[1, 0, 0, 0],
    discount=0.5,
    terminal=[False, False, False, True],
)


def test_sarsa_follows_the_action_that_is_taken_by_hand() -> None:
    """γ = α = 1/2; two episodes: right, right, right; then right, stay, right, right. Greedy values would differ."""
    play: dict[str, Any] = {"discount": 0.5, "step_size": 0.5, "epsilon": 1.0}
    # The last choice of an episode, in its terminal state, is not used.
    actions = [0, 0, 0, 1, 0, 1, 0, 0, 1]
    learned = sarsa(MDPEnv(TWO_ACTIONS), episodes=2, generator=Forced(actions), **play)
    q = {"01": 0.5, "11": 1.0, "21": 2.0}  # after the first episode: to the right of 0, 1, 2
    right_0 = (0.5 + 1 + 0) / 2  # its successor is (1, stay), of value 0: halfway from 1/2 to 1
    stay_1 = (0 + 20 + q["11"] / 2) / 2
    right_1 = (q["11"] + 2 + q["21"] / 2) / 2
    right_2 = (q["21"] + 4) / 2
    np.testing.assert_allclose(learned.q, [[right_0, 0], [right_1, stay_1], [right_2, 0], [0, 0]], rtol=1e-15)
    two = sarsa(MDPEnv(TWO_ACTIONS), episodes=1, n=2, generator=Forced([0, 1, 0, 0, 1]), **play)
    # Windows (0 right, 1 stay), (1 stay, 1 right), (1 right, 2 right), (2 right): what follows them has value 0 so far.
    expected = [[(1 + 20 / 2) / 2, 0], [(2 + 4 / 2) / 2, (20 + 2 / 2) / 2], [4 / 2, 0], [0, 0]]
    np.testing.assert_allclose(two.q, expected, rtol=1e-15)


@pytest.mark.parametrize("first_visit", [True, False])
def test_monte_carlo_control_by_hand_where_a_pair_comes_twice(first_visit: bool) -> None:
    """Right, stay, stay, right, right: the returns of staying in 1 are 20 + 23 / 2 and 20 + 6 / 4 at γ = 1/2."""
    learned = monte_carlo_control(
        MDPEnv(TWO_ACTIONS), episodes=1, discount=0.5, epsilon=1.0, first_visit=first_visit,
        generator=Forced([0, 1, 1, 0, 0]),
    )  # fmt: skip
    right_1 = 2 + 4 / 2
    second = 20 + right_1 / 2
    first = 20 + second / 2
    stay = first if first_visit else (first + second) / 2
    np.testing.assert_allclose(learned.q, [[1 + first / 2, 0], [right_1, stay], [4, 0], [0, 0]], rtol=1e-15)


def test_monte_carlo_control_goes_on_from_a_cut_by_its_own_policy() -> None:
    """One state, rewards 0 and −10, cut off: with ε = 1 the value of the cut is the mean, not the best."""
    one = MDP(transitions=np.ones((1, 2, 1)), rewards=[[0, -10]], initial=[1], discount=0.9)
    learned = monte_carlo_control(
        MDPEnv(one), episodes=4_000, discount=0.9, epsilon=1.0, step_size=0.01, first_visit=False, max_steps=5,
        generator=np.random.default_rng(0),
    )  # fmt: skip
    np.testing.assert_allclose(learned.q, [[-45, -55]], atol=2)


class Timed(gymnasium.Env[int, int]):
    """From 0 to 1 and back with reward 1 each, then cut off in 0."""

    observation_space = spaces.Discrete(2)
    action_space = spaces.Discrete(1)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        self.time = 0
        return 0, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.time += 1
        return self.time % 2, 1.0, False, self.time == 2, {}


@pytest.mark.parametrize(
    ("method", "episodes", "expected"),
    [
        (q_learning, 1, [1, 1 + 1 / 2]),
        (sarsa, 1, [1, 1 + 1 / 2]),
        (lambda env, **s: sarsa(env, n=2, **s), 1, [1 + 1 / 2, 1 + 1.5 / 2]),
        (monte_carlo_control, 1, [1 + 1 / 2, 1]),
        (monte_carlo_control, 2, [1 + 1.75 / 2, 1 + 1.5 / 2]),
    ],
    ids=["q_learning", "sarsa", "2-step sarsa", "monte carlo", "monte carlo, twice"],
)
def test_a_truncated_episode_goes_on_from_its_final_observation(
    method: Callable[..., Learned], episodes: int, expected: list[float]
) -> None:
    """γ = 1/2, α = 1; as a terminal state the last one would add nothing."""
    learned = method(
        Timed(), episodes=episodes, discount=0.5, step_size=1.0, epsilon=0.0, generator=np.random.default_rng(0)
    )
    assert learned.q[:, 0].tolist() == expected
    assert learned.returns.tolist() == [2.0] * episodes and learned.lengths.tolist() == [2] * episodes


GOOD: dict[str, Callable[..., Learned]] = {
    "q_learning": lambda env, **s: q_learning(env, step_size=0.1, **s),
    "sarsa": lambda env, **s: sarsa(env, step_size=0.1, **s),
    "3-step sarsa": lambda env, **s: sarsa(env, step_size=0.1, n=3, **s),
    "monte carlo": monte_carlo_control,
    "monte carlo, every visit": lambda env, **s: monte_carlo_control(env, first_visit=False, **s),
}


@pytest.mark.parametrize("name", GOOD)
def test_every_method_finds_a_policy_that_is_nearly_optimal(name: str) -> None:
    learned = GOOD[name](
        MDPEnv(MODEL),
        episodes=1_000,
        discount=0.9,
        epsilon=lambda episode: 1 / (1 + episode / 50),
        generator=np.random.default_rng(0),
    )
    best = MODEL.initial @ policy_iteration(MODEL).values
    ours = MODEL.initial @ evaluate_policy(MODEL, greedy(learned.q))
    theirs = MODEL.initial @ evaluate_policy(MODEL, uniform(MODEL))
    assert ours >= best - 0.1 * (best - theirs)


def test_a_run_is_a_function_of_its_generator() -> None:
    env = MDPEnv(MODEL)
    settings: dict[str, Any] = {"episodes": 20, "discount": 0.9, "step_size": 0.1, "epsilon": 0.3}
    first, again, other = (q_learning(env, generator=np.random.default_rng(seed), **settings) for seed in (0, 0, 1))
    assert np.array_equal(first.q, again.q) and np.array_equal(first.returns, again.returns)
    assert not np.array_equal(first.q, other.q)


def test_ties_are_broken_at_random() -> None:
    loop = MDP(transitions=np.ones((1, 3, 1)), rewards=[0.0], initial=[1.0], discount=0.9)
    taken: list[int] = []

    class Watched(MDPEnv):
        def step(self, action: Any) -> Any:
            taken.append(int(action))
            return super().step(action)

    settings: dict[str, Any] = {"discount": 0.9, "step_size": 0.1, "generator": np.random.default_rng(0)}
    q_learning(Watched(loop), episodes=1, epsilon=0.0, max_steps=300, **settings)
    assert np.bincount(taken).min() > 60


# --- bad input --------------------------------------------------------------------------------------------------------


def test_bad_input_is_refused() -> None:
    good: dict[str, Any] = {"discount": 0.5, "step_size": 0.5}
    with pytest.raises(ValueError, match=r"discount: expected γ in \[0, 1\], got 2"):
        td_zero(LOOP, discount=2, step_size=0.5)
    with pytest.raises(ValueError, match=r"step_size: expected α in \(0, 1\], got 0"):
        monte_carlo(LOOP, discount=0.5, step_size=0)
    with pytest.raises(ValueError, match=r"decay: expected λ in \[0, 1\], got -1"):
        td_lambda(LOOP, decay=-1, **good)
    with pytest.raises(ValueError, match="trace: expected accumulating or replacing, got 'replace'"):
        td_lambda(LOOP, decay=0.5, trace="replace", **good)  # type: ignore[arg-type]  # the mistake that is tested
    with pytest.raises(ValueError, match="n: expected at least 1 step, got 0"):
        n_step_td(LOOP, n=0, **good)
    with pytest.raises(ValueError, match=r"values: expected \[4\], got shape \(2,\)"):
        td_zero(LOOP, values=[0, 0], **good)
    boxes = Episodes(
        observations=np.zeros((2, 1)),
        actions=np.zeros(1),
        rewards=np.zeros(1),
        terminated=np.ones(1, bool),
        truncated=np.zeros(1, bool),
        offsets=np.array([0, 1]),
        observation_space=spaces.Box(-1, 1, (1,)),
        action_space=spaces.Discrete(1),
    )
    with pytest.raises(DataError, match="expected Discrete observations for a table of values, got Box"):
        td_zero(boxes, **good)

    control: dict[str, Any] = {"episodes": 1, "epsilon": 0.1, "generator": np.random.default_rng(0), **good}
    with pytest.raises(ValueError, match="expected Discrete observations and actions for a table, got Box"):
        q_learning(gymnasium.make("CartPole-v1"), **control)
    env = MDPEnv(MODEL)
    for changes, message in (
        ({"epsilon": 1.5}, r"epsilon: expected a value in \[0, 1\], got 1.5 for episode 0"),
        ({"episodes": 0}, "expected episodes >= 1 and max_steps >= 1, got 0 and"),
        ({"discount": -1}, "discount: expected γ"),
        ({"step_size": 2}, "step_size: expected α"),
    ):
        for method in (q_learning, sarsa, monte_carlo_control):
            with pytest.raises(ValueError, match=message):
                method(env, **{**control, **changes})
    with pytest.raises(ValueError, match="n: expected at least 1 step, got 0"):
        sarsa(env, n=0, **control)


# --- spaces that do not start at 0 ----------------------------------------------------------------------------------


class Numbered(gymnasium.Env[Any, Any]):
    """Reward 1 for the action that equals the state modulo 3, both counted from the first one."""

    def __init__(self, first_state: int, first_action: int) -> None:
        self.observation_space = spaces.Discrete(5, start=first_state)
        self.action_space = spaces.Discrete(3, start=first_action)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self._look(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        right = action - self.action_space.start == self.state % 3
        self.t += 1
        return self._look(), float(right), False, self.t == 10, {}

    def _look(self) -> int:
        self.state = int(self.np_random.integers(5))
        return self.state + int(self.observation_space.start)


RIGHT = np.eye(3)[np.arange(5) % 3]


@pytest.mark.parametrize(("first_state", "first_action"), [(0, 0), (-2, 0), (2, 0), (0, 1), (-3, -1)])
def test_a_table_is_numbered_as_the_spaces_are(first_state: int, first_action: int) -> None:
    def make() -> Numbered:
        return Numbered(first_state, first_action)

    learned = q_learning(
        make(), episodes=100, discount=0.5, step_size=0.3, epsilon=0.5, generator=np.random.default_rng(0)
    )
    np.testing.assert_array_equal(learned.q.argmax(1), RIGHT.argmax(1))
    episodes = evaluate(TabularPolicy(RIGHT), make, 5, seed=0, num_envs=2)
    assert episodes.returns().tolist() == [10.0] * 5
    actor = Actor(TabularPolicy(RIGHT), episodes.spec())
    assert actor.act(first_state + 2) == first_action + 2
    sampled = evaluate(TabularPolicy(RIGHT * 0 + 1 / 3, deterministic=False), make, 20, seed=0)
    config = FQEConfig(updates=300, discount=0.0, learning_rate=1e-2)
    assert fitted_q_evaluation(TabularPolicy(RIGHT), sampled, config=config).mean == pytest.approx(
        1, abs=0.3
    )  # others: 0.33


@pytest.mark.parametrize("table", [np.eye(5), RIGHT[:4]])
def test_a_table_of_another_size_than_the_spaces_is_refused(table: Any) -> None:
    with pytest.raises(ValueError, match=r"policy: expected spaces for a table \[\d, \d\], got 5 states, 3 actions"):
        evaluate(TabularPolicy(table), lambda: Numbered(0, 0), 1, seed=0)


def test_a_table_needs_discrete_spaces() -> None:
    with pytest.raises(ValueError, match="policy: expected Discrete observations and actions for a table, got Box"):
        evaluate(TabularPolicy(RIGHT), "CartPole-v1", 1, seed=0)
