"""The types of many agents: kinds of agents, the spec of a joint task, batches, and the record of one episode.

Agents with equal spaces form a kind. Whatever belongs to agents of different shapes is a dict by kind with leaves
`[…, N_kind, …]`, the agents in the kind's own order; whatever is one number per agent is `[…, N]` in the order of
`JointSpec.agents`, which is the environment's; `JointSpec.agent_order` leads from the one order to the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import torch
from gymnasium import Space, spaces
from torch import Tensor

from herdbook.core.spaces import flat_action_space, flat_space
from herdbook.core.types import Array, Tree, batch_type, to_numpy, tree_map

ByKind = dict[str, Any]
"""Kind to leaf `[…, N_kind, …]`."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Agents with equal spaces; named after the first of them."""

    name: str
    agents: tuple[str, ...]
    observation_space: Space[Any]
    """What the networks see of one agent (`core.spaces.flat_space`)."""
    action_space: Space[Any]
    """Discrete, or Box `[A]`."""


@dataclass(frozen=True, kw_only=True)
class JointSpec:
    """What an algorithm must know of a task with many agents.

    Raises ValueError for agents without spaces, or named twice.
    """

    agents: tuple[str, ...]
    """Everyone who may ever take part, in the environment's order."""
    observation_spaces: Mapping[str, Space[Any]]
    """Agent to its own space, as the environment declares it (without the legal actions)."""
    action_spaces: Mapping[str, Space[Any]]
    state_space: Space[Any] | None = None
    """The global state's flat space; None where the environment has none: then it is the joined observations."""
    masked: bool = False
    """The environment says which actions are legal."""
    turn_based: bool = False
    """One agent acts at a time; a step of an agent goes from one turn of its own to its next."""

    def __post_init__(self) -> None:
        if not self.agents or len(set(self.agents)) < len(self.agents):
            raise ValueError(f"expected distinct agents, at least one, got {list(self.agents)}")
        for name in ("observation_spaces", "action_spaces"):
            if missing := [agent for agent in self.agents if agent not in getattr(self, name)]:
                raise ValueError(f"expected {name} for every agent, got none for {missing}")

    @cached_property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds in the order of their first agents."""
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
        """`concatenated[agent_order[i]]` is agent i, where `concatenated` holds the kinds one after the other."""
        concatenated = [agent for kind in self.kinds for agent in kind.agents]
        return tuple(concatenated.index(agent) for agent in self.agents)

    @cached_property
    def index(self) -> Mapping[str, int]:
        """Agent to its number."""
        return {agent: number for number, agent in enumerate(self.agents)}

    @property
    def discrete(self) -> bool:
        """Whether every agent's actions are discrete."""
        return all(isinstance(kind.action_space, spaces.Discrete) for kind in self.kinds)


@dataclass(frozen=True, slots=True)
class JointEpisode:
    """One episode of T steps on the host, T+1 rows of what is seen.

    An agent that is absent has zeros. In a turn-based game step k is the k-th turn of every agent, and an agent that
    had fewer turns is absent after its own; its last observation is the row after its last turn.
    """

    observations: ByKind
    """Leaves `[T + 1, N_kind, …]`, flat."""
    actions: ByKind
    """`[T, N_kind]` int64 in the numbering of the space, or `[T, N_kind, A]` float32."""
    rewards: Array
    """`[T, N]` float64."""
    terminated: Array
    """`[T, N]` bool: the MDP ended here for this agent."""
    truncated: Array
    alive: Array
    """`[T + 1, N]` bool: the agent acts at this row. Nobody does at the last one."""
    action_mask: ByKind | None = None
    """`[T + 1, N_kind, n]` bool: legal actions; all True for an agent that is absent."""
    state: Tree | None = None
    """`[T + 1, …]`."""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rewards)


def episode_state(episode: JointEpisode) -> dict[str, Any]:
    """An episode as dicts and tensors, for a checkpoint; of its metadata what JSON holds."""
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
    """Steps of all agents. Every field is `[*B, …]`."""

    observations: ByKind
    actions: ByKind
    rewards: Tensor
    """`[*B, N]`."""
    discounts: Tensor
    """`[*B, N]`: γ · (1 − terminated) of each agent; truncation zeroes it only if time_limit="terminal"."""
    next_observations: ByKind
    alive: Tensor
    """`[*B, N]` bool: the agent acted."""
    next_alive: Tensor
    """`[*B, N]` bool: the next observation is that of an agent whose game goes on (or was only cut off)."""
    team_rewards: Tensor
    """`[*B]`: the sum over the agents."""
    team_discounts: Tensor
    """`[*B]`: γ, and 0 where the game ended for every agent that was still in it."""
    timesteps: Tensor
    """`[*B]` int64: the steps (in a game of turns the rounds) of the episode before this one."""
    action_mask: ByKind | None = None
    next_action_mask: ByKind | None = None
    state: Tree | None = None
    next_state: Tree | None = None
    indices: Tensor | None = None


@batch_type
@dataclass(frozen=True, slots=True)
class JointSegments:
    """Windows of T successive steps of one episode, padded at the end. What is seen has T+1 rows.

    Row t + 1 is what step t led to, the episode's own final observation included, so nothing is stored or computed
    twice; rows beyond it repeat it.
    """

    observations: ByKind
    """`[*B, T + 1, N_kind, …]`."""
    actions: ByKind
    """`[*B, T, N_kind, …]`."""
    rewards: Tensor
    """`[*B, T, N]`, as everything below that is per agent."""
    discounts: Tensor
    alive: Tensor
    next_alive: Tensor
    team_rewards: Tensor
    """`[*B, T]`."""
    team_discounts: Tensor
    timesteps: Tensor
    """`[*B]` int64: the steps of the episode before the window."""
    mask: Tensor
    """`[*B, T]` bool: False where the window reaches beyond its episode's last step. Nobody is alive there."""
    action_mask: ByKind | None = None
    """`[*B, T + 1, N_kind, n]`."""
    state: Tree | None = None
    """`[*B, T + 1, …]`."""


def in_agent_order(spec: JointSpec, by_kind: ByKind) -> Tensor:
    """Leaves `[…, N_kind]` of every kind to `[…, N]`; `[…, N_kind, n]` of equal n must be moved before."""
    joined = torch.cat([by_kind[kind.name] for kind in spec.kinds], -1)
    return joined if spec.agent_order == tuple(range(len(spec.agents))) else joined[..., list(spec.agent_order)]
