"""Environment steps per second of a whole training run, against one process that only steps the environment.

    python benchmarks/marl_speed.py [--algorithms qmix] [--steps 200000] [--workers N] [--recurrent]

Bare stepping uses mpe2's own parallel API with random actions, resets included. It runs in a process of its own before
and after each training run, while the benchmark does nothing else.

A training run is the command as a user types it: its default settings for the task (one update of 32 episodes per
episode) and its own choice of threads and workers. It includes checkpoints and one evaluation of 100 episodes per
200,000 steps, as in a run of 2 million steps. The measurement starts after the first tenth of the run's timing records.
The output is a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

ENVIRONMENT = "mpe2/simple_spread_v3"
BARE = """
import sys, time, warnings
warnings.simplefilter("ignore")
from mpe2 import simple_spread_v3
env, steps, limit = simple_spread_v3.parallel_env(), 0, float(sys.argv[1])
env.reset(seed=0)
for agent in env.agents:
    env.action_space(agent).seed(0)
begin = time.perf_counter()
while time.perf_counter() - begin < limit:
    actions = {agent: int(env.action_space(agent).sample()) for agent in env.agents}
    env.step(actions)
    steps += 1
    if not env.agents:
        env.reset()
print(steps / (time.perf_counter() - begin))
"""


def bare(seconds: float) -> float:
    """Steps per second of one process of bare mpe2."""
    words = [sys.executable, "-c", BARE, str(seconds)]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def clock(run: Path) -> tuple[float, float]:
    """Steps and updates per second of a finished run, from its timing records without warm-up and the first tenth."""
    records = [json.loads(line) for line in (run / "timing.jsonl").read_text().splitlines()]
    lines = [record for record in records if record["updates_per_second"] > 0]
    first, last = lines[len(lines) // 10], lines[-1]
    updates = statistics.mean(line["updates_per_second"] for line in lines[len(lines) // 10 :])
    return (last["step"] - first["step"]) / (last["seconds"] - first["seconds"]), updates


def training(algorithm: str, steps: int, workers: int | None, recurrent: bool, folder: str) -> tuple[float, float]:
    """Environment steps and updates per second of a new run."""
    run = Path(folder) / f"{algorithm}-{recurrent}"
    words = [sys.executable, "-m", "herdbook.cli.main", "train", algorithm, "--env", ENVIRONMENT]
    every = steps // (max(steps // 200_000, 1) + 1)  # the last timing record comes before the final evaluation
    words += ["--steps", str(steps), "--evaluate-every", str(every), "--run-dir", str(run)]
    words += ["--recurrent"] * recurrent + (["--workers", str(workers)] if workers is not None else [])
    subprocess.run(words, check=True, capture_output=True)
    return clock(run)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", default=["qmix"])
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--workers", type=int, help="by default the command's own number")
    parser.add_argument("--recurrent", action="store_true")
    parser.add_argument("--bare-seconds", type=float, default=8.0)
    options = parser.parse_args()
    print(f"{platform.platform()}, {os.cpu_count()} cores, torch {version('torch')}, mpe2 {version('mpe2')}\n")
    print("| algorithm | agents | workers | steps/s | updates/s | bare mpe2, steps/s, before and after | ratio |")
    print("|---|---|---|---|---|---|---|")
    for algorithm in options.algorithms:
        with tempfile.TemporaryDirectory() as folder:
            before = bare(options.bare_seconds)
            rate, updates = training(algorithm, options.steps, options.workers, options.recurrent, folder)
            after = bare(options.bare_seconds)
        workers = "default" if options.workers is None else options.workers
        agents = "recurrent" if options.recurrent else "feed-forward"
        print(
            f"| {algorithm} | {agents} | {workers} | {rate:.0f} | {updates:.0f} "
            f"| {before:.0f}, {after:.0f} | {rate / ((before + after) / 2):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
