"""Interacting in whole episodes, in workers at a fixed lag: the environments of many agents.

In every round each seed plays a batch of whole episodes. Round k + 1 is played with the parameters from before the
updates that follow round k, in this process or in worker processes that overlap with those updates: a fixed lag, so
the bits are the same for any number of workers. What is played is a function of (parameters, run seed, round).
"""

from __future__ import annotations

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

GROUP = 8
"""Lanes that are stepped together. It does not depend on the number of workers, and so neither do the bits."""

Parameters = Mapping[str, Mapping[str, Array]]
"""Network to its parameters by name, on the host."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to play: all that a worker process needs to make its environments and its policy."""

    algorithm: type[Any]
    config: Any
    spec: JointSpec
    source: EnvironmentSource
    num_envs: int
    runner: Mapping[str, Any]
    """Further arguments of `JointRunner`."""
    networks: Mapping[str, Callable[[], torch.nn.Module]] | None = None
    """A user's own modules."""


@dataclass(frozen=True)
class _Assignment:
    parameters: Parameters
    step: int
    seed: int
    round: int
    group: int


@dataclass(frozen=True)
class EpisodeRound:
    """Episodes that one seed played in a round, why others were lost, and why its policy failed."""

    episodes: list[JointEpisode]
    failures: list[str]
    policy_failed: str | None = None

    @property
    def count(self) -> int:
        """Environment steps."""
        return sum(self.lengths)

    @property
    def returns(self) -> list[float]:
        """Of the team."""
        return [float(episode.rewards.sum()) for episode in self.episodes]

    @property
    def lengths(self) -> list[int]:
        return [*map(len, self.episodes)]

    def add_to(self, replay: Any) -> None:
        """Append all episodes to a replay. Raises ValueError where it cannot hold them."""
        if self.episodes:
            replay.add(*self.episodes)

    def state_dict(self) -> dict[str, Any]:
        """As dicts, lists and tensors, for a checkpoint."""
        return {
            "episodes": [*map(episode_state, self.episodes)],
            "failures": self.failures,
            "policy_failed": self.policy_failed,
        }


class _Player:
    """Environments and a policy, in the process that plays."""

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
        seeds = [derive(assignment.seed, RESETS, number) % 2**31 for number in range(first, last)]  # some take a C int
        noise = generator(assignment.seed, NOISE, assignment.round, assignment.group)
        try:
            played = self.runner.run(policy, seeds, noise)
        except PolicyFailed as error:
            return EpisodeRound([], [], str(error))
        return EpisodeRound([episode for episode in played.episodes if episode is not None], played.failures)


class EpisodeCollector:
    """Plays rounds of whole episodes. `start` a round, learn meanwhile, `finish` it.

    Raises RunFailed where a worker process ends by itself; what it raised is raised here.
    """

    def __init__(self, plan: Plan, seeds: Sequence[int], workers: int = 0) -> None:
        self.plan, self.seeds = plan, tuple(seeds)
        self.groups = -(-plan.num_envs // GROUP)
        self._player = _Player(plan) if workers == 0 else None
        self._workers = [_Worker(plan) for _ in range(min(workers, len(seeds) * self.groups))]
        self._playing: dict[int, list[Iterator[EpisodeRound]]] = {}

    def start(self, members: Mapping[int, Member[Episodic]]) -> None:
        """Begin a round of some seeds, by index."""
        parameters = {index: _parameters(member.algorithm) for index, member in members.items()}
        assignments = [
            (index, _Assignment(parameters[index], member.steps, self.seeds[index], member.rounds, group))
            for index, member in members.items()
            for group in range(self.groups)
        ]
        self._playing = {index: [] for index in members}
        for number, (index, assignment) in enumerate(assignments):
            if self._player is not None:
                self._playing[index].append(iter([self._player.play(assignment)]))
            else:
                self._playing[index].append(self._workers[number % len(self._workers)].submit(assignment))

    def finish(self) -> dict[int, EpisodeRound]:
        """What was played in the round that was started last, by the index of the seed."""
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
        """A round from a checkpoint."""
        return EpisodeRound(**{**state, "episodes": [*map(episode_from_state, state["episodes"])]})

    def state_dict(self) -> dict[str, Any]:
        """Nothing: between two rounds no episode is unfinished."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    def close(self) -> None:
        """End the workers, and close the environments."""
        if self._player is not None:
            self._player.runner.close()
        for worker in self._workers:
            worker.close()

    def __enter__(self) -> EpisodeCollector:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _parameters(algorithm: Episodic) -> Parameters:
    """The parameters that its policies read, on the host: copies."""
    networks = {name: algorithm.learner.parameters_of(name) for name in algorithm.needs.acting}
    return {
        name: {key: value.cpu().numpy().copy() for key, value in parameters.items()}
        for name, parameters in networks.items()
    }


class _Worker:
    """A process with a player. Assignments are answered in the order in which they were submitted."""

    def __init__(self, plan: Plan) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, plan), daemon=True)
        self.process.start()
        theirs.close()
        Finalize(self, self.connection.close, exitpriority=0)  # of one that nobody closed, before we are waited for

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
        self.connection.close()  # it ends where it reads, or where it writes
        self.process.join()


def _serve(connection: Connection, plan: Plan) -> None:
    """The worker process: play what is asked for until the other end is closed."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach the whole group; the learner ends us
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    assignments: SimpleQueue[_Assignment | None] = SimpleQueue()
    # Read at once, so that neither end waits for the other to take what it sends.
    threading.Thread(target=_receive, args=(connection, assignments), daemon=True).start()
    player: _Player | None = None
    with suppress(BrokenPipeError, ConnectionResetError):
        while (assignment := assignments.get()) is not None:
            try:
                player = player or _Player(plan)
                answer: Any = player.play(assignment)
            except Exception as error:  # whatever it is: it is raised where the learner is
                answer = error
            connection.send(answer)


def _receive(connection: Connection, assignments: SimpleQueue[_Assignment | None]) -> None:
    with suppress(EOFError, OSError):
        while True:
            assignments.put(connection.recv())
    assignments.put(None)
