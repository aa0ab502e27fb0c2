"""The learner: parameters, targets, optimisers, clipping, seeds and compilation, once for all algorithms.

An algorithm writes its loss for ONE seed, `objective(params, *inputs) -> (scalar, metrics)`, and hands it to
`Learner.step`. With S > 1 seeds every parameter, batch and noise has a leading axis of S, `torch.vmap` lifts the loss
over it, and one backward pass of the sum gives every seed its own gradient, for seeds share nothing. A single seed
has no such axis and no vmap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from herdbook.core.random import derive, generator, scoped_seed
from herdbook.core.types import Metrics, batch_type

Parameters = dict[str, Tensor]
"""The parameters of one network by name; they need not be leaves."""
_INIT, _NOISE = 0, 1  # streams of randomness of one seed


@batch_type
@dataclass(frozen=True, slots=True)
class Params:
    """What a loss may read: `params["actor"]`, and the slow copies `params.target["critic"]`.

    Only the networks that the current step optimises carry gradients; those in `frozen` never do.
    """

    online: dict[str, Parameters]
    target: dict[str, Parameters]
    frozen: dict[str, Parameters]

    def __getitem__(self, name: str) -> Parameters:
        return self.online[name]


Objective = Callable[..., tuple[Tensor, Metrics]]


class Setup(TypedDict, total=False):
    """What every algorithm takes beside its config and spec, and hands to its learner."""

    seeds: Sequence[int]  # distinct non-negative numbers; each has its own parameters and noise
    device: str | torch.device
    networks: Mapping[str, Callable[[], nn.Module]] | None  # a user's own modules in place of the algorithm's
    compile: bool | str  # compile the losses with torch.compile; a string names the backend


class Network:
    """A module as a function of its parameters: `network(params["critic"], observations, actions)`."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, parameters: Parameters, *inputs: Any) -> Any:
        return torch.func.functional_call(self.module, parameters, inputs)


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Settings of one optimiser (Kingma & Ba 2015)."""

    lr: float
    networks: tuple[str, ...] = ()  # what it trains; by default the network of its own name
    max_grad_norm: float | None = None  # the gradient's norm is clipped to this, per seed
    cosine_updates: int | None = None  # cosine decay of the rate to 0 over this many steps


class _Optimiser:
    """Adam over the leaves of some networks."""

    def __init__(self, settings: Adam, networks: Sequence[str], params: Params) -> None:
        self.settings = settings
        self.networks = networks
        self.names = [f"{name}/{key}" for name in networks for key in params[name]]
        self.leaves = [leaf for name in networks for leaf in params[name].values()]
        self.adam = torch.optim.Adam(self.leaves, lr=settings.lr, fused=True)
        self.steps = 0

    def apply(self, gradients: Sequence[Tensor], batched: bool) -> None:
        if self.settings.max_grad_norm is not None:
            gradients = clip_per_seed(gradients, self.settings.max_grad_norm, batched)
        if self.settings.cosine_updates is not None:
            progress = min(self.steps / self.settings.cosine_updates, 1.0)
            self.adam.param_groups[0]["lr"] = self.settings.lr * 0.5 * (1 + math.cos(math.pi * progress))
        for leaf, gradient in zip(self.leaves, gradients, strict=True):
            # Fused Adam walks the memory of parameter and gradient side by side and does not look at strides: the
            # gradient of a transposed weight would be applied transposed.
            leaf.grad = gradient.contiguous()
        self.adam.step()
        self.steps += 1


class Learner:
    """See the module's docstring.

    Args:
        defaults: name → a function that builds the module; called once per seed, under that seed.
        optimisers: name → settings; the name is what `step` is called with.
        targets: networks that have a slow copy in `params.target`, equal at the start.
        seeds, device, networks, compile: see `Setup`.

    Raises:
        ValueError: seeds are empty, negative or repeated; `networks` names one that the algorithm does not have,
            or makes a module with buffers.
    """

    def __init__(
        self,
        defaults: Mapping[str, Callable[[], nn.Module]],
        optimisers: Mapping[str, Adam],
        *,
        targets: Sequence[str] = (),
        networks: Mapping[str, Callable[[], nn.Module]] | None = None,
        seeds: Sequence[int] = (0,),
        device: str | torch.device = "cpu",
        compile: bool | str = False,
    ) -> None:
        self.seeds = tuple(seeds)
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"expected distinct seeds >= 0, got {list(self.seeds)}")
        own = dict(networks or {})
        if unknown := sorted(own.keys() - defaults.keys()):
            raise ValueError(f"expected networks among {sorted(defaults)}, got {unknown}")
        self.device = torch.device(device)
        self.batched = len(self.seeds) > 1
        self.compile = compile
        self.updates = 0
        self.generators = [generator(seed, _NOISE, device=self.device) for seed in self.seeds]
        self.networks: dict[str, Network] = {}
        online: dict[str, Parameters] = {}
        for index, (name, make) in enumerate({**defaults, **own}.items()):
            modules = []
            for seed in self.seeds:
                with scoped_seed(derive(seed, _INIT, index)):
                    modules.append(make().to(self.device))
            if buffers := [key for key, _ in modules[0].named_buffers()]:
                raise ValueError(
                    f"network {name!r}: expected a module without buffers (such as batch normalisation has), got "
                    f"{buffers}; seeds would share them and no checkpoint would hold them"
                )
            self.networks[name] = Network(modules[0])
            stacked = [dict(m.named_parameters()) for m in modules]
            online[name] = {
                key: (torch.stack([p[key].detach() for p in stacked]) if self.batched else stacked[0][key].detach())
                .clone()
                .requires_grad_()
                for key in stacked[0]
            }
            modules[0].requires_grad_(False)
        frozen = {name: {k: v.detach() for k, v in p.items()} for name, p in online.items()}
        slow = {name: {k: v.clone() for k, v in frozen[name].items()} for name in targets}
        self.params = Params(online, slow, frozen)
        self._optimisers = {
            name: _Optimiser(settings, settings.networks or (name,), self.params)
            for name, settings in optimisers.items()
        }
        self._views: dict[tuple[str, ...], Params] = {}
        self._compiled: dict[tuple[tuple[str, ...], Objective], Objective] = {}
        self._slow = [p for name in targets for p in slow[name].values()]
        self._followed = [p for name in targets for p in frozen[name].values()]

    def step(self, names: str | tuple[str, ...], objective: Objective, *inputs: Any) -> Metrics:
        """One step of an optimiser down `objective`, or of several at once down the sum of their losses.

        `objective(params, *inputs)` is written for one seed and returns (scalar loss, metrics). Returns its metrics
        and `loss/<name>` (of several: the sum, under the first name), scalars, or [S] for S seeds.
        """
        names = (names,) if isinstance(names, str) else names
        optimisers = [self._optimisers[name] for name in names]
        loss, metrics = self._lifted(names, objective)(self._view(names), *inputs)
        leaves = [leaf for optimiser in optimisers for leaf in optimiser.leaves]
        total = loss.sum() if self.batched else loss
        gradients = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
        for optimiser in optimisers:
            own, gradients = gradients[: len(optimiser.leaves)], gradients[len(optimiser.leaves) :]
            optimiser.apply(own, self.batched)
        return {f"loss/{names[0]}": loss.detach()} | {key: value.detach() for key, value in metrics.items()}

    def _view(self, names: tuple[str, ...]) -> Params:
        """All parameters, of which only those that these optimisers move carry gradients; made once."""
        if names not in self._views:
            moved = {network for name in names for network in self._optimisers[name].networks}
            online, frozen = self.params.online, self.params.frozen
            self._views[names] = Params(
                {name: online[name] if name in moved else frozen[name] for name in online}, self.params.target, frozen
            )
        return self._views[names]

    def _lifted(self, names: tuple[str, ...], objective: Objective) -> Objective:
        """The objective over all seeds, compiled where asked for (once for each function)."""
        if not self.compile:
            return torch.vmap(objective) if self.batched else objective
        if (names, objective) not in self._compiled:
            lifted: Any = torch.vmap(objective) if self.batched else objective
            backend = self.compile if isinstance(self.compile, str) else "inductor"
            self._compiled[names, objective] = torch.compile(lifted, backend=backend)
        return self._compiled[names, objective]

    @torch.no_grad()
    def move_targets(self, tau: float) -> None:
        """θ̄ ← (1 − τ) θ̄ + τ θ for every target; τ = 1 copies."""
        torch._foreach_lerp_(self._slow, self._followed, tau)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal noise, one draw per seed from its own generator: [*shape], or [S, *shape]."""
        draws = [torch.empty(shape, device=self.device).normal_(generator=g) for g in self.generators]
        return torch.stack(draws) if self.batched else draws[0]

    def uniform(self, *shape: int) -> Tensor:
        """U[−1, 1) noise, as `normal`."""
        draws = [torch.empty(shape, device=self.device).uniform_(-1, 1, generator=g) for g in self.generators]
        return torch.stack(draws) if self.batched else draws[0]

    def parameters_of(self, name: str, seed_index: int = 0) -> Parameters:
        """One seed's parameters of one network, without gradient; they follow the training."""
        if not 0 <= seed_index < len(self.seeds):
            raise IndexError(f"expected a seed index in [0, {len(self.seeds) - 1}], got {seed_index}")
        return {k: v[seed_index] if self.batched else v for k, v in self.params.frozen[name].items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything: parameters and targets (with a leading seed axis, always), optimisers, counters, generators."""
        lead: Callable[[Tensor], Tensor] = (lambda x: x) if self.batched else (lambda x: x.unsqueeze(0))
        optimisers: dict[str, Any] = {}
        for name, optimiser in self._optimisers.items():
            moments = {
                key: {
                    "step": state["step"],
                    "exp_avg": lead(state["exp_avg"]),
                    "exp_avg_sq": lead(state["exp_avg_sq"]),
                }
                for key, leaf in zip(optimiser.names, optimiser.leaves, strict=True)
                if (state := optimiser.adam.state.get(leaf))
            }
            optimisers[name] = {"steps": optimiser.steps, "moments": moments}
        return {
            "updates": self.updates,
            "seeds": list(self.seeds),
            "online": pytree.tree_map(lead, self.params.frozen),
            "target": pytree.tree_map(lead, self.params.target),
            "optimisers": optimisers,
            "generators": [g.get_state() for g in self.generators],
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            ValueError: the state is of another algorithm, other networks or other seeds; nothing is changed then.
        """
        _check_same(self.state_dict(), state)
        lead: Callable[[Tensor], Tensor] = (lambda x: x) if self.batched else (lambda x: x.squeeze(0))
        for ours, theirs in ((self.params.frozen, state["online"]), (self.params.target, state["target"])):
            for name, parameters in ours.items():
                for key, value in parameters.items():
                    value.copy_(lead(theirs[name][key]))
        for name, optimiser in self._optimisers.items():
            saved = state["optimisers"][name]
            optimiser.steps = int(saved["steps"])
            for key, leaf in zip(optimiser.names, optimiser.leaves, strict=True):
                if moments := saved["moments"].get(key):
                    optimiser.adam.state[leaf] = {
                        "step": moments["step"].to(self.device, copy=True),
                        "exp_avg": lead(moments["exp_avg"]).to(self.device, copy=True),
                        "exp_avg_sq": lead(moments["exp_avg_sq"]).to(self.device, copy=True),
                    }
                else:  # the state is from before this optimiser's first step
                    optimiser.adam.state.pop(leaf, None)
        self.updates = int(state["updates"])
        for seed, own, saved_state in zip(self.seeds, self.generators, state["generators"], strict=True):
            if saved_state.shape == own.get_state().shape:
                own.set_state(saved_state.cpu())
            else:  # of another kind of device, whose noise cannot be continued here: fresh noise, the same every time
                own.manual_seed(derive(seed, _NOISE, self.updates))


def clip_per_seed(gradients: Sequence[Tensor], max_norm: float, batched: bool) -> tuple[Tensor, ...]:
    """Scale each seed's gradient so that its norm over all tensors is at most `max_norm`.

    gradients: each [S, …] if `batched`, else without the axis. As torch.nn.utils.clip_grad_norm_, but per seed.
    """
    axes = 1 if batched else 0
    squares = torch.stack([g.reshape(*g.shape[:axes], -1).square().sum(-1) for g in gradients])  # [tensors, S or none]
    scale = (max_norm / (squares.sum(0).sqrt() + 1e-6)).clamp(max=1.0)  # [] or [S]
    return tuple(g * scale.reshape(scale.shape + (1,) * (g.dim() - scale.dim())) for g in gradients)


def _check_same(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Raise ValueError unless names and shapes of parameters, targets and moments agree, and so do the seeds."""
    try:
        if list(theirs["seeds"]) != list(ours["seeds"]):
            raise ValueError(f"expected seeds {list(ours['seeds'])}, the state has {list(theirs['seeds'])}")
        for part in ("online", "target"):
            own, other = _shapes(ours[part]), _shapes(theirs[part])
            for key in sorted(own.keys() | other.keys()):
                if own.get(key) != other.get(key):
                    raise ValueError(
                        f"the state does not fit: {part} {key} is {own.get(key, 'absent')} here and "
                        f"{other.get(key, 'absent')} in the state; is it of another algorithm, config or dataset?"
                    )
        if theirs["optimisers"].keys() != ours["optimisers"].keys():
            raise ValueError(
                f"expected optimisers {sorted(ours['optimisers'])}, the state has {sorted(theirs['optimisers'])}"
            )
        parameters = _shapes(ours["online"])
        for name, optimiser in theirs["optimisers"].items():
            for key, moments in optimiser["moments"].items():
                shapes = {tuple(moments[moment].shape) for moment in ("exp_avg", "exp_avg_sq")}
                if shapes != {parameters.get(key)} or moments["step"].numel() != 1:
                    raise ValueError(
                        f"the state does not fit: the moments of {key} in optimiser {name} are {sorted(shapes)}, "
                        f"the parameter is {parameters.get(key, 'absent')}"
                    )
            int(optimiser["steps"])
        if len(theirs["generators"]) != len(ours["generators"]):
            raise ValueError(f"expected one generator for each seed, the state has {len(theirs['generators'])}")
        int(theirs["updates"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not the state of a learner: {error!r} is missing or malformed") from error


def _shapes(networks: Mapping[str, Mapping[str, Tensor]]) -> dict[str, tuple[int, ...]]:
    return {f"{name}/{key}": tuple(v.shape) for name, parameters in networks.items() for key, v in parameters.items()}
