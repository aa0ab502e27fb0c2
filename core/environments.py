"""Making environments by name, recording them beside a dataset, and checking them.

A name is a Gymnasium id (`Hopper-v5`, looked up first; see `core.atari` for `ALE/Pong-v5`), `package.path/name_v<n>`
for an environment with many agents (see `core.joint.environments`), or `module:callable` for a user's own environment.
In Python a callable can replace a name anywhere.
"""

from __future__ import annotations

import copy
import functools
import importlib
import json
import logging
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from dataclasses import fields as dataclass_fields
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec, WrapperSpec, load_env_creator

from herdbook.core import atari
from herdbook.core.registry import (
    EnvironmentUnavailable,
    import_callable,
    is_callable_name,
    joint_module,
    making,
    newest_version,
    register_plugin,
    silence_mujoco_log,
    unknown_environment,
)
from herdbook.core.returned import WrongReturn, reset_values, step_values

__all__ = ["EnvironmentSpec", "EnvironmentUnavailable", "ReferenceScores", "describe_environment", "make_environment"]

Env = gymnasium.Env[Any, Any]
logger = logging.getLogger("herdbook")


@dataclass(frozen=True)
class ReferenceScores:
    """The returns that score 0 and 100, and their source. Raises ValueError unless minimum < maximum, both finite."""

    minimum: float
    maximum: float
    source: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.minimum) and math.isfinite(self.maximum) and self.minimum < self.maximum):
            scores = f"{self.minimum} and {self.maximum}"
            raise ValueError(f"expected finite reference scores with minimum < maximum, got {scores}")


@dataclass(frozen=True, kw_only=True)
class EnvironmentSpec:
    """Recipe of an environment: its id or `module:callable`, keyword arguments and time limit.

    `gymnasium_json` is the full Gymnasium `EnvSpec` (entry point, wrappers) as Minari stores it, or None if unknown.
    """

    id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    max_episode_steps: int | None = None
    gymnasium_json: str | None = field(default=None, repr=False)

    @classmethod
    def from_gymnasium(cls, spec: EnvSpec) -> EnvironmentSpec:
        """The spec of a Gymnasium environment (`env.spec`).

        If JSON cannot hold an argument of a wrapper (a function), all wrappers are left out, with a warning in the log.
        """
        try:
            text = spec.to_json()
        except (TypeError, ValueError):
            text = None
            if spec.additional_wrappers:
                names = ", ".join(wrapper.name for wrapper in spec.additional_wrappers)
                logger.warning("%s: its wrappers cannot be recorded and are left out: %s", spec.id, names)
        return cls(id=spec.id, kwargs=dict(spec.kwargs), max_episode_steps=spec.max_episode_steps, gymnasium_json=text)

    def to_gymnasium(self) -> EnvSpec:
        """The Gymnasium `EnvSpec`, without fields that the installed version of Gymnasium does not know."""
        known: dict[str, Any] = json.loads(self.gymnasium_json) if self.gymnasium_json else {}
        known |= {"id": self.id, "kwargs": dict(self.kwargs), "max_episode_steps": self.max_episode_steps}
        if "entry_point" not in known and is_callable_name(self.id):
            known["entry_point"] = self.id
        names = {f.name for f in dataclass_fields(EnvSpec) if f.init}
        known = {name: value for name, value in known.items() if name in names}
        known["additional_wrappers"] = tuple(
            wrapper if isinstance(wrapper, WrapperSpec) else WrapperSpec(**wrapper)
            for wrapper in known.get("additional_wrappers") or ()
        )
        return EnvSpec(**known)

    def to_json(self) -> str:
        """The Gymnasium `EnvSpec` as JSON, the form in which Minari stores and recovers an environment."""
        if self.gymnasium_json is None:
            return self.to_gymnasium().to_json()
        own = {"id": self.id, "kwargs": dict(self.kwargs), "max_episode_steps": self.max_episode_steps}
        return json.dumps({**json.loads(self.gymnasium_json), **own})

    @classmethod
    def from_json(cls, text: str) -> EnvironmentSpec:
        """Read the output of `to_json` or the `EnvSpec` of any Gymnasium version. Raises ValueError if it has no id."""
        try:
            known = json.loads(text)
            identifier = known["id"]
            if not isinstance(identifier, str):
                raise TypeError
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"expected an environment spec as JSON with an id, got {text[:200]!r}") from error
        kwargs, limit = known.get("kwargs") or {}, known.get("max_episode_steps")
        return cls(id=identifier, kwargs=kwargs, max_episode_steps=limit, gymnasium_json=text)


EnvironmentSource = str | EnvironmentSpec | EnvSpec | Callable[..., Env]  # strings are ids or `module:callable`
_WRAPPERS = ("gymnasium.wrappers.", "herdbook.core.wrappers:", "herdbook.irl.wrapper:")


