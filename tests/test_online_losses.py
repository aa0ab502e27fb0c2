"""The losses of online algorithms, and how they explore, against numbers that can be checked on paper."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from herdbook.core.distributions import SquashedNormal
from herdbook.core.exploration import gaussian_noise, steps_between_updates, uniform_box, updates_after
from herdbook.core.types import Spec, Transitions
from herdbook.datasets.episodes import Episodes
from herdbook.datasets.replay import ReplayBuffer
from herdbook.offline.cql import CQL, CQLConfig
from herdbook.online import ddpg, discrete_sac, dqn, sac, td3
from herdbook.online.discrete_sac import DiscreteSAC, DiscreteSACConfig, entropy, soft_value
from herdbook.online.dqn import DQN, DQNConfig, DuelingHead
from herdbook.online.sac import SAC, SACConfig

T = torch.tensor
INF, LOG2 = math.inf, math.log(2)


def _vector(size: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, (size,))


def _slope(loss: Tensor, *inputs: Tensor, materialize_grads: bool = False) -> list[Any]:
    slopes = torch.autograd.grad(loss, inputs, retain_graph=True, materialize_grads=materialize_grads)
    return [slope.tolist() for slope in slopes]


# --- DQN ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "loss", "slope"),
    [
        (0.0, 0.0, 0.0),
        (0.5, 0.125, 0.5),  # positive where Q is overrated: half the square, whose slope is the error …
        (-0.5, 0.125, -0.5),
        (1.0, 0.5, 1.0),  # … up to 1, where both parts meet …
        (-1.0, 0.5, -1.0),
        (3.0, 2.5, 1.0),  # … and |δ| − ½ beyond, whose slope is 1
        (-3.0, 2.5, -1.0),
        (1e6, 1e6 - 0.5, 1.0),
    ],
)
def test_td_loss_is_quadratic_up_to_one_and_linear_beyond(error: float, loss: float, slope: float) -> None:
    q, target = T([4.0 + error], requires_grad=True), T([4.0])
    assert dqn.td_loss(q, target, None).item() == loss
    assert _slope(dqn.td_loss(q, target, None), q) == [[slope]]


@pytest.mark.parametrize(
    ("weights", "loss", "slope"),
    [
        (None, (0.5 + 1.5 + 0.125 + 0) / 4, [0.25, -0.25, 0.125, 0.0]),
        ([1.0, 1.0, 1.0, 1.0], (0.5 + 1.5 + 0.125 + 0) / 4, [0.25, -0.25, 0.125, 0.0]),
        ([1.0, 0.5, 0.0, 1.0], (0.5 + 0.75 + 0 + 0) / 4, [0.25, -0.125, 0.0, 0.0]),  # over B, not the sum of weights
        ([0.0, 0.0, 0.0, 1.0], 0.0, [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_td_loss_weighs_each_row_and_averages_over_all(
    weights: list[float] | None, loss: float, slope: list[float]
) -> None:
    """Errors 1, −2, ½ and 0: losses ½, 1½, ⅛ and 0."""
    q, target = T([4.0, 1.0, -0.5, 0.0], requires_grad=True), T([3.0, 3.0, -1.0, 0.0])
    weighed = dqn.td_loss(q, target, None if weights is None else T(weights))
    assert weighed.item() == loss
    assert _slope(weighed, q) == [slope]


SLOW = [[100.0, 3.0, 50.0], [-4.0, 70.0, 80.0], [5.0, 6.0, 7.0], [1.0, -1.0, 0.0]]


@pytest.mark.parametrize(
    ("chooser", "expected"),
    [
        # Row by row: γ = ½ by the action chosen; a termination; two steps at γ = 0.9; and two equally good, the first.
        ([[1.0, 5.0, 2.0], [9.0, 0.0, 0.0], [0.0, 0.0, 1.0], [2.0, 2.0, 1.0]], [1 + 1.5, 2.0, 0.81 * 7, -3 + 1.0]),
        ([[5.0, 1.0, 2.0], [0.0, 9.0, 0.0], [1.0, 0.0, 0.0], [0.0, 2.0, 2.0]], [1 + 50.0, 2.0, 0.81 * 5, -3 - 1.0]),
        (SLOW, [1 + 50.0, 2.0, 0.81 * 7, -3 + 1.0]),  # the slow network chooses too, and so takes its maximum: eq. 1
        (None, [1 + 50.0, 2.0, 0.81 * 7, -3 + 1.0]),
    ],
)
def test_q_target_is_chosen_by_one_network_and_valued_by_the_slow_one(
    chooser: list[list[float]] | None, expected: list[float]
) -> None:
    chosen = None if chooser is None else T(chooser)
    target = dqn.q_target(T([1.0, 2.0, 0.0, -3.0]), T([0.5, 0.0, 0.81, 1.0]), chosen, T(SLOW))
    torch.testing.assert_close(target, T(expected))


def _dueling(hidden: tuple[int, ...], actions: int) -> DuelingHead:
    """V = 2 max(f, 0) + 1 and A = max(f, 0) · (3, 0, 0, …) + (0, 3, 6, …), where the feature f is what is seen."""
    head = DuelingHead(_vector(1), actions, hidden)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        last = {name: parameter for name, parameter in head.named_parameters() if ".layers.1." in name}
        last["value.layers.1.weight"].fill_(2.0)
        last["value.layers.1.bias"].fill_(1.0)
        last["advantage.layers.1.weight"].copy_(3.0 * (torch.arange(actions) == 0)[:, None])
        last["advantage.layers.1.bias"].copy_(3.0 * torch.arange(actions))
    return head


@pytest.mark.parametrize(
    ("hidden", "seen", "expected"),
    [
        ((1,), 1.0, [2.0, 2.0, 5.0]),  # V = 3, A = 3, 3, 6, mean 4
        ((1,), -1.0, [-2.0, 1.0, 4.0]),  # V = 1, A = 0, 3, 6, mean 3
        ((1,), 0.0, [-2.0, 1.0, 4.0]),
        ((1, 1), 1.0, [2.0, 2.0, 5.0]),
        ((1, 1), -1.0, [-2.0, 1.0, 4.0]),
        ((2, 1), 1.0, [6.0, 3.0, 6.0]),  # two equal features, which both streams sum: V = 5, A = 6, 3, 6, mean 5
        ((1, 2, 1), 1.0, [6.0, 3.0, 6.0]),
    ],
)
def test_dueling_values_by_hand(hidden: tuple[int, ...], seen: float, expected: list[float]) -> None:
    """Q = V + A − mean A; all hidden sizes but the last are of shared layers."""
    assert _dueling(hidden, 3)(T([[seen], [seen]])).tolist() == [expected, expected]


def test_dueling_advantages_count_by_their_differences_alone() -> None:
    head, seen = _dueling((1,), 3), T([[1.0], [-1.0]])
    before = head(seen)
    torch.testing.assert_close(before.mean(-1), head.value(seen)[:, 0])
    with torch.no_grad():
        dict(head.advantage.named_parameters())["layers.1.bias"].add_(7.0)
    torch.testing.assert_close(head(seen), before)
    assert _dueling((1,), 1)(seen).tolist() == [[3.0], [1.0]]  # one action has no advantage: Q = V


@pytest.mark.parametrize(
    ("settings", "steps", "updates"),
    [
        ({"warmup_steps": 1_000, "updates_per_step": 0.5}, 3_000, 1_000),
        ({"warmup_steps": 1_000, "updates_per_step": 0.5}, 1_000, 1),  # none at all, and a schedule lasts one
        ({"warmup_steps": 0, "updates_per_step": 2.0}, 10, 20),
        ({"importance_updates": 7}, 3_000, 7),
        ({"prioritised": False}, 3_000, None),
    ],
)
def test_the_importance_exponent_grows_over_all_updates_of_a_run(
    settings: dict[str, Any], steps: int, updates: int | None
) -> None:
    assert DQNConfig(**{"prioritised": True, **settings}).for_run(steps).importance_updates == updates


class _Asked:
    """A replay that notes what it is asked for."""

    def __init__(self) -> None:
        self.options: list[dict[str, Any]] = []

    def sample(self, batch_size: int, generators: Any, **options: Any) -> None:
        self.options.append({"batch_size": batch_size, **options})


def test_prioritised_sampling_begins_at_its_exponent_and_ends_at_one() -> None:
    settings: dict[str, Any] = {"batch_size": 5, "discount": 0.9, "n_step": 3}
    asked, spec = _Asked(), Spec(_vector(1), spaces.Discrete(2))
    algorithm = DQN(DQNConfig(prioritised=True, importance_exponent=0.4, importance_updates=10, **settings), spec)
    for updates in (0, 5, 10, 11):
        algorithm.learner.updates = updates
        algorithm.sample(asked, [])
    assert [options.pop("importance_exponent") for options in asked.options] == pytest.approx([0.4, 0.7, 1.0, 1.0])
    DQN(DQNConfig(**settings), spec).sample(asked, [])  # and a replay without priorities is not asked for any
    assert asked.options == [settings | {"frame_stack": 1}] * 5


def test_priorities_are_the_size_of_the_error_and_never_zero() -> None:
    """Q is 0 everywhere, and every step a termination: δ = −R."""
    algorithm = DQN(DQNConfig(prioritised=True, importance_updates=9), Spec(_vector(1), spaces.Discrete(2)))
    for parameter in algorithm.learner.params.frozen["critic"].values():
        parameter.zero_()
    states, weights = torch.randn(4, 1), T([1.0, 0.5, 0.0, 0.1])
    rewards = T([0.0, 3.0, -3.0, 0.5])
    batch = Transitions(states, T([0, 1, 0, 1]), rewards, torch.zeros(4), states, weights=weights)
    expected = T([1e-6, 3 + 1e-6, 3 + 1e-6, 0.5 + 1e-6])  # without the weights
    torch.testing.assert_close(algorithm.update(batch)["priorities"], expected, rtol=1e-7, atol=0)


# --- DDPG, TD3 and what all critics share ---------------------------------------------------------------------------


def test_ddpg_critic_loss_is_the_mean_square() -> None:
    q = T([1.0, 3.0], requires_grad=True)
    loss = ddpg.critic_loss(q, T([0.0, 5.0]))
    assert loss.item() == (1 + 4) / 2
    assert _slope(loss, q) == [[1.0, -2.0]]  # 2 (Q − y) / B


@pytest.mark.parametrize("module", [td3, sac, discrete_sac])
def test_critic_loss_is_the_sum_over_critics_of_means_over_the_batch(module: Any) -> None:
    q, target = T([[1.0, 2.0], [3.0, 0.0]], requires_grad=True), T([0.0, 4.0])
    loss = module.critic_loss(q, target)
    assert loss.item() == (1 + 4) / 2 + (9 + 16) / 2
    assert _slope(loss, q) == [[[1.0, -2.0], [3.0, -4.0]]]  # 2 (Q − y) / B, whatever the number of critics
    assert module.critic_loss(q[:1], target).item() == (1 + 4) / 2
    assert float(module.critic_loss(target.expand(2, 2), target)) == 0


# --- SAC ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (0.0, [1 + 0.5 * 3.0, 2.0, 1.0]),  # TD3's target
        (1e-8, [1 + 0.5 * 3.0, 2.0, 1.0]),
        (0.25, [1 + 0.5 * 3.5, 2.0, 0.5]),  # unlikely actions add to the value, dense ones take from it
        (1.0, [1 + 0.5 * 5.0, 2.0, -1.0]),
    ],
)
def test_soft_target_is_the_smaller_value_less_the_density(temperature: float, expected: list[float]) -> None:
    """Minima 3, 1 and 1, log π = −2, 100 and 2, γ = ½, 0 (a termination: no entropy either) and 1."""
    q = T([[4.0, 1.0, 1.0], [3.0, 9.0, 6.0]])
    target = sac.soft_target(T([1.0, 2.0, 0.0]), T([0.5, 0.0, 1.0]), q, T([-2.0, 100.0, 2.0]), T(temperature))
    torch.testing.assert_close(target, T(expected))


def test_rewards_of_n_steps_have_the_entropies_between() -> None:
    """α = ½, γ = ½: 1 + ½ (½ · 4 + ¼ · 8) = 3; the second episode ends after its first step."""
    discounts, entropies = T([[0.5, 0.25], [0.0, 0.0]]), T([[4.0, 8.0], [100.0, -100.0]])
    assert sac.soft_rewards(T([1.0, 2.0]), discounts, entropies, T(0.5)).tolist() == [3.0, 2.0]


class _Even(nn.Module):
    """A standard normal before tanh, wherever it is; or three equal logits."""

    def __init__(self, discrete: bool) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(3 if discrete else 1))

    def forward(self, observations: Tensor) -> Any:
        outputs = self.level.expand(len(observations), -1)
        return outputs if len(self.level) == 3 else SquashedNormal(outputs, outputs)


class _Constant(nn.Module):
    """Two critics with one value everywhere."""

    def __init__(self, value: float, choices: int | None) -> None:
        super().__init__()
        self.value, self.choices = nn.Parameter(T(value)), choices

    def forward(self, observations: Tensor, actions: Tensor | None = None) -> Tensor:
        shape = (len(observations), self.choices) if actions is None else actions.shape[:-1]
        return self.value.expand(2, *shape)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("kind", ["sac", "discrete_sac", "cql"])
def test_the_soft_value_of_a_loop_is_the_same_for_every_n(kind: str, n: int) -> None:
    """One state, no rewards, α = ½ and γ = ½: Q = γ (α H + Q), so Q = ½ H; log 3 / 2 = .549 for three actions.

    The noise of the normal policy is 0, and its −log π then ½ log 2π. Windows that are cut off bootstrap earlier.
    """
    discrete = kind == "discrete_sac"
    entropy = math.log(3) if discrete else math.log(2 * math.pi) / 2
    actions = spaces.Discrete(3) if discrete else spaces.Box(-1, 1, (1,))
    episodes = Episodes.from_episodes(
        [
            {
                "observations": np.zeros((6, 1), np.float32),
                "actions": np.zeros(5, np.int64) if discrete else np.zeros((5, 1), np.float32),
                "rewards": np.zeros(5),
                "terminated": np.zeros(5, bool),
                "truncated": np.arange(5) == 4,
            }
        ],
        observation_space=_vector(1),
        action_space=actions,
    )
    own: dict[str, Any] = {
        "actor": lambda: _Even(discrete),
        "critic": lambda: _Constant(entropy / 2, 3 if discrete else None),
    }
    settings: dict[str, Any] = {"n_step": n, "discount": 0.5, "initial_temperature": 0.5, "batch_size": 40}
    spec = Spec(_vector(1), actions)
    algorithm: Any
    noise = [torch.zeros(40, 1)]
    if kind == "cql":
        algorithm = CQL(CQLConfig(deterministic_backup=False, num_actions=2, **settings), spec, networks=own)
        noise = [torch.zeros(2, 40, 1), torch.zeros(2, 40, 1), torch.zeros(3, 40, 1)]
    elif kind == "sac":
        algorithm = SAC(SACConfig(**settings), spec, networks=own)
    else:
        algorithm, noise = DiscreteSAC(DiscreteSACConfig(**settings), spec, networks=own), []
    if n > 1 and not discrete:
        noise = [*noise, torch.zeros(40, n - 1, 1)]
    batch = algorithm.sample(ReplayBuffer(episodes), [torch.Generator().manual_seed(0)])
    loss, metrics = algorithm.critic_objective(algorithm.learner.params, algorithm.scaling(batch), *noise)
    assert metrics.get("loss/bellman", loss).item() == pytest.approx(0.0, abs=1e-10)
    assert all(torch.isfinite(value).all() for value in algorithm.update(batch).values())


@pytest.mark.parametrize(("temperature", "expected"), [(0.0, -2.0), (0.5, -2.5), (2.0, -4.0)])
def test_sac_actor_loss_by_hand(temperature: float, expected: float) -> None:
    """Minima 1 and 3, log π = 2 and −4: at α = ½ the mean of 1 − 1 and −2 − 3."""
    q, log_prob = T([[1.0, 5.0], [2.0, 3.0]], requires_grad=True), T([2.0, -4.0], requires_grad=True)
    loss = sac.actor_loss(q, log_prob, T(temperature))
    assert loss.item() == expected
    assert _slope(loss, q, log_prob) == [[[-0.5, 0.0], [0.0, -0.5]], [temperature / 2] * 2]


@pytest.mark.parametrize(
    ("log_temperature", "target_entropy", "loss", "slope"),
    [
        (LOG2, -1.0, 2 * LOG2, 2.0),  # entropy 1 is above its target: α falls
        (LOG2, 3.0, -2 * LOG2, -2.0),  # below: α rises
        (LOG2, 1.0, 0.0, 0.0),
        (0.0, -1.0, 0.0, 2.0),  # α = 1: the loss is 0 whatever the entropy, its slope is not
        (-20.0, -1.0, -40.0, 2.0),
    ],
)
def test_temperature_losses_lead_the_entropy_to_its_target(
    log_temperature: float, target_entropy: float, loss: float, slope: float
) -> None:
    """log π = 1 and −3, that is entropies −1 and 3, 1 in the mean; and the policy is not moved by them."""
    log_alpha, log_prob = T(log_temperature, requires_grad=True), T([1.0, -3.0], requires_grad=True)
    for made in (
        sac.temperature_loss(log_alpha, log_prob, target_entropy),
        discrete_sac.temperature_loss(log_alpha, -log_prob, target_entropy),
    ):
        assert made.item() == pytest.approx(loss)
        assert _slope(made, log_alpha) == [pytest.approx(slope)]
        (of_policy,) = _slope(made, log_prob, materialize_grads=True)
        assert of_policy == [0.0, 0.0]


# --- discrete SAC ---------------------------------------------------------------------------------------------------

CERTAIN = T([1000.0, -1000.0, -1000.0]).log_softmax(-1).tolist()


@pytest.mark.parametrize(
    ("log_probs", "temperature", "expected"),
    [
        ([-LOG2, -2 * LOG2, -2 * LOG2], 0.0, 1.0),  # ½·1 + ¼·0 + ¼·2
        ([-LOG2, -2 * LOG2, -2 * LOG2], 2.0, 1 + 3 * LOG2),  # … and the entropy ½ log 2 + ½ log 4, twice
        ([-math.log(3)] * 3, 1.0, 1 + math.log(3)),  # uniform: the mean, and log n
        (CERTAIN, 0.0, 1.0),
        (CERTAIN, 1.0, 1.0),  # no entropy, and 0 · log 0 is 0
        (CERTAIN, 1e6, 1.0),
        (CERTAIN[::-1], 1.0, 2.0),
    ],
)
def test_soft_value_is_the_expectation_of_the_smaller_value_and_the_entropy(
    log_probs: list[float], temperature: float, expected: float
) -> None:
    q = T([[[1.0, 2.0, 3.0]], [[4.0, 0.0, 2.0]]])  # minima 1, 0, 2
    assert float(discrete_sac.soft_value(q, T([log_probs]), T(temperature))) == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_soft_value_is_largest_at_the_boltzmann_policy(temperature: float) -> None:
    """There it is α log Σ exp(Q / α), at Q = α (0, log 3) that is α log 4, and it has no slope."""
    q = temperature * T([[[0.0, math.log(3)]]])
    logits = T([[5.0, 5 + math.log(3)]], requires_grad=True)  # any normaliser
    value = discrete_sac.soft_value(q, logits.log_softmax(-1), T(temperature))
    assert value.item() == pytest.approx(temperature * math.log(4))
    assert _slope(value, logits)[0] == [pytest.approx([0.0, 0.0], abs=1e-6)]


# --- policies at their extremes -------------------------------------------------------------------------------------


def _certain(algorithm: Any, output: list[float]) -> dict[str, Tensor]:
    """Updates from an actor with this output everywhere; the metrics of the first. No parameter has become NaN."""
    actor = algorithm.learner.params.frozen["actor"]
    actor["mlp.layers.1.weight"].zero_()
    actor["mlp.layers.1.bias"].copy_(T(output))
    discrete, states = algorithm.scaling.discrete, torch.randn(8, 2)
    actions = torch.arange(8) % 3 if discrete else torch.linspace(-1, 1, 8)[:, None]
    batch = Transitions(states, actions, torch.randn(8), torch.full((8,), 0.9), torch.randn(8, 2))
    metrics: dict[str, Tensor] = algorithm.update(batch)
    for _ in range(3):
        algorithm.update(batch)
    for name, parameters in algorithm.learner.params.frozen.items():
        assert all([bool(value.isfinite().all()) for value in parameters.values()]), name
    return metrics


@pytest.mark.parametrize("tuned", [True, False])
@pytest.mark.parametrize("size", [1e3, 1e6, 1e30])
def test_a_discrete_policy_without_entropy_has_finite_losses_and_gradients(size: float, tuned: bool) -> None:
    config = DiscreteSACConfig(hidden_sizes=(4,), tune_temperature=tuned, initial_temperature=0.5)
    algorithm = DiscreteSAC(config, Spec(_vector(2), spaces.Discrete(3)))
    metrics = _certain(algorithm, [size, -size, -size])
    assert all([bool(value.isfinite()) for value in metrics.values()])
    assert (float(metrics["entropy"]), float(metrics["temperature"])) == (0.0, 0.5)
    after = float(algorithm.learner.parameters_of("temperature")["value"].exp())
    assert after > 0.5 if tuned else after == 0.5  # too little entropy: α rises


class Forbids(nn.Module):
    """A user's actor of three actions, of which the second is never taken."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def forward(self, observations: Tensor) -> Tensor:
        logits: Tensor = self.linear(observations)
        return logits.masked_fill(torch.tensor([False, True, False]), -torch.inf)


