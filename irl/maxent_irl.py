"""MaxEnt IRL (Ziebart, Maas, Bagnell & Dey 2008, AAAI): maximum entropy over paths.

    P(ζ)        = Π_t p(s_{t+1} | s_t, a_t) exp(Σ_t r(s_t, a_t)) / Z(s_0)                             (1)  their eq. 4
    Q(s, a)     = r(s, a) + γ log Σ_s′ p(s′ | s, a) exp V(s′)                                         (2)
    V(s)        = log Z(s) = log Σ_a exp Q(s, a),   π(a | s) = exp(Q(s, a) − V(s))                    (3)
    p̃(s′ | s, a) = p(s′ | s, a) exp V(s′) / Σ_s″ p(s″ | s, a) exp V(s″)                                (4)
    ∇_θ L       = Σ_{s, a} (d_D(s, a) − d̃(s, a)) ∇_θ r_θ(s, a)                                         (5)  their eq. 6

(1) weighs a path by its reward as if the agent chose the outcomes too: good luck makes an action look good. d̃ is the
occupancy measure of (1), that of π in the optimistic dynamics p̃, and (5) is the exact gradient of its likelihood. Where
actions have one outcome each, p̃ = p, and this is MCE IRL; else its policy is too optimistic. Their algorithm 1 counts
visits by π in p, so that its gradient differs from (5) where outcomes are random. (1) has γ = 1; with γ < 1, (2)
discounts entropy and reward alike, as MCE IRL does.
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
class MaxEntIRLConfig(TabularIRLConfig):
    """Settings of MaxEnt IRL."""

    algorithm: ClassVar[str] = "maxent_irl"


def optimistic_value(dynamics: Dynamics, values: Floats) -> Outlook:
    """log Σ_s′ p(s′ | s, a) exp V(s′) of eq. 2, and p̃ of eq. 4 as its derivative. values: V [S].

    NaN where all outcomes of an action are worth 700 less than the best state, which float64 cannot hold.
    """
    best = values.max()
    scale = np.exp(values - best)
    means = dynamics.expected(scale)
    means[means < np.finfo(np.float64).tiny] = np.nan
    return Outlook(best + np.log(means), 1 / means, scale)


def fit(mdp: MDP, occupancy: ArrayLike, *, horizon: int | None = None, features: Floats | None = None) -> Fitted:
    """Fit a linear reward so that the path distribution, eq. 1, has an occupancy measure `[S, A]`.

    Arguments and errors are those of `irl.mce_irl.fit`; the occupancy of the plan is d̃ of eq. 5.
    """
    return fit_flow(mdp, Flow.of(mdp, occupancy, horizon), optimistic_value, features=features)


class MaxEntIRL:
    """MaxEnt IRL in an MDP whose dynamics are known (`mdp`). One update is one gradient step of the reward.

    Raises ValueError for spaces that are not Discrete or not the model's, and for demonstrations that are impossible in
    the model or longer than the horizon.
    """

    needs: ClassVar[Needs] = Needs(data=True, dynamics=True, reward=True, actions="discrete", seeds_together=False)

    def __init__(self, config: MaxEntIRLConfig, spec: Spec, **known: Unpack[Known]) -> None:
        self.config = config
        self.irl = TabularIRL(config, spec, optimistic_value, **known)
        self.learner = self.irl.learner

    def sample(self, replay: Replay, generators: Sequence[torch.Generator]) -> tuple[()]:
        """Nothing: every update sees all demonstrations."""
        return ()

    def update(self, batch: tuple[()] = ()) -> Metrics:
        """One gradient step, eq. 5."""
        return self.irl.update()

    def policy(self, seed_index: int = 0, *, deterministic: bool = True) -> Policy:
        """π of eq. 3 or, deterministic, its most probable actions."""
        return self.irl.policy(deterministic=deterministic)

    def reward(self, seed_index: int = 0) -> LearnedReward:
        return self.irl.reward()

    def state_dict(self) -> dict[str, Any]:
        return self.irl.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.irl.load_state_dict(state)
