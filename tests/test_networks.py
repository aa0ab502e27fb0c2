"""Networks: shapes, and each copy of an ensemble against a network of its own."""

from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import register_parametrization

from herdbook.core.networks import (
    MLP,
    Critic,
    DeterministicActor,
    Encoder,
    Ensemble,
    GaussianActor,
    Head,
    JointHead,
    Linear,
    Scalar,
    SquashedGaussianActor,
    StateValue,
    dropout,
)
from herdbook.core.spaces import flat_space

VECTOR = spaces.Box(-np.inf, np.inf, (3,))
IMAGE = spaces.Box(0, 255, (8, 9, 2), np.uint8)


def _images(count: int = 5) -> Tensor:
    return torch.randint(0, 256, (count, 8, 9, 2), dtype=torch.uint8)


def _copy(module: nn.Module, number: int) -> dict[str, Tensor]:
    """One copy's parameters in torch's own layout: copies hold Wᵀ [C, in, out] and b [C, 1, out]."""
    return {
        name: value[number].mT if name.endswith("weight") else value[number, 0]
        for name, value in module.named_parameters()
    }


def test_linear_starts_as_torchs_own() -> None:
    torch.manual_seed(0)
    ours = Linear(5, 4)
    torch.manual_seed(0)
    theirs = nn.Linear(5, 4)
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


def test_every_copy_starts_differently_and_within_torchs_bound() -> None:
    weight = Linear(16, 8, 3).weight.detach()
    assert float(weight.abs().max()) <= 0.25
    assert float(weight.abs().max()) > 0.2
    assert not torch.equal(weight[0], weight[1])


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("lead", [(6,), (4, 6)])
def test_copies_of_a_perceptron_equal_perceptrons_of_their_own(lead: tuple[int, ...], outputs: int) -> None:
    mlp, x = MLP(3, outputs, (8, 7), copies=3), torch.randn(*lead, 3)
    y = mlp(x)
    assert y.shape == (3, *lead, outputs)
    for number in range(3):
        own = _copy(mlp, number)
        h = F.relu(F.linear(x, own["layers.0.weight"], own["layers.0.bias"]))
        h = F.relu(F.linear(h, own["layers.1.weight"], own["layers.1.bias"]))
        torch.testing.assert_close(y[number], F.linear(h, own["layers.2.weight"], own["layers.2.bias"]))


@pytest.mark.parametrize("copies", [None, 2])
def test_hooks_of_a_layer_see_what_it_gives(copies: int | None) -> None:
    """Before the activation, and the slope of that."""
    mlp, x, given, slopes = MLP(3, 1, (4,), copies=copies), torch.randn(5, 3, requires_grad=True), [], []
    mlp.layers[0].register_forward_hook(lambda module, inputs, output: given.append(output))
    mlp.layers[0].register_full_backward_hook(lambda module, of_inputs, of_outputs: slopes.append(of_outputs[0]))
    y = mlp(x)
    y.sum().backward()
    weight, bias, last = mlp.layers[0].weight, mlp.layers[0].bias, mlp.layers[1].weight
    if copies is None:
        weight, last = cast(Tensor, weight).mT, cast(Tensor, last).mT
    torch.testing.assert_close(given, [x @ weight + bias])
    torch.testing.assert_close(slopes, [(given[0] > 0) * last.mT])


