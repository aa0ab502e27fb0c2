"""The `herdbook` command runs a sub-command and turns exceptions into an exit status.

0: success. 1: the run failed. 2: a mistake of the user, with a message of one line. 130, 143: interrupted by SIGINT,
SIGTERM. A defect of herdbook keeps its traceback. `--help` needs neither torch nor tyro.
"""

from __future__ import annotations

import errno
import importlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from herdbook.experiments.catalogue import UserError, nearest

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

COMMANDS = {
    "train": "train an algorithm on a dataset, or in an environment",
    "resume": "continue an interrupted run exactly, or extend a finished one",
    "eval": "evaluate the policies of a run in its environment",
    "collect": "write a policy's episodes, trained or random, as a Minari dataset",
    "compare": "table with intervals and learning curves of several runs",
    "data": "list, show, make, convert and relabel datasets",
    "reward": "judge a learned reward by fresh policies, correlations and the EPIC distance",
    "list": "list algorithms, environments or settings",
}
SPINS = "1000"
"""How many turns a waiting thread of PyTorch spins before it sleeps (libgomp's default: 300,000). A spinning thread
keeps a core from processes that have work, and training beside one of them is slower (docs/results/threads.md)."""
_EXAMPLES = """\
examples:
  herdbook train cql --dataset classic/pendulum --steps 20000 --seeds 0 1 2
  herdbook train cql --help          every option of the algorithm and of the run
  herdbook train qmix --env mpe2/simple_spread_v3 --steps 2000000
  herdbook resume runs/cql-herdbook-classic-pendulum-v0
  herdbook eval runs/cql-herdbook-classic-pendulum-v0 --episodes 100"""


def usage() -> str:
    """The text of `herdbook --help`."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items())
    return f"usage: herdbook COMMAND …\n\ncommands:\n{commands}\n\n{_EXAMPLES}"


class _Pipe(io.FileIO):
    """A pipe that its reader may close: what is written afterwards is dropped, and the command goes on."""

    def write(self, data: Buffer, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return memoryview(data).nbytes


def survive_closed_pipes() -> None:
    """Replace standard output and error, unless they are terminals, by streams that a closed pipe does not break."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and not stream.isatty():
            stream.flush()
            raw = _Pipe(stream.fileno(), "w", closefd=False)
            wrapped = io.TextIOWrapper(
                io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=stream.line_buffering
            )
            setattr(sys, name, wrapped)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:
        survive_closed_pipes()
    if arguments is None and "OMP_WAIT_POLICY" not in os.environ:  # read when torch is imported
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else 2
    if words[0] in ("--version", "-V"):
        from importlib.metadata import version

        print(f"herdbook {version('herdbook')}")
        return 0
    notices = logging.getLogger("herdbook")
    if not notices.handlers:
        notices.addHandler(logging.StreamHandler())  # the message alone, to standard error
        notices.setLevel(logging.INFO)
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.append(str(Path.cwd()))  # for module:callable and module:Class, as `python -m` does
    try:
        if words[0] not in COMMANDS:
            hint = nearest(words[0], COMMANDS)
            raise UserError(f"unknown command {words[0]!r}{hint}; there are {', '.join(COMMANDS)}")
        status: int = importlib.import_module(f"herdbook.cli.{words[0]}").run(words[1:])
    except KeyboardInterrupt as interrupt:
        print(f"herdbook: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return 130
    except Exception as error:
        status = status_of(error)
        if status == 0:
            raise
        print(f"herdbook: {error}", file=sys.stderr)
    return status


def status_of(error: Exception) -> int:
    """2 for a user's mistake, 1 for a run that failed, 0 for a defect of herdbook, whose traceback is kept."""
    if isinstance(error, (UserError, MemoryError)):  # a dataset that does not fit into memory
        return 2
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return 1
    from herdbook.core.checkpoint import CheckpointError
    from herdbook.core.environments import EnvironmentUnavailable
    from herdbook.core.runner import EnvironmentFailed, PolicyFailed
    from herdbook.core.runs import RunError, RunFailed
    from herdbook.datasets.episodes import DataError

    if isinstance(error, (RunError, CheckpointError, DataError, EnvironmentUnavailable)):
        return 2
    return 1 if isinstance(error, (RunFailed, EnvironmentFailed, PolicyFailed)) else 0


if __name__ == "__main__":
    sys.exit(main())
