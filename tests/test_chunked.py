"""The chunked perceptron is the perceptron layer by layer, in values and gradients, with and without vmap."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from herdbook.core.chunked import ROWS, chunked_perceptron
from herdbook.core.networks import MLP

SIZES = (5, 16, 8, 2)


def parameters(generator: torch.Generator, *lead: int) -> list[Tensor]:
    made = []
    for inputs, outputs in pairwise(SIZES):
        made += [torch.randn(*lead, inputs, outputs, generator=generator, dtype=torch.float64)]
        made += [torch.randn(*lead, 1, outputs, generator=generator, dtype=torch.float64)]
    return [p.requires_grad_() for p in made]


def plain(x: Tensor, *parameters: Tensor) -> Tensor:
    weights, biases = parameters[::2], parameters[1::2]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = (x @ weight + bias).relu()
    return x @ weights[-1] + biases[-1]


@pytest.mark.parametrize("rows", [1, ROWS - 1, ROWS, ROWS + 1, 3 * ROWS + 7])
@pytest.mark.parametrize("learns_x", [True, False])
def test_values_and_gradients_are_those_of_the_layers(rows: int, learns_x: bool) -> None:
    generator = torch.Generator().manual_seed(rows)
    own = parameters(generator, 2)
    x = torch.randn(2, rows, 5, generator=generator, dtype=torch.float64).requires_grad_(learns_x)
    sought = [x, *own] if learns_x else own
    ours, theirs = chunked_perceptron(x, *own)[0], plain(x, *own)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(*(torch.autograd.grad(y.sin().sum(), sought) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b)


def test_frozen_parameters_get_no_gradient_and_the_input_gets_its_own() -> None:
    generator = torch.Generator().manual_seed(0)
    own = [p.detach() for p in parameters(generator, 2)]
    x = torch.randn(2, ROWS + 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    (ours,) = torch.autograd.grad(chunked_perceptron(x, *own)[0].sin().sum(), x)
    (theirs,) = torch.autograd.grad(plain(x, *own).sin().sum(), x)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shared_x", [True, False])
def test_under_vmap_the_seeds_are_further_copies(shared_x: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    own = parameters(generator, 3, 2)
    x = torch.randn(*(() if shared_x else (3,)), 2, ROWS + 5, 5, generator=generator, dtype=torch.float64)
    axes = (None if shared_x else 0, *[0] * len(own))
    ours = torch.vmap(lambda *inputs: chunked_perceptron(*inputs)[0].sin().sum(), axes)(x, *own)
    theirs = torch.vmap(lambda *inputs: plain(*inputs).sin().sum(), axes)(x, *own)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(*(torch.autograd.grad(y.sum(), own) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b)


def test_a_second_derivative_is_refused_and_not_silently_wrong() -> None:
    own = parameters(torch.Generator().manual_seed(2), 2)
    x = torch.randn(2, 4, 5, dtype=torch.float64)
    slopes = torch.autograd.grad(chunked_perceptron(x, *own)[0].sin().sum(), own, create_graph=True)
    with pytest.raises(RuntimeError, match="appears to not have been used"):
        torch.autograd.grad(slopes[0].square().sum(), own)


def test_a_perceptron_of_many_rows_equals_itself_in_few() -> None:
    torch.manual_seed(0)
    mlp, x = MLP(5, 2, (16, 8), copies=2), torch.randn(3, ROWS, 5)
    torch.testing.assert_close(mlp(x), torch.stack([mlp(part) for part in x], 1))
