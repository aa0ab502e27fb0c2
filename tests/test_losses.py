"""Every pure loss function against numbers that can be checked on paper."""

import math

import pytest
import torch
from torch import Tensor

from herdbook.offline import bc, bcq, cql, discrete_bcq, discrete_cql, iql, td3_bc

T = torch.tensor
INF = math.inf


# --- IQL ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("difference", "expectile", "expected"),
    [
        (2.0, 0.7, 0.7 * 4),
        (-2.0, 0.7, 0.3 * 4),
        (0.0, 0.7, 0.0),
        (-0.0, 0.7, 0.0),
        (3.0, 0.5, 4.5),  # half the square on both sides
        (-3.0, 0.5, 4.5),
        (-3.0, 1.0, 0.0),  # both edges: only one side counts
        (3.0, 1.0, 9.0),
        (3.0, 0.0, 0.0),
        (-3.0, 0.0, 9.0),
    ],
)
def test_expectile_loss(difference: float, expectile: float, expected: float) -> None:
    assert float(iql.expectile_loss(T(difference), expectile)) == pytest.approx(expected)


def test_expectile_loss_has_no_slope_at_zero() -> None:
    difference = T([0.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(iql.expectile_loss(difference, 0.9).sum(), difference)
    assert gradient.tolist() == [0.0]


def test_the_least_expectile_loss_is_the_expectile() -> None:
    """Of 0 and 1 with equal odds it is τ: τ (1 − v) = (1 − τ) v."""
    values = torch.linspace(0, 1, 1001, dtype=torch.float64)
    for expectile in (0.1, 0.5, 0.7, 0.9):
        losses = [iql.expectile_loss(T([0.0, 1.0], dtype=torch.float64) - v, expectile).mean() for v in values]
        assert float(values[torch.stack(losses).argmin()]) == pytest.approx(expectile, abs=1e-3)


@pytest.mark.parametrize(
    ("advantage", "beta", "expected"),
    [
        (0.0, 3.0, 1.0),
        (1.0, 3.0, math.exp(3)),
        (-1.0, 3.0, math.exp(-3)),
        (math.log(100) / 3, 3.0, 100.0),
        (2.0, 3.0, 100.0),  # e⁶ = 403, clipped
        (1e6, 3.0, 100.0),  # e^∞, clipped
        (-1e6, 3.0, 0.0),
        (5.0, 0.0, 1.0),
    ],
)
def test_advantage_weight(advantage: float, beta: float, expected: float) -> None:
    assert float(iql.advantage_weight(T(advantage), beta, 100.0)) == pytest.approx(expected, rel=1e-5)


# --- TD3+BC ---------------------------------------------------------------------------------------------------------


def test_td3_bc_critic_loss_is_the_sum_over_critics_of_means_over_the_batch() -> None:
    q, target = T([[1.0, 2.0], [3.0, 0.0]]), T([0.0, 4.0])
    assert float(td3_bc.critic_loss(q, target)) == (1 + 4) / 2 + (9 + 16) / 2


def test_td3_bc_actor_loss() -> None:
    """λ = 2.5 / mean(1, 3) = 1.25; mean Q = −1; squares 1, 0, 4, 1 → mean 1.5."""
    q = T([1.0, -3.0], requires_grad=True)
    actions = T([[0.0, 0.5], [1.0, 0.0]], requires_grad=True)
    loss = td3_bc.actor_loss(q, actions, T([[1.0, 0.5], [-1.0, 1.0]]), 2.5)
    assert loss.item() == pytest.approx(1.25 + 1.5)
    by_q, by_actions = torch.autograd.grad(loss, (q, actions))
    assert by_q.tolist() == [-0.625, -0.625]  # −λ / B: λ is a constant
    assert by_actions.tolist() == [[-0.5, 0.0], [1.0, -0.5]]  # 2 (π − a) / (B A)


@pytest.mark.parametrize("alpha", [0.0, 2.5, 10.0])
def test_td3_bc_actor_loss_does_not_change_with_the_scale_of_q(alpha: float) -> None:
    q, actions, data = torch.randn(6).abs(), torch.rand(6, 2), torch.rand(6, 2)
    expected = -alpha + (actions - data).square().mean()
    for scale in (1e-3, 1.0, 1e3):
        torch.testing.assert_close(td3_bc.actor_loss(scale * q, actions, data, alpha), expected)


# --- CQL ------------------------------------------------------------------------------------------------------------


def test_conservative_gap_by_hand_over_three_n_candidates() -> None:
    """n = 2, A = 1, so that U[−1, 1] has density ½. Each candidate counts e^Q / density:

    critic 1: 1/.5 + 3/.5 + 4/.5 + 5/1 + 2/.5 + .5/.25 = 27, data Q log 3 → log 9
    critic 2: 2 + 2 + 2 + 1 + 2 + 4 = 13 (every Q is 0), data Q 0 → log 13
    """
    q = T([[1.0, 3.0, 4.0, 5.0, 2.0, 0.5], [1.0] * 6]).log().unsqueeze(-1)  # [2, 6, 1]
    density = T([0.5, 0.5, 0.5, 1.0, 0.5, 0.25]).log().unsqueeze(-1)  # [6, 1]
    gap = cql.conservative_gap(q, T([[math.log(3)], [0.0]]), density)
    torch.testing.assert_close(gap, T([[math.log(9)], [math.log(13)]]))


def test_conservative_gap_without_densities_and_with_a_temperature() -> None:
    q = T([[[0.0], [2 * math.log(3)]]])  # T log(e⁰ + e^(2 log 3 / T)) with T = 2: 2 log(1 + 3)
    torch.testing.assert_close(cql.conservative_gap(q, T([[1.0]]), 0.0, 2.0), T([[2 * math.log(4) - 1]]))
    torch.testing.assert_close(cql.conservative_gap(q, T([[1.0]]), 0.0), T([[math.log(10) - 1]]))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_conservative_gap_estimates_eq_2_at_every_temperature(temperature: float) -> None:
    """T log Σ_a exp(Q(s, a) / T), by actions drawn from a proposal: their mean of exp(Q / T) / μ is the sum.

    Four actions with the values 0, 1, 2, −1, each drawn as often as μ says, in 10 draws.
    """
    values, drawn = T([0.0, 1.0, 2.0, -1.0]), T([1, 2, 3, 4])
    q, density = values.repeat_interleave(drawn), (drawn / 10).log().repeat_interleave(drawn)
    gap = cql.conservative_gap(q[None, :, None], T([[0.0]]), density[:, None], temperature)
    exact = temperature * math.log(sum(math.exp(value / temperature) for value in values.tolist()))
    assert gap.item() - temperature * math.log(10) == pytest.approx(exact, rel=1e-5)


def test_conservative_gap_survives_large_values() -> None:
    q = T([[[1e4], [1e4 - 50]]])
    torch.testing.assert_close(cql.conservative_gap(q, T([[1e4]]), 0.0), T([[0.0]]), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("log_multiplier", "expected"),
    [(0.0, 1.0), (math.log(2), 2.0), (-INF, 0.0), (-1e3, 0.0), (math.log(1e6) + 1, 1e6), (1e3, 1e6), (INF, 1e6)],
)
def test_lagrange_multiplier_stays_in_zero_to_a_million(log_multiplier: float, expected: float) -> None:
    assert float(cql.lagrange_multiplier(T(log_multiplier))) == pytest.approx(expected, rel=1e-5)


# --- discrete CQL ---------------------------------------------------------------------------------------------------


def test_discrete_conservative_loss() -> None:
    q = T([[0.0, math.log(3)], [math.log(7), 0.0]])
    expected = (math.log(4) - math.log(3) + math.log(8) - 0) / 2
    assert float(discrete_cql.conservative_loss(q, T([1, 1]))) == pytest.approx(expected)


def test_double_q_target_chooses_online_and_values_slow() -> None:
    online = T([[1.0, 5.0, 2.0], [9.0, 0.0, 0.0]])
    slow = T([[100.0, 3.0, 50.0], [-4.0, 70.0, 80.0]])
    target = discrete_cql.double_q_target(T([1.0, 2.0]), T([0.5, 0.0]), online, slow)
    assert target.tolist() == [1 + 0.5 * 3, 2.0]


# --- discrete BCQ ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probabilities", "threshold", "legal"),
    [
        ([0.6, 0.3, 0.1], 0.3, [True, True, False]),  # ratios 1, 0.5, 1/6
        ([0.6, 0.3, 0.1], 0.0, [True, True, True]),
        ([0.5, 0.25, 0.25], 0.5, [True, False, False]),  # a ratio of just the threshold is not enough
        ([0.25, 0.25, 0.5], 0.4999, [True, True, True]),
        ([0.5, 0.5, 0.0], 0.0, [True, True, False]),  # never seen: the logit is −inf
        ([1.0, 0.0, 0.0], 0.3, [True, False, False]),
    ],
)
def test_constrained_q(probabilities: list[float], threshold: float, legal: list[bool]) -> None:
    q = T([-1.0, -2.0, -3.0])
    constrained = discrete_bcq.constrained_q(q, T(probabilities).log() + 4.0, threshold)  # any normaliser
    assert constrained.tolist() == [value if ok else -INF for value, ok in zip(q.tolist(), legal, strict=True)]


def test_the_mask_is_never_empty_up_to_the_largest_threshold_that_the_config_takes() -> None:
    largest = 0.9999
    discrete_bcq.DiscreteBCQConfig(threshold=largest)
    with pytest.raises(ValueError, match="expected threshold in"):
        discrete_bcq.DiscreteBCQConfig(threshold=1 - 1e-9)  # 1 in float32: nothing would be left
    logits = torch.randn(1000, 4) * 10
    assert bool(discrete_bcq.constrained_q(torch.zeros(1000, 4), logits, largest).isfinite().any(-1).all())


# --- BCQ ------------------------------------------------------------------------------------------------------------


def _vae(mean: list[float], log_std: list[float], kl_weight: float) -> float:
    loss = bcq.vae_loss(T([[0.5, 0.0]]), T([[0.0, 1.0]]), T([mean]), T([log_std]), kl_weight)
    return float(loss)


@pytest.mark.parametrize(
    ("mean", "log_std", "kl_weight", "kl"),
    [
        ([0.0, 0.0], [0.0, 0.0], 0.5, 0.0),  # the prior itself
        ([1.0, 0.0], [0.0, 0.0], 0.5, 0.25),  # ½ μ² for one of two dimensions
        ([0.0, 0.0], [math.log(2)] * 2, 1.0, 0.5 * (4 - 1 - 2 * math.log(2))),
        ([0.0, 0.0], [-4.0, -4.0], 1.0, 0.5 * (math.exp(-8) - 1 + 8)),
    ],
)
def test_vae_loss_is_a_mean_over_dimensions_too(
    mean: list[float], log_std: list[float], kl_weight: float, kl: float
) -> None:
    assert _vae(mean, log_std, kl_weight) == pytest.approx((0.25 + 1) / 2 + kl_weight * kl)
    assert _vae(mean, log_std, 0.0) == pytest.approx(0.625)


@pytest.mark.parametrize(
    ("soft_minimum", "expected"),
    [
        (1.0, [1 + 0.9 * 2.0, 5.0]),  # minima 1, 2 | 0, 0
        (0.0, [1 + 0.9 * 7.0, 5.0]),  # maxima 7, 3 | 8, 9
        (0.75, [1 + 0.9 * 2.5, 5.0]),  # 0.75·1 + 0.25·7 = 2.5 beats 0.75·2 + 0.25·3 = 2.25
    ],
)
def test_soft_clipped_target_mixes_critics_before_it_chooses_a_candidate(
    soft_minimum: float, expected: list[float]
) -> None:
    next_q = T([[[1.0, 0.0], [2.0, 9.0]], [[7.0, 8.0], [3.0, 0.0]]])  # [critics, N, B]
    target = bcq.soft_clipped_target(next_q, T([1.0, 5.0]), T([0.9, 0.0]), soft_minimum)
    torch.testing.assert_close(target, T(expected))


# --- BC -------------------------------------------------------------------------------------------------------------


def test_regression_loss_is_a_mean_over_batch_and_dimensions() -> None:
    assert float(bc.regression_loss(T([[0.0, 1.0], [1.0, 0.0]]), T([[1.0, 1.0], [-1.0, 1.0]]))) == 6 / 4


def test_classification_loss() -> None:
    logits: Tensor = T([[0.0, math.log(3)], [math.log(4), 0.0]])
    expected = -(math.log(0.75) + math.log(0.2)) / 2
    assert float(bc.classification_loss(logits, T([1, 1]))) == pytest.approx(expected)
