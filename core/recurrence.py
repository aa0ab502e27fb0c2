"""The recurrence of a GRU, in plain operations and with a backward pass written by hand.

    r, z = σ(x_rz + U_rz h),   n = tanh(x_n + r ⊙ (U_n h + b_u)),   h′ = (1 − z) ⊙ n + z ⊙ h

On a CPU, recurrent QMIX makes 0.84 times as many updates per second with plain operations (docs/results/threads.md),
because autograd computes the gradient of U row by row. A test compares the two. The hand-written one can be
differentiated once; it cannot be compiled, and `torch.vmap` has no rule for it.

Shapes: gates W x + b in the order n, r, z [*C, T, B, 3H]; state before the first row [*C, B, H]; weight Uᵀ in the order
r, z, n [*C, H, 3H]; bias b_u [H] or [C, 1, H]; held [*C, T, B, 1] bool, True where the state stays as it is. C is the
axis of the copies, T that of the rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def plain_recurrence(gates: Tensor, state: Tensor, weight: Tensor, bias: Tensor, held: Tensor) -> Tensor:
    """The states after each row [*C, T, B, H]."""
    product = torch.addmm if state.dim() == 2 else torch.baddbmm
    x_n, x_r, x_z = gates.chunk(3, -1)
    x_z = x_z.masked_fill(held, torch.inf)  # σ(∞) = 1 holds the state
    of_r, of_z, of_n = weight.chunk(3, -1)
    bias = bias.expand_as(state)  # so that its gradient is summed once
    states = []
    for row_r, row_z, row_n in zip(*(part.unbind(-3) for part in (x_r, x_z, x_n)), strict=True):
        r, z = product(row_r, state, of_r).sigmoid(), product(row_z, state, of_z).sigmoid()
        n = torch.addcmul(row_n, r, product(bias, state, of_n)).tanh()
        state = torch.lerp(n, state, z)
        states.append(state)
    return torch.stack(states, -3)


def fast_recurrence(gates: Tensor, state: Tensor, weight: Tensor, bias: Tensor, held: Tensor) -> Tensor:
    """`plain_recurrence` with a backward pass written by hand; once differentiable."""
    states: Tensor = _Recurrence.apply(gates, state, weight, bias, held.to(gates.dtype))  # type: ignore[no-untyped-call]  # torch's is untyped
    return states


class _Recurrence(torch.autograd.Function):
    """`apply(gates, state, weight, bias, held)` → states; held is float.

    `backward` puts the gradients of n, r, z and U_n h side by side: the first three are those of the gates, and the
    last three those of U h. Hence the two orders.
    """

    @staticmethod
    def forward(ctx: Any, gates: Tensor, state: Tensor, weight: Tensor, bias: Tensor, held: Tensor) -> Tensor:
        (*copies, rows, lanes, _), size = gates.shape, state.shape[-1]
        product = torch.baddbmm if copies else torch.addmm
        states = gates.new_empty(*copies, rows + 1, lanes, size)
        states.select(-3, 0).copy_(state)
        kept = rows if any(ctx.needs_input_grad) else 1  # without gradients, each row overwrites the one before
        updates, candidates, products = (  # r and z; n; U_n h + b_u
            gates.new_empty(*copies, kept, lanes, width).expand(*copies, rows, lanes, width)
            for width in (2 * size, size, size)
        )
        of_updates, of_products = torch.split(weight, [2 * size, size], -1)
        walk = (
            *(gates[..., size:], gates[..., :size], updates, updates[..., :size], updates[..., size:], candidates),
            *(products, held, states.narrow(-3, 0, rows), states.narrow(-3, 1, rows)),
        )
        for x_rz, x_n, rz, r, z, n, u, hold, h, out in zip(*(part.unbind(-3) for part in walk), strict=True):
            product(x_rz, h, of_updates, out=rz).sigmoid_()
            torch.maximum(z, hold, out=z)
            product(bias, h, of_products, out=u)
            torch.addcmul(x_n, r, u, out=n).tanh_()
            torch.lerp(n, h, z, out=out)
        ctx.save_for_backward(weight, states, updates, candidates, products)
        return states.narrow(-3, 1, rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        weight, states, updates, candidates, products = ctx.saved_tensors
        rows, size = slope.shape[-3], slope.shape[-1]
        product = torch.baddbmm if weight.dim() == 3 else torch.addmm
        of_tanh, of_sigmoid = torch.ops.aten.tanh_backward.grad_input, torch.ops.aten.sigmoid_backward.grad_input
        before = states.narrow(-3, 0, rows)
        slopes = slope.new_empty(*slope.shape[:-1], 4 * size)
        walk = (
            *(slope, before, updates, updates[..., :size], updates[..., size:], candidates, products),
            *(slopes[..., :size], slopes[..., size : 3 * size], slopes[..., 3 * size :], slopes[..., size:]),
        )
        of_state, back = torch.zeros_like(states.select(-3, 0)), weight.mT
        outer = slope.new_empty(*slope.shape[:-3], slope.shape[-2], 2 * size)  # gradients of r and z
        of_r, of_z = outer.chunk(2, -1)
        steps = list(zip(*(part.unbind(-3) for part in walk), strict=True))
        for of_h, h, rz, r, z, n, u, of_n, of_rz, of_u, of_product in reversed(steps):
            of_h = of_h + of_state
            of_state = of_h * z
            of_tanh(of_h - of_state, n, grad_input=of_n)
            torch.mul(of_n, r, out=of_u)
            torch.mul(of_n, u, out=of_r)
            torch.mul(of_h, h - n, out=of_z)
            of_sigmoid(outer, rz, grad_input=of_rz)
            of_state = product(of_state, of_product, back)
        of_product = slopes[..., size:].flatten(-3, -2)
        of_weight = before.flatten(-3, -2).mT @ of_product
        of_bias = of_product[..., 2 * size :].sum(-2, keepdim=weight.dim() == 3)
        return slopes[..., : 3 * size], of_state, of_weight, of_bias, None
