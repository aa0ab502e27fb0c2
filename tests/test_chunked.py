"""Values of candidates in chunks are those of the layers one after the other, in values and gradients, and by vmap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from herdbook.core import chunked
from herdbook.core.chunked import ROWS, CandidateCritic, candidate_values
from herdbook.core.networks import MLP, Critic

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
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Copies are grouped by torch's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("hidden", [(8,), (16, 8, 4)])
@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize(("candidates", "observations"), [(1, 1), (7, 200), (3, ROWS), (2, 2 * ROWS + 7), (1300, 1)])
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
    values = candidate_values(*given)
    assert values.grad_fn is not None
    chunks = values.grad_fn.next_functions[0][0]  # the last bias is added to what it gives
    assert chunks is not None
    made = []
    chunks.register_hook(lambda slopes, _: made.extend(slope is not None for slope in slopes))
    slopes = [torch.autograd.grad(y.sin().sum(), learns) for y in (values, plain(*given))]
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a, b)
    assert made == [sought == "second"] + [sought != "second"] * (len(own) - 3)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shared", [True, False])
def test_under_vmap_the_seeds_are_further_copies(shared: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    own = [*inputs(generator, 3, ROWS - 5, *(() if shared else (3,))), *parameters(generator, 3, 2)]
    axes = (*[None if shared else 0] * 2, *[0] * (len(own) - 2))
    ours, theirs = (
        torch.vmap(lambda *x, f=f: f(*x).sin().sum(), axes)(*own)  # type: ignore[misc]  # mypy cannot type `f=f`
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


@pytest.mark.parametrize("loss", [torch.sum, lambda values: values.sin().sum()])
@pytest.mark.parametrize("hidden", [(8,), (16, 8)])
def test_a_second_derivative_is_refused_and_never_silently_incomplete(
    hidden: tuple[int, ...], loss: Callable[[Tensor], Tensor]
) -> None:
    """Also where the loss is linear, so that the values' own slope depends on nothing."""
    generator = torch.Generator().manual_seed(2)
    own = [*inputs(generator, 2, 4), *parameters(generator, 2, hidden=hidden)][:-1]
    end = torch.zeros(2, 1, 1, dtype=torch.float64)  # the last bias is added outside
    slopes = torch.autograd.grad(loss(candidate_values(*own, end)), own, create_graph=True)
    for slope in slopes:
        for by in own:
            with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
                torch.autograd.grad(slope.square().sum(), by, retain_graph=True)


def test_values_that_no_loss_reads_have_no_slope() -> None:
    class Unread(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, values: Tensor) -> Tensor:
            return values.sum()

        @staticmethod
        def backward(ctx: object, slope: Tensor) -> None:
            return None

    generator = torch.Generator().manual_seed(4)
    own = [*inputs(generator, 2, 4), *parameters(generator, 2)]
    values = candidate_values(*own)
    assert torch.autograd.grad(Unread.apply(values), own, allow_unused=True) == (None,) * len(own)


def test_checkpointing_works() -> None:
    generator = torch.Generator().manual_seed(6)
    own = [*inputs(generator, 3, 50), *parameters(generator, 2)]
    values = torch.utils.checkpoint.checkpoint(candidate_values, *own, use_reentrant=False)
    for a, b in zip(*(torch.autograd.grad(y.sin().sum(), own) for y in (values, plain(*own))), strict=True):
        torch.testing.assert_close(a, b)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Candidates' critics compute in chunks from 2,000 numbers on; what is asked for then."""
    made: list[int] = []

    def counted(*x: Tensor) -> Tensor:
        made.append(1)
        return candidate_values(*x)

    monkeypatch.setattr(chunked, "candidate_values", counted)
    monkeypatch.setattr(chunked, "MANY", 2000)
    return made


SPACES = {"vector": spaces.Box(-1, 1, (5,)), "image": spaces.Box(0, 255, (9, 9, 3), np.uint8)}


