"""Environments by name: how they are recorded beside a dataset, made, and checked.

A name is a Gymnasium id (`Hopper-v5`; the registry is asked first), or `module:callable` for a user's own environment;
in Python a callable serves everywhere a name does.
"""

from __future__ import annotations

import copy
import difflib
import functools
import importlib
import importlib.util
import json
import math
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec, WrapperSpec, load_env_creator

Env = gymnasium.Env[Any, Any]


class EnvironmentUnavailable(ValueError):
    """An environment cannot be made: an unknown name, a missing package, or arguments that it refuses."""


@dataclass(frozen=True)
class ReferenceScores:
    """The returns that count as 0 and as 100, and where they come from. Raises ValueError unless minimum < maximum."""

    minimum: float
    maximum: float
    source: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.minimum) and math.isfinite(self.maximum) and self.minimum < self.maximum):
            raise ValueError(
                f"expected finite reference scores with minimum < maximum, got {self.minimum} and {self.maximum}"
            )


@dataclass(frozen=True, kw_only=True)
class EnvironmentSpec:
    """How to make an environment: its id (or `module:callable`), its keyword arguments and its time limit.

    `gymnasium_json` is the full Gymnasium `EnvSpec` where one is known (entry point, wrappers), as Minari stores it.
    """

    id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    max_episode_steps: int | None = None
    gymnasium_json: str | None = field(default=None, repr=False)

    @classmethod
    def from_gymnasium(cls, spec: EnvSpec) -> EnvironmentSpec:
        """The spec of a Gymnasium environment (`env.spec`). What JSON cannot hold (a function) is left out."""
        try:
            text = spec.to_json()
        except (TypeError, ValueError):
            text = None
        return cls(
            id=spec.id, kwargs=dict(spec.kwargs), max_episode_steps=spec.max_episode_steps, gymnasium_json=text
        )

    def to_gymnasium(self) -> EnvSpec:
        """The Gymnasium `EnvSpec`, with fields that this version of Gymnasium does not know left out."""
        known: dict[str, Any] = json.loads(self.gymnasium_json) if self.gymnasium_json else {}
        known |= {"id": self.id, "kwargs": dict(self.kwargs), "max_episode_steps": self.max_episode_steps}
        if "entry_point" not in known and _is_callable_name(self.id):
            known["entry_point"] = self.id
        names = {f.name for f in dataclass_fields(EnvSpec) if f.init}
        known = {name: value for name, value in known.items() if name in names}
        known["additional_wrappers"] = tuple(
            wrapper if isinstance(wrapper, WrapperSpec) else WrapperSpec(**wrapper)
            for wrapper in known.get("additional_wrappers") or ()
        )
        return EnvSpec(**known)

    def to_json(self) -> str:
        """A Gymnasium `EnvSpec` as JSON: what Minari stores, so that plain Minari can recover the environment."""
        return self.gymnasium_json or self.to_gymnasium().to_json()

    @classmethod
    def from_json(cls, text: str) -> EnvironmentSpec:
        """Read `to_json` or the `EnvSpec` of any Gymnasium version. Raises ValueError where there is no id in it."""
        try:
            known = json.loads(text)
            identifier = known["id"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"expected an environment spec as JSON with an id, got {text[:200]!r}") from error
        return cls(
            id=identifier,
            kwargs=known.get("kwargs") or {},
            max_episode_steps=known.get("max_episode_steps"),
            gymnasium_json=text,
        )


def _is_callable_name(name: str) -> bool:
    """`module:callable`; Gymnasium's own `module:Name-v0` is not one."""
    return re.fullmatch(r"[\w.]+:[A-Za-z_][\w.]*", name) is not None
