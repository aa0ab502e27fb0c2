"""The learned policies that acted in a dataset, and their record in Minari's metadata.

`algorithm_name` is Minari's field. Minari has none for steps and seeds, which `herdbook_learned_by` holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from herdbook.datasets.validation import DataError

ALGORITHM = "algorithm_name"
LEARNED_BY = "herdbook_learned_by"


@dataclass(frozen=True, kw_only=True)
class LearnedBy:
    """A policy by its algorithm, the step of its run and its seed; None: unknown."""

    algorithm: str
    step: int | None = None
    seed: int | None = None

    def __str__(self) -> str:
        known = {"step": None if self.step is None else f"{self.step:,}", "seed": self.seed}
        text = ", ".join(f"{name} {value}" for name, value in known.items() if value is not None)
        return f"{self.algorithm} ({text})" if text else self.algorithm


def learned_metadata(learned_by: Iterable[LearnedBy]) -> dict[str, Any]:
    """The entries of metadata.json for these policies; empty if there are none."""
    policies = list(learned_by)
    if not policies:
        return {}
    names = dict.fromkeys(policy.algorithm for policy in policies)
    return {ALGORITHM: ", ".join(names), LEARNED_BY: [asdict(policy) for policy in policies]}


def read_learned(source: str, metadata: Mapping[str, Any]) -> tuple[LearnedBy, ...]:
    """The inverse of `learned_metadata`; from `algorithm_name` alone in datasets of other libraries.

    Raises DataError for a malformed record.
    """
    recorded = metadata.get(LEARNED_BY)
    if recorded is None:
        name = metadata.get(ALGORITHM)
        return (LearnedBy(algorithm=name),) if isinstance(name, str) and name else ()
    try:
        policies = tuple(LearnedBy(**policy) for policy in recorded)
    except TypeError as error:
        raise DataError(f"{source}: expected a list of algorithm, step, seed as {LEARNED_BY}: {error}") from error
    for policy in policies:
        numbers = (policy.step, policy.seed)
        if not isinstance(policy.algorithm, str) or not all(n is None or type(n) is int for n in numbers):
            raise DataError(f"{source}: expected a name, and whole numbers or null, in {LEARNED_BY}, got {policy!r}")
    return policies
