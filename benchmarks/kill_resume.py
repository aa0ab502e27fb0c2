"""Kill a short run with `kill -9` at random instants, resume it, and compare it with an uninterrupted run.

    python benchmarks/kill_resume.py [--kills 20] [--algorithm td3_bc] [--steps 2000]

Each trial starts the run in a new process, kills it at a random instant of its training, and resumes it. The benchmark
prints the step from which each trial resumed, and whether parameters, metrics.jsonl and evaluations.jsonl equal those
of the uninterrupted run bit for bit.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from herdbook.core.runs import Run

COMMAND = (sys.executable, "-m", "herdbook.cli.main")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--algorithm", default="td3_bc")
    parser.add_argument("--dataset", default="classic/pendulum")
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    choose = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        train = (*COMMAND, "train", options.algorithm, "--dataset", options.dataset, "--steps", str(options.steps))
        train += ("--seeds", "0", "1", "--eval-episodes", "3", "--threads", "1", "--run-dir")
        whole = root / "whole"
        start(*train, whole).wait()
        seconds = duration(whole)
        print(
            f"{options.algorithm} on {options.dataset}, {options.steps:,} steps, 2 seeds: {seconds:.1f} s uninterrupted"
        )
        late = equal = trial = 0
        while trial < options.kills:
            cut = root / "cut"
            shutil.rmtree(cut, ignore_errors=True)
            process = start(*train, cut)
            while not (cut / "config.json").exists():
                time.sleep(0.005)
            time.sleep(choose.uniform(0, seconds))
            if process.poll() is not None:
                continue  # the run had already ended, so that nothing was killed
            process.kill()
            process.wait()
            trial += 1
            step = Run(cut).checkpoints.last() or 0
            status = start(*COMMAND, "resume", cut).wait()
            same = status == 0 and alike(cut, whole, options.steps)
            late, equal = late + (step > 0), equal + same
            print(
                f"kill {trial:2}: resumed from step {step:6,}: {'equal to the bit' if same else 'DIFFERS'}",
                flush=True,
            )
    print(f"{late} of {options.kills} resumed from a step after 0; {equal} of {options.kills} equal to the bit")
    return 0 if equal == options.kills else 1


def start(*words: object) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL)


def duration(path: Path) -> float:
    """Seconds from the writing of config.json to the last checkpoint."""
    files = [path / "config.json", path / "checkpoints" / "last" / "manifest.json"]
    begin, end = (file.stat().st_mtime for file in files)
    return end - begin


def alike(one: Path, other: Path, steps: int) -> bool:
    names = ("metrics.jsonl", "evaluations.jsonl", f"checkpoints/step_{steps}/tensors.safetensors")
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


if __name__ == "__main__":
    sys.exit(main())