@pytest.mark.parametrize("tuned", [True, False])
def test_actions_that_an_actor_forbids_leave_losses_and_parameters_finite(tuned: bool) -> None:
    config = DiscreteSACConfig(hidden_sizes=(4,), tune_temperature=tuned, initial_temperature=0.5)
    algorithm = DiscreteSAC(config, Spec(_vector(2), spaces.Discrete(3)), networks={"actor": Forbids})
    before = algorithm.learner.parameters_of("actor")["linear.weight"].clone()
    batch = Transitions(
        torch.randn(8, 2), torch.arange(8) % 3, torch.randn(8), torch.full((8,), 0.9), torch.randn(8, 2)
    )
    for _ in range(3):
        metrics = algorithm.update(batch)
        assert all([bool(value.isfinite()) for value in metrics.values()])
        assert 0 < float(metrics["entropy"]) <= math.log(2)
    for name, parameters in algorithm.learner.params.frozen.items():
        assert all([bool(value.isfinite().all()) for value in parameters.values()]), name
    after = algorithm.learner.parameters_of("actor")["linear.weight"]
    assert torch.equal(after[1], before[1]) and not torch.equal(after[0], before[0])


def test_what_is_forbidden_counts_as_if_it_were_not_there() -> None:
    """(½, 0, ½) with values 1, 9, 3 and α = ½: 2 + ½ log 2, of entropy log 2."""
    logits = T([[0.0, -math.inf, 0.0]], requires_grad=True)
    log_probs = logits.log_softmax(-1)
    value = soft_value(T([[[1.0, 9.0, 3.0]]]), log_probs, T(0.5))
    assert value.tolist() == pytest.approx([2 + 0.5 * math.log(2)])
    assert entropy(log_probs).tolist() == pytest.approx([math.log(2)])
    slopes = _slope(value.sum() + entropy(log_probs).sum(), logits)[0]
    assert slopes == [pytest.approx([-0.5, 0.0, 0.5])]  # π (Q − E[Q]), and none where all are equally likely


