"""Environments as a user names them and as config.json records them."""

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
    """Whether what a user chose (None: nothing) and its keyword arguments make the recorded environment."""
    described = recorded if chosen is None else describe_environment(chosen)
    if described is None or described.id != recorded.id:
        return False
    if not isinstance(chosen, str) and dict(described.kwargs) != dict(recorded.kwargs):
        return False
    return all(name in recorded.kwargs and recorded.kwargs[name] == value for name, value in arguments.items())


def trusted(source: EnvironmentSource, given: bool) -> EnvironmentSource:
    """An environment that the user gave, or a dataset's, of which only what is registered is made.

    Raises EnvironmentUnavailable for another one.
    """
    return source if given or not isinstance(source, EnvironmentSpec) else registered_only(source)


def environment_record(environment: EnvironmentSource | None) -> dict[str, Any] | None:
    """What config.json says of an environment; code is named, with a colon, but never imported from there.

    `gymnasium` is the whole Gymnasium spec, wrappers included, where there is one.
    """
    if environment is None:
        return None
    bound: Mapping[str, Any] = {}
    if isinstance(environment, functools.partial):  # of `with_arguments`, or the user's own
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
    """Whether two records say the same environment: id, arguments, time limit and wrappers, as JSON holds them."""

    def identity(record: Mapping[str, Any] | None) -> Any:
        if record is None:
            return None
        wrappers = (record.get("gymnasium") or {}).get("additional_wrappers") or ()
        # The rest of Gymnasium's spec changes with its version.
        return to_json([*(record.get(key) for key in ("id", "kwargs", "max_episode_steps")), wrappers])

    return bool(identity(one) == identity(other))


def environment_from_record(record: Mapping[str, Any] | None) -> EnvironmentSpec:
    """The environment of a run.

    Raises UserError or EnvironmentUnavailable where it, or a wrapper, is code: no module that a file names is imported.
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
    """The inverse of `environment_record`, as untrusted as the file that it comes from."""
    return EnvironmentSpec(
        id=record["id"],
        kwargs=record.get("kwargs") or {},
        max_episode_steps=record.get("max_episode_steps"),
        gymnasium_json=json.dumps(record["gymnasium"]) if record.get("gymnasium") else None,
    )
