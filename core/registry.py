"""Resolution of environment names: the code they refer to, the packages that provide it, and suggestions for typos.

`making` converts the errors of imports, so that every message names what to install.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import importlib.util
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gymnasium

from herdbook.core import atari

_EXTRAS = {  # module → herdbook's extra that installs it
    "mujoco": "mujoco",
    "gymnasium_robotics": "robotics",
    "metaworld": "metaworld",
    "ale_py": "atari",
    "cv2": "atari",
    "Box2D": "box2d",
}
_PLUGINS = (  # ids → package or module that registers them when imported
    (r"herdbook/(GridWorld|Maze)-", "herdbook.tabular.environment"),
    (r"herdbook/(PointMass|FixedHorizonCartPole)-", "herdbook.irl.environments"),
    (r"(Fetch|HandReach|HandManipulate|AntMaze|PointMaze|Adroit|FrankaKitchen)", "gymnasium_robotics"),
    (r"ALE/", "ale_py"),
    (r"Meta-World/", "metaworld"),
)
# PettingZoo's packages → herdbook's extra that installs their requirements
_PETTINGZOO = {"butterfly": "butterfly", "sisl": "sisl", "classic": "classic", "atari": "pettingzoo-atari"}


class EnvironmentUnavailable(ValueError):
    """An environment cannot be made: an unknown name, a missing package, or arguments that it refuses."""


def is_callable_name(name: str) -> bool:
    """True if a name has the form `module:callable`; Gymnasium's `module:Name-v0` has not."""
    return re.fullmatch(r"[\w.]+:[A-Za-z_][\w.]*", name) is not None


def joint_module(name: str) -> str | None:
    """The module of an environment with many agents (`package.path/name_v<n>`); None for any other name."""
    if name in gymnasium.registry or re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*/[A-Za-z_]\w*_v\d+", name) is None:
        return None
    package, _, module = name.partition("/")
    return f"pettingzoo.{package}.{module}" if package in _PETTINGZOO else f"{package}.{module}"


def package_versions(name: str) -> dict[str, str]:
    """Versions of the installed packages that provide the environment `name`."""
    module = joint_module(name)
    packages = ["gymnasium"] if module is None else ["pettingzoo", module.partition(".")[0]]
    versions = {}
    for package in packages:
        with suppress(importlib.metadata.PackageNotFoundError):  # a user's own module
            versions[package] = importlib.metadata.version(package)
    return versions


def joint_names() -> list[str]:
    """The ids of all installed environments of mpe2 and PettingZoo."""
    packages = {package: f"pettingzoo.{package}" for package in _PETTINGZOO} | {"mpe2": "mpe2"}
    found = {package: importlib.util.find_spec(module) for package, module in packages.items()}
    return [
        f"{package}/{module.name}"
        for package, spec in found.items()
        for module in pkgutil.iter_modules([] if spec is None else spec.submodule_search_locations)
        if re.fullmatch(r"\w+_v\d+", module.name)
    ]


def newest_version(name: str) -> str | None:
    """The newest known environment that differs from `name` in its version only, such as `Taxi-v4` for `Taxi-v3`."""
    stem = re.sub(r"\d+$", "", name)
    versions = [known[len(stem) :] for known in [*gymnasium.registry, *joint_names()] if known.startswith(stem)]
    numbers = [int(version) for version in versions if re.search(r"[-_]v$", stem) and version.isdecimal()]
    newest = f"{stem}{max(numbers)}" if numbers else name
    return None if newest == name else newest


def unknown_environment(name: str) -> EnvironmentUnavailable:
    """The error for an unknown name, with another version of it or the nearest known one."""
    version = newest_version(name)
    known = [*gymnasium.registry, *joint_names()]
    near = [version] if version else difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return EnvironmentUnavailable(
        f"unknown environment {name!r}{hint} `herdbook list environments` lists all names; "
        "use 'module:callable' for your own environment"
    )


