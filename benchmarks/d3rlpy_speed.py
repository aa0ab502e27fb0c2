"""Updates per second on CPU: herdbook against d3rlpy.

    python benchmarks/d3rlpy_speed.py [--d3rlpy-python PATH] [--threads 1 2] [--pairs 9] [--restarts 1] [--profile]

Both sides use the same batch size, widths, candidate counts, data and number of threads. Each runs in a process of its
own. The two are measured alternately, so that other load on the machine affects both, and the ratio is the median over
the pairs of measurements. A process keeps its speed for its lifetime: d3rlpy's CQL differs by a fifth from start to
start. `--restarts` therefore restarts both sides that often and measures `--pairs` pairs after each start.

The table also shows the floating-point operations of the matrix products in one update, and the share that each side
reaches of the rate of a plain fp32 product (1024 × 1024, same threads, same run). The output is Markdown.

d3rlpy needs a Python environment of its own. PATH is the Python of such an environment; without PATH the benchmark
creates one in a temporary folder with pip.
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
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
D3RLPY = "d3rlpy==2.8.1"
WIDE = {"batch_size": 256, "hidden_sizes": [256, 256], "candidates": 10}
SHAPES: dict[str, dict[str, Any]] = {
    "td3_bc": WIDE,
    "iql": WIDE,
    "cql": WIDE,
    "cql_lagrange": WIDE,
    "bcq": {"batch_size": 100, "hidden_sizes": [400, 300], "vae_hidden_sizes": [750, 750], "candidates": 10},
}
DATA = {"steps": 20_000, "observation_size": 11, "action_size": 3, "seed": 0}  # the shape of Hopper


class Worker:
    """One side of the comparison, in a process of its own."""

    def __init__(self, python: str, script: str, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [python, str(HERE / script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **environment},
            text=True,
        )

    def ask(self, **command: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.process.args} ended; run it by hand with {json.dumps(command)} as its input")
        return json.loads(answer)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@contextmanager
def d3rlpy_python(given: str | None) -> Iterator[str]:
    """The Python of an environment that has d3rlpy."""
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory() as folder:
        print(f"installing {D3RLPY} into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / "bin" / "python")
        torch = f"torch=={version('torch').partition('+')[0]}"  # the same on both sides
        subprocess.run([python, "-m", "pip", "install", "--quiet", torch, D3RLPY], check=True)
        yield python


Start = Callable[[], dict[str, Worker]]  # starts a new process for each side


def compare(start: Start, name: str, threads: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measure both implementations of one algorithm alternately."""
    command = {"do": "build", "algorithm": name, "threads": threads, "shape": SHAPES[name], **DATA}
    rates: dict[str, dict[str, list[dict[str, float]]]] = {mode: {"ours": [], "theirs": []} for mode in options.modes}
    roofs: list[float] = []
    row: dict[str, Any] = {"algorithm": name, "threads": threads}
    for _ in range(options.restarts):
        sides = start()
        row["built"] = {side: worker.ask(**command) for side, worker in sides.items()}
        updates = {}
        for side, worker in sides.items():
            seconds = worker.ask(do="run", updates=4, sampling=True)["wall"]
            updates[side] = max(2, 2 * round(options.seconds * 2 / seconds))
        for mode, found in rates.items():
            for _ in range(options.pairs):
                roofs.append(sides["ours"].ask(do="roof"))
                for side, worker in sides.items():
                    took = worker.ask(do="run", updates=updates[side], sampling=mode == "sampling")
                    found[side].append({clock: updates[side] / took[clock] for clock in ("wall", "cpu")})
        if options.profile:
            row["profile"] = {side: worker.ask(do="profile", updates=20) for side, worker in sides.items()}
        for worker in sides.values():
            worker.close()
    for mode, found in rates.items():
        row["with_sampling" if mode == "sampling" else "update"] = {
            **{side: statistics.median(r["wall"] for r in found[side]) for side in found},
            **{
                f"ratio_{clock}": sorted(
                    a[clock] / b[clock] for a, b in zip(found["ours"], found["theirs"], strict=True)
                )
                for clock in ("wall", "cpu")
            },
            "roof": statistics.median(roofs),
        }
    return row


