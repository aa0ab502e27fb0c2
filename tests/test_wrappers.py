"""Wrappers: rewards and perturbations by hand, shaping leaves the optimal policies, seeds decide everything."""

import pickle
import threading
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from herdbook.core.environments import EnvironmentSpec, check_reset, make_environment, registered_only
from herdbook.core.wrappers import (
    DelayedReward,
    GaussianNoise,
    PerturbedActions,
    PerturbedObservations,
    ShapedReward,
    SparseReward,
    UniformAction,
)
from herdbook.tabular.environment import MDPEnv
from herdbook.tabular.mdp import MDP
from herdbook.tabular.planning import policy_iteration


class Counter(gymnasium.Env[Any, Any]):
    """Observes how many steps it made and what the last action was; reward 1, 2, 3 …; ends after `length` steps."""

    def __init__(self, length: int = 5, terminates: bool = True) -> None:
        self.observation_space = spaces.Box(0, 10, (2,), np.float32)
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)
        self.length, self.terminates = length, terminates

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        over = self.time == self.length
        seen = np.array([self.time, abs(action[0])], np.float32)
        return seen, float(self.time), over and self.terminates, over and not self.terminates, {}


def play(env: Any, action: Any = None, seed: int = 0) -> tuple[list[Any], list[float]]:
    observation, _ = env.reset(seed=seed)
    seen, rewards, over = [observation], [], False
    while not over:
        observation, reward, terminated, truncated, _ = env.step(np.zeros(1, np.float32) if action is None else action)
        seen.append(observation)
        rewards.append(reward)
        over = terminated or truncated
    return seen, rewards


# --- rewards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("terminates", [True, False])
@pytest.mark.parametrize(("every", "expected"), [(None, [0, 0, 0, 0, 15]), (2, [0, 3, 0, 7, 5]), (1, [1, 2, 3, 4, 5])])
def test_delayed_rewards_by_hand(every: int | None, expected: list[float], terminates: bool) -> None:
    env = DelayedReward(Counter(terminates=terminates), every)
    for _ in range(2):  # nothing is carried into the next episode
        assert play(env)[1] == expected
    env.reset()
    env.step(np.zeros(1, np.float32))  # an episode that is left owes nothing to the next
    assert play(env)[1] == expected


def test_sparse_rewards_by_hand() -> None:
    env = SparseReward(Counter(), lambda observation, reward, info: observation[0] == 5 or reward == 2)
    assert play(env)[1] == [0, 1, 0, 0, 1]


@pytest.mark.parametrize(("terminates", "last"), [(True, 3 - 4), (False, 3 - 4 + 0.5 * 9)])
def test_shaped_rewards_by_hand(terminates: bool, last: float) -> None:
    """Φ of step t is t², γ = 1/2; a cut keeps the potential of its final observation, an end does not."""
    env = ShapedReward(Counter(3, terminates), lambda observation: float(observation[0] ** 2), discount=0.5)
    for _ in range(2):
        assert play(env)[1] == [1 + 0.5 - 0, 2 + 2 - 1, last]


def random_mdp(seed: int) -> MDP:
    return MDP.random(6, 3, discount=0.9, branching=3, num_terminal=1, generator=np.random.default_rng(seed))


@pytest.mark.parametrize("seed", range(5))
def test_shaping_leaves_the_optimal_policy_unchanged(seed: int) -> None:
    mdp = random_mdp(seed)
    potential = np.random.default_rng(seed).normal(scale=5, size=6)
    plain, shaped = policy_iteration(mdp), policy_iteration(mdp.shaped(potential))
    inside = ~mdp.terminal
    assert np.array_equal(plain.policy[inside], shaped.policy[inside])
    np.testing.assert_allclose(shaped.values[inside], (plain.values - potential)[inside], atol=1e-9)


def test_a_bonus_that_is_no_difference_of_potentials_changes_the_optimal_policy() -> None:
    mdp = random_mdp(1)
    bonus = mdp.with_rewards(mdp.rewards + np.random.default_rng(1).normal(scale=5, size=6))
    assert not np.array_equal(policy_iteration(bonus).policy[:5], policy_iteration(mdp).policy[:5])


def test_the_wrapper_pays_what_the_shaped_mdp_does() -> None:
    mdp = random_mdp(0)
    potential = np.random.default_rng(0).normal(size=6)
    shaped = MDPEnv(mdp.shaped(potential))
    wrapped = ShapedReward(MDPEnv(mdp), lambda state: float(potential[state]), mdp.discount)
    for seed in range(20):
        seen, rewards = play(wrapped, np.int64(seed % 3), seed)
        again, expected = play(shaped, np.int64(seed % 3), seed)
        assert seen == again
        np.testing.assert_allclose(rewards, expected, atol=1e-12)


# --- perturbations ----------------------------------------------------------------------------------------------------


