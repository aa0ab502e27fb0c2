"""The learner: one step against plain Adam, seeds that share nothing, state that comes back whole."""

import copy
import math
import threading
import warnings
from typing import Any

import pytest
import torch
from devices import DEVICES
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.parametrize import register_parametrization

from herdbook.core.learner import Adam, Learner, Network, Params, clip_per_seed
from herdbook.core.networks import MLP


class Point(nn.Module):
    """A vector of parameters: zero, or drawn."""

    def __init__(self, values: list[float] | None = None) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.randn(3) if values is None else torch.tensor(values))

    def forward(self) -> Tensor:
        return self.x


def linear(params: Params, slope: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    return (params["a"]["x"] * slope).sum(), {"largest": 2 * params["a"]["x"].max()}


def joint(params: Params, data: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    return ((params["a"]["x"] + params["b"]["x"] - data) ** 2).sum(), {}


def learner(*, seeds: tuple[int, ...] = (0,), **optimisers: Adam) -> Learner:
    return Learner({"a": Point, "b": Point}, optimisers or {"a": Adam(lr=0.1)}, targets=("a",), seeds=seeds)


def flat(state: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(state, dict):
        return {k: v for key, value in state.items() for k, v in flat(value, f"{prefix}/{key}").items()}
    if isinstance(state, (list, tuple)):
        return {k: v for key, value in enumerate(state) for k, v in flat(value, f"{prefix}/{key}").items()}
    return {prefix: state}


def assert_same_bits(ours: Any, theirs: Any) -> None:
    one, other = flat(ours), flat(theirs)
    assert one.keys() == other.keys()
    for key, value in one.items():
        same = torch.equal(value, other[key]) if isinstance(value, Tensor) else value == other[key]
        assert same, key


def test_the_first_step_of_adam_is_the_rate_against_the_sign() -> None:
    own = Learner({"a": lambda: Point([1.0, 2.0, 3.0])}, {"a": Adam(lr=0.1)})
    metrics = own.step("a", linear, torch.tensor([5.0, -0.5, 0.0]))
    torch.testing.assert_close(own.params["a"]["x"].detach(), torch.tensor([0.9, 2.1, 3.0]))
    assert metrics["loss/a"].item() == 4.0
    assert metrics["largest"].item() == 6.0
    assert not any(value.requires_grad for value in metrics.values())


def test_steps_equal_plain_adam() -> None:
    own = Learner({"a": lambda: MLP(3, 2, (8,))}, {"a": Adam(lr=0.01)}, seeds=(4,))
    plain = MLP(3, 2, (8,))
    plain.load_state_dict(own.parameters_of("a"))
    adam = torch.optim.Adam(plain.parameters(), lr=0.01, fused=False, foreach=False)

    def objective(params: Params, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        prediction = torch.func.functional_call(own.networks["a"].module, params["a"], (x,))
        return (prediction - y).square().mean(), {}

    for _ in range(20):
        x, y = torch.randn(16, 3), torch.randn(16, 2)
        own.step("a", objective, x, y)
        adam.zero_grad()
        (plain(x) - y).square().mean().backward()
        adam.step()
    for name, value in plain.named_parameters():
        torch.testing.assert_close(own.params["a"][name].detach(), value.detach(), rtol=1e-5, atol=1e-7)


def test_a_step_moves_what_its_optimiser_trains_and_nothing_else() -> None:
    own = learner()
    before = copy.deepcopy(own.state_dict())
    own.step("a", joint, torch.zeros(3))
    after = own.state_dict()
    assert not torch.equal(after["online"]["a"]["x"], before["online"]["a"]["x"])
    assert torch.equal(after["online"]["b"]["x"], before["online"]["b"]["x"])
    assert torch.equal(after["target"]["a"]["x"], before["target"]["a"]["x"])


def test_a_network_that_is_not_being_trained_carries_no_gradient() -> None:
    seen: list[bool] = []

    def objective(params: Params) -> tuple[Tensor, dict[str, Tensor]]:
        seen.extend([params["a"]["x"].requires_grad, params["b"]["x"].requires_grad])
        seen.extend([params.frozen["a"]["x"].requires_grad, params.target["a"]["x"].requires_grad])
        return params["a"]["x"].sum(), {}

    learner().step("a", objective)
    assert seen == [True, False, False, False]


def test_frozen_parameters_follow_the_training() -> None:
    own = learner()
    own.step("a", linear, torch.ones(3))
    assert torch.equal(own.params.frozen["a"]["x"], own.params["a"]["x"].detach())


@pytest.mark.parametrize("tau", [0.0, 0.25, 1.0])
def test_targets_start_equal_and_move_by_tau(tau: float) -> None:
    own = learner()
    start = own.params["a"]["x"].detach().clone()
    assert torch.equal(own.params.target["a"]["x"], start)
    own.step("a", linear, torch.ones(3))
    own.move_targets(tau)
    torch.testing.assert_close(own.params.target["a"]["x"], (1 - tau) * start + tau * own.params["a"]["x"].detach())
    if tau in (0.0, 1.0):
        exact = start if tau == 0 else own.params["a"]["x"].detach()
        assert torch.equal(own.params.target["a"]["x"], exact)


def test_several_optimisers_at_once_equal_one_after_the_other_down_the_sum() -> None:
    """Both gradients are taken before either moves."""
    optimisers = {"a": Adam(lr=0.1), "b": Adam(lr=0.01)}
    own, data = learner(**optimisers), torch.tensor([3.0, -1.0, 0.5])
    a, b = (own.parameters_of(name)["x"].clone().requires_grad_() for name in ("a", "b"))
    plain = torch.optim.Adam([{"params": [a], "lr": 0.1}, {"params": [b], "lr": 0.01}])
    for _ in range(5):
        own.step(("a", "b"), joint, data)
        plain.zero_grad()
        ((a + b - data) ** 2).sum().backward()
        plain.step()
    torch.testing.assert_close(own.parameters_of("a")["x"], a.detach())
    torch.testing.assert_close(own.parameters_of("b")["x"], b.detach())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_of_several_seeds_trains_as_if_alone(seed: int) -> None:
    together, alone = learner(seeds=(0, 1, 2)), learner(seeds=(seed,))
    slopes = torch.randn(4, 3, 3)
    for slope in slopes:
        metrics = together.step("a", linear, slope)
        alone.step("a", linear, slope[seed])
    assert metrics["loss/a"].shape == (3,)
    torch.testing.assert_close(together.parameters_of("a", seed)["x"], alone.parameters_of("a")["x"])
    torch.testing.assert_close(together.params.target["a"]["x"][seed], alone.params.target["a"]["x"])


def test_noise_of_a_seed_does_not_depend_on_its_company() -> None:
    together, alone = learner(seeds=(3, 5)), learner(seeds=(5,))
    for name in ("normal", "uniform"):
        drawn = getattr(together, name)(4, 2)
        assert drawn.shape == (2, 4, 2)
        assert torch.equal(drawn[1], getattr(alone, name)(4, 2))
        assert not torch.equal(drawn[0], drawn[1])


def test_uniform_noise_covers_minus_one_to_one() -> None:
    noise = learner().uniform(20_000)
    assert -1 <= float(noise.min()) < -0.99
    assert 0.99 < float(noise.max()) <= 1
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)


def test_training_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    own = learner()
    own.normal(3)
    own.step("a", linear, torch.ones(3))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("steps", "factor"), [(0, 1.0), (1, 0.75), (2, 0.25), (3, 0.0), (4, 0.0), (9, 0.0)])
def test_cosine_decay_ends_at_zero_and_stays_there(steps: int, factor: float) -> None:
    """½ (1 + cos(π t / 3)) after t steps."""
    own = learner(a=Adam(lr=0.1, cosine_updates=3))
    for _ in range(steps):
        own.step("a", linear, torch.ones(3))
    before = own.parameters_of("a")["x"].clone()
    own.step("a", linear, torch.ones(3))
    torch.testing.assert_close(before - own.parameters_of("a")["x"], torch.full((3,), 0.1 * factor), atol=1e-6, rtol=0)


# --- modules --------------------------------------------------------------------------------------------------------


class Doubled(nn.Module):
    """A parametrisation."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def parametrised(copies: int | None = None) -> MLP:
    mlp = MLP(3, 1, (4,), copies=copies)
    register_parametrization(mlp.layers[0], "weight", Doubled())
    return mlp


@pytest.mark.parametrize("copies", [None, 2])
@pytest.mark.parametrize("seeds", [(0,), (0, 5)])
def test_a_module_with_parametrisations_computes_with_the_given_ones(
    seeds: tuple[int, ...], copies: int | None
) -> None:
    """W = 2 V, and it is V that is trained."""
    own = Learner({"a": lambda: parametrised(copies)}, {"a": Adam(lr=0.1)}, seeds=seeds)
    key, x = "layers.0.parametrizations.weight.original", torch.randn(*(seeds[1:] and (len(seeds),)), 8, 3)
    assert list(own.params["a"])[:2] == ["layers.0.bias", key]
    before, twin = own.params["a"][key].detach().clone(), MLP(3, 1, (4,), copies=copies)

    def objective(params: Params, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        given = {"layers.0.weight": 2 * params["a"][key]}
        given |= {name: value for name, value in params["a"].items() if name != key}
        plain = torch.func.functional_call(twin, given, (x,))
        ours = own.networks["a"](params["a"], x)
        return ours.sum(), {"difference": (ours - plain).abs().max()}

    metrics = own.step("a", objective, x)
    assert float(metrics["difference"].max()) < 1e-6
    assert not torch.equal(own.params["a"][key].detach(), before)


def test_hooks_of_a_module_and_of_its_layers_run() -> None:
    own, seen = Learner({"a": lambda: MLP(3, 1, (4,))}, {"a": Adam(lr=0.1)}), []
    mlp = own.networks["a"].module
    for module in mlp.modules():
        module.register_forward_hook(lambda module, inputs, output: seen.append(module))
    own.networks["a"](own.params["a"], torch.randn(5, 3))
    assert seen == [mlp.layers[0], mlp.layers[1], mlp]  # type: ignore[index]  # a ModuleList


class Recorder:
    """Counts what a hook of its own sees; it cannot be copied."""

    def __init__(self) -> None:
        self.calls, self.lock = 0, threading.Lock()

    def hook(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.calls += 1


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_a_users_hook_that_is_a_method_reaches_its_own_object(seeds: tuple[int, ...]) -> None:
    recorder = Recorder()

    def make() -> nn.Module:
        module = nn.Linear(3, 1)
        module.register_forward_hook(recorder.hook)
        return module

    own, x = Learner({"a": make}, {"a": Adam(lr=0.1)}, seeds=seeds), torch.randn(len(seeds), 5, 3)
    own.step("a", lambda params, x: (own.networks["a"](params["a"], x).sum(), {}), x if len(seeds) > 1 else x[0])
    assert recorder.calls == 1


def test_tensors_of_a_module_that_are_no_parameters_are_allowed() -> None:
    """`torch.nn.utils.weight_norm` keeps the weight as a tensor with a graph, which cannot be copied."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer torch has parametrizations.weight_norm
        module = nn.utils.weight_norm(nn.Linear(3, 1))
    own, x = Learner({"a": lambda: module}, {"a": Adam(lr=0.1)}), torch.randn(5, 3)
    before = {name: value.detach().clone() for name, value in own.params["a"].items()}
    own.step("a", lambda params, x: (own.networks["a"](params["a"], x).square().sum(), {}), x)
    assert all(not torch.equal(own.params["a"][name].detach(), value) for name, value in before.items())
    assert torch.equal(dict(module.named_parameters())["weight_g"], before["weight_g"])  # the user's own is as it was


def test_parameters_without_gradients_are_the_modules_own_where_none_are_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The way that policies act; where gradients are recorded, they reach the inputs and not the parameters."""
    own, x = Learner({"a": lambda: nn.Linear(3, 1)}, {"a": Adam(lr=0.1)}), torch.randn(5, 3, requires_grad=True)
    network, frozen = own.networks["a"], own.parameters_of("a")
    network(frozen, x).sum().backward()
    assert x.grad is not None and network.module.weight.grad is None
    own.step("a", lambda params, x: (network(params["a"], x).sum(), {}), x.detach())
    with torch.no_grad():
        expected = network(dict(frozen), x)
        monkeypatch.setattr(torch.func, "functional_call", None)
        assert torch.equal(network(frozen, x), expected)


def test_a_missing_parameter_is_an_error() -> None:
    """functional_call would take the module's own value without a word."""
    network = Network(nn.Linear(3, 1))
    with pytest.raises(KeyError, match="expected all parameters of the network, got none for bias"):
        network({"weight": torch.zeros(1, 3)}, torch.randn(5, 3))


def test_a_parameter_in_several_places_has_one_value_in_all_of_them() -> None:
    """A layer that is used twice, and a weight that two layers have in common."""
    first, second = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    module = nn.Sequential(first, second, first)
    network, own = Network(module), {name: id(value) for name, value in module.named_parameters(remove_duplicate=False)}
    given = {"0.weight": torch.randn(3, 3), "0.bias": torch.randn(3)}
    x = torch.randn(5, 3)
    h = (x @ given["0.weight"].T + given["0.bias"]) @ given["0.weight"].T
    torch.testing.assert_close(network(given, x), h @ given["0.weight"].T + given["0.bias"])
    assert {name: id(value) for name, value in module.named_parameters(remove_duplicate=False)} == own


# --- clipping -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("max_norm", [0.1, 1.0, 100.0])
def test_clip_per_seed_equals_torchs_for_each_seed(max_norm: float, device: str) -> None:
    gradients = [torch.randn(3, 4, 5), torch.randn(3, 4) * 100, torch.randn(3)]
    gradients[1][0] = 0.0  # seed 0 is small and seed 1 large
    gradients[0][0] *= 0.01
    gradients = [gradient.to(device) for gradient in gradients]
    clipped = clip_per_seed(gradients, max_norm, batched=True)
    for seed in range(3):
        leaves = [nn.Parameter(torch.zeros_like(g[seed])) for g in gradients]
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient[seed].clone()
        clip_grad_norm_(leaves, max_norm)
        for leaf, ours, alone in zip(
            leaves, clipped, clip_per_seed([g[seed] for g in gradients], max_norm, batched=False), strict=True
        ):
            torch.testing.assert_close(ours[seed], leaf.grad)
            torch.testing.assert_close(alone, leaf.grad)


def test_clipping_by_hand() -> None:
    (clipped,) = clip_per_seed([torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])], 1.0, batched=True)
    torch.testing.assert_close(clipped, torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]), atol=1e-6, rtol=0)


