"""Speed of commands as they are typed, with one thread and with two, alone and beside a busy process.

    python benchmarks/threads.py [--commands td3_bc cql sac qmix qmix_workers_0] [--rounds 3] [--scale 1]

Each command trains in a process of its own: without `--threads`, with `--threads 1` and with `--threads 2`, in turn.
The commands run alone first, then beside a process that keeps one core busy. The rate is that of the run's timing
records without the first tenth; warm-up steps are not counted. The last record precedes the only evaluation, which
therefore does not count. The table shows medians over the rounds, and for the command without `--threads` also the
range. QMIX is compared with one process of bare mpe2 in the same round
(see marl_speed.py). The dataset is that of `herdbook data make classic/pendulum`. The output is Markdown.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from marl_speed import ENVIRONMENT, bare, clock

COMMANDS: dict[str, tuple[str, int]] = {  # the command and the number of its steps
    "td3_bc": ("td3_bc --dataset classic/pendulum", 2_000),
    "cql": ("cql --dataset classic/pendulum", 2_000),
    "sac": ("sac --env HalfCheetah-v5", 3_000),
    "qmix": (f"qmix --env {ENVIRONMENT}", 30_000),
    "qmix_workers_0": (f"qmix --env {ENVIRONMENT} --workers 0", 20_000),
}
THREADS = {"as typed": "", "1": "--threads 1", "2": "--threads 2"}


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Run this many processes that each keep a core busy."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def rate(words: str, steps: int, beside: int) -> float:
    """Steps per second of `herdbook train WORDS` beside this number of busy processes."""
    with tempfile.TemporaryDirectory() as folder, busy(beside):
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "herdbook.cli.main", "train", *words.split(), "--steps", str(steps)]
        command += ["--evaluate-every", str(steps), "--eval-episodes", "1", "--run-dir", str(run)]
        subprocess.run(command, check=True, capture_output=True)
        return clock(run)[0]


def row(name: str, rounds: int, scale: float) -> str:
    """The table's row for one command."""
    words, steps = COMMANDS[name]
    rates: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    bares = []
    for _ in range(rounds):
        if name.startswith("qmix"):
            bares.append(bare(4.0))
        for beside in (0, 1):
            for threads, flags in THREADS.items():
                rates[threads, beside].append(rate(f"{words} {flags}", int(steps * scale), beside))
    middle = {key: statistics.median(values) for key, values in rates.items()}
    cells = [f"`{words}`"]
    for beside in (0, 1):
        typed, best = rates["as typed", beside], max(middle["1", beside], middle["2", beside])
        cells.append(f"{statistics.median(typed):.0f} ({min(typed):.0f} to {max(typed):.0f})")
        cells += [f"{middle[threads, beside]:.0f}" for threads in ("1", "2")]
        cells.append(f"{middle['as typed', beside] / best:.2f}")
    cells.append(f"{middle['as typed', 1] / middle['as typed', 0]:.2f}")
    cells.append(f"{middle['as typed', 0] / statistics.median(bares):.2f}" if bares else "")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the numbers of steps")
    options = parser.parse_args()
    print(f"{platform.platform()}, {os.cpu_count()} cores, torch {version('torch')}, {options.rounds} rounds\n")
    print(
        "| `herdbook train …`, steps/s | alone, as typed | `--threads 1` | `--threads 2` | typed / best "
        "| beside, as typed | `--threads 1` | `--threads 2` | typed / best | beside / alone | alone / bare mpe2 |"
    )
    print(f"|{'---|' * 11}")
    for name in options.commands:
        print(row(name, options.rounds, options.scale), flush=True)


if __name__ == "__main__":
    main()
