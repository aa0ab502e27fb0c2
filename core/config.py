"""Configs are frozen dataclasses; this is how they check themselves."""

from __future__ import annotations

import math
from typing import Any

POSITIVE = (math.ulp(0.0), math.inf)
UNIT = (0.0, 1.0)
COUNT = (1, math.inf)


def require(config: Any, **bounds: tuple[float, float]) -> None:
    """Check numeric fields, or tuples of numbers, against closed intervals; a field that is None is not checked.

    Raises:
        ValueError: naming the config, the field, what was expected and what came.
    """
    for name, (low, high) in bounds.items():
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not low <= number <= high:  # NaN fails here too
                span = f"> 0, got {number}" if (low, high) == POSITIVE else f"in [{low:g}, {high:g}], got {number}"
                raise ValueError(f"{type(config).__name__}: expected {name} {span}")
