"""Checks of what a Gymnasium environment returns, and how its exceptions are told in one line."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Any

import numpy as np
from gymnasium import Space

from herdbook.core.registry import cause
from herdbook.core.spaces import BadValues, Keys, checked_row
from herdbook.core.types import Tree

_STEP = "(observation, reward, terminated, truncated, info)"


class WrongReturn(ValueError):
    """An environment returned something other than Gymnasium's API declares. The message is told after its name."""


def reset_values(result: Any) -> Any:
    """The observation that `reset` returned. Raises WrongReturn unless it came with an info."""
    if not isinstance(result, (tuple, list)) or len(result) != 2 or not isinstance(result[1], (Mapping, NoneType)):
        raise WrongReturn(f"at reset: expected (observation, info), got {_described(result)}")
    return result[0]


def step_values(result: Any) -> tuple[Any, float, bool, bool]:
    """The observation, reward, terminated and truncated that `step` returned. Raises WrongReturn for another form."""
    if not isinstance(result, (tuple, list)) or len(result) != 5:
        four = isinstance(result, tuple) and len(result) == 4
        old = "; Gymnasium replaced `done` by the two flags" if four else ""
        raise WrongReturn(f"at step: expected {_STEP}, got {_described(result)}{old}")
    observation, reward, terminated, truncated, _ = result
    if not isinstance(reward, float):
        reward = _number("reward", "a number", reward)
    if not isinstance(terminated, bool):
        terminated = bool(_number("terminated", "True or False", terminated))
    if not isinstance(truncated, bool):
        truncated = bool(_number("truncated", "True or False", truncated))
    return observation, reward, terminated, truncated


def observed(at: str, space: Space[Any], flat: Space[Any], observation: Any, keys: Keys = None) -> Tree:
    """An observation flattened to the space `flat`. Raises WrongReturn, naming the part, if it is not in `space`."""
    try:
        return checked_row(space, flat, observation, keys)
    except BadValues as error:
        raise WrongReturn(f"at {at}: expected an observation{error.part} {error.expected}, got {error.got}") from error


def failed_as(error: Exception, when: str = "") -> str:
    """The predicate of a message about an environment: what it returned, or what it raised, and `when`."""
    return str(error) if isinstance(error, WrongReturn) else f"raised {cause(error, when)}"


def _number(field: str, expected: str, value: Any) -> float:
    """A number, also as an array of one element."""
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" or array.size != 1:
        raise WrongReturn(f"at step: expected {field} as {expected}, got {_described(value)}")
    return float(array.reshape(()))


def _described(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{len(value)} values"
    if isinstance(value, np.ndarray) and value.ndim:
        return f"an array of shape {value.shape}"
    text = repr(value)
    return text if len(text) <= 60 else type(value).__name__
