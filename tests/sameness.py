"""Whether two states, or two runs, are the same to the bit; what measures time is left out."""

from typing import Any

import torch

from herdbook.core.runs import Run

FILES = ("metrics.jsonl", "evaluations.jsonl")
CLOCKS = ("seconds", "timing.jsonl")  # what holds a time, or the length of what holds one


def equal(a: Any, b: Any) -> bool:
    """Of trees of dicts, lists, tensors and plain values."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a if key not in CLOCKS)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def state_of(run: Run) -> dict[str, Any]:
    """The last checkpoint of a run that has a replay, with the replay."""
    state = run.checkpoints.load()
    return {**state, "replay": run.checkpoints.load_replay(state)}


def same(a: Run, b: Run) -> bool:
    """Lines, parameters, replays and what was played ahead."""
    lines = all((a.path / name).read_bytes() == (b.path / name).read_bytes() for name in FILES)
    return lines and equal(state_of(a), state_of(b))
