"""`Member`: one seed of a run that learns by interaction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar, cast

import torch

from herdbook.core.growing import Following
from herdbook.core.types import Interactive, Metrics, OffPolicy, OnPolicy, Round

Player = TypeVar("Player", bound=Interactive)


class Member(Generic[Player]):
    """One seed that learns by interaction: its algorithm, replay and counters."""

    def __init__(self, algorithm: Player, replay: Any, generator: torch.Generator) -> None:
        self.algorithm, self.replay, self.generator = algorithm, replay, generator
        self.follows = cast(Following, algorithm).follows if algorithm.needs.follows else None
        self.rounds = self.episodes = self.steps = self.updates = self.lost = self.lost_in_a_row = 0
        self.metrics: Metrics = {}

    def add(self, played: Round) -> None:
        """Add a round to replay, statistics and counters. Raises ValueError if the replay cannot hold it."""
        self.rounds += 1
        self.steps += played.count
        played.add_to(self.replay)
        if self.follows is not None:
            played.add_to(self.follows)
        if played.failures or self.rounds == 1:
            self.lost += len(played.failures)
            self._count("lost", float(self.lost))
            self.lost_in_a_row += len(played.failures)
        if played.lengths:
            self.lost_in_a_row = 0
            self.episodes += len(played.lengths)
            self._count("return", sum(played.returns) / len(played.returns))
            self._count("length", sum(played.lengths) / len(played.lengths))

    def _count(self, name: str, value: float) -> None:
        self.metrics[f"collected/{name}"] = torch.tensor(value, device=self.generator.device)  # same device as losses

    def learn(self) -> None:
        """Make the updates that are due."""
        due = self.algorithm.updates_due(self.episodes, self.steps)
        while self.updates < due:
            self.metrics |= self._update()
            self.updates += 1

    def _update(self) -> Metrics:
        if self.algorithm.needs.on_policy:
            return cast(OnPolicy, self.algorithm).update(self.replay.take())
        algorithm = cast(OffPolicy[Any], self.algorithm)
        batch = algorithm.sample(self.replay, [self.generator])
        metrics = algorithm.update(batch)
        priorities = metrics.pop("priorities", None)
        if priorities is not None:
            self.replay.set_priorities(batch.indices, priorities)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Counters and metrics; algorithm, generator and replay are stored separately."""
        return {**{name: getattr(self, name) for name in _COUNTERS}, "metrics": self.metrics}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in _COUNTERS:
            setattr(self, name, int(state[name]))
        saved = state.get("metrics", {})  # older checkpoints do not store metrics
        self.metrics = {name: value.to(self.generator.device) for name, value in saved.items()}


_COUNTERS = ("rounds", "episodes", "steps", "updates", "lost", "lost_in_a_row")
