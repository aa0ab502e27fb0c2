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


QUICK = FQEConfig(discount=DISCOUNT, updates=700, learning_rate=3e-3, tau=0.05, hidden_sizes=(64,))


@pytest.mark.parametrize("kind", ["deterministic", "stochastic", "sampled"])
def test_value_on_a_tabular_mdp_is_within_a_hundredth(mdp: dict[str, np.ndarray], kind: str) -> None:
    rng = np.random.default_rng(1)
    probs = np.eye(ACTIONS)[rng.integers(ACTIONS, size=STATES)]
    if kind != "deterministic":
        probs = rng.dirichlet(np.ones(ACTIONS), STATES)
    data = data_of(mdp)
    config = replace(QUICK, action_samples=500)  # used where the policy offers no probabilities
    estimate = fitted_q_evaluation(Tabular(probs, offers_probs=kind != "sampled"), data, config)
    expected = np.repeat(exact_values(mdp, probs), ACTIONS * 4)
    assert estimate.values == pytest.approx(expected, abs=0.05 if kind == "sampled" else 1e-2)
    assert estimate.mean == pytest.approx(expected.mean(), abs=0.05 if kind == "sampled" else 1e-2)


def loop(*, terminated: bool) -> Episodes:
    """One state that leads to itself, one reward for any action, in episodes of one step."""
    actions = np.linspace(-1, 1, 21)
    items = [
        {
            "observations": np.zeros((2, 1), np.float32),
            "actions": [[a]],
            "rewards": [1.0],
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
    config = FQEConfig(discount=0.0, updates=700, learning_rate=3e-3, tau=0.05, hidden_sizes=(64,), action_samples=100)
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


class _Still:
    def initial(self, num_envs: int) -> Carry:
        return None

    def __call__(self, step: Step, carry: Carry, generator: torch.Generator | None = None) -> tuple[Tensor, Carry]:
        return torch.zeros(len(step.first), 1), carry

    def distribution(self, step: Step, carry: Carry) -> tuple[Any, Carry]:
        raise NotImplementedError


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
        {"tau": 0.0},
        {"tau": 1.5},
        {"learning_rate": np.nan},
        {"hidden_sizes": [64]},
    ],
)
def test_numbers_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FQEConfig(**wrong)


def test_the_average_network_carries_no_history(monkeypatch: pytest.MonkeyPatch, mdp: dict[str, np.ndarray]) -> None:
    """Averaged with gradients on, it would hold every update's parameters in memory."""
    seen: list[bool] = []

    def initial_values(self: Any, network: torch.nn.Module) -> np.ndarray:
        seen.extend(parameter.requires_grad for parameter in network.parameters())
        return np.zeros(1)

    monkeypatch.setattr("herdbook.evaluation.fqe._Data.initial_values", initial_values)
    fitted_q_evaluation(Tabular(np.full((STATES, ACTIONS), 0.5)), data_of(mdp), replace(QUICK, updates=2))
    assert seen
    assert not any(seen)
