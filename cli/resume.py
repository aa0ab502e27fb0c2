"""`herdbook resume RUN_DIR [--steps N]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from herdbook.cli.parse import parse, show


@dataclass(frozen=True, kw_only=True)
class ResumeArguments:
    """Continue an interrupted run exactly where its last checkpoint is, or extend a finished one."""

    run_dir: tyro.conf.Positional[str]
    """The run's directory."""
    steps: int | None = None
    """Updates in all; by default those that the run was begun with."""
    online_steps: int | None = None
    """Of a run that is fine-tuned: its environment steps in all."""
    algorithm: str | None = None
    """module:Class, for a run of your own algorithm."""
    env: str | None = None
    """module:callable, for a run that is evaluated in your own environment."""
    dataset: str | None = None
    """Where the dataset is now, if it was moved; its content must be the same."""
    data_dir: str | None = None
    """Where Minari datasets are, if they were moved."""
    device: str | None = None
    """By default the one that the run was begun on."""
    workers: int | None = None
    """Processes that step environments; by default as many as the run was begun with."""


def run(arguments: Sequence[str]) -> int:
    """Resume; returns the exit status."""
    parsed = parse(ResumeArguments, arguments, "resume")

    from herdbook.cli.train import report
    from herdbook.core.memory import keep_freed_memory
    from herdbook.experiments.train import resume

    keep_freed_memory()
    result, continued = resume(
        parsed.run_dir,
        steps=parsed.steps,
        online_steps=parsed.online_steps,
        algorithm=parsed.algorithm,
        env=parsed.env,
        dataset=parsed.dataset,
        data_dir=parsed.data_dir,
        device=parsed.device,
        workers=parsed.workers,
    )
    if not continued:
        last = result.checkpoints.last()
        name = "online-steps" if result.options.get("online_steps") else "steps"
        show(f"{result.path}: finished at step {last:,}; nothing to do (--{name} N extends it)")
    report(result)
    return 0