def test_the_optimiser_clips_each_seed_by_its_own_norm() -> None:
    """Two steps: the first step of Adam does not show the size of a gradient, the ratio of the second to it does."""
    slopes = torch.tensor([[[3.0, 0.0, 4.0]] * 2, [[0.3, 0.1, 0.1]] * 2])  # norms 5 and 0.33 for each of two seeds
    slopes[0, 1] *= 0.01
    together = learner(seeds=(0, 1), a=Adam(lr=0.1, max_grad_norm=1.0))
    singles = [learner(seeds=(s,), a=Adam(lr=0.1, max_grad_norm=1.0)) for s in (0, 1)]
    unclipped = learner(seeds=(0,))
    for slope in slopes:
        together.step("a", linear, slope)
        unclipped.step("a", linear, slope[0])
        for seed, single in enumerate(singles):
            single.step("a", linear, slope[seed])
    for seed, single in enumerate(singles):
        torch.testing.assert_close(together.parameters_of("a", seed)["x"], single.parameters_of("a")["x"])
    assert not torch.allclose(unclipped.parameters_of("a")["x"], singles[0].parameters_of("a")["x"])


# --- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [(), (-1,), (1, 1), (0, 3, 0)])
def test_seeds_must_be_distinct_and_not_negative(seeds: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected distinct seeds >= 0, got \["):
        learner(seeds=seeds)


def test_an_unknown_network_is_named() -> None:
    with pytest.raises(ValueError, match=r"expected networks among \['a'\], got \['actor'\]"):
        Learner({"a": Point}, {"a": Adam(lr=0.1)}, networks={"actor": Point})


def test_a_users_module_with_buffers_is_refused() -> None:
    """Seeds would share its running averages, and no checkpoint would hold them."""
    with pytest.raises(ValueError, match="without buffers"):
        Learner({"a": Point}, {"a": Adam(lr=0.1)}, networks={"a": lambda: nn.BatchNorm1d(3)})


@pytest.mark.parametrize("dropout", [nn.Dropout(0.1), nn.Dropout2d(), nn.AlphaDropout(0.5)])
def test_a_users_module_with_dropout_is_refused(dropout: nn.Module) -> None:
    """It would act in the policy, on numbers that no checkpoint holds."""
    own = {"a": lambda: nn.Sequential(nn.Linear(3, 1), dropout)}
    with pytest.raises(ValueError, match=r"network 'a': expected a module without dropout, got \['1'\]"):
        Learner({"a": Point}, {"a": Adam(lr=0.1)}, networks=own)


def test_dropout_that_drops_nothing_is_allowed() -> None:
    Learner({"a": Point}, {"a": Adam(lr=0.1)}, networks={"a": lambda: nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.0))})


