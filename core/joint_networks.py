"""What the algorithms of many agents share: actions as one tensor, networks of agents, and policies.

Inside, the agents are one axis, in the order of `JointSpec.agents`, whatever their kinds. Their actions are indices
`[*B, N]` or vectors `[*B, N, A]`, A the most actions or dimensions that any agent has: what is beyond an agent's own is
illegal, or zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, Protocol, cast

import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from herdbook.core.distributions import Categorical, Normal
from herdbook.core.joint import ByKind, JointSegments, JointSpec, JointTransitions, Kind
from herdbook.core.learner import Network, Parameters, Setup
from herdbook.core.networks import GRU, Encoder, Linear
from herdbook.core.policy import Scaling, greedy
from herdbook.core.spaces import ActionKind, check_action_space
from herdbook.core.types import Carry, Distribution, Spec, Step, Tree, tree_map

Sharing = Literal["all", "kind", "none"]
"""Which agents have the same parameters: everyone, those of a kind, or none."""


def check_joint(spec: JointSpec, actions: ActionKind, algorithm: str, *, turn_based: bool = False) -> None:
    """Raise ValueError unless `algorithm`, which handles such actions, can learn this task; say which one could."""
    if spec.turn_based and not turn_based:
        raise ValueError(
            f"{algorithm}: expected agents that act together, got a game of turns; independent_q plays those"
        )
    for kind in spec.kinds:
        discrete = isinstance(kind.action_space, spaces.Discrete)
        if discrete and actions == "box":
            fits = "independent_q, vdn, qmix, maddpg or matd3, or qmix_cql on a dataset"
            raise ValueError(f"{algorithm}: expected Box actions, got {kind.action_space} of {kind.name}; use {fits}")
        if not discrete and actions == "discrete":
            fits = "maddpg or matd3, or matd3_bc on a dataset"
            raise ValueError(
                f"{algorithm}: expected discrete actions, got {kind.action_space} of {kind.name}; use {fits}"
            )
        check_action_space(kind.action_space, "any", f"{algorithm}: {kind.name}")
    if len({type(kind.action_space) for kind in spec.kinds}) > 1:
        named = ", ".join(f"{kind.action_space} of {kind.name}" for kind in spec.kinds)
        raise ValueError(f"{algorithm}: expected agents that all have discrete actions, or all Box, got {named}")


def check_recurrent_seeds(algorithm: str, seeds: Sequence[int]) -> None:
    """Raise ValueError for more than one seed: `torch.vmap` has no rule for recurrent networks."""
    if len(seeds) > 1:
        raise ValueError(
            f"{algorithm}: recurrent agents train one seed at a time, got seeds {list(seeds)}; make one for each seed, "
            "or set recurrent=False"
        )


class JointActions:
    """Raw actions by kind as one tensor in agent order, in the units of the networks, and back."""

    def __init__(self, spec: JointSpec, device: str | torch.device = "cpu") -> None:
        self.scalings = {
            kind.name: Scaling(Spec(kind.observation_space, kind.action_space), device=device) for kind in spec.kinds
        }
        self.order = _order(spec)
        self.members = {kind.name: _numbers(spec, kind.agents) for kind in spec.kinds}
        self.discrete = spec.discrete
        sizes = {agent: self.scalings[kind.name].action_size for kind in spec.kinds for agent in kind.agents}
        self.sizes = torch.tensor([sizes[agent] for agent in spec.agents], device=device)  # [N], in agent order
        self.size = max(sizes.values())
        self.choices = torch.arange(self.size, device=device)
        self.slots: Tensor | None = None  # [N, size] bool: False beyond an agent's own actions
        if len(set(sizes.values())) > 1:
            self.slots = self.choices < self.sizes.unsqueeze(-1)

    def indices(self, raw: ByKind) -> Tensor:
        """Raw discrete actions to indices from 0: [*B, N]. Of an agent that is absent, a zero or the start is 0."""
        counted = [scaling.actions(raw[name]).clamp_min(0) for name, scaling in self.scalings.items()]
        return _joined([part.unsqueeze(-1) for part in counted], self.order).squeeze(-1)

    def one_hot(self, indices: Tensor) -> Tensor:
        """[*B, N] → [*B, N, size]."""
        return (indices.unsqueeze(-1) == self.choices).float()

    def vectors(self, raw: ByKind, alive: Tensor) -> Tensor:
        """Raw actions as one-hot vectors, or scaled to [−1, 1], zeros for who does not act: [*B, N, size]."""
        if self.discrete:
            return self.one_hot(self.indices(raw)) * alive.unsqueeze(-1)
        scaled = [_widened(scaling.actions(raw[name]), self.size) for name, scaling in self.scalings.items()]
        return _joined(scaled, self.order) * alive.unsqueeze(-1)

    def legal(self, mask: ByKind | None) -> Tensor | None:
        """Which actions may be chosen: [*B, N, size], [N, size] where that never changes, None where all may."""
        if mask is None:
            return self.slots
        return _joined([_widened(mask[name], self.size) for name in self.scalings], self.order)

    def trimmed(self, vectors: Tensor) -> Tensor:
        """Zeros beyond each agent's own actions. [*B, N, size]"""
        return vectors if self.slots is None else vectors * self.slots

    def greedy(self, outputs: Tensor, legal: Tensor | None = None) -> Tensor:
        """What an actor prefers, as `vectors` gives it: the largest legal output, or the tanh of all. [*B, N, size]"""
        if self.discrete:
            return self.one_hot(only_legal(outputs, legal).argmax(-1))
        return self.trimmed(outputs.tanh())

    def raw(self, actions: Tensor) -> ByKind:
        """Indices [*B, N], or vectors [*B, N, size] of Box actions, to raw actions by kind."""
        vectors = actions.unsqueeze(-1) if self.discrete else actions
        parts = {name: _of(vectors, numbers) for name, numbers in self.members.items()}
        if self.discrete:
            return {name: self.scalings[name].raw_actions(part.squeeze(-1)) for name, part in parts.items()}
        return {
            name: scaling.raw_actions(parts[name][..., : scaling.action_size])
            for name, scaling in self.scalings.items()
        }


