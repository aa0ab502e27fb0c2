"""Labelled pairs of segments for algorithms that learn from preferences, with the same sampling for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from herdbook.core.random import derive
from herdbook.core.types import Segments, Transitions, batch_type
from herdbook.datasets.demonstrations import CHOSEN
from herdbook.datasets.episodes import DataError, Episodes
from herdbook.datasets.preferences import PreferencePairs
from herdbook.datasets.replay import ReplayBuffer
from herdbook.datasets.sampling import drawn_numbers
from herdbook.datasets.teachers import TEACHERS, labelled_pairs

PairSource = Literal["oracle", "mistake", "noisy", "skip", "myopic", "equal", "stored"]
"""A simulated teacher of `datasets.teachers`, or the pairs that are stored in the dataset."""
PAIR_SOURCES = (*TEACHERS, "stored")
_PAIRS = 200  # stream of randomness from which the pairs of one seed are drawn and labelled
_CHUNK = 64  # pairs that are gathered at once where all are read


@batch_type
@dataclass(frozen=True, slots=True)
class PairBatch:
    """Labelled pairs of segments. The true rewards in the segments are for labelling, not for learning."""

    segments: Segments  # [*B, 2, T, …]: the first and the second segment of each pair
    labels: Tensor  # [*B]: probability that the second one is preferred


class PairConfig(Protocol):
    """The fields by which a config chooses its pairs."""

    @property
    def teacher(self) -> PairSource: ...
    @property
    def pairs(self) -> int: ...
    @property
    def segment_length(self) -> int: ...


def transitions(segments: Segments, discount: float) -> Transitions:
    """The steps of segments as one-step transitions, [*B, T, …], with discounts γ (1 − terminated)."""
    return Transitions(
        observations=segments.observations,
        actions=segments.actions,
        rewards=segments.rewards,
        discounts=discount * (~segments.terminated).float(),
        next_observations=segments.next_observations,
    )


class PairTable:
    """The labelled pairs of each seed; a teacher labels pairs that are drawn anew for every seed.

    Raises DataError if no pairs are stored, for a subsampled dataset, and as `labelled_pairs`.
    """

    def __init__(self, config: PairConfig, replay: ReplayBuffer, seeds: Sequence[int]) -> None:
        episodes = replay.episodes
        if episodes is None:
            raise TypeError("expected the replay of a dataset, got one that grows")
        if episodes.mask is not None:
            raise DataError(f"{episodes.source}: expected all steps, since segments are successive; got a subsample")
        drawn = [_pairs_of(config, episodes, seed) for seed in seeds]
        self.replay, self.source = replay, episodes.source
        self.count = len(drawn[0])
        first = np.stack([episodes.offsets[own.episodes] + own.starts for own in drawn])
        self.first = torch.as_tensor(first, device=replay.device)  # [S, N, 2] the first step of each segment
        self.lengths = torch.as_tensor(np.stack([own.lengths for own in drawn]), device=replay.device)  # [S, N, 2]
        self.one_length = int(self.lengths.min()) == int(self.lengths.max())
        labels = np.stack([own.labels for own in drawn])
        self.labels = torch.as_tensor(labels, dtype=torch.float32, device=replay.device)  # [S, N]
        self.steps = torch.arange(int(self.lengths.max()), device=replay.device)  # [T]

    def numbers(self, batch_size: int, generators: Sequence[torch.Generator]) -> Tensor:
        """Uniform numbers of pairs, `[B]`, or `[S, B]` for S > 1 generators."""
        return drawn_numbers(self.count, batch_size, generators, self.replay.device)

    def gather(self, numbers: Tensor) -> PairBatch:
        """The pairs with these numbers, `[*B]` for one seed, else `[S, *B]`."""
        seeds = len(self.labels)
        if seeds == 1:
            return self._gather(0, numbers)
        return self._gather(torch.arange(seeds, device=numbers.device).view(-1, *[1] * (numbers.dim() - 1)), numbers)

    def chunks(self, seed_index: int) -> Iterator[Segments]:
        """All segments of one seed, some at a time."""
        for start in range(0, self.count, _CHUNK):
            numbers = torch.arange(start, min(start + _CHUNK, self.count), device=self.replay.device)
            yield self._gather(seed_index, numbers).segments

    def _gather(self, seed: int | Tensor, numbers: Tensor) -> PairBatch:
        segments = self.replay.gather_segments(self.first[seed, numbers], len(self.steps))
        inside = self.steps < self.lengths[seed, numbers][..., None]  # segments may have different lengths
        return PairBatch(replace(segments, mask=segments.mask & inside), self.labels[seed, numbers])

    def state_dict(self) -> dict[str, Tensor]:
        return {"first": self.first, "lengths": self.lengths, "labels": self.labels}

    def check_same(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError unless `state_dict` gave this for the same pairs with the same labels."""
        for name, own in self.state_dict().items():
            if own.shape != state[name].shape or not torch.equal(own.cpu(), state[name].cpu()):
                raise ValueError(
                    f"{self.source}: expected the pairs and labels that the run began with, got other {name}"
                )


def table_of(config: PairConfig, demonstrations: ReplayBuffer | None, seeds: Sequence[int]) -> PairTable | None:
    """The pairs for training; None without demonstrations, where only what was learned is wanted."""
    return None if demonstrations is None else PairTable(config, demonstrations, seeds)


def present(table: PairTable | None) -> PairTable:
    """The pairs. Raises ValueError if the algorithm was built without demonstrations."""
    if table is None:
        raise ValueError(
            "expected demonstrations=ReplayBuffer(episodes) in the constructor, whose pairs are learned from"
        )
    return table


def _pairs_of(config: PairConfig, episodes: Episodes, seed: int) -> PreferencePairs:
    if config.teacher != "stored":
        return labelled_pairs(
            episodes,
            config.teacher,
            pairs=config.pairs,
            segment_length=config.segment_length,
            generator=np.random.default_rng(derive(seed, _PAIRS)),
        )
    if episodes.preferences is None:
        if chosen := [note for note in episodes.transforms if note.startswith(CHOSEN)]:
            raise DataError(
                f"{episodes.source}: expected preference pairs of which both segments lie in the chosen episodes, got "
                f"none ({', '.join(chosen)}); choose more episodes, or a simulated teacher: {', '.join(TEACHERS)}"
            )
        raise DataError(
            f"{episodes.source}: expected preference pairs in the dataset, got none; store some with "
            f"herdbook.datasets.minari.save_preferences, or choose a simulated teacher: {', '.join(TEACHERS)}"
        )
    return episodes.preferences
