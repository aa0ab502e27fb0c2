"""A custom algorithm that needs a dataset and an environment: DDPG with twin critics and demonstrations.

y   = r + γ min_i Q̄_i(s′, π̄(s′)),   L_Q = mean over i and the batch of (Q_i(s, a) − y)²           (1)
L_π = −mean Q_1(s, π(s)) + λ mean over the demonstrations of (π(s) − a)²                             (2)

Half of each batch: Ball et al. 2023, arXiv:2302.02948; the cloning term: Nair et al. 2018, arXiv:1709.10089.

python -m herdbook.cli.main train examples.your_own_demonstrations:Guided --dataset classic/pendulum --env Pendulum-v1 \
--steps 20000
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from herdbook.core.config import Config
from herdbook.core.exploration import exploring_actor, steps_between_updates, updates_after
from herdbook.core.learner import Adam, Learner, Params, Setup
from herdbook.core.needs import Needs
from herdbook.core.networks import Critic, DeterministicActor
from herdbook.core.policy import Scaling
from herdbook.core.types import Metrics, Policy, Replay, Spec, Transitions, tree_map


@dataclass(frozen=True, kw_only=True)
class GuidedConfig(Config):
    cloning: float = 1.0  # λ, eq. 2
    noise: float = 0.1  # standard deviation of exploration, for actions in [−1, 1]
    discount: float = 0.99
    half_batch: int = 64
    lr: float = 1e-3
    hidden_sizes: tuple[int, ...] = (64, 64)


class Guided:
    needs: ClassVar[Needs] = Needs(data=True, environment=True, actions="box", seeds_together=False)

    def __init__(
        self, config: GuidedConfig, spec: Spec, *, demonstrations: Replay | None = None, **setup: Unpack[Setup]
    ) -> None:
        self.config, self.demonstrations = config, demonstrations  # None where only the policy is wanted
        self.scaling = Scaling(spec, device=setup.get("device", "cpu"))
        space, size, hidden = spec.observation_space, self.scaling.action_size, config.hidden_sizes
        self.learner = Learner(
            {"actor": lambda: DeterministicActor(space, size, hidden), "critic": lambda: Critic(space, size, hidden)},
            {"actor": Adam(lr=config.lr), "critic": Adam(lr=config.lr)},
            targets=("actor", "critic"),
            **setup,
        )
        self.actor, self.critic = self.learner.networks["actor"], self.learner.networks["critic"]

    def sample(self, replay: Replay, generators: Sequence[torch.Generator]) -> Transitions:
        assert self.demonstrations is not None
        size, discount = self.config.half_batch, self.config.discount
        halves = (source.sample(size, generators, discount=discount) for source in (self.demonstrations, replay))
        batch: Transitions = tree_map(lambda *leaves: torch.cat(leaves), *halves)
        return batch

    def update(self, batch: Transitions) -> Metrics:
        self.learner.updates += 1
        metrics = self.learner.step(("critic", "actor"), self.objective, self.scaling(batch))
        self.learner.move_targets(tau=0.005)
        return metrics

    def objective(self, params: Params, batch: Transitions) -> tuple[Tensor, Metrics]:
        with torch.no_grad():
            next_actions = self.actor(params.target["actor"], batch.next_observations)  # [B, A]
            next_q = self.critic(params.target["critic"], batch.next_observations, next_actions).amin(0)  # [B]
        q = self.critic(params["critic"], batch.observations, batch.actions)  # [2, B]
        critic_loss = (q - (batch.rewards + batch.discounts * next_q)).square().mean()  # eq. 1
        actions, half = self.actor(params["actor"], batch.observations), self.config.half_batch
        cloning = (actions[:half] - batch.actions[:half]).square().mean()
        value = self.critic(params.frozen["critic"], batch.observations, actions)[0].mean()
        return critic_loss - value + self.config.cloning * cloning, {"q": q.mean(), "cloning": cloning}  # eq. 2

    def policy(self, seed_index: int = 0, *, deterministic: bool = True, step: int | None = None) -> Policy:
        actor, noise = self.learner.parameters_of("actor", seed_index), self.config.noise
        return exploring_actor(
            self.scaling, lambda o: self.actor(actor, o), noise, 0, deterministic=deterministic, step=step
        )

    def round_steps(self, num_envs: int) -> int:
        return steps_between_updates(1.0, num_envs)

    def updates_due(self, episodes: int, steps: int) -> int:
        return updates_after(steps, 0, 1.0)

    def state_dict(self) -> dict[str, Any]:
        return self.learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state)
