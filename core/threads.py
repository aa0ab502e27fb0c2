"""The default number of PyTorch's CPU threads.

PyTorch uses every core. Small networks gain little from that. Beside other processes they lose much: the threads wait
for each other many times in each update, and all of them wait for a thread that has no core.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from herdbook.core.types import tree_leaves

THREAD_COST = 5e6
"""Assumed cost of one more thread in an update, in multiplications that one thread makes in that time. It is chosen for
two cores: from 11 million multiplications a second thread is used. It is not measured on more cores."""
_BATCH_SIZE = 256  # where a config has none


def usable_cores() -> int:
    """Cores that this process may use: those of its affinity mask on Linux, else all."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def default_threads(*, cores: int, workers: int, multiplications: float) -> int:
    """Number of threads for a learner, at least 1; every worker process keeps a core.

    An update of M multiplications takes M / n + c n on n threads, where c is the cost of a thread. This is least at
    n = √(M / c).

    Args:
        cores: Cores that the process may use.
        workers: Processes that step environments while the learner updates.
        multiplications: Multiplications in one update, see `multiplications_of`.
    """
    return max(1, min(round(math.sqrt(multiplications / THREAD_COST)), cores - workers))


def multiplications_of(state: Mapping[str, Any], config: Mapping[str, Any], seeds: int) -> float:
    """Rough number of multiplications in one update of one seed: the numbers in its state times the batch size.

    For each row of a batch, a trained parameter is multiplied three times (once forward, twice backward), and the state
    has three numbers for it: its value and Adam's two moments. A target parameter has one of each. The estimate is too
    low for losses that score several actions in each state, for images, and where a batch consists of whole episodes.

    Args:
        state: `state_dict()` of an algorithm.
        config: Fields of its config by name, of which `batch_size` is read.
        seeds: Number of seeds in the state.
    """
    tensors = (leaf for leaf in tree_leaves(dict(state)) if isinstance(leaf, Tensor) and leaf.is_floating_point())
    batch_size: int = config.get("batch_size", _BATCH_SIZE)
    return sum(tensor.numel() for tensor in tensors) / seeds * batch_size


@contextmanager
def keep_threads() -> Iterator[None]:
    """Restore PyTorch's number of threads at the end. Also usable as a decorator."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