def half_fixed() -> nn.Module:
    """Two layers, the first of which is not to be trained."""
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    module[0].requires_grad_(False)
    return module


@pytest.mark.parametrize("seeds", [(0,), (0, 5)])
def test_what_a_users_module_fixes_stays_fixed_and_is_in_the_state(seeds: tuple[int, ...]) -> None:
    def make(start: tuple[int, ...] = seeds) -> Learner:
        return Learner({"a": Point}, {"a": Adam(lr=0.1)}, targets=("a",), networks={"a": half_fixed}, seeds=start)

    own, x = make(), torch.randn(*(seeds[1:] and (len(seeds),)), 8, 3)
    before = copy.deepcopy(own.state_dict())
    for _ in range(3):
        own.step("a", lambda params, x: (own.networks["a"](params["a"], x).square().mean(), {}), x)
        own.move_targets(0.3)
    state = own.state_dict()
    for part in ("online", "target"):
        same = {key: torch.equal(value, before[part]["a"][key]) for key, value in state[part]["a"].items()}
        assert same == {"0.weight": True, "0.bias": True, "1.weight": False, "1.bias": False}
    assert list(state["optimisers"]["a"]["averages"]) == ["a/1.weight", "a/1.bias"]
    other = make()
    other.load_state_dict(state)
    assert_same_bits(other.state_dict(), state)


