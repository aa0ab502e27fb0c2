"""`herdbook compare RUN_DIR… --out report`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from herdbook.cli.parse import parse, show
from herdbook.experiments.catalogue import UserError


@dataclass(frozen=True, kw_only=True)
class CompareArguments:
    """Compare runs: a table with intervals over the seeds, and learning curves."""

    run_dirs: tyro.conf.Positional[tuple[str, ...]]
    """Run directories. Runs of one algorithm with equal settings share a row."""
    out: str | None = None
    """Folder for the table (Markdown, CSV, JSON) and the picture of the learning curves."""


def run(arguments: Sequence[str]) -> int:
    """Compare; returns the exit status."""
    parsed = parse(CompareArguments, arguments, "compare")

    from herdbook.core.runs import RunError, unwritable
    from herdbook.evaluation.compare import compare

    if parsed.out is not None and (reason := unwritable(Path(parsed.out))) is not None:
        raise UserError(f"out: expected a folder for the report, but {reason}; choose another")
    try:
        comparison = compare(parsed.run_dirs)
    except RunError:
        raise
    except ValueError as error:  # none, one twice, or a seed twice
        raise UserError(str(error)) from error
    show(comparison.markdown())
    if parsed.out is not None:
        for path in comparison.write(parsed.out).values():
            show(f"written: {path}")
    return 0
