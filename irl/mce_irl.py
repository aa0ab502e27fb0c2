"""MCE IRL (Ziebart 2010, ch. 9 and 10; Gleave & Toyer 2022, arXiv:2203.11409): maximum causal entropy inverse RL.

    Q(s, a) = r(s, a) + γ Σ_s′ p(s′ | s, a) V(s′)                         (1)
    V(s)    = log Σ_a exp Q(s, a),   π(a | s) = exp(Q(s, a) − V(s))       (2)
    ∇_θ L   = Σ_{s, a} (d_D(s, a) − d_π(s, a)) ∇_θ r_θ(s, a)              (3)

π maximises the causal entropy among the policies with the demonstrations' discounted features: an action depends on the
past, never on outcomes to come. L is the discounted log-likelihood of the demonstrations; d_D and d_π are the occupancy
measures of demonstrations and policy, with the same γ. Over a finite horizon, Q, V and π depend on the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import numpy as np
import torch
from numpy.typing import ArrayLike

from herdbook.core.needs import Needs
from herdbook.core.types import Metrics, Policy, Replay, Spec
from herdbook.irl.known_dynamics import Fitted, Flow, Known, Outlook, TabularIRL, TabularIRLConfig, fit_flow
from herdbook.irl.rewards import LearnedReward
from herdbook.tabular.dynamics import Dynamics
from herdbook.tabular.mdp import MDP, Floats


@dataclass(frozen=True, kw_only=True)
class MCEIRLConfig(TabularIRLConfig):
    """Settings of MCE IRL."""

    algorithm: ClassVar[str] = "mce_irl"


def expected_value(dynamics: Dynamics, values: Floats) -> Outlook:
    """Σ_s′ p(s′ | s, a) V(s′) of eq. 1. values: V [S]."""
    return Outlook(
        dynamics.expected(values), np.ones((dynamics.num_states, dynamics.num_actions)), np.ones_like(values)
    )


def fit(mdp: MDP, occupancy: ArrayLike, *, horizon: int | None = None, features: Floats | None = None) -> Fitted:
    """Fit a linear reward to an occupancy measure, with the MDP's initial distribution, dynamics and discount.

    Args:
        mdp: The model; its rewards are not read.
        occupancy: d_D = Σ_t γᵗ P(s_t = s, a_t = a), [S, A]: of `tabular.planning.occupancy`, for example.
        horizon: Steps of an episode; None: no limit.
        features: Φ, [S, K] or [S, A, K]; by default one-hot states.

    Raises ValueError for arrays of other shapes, and for a discount of 1 without a horizon.
    """
    return fit_flow(mdp, Flow.of(mdp, occupancy, horizon), expected_value, features=features)


class MCEIRL:
    """MCE IRL in an MDP whose dynamics are known (`mdp`). One update is one gradient step of the reward.

    Raises ValueError for spaces that are not Discrete or not the model's, and for demonstrations that are impossible in
    the model or longer than the horizon.
    """

    needs: ClassVar[Needs] = Needs(data=True, dynamics=True, reward=True, actions="discrete", seeds_together=False)

    def __init__(self, config: MCEIRLConfig, spec: Spec, **known: Unpack[Known]) -> None:
        self.config = config
        self.irl = TabularIRL(config, spec, expected_value, **known)
        self.learner = self.irl.learner

    def sample(self, replay: Replay, generators: Sequence[torch.Generator]) -> tuple[()]:
        """Nothing: every update sees all demonstrations."""
        return ()

    def update(self, batch: tuple[()] = ()) -> Metrics:
        """One gradient step, eq. 3."""
        return self.irl.update()

    def policy(self, seed_index: int = 0, *, deterministic: bool = True) -> Policy:
        """π of eq. 2 or, deterministic, its most probable actions."""
        return self.irl.policy(deterministic=deterministic)

    def reward(self, seed_index: int = 0) -> LearnedReward:
        return self.irl.reward()

    def state_dict(self) -> dict[str, Any]:
        return self.irl.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.irl.load_state_dict(state)