def test_networks_with_nothing_to_train_are_refused() -> None:
    with pytest.raises(ValueError, match=r"networks \['a'\]: expected a parameter to train, got none"):
        Learner({"a": Point}, {"a": Adam(lr=0.1)}, networks={"a": lambda: Point().requires_grad_(False)})


def test_a_users_module_is_left_as_it_is() -> None:
    """One object may be given to training and then to loading."""
    module = nn.Linear(3, 1)
    for _ in range(2):
        own = Learner({"a": Point}, {"a": Adam(lr=0.1)}, networks={"a": lambda: module})
    assert own.params["a"]["weight"].requires_grad and module.weight.requires_grad


def test_a_seed_index_out_of_range_is_named() -> None:
    with pytest.raises(IndexError, match=r"expected a seed index in \[0, 1\], got 2"):
        learner(seeds=(4, 5)).parameters_of("a", 2)


def test_a_users_module_starts_from_the_seed_too() -> None:
    first, second, other = (
        Learner({"a": Point}, {"a": Adam(lr=0.1)}, networks={"a": lambda: nn.Linear(3, 1)}, seeds=(seed,))
        for seed in (7, 7, 8)
    )
    assert torch.equal(first.params["a"]["weight"], second.params["a"]["weight"])
    assert not torch.equal(first.params["a"]["weight"], other.params["a"]["weight"])


