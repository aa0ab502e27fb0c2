"""`point-mass/{left,right}/expert`: a scripted path around the barrier of the point mass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from herdbook.core.environments import EnvironmentSpec, ReferenceScores, make_environment
from herdbook.core.types import Carry, Step
from herdbook.datasets.recipes.control import Controller, NoisyControl
from herdbook.datasets.recipes.recipe import OWN_SCORES, Behaviour, Recipe

VELOCITY = spaces.Box(-1.0, 1.0, (2,), np.float32)


@dataclass(frozen=True, kw_only=True)
class PointMassController(Controller):
    """Moves past the free end of the barrier, then to the goal, at full speed along each axis."""

    way: tuple[float, float]
    """Point in the gap at which the mass turns to the goal."""
    goal: tuple[float, float]
    speed: float
    """Length of a step along each axis."""
    noise: float = 0.1
    """σ of the Gaussian around the controller's velocity, truncated to the action space."""

    def distribution(self, step: Step, carry: Carry) -> tuple[NoisyControl, Carry]:
        control = self.velocity(step.observations)
        return NoisyControl.within(VELOCITY, control, self.noise, self.random_fraction), carry

    def velocity(self, positions: Tensor) -> Tensor:
        """The controller's velocity before clipping, which reaches its target in one step. [B, 2] → [B, 2]"""
        way, goal = positions.new_tensor(self.way), positions.new_tensor(self.goal)
        passed = (positions[:, 1] >= 0).unsqueeze(-1)
        return (torch.where(passed, goal, way) - positions) / self.speed


def behaviours(environment: EnvironmentSpec) -> Callable[[], Sequence[Behaviour]]:
    """The controller for the barrier of an environment."""

    def make() -> Sequence[Behaviour]:
        env = make_environment(environment)
        task = env.unwrapped.task  # type: ignore[attr-defined]  # a PointMassEnv has one
        env.close()
        inwards = 0.1 if task.barrier == "left" else -0.1
        controller = PointMassController(way=(task.end + inwards, 0.05), goal=task.goal, speed=task.speed)
        return [Behaviour(controller, episodes=100, metadata={})]

    return make


def _recipe(barrier: str, minimum: float, maximum: float) -> Recipe:
    environment = EnvironmentSpec(id="herdbook/PointMass-v0", kwargs={"barrier": barrier})
    return Recipe(
        id=f"herdbook/point-mass/{barrier}/expert-v0",
        description=f"PointMass, barrier on the {barrier}: scripted path around it, 100 episodes of 100 steps",
        environment=environment,
        behaviours=behaviours(environment),
        reference_scores=ReferenceScores(minimum, maximum, OWN_SCORES),
    )


POINT_MASS_LEFT = _recipe("left", -159.0, -31.0)
POINT_MASS_RIGHT = _recipe("right", -159.0, -31.0)
