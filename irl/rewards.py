"""Learned reward functions: their networks, and `LearnedReward`, which is saved and loaded by itself.

    f(s, a, s′) = g(s, a) + γ (1 − terminated) h(s′) − h(s)        (1)  shaped: Fu et al. 2018, arXiv:1710.11248, eq. 4
    r(s, a, s′) = mean_k (r_k(s, a, s′) − μ_k) / σ_k               (2)  ensembles: Christiano et al. 2017, section 2.2.3
    r(s, a, s′) = Q(s, a) − γ (1 − terminated) V(s′)               (3)  of a soft Q-function: Garg et al. 2021
    r(s, a, s_abs) = r(s, a) + γ r(s_abs) / (1 − γ)                (4)  with a learned reward of the absorbing state

g is linear (no hidden layers) or a perceptron, of the state, the next state, state and action, or the whole transition.
γ (1 − terminated) are the `discounts` of the transitions, so that shaping and the policy have the same γ. μ_k and σ_k
are the moments of member k over the transitions that it was learned from. V of (3) is exact for discrete actions,
α log Σ_a exp(Q(s′, a) / α), and an estimate for continuous ones, see `SoftQReward`. (4) is the whole value of a
terminated step, which a learner without absorbing states needs (Kostrikov et al. 2019, section 4.2).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from gymnasium import Space, spaces
from torch import Tensor, nn

from herdbook.core.checkpoint import decode, digest, encode
from herdbook.core.learner import Learner, Parameters
from herdbook.core.networks import MLP, Activation, Critic, Encoder, Head, SquashedGaussianActor
from herdbook.core.policy import Scaling
from herdbook.core.spaces import alike
from herdbook.core.specs import spec_from_state, spec_state
from herdbook.core.types import Array, Spec, Transitions, Tree, tree_leaves, tree_map
from herdbook.irl.discriminator import RewardConvention, check_convention, imitation_reward

RewardInputs = Literal["state", "next_state", "state_action", "transition"]
"""What a reward depends on: s; s′; s and a; s, a and s′."""
TENSORS, HEADER, FORMAT = "reward.safetensors", "reward.json", 1
_ACTIVATIONS: dict[str, Activation] = {"relu": torch.relu, "tanh": torch.tanh, "elu": F.elu}


class RewardError(ValueError):
    """A reward file that cannot be read, or a reward function asked for what it is not; the message says which."""


@dataclass(frozen=True, kw_only=True)
class RewardDesign:
    """The form of a reward function. Raises ValueError for unknown inputs or activations.

    The implicit reward of a soft Q-function, eq. 3, depends on the whole transition: `RewardDesign.soft_q`.
    """

    inputs: RewardInputs = "state_action"
    hidden_sizes: tuple[int, ...] = (64, 64)  # of g; none: g is linear in the encoded inputs
    shaped: bool = False  # add γ h(s′) − h(s), eq. 1
    shaping_sizes: tuple[int, ...] = (64, 64)  # hidden layers of h
    activation: Literal["relu", "tanh", "elu"] = "relu"
    form: Literal["network", "soft_q"] = "network"  # g, or the implicit reward of a soft Q-function
    temperature: float = 1.0  # α of a soft Q-function; no effect on continuous actions
    critics: int = 1  # Q-functions of a soft Q-function, of which the smallest counts
    convention: RewardConvention = "logit"  # reward of a discriminator, whose logit the module gives

    def __post_init__(self) -> None:
        if self.inputs not in get_args(RewardInputs):
            raise ValueError(f"inputs: expected state, next_state, state_action or transition, got {self.inputs!r}")
        if self.activation not in _ACTIVATIONS:
            raise ValueError(f"activation: expected {' or '.join(_ACTIVATIONS)}, got {self.activation!r}")
        if self.form == "soft_q" and (self.inputs != "transition" or self.shaped):
            raise ValueError(
                f"soft_q: expected the inputs transition and no shaping, got {self.inputs!r}, {self.shaped}"
            )
        check_convention(self.convention)

    @classmethod
    def soft_q(cls, **fields: Any) -> Self:
        """The implicit reward of a soft Q-function, eq. 3; `fields` are those of its networks, and α."""
        return cls(form="soft_q", inputs="transition", **fields)

    def build(self, scaling: Scaling) -> RewardNetwork | ShapedReward | SoftQReward:
        """The module, with torch's default initialisation, for transitions in the units of `scaling`."""
        if self.form == "soft_q":
            return SoftQReward(self, scaling)
        base = RewardNetwork(self, scaling)
        if not self.shaped:
            return base
        return ShapedReward(base, Potential(self, scaling.observation_space))


