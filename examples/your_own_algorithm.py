"""A custom algorithm in under 80 lines: one-step RL (Brandfonbrener et al. 2021, arXiv:2106.08909).

L_Q = mean (r + γ Q̄(s′, a′) − Q(s, a))²   over steps that have a next action a′ in the data or that terminate   (1)
L_π = −mean min(exp(β (Q(s, a) − Q(s, π(s)))), 100) log π(a|s)                                                   (2)

python -m herdbook.cli.main train examples.your_own_algorithm:OneStep --dataset classic/pendulum --steps 20000
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from herdbook.core.config import Config
from herdbook.core.learner import Adam, Learner, Params, Setup
from herdbook.core.needs import Needs
from herdbook.core.networks import Critic, GaussianActor
from herdbook.core.policy import FeedForwardPolicy, Scaling
from herdbook.core.types import Metrics, Policy, Replay, Spec, Transitions
from herdbook.offline.iql import advantage_weight


@dataclass(frozen=True, kw_only=True)
class OneStepConfig(Config):
    beta: float = 1.0  # β, eq. 2
    discount: float = 0.99
    tau: float = 0.005
    batch_size: int = 256
    lr: float = 3e-4
    hidden_sizes: tuple[int, ...] = (64, 64)


class OneStep:
    needs: ClassVar[Needs] = Needs(data=True, actions="box")

    def __init__(self, config: OneStepConfig, spec: Spec, **setup: Unpack[Setup]) -> None:
        self.config = config
        self.scaling = Scaling(spec, device=setup.get("device", "cpu"))
        space, size, hidden = spec.observation_space, self.scaling.action_size, config.hidden_sizes
        self.learner = Learner(
            {"actor": lambda: GaussianActor(space, size, hidden), "critic": lambda: Critic(space, size, hidden)},
            {"actor": Adam(lr=config.lr), "critic": Adam(lr=config.lr)},
            targets=("critic",),
            **setup,
        )
        self.actor, self.critic = self.learner.networks["actor"], self.learner.networks["critic"]

    def sample(self, replay: Replay, generators: Sequence[torch.Generator]) -> Transitions:
        return replay.sample(self.config.batch_size, generators, discount=self.config.discount, next_actions=True)

    def update(self, batch: Transitions) -> Metrics:
        self.learner.updates += 1
        metrics = self.learner.step(("critic", "actor"), self.objective, self.scaling(batch))
        self.learner.move_targets(self.config.tau)
        return metrics

    def objective(self, params: Params, batch: Transitions) -> tuple[Tensor, Metrics]:
        policy = self.actor(params["actor"], batch.observations)
        with torch.no_grad():
            next_q = self.critic(params.target["critic"], batch.next_observations, batch.next_actions).amin(0)
            known = batch.next_action_mask | (batch.discounts == 0)  # a truncated step has no a′, and is no end
            both = torch.stack([batch.actions, policy.mode()])  # [2, B, A]
            data_q, policy_q = self.critic(params.frozen["critic"], batch.observations, both).amin(0)  # [B] each
            weight = advantage_weight(data_q - policy_q, self.config.beta, 100.0)
        q = self.critic(params["critic"], batch.observations, batch.actions)  # [2, B]
        critic_loss = (known * (q - (batch.rewards + batch.discounts * next_q)).square()).mean()  # eq. 1
        return critic_loss - (weight * policy.log_prob(batch.actions)).mean(), {"q": q.mean()}  # eq. 2

    def policy(self, seed_index: int = 0, *, deterministic: bool = True) -> Policy:
        actor = self.learner.parameters_of("actor", seed_index)
        return FeedForwardPolicy(self.scaling, lambda o: self.actor(actor, o), deterministic=deterministic)

    def state_dict(self) -> dict[str, Any]:
        return self.learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state)