class Doubled(nn.Module):
    """A parametrisation."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


@pytest.mark.parametrize("copies", [None, 2])
def test_a_layer_with_a_parametrised_weight_uses_it(copies: int | None) -> None:
    mlp, x = MLP(3, 2, (4,), copies=copies), torch.randn(5, 3)
    other = MLP(3, 2, (4,), copies=copies)
    other.load_state_dict(mlp.state_dict())
    other.layers[0].weight.data *= 2
    register_parametrization(mlp.layers[0], "weight", Doubled())
    torch.testing.assert_close(mlp(x), other(x))


def test_a_layer_with_spectral_normalisation_has_a_norm_of_one() -> None:
    """The estimate of the norm takes one step at each call: two calls of the weight would take two."""
    mlp, once = MLP(3, 2, (4,)), MLP(3, 2, (4,))
    once.load_state_dict(mlp.state_dict())
    for network in (mlp, once):
        torch.manual_seed(0)  # torch draws the estimate's start from its own generator
        spectral_norm(network.layers[0], n_power_iterations=1)
    x, expected = torch.randn(5, 3), once.layers[0].weight
    h = F.relu(F.linear(x, expected, once.layers[0].bias))
    torch.testing.assert_close(mlp(x), F.linear(h, once.layers[1].weight, once.layers[1].bias))
    for _ in range(50):
        mlp(x)
    assert float(torch.linalg.matrix_norm(mlp.layers[0].weight.detach(), 2)) == pytest.approx(1, abs=1e-4)


def test_a_critic_values_each_candidate_as_if_it_were_alone() -> None:
    critic, observations, actions = Critic(VECTOR, 2, (8,)), torch.randn(5, 3), torch.randn(4, 5, 2)
    values = critic(observations, actions)
    assert values.shape == (2, 4, 5)
    for number in range(4):
        torch.testing.assert_close(values[:, number], critic(observations, actions[number]))
    assert critic(observations, torch.randn(2, 4, 5, 2)).shape == (2, 2, 4, 5)


def test_heads_have_the_shapes_they_promise() -> None:
    observations = torch.randn(5, 3)
    assert Head(VECTOR, 4, (8,))(observations).shape == (5, 4)
    assert Head(VECTOR, 4, (8,), copies=3)(observations).shape == (3, 5, 4)
    assert StateValue(VECTOR, (8,))(observations).shape == (5,)
    assert JointHead(VECTOR, 2, 4, (8,))(observations, torch.randn(7, 5, 2)).shape == (7, 5, 4)
    assert Head(VECTOR, 4, ())(observations).shape == (5, 4)
    assert Scalar(0.25)().item() == 0.25


def test_encoder_of_a_discrete_space_counts_from_its_start() -> None:
    encoder = Encoder(spaces.Discrete(3, start=5))
    assert encoder.size == 3
    assert encoder(torch.tensor([5, 7])).tolist() == [[1, 0, 0], [0, 0, 1]]


def test_encoder_of_images_permutes_and_scales_them() -> None:
    encoder, images = Encoder(IMAGE), _images()
    expected = encoder.convolutions(images.permute(0, 3, 1, 2).float() / 255)
    torch.testing.assert_close(encoder(images), expected)
    assert encoder(images).shape == (5, encoder.size)


def test_large_images_go_through_the_convolutions_of_mnih_2015() -> None:
    encoder = Encoder(spaces.Box(0, 255, (84, 84, 4), np.uint8))
    layers = [layer for layer in encoder.convolutions if isinstance(layer, nn.Conv2d)]
    shapes = [(layer.out_channels, layer.kernel_size[0], layer.stride[0]) for layer in layers]
    assert shapes == [(32, 8, 4), (64, 4, 2), (64, 3, 1)]
    assert encoder.size == 64 * 7 * 7


@pytest.mark.parametrize("names", [("camera", "arm", "gear"), ("eye.left", "type", "keys"), ("", "training", "0")])
def test_encoder_of_a_dict_concatenates_the_parts_in_its_key_order(names: tuple[str, str, str]) -> None:
    """Whatever the names: `flat_space` makes dotted ones, and some are those of a module's own attributes."""
    camera, arm, gear = names
    space = spaces.Dict({camera: IMAGE, arm: VECTOR, gear: spaces.Discrete(4, start=2)})
    encoder = Encoder(space)
    observations = {gear: torch.tensor([2, 5]), arm: torch.randn(2, 3), camera: _images(2)}
    parts = [part(observations[key]) for key, part in zip(space.spaces, encoder.parts, strict=True)]
    torch.testing.assert_close(encoder(observations), torch.cat(parts, -1))
    assert encoder(observations).shape == (2, encoder.size)


def test_encoder_of_a_nested_space_concatenates_its_flat_parts() -> None:
    """As it comes from `flat_space`, and as it is."""
    inner = spaces.Dict({"camera": IMAGE, "type": spaces.Discrete(2)})
    nested = spaces.Dict({"robot": inner, "goal": VECTOR})
    values = {"robot": {"camera": _images(2), "type": torch.tensor([0, 1])}, "goal": torch.randn(2, 3)}
    assert Encoder(nested)(values).shape == (2, Encoder(nested).size)
    flat = flat_space(nested)
    assert isinstance(flat, spaces.Dict)
    assert "robot.camera" in flat.spaces
    assert Encoder(flat).size == Encoder(nested).size


@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (2, 2)), spaces.MultiBinary(3), spaces.Tuple((VECTOR,))])
def test_encoder_refuses_a_space_it_does_not_know(space: spaces.Space[Any]) -> None:
    with pytest.raises(ValueError, match="expected a vector, image, Discrete or Dict observation space, got"):
        Encoder(space)


