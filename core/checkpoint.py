"""Checkpoints: nested state as safetensors and JSON, written atomically and never unpickled.

A checkpoint is a directory of three files: `tensors.safetensors`, `state.json` (the tree, with a reference in place of
each tensor) and `manifest.json` (the SHA-256 of the other two, which reveals any corruption).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

FORMAT = 1
TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
_TENSOR, _FLOAT, _TUPLE = "__tensor__", "__float__", "__tuple__"


class CheckpointError(Exception):
    """A checkpoint could not be read or written; the message names the file and any checkpoint that can be used."""


def save(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write `state` to the directory `path`; if killed at any instant, `load` finds the old checkpoint or the new one.

    Args:
        path: The checkpoint's directory; its parent is created.
        state: Dicts with string keys, lists and tuples of tensors, `torch.Generator`s (stored as their uint8 state),
            numbers, strings, booleans and None. Tensors may be views, share storage and live on any device.

    Raises:
        CheckpointError: The files could not be written (full disk); an existing checkpoint at `path` is unchanged.
        TypeError: The state holds a value of another type.
    """
    path = Path(path)
    tree, tensors = encode(state)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    replaced = path.with_name(f".{path.name}.old-{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        safetensors.torch.save_file(tensors, temporary / TENSORS)
        (temporary / STATE).write_text(json.dumps(tree, allow_nan=False))
        digests = {name: digest(temporary / name) for name in (TENSORS, STATE)}
        (temporary / MANIFEST).write_text(json.dumps({"format": FORMAT, "sha256": digests}))
        for written in (temporary / TENSORS, temporary / STATE, temporary / MANIFEST, temporary):
            _sync(written)
        if path.exists():  # from a run that was killed before it pointed `last` to this checkpoint
            _remove_replaced(path)  # which a process of the same number may have left
            os.rename(path, replaced)
        os.rename(temporary, path)
        _sync(path.parent)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if replaced.exists() and not path.exists():
            os.rename(replaced, path)
        raise CheckpointError(f"{path}: the checkpoint could not be written: {error}") from error
    _remove_replaced(path)


def _remove_replaced(path: Path) -> None:
    for old in _replaced(path):
        shutil.rmtree(old, ignore_errors=True)


def _replaced(path: Path) -> list[Path]:
    """Checkpoints that a killed `save` had moved aside but not yet replaced."""
    return sorted(path.parent.glob(f".{path.name}.old-*"))


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a state written by `save`, with tensors on the CPU.

    Raises CheckpointError, which names the file, if there is no checkpoint or a file is missing, truncated or corrupt.
    """
    path = verify(path)
    try:
        tensors = safetensors.torch.load_file(path / TENSORS)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path / TENSORS}: cannot be read ({error})") from error
    state: dict[str, Any] = decode(_read_json(path / STATE), tensors)
    return state


def verify(path: str | os.PathLike[str]) -> Path:
    """Check the hashes of a checkpoint's files and return the directory that holds them. Raises as `load` does."""
    path = Path(path)
    if not path.is_dir():
        path = next(iter(_replaced(path)), path)
    if not path.is_dir():
        raise CheckpointError(f"{path}: there is no checkpoint here")
    manifest = _read_json(path / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{path / MANIFEST}: expected checkpoint format {FORMAT}, got {manifest.get('format')!r}; "
            "it was written by another version of herdbook"
        )
    expected = manifest.get("sha256", {})
    for name in (TENSORS, STATE):
        try:
            found = digest(path / name)
        except OSError as error:
            raise CheckpointError(f"{path / name}: cannot be read ({error.strerror})") from error
        if found != expected.get(name):
            raise CheckpointError(f"{path / name}: truncated or corrupt (its SHA-256 is not the one recorded)")
    return path


class Checkpoints:
    """The checkpoints of one run: `step_<n>/`, and `last`, a link to the newest complete one."""

    def __init__(self, directory: str | os.PathLike[str], keep: int = 2) -> None:
        """`keep`: number of newest checkpoints to keep beside protected ones. Raises ValueError if it is below 2.

        Only finite losses after a checkpoint show that its parameters are good, so the newest one is not enough.
        """
        if keep < 2:
            raise ValueError(f"expected keep of at least 2 checkpoints, got {keep}")
        self.directory = Path(directory)
        self.keep = keep

    def path(self, step: int) -> Path:
        return self.directory / f"step_{step}"

    def steps(self) -> list[int]:
        """The steps of all checkpoints, ascending."""
        if not self.directory.is_dir():
            return []
        names = (entry.name for entry in self.directory.iterdir() if entry.is_dir() and not entry.is_symlink())
        return sorted(int(name[5:]) for name in names if name.startswith("step_") and name[5:].isdigit())

    def gone(self) -> bool:
        """True if there is no checkpoint, not even one that a killed `save` had moved aside."""
        return not self.steps() and not any(self.directory.glob(".step_*.old-*"))

    def last(self) -> int | None:
        """The step of the newest complete checkpoint; None before the first.

        A copied run may lack the link `last` or hold a directory in its place. Then the highest step counts: every
        `step_<n>` is complete, because `save` renames it only when it is.
        """
        try:
            target = os.readlink(self.directory / "last")
        except OSError:
            return max(self.steps(), default=None)
        return int(Path(target).name.removeprefix("step_"))

    def load(self, step: int | None = None) -> dict[str, Any]:
        """The state at `step`, by default the last. Raises CheckpointError, which names the checkpoints that exist."""
        chosen = self.last() if step is None else step
        if chosen is None:
            raise CheckpointError(f"{self.directory}: there is no checkpoint here yet")
        if not self.path(chosen).is_dir() and not _replaced(self.path(chosen)):
            there = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(f"{self.path(chosen)}: there is no checkpoint of step {chosen}; there are: {there}")
        try:
            return load(self.path(chosen))
        except CheckpointError as error:
            others = [str(s) for s in self.steps() if s != chosen]
            advice = f"; the checkpoint of step {', '.join(others)} is another one to try" if others else ""
            raise CheckpointError(f"{error}{advice}") from error

    def load_replay(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The replay of the newest checkpoint `state`. Raises CheckpointError if it is missing or damaged."""
        return load(self.directory / str(state.get("replay")))

    def verify_last(self) -> dict[str, Any]:
        """The last state, after a check of its replay too. Raises CheckpointError if one is damaged."""
        state = self.load()
        if state.get("replay") is not None:
            verify(self.directory / str(state["replay"]))
        return state

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        protected: Iterable[int] = (),
        *,
        replay: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the state of `step`, point `last` to it, and remove old checkpoints that are not protected.

        `replay` is written beside the state; only the newest checkpoint keeps its replay.
        """
        try:
            if replay is not None:
                name = f"replay_{step}"
                while (self.directory / name).exists():  # this step is written again; keep its old replay until then
                    name += "+"
                save(self.directory / name, replay)
                state = {**state, "replay": name}
            save(self.path(step), state)
            link = self.directory / f".last.tmp-{os.getpid()}"
            link.unlink(missing_ok=True)
            link.symlink_to(f"step_{step}", target_is_directory=True)
            last = self.directory / "last"
            if last.is_dir() and not last.is_symlink():  # a copy of the run turned the link into a directory
                shutil.rmtree(last)
            os.replace(link, last)
            _sync(self.directory)
        except (CheckpointError, OSError) as error:
            newest = self.last()
            left = "there is no earlier one" if newest is None else f"the last good one is {self.path(newest)}"
            raise CheckpointError(f"{error}; {left}") from error
        self.prune(step, protected, state.get("replay"))

    def prune(self, newest: int, protected: Iterable[int] = (), replay: str | None = None) -> None:
        """Remove leftovers, and all checkpoints but the `keep` newest up to `newest`, protected ones and `replay`."""
        steps = self.steps()
        kept = {*[s for s in steps if s <= newest][-self.keep :], *protected}
        for step in steps:
            if step not in kept:
                shutil.rmtree(self.path(step), ignore_errors=True)
        leftovers = [*self.directory.glob(".step_*"), *self.directory.glob(".replay_*")]
        leftovers += [path for path in self.directory.glob("replay_*") if path.name != replay]
        for leftover in leftovers:
            shutil.rmtree(leftover, ignore_errors=True)


def encode(state: Mapping[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    """A nested state as JSON values, with a reference in place of each tensor, and the tensors by reference.

    Raises TypeError if the state holds a value of another type than `save` accepts.
    """
    tensors: dict[str, Tensor] = {}
    return _encode(state, "", tensors), tensors


def _encode(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, torch.Generator):
        value = value.get_state()
    if isinstance(value, Tensor):
        while where in tensors:  # {"a/b": x, "a": {"b": y}}
            where += "'"
        tensors[where] = value.detach().cpu().contiguous().clone()  # safetensors refuses shared storage
        return {_TENSOR: where}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or key in (_TENSOR, _FLOAT, _TUPLE):
                raise TypeError(f"checkpoint state at {where or 'its root'}: {key!r} cannot be a key")
        return {key: _encode(item, f"{where}/{key}" if where else key, tensors) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_encode(item, f"{where}/{i}", tensors) for i, item in enumerate(value)]
        return {_TUPLE: items} if isinstance(value, tuple) else items
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: repr(float(value))}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"checkpoint state at {where}: expected tensors and JSON values, got {type(value).__name__}")


def decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `encode`. Raises KeyError for a reference without its tensor."""
    if isinstance(value, list):
        return [decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    if _FLOAT in value:
        return float(value[_FLOAT])
    if _TUPLE in value:
        return tuple(decode(item, tensors) for item in value[_TUPLE])
    return {key: decode(item, tensors) for key, item in value.items()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: truncated or corrupt ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: corrupt: expected an object, got {type(content).__name__}")
    return content


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Flush a file's bytes or a directory's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