def test_a_new_function_of_the_same_name_is_not_mistaken_for_the_old_one() -> None:
    own = Learner({"a": lambda: Point([0.0, 0.0, 0.0])}, {"a": Adam(lr=0.1)}, seeds=(0, 1))
    for shift in (1.0, 2.0):
        metrics = own.step("a", lambda params, shift=shift: (params["a"]["x"].sum() * 0 + shift, {}))
        assert metrics["loss/a"].tolist() == [shift, shift]


# --- state ----------------------------------------------------------------------------------------------------------


def _trained(seeds: tuple[int, ...], steps: int) -> Learner:
    own = learner(seeds=seeds, a=Adam(lr=0.1, cosine_updates=50), b=Adam(lr=0.01))
    for _ in range(steps):
        own.updates += 1
        own.step("a", joint, own.normal(3))
        own.step("b", joint, own.normal(3))
        own.move_targets(0.1)
    return own


@pytest.mark.parametrize("seeds", [(0,), (0, 5)])
@pytest.mark.parametrize(("saved_at", "loaded_at"), [(4, 0), (4, 9), (0, 4)])
def test_state_comes_back_to_the_bit_whatever_was_there(seeds: tuple[int, ...], saved_at: int, loaded_at: int) -> None:
    """Also over an optimiser that has moments where the state has none yet."""
    source, other = _trained(seeds, saved_at), _trained(seeds, loaded_at)
    state = copy.deepcopy(source.state_dict())
    other.load_state_dict(state)
    assert_same_bits(other.state_dict(), state)
    for own in (source, other):
        own.step("a", joint, own.normal(3))
        own.step("b", joint, own.normal(3))
    assert_same_bits(other.state_dict(), source.state_dict())


