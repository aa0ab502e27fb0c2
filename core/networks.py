"""Networks that the algorithms share: encoders of observations, perceptrons, ensembles, actors and critics.

They are plain modules with torch's default initialisation. An ensemble is one module whose parameters have a leading
`copies` axis and whose products are batched, so that twin critics cost one call. Shapes: observations `[B, …]`,
actions `[*N, B, A]` with N candidate actions per observation, values `[copies, *N, B]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from herdbook.core.distributions import Categorical, ClippedNormal, Normal, SquashedNormal
from herdbook.core.recurrence import fast_recurrence, plain_recurrence
from herdbook.core.spaces import channels_first, is_image
from herdbook.core.types import Tree, tree_map

Activation = Callable[[Tensor], Tensor]
DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def refuse_hidden_state(module: nn.Module, at: str) -> None:
    """Raise ValueError for a module whose outputs depend on more than its inputs and its parameters."""
    if buffers := [key for key, _ in module.named_buffers()]:
        raise ValueError(
            f"{at}: expected a module without buffers (such as batch normalisation has), got {buffers}; seeds would "
            "share them and no checkpoint would hold them"
        )
    if dropout := [key for key, part in module.named_modules() if isinstance(part, DROPOUT) and part.p > 0]:
        raise ValueError(
            f"{at}: expected a module without dropout, got {dropout}; it would go on in the policy, and draw from "
            "torch's global generator, which no checkpoint holds"
        )


class Linear(nn.Module):
    """y = xWᵀ + b with torch's default initialisation; with `copies`, one W and b each: [B, in] or
    [C, B, in] → [C, B, out].

    Copies store Wᵀ [C, in, out], so that their gradient comes out of the batched product in its own layout.
    """

    def __init__(self, inputs: int, outputs: int, copies: int | None = None) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        weight = (outputs, inputs) if copies is None else (copies, inputs, outputs)
        bias = (outputs,) if copies is None else (copies, 1, outputs)
        self.weight = nn.Parameter(torch.empty(weight).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(bias).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight  # once: a parametrisation computes it each time
        if weight.dim() == 2:
            return F.linear(x, weight, self.bias)
        x = x.expand(len(weight), *x.shape[-2:])
        if weight.shape[-1] == 1:
            # A batched matrix-vector product takes about five times as long forward, and with seeds twice backward.
            return (x * weight.mT).sum(-1, keepdim=True) + self.bias
        return torch.baddbmm(self.bias, x, weight)


class MLP(nn.Module):
    """Perceptron: [*B, in] → [*B, out], or [copies, *B, out] with `copies`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden_sizes: Sequence[int],
        *,
        copies: int | None = None,
        activation: Activation = torch.relu,  # not in place, because hooks may keep a layer's output
    ) -> None:
        super().__init__()
        sizes = (inputs, *hidden_sizes, outputs)
        self.layers = nn.ModuleList(Linear(i, o, copies) for i, o in pairwise(sizes))
        self.copies = copies
        self.activation = activation

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """kept: factors of the hidden units, those of all layers in a row [*B, sum of widths], see `dropout`."""
        lead = x.shape[:-1]
        if self.copies is not None:
            x = x.reshape(-1, x.shape[-1])
        *hidden, last = self.layers  # a slice would build a new ModuleList
        for layer in hidden:
            x = self.activation(layer(x))
            if kept is not None:
                x, kept = x * kept[..., : x.shape[-1]], kept[..., x.shape[-1] :]
        y: Tensor = last(x)
        return y if self.copies is None else y.reshape(len(y), *lead, -1)


def dropout(uniform: Tensor, probability: float) -> Tensor:
    """Factors of units in dropout (Srivastava et al. 2014): 0 with the probability p, else 1 / (1 − p).

    uniform: Noise in [−1, 1), of any shape. It is drawn outside the network, so that runs can be resumed to the bit.
    """
    return (uniform >= 2 * probability - 1).float() / (1 - probability)