@pytest.mark.parametrize("output", [[1e3, -1e3], [-1e3, -1e3], [1e3, 1e3], [0.0, -1e3], [0.0, 1e3]], ids=str)
def test_a_squashed_policy_at_its_bounds_has_finite_losses_and_gradients(output: list[float]) -> None:
    """Its mean and log σ: actions on the bound, where atanh is infinite, with no width or the largest."""
    algorithm = SAC(SACConfig(hidden_sizes=(4,)), Spec(_vector(2), spaces.Box(-1, 1, (1,))))
    assert all([bool(value.isfinite()) for value in _certain(algorithm, output).values()])


# --- exploration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("observations", [torch.zeros(5, 7), {"a": torch.zeros(5, 2, 2, 3), "b": torch.zeros(5)}])
def test_uniform_actions_fill_the_box_whatever_is_seen(observations: Any) -> None:
    distribution = uniform_box(observations, 2)
    inside = T([[0.0, 0.0], [1.0, -1.0], [-1.0, 1.0], [1.01, 0.0], [0.0, -1.01]])
    torch.testing.assert_close(distribution.log_prob(inside), T([-2 * LOG2] * 3 + [-INF] * 2))  # a density of ¼
    assert distribution.mode().tolist() == [[0.0, 0.0]] * 5


