"""IQ-Learn: inverse soft Q-learning (Garg et al. 2021, arXiv:2106.12142), offline or online.

    V(s) = α log Σ_a exp(Q(s, a) / α)                   for discrete actions                      (1)
    V(s) = min_i Q_i(s, a) − α log π(a|s),  a ~ π(·|s)   for continuous actions                   (2)
    r(s, a, s′) = Q(s, a) − γ V(s′),  with V(s′) = 0 after a termination                          (3)
    L_Q = −E_expert[r] + value term + χ² term                                                     (4)
    value term:  (1 − γ) E_s₀[V(s₀)]                    "initial"                                  (5)
                 E_expert[V(s) − γ V(s′)]               "expert"                                   (6)
                 E_expert+agent[V(s) − γ V(s′)]         "all"                                      (7)
    χ² term:     E[r²] / (4 c),  over the expert's steps or over all of them                       (8)
    L_π = mean [α log π(a|s) − min_i Q_i(s, a)],  a ~ π(·|s)   for continuous actions: eq. 3 of online/sac.py

(5), (6) and (7) are equal in expectation over the distributions of the paper, but different losses on data. The initial
states of (5) are the first observations of the demonstrations' episodes; the authors' code takes all states of the
expert. E over several critics is the mean of their losses. With `tau`, V(s′) is that of a target network and has no
gradient; else the gradient passes through it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from herdbook.core.config import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, UNIT, Config
from herdbook.core.distributions import Categorical
from herdbook.core.exploration import steps_between_updates, updates_after
from herdbook.core.learner import Adam, Learner, Parameters, Params, Setup
from herdbook.core.needs import Needs
from herdbook.core.networks import Critic, Head, SquashedGaussianActor
from herdbook.core.policy import FeedForwardPolicy, Scaling
from herdbook.core.spaces import check_action_space
from herdbook.core.types import Metrics, Policy, Spec, Transitions, Tree, batch_type, tree_leaves, tree_map
from herdbook.datasets.replay import ReplayBuffer
from herdbook.datasets.sampling import drawn_numbers
from herdbook.irl.demonstrations import check_spaces, notice_few, required
from herdbook.irl.mixture import half_and_half
from herdbook.irl.rewards import LearnedReward, RewardDesign, implicit_reward, joined_parameters, soft_value
from herdbook.online.sac import actor_loss

LOG_STD_RANGE = (-5.0, 2.0)


@dataclass(frozen=True, kw_only=True)
class IQLearnConfig(Config):
    """Settings of IQ-Learn; the defaults are those of the authors' code offline on CartPole."""

    algorithm: ClassVar[str] = "iq_learn"
    online: bool = False  # play in an environment, beside learning from the demonstrations
    value_term: Literal["initial", "expert", "all"] = "expert"  # eq. 5, 6 or 7; all: only online
    chi2: Literal["expert", "both", "none"] = "expert"  # steps over which eq. 8 averages; both: only online
    chi2_scale: float = 0.5  # c of eq. 8
    temperature: float = 0.001  # α, which is fixed
    discount: float = 0.99  # γ, discount factor
    tau: float | None = None  # target critic: θ̄ ← (1 − tau) θ̄ + tau θ after each update; None: no target critic
    critics: int = 1  # number of Q-functions, of which the smallest counts in V
    batch_size: int = 32  # demonstrated transitions per update; online, as many of the agent's own beside them
    critic_lr: float = 1e-4  # learning rate of Q
    actor_lr: float = 3e-5  # learning rate of π, with continuous actions
    hidden_sizes: tuple[int, ...] = (64, 64)  # widths of the hidden layers of all networks
    evaluate_by: Literal["sample", "mode"] | None = None  # actions in evaluation; None: samples if discrete, else modes
    standardise_observations: bool = False  # networks see (s − μ) / (σ + 1e-3), μ and σ of the dataset; vectors only
    warmup_steps: int = 1_280  # online: environment steps before the first update
    updates_per_step: float = 1.0  # online: updates per environment step
    replay_steps: int = 500_000  # online: capacity of the replay buffer in environment steps

    def __post_init__(self) -> None:
        self.require(chi2_scale=POSITIVE, temperature=POSITIVE, discount=UNIT, tau=FRACTION, critics=COUNT)
        self.require(batch_size=COUNT, critic_lr=POSITIVE, actor_lr=POSITIVE, hidden_sizes=COUNT)
        self.require(warmup_steps=NOT_NEGATIVE, updates_per_step=POSITIVE, replay_steps=COUNT)
        self.require_one_of(value_term=("initial", "expert", "all"), chi2=("expert", "both", "none"))
        self.require_one_of(evaluate_by=("sample", "mode", None))
        if not self.online and (self.value_term == "all" or self.chi2 == "both"):
            raise ValueError(
                f"IQLearnConfig: expected online=True beside value_term={self.value_term!r}, chi2={self.chi2!r}, which "
                "average over the agent's own steps too; got False"
            )


