"""Types for many agents: kinds, the specification of a joint task, batches, and the record of one episode.

Agents with equal spaces form a kind. Arrays whose shape depends on the kind are a dict by kind with leaves
`[…, N_kind, …]`, in the kind's own agent order. Scalars per agent are `[…, N]` in the environment's order, which is
that of `JointSpec.agents`. `JointSpec.agent_order` maps the first order to the second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor

from herdbook.core.spaces import flat_action_space, flat_space
from herdbook.core.types import Array, Tree, batch_type, to_numpy, tree_map

ByKind = dict[str, Any]
"""A leaf `[…, N_kind, …]` for each kind."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Agents with equal spaces; the kind is named after its first agent."""

    name: str
    agents: tuple[str, ...]
    observation_space: Space[Any]
    """The flat space of one agent's observations, as networks read them (`core.spaces.flat_space`)."""
    action_space: Space[Any]
    """Discrete, or Box `[A]`."""


@dataclass(frozen=True, kw_only=True)
class JointSpec:
    """Specification of a task with many agents. Raises ValueError if an agent has no spaces or is named twice."""

    agents: tuple[str, ...]
    """Every agent that may take part, in the environment's order."""
    observation_spaces: Mapping[str, Space[Any]]
    """Each agent's space as the environment declares it, without the action mask."""
    action_spaces: Mapping[str, Space[Any]]
    state_space: Space[Any] | None = None
    """Flat space of the global state. None: the environment has no state, and the joint observation stands in."""
    masked: bool = False
    """The environment gives masks of legal actions."""
    turn_based: bool = False
    """One agent acts at a time. A step of an agent lasts from its own turn to its next one."""

    def __post_init__(self) -> None:
        if not self.agents or len(set(self.agents)) < len(self.agents):
            raise ValueError(f"expected distinct agents, at least one, got {list(self.agents)}")
        for name in ("observation_spaces", "action_spaces"):
            if missing := [agent for agent in self.agents if agent not in getattr(self, name)]:
                raise ValueError(f"expected {name} for every agent, got none for {missing}")

    @cached_property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds, ordered by their first agents."""
        found: list[tuple[Space[Any], Space[Any], list[str]]] = []
        for agent in self.agents:
            pair = flat_space(self.observation_spaces[agent]), flat_action_space(self.action_spaces[agent])
            for observation_space, action_space, members in found:
                if (observation_space, action_space) == pair:
                    members.append(agent)
                    break
            else:
                found.append((*pair, [agent]))
        return tuple(Kind(members[0], tuple(members), *pair) for *pair, members in found)

    @cached_property
    def agent_order(self) -> tuple[int, ...]:
        """`concatenated[agent_order[i]]` is agent i, where `concatenated` holds the agents kind after kind."""
        concatenated = [agent for kind in self.kinds for agent in kind.agents]
        return tuple(concatenated.index(agent) for agent in self.agents)

    @cached_property
    def index(self) -> Mapping[str, int]:
        """Position of each agent in `agents`."""
        return {agent: number for number, agent in enumerate(self.agents)}

    @property
    def discrete(self) -> bool:
        """True if every agent's actions are discrete."""
        return all(isinstance(kind.action_space, spaces.Discrete) for kind in self.kinds)


@dataclass(frozen=True, slots=True)
class JointEpisode:
    """One episode of T steps on the host; observations, masks and states have T+1 rows.

    Absent agents hold zeros. An agent may pause: act, be absent without a flag, and act again. In a turn-based game,
    step k is the k-th turn of every agent. An agent with fewer turns is absent from then on; the row after its last
    turn holds its final observation.
    """

    observations: ByKind
    """Leaves `[T + 1, N_kind, …]`, flat."""
    actions: ByKind
    """`[T, N_kind]` int64, numbered as in the space, or `[T, N_kind, A]` float32."""
    rewards: Array
    """`[T, N]` float64."""
    terminated: Array
    """`[T, N]` bool: the MDP ended here for this agent."""
    truncated: Array
    alive: Array
    """`[T + 1, N]` bool: the agent acts at this row; False for every agent at the last row."""
    action_mask: ByKind | None = None
    """`[T + 1, N_kind, n]` bool: legal actions; all True for absent agents."""
    state: Tree | None = None
    """`[T + 1, …]`."""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rewards)


