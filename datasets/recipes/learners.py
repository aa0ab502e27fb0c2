"""`classic/pendulum/…` and `classic/acrobot/…`: data of trained policies, or of their training.

The kinds of data follow D4RL: replay is all steps of a training run, medium a partly trained policy, expert a trained
policy, and medium-expert equal shares of both.
"""

from __future__ import annotations

from herdbook.core.environments import EnvironmentSpec, ReferenceScores
from herdbook.datasets.recipes.recipe import OWN_SCORES, Recipe
from herdbook.datasets.recipes.training import Share, Training

LEARNED_SCORES = "herdbook: mean returns of a random policy and of a trained one, measured by ourselves"

PENDULUM = EnvironmentSpec(id="Pendulum-v1")
SWING_UP = {
    "hidden_sizes": (64, 64),
    "batch_size": 128,
    "actor_lr": 1e-3,
    "critic_lr": 1e-3,
    "temperature_lr": 1e-3,
    "replay_steps": 5_000,
}
ACROBOT = EnvironmentSpec(id="Acrobot-v1")
BALANCE = {"hidden_sizes": (64, 64), "n_step": 3, "epsilon_steps": 5_000}

PENDULUM_REPLAY = Recipe(
    id="herdbook/classic/pendulum/replay-v0",
    description="Pendulum-v1: the replay of SAC that learns for 5,000 steps, 25 episodes",
    environment=PENDULUM,
    behaviours=Training(algorithm="sac", steps=5_000, config=SWING_UP, replay=True, minutes=1),
    reference_scores=ReferenceScores(-1225.0, -150.0, OWN_SCORES),
)
PENDULUM_MEDIUM_EXPERT = Recipe(
    id="herdbook/classic/pendulum/medium-expert-v0",
    description="Pendulum-v1: SAC after 3,000 and after 5,000 steps, 200 episodes",
    environment=PENDULUM,
    behaviours=Training(
        algorithm="sac",
        steps=5_000,
        config=SWING_UP,
        shares=(Share(episodes=100, at=0.6, deterministic=False), Share(episodes=100, deterministic=False)),
        minutes=1,
    ),
    reference_scores=ReferenceScores(-1225.0, -150.0, OWN_SCORES),
)
ACROBOT_MEDIUM = Recipe(
    id="herdbook/classic/acrobot/medium-v0",
    description="Acrobot-v1: DQN after 6,000 steps, a fifth of its actions random, 200 episodes",
    environment=ACROBOT,
    behaviours=Training(
        algorithm="dqn", steps=6_000, config=BALANCE, shares=(Share(episodes=200, noise=0.2),), minutes=1
    ),
    reference_scores=ReferenceScores(-500.0, -89.0, LEARNED_SCORES),
)
ACROBOT_EXPERT = Recipe(
    id="herdbook/classic/acrobot/expert-v0",
    description="Acrobot-v1: DQN after 20,000 steps, 200 episodes",
    environment=ACROBOT,
    behaviours=Training(algorithm="dqn", steps=20_000, config=BALANCE, shares=(Share(episodes=200),), minutes=1),
    reference_scores=ReferenceScores(-500.0, -89.0, LEARNED_SCORES),
)
