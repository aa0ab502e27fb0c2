"""`herdbook eval RUN_DIR [--episodes 100] [--seed 0]`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from herdbook.cli.parse import parse, show
from herdbook.experiments.catalogue import UserError


@dataclass(frozen=True, kw_only=True)
class EvalArguments:
    """Evaluate the policy of every seed of a run, at its last checkpoint, in the run's environment."""

    run_dir: tyro.conf.Positional[str]
    """The run's directory."""
    episodes: int = 100
    """Episodes per seed."""
    seed: int = 0
    """Episode i is reset with the seed `seed + i`."""
    step: int | None = None
    """Step of the checkpoint. The default is the last checkpoint."""
    env: str | None = None
    """Environment id, or module:callable. The default is the run's environment. If it is named again, it keeps its
    arguments, time limit and wrappers."""
    env_kwargs: tuple[str, ...] = ()
    """Keyword arguments of the environment, as `name value name value ...`. Each replaces the run's own value."""
    max_steps: int | None = None
    """Steps after which an episode is cut off, on top of the environment's own limit. The default is the run's."""
    algorithm: str | None = None
    """module:Class, required for a run of your own algorithm."""
    device: str = "cpu"
    """Device of the policies."""
    out: str | None = None
    """JSON file for the results."""
    video: str | None = None
    """Video file of the episode that is reset with `seed`: .gif, or .mp4 (needs the extra `video`)."""

    def __post_init__(self) -> None:
        from herdbook.experiments.options import check

        check(self.episodes >= 1, "episodes", "1 or more", self.episodes)
        check(self.seed >= 0, "seed", "0 or more", self.seed)
        check(self.max_steps is None or self.max_steps >= 1, "max_steps", "1 or more", self.max_steps)


def run(arguments: Sequence[str]) -> int:
    """Evaluate; returns the exit status."""
    parsed = parse(EvalArguments, arguments, "eval")

    from herdbook.core.runs import unwritable
    from herdbook.experiments.evaluate import evaluate_run
    from herdbook.experiments.options import literal_pairs

    if parsed.out is not None:  # before an hour of evaluation
        out = Path(parsed.out)
        reason = f"{out} is a folder" if out.is_dir() else unwritable(out.parent)
        if reason is not None:
            raise UserError(f"out: {out} cannot be written: {reason}")
        out.parent.mkdir(parents=True, exist_ok=True)
    shared: dict[str, Any] = {
        "seed": parsed.seed,
        "step": parsed.step,
        "algorithm": parsed.algorithm,
        "env": parsed.env,
        "env_kwargs": literal_pairs(parsed.env_kwargs),
        "max_steps": parsed.max_steps,
    }
    frames = 0
    if parsed.video is not None:
        from herdbook.experiments.video import record

        frames = record(parsed.run_dir, parsed.video, **shared)
    results = evaluate_run(parsed.run_dir, episodes=parsed.episodes, device=parsed.device, **shared)
    print_results(results)
    if parsed.out is not None:
        from herdbook.core.runs import to_json

        Path(parsed.out).write_text(json.dumps(to_json(results), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        show(f"written: {parsed.out}")
    if parsed.video is not None:
        show(f"written: {parsed.video}, {frames} frames")
    return 0


def print_results(results: Mapping[str, Any]) -> None:
    """Print a table with a row for each seed and one for their mean."""
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from herdbook.core.environments import ReferenceScores
    from herdbook.evaluation.scores import normalised_score
    from herdbook.evaluation.statistics import t_interval

    references = None if results["references"] is None else ReferenceScores(**results["references"])
    rows = [(f"seed {line['seed']}", line["step"], mean_interval(line["returns"])) for line in results["seeds"]]
    table = Table(title=f"{results['algorithm']} · {results['run']} · {results['episodes']} episodes", title_style="")
    table.add_column("")
    joint = "agent_returns" in results["seeds"][0]
    for column in (
        "step",
        "team return" if joint else "return",
        "95 % interval",
        *(["normalised score"] if references else []),
    ):
        table.add_column(column, justify="right")
    if len(rows) > 1:
        means = t_interval([line["return_mean"] for line in results["seeds"]])
        rows.append(("mean of the seeds", rows[0][1], means))
    for name, step, estimate in rows:
        cells = [name, f"{step:,}", f"{estimate.value:.1f}", f"[{estimate.low:.1f}, {estimate.high:.1f}]"]
        if references is not None:
            cells.append(f"{float(normalised_score(estimate.value, references)):.1f}")
        table.add_row(*cells)
    Console(highlight=False).print(table)
    if joint:
        agents = results["seeds"][0]["agent_returns"]
        own = {a: np.mean([line["agent_returns"][a] for line in results["seeds"]]) for a in agents}
        show("team return: the sum over the agents; " + ", ".join(f"{a} {mean:.1f}" for a, mean in own.items()))
    show("intervals: bootstrap over the episodes of a seed; Student's t over the means of the seeds")
    if references is not None:
        show(
            f"normalised score: 0 is a return of {references.minimum:g}, 100 of {references.maximum:g} "
            f"({references.source})"
        )


def mean_interval(returns: Sequence[float]) -> Any:
    """Mean of the returns of several episodes, with a 95 % bootstrap interval."""
    import numpy as np

    from herdbook.evaluation.statistics import bootstrap_interval

    return bootstrap_interval(returns, np.mean)