def test_uniform_actions_are_uniform() -> None:
    actions = uniform_box(torch.zeros(4000, 1), 3).sample(torch.Generator().manual_seed(0))
    assert actions.shape == (4000, 3)
    shares = torch.histc(actions, 4, -1, 1) / actions.numel()  # of the quarters of [−1, 1]; none lies outside
    torch.testing.assert_close(shares, torch.full((4,), 0.25), atol=0.02, rtol=0)
    assert float(shares.sum()) == pytest.approx(1)
    assert abs(float(torch.corrcoef(actions.T)[0, 1])) < 0.1


def test_noise_has_its_sigma_and_is_clipped_to_the_bounds() -> None:
    """Half of the samples around an action on the bound lie on it."""
    distribution = gaussian_noise(T([[0.0, 1.0, -1.0]]).expand(4000, 3), 0.2)
    actions = distribution.sample(torch.Generator().manual_seed(0))
    assert float(actions[:, 0].std()) == pytest.approx(0.2, rel=0.05)
    assert float(actions[:, 0].mean()) == pytest.approx(0, abs=0.02)
    assert (float(actions[:, 1].max()), float(actions[:, 2].min())) == (1.0, -1.0)
    assert float((actions[:, 1] == 1).float().mean()) == pytest.approx(0.5, abs=0.05)
    assert float((actions[:, 2] == -1).float().mean()) == pytest.approx(0.5, abs=0.05)
    assert distribution.mode()[0].tolist() == [0.0, 1.0, -1.0]
    density = -math.log(0.2 * math.sqrt(2 * math.pi))  # of each dimension at its mean
    torch.testing.assert_close(distribution.log_prob(distribution.mode()), torch.full((4000,), 3 * density))