def test_images_are_encoded_once_for_all_candidates() -> None:
    critic, calls = Critic(IMAGE, 2, (8,)), []
    critic.encoder.register_forward_hook(lambda module, inputs, output: calls.append(output.shape))
    critic(_images(), torch.randn(10, 5, 2))
    assert calls == [(5, critic.encoder.size)]


def test_actors_bound_what_they_give() -> None:
    observations = torch.randn(5, 3) * 1e4
    assert float(DeterministicActor(VECTOR, 2, (8,))(observations).detach().abs().max()) <= 1
    actor = SquashedGaussianActor(VECTOR, 2, (8,))
    last = cast(Linear, actor.mlp.layers[-1])
    last.weight.data.zero_()
    last.bias.data = torch.tensor([-3.0, 3.0, -21.0, 2.5])  # two means, two log σ
    squashed = actor(observations)
    assert squashed.mean.tolist() == [[-3.0, 3.0]] * 5
    assert squashed.log_std.tolist() == [[-20.0, 2.0]] * 5


def test_the_gaussian_actor_of_iql_has_a_log_std_of_its_own_clamped_to_minus_5_and_2() -> None:
    actor, observations = GaussianActor(VECTOR, 2, (8,)), torch.randn(5, 3)
    assert actor(observations).log_std.tolist() == [[0.0, 0.0]] * 5
    actor.log_std.data = torch.tensor([-9.0, 9.0])
    distribution = actor(observations)
    assert distribution.log_std.tolist() == [[-5.0, 2.0]] * 5
    assert distribution.clip
    torch.testing.assert_close(distribution.mean, Head.forward(actor, observations).tanh())


def test_dropout_leaves_the_share_that_it_should_and_the_mean() -> None:
    uniform = torch.rand(200_000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for probability in (0.0, 0.1, 0.5, 0.9):
        kept = dropout(uniform, probability)
        assert float((kept == 0).float().mean()) == pytest.approx(probability, abs=0.005)
        assert float(kept.mean()) == pytest.approx(1.0, abs=0.05)
    assert dropout(torch.tensor([-1.0, -0.81, -0.79]), 0.1).tolist() == pytest.approx([0, 0, 1 / 0.9])
    assert dropout(torch.tensor([-1.0]), 0.0).tolist() == [1.0]


def test_hidden_units_are_multiplied_by_their_own_factors() -> None:
    """One input, two layers of two units whose weights are 1: (1, 2) · 3 is 9; (0, 1) · 9 is 9."""
    mlp = MLP(1, 1, (2, 2))
    for layer in mlp.layers:
        layer.weight.data.fill_(1.0)
        layer.bias.data.zero_()
    x = torch.tensor([[3.0], [1.0]])
    assert mlp(x, torch.tensor([[1.0, 2.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])).tolist() == [[9.0], [4.0]]
    assert mlp(x).tolist() == [[12.0], [4.0]]


class Mine(nn.Module):
    """A critic as a user writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        value: Tensor = self.net(torch.cat([observations, actions], -1))
        return value


@pytest.mark.parametrize("lead", [(5,), (4, 5), (2, 4, 5)])
def test_an_ensemble_of_a_users_module_equals_its_copies(lead: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    ensemble = Ensemble(Mine, 3)
    torch.manual_seed(0)
    singles = [Mine() for _ in range(3)]
    observations, actions = torch.randn(5, 3), torch.randn(*lead, 2)
    values = ensemble(observations, actions)
    assert values.shape == (3, *lead)
    for number, single in enumerate(singles):
        expected = single(observations.expand(*lead, 3), actions).squeeze(-1)
        torch.testing.assert_close(values[number], expected)


def test_an_ensemble_trains_its_copies_and_nothing_else() -> None:
    ensemble = Ensemble(Mine, 2)
    assert [tuple(p.shape) for p in ensemble.parameters()] == [(2, 8, 5), (2, 8), (2, 1, 8), (2, 1)]
    with pytest.raises(ValueError, match="without buffers"):
        Ensemble(lambda: nn.BatchNorm1d(3), 2)
    with pytest.raises(ValueError, match="Ensemble: expected a module without dropout"):
        Ensemble(lambda: nn.Sequential(Mine(), nn.Dropout(0.1)), 2)


def test_an_ensemble_keeps_fixed_what_its_module_fixes() -> None:
    def make() -> Mine:
        mine = Mine()
        mine.net[0].requires_grad_(False)
        return mine

    assert [p.requires_grad for p in Ensemble(make, 2).parameters()] == [False, False, True, True]
