"""The tables of a replay: trees of tensors, leaves `[rows, …]`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor

from herdbook.core.types import Array, Tree, tree_leaves

_NUMPY = {
    kind: np.dtype(str(kind).removeprefix("torch."))
    for kind in (torch.float32, torch.int64, torch.int32, torch.uint8, torch.bool)
}


class Table:
    """A tensor whose rows are written by NumPy on the CPU, because NumPy's calls cost a fraction of torch's."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.shape, self.dtype = tensor, tuple(tensor.shape[1:]), _NUMPY[tensor.dtype]
        self.array = tensor.numpy() if tensor.is_cpu else None  # the same memory

    def __reduce__(self) -> tuple[type[Table], tuple[Tensor]]:
        return Table, (self.tensor,)  # a copy's array must share the memory of the copied tensor

    def __setitem__(self, rows: slice | Array, values: Array) -> None:
        """Write values `[*N, …]` to rows `[*N]`."""
        values = values.reshape(-1, *self.shape)
        if self.array is not None:
            self.array[rows if isinstance(rows, slice) else rows.reshape(-1)] = values
        else:
            index = rows if isinstance(rows, slice) else torch.from_numpy(rows.reshape(-1)).to(self.tensor.device)
            self.tensor[index] = torch.as_tensor(values).to(self.tensor)


def to_table(array: Array, device: torch.device | str) -> Tensor:
    """An array as a tensor; on the CPU it shares the memory."""
    writeable = array if array.flags.writeable else array.copy()  # torch warns of read-only arrays
    return torch.from_numpy(writeable).to(device)


def empty_table(space: Space[Any], rows: tuple[int, ...], device: torch.device | str) -> Tree:
    """Zeros `[*rows, …]` for values of a flat space, in their storage type."""
    if isinstance(space, spaces.Dict):
        return {name: empty_table(part, rows, device) for name, part in space.spaces.items()}
    if isinstance(space, spaces.Discrete):
        return torch.zeros(rows, dtype=torch.int64, device=device)
    assert isinstance(space, spaces.Box)
    dtype = torch.uint8 if space.dtype == np.uint8 else torch.float32
    return torch.zeros(*rows, *space.shape, dtype=dtype, device=device)


def table_bytes(tables: Tree) -> int:
    """Bytes of all leaves."""
    return sum(leaf.nbytes for leaf in tree_leaves(tables))


def gathered(tables: Tree, index: Tensor) -> Tree:
    """The entries `index` `[*B]` of every table: leaves `[*B, …]`."""
    if isinstance(tables, dict):  # torch's tree_map costs more than gathering from a dozen tables
        return {name: gathered(table, index) for name, table in tables.items()}
    if index.dim() == 1:
        return tables.index_select(0, index)
    return tables.index_select(0, index.reshape(-1)).view(*index.shape, *tables.shape[1:])  # ten times faster than […]


def restore(*saved: tuple[str, Tree, Tree, int]) -> None:
    """Copy saved tables into the first rows of tables. Each argument is (name, tables, saved tables, number of rows).

    Raises ValueError, and changes nothing, if shapes or types differ.
    """
    for table, values in [pair for part in saved for pair in _pairs(*part)]:
        table.copy_(values)


def _pairs(name: str, table: Tree, saved: Tree, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    if isinstance(table, dict):
        if not isinstance(saved, Mapping) or set(saved) != set(table):
            came = sorted(saved) if isinstance(saved, Mapping) else type(saved).__name__
            raise ValueError(f"expected a replay of {name} with the keys {sorted(table)}, got {came}")
        for key, leaf in table.items():
            yield from _pairs(f"{name}[{key!r}]", leaf, saved[key], count)
        return
    rows = table[:count]
    if not isinstance(saved, Tensor) or (saved.shape, saved.dtype) != (rows.shape, rows.dtype):
        came = f"{list(saved.shape)} {saved.dtype}" if isinstance(saved, Tensor) else type(saved).__name__
        raise ValueError(f"expected a replay of {name} {list(rows.shape)} {rows.dtype}, got {came}; build it alike")
    yield rows, saved


def check_memory(needed: int, device: torch.device | str, what: str) -> None:
    """Raise MemoryError where `needed` bytes for `what` are not free on `device`."""
    free = free_memory(torch.device(device))
    if free is not None and needed > free:
        advice = "lower the capacity, or use smaller observations"
        raise MemoryError(f"a replay of {what} needs {needed:,} bytes on {device}, which has {free:,} free; {advice}")


def free_memory(device: torch.device) -> int | None:
    """Free bytes of a device; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
