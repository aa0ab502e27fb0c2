"""Configs and options as config.json holds them, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from herdbook.core.config import Config, flat_fields, with_values
from herdbook.core.runs import Run, RunError
from herdbook.datasets.load import local_path
from herdbook.experiments.catalogue import UserError, nearest
from herdbook.experiments.options import RESERVED, RunOptions

OTHERS = "others"  # the folder of a run for the policies of its opponents
REWARD = "reward"  # the folder of a run for the learned reward that it learns from
EXPERT = "expert"  # the folder of a run for the policy of its expert


def build_config(config_class: type[Any], values: Mapping[str, Any]) -> Any:
    """A config from field values. Raises UserError for an unknown field or a value out of range.

    Values of an inner algorithm's config are named as `ppo.lr`, or given together: as a mapping or as a config.
    """
    own_fields = {f.name: f for f in fields(config_class) if f.init}
    check_reserved(config_class)
    inner: dict[str, dict[str, Any]] = {}
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        outer, dot, rest = name.partition(".")
        if outer not in own_fields or (dot and not isinstance(own_fields[outer].default, Config)):
            raise UserError(
                f"{config_class.__name__} has no field {name!r}{nearest(name, [*own_fields, *RESERVED])}; "
                f"it has {', '.join(own_fields)}"
            )
        if dot:
            inner.setdefault(outer, {})[rest] = value
        elif isinstance(value, Mapping) and isinstance(own_fields[outer].default, Config):
            inner.setdefault(outer, {}).update(value)
        else:
            arguments[name] = tuple(value) if isinstance(value, list) else value
    for name, some in inner.items():
        base = arguments.get(name, own_fields[name].default)
        everything = {f.name: getattr(base, f.name) for f in fields(base) if f.init} | some
        arguments[name] = build_config(type(base), everything)
    try:
        return config_class(**arguments)
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error


def check_reserved(config_class: type[Any]) -> None:
    """Raise UserError if a field of a config has the name of a run option."""
    if taken := sorted(RESERVED & {f.name for f in fields(config_class)}):
        raise UserError(f"{config_class.__name__}: the names {', '.join(taken)} are reserved for the run; rename them")


def config_values(config: Any) -> dict[str, Any]:
    """A config as JSON values. Infinite numbers and NaN become text, which `config_from_values` reads."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return repr(value) if isinstance(value, float) and not math.isfinite(value) else value

    return {name: plain(value) for name, value in asdict(config).items()}


def config_from_values(config_class: type[Any], values: Mapping[str, Any]) -> Any:
    """The inverse of `config_values`. Raises UserError if the fields of the config have changed since."""

    def rich(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(rich(item) for item in value)
        if isinstance(value, dict):
            return {key: rich(item) for key, item in value.items()}
        return float(value) if isinstance(value, str) and value in ("inf", "-inf", "nan") else value

    return build_config(config_class, {name: rich(value) for name, value in values.items()})


def with_length(config: Config, before: int, steps: int) -> tuple[Config, list[str]]:
    """The config of a run whose length changes from `before` to `steps`, and what is to be said about it.

    Schedules that lasted for the run last for the new length. Those with a length of their own stay.
    """
    notices = []
    for name, given in _schedules(config).items():
        opened = with_values(config, {name: None})
        old, new = (_values(opened.for_run(length))[name] for length in (before, steps))
        if given == old:
            config = with_values(config, {name: new})
            notices.append(f"the schedule {name} lasts for the new length of the run: {new} instead of {given}")
        elif old is not None:
            notices.append(f"the schedule {name}={given} has its own length; the value stays at its end from there on")
    return config, notices


def without_schedules(config: Any, steps: int) -> Any:
    """The config of an offline run of `steps` steps as fine-tuning has it, which does not count those schedules."""
    for name, given in _schedules(config).items():
        open_ended = with_values(config, {name: None})
        if _values(open_ended.for_run(steps))[name] == given:
            config = open_ended
    return config


def _schedules(config: Config) -> dict[str, Any]:
    """The fields that are None by default and have a value."""
    return {name: value for name, f, value in flat_fields(config) if f.default is None and value is not None}


def _values(config: Config) -> dict[str, Any]:
    return {name: value for name, _, value in flat_fields(config)}


def with_rates(config: Any, rates: Mapping[str, float]) -> Any:
    """A config with other learning rates. Raises UserError for another field or a value out of range."""
    if not rates:
        return config
    may_change = [name for name in _values(config) if _is_rate(name)]
    for name, value in rates.items():
        if name not in may_change:
            raise UserError(
                f"set: {name} cannot change in a run that has begun{nearest(name, may_change)}; expected a learning "
                f"rate: {', '.join(may_change) or 'there is none here'}"
            )
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f"set: expected {name} as a number, got {value!r}")
    try:
        return with_values(config, rates)
    except ValueError as error:
        raise UserError(str(error)) from error


