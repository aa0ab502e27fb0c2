"""The environments of inverse RL, and the scripted experts in them and in classic control."""

from dataclasses import replace
from typing import Any

import gymnasium
import minari
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import herdbook
from herdbook.cli.main import main
from herdbook.core.environments import EnvironmentSpec, EnvironmentUnavailable, check_reset, make_environment
from herdbook.core.random_policy import RandomPolicy
from herdbook.core.types import Step
from herdbook.datasets.episodes import Episodes
from herdbook.datasets.load import load_dataset
from herdbook.datasets.recipes.acrobot import torque_sign
from herdbook.datasets.recipes.cartpole import push_right
from herdbook.datasets.recipes.gridworld import ROOM
from herdbook.datasets.recipes.point_mass import PointMassController
from herdbook.datasets.recipes.recipe import Behaviour, collect
from herdbook.datasets.recipes.registry import RECIPES, resolve
from herdbook.irl.point_mass import PointMass
from herdbook.tabular.environment import GridWorldEnv
from herdbook.tabular.experts import gridworld_expert, shortest_paths
from herdbook.tabular.gridworld import GridWorld
from herdbook.tabular.planning import value_iteration

POINT_MASS, CARTPOLE = "herdbook/PointMass-v0", "herdbook/FixedHorizonCartPole-v0"


def f32(*values: Any) -> Any:
    return np.array(values, np.float32)


def as_step(observations: Any) -> Step:
    seen = torch.as_tensor(observations)
    first, zeros = torch.ones(len(seen), dtype=torch.bool), torch.zeros(len(seen))
    return Step(observations=seen, previous_actions=zeros, previous_rewards=zeros, first=first, reset=first)


# --- point mass -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("position", "action", "after"),
    [
        ((0.0, -0.8), (1.0, -0.5), (0.05, -0.825)),  # free
        ((0.0, -0.8), (9.0, 0.0), (0.05, -0.8)),  # actions are clipped
        ((0.99, -0.98), (1.0, -1.0), (1.0, -1.0)),  # the arena ends
        ((0.0, -0.02), (0.5, 1.0), (0.025, -0.01)),  # stopped below the barrier, and goes on along it
        ((0.0, 0.02), (0.5, -1.0), (0.025, 0.01)),  # and above it
        ((0.5, -0.02), (0.0, 1.0), (0.5, 0.03)),  # through the gap, which begins at 0.4
        ((0.39, -0.04), (1.0, 0.5), (0.44, -0.015)),  # does not reach the barrier
        ((0.38, -0.01), (1.0, 1.0), (0.43, -0.01)),  # crosses y = 0 at x = 0.39: covered
        ((0.38, -0.03), (1.0, 1.0), (0.43, 0.02)),  # crosses y = 0 at x = 0.41: free
        ((0.42, -0.03), (-1.0, 1.0), (0.37, -0.01)),  # crosses y = 0 at x = 0.39: covered
    ],
)
@pytest.mark.parametrize("barrier", ["left", "right"])
def test_steps_of_the_point_mass_by_hand(barrier: Any, position: Any, action: Any, after: Any) -> None:
    mirror = f32(1 if barrier == "left" else -1, 1)
    following, rewards = PointMass(barrier=barrier).step(f32(position) * mirror, f32(action) * mirror)
    np.testing.assert_allclose(following, f32(after) * mirror, atol=1e-6)
    effort = np.square(np.clip(action, -1, 1)).sum()
    np.testing.assert_allclose(rewards, -np.hypot(position[0], position[1] - 0.8) - 0.001 * effort, atol=1e-6)


def test_masses_step_independently_and_their_positions_say_everything() -> None:
    generator = np.random.default_rng(0)
    task = PointMass(barrier="right", length=1.2)
    positions = generator.uniform(-1, 1, (500, 2)).astype(np.float32)
    actions = generator.uniform(-1, 1, (500, 2)).astype(np.float32)
    together, rewards = task.step(positions, actions)
    for i in (0, 17, 499):
        alone, reward = task.step(positions[i : i + 1], actions[i : i + 1])
        np.testing.assert_array_equal(alone[0], together[i])
        assert reward[0] == rewards[i]
    env = make_environment(POINT_MASS, barrier="right")
    observation, _ = env.reset(seed=1)
    for action in actions[:99]:
        expected, reward = PointMass(barrier="right").step(observation[None], action[None])
        observation, received, terminated, truncated, _ = env.step(action)
        np.testing.assert_array_equal(observation, expected[0])
        assert received == pytest.approx(reward[0]) and not terminated and not truncated
    assert env.step(actions[0])[2:4] == (False, True)  # 100 steps, whatever happens


