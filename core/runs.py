"""Run directories: writing and reading `config.json`, the JSONL files and the checkpoints."""

from __future__ import annotations

import importlib.metadata
import io
import itertools
import json
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from herdbook.core.checkpoint import Checkpoints

JSONL = ("metrics.jsonl", "evaluations.jsonl", "timing.jsonl")
_PACKAGES = ("herdbook", "torch", "numpy", "gymnasium", "minari")


class RunError(ValueError):
    """A run directory cannot be used as requested; the message says what to do."""


class RunFailed(RuntimeError):
    """A run had to stop: no seed is left, the disk is full, or the environment keeps failing."""


def to_json(value: Any) -> Any:
    """Convert a value to strict JSON: non-finite numbers become null, arrays and tuples become lists."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy scalars and arrays, tensors
        return to_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def _write_all(file: io.FileIO, data: bytes) -> None:
    while data:  # an unbuffered file may write only a part
        data = data[file.write(data) :]


class JSONLines:
    """An append-only file with one JSON object per line, without buffering."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)  # so closing cannot fail on a full disk

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record, with non-finite numbers as null. Raises RunFailed on a full disk."""
        line = (json.dumps(to_json(record), allow_nan=False, ensure_ascii=False) + "\n").encode()
        try:
            _write_all(self._file, line)
        except OSError as error:
            raise RunFailed(f"{self.path}: cannot be written: {error.strerror}") from error

    def sync(self) -> int:
        """Flush the file to disk and return its length in bytes. Raises RunFailed on a full disk."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise RunFailed(f"{self.path}: cannot be written: {error.strerror}") from error
        return self._file.tell()

    def truncate(self, size: int) -> None:
        """Cut the file to its first `size` bytes. Raises RunError if it is shorter."""
        check_length(self.path, size)
        self._file.truncate(size)
        self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        self._file.close()


def check_length(path: Path, size: int) -> None:
    """Raise RunError if a file is shorter than a checkpoint says."""
    length = path.stat().st_size if path.exists() else 0
    if length < size:
        raise RunError(f"{path}: expected at least {size} bytes, as its checkpoint says, got {length}")


class Run:
    """One run on disk, as returned by `train` and read by `resume`, `eval` and `compare`.

    Raises RunError if there is no run at `path` or its config.json cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        file = self.path / "config.json"
        if not file.is_file():
            raise RunError(f"{self.path}: there is no run here (no config.json); give the directory of one run")
        try:
            self.config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            self.algorithm = str(self.config["algorithm"])
            self.seeds = tuple(int(seed) for seed in self.config["seeds"])
            self.options: dict[str, Any] = dict(self.config["run"])
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{file}: truncated or corrupt ({error!r})") from error
        self.checkpoints = Checkpoints(self.path / "checkpoints", keep=int(self.options.get("keep", 2)))

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}: {self.algorithm}, seeds {list(self.seeds)}, step {self.checkpoints.last()})"

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, with None for non-finite numbers."""
        return _read_lines(self.path / "metrics.jsonl")

    def evaluations(self) -> list[dict[str, Any]]:
        """The lines of evaluations.jsonl: one per evaluation and seed."""
        return _read_lines(self.path / "evaluations.jsonl")

    def logged(self) -> int:
        """The highest step of any line in metrics.jsonl and evaluations.jsonl, 0 without one."""
        return max((int(line["step"]) for line in [*self.metrics(), *self.evaluations()]), default=0)

    def set_aside(self) -> list[Path]:
        """Rename the JSONL files of a run whose checkpoints are gone, for example to metrics.before-1.jsonl.

        Returns their new paths.
        """
        aside = []
        (self.checkpoints.directory / "last").unlink(missing_ok=True)
        number = next(n for n in itertools.count(1) if not any(self.path.glob(f"*.before-{n}.jsonl")))
        for name in JSONL:
            if (self.path / name).exists():
                aside.append((self.path / name).with_suffix(f".before-{number}.jsonl"))
                os.rename(self.path / name, aside[-1])
        return aside

    def update_config(self, **changes: Any) -> None:
        """Replace top-level entries of config.json atomically."""
        self.config |= changes
        self.options = dict(self.config["run"])
        temporary = self.path / f".config.json.tmp-{os.getpid()}"
        temporary.write_text(json.dumps(to_json(self.config), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(temporary, self.path / "config.json")


def create_run(path: str | os.PathLike[str], config: Mapping[str, Any]) -> Run:
    """Make a run directory with its config.json. Raises RunError if it already holds a run or cannot be made."""
    path = Path(path)
    refuse_existing_run(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with (path / "config.json").open("xb", buffering=0) as file:
            try:
                _write_all(file, json.dumps(to_json(config), indent=2, allow_nan=False).encode() + b"\n")
            except OSError:  # a truncated config.json would look like a run
                (path / "config.json").unlink()
                raise
    except OSError as error:
        raise RunError(f"{path}: the run directory cannot be made: {error.strerror}") from error
    return Run(path)


def refuse_existing_run(path: str | os.PathLike[str]) -> None:
    """Raise RunError if `path` holds a run, or is or would lie in something that cannot hold one."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise RunError(f"{path}: expected a directory for the run, got a file")
    if (reason := unwritable(path)) is not None:
        raise RunError(f"{path}: the run directory cannot be made: {reason}")
    for name in ("config.json", "checkpoints", *JSONL):
        if (path / name).exists():
            raise RunError(
                f"{path}: already holds a run ({name}); continue it with `herdbook resume {path}`, "
                "or choose another run_dir"
            )


def unwritable(path: Path) -> str | None:
    """Why nothing can be written in the folder `path`, which need not exist yet; None if something can."""
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not there.is_dir():
        return f"{there} is a file"
    return None if os.access(there, os.W_OK | os.X_OK) else f"{there} is read-only"


@contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Lock a run directory against other processes. Raises RunError if another process holds the lock."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"{path}: another process is writing this run; wait for it or end it first") from error
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, whose name it takes at the end: a kill leaves no half-written `folder`."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def remove_whole(folder: Path) -> None:
    """Remove a folder, if it is there; a kill leaves all of it or nothing by its name."""
    aside = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.is_dir():
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def next_free_directory(root: str | os.PathLike[str], name: str) -> Path:
    """`root/name`, or the first of `name-2`, `name-3`, … that does not exist."""
    path, number = Path(root) / name, 1
    while path.exists():
        number += 1
        path = Path(root) / f"{name}-{number}"
    return path


def provenance() -> dict[str, Any]:
    """Versions of Python and of packages that affect results, and the git commit of the working directory."""
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "unknown"
    return {"versions": versions, "git": _git_commit()}


def _git_commit() -> dict[str, Any] | None:
    def git(*arguments: str) -> str:
        result = subprocess.run(("git", *arguments), capture_output=True, text=True, timeout=10, check=True)
        return result.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]  # a kill may truncate the last line
