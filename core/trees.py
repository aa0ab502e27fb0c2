"""Nested dicts of arrays on the host, for which torch's general `tree_map` costs more than the mapped function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from herdbook.core.types import Tree


def mapped(function: Callable[[Any], Any], tree: Tree) -> Tree:
    """Apply `function` to every leaf; None stays None."""
    if isinstance(tree, dict):
        return {name: mapped(function, leaf) for name, leaf in tree.items()}
    return None if tree is None else function(tree)


def indexed(tree: Tree, index: Any) -> Tree:
    """Index every leaf; None stays None."""
    return mapped(lambda leaf: leaf[index], tree)


def write(tree: Tree, index: Any, values: Tree) -> None:
    """Assign `leaf[index] = value` in every leaf, in place."""
    if isinstance(tree, dict):
        for name, leaf in tree.items():
            write(leaf, index, values[name])
    else:
        tree[index] = values
