"""Small decision problems whose values are known: what the algorithms learn there, to the number."""

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from herdbook.core.types import Spec, Step, Steps
from herdbook.datasets.episodes import Episodes
from herdbook.datasets.prioritised import PrioritisedReplay
from herdbook.datasets.replay import ReplayBuffer
from herdbook.offline.bc import BC, BCConfig
from herdbook.offline.bcq import BCQ, BCQConfig
from herdbook.offline.cql import CQL, CQLConfig
from herdbook.offline.discrete_bcq import DiscreteBCQ, DiscreteBCQConfig
from herdbook.offline.discrete_cql import DiscreteCQL, DiscreteCQLConfig
from herdbook.offline.iql import IQL, IQLConfig
from herdbook.offline.td3_bc import TD3BC, TD3BCConfig
from herdbook.online.ddpg import DDPG, DDPGConfig
from herdbook.online.discrete_sac import DiscreteSAC, DiscreteSACConfig
from herdbook.online.dqn import DQN, DQNConfig
from herdbook.online.sac import SAC, SACConfig
from herdbook.online.td3 import TD3, TD3Config

BOX, DISCRETE = spaces.Box(-2, 2, (1,)), spaces.Discrete(3, start=1)
RATES = ("lr", "actor_lr", "critic_lr", "value_lr", "temperature_lr")
ALMOST_GREEDY = {"tune_temperature": False, "initial_temperature": 1e-3}
ALGORITHMS: dict[str, Any] = {
    "td3_bc": (TD3BC, TD3BCConfig, {"alpha": 20.0, "standardise_observations": False}),
    "iql": (IQL, IQLConfig, {"beta": 10.0, "expectile": 0.5}),
    "cql": (CQL, CQLConfig, {"alpha": 0.0, "num_actions": 2, "initial_temperature": 0.1}),
    "bcq": (BCQ, BCQConfig, {"vae_hidden_sizes": (32,), "num_target_actions": 4, "perturbation": 0.5}),
    "discrete_cql": (DiscreteCQL, DiscreteCQLConfig, {"alpha": 0.0}),
    "discrete_bcq": (DiscreteBCQ, DiscreteBCQConfig, {}),
    "ddpg": (DDPG, DDPGConfig, {}),
    "td3": (TD3, TD3Config, {}),
    "sac": (SAC, SACConfig, ALMOST_GREEDY),
    "dqn": (DQN, DQNConfig, {"target_period": 1}),
    "discrete_sac": (DiscreteSAC, DiscreteSACConfig, ALMOST_GREEDY),
}
CONTINUOUS = ["td3_bc", "iql", "cql", "bcq", "ddpg", "td3", "sac"]
STATES = spaces.Box(-1, 1, (2,))


def learn(name: str, episodes: Episodes, updates: int, *, time_limit: Any = "bootstrap", **changes: Any) -> Any:
    """Train on small networks with large steps and γ = ½."""
    cls, config, settings = ALGORITHMS[name]
    names = {field.name for field in dataclasses.fields(config)}
    fast = {"discount": 0.5, "tau": 0.1, "batch_size": 64, "hidden_sizes": (32,), **dict.fromkeys(RATES, 1e-2)}
    fast = {key: value for key, value in fast.items() if key in names}
    algorithm = cls(config(**{**fast, **settings, **changes}), episodes.spec(), seeds=(0,))
    replay = ReplayBuffer(episodes, time_limit=time_limit)
    generators = [torch.Generator().manual_seed(1)]
    for _ in range(updates):
        algorithm.update(algorithm.sample(replay, generators))
    return algorithm


def dataset(rows: list[dict[str, Any]], actions: spaces.Space[Any]) -> Episodes:
    return Episodes.from_episodes(rows, observation_space=STATES, action_space=actions)


def actions_of(name: str) -> spaces.Space[Any]:
    return DISCRETE if ALGORITHMS[name][0].needs.actions == "discrete" else BOX