def only_legal(values: Tensor, legal: Tensor | None) -> Tensor:
    """−∞ for what is illegal. values: [*B, N, size]."""
    return values if legal is None else values.masked_fill(~legal, -torch.inf)


def _widened(x: Tensor, size: int) -> Tensor:
    """Zeros behind the last axis up to `size`."""
    return x if x.shape[-1] == size else F.pad(x, (0, size - x.shape[-1]))


def _order(spec: JointSpec) -> list[int] | None:
    """What moves agents from kind after kind to their own order; None where that is the same."""
    order = list(spec.agent_order)
    return None if order == sorted(order) else order


def _joined(parts: Sequence[Tensor], order: list[int] | None) -> Tensor:
    """The kinds' [*B, N_kind, F] one after the other, or several in one part, → [*B, N, F] in agent order."""
    joined = parts[0] if len(parts) == 1 else torch.cat(list(parts), -2)
    return joined if order is None else joined[..., order, :]


def _numbers(spec: JointSpec, agents: Sequence[str]) -> list[int] | None:
    """Where some agents are among all; None for all of them in order."""
    return None if tuple(agents) == spec.agents else [spec.index[agent] for agent in agents]


def _of(x: Tensor, numbers: list[int] | None) -> Tensor:
    """Some agents of [*B, N, F]."""
    return x if numbers is None else x[..., numbers, :]


def _groups(spec: JointSpec, sharing: Sharing) -> list[tuple[Kind, ...]]:
    """Kinds that are computed together."""
    return [spec.kinds] if sharing == "all" else [(kind,) for kind in spec.kinds]


class _Body(nn.Module):
    """The network of some agents: [*B, n, in] → [*B, n, outputs]; ReLU between linear layers.

    They share it, and a one-hot number may tell them apart; where `separate`, each has a copy. Where `recurrent`, the
    last hidden layer is a GRU over the rows of [B, T, n, in].
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
        """Of a GRU: state [B, n, H] before the first row, held [B, T, n, 1]; the second output is that after all."""
        if self.agent_id:
            numbers = torch.eye(self.agents, device=x.device).expand(*x.shape[:-1], self.agents)
            x = torch.cat([x, numbers], -1)
        if self.memory is not None:
            x = x.transpose(0, 1)  # each row that the memory takes is then one block
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
        """[*L, n, F] → [L · n, F], or to the copies' [n, L, F]."""
        return x.movedim(-2, 0).flatten(1, -2) if self.separate else x.flatten(0, -2)

    def _unfold(self, x: Tensor, lead: Sequence[int]) -> Tensor:
        """The inverse."""
        if self.separate:
            return x.reshape(self.agents, *lead, -1).movedim(0, -2)
        return x.reshape(*lead, self.agents, -1)


