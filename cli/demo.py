"""`make demo`: CQL and behaviour cloning on a recipe's dataset, compared with the behaviour policy."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from herdbook.experiments.catalogue import UserError

DATASET = "classic/pendulum"
FOLDER = Path("demo")
MARKER = ".made-by-herdbook-demo"
STEPS = {"bc": 2_000, "cql": 4_500}
# Faster than the defaults. At this rate, more than 6,000 updates make CQL worse again.
FASTER: Mapping[str, dict[str, Any]] = {"cql": {"batch_size": 128, "actor_lr": 3e-4}}
EPISODES = 20


def run(folder: Path = FOLDER, steps: Mapping[str, int] = STEPS) -> int:
    """Train, evaluate, print the table, draw the curves; returns the exit status."""
    prepare(folder, steps)

    from herdbook.core.memory import keep_freed_memory
    from herdbook.datasets.load import load_dataset
    from herdbook.experiments.evaluate import evaluate_run
    from herdbook.experiments.train import train

    keep_freed_memory()
    print(f"1. the dataset {DATASET}, recorded by a scripted controller with noise", flush=True)
    episodes = load_dataset(DATASET, data_dir=folder / "data")
    print(f"   {len(episodes)} episodes, {episodes.num_steps:,} steps, mean return {episodes.returns().mean():.1f}")
    returns = {"behaviour policy": episodes.returns().tolist()}
    for number, (name, updates) in enumerate(steps.items(), start=2):
        print(f"{number}. {name}: {updates:,} updates", flush=True)
        path = folder / name
        train(
            name,
            dataset=DATASET,
            data_dir=folder / "data",
            steps=updates,
            run_dir=path,
            **FASTER.get(name, {}),
            threads=1,  # networks of this size gain nothing from a second one
        )
        returns[name] = evaluate_run(path, episodes=EPISODES, seed=10_000)["seeds"][0]["returns"]
    references = episodes.reference_scores
    assert references is not None
    table(returns, references)
    picture = draw(folder, list(steps), float(episodes.returns().mean()))
    for name in steps:
        print(f"run:     {folder / name}")
    print(f"picture: {picture}")
    return 0


def prepare(folder: Path, names: Iterable[str]) -> None:
    """Remove the files of an earlier demo. Raises UserError if `folder` was not made by a demo."""
    if folder.exists() and not (folder / MARKER).exists() and any(folder.iterdir()):
        raise UserError(f"{folder.resolve()}: not made by the demo, so it is left alone; move it away and try again")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()
    for name in names:
        shutil.rmtree(folder / name, ignore_errors=True)


def table(returns: dict[str, list[float]], references: object) -> None:
    """Mean return and normalised score with 95 % intervals, one row per policy."""
    from rich.console import Console
    from rich.table import Table

    from herdbook.cli.eval import mean_interval
    from herdbook.core.environments import ReferenceScores
    from herdbook.evaluation.scores import normalised_score

    assert isinstance(references, ReferenceScores)
    shown = Table(title=f"Pendulum-v1, mean of {EPISODES} episodes (behaviour policy: of the dataset)", title_style="")
    shown.add_column("policy", no_wrap=True)
    for column in ("return", "95 % interval", "score", "95 % interval"):
        shown.add_column(column, justify="right", no_wrap=True)
    for name, values in returns.items():
        estimate = mean_interval(values)
        score, low, high = normalised_score([estimate.value, estimate.low, estimate.high], references)
        interval = f"[{estimate.low:.1f}, {estimate.high:.1f}]"
        shown.add_row(name, f"{estimate.value:.1f}", interval, f"{score:.1f}", f"[{low:.1f}, {high:.1f}]")
    Console(highlight=False).print(shown)
    bounds = f"0 is a return of {references.minimum:g}, 100 of {references.maximum:g}"
    print(f"normalised score: {bounds} ({references.source})")


def draw(folder: Path, names: Sequence[str], behaviour: float) -> Path:
    """Return against updates, one line per algorithm, with the behaviour policy's mean; returns the PNG's path."""
    from matplotlib.figure import Figure

    from herdbook.core.runs import Run

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot()
    for name in names:
        lines = Run(folder / name).evaluations()
        axes.plot([line["step"] for line in lines], [line["return_mean"] for line in lines], marker=".", label=name)
    axes.axhline(behaviour, color="grey", linestyle="--", label="behaviour policy")
    axes.set(xlabel="updates", ylabel="return, mean of 10 episodes", title="Pendulum-v1")
    axes.legend()
    path = folder / "learning_curves.png"
    figure.savefig(path, dpi=150)
    return path


def main() -> int:
    """Entry point of `python -m herdbook.cli.demo`."""
    try:
        return run()
    except UserError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
