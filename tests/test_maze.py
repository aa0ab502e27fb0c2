"""Every variant of DQN finds the shortest path of a maze, whose length is known."""

from typing import Any

import gymnasium
import pytest

import herdbook

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"double_q": False},
    "double": {},
    "dueling": {"dueling": True},
    "prioritised": {"prioritised": True},
    "n-step": {"n_step": 3},
    "all": {"dueling": True, "prioritised": True, "n_step": 3},
}


def assert_shortest(variant: str, maze: dict[str, int], **settings: Any) -> None:
    """The greedy policy of a run takes as many steps as the maze's shortest path has."""
    run = herdbook.train(
        "dqn",
        env="herdbook/Maze-v0",
        env_kwargs=maze,
        run_dir="run",
        updates_per_step=1.0,
        warmup_steps=100,
        eval_episodes=1,
        quiet=True,
        **VARIANTS[variant],
        **settings,
    )
    shortest = gymnasium.make("herdbook/Maze-v0", **maze).unwrapped.shortest_path
    assert shortest > 9
    assert run.evaluations()[-1]["lengths"] == [shortest]


@pytest.mark.parametrize("variant", ["plain", "all"])
def test_dqn_finds_the_way_through_a_small_maze(variant: str) -> None:
    maze = {"rows": 2, "columns": 3, "maze_seed": 2}
    small = {"hidden_sizes": (64, 64), "batch_size": 32, "target_period": 50, "epsilon_steps": 1_000}
    assert_shortest(variant, maze, steps=3_000, evaluate_every=3_000, checkpoint_every=3_000, **small)


@pytest.mark.slow  # half a minute each
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_of_dqn_finds_the_way_through_a_maze(variant: str) -> None:
    assert_shortest(variant, {"rows": 5, "columns": 5}, steps=30_000, epsilon_steps=20_000)
