"""DAC, discriminator-actor-critic (Kostrikov et al. 2019, arXiv:1809.02925): adversarial imitation on TD3 or SAC.

    L_D = −mean_E log D − mean_π log(1 − D) + λ P,   D = 1 / (1 + e^−z(s, a))        (1)  P: the gradient penalty
    r   = z(s, a)                                                                    (2)  the logit, or another reward
    y   = r(s, a) + γ min_i Q̄_i(s′, a′),   also where s′ is absorbing                (3)

E is a batch of the demonstrations, π one of the whole replay, without a correction for older policies. The rewards (2)
of a third batch, drawn from the replay too, are those of the newest discriminator and are not stored. Episodes that
terminate go on in an absorbing state (irl/absorbing.py), whose reward is learned. The actor learns from steps of the
environment alone.

The paper makes T updates of the discriminator, then T of the agent, after an episode of T steps. Here each step is
followed by one update of both. The paper clips the gradient of the actor; here the critic's is clipped too. Where the
agent is SAC, the learning rate of the temperature is halved with that of the actor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, Unpack, cast

import torch
from torch import Tensor

from herdbook.core.config import COUNT, NOT_NEGATIVE, POSITIVE, Config
from herdbook.core.exploration import steps_before
from herdbook.core.learner import Adam, Learner, Params, Setup, check_one_seed
from herdbook.core.needs import Needs
from herdbook.core.networks import Critic, SquashedGaussianActor
from herdbook.core.policy import Scaling
from herdbook.core.random import derive
from herdbook.core.spaces import check_action_space
from herdbook.core.types import Metrics, Policy, Spec, Transitions
from herdbook.datasets.replay import ReplayBuffer
from herdbook.irl.absorbing import (
    AbsorbingActor,
    AbsorbingCritic,
    IndicatorPolicy,
    Rows,
    absorbing_rows,
    absorbing_share,
    extended,
    extended_space,
    with_indicator,
)
from herdbook.irl.demonstrations import check_horizon, check_spaces, notice_few, required
from herdbook.irl.discriminator import (
    RewardConvention,
    accuracies,
    check_convention,
    gradient_penalty,
    imitation_reward,
    logistic_loss,
)
from herdbook.irl.rewards import LearnedReward, RewardDesign, RewardNetwork
from herdbook.online.sac import SAC, SACConfig
from herdbook.online.td3 import TD3, TD3Config

_DISCRIMINATOR = 1  # the discriminator draws from another stream of randomness than the agent
_TD3 = TD3Config(actor_lr=1e-3, critic_lr=1e-3, hidden_sizes=(400, 300), batch_size=100, max_grad_norm=40.0)


@dataclass(frozen=True, kw_only=True)
class DACConfig(Config):
    """Settings of DAC; the defaults are those of the authors' code. `td3` or `sac` has those of the agent."""

    algorithm: ClassVar[str] = "dac"
    agent: Literal["td3", "sac"] = "td3"  # the agent that learns from the discriminator's rewards
    td3: TD3Config = _TD3  # settings of TD3: the widths of Fujimoto et al. 2018, and DAC's learning rates and batches
    sac: SACConfig = SACConfig()  # settings of SAC: its own defaults
    absorbing: bool = True  # episodes that terminate go on in an absorbing state, eq. 3; else its value is 0
    reward_convention: RewardConvention = "logit"  # reward of the discriminator, eq. 2
    reward_inputs: Literal["state", "state_action"] = "state_action"  # inputs of the discriminator
    hidden_sizes: tuple[int, ...] = (256, 256)  # widths of the discriminator's hidden layers, with tanh units
    lr: float = 1e-3  # learning rate of the discriminator
    gradient_penalty: float = 10.0  # λ, weight of the gradient penalty, eq. 1
    allow_variable_horizon: bool = False  # without absorbing states: accept demonstrations that terminate
    halving_steps: int | None = 100_000  # environment steps until the actor's learning rate is halved; None: never

    def __post_init__(self) -> None:
        self.require(hidden_sizes=COUNT, lr=POSITIVE, gradient_penalty=NOT_NEGATIVE, halving_steps=COUNT)
        check_convention(self.reward_convention)
        self.require_one_of(agent=("td3", "sac"), reward_inputs=("state", "state_action"))
        if self.absorbing and self.inner.discount == 1:
            raise ValueError(
                f"DACConfig: expected {self.agent}.discount < 1, because an absorbing state has rewards for ever, got 1"
            )
        for field, only in (("n_step", 1), ("normalise_observations", False), ("scale_rewards", False)):
            if (came := getattr(self.inner, field)) != only:
                raise ValueError(
                    f"DACConfig: expected {self.agent}.{field}={only}, because rewards change with the discriminator "
                    f"and observations have an indicator, got {came}"
                )

    @property
    def inner(self) -> TD3Config | SACConfig:
        """The settings of the agent."""
        return self.td3 if self.agent == "td3" else self.sac

    @property
    def replay_steps(self) -> int:
        return self.inner.replay_steps


