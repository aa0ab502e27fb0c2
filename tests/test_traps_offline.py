"""Mistakes that well-known implementations of these algorithms contain; each test is named after one."""

import ast
import dataclasses
import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor
from torch._dynamo.utils import counters

from herdbook.core import checkpoint
from herdbook.core.distributions import BOUND, Normal, SquashedNormal
from herdbook.core.learner import Adam, Learner, Params
from herdbook.core.networks import MLP
from herdbook.core.types import Spec, Step, Transitions
from herdbook.experiments.settings import settings_for
from herdbook.offline.bc import BC, BCConfig
from herdbook.offline.bcq import BCQ, BCQConfig
from herdbook.offline.cql import CQL, CQLConfig
from herdbook.offline.discrete_bcq import DiscreteBCQ, DiscreteBCQConfig
from herdbook.offline.discrete_cql import DiscreteCQL, DiscreteCQLConfig
from herdbook.offline.iql import IQL, IQLConfig
from herdbook.offline.td3_bc import TD3BC, TD3BCConfig, actor_loss

VECTOR = spaces.Box(-np.inf, np.inf, (3,))
BOX, DISCRETE = spaces.Box(-1, 1, (2,)), spaces.Discrete(3)
SMALL: dict[str, Any] = {"hidden_sizes": (8, 8), "standardise_observations": False}
EVERY = [
    (BC, BCConfig, {}, BOX),
    (BCQ, BCQConfig, {"vae_hidden_sizes": (8, 8), "num_target_actions": 3}, BOX),
    (CQL, CQLConfig, {"num_actions": 3}, BOX),
    (IQL, IQLConfig, {}, BOX),
    (TD3BC, TD3BCConfig, {}, BOX),
    (DiscreteBCQ, DiscreteBCQConfig, {}, DISCRETE),
    (DiscreteCQL, DiscreteCQLConfig, {}, DISCRETE),
]
NAMES = [entry[0].__name__ for entry in EVERY]


def make(cls: Any, config: Any, changes: dict[str, Any], actions: spaces.Space[Any] = BOX, **setup: Any) -> Any:
    return cls(config(**{**SMALL, **changes}), Spec(VECTOR, actions), **setup)


def transitions(lead: tuple[int, ...] = (8,), actions: spaces.Space[Any] = BOX, seed: int = 0) -> Transitions:
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(*lead, 2, generator=generator) * 2 - 1
    if isinstance(actions, spaces.Discrete):
        chosen = torch.randint(3, lead, generator=generator)
    return Transitions(
        observations=torch.randn(*lead, 3, generator=generator),
        actions=chosen,
        rewards=torch.randn(lead, generator=generator),
        discounts=0.99 * (torch.rand(lead, generator=generator) < 0.8).float(),
        next_observations=torch.randn(*lead, 3, generator=generator),
    )


class Spy:
    """Stands in for a network and keeps what it was called with."""

    def __init__(self, network: Any) -> None:
        self.network, self.calls = network, []

    def __call__(self, parameters: Any, *inputs: Any) -> Any:
        self.calls.append((parameters, *inputs))
        return self.network(parameters, *inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)


# --- CQL ------------------------------------------------------------------------------------------------------------


def _cql_critic_calls(**changes: Any) -> tuple[Any, Transitions, list[Any]]:
    algorithm = make(CQL, CQLConfig, {"num_actions": 5, **changes})
    algorithm.critic = spy = Spy(algorithm.critic)
    batch = transitions()
    noise = torch.rand(5, 8, 2) * 2 - 1, torch.randn(5, 8, 2), torch.randn(6, 8, 2)
    algorithm.critic_objective(algorithm.learner.params, batch, *noise)
    algorithm.noise = noise
    return algorithm, batch, spy.calls


