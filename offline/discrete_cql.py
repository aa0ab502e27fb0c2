"""Discrete CQL (Kumar et al. 2020, arXiv:2006.04779): double DQN (van Hasselt et al. 2016) and the exact CQL(H) term.

y   = r + γ Q̄(s′, argmax_a′ Q(s′, a′))                        (1)
C   = mean [log Σ_a exp Q(s, a) − Q(s, a_data)]               (2)
L_Q = mean huber(Q(s, a_data) − y) + α C                      (3)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from herdbook.core.config import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, UNIT, Config
from herdbook.core.distributions import Categorical
from herdbook.core.learner import Adam, Learner, Params, Setup
from herdbook.core.needs import Needs
from herdbook.core.networks import Head
from herdbook.core.policy import FeedForwardPolicy, Scaling
from herdbook.core.spaces import check_action_space
from herdbook.core.types import Metrics, Policy, Replay, Spec, Transitions


@dataclass(frozen=True, kw_only=True)
class DiscreteCQLConfig(Config):
    """Settings of discrete CQL. Learning rate and widths suit vector observations; the paper trains on Atari."""

    algorithm: ClassVar[str] = "discrete_cql"
    alpha: float = 1.0  # α, weight of the conservative term, eq. 3
    discount: float = 0.99  # γ, discount factor
    target_period: int = 1  # updates from one move of the target network to the next
    tau: float = 0.005  # target network: θ̄ ← (1 − tau) θ̄ + tau θ, for example 1 (copy) with target_period=2000
    batch_size: int = 256  # transitions per update
    lr: float = 3e-4  # learning rate
    adam_epsilon: float = 1e-8  # ε of Adam
    hidden_sizes: tuple[int, ...] = (256, 256)  # widths of the hidden layers
    n_step: int = 1  # n of the n-step return: rewards summed before bootstrapping
    frame_stack: int = 1  # successive observations that form one input of the networks
    standardise_observations: bool = False  # networks see (s − μ) / (σ + 1e-3), μ and σ of the dataset; vectors only

    def __post_init__(self) -> None:
        self.require(discount=UNIT, tau=FRACTION, alpha=NOT_NEGATIVE, lr=POSITIVE)
        self.require(batch_size=COUNT, n_step=COUNT, frame_stack=COUNT, hidden_sizes=COUNT)
        self.require(target_period=COUNT, adam_epsilon=POSITIVE)


def conservative_loss(q: Tensor, actions: Tensor) -> Tensor:
    """C of eq. 2. q: Q(s, ·) [B, n]; actions: a_data, indices [B] → []."""
    return -q.log_softmax(-1).gather(-1, actions.unsqueeze(-1)).mean()


def double_q_target(rewards: Tensor, discounts: Tensor, online_next_q: Tensor, target_next_q: Tensor) -> Tensor:
    """Eq. 1. rewards, discounts: [B]; online_next_q, target_next_q: Q(s′, ·) and Q̄(s′, ·) [B, n] → [B]."""
    best = online_next_q.argmax(-1, keepdim=True)
    return rewards + discounts * target_next_q.gather(-1, best).squeeze(-1)


class DiscreteCQL:
    """Discrete CQL. `networks` may replace `critic`: [B, …] → Q [B, n]."""

    needs: ClassVar[Needs] = Needs(data=True, actions="discrete")

    def __init__(self, config: DiscreteCQLConfig, spec: Spec, **setup: Unpack[Setup]) -> None:
        self.config = c = config
        check_action_space(spec.action_space, self.needs.actions, c.algorithm)
        self.scaling = Scaling(
            spec, standardise=c.standardise_observations, frame_stack=c.frame_stack, device=setup.get("device", "cpu")
        )
        space, size = self.scaling.observation_space, self.scaling.action_size
        networks = {"critic": lambda: Head(space, size, c.hidden_sizes)}
        self.learner = Learner(
            networks, {"critic": Adam(lr=c.lr, epsilon=c.adam_epsilon)}, targets=("critic",), **setup
        )
        self.critic = self.learner.networks["critic"]

    def sample(self, replay: Replay, generators: Sequence[torch.Generator]) -> Transitions:
        c = self.config
        return replay.sample(c.batch_size, generators, discount=c.discount, n_step=c.n_step, frame_stack=c.frame_stack)

    def update(self, batch: Transitions) -> Metrics:
        self.learner.updates += 1
        metrics = self.learner.step("critic", self.objective, self.scaling(batch))
        if self.learner.updates % self.config.target_period == 0:
            self.learner.move_targets(self.config.tau)
        return metrics

    def objective(self, params: Params, batch: Transitions) -> tuple[Tensor, Metrics]:
        with torch.no_grad():
            online_next_q = self.critic(params["critic"], batch.next_observations)  # [B, n]
            target_next_q = self.critic(params.target["critic"], batch.next_observations)  # [B, n]
            target = double_q_target(batch.rewards, batch.discounts, online_next_q, target_next_q)  # eq. 1
        q = self.critic(params["critic"], batch.observations)  # [B, n]
        data_q = q.gather(-1, batch.actions.unsqueeze(-1)).squeeze(-1)  # [B]
        conservative = conservative_loss(q, batch.actions)  # eq. 2
        loss = F.smooth_l1_loss(data_q, target) + self.config.alpha * conservative  # eq. 3
        return loss, {"conservative_gap": conservative, "q": data_q.mean()}

    def policy(self, seed_index: int = 0, *, deterministic: bool = True) -> Policy:
        """The greedy action, or a sample of the softmax of Q, the maximising policy in CQL(H)."""
        critic = self.learner.parameters_of("critic", seed_index)
        return FeedForwardPolicy(
            self.scaling, lambda o: Categorical(self.critic(critic, o)), deterministic=deterministic
        )

    def state_dict(self) -> dict[str, Any]:
        return self.learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state)