class RewardNetwork(nn.Module):
    """g: transitions in the networks' units, `[B, …]` → rewards [B], or logits of a discriminator."""

    def __init__(self, design: RewardDesign, scaling: Scaling) -> None:
        super().__init__()
        self.inputs, self.discrete, self.actions = design.inputs, scaling.discrete, scaling.action_size
        self.encoder = Encoder(scaling.observation_space)
        parts = {"state": 1, "next_state": 1, "state_action": 1, "transition": 2}[design.inputs]
        acting = self.actions if design.inputs in ("state_action", "transition") else 0
        activation = _ACTIVATIONS[design.activation]
        self.head = MLP(parts * self.encoder.size + acting, 1, design.hidden_sizes, activation=activation)

    def forward(self, inputs: Transitions | Tensor) -> Tensor:
        """`inputs` may also be the `features` of transitions, by which a gradient penalty differentiates."""
        features = inputs if isinstance(inputs, Tensor) else self.features(inputs)
        return self.head(features).squeeze(-1)  # type: ignore[no-any-return]

    def features(self, transitions: Transitions) -> Tensor:
        """The encoded inputs of g, [B, K]; discrete states and actions are one-hot."""
        if self.inputs == "next_state":
            return self.encoder(transitions.next_observations)  # type: ignore[no-any-return]
        parts = [self.encoder(transitions.observations)]
        if self.inputs in ("state_action", "transition"):
            actions = transitions.actions
            parts.append(F.one_hot(actions, self.actions).float() if self.discrete else actions)
        if self.inputs == "transition":
            parts.append(self.encoder(transitions.next_observations))
        return torch.cat(parts, -1)


class Potential(nn.Module):
    """h: observations in the networks' units, `[B, …]` → [B]."""

    def __init__(self, design: RewardDesign, space: Space[Any]) -> None:
        super().__init__()
        self.encoder = Encoder(space)
        self.head = MLP(self.encoder.size, 1, design.shaping_sizes, activation=_ACTIVATIONS[design.activation])

    def forward(self, observations: Tree) -> Tensor:
        return self.head(self.encoder(observations)).squeeze(-1)  # type: ignore[no-any-return]


class ShapedReward(nn.Module):
    """f of eq. 1: transitions in the networks' units, `[B, …]` → rewards [B]."""

    def __init__(self, base: RewardNetwork, potential: Potential) -> None:
        super().__init__()
        self.base, self.potential = base, potential

    def forward(self, transitions: Transitions) -> Tensor:
        shaping = shaping_term(
            self.potential(transitions.observations),
            self.potential(transitions.next_observations),
            transitions.discounts,
        )
        return self.base(transitions) + shaping  # type: ignore[no-any-return]  # eq. 1


class SoftQReward(nn.Module):
    """The implicit reward of eq. 3: transitions in the networks' units, `[B, …]` → rewards [B].

    A reward must be a function of the transition, so with continuous actions V(s′) is not sampled. It is estimated as
    Q(s′, μ(s′)) at the mode μ of the policy, without the entropy α H(π(·|s′)), which is small at a small α.
    """

    def __init__(self, design: RewardDesign, scaling: Scaling) -> None:
        super().__init__()
        space, size, hidden = scaling.observation_space, scaling.action_size, design.hidden_sizes
        self.temperature = design.temperature
        self.critic: Head | Critic
        self.actor: SquashedGaussianActor | None = None
        if scaling.discrete:
            activation = _ACTIVATIONS[design.activation]
            self.critic = Head(space, size, hidden, copies=design.critics, activation=activation)
        else:
            self.critic = Critic(space, size, hidden, copies=design.critics)
            self.actor = SquashedGaussianActor(space, size, hidden)

    def forward(self, transitions: Transitions) -> Tensor:
        observations, following = transitions.observations, transitions.next_observations
        if self.actor is None:
            q = self.critic(observations).amin(0).gather(-1, transitions.actions.unsqueeze(-1)).squeeze(-1)  # [B]
            value = soft_value(self.critic(following).amin(0), self.temperature)  # [B]
        else:
            q = self.critic(observations, transitions.actions).amin(0)  # [B]
            value = self.critic(following, self.actor(following).mode()).amin(0)  # [B]
        return implicit_reward(q, value, transitions.discounts)


def soft_value(q: Tensor, temperature: float) -> Tensor:
    """V(s) = α log Σ_a exp(Q(s, a) / α). q: [*B, n] → [*B]."""
    value: Tensor = temperature * (q / temperature).logsumexp(-1)
    return value


