"""The training loops: offline, and with environments. Sample, update, and at their cadences log, evaluate, checkpoint.

Nothing in a loop's body waits for the device except where it logs, evaluates or checkpoints. A run that is continued
from a checkpoint equals the uninterrupted one to the bit: everything random is a generator in the checkpoint, and the
checkpoint of a step is written after that step's log and evaluation lines, whose files it knows the length of.
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
    """After how many updates a line is logged, the policies are evaluated and a checkpoint is written."""

    log: int
    evaluate: int
    checkpoint: int

    def __post_init__(self) -> None:
        for name in ("log", "evaluate", "checkpoint"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name}_every of at least 1 step, got {getattr(self, name)}")

    @classmethod
    def of(cls, steps: int, log: int | None, evaluate: int | None, checkpoint: int | None) -> Cadence:
        """Defaults for what is None: log 1 % of the steps (at most 1,000), evaluate 10 %, checkpoint 5 %."""
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
    """Train all seeds of `run` to `steps` updates, from its last checkpoint if it has one.

    `extra` is stored in every checkpoint. `more`: another loop follows, so that the reporter stays open. Returns the
    seeds that stopped. Raises RunFailed when all have stopped or the disk is full, and KeyboardInterrupt (SIGINT) or
    SystemExit(143) (SIGTERM) after a checkpoint.
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
            last, interrupted = step == steps, signals.received
            log = last or step % cadence.log == 0
            save = last or step % cadence.checkpoint == 0 or interrupted
            score = evaluate is not None and (last or step % cadence.evaluate == 0)
            if log or save or score:
                book.check(step, log)
            if evaluate is not None and score:
                book.evaluate(step, evaluate)
            if save:
                book.checkpoint(step)
            if interrupted:
                book.reporter.notice(f"interrupted at step {step:,}; `herdbook resume {run.path}` goes on from there")
                signals.leave()
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
    """Train all seeds of `run` for `steps` environment steps each, from its last checkpoint if it has one.

    In rounds: what every seed played goes into its replay, the next round is begun, and the updates that are due are
    made. An `EpisodeCollector` plays meanwhile, a `StepCollector` after them. The run is at the step of the seed that
    has the fewest; a cadence falls due with the round that reaches it. Arguments and errors as in `train_offline`;
    RunFailed also where an environment keeps failing.

    With `start`, algorithms that were trained on a dataset so far are fine-tuned (`FineTuned`): so many updates are
    behind them, which count as steps and as updates. The run goes on from the checkpoint of step `start`, which is
    kept, to step `steps`.
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
            interrupted = signals.received
            log = _falls_due(cadence.log, before, step, steps)
            save = _falls_due(cadence.checkpoint, before, step, steps) or interrupted
            score = evaluate is not None and _falls_due(cadence.evaluate, before, step, steps)
            if log or save or score:
                book.check(step, log)
            if evaluate is not None and score:
                book.evaluate(step, evaluate)
            played = _checkpoint(book, step, members, collector) if save else collector.finish()
            if interrupted:
                book.reporter.notice(f"interrupted at step {step:,}; `herdbook resume {run.path}` goes on from there")
                signals.leave()
    return book.stopped


def _falls_due(every: int, before: int, step: int, steps: int) -> bool:
    return step == steps or step // every > before // every


def _take(book: Book, step: int, index: int, member: Member[Any], played: Round) -> None:
    """A seed's round into its replay. Raises RunFailed where the environment keeps failing, or it does not fit."""
    if index not in book.active:  # it stopped after this round had begun
        return
    if played.policy_failed is not None:
        book.stop(step, book.run.seeds[index], played.policy_failed)
        book.refuse_none_left()
        return
    try:
        member.add(played)
    except ValueError as error:
        raise RunFailed(f"{book.run.path}: what was played cannot be kept: {error}") from error
    for failure in played.failures:
        book.reporter.notice(f"warning: an episode is lost ({member.lost} so far): {failure}")
    if member.lost_in_a_row >= FAILURES:
        raise RunFailed(
            f"{book.run.path}: the environment failed in {member.lost_in_a_row} episodes in a row: "
            f"{played.failures[-1]}"
        )


def _checkpoint(book: Book, step: int, members: Sequence[Member[Any]], collector: Collector) -> Mapping[int, Round]:
    """Write a checkpoint, which holds what was played meanwhile; returns that."""
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
    """Counters, replays, and what had been played already; None where playing begins, `behind` updates being made."""
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
