"""Recipes: the same bytes each time, something to learn, and ordinary Minari datasets."""

import sys
from functools import partial

import minari
import numpy as np
import pytest
import torch
from gymnasium import registry, spaces

from herdbook.core.environments import EnvironmentUnavailable
from herdbook.core.types import Step
from herdbook.datasets.minari import write_minari
from herdbook.datasets.recipes.cartpole import CARTPOLE, CartPoleController
from herdbook.datasets.recipes.control import NoisyControl
from herdbook.datasets.recipes.pendulum import PENDULUM, PendulumController, torque
from herdbook.datasets.recipes.pointmaze import LARGE, MEDIUM, UMAZE, PointMazeController, next_cells
from herdbook.datasets.recipes.recipe import Behaviour, collect
from herdbook.datasets.recipes.registry import RECIPES, resolve


def step(observations):
    first = torch.ones(len(observations), dtype=torch.bool)
    zeros = torch.zeros(len(observations))
    return Step(observations=observations, previous_actions=zeros, previous_rewards=zeros, first=first, reset=first)


@pytest.fixture(scope="module")
def pendulum():
    return PENDULUM.make()


@pytest.fixture(scope="module")
def cartpole():
    return CARTPOLE.make()


def mean_return(recipe, policy, episodes=10, seed=1):
    return collect(recipe.environment, Behaviour(policy, episodes, {}), seed).returns().mean()


@pytest.mark.parametrize(
    "name",
    [
        "herdbook/classic/pendulum-v0",
        "herdbook/classic/pendulum",
        "classic/pendulum-v0",
        "classic/pendulum",
    ],
)
def test_every_form_of_a_name_resolves(name):
    assert resolve(name) is PENDULUM


@pytest.mark.parametrize("name", ["classic/pendulum-v1", "pendulum", "classic", "D4RL/pointmaze/umaze-v2", ""])
def test_other_names_are_not_recipes(name):
    assert resolve(name) is None


def test_ids_are_minari_ids_and_short_names_are_unique():
    for name, recipe in RECIPES.items():
        assert name == recipe.id
        namespace, short, version = minari.dataset.minari_dataset.parse_dataset_id(recipe.id)
        assert namespace and short and version == 0
        assert recipe.reference_scores.source.startswith("herdbook:")
    assert len({recipe.name for recipe in RECIPES.values()}) == len(RECIPES)


def test_pendulum_leaves_something_to_learn(pendulum):
    assert -900 <= pendulum.returns().mean() <= -500
    assert (len(pendulum), pendulum.num_steps) == (240, 48_000)
    assert (pendulum.reference_scores.minimum, pendulum.reference_scores.maximum) == (-1225, -150)
    by_fraction = {}
    for metadata, value in zip(pendulum.episode_metadata, pendulum.returns(), strict=True):
        by_fraction.setdefault(metadata["random_fraction"], []).append(value)
    means = [np.mean(by_fraction[fraction]) for fraction in sorted(by_fraction)]
    assert means == sorted(means, reverse=True)  # the more random, the worse


def test_cartpole_mixes_short_and_full_episodes(cartpole):
    assert 100 <= cartpole.returns().mean() <= 350
    assert cartpole.lengths().min() < 20 and cartpole.lengths().max() == 500
    assert (cartpole.reference_scores.minimum, cartpole.reference_scores.maximum) == (20, 500)


def test_a_time_limit_is_a_truncation(pendulum, cartpole):
    last = pendulum.offsets[1:] - 1
    assert pendulum.truncated[last].all() and not pendulum.terminated.any()
    last = cartpole.offsets[1:] - 1
    full = cartpole.lengths() == 500
    assert (cartpole.truncated[last] == full).all()
    assert (cartpole.terminated[last] == ~full).all()


def test_recorded_rows_obey_the_dynamics(pendulum):
    """Observations, actions and rewards are aligned: Pendulum's cost and speed follow from the row before."""
    rows = pendulum.step_rows
    now, after = (pendulum.observations[r].astype(np.float64) for r in (rows, rows + 1))
    angle, action = np.arctan2(now[:, 1], now[:, 0]), pendulum.actions[:, 0].astype(np.float64)
    cost = angle**2 + 0.1 * now[:, 2] ** 2 + 0.001 * action**2
    np.testing.assert_allclose(pendulum.rewards, -cost, atol=1e-4)
    speed = np.clip(now[:, 2] + (15 * now[:, 1] + 3 * action) * 0.05, -8, 8)
    np.testing.assert_allclose(after[:, 2], speed, atol=1e-4)


