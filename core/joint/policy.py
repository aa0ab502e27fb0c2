"""Policies of many agents, and the networks behind them, evaluated over batches and step by step in play."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from herdbook.core.distributions import Categorical, EpsilonGreedy, Normal
from herdbook.core.joint.actions import JointActions, only_legal
from herdbook.core.joint.networks import AgentNetworks, JointCritic, Sharing, row_times, rows_present
from herdbook.core.joint.types import ByKind, JointSegments, JointSpec, JointTransitions
from herdbook.core.learner import Network, Parameters, Setup, check_one_seed
from herdbook.core.policy import greedy
from herdbook.core.types import Carry, Distribution, Step, tree_map


@dataclass(frozen=True, slots=True)
class JointDistribution:
    """A distribution over all agents' actions, `base`, as a distribution over raw actions by kind."""

    base: Any
    actions: JointActions

    def sample(self, generator: torch.Generator | None = None) -> ByKind:
        return self.actions.raw(self.base.sample(generator))

    def mode(self) -> ByKind:
        return self.actions.raw(self.base.mode())

    def log_prob(self, actions: ByKind) -> Tensor:
        """Log-probability of each agent's discrete action. [E, N]"""
        if not self.actions.discrete:
            raise TypeError("a joint policy over Box actions has no density, because its noise is clipped")
        log_prob: Tensor = self.base.log_prob(self.actions.indices(actions))
        return log_prob


class JointPolicy:
    """A joint policy from a function (step, carry) → (distribution, carry)."""

    def __init__(
        self,
        actions: JointActions,
        function: Callable[[Step, Carry], tuple[Any, Carry]],
        initial: Callable[[int], Carry] = lambda num_envs: None,
        *,
        deterministic: bool = True,
    ) -> None:
        self.actions, self.function, self.initial, self.deterministic = actions, function, initial, deterministic

    @torch.no_grad()
    def __call__(self, step: Step, carry: Carry, generator: torch.Generator | None = None) -> tuple[ByKind, Carry]:
        distribution, carry = self.function(step, carry)
        chosen = distribution.mode() if self.deterministic else distribution.sample(generator)
        return self.actions.raw(chosen), carry

    @torch.no_grad()
    def distribution(self, step: Step, carry: Carry) -> tuple[Distribution, Carry]:
        distribution, carry = self.function(step, carry)
        return JointDistribution(greedy(distribution) if self.deterministic else distribution, self.actions), carry


def beside(*parts: Tensor | None) -> Tensor | None:
    """The parts that are not None, concatenated along the last axis; None if all are."""
    there = [part for part in parts if part is not None]
    return None if not there else there[0] if len(there) == 1 else torch.cat(there, -1)


def seen_by_all(time: Tensor, agents: int) -> Tensor:
    """The same number as an input of each agent: [*B] → [*B, N, 1]."""
    return time[..., None, None].expand(*time.shape, agents, 1)


class ActorSettings(Protocol):
    """The fields of an algorithm's config that `Actors` reads."""

    @property
    def hidden_sizes(self) -> tuple[int, ...]: ...
    @property
    def sharing(self) -> Sharing: ...
    @property
    def agent_id(self) -> bool: ...
    @property
    def horizon(self) -> int | None: ...


class Actors:
    """The agents' actor networks: construction, outputs over transitions, and the policy in play.

    Outputs [*B, N, A] are logits of discrete actions, or Box actions before tanh. With a horizon, the fraction of it
    that has passed is an input.
    """

    network: Network
    """The learner's network, built by `make`; the algorithm sets it."""

    def __init__(self, spec: JointSpec, settings: ActorSettings, setup: Setup) -> None:
        self.spec, self.settings, self.horizon = spec, settings, settings.horizon
        self.actions, self.agents = JointActions(spec, setup.get("device", "cpu")), len(spec.agents)

    def make(self) -> AgentNetworks:
        c, size, extra = self.settings, self.actions.size, int(self.horizon is not None)
        return AgentNetworks(self.spec, size, c.hidden_sizes, extra=extra, sharing=c.sharing, agent_id=c.agent_id)

    def time(self, timesteps: Tensor) -> Tensor | None:
        """The fraction of the horizon that has passed, [*B] → [*B, N, 1]; None without a horizon."""
        return None if self.horizon is None else seen_by_all(timesteps / self.horizon, self.agents)

    def before(self, parameters: Parameters, batch: JointTransitions) -> Tensor:
        """Outputs at the batch's observations."""
        return self.outputs(parameters, batch.observations, batch.timesteps)

    def after(self, parameters: Parameters, batch: JointTransitions) -> Tensor:
        """Outputs at the batch's next observations."""
        return self.outputs(parameters, batch.next_observations, batch.timesteps + 1)

    def outputs(self, parameters: Parameters, observations: ByKind, timesteps: Tensor) -> Tensor:
        time = self.time(timesteps)
        outputs: Tensor = self.network(parameters, observations, *([] if time is None else [time]))[0]
        return outputs

    def make_critic(self) -> JointCritic:
        """A new centralised critic, which reads the time if the actors do."""
        c = self.settings
        shared: dict[str, Any] = {"sharing": c.sharing, "agent_id": c.agent_id, "timed": c.horizon is not None}
        return JointCritic(self.spec, self.actions.size, c.hidden_sizes, **shared)

    def policy(self, parameters: Parameters, noise: float, *, deterministic: bool) -> JointPolicy:
        """Sampled discrete actions, or Box actions with Gaussian noise of σ = `noise`; the mode if `deterministic`."""
        log_std = torch.tensor(noise, device=self.actions.choices.device).log()

        def initial(num_envs: int) -> Carry:
            """Steps of the episode so far, zero."""
            return torch.zeros(num_envs, dtype=torch.int64, device=self.actions.choices.device)

        def act(step: Step, carry: Carry) -> tuple[Categorical | Normal, Carry]:
            steps = carry * ~step.reset  # [E]
            outputs = self.outputs(parameters, step.observations, steps)
            if self.actions.discrete:
                return Categorical(only_legal(outputs, self.actions.legal(step.action_mask))), steps + 1
            return Normal(self.actions.greedy(outputs), log_std, clip=True), steps + 1

        return JointPolicy(self.actions, act, initial, deterministic=deterministic)


