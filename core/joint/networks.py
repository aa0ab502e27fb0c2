"""Networks for many agents: decentralised networks on each agent's observation, and centralised critics.

Inputs beside observations, and outputs, have one agent axis in the order of `JointSpec.agents`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from herdbook.core.joint.actions import joined, kinds_to_agents, numbers_of, of_agents, widened
from herdbook.core.joint.types import ByKind, JointSegments, JointSpec, JointTransitions, Kind
from herdbook.core.networks import GRU, Encoder, Linear
from herdbook.core.types import Tree

Sharing = Literal["all", "kind", "none"]
"""Parameter sharing: among all agents, among the agents of a kind, or none."""


def _groups(spec: JointSpec, sharing: Sharing) -> list[tuple[Kind, ...]]:
    return [spec.kinds] if sharing == "all" else [(kind,) for kind in spec.kinds]


class _Body(nn.Module):
    """A ReLU network for a group of agents: [*B, n, in] → [*B, n, outputs].

    The agents share parameters (with `agent_id`, a one-hot id is an input), or each has its own if `separate`. If
    `recurrent`, the last hidden layer is a GRU over T in [B, T, n, in].
    """

    def __init__(
        self,
        agents: int,
        inputs: int,
        outputs: int,
        hidden_sizes: Sequence[int],
        *,
        separate: bool,
        agent_id: bool,
        recurrent: bool = False,
    ) -> None:
        super().__init__()
        self.separate, self.agents = separate, agents
        self.agent_id = agent_id and not separate and agents > 1
        copies = agents if separate else None
        sizes = (inputs + agents * self.agent_id, *hidden_sizes)
        linear = sizes[:-1] if recurrent else sizes
        self.layers = nn.ModuleList(Linear(i, o, copies) for i, o in pairwise(linear))
        self.memory = GRU(sizes[-2], sizes[-1], copies) if recurrent else None
        self.head = Linear(sizes[-1], outputs, copies)

    def forward(
        self, x: Tensor, state: Tensor | None = None, held: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Outputs and the GRU's last state. state: [B, n, H] before the first row; held: [B, T, n, 1] keeps it."""
        if self.agent_id:
            numbers = torch.eye(self.agents, device=x.device).expand(*x.shape[:-1], self.agents)
            x = torch.cat([x, numbers], -1)
        if self.memory is not None:
            x = x.transpose(0, 1)  # each step of the GRU then reads one contiguous block
        lead = x.shape[:-2]
        x = self._fold(x)
        for layer in self.layers:
            x = F.relu(layer(x))
        if self.memory is not None:
            assert state is not None and held is not None
            held = self._fold(held.transpose(0, 1))
            x, held = (part.reshape(*part.shape[:-2], lead[0], -1, part.shape[-1]) for part in (x, held))
            x = self.memory(x, self._fold(state), held)  # [T, B · n, H] or [n, T, B, H]
            state = self._unfold(x.select(-3, -1), lead[1:])
            x = x.flatten(-3, -2)
        x = self._unfold(self.head(x), lead)
        return (x if self.memory is None else x.transpose(0, 1)), state

    def _fold(self, x: Tensor) -> Tensor:
        """[*L, n, F] → [L · n, F], or [n, L, F] if `separate`."""
        return x.movedim(-2, 0).flatten(1, -2) if self.separate else x.flatten(0, -2)

    def _unfold(self, x: Tensor, lead: Sequence[int]) -> Tensor:
        if self.separate:
            return x.reshape(self.agents, *lead, -1).movedim(0, -2)
        return x.reshape(*lead, self.agents, -1)


