"""Environments in options and in config.json."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from herdbook.core.environments import EnvironmentSource, EnvironmentSpec, describe_environment, registered_only
from herdbook.core.runs import to_json
from herdbook.experiments.catalogue import UserError


def with_arguments(source: EnvironmentSource | None, arguments: Mapping[str, Any]) -> EnvironmentSource | None:
    """An environment with keyword arguments bound."""
    if source is None or not arguments:
        return source
    if callable(source):
        return functools.partial(source, **arguments)
    return describe_environment(source, **arguments)


def same_environment(chosen: EnvironmentSource | None, arguments: Mapping[str, Any], recorded: EnvironmentSpec) -> bool:
    """True if the user's choice (None: none) with these keyword arguments is the recorded environment."""
    described = recorded if chosen is None else describe_environment(chosen)
    if described is None or described.id != recorded.id:
        return False
    if not isinstance(chosen, str) and dict(described.kwargs) != dict(recorded.kwargs):
        return False
    return all(name in recorded.kwargs and recorded.kwargs[name] == value for name, value in arguments.items())


def trusted(source: EnvironmentSource, given: bool) -> EnvironmentSource:
    """An environment of the user, or a registered one. Raises EnvironmentUnavailable for code that a dataset names."""
    return source if given or not isinstance(source, EnvironmentSpec) else registered_only(source)


def environment_record(environment: EnvironmentSource | None) -> dict[str, Any] | None:
    """The record of an environment in config.json. Code is named, with a colon, and never imported from there.

    `gymnasium` is the whole Gymnasium spec with its wrappers, if there is one.
    """
    if environment is None:
        return None
    bound: Mapping[str, Any] = {}
    if isinstance(environment, functools.partial):  # from `with_arguments`, or the user's own
        bound, environment = environment.keywords, environment.func
    described = describe_environment(environment, **bound)
    if described is None:
        name = getattr(environment, "__qualname__", type(environment).__name__)
        return {"id": f"python:{name}", **({"kwargs": dict(bound)} if bound else {})}
    return {
        "id": described.id,
        "kwargs": dict(described.kwargs),
        "max_episode_steps": described.max_episode_steps,
        "gymnasium": None if described.gymnasium_json is None else json.loads(described.to_json()),
    }


def same_record(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    """True if two records have the same id, arguments, time limit and wrappers."""

    def identity(record: Mapping[str, Any] | None) -> Any:
        if record is None:
            return None
        wrappers = (record.get("gymnasium") or {}).get("additional_wrappers") or ()
        # The rest of Gymnasium's spec changes with its version.
        return to_json([*(record.get(key) for key in ("id", "kwargs", "max_episode_steps")), wrappers])

    return bool(identity(one) == identity(other))


def environment_from_record(record: Mapping[str, Any] | None) -> EnvironmentSpec:
    """The environment of a run.

    Raises UserError or EnvironmentUnavailable if it or one of its wrappers is code, which is not imported.
    """
    if record is None:
        raise UserError("this run records no environment; give one with --env (env= in Python)")
    if ":" in record["id"]:
        raise UserError(
            f"this run's environment is code, {record['id']}; code that a run directory names is not imported: "
            f"give it again with --env {record['id']} if you trust it"
        )
    return registered_only(spec_of_record(record))


def spec_of_record(record: Mapping[str, Any]) -> EnvironmentSpec:
    """The inverse of `environment_record`. The result is as untrusted as the file."""
    return EnvironmentSpec(
        id=record["id"],
        kwargs=record.get("kwargs") or {},
        max_episode_steps=record.get("max_episode_steps"),
        gymnasium_json=json.dumps(record["gymnasium"]) if record.get("gymnasium") else None,
    )
