"""Trees of arrays on the host, in nested dicts, where torch's general `tree_map` takes longer than what it maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from herdbook.core.types import Tree


def mapped(function: Callable[[Any], Any], tree: Tree) -> Tree:
    """`function(leaf)` of every leaf; None stays None."""
    if isinstance(tree, dict):
        return {name: mapped(function, leaf) for name, leaf in tree.items()}
    return None if tree is None else function(tree)


def indexed(tree: Tree, index: Any) -> Tree:
    """`leaf[index]` of every leaf; None stays None."""
    return mapped(lambda leaf: leaf[index], tree)


def write(tree: Tree, index: Any, values: Tree) -> None:
    """`leaf[index] = value` in every leaf."""
    if isinstance(tree, dict):
        for name, leaf in tree.items():
            write(leaf, index, values[name])
    else:
        tree[index] = values
