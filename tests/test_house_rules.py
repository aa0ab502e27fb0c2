"""Rules that every file of the package keeps (DESIGN §1, §3), read from the source."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDERS = ("cli", "core", "datasets", "evaluation", "experiments", "marl", "offline", "online", "tabular")
DISCOVERED = re.compile(r"(^|\.|_)(c|algorithm|config|needs|policy|player)(s?\[.*\])?$")
"""An expression that is an algorithm, its config or its policy."""


def discoveries(source: str) -> list[str]:
    """Calls that ask an algorithm or a config what it has, instead of reading what it declares."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and (node.func.id == "hasattr" or (node.func.id == "getattr" and len(node.args) == 3))
        and DISCOVERED.search(ast.unparse(node.args[0]))
    ]


def private_torch(source: str) -> list[str]:
    """Private names of torch that are used, other than the `_foreach_` operations."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and re.match(r"torch(\.\w+)*\._(?!foreach_)\w+$", ast.unparse(node)):
            found.append(ast.unparse(node))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            named = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name for name in named if re.search(r"\._", name)]
    return found


def joint_names(source: str) -> list[str]:
    """The types of many agents that a module names."""
    names = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    return sorted(names & {"JointSpec", "JointEpisodes", "JointReplay"})


def riddles(source: str) -> list[str]:
    """Docstrings that begin with a word that delays their subject."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(source)) if isinstance(node, documented)]
    return [text for text in texts if re.match(r"(Of|What|Who|Where|Whether|Those)\b", text)]


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (discoveries, "hasattr(algorithm, 'updates_due')"),
        (discoveries, "getattr(self.config, 'recurrent', False)"),
        (discoveries, "getattr(algorithms[0], 'num_envs', 8)"),
        (discoveries, "getattr(c, 'frame_stack', 1)"),
        (private_torch, "torch._fused_adam_(values)"),
        (private_torch, "torch.utils._pytree.tree_map(f, tree)"),
        (private_torch, "from torch.nn.modules.dropout import _DropoutNd"),
        (joint_names, "isinstance(spec, JointSpec)"),
        (riddles, "def f():\n    'Whether it is so.'"),
        (riddles, "class A:\n    'What it does.'"),
    ],
)
def test_the_rules_catch_a_violation(rule: object, source: str) -> None:
    assert callable(rule) and rule(source)


def test_the_rules_leave_the_rest_alone() -> None:
    assert not discoveries("getattr(config, name)\nhasattr(env, 'possible_agents')\ngetattr(space, 'start', 0)")
    assert not private_torch("torch._foreach_norm(x)\nfrom torch.func import functional_call\nself._values")
    assert not joint_names("JointActor\n'JointSpec'")
    assert not riddles("def f():\n    'True if it is so. What else?'")


@pytest.fixture(scope="module")
def sources(repo_root: Path) -> dict[str, str]:
    """The source of every module of the package by its path."""

    def found() -> Iterator[tuple[str, str]]:
        for folder in FOLDERS:
            for path in (repo_root / folder).rglob("*.py"):
                yield str(path.relative_to(repo_root)), path.read_text(encoding="utf-8")

    return dict(found())


def test_nothing_is_discovered_of_an_algorithm_or_a_config(sources: dict[str, str]) -> None:
    assert len(sources) > 100
    assert not {path: calls for path, source in sources.items() if (calls := discoveries(source))}


def test_private_names_of_torch_are_used_in_one_place(sources: dict[str, str]) -> None:
    """core/types.py registers batches as pytrees, for which torch has no public function."""
    found = {path: names for path, source in sources.items() if (names := private_torch(source))}
    assert found == {"core/types.py": ["torch.utils._pytree"]}


def test_only_its_domain_knows_the_types_of_many_agents(sources: dict[str, str]) -> None:
    known = {p for p, source in sources.items() if p.startswith("experiments/") and joint_names(source)}
    assert known == {"experiments/many_agents.py"}


def test_docstrings_begin_with_their_subject(sources: dict[str, str]) -> None:
    assert not {path: found for path, source in sources.items() if (found := riddles(source))}