class Draws(NamedTuple):
    """The three batches of one update: of the expert and of the policy for the discriminator, and of the agent."""

    expert: Rows
    policy: Rows
    agent: Rows


class DAC:
    """DAC. `networks` may replace the agent's `actor` and `critic`, which see (s, 0) or s_abs with absorbing states."""

    needs: ClassVar[Needs] = Needs(data=True, environment=True, actions="box", seeds_together=False, reward=True)

    def __init__(
        self, config: DACConfig, spec: Spec, *, demonstrations: ReplayBuffer | None = None, **setup: Unpack[Setup]
    ) -> None:
        self.config, self.spec, self.demonstrations = config, spec, demonstrations  # None: only the policy is wanted
        c = config
        check_one_seed(c.algorithm, setup, "it trains")
        check_action_space(spec.action_space, self.needs.actions, c.algorithm)
        space = extended_space(spec.observation_space, c.algorithm)
        seen = Spec(space if c.absorbing else spec.observation_space, spec.action_space)
        self.vector_size = space.shape[0] if c.absorbing else space.shape[0] - 1  # of the networks' observations
        self.scaling = Scaling(spec, device=setup.get("device", "cpu"))
        self.design = RewardDesign(
            inputs=c.reward_inputs,
            hidden_sizes=c.hidden_sizes,
            activation="tanh",
            convention=c.reward_convention,
        )
        check_spaces(demonstrations, spec, c.algorithm)
        if not (c.absorbing or c.allow_variable_horizon):
            check_horizon(demonstrations, c.algorithm)
        notice_few(demonstrations, c.inner.batch_size, c.algorithm)
        self.agent = _agent(c, seen, setup)
        self.learner = Learner(  # not compiled, because torch.compile cannot differentiate the penalty's gradient
            {"discriminator": lambda: self.design.build(Scaling(seen))},
            {"discriminator": Adam(lr=c.lr)},
            seeds=[derive(seed, _DISCRIMINATOR) for seed in setup.get("seeds", (0,))],
            device=setup.get("device", "cpu"),
        )
        self.discriminator = self.learner.networks["discriminator"]
        self.expert_share = 0.0 if demonstrations is None else demonstrations.terminated_share

    def sample(self, replay: ReplayBuffer, generators: Sequence[torch.Generator]) -> Draws:
        demonstrations = required(self.demonstrations, self.config.algorithm)
        expert, policy = (demonstrations, self.expert_share), (replay, replay.terminated_share)
        return Draws(*(self._drawn(*source, generators) for source in (expert, policy, policy)))

    def _drawn(self, replay: ReplayBuffer, terminated_share: float, generators: Sequence[torch.Generator]) -> Rows:
        c = self.config.inner
        batch = replay.sample(c.batch_size, generators, discount=c.discount)
        share = absorbing_share(terminated_share) if self.config.absorbing else 0.0
        return Rows(batch, absorbing_rows(c.batch_size, share, generators[0], replay.device))

    def update(self, batch: Draws) -> Metrics:
        metrics = self.update_discriminator(self.extended(*batch.expert), self.extended(*batch.policy))
        steps, absorbing = batch.agent
        rows = self.extended(steps, absorbing)
        rewards = self.rewards(rows)
        halved = self.halved()
        metrics |= self.agent.update_critic(replace(rows, rewards=rewards))  # eq. 3
        self.agent.learner.rate_scale *= halved
        metrics |= self.agent.update_actor(self.extended(steps, torch.zeros_like(absorbing)))
        return metrics | {"reward": rewards.mean()}

    def extended(self, steps: Transitions, absorbing: Tensor) -> Transitions:
        """Transitions in the units of the networks; with absorbing states, those of irl/absorbing.py, eq. 2."""
        c, steps = self.config, self.scaling(steps)
        return extended(steps, absorbing, c.inner.discount) if c.absorbing else steps

    def update_discriminator(self, expert: Transitions, policy: Transitions) -> Metrics:
        self.learner.updates += 1
        mix = (self.learner.uniform(len(expert.rewards)) + 1) / 2
        inputs = self.features(expert), self.features(policy)
        return self.learner.step("discriminator", self.discriminator_objective, *inputs, mix)

    def discriminator_objective(
        self, params: Params, expert: Tensor, policy: Tensor, mix: Tensor
    ) -> tuple[Tensor, Metrics]:
        """expert, policy: `features` [B, K]; mix: u of the interpolates, [B] in [0, 1)."""
        logit = partial(self.discriminator, params["discriminator"])  # [B, K] → [B]
        expert_logits, policy_logits = logit(torch.cat([expert, policy])).chunk(2)  # [B] each
        penalty = gradient_penalty(logit, expert, policy, mix)
        metrics = {**accuracies(expert_logits, policy_logits), "gradient_penalty": penalty}
        return logistic_loss(expert_logits, policy_logits) + self.config.gradient_penalty * penalty, metrics  # eq. 1

    def features(self, batch: Transitions) -> Tensor:
        """Inputs of the discriminator for transitions in the units of the networks, [B, K]."""
        return cast(RewardNetwork, self.discriminator.module).features(batch)

    @torch.no_grad()
    def rewards(self, batch: Transitions) -> Tensor:
        """Eq. 2 for transitions in the units of the networks, [B]."""
        logits = self.discriminator(self.learner.parameters_of("discriminator"), batch)
        return imitation_reward(logits, self.config.reward_convention)

    def absorbing_reward(self) -> float:
        """r(s_abs, 0)."""
        nothing = torch.zeros(1, device=self.learner.device)
        state = with_indicator(nothing.expand(1, self.vector_size - 1), nothing == 0)
        actions = nothing.expand(1, self.scaling.action_size)
        return float(self.rewards(Transitions(state, actions, nothing, nothing, state)))

    def halved(self) -> float:
        """The factor of the actor's learning rate."""
        c = self.config
        if c.halving_steps is None:
            return 1.0
        return float(0.5 ** (steps_before(c.inner, self.agent.learner.updates) // c.halving_steps))

    def reward(self, seed_index: int = 0) -> LearnedReward:
        """The reward of eq. 2 in the spaces of the environment, whose states have the indicator 0.

        With absorbing states, a terminated step also has the value of what follows it, eq. 4 of irl/rewards.py.
        """
        c, parameters = self.config, dict(self.learner.parameters_of("discriminator", seed_index))
        if c.absorbing:
            weight = parameters["head.layers.0.weight"]  # [H, K]
            indicator = self.vector_size - 1
            parameters["head.layers.0.weight"] = torch.cat([weight[:, :indicator], weight[:, indicator + 1 :]], 1)
        members = ({key: value.clone() for key, value in parameters.items()},)
        return LearnedReward(
            design=self.design,
            spec=self.spec,
            discount=c.inner.discount,
            members=members,
            absorbing_reward=self.absorbing_reward() if c.absorbing else None,
            about={"algorithm": c.algorithm, "reward_convention": c.reward_convention},
        )

    def policy(self, seed_index: int = 0, *, deterministic: bool = True, step: int | None = None) -> Policy:
        policy = self.agent.policy(seed_index, deterministic=deterministic, step=step)
        return IndicatorPolicy(policy) if self.config.absorbing else policy

    def round_steps(self, num_envs: int) -> int:
        return self.agent.round_steps(num_envs)

    def updates_due(self, episodes: int, steps: int) -> int:
        return self.agent.updates_due(episodes, steps)

    def state_dict(self) -> dict[str, Any]:
        return {"agent": self.agent.state_dict(), "discriminator": self.learner.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        agent, discriminator = state.get("agent", {}), state.get("discriminator", {})
        self.learner.check(discriminator)
        self.agent.load_state_dict(agent)  # changes nothing if it does not fit
        self.learner.load_state_dict(discriminator)


def _agent(config: DACConfig, spec: Spec, setup: Setup) -> TD3 | SAC:
    """The agent for the spec of its networks; the absorbing state has neither actions nor entropy."""
    space, size, hidden = spec.observation_space, Scaling(spec).action_size, config.inner.hidden_sizes
    networks = dict(setup.get("networks") or {})
    if config.absorbing:
        critic = networks.get("critic", lambda: Critic(space, size, hidden))
        networks["critic"] = lambda: AbsorbingCritic(critic())
    if config.absorbing and config.agent == "sac":
        actor = networks.get("actor", lambda: SquashedGaussianActor(space, size, hidden))
        networks["actor"] = lambda: AbsorbingActor(actor())
    setup = {**setup, "networks": networks}
    return TD3(config.td3, spec, **setup) if config.agent == "td3" else SAC(config.sac, spec, **setup)