@pytest.mark.parametrize("recipe", [PENDULUM, CARTPOLE], ids=lambda r: r.name)
def test_the_same_bytes_each_time(recipe, request):
    again = recipe.make()
    torch.rand(3)  # the global generator has no part in it
    assert again.fingerprint() == request.getfixturevalue(recipe.name.split("/")[1]).fingerprint()


def test_episodes_have_reset_seeds_of_their_own(pendulum):
    seeds = [m["seed"] for m in pendulum.episode_metadata]
    assert len(set(seeds)) == len(pendulum)
    env = minari.dataset.minari_dataset.EnvSpec.from_json(pendulum.environment.to_json()).make()
    for episode in (0, 100, 239):
        first, _ = env.reset(seed=seeds[episode])
        np.testing.assert_array_equal(first, pendulum.observations[pendulum.offsets[episode] + episode])


def test_plain_minari_opens_a_recipe(cartpole, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    write_minari(cartpole, CARTPOLE.id)
    plain = minari.load_dataset(CARTPOLE.id)
    assert (plain.total_episodes, plain.total_steps) == (len(cartpole), cartpole.num_steps)
    assert plain.recover_environment().spec.id == "CartPole-v1"
    episode = plain[3]
    rows = slice(cartpole.offsets[3] + 3, cartpole.offsets[4] + 4)
    np.testing.assert_array_equal(episode.observations, cartpole.observations[rows])


def test_the_controllers_solve_their_tasks_and_random_actions_do_not():
    assert mean_return(PENDULUM, PendulumController()) > -200
    assert mean_return(PENDULUM, PendulumController(random_fraction=1.0)) < -900
    assert mean_return(CARTPOLE, CartPoleController(), episodes=4) == 500
    assert mean_return(CARTPOLE, CartPoleController(random_fraction=1.0)) < 40


@pytest.mark.parametrize(
    "controller", [PendulumController, CartPoleController, partial(PointMazeController, maze_map=[[0]])]
)
@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_a_random_fraction_outside_0_to_1_is_refused(controller, fraction):
    with pytest.raises(ValueError, match=r"random_fraction in \[0, 1\]"):
        controller(random_fraction=fraction)


def test_torque_by_hand():
    observations = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [-1.0, 0.0, -1.0], [1.0, 0.0, 1.0]])
    # upright and at rest: none; hanging at rest: 15 − (−15) = 30; swinging back: −(15 − (½ − 15)); passing the top: −3θ̇
    torch.testing.assert_close(torque(observations), torch.tensor([[0.0], [30.0], [-29.5], [-3.0]]))


def test_cartpole_probabilities_by_hand():
    observations = torch.tensor([[0.0, 0.0, 0.1, 0.0], [0.0, 0.0, -0.1, 0.0]])
    distribution, _ = CartPoleController(random_fraction=0.25).distribution(step(observations), None)
    torch.testing.assert_close(distribution.probs, torch.tensor([[0.125, 0.875], [0.875, 0.125]]))
    certain, _ = CartPoleController().distribution(step(observations), None)
    assert certain.sample(torch.Generator().manual_seed(0)).tolist() == [1, 0]


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("control", [0.0, 1.9, 5.0])
def test_noisy_control_samples_follow_its_density(control, fraction):
    space = spaces.Box(-2.0, 2.0, (1,), np.float32)
    distribution = NoisyControl.within(space, torch.full((40_000, 1), control), 0.5, fraction)
    samples = distribution.sample(torch.Generator().manual_seed(0))
    assert samples.shape == (40_000, 1) and samples.abs().max() <= 2
    edges = torch.linspace(-2, 2, 21)
    grid = torch.linspace(-2, 2, 2001).unsqueeze(-1)
    one = NoisyControl.within(space, torch.full((2001, 1), control), 0.5, fraction)
    density = one.log_prob(grid).exp()
    assert torch.trapezoid(density, dx=4 / 2000).item() == pytest.approx(1, abs=1e-3)
    expected = torch.stack([torch.trapezoid(density[100 * i : 100 * i + 101], dx=4 / 2000) for i in range(20)])
    counted = torch.histogram(samples.squeeze(-1), edges).hist / len(samples)
    torch.testing.assert_close(counted, expected, atol=0.012, rtol=0)
    torch.testing.assert_close(distribution.mode(), torch.full((40_000, 1), min(control, 2.0)))


