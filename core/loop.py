"""The offline training loop: sample, update, and at their cadences log, evaluate and checkpoint.

Nothing in the loop's body waits for the device except where it logs, evaluates or checkpoints. A run that is continued
from a checkpoint equals the uninterrupted one to the bit: everything random is a generator in the checkpoint, and the
checkpoint of a step is written after that step's log and evaluation lines, whose files it knows the length of.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any, NoReturn

import torch

from herdbook.core.checkpoint import CheckpointError
from herdbook.core.logging import Reporter
from herdbook.core.random import derive, generator
from herdbook.core.rollout import PolicyFailed
from herdbook.core.runs import JSONL, JSONLines, Run, RunError, RunFailed
from herdbook.core.types import Metrics, OffPolicy, Replay

SAMPLING = 100  # stream of randomness of the index draws of one seed
Evaluate = Callable[[int, int], Mapping[str, Any]]
"""(seed index, step) → the line of evaluations.jsonl but for its step and seed."""


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


@dataclass(frozen=True)
class Stopped:
    """Why a seed stopped, at which step, and the step of its last good checkpoint, which is kept."""

    step: int
    reason: str
    checkpoint: int


def train_offline(
    algorithm: OffPolicy,
    replay: Replay,
    run: Run,
    *,
    steps: int,
    cadence: Cadence,
    evaluate: Evaluate | None = None,
    reporter: Reporter | None = None,
    extra: Mapping[str, Any] | None = None,
    device: str | torch.device = "cpu",
) -> dict[int, Stopped]:
    """Train all seeds of `run` to `steps` updates, from its last checkpoint if it has one.

    `extra` is stored in every checkpoint. Returns the seeds that stopped. Raises RunFailed when all have
    stopped or the disk is full, and KeyboardInterrupt (SIGINT) or SystemExit(143) (SIGTERM) after a checkpoint.
    """
    book = _Book(algorithm, run, reporter or Reporter(run.path, steps, run.seeds, quiet=True), extra or {}, device)
    with book, _Signals() as signals:
        step = book.restore()
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


class _Book:
    """What a run remembers: files, generators, latest metrics, seeds that stopped; and how it is written."""

    def __init__(
        self,
        algorithm: OffPolicy,
        run: Run,
        reporter: Reporter,
        extra: Mapping[str, Any],
        device: str | torch.device,
    ) -> None:
        self.algorithm, self.run, self.reporter, self.extra, self.device = algorithm, run, reporter, extra, device
        self.files = {name: JSONLines(run.path / name) for name in JSONL}
        self.generators = [generator(seed, SAMPLING, device=device) for seed in run.seeds]
        self.metrics: Metrics = {}
        self.stopped: dict[int, Stopped] = {}
        self.checked = 0  # the last step whose losses were found finite
        self.seconds, self.started, self.timed = 0.0, time.perf_counter(), (0, 0.0)

    def __enter__(self) -> _Book:
        return self

    def __exit__(self, *exception: object) -> None:
        self.reporter.close()
        for file in self.files.values():
            file.close()

    def restore(self) -> int:
        """Go back to the last checkpoint, the files with it; returns its step, 0 without one."""
        if (step := self.run.checkpoints.last()) is None:
            for file in self.files.values():
                file.truncate(0)
            return 0
        state = self.run.checkpoints.load()
        if state["algorithm"] != self.run.algorithm or list(state["seeds"]) != list(self.run.seeds):
            raise RunError(
                f"{self.run.checkpoints.path(step)}: expected a checkpoint of {self.run.algorithm} with seeds "
                f"{list(self.run.seeds)}, got {state['algorithm']} with seeds {state['seeds']}"
            )
        try:
            self.algorithm.load_state_dict(state["state"])
        except (ValueError, KeyError, RuntimeError) as error:
            raise RunError(f"{self.run.checkpoints.path(step)}: does not fit this run: {error}") from error
        for seed, own, saved in zip(self.run.seeds, self.generators, state["generators"], strict=True):
            if saved.shape == own.get_state().shape:
                own.set_state(saved)
            else:  # of another kind of device: its draws cannot be continued here, others follow, the same every time
                own.manual_seed(derive(seed, SAMPLING, step))
        self.metrics = {name: value.to(self.device) for name, value in state["metrics"].items()}
        self.stopped = {int(seed): Stopped(**record) for seed, record in state["stopped"].items()}
        self.checked = step
        self.seconds = float(state["seconds"])
        self.timed = (step, self.seconds)
        for name, file in self.files.items():
            file.truncate(state["files"][name])
        return step

    def check(self, step: int, log: bool) -> None:
        """Read the metrics from the device, stop seeds whose losses are not finite, and write the log lines."""
        values = _read(self.metrics, len(self.run.seeds))
        for index, seed in enumerate(self.run.seeds):
            if seed in self.stopped:
                continue
            mine = {name: per_seed[index] for name, per_seed in values.items()}
            bad = next((n for n, v in mine.items() if n.startswith("loss/") and not math.isfinite(v)), None)
            line: dict[str, Any] = {"step": step, "seed": seed, **mine}
            if bad is not None:
                line["stopped"] = f"{bad} is {mine[bad]}"
                self._stop(step, seed, line["stopped"])
            if log or bad is not None:
                self.files["metrics.jsonl"].write(line)
                self.reporter.metrics(step, seed, mine)
        self._refuse_none_left()
        self.checked = step
        if log:
            self._time(step)

    def _stop(self, step: int, seed: int, reason: str) -> None:
        # Finite losses at a later step are what proves a checkpoint's parameters good.
        good = max((c for c in self.run.checkpoints.steps() if c < max(self.checked, 1)), default=0)
        self.stopped[seed] = Stopped(step, reason, good)
        kept = self.run.checkpoints.path(good)
        self.reporter.notice(f"seed {seed} stops at step {step}: {reason}; its last good checkpoint is kept: {kept}")

    def _refuse_none_left(self) -> None:
        if len(self.stopped) == len(self.run.seeds):
            reasons = "; ".join(f"seed {seed}: {why.reason} at step {why.step}" for seed, why in self.stopped.items())
            raise RunFailed(f"{self.run.path}: no seed is left: {reasons}; its checkpoints up to there are kept")

    def evaluate(self, step: int, function: Evaluate) -> None:
        """Evaluate every seed that still learns, and write the lines; one whose actions are not finite stops."""
        for index, seed in enumerate(self.run.seeds):
            if seed in self.stopped:
                continue
            try:
                line = {"step": step, "seed": seed, **function(index, step)}
            except PolicyFailed as error:  # the loss was finite, and this very update's parameters are not
                self._stop(step, seed, str(error))
                continue
            self.files["evaluations.jsonl"].write(line)
            self.reporter.evaluation(line)
        self._refuse_none_left()

    def checkpoint(self, step: int) -> None:
        """Everything that the run needs to go on from here. Raises RunFailed if it cannot be written."""
        state = {
            **self.extra,
            "step": step,
            "algorithm": self.run.algorithm,
            "seeds": list(self.run.seeds),
            "state": self.algorithm.state_dict(),
            "generators": self.generators,
            "metrics": self.metrics,
            "stopped": {str(seed): asdict(record) for seed, record in self.stopped.items()},
            "seconds": self._elapsed(),
            "files": {name: file.sync() for name, file in self.files.items()},
        }
        try:
            self.run.checkpoints.save(step, state, {record.checkpoint for record in self.stopped.values()})
        except CheckpointError as error:
            raise RunFailed(str(error)) from error

    def _elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self.started

    def _time(self, step: int) -> None:
        seconds = self._elapsed()
        rate = (step - self.timed[0]) / max(seconds - self.timed[1], 1e-9)
        self.timed = (step, seconds)
        self.files["timing.jsonl"].write(
            {"step": step, "seconds": round(seconds, 3), "updates_per_second": round(rate, 2)}
        )


def _read(metrics: Metrics, seeds: int) -> dict[str, list[float]]:
    """Metrics, each [] or [S], as lists of S numbers, in one transfer from the device."""
    if not metrics:
        return {}
    table = torch.stack([value.detach().to(torch.float32).expand(seeds) for value in metrics.values()]).tolist()
    return dict(zip(metrics, table, strict=True))


class _Signals:
    """Turns SIGINT and SIGTERM into a flag that the loop reads; a second one ends the process at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():  # handlers can only be set there
            self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def leave(self) -> NoReturn:
        if self.received == signal.SIGTERM:
            raise SystemExit(143)
        raise KeyboardInterrupt
