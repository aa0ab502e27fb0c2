"""Values of candidates in chunks are those of the layers one after the other, in values and gradients, and by vmap."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from herdbook.core import networks
from herdbook.core.chunked import MANY, ROWS, candidate_values
from herdbook.core.networks import Critic

FEATURES, SECOND = 4, 3


def parameters(generator: torch.Generator, *lead: int, hidden: tuple[int, ...] = (16, 8)) -> list[Tensor]:
    made = []
    for inputs, outputs in pairwise((FEATURES + SECOND, *hidden, 1)):
        made += [torch.randn(*lead, inputs, outputs, generator=generator, dtype=torch.float64)]
        made += [torch.randn(*lead, 1, outputs, generator=generator, dtype=torch.float64)]
    return [p.requires_grad_() for p in made]


def inputs(generator: torch.Generator, candidates: int, observations: int, *lead: int) -> list[Tensor]:
    shapes = ((observations, FEATURES), (candidates, observations, SECOND))
    made = [torch.randn(*lead, *shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [x.requires_grad_() for x in made]


def plain(features: Tensor, second: Tensor, *parameters: Tensor) -> Tensor:
    """[B, F], [N, B, A] → [C, N, B]."""
    weights, biases = parameters[::2], parameters[1::2]
    x = torch.cat([features.expand(*second.shape[:-1], FEATURES), second], -1)  # [N, B, F + A]
    x = x.unsqueeze(0)
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = (x @ weight.unsqueeze(1) + bias.unsqueeze(1)).relu()
    return (x @ weights[-1].unsqueeze(1) + biases[-1].unsqueeze(1)).squeeze(-1)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> object:
    """Copies are grouped by torch's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("hidden", [(8,), (16, 8), (16, 8, 4)])
@pytest.mark.parametrize("copies", [1, 2, 3])
@pytest.mark.parametrize(
    ("candidates", "observations"), [(1, 1), (1, ROWS + 1), (7, 200), (3, ROWS), (2, 2 * ROWS + 7), (61, 40)]
)
def test_values_and_gradients_are_those_of_the_layers(
    candidates: int, observations: int, copies: int, hidden: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(observations)
    own = [*inputs(generator, candidates, observations), *parameters(generator, copies, hidden=hidden)]
    ours, theirs = candidate_values(*own), plain(*own)
    torch.testing.assert_close(ours, theirs)
    assert ours.shape == (copies, candidates, observations)
    for a, b in zip(*(torch.autograd.grad(y.sin().sum(), own) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b)


def test_by_hand_the_slope_of_the_last_weights_is_that_of_the_activations() -> None:
    """h = relu(2 · 3 − 1 · 4 + 1, −(2 · 3) + 1) = (3, 0), Q = 5 h_1 + 7 h_2 + 1 = 16."""
    one = torch.tensor
    first = one([[[2.0, -2.0], [-1.0, 0.0]]]).requires_grad_()
    bias, last = one([[[1.0, 1.0]]]).requires_grad_(), one([[[5.0], [7.0]]]).requires_grad_()
    end = one([[[1.0]]]).requires_grad_()
    q = candidate_values(one([[3.0]]), one([[[4.0]]]), first, bias, last, end)
    assert q.item() == 16
    slopes = torch.autograd.grad(q.sum(), (first, bias, last, end))
    assert [s.flatten().tolist() for s in slopes] == [[15, 0, 20, 0], [5, 0], [3, 0], [1]]


def test_a_weight_of_zero_after_a_hidden_unit_still_learns() -> None:
    generator = torch.Generator().manual_seed(3)
    own = [x.detach() for x in (*inputs(generator, 2, 5), *parameters(generator, 2))]
    own[-2].zero_()
    last = own[-2].requires_grad_()
    (ours,), (theirs,) = (torch.autograd.grad(f(*own).sum(), last) for f in (candidate_values, plain))
    torch.testing.assert_close(ours, theirs)
    assert theirs.abs().max() > 0


@pytest.mark.parametrize("sought", ["features", "second", "parameters"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_its_own(sought: str) -> None:
    generator = torch.Generator().manual_seed(0)
    own = [*inputs(generator, 3, ROWS + 3), *parameters(generator, 2)]
    learns = {"features": own[:1], "second": own[1:2], "parameters": own[2:]}[sought]
    given = [x if any(x is y for y in learns) else x.detach() for x in own]
    slopes = [torch.autograd.grad(f(*given).sin().sum(), learns) for f in (candidate_values, plain)]
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shared", [True, False])
def test_under_vmap_the_seeds_are_further_copies(shared: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    own = [*inputs(generator, 3, ROWS - 5, *(() if shared else (3,))), *parameters(generator, 3, 2)]
    axes = (*[None if shared else 0] * 2, *[0] * (len(own) - 2))
    ours, theirs = (
        torch.vmap(lambda *x, f=f: f(*x).sin().sum(), axes)(*own)  # type: ignore[misc]
        for f in (candidate_values, plain)
    )
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(*(torch.autograd.grad(y.sum(), own) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b)


def test_threads_that_change_between_the_two_passes_change_nothing() -> None:
    generator, before = torch.Generator().manual_seed(5), torch.get_num_threads()
    own = [*inputs(generator, 12, 300), *parameters(generator, 2)]
    try:
        torch.set_num_threads(1)
        values = candidate_values(*own)
        torch.set_num_threads(2)
        slopes = torch.autograd.grad(values.sin().sum(), own)
    finally:
        torch.set_num_threads(before)
    for a, b in zip(slopes, torch.autograd.grad(plain(*own).sin().sum(), own), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("hidden", [(8,), (16, 8)])
def test_a_second_derivative_is_refused_and_never_silently_incomplete(hidden: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(2)
    own = [*inputs(generator, 2, 4), *parameters(generator, 2, hidden=hidden)]
    slopes = torch.autograd.grad(candidate_values(*own).sin().sum(), own, create_graph=True)
    for slope in slopes[:-1]:  # the last bias is added outside
        for by in own:
            with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
                torch.autograd.grad(slope.square().sum(), by, retain_graph=True)


@pytest.mark.parametrize("hidden", [(16, 8), ()])
def test_a_critic_of_many_candidates_equals_itself_of_few(hidden: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    critic = Critic(spaces.Box(-1, 1, (5,)), 2, hidden)
    observations, actions = torch.randn(150, 5), torch.randn(2, 3, 150, 2)
    assert 900 > MANY > 150
    few = torch.stack([torch.stack([critic(observations, each) for each in part], 1) for part in actions], 1)
    torch.testing.assert_close(critic(observations, actions), few)


def test_chunks_are_for_many_candidates_of_one_batch_on_relu_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(networks, "candidate_values", lambda *x: calls.append(1) or candidate_values(*x))
    critic = Critic(spaces.Box(-1, 1, (5,)), 2, (16, 8))
    observations, actions = torch.randn(100, 5), torch.randn(10, 100, 2)
    critic(observations, actions)
    assert len(calls) == 1
    by_rows = critic(torch.randn(10, 100, 5), actions)  # observations of every row
    assert by_rows.shape == (2, 10, 100)
    critic(torch.randn(1000, 5), torch.randn(1000, 2))  # a large batch, one candidate each
    critic.mlp.activation = torch.tanh
    of_tanh = critic(observations, actions)
    assert len(calls) == 1
    torch.testing.assert_close(of_tanh[:, 3], critic(observations, actions[3]))