def test_cql_next_actions_are_sampled_at_the_next_state_and_scored_at_the_state() -> None:
    algorithm, batch, calls = _cql_critic_calls()
    _, states, actions = calls[-1]  # the online critic
    assert torch.equal(states, batch.observations)
    random, noise, next_noise = algorithm.noise
    parameters = algorithm.learner.params["actor"]
    current, _ = algorithm.actor(parameters, batch.observations).rsample_with_log_prob(noise)
    following, _ = algorithm.actor(parameters, batch.next_observations).rsample_with_log_prob(next_noise)
    torch.testing.assert_close(actions, torch.cat([random, following[:5], current, batch.actions[None]]))


def test_cql_logsumexp_runs_over_three_n_values(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    original = torch.logsumexp

    def counting(values: Tensor, dim: int) -> Tensor:
        seen.append((values.shape[dim], *values.shape))
        return original(values, dim)

    monkeypatch.setattr(torch, "logsumexp", counting)
    _cql_critic_calls()
    assert seen == [(15, 2, 15, 8)]  # each critic and state by itself


def test_cql_random_actions_are_uniform_from_minus_one_to_one() -> None:
    algorithm = make(CQL, CQLConfig, {"num_actions": 200})
    drawn: list[Tensor] = []
    original = algorithm.learner.uniform
    algorithm.learner.uniform = lambda *shape: drawn.append(original(*shape)) or drawn[-1]
    algorithm.update(transitions())
    assert drawn[0].shape == (200, 8, 2)
    assert float(drawn[0].min()) < -0.99 and float(drawn[0].max()) > 0.99
    assert float(drawn[0].mean()) == pytest.approx(0, abs=0.05)
    assert algorithm.random_log_density == pytest.approx(math.log(0.25))  # (½)^A


def test_cql_importance_sampling_estimates_the_log_of_the_integral() -> None:
    """Where Q is 0 everywhere, the mean of 1/density over candidates is the volume 2^A from each of three proposals."""
    algorithm = make(CQL, CQLConfig, {"num_actions": 4000})
    critic = algorithm.learner.params["critic"]
    for value in critic.values():
        value.data.zero_()
    n = 4000
    noise = torch.rand(n, 8, 2) * 2 - 1, torch.randn(n, 8, 2), torch.randn(n + 1, 8, 2)
    _, metrics = algorithm.critic_objective(algorithm.learner.params, transitions(), *noise)
    assert float(metrics["conservative_gap"].detach()) == pytest.approx(math.log(3 * n * 4), abs=0.1)


def test_cql_max_target_backup_is_the_maximum_of_each_network_then_the_minimum() -> None:
    algorithm = make(CQL, CQLConfig, {"max_target_backup": True, "num_actions": 2})
    values = torch.tensor([[[1.0], [5.0]], [[4.0], [2.0]]])  # maxima 5, 4 → 4; minima first would give 2
    algorithm.critic = lambda parameters, states, actions: values
    batch = dataclasses.replace(transitions((1,)), rewards=torch.tensor([0.5]), discounts=torch.tensor([0.5]))
    target = algorithm.backup(algorithm.learner.params, batch, torch.zeros(3, 1, 2), torch.zeros(3, 1))
    assert target.tolist() == [0.5 + 0.5 * 4]


def test_cql_lagrange_weighs_the_gap_before_the_threshold_is_taken_off() -> None:
    """α′ (α C − τ), not α′ α (C − τ)."""
    algorithm = make(CQL, CQLConfig, {"lagrange": True, "alpha": 3.0, "lagrange_threshold": 7.0, "num_actions": 4})
    algorithm.learner.params["multiplier"]["value"].data.fill_(math.log(2))
    noise = torch.rand(4, 8, 2), torch.randn(4, 8, 2), torch.randn(5, 8, 2)
    loss, metrics = algorithm.critic_objective(algorithm.learner.params, transitions(), *noise)
    excess = 2 * 3.0 * metrics["conservative_gap"] - 2 * 7.0  # of both critics
    expected = metrics["loss/bellman"] + 2 * excess - 2 * excess / 2
    torch.testing.assert_close(loss, expected)
    (slope,) = torch.autograd.grad(loss, algorithm.learner.params["multiplier"]["value"])
    torch.testing.assert_close(slope, -2 * excess.detach() / 2)  # d/d log α′: it grows while the gap is above τ


def test_cql_lagrange_multiplier_does_not_explode() -> None:
    algorithm = make(CQL, CQLConfig, {"lagrange": True, "num_actions": 4})
    algorithm.learner.params["multiplier"]["value"].data.fill_(50.0)
    metrics = algorithm.update(transitions())
    assert float(metrics["multiplier"]) == 1e6
    assert all(bool(value.isfinite()) for value in metrics.values())


@pytest.mark.parametrize("entry", [e for e in EVERY if e[0] in (BCQ, CQL, IQL, TD3BC)], ids=lambda e: e[0].__name__)
def test_twin_critics_have_equal_depth(entry: Any) -> None:
    """One module with an axis of copies: neither can have a layer that the other lacks."""
    algorithm = make(*entry, seeds=(0,))
    shapes = {name: tuple(p.shape) for name, p in algorithm.learner.params["critic"].items()}
    assert all(shape[0] == 2 for shape in shapes.values())
    assert [s[1:] for name, s in shapes.items() if name.endswith("weight")] == [(5, 8), (8, 8), (8, 1)]


# --- log-densities --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [-1.0, 1.0])
def test_actions_at_the_bound_have_a_finite_log_prob_and_gradient(bound: float) -> None:
    mean, log_std = torch.zeros(1, 2, requires_grad=True), torch.zeros(1, 2, requires_grad=True)
    log_prob = SquashedNormal(mean, log_std).log_prob(torch.full((1, 2), bound))
    gradients = torch.autograd.grad(log_prob.sum(), (mean, log_std))
    assert bool(log_prob.isfinite().all()) and all(bool(g.isfinite().all()) for g in gradients)
    assert BOUND == 1 - 1e-6


@pytest.mark.parametrize("entry", EVERY[1:], ids=NAMES[1:])
def test_data_at_the_bounds_trains_to_finite_parameters(entry: Any) -> None:
    algorithm = make(*entry)
    for seed in range(5):
        batch = transitions(actions=entry[3], seed=seed)
        if entry[3] is BOX:
            batch = dataclasses.replace(batch, actions=batch.actions.sign())
        metrics = algorithm.update(batch)
        assert all(bool(value.isfinite()) for value in metrics.values())


@pytest.mark.parametrize("kind", [Normal, SquashedNormal])
def test_log_prob_scores_the_actions_it_is_given(kind: Any) -> None:
    distribution = kind(torch.zeros(4, 2), torch.full((4, 2), -1.0))
    before = torch.get_rng_state()
    near, far = distribution.log_prob(torch.zeros(4, 2)), distribution.log_prob(torch.full((4, 2), 0.9))
    assert bool((near > far).all())
    assert torch.equal(near, distribution.log_prob(torch.zeros(4, 2)))
    assert torch.equal(torch.get_rng_state(), before)


# --- TD3+BC ---------------------------------------------------------------------------------------------------------


def test_td3_bc_weight_of_q_is_a_constant() -> None:
    """With λ not detached, Q's own gradient would vanish: −α Q̄ / |Q̄| is constant."""
    q = torch.tensor([1.0, 2.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(actor_loss(q, torch.zeros(2, 1), torch.zeros(2, 1), 3.0), q)
    assert gradient.tolist() == [-1.0, -1.0]


@pytest.mark.parametrize("dimensions", [1, 2, 17])
def test_td3_bc_cloning_term_does_not_grow_with_the_number_of_actions(dimensions: int) -> None:
    actions, data = torch.full((4, dimensions), 0.5), torch.zeros(4, dimensions)
    assert float(actor_loss(torch.ones(4), actions, data, 0.0)) == 0.25


def test_td3_bc_actor_climbs_the_first_critic_alone() -> None:
    """Seen in the gradient: where all Q have one sign, λ mean Q is ±α whatever the critic."""
    algorithm = make(TD3BC, TD3BCConfig, {})
    batch = transitions()
    view = algorithm.learner._view(("actor",))

    def slope() -> torch.Tensor:
        loss, _ = algorithm.actor_objective(view, batch)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(view["actor"].values()))])

    before = slope()
    for value in algorithm.learner.params.frozen["critic"].values():
        value[1].normal_()
    assert torch.equal(before, slope())
    for value in algorithm.learner.params.frozen["critic"].values():
        value[0].normal_()
    assert not torch.equal(before, slope())