class AgentSettings(ActorSettings, Protocol):
    """The fields of an algorithm's config that `AgentValues` reads."""

    algorithm: ClassVar[str]

    @property
    def recurrent(self) -> bool: ...
    @property
    def last_action(self) -> bool: ...


class AgentValues:
    """The agents' action-value networks: construction, values over segments, and the policy in play.

    Segments and play build the same inputs. The last action is zero before an agent's first and after a pause.
    The time is the row of the episode (the agent's own turn, in a turn-based game). A recurrent state stays as it is
    where its agent is absent or another agent has the turn. Segments must begin at the first step of an episode.

    Raises ValueError for recurrent agents with several seeds.
    """

    network: Network
    """The learner's network, built by `make`; the algorithm sets it."""

    def __init__(self, spec: JointSpec, settings: AgentSettings, setup: Setup) -> None:
        self.spec, self.settings, self.actions = spec, settings, JointActions(spec, setup.get("device", "cpu"))
        self.last_action, self.horizon, self.agents = settings.last_action, settings.horizon, len(spec.agents)
        self.memory = settings.hidden_sizes[-1] if settings.recurrent else None
        if settings.recurrent:
            check_one_seed(settings.algorithm, setup, "recurrent agents train", ", or set recurrent=False")

    def make(self) -> AgentNetworks:
        c, size = self.settings, self.actions.size
        extra = size * c.last_action + (c.horizon is not None)
        shared: dict[str, Any] = {"sharing": c.sharing, "agent_id": c.agent_id, "recurrent": c.recurrent}
        return AgentNetworks(self.spec, size, c.hidden_sizes, extra=extra, **shared)

    def over(self, parameters: Parameters, batch: JointSegments) -> Tensor:
        """Values at every row of the segments. [*B, T + 1, N, outputs]"""
        extra, state, held = [], None, None
        if self.last_action:
            extra.append(F.pad(self.actions.vectors(batch.actions, batch.alive), (0, 0, 0, 0, 1, 0)))  # none at row 0
        if self.horizon is not None:
            extra.append(seen_by_all(row_times(batch, self.horizon), self.agents))
        if self.memory is not None:
            held = ~rows_present(batch)
            state = torch.zeros(len(held), self.agents, self.memory, device=held.device)
        outputs: Tensor = self.network(parameters, batch.observations, beside(*extra), state, held)[0]
        return outputs

    def initial(self, num_envs: int) -> Carry:
        device, carry = self.actions.choices.device, {}
        if self.last_action:
            carry["acted"] = torch.zeros(num_envs, self.agents, dtype=torch.bool, device=device)
        if self.horizon is not None:
            carry["steps"] = torch.zeros(num_envs, self.agents, device=device)
        if self.memory is not None:
            carry["state"] = torch.zeros(num_envs, self.agents, self.memory, device=device)
        return carry

    def at(self, parameters: Parameters, step: Step, carry: Carry) -> tuple[Tensor, Carry]:
        """Values at one step, and the next carry. [E, N, outputs]"""
        assert step.alive is not None
        reset, extra, state, held, carry = step.reset.unsqueeze(-1), list[Tensor](), None, None, dict(carry)
        if self.last_action:
            acted = carry["acted"] & ~reset  # [E, N]
            extra.append(self.actions.vectors(step.previous_actions, acted).unsqueeze(1))
            carry["acted"] = acted | step.alive if self.spec.turn_based else step.alive
        if self.horizon is not None:
            steps = carry["steps"] * ~reset  # [E, N]
            extra.append((steps / self.horizon)[:, None, :, None])
            carry["steps"] = steps + (step.alive if self.spec.turn_based else 1)
        if self.memory is not None:
            state, held = carry["state"] * ~reset.unsqueeze(-1), ~step.alive.unsqueeze(1)
        observations = tree_map(lambda leaf: leaf.unsqueeze(1), step.observations)  # a segment of one row
        outputs, state = self.network(parameters, observations, beside(*extra), state, held)
        if self.memory is not None:
            carry["state"] = state
        return outputs.squeeze(1), carry

    def policy(self, parameters: Parameters, epsilon: float, *, deterministic: bool) -> JointPolicy:
        """ε-greedy in the action values; greedy if `deterministic`."""
        epsilon = 0.0 if deterministic else epsilon

        def act(step: Step, carry: Carry) -> tuple[EpsilonGreedy, Carry]:
            values, carry = self.at(parameters, step, carry)
            return EpsilonGreedy(values, self.actions.legal(step.action_mask), epsilon), carry

        return JointPolicy(self.actions, act, self.initial, deterministic=deterministic)
