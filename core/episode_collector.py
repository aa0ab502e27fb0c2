"""Collection of whole episodes with a fixed lag, optionally in worker processes: environments with many agents.

In every round each seed plays a batch of whole episodes. Round k + 1 uses the parameters from before the updates that
follow round k, in this process or in workers that run during these updates. Since the lag is fixed, results are
bitwise equal for any number of workers. The episodes are a function of (parameters, run seed, round).
"""

from __future__ import annotations

import itertools
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from queue import SimpleQueue
from typing import Any

import torch

from herdbook.core.collector import NOISE, RESETS
from herdbook.core.environments import EnvironmentSource
from herdbook.core.joint.runner import JointRunner
from herdbook.core.joint.types import JointEpisode, JointSpec, episode_from_state, episode_state
from herdbook.core.member import Member
from herdbook.core.random import derive, generator
from herdbook.core.runner import PolicyFailed
from herdbook.core.runs import RunFailed
from herdbook.core.types import Array, Episodic

GROUP = 8  # lanes that step together, for any number of workers, so that results do not depend on it
Parameters = Mapping[str, Mapping[str, Array]]  # network → parameter → array on the host


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that a worker process needs to make its environments and its policy."""

    algorithm: type[Any]
    config: Any
    spec: JointSpec
    source: EnvironmentSource
    num_envs: int
    runner: Mapping[str, Any]  # further arguments of `JointRunner`
    networks: Mapping[str, Callable[[], torch.nn.Module]] | None = None  # a user's own modules


@dataclass(frozen=True)
class _Assignment:
    parameters: Parameters
    step: int
    seed: int
    round: int
    group: int


@dataclass(frozen=True)
class EpisodeRound:
    """Episodes of one seed in a round, the failures that lost episodes, and the failure of its policy."""

    episodes: list[JointEpisode]
    failures: list[str]
    policy_failed: str | None = None

    @property
    def count(self) -> int:
        """Environment steps."""
        return sum(self.lengths)

    @property
    def returns(self) -> list[float]:
        """Team return of each episode."""
        return [float(episode.rewards.sum()) for episode in self.episodes]

    @property
    def lengths(self) -> list[int]:
        return [*map(len, self.episodes)]

    def add_to(self, replay: Any) -> None:
        """Append all episodes to a replay. Raises ValueError if it cannot hold them."""
        if self.episodes:
            replay.add(*self.episodes)

    def state_dict(self) -> dict[str, Any]:
        """Dicts, lists and tensors for a checkpoint."""
        episodes = [*map(episode_state, self.episodes)]
        return {"episodes": episodes, "failures": self.failures, "policy_failed": self.policy_failed}


class _Player:
    """Environments and a policy, in the process that steps them."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.lanes = plan, min(plan.num_envs, GROUP)
        own = {} if plan.networks is None else {"networks": plan.networks}
        self.algorithm: Episodic = plan.algorithm(plan.config, plan.spec, seeds=(0,), device="cpu", **own)
        self.runner = JointRunner(plan.source, self.lanes, spec=plan.spec, **plan.runner)

    def play(self, assignment: _Assignment) -> EpisodeRound:
        for name, parameters in assignment.parameters.items():
            for key, value in self.algorithm.learner.parameters_of(name).items():
                value.copy_(torch.from_numpy(parameters[key]))
        policy = self.algorithm.policy(deterministic=False, step=assignment.step)
        first = assignment.round * self.plan.num_envs + assignment.group * GROUP
        last = min(first + GROUP, (assignment.round + 1) * self.plan.num_envs)
        seeds = [derive(assignment.seed, RESETS, number) % 2**31 for number in range(first, last)]  # fits a C int
        noise = generator(assignment.seed, NOISE, assignment.round, assignment.group)
        try:
            played = self.runner.run(policy, seeds, noise)
        except PolicyFailed as error:
            return EpisodeRound([], [], str(error))
        return EpisodeRound([episode for episode in played.episodes if episode is not None], played.failures)


