"""Small environments whose values are known, learned in as a user would: through `herdbook.train`, to the number."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import herdbook
from herdbook.core.types import Spec
from herdbook.online.a2c import A2C, A2CConfig
from herdbook.online.ppo import PPO, PPOConfig
from herdbook.online.reinforce import Reinforce, ReinforceConfig
from herdbook.online.trpo import TRPO, TRPOConfig

DISCRETE, BOX = spaces.Discrete(3, start=1), spaces.Box(0, 5, (1,))
SMALL: dict[str, Any] = {"discount": 0.5, "hidden_sizes": (16,)}
ALGORITHMS: dict[str, Any] = {
    "reinforce": (Reinforce, ReinforceConfig, {"episodes_per_update": 8, "lr": 3e-2, "baseline_lr": 2e-2}),
    "a2c": (A2C, A2CConfig, {"lr": 3e-2, "decay_lr": True, "entropy_weight": 0.0, "max_grad_norm": None}),
    "ppo": (PPO, PPOConfig, {"lr": 2e-2, "rollout_steps": 16, "epochs": 5}),
    "trpo": (TRPO, TRPOConfig, {"critic_lr": 2e-2, "rollout_steps": 16, "critic_epochs": 5, "max_divergence": 0.05}),
}
NAMES = list(ALGORITHMS)
NEAR = {name: 0.1 if name == "a2c" else 0.03 for name in NAMES}
"""A2C takes few steps, and large ones."""


class OneHot(gymnasium.Env[Any, Any]):
    """What all have in common: states are seen as rows of the identity."""

    observation_space: Any = spaces.Box(0, 1, (2,))
    action_space: Any = DISCRETE
    state = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = self.first()
        return self.look(), {}

    def first(self) -> int:
        return 0

    def look(self) -> Any:
        return np.eye(2, dtype=np.float32)[self.state]


class Same(OneHot):
    """One state, reward 1 a step, and episodes of so many steps."""

    def __init__(self, steps: int, terminates: bool) -> None:
        self.steps, self.terminates = steps, terminates

    def first(self) -> int:
        self.t = 0
        return 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        over = self.t == self.steps
        return self.look(), 1.0, over and self.terminates, over and not self.terminates, {}


class Passage(OneHot):
    """State 0 leads to 1 without a reward, and 1 to the end with a reward of 1. Where it is `cut`, an episode begins

    in either, and is truncated after its first step: the way on from 0 is seen only in its final observation.
    """

    def __init__(self, cut: bool) -> None:
        self.cut = cut

    def first(self) -> int:
        return int(self.np_random.integers(2)) if self.cut else 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        arrived, self.state = self.state == 1, 1
        return self.look(), float(arrived), arrived, self.cut and not arrived, {}


class Contexts(OneHot):
    """One step. The best action is 2 in context 0 and 3 in 1; of numbers the upper bound, 5, and 1.5."""

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        self.action_space = action_space

    def first(self) -> int:
        return int(self.np_random.integers(2))

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if isinstance(self.action_space, spaces.Discrete):
            reward = float(action == (2, 3)[self.state])
        else:
            assert self.action_space.contains(action)
            reward = 1 - float(action[0] - (5.0, 1.5)[self.state]) ** 2 / 6
        return self.look(), reward, True, False, {}


def learn(
    name: str, make: Callable[[], OneHot], steps: int, *, time_limit: str = "bootstrap", seed: int = 0, **changes: Any
) -> Any:
    """The algorithm as a run's last checkpoint has it, γ = ½. REINFORCE, in one environment, takes half the steps."""
    cls, config_type, settings = ALGORITHMS[name]
    steps = steps // 2 if name == "reinforce" else steps
    config = config_type(**{**SMALL, **settings, **changes})
    config = config.for_run(steps) if name in ("a2c", "ppo") else config
    options: dict[str, Any] = {"log_every": steps, "checkpoint_every": steps, "eval_episodes": 0, "quiet": True}
    run = herdbook.train(
        config, env=make, steps=steps, seeds=(seed,), run_dir="run", time_limit=time_limit, threads=1, **options
    )
    algorithm = cls(config, Spec(make().observation_space, make().action_space), seeds=(seed,))
    algorithm.load_state_dict(run.checkpoints.load()["state"]["seed_by_seed"][0])
    return algorithm


def values(algorithm: Any) -> list[float]:
    """V of both states; of REINFORCE its baseline."""
    name = "baseline" if isinstance(algorithm, Reinforce) else "critic"
    observations = algorithm.units.scaling.observations(torch.eye(2))
    with torch.no_grad():
        found: list[float] = algorithm.learner.networks[name](
            algorithm.learner.parameters_of(name), observations
        ).tolist()
    return found


@pytest.mark.parametrize(
    ("steps", "terminates", "time_limit", "value"),
    [
        (3, False, "bootstrap", 2.0),  # 1 + ½ + ¼ + …: the limit is not the task's
        (1, True, "bootstrap", 1.0),
        (1, False, "terminal", 1.0),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_values_go_through_truncation_and_end_at_termination(
    name: str, steps: int, terminates: bool, time_limit: str, value: float
) -> None:
    algorithm = learn(name, lambda: Same(steps, terminates), 2_000, time_limit=time_limit)
    assert values(algorithm)[0] == pytest.approx(value, abs=NEAR[name])


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_value_of_a_state_is_what_the_next_one_is_worth_discounted(name: str, cut: bool) -> None:
    """½ and 1. With the observation that the next episode begins with it would be ⅓ where it is cut off."""
    assert values(learn(name, lambda: Passage(cut), 2_000)) == pytest.approx([0.5, 1.0], abs=NEAR[name])


@pytest.mark.parametrize("name", NAMES)
def test_the_best_choice_is_found_in_each_context(name: str) -> None:
    learn(name, lambda: Contexts(DISCRETE), 2_000)
    actor = herdbook.load("run")
    assert [int(actor.act(observation)) for observation in np.eye(2, dtype=np.float32)] == [2, 3]


@pytest.mark.parametrize(
    ("name", "changes"),
    [*((name, {}) for name in NAMES), ("ppo", {"normalise_observations": True, "scale_rewards": True})],
)
def test_the_best_number_is_found_in_each_context_on_the_bound_and_inside(name: str, changes: dict[str, Any]) -> None:
    """From the middle, 2.5. Where actions vary much, what is best on average is nearer to a bound: σ begins small."""
    rate = {} if name == "trpo" else {"lr": 1e-2}
    learn(name, lambda: Contexts(BOX), 4_000, initial_std=0.4, **rate, **changes)
    actor = herdbook.load("run")
    on_bound, inside = (float(actor.act(observation)[0]) for observation in np.eye(2, dtype=np.float32))
    assert on_bound == pytest.approx(5, abs=0.1)
    assert inside == pytest.approx(1.5, abs=0.5)
