"""Simulated teachers (B-Pref: Lee et al. 2021, arXiv:2111.03026): labels from the true rewards of two segments.

    oracle    p = 1(Σ r₁ < Σ r₂), 0.5 if the sums are equal
    mistake   the oracle's label, flipped with the probability ε = 0.1
    noisy     p ~ Bernoulli(σ(β (Σ r₂ − Σ r₁))), β = 1
    skip      no answer if neither sum is above δ
    myopic    the oracle's label for Σ_t γ^(T−1−t) r_t, γ = 0.9: late steps count most
    equal     the oracle's label, 0.5 if |Σ r₁ − Σ r₂| < δ
    δ         0.1 · T · R̄/H, R̄/H the mean reward of one step

Rewards are [N, T] float64, one row for each segment of T steps; the label p [N] is the probability that the second
segment is preferred. The functions are pure: `uniform` is noise in [0, 1), [N].
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from herdbook.core.types import Array
from herdbook.datasets.episodes import DataError, Episodes
from herdbook.datasets.preferences import PreferencePairs, draw_segments

Teacher = Literal["oracle", "mistake", "noisy", "skip", "myopic", "equal"]
_ROUNDS = 100
TEACHERS: tuple[Teacher, ...] = ("oracle", "mistake", "noisy", "skip", "myopic", "equal")


def oracle(first: Array, second: Array) -> Array:
    """1 where the second segment has the larger sum of rewards, 0 where the first has, 0.5 where they are equal.

    B-Pref's code prefers the first of two equal segments.
    """
    return _prefers(first.sum(1), second.sum(1))


def mistaken(first: Array, second: Array, uniform: Array, *, error: float = 0.1) -> Array:
    """The oracle's label, flipped where `uniform` is below `error`."""
    label = oracle(first, second)
    flipped: Array = np.where(uniform < error, 1 - label, label)
    return flipped


def noisy(first: Array, second: Array, uniform: Array, *, beta: float = 1.0) -> Array:
    """Labels 0 or 1 by the Bradley-Terry model: 1 where `uniform` is below σ(β (Σ r₂ − Σ r₁))."""
    difference = np.clip(beta * (second.sum(1) - first.sum(1)), -500, 500)  # exp overflows beyond 709
    label: Array = (uniform < 1 / (1 + np.exp(-difference))).astype(np.float64)
    return label


def myopic(first: Array, second: Array, *, gamma: float = 0.9) -> Array:
    """The oracle's label for rewards discounted from the end of the segment backwards."""
    weights = gamma ** np.arange(first.shape[1])[::-1]
    return _prefers(first @ weights, second @ weights)


def equal(first: Array, second: Array, *, margin: float) -> Array:
    """The oracle's label, 0.5 where the sums differ by less than `margin`, in units of the sum."""
    close = np.abs(first.sum(1) - second.sum(1)) < margin
    return np.where(close, 0.5, oracle(first, second))


def answered(first: Array, second: Array, *, margin: float) -> Array:
    """`[N]` bool: True where a sum of rewards is above `margin`, so that the skipping teacher gives a label."""
    given: Array = np.maximum(first.sum(1), second.sum(1)) > margin
    return given


def margin(mean_reward: float, length: int, *, share: float = 0.1) -> float:
    """δ: the share ε of the mean sum of rewards of `length` steps. ε enters here and nowhere else.

    Raises ValueError unless the mean reward is above 0: a share of a loss is no margin.
    """
    if not mean_reward > 0:
        raise ValueError(
            f"skip, equal: expected a mean reward above 0, of which their margin is a share; got {mean_reward:g}"
        )
    return share * length * mean_reward


class Answers(NamedTuple):
    """Labels of N pairs, [N] float64, and a mask of those that were given; the others are undefined."""

    labels: Array
    given: Array


def answers(
    teacher: Teacher, first: Array, second: Array, *, mean_reward: float, generator: np.random.Generator
) -> Answers:
    """Answers of a teacher with B-Pref's settings for N pairs. mean_reward: that of one step of the dataset.

    Raises ValueError for an unknown teacher, and as `margin`.
    """
    given, uniform = np.ones(len(first), dtype=np.bool_), generator.random(len(first))
    if teacher == "oracle":
        return Answers(oracle(first, second), given)
    if teacher == "mistake":
        return Answers(mistaken(first, second, uniform), given)
    if teacher == "noisy":
        return Answers(noisy(first, second, uniform), given)
    if teacher == "myopic":
        return Answers(myopic(first, second), given)
    if teacher not in ("skip", "equal"):
        raise ValueError(f"teacher: expected one of {', '.join(TEACHERS)}, got {teacher!r}")
    least = margin(mean_reward, first.shape[1])
    if teacher == "skip":
        return Answers(oracle(first, second), answered(first, second, margin=least))
    return Answers(equal(first, second, margin=least), given)


def labelled_pairs(
    episodes: Episodes, teacher: Teacher, *, pairs: int, segment_length: int, generator: np.random.Generator
) -> PreferencePairs:
    """Pairs of segments, each drawn uniformly, with a teacher's labels. Those that it skips are drawn again.

    Raises DataError if every episode is shorter than a segment, if the teacher skips too many, or if all labels are
    0.5, as where the rewards are constant; ValueError as `answers`.
    """
    lengths, mean = episodes.lengths(), float(episodes.rewards.mean())
    found: list[tuple[Array, Array, Array]] = []
    count = 0
    for _ in range(_ROUNDS):
        drawn = [draw_segments(episodes.source, lengths, segment_length, pairs, generator) for _ in range(2)]
        numbers, starts = (np.stack(parts, axis=1) for parts in zip(*drawn, strict=True))  # [pairs, 2] each
        steps = (episodes.offsets[numbers] + starts)[..., None] + np.arange(segment_length)  # [pairs, 2, T]
        first, second = episodes.rewards[steps].swapaxes(0, 1)
        labels, given = answers(teacher, first, second, mean_reward=mean, generator=generator)
        found.append((numbers[given], starts[given], labels[given]))
        count += int(given.sum())
        if count >= pairs:
            break
    else:
        raise DataError(
            f"{episodes.source}: expected {pairs} labels, got {count} for {_ROUNDS * pairs} pairs: {teacher} answers "
            "too few"
        )
    numbers, starts, labels = (np.concatenate(parts)[:pairs] for parts in zip(*found, strict=True))
    if (labels == 0.5).all():
        raise DataError(
            f"{episodes.source}: expected segments that differ in their rewards, but to {teacher} the two of each of "
            f"{pairs} pairs are equally good; choose another segment_length, or store labels of your own"
        )
    return PreferencePairs(
        episodes=numbers,
        starts=starts,
        lengths=np.full_like(starts, segment_length),
        labels=labels,
        labelled_by=(teacher,) * pairs,
        source=f"{episodes.source}, preferences",
    )


def _prefers(first: Array, second: Array) -> Array:
    """1 where the second score is larger, 0 where the first is, 0.5 where they are equal. [N] each → [N] float64."""
    labels: Array = (np.sign(second - first) + 1) / 2
    return labels
