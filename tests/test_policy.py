"""Raw in, raw out: the change of units between environment and networks, and policies on top of it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from herdbook.core.distributions import Categorical, ClippedNormal, Deterministic, SquashedNormal
from herdbook.core.policy import FeedForwardPolicy, ScaledDistribution, Scaling, greedy
from herdbook.core.spaces import check_action_space
from herdbook.core.types import Spec, Step, Transitions

VECTOR = spaces.Box(-np.inf, np.inf, (2,))


def box(low: list[float], high: list[float]) -> spaces.Box:
    return spaces.Box(np.array(low, np.float32), np.array(high, np.float32))


def scaling(actions: spaces.Space[Any], **kwargs: Any) -> Scaling:
    mean, std = np.array([1.0, -2.0]), np.array([0.999, 3.999])
    return Scaling(Spec(VECTOR, actions, observation_mean=mean, observation_std=std), **kwargs)


def step(observations: Tensor) -> Step:
    count = len(observations)
    first = torch.zeros(count, dtype=torch.bool)
    return Step(observations, torch.zeros(count), torch.zeros(count), first, first)


@pytest.mark.parametrize(
    ("space", "raw", "scaled"),
    [
        (box([-1, -1], [1, 1]), [[-1.0, 0.25]], [[-1.0, 0.25]]),
        (box([-2, 0], [2, 5]), [[-2.0, 0.0], [2.0, 5.0], [1.0, 1.25]], [[-1, -1], [1, 1], [0.5, -0.5]]),
        (box([10], [11]), [[10.0], [10.75]], [[-1.0], [0.5]]),
        (spaces.Discrete(3), [0, 2], [0, 2]),
        (spaces.Discrete(3, start=1), [1, 3], [0, 2]),
        (spaces.Discrete(3, start=-5), [-5, -3], [0, 2]),
    ],
)
def test_actions_to_the_networks_units_and_back(space: spaces.Space[Any], raw: Any, scaled: Any) -> None:
    own = scaling(space)
    dtype = torch.int64 if isinstance(space, spaces.Discrete) else torch.float32
    raw_actions, network_actions = torch.tensor(raw, dtype=dtype), torch.tensor(scaled, dtype=dtype)
    assert torch.equal(own.actions(raw_actions), network_actions)
    assert torch.equal(own.raw_actions(network_actions), raw_actions)
    assert own.action_size == (3 if dtype == torch.int64 else len(raw[0]))


def test_rounding_never_leaves_the_action_space() -> None:
    generator = np.random.default_rng(0)
    low = generator.normal(size=5000).astype(np.float32)
    high = low + generator.exponential(size=5000).astype(np.float32)
    space = spaces.Box(low, high)
    own = scaling(space)
    for bound in (-1.0, 1.0):
        assert space.contains(own.raw_actions(torch.full((5000,), bound)).numpy())


def test_a_box_of_any_shape_is_flat_to_the_networks() -> None:
    low = np.array([[0.0], [-4.0]], np.float32)
    own = scaling(spaces.Box(low, low + 2))
    assert own.action_size == 2
    assert own.raw_actions(torch.tensor([[1.0, -1.0]])).tolist() == [[2.0, -4.0]]


@pytest.mark.parametrize("space", [spaces.Box(-np.inf, np.inf, (2,)), spaces.MultiBinary(2), spaces.MultiDiscrete([2])])
def test_actions_are_a_bounded_box_or_discrete(space: spaces.Space[Any]) -> None:
    with pytest.raises(ValueError, match="expected Discrete actions or a bounded Box, got"):
        scaling(space)


def test_an_action_that_cannot_move_is_refused() -> None:
    with pytest.raises(ValueError, match="low < high"):
        check_action_space(box([0, 1], [1, 1]), "box", "cql")


def test_observations_are_standardised_by_hand() -> None:
    """(o − μ) / (σ + 1e-3) with σ + 1e-3 = 1 and 4."""
    observations = torch.tensor([[1.0, -2.0], [3.0, 6.0]])
    scaled = scaling(box([-1], [1]), standardise=True).observations(observations)
    torch.testing.assert_close(scaled, torch.tensor([[0.0, 0.0], [2.0, 2.0]]))
    assert scaling(box([-1], [1])).observations(observations) is observations


def test_standardising_without_statistics_says_so() -> None:
    with pytest.raises(ValueError, match="expected observation_mean and _std in the Spec"):
        Scaling(Spec(VECTOR, box([-1], [1])), standardise=True)


@pytest.mark.parametrize("space", [spaces.Box(0, 255, (8, 8, 3), np.uint8), spaces.Discrete(4)])
def test_what_is_no_vector_is_never_standardised(space: spaces.Space[Any]) -> None:
    observations = torch.ones(2, dtype=torch.uint8)
    assert Scaling(Spec(space, box([-1], [1])), standardise=True).observations(observations) is observations


@pytest.mark.parametrize("lead", [(4,), (3, 4)])
def test_a_batch_is_scaled_whole_and_with_any_leading_axes(lead: tuple[int, ...]) -> None:
    own = scaling(box([-2], [2]), standardise=True)
    batch = Transitions(
        observations=torch.randn(*lead, 2),
        actions=torch.full((*lead, 1), 2.0),
        rewards=torch.randn(lead),
        discounts=torch.rand(lead),
        next_observations=torch.randn(*lead, 2),
        next_actions=torch.full((*lead, 1), -1.0),
    )
    scaled = own(batch)
    assert torch.equal(scaled.observations, own.observations(batch.observations))
    assert torch.equal(scaled.next_observations, own.observations(batch.next_observations))
    assert scaled.actions.unique().tolist() == [1.0]
    assert scaled.next_actions is not None and scaled.next_actions.unique().tolist() == [-0.5]
    assert scaled.rewards is batch.rewards and scaled.discounts is batch.discounts


def test_the_density_of_raw_actions_integrates_to_one() -> None:
    base = SquashedNormal(torch.tensor([0.3]), torch.tensor([-1.0]))
    distribution = ScaledDistribution(base, scaling(box([0], [5])))
    edges = torch.linspace(0, 5, 20_001)
    middles = ((edges[1:] + edges[:-1]) / 2).unsqueeze(-1)
    assert float(distribution.log_prob(middles).exp().mean()) * 5 == pytest.approx(1, abs=1e-3)


def test_discrete_log_prob_is_of_the_raw_action() -> None:
    base = Categorical(torch.tensor([[0.2, 0.3, 0.5]]).log())
    distribution = ScaledDistribution(base, scaling(spaces.Discrete(3, start=7)))
    torch.testing.assert_close(distribution.log_prob(torch.tensor([8])).exp(), torch.tensor([0.3]))
    torch.testing.assert_close(distribution.probs, torch.tensor([[0.2, 0.3, 0.5]]))
    assert distribution.mode().tolist() == [9]
    assert distribution.sample(torch.Generator().manual_seed(0)).item() in (7, 8, 9)


def test_greedy_puts_all_mass_on_the_mode() -> None:
    distribution = greedy(Categorical(torch.tensor([[0.1, 2.0, -torch.inf]])))
    assert distribution.probs.tolist() == [[0.0, 1.0, 0.0]]
    assert distribution.entropy().tolist() == [0.0]
    value = torch.tensor([[0.5]])
    assert greedy(Deterministic(value)).mode() is value


def test_a_policy_scales_what_it_sees_and_what_it_does() -> None:
    seen: list[Tensor] = []

    def actor(observations: Tensor) -> SquashedNormal:
        seen.append(observations)
        return SquashedNormal(torch.zeros(len(observations), 1), torch.zeros(len(observations), 1))

    own = scaling(box([0], [5]), standardise=True)
    observations = torch.tensor([[1.0, -2.0], [2.0, 2.0]])
    for deterministic in (True, False):
        policy = FeedForwardPolicy(own, actor, deterministic=deterministic)
        assert policy.initial(2) is None
        actions, carry = policy(step(observations), None, torch.Generator().manual_seed(0))
        assert carry is None
        torch.testing.assert_close(seen[-1], torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
        assert (actions.flatten().tolist() == [2.5, 2.5]) is deterministic
        assert bool(((actions >= 0) & (actions <= 5)).all())


def test_a_deterministic_policys_distribution_is_its_action() -> None:
    policy = FeedForwardPolicy(scaling(spaces.Discrete(3, start=1)), lambda o: Categorical(o @ torch.randn(2, 3)))
    torch.manual_seed(0)
    distribution, _ = policy.distribution(step(torch.randn(4, 2)), None)
    assert distribution.log_prob(distribution.mode()).tolist() == [0.0] * 4


@pytest.mark.parametrize(("low", "high"), [(1000.1, 1000.3), (-7e4, -6.9998e4), (-0.3, 0.7), (1e6, 1.5e6), (-2, 2)])
def test_an_action_on_a_bound_is_scored_as_on_it_however_narrow_and_far_the_box_is(low: float, high: float) -> None:
    """Whether the environment clipped there, or the policy: [1000.1, 1000.3] has 3,277 numbers of float32."""
    scaling = Scaling(Spec(spaces.Box(-1, 1, (1,)), box([low], [high])))
    base = ClippedNormal(torch.zeros(1), torch.zeros(1))
    distribution = ScaledDistribution(base, scaling)
    bounds = torch.tensor([[low], [high]])
    played = scaling.raw_actions(torch.tensor([[-1.0], [1.0]]))
    mass = math.log(0.5 * math.erfc(1 / math.sqrt(2)))
    for actions in (bounds, played):
        assert distribution.log_prob(actions).tolist() == pytest.approx([mass, mass], rel=1e-6)
    middle = torch.tensor([[(low + high) / 2]])
    density = -math.log(math.sqrt(2 * math.pi) * (high - low) / 2)
    assert float(distribution.log_prob(middle)) == pytest.approx(density, abs=1e-3)


def test_a_box_that_float32_holds_well_is_scaled_as_before() -> None:
    for low, high in ((-2, 2), (0, 1000), (2.1, 9.4)):
        assert scaling(box([low], [high])).rounding is None
    narrow = scaling(box([1000.1, -2], [1000.3, 2]))
    inside = torch.tensor([[1000.15, 1.5], [1000.25, -1.999]])
    torch.testing.assert_close(narrow.actions(inside), torch.tensor([[-0.5, 0.75], [0.5, -0.9995]]), atol=1e-3, rtol=0)
    assert narrow.actions(inside)[1, 1] == -1.999 / 2  # only what is narrow is rounded to its bounds


def test_a_clipped_dimension_has_a_mass_that_knows_no_units() -> None:
    """Actions in [0, 4]²: (2, 4) is (0, 1) in [−1, 1], whose first part is a density over half widths of 2."""
    scaling = Scaling(Spec(spaces.Box(-1, 1, (1,)), spaces.Box(0.0, 4.0, (2,))))
    base = ClippedNormal(torch.zeros(1, 2), torch.zeros(1, 2))
    log_prob = ScaledDistribution(base, scaling).log_prob(torch.tensor([[2.0, 4.0]]))
    density, mass = 1 / math.sqrt(2 * math.pi) / 2, 0.5 * math.erfc(1 / math.sqrt(2))
    assert float(log_prob) == pytest.approx(math.log(density * mass), abs=1e-5)