def test_noise_of_no_size_is_none() -> None:
    actions = T([[-1.0, 0.3, 1.0]])
    assert torch.equal(gaussian_noise(actions, 0.0).sample(torch.Generator().manual_seed(0)), actions)


@pytest.mark.parametrize(
    ("steps", "warmup", "per_step", "updates"),
    [
        (0, 0, 1.0, 0),
        (0, 1000, 1.0, 0),
        (999, 1000, 1.0, 0),
        (1000, 1000, 1.0, 0),  # those of the warm-up are not made up for
        (1001, 1000, 1.0, 1),
        (1001, 1000, 0.5, 0),
        (1002, 1000, 0.5, 1),
        (1003, 1000, 0.5, 1),
        (10, 0, 4.0, 40),
        (7, 0, 0.25, 1),
        (8, 0, 0.25, 2),
        (10**9, 0, 1.0, 10**9),
        (100, 0, 0.29, 29),  # the float is a little less than 29/100, and the product of floats 28.999…
        (1100, 1000, 0.29, 29),
        (99, 0, 0.29, 28),
        (1000, 0, 0.001, 1),
        (999, 0, 0.001, 0),
        (10**7, 0, 1.1, 11 * 10**6),
        (3, 0, 1 / 3, 1),
        (300, 0, 1 / 3, 100),
        (2, 0, 1 / 3, 0),
        (10**12, 0, 1e-12, 1),
        (10**12 - 1, 0, 1e-12, 0),
        (10, 0, math.pi, 31),
    ],
)
def test_updates_follow_the_steps_after_the_warm_up(steps: int, warmup: int, per_step: float, updates: int) -> None:
    assert updates_after(steps, warmup, per_step) == updates


@pytest.mark.parametrize(
    ("per_step", "num_envs", "steps"),
    [
        (0.25, 1, 4),
        (1 / 3, 1, 3),
        (0.3, 1, 3),
        (0.5, 1, 2),
        (0.51, 1, 1),
        (1, 1, 1),
        (3, 1, 1),
        (0.25, 2, 2),
        (0.25, 8, 1),
    ],
)
def test_environments_step_until_an_update_is_due(per_step: float, num_envs: int, steps: int) -> None:
    assert steps_between_updates(per_step, num_envs) == steps
