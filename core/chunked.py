"""A critic for algorithms that score many actions of each observation, in chunks that stay in a CPU's cache.

`CandidateCritic` computes what `herdbook.core.networks.Critic` computes; a test holds the two equal. CQL scores 31
actions per observation with two critics: layer by layer, every activation is 16 MB and travels to memory and back for
each elementwise operation. Layer by layer, an update of CQL takes 1.5 times as long (hidden layers 256×3, one thread;
256×2: 1.6 times). The products are the same, in another order, except for some that are spared:

- What the first layer makes of an observation is computed once, whatever the number of its candidates.
- Let g be the slope of the values, w the weights of the last layer, W and b the weights and biases of the one before.
  The slope of the last hidden layer, g wᵀ where that is positive, is never formed: D, the slope of W and b as if w were
  1, is multiplied by w at the end. And as ReLU(z) = z ReLU′(z), the slope of w is the sum of W ⊙ D over its rows, b
  being a further row of W: no product with activations (cf. Du et al. 2018, arXiv:1806.00900, theorem 2.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, product
from typing import Any, cast

import torch
from gymnasium import spaces
from torch import Tensor, nn

from herdbook.core.networks import MLP, JointHead, Linear

MANY = 2**18
"""Size of one copy's activation above which chunks are faster with five seeds; with one seed, above twice that."""

ROWS = 1024
"""Rows of a chunk per thread."""

_masked = torch.ops.aten.threshold_backward.grad_input


class CandidateCritic(JointHead):
    """Q_i(s, a) as `Critic` computes it: observations [B, …], actions [*N, B, A] → [copies, *N, B].

    On a CPU, values of many candidates come from `candidate_values`, which cannot be differentiated twice. A perceptron
    whose layers have hooks or parametrisations, or that is not of ours, is called layer by layer. Parameters have the
    names and shapes of a `Critic`'s.
    """

    def __init__(
        self, space: spaces.Space[Any], action_size: int, hidden_sizes: Sequence[int], *, copies: int = 2
    ) -> None:
        super().__init__(space, action_size, 1, hidden_sizes, copies=copies)

    def joined(self, features: Tensor, second: Tensor) -> Tensor:
        if not self._in_chunks(features, second):
            return super().joined(features, second).squeeze(-1)
        candidates = second.reshape(-1, *second.shape[-2:])  # [N, B, A]
        parameters = (p for layer in self.mlp.layers for p in (cast(Linear, layer).weight, cast(Linear, layer).bias))
        return candidate_values(features, candidates, *parameters).reshape(-1, *second.shape[:-1])

    def _in_chunks(self, features: Tensor, second: Tensor) -> bool:
        """True for many candidates per observation on a CPU, and a perceptron that `candidate_values` can compute."""
        lead, mlp = second.shape[:-1], self.mlp
        if len(lead) < 2 or not second.is_cpu or type(mlp) is not MLP or mlp.activation is not torch.relu:
            return False
        if len(mlp.layers) < 2 or any(type(layer) is not Linear for layer in mlp.layers) or _has_hooks(mlp):
            return False
        first, last = (cast(Linear, mlp.layers[end]).weight for end in (0, -1))
        if first.dim() != 3 or last.shape[-1] != 1 or lead.numel() * first.shape[-1] <= MANY:
            return False
        plain = features.shape[:-1] == lead[-1:] and features.dtype == second.dtype == first.dtype
        return plain and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()


def _has_hooks(module: nn.Module) -> bool:
    """True if the module or a part of it has hooks. torch has no public way to ask."""
    return any(
        part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
        for part in module.modules()
    )


def candidate_values(features: Tensor, second: Tensor, *parameters: Tensor) -> Tensor:
    """Values of candidates: features [B, F], second [N, B, A] → [C, N, B], where N and B are at least 1.

    parameters: weights [C, in, out] and biases [C, 1, out] of each layer in turn, at least two of them; the first takes
    features and second side by side, and the last has one output. ReLU between layers. Not differentiable twice.
    """
    weight, bias, *between, last, last_bias = parameters
    copies, size = len(weight), features.shape[-1]
    base = torch.baddbmm(bias, features.expand(copies, *features.shape), weight[:, :size])
    layers = (weight[:, size:], base, *between)
    values: Tensor = _CandidateValues.apply(second.expand(copies, *second.shape), last, *layers)[0]  # type: ignore[no-untyped-call]  # torch's is untyped
    return values + last_bias


