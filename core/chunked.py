"""A ReLU perceptron over many rows, in chunks whose activations stay in a CPU's cache.

CQL scores 31 actions per observation with two critics: layer by layer, every activation is 16 MB and travels to memory
and back for each elementwise operation. In chunks the products are the same, in another order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROWS = 512
"""Rows of a chunk."""


class ChunkedPerceptron(torch.autograd.Function):
    """`apply(x, w1, b1, w2, b2, …)`: x [C, M, in], weights [C, in, out], biases [C, 1, out] → ([C, M, out], …).

    ReLU between layers, none after the last. The outputs after the first are the activations that `backward` needs, and
    carry no gradient. Under `torch.vmap` the new axis is folded into that of the copies. Not differentiable twice.
    """

    @staticmethod
    def forward(x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        """The output, then the activations of each chunk and hidden layer."""
        weights, biases = parameters[::2], parameters[1::2]
        outputs, hidden = [], []
        for h in torch.split(x, ROWS, 1):
            for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
                h = torch.baddbmm(bias, h, weight).relu_()
                hidden.append(h)
            outputs.append(torch.baddbmm(biases[-1], h, weights[-1]))
        return torch.cat(outputs, 1), *hidden

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
        layers = ctx.layers
        x, *saved = ctx.saved_tensors
        weights, hidden = saved[:layers], saved[layers:]
        need_x, need_parameters = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:])
        gradients: list[Tensor] = []
        slopes_of_x = []
        chunks = zip(torch.split(x, ROWS, 1), torch.split(slope, ROWS, 1), strict=True)
        for number, (rows, g) in enumerate(chunks):
            inputs = [rows, *hidden[number * (layers - 1) : (number + 1) * (layers - 1)]]
            for layer in reversed(range(layers)):
                if need_parameters:
                    position = 2 * (layers - 1 - layer)
                    if number == 0:
                        gradients += [inputs[layer].mT @ g, g.sum(1, keepdim=True)]
                    else:
                        gradients[position].baddbmm_(inputs[layer].mT, g)
                        gradients[position + 1] += g.sum(1, keepdim=True)
                if layer:
                    g = torch.ops.aten.threshold_backward(g @ weights[layer].mT, inputs[layer], 0)
                elif need_x:
                    slopes_of_x.append(g @ weights[0].mT)
        of_x = torch.cat(slopes_of_x, 1) if need_x else None
        if not need_parameters:
            return of_x, *[None] * (2 * layers)
        return of_x, *(gradients[2 * (layers - 1 - layer) + part] for layer in range(layers) for part in (0, 1))

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
