"""What the documentation shows runs: the examples, and every block of code not marked as needing a network."""

from __future__ import annotations

import ast
import os
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from herdbook.cli.main import main
from herdbook.experiments.catalogue import ALGORITHMS

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(?P<mark><!-- network -->\n)?```(?P<language>bash|python)\n(?P<code>.*?)```", re.DOTALL)
STEPS = "60"
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]


def blocks(page: str) -> list[tuple[str, str]]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [(m["language"], m["code"]) for m in BLOCK.finditer(text) if not m["mark"]]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Datasets and caches of their own, so that a block writes nothing outside."""
    root = tmp_path_factory.mktemp("documentation")
    return {
        **os.environ,
        "MINARI_DATASETS_PATH": str(root / "minari"),
        "XDG_CACHE_HOME": str(root / "cache"),
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "Agg",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


def cut(line: str) -> str:
    """The same command with fewer steps and episodes; an extension stays an extension."""
    steps = int(STEPS) + 10 if " resume " in line else int(STEPS)
    line = re.sub(r"--(online-|)steps \S+", rf"--\1steps {steps}", line)
    line = re.sub(r"--episodes \S+", "--episodes 2", line)
    return f"{line} --eval-episodes 1 --evaluate-every {STEPS}" if " train " in line else line


@pytest.mark.parametrize("page", ["README.md", "docs/data.md", "docs/online.md", "docs/tabular.md"])
def test_every_block_runs_in_the_order_of_its_page(
    page: str, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command runs in this process, where it need not be imported each time; Python in a process of its own."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = blocks(page)
    assert found, f"{page} has no blocks"
    for language, code in found:
        if language == "bash":
            commands = [shlex.split(cut(line)) for line in code.splitlines() if line.strip()]
        else:
            commands = [[sys.executable, "-W", "error", "-c", re.sub(r"steps=[\d_]+", f"steps={STEPS}", code)]]
        for command in commands:
            if command[0] == "herdbook":
                assert main(command[1:]) == 0, f"{page}: {' '.join(command)}"
                continue
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{page}: {' '.join(command)}\n{done.stdout}\n{done.stderr}"


def test_the_extension_of_a_run_is_longer_than_the_run() -> None:
    assert cut("herdbook train cql --steps 20000").startswith(f"herdbook train cql --steps {STEPS} ")
    assert cut("herdbook resume runs/x --steps 30000") == f"herdbook resume runs/x --steps {int(STEPS) + 10}"
    assert cut("herdbook resume x --online-steps 30000") == f"herdbook resume x --online-steps {int(STEPS) + 10}"


@pytest.mark.parametrize("example", sorted(path.name for path in (ROOT / "examples").glob("*.py")))
def test_the_example_runs_as_it_says(
    example: str, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each says in its header by which command: that of a custom algorithm trains it. It runs in this process."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    header = ast.get_docstring(ast.parse((ROOT / "examples" / example).read_text(encoding="utf-8"))) or ""
    (line,) = re.findall(r"^ *python (.*)$", header, re.MULTILINE)
    line = cut(re.sub(r"\[(steps|updates)\]", STEPS, line))
    assert STEPS in line
    words = shlex.split(line)
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if words[0] == "-m":
            assert words[1] == "herdbook.cli.main" and main(words[2:]) == 0
        else:
            runpy.run_path(words[0], run_name="__main__")


@pytest.mark.parametrize("page", ["docs/inverse-rl.md", "docs/multi-agent.md"])
def test_every_option_in_an_indented_command_exists(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [shlex.split(line) for line in re.findall(r"^    herdbook (.+)$", text, re.MULTILINE)]
    assert commands
    known: dict[tuple[str, ...], str] = {}
    for words in commands:
        name = tuple(words[: 2 if words[0] in ("train", "data", "reward") else 1])
        if name not in known:
            with pytest.raises(SystemExit) as left:
                main([*name, "--help"])
            assert left.value.code == 0, name
            known[name] = capsys.readouterr().out
        for option in (word for word in words if word.startswith("--")):
            assert f"{option} " in known[name], f"{page}: herdbook {' '.join(words)}: there is no {option}"


def test_custom_algorithms_are_short() -> None:
    assert len((ROOT / "examples" / "your_own_algorithm.py").read_text(encoding="utf-8").splitlines()) < 80
    both = (ROOT / "examples" / "your_own_demonstrations.py").read_text(encoding="utf-8")
    assert len(both[both.index("@dataclass") :].splitlines()) < 70


def test_every_algorithm_has_its_row_and_its_file() -> None:
    table = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")
    for name, target in ALGORITHMS.items():
        module = target.split(":")[0].removeprefix("herdbook.").replace(".", "/")
        assert f"| `{name}` |" in table and f"(../{module}.py)" in table, name


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text(encoding="utf-8")):
        assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_is_there(page: str) -> None:
    """In backticks, alone or in a command, with its folder: from the root."""
    for code in re.findall(r"`[^`]+`", (ROOT / page).read_text(encoding="utf-8")):
        for path in re.findall(r"[\w./-]*\w/[\w-]+\.py\b", code):
            assert (ROOT / path).is_file(), f"{page} names {path}"
