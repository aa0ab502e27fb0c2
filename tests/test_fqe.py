"""Fitted Q evaluation against exact values."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from herdbook.core.distributions import Categorical
from herdbook.core.random_policy import RandomPolicy
from herdbook.core.types import Carry, Step
from herdbook.datasets.episodes import Episodes
from herdbook.evaluation.fqe import FQEConfig, fitted_q_evaluation
from herdbook.tabular.policy import TabularPolicy

STATES, ACTIONS, DISCOUNT = 5, 2, 0.9


class Tabular:
    """A policy over one-hot observations. probs: [states, actions]."""

    def __init__(self, probs: np.ndarray, *, offers_probs: bool = True) -> None:
        self.probs, self.offers_probs = torch.as_tensor(probs, dtype=torch.float32), offers_probs

    def initial(self, num_envs: int) -> Carry:
        return None

    def __call__(self, step: Step, carry: Carry, generator: torch.Generator | None = None) -> tuple[Tensor, Carry]:
        probs = self.probs[step.observations.argmax(-1)]
        return torch.multinomial(probs, 1, generator=generator).squeeze(-1), carry

    def distribution(self, step: Step, carry: Carry) -> tuple[Any, Carry]:
        if not self.offers_probs:
            raise NotImplementedError
        return Categorical(self.probs[step.observations.argmax(-1)].log()), carry


@pytest.fixture(scope="module")
def mdp() -> dict[str, np.ndarray]:
    """Transition probabilities in quarters; some transitions terminate."""
    rng = np.random.default_rng(0)
    successors = rng.integers(STATES, size=(STATES, ACTIONS, 4))
    return {
        "successors": successors,
        "terminated": rng.random((STATES, ACTIONS, 4)) < 0.1,
        "rewards": rng.uniform(-1, 1, (STATES, ACTIONS)),
    }


def data_of(mdp: dict[str, np.ndarray]) -> Episodes:
    """Each of the equally likely transitions once, an episode of one step: the data's frequencies are the MDP's own."""
    eye = np.eye(STATES, dtype=np.float32)
    items = [
        {
            "observations": eye[[s, mdp["successors"][s, a, i]]],
            "actions": [a],
            "rewards": [mdp["rewards"][s, a]],
            "terminated": bool(mdp["terminated"][s, a, i]),
            "truncated": not mdp["terminated"][s, a, i],
        }
        for s in range(STATES)
        for a in range(ACTIONS)
        for i in range(4)
    ]
    return Episodes.from_episodes(
        items, observation_space=spaces.Box(0, 1, (STATES,)), action_space=spaces.Discrete(ACTIONS)
    )


def exact_values(mdp: dict[str, np.ndarray], probs: np.ndarray) -> np.ndarray:
    """v = (I − γ P_π)⁻¹ r_π, P without the transitions that terminate. [states]"""
    transition = np.zeros((STATES, STATES))
    for s in range(STATES):
        for a in range(ACTIONS):
            for i in range(4):
                if not mdp["terminated"][s, a, i]:
                    transition[s, mdp["successors"][s, a, i]] += probs[s, a] / 4
    return np.linalg.solve(np.eye(STATES) - DISCOUNT * transition, (probs * mdp["rewards"]).sum(-1))


QUICK = FQEConfig(discount=DISCOUNT, updates=700, learning_rate=3e-3, target_period=10, hidden_sizes=(64,))


@pytest.mark.parametrize("kind", ["deterministic", "stochastic", "sampled"])
def test_value_on_a_tabular_mdp_is_within_a_hundredth(mdp: dict[str, np.ndarray], kind: str) -> None:
    rng = np.random.default_rng(1)
    probs = np.eye(ACTIONS)[rng.integers(ACTIONS, size=STATES)]
    if kind != "deterministic":
        probs = rng.dirichlet(np.ones(ACTIONS), STATES)
    data = data_of(mdp)
    config = replace(QUICK, action_samples=8000)  # used where the policy offers no probabilities
    estimate = fitted_q_evaluation(Tabular(probs, offers_probs=kind != "sampled"), data, config)
    expected = np.repeat(exact_values(mdp, probs), ACTIONS * 4)
    assert estimate.values == pytest.approx(expected, abs=0.05 if kind == "sampled" else 1e-2)
    assert estimate.mean == pytest.approx(expected.mean(), abs=0.05 if kind == "sampled" else 1e-2)


def loop(*, terminated: bool, reward: float = 1.0) -> Episodes:
    """One state that leads to itself, one reward for any action, in episodes of one step."""
    actions = np.linspace(-1, 1, 21)
    items = [
        {
            "observations": np.zeros((2, 1), np.float32),
            "actions": [[a]],
            "rewards": [reward],
            "terminated": terminated,
            "truncated": not terminated,
        }
        for a in actions
    ]
    return Episodes.from_episodes(
        items, observation_space=spaces.Box(-1, 1, (1,)), action_space=spaces.Box(-1, 1, (1,))
    )


@pytest.mark.parametrize(
    ("terminated", "time_limit", "expected"),
    [(False, "bootstrap", 2.0), (True, "bootstrap", 1.0), (False, "terminal", 1.0)],
)
def test_a_truncation_is_bootstrapped_unless_it_is_part_of_the_task_and_a_termination_is_not(
    terminated: bool, time_limit: Any, expected: float
) -> None:
    """1 + γ + γ² + … = 1 / (1 − 0.5), or 1 and no more."""
    data, config = loop(terminated=terminated), replace(QUICK, discount=0.5)
    estimate = fitted_q_evaluation(RandomPolicy(data.action_space), data, config, time_limit=time_limit)
    assert estimate.mean == pytest.approx(expected, abs=0.05)


@pytest.mark.slow
def test_the_defaults_reach_a_value_that_lies_a_hundred_rewards_away() -> None:
    """1 + γ + γ² + … = 100, from episodes of one step. Targets that follow too slowly stop at 63."""
    data = loop(terminated=False)
    assert fitted_q_evaluation(RandomPolicy(data.action_space), data).mean == pytest.approx(100, abs=1.5)


def test_a_value_a_hundred_rewards_away_is_reached() -> None:
    data = loop(terminated=False)
    config = FQEConfig(updates=2_500, target_period=5, learning_rate=1e-3, hidden_sizes=(64,))
    assert fitted_q_evaluation(RandomPolicy(data.action_space), data, config).mean == pytest.approx(100, abs=2)


@pytest.mark.parametrize("changes", [{}, {"discount": 0.0}, {"updates": 2_500, "target_period": 5}])
def test_budgets_that_can_converge_pass_without_a_word(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr("herdbook.evaluation.fqe._Data", _Stop)
    with pytest.raises(InterruptedError):
        fitted_q_evaluation(_Still(), loop(terminated=False), FQEConfig(**changes))
    assert not caplog.records


@pytest.mark.parametrize(
    ("changes", "left", "needed"),
    [({"updates": 2_000}, 61, "18,360"), ({"discount": 0.999}, 61, "184,120"), ({"target_period": 200}, 37, "91,800")],
)
def test_a_budget_that_cannot_converge_is_reported_with_one_that_can(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], left: int, needed: str
) -> None:
    """.99⁵⁰ = .605, .999⁵⁰⁰ = .606, .99¹⁰⁰ = .366; .99⁴⁵⁹ = .0099, .999⁴⁶⁰³ = .01."""
    monkeypatch.setattr("herdbook.evaluation.fqe._Data", _Stop)
    with pytest.raises(InterruptedError):
        fitted_q_evaluation(_Still(), loop(terminated=False), FQEConfig(**changes))
    assert f"may leave {left} % of the first error" in caplog.text
    assert f"use {needed} updates" in caplog.text


class _Stop:
    def __init__(self, *_: Any) -> None:
        raise InterruptedError


@pytest.mark.parametrize("reward", [0.1, 1e-6, 1e6])
@pytest.mark.parametrize("terminated", [True, False])
def test_returns_that_are_all_equal_have_no_spread(reward: float, terminated: bool) -> None:
    """The standard deviation of 21 times 0.1 is 1e-17, not 0."""
    data, config = loop(terminated=terminated, reward=reward), replace(QUICK, discount=0.5)
    estimate = fitted_q_evaluation(RandomPolicy(data.action_space), data, config)
    assert estimate.mean == pytest.approx(reward * (1 if terminated else 2), rel=0.03)


def test_returns_that_differ_by_little_do_not_set_the_scale() -> None:
    """Rewards 1 ± 1e-4 in episodes of one step; the value is 10 either way."""
    eye = np.zeros((2, 1), np.float32)
    items = [
        {"observations": eye, "actions": [0], "rewards": [r], "terminated": False, "truncated": True}
        for r in (1 - 1e-4, 1 + 1e-4)
    ]
    data = Episodes.from_episodes(items, observation_space=spaces.Box(-1, 1, (1,)), action_space=spaces.Discrete(1))
    assert fitted_q_evaluation(RandomPolicy(data.action_space), data, QUICK).mean == pytest.approx(10, rel=0.03)


def test_an_unknown_time_limit_is_named() -> None:
    wrong: Any = "none"
    with pytest.raises(ValueError, match='expected time_limit "bootstrap" or "terminal", got \'none\''):
        fitted_q_evaluation(_Still(), loop(terminated=True), time_limit=wrong)


def bandit() -> Episodes:
    """Reward a², each episode one step that terminates."""
    items = [
        {
            "observations": np.zeros((2, 1), np.float32),
            "actions": [[a]],
            "rewards": [a * a],
            "terminated": True,
            "truncated": False,
        }
        for a in np.linspace(-1, 1, 101)
    ]
    return Episodes.from_episodes(
        items, observation_space=spaces.Box(-1, 1, (1,)), action_space=spaces.Box(-1, 1, (1,))
    )


def test_a_stochastic_policy_is_valued_by_its_expectation_not_its_mode() -> None:
    """Of a², a uniform on [−1, 1]: the expectation is 1/3, the value at the mode 0."""
    data = bandit()
    config = replace(QUICK, discount=0.0, action_samples=100)
    estimate = fitted_q_evaluation(RandomPolicy(data.action_space), data, config)
    assert estimate.mean == pytest.approx(1 / 3, abs=0.02)


def test_rewards_of_any_scale_are_learned_alike(mdp: dict[str, np.ndarray]) -> None:
    """The network sees the same numbers, so the estimate scales with the rewards."""
    config = replace(QUICK, updates=100)
    policy = Tabular(np.full((STATES, ACTIONS), 0.5))
    plain = fitted_q_evaluation(policy, data_of(mdp), config).values
    large = fitted_q_evaluation(policy, data_of({**mdp, "rewards": 1e4 * mdp["rewards"]}), config).values
    assert large / 1e4 == pytest.approx(plain, rel=1e-3, abs=1e-3)


def test_the_estimate_is_a_function_of_the_seed(mdp: dict[str, np.ndarray]) -> None:
    config = FQEConfig(discount=DISCOUNT, updates=20, batch_size=8)
    policy = Tabular(np.full((STATES, ACTIONS), 0.5), offers_probs=False)
    first, again, other = (fitted_q_evaluation(policy, data_of(mdp), config, seed=seed).mean for seed in (0, 0, 1))
    assert first == again != other


def test_only_the_steps_in_the_mask_are_drawn() -> None:
    """Of two steps that terminate, the second, whose reward is 100, is masked out."""
    item = {
        "observations": np.array([[0.0], [0.5]]),
        "actions": [[0.0]],
        "rewards": [1.0],
        "terminated": True,
        "truncated": False,
    }
    data = Episodes.from_episodes(
        [item, {**item, "rewards": [100.0]}],
        observation_space=spaces.Box(-1, 1, (1,)),
        action_space=spaces.Box(-1, 1, (1,)),
        mask=np.array([True, False]),
    )
    estimate = fitted_q_evaluation(_Still(), data, QUICK)
    assert estimate.mean == pytest.approx(1.0, abs=0.05)


def test_a_policy_that_draws_nothing_is_asked_once_for_each_state() -> None:
    data, config = bandit(), replace(QUICK, updates=1)
    for policy, expected in ((_Still(), 1), (_Coin(), config.action_samples)):
        fitted_q_evaluation(policy, data, config)
        assert policy.asked == expected


def test_a_policy_that_draws_in_some_states_only_is_sampled_there() -> None:
    """Of 9,001 states the policy sees 8,192 at once; it draws where the observation is 0."""
    item = {
        "observations": np.repeat([[1.0], [0.0]], [8_500, 501], axis=0),
        "actions": np.zeros((9_000, 1)),
        "rewards": np.zeros(9_000),
        "terminated": True,
        "truncated": False,
    }
    data = Episodes.from_episodes(
        [item], observation_space=spaces.Box(0, 1, (1,)), action_space=spaces.Box(-1, 1, (1,))
    )
    policy = _Coin()
    fitted_q_evaluation(policy, data, replace(QUICK, updates=1))
    assert policy.asked == 1 + QUICK.action_samples


class _Still:
    asked = 0

    def initial(self, num_envs: int) -> Carry:
        return None

    def __call__(self, step: Step, carry: Carry, generator: torch.Generator | None = None) -> tuple[Tensor, Carry]:
        self.asked += 1
        return torch.zeros(len(step.first), 1), carry

    def distribution(self, step: Step, carry: Carry) -> tuple[Any, Carry]:
        raise NotImplementedError


class _Coin(_Still):
    """Draws actions if a state is 0."""

    def __call__(self, step: Step, carry: Carry, generator: torch.Generator | None = None) -> tuple[Tensor, Carry]:
        actions, carry = super().__call__(step, carry)
        return actions.uniform_(-1, 1, generator=generator) if bool((step.observations == 0).any()) else actions, carry


def test_discrete_observations_are_one_hot() -> None:
    item = {
        "observations": np.arange(3),
        "actions": [5, 6],
        "rewards": [1.0, 2.0],
        "terminated": True,
        "truncated": False,
    }
    data = Episodes.from_episodes(
        [item], observation_space=spaces.Discrete(3), action_space=spaces.Discrete(2, start=5)
    )
    estimate = fitted_q_evaluation(_First(), data, QUICK)
    assert estimate.values.shape == (1,)
    assert np.isfinite(estimate.mean)


class _First:
    def initial(self, num_envs: int) -> Carry:
        return None

    def __call__(self, step: Step, carry: Carry, generator: torch.Generator | None = None) -> tuple[Tensor, Carry]:
        return torch.full(step.first.shape, 5), carry

    def distribution(self, step: Step, carry: Carry) -> tuple[Any, Carry]:
        raise NotImplementedError


def test_images_and_unbounded_actions_are_refused() -> None:
    image = {
        "observations": np.zeros((2, 8, 8, 3), np.uint8),
        "actions": [0],
        "rewards": [0.0],
        "terminated": True,
        "truncated": False,
    }
    data = Episodes.from_episodes(
        [image], observation_space=spaces.Box(0, 255, (8, 8, 3), np.uint8), action_space=spaces.Discrete(2)
    )
    with pytest.raises(ValueError, match="vector or Discrete observations"):
        fitted_q_evaluation(_First(), data)
    vector = {
        "observations": np.zeros((2, 1)),
        "actions": [[0.0]],
        "rewards": [0.0],
        "terminated": True,
        "truncated": 0,
    }
    data = Episodes.from_episodes(
        [vector], observation_space=spaces.Box(-1, 1, (1,)), action_space=spaces.Box(-np.inf, np.inf, (1,))
    )
    with pytest.raises(ValueError, match="bounded"):
        fitted_q_evaluation(_First(), data)


@pytest.mark.parametrize(
    "wrong",
    [
        {"discount": 1.0},
        {"discount": -0.1},
        {"updates": 0},
        {"batch_size": 0},
        {"action_samples": 0},
        {"learning_rate": 0.0},
        {"target_period": 0},
        {"learning_rate": np.nan},
        {"hidden_sizes": [64]},
    ],
)
def test_numbers_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FQEConfig(**wrong)


def test_the_target_network_carries_no_history(monkeypatch: pytest.MonkeyPatch, mdp: dict[str, np.ndarray]) -> None:
    """Copied with gradients on, it would hold every update's parameters in memory."""
    seen: list[bool] = []

    def value(self: Any, network: torch.nn.Module, rows: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(any(parameter.requires_grad for parameter in network.parameters()))
        return torch.zeros(rows.shape)

    monkeypatch.setattr("herdbook.evaluation.fqe._Data.value", value)
    config = replace(QUICK, updates=3, target_period=1)
    fitted_q_evaluation(Tabular(np.full((STATES, ACTIONS), 0.5)), data_of(mdp), config)
    assert seen == [False, False, False]


def test_a_policy_that_counts_its_steps_is_refused() -> None:
    """It would be evaluated as if every state were the first one."""
    space = {"observation_space": spaces.Discrete(2), "action_space": spaces.Discrete(2)}
    item = {"observations": [0, 1], "actions": [0], "rewards": [1.0], "terminated": True, "truncated": False}
    data, config = Episodes.from_episodes([item], **space), FQEConfig(updates=1, discount=0.0)
    table = np.full((2, 2), 0.5)
    fitted_q_evaluation(TabularPolicy(table, deterministic=False), data, config)
    with pytest.raises(ValueError, match="expected a policy of single states, got one with a carry"):
        fitted_q_evaluation(TabularPolicy(np.stack([table, table]), deterministic=False), data, config)