class AgentNetworks(nn.Module):
    """Networks of all agents on what each of them sees: observations by kind [*B, N_kind, …] → [*B, N, outputs].

    Args:
        outputs: numbers for each agent.
        hidden_sizes: widths of the layers between; where `recurrent` the last is a GRU.
        sharing: across kinds, narrower observations are filled up with zeros.
        agent_id: a one-hot number tells agents that share parameters apart.
        extra: width of a second input of each agent, [*B, N, extra].

    Raises:
        ValueError: observations of different shapes cannot be filled up, or agents with parameters of their own see
            images.
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
        self.order = _order(spec)
        self.groups: list[tuple[list[str], list[int] | None]] = []  # kinds, and where their agents are
        self.encoders = nn.ModuleList()
        self.bodies = nn.ModuleList()
        self.widths: list[int] = []
        for kinds in _groups(spec, sharing):
            agents = [agent for kind in kinds for agent in kind.agents]
            self.groups.append(([kind.name for kind in kinds], _numbers(spec, agents)))
            seen = [kind.observation_space for kind in kinds]
            distinct = [space for number, space in enumerate(seen) if space not in seen[:number]]
            encoders = nn.ModuleList(map(Encoder, distinct))
            learned = any(True for _ in encoders.parameters())
            if learned and len(distinct) > 1:
                named = ", ".join(f"{kind.observation_space} of {kind.name}" for kind in kinds)
                raise ValueError(f"expected vectors to fill up to one width, got {named}; set sharing='kind'")
            if learned and sharing == "none":
                raise ValueError(
                    f"expected vectors for agents that share nothing, got {distinct[0]} of {kinds[0].name}; set "
                    "sharing='kind'"
                )
            self.encoders.append(nn.ModuleList(encoders[distinct.index(space)] for space in seen))
            self.widths.append(max(cast(Encoder, encoder).size for encoder in encoders))
            self.bodies.append(
                _Body(
                    len(agents),
                    self.widths[-1] + extra,
                    outputs,
                    hidden_sizes,
                    separate=sharing == "none",
                    agent_id=agent_id,
                    recurrent=recurrent,
                )
            )

    def forward(
        self,
        observations: ByKind,
        extra: Tensor | None = None,
        state: Tensor | None = None,
        held: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Recurrent ones take [B, T, …], their state [B, N, H] and `held` [B, T, N] bool, and return the last state."""
        outputs, states = [], []
        for (kinds, numbers), encoders, width, body in zip(
            self.groups, self.encoders, self.widths, self.bodies, strict=True
        ):
            seen = [
                _widened(encoder(observations[name]), width)
                for name, encoder in zip(kinds, cast(nn.ModuleList, encoders), strict=True)
            ]
            x = seen[0] if len(seen) == 1 else torch.cat(seen, -2)  # [*B, n, width]
            if extra is not None:
                x = torch.cat([x, _of(extra, numbers)], -1)
            if state is None or held is None:
                output, _ = body(x)
            else:
                output, last = body(x, _of(state, numbers), _of(held.unsqueeze(-1), numbers))
                states.append(last)
            outputs.append(output)
        return _joined(outputs, self.order), _joined(states, self.order) if states else None