@contextmanager
def making(name: str, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Convert any exception raised while an environment is made to EnvironmentUnavailable with advice."""
    try:
        yield
    except EnvironmentUnavailable:
        raise
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        raise _missing_package(name, error) from error
    except Exception as error:  # whatever the environment's own code raises
        arguments = f" with {kwargs}" if kwargs else ""
        text = str(error) if isinstance(error, gymnasium.error.Error) else cause(error)
        raise EnvironmentUnavailable(f"cannot make environment {name}{arguments}: {text}") from error


def cause(error: BaseException, when: str = "") -> str:
    """An exception in one line: its type, `when` it was raised, and its text, or else the line that raised it."""
    name, text = f"{type(error).__name__}{when}", " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    if text or not frames:
        return f"{name}: {text}" if text else name
    where = frames[-1]
    return f"{name} without a message, in {Path(where.filename).name}, line {where.lineno}: {where.line}"


def register_plugin(name: str) -> None:
    """Import what registers this id, if known. Raises EnvironmentUnavailable if it cannot be imported."""
    for pattern, package in _PLUGINS:
        if re.match(pattern, name) and name not in gymnasium.registry:
            try:
                gymnasium.register_envs(importlib.import_module(package))
            except ImportError as error:
                raise _missing_package(name, error) from error
            if package == "ale_py":
                atari.silence_banner()


def import_callable(name: str) -> Callable[..., Any]:
    """The callable named `module:callable`. Raises EnvironmentUnavailable if there is none."""
    module_name, _, path = name.partition(":")
    if importlib.util.find_spec(module_name.split(".")[0]) is None:
        raise EnvironmentUnavailable(
            f"environment {name!r}: there is no module {module_name!r}; install it, or add its folder to PYTHONPATH"
        )
    found: Any = importlib.import_module(module_name)
    silence_mujoco_log()
    for part in path.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise EnvironmentUnavailable(f"environment {name!r}: {module_name} has no {part!r}{hint}")
        found = getattr(found, part)
    if not callable(found):
        raise EnvironmentUnavailable(f"environment {name!r}: expected a callable, got {type(found).__name__}")
    return found  # type: ignore[no-any-return]  # attribute of a module


def silence_mujoco_log() -> None:
    """Stop MuJoCo, if loaded, from writing MUJOCO_LOG.TXT to the working directory; warnings go to the console."""
    mujoco = sys.modules.get("mujoco")
    if mujoco is None:
        return
    if hasattr(mujoco, "MjLogConfig"):  # MuJoCo 4
        config = mujoco.MjLogConfig.get()
        config.logto_file = False
        config.set()
    elif mujoco.get_mju_user_warning() is None:  # MuJoCo 3 writes the file unless a handler is set
        mujoco.set_mju_user_warning(_print_warning)


def _print_warning(message: bytes) -> None:
    print(f"WARNING: {message.decode(errors='replace')}", file=sys.stderr)


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # a module in sys.modules has no spec
        return False


def _missing_package(name: str, error: BaseException) -> EnvironmentUnavailable:
    """The error for a failed import, with the extra that installs the missing module."""
    extra = _PETTINGZOO.get(name.partition("/")[0])
    if extra is not None:
        return EnvironmentUnavailable(
            f"environment {name} needs a package that cannot be imported ({error}): pip install 'herdbook[{extra}]'"
        )
    text = " ".join(str(e) for e in (error, error.__cause__) if e is not None)
    for module, extra in _EXTRAS.items():
        if re.search(rf"\b{module}\b", text, re.IGNORECASE) and not _installed(module):
            return EnvironmentUnavailable(
                f"environment {name} needs {module}, which is not installed: pip install 'herdbook[{extra}]'"
            )
    version = newest_version(name)
    hint = f"; {version} is a newer version of it" if version else ""
    return EnvironmentUnavailable(f"environment {name} needs a package that cannot be imported: {error}{hint}")