def differences(before: Any, after: Any) -> list[str]:
    """The fields in which two configs differ, as `actor_lr is 0.0001 instead of 0.0003`."""
    old, new = flat_values(config_values(before)), flat_values(config_values(after))
    return [f"{name} is {new[name]} instead of {old[name]}" for name in old if new[name] != old[name]]


def change_record(step: int, before: Any, after: Any) -> dict[str, Any]:
    """The entry of `changes` in config.json for a config that changes at `step`."""
    old, new = flat_values(config_values(before)), flat_values(config_values(after))
    return {"step": step, "config": {n: {"from": old[n], "to": new[n]} for n in old if new[n] != old[n]}}


def rates_at_start(run: Run) -> dict[str, Any]:
    """The values of a run's config with the learning rates that it began with, before all `changes`.

    Schedules stay those of the run's present length.
    """
    values = dict(run.config["config"])
    for change in reversed(run.config.get("changes", [])):
        for name, each in change["config"].items():
            if _is_rate(name):
                *outer, last = name.split(".")
                values = _replaced(values, outer, last, each["from"])
    return values


def flat_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values of a config, those of inner configs by names as `ppo.lr`."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= {f"{name}.{k}": v for k, v in flat_values(value).items()} if isinstance(value, dict) else {name: value}
    return found


def _replaced(values: Mapping[str, Any], outer: Sequence[str], last: str, value: Any) -> dict[str, Any]:
    """JSON values of a config in which one value, maybe of an inner config, is another."""
    if not outer:
        return {**values, last: value}
    return {**values, outer[0]: _replaced(values[outer[0]], outer[1:], last, value)}


def _is_rate(name: str) -> bool:
    name = name.rpartition(".")[2]
    return name == "lr" or (name.endswith("_lr") and name != "decay_lr")


def merge(options: RunOptions, **changes: Any) -> RunOptions:
    """Options with the changes that are not None."""
    return replace(options, **{name: value for name, value in changes.items() if value is not None})


def is_run(path: str) -> bool:
    """True if there is a run at `path`."""
    return (Path(path).expanduser() / "config.json").is_file()


def is_code(name: str) -> bool:
    """True if an expert is named as `module:callable`, or as the `python:Name` of a policy that was given as one."""
    return ":" in name and not Path(name).exists()


def absolute(options: RunOptions) -> RunOptions:
    """Options with absolute paths, so that a run can be resumed from another working directory."""
    dataset = None if options.dataset is None else local_path(options.dataset)
    return replace(
        options,
        others=options.others if options.others == "random" else _resolved(options.others),
        expert=_resolved(options.expert) if options.expert is not None and is_run(options.expert) else options.expert,
        dataset=options.dataset if dataset is None else str(dataset.resolve()),
        reward=None if options.reward is None else _resolved(options.reward),
        data_dir=None if options.data_dir is None else _resolved(options.data_dir),
    )


def _resolved(path: str) -> str:
    return str(Path(path).expanduser().resolve())


def options_of(run: Run) -> RunOptions:
    """The options of a run; what was copied into its directory comes from there. Raises RunError for bad ones."""
    known: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in run.options.items()
        if name in {f.name for f in fields(RunOptions)}
    }
    if (run.path / OTHERS).is_dir():
        known["others"] = str(run.path / OTHERS)
    if (run.path / REWARD).is_dir():
        known["reward"] = str(run.path / REWARD)
    if (run.path / EXPERT).is_dir():
        known["expert"] = str(run.path / EXPERT)
    try:
        return RunOptions(**known)
    except (UserError, TypeError) as error:
        raise RunError(f"{run.path / 'config.json'}: {error}") from error


def check_networks(run: Run, networks: Mapping[str, Any] | None) -> None:
    """Raise UserError unless the same networks of the user are given as when the run began."""
    expected, given = run.config.get("networks") or [], sorted(networks or ())
    if given != expected:
        raise UserError(
            f"{run.path}: expected networks= for {', '.join(expected) or 'nothing'}, as the run was begun with, "
            f"got {', '.join(given) or 'none'}"
        )
