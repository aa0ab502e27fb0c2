"""Progress display of a run: a progress bar or plain lines, TensorBoard, Weights & Biases."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

_REFRESH = 0.2  # seconds between redraws of the bar
_PLAIN = 10.0  # seconds between plain lines, unless there is a new score


class WandbFailed(Exception):
    """Weights & Biases is installed and refuses to start."""


class Reporter:
    """Shows the progress of one run and sends its metrics to TensorBoard and Weights & Biases.

    Args:
        path: The run directory, also of TensorBoard's event file.
        steps: The last step of the run.
        seeds: The run's seeds.
        wandb: A Weights & Biases project (requires the extra `wandb`), or None.
        config: The run's config, for Weights & Biases.
        quiet: Print nothing.
        tensorboard: Write an event file.
        console: Output; by default standard output, with a bar on a terminal and plain lines elsewhere.

    Raises ImportError, which names the extra, if `wandb` is given but not installed; WandbFailed if it does not start.
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
        """Start the display at `step`, and the clock from which rates are computed."""
        self._first = self._step = step
        if step:
            self.notice(f"{self.path}: continues from step {step:,}")
        if self._tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # Hides events that a killed run wrote after its checkpoint, because they will be written again.
            self._writer = SummaryWriter(str(self.path), purge_step=step + 1)
        self._started = self._shown = time.perf_counter()
        if self.console.is_terminal and not self.console.quiet:
            left = ("[bold]{task.description}", BarColumn(), MofNCompleteColumn(), "{task.fields[rate]}")
            right = (TimeRemainingColumn(), "{task.fields[scores]}")
            self._bar = Progress(*left, *right, console=self.console, auto_refresh=False)
            self._bar.add_task(self.path.name, total=max(self.steps, 1), completed=step, rate="", scores="")
            self._bar.start()

    def advance(self, step: int) -> None:
        """Report the current step. Cheap, because it redraws rarely."""
        self._step = step
        if (now := time.perf_counter()) - self._shown > (_PLAIN if self._bar is None else _REFRESH):
            self._show(now)

    def metrics(self, step: int, seed: int, values: Mapping[str, float]) -> None:
        """Send the metrics of one seed to TensorBoard and Weights & Biases."""
        named = {f"{name}/seed_{seed}" if len(self.seeds) > 1 else name: value for name, value in values.items()}
        self._to_tensorboard(lambda writer: [writer.add_scalar(name, value, step) for name, value in named.items()])
        if self._wandb is not None:
            self._wandb.log({**named, "step": step})

    def evaluation(self, line: Mapping[str, Any]) -> None:
        """Report one line of evaluations.jsonl."""
        seed, score = int(line["seed"]), line.get("normalized_score")
        self.scores[seed] = f"{line['return_mean']:.1f}" + ("" if score is None else f" ({score:.1f})")
        numbers = {"return_mean": line["return_mean"], "return_std": line["return_std"], "normalized_score": score}
        values = {f"evaluation/{name}": float(number) for name, number in numbers.items() if number is not None}
        self.metrics(int(line["step"]), seed, values)
        if seed == self.seeds[-1] or self._bar is not None:
            self._show(time.perf_counter())

    def notice(self, text: str) -> None:
        """Print a message above the bar."""
        self.console.print(text, markup=False)

    def pause(self) -> None:
        """Close the bar and TensorBoard's file until the next `start`."""
        if self._bar is not None:
            self._show(time.perf_counter())
            self._bar.stop()
        self._to_tensorboard(lambda writer: writer.close())
        self._bar = self._writer = None

    def close(self) -> None:
        """Close the bar and all writers."""
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

    def _to_tensorboard(self, send: Callable[[Any], object]) -> None:
        """Write to TensorBoard's file; on a full disk, close it without stopping the run."""
        if self._writer is None:
            return
        try:
            send(self._writer)
        except OSError as error:
            self._writer = None
            self.notice(f"{self.path}: TensorBoard's file cannot be written and ends here: {error.strerror}")


def require_wandb() -> Any:
    """The module of Weights & Biases. Raises ImportError, which names the extra, if it cannot be imported."""
    try:
        import wandb
    except ImportError as error:
        raise ImportError("--wandb needs Weights & Biases: pip install 'herdbook[wandb]'") from error
    return wandb


def _start_wandb(project: str, path: Path, config: Mapping[str, Any]) -> Any:
    wandb = require_wandb()
    try:
        return wandb.init(project=project, name=path.name, dir=str(path), config=dict(config))
    except wandb.Error as error:  # no login, no network, a wrong name
        raise WandbFailed(f"--wandb {project}: Weights & Biases does not start: {error}") from error


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