def test_no_mass_passes_the_barrier() -> None:
    task, generator = PointMass(length=1.9), np.random.default_rng(0)
    positions = task.starts(300, generator)
    assert (np.abs(positions[:, 0]) <= 0.25).all() and (np.abs(positions[:, 1] + 0.8) <= 0.1001).all()
    positions[:, 0] -= 0.5
    for _ in range(100):
        positions, _ = task.step(positions, generator.uniform((-1, 0), (0.4, 1), (300, 2)).astype(np.float32))
    assert (positions[:, 1] < 0).all()


@pytest.mark.parametrize("settings", [{"barrier": "middle"}, {"length": 2.0}, {"length": 0.0}, {"width": 1}])
def test_a_barrier_that_cannot_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(EnvironmentUnavailable, match=f"{next(iter(settings))}"):
        make_environment(POINT_MASS, **settings)


def test_the_wrong_way_round_scores_clearly_worse() -> None:
    def mean(barrier: str, policy: Any) -> float:
        spec = EnvironmentSpec(id=POINT_MASS, kwargs={"barrier": barrier})
        played = collect(spec, Behaviour(policy, 20, {}), 0)
        assert played.truncated.sum() == 20 and not played.terminated.any()
        return float(played.returns().mean())

    (left,) = RECIPES["herdbook/point-mass/left/expert-v0"].behaviours()  # type: ignore[operator]
    (right,) = RECIPES["herdbook/point-mass/right/expert-v0"].behaviours()  # type: ignore[operator]
    straight = replace(left.policy, way=(0.0, 0.1))
    random = RandomPolicy(make_environment(POINT_MASS).action_space)
    scores = [mean("left", policy) for policy in (left.policy, right.policy, straight, random)]
    assert scores[0] > -35 and max(scores[1:]) < -80 and scores[3] < -140, scores
    assert mean("right", right.policy) > -35 and mean("right", left.policy) < -80


def test_velocities_of_the_point_mass_controller_by_hand() -> None:
    controller = PointMassController(way=(0.5, 0.0), goal=(0.0, 0.8), speed=0.05)
    positions = torch.tensor([[0.0, -0.8], [0.5, 0.0], [0.49, -0.01]])
    expected = torch.tensor([[10.0, 16.0], [-10.0, 16.0], [0.2, 0.2]])
    torch.testing.assert_close(controller.velocity(positions), expected)
    exact = replace(controller, noise=0.0).distribution(as_step(positions), None)[0]
    clipped = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [0.2, 0.2]])
    torch.testing.assert_close(exact.sample(torch.Generator().manual_seed(0)), clipped)
    with pytest.raises(ValueError, match="std > 0 for a density"):
        exact.log_prob(clipped)


# --- CartPole of a fixed horizon ------------------------------------------------------------------------------------


def test_variable_horizons_cannot_leak_the_reward() -> None:
    """It never terminates, however the pole falls, and pays nothing outside of CartPole's bounds."""
    env = make_environment(CARTPOLE)
    env.reset(seed=0)
    steps = [env.step(1) for _ in range(500)]
    assert [terminated for _, _, terminated, _, _ in steps] == [False] * 500
    assert [truncated for *_, truncated, _ in steps] == [False] * 499 + [True]
    for observation, reward, *_ in steps:
        upright = abs(observation[0]) <= 2.4 and abs(observation[2]) <= 12 * np.pi / 180
        assert reward == upright and -np.pi <= observation[2] <= np.pi
    assert sum(reward for _, reward, *_ in steps) < 20 and abs(steps[-1][0][0]) > 100


def test_inside_the_bounds_the_physics_are_those_of_cartpole() -> None:
    own, known = make_environment(CARTPOLE), gymnasium.make("CartPole-v1")
    observation, _ = own.reset(seed=3)
    np.testing.assert_array_equal(observation, known.reset(seed=3)[0])
    for step in range(30):
        action = int(push_right(torch.as_tensor(observation))) if step < 15 else 0
        observation, reward, *_ = own.step(action)
        expected, _, terminated, _, _ = known.step(action)
        np.testing.assert_array_equal(observation, expected)
        assert reward == (not terminated)
        if terminated:
            return
    raise AssertionError("it should have fallen")


def test_a_pole_that_falls_swings_through_with_its_angle_wrapped() -> None:
    env = make_environment(CARTPOLE).unwrapped
    env.reset(seed=0)
    env.state = np.array([0.0, 0.0, 3.1, 5.0])  # type: ignore[attr-defined]
    observation, reward, *_ = env.step(0)
    assert observation[2] == pytest.approx(3.1 + 0.02 * 5 - 2 * np.pi, abs=1e-6) and reward == 0
    env.state = np.array([0.0, 0.0, 0.1, -2.0])  # type: ignore[attr-defined]
    assert env.step(0)[1] == 1  # an upright pole is paid for again


@pytest.mark.parametrize("name", [POINT_MASS, CARTPOLE])
def test_environments_obey_gymnasium_and_reset_completely(name: str) -> None:
    env = make_environment(name)
    with pytest.warns(UserWarning) if name == CARTPOLE else _nothing():  # its positions and speeds are unbounded
        check_env(env.unwrapped, skip_render_check=True)
    assert check_reset(make_environment(name))


