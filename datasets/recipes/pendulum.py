"""`classic/pendulum`: a scripted swing-up in Pendulum-v1, mixed with random actions.

`classic/pendulum/expert` holds the controller without noise and random actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from herdbook.core.environments import EnvironmentSpec, ReferenceScores
from herdbook.core.types import Carry, Step
from herdbook.datasets.recipes.control import Controller, NoisyControl
from herdbook.datasets.recipes.recipe import OWN_SCORES, Behaviour, Recipe

TORQUE = spaces.Box(-2.0, 2.0, (1,), np.float32)


@dataclass(frozen=True, kw_only=True)
class PendulumController(Controller):
    """Energy shaping until the pendulum is near the top, then linear feedback (Åström & Furuta 2000, section 3).

    With θ = 0 upright, θ̈ = 15 sin θ + 3u and E = θ̇²/2 + 15 cos θ, so dE/dt = 3uθ̇: torque along θ̇ raises the energy to
    15, its value at rest at the top. Mean return about −154, without noise −149; with `random_fraction` 1, −1225.
    """

    noise: float = 0.1
    """σ of the Gaussian around the controller's torque, truncated to the action space."""

    def distribution(self, step: Step, carry: Carry) -> tuple[NoisyControl, Carry]:
        return NoisyControl.within(TORQUE, torque(step.observations), self.noise, self.random_fraction), carry


def torque(observations: Tensor) -> Tensor:
    """The controller's torque before clipping. observations: cos θ, sin θ, θ̇ [B, 3] → [B, 1]."""
    cos, sin, speed = observations.unbind(-1)
    angle = torch.atan2(sin, cos)
    missing = 15 - (speed.square() / 2 + 15 * cos)
    swing_up = missing * torch.where(speed < 0, -1.0, 1.0)
    balance = -(10 * angle + 3 * speed)
    near_the_top = (angle.abs() < 0.5) & (speed.abs() < 3)
    return torch.where(near_the_top, balance, swing_up).unsqueeze(-1)


def behaviours() -> Sequence[Behaviour]:
    """Six controllers with 100 to 25 % random actions, in equal shares of episodes."""
    return [
        Behaviour(PendulumController(random_fraction=f), episodes=40, metadata={"random_fraction": f})
        for f in (1.0, 0.875, 0.75, 0.625, 0.5, 0.25)
    ]


PENDULUM = Recipe(
    id="herdbook/classic/pendulum-v0",
    description="Pendulum-v1: scripted swing-up mixed with 25 to 100 % random actions, 240 episodes of 200 steps",
    environment=EnvironmentSpec(id="Pendulum-v1"),
    behaviours=behaviours,
    reference_scores=ReferenceScores(-1225.0, -150.0, OWN_SCORES),
)


def expert() -> Sequence[Behaviour]:
    """The controller without noise and random actions."""
    return [Behaviour(PendulumController(noise=0.0), episodes=200, metadata={})]


PENDULUM_EXPERT = Recipe(
    id="herdbook/classic/pendulum/expert-v0",
    description="Pendulum-v1: scripted swing-up, 200 episodes of 200 steps",
    environment=EnvironmentSpec(id="Pendulum-v1"),
    behaviours=expert,
    reference_scores=ReferenceScores(-1225.0, -150.0, OWN_SCORES),
)