class StateEncoder(nn.Module):
    """The state of the task as a vector [*B, size]: the global state, or where there is none what all agents see.

    Observations are joined in agent order, and those of agents that are absent are zeros. Where it is `timed` the share
    of time that has passed is the last number.
    """

    def __init__(self, spec: JointSpec, *, timed: bool = False) -> None:
        super().__init__()
        self.timed = timed
        self.kinds: list[tuple[str, list[int] | None]] | None = None  # whose observations are joined
        self.order = list(spec.agent_order)
        if spec.state_space is not None:
            encoders = [Encoder(spec.state_space)]
            self.size = encoders[0].size
        else:
            encoders = [Encoder(kind.observation_space) for kind in spec.kinds]
            self.kinds = [(kind.name, _numbers(spec, kind.agents)) for kind in spec.kinds]
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
            there = _of(present.unsqueeze(-1), numbers)
            parts += (encoder(observations[name]) * there).unbind(-2)  # N_kind of [*B, F]
        return torch.cat([parts[number] for number in self.order], -1)


def joint_view(
    spec: JointSpec, state: Tree | None, observations: ByKind, present: Tensor, time: Tensor | None = None
) -> Tree:
    """What a `StateEncoder` reads: the state where the task has one, else observations and who is there [*B, N].

    A timed one reads a pair of that and `time` [*B].
    """
    view = (observations, present) if spec.state_space is None else state
    return view if time is None else (view, time)


def transition_views(spec: JointSpec, batch: JointTransitions, horizon: int | None) -> tuple[Tree, Tree]:
    """`joint_view` before and after each step, timed where there is a `horizon`."""
    now, later = (None, None) if horizon is None else (batch.timesteps / horizon, (batch.timesteps + 1) / horizon)
    return (
        joint_view(spec, batch.state, batch.observations, batch.alive, now),
        joint_view(spec, batch.next_state, batch.next_observations, batch.next_alive, later),
    )


class JointCritic(nn.Module):
    """Centralised critics Q_i(x, a_1, …, a_N): state and all actions, a row of them for each agent → [*B, N]."""

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
        self.order, self.agents = _order(spec), len(spec.agents)
        groups = [[agent for kind in kinds for agent in kind.agents] for kinds in _groups(spec, sharing)]
        self.groups = [_numbers(spec, agents) for agents in groups]
        inputs = self.encoder.size + self.agents * action_size
        self.bodies = nn.ModuleList(
            _Body(len(agents), inputs, 1, hidden_sizes, separate=sharing == "none", agent_id=agent_id)
            for agents in groups
        )

    def forward(self, view: Tree, actions: Tensor) -> Tensor:
        """view: `joint_view`; actions: [*B, N, N, A], or [*B, 1, N, A] where they are the same for every critic."""
        state = self.encoder(view).unsqueeze(-2)  # [*B, 1, S]
        actions = actions.flatten(-2)
        lead = (*state.shape[:-2], self.agents)
        x = torch.cat([state.expand(*lead, -1), actions.expand(*lead, -1)], -1)  # [*B, N, S + N · A]
        values = [body(_of(x, numbers))[0] for numbers, body in zip(self.groups, self.bodies, strict=True)]
        return _joined(values, self.order).squeeze(-1)


@dataclass(frozen=True, slots=True)
class JointDistribution:
    """A distribution over the actions of every agent as one over raw actions by kind."""

    base: Any
    actions: JointActions

    def sample(self, generator: torch.Generator | None = None) -> ByKind:
        return self.actions.raw(self.base.sample(generator))

    def mode(self) -> ByKind:
        return self.actions.raw(self.base.mode())

    def log_prob(self, actions: ByKind) -> Tensor:
        """Of each agent's own discrete action: [E, N]."""
        if not self.actions.discrete:
            raise TypeError("a joint policy over Box actions has no density: its noise is clipped")
        log_prob: Tensor = self.base.log_prob(self.actions.indices(actions))
        return log_prob


class JointPolicy:
    """A policy of all agents from a function that maps step and carry to a distribution, and the carry."""

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


def epsilon_greedy(values: Tensor, legal: Tensor | None, epsilon: float) -> Categorical:
    """ε shared by all legal actions, and the rest for the best of them. values: [*B, n]; legal: None for all."""
    legal = torch.ones_like(values, dtype=torch.bool) if legal is None else legal
    best = only_legal(values, legal).argmax(-1, keepdim=True)
    uniform = legal.float() / legal.sum(-1, keepdim=True)
    probs = (epsilon * uniform).expand_as(values)
    return Categorical((probs + torch.zeros_like(values).scatter_(-1, best, 1 - epsilon)).log())