def test_td3_bc_targets_move_only_when_the_actor_does() -> None:
    algorithm = make(TD3BC, TD3BCConfig, {"policy_delay": 3})
    for update in range(1, 10):
        before = deepcopy((algorithm.learner.params.target, algorithm.learner.params.frozen["actor"]))
        metrics = algorithm.update(transitions(seed=update))
        now = (algorithm.learner.params.target, algorithm.learner.params.frozen["actor"])
        leaves = (torch.utils._pytree.tree_leaves(tree) for tree in (before, now))
        moved = [not torch.equal(one, two) for one, two in zip(*leaves, strict=True)]
        assert all(moved) if update % 3 == 0 else not any(moved)
        assert ("loss/actor" in metrics) == (update % 3 == 0)


def test_td3_bc_standardises_states_with_an_offset_to_sigma_in_training_and_acting() -> None:
    """(s − μ) / (σ + 1e-3): a dimension that never changes is 0, not NaN."""
    mean, std = np.array([1.0, 0.0, 4.0]), np.array([0.999, 0.0, 1.999])
    algorithm = TD3BC(TD3BCConfig(hidden_sizes=(8,)), Spec(VECTOR, BOX, observation_mean=mean, observation_std=std))
    algorithm.actor, algorithm.critic = spies = Spy(algorithm.actor), Spy(algorithm.critic)
    state = torch.tensor([[2.0, 0.0, 8.0]]).repeat(8, 1)
    expected = torch.tensor([[1.0, 0.0, 2.0]]).repeat(8, 1)
    algorithm.update(dataclasses.replace(transitions(), observations=state, next_observations=state))
    flags = torch.zeros(8, dtype=torch.bool)
    algorithm.policy()(Step(state, torch.zeros(8, 2), torch.zeros(8), flags, flags), None)
    calls = [call for spy in spies for call in spy.calls]
    assert len(calls) == 4
    for call in calls:
        torch.testing.assert_close(call[1], expected)