def episode_state(episode: JointEpisode) -> dict[str, Any]:
    """An episode as dicts and tensors, for a checkpoint; the metadata must be JSON values."""
    arrays = {f.name: getattr(episode, f.name) for f in fields(episode) if f.name != "metadata"}
    present = {name: value for name, value in arrays.items() if value is not None}
    return {**tree_map(torch.from_numpy, present), "metadata": dict(episode.metadata)}


def episode_from_state(state: Mapping[str, Any]) -> JointEpisode:
    """The inverse of `episode_state`."""
    arrays = {name: value for name, value in state.items() if name != "metadata"}
    return JointEpisode(**to_numpy(arrays), metadata=state["metadata"])


@batch_type
@dataclass(frozen=True, slots=True)
class JointTransitions:
    """Transitions of all agents. Every field is `[*B, …]`."""

    observations: ByKind
    actions: ByKind
    rewards: Tensor
    """`[*B, N]`."""
    discounts: Tensor
    """`[*B, N]`: γ · (1 − terminated); truncation zeroes it only if time_limit="terminal"."""
    next_observations: ByKind
    alive: Tensor
    """`[*B, N]` bool: the agent acted."""
    next_alive: Tensor
    """`[*B, N]` bool: the agent acts next, or has the observation after its truncation (unless time_limit="terminal"):
    its values count in the target."""
    team_rewards: Tensor
    """`[*B]`: sum of the rewards over agents."""
    team_discounts: Tensor
    """`[*B]`: γ, or 0 where the game ended for every agent still in it."""
    timesteps: Tensor
    """`[*B]` int64: earlier steps of the episode; rounds in a turn-based game."""
    action_mask: ByKind | None = None
    next_action_mask: ByKind | None = None
    state: Tree | None = None
    next_state: Tree | None = None
    indices: Tensor | None = None
    waiting: Tensor | None = None
    """`[*B, N]` bool: the agent is absent and acts later in the episode; None where agents of the data never pause."""

    @property
    def in_game(self) -> Tensor:
        """`[*B, N]` bool: the agent acts, or pauses: a centralised critic has a value to learn."""
        return self.alive if self.waiting is None else self.alive | self.waiting


@batch_type
@dataclass(frozen=True, slots=True)
class JointSegments:
    """Windows of T successive steps of one episode, padded at the end. Observations, masks and states have T+1 rows.

    Row t + 1 is the outcome of step t, up to the episode's final observation; later rows repeat that one. Networks
    therefore read every observation once.
    """

    observations: ByKind
    """`[*B, T + 1, N_kind, …]`."""
    actions: ByKind
    """`[*B, T, N_kind, …]`."""
    rewards: Tensor
    """`[*B, T, N]`, as are the other fields per agent below."""
    discounts: Tensor
    alive: Tensor
    next_alive: Tensor
    team_rewards: Tensor
    """`[*B, T]`."""
    team_discounts: Tensor
    timesteps: Tensor
    """`[*B]` int64: steps of the episode before the window."""
    mask: Tensor
    """`[*B, T]` bool: False beyond the episode's last step, where no agent is alive."""
    action_mask: ByKind | None = None
    """`[*B, T + 1, N_kind, n]`."""
    state: Tree | None = None
    """`[*B, T + 1, …]`."""
    waiting: Tensor | None = None
    """`[*B, T, N]` bool: the agent is absent and acts later in the episode; None where agents never pause."""


def all_legal(spec: JointSpec, *lead: int) -> ByKind:
    """Action masks `[*lead, N_kind, n]` of every kind with discrete actions, all True."""
    return {kind.name: np.ones((*lead, len(kind.agents), n), dtype=np.bool_) for kind, n in discrete_kinds(spec)}


def discrete_kinds(spec: JointSpec) -> list[tuple[Kind, int]]:
    """(kind, number of actions) of each kind with discrete actions."""
    pairs = ((kind, kind.action_space) for kind in spec.kinds)
    return [(kind, int(space.n)) for kind, space in pairs if isinstance(space, spaces.Discrete)]