def test_loading_copies_the_state() -> None:
    source, other = _trained((0,), 3), _trained((0,), 0)
    state = copy.deepcopy(source.state_dict())
    other.load_state_dict(state)
    other.step("a", joint, torch.ones(3))
    assert_same_bits(state, source.state_dict())


def _without(state: dict[str, Any], *path: str) -> dict[str, Any]:
    inner = state
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return state


def _with(state: dict[str, Any], value: Any, *path: str) -> dict[str, Any]:
    inner = state
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return state


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: _with(s, [1], "seeds"), "expected seeds"),
        (lambda s: _with(s, torch.zeros(1, 4), "online", "a", "x"), r"online a/x is \(1, 3\) here and \(1, 4\)"),
        (lambda s: _with(s, torch.zeros(1, 4), "target", "a", "x"), "target a/x"),
        (lambda s: _without(s, "online", "b"), "absent in the state"),
        (lambda s: _without(s, "optimisers", "b"), "expected optimisers"),
        (lambda s: _without(s, "optimisers", "b", "steps"), "not the state of a learner"),
        (lambda s: _without(s, "generators"), "not the state of a learner"),
        (lambda s: _with(s, [], "generators"), "one generator for each seed"),
        (lambda s: _without(s, "updates"), "not the state of a learner"),
        (lambda s: _with(s, torch.zeros(1, 4), "optimisers", "b", "averages", "b/x"), "averages of optimiser b"),
        (lambda s: _without(s, "optimisers", "b", "squares"), "not the state of a learner"),
    ],
)
def test_a_state_that_does_not_fit_raises_and_changes_nothing(spoil: Any, message: str) -> None:
    own = _trained((0,), 2)
    before = copy.deepcopy(own.state_dict())
    with pytest.raises(ValueError, match=message):
        own.load_state_dict(spoil(copy.deepcopy(_trained((0,), 5).state_dict())))
    assert_same_bits(own.state_dict(), before)


def test_a_state_from_another_kind_of_device_gets_new_noise_and_the_same_every_time() -> None:
    """A CUDA generator's state has 16 bytes: evaluating here what was trained there must not fail."""
    state = copy.deepcopy(_trained((0,), 3).state_dict())
    state["generators"] = [torch.zeros(16, dtype=torch.uint8)]
    first, second = _trained((0,), 0), _trained((0,), 1)
    first.load_state_dict(state)
    second.load_state_dict(state)
    noise = first.normal(3)
    assert torch.equal(noise, second.normal(3))
    assert math.isfinite(float(noise.sum()))
