"""`Config`, the base of all configs, and the validation of their fields."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, ClassVar, Self

POSITIVE = (math.ulp(0.0), sys.float_info.max)
NOT_NEGATIVE = (0.0, sys.float_info.max)
FINITE = (-sys.float_info.max, sys.float_info.max)
LIMIT = (0.0, math.inf)  # a clipping bound; infinity disables clipping
UNIT = (0.0, 1.0)
FRACTION = (math.ulp(0.0), 1.0)
COUNT = (1, math.inf)  # whole numbers only
_SPANS = {
    POSITIVE: "> 0 and finite",
    NOT_NEGATIVE: ">= 0 and finite",
    FINITE: "finite",
    LIMIT: ">= 0",
    FRACTION: "in (0, 1]",
    COUNT: ">= 1",
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of every algorithm's config: defaults for the properties that a run reads.

    A field may hold the config of an inner algorithm; its fields are then known as `ppo.lr`, by the field's name. An
    algorithm with such an option overrides the property by a field with a default, or by a property. A config with
    `decay_lr` also has the field `decay_steps`, or a `for_run` of its own.
    """

    algorithm: ClassVar[str] = ""  # name in the catalogue; empty for a user's own algorithm

    def for_run(self, steps: int) -> Self:
        """The config for a run of `steps` steps, which is the length of schedules that have none of their own."""
        inner = {f.name: getattr(self, f.name) for f in fields(self)}
        inner = {name: value.for_run(steps) for name, value in inner.items() if isinstance(value, Config)}
        return replace(self, **inner)._for_run(steps) if inner else self._for_run(steps)

    def _for_run(self, steps: int) -> Self:
        if not self.decay_lr or self.decay_steps is not None or "decay_steps" not in {f.name for f in fields(self)}:
            return self
        return replace(self, decay_steps=max(steps, 1))  # type: ignore[call-arg]  # the field, not the property

    def require(self, **bounds: tuple[float, float]) -> None:
        """Apply the function `require` to this config."""
        require(self, **bounds)

    def require_one_of(self, **choices: tuple[str | None, ...]) -> None:
        """Raise ValueError unless each of these fields has one of the values that are named for it."""
        for name, allowed in choices.items():
            if (value := getattr(self, name)) not in allowed:
                listed = ", ".join(map(str, allowed))
                raise ValueError(f"{type(self).__name__}: expected {name} among {listed}, got {value!r}")

    def expect_together(self, switch: str, length: str) -> None:
        """Raise ValueError unless a schedule has a length if and only if it is on. `for_run` fills in the length."""
        on, value, name = getattr(self, switch), getattr(self, length), type(self).__name__
        if on and value is None:
            raise ValueError(f"{name}: expected {length} beside {switch} (a run gives its own), got None")
        if value is not None and not on:
            raise ValueError(f"{name}: expected {switch} beside {length}={value}, got {on}")

    @property
    def online(self) -> bool:
        """True if it interacts with an environment, for an algorithm that learns from data with or without one."""
        return False

    @property
    def decay_lr(self) -> bool:
        """True if the learning rates decay linearly to 0 over `decay_steps` environment steps."""
        return False

    @property
    def decay_steps(self) -> int | None:
        """Length of the learning-rate decay; None: the length of the run."""
        return None

    @property
    def recurrent(self) -> bool:
        """True if the networks have a memory. Each seed then trains separately."""
        return False

    @property
    def frame_stack(self) -> int:
        """Number of stacked observations in one network input."""
        return 1

    @property
    def replay_steps(self) -> int:
        """Capacity of an online replay in steps."""
        return 1_000_000

    @property
    def priority_exponent(self) -> float:
        """α of prioritised replay (Schaul et al. 2016)."""
        return 0.6

    @property
    def prioritised(self) -> bool:
        """True if batches are sampled by priority."""
        return False

    @property
    def scale_rewards(self) -> bool:
        """True if rewards are divided by a running standard deviation."""
        return False

    @property
    def team_reward(self) -> bool:
        """True if it learns from the sum of all learning agents' rewards."""
        return False


def has_inner(config_class: type[Config]) -> bool:
    """True if a field of the config is the config of an inner algorithm."""
    return any(isinstance(f.default, Config) for f in fields(config_class))


def flat_fields(config: Config) -> Iterator[tuple[str, Field[Any], Any]]:
    """Name, field and value of each field; the fields of an inner algorithm's config are named as `ppo.lr`."""
    for f in fields(config):
        value = getattr(config, f.name)
        if isinstance(value, Config):
            yield from ((f"{f.name}.{name}", inner, own) for name, inner, own in flat_fields(value))
        else:
            yield f.name, f, value


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """The config with other values of the fields that `flat_fields` names. Raises ValueError as the configs do."""
    own: dict[str, Any] = {name: value for name, value in values.items() if "." not in name}
    for name in {name.partition(".")[0] for name in values.keys() - own.keys()}:
        inner = {key.removeprefix(f"{name}."): value for key, value in values.items() if key.startswith(f"{name}.")}
        own[name] = with_values(getattr(config, name), inner)
    return replace(config, **own)


def require(config: Any, **bounds: tuple[float, float]) -> None:
    """Check fields that hold a number or a tuple of numbers against closed intervals.

    None is accepted where the field's type allows it. Raises ValueError, which names config, field, expected interval
    and actual value.
    """
    types = {field.name: str(field.type) for field in fields(config)}
    for name, (low, high) in bounds.items():
        value, several, whole = getattr(config, name), "tuple" in types[name], (low, high) == COUNT
        if value is None and "None" in types[name]:
            continue
        numbers = value if several else (value,)
        if not isinstance(numbers, tuple) or not all(_is_number(number, whole) for number in numbers):
            kind = "whole number" if whole else "number"
            expected = f"a tuple of {kind}s" if several else f"a {kind}"
            raise ValueError(f"{type(config).__name__}: expected {name} as {expected}, got {value!r}")
        for number in numbers:
            if not low <= number <= high:  # NaN fails here too
                span = _SPANS.get((low, high), f"in [{low:g}, {high:g}]")
                raise ValueError(f"{type(config).__name__}: expected {name} {span}, got {number}")


def _is_number(value: Any, whole: bool) -> bool:
    return isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