def make_environment(source: EnvironmentSource, *, max_episode_steps: int | None = None, **kwargs: Any) -> Env:
    """Make one environment.

    Args:
        source: A Gymnasium id, `module:callable`, a recorded spec, or a callable that returns an environment.
        max_episode_steps: A time limit that replaces the registered one.
        kwargs: Keyword arguments of the environment; they override recorded ones of the same name.

    Raises:
        EnvironmentUnavailable: The name is unknown (the error suggests the nearest one), a package is missing (the
            error names the extra that installs it), or the environment refuses the arguments.
    """
    check_source(source)
    if isinstance(source, EnvSpec):
        source = EnvironmentSpec.from_gymnasium(source)
    if isinstance(source, str) and atari.is_game(source, kwargs):
        source, kwargs = describe_environment(source, **kwargs) or source, {}
    if isinstance(source, str):
        source = EnvironmentSpec(id=source)
    name = source.id if isinstance(source, EnvironmentSpec) else getattr(source, "__qualname__", repr(source))
    with making(name, kwargs):
        if isinstance(source, EnvironmentSpec) and not is_callable_name(source.id):
            if max_episode_steps is not None:
                kwargs["max_episode_steps"] = max_episode_steps
            env: Any = gymnasium.make(_registered(source), disable_env_checker=True, **kwargs)
        else:
            if isinstance(source, EnvironmentSpec):
                kwargs = {**source.kwargs, **kwargs}
                max_episode_steps = max_episode_steps or source.max_episode_steps
                source = import_callable(source.id)
            env = source(**kwargs)
            if isinstance(env, gymnasium.Env) and max_episode_steps is not None:
                env = gymnasium.wrappers.TimeLimit(env, max_episode_steps)
    if not isinstance(env, gymnasium.Env):
        raise EnvironmentUnavailable(f"{name}: expected a gymnasium.Env, got {type(env).__name__}")
    for space in ("observation_space", "action_space"):
        try:
            found = operator.attrgetter(space)(env)
        except AttributeError:
            found = None
        if not isinstance(found, gymnasium.Space):
            raise EnvironmentUnavailable(f"{name}: expected {space} as a gymnasium.Space, got {found!r}")
    silence_mujoco_log()  # again, because the callable may have imported MuJoCo
    return env


def check_source(source: Any) -> None:
    """Raise EnvironmentUnavailable for an environment given instead of a callable that makes one."""
    if not (isinstance(source, (str, EnvironmentSpec, EnvSpec)) or callable(source)):
        raise EnvironmentUnavailable(
            f"expected an id or a callable that makes a new environment at each call, got {type(source).__name__}; "
            "give a function, such as lambda: make_it()"
        )


def registered_only(spec: EnvironmentSpec) -> EnvironmentSpec:
    """Make the spec from an untrusted file safe: it may not import or call code that only the file names.

    The id must be in Gymnasium's registry, possibly after a known package has registered it, and the registered entry
    point is used. Wrappers must be Gymnasium's or herdbook's. Environments of PettingZoo and mpe2 are safe too.

    Raises EnvironmentUnavailable if the spec names other code; the message says which, and how to allow it. A retired
    version is not other code: the message names the version that there is.
    """
    known: dict[str, Any] = json.loads(spec.gymnasium_json) if spec.gymnasium_json else {}
    register_plugin(spec.id)
    wrappers = [wrapper.get("entry_point") for wrapper in known.get("additional_wrappers") or ()]
    foreign = [name for name in wrappers if not str(name).startswith(_WRAPPERS)]
    if spec.id not in gymnasium.registry:
        module = joint_module(spec.id)
        if module is not None and module.partition(".")[0] in ("pettingzoo", "mpe2"):
            return replace(spec, gymnasium_json=None)
        if module is None and ":" not in spec.id and not known.get("entry_point"):
            return spec  # an unknown id: `make_environment` will suggest the nearest one
        if module is None and (version := newest_version(spec.id)) is not None:
            arguments = f" with the arguments {dict(spec.kwargs)}" if spec.kwargs else ""
            raise EnvironmentUnavailable(
                f"environment {spec.id} is not registered in the installed packages, {version} is: "
                f"give --env {version} (env= in Python){arguments}, if the new version will do"
            )
        foreign.insert(0, module or known.get("entry_point") or spec.id)
    if foreign:
        raise EnvironmentUnavailable(
            f"environment {spec.id} is code, {', '.join(map(str, foreign))}; code that a file names is not imported: "
            "register the environment first, or, if you trust it, give a module:callable that makes it with --env "
            "(env= in Python)"
        )
    if not known:
        return spec
    text = json.dumps({**known, "entry_point": None, "vector_entry_point": None})
    return replace(spec, gymnasium_json=text)