def implicit_reward(q: Tensor, next_value: Tensor, discounts: Tensor) -> Tensor:
    """Eq. 3. q: Q(s, a) [*C, B]; next_value: V(s′) [B]; discounts: γ (1 − terminated) [B] → [*C, B]."""
    return q - discounts * next_value


def shaping_term(potential: Tensor, next_potential: Tensor, discounts: Tensor) -> Tensor:
    """The shaping of eq. 1. potential: h(s); next_potential: h(s′); discounts: γ (1 − terminated); all [B] → [B]."""
    return discounts * next_potential - potential


@dataclass(frozen=True, kw_only=True)
class LearnedReward:
    """A learned reward function: raw transitions `[*B, …]` → rewards [*B], without gradients.

    Implements `core.types.RewardFunction`. Several members are an ensemble, eq. 2. `spec` has the spaces and, if
    `standardise`, the statistics by which observations are standardised. Eq. 4 takes a step with a discount of 0 for a
    terminated one, so it expects transitions of γ > 0.
    """

    design: RewardDesign
    spec: Spec
    discount: float  # γ of the algorithm that learned it
    members: tuple[Parameters, ...]
    standardise: bool = False
    moments: tuple[tuple[float, float], ...] = ()  # μ_k and σ_k of eq. 2, one pair for each member; none: 0 and 1
    absorbing_reward: float | None = None  # of an absorbing state after termination, eq. 4; None: there is none
    about: Mapping[str, Any] = field(default_factory=dict)  # how it was learned: JSON values
    _scaling: Scaling = field(init=False, repr=False, compare=False)
    _module: nn.Module = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError("expected a reward function with at least one member, got none")
        if self.moments and len(self.moments) != len(self.members):
            raise ValueError(f"expected moments for {len(self.members)} members, got {len(self.moments)}")
        if any(not std > 0 for _, std in self.moments):
            raise ValueError(f"expected standard deviations above 0, got {[std for _, std in self.moments]}")
        device = next(iter(self.members[0].values())).device
        scaling = Scaling(self.spec, standardise=self.standardise, device=device)
        module = self.design.build(scaling).to(device)
        expected = {name: tuple(value.shape) for name, value in module.named_parameters()}
        for member in self.members:
            if (found := {name: tuple(value.shape) for name, value in member.items()}) != expected:
                raise ValueError(f"expected members with the parameters {expected} of the design, got {found}")
        object.__setattr__(self, "_scaling", scaling)
        object.__setattr__(self, "_module", module)

    @torch.no_grad()
    def __call__(self, transitions: Transitions) -> Tensor:
        rewards: Tensor = self.each(transitions).mean(0)  # eq. 2
        if self.absorbing_reward is not None:
            rest = self.discount * self.absorbing_reward / (1 - self.discount)
            rewards = rewards + rest * (transitions.discounts == 0)  # eq. 4
        return rewards

    @torch.no_grad()
    def each(self, transitions: Transitions) -> Tensor:
        """The normalised rewards of all members, [members, *B]."""
        scaled, call = self._scaling(transitions), cast(Any, torch.func.functional_call)
        outputs = torch.stack([call(self._module, parameters, (scaled,)) for parameters in self.members])
        values = imitation_reward(outputs, self.design.convention)
        if not self.moments:
            return values
        lead = (-1, *[1] * (values.dim() - 1))
        mean, std = (part.view(lead) for part in torch.tensor(self.moments, device=values.device).unbind(1))
        normalised: Tensor = (values - mean) / std
        return normalised

    def at(
        self,
        observations: Tree,
        actions: Any | None = None,
        next_observations: Tree | None = None,
        terminated: Any | None = None,
    ) -> Array:
        """Rewards `[B]` of arrays of raw states, actions and next states, `[B, …]`; `terminated` is False by default.

        Raises RewardError unless exactly what the reward depends on is given; a shaped reward needs the next states.
        """
        wanted = {
            "actions": self.design.inputs in ("state_action", "transition"),
            "next_observations": self.design.inputs in ("next_state", "transition") or self.design.shaped,
        }
        given = {"actions": actions is not None, "next_observations": next_observations is not None}
        for name, needed in wanted.items():
            if needed != given[name]:
                raise RewardError(
                    f"{name}: expected {'them' if needed else 'none'}, the reward depends on "
                    f"{self.design.inputs.replace('_', ' ')}{' with shaping' if self.design.shaped else ''}"
                )
        device = next(iter(self.members[0].values())).device
        put = partial(torch.as_tensor, device=device)
        seen = tree_map(put, observations)
        following = seen if next_observations is None else tree_map(put, next_observations)
        count = len(tree_leaves(seen)[0])
        if actions is None:
            space = self.spec.action_space
            rest = (
                space.start if isinstance(space, spaces.Discrete) else np.zeros(self._scaling.action_size, np.float32)
            )
            actions = np.repeat(np.asarray(rest)[None], count, 0)
        over = torch.zeros(count, dtype=torch.bool, device=device) if terminated is None else put(terminated).bool()
        zeros = torch.zeros(count, device=device)
        return self(Transitions(seen, put(actions), zeros, self.discount * (~over).float(), following)).cpu().numpy()

    def check_spaces(self, spec: Spec, where: str) -> None:
        """Raise RewardError unless the spaces of a task or dataset are those that the reward was learned in."""
        for name in ("observation_space", "action_space"):
            own, theirs = getattr(self.spec, name), getattr(spec, name)
            if not alike(own, theirs):
                raise RewardError(f"{where}: expected the {name} {own} of the reward function, got {theirs}")

    def to(self, device: str | torch.device) -> Self:
        """The same reward function on a device."""
        return replace(self, members=tuple(tree_map(lambda value: value.to(device), one) for one in self.members))

    def digest(self) -> str:
        """A hash of all parameters, spaces and settings, hexadecimal; `about` does not count."""
        tree, tensors = encode(self._state())
        text = json.dumps(tree, sort_keys=True).encode()
        return hashlib.sha256(text + safetensors.torch.save(tensors)).hexdigest()

    def unshaped(self) -> Self:
        """g of eq. 1, without the shaping h."""
        if not self.design.shaped:
            return self
        members = tuple(
            {key.removeprefix("base."): value for key, value in parameters.items() if key.startswith("base.")}
            for parameters in self.members
        )
        return replace(self, design=replace(self.design, shaped=False), members=members)

    def save(self, directory: str | Path) -> Path:
        """Write `reward.safetensors` and `reward.json` to a directory, which is created; returns it."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        tree, tensors = encode({**self._state(), "about": dict(self.about)})
        safetensors.torch.save_file(tensors, directory / TENSORS)
        header = {"format": FORMAT, "sha256": digest(directory / TENSORS), **tree}
        (directory / HEADER).write_text(json.dumps(header, indent=1, allow_nan=False) + "\n")
        return directory

    def _state(self) -> dict[str, Any]:
        return {
            "design": {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self.design).items()},
            "spec": spec_state(self.spec),
            "discount": self.discount,
            "standardise": self.standardise,
            "members": [dict(parameters) for parameters in self.members],
            "moments": [list(pair) for pair in self.moments],
            "absorbing_reward": self.absorbing_reward,
        }


def joined_parameters(learner: Learner, names: Iterable[str], seed_index: int) -> Parameters:
    """Copies of one seed's parameters of several networks, `critic.…`, as those of one module that holds them all."""
    return {
        f"{name}.{key}": value.clone()
        for name in names
        for key, value in learner.parameters_of(name, seed_index).items()
    }


