"""A ReLU perceptron over many rows, in chunks whose activations stay in a CPU's cache.

CQL scores 31 actions per observation with two critics: layer by layer, every activation is 16 MB and travels to memory
and back for each elementwise operation. In chunks the products are the same, in another order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROWS = 512
"""Rows of a chunk, for each of torch's threads: all of them work on one product."""


class ChunkedPerceptron(torch.autograd.Function):
    """`apply(x, w1, b1, w2, b2, …)`: x [C, M, in], weights [C, in, out], biases [C, 1, out] → ([C, M, out], …).

    ReLU between layers, none after the last. The outputs after the first are the activations that `backward` needs, and
    carry no gradient. Under `torch.vmap` the new axis is folded into that of the copies. Not differentiable twice.
    """

    @staticmethod
    def forward(x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        """The output, then the activations of each hidden layer."""
        weights, biases = parameters[::2], parameters[1::2]
        (copies, rows), size = x.shape[:2], ROWS * torch.get_num_threads()
        layers = [x.new_empty(copies, rows, weight.shape[-1]) for weight in weights]
        for copy in range(copies):
            own = [
                (layer[copy], weight[copy], bias[copy])
                for layer, weight, bias in zip(layers, weights, biases, strict=True)
            ]
            for begin in range(0, rows, size):
                chunk = slice(begin, begin + size)
                h = x[copy, chunk]
                for number, (layer, weight, bias) in enumerate(own, 1):
                    h = torch.addmm(bias, h, weight, out=layer[chunk])
                    if number < len(own):
                        h.relu_()
        return layers[-1], *layers[:-1]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        """Keep inputs and activations; the activations' own gradients are never asked for."""
        ctx.layers = (len(inputs) - 1) // 2
        ctx.save_for_backward(inputs[0], *inputs[1::2], *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        """Back through the layers of one chunk after the other, adding up the parameters' gradients."""
        x, *saved = ctx.saved_tensors
        weights, inputs = saved[: ctx.layers], [x, *saved[ctx.layers :]]  # of each layer
        need_x, need_parameters = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:])
        of_x = torch.empty_like(x, memory_format=torch.contiguous_format) if need_x else None
        of_weights = [torch.zeros_like(weight) for weight in weights if need_parameters]
        of_biases = [weight.new_zeros(weight.shape[0], 1, weight.shape[2]) for weight in weights if need_parameters]
        size = ROWS * torch.get_num_threads()
        for copy in range(x.shape[0]):
            own = [(layer[copy], weight[copy].T) for layer, weight in zip(inputs, weights, strict=True)]
            sums = [(of_weight[copy], of_bias[copy]) for of_weight, of_bias in zip(of_weights, of_biases, strict=True)]
            for begin in range(0, x.shape[1], size):
                rows = slice(begin, begin + size)
                g = slope[copy, rows]
                for number, (layer, back) in reversed(list(enumerate(own))):
                    h = layer[rows]
                    if need_parameters:
                        of_weight, of_bias = sums[number]
                        of_weight.addmm_(h.T, g)
                        of_bias += g.sum(0)
                    if number:
                        g = g @ back
                        torch.ops.aten.threshold_backward.grad_input(g, h, 0, grad_input=g)
                    elif of_x is not None:
                        torch.mm(g, back, out=of_x[copy, rows])
        if not need_parameters:
            return of_x, *[None] * (2 * ctx.layers)
        return of_x, *(gradient for pair in zip(of_weights, of_biases, strict=True) for gradient in pair)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        """Fold the mapped axis into the copies: [S, C, …] → [S · C, …]."""
        size = info.batch_size
        folded = [
            (value.unsqueeze(0).expand(size, *value.shape) if axis is None else value.movedim(axis, 0)).flatten(0, 1)
            for value, axis in zip(inputs, in_dims, strict=True)
        ]
        output, *hidden = chunked_perceptron(*folded)
        return (output.reshape(size, -1, *output.shape[1:]), *hidden), (0, *[None] * len(hidden))


def chunked_perceptron(x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
    """`ChunkedPerceptron` applied; the first output is the perceptron's."""
    outputs: tuple[Tensor, ...] = ChunkedPerceptron.apply(x, *parameters)  # type: ignore[no-untyped-call]
    return outputs
