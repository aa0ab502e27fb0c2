"""CPU threads of torch: how many, where the user has not said.

Torch takes every core. Small networks gain little from that, and lose much where other processes need the cores: the
threads wait for each other many times in one update, and one that has no core keeps all of them waiting.
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
from torch.utils._pytree import tree_leaves

WORTH = 5e6
"""Multiplications of an update from whose double on a second thread pays (docs/results/threads.md)."""
_ROWS = 256  # of a batch, where the config has no batch_size


def usable_cores() -> int:
    """Cores that this process may use: those of its affinity mask, where the system has one."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def default_threads(*, cores: int, workers: int, multiplications: float) -> int:
    """The number of threads for a learner: √(multiplications / WORTH), and a core is left for each worker.

    With n threads, M multiplications take a time of about M / n, and waking the threads and waiting for them one of
    c · n: the sum is least at n = √(M / c).

    Args:
        cores: Cores that the process may use.
        workers: Processes that step environments while the learner learns.
        multiplications: Of one update; see `multiplications_of`.
    """
    wanted = round(math.sqrt(multiplications / WORTH))
    return max(1, min(wanted, cores - workers))


def multiplications_of(state: Mapping[str, Any], config: Mapping[str, Any], seeds: int) -> float:
    """About how many multiplications one update of one seed has: the numbers in an algorithm's state × the batch.

    A parameter has one product forward and two backward for each row of the batch, and three numbers in the state: its
    value and Adam's two moments. A target has one of each. A loss that scores many actions for a row has more, and an
    episode counts as one row.

    Args:
        state: The `state_dict()` of an algorithm.
        config: Its config by the names of the fields; `batch_size` is read.
        seeds: How many seeds the state holds.
    """
    tensors = (leaf for leaf in tree_leaves(dict(state)) if isinstance(leaf, Tensor) and leaf.is_floating_point())
    rows: int = config.get("batch_size", _ROWS)
    return sum(tensor.numel() for tensor in tensors) / seeds * rows


@contextmanager
def keep_threads() -> Iterator[None]:
    """Torch has as many threads afterwards as before; also a decorator."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
