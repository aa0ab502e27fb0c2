"""The units of what an agent sees and earns, which follow what it has seen and earned so far."""

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
    """What `RunningUnits` reads of an algorithm's config."""

    @property
    def discount(self) -> float: ...
    @property
    def normalise_observations(self) -> bool: ...
    @property
    def scale_rewards(self) -> bool: ...


class RunningUnits(Growing):
    """`Scaling`, by running moments of the observations, and a running scale of rewards, where they are asked for.

    What learns from a replay hands it each step once, as to the replay itself (`extend`, `cut`), and each batch when it
    is read: the replay stays raw, and old steps are seen in the newest units. So the moments are those of what was
    played; were they those of the batches instead, a step would count as often as it is drawn.

    Raises ValueError where observations are to be normalised that are not a vector.
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
        """Itself where there is anything to follow: what `core.member.Member` hands every step to."""
        return None if self.moments is None and self.reward_scale is None else self

    def __call__(self, batch: Transitions) -> Transitions:
        """A batch of the replay in the networks' units. The scale is linear: it fits n-step returns too."""
        batch = self.scaling(batch)
        return batch if self.reward_scale is None else replace(batch, rewards=self.reward_scale.scaled(batch.rewards))

    def rollout(self, rollout: Segments) -> Segments:
        """A rollout in the networks' units, before its observations are seen; its rewards enter their scale first."""
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
        """Take observations [*B, D], as the environment gave them, into account from now on."""
        if self.moments is not None:
            self.moments.update(observations)
            self._apply(self.moments)

    def extend(self, steps: Steps) -> None:
        """Take T successive steps of every lane into account, leaves `[T, lanes, …]`."""
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
        """The episodes of these lanes (a mask `[lanes]`) were given up: the step that was added last is their last."""
        if self.reward_scale is not None:
            self.reward_scale.end(torch.as_tensor(lanes))

    def _apply(self, moments: RunningMoments) -> None:
        if moments.count:
            self.scaling.follow(moments.mean.to(self.device, torch.float32), moments.std.to(self.device, torch.float32))
        else:
            self.scaling.mean = None

    def state_dict(self) -> dict[str, Any]:
        """Moments and sums of rewards, those of unfinished episodes too; None where they are not asked for."""
        return {
            "moments": None if self.moments is None else self.moments.state_dict(),
            "reward_scale": None if self.reward_scale is None else self.reward_scale.state_dict(),
        }

    def check(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError if the `units` of an algorithm's state are others."""
        for name, own in self.state_dict().items():
            saved = state.get("units", {}).get(name)
            if (saved is None) != (own is None):
                raise ValueError(
                    f"the state does not fit: its units are {'without' if saved is None else 'with'} {name}"
                )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave, where there is anything to restore."""
        if self.moments is not None:
            self.moments.load_state_dict(state["moments"])
            self._apply(self.moments)
        if self.reward_scale is not None:
            self.reward_scale.load_state_dict(state["reward_scale"])