def test_perturbed_observations_by_hand() -> None:
    shift = PerturbedObservations(Counter(), lambda o, generator: o + np.array([0.5, -3]), radius=1)
    assert [tuple(o) for o in play(shift)[0]] == [(t + 0.5, 0) for t in range(6)]  # clipped to the space: not below 0
    assert play(shift)[0][0].dtype == np.float32
    free = PerturbedObservations(Counter(), lambda o, generator: o + np.array([0.5, 3]))
    assert [tuple(o) for o in play(free)[0]] == [(t + 0.5, 3) for t in range(6)]
    near = PerturbedObservations(Counter(), lambda o, generator: o + np.array([0.5, 3]), radius=0.25)
    assert [tuple(o) for o in play(near)[0]] == [(t + 0.25, 0.25) for t in range(6)]


def test_an_adversary_cannot_change_the_state_through_its_argument() -> None:
    def overwrite(values: Any, generator: np.random.Generator) -> Any:
        values[:] = 7
        return values

    action = np.full(1, 0.25, np.float32)
    env = PerturbedActions(PerturbedObservations(Counter(), overwrite, radius=0.5), overwrite)
    seen, _ = play(env, action)
    assert action[0] == 0.25 and tuple(seen[2]) == (2.5, 1.5)  # the action was clipped to 1


def test_perturbed_actions_come_with_their_probability() -> None:
    env = PerturbedActions(Counter(4_000), lambda action, generator: np.ones(1), probability=0.3)
    seen, _ = play(env)
    assert np.mean([o[1] for o in seen[1:]]) == pytest.approx(0.3, abs=0.03)
    for probability in (0.0, 1.0):
        seen, _ = play(PerturbedActions(Counter(), lambda action, generator: np.ones(1), probability))
        assert [o[1] for o in seen[1:]] == [probability] * 5


def test_whole_numbers_are_rounded() -> None:
    class Pixels(Counter):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = spaces.Box(0, 255, (2,), np.uint8)

        def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
            return np.array([3, 255], np.uint8), {}

    env = PerturbedObservations(Pixels(), lambda o, generator: o + np.array([0.6, 9.0]))
    observation, _ = env.reset()
    assert observation.tolist() == [4, 255] and observation.dtype == np.uint8
    near = PerturbedObservations(Pixels(), lambda o, generator: o - np.array([9.0, 9.0]), radius=2.7)
    assert near.reset()[0].tolist() == [1, 253]  # not rounded out of the ball
    with pytest.raises(ValueError, match="radius: expected ε >= 1 for whole numbers, got 0.5"):
        PerturbedObservations(Pixels(), GaussianNoise(1), radius=0.5)


def test_noise_has_its_scale() -> None:
    generator = np.random.default_rng(0)
    noise = GaussianNoise(0.5)(np.zeros(20_000), generator)
    assert noise.std() == pytest.approx(0.5, abs=0.01) and abs(noise.mean()) < 0.02
    assert GaussianNoise(0)(np.arange(3.0), generator).tolist() == [0, 1, 2]
    drawn = [int(UniformAction(spaces.Discrete(3, start=5))(np.int64(5), generator)) for _ in range(3_000)]
    np.testing.assert_allclose(np.bincount(drawn)[5:] / 3_000, 1 / 3, atol=0.04)
    box = UniformAction(spaces.Box(np.array([-2, 0], np.float32), np.array([2, 1], np.float32)))
    drawn = np.array([box(None, generator) for _ in range(2_000)])
    np.testing.assert_allclose(drawn.mean(0), [0, 0.5], atol=0.1)


PERTURBED = [
    lambda env: PerturbedObservations(env, GaussianNoise(0.1)),
    lambda env: PerturbedActions(env, UniformAction(env.action_space), 0.5),
]


@pytest.mark.parametrize("wrap", PERTURBED)
def test_the_reset_seed_decides_everything(wrap: Any) -> None:
    env = wrap(gymnasium.make("Pendulum-v1"))
    assert check_reset(env)
    first, again, other = (play(env, seed=seed)[0] for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[5], other[5])
    plain, _ = play(gymnasium.make("Pendulum-v1"), seed=3)
    seen = first[0] if isinstance(env, PerturbedActions) else env.unwrapped.reset(seed=3)[0]
    assert np.array_equal(plain[0], seen)  # the environment's own draws are what they were
    after = [env.reset()[0] for _ in range(2)]  # without a seed both draw on
    assert not np.array_equal(*after)


def drawn(env: Any, seed: int = 0) -> Any:
    """What the outermost wrapper draws next after a reset."""
    env.reset(seed=seed)
    return env.generator.standard_normal(2_000)