def load_reward(directory: str | Path, *, device: str | torch.device = "cpu") -> LearnedReward:
    """A reward function that `LearnedReward.save` wrote. Raises RewardError if the files are missing or damaged."""
    directory = Path(directory)
    try:
        header = json.loads((directory / HEADER).read_text())
        if header["format"] != FORMAT:
            raise ValueError(f"expected format {FORMAT}, got {header['format']!r}")
        if digest(directory / TENSORS) != header["sha256"]:
            raise ValueError(
                f"{TENSORS} is damaged, or of another reward function (its SHA-256 is not the recorded one)"
            )
        state = decode(header, safetensors.torch.load_file(directory / TENSORS))
        design: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in state["design"].items()}
        return LearnedReward(
            design=RewardDesign(**design),
            spec=spec_from_state(state["spec"]),
            discount=float(state["discount"]),
            # Copied, because the rounding of a product can depend on how its factors are aligned in memory.
            members=tuple(tree_map(lambda value: value.to(device, copy=True), member) for member in state["members"]),
            standardise=bool(state["standardise"]),
            moments=tuple((mean, std) for mean, std in state["moments"]),
            absorbing_reward=state.get("absorbing_reward"),
            about=state["about"],
        )
    except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RewardError(f"{directory}: expected a saved reward function ({HEADER}, {TENSORS}): {error}") from error
