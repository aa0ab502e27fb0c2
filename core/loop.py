"""The two training loops, offline and online. Sample, update, and periodically log, evaluate and checkpoint.

The loops wait for the device only to log, evaluate or checkpoint. A resumed run equals an uninterrupted one bit for
bit: the checkpoint holds every random generator, and it is written after the log and evaluation lines of its step, with
the lengths of their files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from herdbook.core.book import Book, Evaluate, Signals, Stopped
from herdbook.core.checkpoint import CheckpointError
from herdbook.core.collector import FAILURES, Collector
from herdbook.core.logging import Reporter
from herdbook.core.member import Member
from herdbook.core.runs import Run, RunError, RunFailed
from herdbook.core.seeds import SeedBySeed, stacked
from herdbook.core.types import OffPolicy, Replay, Round


@dataclass(frozen=True, kw_only=True)
class Cadence:
    """Numbers of steps between log lines, between evaluations and between checkpoints. Each must be at least 1."""

    log: int
    evaluate: int
    checkpoint: int

    def __post_init__(self) -> None:
        for name in ("log", "evaluate", "checkpoint"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name}_every of at least 1 step, got {getattr(self, name)}")

    @classmethod
    def of(cls, steps: int, log: int | None, evaluate: int | None, checkpoint: int | None) -> Cadence:
        """Replace None by defaults: log every 1 % of the steps (at most 1,000), evaluate every 10 %, checkpoint 5 %."""
        return cls(
            log=max(min(steps // 100, 1_000), 1) if log is None else log,
            evaluate=max(steps // 10, 1) if evaluate is None else evaluate,
            checkpoint=max(steps // 20, 1) if checkpoint is None else checkpoint,
        )


def train_offline(
    algorithm: OffPolicy[Any],
    replay: Replay,
    run: Run,
    *,
    steps: int,
    cadence: Cadence,
    evaluate: Evaluate | None = None,
    reporter: Reporter | None = None,
    extra: Mapping[str, Any] | None = None,
    device: str | torch.device = "cpu",
    more: bool = False,
) -> dict[int, Stopped]:
    """Train all seeds of `run` until each has made `steps` updates, from its last checkpoint if there is one.

    Every checkpoint also stores `extra`. With `more`, the reporter stays open for another loop. Returns the seeds that
    stopped early. Raises RunFailed if all seeds stopped or the disk is full; after a signal it writes a checkpoint and
    raises KeyboardInterrupt (SIGINT) or SystemExit(143) (SIGTERM).
    """
    book = Book(algorithm, run, reporter or Reporter(run.path, steps, run.seeds, quiet=True), extra or {}, device)
    with book, Signals() as signals:
        step, book.more = book.restore(), more
        book.reporter.start(step)
        if step == 0 and run.checkpoints.last() is None:
            if steps == 0 and evaluate is not None:
                book.evaluate(step, evaluate)
            book.checkpoint(step)
        while step < steps:
            book.metrics.update(algorithm.update(algorithm.sample(replay, book.generators)))
            step += 1
            book.reporter.advance(step)
            interrupted = signals.received is not None
            if _record(book, cadence, evaluate, step - 1, step, steps, interrupted):
                book.checkpoint(step)
            if interrupted:
                signals.leave(book, step)
    return book.stopped


def train_online(
    algorithm: SeedBySeed,
    replays: Sequence[Any],
    collector: Collector,
    run: Run,
    *,
    steps: int,
    cadence: Cadence,
    evaluate: Evaluate | None = None,
    reporter: Reporter | None = None,
    extra: Mapping[str, Any] | None = None,
    device: str | torch.device = "cpu",
    start: int | None = None,
) -> dict[int, Stopped]:
    """Train all seeds of `run` to `steps` environment steps each, from its last checkpoint if there is one.

    Each round adds every seed's experience to its replay, starts the next round and makes the updates that are due. An
    `EpisodeCollector` plays during these updates, a `StepCollector` after them. The step of the run is the smallest
    step count of any seed. A log line, evaluation or checkpoint is written after the round that reaches its step.
    Arguments and errors are those of `train_offline`; also raises RunFailed if an environment keeps failing.

    start: The run fine-tunes algorithms (`FineTuned`) that have made `start` offline updates, which count as steps and
        as updates. It continues to step `steps` from the checkpoint of step `start`, which is never removed.
    """
    reporter = reporter or Reporter(run.path, steps, run.seeds, quiet=True)
    with collector, Book(algorithm, run, reporter, extra or {}, device) as book, Signals() as signals:
        members = [Member[Any](*parts) for parts in zip(algorithm.algorithms, replays, book.generators, strict=True)]
        step = book.restore()
        if start is not None:
            book.protected.add(start)
            for one in algorithm.algorithms:
                one.begin()
        behind = start or 0
        played: Mapping[int, Round] | None = _restore(book, step, behind, members, collector)
        book.reporter.start(step)
        if played is None:
            collector.start({index: members[index] for index in book.active})
            if steps == 0 and evaluate is not None:
                book.evaluate(step, evaluate)
            played = _checkpoint(book, step, members, collector)
        while step < steps:
            for index, batch in played.items():
                _take(book, step, index, members[index], batch)
            collector.start({index: members[index] for index in book.active})
            for index in book.active:
                members[index].learn()
            before, step = step, min(steps, *(behind + members[index].steps for index in book.active))
            book.updates = behind + min(members[index].updates for index in book.active)
            book.metrics.update(stacked([member.metrics for member in members], book.active))
            book.reporter.advance(step)
            interrupted = signals.received is not None
            save = _record(book, cadence, evaluate, before, step, steps, interrupted)
            played = _checkpoint(book, step, members, collector) if save else collector.finish()
            if interrupted:
                signals.leave(book, step)
    return book.stopped


def _record(
    book: Book, cadence: Cadence, evaluate: Evaluate | None, before: int, step: int, steps: int, interrupted: bool
) -> bool:
    """Write the log and evaluation lines due after `before` and by `step`; returns whether a checkpoint is due too."""
    periods = (cadence.log, cadence.evaluate, cadence.checkpoint)
    log, score, save = (step == steps or step // every > before // every for every in periods)
    score, save = score and evaluate is not None, save or interrupted
    if log or score or save:
        book.check(step, log)
    if score and evaluate is not None:
        book.evaluate(step, evaluate)
    return save


def _take(book: Book, step: int, index: int, member: Member[Any], played: Round) -> None:
    """Add a seed's round to its replay. Raises RunFailed if the environment keeps failing or the replay refuses it."""
    if index not in book.active:  # the seed stopped after this round had started
        return
    if played.policy_failed is not None:
        book.stop(step, book.run.seeds[index], played.policy_failed)
        book.refuse_none_left()
        return
    try:
        member.add(played)
    except ValueError as error:
        raise RunFailed(f"{book.run.path}: the replay cannot hold the collected steps: {error}") from error
    for failure in played.failures:
        book.reporter.notice(f"warning: an episode is lost ({member.lost} so far): {failure}")
    if member.lost_in_a_row >= FAILURES:
        lost = f"the environment failed in {member.lost_in_a_row} episodes in a row"
        raise RunFailed(f"{book.run.path}: {lost}: {played.failures[-1]}")