def linear_schedule(start: float, end: float, steps: int, step: int | None) -> float:
    """From `start` to `end` over so many steps, and `end` ever after, or where no step is given."""
    return end if step is None else start + (end - start) * min(step / steps, 1.0)


def row_times(batch: JointSegments, horizon: int) -> Tensor:
    """How much of `horizon` steps has passed at each row of segments that begin an episode: [*B, T + 1]."""
    rows = batch.mask.shape[-1] + 1
    return (torch.arange(rows, device=batch.mask.device) / horizon).expand(*batch.mask.shape[:-1], rows)


def beside(*parts: Tensor | None) -> Tensor | None:
    """One after the other in the last axis; None where there is none."""
    there = [part for part in parts if part is not None]
    return None if not there else there[0] if len(there) == 1 else torch.cat(there, -1)


def rows_present(batch: JointSegments) -> Tensor:
    """[*B, T + 1, N] bool: the agent acts at this row, or it was cut off and sees here what its last step led to."""
    return torch.cat([batch.alive[..., :1, :], batch.next_alive], -2)


class ActorSettings(Protocol):
    """What `Actors` reads of an algorithm's config."""

    @property
    def hidden_sizes(self) -> tuple[int, ...]: ...
    @property
    def sharing(self) -> Sharing: ...
    @property
    def agent_id(self) -> bool: ...
    @property
    def horizon(self) -> int | None: ...


class Actors:
    """The network of each agent's own action: how it is made, over transitions, and step by step in play.

    Its outputs [*B, N, A] are logits of discrete actions, or Box actions before tanh. Where there is a horizon it sees
    the share of it that has passed, in play as over transitions.
    """

    network: Network
    """The learner's, made by `make`; the algorithm sets it."""

    def __init__(self, spec: JointSpec, settings: ActorSettings, setup: Setup) -> None:
        self.spec, self.settings, self.horizon = spec, settings, settings.horizon
        self.actions, self.agents = JointActions(spec, setup.get("device", "cpu")), len(spec.agents)

    def make(self) -> AgentNetworks:
        """A new module."""
        c, extra = self.settings, int(self.horizon is not None)
        return AgentNetworks(
            self.spec, self.actions.size, c.hidden_sizes, extra=extra, sharing=c.sharing, agent_id=c.agent_id
        )

    def time(self, timesteps: Tensor) -> Tensor | None:
        """What each agent sees of the time, None without a horizon: [*B] → [*B, N, 1]."""
        if self.horizon is None:
            return None
        return (timesteps / self.horizon)[..., None, None].expand(*timesteps.shape, self.agents, 1)

    def before(self, parameters: Parameters, batch: JointTransitions) -> Tensor:
        """What they would do where the batch's actions were taken."""
        return self.outputs(parameters, batch.observations, batch.timesteps)

    def after(self, parameters: Parameters, batch: JointTransitions) -> Tensor:
        """What they would do next."""
        return self.outputs(parameters, batch.next_observations, batch.timesteps + 1)

    def outputs(self, parameters: Parameters, observations: ByKind, timesteps: Tensor) -> Tensor:
        time = self.time(timesteps)
        outputs: Tensor = self.network(parameters, observations, *([] if time is None else [time]))[0]
        return outputs

    def policy(self, parameters: Parameters, noise: float, *, deterministic: bool) -> JointPolicy:
        """Discrete actions are sampled, Box ones get Gaussian noise of this σ; neither where `deterministic`."""
        log_std = torch.tensor(noise, device=self.actions.choices.device).log()

        def initial(num_envs: int) -> Carry:
            """The steps of the episode so far."""
            return torch.zeros(num_envs, dtype=torch.int64, device=self.actions.choices.device)

        def act(step: Step, carry: Carry) -> tuple[Categorical | Normal, Carry]:
            steps = carry * ~step.reset  # [E]
            outputs = self.outputs(parameters, step.observations, steps)
            if self.actions.discrete:
                return Categorical(only_legal(outputs, self.actions.legal(step.action_mask))), steps + 1
            return Normal(self.actions.greedy(outputs), log_std, clip=True), steps + 1

        return JointPolicy(self.actions, act, initial, deterministic=deterministic)


