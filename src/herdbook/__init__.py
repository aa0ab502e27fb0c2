"""herdbook: learning from recorded experience and for many agents.

The public interface is the modules (`from herdbook.offline.cql import CQL, CQLConfig`). The names here are imported
when they are first used: `import herdbook` alone costs nothing and does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from herdbook.datasets.episodes import Episodes
    from herdbook.datasets.load import load_dataset
    from herdbook.datasets.replay import ReplayBuffer
    from herdbook.evaluation.evaluate import evaluate
    from herdbook.experiments.restore import load
    from herdbook.experiments.train import train

    __version__: str

__all__ = ["Episodes", "ReplayBuffer", "__version__", "evaluate", "load", "load_dataset", "train"]

_HOMES = {
    "Episodes": "herdbook.datasets.episodes",
    "ReplayBuffer": "herdbook.datasets.replay",
    "evaluate": "herdbook.evaluation.evaluate",
    "load": "herdbook.experiments.restore",
    "load_dataset": "herdbook.datasets.load",
    "train": "herdbook.experiments.train",
}


def __getattr__(name: str) -> Any:
    """Import a name of `__all__` from its module, once."""
    if name == "__version__":
        value: Any = import_module("importlib.metadata").version("herdbook")
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'herdbook' has no attribute {name!r}; it has {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