class GRU(nn.Module):
    """Gated recurrent units over sequences (Cho et al. 2014): [*C, T, B, in] → states [*C, T, B, size].

        r, z = σ(W_rz x + U_rz h + b_rz),   n = tanh(W_n x + b_n + r ⊙ (U_n h + b_u)),   h′ = (1 − z) ⊙ n + z ⊙ h

    The same function as torch.nn.GRU, whose second bias for r and z is redundant. C is the axis of the `copies`, absent
    without them. Where `held` is True, the state stays as it is.
    """

    def __init__(self, inputs: int, size: int, copies: int | None = None) -> None:
        super().__init__()
        bound = 1 / math.sqrt(size)
        lead = () if copies is None else (copies,)
        bias = (size,) if copies is None else (copies, 1, size)
        self.gates = Linear(inputs, 3 * size, copies)  # W and b in the order n, r, z
        self.weight = nn.Parameter(torch.empty(*lead, size, 3 * size))  # Uᵀ in the order r, z, n
        self.bias = nn.Parameter(torch.empty(bias))  # b_u
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor, state: Tensor, held: Tensor) -> Tensor:
        """x: [*C, T, B, in]; state: the one before the first row, [*C, B, size]; held: [*C, T, B, 1] bool."""
        gates = self.gates(x.flatten(-3, -2)).reshape(*x.shape[:-1], -1)  # one matrix product for all rows
        recurrence = plain_recurrence if torch.compiler.is_compiling() else fast_recurrence
        return recurrence(gates, state, self.weight, self.bias, held)


class Ensemble(nn.Module):
    """Independent copies of a module that maps (observations [M, …], actions [M, A]) to values [M] or [M, 1].

    It turns a user's critic into twin critics. Observations are repeated for candidate actions [*N, B, A], which gives
    values [copies, *N, B].
    """

    def __init__(self, make: Callable[[], nn.Module], copies: int) -> None:
        super().__init__()
        modules = [make() for _ in range(copies)]
        refuse_hidden_state(modules[0], "Ensemble")
        self.template = [modules[0]]  # in a list, so that torch does not register its parameters
        self.names = [name for name, _ in modules[0].named_parameters()]
        self.stacked_prefixes = ("stacked.",)  # names of the parameters with an axis of copies
        self.stacked = nn.ParameterList(
            nn.Parameter(torch.stack([p.detach() for p in copies]), requires_grad=copies[0].requires_grad)
            for copies in zip(*(m.parameters() for m in modules), strict=True)
        )

    def forward(self, observations: Tree, actions: Tensor) -> Tensor:
        lead = actions.shape[:-1]
        observations = tree_map(lambda x: x.expand(*lead, *x.shape[1:]).reshape(-1, *x.shape[1:]), observations)
        flat = actions.reshape(-1, actions.shape[-1])
        call: Any = torch.func.functional_call
        params = dict(zip(self.names, self.stacked, strict=True))
        values: Tensor = torch.vmap(lambda p: call(self.template[0], p, (observations, flat)))(params)
        return values.reshape(len(self.stacked[0]), *lead)


