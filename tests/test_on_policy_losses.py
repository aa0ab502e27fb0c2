"""What learns from rollouts, in its pure parts: against numbers that can be checked on paper, and closed forms."""

import math
from collections.abc import Iterable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sameness import equal
from torch import Tensor

from herdbook.core import checkpoint
from herdbook.core.distributions import BOUND, Categorical, ClippedNormal
from herdbook.core.moments import RewardScale, RunningMoments, merged
from herdbook.core.networks import MLP, OnPolicyActor, OnPolicyValue, orthogonal_
from herdbook.core.on_policy import Experience, advantages_of, minibatches, standardised, steps_of
from herdbook.core.policy import ScaledDistribution, Scaling
from herdbook.core.returns import discounted_returns, generalised_advantage
from herdbook.core.types import Segments, Spec, Steps, TimeLimit
from herdbook.core.units import RunningUnits
from herdbook.datasets.rollout_buffer import RolloutBuffer
from herdbook.online import a2c, ppo, reinforce, trpo
from herdbook.online.ppo import PPOConfig
from herdbook.online.trpo import TRPO, TRPOConfig

T = torch.tensor
VECTOR = spaces.Box(-np.inf, np.inf, (2,), np.float32)


def random_numbers(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- returns and advantages -----------------------------------------------------------------------------------------

# γ = ½, four lanes with the same rewards. After its second step an episode terminates, is cut off with an observation
# worth 12 (the next one begins where it is worth 6), goes on, or is both cut off and terminated.
REWARDS = T([[1.0, 2.0, 3.0, 4.0]] * 4)
VALUES = T([[2.0, 4.0, 6.0, 8.0]] * 4)
NEXT_VALUES = T([[4.0, 100.0, 8.0, 10.0], [4.0, 12.0, 8.0, 10.0], [4.0, 6.0, 8.0, 10.0], [4.0, 100.0, 8.0, 10.0]])
TERMINATED = T([[False, ends, False, False] for ends in (True, False, False, True)])
TRUNCATED = T([[False, ends, False, False] for ends in (False, True, False, True)])


@pytest.mark.parametrize(
    ("trace", "expected"),
    [
        # δ = r + V′/2 − V: 1 + 2 − 2; 2 + 0 − 4, 2 + 6 − 4, 2 + 3 − 4; 3 + 4 − 6; 4 + 5 − 8
        (0.0, [[1.0, -2.0, 1.0, 1.0], [1.0, 4.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]),
        # a quarter of the next one is added, but for that of another episode: 1 + 1.25 / 4 = 1.3125, …
        (0.5, [[0.5, -2.0, 1.25, 1.0], [2.0, 4.0, 1.25, 1.0], [1.328125, 1.3125, 1.25, 1.0]]),
        # half of it: the return less V, as G = 4 + 10/2 = 9, 3 + 9/2 = 7.5, …
        (1.0, [[0.0, -2.0, 1.5, 1.0], [3.0, 4.0, 1.5, 1.0], [1.875, 1.75, 1.5, 1.0]]),
    ],
)
def test_generalised_advantage_by_hand(trace: float, expected: list[list[float]]) -> None:
    advantages = generalised_advantage(REWARDS, TERMINATED, TRUNCATED, VALUES, NEXT_VALUES, 0.5, trace)
    assert advantages.tolist() == [*expected, expected[0]]  # with both flags it is a termination


def test_discounted_returns_by_hand() -> None:
    """From the back: 4 + 10/2 = 9, 3 + 9/2 = 7.5; then 2, 2 + 12/2 = 8, 2 + 7.5/2 = 5.75; then 1 + G/2."""
    returns = discounted_returns(REWARDS, TERMINATED, TRUNCATED, NEXT_VALUES, 0.5)
    ended = [2.0, 2.0, 7.5, 9.0]
    assert returns.tolist() == [ended, [5.0, 8.0, 7.5, 9.0], [3.875, 5.75, 7.5, 9.0], ended]


@pytest.mark.parametrize(("terminated", "truncated", "expected"), [(True, False, 1.0), (False, True, 4.0)])
def test_a_rollout_of_one_step_ends_in_its_own_way(terminated: bool, truncated: bool, expected: float) -> None:
    flags = T([[terminated]]), T([[truncated]])
    assert discounted_returns(T([[1.0]]), *flags, T([[6.0]]), 0.5).item() == expected
    assert generalised_advantage(T([[1.0]]), *flags, T([[2.0]]), T([[6.0]]), 0.5, 0.9).item() == expected - 2


def random_rollout(lanes: int, steps: int, seed: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rewards, both flags, V and V′, which is V one step on within an episode."""
    generator = torch.Generator().manual_seed(seed)
    terminated, truncated = (torch.rand(lanes, steps, generator=generator) < 0.15 for _ in range(2))
    rewards, values, final = (torch.randn(lanes, steps, generator=generator) for _ in range(3))
    next_values = torch.where(terminated | truncated, final, values.roll(-1, 1))
    next_values[:, -1] = final[:, -1]
    return rewards, terminated, truncated, values, next_values


def naive_advantages(rollout: tuple[Tensor, ...], discount: float, trace: float) -> Tensor:
    """Eq. 16 step by step: Σ_l (γλ)^l δ_{t+l}, as far as the episode goes."""
    rewards, terminated, truncated, values, next_values = (column.tolist() for column in rollout)
    advantages = torch.zeros(len(rewards), len(rewards[0]))
    for lane in range(len(rewards)):
        for t in range(len(rewards[lane])):
            for k in range(t, len(rewards[lane])):
                following = 0.0 if terminated[lane][k] else discount * next_values[lane][k]
                error = rewards[lane][k] + following - values[lane][k]
                advantages[lane, t] += (discount * trace) ** (k - t) * error
                if terminated[lane][k] or truncated[lane][k]:
                    break
    return advantages


@pytest.mark.parametrize(("discount", "trace"), [(0.99, 0.95), (0.9, 0.0), (0.9, 1.0), (1.0, 1.0), (0.0, 0.5)])
def test_advantages_equal_a_sum_that_is_written_out(discount: float, trace: float) -> None:
    rollout = random_rollout(5, 30)
    assert all(column.any() for column in (rollout[1] & rollout[2], rollout[1] & ~rollout[2], rollout[2] & ~rollout[1]))
    advantages = generalised_advantage(*rollout, discount, trace)
    torch.testing.assert_close(advantages, naive_advantages(rollout, discount, trace), rtol=1e-5, atol=1e-5)


def test_the_return_less_the_value_is_the_advantage_of_trace_one() -> None:
    rewards, terminated, truncated, values, next_values = random_rollout(4, 25)
    returns = discounted_returns(rewards, terminated, truncated, next_values, 0.97)
    advantages = generalised_advantage(rewards, terminated, truncated, values, next_values, 0.97, 1.0)
    torch.testing.assert_close(returns - values, advantages, rtol=1e-5, atol=1e-5)


def segments(lanes: int = 2, steps: int = 5, scale: float = 1.0, offset: float = 0.0) -> Segments:
    """A rollout of two-dimensional observations and one of three choices; the first lane's episode ends inside."""
    rewards, terminated, truncated, _, _ = random_rollout(lanes, steps)
    terminated[0, steps // 2] = True
    observations = offset + scale * random_numbers(5, lanes, steps + 1, 2)
    ended = (terminated | truncated).roll(1, 1)
    ended[:, 0] = True
    return Segments(
        observations[:, :-1],
        torch.arange(lanes * steps).view(lanes, steps) % 3,
        rewards,
        torch.ones_like(terminated),
        terminated,
        truncated,
        observations[:, 1:],
        timesteps=1 - ended.long(),  # only where one begins is of interest
    )


def test_advantages_of_a_rollout_and_the_returns_that_they_make() -> None:
    rollout = segments()

    def value(observations: Tensor) -> Tensor:
        return 3 * observations[:, 0] - observations[:, 1]

    columns = (value(o.flatten(0, 1)).view(2, 5) for o in (rollout.observations, rollout.next_observations))
    values, next_values = columns
    advantages, returns = advantages_of(rollout, value, 0.9, 0.8)
    expected = naive_advantages((rollout.rewards, rollout.terminated, rollout.truncated, values, next_values), 0.9, 0.8)
    torch.testing.assert_close(advantages, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(returns, expected + values, rtol=1e-5, atol=1e-5)
    steps = steps_of(rollout, advantages, returns)
    for lane in range(2):
        for t in range(5):
            row = 5 * lane + t
            assert torch.equal(steps.observations[row], rollout.observations[lane, t])
            assert steps.actions[row] == rollout.actions[lane, t]
            assert steps.advantages[row] == advantages[lane, t] and steps.returns[row] == returns[lane, t]


# --- losses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy_loss", [reinforce.policy_loss, a2c.policy_loss])
def test_the_loss_of_a_policy_is_minus_the_mean_of_log_probability_times_advantage(policy_loss: Any) -> None:
    """−((−1)·2 + (−3)·(−4)) / 2 = −5, and its slope is −Â / N."""
    log_probs = T([-1.0, -3.0], requires_grad=True)
    loss = policy_loss(log_probs, T([2.0, -4.0]))
    assert loss.item() == -5.0
    (slope,) = torch.autograd.grad(loss, log_probs)
    assert slope.tolist() == [-1.0, 2.0]


def test_reinforce_without_a_baseline_subtracts_no_mean() -> None:
    """G = 3 and 4, divided by √(25 / 2); equal returns stay finite, as do returns of 0."""
    torch.testing.assert_close(reinforce.rescaled(T([3.0, 4.0])), T([3.0, 4.0]) / math.sqrt(12.5))
    assert reinforce.rescaled(T([-2.0, -2.0])).tolist() == pytest.approx([-1.0, -1.0])
    assert reinforce.rescaled(T([0.0, 0.0])).tolist() == [0.0, 0.0]
    spec = Spec(observation_space=VECTOR, action_space=spaces.Discrete(2))
    for baseline, expected in ((True, [-1.0, 1.0]), (False, [3 / math.sqrt(12.5), 4 / math.sqrt(12.5)])):
        algorithm = reinforce.Reinforce(reinforce.ReinforceConfig(baseline=baseline, hidden_sizes=(4,)), spec)
        steps = Experience(T([[0.0, 1.0], [2.0, 3.0]]), T([0, 1]), T([3.0, 4.0]), T([3.0, 4.0]))
        params = algorithm.learner.params
        log_probs = algorithm.actor(params["actor"], steps.observations).log_prob(steps.actions)
        loss, _ = algorithm.policy_objective(params, steps)
        torch.testing.assert_close(loss, -(log_probs * T(expected)).mean())


@pytest.mark.parametrize(
    ("loss", "expected"),
    [(reinforce.baseline_loss, 5.0), (a2c.value_loss, 2.5), (ppo.value_loss, 2.5), (trpo.value_loss, 2.5)],
)
def test_the_loss_of_a_value(loss: Any, expected: float) -> None:
    """Errors 1 and −3: the mean of 1 and 9, or half of it."""
    values = T([2.0, 1.0], requires_grad=True)
    assert loss(values, T([1.0, 4.0])).item() == expected
    (slope,) = torch.autograd.grad(loss(values, T([1.0, 4.0])), values)
    assert slope.tolist() == [expected / 5, -3 * expected / 5]  # of (v − R)² / N: 2 (v − R) / N = 1, −3, or half of it


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.0),
        (1.5, 2.0, -2.4, 0.0),  # better already: no more than 1.2 · 2
        (0.5, 2.0, -1.0, -2.0),  # worse: it is drawn back however far it is
        (1.5, -2.0, 3.0, 2.0),
        (0.5, -2.0, 1.6, 0.0),  # 0.8 · 2
        (0.9, -2.0, 1.8, 2.0),
        (7.0, 0.0, 0.0, 0.0),
    ],
)
def test_ppo_takes_the_worse_of_ratio_and_clipped_ratio(
    ratio: float, advantage: float, expected: float, slope: float
) -> None:
    point = T([ratio], requires_grad=True)
    loss = ppo.policy_loss(point, T([advantage]), 0.2)
    assert loss.item() == pytest.approx(expected)
    assert torch.autograd.grad(loss, point)[0].item() == pytest.approx(-0.0 if slope == 0 else slope)


def test_ppo_takes_the_minimum_for_each_step_and_then_the_mean() -> None:
    """Minima 2.4 and −3, whose mean is −0.3; the means 0 and 0.4 would have a minimum of 0."""
    loss = ppo.policy_loss(T([1.5, 1.5]), T([2.0, -2.0]), 0.2)
    assert loss.item() == pytest.approx(0.3)


def test_surrogate_by_hand() -> None:
    """Ratios 2 and ½: (2·3 + ½·(−4)) / 2 = 2. Its slope at the old policy is Â / N."""
    old = T([0.0, -1.0])
    assert trpo.surrogate(old + T([2.0, 0.5]).log(), old, T([3.0, -4.0])).item() == pytest.approx(2.0)
    log_probs = old.clone().requires_grad_()
    (slope,) = torch.autograd.grad(trpo.surrogate(log_probs, old, T([3.0, -4.0])), log_probs)
    assert slope.tolist() == [1.5, -2.0]


def test_conjugate_gradients_by_hand() -> None:
    """F = diag(1, 3), g = (1, 1). One step: x = (gᵀg / gᵀFg) g = g/2. Two, as many as dimensions: x = (1, 1/3)."""
    fisher, g = torch.diag(T([1.0, 3.0])), T([1.0, 1.0])
    assert trpo.conjugate_gradients(lambda x: fisher @ x, g, 1).tolist() == [0.5, 0.5]
    torch.testing.assert_close(trpo.conjugate_gradients(lambda x: fisher @ x, g, 2), T([1.0, 1 / 3]))
    assert g.tolist() == [1.0, 1.0]


def test_conjugate_gradients_solve_what_torch_solves() -> None:
    root, g = random_numbers(0, 12, 12, dtype=torch.float64), random_numbers(1, 12, dtype=torch.float64)
    fisher = root @ root.T + 0.5 * torch.eye(12, dtype=torch.float64)
    calls: list[Tensor] = []
    x = trpo.conjugate_gradients(lambda v: calls.append(v) or fisher @ v, g, 100, 1e-24)  # type: ignore[func-returns-value]  # None, then the product
    torch.testing.assert_close(x, torch.linalg.solve(fisher, g), rtol=1e-8, atol=1e-8)
    assert len(calls) < 40  # it stopped where nothing was left


def test_conjugate_gradients_of_a_gradient_of_zero_are_zero() -> None:
    assert trpo.conjugate_gradients(lambda x: x, torch.zeros(3), 10, 0.0).isnan().any()  # what the residual is for
    assert trpo.conjugate_gradients(lambda x: x, torch.zeros(3), 10).tolist() == [0.0, 0.0, 0.0]


def test_advantages_are_standardised_by_their_mean_and_population_deviation() -> None:
    """1, 2, 3, 6: mean 3, variance (4 + 1 + 0 + 9) / 4 = 3.5."""
    expected = T([-2.0, -1.0, 0.0, 3.0]) / math.sqrt(3.5)
    torch.testing.assert_close(standardised(T([1.0, 2.0, 3.0, 6.0])), expected)


@pytest.mark.parametrize("advantages", [[0.0, 0.0, 0.0], [2.5, 2.5, 2.5, 2.5], [7.0]])
def test_equal_advantages_are_standardised_to_zero(advantages: list[float]) -> None:
    assert standardised(T(advantages)).tolist() == [0.0] * len(advantages)


# --- passes over a rollout ------------------------------------------------------------------------------------------


def numbered(count: int) -> Experience:
    """Step i has i, 2i, 3i, 4i and 5i."""
    i = torch.arange(count, dtype=torch.float32)
    return Experience(i[:, None], 2 * i, 3 * i, 4 * i, 5 * i)


def numbers(parts: Iterable[Experience]) -> list[list[float]]:
    return [part.observations[:, 0].tolist() for part in parts]


def test_every_step_is_seen_once_in_each_pass() -> None:
    parts = list(minibatches(numbered(7), 3, 3, torch.Generator().manual_seed(0)))
    assert [len(part.advantages) for part in parts] == [3, 3, 1] * 3
    passes = [[i for part in numbers(parts[first : first + 3]) for i in part] for first in (0, 3, 6)]
    assert all(sorted(order) == list(range(7)) for order in passes)
    assert passes[0] != passes[1] != passes[2]
    for part in parts:
        i = part.observations[:, 0]
        assert part.log_probs is not None
        for multiple, column in enumerate((part.actions, part.advantages, part.returns, part.log_probs), 2):
            assert torch.equal(column, multiple * i)  # rows stay together


def test_passes_are_a_function_of_the_generator() -> None:
    def drawn(seed: int, size: int = 4, epochs: int = 2) -> list[list[float]]:
        return numbers(minibatches(numbered(8), size, epochs, torch.Generator().manual_seed(seed)))

    assert drawn(3) == drawn(3) and drawn(3) != drawn(4)
    first, second = drawn(3, epochs=1)
    assert drawn(3)[:2] == [first, second] and drawn(3, size=100, epochs=1) == [first + second]


# --- running moments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        ((0, 0.0, 0.0), (2, 3.0, 2.0), (2, 3.0, 2.0)),  # nothing before
        ((2, 1.0, 2.0), (1, 4.0, 0.0), (3, 2.0, 8.0)),  # 0 and 2, then 4
        ((1, 5.0, 0.0), (3, 5.0, 0.0), (4, 5.0, 0.0)),  # equal rows
    ],
)
def test_merged_moments_by_hand(first: Any, second: Any, together: Any) -> None:
    assert merged(first, second) == together
    as_tensors = merged(*((count, T([mean]), T([squares])) for count, mean, squares in (first, second)))
    assert as_tensors == (together[0], T([together[1]]), T([together[2]]))


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_running_moments_equal_those_of_all_rows(offset: float) -> None:
    rows = (offset + random_numbers(0, 60, 3, dtype=torch.float64) * T([0.1, 1.0, 30.0])).float()
    moments = RunningMoments(3)
    assert moments.mean.tolist() == [0.0] * 3 and moments.std.tolist() == [1.0] * 3
    for part in (rows[:1], rows[1:8], rows[8:48].view(4, 10, 3), rows[48:]):
        moments.update(part)
    everything = rows.double().numpy()
    assert moments.count == 60
    np.testing.assert_allclose(moments.mean, everything.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(moments.std, everything.std(0), rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_running_moments_of_equal_rows_have_a_deviation_of_one(dtype: torch.dtype) -> None:
    """In double precision the mean of several 0.1 is not 0.1."""
    moments, row = RunningMoments(2), torch.tensor([0.1, 1e8], dtype=dtype)
    for count in (1, 3, 17):
        moments.update(row.expand(count, 2))
        assert moments.std.tolist() == [1.0, 1.0]
        np.testing.assert_allclose(moments.mean, row, rtol=1e-12)


def test_running_moments_go_on_from_their_state() -> None:
    one, other = RunningMoments(2), RunningMoments(2)
    one.update(random_numbers(0, 5, 2))
    state = one.state_dict()
    other.update(random_numbers(1, 3, 2))
    other.load_state_dict(state)
    for moments in (one, other):
        moments.update(random_numbers(2, 4, 2))
    assert one.count == other.count == 9
    assert torch.equal(one.mean, other.mean) and torch.equal(one.std, other.std)
    assert state["count"] == 5 and not torch.equal(state["mean"], one.mean)  # a state does not follow
    with pytest.raises(ValueError, match=r"expected moments of shape \[3\], got \[2\]"):
        RunningMoments(3).load_state_dict(state)


def test_the_scale_of_rewards_by_hand() -> None:
    """γ = ½. Lane one: 2 | 4, 4, where another episode begins → sums 2 | 4, 6; lane two: 0, 8, 0 → 0, 8, 4.

    Mean 4, variance (4 + 0 + 4 + 16 + 16 + 0) / 6 = 20/3.
    """
    scale = RewardScale(0.5)
    rewards, first = T([[2.0, 4.0, 4.0], [0.0, 8.0, 0.0]]), T([[True, True, False], [True, False, False]])
    torch.testing.assert_close(scale(rewards, first), rewards / math.sqrt(20 / 3))
    assert scale.sums is not None and scale.sums.tolist() == [6.0, 4.0]
    # Now 3 + 6/2 = 6, and a beginning with −2: mean 28/8, squares 4 + 16 + 36 + 0 + 64 + 16 + 36 + 4 = 176.
    following = T([[3.0], [-2.0]])
    torch.testing.assert_close(scale(following, T([[False], [True]])), following / math.sqrt(176 / 8 - 3.5**2))
    assert scale.sums.tolist() == [6.0, -2.0]


def plain_scale(rewards: Tensor, first: Tensor, discount: float) -> float:
    """The deviation of all discounted sums of rewards since an episode's begin."""
    sums = []
    for lane in range(len(rewards)):
        total = 0.0
        for reward, begins in zip(rewards[lane].tolist(), first[lane].tolist(), strict=True):
            total = reward if begins else discount * total + reward
            sums.append(total)
    return float(np.std(sums))


def test_the_scale_of_rewards_goes_on_from_call_to_call_and_from_its_state() -> None:
    rewards, first, _, _, _ = random_rollout(3, 24)
    scale = RewardScale(0.9)
    for begin, end in ((0, 1), (1, 9), (9, 10), (10, 24)):
        scaled = scale(rewards[:, begin:end], first[:, begin:end])
        deviation = plain_scale(rewards[:, :end], first[:, :end], 0.9)
        torch.testing.assert_close(scaled, rewards[:, begin:end] / deviation, rtol=1e-5, atol=1e-6)
        state, scale = scale.state_dict(), RewardScale(0.9)
        scale.load_state_dict(state)


def test_a_scale_without_any_difference_leaves_rewards_as_they_are() -> None:
    scale, first = RewardScale(0.9), torch.ones(3, 7, dtype=torch.bool)
    for _ in range(3):
        assert torch.equal(scale(torch.full((3, 7), 0.1), first), torch.full((3, 7), 0.1))


# --- units ----------------------------------------------------------------------------------------------------------

SPEC = Spec(VECTOR, spaces.Discrete(3, start=1))


def units(spec: Spec = SPEC, observations: bool = True, rewards: bool = True) -> RunningUnits:
    return RunningUnits(
        spec, PPOConfig(discount=0.9, normalise_observations=observations, scale_rewards=rewards), "cpu"
    )


def test_units_follow_each_rollout_after_it_was_learned_from() -> None:
    own, first, second = units(rewards=False), segments(scale=3.0, offset=5.0), segments(lanes=3, offset=-2.0)
    scaled = own.rollout(first)
    assert torch.equal(scaled.observations, first.observations)
    assert torch.equal(scaled.actions, first.actions - 1) and torch.equal(scaled.rewards, first.rewards)
    own.see(first.observations)
    rows = first.observations.flatten(0, 1)
    mean, std = rows.mean(0), rows.std(0, correction=0) + 1e-3
    scaled = own.rollout(second)
    for name in ("observations", "next_observations"):
        torch.testing.assert_close(getattr(scaled, name), (getattr(second, name) - mean) / std, rtol=1e-5, atol=1e-5)
    for name in ("terminated", "truncated", "mask"):
        assert torch.equal(getattr(scaled, name), getattr(second, name))
    own.see(second.observations)
    rows = torch.cat([rows, second.observations.flatten(0, 1)])
    expected = (rows - rows.mean(0)) / (rows.std(0, correction=0) + 1e-3)
    torch.testing.assert_close(own.scaling.observations(rows), expected, rtol=1e-5, atol=1e-5)


def test_units_scale_rewards_by_what_a_rollout_adds() -> None:
    rollout, own = segments(steps=12), units(observations=False)
    assert rollout.timesteps is not None
    deviation = plain_scale(rollout.rewards, rollout.timesteps == 0, 0.9)
    scaled = own.rollout(rollout)
    torch.testing.assert_close(scaled.rewards, rollout.rewards / deviation, rtol=1e-5, atol=1e-6)
    assert torch.equal(scaled.observations, rollout.observations)


def test_units_leave_everything_alone_where_nothing_is_asked_for() -> None:
    own, rollout = units(observations=False, rewards=False), segments()
    own.see(rollout.observations)
    scaled = own.rollout(rollout)
    assert torch.equal(scaled.observations, rollout.observations) and torch.equal(scaled.rewards, rollout.rewards)


def test_units_are_the_same_after_a_round_through_their_state(tmp_path: Path) -> None:
    own, other = units(), units()
    own.rollout(segments())
    own.see(segments().observations)
    checkpoint.save(tmp_path / "state", own.state_dict())
    other.load_state_dict(checkpoint.load(tmp_path / "state"))
    following = segments(lanes=2, steps=7, offset=4.0)
    one, two = own.rollout(following), other.rollout(following)
    assert torch.equal(one.observations, two.observations) and torch.equal(one.rewards, two.rewards)
    assert not torch.equal(one.observations, following.observations)


def test_units_of_before_the_first_rollout_can_be_had_back() -> None:
    own, rollout = units(), segments()
    before = own.state_dict()
    own.rollout(rollout)
    own.see(rollout.observations)
    own.load_state_dict(before)
    assert torch.equal(own.scaling.observations(rollout.observations), rollout.observations)


@pytest.mark.parametrize(("observations", "rewards", "name"), [(False, True, "moments"), (True, False, "reward_scale")])
def test_units_refuse_the_state_of_others(observations: bool, rewards: bool, name: str) -> None:
    own, other = units(), units(observations=observations, rewards=rewards)
    own.check({"units": own.state_dict()})
    with pytest.raises(ValueError, match=f"its units are with {name}"):
        other.check({"units": own.state_dict()})
    with pytest.raises(ValueError, match=f"its units are without {name}"):
        own.check({"units": other.state_dict()})


@pytest.mark.parametrize(
    "space", [spaces.Box(0, 255, (8, 8, 3), np.uint8), spaces.Discrete(4), spaces.Dict({"image": VECTOR})]
)
def test_only_vectors_are_normalised(space: spaces.Space[Any]) -> None:
    with pytest.raises(ValueError, match="normalise_observations: expected a vector, got observations in"):
        units(replace(SPEC, observation_space=space))
    assert units(replace(SPEC, observation_space=space), observations=False).moments is None


# --- rollouts -------------------------------------------------------------------------------------------------------


def filled(rollouts: RolloutBuffer, steps: int = 3) -> RolloutBuffer:
    """Two lanes; lane 0 is truncated at step 1 and terminated at step 2, where lane 1 is both."""
    for number in range(steps):
        now = np.array([[10.0 * number], [10.0 * number + 5]], np.float32)
        terminated, truncated = np.array([number == 2, number == 2]), np.array([number == 1, number == 2])
        rollouts.add(Steps(now, np.array([number, 2]), np.array([1.0 + number, -1.0]), terminated, truncated, now + 1))
    return rollouts


def test_a_rollout_is_taken_once_in_order_and_by_lane() -> None:
    rollouts = filled(RolloutBuffer())
    assert len(rollouts) == 6
    taken = rollouts.take()
    assert taken.observations[..., 0].tolist() == [[0.0, 10.0, 20.0], [5.0, 15.0, 25.0]]
    assert taken.next_observations[..., 0].tolist() == [[1.0, 11.0, 21.0], [6.0, 16.0, 26.0]]
    assert taken.actions.tolist() == [[0, 1, 2], [2, 2, 2]]
    assert taken.rewards.tolist() == [[1.0, 2.0, 3.0], [-1.0] * 3] and taken.rewards.dtype == torch.float32
    assert taken.terminated.tolist() == [[False, False, True]] * 2
    assert taken.truncated.tolist() == [[False, True, False], [False, False, True]]
    assert bool(taken.mask.all()) and taken.mask.shape == (2, 3)
    assert len(rollouts) == 0
    with pytest.raises(ValueError, match="no steps were added since the last update"):
        rollouts.take()
    assert filled(rollouts, 1).take().rewards.tolist() == [[1.0], [-1.0]]


def test_a_time_limit_that_is_the_tasks_terminates() -> None:
    taken = filled(RolloutBuffer(time_limit="terminal")).take()
    assert taken.terminated.tolist() == [[False, True, True], [False, False, True]]
    assert not taken.truncated.any()
    with pytest.raises(ValueError, match="time_limit"):
        RolloutBuffer(time_limit="never")  # type: ignore[arg-type]  # what is refused


@pytest.mark.parametrize("time_limit", ["bootstrap", "terminal"])
def test_an_episode_that_was_given_up_is_truncated_at_its_last_step(time_limit: Any) -> None:
    rollouts = RolloutBuffer(time_limit=time_limit)
    rollouts.cut(np.array([True, True, True]))  # nothing was added: nothing is cut
    lanes, ends, never = np.array([[1.0], [2.0], [3.0]]), np.array([False, True, False]), np.zeros(3, np.bool_)
    for terminated in (never, ends):
        rollouts.add(Steps(lanes, np.zeros(3, np.int64), np.ones(3), terminated, never, lanes))
    rollouts.cut(np.array([True, True, False]))
    taken = rollouts.take()
    assert taken.truncated.tolist() == [[False, True], [False, False], [False, False]]
    assert taken.terminated.tolist() == [[False, False], [False, True], [False, False]]
    assert not never.any()  # what was given is not written to


@pytest.mark.parametrize("time_limit", ["bootstrap", "terminal"])
def test_a_block_is_its_steps(time_limit: TimeLimit) -> None:
    rng, lanes = np.random.default_rng(0), 3
    blocks, steps = (
        RolloutBuffer(time_limit=time_limit, reward_transform=lambda r: r.clip(-0.5, 0.5)) for _ in range(2)
    )
    for count in (4, 1, 7):
        now, rewards = rng.normal(size=(count, lanes, 2)).astype(np.float32), rng.normal(size=(count, lanes))
        actions, terminated, truncated = rng.integers(0, 2, (3, count, lanes))
        columns = (now, actions, rewards, terminated > 0, (truncated & ~terminated) > 0, now + 1)
        blocks.extend(Steps(*columns))
        for number in range(count):
            steps.add(Steps(*(column[number] for column in columns)))
        lost = np.array([True, False, False])
        blocks.cut(lost)
        steps.cut(lost)
    assert len(blocks) == len(steps) == 36
    taken = blocks.take()
    assert equal(asdict(taken), asdict(steps.take()))
    assert taken.rewards.aminmax() == (-0.5, 0.5)
    assert taken.observations.is_contiguous()


def timesteps(rollouts: RolloutBuffer) -> list[list[int]]:
    taken = rollouts.take()
    assert taken.timesteps is not None
    return taken.timesteps.tolist()  # type: ignore[no-any-return]  # torch's is untyped


@pytest.mark.parametrize("time_limit", ["bootstrap", "terminal"])
def test_steps_are_counted_from_their_episodes_begin_over_several_rollouts(time_limit: Any) -> None:
    rollouts = filled(RolloutBuffer(time_limit=time_limit), 2)
    assert timesteps(rollouts) == [[0, 1], [0, 1]]
    assert timesteps(filled(rollouts)) == [[0, 1, 0], [2, 3, 4]]  # lane 0 was truncated, is again, and both end
    assert timesteps(filled(rollouts, 1)) == [[0], [0]]
    rollouts.cut(np.array([False, True]))  # its last step was taken already
    assert timesteps(filled(rollouts, 1)) == [[1], [0]]


def test_rollouts_go_on_from_their_state(tmp_path: Path) -> None:
    one, other = filled(RolloutBuffer(), 2), filled(RolloutBuffer(), 1)
    checkpoint.save(tmp_path / "state", one.state_dict())
    other.load_state_dict(checkpoint.load(tmp_path / "state"))
    assert len(other) == 4
    for rollouts in (one, other):
        rollouts.cut(np.array([False, True]))
        filled(rollouts, 1)
    ours, theirs = one.take(), other.take()
    assert ours.truncated.tolist() == [[False, True, False], [False, True, False]]
    for field in fields(Segments):
        mine, loaded = getattr(ours, field.name), getattr(theirs, field.name)
        assert mine is loaded is None or (mine.dtype == loaded.dtype and torch.equal(mine, loaded)), field.name
    empty = RolloutBuffer()
    empty.load_state_dict(one.state_dict())
    assert len(empty) == 0 and timesteps(filled(empty, 1)) == [[1], [1]]
    with pytest.raises(ValueError, match=r'expected time_limit="terminal", got \'bootstrap\''):
        RolloutBuffer(time_limit="terminal").load_state_dict(one.state_dict())


@pytest.mark.parametrize("reward", [1e39, -1e39, math.inf, math.nan])
def test_a_reward_that_float32_does_not_hold_is_refused_and_nothing_is_added(reward: float) -> None:
    rollouts, flags = filled(RolloutBuffer(), 1), np.zeros(2, np.bool_)
    with pytest.raises(ValueError, match="expected rewards that float32 holds"):
        rollouts.add(
            Steps(np.zeros((2, 1)), np.zeros(2, np.int64), np.array([0.0, reward]), flags, flags, np.zeros((2, 1)))
        )
    assert len(rollouts) == 2 and rollouts.take().rewards.shape == (2, 1)


# --- the clipped normal ---------------------------------------------------------------------------------------------

NORMALS = [(0.0, 1.0), (0.3, 0.5), (-2.0, 0.7), (1.0, 0.05), (0.0, 20.0)]


def normals(mean: float, std: float) -> tuple[ClippedNormal, torch.distributions.Normal]:
    numbers = T([mean, std], dtype=torch.float64)
    return ClippedNormal(numbers[:1], numbers[1:].log()), torch.distributions.Normal(numbers[:1], numbers[1:])


def log_prob(distribution: ClippedNormal, action: float) -> float:
    return float(distribution.log_prob(T([action], dtype=torch.float64)))


@pytest.mark.parametrize(("mean", "std"), NORMALS)
def test_the_clipped_normal_has_the_normals_density_inside_and_its_tails_mass_at_the_bounds(
    mean: float, std: float
) -> None:
    distribution, normal = normals(mean, std)
    for action in (-0.999, -0.5, 0.0, 0.3, 0.99999):
        expected = normal.log_prob(T(action, dtype=torch.float64)).item()
        assert log_prob(distribution, action) == pytest.approx(expected, rel=1e-12)
    low, (_, mirrored) = T(-1.0, dtype=torch.float64), normals(-mean, std)
    for bound, tail in ((-1.0, normal.cdf(low)), (1.0, mirrored.cdf(low))):
        assert math.exp(log_prob(distribution, bound)) == pytest.approx(tail.item(), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(("mean", "std"), NORMALS)
def test_the_clipped_normals_masses_and_density_make_one(mean: float, std: float) -> None:
    distribution, _ = normals(mean, std)
    edges = torch.linspace(-1, 1, 100_001, dtype=torch.float64)
    middles = ((edges[1:] + edges[:-1]) / 2).unsqueeze(-1)
    inside = float(distribution.log_prob(middles).exp().sum() * (edges[1] - edges[0]))
    total = inside + sum(math.exp(log_prob(distribution, bound)) for bound in (-1.0, 1.0))
    assert total == pytest.approx(1, abs=1e-8)


def test_only_what_lies_within_a_millionth_of_a_bound_counts_as_clipped() -> None:
    distribution, normal = normals(0.2, 0.5)
    for sign in (-1, 1):
        assert log_prob(distribution, sign * BOUND) == pytest.approx(log_prob(distribution, sign * 1.0), abs=1e-4)
        inside = T(sign * (1 - 3e-6), dtype=torch.float64)
        assert log_prob(distribution, inside.item()) == pytest.approx(normal.log_prob(inside).item())
    space = spaces.Box(np.array([-0.3, 2.1], np.float32), np.array([0.7, 9.4], np.float32))  # numbers that round
    scaling = Scaling(Spec(VECTOR, space))
    for raw in (space.low, space.high):
        assert bool((scaling.actions(torch.from_numpy(raw)).abs() >= BOUND).all())


def test_the_clipped_normal_sums_over_the_actions_dimensions() -> None:
    """Mean 0, σ = 1, action (1, 0, −1): twice the tail beyond 1, 0.158655, and 1/√2π."""
    distribution = ClippedNormal(torch.zeros(2, 3), torch.zeros(2, 3))
    expected = 2 * math.log(0.15865525) - 0.5 * math.log(2 * math.pi)
    found = distribution.log_prob(T([[1.0, 0.0, -1.0], [-1.0, 0.0, 1.0]]))
    assert found.tolist() == pytest.approx([expected, expected], rel=1e-6)


@pytest.mark.parametrize("mean", [-50.0, -3.0, 0.0, 3.0, 50.0])
@pytest.mark.parametrize("log_std", [-2.0, 0.0, 2.0])
def test_the_clipped_normal_is_finite_and_has_the_right_slope_however_far_its_mean_is(
    mean: float, log_std: float
) -> None:
    """The slope by μ is (a − μ)/σ² inside; at the upper bound it is φ(z)/(σ Φ(z)), z = (μ − 1)/σ: near −z/σ far off."""
    centre, spread = T([mean], requires_grad=True), T([log_std], requires_grad=True)
    std = math.exp(log_std)
    for action in (-1.0, 0.25, 1.0):
        score = ClippedNormal(centre, spread).log_prob(T([action]))
        slopes = torch.autograd.grad(score, (centre, spread))
        assert all(bool(value.isfinite().all()) for value in (score, *slopes))
        if action == 0.25:
            expected = (action - mean) / std**2
        else:
            z = action * (mean - action) / std
            tail = torch.special.log_ndtr(T(z, dtype=torch.float64)).item()
            expected = action * math.exp(-0.5 * z * z - 0.5 * math.log(2 * math.pi) - tail) / std
        assert slopes[0].item() == pytest.approx(expected, rel=0.02, abs=1e-6)  # 1 % off at z = −370: torch's log_ndtr


@pytest.mark.parametrize("action", [-1.0, 0.25, 1.0])
@pytest.mark.parametrize("distance", [-1e12, -1e6, -3e4, -1.5e4, 1.5e4, 3e4, 1e6, 1e12])
def test_the_clipped_normal_has_slopes_at_any_number_of_deviations(action: float, distance: float) -> None:
    """The mean lies so many σ below or above the action. Inside, the slope by μ is −z/σ; a bound's is 0 or none."""
    std = 1e-3
    centre, spread = T([action + distance * std], requires_grad=True), T([math.log(std)], requires_grad=True)
    score = ClippedNormal(centre, spread).log_prob(T([action]))
    slopes = torch.autograd.grad(score, (centre, spread))
    assert all(bool(value.isfinite().all()) for value in (score, *slopes))
    if action == 0.25:
        assert slopes[0].item() == pytest.approx(-distance / std, rel=1e-4)
    else:
        assert slopes[0].item() == 0
        assert score.item() == (0 if action * distance > 0 else pytest.approx(-500_007.8, rel=1e-6))


def test_masses_at_the_bounds_have_no_unit_and_make_one_with_the_density_of_raw_actions() -> None:
    scaling = Scaling(Spec(VECTOR, spaces.Box(-3, 5, (1,))))
    distribution = ScaledDistribution(ClippedNormal(T([0.4]), T([-0.5])), scaling)
    edges = torch.linspace(-3, 5, 20_001)
    middles = ((edges[1:] + edges[:-1]) / 2).unsqueeze(-1)
    inside = float(distribution.log_prob(middles).exp().double().sum() * 8 / 20_000)
    masses = distribution.log_prob(T([[-3.0], [5.0]])).exp()
    assert inside + float(masses.sum()) == pytest.approx(1, abs=1e-4)
    assert masses[1].item() == pytest.approx(0.5 * math.erfc(0.6 / (math.exp(-0.5) * math.sqrt(2))), rel=1e-5)


def test_samples_of_the_clipped_normal_lie_on_a_bound_as_often_as_its_mass_says() -> None:
    mean, log_std = T([0.6]), T([math.log(0.5)])
    distribution = ClippedNormal(mean.expand(40_000, 1), log_std.expand(40_000, 1))
    drawn = distribution.sample(torch.Generator().manual_seed(2))
    assert torch.equal(drawn, distribution.sample(torch.Generator().manual_seed(2)))
    for bound in (-1.0, 1.0):
        mass = float(ClippedNormal(mean, log_std).log_prob(T([bound])).exp())
        assert float((drawn == bound).float().mean()) == pytest.approx(mass, abs=0.01)
    inside = drawn[drawn.abs() < 0.1]
    density = float(ClippedNormal(mean, log_std).log_prob(T([0.0])).exp())
    assert len(inside) / 40_000 == pytest.approx(0.2 * density, rel=0.1)
    assert ClippedNormal(T([[1.5, -3.0, 0.5]]), torch.zeros(3)).mode().tolist() == [[1.0, -1.0, 0.5]]


def test_divergence_and_entropy_of_the_clipped_normal_are_the_normals() -> None:
    means, log_stds = random_numbers(0, 2, 5, 3), random_numbers(1, 2, 5, 3)
    one, other = (ClippedNormal(mean, log_std) for mean, log_std in zip(means, log_stds, strict=True))
    torch_one, torch_other = (torch.distributions.Normal(d.mean, d.log_std.exp()) for d in (one, other))
    expected = torch.distributions.kl_divergence(torch_one, torch_other).sum(-1)
    torch.testing.assert_close(one.divergence(other), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.divergence(one), torch.zeros(5))
    torch.testing.assert_close(one.entropy(), torch_one.entropy().sum(-1), rtol=1e-5, atol=1e-5)
    shared = ClippedNormal(means[0], log_stds[0, 0])  # σ that does not depend on the state
    assert shared.entropy().shape == (5,) and shared.divergence(one).shape == (5,)


# --- categorical divergence -----------------------------------------------------------------------------------------


def test_the_divergence_of_choices_by_hand() -> None:
    """(½, ½) from (¼, ¾): ½ log 2 + ½ log ⅔; the other way round ¼ log ½ + ¾ log 3/2."""
    even, uneven = Categorical(T([[0.0, 0.0]])), Categorical(T([[0.25, 0.75]]).log() + 9.0)
    torch.testing.assert_close(even.divergence(uneven), T([0.5 * math.log(2) + 0.5 * math.log(2 / 3)]))
    torch.testing.assert_close(uneven.divergence(even), T([0.25 * math.log(0.5) + 0.75 * math.log(1.5)]))
    assert even.divergence(even).tolist() == [0.0]


def test_the_divergence_of_choices_is_torchs() -> None:
    logits = 3 * random_numbers(0, 2, 4, 6, 5)
    expected = torch.distributions.kl_divergence(*(torch.distributions.Categorical(logits=each) for each in logits))
    found = Categorical(logits[0]).divergence(Categorical(logits[1]))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_divergence_of_choices_is_finite_with_large_logits() -> None:
    one, other = T([[1000.0, -1000.0]], requires_grad=True), T([[-1000.0, 1000.0]], requires_grad=True)
    divergence = Categorical(one).divergence(Categorical(other))
    assert divergence.tolist() == [2000.0]
    assert all(bool(slope.isfinite().all()) for slope in torch.autograd.grad(divergence, (one, other)))
    assert Categorical(one).divergence(Categorical(one)).tolist() == [0.0]


def test_an_illegal_choice_adds_nothing_to_the_divergence() -> None:
    """(½, 0, ½) from (¼, 0, ¾): as without the choice that neither makes."""
    one, other = T([[0.0, -math.inf, 0.0]], requires_grad=True), T([[0.25, 0.0, 0.75]]).log().requires_grad_()
    divergence = Categorical(one).divergence(Categorical(other))
    torch.testing.assert_close(divergence.detach(), T([0.5 * math.log(2) + 0.5 * math.log(2 / 3)]))
    assert all(bool(slope.isfinite().all()) for slope in torch.autograd.grad(divergence, (one, other)))


# --- networks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("inputs", "hidden"), [(3, (8, 8)), (12, (4, 6))])
def test_weights_are_orthogonal_of_their_gain_and_biases_zero(inputs: int, hidden: tuple[int, ...]) -> None:
    perceptron = MLP(inputs, 2, hidden)
    orthogonal_(perceptron, last_gain=0.5)
    for layer, gain in zip(perceptron.layers, (math.sqrt(2), math.sqrt(2), 0.5), strict=True):
        weight, bias = (p.detach() for p in layer.parameters())
        product = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
        torch.testing.assert_close(product, gain**2 * torch.eye(len(product)), rtol=1e-5, atol=1e-5)
        assert not bias.any()


def test_a_first_policy_is_nearly_uniform_or_a_normal_around_zero() -> None:
    observations = 5 * random_numbers(0, 50, 2)
    choices = OnPolicyActor(VECTOR, 4, (16,), discrete=True)(observations)
    assert isinstance(choices, Categorical)
    torch.testing.assert_close(choices.probs, torch.full((50, 4), 0.25), atol=0.02, rtol=0)
    numbers = OnPolicyActor(VECTOR, 3, (16,), discrete=False, initial_std=0.4)(observations)
    assert isinstance(numbers, ClippedNormal) and numbers.mean.shape == (50, 3)
    assert 0 < float(numbers.mean.detach().abs().max()) < 0.1
    torch.testing.assert_close(numbers.log_std.exp(), torch.full((50, 3), 0.4))
    assert OnPolicyValue(VECTOR, (16,))(observations).shape == (50,)


def test_the_spread_of_a_policy_is_learned_and_the_same_everywhere() -> None:
    actor = OnPolicyActor(VECTOR, 2, (4,), discrete=False)
    (slope,) = torch.autograd.grad(actor(random_numbers(0, 6, 2)).log_prob(torch.zeros(6, 2)).sum(), actor.log_std)
    torch.testing.assert_close(slope, torch.full((2,), -6.0), atol=0.1, rtol=0)  # −1 for each, near the mean
    assert OnPolicyActor(VECTOR, 2, (4,), discrete=True).log_std is None


def test_units_of_a_network_are_bounded_by_one() -> None:
    """tanh: however large the observation, the value is no more than the last layer's weights together."""
    value = OnPolicyValue(VECTOR, (8,))
    most = float(value.mlp.layers[-1].weight.detach().abs().sum())  # type: ignore[union-attr]  # a Linear
    assert float(value(1e6 * random_numbers(0, 100, 2)).detach().abs().max()) <= most + 1e-5


# --- the step of TRPO -----------------------------------------------------------------------------------------------


def fixed_actor() -> OnPolicyActor:
    actor = OnPolicyActor(VECTOR, 3, (4,), discrete=True)
    for parameter in actor.mlp.layers[0].parameters():
        parameter.requires_grad_(False)
    return actor


def test_trpo_keeps_fixed_what_a_users_module_fixes() -> None:
    algorithm = TRPO(TRPOConfig(), SPEC, networks={"actor": fixed_actor})
    own = algorithm.learner.parameters_of("actor")
    before = {name: value.clone() for name, value in own.items()}
    rollout = segments(steps=12)
    algorithm.update(replace(rollout, actions=rollout.actions + 1))
    moved = {name for name, value in own.items() if not torch.equal(value, before[name])}
    assert moved == {"mlp.layers.1.weight", "mlp.layers.1.bias"}


@pytest.mark.parametrize(
    ("advantages", "changes", "accepted"),
    [
        ([1.0, -1.0, 1.0, -1.0], {}, 0.64),
        ([1.0, -1.0, 1.0, -1.0], {"backtracks": 3}, 0.64),
        ([1.0, -1.0, 1.0, -1.0], {"backtracks": 2}, 0.0),
        ([1.0, -1.0, 1.0, -1.0], {"shrinkage": 1.0}, 0.0),
        ([1.0, -1.0, 1.0, -1.0], {"max_divergence": 2.2, "shrinkage": 0.5}, 0.5),
        ([0.0, 0.0, 0.0, 0.0], {}, 0.0),
    ],
)
def test_trpo_takes_the_first_step_that_is_within_bounds_or_stays(
    advantages: list[float], changes: dict[str, Any], accepted: float
) -> None:
    """Where nothing is seen the mean is 0, and σ alone can learn that actions of 0 are good and ±0.9 bad.

    With log σ from 0 to −x the KL is −x + e^(2x)/2 − ½, near x² for small x: for δ = 1 it is 2.19 at x = 1, 1.18 at
    0.8 and 0.66 at 0.64. For δ = 2.2 it is 7.7 at √2.2 and 0.96 at half of it.
    """
    config = TRPOConfig(**{"max_divergence": 1.0, "damping": 0.0, "hidden_sizes": (4,), **changes})
    algorithm = TRPO(config, Spec(VECTOR, spaces.Box(-1, 1, (1,))))
    own = algorithm.learner.parameters_of("actor")
    before = {name: value.clone() for name, value in own.items()}
    actions = T([[0.0], [0.9], [0.0], [-0.9]])
    metrics = algorithm.improve(Experience(torch.zeros(4, 2), actions, T(advantages), torch.zeros(4)))
    assert float(metrics["accepted"]) == pytest.approx(accepted)
    x = accepted * math.sqrt(config.max_divergence)
    assert own["log_std"].item() == pytest.approx(-x, abs=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in own.items() if name != "log_std" or not accepted)
    assert all(bool(value.isfinite()) for value in metrics.values())
    if accepted:
        assert float(metrics["divergence"]) == pytest.approx(-x + math.exp(2 * x) / 2 - 0.5, rel=1e-4)
        ratios = math.exp(x), math.exp(x - 0.405 * (math.exp(2 * x) - 1))
        assert float(metrics["gain"]) == pytest.approx((ratios[0] - ratios[1]) / 2, rel=1e-4)
    else:  # the policy stays, so nothing is gained and nothing moves, whatever the last step tried would have done
        assert (float(metrics["gain"]), float(metrics["divergence"])) == (0.0, 0.0)
