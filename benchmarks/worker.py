"""Code shared by both sides of `d3rlpy_speed.py`: the data, the protocol and the clocks. It imports neither library.

A worker reads one JSON command per line and answers each with one line of JSON. It idles in between, so that two
workers can be measured alternately.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

EPISODE = 500


class Trial(Protocol):
    """One algorithm of one library, ready to be updated."""

    def run(self, updates: int, sampling: bool) -> None:
        """Make that many updates, on newly sampled batches (`sampling`) or on batches drawn beforehand."""
        ...


def arrays(steps: int, observation_size: int, action_size: int, seed: int) -> dict[str, np.ndarray]:
    """Synthetic data, the same for both sides: episodes of 500 steps, each truncated by a time limit."""
    rng = np.random.default_rng(seed)
    return {
        "observations": rng.standard_normal((steps, observation_size)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (steps, action_size)).astype(np.float32),
        "rewards": rng.standard_normal(steps).astype(np.float32),
        "truncated": np.arange(1, steps + 1) % EPISODE == 0,
    }


def serve(version: str, build: Callable[[dict[str, Any]], Trial]) -> None:
    """Answer commands until the input ends. Output of the libraries goes to standard error."""
    answers, sys.stdout = sys.stdout, sys.stderr
    trial: Trial | None = None
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "build":
            torch.set_num_threads(command["threads"])
            torch.manual_seed(0)
            trial = build(command)
            trial.run(4, False)
            answer: Any = {"version": f"{version}, torch {torch.__version__}", "flops": flops(trial)}
        elif command["do"] == "roof":
            answer = roof()
        elif command["do"] == "profile":
            assert trial is not None
            answer = profile(trial, command["updates"])
        else:
            assert trial is not None
            wall, cpu = time.perf_counter(), time.process_time()
            trial.run(command["updates"], command["sampling"])
            answer = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps(answer), file=answers, flush=True)


class FlopCounter(TorchDispatchMode):
    """Counts the floating-point operations of matrix products, forward and backward.

    torch's own FlopCounterMode hooks modules and fails under `torch.autograd.grad`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._overloadpacket.__name__.removesuffix("_")  # in place or not, the products are the same
        count = flop_registry.get(getattr(torch.ops.aten, name, None))
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def flops(trial: Trial) -> float:
    """Floating-point operations of one update: the mean of two updates, because some parts run every second update."""
    with FlopCounter() as counter:
        trial.run(2, False)
    return counter.total / 2


def roof(size: int = 1024, repeats: int = 5) -> float:
    """FLOP/s of a square fp32 matrix product with the current number of threads: the median of `repeats`."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    out = torch.empty(size, size)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds)


def profile(trial: Trial, updates: int) -> list[dict[str, Any]]:
    """Milliseconds and calls per update of each operator, sorted by the operator's own time."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        trial.run(updates, False)
    rows = [
        {"name": e.key, "ms": e.self_cpu_time_total / 1000 / updates, "calls": e.count / updates}
        for e in profiler.key_averages()
    ]
    return sorted(rows, key=lambda row: -row["ms"])
