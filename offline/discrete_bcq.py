"""Discrete BCQ (Fujimoto et al. 2019, arXiv:1910.01708): double DQN restricted to actions that are likely in the data.

    A(s) = {a : G(a|s) / max_b G(b|s) > τ}                                    (1)
    y    = r + γ Q̄(s′, argmax_{a′ ∈ A(s′)} Q(s′, a′))                         (2)
    L    = mean huber(Q(s, a) − y) − mean log G(a|s) + w mean i(s, ·)²        (3)

G is the softmax of the logits i of a network that clones the data. The policy is argmax_{a ∈ A(s)} Q(s, a). A(s) is
never empty, because the likeliest action has ratio 1.
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
class DiscreteBCQConfig(Config):
    """Settings of discrete BCQ; the defaults are the authors' for vector observations."""

    algorithm: ClassVar[str] = "discrete_bcq"
    threshold: float = 0.3  # τ, eq. 1: 0 is double DQN; close to 1, the policy clones the behaviour
    logit_penalty: float = 1e-2  # w, weight of the squared logits in eq. 3
    discount: float = 0.99  # γ, discount factor
    target_period: int = 1  # updates from one move of the target network to the next
    tau: float = 0.005  # target network: θ̄ ← (1 − tau) θ̄ + tau θ, for example 1 (copy) with target_period=2000
    batch_size: int = 64  # transitions per update
    lr: float = 3e-4  # learning rate of Q and G
    adam_epsilon: float = 1e-8  # ε of Adam
    hidden_sizes: tuple[int, ...] = (256, 256)  # widths of the hidden layers of Q and of G
    n_step: int = 1  # n of the n-step return: rewards summed before bootstrapping
    frame_stack: int = 1  # successive observations that form one input of the networks
    standardise_observations: bool = False  # networks see (s − μ) / (σ + 1e-3), μ and σ of the dataset; vectors only

    def __post_init__(self) -> None:
        self.require(discount=UNIT, tau=FRACTION, threshold=(0, 0.9999), logit_penalty=NOT_NEGATIVE)
        self.require(batch_size=COUNT, n_step=COUNT, frame_stack=COUNT, hidden_sizes=COUNT, lr=POSITIVE)
        self.require(target_period=COUNT, adam_epsilon=POSITIVE)


def constrained_q(q: Tensor, logits: Tensor, threshold: float) -> Tensor:
    """Q(s, a) for a in A(s) of eq. 1, −∞ for all other actions. q; logits: i(s, ·); both [*B, n] → [*B, n]."""
    ratio = (logits - logits.amax(-1, keepdim=True)).exp()  # G(a|s) / max_b G(b|s): the normaliser cancels
    return q.masked_fill(ratio <= threshold, -torch.inf)


class DiscreteBCQ:
    """Discrete BCQ. `networks` may replace `critic` ([B, …] → Q [B, n]) and `behaviour` ([B, …] → logits [B, n])."""

    needs: ClassVar[Needs] = Needs(data=True, actions="discrete")

    def __init__(self, config: DiscreteBCQConfig, spec: Spec, **setup: Unpack[Setup]) -> None:
        self.config = c = config
        check_action_space(spec.action_space, self.needs.actions, c.algorithm)
        self.scaling = Scaling(
            spec, standardise=c.standardise_observations, frame_stack=c.frame_stack, device=setup.get("device", "cpu")
        )
        space, actions = self.scaling.observation_space, self.scaling.action_size
        self.learner = Learner(
            {
                "critic": lambda: Head(space, actions, c.hidden_sizes),
                "behaviour": lambda: Head(space, actions, c.hidden_sizes),
            },
            {"critic": Adam(lr=c.lr, networks=("critic", "behaviour"), epsilon=c.adam_epsilon)},
            targets=("critic",),
            **setup,
        )
        self.critic, self.behaviour = self.learner.networks["critic"], self.learner.networks["behaviour"]

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
        c = self.config
        with torch.no_grad():
            next_logits = self.behaviour(params["behaviour"], batch.next_observations)  # [B, n]
            next_q = constrained_q(self.critic(params["critic"], batch.next_observations), next_logits, c.threshold)
            best = next_q.argmax(-1, keepdim=True)  # [B, 1]: among A(s′), eq. 1
            slow_q = self.critic(params.target["critic"], batch.next_observations).gather(-1, best).squeeze(-1)
            target = batch.rewards + batch.discounts * slow_q  # eq. 2
        q = self.critic(params["critic"], batch.observations).gather(-1, batch.actions.unsqueeze(-1)).squeeze(-1)
        logits = self.behaviour(params["behaviour"], batch.observations)  # [B, n]
        value_loss = F.smooth_l1_loss(q, target)
        cloning_loss = -Categorical(logits).log_prob(batch.actions).mean()
        loss = value_loss + cloning_loss + c.logit_penalty * logits.square().mean()  # eq. 3
        return loss, {"loss/value": value_loss, "loss/cloning": cloning_loss, "q": q.mean()}

    def policy(self, seed_index: int = 0, *, deterministic: bool = True) -> Policy:
        """The action of A(s) with the largest Q, or a sample of the softmax of Q over A(s)."""
        critic = self.learner.parameters_of("critic", seed_index)
        behaviour = self.learner.parameters_of("behaviour", seed_index)

        def distribution(observations: Any) -> Categorical:
            logits = self.behaviour(behaviour, observations)
            return Categorical(constrained_q(self.critic(critic, observations), logits, self.config.threshold))

        return FeedForwardPolicy(self.scaling, distribution, deterministic=deterministic)

    def state_dict(self) -> dict[str, Any]:
        return self.learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state)