# --- BCQ ------------------------------------------------------------------------------------------------------------


def test_bcq_has_10_candidates_in_the_target_and_100_when_it_acts() -> None:
    algorithm = BCQ(BCQConfig(hidden_sizes=(8,), vae_hidden_sizes=(8,)), Spec(VECTOR, BOX))
    algorithm.critic = spy = Spy(algorithm.critic)
    algorithm.update(transitions())
    assert sorted(call[2].shape[0] for call in spy.calls if call[2].dim() == 3) == [1, 10]
    spy.calls.clear()
    flags = torch.zeros(8, dtype=torch.bool)
    algorithm.policy()(Step(torch.randn(8, 3), torch.zeros(8, 2), torch.zeros(8), flags, flags), None)
    assert [call[2].shape[0] for call in spy.calls] == [100]


def test_bcq_clips_the_latent_to_half_when_it_draws_and_not_when_it_trains_the_vae() -> None:
    algorithm = make(*EVERY[1])
    algorithm.decoder = spy = Spy(algorithm.decoder)
    algorithm.update(transitions())
    vae, *drawn = [call[2].abs().max().item() for call in spy.calls]
    assert vae > 0.5
    assert drawn == [0.5, 0.5]


@pytest.mark.parametrize(("output", "clamped"), [(-9.0, -4.0), (99.0, 15.0), (1.0, 1.0)])
def test_bcq_clamps_the_log_sigma_of_the_vae(output: float, clamped: float) -> None:
    algorithm = make(*EVERY[1])
    code = torch.cat([torch.zeros(8, 4), torch.full((8, 4), output)], -1)
    algorithm.encoder = lambda parameters, states, actions: code
    algorithm.decoder = spy = Spy(algorithm.decoder)
    loss, _ = algorithm.vae_objective(algorithm.learner.params, transitions(), torch.ones(8, 4))
    torch.testing.assert_close(spy.calls[0][2], torch.full((8, 4), math.exp(clamped)))
    assert bool(loss.isfinite())


