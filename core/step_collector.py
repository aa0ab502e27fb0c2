"""Collection of single steps, or of rollouts of fixed length, in the learner's process.

In every round each seed makes the algorithm's `round_steps` steps in all its environments, with its current
parameters. The steps are a function of (parameters, run seed, steps so far).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from herdbook.core.collector import FAILURES, NOISE, RESETS
from herdbook.core.environments import EnvironmentSource
from herdbook.core.growing import STEP_FIELDS, Growing
from herdbook.core.member import Member
from herdbook.core.notices import notice
from herdbook.core.random import generator, restore_generator
from herdbook.core.runner import (
    EndlessEpisodes,
    EnvironmentFailed,
    PolicyFailed,
    VectorRunner,
    VectorStep,
    anywhere,
    stack_rows,
)
from herdbook.core.runs import RunFailed
from herdbook.core.types import Spec, Steps, Stepwise, to_numpy, tree_map


@dataclass
class StepRound:
    """Experience of one seed in a round: steps of all lanes, and returns and lengths of finished episodes."""

    steps: list[VectorStep] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    policy_failed: str | None = None

    @property
    def count(self) -> int:
        """Environment steps."""
        return sum(len(stepped.active) for stepped in self.steps)

    def add_to(self, replay: Growing) -> None:
        """Append all steps to a replay, in blocks between cuts. Raises ValueError if it cannot hold a block."""
        cuts = [number for number, step in enumerate(self.steps) if anywhere(step.cut)]
        for begin, end in pairwise(sorted({0, *cuts, len(self.steps)})):
            first, *others = self.steps[begin:end]
            if anywhere(first.cut):
                replay.cut(first.cut)
            if others:
                replay.extend(stack_steps([step.played for step in (first, *others)]))
            else:  # avoids a copy
                replay.add(first.played)

    def state_dict(self) -> dict[str, Any]:
        """Dicts, lists and tensors for a checkpoint; all steps are stacked to `[T, …]`, because tensors are costly."""
        columns: dict[str, Any] = {}
        if self.steps:
            played = stack_steps([step.played for step in self.steps])
            columns = {name: getattr(played, name) for name in STEP_FIELDS if getattr(played, name) is not None}
            columns |= {name: np.stack([getattr(step, name) for step in self.steps]) for name in _LANES}
        return {
            "steps": tree_map(torch.from_numpy, columns),
            **{name: getattr(self, name) for name in ("returns", "lengths", "failures", "policy_failed")},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> StepRound:
        """The inverse of `state_dict`."""
        if isinstance(state["steps"], list):
            raise ValueError("expected a tensor for each field of the steps; the checkpoint is of an older version")
        columns, steps = to_numpy(state["steps"]), list[VectorStep]()
        for number in range(len(columns["first"]) if columns else 0):
            row = tree_map(lambda leaf, at=number: leaf[at], columns)
            played = {name: row[name] for name in STEP_FIELDS if name in row}
            steps.append(VectorStep(Steps(**played), **{name: row[name] for name in _LANES}))
        return cls(**{**state, "steps": steps})


_LANES = ("first", "cut", "active", "episodes")


def stack_steps(steps: Sequence[Steps]) -> Steps:
    """Stack T steps `[lanes, …]` to `[T, lanes, …]`."""
    given = [name for name in STEP_FIELDS if getattr(steps[0], name) is not None]
    return Steps(**{name: stack_rows([getattr(step, name) for step in steps]) for name in given})


class StepCollector:
    """The `Collector` of algorithms for one agent, which collects rounds of steps.

    Args:
        source: The environment, as `make_environment` takes it.
        spec: The spaces of the algorithms.
        seeds: The seeds of the run.
        num_envs: The number of lanes per seed.
        device: The device of the policies' tensors.
        max_steps: Episodes are cut off after this many steps, on top of the environment's own limit.

    Raises:
        EnvironmentUnavailable: The environment cannot be made, or its spaces differ from those of `spec`.
        RunFailed: The environment keeps failing.
    """

    def __init__(
        self,
        source: EnvironmentSource,
        spec: Spec,
        seeds: Sequence[int],
        num_envs: int,
        device: str | torch.device = "cpu",
        max_steps: int | None = None,
    ) -> None:
        self.runners = [_SeedRunner(source, spec, seed, num_envs, device, max_steps) for seed in seeds]
        self._members: Mapping[int, Member[Stepwise]] = {}

    def start(self, members: Mapping[int, Member[Stepwise]]) -> None:
        """Choose the seeds of the next round, by index. `finish` collects it."""
        self._members = members

    def finish(self) -> dict[int, StepRound]:
        """Collect the current round and return the experience of each seed, by index."""
        return {index: self.runners[index].play(member) for index, member in self._members.items()}

    def restored(self, state: Mapping[str, Any]) -> StepRound:
        return StepRound.from_state(state)

    def state_dict(self) -> dict[str, Any]:
        """Unfinished episodes with their returns so far, and generators."""
        return {"seats": [runner.state_dict() for runner in self.runners]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replay every unfinished episode."""
        for runner, saved in zip(self.runners, state["seats"], strict=True):
            runner.load_state_dict(saved)

    def close(self) -> None:
        for runner in self.runners:
            runner.runner.close()

    def __enter__(self) -> StepCollector:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _SeedRunner:
    """The environments of one seed."""

    def __init__(
        self,
        source: EnvironmentSource,
        spec: Spec,
        seed: int,
        num_envs: int,
        device: str | torch.device,
        max_steps: int | None,
    ) -> None:
        self.seed, self.failures, self.lost_in_a_row = seed, list[str](), 0
        self.replay_ends_at: int | None = None  # failures left while unfinished episodes are replayed
        self.schedule = EndlessEpisodes(seed, RESETS)
        self.runner = VectorRunner(
            source, num_envs, self.schedule, spec=spec, max_steps=max_steps, device=device, on_failure=self._lost
        )
        self.generator = generator(seed, NOISE, device=device)
        self.returns, self.lengths = np.zeros(num_envs), np.zeros(num_envs, dtype=np.int64)

    def _lost(self, failure: EnvironmentFailed) -> None:
        if self.replay_ends_at is not None:
            notice(f"an episode that was unfinished at the checkpoint is lost: {failure}")
            self.replay_ends_at -= 1
            if self.replay_ends_at == 0:
                raise RunFailed(f"the environment fails when the run is resumed: {failure}") from failure
            return
        self.failures.append(str(failure))
        self.lost_in_a_row += 1
        if self.lost_in_a_row >= FAILURES:
            raise RunFailed(f"the environment failed in {FAILURES} episodes in a row: {failure}") from failure

    def play(self, member: Member[Stepwise]) -> StepRound:
        played = StepRound()
        policy = member.algorithm.policy(deterministic=False, step=member.steps)
        for _ in range(member.algorithm.round_steps(len(self.lengths))):
            try:
                stepped = self.runner.step(policy, self.generator, keep_carry=True)
            except PolicyFailed as error:
                played.policy_failed = str(error)
                break
            played.steps.append(stepped)
            if anywhere(stepped.cut):
                self.returns[stepped.cut], self.lengths[stepped.cut] = 0, 0
            self.returns += stepped.played.rewards
            self.lengths += 1
            ended = stepped.played.terminated | stepped.played.truncated
            if anywhere(ended):
                played.returns += self.returns[ended].tolist()
                played.lengths += self.lengths[ended].tolist()
                self.returns[ended], self.lengths[ended] = 0, 0
                self.lost_in_a_row = 0
        played.failures, self.failures[:] = list(self.failures), []
        return played

    def state_dict(self) -> dict[str, Any]:
        return {
            "begun": {str(lane): count for lane, count in self.schedule.begun.items()},
            "rollout": self.runner.state_dict(),
            "generator": self.generator,
            "returns": torch.from_numpy(self.returns.copy()),
            "lengths": torch.from_numpy(self.lengths.copy()),
            "lost_in_a_row": self.lost_in_a_row,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.lost_in_a_row = int(state["lost_in_a_row"])
        self.schedule.begun = {int(lane): count for lane, count in state["begun"].items()}
        self.returns, self.lengths = state["returns"].numpy().copy(), state["lengths"].numpy().copy()
        restore_generator(self.generator, state["generator"], self.seed, NOISE, sum(self.schedule.begun.values()))
        self.failures.clear()  # they concern episodes from before the checkpoint was loaded
        self.replay_ends_at = len(self.lengths) + FAILURES  # each lane may lose its unfinished episode
        self.runner.load_state_dict(state["rollout"])
        self.replay_ends_at = None