def _chunks(copies: int, candidates: int, observations: int) -> tuple[int, list[slice], list[tuple[slice, slice]]]:
    """Rows of the largest chunk; groups of copies; and of each group the candidates and observations computed at once.

    Where there are as many copies as threads, each thread has one to itself.
    """
    threads = torch.get_num_threads()
    group = min(copies, threads)
    size = ROWS * threads // group
    height = min(observations, size)
    steps = ((copies, group), (candidates, size // height), (observations, height))
    groups, *spans = ([slice(at, at + step) for at in range(0, end, step)] for end, step in steps)
    return group * min(candidates, size // height) * height, groups, list(product(*spans))


def _first_layer(x: Tensor, weight: Tensor, base: Tensor, scratch: Tensor) -> Tensor:
    """ReLU of the first layer, in rows of `scratch`, which the next call overwrites: → [C, N · B, H].

    x: candidates [C, N, B, A]; weight: [C, A, H]; base: what the observation adds for all of its candidates [C, B, H].
    """
    lead = x.shape[:3]
    h = scratch[: lead.numel()].view(*lead, -1).copy_(base.unsqueeze(1)).flatten(1, 2)
    return h.baddbmm_(x.flatten(1, 2), weight).relu_()


class _NotTwice(torch.autograd.Function):
    """`apply(n, *n slopes, *others)` → the slopes, whose own derivative by any of the others raises RuntimeError."""

    @staticmethod
    def forward(count: int, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        return tensors[:count]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, ...]:
        raise RuntimeError("values of so many candidates at once cannot be differentiated twice on a CPU; score fewer")


class _CandidateValues(torch.autograd.Function):
    """`apply(second, w, W_1, b_1, W_2, b_2, …)` → (values without the last bias, *activations for `backward`).

    second [C, N, B, A], w [C, H, 1], W_1 [C, A, H], b_1 [C, B, H], further W_i [C, in, out] and b_i [C, 1, out]. The
    activations are those of each chunk's hidden layers but the first, which are sooner computed again than fetched from
    memory. Under `torch.vmap` the new axis is folded into that of the copies.
    """

    @staticmethod
    def forward(second: Tensor, last: Tensor, *layers: Tensor) -> tuple[Tensor, ...]:
        """Chunk by chunk."""
        values = second.new_empty(second.shape[:3])
        rows, groups, spans = _chunks(*values.shape)
        scratch = values.new_empty(rows, layers[0].shape[-1])
        kept = []
        for group in groups:
            x, out, ends = second[group], values[group], last[group]
            weight, base, *rest = [part[group] for part in layers]
            for span in spans:
                h = _first_layer(x[:, *span], weight, base[:, span[1]], scratch)
                for w, b in zip(rest[::2], rest[1::2], strict=True):
                    h = torch.baddbmm(b, h, w).relu_()
                    kept.append(h)
                for into, own, w in zip(
                    out[:, *span], h, ends, strict=True
                ):  # a batched product would take several times as long
                    into.copy_(torch.mm(own, w).view_as(into))
        return values, *kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        """Save the tensors that `backward` reads. The activations get no gradient."""
        values, *kept = output
        ctx.inputs, ctx.chunks = len(inputs), _chunks(*values.shape)
        ctx.save_for_backward(*inputs, *kept)
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, slope: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        """Gradients of all inputs. torch's `once_differentiable` could leave second derivatives incomplete."""
        if slope is None:
            return tuple(None for _ in range(ctx.inputs))
        saved = ctx.saved_tensors
        inputs, kept = saved[: ctx.inputs], saved[ctx.inputs :]
        with torch.no_grad():
            slopes = _CandidateValues._slopes(ctx, slope, inputs, kept)
        if not torch.is_grad_enabled():
            return slopes
        refusing: tuple[Tensor | None, ...] = _NotTwice.apply(len(slopes), *slopes, slope, *inputs)  # type: ignore[no-untyped-call]  # torch's is untyped
        return refusing

    @staticmethod
    def _slopes(ctx: Any, slope: Tensor, inputs: Sequence[Tensor], kept: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """Back through the layers of one chunk after the other, adding up the parameters' slopes."""
        second, last, *layers = inputs
        of_second = second.new_empty(second.shape) if ctx.needs_input_grad[0] else None
        of_layers = [torch.zeros_like(part) for part in layers] if any(ctx.needs_input_grad[1:]) else []
        weights = [*layers[:-2:2], layers[-2] * last.mT]  # W_1, W_2, …: slopes are D, without w, until the last of them
        hidden = iter(kept)
        rows, groups, spans = ctx.chunks
        scratch = slope.new_empty(rows, layers[0].shape[-1])
        for group in groups:
            first, base = layers[0][group], layers[1][group]
            to_second, *to_below = [weight[group].mT for weight in weights]
            of_own = [part[group] for part in of_layers]
            for span in spans:
                x = second[group, *span]
                *below, h = _first_layer(x, first, base[:, span[1]], scratch), *islice(hidden, len(to_below))
                g = slope[group, *span].flatten(1).unsqueeze(-1).expand_as(h)
                g = _masked(g, h, 0, grad_input=torch.empty_like(h))
                for number in range(len(to_below), 0, -1):
                    h = below[number - 1]
                    if of_own:
                        of_own[2 * number].baddbmm_(h.mT, g)
                        of_own[2 * number + 1] += g.sum(1, keepdim=True)
                    g = torch.bmm(g, to_below[number - 1])
                    _masked(g, h, 0, grad_input=g)
                if of_own:
                    of_own[0].baddbmm_(x.flatten(1, 2).mT, g)
                    of_own[1][:, span[1]] += g.view(*x.shape[:3], -1).sum(1)
                if of_second is not None:
                    of_second[group, *span] = torch.bmm(g, to_second).view_as(x)
        if not of_layers:
            return of_second, *[None] * (ctx.inputs - 1)
        (w, b), (of_w, of_b) = layers[-2:], of_layers[-2:]
        of_last = (w * of_w).sum(1, keepdim=True) + (b * of_b).sum(1, keepdim=True)
        of_w *= last.mT
        of_b *= last.mT
        return of_second, of_last.mT, *of_layers

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        """Fold the mapped axis into the copies: [S, C, …] → [S · C, …]."""
        size = info.batch_size
        folded = [
            (value.unsqueeze(0).expand(size, *value.shape) if axis is None else value.movedim(axis, 0)).flatten(0, 1)
            for value, axis in zip(inputs, in_dims, strict=True)
        ]
        values, *kept = _CandidateValues.apply(*folded)  # type: ignore[no-untyped-call]  # torch's is untyped
        return (values.reshape(size, -1, *values.shape[1:]), *kept), (0, *[None] * len(kept))
