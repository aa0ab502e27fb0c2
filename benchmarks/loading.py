"""The time to load a Minari dataset, and the memory that it takes once it can be sampled.

    python benchmarks/loading.py [--dataset ID_OR_PATH] [--steps 200000] [--repeats 5]

The benchmark writes a synthetic dataset of the shape of Hopper (`--steps` steps) to a temporary folder and measures it
first, then the datasets of `--dataset`. Each load runs in a process of its own, with the files in the page cache. The
columns count these bytes:

- raw: the arrays in the file (T+1 observations per episode), with float32 observations and actions;
- held: all arrays of `Episodes` and of `ReplayBuffer`, which share the large ones;
- grown: the growth of the process with both (Linux only).

The output is a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MEASURE = """
import json, os, sys, time
from pathlib import Path
from herdbook.datasets.load import load_dataset
from herdbook.datasets.replay import ReplayBuffer
import gc, minari, torch

def resident():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

torch.zeros(1) + 1
before, start = resident(), time.perf_counter()
episodes = load_dataset(sys.argv[1], data_dir=sys.argv[2] or None)
loaded = time.perf_counter()
replay = ReplayBuffer(episodes)
built, grown = time.perf_counter(), resident() - before
leaves = list(episodes.observations.values()) if isinstance(episodes.observations, dict) else [episodes.observations]
raw = sum(x.nbytes for x in leaves)
raw += sum(getattr(episodes, n).nbytes for n in ("actions", "rewards", "terminated", "truncated"))
print(json.dumps({
    "name": episodes.source, "steps": episodes.num_steps, "episodes": len(episodes), "load": loaded - start,
    "build": built - loaded, "raw": raw, "held": episodes.nbytes, "replay": replay.nbytes, "grown": grown,
}))
"""
MINARI = """
import json, os, sys, time
if sys.argv[2]:
    os.environ["MINARI_DATASETS_PATH"] = sys.argv[2]
import minari
start = time.perf_counter()
list(minari.load_dataset(sys.argv[1]).iterate_episodes())
print(json.dumps(time.perf_counter() - start))
"""


def write_synthetic(folder: Path, steps: int, seed: int) -> str:
    """Write a Minari dataset of the shape of Hopper, with episodes of 50 to 1000 steps, and return its id."""
    import numpy as np
    from gymnasium import spaces

    from herdbook.datasets.episodes import Episodes
    from herdbook.datasets.minari import write_minari

    rng = np.random.default_rng(seed)
    lengths = []
    while sum(lengths) < steps:
        lengths.append(min(int(rng.integers(50, 1001)), steps - sum(lengths)))
    ends = np.cumsum(lengths) - 1
    truncated = np.zeros(steps, dtype=np.bool_)
    truncated[ends] = True
    episodes = Episodes(
        observations=rng.standard_normal((steps + len(lengths), 11)).astype(np.float32),
        actions=rng.uniform(-1, 1, (steps, 3)).astype(np.float32),
        rewards=rng.standard_normal(steps),
        terminated=np.zeros(steps, dtype=np.bool_),
        truncated=truncated,
        offsets=np.concatenate([[0], ends + 1]),
        observation_space=spaces.Box(-np.inf, np.inf, (11,), np.float32),
        action_space=spaces.Box(-1.0, 1.0, (3,), np.float32),
    )
    write_minari(episodes, "benchmark/synthetic-v0", data_dir=folder)
    return "benchmark/synthetic-v0"


def measure(script: str, name: str, folder: str) -> Any:
    """Run the script in a fresh process and return the JSON that it prints."""
    done = subprocess.run([sys.executable, "-c", script, name, folder], stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset", nargs="*", default=[], help="Minari ids or folders to measure after the synthetic one"
    )
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(
        "| dataset | steps | episodes | load s | replay s | Minari's reader s "
        "| raw MB | Episodes / raw | replay / raw | grown / raw |"
    )
    print("|---" * 10 + "|")
    with tempfile.TemporaryDirectory() as folder:
        made = write_synthetic(Path(folder), options.steps, seed=0)
        for name, root in [(made, folder), *((name, "") for name in options.dataset)]:
            runs = [measure(MEASURE, name, root) for _ in range(options.repeats)]
            theirs = [measure(MINARI, name, root) for _ in range(options.repeats)]
            middle = {key: statistics.median(r[key] for r in runs) for key in ("load", "build", "grown")}
            one = runs[0]
            print(
                f"| {one['name']} | {one['steps']} | {one['episodes']} | {middle['load']:.2f} | {middle['build']:.2f} "
                f"| {statistics.median(theirs):.2f} | {one['raw'] / 1e6:.1f} | {one['held'] / one['raw']:.3f} "
                f"| {one['replay'] / one['raw']:.3f} | {middle['grown'] / one['raw']:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
