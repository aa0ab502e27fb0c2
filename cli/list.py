"""`herdbook list algorithms|environments|settings`."""

from __future__ import annotations

from collections.abc import Sequence

from herdbook.cli.parse import show, wants_help
from herdbook.experiments.catalogue import ALGORITHMS, SUMMARIES, UserError, nearest

_KINDS = ("algorithms", "environments", "settings")


def run(arguments: Sequence[str]) -> int:
    """Print names; returns the exit status."""
    if wants_help(arguments):
        show(f"usage: herdbook list {'|'.join(_KINDS)}")
        return 0 if arguments else 2
    kind = arguments[0]
    if kind == "algorithms":
        width = max(map(len, ALGORITHMS))
        for name, target in ALGORITHMS.items():
            show(f"{name:<{width}}  {SUMMARIES[name]}  [{target.partition(':')[0]}]")
    elif kind == "environments":
        _environments()
    elif kind == "settings":
        from herdbook.experiments.settings import SETTINGS

        show("\n".join(map(str, SETTINGS)))
    else:
        raise UserError(f"unknown list {kind!r}{nearest(kind, _KINDS)}; there are {', '.join(_KINDS)}")
    return 0


def _environments() -> None:
    import importlib.util

    import gymnasium

    import herdbook.irl.environments
    import herdbook.tabular.environment
    from herdbook.core.registry import joint_names

    gymnasium.register_envs(herdbook.tabular.environment)
    gymnasium.register_envs(herdbook.irl.environments)
    if importlib.util.find_spec("gymnasium_robotics") is not None:
        import gymnasium_robotics

        gymnasium.register_envs(gymnasium_robotics)
    if importlib.util.find_spec("ale_py") is not None:
        import ale_py

        gymnasium.register_envs(ale_py)
    for name, spec in sorted(gymnasium.registry.items()):
        if name.startswith("ALE/") or not str(spec.entry_point).startswith("ale_py."):  # not their six old names
            show(name)
    for name in joint_names():
        show(name)
    show("or your own, as module:callable")
