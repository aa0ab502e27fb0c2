"""Distributions against numbers worked out by hand, closed forms and torch.distributions."""

import math

import pytest
import torch
from torch.distributions import Independent, TransformedDistribution
from torch.distributions import Normal as TorchNormal
from torch.distributions.transforms import TanhTransform

from herdbook.core.distributions import (
    BOUND,
    Categorical,
    Deterministic,
    EpsilonGreedy,
    Normal,
    SquashedNormal,
    log_tanh_slope,
    normal_log_prob,
)

HALF_LOG_2PI = 0.9189385332046727


@pytest.mark.parametrize(
    ("x", "mean", "std", "expected"),
    [
        ([0.0], [0.0], [1.0], -HALF_LOG_2PI),
        ([1.0], [0.0], [1.0], -0.5 - HALF_LOG_2PI),
        ([2.0], [0.0], [2.0], -0.5 - HALF_LOG_2PI - math.log(2)),
        ([-1.0, 3.0], [1.0, 3.0], [2.0, 0.5], -0.5 - 2 * HALF_LOG_2PI),  # log 2 and log ½ cancel
    ],
)
def test_normal_log_prob_by_hand(x: list[float], mean: list[float], std: list[float], expected: float) -> None:
    log_prob = normal_log_prob(torch.tensor(x), torch.tensor(mean), torch.tensor(std).log())
    assert float(log_prob) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("u", "expected"),
    [
        (0.0, 0.0),
        (1.0, math.log(1 - math.tanh(1) ** 2)),
        (-1.0, math.log(1 - math.tanh(1) ** 2)),
        (20.0, 2 * (math.log(2) - 20)),  # 1 − tanh² is 0 in float32 here
        (-20.0, 2 * (math.log(2) - 20)),
        (1000.0, 2 * (math.log(2) - 1000)),
        (-1000.0, 2 * (math.log(2) - 1000)),
    ],
)
def test_log_tanh_slope_is_finite_in_both_tails(u: float, expected: float) -> None:
    point = torch.tensor(u, requires_grad=True)
    slope = log_tanh_slope(point)
    assert slope.item() == pytest.approx(expected, rel=1e-6, abs=1e-6)
    (gradient,) = torch.autograd.grad(slope, point)
    assert float(gradient) == pytest.approx(-2 * math.tanh(u), abs=1e-6)