class AgentNetworks(nn.Module):
    """Decentralised networks: observations by kind [*B, N_kind, …] → [*B, N, outputs].

    Args:
        outputs: Outputs per agent.
        hidden_sizes: Widths of the hidden layers; if `recurrent`, the last one is a GRU.
        sharing: Parameter sharing. Across kinds, narrower observations are zero-padded.
        agent_id: Agents that share parameters get a one-hot id as input.
        extra: Width of a second input of each agent, [*B, N, extra].

    Raises ValueError if images would have to be padded, or if agents without sharing observe images.
    """

    def __init__(
        self,
        spec: JointSpec,
        outputs: int,
        hidden_sizes: Sequence[int],
        *,
        sharing: Sharing,
        agent_id: bool,
        extra: int = 0,
        recurrent: bool = False,
    ) -> None:
        super().__init__()
        self.order = kinds_to_agents(spec)
        self.groups: list[tuple[list[str], list[int] | None]] = []  # kinds, and the positions of their agents
        self.encoders = nn.ModuleList()
        self.bodies = nn.ModuleList()
        self.widths: list[int] = []
        for kinds in _groups(spec, sharing):
            agents = [agent for kind in kinds for agent in kind.agents]
            self.groups.append(([kind.name for kind in kinds], numbers_of(spec, agents)))
            seen = [kind.observation_space for kind in kinds]
            distinct = [space for number, space in enumerate(seen) if space not in seen[:number]]
            encoders = nn.ModuleList(map(Encoder, distinct))
            learned = any(True for _ in encoders.parameters())
            if learned and len(distinct) > 1:
                named = ", ".join(f"{kind.observation_space} of {kind.name}" for kind in kinds)
                raise ValueError(f"expected vectors to pad to one width, got {named}; set sharing='kind'")
            if learned and sharing == "none":
                got = f"{distinct[0]} of {kinds[0].name}"
                raise ValueError(f"expected vectors for agents that share nothing, got {got}; set sharing='kind'")
            self.encoders.append(nn.ModuleList(encoders[distinct.index(space)] for space in seen))
            self.widths.append(max(cast(Encoder, encoder).size for encoder in encoders))
            options = {"separate": sharing == "none", "agent_id": agent_id, "recurrent": recurrent}
            self.bodies.append(_Body(len(agents), self.widths[-1] + extra, outputs, hidden_sizes, **options))

    def forward(
        self, observations: ByKind, extra: Tensor | None = None, state: Tensor | None = None, held: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Outputs, and the last state of recurrent networks, which read [B, T, …], state [B, N, H], held [B, T, N]."""
        outputs, states = [], []
        for (kinds, numbers), encoders, width, body in zip(
            self.groups, self.encoders, self.widths, self.bodies, strict=True
        ):
            pairs = zip(kinds, cast(nn.ModuleList, encoders), strict=True)
            seen = [widened(encoder(observations[name]), width) for name, encoder in pairs]
            x = seen[0] if len(seen) == 1 else torch.cat(seen, -2)  # [*B, n, width]
            if extra is not None:
                x = torch.cat([x, of_agents(extra, numbers)], -1)
            if state is None or held is None:
                output, _ = body(x)
            else:
                output, last = body(x, of_agents(state, numbers), of_agents(held.unsqueeze(-1), numbers))
                states.append(last)
            outputs.append(output)
        return joined(outputs, self.order), joined(states, self.order) if states else None


class StateEncoder(nn.Module):
    """The task's state as a vector [*B, size]: the global state, or without one the joint observation.

    The joint observation concatenates the agents in agent order, with zeros for absent agents. If `timed`, the last
    entry is the fraction of the horizon that has passed.
    """

    def __init__(self, spec: JointSpec, *, timed: bool = False) -> None:
        super().__init__()
        self.timed = timed
        self.kinds: list[tuple[str, list[int] | None]] | None = None  # the kinds of the joint observation
        self.order = list(spec.agent_order)
        if spec.state_space is not None:
            encoders = [Encoder(spec.state_space)]
            self.size = encoders[0].size
        else:
            encoders = [Encoder(kind.observation_space) for kind in spec.kinds]
            self.kinds = [(kind.name, numbers_of(spec, kind.agents)) for kind in spec.kinds]
            self.size = sum(len(kind.agents) * encoder.size for kind, encoder in zip(spec.kinds, encoders, strict=True))
        self.size += timed
        self.encoders = nn.ModuleList(encoders)

    def forward(self, view: Tree) -> Tensor:
        """view: `joint_view`."""
        if self.timed:
            view, time = view
            return torch.cat([self._features(view), time.unsqueeze(-1)], -1)
        return self._features(view)

    def _features(self, view: Tree) -> Tensor:
        if self.kinds is None:
            return cast(Tensor, self.encoders[0](view))
        observations, present = view
        parts = []  # each agent's features
        for (name, numbers), encoder in zip(self.kinds, self.encoders, strict=True):
            there = of_agents(present.unsqueeze(-1), numbers)
            parts += (encoder(observations[name]) * there).unbind(-2)  # N_kind of [*B, F]
        return torch.cat([parts[number] for number in self.order], -1)


def joint_view(
    spec: JointSpec, state: Tree | None, observations: ByKind, present: Tensor, time: Tensor | None = None
) -> Tree:
    """The input of a `StateEncoder`: the state if the task has one, else (observations, present [*B, N]).

    With `time` [*B], the input of a timed encoder: a pair of that and the time.
    """
    view = (observations, present) if spec.state_space is None else state
    return view if time is None else (view, time)


def transition_views(spec: JointSpec, batch: JointTransitions, horizon: int | None) -> tuple[Tree, Tree]:
    """`joint_view` before and after each step, timed if there is a `horizon`."""
    now, later = (None, None) if horizon is None else (batch.timesteps / horizon, (batch.timesteps + 1) / horizon)
    return (
        joint_view(spec, batch.state, batch.observations, batch.alive, now),
        joint_view(spec, batch.next_state, batch.next_observations, batch.next_alive, later),
    )


def row_times(batch: JointSegments, horizon: int) -> Tensor:
    """Fraction of `horizon` that has passed at each row. [*B, T + 1]"""
    rows = torch.arange(batch.mask.shape[-1] + 1, device=batch.mask.device)
    return (batch.timesteps.unsqueeze(-1) + rows) / horizon


def rows_present(batch: JointSegments) -> Tensor:
    """[*B, T + 1, N] bool: the agent acts at this row, or observes here the outcome of a truncated last step."""
    return torch.cat([batch.alive[..., :1, :], batch.next_alive], -2)


class JointCritic(nn.Module):
    """Centralised critics Q_i(x, a_1, …, a_N), one value for each agent: [*B, N]."""

    def __init__(
        self,
        spec: JointSpec,
        action_size: int,
        hidden_sizes: Sequence[int],
        *,
        sharing: Sharing,
        agent_id: bool,
        timed: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = StateEncoder(spec, timed=timed)
        self.order, self.agents = kinds_to_agents(spec), len(spec.agents)
        groups = [[agent for kind in kinds for agent in kind.agents] for kinds in _groups(spec, sharing)]
        self.groups = [numbers_of(spec, agents) for agents in groups]
        inputs = self.encoder.size + self.agents * action_size
        self.bodies = nn.ModuleList(
            _Body(len(agents), inputs, 1, hidden_sizes, separate=sharing == "none", agent_id=agent_id)
            for agents in groups
        )

    def forward(self, view: Tree, actions: Tensor) -> Tensor:
        """view: from `joint_view`; actions: [*B, N, N, A], or [*B, 1, N, A] if every critic reads the same ones."""
        state = self.encoder(view).unsqueeze(-2)  # [*B, 1, S]
        actions = actions.flatten(-2)
        lead = (*state.shape[:-2], self.agents)
        x = torch.cat([state.expand(*lead, -1), actions.expand(*lead, -1)], -1)  # [*B, N, S + N · A]
        values = [body(of_agents(x, numbers))[0] for numbers, body in zip(self.groups, self.bodies, strict=True)]
        return joined(values, self.order).squeeze(-1)
