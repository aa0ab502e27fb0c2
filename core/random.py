"""Randomness as an argument: seeds and generators derived from numbers, and the one place that lends a global seed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(*entropy: int) -> int:
    """A 63-bit seed from several non-negative numbers, as (run seed, lane, episode); zeros at its end add nothing."""
    high, low = np.random.SeedSequence(entropy).generate_state(2, np.uint32)
    return (int(high) << 31) ^ int(low)


def generator(*entropy: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator of its own for each sequence of numbers."""
    return torch.Generator(device).manual_seed(derive(*entropy))


def restore_generator(own: torch.Generator, saved: torch.Tensor, *entropy: int) -> None:
    """Go on from a saved state.

    One of another kind of device cannot be continued: others follow, the same every time, from `entropy`.
    """
    if saved.shape == own.get_state().shape:
        own.set_state(saved.cpu())
    else:
        own.manual_seed(derive(*entropy))


@contextmanager
def scoped_seed(seed: int) -> Iterator[None]:
    """Lend torch's global CPU generator a seed and give it back unchanged.

    Modules draw their initial weights from the global generator, a user's own modules too: this is what makes them
    a function of the seed. Nothing else in herdbook touches global random state.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
