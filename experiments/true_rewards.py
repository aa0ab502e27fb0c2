"""True rewards of known environments as functions of any transition, which the EPIC distance needs.

    Pendulum-v1:   −(θ² + 0.1 θ̇² + 0.001 a²), θ in [−π, π), of the state before the step
    CartPole-v1:   1, but unknown with `sutton_barto_reward`
    fixed-horizon CartPole:   1 if |x| ≤ 2.4 and |θ| ≤ 12° after the step, else 0
    point mass:   −distance to the goal − 0.001 ‖a‖², of the position before the step

The reward of an environment with a known model is a table R(s, a, s′). Gymnasium's toy-text environments give no reward
for a transition that cannot happen; it is the mean reward r(s, a) here.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from herdbook.core.environments import EnvironmentSource, EnvironmentUnavailable, describe_environment
from herdbook.core.types import RewardFunction, Transitions
from herdbook.tabular.environment import model_of
from herdbook.tabular.rewards import TableReward


def true_reward(environment: EnvironmentSource) -> RewardFunction | None:
    """The true reward of an environment on the CPU, None if it is not known as a function.

    Wrappers that change the rewards are not part of it.
    """
    described = describe_environment(environment)
    if described is not None and described.kwargs.get("sutton_barto_reward"):
        return None
    if described is not None and described.id in _FORMULAS:
        return _FORMULAS[described.id]
    try:
        mdp = model_of(environment, discount=1.0)
    except (ValueError, EnvironmentUnavailable):
        return None
    means = np.broadcast_to(mdp.expected_rewards[..., None], mdp.rewards.shape)
    silent = (mdp.transitions == 0) & (mdp.rewards == 0)
    return TableReward(np.where(silent, means, mdp.rewards))


def pendulum(transitions: Transitions) -> Tensor:
    """Gymnasium's Pendulum-v1. Observations cos θ, sin θ and θ̇; torques are clipped to [−2, 2]."""
    cosine, sine, speed = transitions.observations.unbind(-1)
    torque = transitions.actions[..., 0].clamp(-2, 2)
    cost: Tensor = torch.atan2(sine, cosine).square() + 0.1 * speed.square() + 0.001 * torque.square()
    return -cost


def cartpole(transitions: Transitions) -> Tensor:
    """Gymnasium's CartPole-v1: 1 for every step, the last one included."""
    return torch.ones_like(transitions.discounts)


def fixed_horizon_cartpole(transitions: Transitions) -> Tensor:
    """1 where cart and pole are within CartPole's bounds after the step, else 0. Observations x, ẋ, θ and θ̇."""
    position, angle = transitions.next_observations[..., 0], transitions.next_observations[..., 2]
    inside: Tensor = (position.abs() <= 2.4) & (angle.abs() <= math.radians(12))
    return inside.to(transitions.discounts.dtype)


def point_mass(transitions: Transitions) -> Tensor:
    """The goal is (0, 0.8); actions are clipped to [−1, 1]²."""
    goal = torch.tensor([0.0, 0.8], device=transitions.observations.device)
    distance: Tensor = torch.linalg.vector_norm(transitions.observations - goal, dim=-1)
    effort: Tensor = transitions.actions.clamp(-1, 1).square().sum(-1)
    return -distance - 0.001 * effort


_FORMULAS: dict[str, RewardFunction] = {
    "Pendulum-v1": pendulum,
    "CartPole-v1": cartpole,
    "herdbook/FixedHorizonCartPole-v0": fixed_horizon_cartpole,
    "herdbook/PointMass-v0": point_mass,
}
