"""How policies interact while they learn.

In each round every seed plays for a while with fixed parameters; then its updates follow. There are three ways:

- step by step, in the learner's process: a round is a few steps in each environment, played with the newest parameters
  (`step_collector.StepCollector`; SAC, DQN);
- rollouts of fixed length, in the learner's process: the same, with a round of `rollout_steps` (PPO, A2C);
- whole episodes, in this process or in workers that overlap with learning, at a fixed lag: round k + 1 is played with
  the parameters from before the updates that follow round k (`episode_collector.EpisodeCollector`; QMIX, MADDPG).

What is played is a function of parameters, run seed and round, never of timing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, Self

from herdbook.core.member import Member
from herdbook.core.types import Round

RESETS, NOISE = 101, 102  # streams of randomness of one seed: reset seeds of episodes, exploration
FAILURES = 10
"""Episodes that an environment may lose one after the other before the run fails."""


class Collector(Protocol):
    """Plays the rounds of every seed; a context manager that closes its environments."""

    def start(self, members: Mapping[int, Member[Any]]) -> None:
        """Begin a round of these seeds, by index, with the parameters that they have now."""
        ...

    def finish(self) -> Mapping[int, Round]:
        """Finish the round that was started last: what each seed played, by index."""
        ...

    def restored(self, state: Mapping[str, Any]) -> Round:
        """A round from its `state_dict`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that is unfinished between two rounds."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exception: object) -> None: ...
