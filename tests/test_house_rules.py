"""Rules that every file of the package keeps (DESIGN §1, §3), read from the source."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ALLOWED = {
    *("distribution.probs", "each.state", "env.possible_agents", "env.render_mode", "environment.__qualname__"),
    *("found.<factory>", "found.<part>", "inner.P", "inner.initial_state_distrib", "k.action_space.start"),
    *("kind.action_space.start", "mujoco.MjLogConfig", "self.game.env.unwrapped.max_cycles", "space.start"),
    *("self.module.stacked_prefixes", "source.__module__", "source.__qualname__", "type(env).state.__module__"),
    "value.tolist",
}
"""Attributes that may be missing: of environments, spaces, a user's modules and other people's libraries."""


def asked(node: ast.Call) -> str:
    owner, name = node.args[:2]
    return f"{ast.unparse(owner)}.{name.value if isinstance(name, ast.Constant) else f'<{ast.unparse(name)}>'}"


def discoveries(source: str) -> list[str]:
    """Calls that ask an algorithm or a config what it has, instead of reading what it declares."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and (node.func.id == "hasattr" or (node.func.id == "getattr" and len(node.args) == 3))
        and asked(node) not in ALLOWED
    ]


def joint_names(source: str) -> list[str]:
    """The types of many agents that a module names, reads from another module or imports."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    names |= {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
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
        (discoveries, "hasattr(one, 'begin')"),
        (discoveries, "getattr(cls, 'needs', None)"),
        (joint_names, "isinstance(spec, JointSpec)"),
        (joint_names, "isinstance(spec, types.JointSpec)"),
        (joint_names, "from herdbook.core.joint.types import JointSpec as S"),
        (riddles, "def f():\n    'Whether it is so.'"),
        (riddles, "class A:\n    'What it does.'"),
    ],
)
def test_the_rules_catch_a_violation(rule: object, source: str) -> None:
    assert callable(rule) and rule(source)


def test_the_rules_leave_the_rest_alone() -> None:
    assert not discoveries("getattr(config, name)\nhasattr(env, 'possible_agents')\ngetattr(space, 'start', 0)")
    assert not joint_names("JointActor\n'JointSpec'")
    assert not riddles("def f():\n    'True if it is so. What else?'")


@pytest.fixture(scope="module")
def sources(repo_root: Path) -> dict[str, str]:
    """The source of every module of the package by its path."""

    assignments = {
        ast.unparse(node.targets[0]): node.value
        for node in ast.parse((repo_root / "setup.py").read_text()).body
        if isinstance(node, ast.Assign)
    }

    def found() -> Iterator[tuple[str, str]]:
        for folder in ast.literal_eval(assignments["FOLDERS"]):
            for path in (repo_root / folder).rglob("*.py"):
                yield str(path.relative_to(repo_root)), path.read_text(encoding="utf-8")

    return dict(found())


def test_nothing_is_discovered_of_an_algorithm_or_a_config(sources: dict[str, str]) -> None:
    assert len(sources) > 100
    assert not {path: calls for path, source in sources.items() if (calls := discoveries(source))}


def test_only_its_domain_knows_the_types_of_many_agents(sources: dict[str, str]) -> None:
    known = {p for p, source in sources.items() if p.startswith("experiments/") and joint_names(source)}
    assert known == {"experiments/many_agents.py"}


def test_docstrings_begin_with_their_subject(sources: dict[str, str]) -> None:
    assert not {path: found for path, source in sources.items() if (found := riddles(source))}