def _checkpoint(book: Book, step: int, members: Sequence[Member[Any]], collector: Collector) -> Mapping[int, Round]:
    """Finish the current round and write a checkpoint that includes it; returns the round."""
    played = collector.finish()
    loop: dict[str, Any] = {
        "members": [member.state_dict() for member in members],
        "played": {str(index): batch.state_dict() for index, batch in played.items()},
        "collector": collector.state_dict(),
    }
    book.checkpoint(step, loop, {"replays": [member.replay.state_dict() for member in members]})
    return played


def _restore(
    book: Book, step: int, behind: int, members: Sequence[Member[Any]], collector: Collector
) -> Mapping[int, Round] | None:
    """Restore counters and replays, and return the last round; None if no environment step has been taken yet."""
    if not book.loop:
        if behind:
            book.updates, book.timed = behind, (behind, behind, book.seconds)
        return None
    try:
        replays = book.run.checkpoints.load_replay(book.restored)["replays"]
        for member, counters, replay in zip(members, book.loop["members"], replays, strict=True):
            member.load_state_dict(counters)
            member.replay.load_state_dict(replay)
        collector.load_state_dict(book.loop.get("collector", {}))
    except (CheckpointError, ValueError, KeyError) as error:
        raise RunError(f"{book.run.checkpoints.path(step)}: its replay cannot be restored: {error}") from error
    book.updates = behind + min(members[index].updates for index in book.active)
    book.timed = (step, book.updates, book.seconds)
    return {int(index): collector.restored(batch) for index, batch in book.loop["played"].items()}
