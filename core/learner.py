"""The learner of every algorithm: parameters, targets, optimisers, clipping, seeds and compilation.

An algorithm writes its loss for ONE seed, `objective(params, *inputs) -> (scalar, metrics)`, and hands it to
`Learner.step`. With S > 1 seeds every parameter, batch and noise has a leading axis of S, `torch.vmap` lifts the loss
over it, and one backward pass of the sum gives every seed its own gradient, for seeds share nothing. A single seed
has no such axis and no vmap.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from herdbook.core.networks import refuse_hidden_state
from herdbook.core.random import derive, generator, restore_generator, scoped_seed
from herdbook.core.types import Metrics, batch_type, tree_map

Parameters = dict[str, Tensor]
"""The parameters of one network by name; they need not be leaves."""
_INIT, _NOISE = 0, 1  # streams of randomness of one seed


@batch_type
@dataclass(frozen=True, slots=True)
class Params:
    """The parameters that a loss may read: `params["actor"]`, and the target networks `params.target["critic"]`.

    Only the networks that the current step optimises carry gradients, and of them not what a module fixes with
    `requires_grad=False`; those in `frozen` never do.
    """

    online: dict[str, Parameters]
    target: dict[str, Parameters]
    frozen: dict[str, Parameters]

    def __getitem__(self, name: str) -> Parameters:
        return self.online[name]


Objective = Callable[..., tuple[Tensor, Metrics]]


class Setup(TypedDict, total=False):
    """Arguments of every algorithm beside its config and spec; it passes them to its learner."""

    seeds: Sequence[int]  # distinct non-negative numbers; each has its own parameters and noise
    device: str | torch.device
    networks: Mapping[str, Callable[[], nn.Module]] | None  # a user's own modules in place of the algorithm's; copied
    compile: bool | str  # compile the losses with torch.compile; a string names the backend


def check_one_seed(algorithm: str, setup: Setup, why: str, otherwise: str = "") -> None:
    """Raise ValueError for more than one seed. `why`: the subject and verb of the message, as "it trains"."""
    seeds = setup.get("seeds", (0,))
    if len(seeds) > 1:
        raise ValueError(
            f"{algorithm}: {why} one seed at a time, got seeds {list(seeds)}; make one for each seed{otherwise}"
        )


def private_copy(module: nn.Module) -> nn.Module:
    """A copy with parameters of its own, because a user may give one module to several learners.

    It shares the module's hooks, and tensors that are neither parameters nor buffers.
    """
    shared: dict[int, Any] = {}
    for part in module.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks):
            shared.update({id(hook): hook for hook in hooks.values()})
        shared.update({id(value): value for value in vars(part).values() if isinstance(value, Tensor)})
    return copy.deepcopy(module, shared)


class Network:
    """A module as a function of its parameters: `network(params["critic"], observations, actions)`.

    With `own`, the module's own parameters, the module is called directly, and with `detached`, the same values without
    gradients, where no gradients are recorded. With others, `torch.func.functional_call` takes a third of a small
    network's time. Shared parameters go by the first of their names, so that functional_call
    need not search for them.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.own: Parameters = dict(module.named_parameters())
        self.detached: Parameters | None = None
        self._tied: dict[str, str] = {}  # other names of shared parameters → their first name
        first: dict[nn.Parameter, str] = {}
        for prefix, owner in module.named_modules():
            for name, parameter in owner.named_parameters(prefix, recurse=False, remove_duplicate=False):
                if parameter in first:
                    self._tied[name] = first[parameter]
                else:
                    first[parameter] = name

    def __call__(self, parameters: Parameters, *inputs: Any) -> Any:
        own = parameters is self.own or (parameters is self.detached and not torch.is_grad_enabled())
        if own and not torch.compiler.is_compiling():
            return self.module(*inputs)
        if missing := self.own.keys() - parameters.keys():
            raise KeyError(f"expected all parameters of the network, got none for {', '.join(sorted(missing))}")
        if self._tied:
            parameters = {**parameters, **{name: parameters[first] for name, first in self._tied.items()}}
        return torch.func.functional_call(self.module, parameters, inputs, tie_weights=False)

    def first_copy(self, parameters: Parameters) -> Parameters:
        """The parameters of an ensemble's first copy, as an ensemble of one. Those of other modules are unchanged."""
        stacked: tuple[str, ...] = getattr(self.module, "stacked_prefixes", ())
        return {name: value[:1] if name.startswith(stacked) else value for name, value in parameters.items()}


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Settings of one optimiser (Kingma & Ba 2015)."""

    lr: float
    networks: tuple[str, ...] = ()  # the networks it trains; by default the one of its own name
    max_grad_norm: float | None = None  # clip the gradient to this norm, per seed
    cosine_updates: int | None = None  # the learning rate decays to 0 by a cosine over so many steps
    epsilon: float = 1e-8  # ε, which is added to the root of the second moment


class _Optimiser:
    """Adam for the parameters of some networks that require a gradient. All have taken the same number of steps."""

    def __init__(self, settings: Adam, networks: Sequence[str], params: Params) -> None:
        self.settings = settings
        self.networks = networks
        trained = [(n, key, leaf) for n in networks for key, leaf in params[n].items() if leaf.requires_grad]
        if not trained:
            raise ValueError(f"networks {list(networks)}: expected a parameter to train, got none with requires_grad")
        self.leaves = [leaf for _, _, leaf in trained]
        self.values = {f"{n}/{key}": params.frozen[n][key] for n, key, _ in trained}
        self.averages = {key: torch.zeros_like(value) for key, value in self.values.items()}
        self.squares = {key: torch.zeros_like(value) for key, value in self.values.items()}
        self.steps = 0
        # torch counts the steps of each parameter.
        self.counts = [torch.zeros((), device=leaf.device) for leaf in self.leaves]

    @torch.no_grad()
    def apply(self, gradients: tuple[Tensor, ...], batched: bool, rate_scale: float) -> None:
        settings, rate = self.settings, self.settings.lr * rate_scale
        if settings.max_grad_norm is not None:
            gradients = clip_per_seed(gradients, settings.max_grad_norm, batched)
        if settings.cosine_updates is not None:
            rate *= 0.5 * (1 + math.cos(math.pi * min(self.steps / settings.cosine_updates, 1.0)))
        self.steps += 1
        # torch.optim.Adam calls this function. The class itself would import torch's compiler, which takes 3 s.
        adam(
            list(self.values.values()),
            # The fused kernel ignores strides: the gradient of a transposed weight would be applied transposed.
            [gradient.contiguous() for gradient in gradients],
            list(self.averages.values()),
            list(self.squares.values()),
            [],
            self.counts,
            fused=True,
            lr=rate,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            eps=settings.epsilon,
            amsgrad=False,
            maximize=False,
        )


class Learner:
    """See the module's docstring.

    Args:
        defaults: name → a function that builds the module; called once per seed, under that seed.
        optimisers: name → settings; the name is what `step` is called with.
        targets: networks that have a slow copy in `params.target`, equal at the start.
        seeds, device, networks, compile: see `Setup`.

    Raises:
        ValueError: seeds are empty, negative or repeated; `networks` names one that the algorithm does not have, or
            makes a module with buffers, with dropout, or (with all that its optimiser trains) without a parameter
            that requires a gradient.
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
        self.rate_scale = 1.0  # multiplies the rates of all optimisers, for schedules of the algorithm
        self.generators = [generator(seed, _NOISE, device=self.device) for seed in self.seeds]
        self.networks: dict[str, Network] = {}
        online: dict[str, Parameters] = {}
        for index, (name, make) in enumerate({**defaults, **own}.items()):
            modules = []
            for seed in self.seeds:
                with scoped_seed(derive(seed, _INIT, index)):
                    modules.append(make().to(self.device))
            refuse_hidden_state(modules[0], f"network {name!r}")
            self.networks[name] = network = Network(private_copy(modules[0]))
            online[name] = network.own
            if self.batched:
                each = [dict(module.named_parameters()) for module in modules]
                online[name] = {
                    key: torch.stack([parts[key].detach() for parts in each]).requires_grad_(value.requires_grad)
                    for key, value in network.own.items()
                }
        frozen = {name: {k: v.detach() for k, v in p.items()} for name, p in online.items()}
        if not self.batched:
            for name, network in self.networks.items():
                network.detached = frozen[name]
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
        """One step of an optimiser on `objective`, or of several optimisers on the sum of their losses.

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
            optimiser.apply(own, self.batched, self.rate_scale)
        return {f"loss/{names[0]}": loss.detach()} | {key: value.detach() for key, value in metrics.items()}

    def _view(self, names: tuple[str, ...]) -> Params:
        """All parameters; only those of these optimisers carry gradients. Cached."""
        if names not in self._views:
            moved = {network for name in names for network in self._optimisers[name].networks}
            online, frozen = self.params.online, self.params.frozen
            self._views[names] = Params(
                {name: online[name] if name in moved else frozen[name] for name in online}, self.params.target, frozen
            )
        return self._views[names]

    def _lifted(self, names: tuple[str, ...], objective: Objective) -> Objective:
        """The objective over all seeds, compiled on request, once for each function."""
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
        """Uniform noise in [−1, 1), one draw per seed as in `normal`."""
        draws = [torch.empty(shape, device=self.device).uniform_(-1, 1, generator=g) for g in self.generators]
        return torch.stack(draws) if self.batched else draws[0]

    def parameters_of(self, name: str, seed_index: int = 0) -> Parameters:
        """One seed's parameters of one network, without gradients. They are views: training changes them."""
        if not 0 <= seed_index < len(self.seeds):
            raise IndexError(f"expected a seed index in [0, {len(self.seeds) - 1}], got {seed_index}")
        frozen = self.params.frozen[name]
        return {k: v[seed_index] for k, v in frozen.items()} if self.batched else frozen

    def state_dict(self) -> dict[str, Any]:
        """Parameters and targets (always with a leading seed axis), optimisers, counters and generators."""
        lead: Callable[[Tensor], Tensor] = (lambda x: x) if self.batched else (lambda x: x.unsqueeze(0))
        optimisers = {
            name: {
                "steps": optimiser.steps,
                "averages": tree_map(lead, optimiser.averages),
                "squares": tree_map(lead, optimiser.squares),
            }
            for name, optimiser in self._optimisers.items()
        }
        return {
            "updates": self.updates,
            "seeds": list(self.seeds),
            "online": tree_map(lead, self.params.frozen),
            "target": tree_map(lead, self.params.target),
            "optimisers": optimisers,
            "generators": [g.get_state() for g in self.generators],
        }

    def check(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError if the state is of another algorithm, other networks or other seeds."""
        _check_same(self.state_dict(), state)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave. Raises ValueError as `check`, and changes nothing then."""
        self.check(state)
        lead: Callable[[Tensor], Tensor] = (lambda x: x) if self.batched else (lambda x: x.squeeze(0))
        for ours, theirs in ((self.params.frozen, state["online"]), (self.params.target, state["target"])):
            for name, parameters in ours.items():
                for key, value in parameters.items():
                    value.copy_(lead(theirs[name][key]))
        for name, optimiser in self._optimisers.items():
            saved = state["optimisers"][name]
            optimiser.steps = int(saved["steps"])
            for count in optimiser.counts:
                count.fill_(optimiser.steps)
            for key in optimiser.values:
                optimiser.averages[key].copy_(lead(saved["averages"][key]))
                optimiser.squares[key].copy_(lead(saved["squares"][key]))
        self.updates = int(state["updates"])
        for seed, own, saved_state in zip(self.seeds, self.generators, state["generators"], strict=True):
            restore_generator(own, saved_state, seed, _NOISE, self.updates)


def clip_per_seed(gradients: tuple[Tensor, ...] | list[Tensor], max_norm: float, batched: bool) -> tuple[Tensor, ...]:
    """Scale each seed's gradient so that its norm over all tensors is at most `max_norm`.

    gradients: each [S, …] if `batched`, else without the axis. As torch.nn.utils.clip_grad_norm_, but per seed.
    """
    if not batched:
        norms = torch._foreach_norm(gradients)
        if norms[0].is_cpu:  # on a GPU this would wait for the device
            factor = max_norm / (math.hypot(*map(float, norms)) + 1e-6)
            return tuple(gradients if factor >= 1 else torch._foreach_mul(gradients, factor))
        norm = torch.linalg.vector_norm(torch.stack(norms))
        return tuple(torch._foreach_mul(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0)))
    squares = torch.stack([g.reshape(len(g), -1).square().sum(-1) for g in gradients])  # [tensors, S]
    scale = (max_norm / (squares.sum(0).sqrt() + 1e-6)).clamp(max=1.0)  # [S]
    return tuple(g * scale.reshape(-1, *[1] * (g.dim() - 1)) for g in gradients)


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
        for name, optimiser in theirs["optimisers"].items():
            for part in ("averages", "squares"):
                own_shapes = {key: tuple(value.shape) for key, value in ours["optimisers"][name][part].items()}
                shapes = {key: tuple(value.shape) for key, value in optimiser[part].items()}
                if shapes != own_shapes:
                    raise ValueError(
                        f"the state does not fit: {part} of optimiser {name} are {shapes}, not {own_shapes}"
                    )
            int(optimiser["steps"])
        if len(theirs["generators"]) != len(ours["generators"]):
            raise ValueError(f"expected one generator for each seed, the state has {len(theirs['generators'])}")
        int(theirs["updates"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not the state of a learner: {error!r} is missing or malformed") from error


def _shapes(networks: Mapping[str, Mapping[str, Tensor]]) -> dict[str, tuple[int, ...]]:
    return {f"{name}/{key}": tuple(v.shape) for name, parameters in networks.items() for key, v in parameters.items()}
