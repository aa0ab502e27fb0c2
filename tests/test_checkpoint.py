"""Checkpoints: round trips, corruption, full disks, and what is kept."""

import errno
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from herdbook.core import checkpoint
from herdbook.core.checkpoint import CheckpointError, Checkpoints, load, save


def equal(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    return type(a) is type(b) and a == b


def test_nested_state_comes_back_with_its_types(tmp_path: Path) -> None:
    state = {
        "tensors": [torch.arange(6.0).reshape(2, 3), torch.zeros(()), torch.zeros(0, 4), torch.tensor([True, False])],
        "types": {str(t): torch.ones(2, dtype=t) for t in (torch.uint8, torch.int64, torch.float64, torch.bfloat16)},
        "scalars": {"int": 3, "float": 0.1, "text": "ü", "none": None, "bool": True, "big": 2**62},
        "tuple": (0.9, 0.999),
        "empty": {"dict": {}, "list": []},
        "not finite": [math.inf, -math.inf, math.nan],
        "a/b": torch.ones(1),
        "a": {"b": torch.zeros(1)},
    }
    save(tmp_path / "c", state)
    assert equal(load(tmp_path / "c"), state)


def test_not_finite_numbers_are_strict_json(tmp_path: Path) -> None:
    save(tmp_path / "c", {"x": math.nan})

    def refuse(word: str) -> None:
        raise AssertionError(word)

    json.loads((tmp_path / "c" / "state.json").read_text(), parse_constant=refuse)


def test_views_and_shared_storage_are_stored_as_they_look(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    views = {"row": base[1], "transposed": base.T, "expanded": base[:1].expand(5, 4), "strided": base[:, ::2]}
    save(tmp_path / "c", {**views, "base": base, "again": base})
    assert equal(load(tmp_path / "c"), {**views, "base": base, "again": base})
    stored = (tmp_path / "c" / "tensors.safetensors").stat().st_size
    save(tmp_path / "one", {"row": torch.zeros(100_000)[:4]})
    assert (tmp_path / "one" / "tensors.safetensors").stat().st_size < stored  # not the storage behind the view


def test_a_generator_continues_where_it_was(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    torch.rand(5, generator=generator)
    save(tmp_path / "c", {"generator": generator})
    expected = torch.rand(5, generator=generator)
    restored = load(tmp_path / "c")["generator"]
    assert restored.dtype == torch.uint8
    other = torch.Generator()
    other.set_state(restored)
    assert torch.equal(torch.rand(5, generator=other), expected)


@pytest.mark.parametrize("state", [{"x": {1, 2}}, {"x": object()}, {3: 1}, {"x": {"__tensor__": 1}}])
def test_what_cannot_be_stored_is_refused(tmp_path: Path, state: dict) -> None:
    with pytest.raises(TypeError, match="checkpoint state"):
        save(tmp_path / "c", state)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "empty"])
def test_a_truncated_or_corrupt_file_is_named(tmp_path: Path, name: str, damage: str) -> None:
    save(tmp_path / "c", {"x": torch.arange(100.0), "n": 1})
    file = tmp_path / "c" / name
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "missing":
        file.unlink()
    else:
        file.write_bytes(b"")
    with pytest.raises(CheckpointError) as error:
        load(tmp_path / "c")
    assert str(tmp_path / "c") in str(error.value)
    if not (name == "manifest.json" and damage == "flipped"):  # one flipped digit makes another file look wrong
        assert name in str(error.value)


def test_loading_never_unpickles(tmp_path: Path) -> None:
    import ast

    tree = ast.parse(Path(checkpoint.__file__).read_text())
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    called = {
        n.attr
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute)
        if isinstance(n.value, ast.Name)
        if n.value.id == "torch"
    }
    assert "pickle" not in imported and "load" not in called


def test_full_disk_keeps_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(10, {"step": 10})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"step_20.*No space left on device.*step_10"):
        checkpoints.save(20, {"step": 20})
    monkeypatch.undo()
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == ["last", "step_10"]
    assert checkpoints.last() == 10
    assert checkpoints.load() == {"step": 10}


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
def test_a_write_that_the_system_refuses_halfway_is_reported(tmp_path: Path) -> None:
    import resource

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"x": torch.ones(10)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"step_2.*File too large.*the last good one is .*step_1"):
            checkpoints.save(2, {"x": torch.ones(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last", "step_1"]
    assert torch.equal(checkpoints.load()["x"], torch.ones(10))


def test_a_kill_between_the_two_renames_of_a_replacement_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "c", {"x": 1})
    rename = os.rename

    def killed(source: Path, target: Path) -> None:
        rename(source, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "rename", killed)
        save(tmp_path / "c", {"x": 2})
    assert load(tmp_path / "c") == {"x": 1}
    save(tmp_path / "c", {"x": 3})
    assert load(tmp_path / "c") == {"x": 3}
    assert not list(tmp_path.glob(".c.old-*"))


def test_full_disk_while_a_checkpoint_is_replaced_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "c", {"n": 1})
    rename = os.rename

    def fail(source: str, target: str) -> None:
        if ".tmp-" in str(source):
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(CheckpointError):
        save(tmp_path / "c", {"n": 2})
    monkeypatch.undo()
    assert load(tmp_path / "c") == {"n": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_the_newest_and_the_protected_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in range(0, 60, 10):
        checkpoints.save(step, {"step": step}, protected={20})
    assert checkpoints.steps() == [20, 40, 50]
    assert checkpoints.last() == 50
    assert checkpoints.load(20) == {"step": 20}
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 30; there are: 20, 40, 50"):
        checkpoints.load(30)


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(10, {"step": 10})
    save(tmp_path / "step_30", {"step": "never reached last"})
    (tmp_path / ".step_20.tmp-1").mkdir()
    assert checkpoints.load() == {"step": 10}
    checkpoints.save(20, {"step": 20})
    assert checkpoints.steps() == [10, 20]
    assert not list(tmp_path.glob(".*"))


def test_a_corrupt_last_checkpoint_names_another_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(10, {"step": 10})
    checkpoints.save(20, {"step": 20})
    (tmp_path / "step_20" / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"step_20/state.json.*step 10 is another one"):
        checkpoints.load()


def test_fewer_than_two_kept_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep"):
        Checkpoints(tmp_path, keep=1)


def test_a_step_that_is_written_again_keeps_its_own_replay_until_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, written = Checkpoints(tmp_path), 0
    checkpoints.save(5, {"round": 1}, replay={"steps": torch.ones(1)})
    save = checkpoint.save

    class Killed(BaseException):
        """Stands for kill -9."""

    def die_at_the_second(path: Path, state: dict[str, Any]) -> None:
        nonlocal written
        written += 1
        if written == 2:
            raise Killed
        save(path, state)

    monkeypatch.setattr(checkpoint, "save", die_at_the_second)
    with pytest.raises(Killed):
        checkpoints.save(5, {"round": 2}, replay={"steps": torch.zeros(1)})
    monkeypatch.undo()
    state = checkpoints.load()
    assert state["round"] == 1 and checkpoints.load_replay(state)["steps"].item() == 1
    checkpoints.save(6, {"round": 3}, replay={"steps": torch.zeros(1)})
    assert [path.name for path in tmp_path.glob("replay_*")] == ["replay_6"]
    with pytest.raises(CheckpointError, match="no checkpoint"):
        checkpoints.load_replay(state)