def test_squashed_log_prob_at_the_bound_by_hand() -> None:
    """a = ±1 is scored as ±(1 − 1e-6): u = ½ log((2 − 1e-6) / 1e-6), slope 1 − (1 − 1e-6)²."""
    u = 0.5 * math.log((2 - 1e-6) / 1e-6)
    expected = -0.5 * u * u - HALF_LOG_2PI - math.log(1 - (1 - 1e-6) ** 2)
    distribution = SquashedNormal(torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    for bound in (1.0, -1.0):
        assert float(distribution.log_prob(torch.tensor([bound], dtype=torch.float64))) == pytest.approx(expected)
    assert torch.equal(distribution.log_prob(torch.tensor([1.0])), distribution.log_prob(torch.tensor([BOUND])))


def test_squashed_matches_torch_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_std, noise = (torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    reference = TransformedDistribution(Independent(TorchNormal(mean, log_std.exp()), 1), [TanhTransform()])
    distribution = SquashedNormal(mean, log_std)
    actions, log_prob = distribution.rsample_with_log_prob(noise)
    torch.testing.assert_close(actions, (mean + log_std.exp() * noise).tanh())
    torch.testing.assert_close(log_prob, reference.log_prob(actions), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(distribution.log_prob(actions), log_prob, rtol=1e-6, atol=1e-6)


def test_squashed_density_integrates_to_one() -> None:
    edges = torch.linspace(-1, 1, 200_001, dtype=torch.float64)
    middles = ((edges[1:] + edges[:-1]) / 2).unsqueeze(-1)
    distribution = SquashedNormal(torch.tensor([0.4], dtype=torch.float64), torch.tensor([-0.5], dtype=torch.float64))
    assert float(distribution.log_prob(middles).exp().sum() * (edges[1] - edges[0])) == pytest.approx(1, abs=1e-5)


def test_candidates_lead_the_batch() -> None:
    distribution = SquashedNormal(torch.randn(4, 2), torch.randn(4, 2))
    noise = torch.randn(7, 4, 2)
    actions, log_prob = distribution.rsample_with_log_prob(noise)
    assert actions.shape == (7, 4, 2) and log_prob.shape == (7, 4)
    for number in range(7):
        one, one_log_prob = distribution.rsample_with_log_prob(noise[number])
        torch.testing.assert_close(actions[number], one)
        torch.testing.assert_close(log_prob[number], one_log_prob)


def test_normal_is_clipped_only_where_it_says_so() -> None:
    mean = torch.tensor([[1.5, -3.0]])
    for clip, expected in ((True, [[1.0, -1.0]]), (False, [[1.5, -3.0]])):
        distribution = Normal(mean, torch.full_like(mean, -20.0), clip=clip)
        torch.testing.assert_close(distribution.mode(), torch.tensor(expected))
        torch.testing.assert_close(distribution.sample(torch.Generator().manual_seed(0)), torch.tensor(expected))
    assert torch.equal(
        Normal(mean, torch.zeros(2), clip=True).log_prob(mean), Normal(mean, torch.zeros(2)).log_prob(mean)
    )


def test_normal_entropy_by_hand() -> None:
    """½ log(2πe σ²) for each dimension, whether log σ depends on the state or not."""
    expected = torch.full((3,), 2 * (0.5 + HALF_LOG_2PI) + math.log(2))
    for log_std in (torch.tensor([math.log(2), 0.0]), torch.tensor([math.log(2), 0.0]).expand(3, 2)):
        torch.testing.assert_close(Normal(torch.zeros(3, 2), log_std).entropy(), expected)


@pytest.mark.parametrize("kind", [Normal, SquashedNormal])
def test_samples_follow_their_generator_and_their_density(kind: type[Normal] | type[SquashedNormal]) -> None:
    distribution = kind(torch.full((20_000, 1), 0.3), torch.full((20_000, 1), -0.7))
    samples = distribution.sample(torch.Generator().manual_seed(3))
    assert torch.equal(samples, distribution.sample(torch.Generator().manual_seed(3)))
    assert not torch.equal(samples, distribution.sample(torch.Generator().manual_seed(4)))
    raw = samples if kind is Normal else samples.clamp(-BOUND, BOUND).atanh()
    assert float(raw.mean()) == pytest.approx(0.3, abs=0.02)
    assert float(raw.std()) == pytest.approx(math.exp(-0.7), abs=0.02)


def test_categorical_by_hand() -> None:
    distribution = Categorical(torch.tensor([[math.log(1.0), math.log(2.0), math.log(5.0)]]) + 7.0)
    torch.testing.assert_close(distribution.probs, torch.tensor([[0.125, 0.25, 0.625]]))
    torch.testing.assert_close(distribution.log_prob(torch.tensor([1])), torch.tensor([math.log(0.25)]))
    assert distribution.mode().tolist() == [2]
    entropy = -(0.125 * math.log(0.125) + 0.25 * math.log(0.25) + 0.625 * math.log(0.625))
    torch.testing.assert_close(distribution.entropy(), torch.tensor([entropy]))


def test_categorical_with_illegal_actions_has_finite_entropy_and_never_draws_them() -> None:
    logits = torch.tensor([[0.0, -math.inf, 0.0], [-math.inf, -math.inf, 3.0]], requires_grad=True)
    distribution = Categorical(logits)
    entropy = distribution.entropy()
    torch.testing.assert_close(entropy.detach(), torch.tensor([math.log(2), 0.0]))
    (gradient,) = torch.autograd.grad(entropy.sum(), logits)
    assert bool(gradient.isfinite().all())
    drawn = torch.stack([distribution.sample(torch.Generator().manual_seed(seed)) for seed in range(50)])
    assert set(drawn[:, 0].tolist()) == {0, 2}
    assert set(drawn[:, 1].tolist()) == {2}
    assert distribution.log_prob(torch.tensor([1, 2])).tolist() == [-math.inf, 0.0]


def test_categorical_frequencies_and_leading_axes() -> None:
    distribution = Categorical(torch.tensor([0.1, 0.2, 0.7]).log().expand(2, 10_000, 3))
    drawn = distribution.sample(torch.Generator().manual_seed(0))
    assert drawn.shape == (2, 10_000)
    frequencies = torch.bincount(drawn.flatten(), minlength=3) / drawn.numel()
    torch.testing.assert_close(frequencies, torch.tensor([0.1, 0.2, 0.7]), atol=0.01, rtol=0)


def test_a_deterministic_policy_has_no_density() -> None:
    distribution = Deterministic(torch.ones(2, 1))
    assert torch.equal(distribution.sample(), distribution.mode())
    with pytest.raises(TypeError, match="no density"):
        distribution.log_prob(torch.ones(2, 1))


@pytest.mark.parametrize(
    ("legal", "probs"), [(None, [0.1, 0.1, 0.1, 0.7]), ([True, False, True, False], [0.8, 0.0, 0.2, 0.0])]
)
def test_epsilon_greedy_draws_what_its_probabilities_say(legal: list[bool] | None, probs: list[float]) -> None:
    values = torch.tensor([3.0, 2.0, 1.0, 4.0]).expand(20_000, 4)
    policy = EpsilonGreedy(values, None if legal is None else torch.tensor(legal), 0.4)
    torch.testing.assert_close(policy.probs[0], torch.tensor(probs))
    drawn = policy.sample(torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(shares, torch.tensor(probs), atol=0.012, rtol=0)  # four standard deviations
    assert torch.equal(drawn, policy.sample(torch.Generator().manual_seed(0)))
    torch.testing.assert_close(policy.log_prob(drawn), policy.probs[0].log()[drawn])
    assert policy.mode().unique().tolist() == [probs.index(max(probs))]
    assert EpsilonGreedy(values, policy.legal, 0.0).sample().unique().tolist() == policy.mode().unique().tolist()