def test_policies_draw_only_from_the_generator_they_are_given():
    observations = torch.tensor([[0.0, 1.0, 0.5]] * 5)
    policy = PendulumController(random_fraction=0.5)
    draws = [policy(step(observations), None, torch.Generator().manual_seed(3))[0] for _ in range(2)]
    assert torch.equal(*draws)
    assert len(draws[0].unique()) == 5  # one draw for each environment


U_MAZE = [[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]]


def test_next_cells_by_hand():
    table = next_cells(U_MAZE)
    path, cell = [], (1, 1)
    while cell != (3, 1):
        cell = tuple(table[3, 1][cell].tolist())
        path.append(cell)
    assert path == [(1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)]
    assert table[3, 1, 3, 1].tolist() == [3, 1]  # arrived
    assert table[3, 1, 2, 1].tolist() == [2, 1]  # a wall leads nowhere


def test_pointmaze_force_by_hand():
    controller = PointMazeController(maze_map=U_MAZE)
    # achieved goal, desired goal, position, velocity; the centre of the cell in row i, column j is (j − 2, 2 − i)
    to_the_left_end = [-1.0, 1.0, -0.9, -1.2, -1.0, 1.0, 0.5, 0.0]
    in_the_goal_cell = [-1.1, -1.1, -0.9, -1.2, -1.1, -1.1, 0.0, 0.25]
    force = controller.force(torch.tensor([to_the_left_end, in_the_goal_cell]))
    # 10 · ((0, 1) − (−1, 1)) − (0.5, 0), and 10 · ((−0.9, −1.2) − (−1.1, −1.1)) − (0, 0.25)
    torch.testing.assert_close(force, torch.tensor([[9.5, 0.0], [2.0, -1.25]]))


def test_pointmaze_collects_goals_and_keeps_the_environment(tmp_path, monkeypatch):
    pytest.importorskip("gymnasium_robotics")
    maze_map = UMAZE.behaviours()[0].policy.maze_map
    assert maze_map == U_MAZE
    data = collect(UMAZE.environment, Behaviour(PointMazeController(maze_map=maze_map), 3, {}), 7)
    again = collect(UMAZE.environment, Behaviour(PointMazeController(maze_map=maze_map), 3, {}), 7)
    assert data.fingerprint() == again.fingerprint()
    assert data.lengths().tolist() == [300, 300, 300] and data.truncated.sum() == 3 and not data.terminated.any()
    assert data.returns().min() >= 2  # reaches a goal, is given another, and reaches that
    goals = np.unique(data.observations[:301, 2:4], axis=0)
    assert len(goals) == data.returns()[0] + 1
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    write_minari(data, UMAZE.id)
    plain = minari.load_dataset(UMAZE.id)
    assert set(plain[0].observations) == {"observation", "achieved_goal", "desired_goal"}
    np.testing.assert_allclose(plain[0].observations["desired_goal"], data.observations[:301, 2:4])
    assert plain.recover_environment().spec.kwargs["reset_target"] is True


@pytest.mark.slow  # a minute each
@pytest.mark.parametrize("recipe", [UMAZE, MEDIUM, LARGE], ids=lambda r: r.name)
def test_pointmaze_recipes_in_full(recipe):
    pytest.importorskip("gymnasium_robotics")
    data = recipe.make()
    assert data.num_steps >= 70_000
    low, high = recipe.reference_scores.minimum, recipe.reference_scores.maximum
    assert low < data.returns().mean() < high
    assert data.observation_space.shape == (8,) and isinstance(data.raw_observation_space, spaces.Dict)


def test_a_missing_extra_is_named(monkeypatch):
    for module in [m for m in sys.modules if m.startswith("gymnasium_robotics")] + ["gymnasium_robotics"]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("gymnasium.registry", {k: v for k, v in registry.items() if not k.startswith("PointMaze")})
    with pytest.raises(EnvironmentUnavailable, match=r"herdbook/pointmaze/umaze-v0 .*herdbook\[robotics\]"):
        UMAZE.make()
