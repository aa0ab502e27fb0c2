"""`classic/cartpole`: a scripted balancing controller in CartPole-v1, mixed with random actions.

`classic/cartpole/expert` and `classic/fixed-horizon-cartpole/expert` hold the controller without random actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from herdbook.core.distributions import Categorical
from herdbook.core.environments import EnvironmentSpec, ReferenceScores
from herdbook.core.types import Carry, Step
from herdbook.datasets.recipes.control import Controller
from herdbook.datasets.recipes.recipe import OWN_SCORES, Behaviour, Recipe


@dataclass(frozen=True, kw_only=True)
class CartPoleController(Controller):
    """Pushes in the direction of linear feedback on position, speed, angle and angular rate; return 500 of 500."""

    def distribution(self, step: Step, carry: Carry) -> tuple[Categorical, Carry]:
        right = push_right(step.observations)  # [B]
        chosen = torch.stack([~right, right], dim=-1).float()  # [B, 2]
        return Categorical(((1 - self.random_fraction) * chosen + self.random_fraction / 2).log()), carry


def push_right(observations: Tensor) -> Tensor:
    """True to push right. observations: x, ẋ, θ, θ̇ [B, 4] → [B] bool."""
    return observations @ observations.new_tensor([0.1, 0.3, 1.0, 0.4]) > 0


def behaviours() -> Sequence[Behaviour]:
    """Five controllers with 100 to 25 % random actions, in equal shares of episodes."""
    return [
        Behaviour(CartPoleController(random_fraction=f), episodes=40, metadata={"random_fraction": f})
        for f in (1.0, 0.75, 0.5, 0.375, 0.25)
    ]


CARTPOLE = Recipe(
    id="herdbook/classic/cartpole-v0",
    description="CartPole-v1: scripted balancing mixed with 25 to 100 % random actions, 200 episodes",
    environment=EnvironmentSpec(id="CartPole-v1"),
    behaviours=behaviours,
    reference_scores=ReferenceScores(20.0, 500.0, OWN_SCORES),
)


def expert() -> Sequence[Behaviour]:
    """The controller without random actions."""
    return [Behaviour(CartPoleController(), episodes=100, metadata={})]


def _expert_recipe(name: str, environment: str, minimum: float) -> Recipe:
    return Recipe(
        id=f"herdbook/classic/{name}/expert-v0",
        description=f"{environment}: scripted balancing, 100 episodes of 500 steps",
        environment=EnvironmentSpec(id=environment),
        behaviours=expert,
        reference_scores=ReferenceScores(minimum, 500.0, OWN_SCORES),
    )


CARTPOLE_EXPERT = _expert_recipe("cartpole", "CartPole-v1", 20.0)
FIXED_HORIZON_EXPERT = _expert_recipe("fixed-horizon-cartpole", "herdbook/FixedHorizonCartPole-v0", 34.0)