def line(row: dict[str, Any]) -> str:
    """One row of the table in Markdown."""
    cells: list[str] = [row["algorithm"], str(row["threads"])]
    for key in ("update", "with_sampling"):
        if key not in row:
            cells += ["–"] * 4
            continue
        m = row[key]
        ratio = m["ratio_wall"]
        middle = f"{statistics.median(ratio):.2f} ({ratio[0]:.2f}–{ratio[-1]:.2f})"
        cells += [f"{m['ours']:.1f}", f"{m['theirs']:.1f}", middle, f"{statistics.median(m['ratio_cpu']):.2f}"]
    flops = {side: row["built"][side]["flops"] for side in ("ours", "theirs")}
    m = row["update" if "update" in row else "with_sampling"]
    cells += [f"{flops['ours'] / 1e9:.2f}", f"{flops['theirs'] / 1e9:.2f}", f"{m['roof'] / 1e9:.0f}"]
    cells += [f"{100 * flops[side] * m[side] / m['roof']:.0f} %" for side in ("ours", "theirs")]
    return "| " + " | ".join(cells) + " |"


HEADER = (
    "| algorithm | threads | herdbook /s | d3rlpy /s | ratio (range) | ratio, CPU time "
    "| herdbook /s, sampling | d3rlpy /s, sampling | ratio (range) | ratio, CPU time "
    "| herdbook GFLOP | d3rlpy GFLOP | roof GFLOP/s | herdbook of roof | d3rlpy of roof |\n" + "|---" * 15 + "|"
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--d3rlpy-python", help="Python of an environment with d3rlpy; by default the benchmark creates one"
    )
    parser.add_argument("--algorithms", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument(
        "--modes",
        nargs="+",
        default=["update", "sampling"],
        choices=["update", "sampling"],
        help="measure updates alone, or updates and the sampling of their batches",
    )
    parser.add_argument("--pairs", type=int, default=9, help="measurements of each side after each start")
    parser.add_argument("--restarts", type=int, default=1, help="number of starts of both sides")
    parser.add_argument("--seconds", type=float, default=1.5, help="length of one measurement")
    parser.add_argument("--profile", action="store_true", help="also print the operators with the largest own time")
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    parser.add_argument("--default-malloc", action="store_true", help="run herdbook without `keep_freed_memory`")
    parser.add_argument(
        "--tuned-d3rlpy", action="store_true", help="give d3rlpy the same allocator settings through the environment"
    )
    options = parser.parse_args()
    tuned = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_TOP_PAD_": str(64 << 20)}
    rows = []
    with d3rlpy_python(options.d3rlpy_python) as python:

        def start() -> dict[str, Worker]:
            default = {"HERDBOOK_DEFAULT_MALLOC": "1"} if options.default_malloc else {}
            return {
                "ours": Worker(sys.executable, "herdbook_worker.py", default),
                "theirs": Worker(python, "d3rlpy_worker.py", tuned if options.tuned_d3rlpy else {}),
            }

        for threads in options.threads:
            for name in options.algorithms:
                rows.append(compare(start, name, threads, options))
                if len(rows) == 1:
                    versions = ", ".join(built["version"] for built in rows[0]["built"].values())
                    print(f"{versions}; {platform.machine()}, {os.cpu_count()} cores; shapes {json.dumps(SHAPES)}\n")
                    print(HEADER)
                print(line(rows[-1]), flush=True)
    if options.profile:
        for row in rows:
            print(f"\n{row['algorithm']}, {row['threads']} threads: milliseconds (calls) per update, by own time\n")
            for side, operators in row["profile"].items():
                total = sum(o["ms"] for o in operators)
                top = ", ".join(f"{o['name']} {o['ms']:.2f} ({o['calls']:.0f})" for o in operators[:14])
                print(f"- {side}: {total:.2f} in all, {sum(o['calls'] for o in operators):.0f} calls: {top}")
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
