"""Named reward transforms, which datasets and runs record, and learned rewards of the steps that are played."""

from __future__ import annotations

import difflib
import logging
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from herdbook.core.trees import mapped
from herdbook.core.types import Array, RewardFunction, Steps, Transitions
from herdbook.datasets.episodes import DataError, Episodes

logger = logging.getLogger("herdbook")
REWARD_TRANSFORMS = ("none", "minus_one", "clip", "return_range", "scale:X", "shift:X", "standardise")
FROM_DATA = ("return_range", "standardise")
"""The transforms whose constants come from episodes."""


@dataclass(frozen=True, slots=True)
class RewardMap:
    """r · scale + shift, clipped to ± limit; `text` is the record in a dataset's `transforms`."""

    text: str = "none"
    scale: float = 1.0
    shift: float = 0.0
    limit: float | None = None

    def __call__(self, rewards: Any) -> Any:
        """The transformed rewards, an array or a tensor of any shape."""
        mapped = rewards * self.scale + self.shift
        return mapped if self.limit is None else mapped.clip(-self.limit, self.limit)

    def then(self, after: RewardMap) -> RewardMap:
        """This map followed by another one. Raises ValueError if this one clips."""
        if self.limit is not None:
            raise ValueError(
                f"expected {self.text} as the last of several reward transforms, got it before {after.text}"
            )
        shift = self.shift * after.scale + after.shift
        return RewardMap(f"{self.text}, {after.text}", self.scale * after.scale, shift, after.limit)


def reads_data(name: str) -> bool:
    """True if a transform, or one of several with commas between them, takes its constants from episodes."""
    return any(part in FROM_DATA for part in name.split(","))


def reward_map(name: str, episodes: Episodes | None = None) -> RewardMap:
    """The reward transform called `name`, for any rewards; several with commas between them are applied in turn.

    `return_range` and `standardise` take their constants from `episodes`, as the transforms before them leave these.

    - `none`: unchanged.
    - `minus_one`: r − 1, for antmaze (Kostrikov et al. 2021, arXiv:2110.06169, section 5).
    - `clip`: r clipped to [−1, 1], for Atari (Mnih et al. 2015).
    - `return_range`: r · 1000 / (max return − min return), for locomotion (Kostrikov et al. 2021).
    - `scale:X`, `shift:X`: r · X, r + X.
    - `standardise`: (r − mean) / standard deviation. Subtracting the mean can change the optimal policy where episodes
      can terminate.

    Raises ValueError for an unknown name, and for a transform that needs episodes without any; DataError if all returns
    or all rewards are equal.
    """
    first, *others = name.split(",")
    mapping = _single_map(first, episodes)
    for other in others:
        seen = None if episodes is None else episodes.with_rewards(mapping(episodes.rewards), mapping.text)
        mapping = mapping.then(_single_map(other, seen))
    return mapping


