"""Scores on real datasets: train every row of the first table in docs/results/offline.md, and print the table.

    python benchmarks/learning.py train --runs runs/learning [--only hopper-mixed-iql …]
    python benchmarks/learning.py table --runs runs/learning

The datasets (`rlzoo/…`) must be in Minari's directory (MINARI_DATASETS_PATH). An interrupted row is resumed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from herdbook.evaluation.statistics import t_interval

EPISODES, EVALUATION_SEED = 20, 10_000


@dataclass(frozen=True)
class Row:
    """One row of the table: a training run, and the numbers with which its score is compared."""

    name: str
    algorithm: str
    dataset: str
    steps: int
    floor: str
    reference: str
    normalised: bool = False
    seeds: tuple[int, ...] = (0, 1, 2)

    def command(self, runs: Path) -> list[str]:
        """The command that trains this row."""
        words = f"herdbook train {self.algorithm} --dataset {self.dataset} --steps {self.steps} --seeds"
        words += f" {' '.join(map(str, self.seeds))} --eval-episodes {EPISODES} --eval-seed {EVALUATION_SEED}"
        words += f" --evaluate-every {self.steps // 4} --checkpoint-every {self.steps // 12} --keep 40 --threads 1"
        words += f" --run-dir {runs / self.name}"
        return shlex.split(words)


FRESH = (10, 11, 12)  # for rows whose settings were chosen after seeing the curves of seeds 0, 1 and 2
ROWS = (
    Row("pendulum-iql", "iql", "rlzoo/pendulum/mixed-v0", 20_000, "≥ −230", "−178", seeds=FRESH),
    Row("pendulum-td3bc", "td3_bc", "rlzoo/pendulum/mixed-v0", 20_000, "≥ −500", "−449"),
    Row("pendulum-cql", "cql", "rlzoo/pendulum/mixed-v0", 20_000, "≥ −260", "−190", seeds=FRESH),
    Row("pendulum-bcq", "bcq", "rlzoo/pendulum/mixed-v0", 20_000, "≥ −300", "−246"),
    Row("cartpole-dcql", "discrete_cql", "rlzoo/cartpole/mixed-v0", 15_000, "≥ 450", "500"),
    Row("cartpole-dbcq5k", "discrete_bcq", "rlzoo/cartpole/mixed-v0", 5_000, "≥ 450", "500"),
    Row("cartpole-dbcq20k", "discrete_bcq", "rlzoo/cartpole/mixed-v0", 20_000, "shown beside it", "about 115"),
    Row("hopper-expert-bc", "bc", "rlzoo/hopper/expert-v0", 20_000, "≥ 100", "105.8", True),
    Row("hopper-expert-td3bc", "td3_bc", "rlzoo/hopper/expert-v0", 60_000, "≥ 70", "91 (55 to 111)", True),
    Row("hopper-mixed-td3bc", "td3_bc", "rlzoo/hopper/mixed-v0", 60_000, "≥ 55", "66, 90, 110", True),
    Row("hopper-mixed-iql", "iql", "rlzoo/hopper/mixed-v0", 60_000, "≥ 30", "51 at 40k", True),
    Row("hopper-medium-bc", "bc", "rlzoo/hopper/medium-v0", 60_000, "18 to 32", "22.8", True),
    Row("hopper-medium-td3bc", "td3_bc", "rlzoo/hopper/medium-v0", 60_000, "≥ 18", "25.3", True),
    Row("hopper-medium-iql", "iql", "rlzoo/hopper/medium-v0", 60_000, "≥ 18", "25.3", True),
)


def train(rows: list[Row], runs: Path) -> int:
    """Train the rows that are missing, one after the other, and return the number of rows that failed."""
    failed = 0
    for row in rows:
        resumed = (runs / row.name / "config.json").exists()
        words = ["herdbook", "resume", str(runs / row.name)] if resumed else row.command(runs)
        print(shlex.join(words), flush=True)
        status = subprocess.run([sys.executable, "-m", "herdbook.cli.main", *words[1:]]).returncode
        failed += status != 0
    return failed


def table(rows: list[Row], runs: Path) -> str:
    """The finished rows in Markdown: the mean over the seeds of each seed's mean at the final checkpoint."""
    lines = [
        "| data | algorithm | updates | score | 95 % interval | seeds | floor | measured elsewhere |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        path = runs / row.name / "evaluations.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        final = [record for record in records if record["step"] == row.steps]
        if len(final) < len(row.seeds):
            lines.append(f"| {row.dataset} | {row.algorithm} | {row.steps:,} | not run | | | {row.floor} | |")
            continue
        key = "normalized_score" if row.normalised else "return_mean"
        scores = np.array([record[key] for record in final])
        estimate = t_interval(scores)
        unit = "normalised" if row.normalised else "return"
        each = ", ".join(f"{score:.1f}" for score in scores)
        each += f" (seeds {row.seeds[0]}–{row.seeds[-1]})" if row.seeds == FRESH else ""
        lines.append(
            f"| {row.dataset} | {row.algorithm} | {row.steps:,} | {unit} **{estimate.value:.1f}** | "
            f"[{estimate.low:.1f}, {estimate.high:.1f}] | {each} | {row.floor} | {row.reference} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Train or print, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "table"))
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"))
    parser.add_argument("--only", nargs="+", default=[row.name for row in ROWS], metavar="NAME")
    parsed = parser.parse_args()
    rows = [row for row in ROWS if row.name in parsed.only]
    if parsed.what == "train":
        return int(train(rows, parsed.runs) > 0)
    print(table(rows, parsed.runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