def _nothing() -> Any:
    import contextlib

    return contextlib.nullcontext()


# --- experts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "at_least", "ends"),
    [
        ("classic/cartpole/expert", 500, "truncated"),
        ("classic/fixed-horizon-cartpole/expert", 500, "truncated"),
        ("classic/pendulum/expert", -180, "truncated"),
        ("classic/acrobot/scripted", -95, "terminated"),
        ("point-mass/left/expert", -35, "truncated"),
        ("point-mass/right/expert", -35, "truncated"),
        ("gridworld/room/expert", -4.5, "terminated"),
        ("gridworld/room/soft", -7, "terminated"),
    ],
)
def test_an_expert_is_one_and_its_episodes_end_as_they_should(name: str, at_least: float, ends: str) -> None:
    recipe = resolve(name)
    assert recipe is not None and recipe.training is None
    (behaviour,) = recipe.behaviours()  # type: ignore[operator]
    episodes = 40 if recipe.environment.id in ("Acrobot-v1", "herdbook/GridWorld-v0") else 6
    data = collect(recipe.environment, replace(behaviour, episodes=episodes), 0)
    assert data.returns().mean() >= at_least
    last = data.offsets[1:] - 1
    flags = {"terminated": data.terminated[last], "truncated": data.truncated[last]}
    assert flags.pop(ends).all() and not next(iter(flags.values())).any()
    lengths = data.lengths()
    assert (lengths == lengths[0]).all() == (ends == "truncated")
    again = collect(recipe.environment, replace(behaviour, episodes=episodes), 0)
    assert again.fingerprint() == data.fingerprint()


def test_a_recipe_in_our_own_environment_is_an_ordinary_dataset(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    data: Episodes = load_dataset("point-mass/right/expert")
    assert (len(data), data.num_steps) == (100, 10_000)
    assert data.reference_scores is not None and data.reference_scores.source.startswith("herdbook:")
    plain = minari.load_dataset("herdbook/point-mass/right/expert-v0")
    env = plain.recover_environment()
    assert env.spec is not None and env.spec.kwargs == {"barrier": "right"} and env.spec.max_episode_steps == 100
    run = herdbook.train("bc", dataset="point-mass/right/expert", demonstrations=3, steps=5, run_dir="r", quiet=True)
    assert len(run.evaluations()[-1]["returns"]) == 10
    assert main(["data", "show", "point-mass/right/expert"]) == 0


def test_torque_of_the_acrobot_by_hand() -> None:
    # hanging at rest; second joint moving; θ₂ = π/2 at rest: 0.6 − 1.15 < 0; first joint moving alone;
    # θ₂ = π/2 and θ₁ = −π/2 at rest: 0.6 − 1.15 · 0; θ₁ = −π/2 at rest: 1.15; both joints moving: 0.1 − 0.2 · 0.4
    rest = [1.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    moving, bent, swinging = [*rest[:5], 0.1], [1.0, 0.0, 0.0, 1.0, 0.0, 0.0], [*rest[:4], 0.1, 0.0]
    level, straight, both = [0.0, -1.0, 0.0, 1.0, 0.0, 0.0], [0.0, -1.0, 1.0, 0.0, 0.0, 0.0], [*rest[:4], 0.4, 0.1]
    observations = torch.tensor([rest, moving, bent, swinging, level, straight, both])
    assert torque_sign(observations).tolist() == [0, 1, -1, -1, 1, 1, 1]


def test_shortest_paths_by_hand_and_as_value_iteration_has_them() -> None:
    policy = shortest_paths(GridWorld(text="S.\n.G"))  # up, right, down, left
    np.testing.assert_array_equal(policy, [[0, 0.5, 0.5, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0.25] * 4])
    grid = GridWorldEnv(**ROOM.kwargs).grid
    optimal = value_iteration(grid.mdp(discount=1.0))
    best = optimal.q >= optimal.q.max(-1, keepdims=True) - 1e-9
    inside = ~grid.ends
    np.testing.assert_array_equal(shortest_paths(grid)[inside], (best / best.sum(-1, keepdims=True))[inside])
    cut_off = shortest_paths(GridWorld(text="S#G"))
    np.testing.assert_array_equal(cut_off, np.full((2, 4), 0.25))


def test_the_soft_expert_takes_detours_by_its_temperature() -> None:
    grid = GridWorldEnv(**ROOM.kwargs).grid
    shortest = torch.from_numpy(shortest_paths(grid) > 0)[~grid.ends]
    mass = [(gridworld_expert(grid, t).log_probs.exp()[~grid.ends] * ~shortest).sum(-1).max() for t in (0, 0.05, 0.5)]
    assert mass[0] == 0 and mass[1] < 1e-6 and 0.05 < mass[2] < 0.5