def test_discrete_bcq_chooses_with_the_online_network_under_the_mask_and_values_with_the_target() -> None:
    algorithm = make(DiscreteBCQ, DiscreteBCQConfig, {"threshold": 0.3, "logit_penalty": 0.0}, DISCRETE)
    online, slow = torch.tensor([[9.0, 2.0, 1.0]]), torch.tensor([[50.0, 3.0, 70.0]])
    learner = algorithm.learner
    algorithm.critic = lambda p, s: slow if p is learner.params.target["critic"] else online
    algorithm.behaviour = lambda p, s: torch.tensor([[0.1, 0.6, 0.3]]).log()  # action 0 is unlikely
    state, one, half = torch.zeros(1, 3), torch.tensor([1.0]), torch.tensor([0.5])
    batch = Transitions(state, torch.tensor([1]), rewards=one, discounts=half, next_observations=state)
    _, metrics = algorithm.objective(learner.params, batch)
    target = 1 + 0.5 * 3  # action 1: 2 > 1 among the likely
    assert float(metrics["loss/value"]) == pytest.approx(0.5 * (2 - target) ** 2)


# --- IQL ------------------------------------------------------------------------------------------------------------


def test_iql_trains_v_on_the_target_critic_and_q_on_v() -> None:
    """V and the policy's weight read no online critic; Q's target reads V at s′ and no critic."""
    algorithm = make(IQL, IQLConfig, {})
    algorithm.critic, algorithm.value = critic, value = Spy(algorithm.critic), Spy(algorithm.value)
    params, batch = algorithm.learner.params, transitions()
    _, before = algorithm.objective(params, batch)
    assert [call[0] is params.target["critic"] for call in critic.calls] == [True, False]
    assert [call[1] is batch.next_observations for call in value.calls] == [False, True]
    for name in params.frozen["critic"]:
        params.frozen["critic"][name].normal_()
    _, after = algorithm.objective(params, batch)
    assert torch.equal(before["loss/value"], after["loss/value"])
    assert torch.equal(before["loss/actor"], after["loss/actor"])
    assert not torch.equal(before["loss/critic"], after["loss/critic"])


def test_iql_policy_is_a_gaussian_that_is_not_squashed() -> None:
    algorithm = make(IQL, IQLConfig, {})
    distribution = algorithm.actor(algorithm.learner.params["actor"], torch.randn(4, 3))
    assert isinstance(distribution, Normal)
    actions = torch.ones(4, 2)  # at the bound the density is an ordinary one
    expected = torch.distributions.Normal(distribution.mean, 1.0).log_prob(actions).sum(-1)
    torch.testing.assert_close(distribution.log_prob(actions), expected)


def test_iql_takes_one_off_the_rewards_of_antmaze() -> None:
    (setting,) = settings_for("iql", dataset="d4rl:antmaze-medium-play-v2")
    assert setting.config == {"expectile": 0.9, "beta": 10.0}
    assert setting.run == {"reward_transform": "minus_one"}


# --- torch ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", EVERY, ids=NAMES)
def test_no_noise_is_drawn_inside_a_loss(entry: Any) -> None:
    """`vmap` raises for a random draw, and an update takes nothing from the global generator."""
    algorithm = make(*entry, seeds=(0, 1))
    before = torch.get_rng_state()
    for seed in range(2):
        algorithm.update(transitions((2, 8), entry[3], seed))
    assert torch.equal(torch.get_rng_state(), before)


def test_vmap_refuses_a_loss_that_draws_its_own_noise() -> None:
    learner = Learner({"a": lambda: MLP(1, 1, ())}, {"a": Adam(lr=0.1)}, seeds=(0, 1))

    def objective(params: Params) -> tuple[Tensor, dict[str, Tensor]]:
        return (params["a"]["layers.0.bias"] * torch.randn(1)).sum(), {}

    with pytest.raises(RuntimeError, match="random"):
        learner.step("a", objective)


