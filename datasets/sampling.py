"""Index drawing and argument checks shared by all replays."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from herdbook.core.types import TimeLimit


def checked_time_limit(time_limit: TimeLimit) -> TimeLimit:
    """`time_limit`, unchanged. Raises ValueError for an unknown value."""
    if time_limit not in ("bootstrap", "terminal"):
        raise ValueError(f'expected time_limit "bootstrap" or "terminal", got {time_limit!r}')
    return time_limit


def check_discount(discount: float) -> None:
    """Raise ValueError outside [0, 1]."""
    if not 0 <= discount <= 1:
        raise ValueError(f"expected a discount in [0, 1], got {discount}")


def drawn_numbers(
    size: int, batch_size: int, generators: Sequence[torch.Generator], device: torch.device | str
) -> Tensor:
    """Numbers below `size`, uniform with replacement: `[B]`, or `[S, B]` for S > 1 generators.

    Raises ValueError for an empty replay.
    """
    if batch_size < 1:
        raise ValueError(f"expected a batch size of at least 1, got {batch_size}")
    if not size:
        raise ValueError("the replay is empty: add steps before sampling")
    drawn = [torch.randint(size, (batch_size,), generator=g, device=g.device) for g in generators]
    return (drawn[0] if len(drawn) == 1 else torch.stack(drawn)).to(device)