@batch_type
@dataclass(frozen=True, slots=True)
class IQBatch:
    """The batch of one update."""

    transitions: Transitions  # [B, …]: demonstrated ones; online [2B, …], the second half the agent's own
    initial: Tree | None = None  # initial observations of the demonstrations [B, …]; None unless the loss has them


def initial_term(values: Tensor, discount: float) -> Tensor:
    """Eq. 5. values: V(s₀) [E] → []."""
    return (1 - discount) * values.mean()


def value_term(values: Tensor, next_values: Tensor, discounts: Tensor) -> Tensor:
    """Eq. 6 or 7, over the given steps. values: V(s); next_values: V(s′); discounts: γ (1 − terminated); [B] → []."""
    return (values - discounts * next_values).mean()


def chi2_term(rewards: Tensor, scale: float) -> Tensor:
    """Eq. 8, over the given steps. rewards: r [critics, B]; scale: c → []."""
    return rewards.square().mean() / (4 * scale)


class IQLearn:
    """IQ-Learn. `networks` may replace `critic` (discrete actions: [B, …] → [critics, B, n]; continuous: as in SAC) and
    `actor` ([B, …] → SquashedNormal, for continuous actions).
    """

    needs: ClassVar[Needs] = Needs(data=True, environment="optional", reward=True)

    def __init__(
        self, config: IQLearnConfig, spec: Spec, *, demonstrations: ReplayBuffer | None = None, **setup: Unpack[Setup]
    ) -> None:
        self.config = c = config
        self.spec, self.demonstrations = spec, demonstrations  # None where only the policy is wanted
        check_action_space(spec.action_space, self.needs.actions, c.algorithm)
        check_spaces(demonstrations, spec, c.algorithm)
        notice_few(demonstrations if c.online else None, c.batch_size, c.algorithm)
        self.scaling = Scaling(spec, standardise=c.standardise_observations, device=setup.get("device", "cpu"))
        space, size, hidden, critics = spec.observation_space, self.scaling.action_size, c.hidden_sizes, c.critics
        optimisers, targets = {"critic": Adam(lr=c.critic_lr)}, () if c.tau is None else ("critic",)
        if self.scaling.discrete:
            networks: dict[str, Any] = {"critic": lambda: Head(space, size, hidden, copies=critics, activation=F.elu)}
            self.q, self.value = self.discrete_q, self.discrete_value
        else:
            bounds: dict[str, Any] = {"log_std_range": LOG_STD_RANGE, "smooth": True}
            networks = {
                "critic": lambda: Critic(space, size, hidden, copies=critics),
                "actor": lambda: SquashedGaussianActor(space, size, hidden, **bounds),
            }
            optimisers["actor"] = Adam(lr=c.actor_lr)
            self.q, self.value = self.continuous_q, self.sampled_value
        self.learner = Learner(networks, optimisers, targets=targets, **setup)
        self.critic, self.actor = self.learner.networks["critic"], self.learner.networks.get("actor")
        self.temperature = torch.tensor(c.temperature, device=self.learner.device)

    def sample(self, replay: Any, generators: Sequence[torch.Generator]) -> IQBatch:
        """Offline, `replay` is the dataset; online, it has the agent's own steps."""
        c = self.config
        experts: ReplayBuffer = required(self.demonstrations, c.algorithm) if c.online else replay
        if c.online:
            transitions = half_and_half(experts, replay, c.batch_size, generators, discount=c.discount)
        else:
            transitions = experts.sample(c.batch_size, generators, discount=c.discount)
        if c.value_term != "initial":
            return IQBatch(transitions)
        initial = experts.initial_observations()
        chosen = drawn_numbers(len(tree_leaves(initial)[0]), c.batch_size, generators, experts.device)
        return IQBatch(transitions, tree_map(lambda leaf: leaf[chosen], initial))

    def update(self, batch: IQBatch) -> Metrics:
        initial = None if batch.initial is None else self.scaling.observations(batch.initial)
        batch = IQBatch(self.scaling(batch.transitions), initial)
        self.learner.updates += 1
        if self.scaling.discrete:
            metrics = self.learner.step("critic", self.critic_objective, batch)
        else:
            shape = batch.transitions.actions.shape[-2:]  # [rows, A]
            noise, next_noise, actor_noise = (self.learner.normal(*shape) for _ in range(3))
            metrics = self.learner.step("critic", self.critic_objective, batch, noise, next_noise)
            metrics |= self.learner.step("actor", self.actor_objective, batch.transitions.observations, actor_noise)
        if self.config.tau is not None:
            self.learner.move_targets(self.config.tau)
        return metrics

    def critic_objective(
        self, params: Params, batch: IQBatch, noise: Tensor | None = None, next_noise: Tensor | None = None
    ) -> tuple[Tensor, Metrics]:
        """noise: for the actions at s, its first B for those at s₀; next_noise: at s′. [rows, A]; None if discrete."""
        c, steps = self.config, batch.transitions
        own = params["critic"]
        following = own if c.tau is None else params.target["critic"]
        next_values = self.value(params, following, steps.next_observations, next_noise)  # [rows]
        rewards = implicit_reward(self.q(own, steps), next_values, steps.discounts)  # [critics, rows], eq. 3
        expert = slice(c.batch_size)

        loss = -rewards[:, expert].mean()  # eq. 4
        if batch.initial is not None:
            first = None if noise is None else noise[expert]
            loss = loss + initial_term(self.value(params, own, batch.initial, first), c.discount)  # eq. 5
        else:
            part = slice(None) if c.value_term == "all" else expert
            values = self.value(params, own, steps.observations, noise)  # [rows]
            loss = loss + value_term(values[part], next_values[part], steps.discounts[part])  # eq. 6, 7
        if c.chi2 != "none":
            loss = loss + chi2_term(rewards if c.chi2 == "both" else rewards[:, expert], c.chi2_scale)  # eq. 8
        metrics = {"reward/expert": rewards[:, expert].mean()}
        return loss, metrics | ({"reward/agent": rewards[:, c.batch_size :].mean()} if c.online else {})

    def actor_objective(self, params: Params, observations: Tree, noise: Tensor) -> tuple[Tensor, Metrics]:
        assert self.actor is not None  # the actions are continuous
        actions, log_prob = self.actor(params["actor"], observations).rsample_with_log_prob(noise)
        q = self.critic(params["critic"], observations, actions)  # [critics, rows]
        return actor_loss(q, log_prob, self.temperature), {"entropy": -log_prob.mean()}

    def discrete_q(self, parameters: Parameters, steps: Transitions) -> Tensor:
        q: Tensor = self.critic(parameters, steps.observations)  # [critics, rows, n]
        return q.gather(-1, steps.actions[None, :, None].expand(len(q), -1, 1)).squeeze(-1)

    def discrete_value(
        self, params: Params, parameters: Parameters, observations: Tree, noise: Tensor | None
    ) -> Tensor:
        return soft_value(self.critic(parameters, observations).amin(0), self.config.temperature)  # eq. 1

    def continuous_q(self, parameters: Parameters, steps: Transitions) -> Tensor:
        q: Tensor = self.critic(parameters, steps.observations, steps.actions)  # [critics, rows]
        return q

    def sampled_value(self, params: Params, parameters: Parameters, observations: Tree, noise: Tensor | None) -> Tensor:
        assert self.actor is not None  # the actions are continuous
        actions, log_prob = self.actor(params["actor"], observations).rsample_with_log_prob(noise)
        value: Tensor = self.critic(parameters, observations, actions).amin(0) - self.temperature * log_prob  # eq. 2
        return value

    def policy(self, seed_index: int = 0, *, deterministic: bool = True, step: int | None = None) -> Policy:
        """Discrete: softmax(Q / α), sampled; continuous: the tanh of the mean, or samples if not `deterministic`.

        `evaluate_by` says otherwise of the policy of the evaluation, which is the `deterministic` one; `step` has no
        effect.
        """
        usual = "sample" if self.scaling.discrete else "mode"
        by_mode = deterministic and (self.config.evaluate_by or usual) == "mode"
        if self.scaling.discrete:
            critic, temperature = self.learner.parameters_of("critic", seed_index), self.config.temperature
            return FeedForwardPolicy(
                self.scaling,
                lambda o: Categorical(self.critic(critic, o).amin(0) / temperature),
                deterministic=by_mode,
            )
        network, actor = self.actor, self.learner.parameters_of("actor", seed_index)
        assert network is not None
        return FeedForwardPolicy(self.scaling, lambda o: network(actor, o), deterministic=by_mode)

    def reward(self, seed_index: int = 0) -> LearnedReward:
        """The implicit reward of eq. 3; with continuous actions an estimate, see `irl.rewards.SoftQReward`.

        Raises ValueError for networks that are not those of the config.
        """
        c, discrete = self.config, self.scaling.discrete
        return LearnedReward(
            design=RewardDesign.soft_q(
                hidden_sizes=c.hidden_sizes,
                activation="elu" if discrete else "relu",
                temperature=c.temperature,
                critics=c.critics,
            ),
            spec=self.spec,
            discount=c.discount,
            members=(joined_parameters(self.learner, ("critic",) if discrete else ("critic", "actor"), seed_index),),
            standardise=c.standardise_observations,
            about={"algorithm": c.algorithm, "value_term": c.value_term, "chi2": c.chi2},
        )

    def round_steps(self, num_envs: int) -> int:
        return steps_between_updates(self.config.updates_per_step, num_envs)

    def updates_due(self, episodes: int, steps: int) -> int:
        return updates_after(steps, self.config.warmup_steps, self.config.updates_per_step)

    def state_dict(self) -> dict[str, Any]:
        return self.learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state)