@pytest.mark.parametrize("entry", [EVERY[2], EVERY[5]], ids=["CQL", "DiscreteBCQ"])
def test_optimiser_steps_stay_outside_the_compiled_loss(entry: Any) -> None:
    """`optimizer.step()` breaks the graph; a compiled loss has one graph without a break."""
    torch._dynamo.reset()
    counters.clear()
    algorithm = make(*entry, compile="eager")
    for seed in range(2):
        algorithm.update(transitions(actions=entry[3], seed=seed))
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == (2 if entry[0] is CQL else 1)


@pytest.mark.parametrize("entry", EVERY, ids=NAMES)
def test_a_checkpoint_of_views_is_written_once_and_comes_back_whole(entry: Any, tmp_path: Path) -> None:
    """One seed's state is views with a seed axis; several seeds' policies are views of the stacked parameters."""
    algorithm = make(*entry)
    algorithm.update(transitions(actions=entry[3]))
    state = algorithm.state_dict()
    policy = algorithm.learner.parameters_of(next(iter(state["online"])))
    checkpoint.save(tmp_path / "one", {"state": state, "policy": policy})
    loaded = checkpoint.load(tmp_path / "one")
    leaves, others = (torch.utils._pytree.tree_leaves(tree) for tree in (loaded["state"], state))
    assert all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(leaves, others, strict=True))


def test_fused_adam_does_not_look_at_strides() -> None:
    """The gradient of a transposed weight has other strides than the weight: it must not be applied transposed."""
    torch.manual_seed(0)
    learner = Learner({"a": lambda: MLP(5, 5, (), copies=2)}, {"a": Adam(lr=0.1)})  # square, so that nothing raises
    weight = learner.parameters_of("a")["layers.0.weight"].clone().requires_grad_()
    adam = torch.optim.Adam([weight], lr=0.1, fused=False, foreach=False)
    slope = torch.randn(5, 5)

    def objective(params: Params) -> tuple[Tensor, dict[str, Tensor]]:
        return (params["a"]["layers.0.weight"].transpose(-1, -2) * slope.T).square().sum(), {}

    for _ in range(4):
        learner.step("a", objective)
        adam.zero_grad()
        (weight * slope).square().sum().backward()
        adam.step()
    torch.testing.assert_close(learner.parameters_of("a")["layers.0.weight"], weight.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("copies", [2, None])
def test_gradients_of_batched_products_reach_the_right_weights(copies: int | None) -> None:
    """The same trap through the products that the networks use, alone and with seeds."""

    def learner(*seeds: int) -> Learner:
        return Learner({"a": lambda: MLP(4, 4, (4,), copies=copies)}, {"a": Adam(lr=0.1)}, seeds=seeds)

    singles, together = [learner(0), learner(1)], learner(0, 1)
    x = torch.randn(2, 16, 4)

    def objective(params: Params, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return (together.networks["a"](params["a"], inputs) - inputs.roll(1, -1)).square().mean(), {}

    for _ in range(10):
        together.step("a", objective, x)
        for seed, single in enumerate(singles):
            single.step("a", objective, x[seed])
    for seed, single in enumerate(singles):
        plain = MLP(4, 4, (4,), copies=copies)
        plain.load_state_dict(learner(seed).parameters_of("a"))
        adam = torch.optim.Adam(plain.parameters(), lr=0.1, fused=False, foreach=False)
        for _ in range(10):
            adam.zero_grad()
            (plain(x[seed]) - x[seed].roll(1, -1)).square().mean().backward()
            adam.step()
        for name, value in plain.named_parameters():
            torch.testing.assert_close(single.parameters_of("a")[name], value.detach(), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(together.parameters_of("a", seed)[name], value.detach(), rtol=1e-4, atol=1e-5)


def test_no_assert_of_a_pair(repo_root: Path) -> None:
    """`assert (condition, "message")` is always true."""
    for folder in ("core", "datasets", "evaluation", "offline", "cli", "tests"):
        for path in sorted((repo_root / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                assert not (isinstance(node, ast.Assert) and isinstance(node.test, ast.Tuple)), f"{path}:{node.lineno}"
