"""Explicit randomness: derived seeds and generators, and the only place that sets a global seed, temporarily."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(*entropy: int) -> int:
    """A 63-bit seed from non-negative numbers, e.g. (run seed, lane, episode). Trailing zeros do not change it."""
    high, low = np.random.SeedSequence(entropy).generate_state(2, np.uint32)
    return (int(high) << 31) ^ int(low)


def generator(*entropy: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator seeded by `derive(*entropy)`."""
    return torch.Generator(device).manual_seed(derive(*entropy))


def restore_generator(own: torch.Generator, saved: torch.Tensor, *entropy: int) -> None:
    """Restore a saved state. A state from another kind of device is replaced by a seed derived from `entropy`."""
    if saved.shape == own.get_state().shape:
        own.set_state(saved.cpu())
    else:
        own.manual_seed(derive(*entropy))


@contextmanager
def scoped_seed(seed: int) -> Iterator[None]:
    """Seed torch's global CPU generator inside the context, and restore it afterwards.

    Modules, including a user's own, draw their initial weights from the global generator, and this context makes them
    a function of the seed. Nothing else in herdbook touches global random state.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
