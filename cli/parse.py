"""Command-line options from dataclasses, by tyro, with the rules that all commands share."""

from __future__ import annotations

import sys
import typing
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

T = TypeVar("T")
REGISTRY = ConstructorRegistry()


_FROM_TEXT: dict[Any, Callable[[str], Any]] = {int: lambda text: _integer(text), float: float, str: str}
"""Integers may be written `1e6`."""


@REGISTRY.primitive_rule
def _scalars(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Integers, and numbers and text that may be None: `--help` shows `INT` for them, not `{None}|INT`."""
    kinds = [kind for kind in typing.get_args(info.type) or (info.type,) if kind is not type(None)]
    optional = len(kinds) < len(typing.get_args(info.type))
    if len(kinds) != 1 or kinds[0] not in _FROM_TEXT or not (optional or info.type is int):
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=kinds[0].__name__.upper(),
        instance_from_str=lambda words: None if optional and words[0] == "None" else _FROM_TEXT[kinds[0]](words[0]),
        is_instance=lambda value: isinstance(value, kinds[0]) or (optional and value is None),
        str_from_instance=lambda value: [str(value)],
    )


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not number.is_integer():
            raise ValueError(f"expected an integer, got {text}") from None
        return int(number)


def parse(target: Callable[..., T], arguments: Sequence[str], command: str, **options: Any) -> T:
    """Build a dataclass, or call a function, from command-line words.

    A wrong flag ends the process with status 2 and tyro's box, `--help` with 0.
    """
    with REGISTRY:
        parsed: T = tyro.cli(target, args=list(arguments), prog=f"herdbook {command}", **options)
        return parsed


def flag(arguments: Sequence[str], name: str) -> str | None:
    """The value of `--name value` or `--name=value` before any parsing; None if it is not given."""
    spellings = {f"--{name}", f"--{name.replace('_', '-')}"}
    for word, following in zip_longest(arguments, arguments[1:]):
        if word in spellings:
            return following
        key, equals, value = word.partition("=")
        if equals and key in spellings:
            return value
    return None


def wants_help(arguments: Sequence[str]) -> bool:
    """True if a command is asked for its help only."""
    return not arguments or arguments[0] in ("-h", "--help")


def show(text: str) -> None:
    """Print to standard output."""
    sys.stdout.write(text.rstrip("\n") + "\n")
