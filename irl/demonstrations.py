"""Checks of demonstrations.

Where the length of an episode depends on behaviour, its end leaks the reward. A reward that is never negative then
teaches to survive and one that is never positive to end early, whatever the expert did, and a discriminator tells the
expert by the end alone. Such demonstrations have a variable horizon; the adversarial methods refuse
them unless the user allows them.
"""

from __future__ import annotations

from herdbook.core.notices import notice
from herdbook.core.spaces import alike
from herdbook.core.types import Segments, Spec
from herdbook.datasets.replay import ReplayBuffer

ADVICE = (
    "an end that depends on behaviour leaks the reward, so that a reward of one sign can look like imitation. Record "
    "episodes of a fixed length, use dac with absorbing states, or allow it with --allow-variable-horizon"
)


def check_spaces(demonstrations: ReplayBuffer | None, spec: Spec, algorithm: str) -> None:
    """Raise ValueError for demonstrations with spaces other than those of `spec`. None: only the policy is wanted."""
    if demonstrations is None:
        return
    expected = (spec.observation_space, spec.action_space)
    for name, own, theirs in zip(("observations", "actions"), expected, demonstrations.spaces, strict=True):
        if not alike(own, theirs):
            raise ValueError(f"{algorithm}: expected demonstrations with {name} in {own}, got {theirs}")


def check_horizon(demonstrations: ReplayBuffer | None, algorithm: str) -> None:
    """Raise ValueError for a variable horizon: episodes that terminate or whose lengths differ.

    Subsampled demonstrations are judged by their whole episodes.
    """
    if demonstrations is None:
        return
    lengths, terminated = demonstrations.episode_ends()
    ends, shortest, longest = int(terminated.sum()), int(lengths.min()), int(lengths.max())
    if ends or shortest < longest:
        raise ValueError(
            f"{algorithm}: expected demonstrations of one length that are cut off there, got {ends} of {len(lengths)} "
            f"episodes that terminate, and lengths from {shortest} to {longest}; {ADVICE}"
        )


def notice_few(demonstrations: ReplayBuffer | None, half: int, algorithm: str) -> None:
    """Log a notice if there are fewer steps of demonstrations than a batch draws, `half` of it."""
    if demonstrations is not None and len(demonstrations) < half:
        notice(
            f"{algorithm}: {len(demonstrations)} steps of demonstrations are fewer than half a batch, {half}; "
            "they are drawn with replacement, so that half of each batch is still the expert's"
        )


def required(demonstrations: ReplayBuffer | None, algorithm: str) -> ReplayBuffer:
    """The demonstrations. Raises ValueError if there are none."""
    if demonstrations is None:
        raise ValueError(f"{algorithm}: expected demonstrations to learn from, got None; pass a ReplayBuffer of them")
    return demonstrations


def notice_variable_horizon(rollout: Segments, algorithm: str) -> None:
    """Log a notice if episodes of a rollout terminate after different numbers of steps."""
    if rollout.timesteps is None or not bool(rollout.terminated.any()):
        return
    last = rollout.timesteps[rollout.terminated | rollout.truncated]
    if int(last.min()) < int(last.max()):
        notice(f"{algorithm}: episodes of the environment terminate early, those of the expert do not: {ADVICE}")
