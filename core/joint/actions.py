"""Conversion between raw actions by kind and one tensor of all agents' actions, in agent order.

The tensor holds indices `[*B, N]` or vectors `[*B, N, A]`, where A is the largest number of actions or dimensions.
Entries beyond an agent's own are illegal (discrete actions) or zero (Box).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor

from herdbook.core.joint.types import ByKind, JointSpec
from herdbook.core.needs import ActionKind
from herdbook.core.policy import Scaling
from herdbook.core.spaces import check_action_space
from herdbook.core.types import Spec


def check_joint(spec: JointSpec, actions: ActionKind, algorithm: str, *, turn_based: bool = False) -> None:
    """Raise ValueError, naming algorithms that fit, if `algorithm`, for `actions` of this type, cannot learn here."""
    if spec.turn_based and not turn_based:
        raise ValueError(
            f"{algorithm}: expected agents that act at once, got a turn-based game; independent_q learns in those with "
            "discrete actions"
        )
    discrete_too = "independent_q, vdn, qmix, maddpg or matd3, or qmix_cql on a dataset"
    box_too = "maddpg or matd3, or matd3_bc on a dataset"
    for kind in spec.kinds:
        came = f"{kind.action_space} of {kind.name}"
        if actions == "box" and isinstance(kind.action_space, spaces.Discrete):
            raise ValueError(f"{algorithm}: expected Box actions, got {came}; use {discrete_too}")
        if actions == "discrete" and not isinstance(kind.action_space, spaces.Discrete):
            raise ValueError(f"{algorithm}: expected discrete actions, got {came}; use {box_too}")
        check_action_space(kind.action_space, "any", f"{algorithm}: {kind.name}")
    if len({type(kind.action_space) for kind in spec.kinds}) > 1:
        named = ", ".join(f"{kind.action_space} of {kind.name}" for kind in spec.kinds)
        raise ValueError(f"{algorithm}: expected agents that all have discrete actions, or all Box, got {named}")


class JointActions:
    """Converts raw actions by kind to one tensor in agent order, in the units of the networks, and back."""

    def __init__(self, spec: JointSpec, device: str | torch.device = "cpu") -> None:
        self.scalings = {
            kind.name: Scaling(Spec(kind.observation_space, kind.action_space), device=device) for kind in spec.kinds
        }
        self.order = kinds_to_agents(spec)
        self.members = {kind.name: numbers_of(spec, kind.agents) for kind in spec.kinds}
        self.discrete = spec.discrete
        sizes = {agent: self.scalings[kind.name].action_size for kind in spec.kinds for agent in kind.agents}
        self.sizes = torch.tensor([sizes[agent] for agent in spec.agents], device=device)  # [N], in agent order
        self.size = max(sizes.values())
        self.choices = torch.arange(self.size, device=device)
        self.slots: Tensor | None = None  # [N, size] bool: False beyond an agent's own actions
        if len(set(sizes.values())) > 1:
            self.slots = self.choices < self.sizes.unsqueeze(-1)

    def indices(self, raw: ByKind) -> Tensor:
        """Raw discrete actions as indices from 0: [*B, N]. An absent agent's action, zero or `start`, becomes 0."""
        counted = [scaling.actions(raw[name]).clamp_min(0) for name, scaling in self.scalings.items()]
        return joined([part.unsqueeze(-1) for part in counted], self.order).squeeze(-1)

    def one_hot(self, indices: Tensor) -> Tensor:
        """Indices [*B, N] → [*B, N, size]."""
        return (indices.unsqueeze(-1) == self.choices).float()

    def vectors(self, raw: ByKind, alive: Tensor) -> Tensor:
        """Raw actions as one-hot vectors, or scaled to [−1, 1]; zeros for agents that do not act. [*B, N, size]"""
        if self.discrete:
            return self.one_hot(self.indices(raw)) * alive.unsqueeze(-1)
        scaled = [widened(scaling.actions(raw[name]), self.size) for name, scaling in self.scalings.items()]
        return joined(scaled, self.order) * alive.unsqueeze(-1)

    def legal(self, mask: ByKind | None) -> Tensor | None:
        """Legal actions: [*B, N, size] with a mask, else [N, size]; None where all agents have `size` actions."""
        if mask is None:
            return self.slots
        return joined([widened(mask[name], self.size) for name in self.scalings], self.order)

    def trimmed(self, vectors: Tensor) -> Tensor:
        """`vectors` with zeros beyond each agent's own actions. [*B, N, size]"""
        return vectors if self.slots is None else vectors * self.slots

    def greedy(self, outputs: Tensor, legal: Tensor | None = None) -> Tensor:
        """An actor's greedy actions as vectors: one-hot of the largest legal output, or tanh of all. [*B, N, size]"""
        if self.discrete:
            return self.one_hot(only_legal(outputs, legal).argmax(-1))
        return self.trimmed(outputs.tanh())

    def raw(self, actions: Tensor) -> ByKind:
        """Raw actions by kind from indices [*B, N], or from vectors [*B, N, size] for Box actions."""
        vectors = actions.unsqueeze(-1) if self.discrete else actions
        parts = {name: of_agents(vectors, numbers) for name, numbers in self.members.items()}
        if self.discrete:
            return {name: self.scalings[name].raw_actions(part.squeeze(-1)) for name, part in parts.items()}
        return {
            name: scaling.raw_actions(parts[name][..., : scaling.action_size])
            for name, scaling in self.scalings.items()
        }


def only_legal(values: Tensor, legal: Tensor | None) -> Tensor:
    """`values` with −∞ for illegal actions. [*B, N, size]"""
    return values if legal is None else values.masked_fill(~legal, -torch.inf)


def widened(x: Tensor, size: int) -> Tensor:
    """`x` with its last axis zero-padded to `size`."""
    return x if x.shape[-1] == size else F.pad(x, (0, size - x.shape[-1]))


def kinds_to_agents(spec: JointSpec) -> list[int] | None:
    """Index from kind-after-kind order to agent order; None where the two are equal."""
    order = list(spec.agent_order)
    return None if order == sorted(order) else order


def joined(parts: Sequence[Tensor], order: list[int] | None) -> Tensor:
    """Parts [*B, n, F], which hold the agents kind after kind, → [*B, N, F] in agent order."""
    joined = parts[0] if len(parts) == 1 else torch.cat(list(parts), -2)
    return joined if order is None else joined[..., order, :]


def numbers_of(spec: JointSpec, agents: Sequence[str]) -> list[int] | None:
    """Positions of `agents` among all agents; None if they are all agents in order."""
    return None if tuple(agents) == spec.agents else [spec.index[agent] for agent in agents]


def of_agents(x: Tensor, numbers: list[int] | None) -> Tensor:
    """The agents at `numbers` in [*B, N, F]; None selects all."""
    return x if numbers is None else x[..., numbers, :]
