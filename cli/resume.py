"""`herdbook resume RUN_DIR [--steps N]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from herdbook.cli.parse import parse, show


@dataclass(frozen=True, kw_only=True)
class ResumeArguments:
    """Continue an interrupted run from its last checkpoint, bit for bit, or extend a finished run."""

    run_dir: tyro.conf.Positional[str]
    """The run's directory."""
    steps: int | None = None
    """Total number of steps. The default is the number that the run began with."""
    online_steps: int | None = None
    """Total number of environment steps of a fine-tuned run. A finished offline run begins its fine-tuning with it."""
    online_updates: float | None = None
    """Where fine-tuning begins: updates per environment step. The default is 1."""
    online_noise: float | None = None
    """Where fine-tuning begins: exploration noise, as for train."""
    online_share: float | None = None
    """Where fine-tuning begins: share of each batch that is drawn from the new steps, as for train."""
    online_replay: int | None = None
    """Where fine-tuning begins: number of new steps that are kept, as for train."""
    num_envs: int | None = None
    """Where fine-tuning begins: environments that each seed steps side by side."""
    set: tuple[str, ...] = ()
    """Learning rates from here on, as `name value name value ...`, for example actor_lr 1e-4."""
    algorithm: str | None = None
    """module:Class, required for a run of your own algorithm."""
    env: str | None = None
    """module:callable, required for a run in your own environment. It keeps the arguments that the run began with."""
    expert: str | None = None
    """module:callable, required for a run that asks your own expert."""
    dataset: str | None = None
    """Path or id of the dataset, if it was moved. Its content must be unchanged."""
    data_dir: str | None = None
    """Directory of the Minari datasets, if they were moved."""
    device: str | None = None
    """Device. The default is the device that the run began on."""
    workers: int | None = None
    """Worker processes that play episodes. The default is the number that the run began with."""

    restart: bool = False
    """Begin anew at step 0 if all checkpoints are gone. The old lines of the log are kept in files of other names."""


_FINE_TUNING = ("online_updates", "online_noise", "online_share", "online_replay", "num_envs")


def run(arguments: Sequence[str]) -> int:
    """Resume; returns the exit status."""
    parsed = parse(ResumeArguments, arguments, "resume")

    from herdbook.cli.train import report
    from herdbook.core.memory import keep_freed_memory
    from herdbook.experiments.options import literal_pairs
    from herdbook.experiments.train import resume

    keep_freed_memory()
    own = {name: getattr(parsed, name) for name in _FINE_TUNING}
    result, continued = resume(
        parsed.run_dir,
        steps=parsed.steps,
        online_steps=parsed.online_steps,
        algorithm=parsed.algorithm,
        env=parsed.env,
        expert=parsed.expert,
        dataset=parsed.dataset,
        data_dir=parsed.data_dir,
        device=parsed.device,
        workers=parsed.workers,
        rates=literal_pairs(parsed.set, "set"),
        fine_tuning={name: value for name, value in own.items() if value is not None},
        restart=parsed.restart,
    )
    if not continued:
        last = result.checkpoints.last()
        name = "online-steps" if result.options.get("online_steps") else "steps"
        show(f"{result.path}: finished at step {last:,}; nothing to do (--{name} N extends it)")
    report(result)
    return 0