def q_values(algorithm: Any, episodes: Episodes, rows: Any = slice(None)) -> Tensor:
    """Q(s, a) of the recorded steps, of the first critic."""
    states = torch.from_numpy(episodes.observations[episodes.step_rows])[rows]
    actions = algorithm.scaling.actions(torch.from_numpy(episodes.actions))[rows]
    parameters = algorithm.learner.parameters_of("critic")
    with torch.no_grad():
        if algorithm.scaling.discrete:
            q: Tensor = algorithm.critic(parameters, states)
            value = (q if q.dim() == 2 else q[0]).gather(1, actions[:, None])[:, 0]
        else:
            value = algorithm.critic(parameters, states, actions)[0]
    return value


def seen(state: list[float]) -> Step:
    flags = torch.zeros(1, dtype=torch.bool)
    return Step(torch.tensor([state]), torch.zeros(1), torch.zeros(1), flags, flags)


def act(algorithm: Any, state: list[float]) -> float:
    return float(algorithm.policy()(seen(state), None)[0].flatten()[0])


def _random_actions(actions: spaces.Space[Any], count: int) -> Any:
    generator = np.random.default_rng(0)
    if isinstance(actions, spaces.Discrete):
        return generator.integers(1, 4, count)
    return generator.uniform(-2, 2, (count, 1)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "ending", "time_limit", "value"),
    [
        *((name, "truncated", "bootstrap", 2.0) for name in ALGORITHMS),  # 1 + ½ + ¼ + …: the limit is not the task's
        *((name, "terminated", "bootstrap", 1.0) for name in ALGORITHMS),
        ("discrete_cql", "truncated", "terminal", 1.0),
    ],
)
def test_values_go_through_truncation_and_end_at_termination(
    name: str, ending: str, time_limit: str, value: float
) -> None:
    """One state, reward 1 a step, every episode one step long."""
    actions = actions_of(name)
    count = 60
    chosen = _random_actions(actions, count)
    state = np.array([[1.0, 0.0], [1.0, 0.0]], np.float32)
    rows = [
        {
            "observations": state,
            "actions": chosen[i : i + 1],
            "rewards": [1.0],
            "terminated": ending == "terminated",
            "truncated": ending == "truncated",
        }
        for i in range(count)
    ]
    episodes = dataset(rows, actions)
    values = q_values(learn(name, episodes, 200, time_limit=time_limit), episodes)
    assert float(values.mean()) == pytest.approx(value, abs=0.1)
    assert float((values - value).abs().max()) < 0.3


