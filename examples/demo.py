"""`make demo`: CQL and behaviour cloning on a dataset made on the spot, compared with the policies in the data.

    python examples/demo.py [updates]

The runs, the dataset and a picture of the learning curves are written to `demo/`. `updates` are those of CQL.
"""

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from herdbook.core.environments import ReferenceScores
from herdbook.core.memory import keep_freed_memory
from herdbook.core.runs import Run
from herdbook.datasets.load import load_dataset
from herdbook.evaluation.scores import normalised_score
from herdbook.evaluation.statistics import bootstrap_interval
from herdbook.experiments.evaluate import evaluate_run
from herdbook.experiments.train import train

DATASET = "classic/pendulum"
FOLDER = Path("demo")
MARKER = ".made-by-herdbook-demo"
SHARES = {"bc": 4 / 9, "cql": 1.0}
# Faster than the defaults. At this rate, more than 6,000 updates make CQL worse again.
FASTER: dict[str, dict[str, Any]] = {"cql": {"batch_size": 128, "actor_lr": 3e-4}}
EPISODES = 20


def run(updates: int) -> None:
    """Train, evaluate, print the table, draw the curves."""
    prepare()
    keep_freed_memory()
    print(f"1. the dataset {DATASET}, recorded by a scripted controller with noise", flush=True)
    episodes = load_dataset(DATASET, data_dir=FOLDER / "data")
    print(f"   {len(episodes)} episodes, {episodes.num_steps:,} steps, mean return {episodes.returns().mean():.1f}")
    returns = {"behaviour policy": episodes.returns().tolist()}
    for number, (name, share) in enumerate(SHARES.items(), start=2):
        steps = round(share * updates)
        print(f"{number}. {name}: {steps:,} updates", flush=True)
        train(
            name,
            dataset=DATASET,
            data_dir=FOLDER / "data",
            steps=steps,
            run_dir=FOLDER / name,
            **FASTER.get(name, {}),
            threads=1,  # networks of this size gain nothing from a second one
        )
        returns[name] = evaluate_run(FOLDER / name, episodes=EPISODES, seed=10_000)["seeds"][0]["returns"]
    assert episodes.reference_scores is not None
    table(returns, episodes.reference_scores)
    picture = draw(float(episodes.returns().mean()))
    for name in SHARES:
        print(f"run:     {FOLDER / name}")
    print(f"picture: {picture}")


def prepare() -> None:
    """Remove the runs of an earlier demo."""
    if FOLDER.exists() and not (FOLDER / MARKER).exists() and any(FOLDER.iterdir()):
        sys.exit(f"demo: {FOLDER.resolve()}: not made by the demo, so it is left alone; move it away and try again")
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / MARKER).touch()
    for name in SHARES:
        shutil.rmtree(FOLDER / name, ignore_errors=True)


def table(returns: Mapping[str, list[float]], references: ReferenceScores) -> None:
    """Print mean returns and normalised scores with 95 % intervals, one row per policy."""
    shown = Table(title=f"Pendulum-v1, mean of {EPISODES} episodes (behaviour policy: of the dataset)", title_style="")
    shown.add_column("policy", no_wrap=True)
    for column in ("return", "95 % interval", "score", "95 % interval"):
        shown.add_column(column, justify="right", no_wrap=True)
    for name, values in returns.items():
        estimate = bootstrap_interval(values, np.mean)
        score, low, high = normalised_score([estimate.value, estimate.low, estimate.high], references)
        interval = f"[{estimate.low:.1f}, {estimate.high:.1f}]"
        shown.add_row(name, f"{estimate.value:.1f}", interval, f"{score:.1f}", f"[{low:.1f}, {high:.1f}]")
    Console(highlight=False).print(shown)
    bounds = f"0 is a return of {references.minimum:g}, 100 of {references.maximum:g}"
    print(f"normalised score: {bounds} ({references.source})")


def draw(behaviour: float) -> Path:
    """Draw return against updates, one line per algorithm, with the behaviour policy's mean; returns the PNG's path."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot()
    for name in SHARES:
        lines = Run(FOLDER / name).evaluations()
        axes.plot([line["step"] for line in lines], [line["return_mean"] for line in lines], marker=".", label=name)
    axes.axhline(behaviour, color="grey", linestyle="--", label="behaviour policy")
    axes.set(xlabel="updates", ylabel="return, mean of 10 episodes", title="Pendulum-v1")
    axes.legend()
    path = FOLDER / "learning_curves.png"
    figure.savefig(path, dpi=150)
    return path


if __name__ == "__main__":
    run(int(sys.argv[1]) if len(sys.argv) > 1 else 4_500)