class EpisodeCollector:
    """Collects rounds of whole episodes: `start` a round, learn in the meantime, `finish` it.

    Nothing runs before `with collector:`.

    Raises RunFailed if a worker process ends by itself, and re-raises any exception of a worker.
    """

    def __init__(self, plan: Plan, seeds: Sequence[int], workers: int = 0) -> None:
        self.plan, self.seeds = plan, tuple(seeds)
        self.groups = -(-plan.num_envs // GROUP)
        self._count = min(workers, len(seeds) * self.groups)
        self._player: _Player | None = None
        self._workers: list[_Worker] = []
        self._playing: dict[int, list[Iterator[EpisodeRound]]] = {}

    def start(self, members: Mapping[int, Member[Episodic]]) -> None:
        """Start a round of these seeds, by index, with copies of their current parameters."""
        workers = itertools.cycle(self._workers)
        for index, member in members.items():
            parameters, self._playing[index] = _parameters(member.algorithm), []
            for group in range(self.groups):
                assignment = _Assignment(parameters, member.steps, self.seeds[index], member.rounds, group)
                if self._player is not None:
                    self._playing[index].append(iter([self._player.play(assignment)]))
                else:
                    self._playing[index].append(next(workers).submit(assignment))

    def finish(self) -> dict[int, EpisodeRound]:
        """Finish the current round and return each seed's episodes, by index."""
        finished = {}
        for index, groups in self._playing.items():
            batches = [next(group) for group in groups]
            finished[index] = EpisodeRound(
                [episode for batch in batches for episode in batch.episodes],
                [failure for batch in batches for failure in batch.failures],
                next((batch.policy_failed for batch in batches if batch.policy_failed), None),
            )
        self._playing = {}
        return finished

    def restored(self, state: Mapping[str, Any]) -> EpisodeRound:
        return EpisodeRound(**{**state, "episodes": [*map(episode_from_state, state["episodes"])]})

    def state_dict(self) -> dict[str, Any]:
        """Empty, because no episode is unfinished between two rounds."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    def close(self) -> None:
        if self._player is not None:
            self._player.runner.close()
        for worker in self._workers:
            worker.close()

    def __enter__(self) -> EpisodeCollector:
        """Make the environments, or start the processes that make them."""
        self._player = None if self._count else _Player(self.plan)
        self._workers = [_Worker(self.plan) for _ in range(self._count)]
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _parameters(algorithm: Episodic) -> Parameters:
    """Copies on the host of the parameters that its policies read."""
    return {
        name: {key: value.cpu().numpy().copy() for key, value in algorithm.learner.parameters_of(name).items()}
        for name in algorithm.needs.acting
    }


class _Worker:
    """A process with a player. It answers assignments in the order of their submission."""

    def __init__(self, plan: Plan) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, plan), daemon=True)
        self.process.start()
        theirs.close()
        Finalize(self, self.connection.close, exitpriority=0)  # before multiprocessing joins a worker left unclosed

    def submit(self, assignment: _Assignment) -> Iterator[EpisodeRound]:
        try:
            self.connection.send(assignment)
        except OSError as error:
            raise self._ended() from error
        return self._answer()

    def _answer(self) -> Iterator[EpisodeRound]:
        try:
            answer = self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._ended() from error
        if isinstance(answer, Exception):
            raise answer
        yield answer

    def _ended(self) -> RunFailed:
        self.process.join()
        return RunFailed(
            f"a worker process that steps environments ended by itself (exit code {self.process.exitcode}); "
            "--workers 0 steps them in this process"
        )

    def close(self) -> None:
        self.connection.close()  # ends the worker at its next read or write
        self.process.join()


def _serve(connection: Connection, plan: Plan) -> None:
    """Main function of a worker process: answer assignments until the other end of the connection is closed."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach the whole process group; the learner ends its workers
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    assignments: SimpleQueue[_Assignment | None] = SimpleQueue()
    # A thread reads at once; else both ends could block in a send.
    threading.Thread(target=_receive, args=(connection, assignments), daemon=True).start()
    player: _Player | None = None
    with suppress(BrokenPipeError, ConnectionResetError):
        while (assignment := assignments.get()) is not None:
            try:
                player = player or _Player(plan)
                answer: Any = player.play(assignment)
            except Exception as error:  # the learner's process raises it
                answer = error
            connection.send(answer)


def _receive(connection: Connection, assignments: SimpleQueue[_Assignment | None]) -> None:
    with suppress(EOFError, OSError):
        while True:
            assignments.put(connection.recv())
    assignments.put(None)
