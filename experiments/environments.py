"""Environments in options and in config.json."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gymnasium.envs.registration import EnvSpec

from herdbook.core.environments import (
    EnvironmentSource,
    EnvironmentSpec,
    EnvironmentUnavailable,
    describe_environment,
    registered_only,
)
from herdbook.core.registry import joint_module
from herdbook.core.runs import to_json
from herdbook.experiments.catalogue import UserError


def with_arguments(source: EnvironmentSource | None, arguments: Mapping[str, Any]) -> EnvironmentSource | None:
    """An environment with keyword arguments bound."""
    if source is None or not arguments:
        return source
    if callable(source):
        return functools.partial(source, **arguments)
    return describe_environment(source, **arguments)


def as_recorded(env: EnvironmentSource, recorded: EnvironmentSpec | None) -> EnvironmentSource:
    """The user's environment `env`; if it names the recorded one, with the recorded arguments, time limit and wrappers.

    Arguments that the user binds with functools.partial replace the recorded ones. A spec is taken as it is. Code that
    only the record names is not imported.

    Raises EnvironmentUnavailable if a recorded wrapper cannot be kept.
    """
    if recorded is None or isinstance(env, (EnvSpec, EnvironmentSpec)):
        return env
    if not isinstance(env, str):
        record = environment_record(env) or {}
        if record.get("id") != recorded.id:
            return env
        arguments = {**recorded.kwargs, **record.get("kwargs", {})}
        if recorded.max_episode_steps is not None:
            return replace(recorded, kwargs=arguments, gymnasium_json=None)
        return functools.partial(env, **arguments) if arguments else env
    known = json.loads(recorded.gymnasium_json) if recorded.gymnasium_json else {}
    # Gymnasium's `module:Name-v0` imports the module that registers Name-v0.
    if env not in (recorded.id, known.get("entry_point")) and env.rpartition(":")[2] != recorded.id:
        return env
    if ":" not in env and joint_module(env) is None:
        return registered_only(recorded)
    if wrappers := [wrapper.get("entry_point") for wrapper in known.get("additional_wrappers") or ()]:
        raise EnvironmentUnavailable(
            f"environment {env}: it was recorded with the wrappers {', '.join(map(str, wrappers))}, which this name "
            "does not have; give another module:callable that makes it with them"
        )
    return EnvironmentSpec(id=env, kwargs=recorded.kwargs, max_episode_steps=recorded.max_episode_steps)


def own_environment(
    record: Mapping[str, Any] | None, env: EnvironmentSource | None, arguments: Mapping[str, Any] | None = None
) -> EnvironmentSource:
    """The environment in which the policy of a run plays: `env`, by default the run's own, with keyword arguments.

    Raises what `environment_from_record` and `as_recorded` raise.
    """
    if env is None:
        source: EnvironmentSource = environment_from_record(record)
    else:
        source = as_recorded(env, None if record is None else spec_of_record(record))
    return with_arguments(source, arguments or {}) or source


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
