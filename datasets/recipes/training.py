"""The training run of a recipe: the algorithm, the number of steps, and the checkpoints that play."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MOST_CHECKPOINTS = 100
"""Largest number of checkpoints of one run, those that play among them."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """Episodes of one checkpoint. Raises ValueError for values out of range."""

    episodes: int
    at: int | float = 1.0
    """The checkpoint: an environment step (int) or a fraction of the run's steps (float)."""
    noise: float = 0.0
    """Action noise, as in `NoisyPolicy`."""
    deterministic: bool = True
    """Play the policy's mode; else sample, or explore as at the end of the exploration schedule."""

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ValueError(f"episodes: expected 1 or more, got {self.episodes}")
        if not 0 <= self.at <= (math.inf if isinstance(self.at, int) else 1):
            raise ValueError(f"at: expected a step of 0 or more, or a share of the steps in [0, 1], got {self.at}")
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"noise: expected 0 or more, got {self.noise}")


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training run with the recipe's seed, and the parts of it that become data.

    Raises ValueError if no part is kept, for a checkpoint after the last step, and if the greatest common divisor of
    the steps of the run and of the checkpoints is below a hundredth of the run.
    """

    algorithm: str
    """Name in the catalogue of an algorithm that learns in a single-agent environment, or `module:Class`."""
    steps: int
    """Environment steps."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the algorithm's config that differ from its defaults."""
    shares: Sequence[Share] = ()
    """The checkpoints that play, in order."""
    replay: bool = False
    """Add the steps in the run's replay after the shares."""
    num_envs: int | None = None
    """Number of parallel environments in training; None: the algorithm's default."""
    minutes: float
    """Expected duration on one core, which is shown to the user."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: expected 1 or more, got {self.steps}")
        if not self.shares and not self.replay:
            raise ValueError("expected shares, the replay or both, got neither; the run would make no data")
        if late := [share.at for share in self.shares if self.step_of(share) > self.steps]:
            raise ValueError(f"at: expected at most {self.steps}, the steps of the run, got {late[0]}")
        if self.steps // self.checkpoint_every > MOST_CHECKPOINTS:
            steps = sorted(self.step_of(share) for share in self.shares)
            raise ValueError(
                f"at: expected steps whose greatest common divisor with the run's {self.steps} steps is at least "
                f"{-(-self.steps // MOST_CHECKPOINTS)} (1 %), got {steps}"
            )

    def step_of(self, share: Share) -> int:
        """The step whose checkpoint plays; a run in rounds writes it at the end of the round that reaches the step."""
        return share.at if isinstance(share.at, int) else round(share.at * self.steps)

    @property
    def checkpoint_every(self) -> int:
        """Steps between checkpoints: about 5 % of the run, chosen so that every checkpoint that plays is written."""
        measure = math.gcd(self.steps, *map(self.step_of, self.shares))
        at_most, at_least = max(self.steps // 20, 1), max(self.steps // MOST_CHECKPOINTS, 1)
        return next((every for every in range(at_most, at_least - 1, -1) if measure % every == 0), measure)