def test_no_two_streams_of_randomness_are_the_same() -> None:
    """A wrapper's, that of another one around it, and the environment's, which has the same reset seed."""
    inner = PerturbedActions(Counter(), GaussianNoise(1))
    outer = PerturbedObservations(DelayedReward(inner), GaussianNoise(1))
    own = np.random.default_rng(0).standard_normal(2_000)
    for a, b in (
        (drawn(inner), drawn(outer)),
        (drawn(inner), own),
        (drawn(outer), own),
        (drawn(inner), drawn(inner, 1)),
    ):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.1
    assert np.array_equal(drawn(inner), drawn(inner))
    inner.reset(seed=0)
    inner.generator.standard_normal(7)
    inner.reset()  # an unseeded reset goes on with the stream
    assert not np.array_equal(inner.generator.standard_normal(2_000), drawn(inner))


def test_discrete_actions_are_numbers_and_must_be_legal() -> None:
    lake = PerturbedActions(gymnasium.make("FrozenLake-v1"), lambda action, generator: action)
    lake.reset(seed=0)
    assert lake.step(1)[0] in range(16)
    grid = PerturbedActions(MDPEnv(random_mdp(0)), lambda action, generator: action - 1)
    grid.reset(seed=0)
    grid.step(1)
    with pytest.raises(ValueError, match=r"expected a perturbed action in Discrete\(3\), got -1"):
        grid.step(0)


@pytest.mark.parametrize("wrap", [*PERTURBED, lambda env: DelayedReward(env, 2)])
def test_a_wrapped_environment_can_be_sent_to_another_process(wrap: Any) -> None:
    env = wrap(gymnasium.make("Pendulum-v1"))
    again = pickle.loads(pickle.dumps(env))  # noqa: S301  # what this test made
    assert np.array_equal(play(env)[0], play(again)[0])


def test_a_perturbation_is_kept_and_not_copied() -> None:
    class Adversary:
        def __init__(self) -> None:
            self.held = threading.Lock()  # cannot be copied

        def __call__(self, values: Any, generator: np.random.Generator) -> Any:
            return values

    adversary = Adversary()
    assert PerturbedObservations(Counter(), adversary).perturb is adversary


def test_a_recorded_spec_brings_the_wrapper_back_or_says_that_it_does_not(caplog: Any) -> None:
    delayed = DelayedReward(gymnasium.make("Pendulum-v1"), 3)
    spec = registered_only(EnvironmentSpec.from_gymnasium(delayed.spec))
    again = make_environment(spec)
    assert isinstance(again, DelayedReward) and again.every == 3 and not caplog.messages
    noisy = PerturbedObservations(delayed, GaussianNoise(0.1))
    lost = make_environment(EnvironmentSpec.from_gymnasium(noisy.spec))
    assert not isinstance(lost, (DelayedReward, PerturbedObservations))
    (message,) = caplog.messages
    assert message == (
        "Pendulum-v1: its wrappers cannot be recorded and are left out: DelayedReward, PerturbedObservations"
    )


@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version")  # it is: that is what is checked
@pytest.mark.parametrize("wrap", [
    lambda env: DelayedReward(env, 3),
    lambda env: SparseReward(env, lambda *_: False),
    lambda env: ShapedReward(env, lambda o: float(o[0]), 0.99),
    lambda env: PerturbedObservations(env, GaussianNoise(0.1)),
    lambda env: PerturbedActions(env, GaussianNoise(0.1)),
])  # fmt: skip
def test_wrapped_environments_keep_gymnasiums_contract(wrap: Any) -> None:
    check_env(wrap(gymnasium.make("MountainCarContinuous-v0").unwrapped), skip_render_check=True)


def test_bad_input_is_refused() -> None:
    for make, message in (
        (lambda: DelayedReward(Counter(), 0), "every: expected at least 1 step, got 0"),
        (lambda: ShapedReward(Counter(), lambda o: 0.0, 1.5), r"discount: expected γ in \[0, 1\], got 1.5"),
        (lambda: PerturbedObservations(MDPEnv(random_mdp(0)), GaussianNoise(1)), "expected Box observations to pert"),
        (lambda: PerturbedObservations(Counter(), GaussianNoise(1), radius=0), "radius: expected ε > 0, got 0"),
        (lambda: PerturbedActions(Counter(), GaussianNoise(1), 2), r"probability: expected α in \[0, 1\], got 2"),
        (lambda: GaussianNoise(-1), "scale: expected a standard deviation >= 0, got -1"),
        (lambda: UniformAction(spaces.Box(-np.inf, np.inf, (1,))), "expected Discrete or bounded Box actions, got Box"),
    ):
        with pytest.raises(ValueError, match=message):
            make()

    odd = Counter()
    odd.action_space = spaces.MultiDiscrete([2, 2])
    with pytest.raises(ValueError, match="expected Box or Discrete actions to perturb, got MultiDiscrete"):
        PerturbedActions(odd, GaussianNoise(1))