class Encoder(nn.Module):
    """Observations of a space to one feature vector: [*B, …] → [*B, size].

    Vectors pass through, discrete observations become one-hot, images (HWC uint8; CHW, grey HW and stacks of frames
    [k, H, W, C] too) go through the convolutions of Mnih et al. 2015 after permuting and scaling the range of the space
    to [0, 1], and the parts of a Dict are concatenated in its key order.

    Raises:
        ValueError: The space is none of these.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        super().__init__()
        self.kind: str
        self.size: int
        if isinstance(space, spaces.Dict):
            self.kind, self.keys = "dict", tuple(space.spaces)
            self.parts = nn.ModuleList(map(Encoder, space.spaces.values()))  # a ModuleDict refuses some keys
            self.size = sum(cast(Encoder, part).size for part in self.parts)
        elif isinstance(space, spaces.Discrete):
            self.kind, self.size, self.start = "discrete", int(space.n), int(space.start)
        elif isinstance(space, spaces.Box) and (len(space.shape) == 3 or is_image(space)):
            self.kind, self.shape = "image", space.shape
            self.low, high = float(space.low.min()), float(space.high.max())
            if not math.isfinite(high - self.low):
                raise ValueError(f"expected an image with bounds, to scale it to [0, 1], got {space}")
            self.range = high - self.low or 1.0
            self.convolutions = _convolutions(space.shape)
            self.size = int(self.convolutions(torch.zeros(1, *_chw(space.shape))).shape[-1])
        elif isinstance(space, spaces.Box) and len(space.shape) == 1:
            self.kind, self.size = "vector", int(space.shape[0])
        else:
            raise ValueError(f"expected a vector, image, Discrete or Dict observation space, got {space}")

    def forward(self, observations: Tree) -> Tensor:
        if self.kind == "vector":
            return observations  # type: ignore[no-any-return]
        if self.kind == "discrete":
            return F.one_hot(observations.long() - self.start, self.size).float()
        if self.kind == "image":
            images = _channels_first(observations, self.shape)
            images = (images - self.low if self.low else images) / self.range  # float32
            return self.convolutions(images.flatten(0, -4)).unflatten(0, images.shape[:-3])  # type: ignore[no-any-return]  # torch's is untyped
        return torch.cat([part(observations[key]) for key, part in zip(self.keys, self.parts, strict=True)], -1)


def _chw(shape: Sequence[int]) -> tuple[int, int, int]:
    channels, height, width = _channels_first(torch.empty(*shape, device="meta"), shape).shape
    return channels, height, width


def _channels_first(images: Tensor, shape: Sequence[int]) -> Tensor:
    """Images `[*B, *shape]`, HWC, CHW or HW, as `[*B, C, H, W]`; the frames of a stack become channels."""
    if len(shape) == 2:
        return images.unsqueeze(-3)
    if not channels_first(shape[-3:]):
        images = images.movedim(-1, -3)
    return images if len(shape) == 3 else images.flatten(-4, -3)


def _convolutions(shape: Sequence[int]) -> nn.Module:
    """Kernels and strides of Mnih et al. 2015 for images of at least 36 × 36; 3 × 3 with stride 2 for smaller ones."""
    channels, height, width = _chw(shape)
    small = min(height, width) < 36
    plan = [(32, 3, 2), (64, 3, 2)] if small else [(32, 8, 4), (64, 4, 2), (64, 3, 1)]
    layers: list[nn.Module] = []
    for outputs, kernel, stride in plan:
        layers += [nn.Conv2d(channels, outputs, kernel, stride, padding=1 if small else 0), nn.ReLU()]
        channels = outputs
    return nn.Sequential(*layers, nn.Flatten(-3))


class Head(nn.Module):
    """Encoder and perceptron on observations alone: [B, …] → [B, out], or [copies, B, out]."""

    def __init__(
        self,
        space: spaces.Space[Any],
        outputs: int,
        hidden_sizes: Sequence[int],
        *,
        copies: int | None = None,
        activation: Activation = torch.relu,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(space)
        self.mlp = MLP(self.encoder.size, outputs, hidden_sizes, copies=copies, activation=activation)

    def forward(self, observations: Tree, kept: Tensor | None = None) -> Tensor:
        """kept: as in `MLP.forward`."""
        # The encoder would return a vector unchanged.
        features = observations if self.encoder.kind == "vector" else self.encoder(observations)
        return self.mlp(features, kept)  # type: ignore[no-any-return]  # torch's is untyped


class StateValue(Head):
    """V(s): [B, …] → [B]."""

    def __init__(self, space: spaces.Space[Any], hidden_sizes: Sequence[int]) -> None:
        super().__init__(space, 1, hidden_sizes)

    def forward(self, observations: Tree) -> Tensor:  # type: ignore[override]
        return super().forward(observations).squeeze(-1)


class JointHead(nn.Module):
    """Perceptron on observations [B, …] and a second input [*N, B, X] (action, latent): → [copies?, *N, B, out]."""

    def __init__(
        self,
        space: spaces.Space[Any],
        second_size: int,
        outputs: int,
        hidden_sizes: Sequence[int],
        *,
        copies: int | None = None,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(space)
        self.mlp = MLP(self.encoder.size + second_size, outputs, hidden_sizes, copies=copies)
        self.stacked_prefixes = () if copies is None else ("mlp.",)  # names of the parameters with an axis of copies

    def forward(self, observations: Tree, second: Tensor) -> Tensor:
        return self.joined(self.encoder(observations), second)  # encoded once for all candidates

    def joined(self, features: Tensor, second: Tensor) -> Tensor:
        """`forward` for encoded observations [B, F]."""
        features = features.expand(*second.shape[:-1], features.shape[-1])
        return self.mlp(torch.cat([features, second], -1))  # type: ignore[no-any-return]


class Critic(JointHead):
    """Q_i(s, a) for continuous actions: observations [B, …], actions [*N, B, A] → [copies, *N, B]."""

    def __init__(
        self, space: spaces.Space[Any], action_size: int, hidden_sizes: Sequence[int], *, copies: int = 2
    ) -> None:
        super().__init__(space, action_size, 1, hidden_sizes, copies=copies)

    def joined(self, features: Tensor, second: Tensor) -> Tensor:
        return super().joined(features, second).squeeze(-1)


class DeterministicActor(Head):
    """tanh policy of DDPG and TD3: [B, …] → actions [B, A] in [−1, 1]."""

    def forward(self, observations: Tree, kept: Tensor | None = None) -> Tensor:
        return super().forward(observations, kept).tanh()


class SquashedGaussianActor(Head):
    """tanh-Gaussian policy of SAC; log σ is clamped to [−20, 2] (Haarnoja et al. 2018).

    log_std_range: other bounds of log σ.
    smooth: log σ is mapped into the bounds by a tanh instead of clamped, as in many later implementations of SAC.
    """

    def __init__(
        self,
        space: spaces.Space[Any],
        action_size: int,
        hidden_sizes: Sequence[int],
        *,
        log_std_range: tuple[float, float] = (-20, 2),
        smooth: bool = False,
    ) -> None:
        super().__init__(space, 2 * action_size, hidden_sizes)
        self.low, self.high = log_std_range
        self.smooth = smooth

    def forward(self, observations: Tree) -> SquashedNormal:  # type: ignore[override]
        mean, log_std = super().forward(observations).chunk(2, -1)
        if self.smooth:
            log_std = self.low + (self.high - self.low) * (log_std.tanh() + 1) / 2
        return SquashedNormal(mean, log_std if self.smooth else log_std.clamp(self.low, self.high))


class GaussianActor(Head):
    """Gaussian policy with mean tanh(·) and a log σ that does not depend on the state, clamped to [−5, 2].

    The density is not squashed; sampled actions are clipped to [−1, 1] (Kostrikov et al. 2021).
    """

    def __init__(self, space: spaces.Space[Any], action_size: int, hidden_sizes: Sequence[int]) -> None:
        super().__init__(space, action_size, hidden_sizes)
        self.log_std = nn.Parameter(torch.zeros(action_size))

    def forward(self, observations: Tree, kept: Tensor | None = None) -> Normal:  # type: ignore[override]
        """kept: as in `MLP.forward`."""
        mean = self.mlp(self.encoder(observations), kept).tanh()
        return Normal(mean, self.log_std.clamp(-5, 2).expand_as(mean), clip=True)


class OnPolicyActor(Head):
    """A policy for policy gradients: [B, …] → `Categorical` over n actions, or `ClippedNormal` over a Box.

    tanh units, orthogonal weights, and a last layer a hundredth as large, so that the first policy is nearly uniform,
    or a standard normal of `initial_std` (Andrychowicz et al. 2021, arXiv:2006.05990). σ does not depend on the state.
    """

    def __init__(
        self,
        space: spaces.Space[Any],
        actions: int,
        hidden_sizes: Sequence[int],
        *,
        discrete: bool,
        initial_std: float = 1.0,
    ) -> None:
        super().__init__(space, actions, hidden_sizes, activation=torch.tanh)
        orthogonal_(self.mlp, last_gain=0.01)
        self.log_std = None if discrete else nn.Parameter(torch.full((actions,), math.log(initial_std)))

    def forward(self, observations: Tree) -> Categorical | ClippedNormal:  # type: ignore[override]
        outputs = super().forward(observations)
        return Categorical(outputs) if self.log_std is None else ClippedNormal(outputs, self.log_std.expand_as(outputs))


class OnPolicyValue(Head):
    """V(s) beside an `OnPolicyActor`: [B, …] → [B]."""

    def __init__(self, space: spaces.Space[Any], hidden_sizes: Sequence[int]) -> None:
        super().__init__(space, 1, hidden_sizes, activation=torch.tanh)
        orthogonal_(self.mlp, last_gain=1.0)

    def forward(self, observations: Tree) -> Tensor:  # type: ignore[override]
        return super().forward(observations).squeeze(-1)


def orthogonal_(mlp: MLP, last_gain: float) -> None:
    """Orthogonal weights of gain √2, in the last layer of `last_gain`, and no biases."""
    for number, layer in enumerate(mlp.layers, 1):
        nn.init.orthogonal_(cast(Linear, layer).weight, math.sqrt(2) if number < len(mlp.layers) else last_gain)
        nn.init.zeros_(cast(Linear, layer).bias)


class Scalar(nn.Module):
    """A learned number, such as log α. Called without arguments."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self) -> Tensor:
        return self.value
