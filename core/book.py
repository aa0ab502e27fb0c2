"""Records of a run during training: log lines, evaluations, checkpoints, signals."""

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
from herdbook.core.random import generator, restore_generator
from herdbook.core.runner import PolicyFailed
from herdbook.core.runs import JSONL, JSONLines, Run, RunError, RunFailed
from herdbook.core.types import Algorithm, Metrics

SAMPLING = 100  # stream of randomness from which one seed draws its batches
Evaluate = Callable[[int, int], Mapping[str, Any]]  # (seed index, step) → a line of evaluations.jsonl without these two


@dataclass(frozen=True)
class Stopped:
    """Step and reason at which a seed stopped, and the step of its last good checkpoint, which is kept."""

    step: int
    reason: str
    checkpoint: int


class Book:
    """State of a run beside its algorithm: files, generators, latest metrics, stopped seeds. It writes them to disk."""

    def __init__(
        self, algorithm: Algorithm, run: Run, reporter: Reporter, extra: Mapping[str, Any], device: str | torch.device
    ) -> None:
        self.algorithm, self.run, self.reporter, self.extra, self.device = algorithm, run, reporter, extra, device
        self.files = {name: JSONLines(run.path / name) for name in JSONL}
        self.generators = [generator(seed, SAMPLING, device=device) for seed in run.seeds]
        self.metrics: Metrics = {}
        self.stopped: dict[int, Stopped] = {}
        self.checked = 0  # the last step at which all losses were finite
        self.more = False  # another loop will use the reporter
        self.protected: set[int] = set()  # steps of checkpoints that are never removed
        self.restored: Mapping[str, Any] = {}  # the loop's part of the checkpoint, after `restore`
        self.updates: int | None = None  # updates per seed so far, if steps count environment steps
        self.seconds, self.started, self.timed = 0.0, time.perf_counter(), (0, 0, 0.0)

    @property
    def loop(self) -> Mapping[str, Any]:
        """The loop's own state from the checkpoint; empty at the start of a run."""
        return self.restored.get("loop") or {}

    @property
    def active(self) -> list[int]:
        """Indices of the seeds that have not stopped."""
        return [index for index, seed in enumerate(self.run.seeds) if seed not in self.stopped]

    def __enter__(self) -> Book:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if self.more and kind is None:
            self.reporter.pause()
        else:
            self.reporter.close()
        for file in self.files.values():
            file.close()

    def restore(self) -> int:
        """Restore the last checkpoint and cut the files to its lengths; returns its step, 0 without one."""
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
            restore_generator(own, saved, seed, SAMPLING, step)
        self.metrics = {name: value.to(self.device) for name, value in state["metrics"].items()}
        self.stopped = {int(seed): Stopped(**record) for seed, record in state["stopped"].items()}
        self.checked = step
        self.restored = {name: state.get(name) for name in ("loop", "replay")}
        self.seconds = float(state["seconds"])
        self.timed = (step, self.updates or 0, self.seconds)
        for name, file in self.files.items():
            file.truncate(state["files"][name])
        return step

    def check(self, step: int, log: bool) -> None:
        """Read the metrics from the device, stop seeds whose losses are not finite, and write the log lines."""
        values = _read(self.metrics, len(self.run.seeds))
        for index in self.active:
            seed = self.run.seeds[index]
            mine = {name: per_seed[index] for name, per_seed in values.items()}
            bad = next((n for n, v in mine.items() if n.startswith("loss/") and not math.isfinite(v)), None)
            line: dict[str, Any] = {"step": step, "seed": seed, **mine}
            if bad is not None:
                line["stopped"] = f"{bad} is {mine[bad]}"
                self.stop(step, seed, line["stopped"])
            if log or bad is not None:
                self.files["metrics.jsonl"].write(line)
                self.reporter.metrics(step, seed, mine)
        self.refuse_none_left()
        self.checked = step
        if log:
            self._time(step)

    def stop(self, step: int, seed: int, reason: str) -> None:
        """Stop training this seed and keep its last good checkpoint."""
        # A checkpoint's parameters are known to be good only if the losses at a later step were finite.
        good = max((c for c in self.run.checkpoints.steps() if c < max(self.checked, 1)), default=0)
        self.stopped[seed] = Stopped(step, reason, good)
        kept = self.run.checkpoints.path(good)
        self.reporter.notice(f"seed {seed} stops at step {step}: {reason}; its last good checkpoint is kept: {kept}")

    def refuse_none_left(self) -> None:
        """Raise RunFailed if every seed has stopped."""
        if len(self.stopped) == len(self.run.seeds):
            reasons = "; ".join(f"seed {seed}: {why.reason} at step {why.step}" for seed, why in self.stopped.items())
            raise RunFailed(f"{self.run.path}: no seed is left: {reasons}; its checkpoints up to there are kept")

    def evaluate(self, step: int, function: Evaluate) -> None:
        """Evaluate every active seed and write the lines; a seed whose actions are not finite stops."""
        for index in self.active:
            seed = self.run.seeds[index]
            try:
                line = {"step": step, "seed": seed, **function(index, step)}
            except PolicyFailed as error:  # the loss was finite, but the parameters after its update are not
                self.stop(step, seed, str(error))
                continue
            self.files["evaluations.jsonl"].write(line)
            self.reporter.evaluation(line)
        self.refuse_none_left()

    def checkpoint(
        self, step: int, loop: Mapping[str, Any] | None = None, replay: Mapping[str, Any] | None = None
    ) -> None:
        """Write everything from which the run can be resumed, including the loop's own state `loop`.

        Only the newest checkpoint keeps its `replay`. Raises RunFailed if the checkpoint cannot be written.
        """
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
            "loop": loop or {},
            "files": {name: file.sync() for name, file in self.files.items()},
        }
        try:
            protected = self.protected | {record.checkpoint for record in self.stopped.values()}
            self.run.checkpoints.save(step, state, protected, replay=replay)
        except CheckpointError as error:
            raise RunFailed(str(error)) from error

    def _elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self.started

    def _time(self, step: int) -> None:
        seconds, updates = self._elapsed(), self.updates or 0
        before, updates_before, at = self.timed
        self.timed, took = (step, updates, seconds), max(seconds - at, 1e-9)
        rates = {"updates_per_second": round((step - before) / took, 2)}
        if self.updates is not None:
            rates["environment_steps_per_second"] = rates["updates_per_second"]
            rates["updates_per_second"] = round((updates - updates_before) / took, 2)
        self.files["timing.jsonl"].write({"step": step, "seconds": round(seconds, 3), **rates})


def _read(metrics: Metrics, seeds: int) -> dict[str, list[float]]:
    """Metrics, each [] or [S], as lists of S numbers, in one transfer from the device."""
    if not metrics:
        return {}
    table = torch.stack([value.detach().to(torch.float32).expand(seeds) for value in metrics.values()]).tolist()
    return dict(zip(metrics, table, strict=True))


class Signals:
    """Turns SIGINT and SIGTERM into a flag for the loop to read; a second signal ends the process at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
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

    def leave(self, book: Book, step: int) -> NoReturn:
        """Tell the user how to resume, and raise KeyboardInterrupt (SIGINT) or SystemExit(143) (SIGTERM)."""
        book.reporter.notice(f"interrupted at step {step:,}; `herdbook resume {book.run.path}` continues the run")
        if self.received == signal.SIGTERM:
            raise SystemExit(143)
        raise KeyboardInterrupt
