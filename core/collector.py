"""Interaction with environments during learning.

Learning proceeds in rounds: every seed collects experience with fixed parameters, then makes its updates. A round is

- a few steps in each environment, in the learner's process, with the newest parameters
  (`step_collector.StepCollector`; SAC, DQN);
- a rollout of fixed length, collected in the same way (PPO, A2C);
- a batch of whole episodes, in this process or in workers that overlap with the updates, at a fixed lag: round k + 1
  uses the parameters from before the updates that follow round k (`episode_collector.EpisodeCollector`; QMIX, MADDPG).

The experience depends on parameters, run seed and round, and never on timing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, Self

from herdbook.core.member import Member
from herdbook.core.types import Round

RESETS, NOISE = 101, 102  # streams of randomness of one seed: reset seeds of episodes, exploration
FAILURES = 10  # the run fails when the environment has failed in so many episodes in a row


class Collector(Protocol):
    """Collects the rounds of every seed; a context manager that closes its environments."""

    def start(self, members: Mapping[int, Member[Any]]) -> None:
        """Start a round of these seeds, by index, with their current parameters."""

    def finish(self) -> Mapping[int, Round]:
        """Finish the current round and return the experience of each seed, by index."""

    def restored(self, state: Mapping[str, Any]) -> Round:
        """Restore a round from its `state_dict`."""

    def state_dict(self) -> dict[str, Any]:
        """The state of unfinished episodes between two rounds."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exception: object) -> None: ...