@pytest.mark.parametrize("kind", sorted(SPACES))
@pytest.mark.parametrize("lead", [(30,), (5, 6)])
def test_a_critic_in_chunks_equals_the_plain_critic(kind: str, lead: tuple[int, ...], calls: list[int]) -> None:
    """Values, and slopes of encoder, actions and layers; of several axes of candidates too."""
    torch.manual_seed(0)  # layers are initialised from torch's own generator
    critic, plain_critic = CandidateCritic(SPACES[kind], 2, (16, 8)), Critic(SPACES[kind], 2, (16, 8))
    plain_critic.load_state_dict(critic.state_dict())
    observations = torch.as_tensor(np.stack([SPACES[kind].sample() for _ in range(7)]))
    actions = torch.randn(*lead, 7, 2, requires_grad=True)
    ours = critic(observations, actions)
    assert len(calls) == 1
    theirs = plain_critic(observations, actions)
    assert len(calls) == 1
    torch.testing.assert_close(ours, theirs)
    slopes = (
        torch.autograd.grad(q.sin().sum(), [*module.parameters(), actions])
        for module, q in ((critic, ours), (plain_critic, theirs))
    )
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


class Doubled(nn.Module):
    """A parametrisation."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class Shifted(MLP):
    """A user's own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def test_what_is_no_relu_perceptron_with_many_candidates_goes_by_layers(calls: list[int]) -> None:
    torch.manual_seed(0)  # layers are initialised from torch's own generator
    observations, actions = torch.randn(100, 5), torch.randn(10, 100, 2)

    def critic(**parts: object) -> CandidateCritic:
        made = CandidateCritic(SPACES["vector"], 2, (16, 16))
        for name, part in parts.items():
            setattr(made.mlp if name == "activation" else made, name, part)
        return made

    others = [
        critic(activation=torch.tanh),
        critic(mlp=Shifted(7, 1, (16, 16), copies=2)),
        critic(mlp=MLP(7, 1, (), copies=2)),
    ]
    for other in others:
        few = torch.stack([other(observations, each) for each in actions], 1)
        torch.testing.assert_close(other(observations, actions), few)
    usual = critic()
    usual(torch.randn(10, 100, 5), actions)  # observations of every row
    usual(torch.randn(1000, 5), torch.randn(1000, 2))  # one action each
    usual(observations[:1], actions)  # one observation for all rows
    with torch.autocast("cpu", torch.bfloat16):
        usual(observations, actions)
    assert not calls
    tied = critic()
    tied.mlp.layers[1] = MLP(16, 16, (), copies=2).layers[0]
    tied.mlp.layers.insert(2, tied.mlp.layers[1])
    few = torch.stack([tied(observations, each) for each in actions], 1)
    torch.testing.assert_close(tied(observations, actions), few)
    assert calls


@pytest.mark.parametrize("hook", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_layers_with_hooks_are_called(hook: str, calls: list[int]) -> None:
    critic, seen = CandidateCritic(SPACES["vector"], 2, (16, 16)), []
    getattr(critic.mlp.layers[1], f"register_{hook}_hook")(lambda module, *_: seen.append(module))
    critic(torch.randn(100, 5), torch.randn(10, 100, 2)).sum().backward()
    assert seen == [critic.mlp.layers[1]] and not calls


def test_layers_with_parametrisations_are_called(calls: list[int]) -> None:
    critic = CandidateCritic(SPACES["vector"], 2, (16, 16))
    observations, actions = torch.randn(100, 5), torch.randn(10, 100, 2)
    before = critic(observations, actions)
    assert len(calls) == 1
    register_parametrization(critic.mlp.layers[-1], "weight", Doubled())
    bias = critic.mlp.layers[-1].bias
    torch.testing.assert_close(critic(observations, actions) - bias, 2 * (before - bias))
    assert len(calls) == 1