def describe_environment(source: EnvironmentSource, **kwargs: Any) -> EnvironmentSpec | None:
    """The spec from which an environment can be made again; None for a callable without an importable name.

    The arguments that functools.partial binds to a callable are recorded if they are JSON values, by name; else None.

    Raises EnvironmentUnavailable for an Atari game if its package is missing, and for an environment itself.
    """
    check_source(source)
    if isinstance(source, EnvSpec):
        source = EnvironmentSpec.from_gymnasium(source)
    if isinstance(source, functools.partial):
        try:
            json.dumps(source.keywords)
        except (TypeError, ValueError):
            return None
        return None if source.args else describe_environment(source.func, **{**source.keywords, **kwargs})
    if callable(source):
        module, qualname = getattr(source, "__module__", None), getattr(source, "__qualname__", "")
        name = f"{module}:{qualname}"
        if module in (None, "__main__") or not is_callable_name(name):
            return None
        return EnvironmentSpec(id=name, kwargs=kwargs)
    if isinstance(source, str) and atari.is_game(source, kwargs):
        register_plugin(source)
        if source not in gymnasium.registry:
            raise unknown_environment(source)
        source = EnvironmentSpec.from_gymnasium(atari.preprocessed(gymnasium.spec(source)))
    if isinstance(source, str):
        registered = None if is_callable_name(source) else gymnasium.registry.get(source)
        source = EnvironmentSpec(id=source) if registered is None else EnvironmentSpec.from_gymnasium(registered)
    if not kwargs:
        return source
    if source.gymnasium_json is None:  # nothing to record beside the name
        return replace(source, kwargs={**source.kwargs, **kwargs})
    spec, kwargs = atari.with_arguments(source.to_gymnasium(), kwargs)
    merged = replace(source, kwargs={**source.kwargs, **kwargs}, gymnasium_json=spec.to_json())
    try:
        return replace(merged, gymnasium_json=merged.to_gymnasium().to_json())
    except (TypeError, ValueError):
        return replace(merged, gymnasium_json=None)


def whole_games(source: EnvironmentSource) -> EnvironmentSource:
    """The evaluation environment: if an Atari game's episodes end with a life, the same game without that option."""
    if isinstance(source, EnvSpec):
        source = EnvironmentSpec.from_gymnasium(source)
    if not isinstance(source, EnvironmentSpec) or source.gymnasium_json is None:
        return source
    spec = source.to_gymnasium()
    if not atari.ends_with_a_life(spec):
        return source
    return replace(source, gymnasium_json=atari.with_arguments(spec, {"terminal_on_life_loss": False})[0].to_json())


def check_reset(env: Env, *, seed: int = 0, steps: int = 5) -> bool:
    """Test whether `reset(seed)` determines the state: two resets and equal actions must give equal rows."""
    actions = copy.deepcopy(env.action_space)
    actions.seed(seed)
    chosen = [actions.sample() for _ in range(2 * steps)]
    first = _trace(env, seed, chosen)
    return _equal(first, _trace(env, seed, chosen[:steps]))


def _trace(env: Env, seed: int, actions: list[Any]) -> list[Any]:
    try:
        result = env.reset(seed=seed)
    except TypeError as error:
        if "'seed'" in str(error):
            raise WrongReturn(f"at reset: expected reset(*, seed=None, options=None); {error}") from error
        raise
    trace = [copy.deepcopy(reset_values(result))]
    for action in actions:
        observation, reward, terminated, truncated = step_values(env.step(action))
        trace.append((copy.deepcopy(observation), reward, terminated, truncated))
        if terminated or truncated:
            break
    return trace


def _equal(longer: Any, shorter: Any) -> bool:
    """True if nested observations are equal; sequences are compared up to the length of the shorter one."""
    if isinstance(shorter, Mapping):
        return all(_equal(longer[key], value) for key, value in shorter.items())
    if isinstance(shorter, (list, tuple)):
        return all(_equal(a, b) for a, b in zip(longer, shorter, strict=False))
    return bool(np.array_equal(np.asarray(longer), np.asarray(shorter)))


def _registered(source: EnvironmentSpec) -> EnvSpec:
    """Register the environment's package and return the Gymnasium spec to make. Raises EnvironmentUnavailable."""
    register_plugin(source.id)
    if source.gymnasium_json is not None:
        spec = source.to_gymnasium()
    elif source.id in gymnasium.registry:
        spec = copy.deepcopy(gymnasium.spec(source.id))
        spec.kwargs = {**spec.kwargs, **source.kwargs}
        spec.max_episode_steps = source.max_episode_steps or spec.max_episode_steps
    elif ":" in source.id:  # Gymnasium's `module:Name-v0`: importing the module registers the name
        module, _, name = source.id.partition(":")
        importlib.import_module(module)
        return _registered(EnvironmentSpec(id=name, kwargs=source.kwargs, max_episode_steps=source.max_episode_steps))
    elif joint_module(source.id) is not None:
        raise EnvironmentUnavailable(
            f"expected an environment with one agent, but {source.id} has many agents; "
            "`herdbook list algorithms` shows the algorithms for many agents"
        )
    else:
        raise unknown_environment(source.id)
    if spec.entry_point is None:
        if spec.id not in gymnasium.registry:
            raise unknown_environment(spec.id)
        spec.entry_point = gymnasium.registry[spec.id].entry_point
    if isinstance(spec.entry_point, str):
        load_env_creator(spec.entry_point)
    silence_mujoco_log()
    return spec