@pytest.mark.parametrize(("ending", "steps", "value"), [("truncated", 3, 10.0), ("terminated", 1, 1.0)])
def test_the_example_leaves_out_steps_without_a_next_action_and_keeps_terminations(
    ending: str, steps: int, value: float, repo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One state, reward 1, γ = 0.9, two seeds: 1 / (1 − γ) where every episode is cut off, or 1 and no more."""
    monkeypatch.syspath_prepend(repo_root)
    example = importlib.import_module("examples.your_own_algorithm")
    rows = [
        {
            "observations": np.array([[1.0, 0.0]] * (steps + 1), np.float32),
            "actions": actions,
            "rewards": [1.0] * steps,
            "terminated": ending == "terminated",
            "truncated": ending == "truncated",
        }
        for actions in np.split(_random_actions(BOX, 20 * steps), 20)
    ]
    config = example.OneStepConfig(discount=0.9, tau=0.2, batch_size=60, lr=1e-2, hidden_sizes=(32,))
    episodes = dataset(rows, BOX)
    algorithm = example.OneStep(config, episodes.spec(), seeds=(0, 1))
    replay, generators = ReplayBuffer(episodes), [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    for _ in range(400):
        metrics = algorithm.update(algorithm.sample(replay, generators))
    assert metrics["q"].tolist() == pytest.approx([value, value], rel=0.05)


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("name", ["td3_bc", "iql", "discrete_cql", "ddpg", "td3", "sac", "dqn", "discrete_sac"])
def test_a_reward_two_steps_ahead_is_discounted_once(name: str, n_step: int) -> None:
    """Two states: nothing, then 1 and the end. Q is ½ in the first and 1 in the second, whatever n is."""
    actions = actions_of(name)
    count = 40
    chosen = _random_actions(actions, 2 * count)
    states = np.array([[1, 0], [0, 1], [1, 1]], np.float32)
    rows = [
        {
            "observations": states,
            "actions": chosen[2 * i : 2 * i + 2],
            "rewards": [0.0, 1.0],
            "terminated": True,
            "truncated": False,
        }
        for i in range(count)
    ]
    episodes = dataset(rows, actions)
    values = q_values(learn(name, episodes, 200, n_step=n_step), episodes)
    assert float(values[0::2].mean()) == pytest.approx(0.5, abs=0.05)
    assert float(values[1::2].mean()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("expectile", [0.5, 0.7, 0.9])
def test_iql_values_the_state_at_the_expectile_of_its_actions(expectile: float) -> None:
    """Two actions with rewards 0 and 1, equally often: V = τ, between the mean and the best."""
    rows = [
        {
            "observations": np.array([[1.0, 0.0]] * 2, np.float32),
            "actions": np.array([[2.0 if i % 2 else -2.0]], np.float32),
            "rewards": [float(i % 2)],
            "terminated": True,
            "truncated": False,
        }
        for i in range(20)
    ]
    algorithm = learn("iql", dataset(rows, BOX), 500, expectile=expectile, batch_size=512, value_lr=2e-3)
    with torch.no_grad():
        value = algorithm.value(algorithm.learner.parameters_of("value"), torch.tensor([[1.0, 0.0]]))
    assert value.item() == pytest.approx(expectile, abs=0.04)


def _bandit(actions: spaces.Space[Any]) -> Episodes:
    """One step. In state (1, 0) the best of the actions is 1 (of the numbers: 2), in (0, 1) it is −1 (3)."""
    count = 300
    chosen = _random_actions(actions, count)
    rows = []
    for i in range(count):
        first = i % 2 == 0
        if isinstance(actions, spaces.Discrete):
            reward = float(chosen[i] == (2 if first else 3))
        else:
            reward = 1 - float(chosen[i, 0] - (1 if first else -1)) ** 2
        state = [1.0, 0.0] if first else [0.0, 1.0]
        rows.append(
            {
                "observations": np.array([state, state], np.float32),
                "actions": chosen[i : i + 1],
                "rewards": [reward],
                "terminated": True,
                "truncated": False,
            }
        )
    return dataset(rows, actions)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_best_action_is_found_among_numbers(name: str) -> None:
    algorithm = learn(name, _bandit(BOX), 300)
    assert act(algorithm, [1.0, 0.0]) == pytest.approx(1, abs=0.4)
    assert act(algorithm, [0.0, 1.0]) == pytest.approx(-1, abs=0.4)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("discrete_cql", {}),
        ("discrete_cql", {"alpha": 0.2}),
        ("discrete_bcq", {}),
        ("dqn", {}),
        ("dqn", {"dueling": True, "double_q": False, "target_period": 20, "tau": 1.0}),
        ("discrete_sac", {}),
    ],
)
def test_the_best_action_is_found_among_choices(name: str, changes: dict[str, Any]) -> None:
    algorithm = learn(name, _bandit(DISCRETE), 300, **changes)
    assert act(algorithm, [1.0, 0.0]) == 2
    assert act(algorithm, [0.0, 1.0]) == 3


def _unseen_is_tempting() -> Episodes:
    """Action 1 is never taken, 2 pays 0 and is taken nine times in ten, 3 pays −1."""
    rows = [
        {
            "observations": np.array([[1.0, 0.0]] * 2, np.float32),
            "actions": np.array([3 if i % 10 == 0 else 2]),
            "rewards": [-1.0 if i % 10 == 0 else 0.0],
            "terminated": True,
            "truncated": False,
        }
        for i in range(50)
    ]
    return dataset(rows, DISCRETE)


@pytest.mark.parametrize(("name", "changes"), [("discrete_cql", {"alpha": 1.0}), ("discrete_bcq", {"threshold": 0.5})])
def test_an_action_that_the_data_lacks_is_not_taken(name: str, changes: dict[str, Any]) -> None:
    algorithm = learn(name, _unseen_is_tempting(), 300, **changes)
    for key, value in algorithm.learner.parameters_of("critic").items():
        if name == "discrete_bcq" and key.endswith("1.bias"):
            value[0] += 100.0  # an overestimate, which the mask hides
    assert act(algorithm, [1.0, 0.0]) == 2


def test_cql_pushes_values_down_off_the_data_and_up_on_it() -> None:
    """Recorded actions lie around 0; far from them Q is lower than TD learning alone would have it."""
    generator = np.random.default_rng(0)
    rows = [
        {
            "observations": np.array([[1.0, 0.0]] * 2, np.float32),
            "actions": generator.normal(0, 0.1, (1, 1)).astype(np.float32),
            "rewards": [0.0],
            "terminated": True,
            "truncated": False,
        }
        for _ in range(50)
    ]
    episodes = dataset(rows, BOX)
    differences = []
    for alpha in (0.0, 1.0):
        algorithm = learn("cql", episodes, 120, alpha=alpha)
        state, candidates = torch.tensor([[1.0, 0.0]]).repeat(3, 1), torch.tensor([[0.0], [-1.0], [1.0]])
        with torch.no_grad():
            q = algorithm.critic(algorithm.learner.parameters_of("critic"), state, candidates)[0]
        differences.append(float(q[0] - q[1:].mean()))
    assert differences[1] > differences[0] + 1


@pytest.mark.parametrize("actions", [BOX, DISCRETE])
def test_cloning_finds_the_mean_of_numbers_and_the_most_frequent_choice(actions: spaces.Space[Any]) -> None:
    discrete = isinstance(actions, spaces.Discrete)
    taken = [1, 3, 3, 2, 3] if discrete else [0.0, 2.0, 0.5, 1.0, 0.5]
    rows = [
        {
            "observations": np.array([[1.0, 0.0]] * 2, np.float32),
            "actions": np.array([a] if discrete else [[a]], np.int64 if discrete else np.float32),
            "rewards": [0.0],
            "terminated": True,
            "truncated": False,
        }
        for a in taken * 8
    ]
    episodes = dataset(rows, actions)
    config = BCConfig(lr=5e-3, hidden_sizes=(32,), batch_size=64, standardise_observations=False)
    algorithm = BC(config, Spec(STATES, actions), seeds=(0,))
    replay, generators = ReplayBuffer(episodes), [torch.Generator().manual_seed(0)]
    for _ in range(200):
        algorithm.update(algorithm.sample(replay, generators))
    assert act(algorithm, [1.0, 0.0]) == (3 if discrete else pytest.approx(0.8, abs=0.1))


# --- entropy and priorities -----------------------------------------------------------------------------------------


def _one_state(actions: spaces.Space[Any], rewards: Any, ending: str = "terminated") -> Episodes:
    """120 episodes of one step; every choice, with its reward, is taken as often as the others."""
    chosen = np.arange(120) % 3 + 1 if isinstance(actions, spaces.Discrete) else _random_actions(actions, 120)
    rows = [
        {
            "observations": np.array([[1.0, 0.0]] * 2, np.float32),
            "actions": chosen[i : i + 1],
            "rewards": [float(rewards[i % 3])],
            "terminated": ending == "terminated",
            "truncated": ending == "truncated",
        }
        for i in range(120)
    ]
    return dataset(rows, actions)


@pytest.mark.parametrize(
    ("name", "temperature", "ending", "value"),
    [
        ("discrete_sac", 0.5, "truncated", 0.5 * np.log(3)),  # of three choices
        ("discrete_sac", 0.5, "terminated", 0.0),
        ("sac", 1.0, "truncated", np.log(2)),  # of numbers in [−1, 1], in the networks' units
        ("sac", 1.0, "terminated", 0.0),
    ],
)
def test_values_hold_the_entropy_of_later_states(name: str, temperature: float, ending: str, value: float) -> None:
    """Without rewards the best policy is uniform, V = Q + α H and Q = ½ V: Q is α H, and 0 before an end."""
    episodes = _one_state(actions_of(name), [0.0] * 3, ending)
    values = q_values(learn(name, episodes, 300, initial_temperature=temperature), episodes)
    assert float(values.mean()) == pytest.approx(value, abs=0.07)


def test_a_soft_policy_takes_choices_in_proportion_to_the_exponential_of_their_values() -> None:
    """Rewards α log 1, α log 2 and α log 3."""
    algorithm = learn("discrete_sac", _one_state(DISCRETE, 0.5 * np.log([1, 2, 3])), 300, initial_temperature=0.5)
    assert _probabilities(algorithm) == pytest.approx([1 / 6, 2 / 6, 3 / 6], abs=0.03)


def _probabilities(algorithm: Any) -> list[float]:
    distribution = algorithm.policy(deterministic=False).distribution(seen([1.0, 0.0]), None)[0]
    probabilities: list[float] = distribution.probs[0].tolist()
    return probabilities


@pytest.mark.parametrize("start", [0.1, 1.0])
def test_a_tuned_temperature_brings_the_entropy_of_choices_to_its_target(start: float) -> None:
    """Half of log 3, where two choices pay 0 and one 1."""
    settings = {"tune_temperature": True, "initial_temperature": start, "entropy_share": 0.5}
    shares = np.array(_probabilities(learn("discrete_sac", _one_state(DISCRETE, [0, 0, 1]), 400, **settings)))
    assert -(shares * np.log(shares)).sum() == pytest.approx(0.5 * np.log(3), abs=0.1)


@pytest.mark.parametrize("target", [-1.0, 0.0])
def test_a_tuned_temperature_brings_the_entropy_of_numbers_to_its_target(target: float) -> None:
    settings = {"tune_temperature": True, "initial_temperature": 0.1, "target_entropy": target}
    algorithm = learn("sac", _bandit(BOX), 400, **settings)
    noise = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0))
    states = torch.eye(2).repeat(500, 1)
    with torch.no_grad():
        log_prob = algorithm.actor(algorithm.learner.parameters_of("actor"), states).rsample_with_log_prob(noise)[1]
    assert -float(log_prob.mean()) == pytest.approx(target, abs=0.15)


@pytest.mark.parametrize(("importance", "value"), [(1.0, 0.1), (0.0, 0.25)])
def test_weights_undo_what_priorities_do_to_a_mean(importance: float, value: float) -> None:
    """One action, whose reward is 1 every tenth time.

    Without weights, steps are drawn by |δ|, and Q is where 0.1 (1 − Q)² = 0.9 Q²: 1 − Q = 3 Q.
    """
    config = DQNConfig(
        prioritised=True,
        priority_exponent=1.0,
        importance_exponent=importance,
        importance_updates=10**9,
        batch_size=64,
        lr=3e-3,
        hidden_sizes=(32,),
    )
    spec = Spec(STATES, DISCRETE)
    algorithm = DQN(config, spec, seeds=(0,))
    replay = PrioritisedReplay(ReplayBuffer.online(spec, 100), config.priority_exponent)
    state, yes = np.array([[1.0, 0.0]], np.float32), np.ones(1, np.bool_)
    for i in range(100):
        replay.add(Steps(state, np.array([2]), np.array([float(i % 10 == 0)]), yes, ~yes, state))
    generators = [torch.Generator().manual_seed(1)]
    for _ in range(300):
        batch = algorithm.sample(replay, generators)
        metrics = algorithm.update(batch)
        assert batch.indices is not None
        replay.set_priorities(batch.indices, metrics["priorities"])
    with torch.no_grad():
        q = algorithm.critic(algorithm.learner.parameters_of("critic"), torch.from_numpy(state))[0, 1]
    assert float(q) == pytest.approx(value, abs=0.03)
