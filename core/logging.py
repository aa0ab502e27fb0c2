"""What people see of a run while it trains: a progress bar or plain lines, TensorBoard, Weights & Biases."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_REFRESH = 0.2  # seconds between redraws of the bar
_PLAIN = 10.0  # seconds between plain lines, unless there is a score to tell


class Reporter:
    """Shows the progress of one run and sends its numbers to TensorBoard and, if asked, to Weights & Biases.

    Args:
        path: The run directory; TensorBoard's event file is written there.
        steps: Updates at which the run ends.
        seeds: The run's seeds.
        wandb: Project at Weights & Biases (the extra `wandb`), or None.
        quiet: Show nothing.
        tensorboard: Write an event file.
        console: Where to show it; by default standard output, with a bar on a terminal and lines elsewhere.

    Raises:
        ImportError: `wandb` is asked for and not installed; the message names the extra.
    """

    def __init__(
        self,
        path: Path,
        steps: int,
        seeds: Sequence[int],
        *,
        wandb: str | None = None,
        config: Mapping[str, Any] | None = None,
        quiet: bool = False,
        tensorboard: bool = False,
        console: Console | None = None,
    ) -> None:
        self.path, self.steps, self.seeds = path, steps, tuple(seeds)
        self.console = console or Console(quiet=quiet, soft_wrap=True, highlight=False)
        self.scores: dict[int, str] = {}
        self._first, self._step = 0, 0
        self._started = self._shown = time.perf_counter()
        self._bar: Progress | None = None
        self._wandb = _start_wandb(wandb, path, config or {}) if wandb else None
        self._tensorboard = tensorboard
        self._writer: Any = None

    def start(self, step: int = 0) -> None:
        """Begin to show, from `step` on; the clock of the rate starts here."""
        self._first = self._step = step
        if step:
            self.notice(f"{self.path}: goes on from step {step:,}")
        if self._tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # What a killed run had sent beyond its checkpoint is hidden; it comes again.
            self._writer = SummaryWriter(str(self.path), purge_step=step + 1)
        self._started = self._shown = time.perf_counter()
        if self.console.is_terminal and not self.console.quiet:
            columns = ("[bold]{task.description}", BarColumn(), MofNCompleteColumn(), "{task.fields[rate]}")
            self._bar = Progress(
                *(TextColumn(c) if isinstance(c, str) else c for c in columns),
                TimeRemainingColumn(),
                TextColumn("{task.fields[scores]}"),
                console=self.console,
                auto_refresh=False,
            )
            self._bar.add_task(self.path.name, total=max(self.steps, 1), completed=step, rate="", scores="")
            self._bar.start()

    def advance(self, step: int) -> None:
        """One more update has been made. Cheap: draws only now and then."""
        self._step = step
        if (now := time.perf_counter()) - self._shown > (_PLAIN if self._bar is None else _REFRESH):
            self._show(now)

    def metrics(self, step: int, seed: int, values: Mapping[str, float]) -> None:
        """The metrics of one seed at a log step."""
        self._send(step, seed, values)

    def evaluation(self, line: Mapping[str, Any]) -> None:
        """One line of evaluations.jsonl."""
        seed, score = int(line["seed"]), line.get("normalized_score")
        self.scores[seed] = f"{line['return_mean']:.1f}" + ("" if score is None else f" ({score:.1f})")
        numbers = {"return_mean": line["return_mean"], "return_std": line["return_std"], "normalized_score": score}
        values = {f"evaluation/{name}": float(number) for name, number in numbers.items() if number is not None}
        self._send(int(line["step"]), seed, values)
        if seed == self.seeds[-1] or self._bar is not None:
            self._show(time.perf_counter())

    def notice(self, text: str) -> None:
        """Tell the user something, above the bar."""
        self.console.print(text, markup=False)

    def pause(self) -> None:
        """End the bar and TensorBoard's file; `start` begins them anew."""
        if self._bar is not None:
            self._show(time.perf_counter())
            self._bar.stop()
        self._to_tensorboard(lambda writer: writer.close())
        self._bar = self._writer = None

    def close(self) -> None:
        """End the bar and the writers."""
        self.pause()
        if self._wandb is not None:
            self._wandb.finish()

    def _show(self, now: float) -> None:
        self._shown = now
        rate = (self._step - self._first) / max(now - self._started, 1e-9)
        scores = ", ".join(f"seed {seed}: {score}" for seed, score in self.scores.items())
        scores = f"return (score) {scores}" if scores else ""
        if self._bar is not None:
            task = self._bar.tasks[0].id
            self._bar.update(task, completed=self._step, rate=f"{rate:,.0f}/s", scores=scores)
            self._bar.refresh()
            return
        left = (self.steps - self._step) / rate if rate > 0 else 0.0
        parts = (f"step {self._step:,}/{self.steps:,}", f"{rate:,.0f} steps/s", f"{_duration(left)} left", scores)
        self.notice(" · ".join(part for part in parts if part))

    def _send(self, step: int, seed: int, values: Mapping[str, float]) -> None:
        named = {f"{name}/seed_{seed}" if len(self.seeds) > 1 else name: value for name, value in values.items()}
        self._to_tensorboard(lambda writer: [writer.add_scalar(name, value, step) for name, value in named.items()])
        if self._wandb is not None:
            self._wandb.log({**named, "step": step})

    def _to_tensorboard(self, send: Callable[[Any], object]) -> None:
        """A full disk ends TensorBoard's file, not the run, whose own files say so."""
        if self._writer is None:
            return
        try:
            send(self._writer)
        except OSError as error:
            self._writer = None
            self.notice(f"{self.path}: TensorBoard's file cannot be written and ends here: {error.strerror}")


def _start_wandb(project: str, path: Path, config: Mapping[str, Any]) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ImportError("--wandb needs Weights & Biases: pip install 'herdbook[wandb]'") from error
    return wandb.init(project=project, name=path.name, dir=str(path), config=dict(config))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