def _single_map(name: str, episodes: Episodes | None) -> RewardMap:
    kind, _, number = name.partition(":")
    if name == "none":
        return RewardMap()
    if name == "minus_one":
        return RewardMap(name, shift=-1.0)
    if name == "clip":
        return RewardMap(name, limit=1.0)
    if kind in ("scale", "shift"):
        value = _number(name, number)
        return RewardMap(name, scale=value) if kind == "scale" else RewardMap(name, shift=value)
    if name in FROM_DATA:
        if episodes is None:
            usable = "none, minus_one, clip, scale:X or shift:X"
            raise ValueError(f"expected {usable} where rewards are an environment's, got {name}")
        return _return_range(episodes) if name == "return_range" else _standardise(episodes)
    near = difflib.get_close_matches(kind, [n.split(":")[0] for n in REWARD_TRANSFORMS], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown reward transform {name!r}; expected one of {', '.join(REWARD_TRANSFORMS)}{hint}")


def transform_rewards(episodes: Episodes, name: str) -> Episodes:
    """The same steps with transformed rewards, recorded in `transforms`. Raises as `reward_map`."""
    mapping = reward_map(name, episodes)
    return episodes if name == "none" else episodes.with_rewards(mapping(episodes.rewards), mapping.text)


@runtime_checkable
class PaysAbsorbing(Protocol):
    """A reward function that may give a terminated step the value of the absorbing state after it."""

    @property
    def absorbing_reward(self) -> float | None:
        """The reward of an absorbing state; None: there is none."""
        ...


def check_reward_discount(reward: RewardFunction, discount: float) -> None:
    """Raise ValueError for γ outside [0, 1], and for γ = 0 with a reward of absorbing states.

    Such a reward recognises a termination by a discount γ (1 − terminated) of 0, which every step would have.
    """
    if not 0 <= discount <= 1:
        raise ValueError(f"discount: expected γ in [0, 1], got {discount}")
    if discount == 0 and isinstance(reward, PaysAbsorbing) and reward.absorbing_reward is not None:
        raise ValueError(
            "discount: expected γ > 0, since the reward of absorbing states would count every step as terminated; got 0"
        )


def rewards_from(reward: RewardFunction, transitions: Transitions) -> Tensor:
    """The rewards `[*B]` of a function for transitions `[*B, …]`. Raises ValueError for another shape."""
    found = reward(transitions)
    if found.shape != transitions.rewards.shape:
        expected, got = list(transitions.rewards.shape), list(found.shape)
        raise ValueError(f"expected the reward function to give {expected}, got {got}")
    return found


@dataclass(frozen=True, slots=True)
class PlayedRewards:
    """Replaces the rewards of environment steps by those of a reward function, as the steps are played.

    Raises ValueError as `check_reward_discount`.
    """

    reward: RewardFunction
    discount: float  # γ of a shaped reward
    device: str | torch.device = "cpu"

    def __post_init__(self) -> None:
        check_reward_discount(self.reward, self.discount)

    def __call__(self, steps: Steps) -> Steps:
        """Steps `[T, lanes, …]` with other rewards. Raises ValueError for rewards of another shape or not finite."""
        if not len(steps.rewards):
            return steps
        transitions = Transitions(
            observations=mapped(self._flat, steps.observations),
            actions=self._flat(steps.actions),
            rewards=self._flat(steps.rewards.astype(np.float32)),
            discounts=self._flat(self.discount * (~steps.terminated).astype(np.float32)),
            next_observations=mapped(self._flat, steps.next_observations),
        )
        rewards = rewards_from(self.reward, transitions)
        if not bool(rewards.isfinite().all()):
            raise ValueError("expected finite rewards of the reward function, got NaN or infinity")
        return replace(steps, rewards=rewards.cpu().numpy().astype(np.float64).reshape(steps.rewards.shape))

    def _flat(self, values: Array) -> Tensor:
        return torch.as_tensor(np.asarray(values), device=self.device).flatten(0, 1)


def _return_range(episodes: Episodes) -> RewardMap:
    low, high = float(episodes.returns().min()), float(episodes.returns().max())
    if high - low <= 1e-12 * max(abs(low), abs(high)):  # equal up to rounding: .1 + .1 + .1 is not .3
        raise DataError(f"{episodes.source}: return_range divides by the range of returns, but all are {low:g}")
    return RewardMap(f"return_range (returns {low!r} to {high!r})", scale=1000.0 / (high - low))


def _standardise(episodes: Episodes) -> RewardMap:
    rewards = episodes.rewards
    if rewards.min() == rewards.max():  # not std == 0: rounding gives equal rewards of 0.1 a deviation of 1e-17
        raise DataError(f"{episodes.source}: standardise divides by the standard deviation, but all are {rewards[0]:g}")
    mean, std = float(rewards.mean()), float(rewards.std())
    if ends := int(episodes.terminated.sum()):
        cause = f"{ends} of {len(episodes)} episodes terminate, so another policy may become the best"
        text = "%s: standardise subtracts the mean reward, but %s; scale:%g only divides"
        logger.warning(text, episodes.source, cause, 1 / std)
    return RewardMap(f"standardise (mean {mean!r}, deviation {std!r})", scale=1 / std, shift=-mean / std)


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise ValueError(f"expected a finite number after the colon, as in {name.partition(':')[0]}:0.1, got {name!r}")
    return value
