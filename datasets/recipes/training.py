"""What a recipe declares whose policies are trained first: the algorithm, for how long, and which of them play."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MOST_CHECKPOINTS = 100
"""Of one run: each that is to play must be written."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """Some episodes of one checkpoint. Raises ValueError for values out of range."""

    episodes: int
    at: int | float = 1.0
    """An int is an environment step of the run, a float a share of its steps: 0.5 plays half of the way."""
    noise: float = 0.0
    """On top of its actions, as of a `NoisyPolicy`."""
    deterministic: bool = True
    """The policy's mode; else it samples, or explores as it does once its schedule has ended."""

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ValueError(f"episodes: expected 1 or more, got {self.episodes}")
        if not 0 <= self.at <= (math.inf if isinstance(self.at, int) else 1):
            raise ValueError(f"at: expected a step of 0 or more, or a share of the steps in [0, 1], got {self.at}")
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"noise: expected 0 or more, got {self.noise}")


@dataclass(frozen=True, kw_only=True)
class Training:
    """One run of one seed, the recipe's, and what is kept of it.

    Raises ValueError where nothing is kept, for a checkpoint after the last step, and for checkpoints whose steps have
    no common measure above a hundredth of the run.
    """

    algorithm: str
    """A name in the catalogue of one that learns in an environment of one agent, or `module:Class`."""
    steps: int
    """Of the environment."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the algorithm's config that are not its defaults."""
    shares: Sequence[Share] = ()
    """Who plays, one after the other."""
    replay: bool = False
    """Whether what the run itself played, as far as its replay holds it, comes after them."""
    num_envs: int | None = None
    """Environments side by side in training; by default the algorithm's own number."""
    minutes: float
    """How long it takes on one core, which is told."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: expected 1 or more, got {self.steps}")
        if not self.shares and not self.replay:
            raise ValueError("expected shares, the replay or both; a run of which nothing is kept makes no data")
        if late := [share.at for share in self.shares if self.step_of(share) > self.steps]:
            raise ValueError(f"at: expected at most {self.steps}, the steps of the run, got {late[0]}")
        if self.steps // self.checkpoint_every > MOST_CHECKPOINTS:
            steps = sorted(self.step_of(share) for share in self.shares)
            raise ValueError(
                f"at: expected steps with a common measure of at least {-(-self.steps // MOST_CHECKPOINTS)}, "
                f"1 % of the run's {self.steps}, got {steps}"
            )

    def step_of(self, share: Share) -> int:
        """The step whose checkpoint plays; that of a run in rounds is of the end of the round that reaches it."""
        return share.at if isinstance(share.at, int) else round(share.at * self.steps)

    @property
    def checkpoint_every(self) -> int:
        """Steps between checkpoints, so that those that play are among them: about 5 % of the run, where that fits."""
        measure = math.gcd(self.steps, *map(self.step_of, self.shares))
        at_most, at_least = max(self.steps // 20, 1), max(self.steps // MOST_CHECKPOINTS, 1)
        return next((every for every in range(at_most, at_least - 1, -1) if measure % every == 0), measure)
