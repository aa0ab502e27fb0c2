"""What config.json says of a run, and how it is read back: environment, config, options."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from herdbook.core.environments import (
    EnvironmentSource,
    EnvironmentSpec,
    describe_environment,
    registered_only,
)
from herdbook.core.runs import Run, RunError, to_json
from herdbook.datasets.load import local_path
from herdbook.experiments.catalogue import UserError, nearest
from herdbook.experiments.options import RESERVED, RunOptions

OTHERS = "others"  # where a run keeps the policies that play beside its own


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


def build_config(config_class: type[Any], values: Mapping[str, Any]) -> Any:
    """A config from field values. Raises UserError for unknown names (with the nearest) and values out of range."""
    names = [f.name for f in fields(config_class) if f.init]
    check_reserved(config_class)
    for name in values:
        if name not in names:
            raise UserError(
                f"{config_class.__name__} has no field {name!r}{nearest(name, [*names, *RESERVED])}; "
                f"it has {', '.join(names)}"
            )
    try:
        return config_class(**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items()})
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error


def check_reserved(config_class: type[Any]) -> None:
    """Raise UserError if a config has a field of the name of a run field."""
    if taken := sorted(RESERVED & {f.name for f in fields(config_class)}):
        raise UserError(f"{config_class.__name__}: the names {', '.join(taken)} are reserved for the run; rename them")


def config_values(config: Any) -> dict[str, Any]:
    """A config as JSON values; numbers that are not finite become text ("inf"), which `config_from_values` reads."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return repr(value) if isinstance(value, float) and not math.isfinite(value) else value

    return {name: plain(value) for name, value in asdict(config).items()}


def config_from_values(config_class: type[Any], values: Mapping[str, Any]) -> Any:
    """The inverse of `config_values`. Raises UserError where the config has changed since."""

    def rich(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(rich(item) for item in value)
        return float(value) if value in ("inf", "-inf", "nan") else value

    return build_config(config_class, {name: rich(value) for name, value in values.items()})


def run_schedules(config: Any) -> list[str]:
    """The fields of a config that `for_run` fills with the length of the run."""
    if not hasattr(config, "for_run"):
        return []
    given = [f.name for f in fields(config) if f.default is None and getattr(config, f.name) is not None]
    return [name for name in given if getattr(replace(config, **{name: None}).for_run(1), name) is not None]


def merge(options: RunOptions, **changes: Any) -> RunOptions:
    """Options with those changes that are not None."""
    return replace(options, **{name: value for name, value in changes.items() if value is not None})


def absolute(options: RunOptions) -> RunOptions:
    """Options whose paths hold from any working directory, so that a run can be resumed from another one."""
    dataset = None if options.dataset is None else local_path(options.dataset)
    return replace(
        options,
        others=options.others if options.others == "random" else str(Path(options.others).expanduser().resolve()),
        dataset=options.dataset if dataset is None else str(dataset.resolve()),
        data_dir=None if options.data_dir is None else str(Path(options.data_dir).expanduser().resolve()),
    )


def options_of(run: Run) -> RunOptions:
    """The options that a run was begun with, the others from its own directory. Raises RunError for unknown ones."""
    known: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in run.options.items()
        if name in {f.name for f in fields(RunOptions)}
    }
    if (run.path / OTHERS).is_dir():
        known["others"] = str(run.path / OTHERS)
    try:
        return RunOptions(**known)
    except (UserError, TypeError) as error:
        raise RunError(f"{run.path / 'config.json'}: {error}") from error


def check_networks(run: Run, networks: Mapping[str, Any] | None) -> None:
    """Raise UserError unless the user's own modules are given again for a run that was trained with them."""
    expected, given = run.config.get("networks") or [], sorted(networks or ())
    if given != expected:
        raise UserError(
            f"{run.path}: expected networks= for {', '.join(expected) or 'nothing'}, as the run was begun with, "
            f"got {', '.join(given) or 'none'}"
        )