class AgentSettings(Protocol):
    """What `AgentValues` reads of an algorithm's config."""

    algorithm: ClassVar[str]

    @property
    def hidden_sizes(self) -> tuple[int, ...]: ...
    @property
    def recurrent(self) -> bool: ...
    @property
    def sharing(self) -> Sharing: ...
    @property
    def agent_id(self) -> bool: ...
    @property
    def last_action(self) -> bool: ...
    @property
    def horizon(self) -> int | None: ...


class AgentValues:
    """The network of each agent's values of its actions: how it is made, over segments, and step by step in play.

    The latter two go through here, so that what is fed to the network cannot differ: the last action is zeros before an
    agent's first, the time is the row of the episode (in a game of turns an agent's own turn), and a memory takes no
    step where its agent is absent, or it is another's turn. Segments begin where their episodes do.

    Raises ValueError for recurrent agents of several seeds.
    """

    network: Network
    """The learner's, made by `make`; the algorithm sets it."""

    def __init__(self, spec: JointSpec, settings: AgentSettings, setup: Setup) -> None:
        self.spec, self.settings, self.actions = spec, settings, JointActions(spec, setup.get("device", "cpu"))
        self.last_action, self.horizon, self.agents = settings.last_action, settings.horizon, len(spec.agents)
        self.memory = settings.hidden_sizes[-1] if settings.recurrent else None
        if settings.recurrent:
            check_recurrent_seeds(settings.algorithm, setup.get("seeds", (0,)))

    def make(self) -> AgentNetworks:
        """A new module."""
        c, size = self.settings, self.actions.size
        extra = size * c.last_action + (c.horizon is not None)
        shared: dict[str, Any] = {"sharing": c.sharing, "agent_id": c.agent_id, "recurrent": c.recurrent}
        return AgentNetworks(self.spec, size, c.hidden_sizes, extra=extra, **shared)

    def over(self, parameters: Parameters, batch: JointSegments) -> Tensor:
        """[*B, T + 1, N, outputs]."""
        extra, state, held = [], None, None
        if self.last_action:
            extra.append(F.pad(self.actions.vectors(batch.actions, batch.alive), (0, 0, 0, 0, 1, 0)))  # none at row 0
        if self.horizon is not None:
            time = row_times(batch, self.horizon)  # [*B, T + 1]
            extra.append(time[..., None, None].expand(*time.shape, self.agents, 1))
        if self.memory is not None:
            held = ~rows_present(batch)
            state = torch.zeros(len(held), self.agents, self.memory, device=held.device)
        outputs: Tensor = self.network(parameters, batch.observations, beside(*extra), state, held)[0]
        return outputs

    def initial(self, num_envs: int) -> Carry:
        """No action yet, nothing is remembered."""
        device, carry = self.actions.choices.device, {}
        if self.last_action:
            carry["acted"] = torch.zeros(num_envs, self.agents, dtype=torch.bool, device=device)
        if self.horizon is not None:
            carry["steps"] = torch.zeros(num_envs, self.agents, device=device)
        if self.memory is not None:
            carry["state"] = torch.zeros(num_envs, self.agents, self.memory, device=device)
        return carry

    def at(self, parameters: Parameters, step: Step, carry: Carry) -> tuple[Tensor, Carry]:
        """[E, N, outputs]."""
        assert step.alive is not None
        reset, extra, state, held, carry = step.reset.unsqueeze(-1), list[Tensor](), None, None, dict(carry)
        if self.last_action:
            acted = carry["acted"] & ~reset  # [E, N]
            extra.append(self.actions.vectors(step.previous_actions, acted).unsqueeze(1))
            carry["acted"] = acted | step.alive
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
        """ε-greedy in the outputs, which are values of actions; greedy where `deterministic`."""
        epsilon = 0.0 if deterministic else epsilon

        def act(step: Step, carry: Carry) -> tuple[Categorical, Carry]:
            values, carry = self.at(parameters, step, carry)
            return epsilon_greedy(values, self.actions.legal(step.action_mask), epsilon), carry

        return JointPolicy(self.actions, act, self.initial, deterministic=deterministic)
