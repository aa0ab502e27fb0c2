"""LS-IQ: least-squares inverse Q-learning (Al-Hafez et al. 2023, arXiv:2303.00599), for continuous actions.

    r_max = 1 / c,   r_min = −1 / c,   Q_max = 1 / (c (1 − γ)),   Q_min = −Q_max                   (1)
    V(s′) = min_i Q̄_i(s′, a′) + α h,   a′ ~ π(·|s′),   h = −log π(a′|s′)                           (2)
    y = r_min + γ clip(V(s′), Q_min, Q_max),   or r_min / (1 − γ) after a termination              (3)
    L_Q = E_expert[(Q(s, a) − Q_max)²] + policy term                                               (4)
    policy term:  E_agent[(Q(s, a) − y)²]                                              "replay"    (5)
                  E_expert+agent[(V(s) − y)²],  V(s) = Q(s, a) − α log π(a|s), a ~ π   "value"     (6)
    L_π = mean [α log π(a|s) − min_i Q_i(s, a)],  a ~ π(·|s)     over all states: eq. 3 of online/sac.py

Over both distributions, the χ² term of IQ-Learn makes its loss the squared Bellman errors of two fixed rewards, r_max
for the expert and r_min for the agent. Fixed rewards bound Q, so that targets can be clipped. The expert's target is
not bootstrapped: it is Q_max. A terminated step enters an absorbing state, in which its reward goes on for ever: the
rest of the episode counts as r / (1 − γ), as much as going on with the reward r would.

(4), (5) and (6) are means over the critics, so each critic has its own V(s) in (6). (5) is the Bellman error for any
data. (6) does not read the agent's actions: Q is fitted at a ~ π alone, to the outcome of the stored action. It needs
data near π.

In (2), h is capped at the expert's next states: no entropy there is larger than the largest one at the agent's own
next states of the batch. An agent that has not been there yet may have a high entropy, which would raise the value of
the state. (The authors' LSIQ-H has this cap, with a running maximum; their code clips from below by it, which makes it
a floor.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Unpack

import torch
from torch import Tensor

from herdbook.core.config import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, Config
from herdbook.core.exploration import steps_before, steps_between_updates, updates_after
from herdbook.core.learner import Adam, Learner, Params, Setup
from herdbook.core.needs import Needs
from herdbook.core.networks import Critic, SquashedGaussianActor
from herdbook.core.policy import FeedForwardPolicy, Scaling
from herdbook.core.spaces import check_action_space
from herdbook.core.types import Metrics, Policy, Replay, Spec, Transitions, Tree
from herdbook.datasets.replay import ReplayBuffer
from herdbook.irl.demonstrations import check_spaces, notice_few, required
from herdbook.irl.mixture import half_and_half
from herdbook.irl.rewards import LearnedReward, RewardDesign, joined_parameters
from herdbook.online.sac import actor_loss

LOG_STD_RANGE = (-5.0, 2.0)


@dataclass(frozen=True, kw_only=True)
class LSIQConfig(Config):
    """Settings of LS-IQ; most defaults are those of the authors' code on MuJoCo's robots."""

    algorithm: ClassVar[str] = "ls_iq"
    regularisation: float = 0.5  # c of eq. 1
    policy_term: Literal["replay", "value"] = "replay"  # eq. 5 or 6; value: only for data near π
    cap_entropy: bool = True  # cap the entropies of eq. 2 at the expert's next states
    temperature: float = 1e-3  # α, which is fixed
    discount: float = 0.99  # γ, discount factor, below 1
    tau: float = 0.005  # target critic: θ̄ ← (1 − tau) θ̄ + tau θ after each update
    critics: int = 1  # number of Q-functions, of which the smallest counts in V(s′)
    batch_size: int = 256  # demonstrated transitions per update, and as many of the agent's own beside them
    critic_lr: float = 3e-4  # learning rate of Q
    actor_lr: float = 3e-5  # learning rate of π
    hidden_sizes: tuple[int, ...] = (256, 256)  # widths of the hidden layers of all networks
    standardise_observations: bool = False  # networks see (s − μ) / (σ + 1e-3), μ and σ of the dataset; vectors only
    warmup_steps: int = 10_000  # environment steps before the first update
    actor_warmup_steps: int = 15_000  # environment steps before the first update of π
    updates_per_step: float = 1.0  # updates per environment step
    replay_steps: int = 1_000_000  # capacity of the replay buffer in environment steps

    def __post_init__(self) -> None:
        self.require(regularisation=POSITIVE, temperature=POSITIVE, discount=(0, 0.9999), tau=FRACTION, critics=COUNT)
        self.require(batch_size=COUNT, critic_lr=POSITIVE, actor_lr=POSITIVE, hidden_sizes=COUNT)
        self.require(warmup_steps=NOT_NEGATIVE, actor_warmup_steps=NOT_NEGATIVE, updates_per_step=POSITIVE)
        self.require(replay_steps=COUNT)
        self.require_one_of(policy_term=("replay", "value"))


def capped_entropies(entropies: Tensor, experts: int) -> Tensor:
    """h of eq. 2: at the first `experts` next states, at most the largest of the others.

    entropies: −log π(a′|s′) [B] → [B].
    """
    own = entropies[experts:]
    return torch.cat([torch.minimum(entropies[:experts], own.max()), own])


def agent_target(next_values: Tensor, discounts: Tensor, reward: float, discount: float) -> Tensor:
    """Eq. 3, which lies in [Q_min, Q_max] whatever V(s′) is, for `reward` in [r_min, r_max].

    next_values: V(s′); discounts: γ, or 0 after a termination; both [B] → [B]. reward: r_min; discount: γ.
    """
    bound = abs(reward) / (1 - discount)
    going_on = reward + discounts * next_values.clamp(-bound, bound)
    return torch.where(discounts == 0, reward / (1 - discount), going_on)


def squared_error(values: Tensor, targets: Tensor | float) -> Tensor:
    """Eq. 4–6: a mean over steps and critics. values: Q or V; targets: Q_max or y → []."""
    return (values - targets).square().mean()


class LSIQ:
    """LS-IQ. `networks` may replace `actor` ([B, …] → SquashedNormal) and `critic` (→ [critics, B])."""

    needs: ClassVar[Needs] = Needs(data=True, environment=True, actions="box", reward=True)

    def __init__(
        self, config: LSIQConfig, spec: Spec, *, demonstrations: ReplayBuffer | None = None, **setup: Unpack[Setup]
    ) -> None:
        self.config = c = config
        self.spec, self.demonstrations = spec, demonstrations  # None where only the policy is wanted
        check_action_space(spec.action_space, self.needs.actions, c.algorithm)
        check_spaces(demonstrations, spec, c.algorithm)
        notice_few(demonstrations, c.batch_size, c.algorithm)
        self.scaling = Scaling(spec, standardise=c.standardise_observations, device=setup.get("device", "cpu"))
        space, size, hidden = spec.observation_space, self.scaling.action_size, c.hidden_sizes
        self.q_max = 1 / (c.regularisation * (1 - c.discount))  # eq. 1
        self.learner = Learner(
            {
                "actor": lambda: SquashedGaussianActor(space, size, hidden, log_std_range=LOG_STD_RANGE),
                "critic": lambda: Critic(space, size, hidden, copies=c.critics),
            },
            {"actor": Adam(lr=c.actor_lr), "critic": Adam(lr=c.critic_lr)},
            targets=("critic",),
            **setup,
        )
        self.actor, self.critic = self.learner.networks["actor"], self.learner.networks["critic"]
        self.temperature = torch.tensor(c.temperature, device=self.learner.device)

    def sample(self, replay: Replay, generators: Sequence[torch.Generator]) -> Transitions:
        """The first half is demonstrated, the second the agent's own."""
        c = self.config
        demonstrations = required(self.demonstrations, c.algorithm)
        return half_and_half(demonstrations, replay, c.batch_size, generators, discount=c.discount)

    def update(self, batch: Transitions) -> Metrics:
        c, batch = self.config, self.scaling(batch)
        shape = batch.actions.shape[-2:]  # [2B, A]
        noise, next_noise = self.learner.normal(*shape), self.learner.normal(*shape)
        metrics = self.learner.step("critic", self.critic_objective, batch, noise, next_noise)
        if steps_before(c, self.learner.updates) >= c.actor_warmup_steps:
            metrics |= self.learner.step("actor", self.actor_objective, batch.observations, self.learner.normal(*shape))
        self.learner.updates += 1
        self.learner.move_targets(c.tau)
        return metrics

    def critic_objective(
        self, params: Params, batch: Transitions, noise: Tensor, next_noise: Tensor
    ) -> tuple[Tensor, Metrics]:
        """noise, next_noise: for the actions at s and s′ [2B, A]."""
        c = self.config
        with torch.no_grad():
            policy = self.actor(params["actor"], batch.next_observations)
            next_actions, log_prob = policy.rsample_with_log_prob(next_noise)  # [2B, A], [2B]
            entropies = capped_entropies(-log_prob, c.batch_size) if c.cap_entropy else -log_prob
            next_q = self.critic(params.target["critic"], batch.next_observations, next_actions).amin(0)  # [2B]
            next_values = next_q + self.temperature * entropies  # eq. 2
            target = agent_target(next_values, batch.discounts, -1 / c.regularisation, c.discount)  # [2B], eq. 3
        q = self.critic(params["critic"], batch.observations, batch.actions)  # [critics, 2B]
        expert, agent = q[:, : c.batch_size], q[:, c.batch_size :]
        loss = squared_error(expert, self.q_max)  # eq. 4
        if c.policy_term == "replay":
            loss = loss + squared_error(agent, target[c.batch_size :])  # eq. 5
        else:
            actions, log_prob = self.actor(params["actor"], batch.observations).rsample_with_log_prob(noise)
            values = self.critic(params["critic"], batch.observations, actions) - self.temperature * log_prob
            loss = loss + squared_error(values, target)  # eq. 6
        return loss, {"q/expert": expert.mean(), "q/agent": agent.mean(), "target": target.mean()}

    def actor_objective(self, params: Params, observations: Tree, noise: Tensor) -> tuple[Tensor, Metrics]:
        actions, log_prob = self.actor(params["actor"], observations).rsample_with_log_prob(noise)
        q = self.critic(params["critic"], observations, actions)  # [critics, 2B]
        return actor_loss(q, log_prob, self.temperature), {"entropy": -log_prob.mean()}

    def policy(self, seed_index: int = 0, *, deterministic: bool = True, step: int | None = None) -> Policy:
        """The tanh of the mean, or a sample of the squashed Gaussian; `step` has no effect."""
        actor = self.learner.parameters_of("actor", seed_index)
        return FeedForwardPolicy(self.scaling, lambda o: self.actor(actor, o), deterministic=deterministic)

    def reward(self, seed_index: int = 0) -> LearnedReward:
        """The implicit reward of Q, an estimate, see `irl.rewards.SoftQReward`.

        After a termination it is Q(s, a), which includes the rewards of the absorbing state. Raises ValueError for
        networks that are not those of the config.
        """
        c = self.config
        return LearnedReward(
            design=RewardDesign.soft_q(hidden_sizes=c.hidden_sizes, temperature=c.temperature, critics=c.critics),
            spec=self.spec,
            discount=c.discount,
            members=(joined_parameters(self.learner, ("critic", "actor"), seed_index),),
            standardise=c.standardise_observations,
            about={"algorithm": c.algorithm, "policy_term": c.policy_term, "regularisation": c.regularisation},
        )

    def round_steps(self, num_envs: int) -> int:
        return steps_between_updates(self.config.updates_per_step, num_envs)

    def updates_due(self, episodes: int, steps: int) -> int:
        return updates_after(steps, self.config.warmup_steps, self.config.updates_per_step)

    def state_dict(self) -> dict[str, Any]:
        return self.learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state)
