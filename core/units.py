"""Normalisation of observations and rewards by running statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from gymnasium import spaces

from herdbook.core.growing import Growing
from herdbook.core.moments import RewardScale, RunningMoments
from herdbook.core.policy import Scaling
from herdbook.core.types import Array, Segments, Spec, Steps, Transitions, Tree


class RunningSettings(Protocol):
    """Config fields that `RunningUnits` reads."""

    @property
    def discount(self) -> float: ...
    @property
    def normalise_observations(self) -> bool: ...
    @property
    def scale_rewards(self) -> bool: ...


class RunningUnits(Growing):
    """A `Scaling` by running moments of the observations, and a running scale of the rewards, each if requested.

    Off-policy algorithms pass every environment step once (`extend`, `cut`), as to the replay, and every batch when it
    is sampled. The replay stays raw, and old steps are converted to the newest units. Thus every step counts once in
    the moments, no matter how often it is sampled.

    Raises ValueError if observations shall be normalised and are not vectors.
    """

    def __init__(
        self, spec: Spec, settings: RunningSettings, device: str | torch.device, *, frame_stack: int = 1
    ) -> None:
        self.device, self.scaling = torch.device(device), Scaling(spec, frame_stack=frame_stack, device=device)
        self.moments: RunningMoments | None = None
        if settings.normalise_observations:
            space = spec.observation_space
            if not isinstance(space, spaces.Box) or len(space.shape) != 1:
                raise ValueError(f"normalise_observations: expected a vector, got observations in {space}")
            self.moments = RunningMoments(*space.shape)
        self.reward_scale = RewardScale(settings.discount) if settings.scale_rewards else None

    @property
    def follows(self) -> RunningUnits | None:
        """The receiver of every step (see `core.member.Member`): itself, or None if it keeps no statistics."""
        return None if self.moments is None and self.reward_scale is None else self

    def __call__(self, batch: Transitions) -> Transitions:
        """Convert a batch to the networks' units. The reward scale is linear, so it also fits n-step returns."""
        batch = self.scaling(batch)
        return batch if self.reward_scale is None else replace(batch, rewards=self.reward_scale.scaled(batch.rewards))

    def rollout(self, rollout: Segments) -> Segments:
        """Convert a rollout to the networks' units; its rewards update their scale first, its observations do not."""
        rewards = rollout.rewards
        if self.reward_scale is not None:
            assert rollout.timesteps is not None  # a rollout has them
            rewards = self.reward_scale(rewards, rollout.timesteps == 0)
        return replace(
            rollout,
            observations=self.scaling.observations(rollout.observations),
            actions=self.scaling.actions(rollout.actions),
            rewards=rewards,
            next_observations=self.scaling.observations(rollout.next_observations),
        )

    def see(self, observations: Tree) -> None:
        """Update the moments with raw observations [*B, D]."""
        if self.moments is not None:
            self.moments.update(observations)
            self._apply(self.moments)

    def extend(self, steps: Steps) -> None:
        """Update the statistics with T consecutive steps of every lane, leaves `[T, lanes, …]`."""
        if not len(steps.rewards):
            return
        if self.moments is not None:
            self.see(torch.as_tensor(steps.observations))
        if self.reward_scale is not None:
            earned = torch.as_tensor(steps.rewards, dtype=torch.float64).T  # [lanes, T]
            over = (torch.as_tensor(steps.terminated) | torch.as_tensor(steps.truncated)).T
            self.reward_scale.follow(earned, torch.nn.functional.pad(over[:, :-1], (1, 0)))
            self.reward_scale.end(over[:, -1])

    def cut(self, lanes: Array) -> None:
        """End the episodes of these lanes (a mask `[lanes]`) after the last step, because they were abandoned."""
        if self.reward_scale is not None:
            self.reward_scale.end(torch.as_tensor(lanes))

    def _apply(self, moments: RunningMoments) -> None:
        if moments.count:
            self.scaling.follow(moments.mean.to(self.device, torch.float32), moments.std.to(self.device, torch.float32))
        else:
            self.scaling.mean = None

    def state_dict(self) -> dict[str, Any]:
        """Moments and reward sums, also of unfinished episodes; None for those that are not kept."""
        return {
            "moments": None if self.moments is None else self.moments.state_dict(),
            "reward_scale": None if self.reward_scale is None else self.reward_scale.state_dict(),
        }

    def check(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError if the `units` in an algorithm's state keep other statistics."""
        for name, own in self.state_dict().items():
            saved = state.get("units", {}).get(name)
            if (saved is None) != (own is None):
                having = "without" if saved is None else "with"
                raise ValueError(f"the state does not fit: its units are {having} {name}")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.moments is not None:
            self.moments.load_state_dict(state["moments"])
            self._apply(self.moments)
        if self.reward_scale is not None:
            self.reward_scale.load_state_dict(state["reward_scale"])
