"""The package: links, wheel and sdist, what an import costs, and which layer may import which (DESIGN §1)."""

import ast
import importlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest

import herdbook

LAYERS = (
    {"core"},
    {"datasets"},
    {"evaluation"},
    {"tabular", "online"},
    {"offline", "marl", "irl", "meta"},
    {"experiments"},
    {"cli"},
)
RANK = {folder: rank for rank, layer in enumerate(LAYERS) for folder in layer}
FAMILIES = LAYERS[3] | LAYERS[4]
CONSTRUCTORS, CONSTRUCTED = {"irl", "meta"}, {"online", "offline", "tabular"}
"""Who may import a class of another family, and from which: inner loops, policies and MDPs are built, no more."""
UPWARDS = (
    ("core/registry.py", "core may not import herdbook.tabular.environment"),
    ("core/registry.py", "core may not import herdbook.irl.environments"),
    ("datasets/recipes/gridworld.py", "datasets may not import herdbook.tabular.experts"),
    ("datasets/recipes/recipe.py", "datasets may not import herdbook.experiments.recipes"),
)
"""The imports up the layers, where they are used: what registers an environment's name, and what plans or trains a
recipe's policies."""
NO_PACKAGE = {"src", "tests", "examples", "benchmarks", "docs"}


def folders(root: Path) -> set[str]:
    """The names in setup.py's FOLDERS (importing that file would start a build)."""
    for node in ast.parse((root / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FOLDERS":
            return set(ast.literal_eval(node.value))
    raise AssertionError("setup.py names no FOLDERS")


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False, timeout=300)


def build(kind: str, tree: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Build an sdist or a wheel of `tree` with this environment's setuptools, which needs no network."""
    out.mkdir(exist_ok=True)
    return run(sys.executable, "-c", f"from setuptools import build_meta as b; b.build_{kind}({str(out)!r})", cwd=tree)


def sources(root: Path) -> Iterator[Path]:
    """What a commit would hold of what a build reads."""
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md"):
        yield root / name
    for top in (*sorted(folders(root)), "constraints.txt", "src/herdbook"):
        for path in sorted([root / top, *(root / top).rglob("*")]):
            if path.is_symlink() or (path.is_file() and path.suffix != ".pyc"):
                yield path


@pytest.fixture
def copy(repo_root: Path, tmp_path: Path) -> Path:
    """A copy of the checkout's sources, so that a build leaves nothing in the checkout."""
    tree = tmp_path / "copy"
    for path in sources(repo_root):
        target = tree / path.relative_to(repo_root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target, follow_symlinks=False)
    return tree


def test_the_links_are_links_to_the_root_folders(repo_root: Path) -> None:
    package = repo_root / "src" / "herdbook"
    links = {path.name for path in package.iterdir() if path.is_symlink()}
    assert links == folders(repo_root)
    for name in links:
        assert (package / name).readlink() == Path(f"../../{name}")
        assert (package / name).is_dir()


def test_every_root_folder_with_modules_is_linked(repo_root: Path) -> None:
    with_modules = {path.parent.name for path in repo_root.glob("[a-z]*/*.py")} - NO_PACKAGE
    assert with_modules == folders(repo_root)
    assert with_modules <= RANK.keys()


def test_root_folders_do_not_shadow_installed_packages(repo_root: Path) -> None:
    assert not [name for name in folders(repo_root) if (repo_root / name / "__init__.py").exists()]


@pytest.fixture
def wheel(copy: Path, tmp_path: Path) -> Path:
    """The wheel that is built from the sdist."""
    sdist = build("sdist", copy, tmp_path / "out")
    assert sdist.returncode == 0, sdist.stderr
    with tarfile.open(next((tmp_path / "out").glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    built = build("wheel", next((tmp_path / "unpacked").iterdir()), tmp_path / "out")
    assert built.returncode == 0, built.stderr
    return next((tmp_path / "out").glob("*.whl"))


def test_the_wheel_built_through_the_sdist_lists_every_file(wheel: Path, copy: Path) -> None:
    modules = (path for name in folders(copy) for path in (copy / name).rglob("*") if path.is_file())
    expected = {"__init__.py", "py.typed", *(str(path.relative_to(copy)) for path in modules)}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        scripts = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "herdbook = herdbook.cli.main:main" in archive.read(scripts).decode()
    assert names == {f"herdbook/{name}" for name in expected}


AWAY = """
import sys
from pathlib import Path

import herdbook
from herdbook.cli.main import main

home = Path(herdbook.__file__).resolve().parent
assert home == Path(sys.argv[1]).resolve() / "herdbook", home
assert not any(path.is_symlink() for path in home.iterdir())
sys.exit(main(sys.argv[2:]))
"""


def test_the_wheel_trains_and_evaluates_without_the_checkout(wheel: Path, small_dataset: str, tmp_path: Path) -> None:
    """Unpacked, as an installer does, and found before the checkout, whose folders would be links."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    isolated = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n{AWAY}"
    (tmp_path / "elsewhere").mkdir()
    for words in (
        ("train", "cql", "--dataset", small_dataset, "--steps", "4", "--eval-episodes", "1", "--run-dir", "r"),
        ("eval", "r", "--episodes", "2", "--seed", "0"),
    ):
        result = run(sys.executable, "-c", isolated, tmp_path / "site", *words, cwd=tmp_path / "elsewhere")
        assert result.returncode == 0, result.stderr
        assert "return" in result.stdout


def test_a_zip_download_without_links_is_refused(copy: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "herdbook.zip", "w") as archive:
        for path in sources(copy):
            if path.is_symlink():  # as `git archive` stores a link; most programs unpack it as a text file
                entry = zipfile.ZipInfo(str(path.relative_to(copy)))
                entry.create_system, entry.external_attr = 3, 0o120777 << 16
                archive.writestr(entry, str(path.readlink()))
            else:
                archive.write(path, path.relative_to(copy))
    with zipfile.ZipFile(tmp_path / "herdbook.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    assert (tmp_path / "unpacked/src/herdbook/core").is_file()
    refused = build("wheel", tmp_path / "unpacked", tmp_path / "out")
    assert refused.returncode != 0
    assert not list((tmp_path / "out").glob("*.whl"))
    assert "cannot be built from this copy" in refused.stderr
    assert "pip install git+" in refused.stderr and ".tar.gz" in refused.stderr


@pytest.mark.parametrize("kind", ["wheel", "sdist", "editable"])
def test_a_missing_link_is_refused(kind: str, copy: Path, tmp_path: Path) -> None:
    (copy / "src/herdbook/core").unlink()
    refused = build(kind, copy, tmp_path / "out")
    assert refused.returncode != 0
    assert "but core is missing or no folder" in refused.stderr


NO_TORCH = """
import sys
{code}
heavy = sorted({{"torch", "minari", "gymnasium", "scipy", "matplotlib"}} & sys.modules.keys())
assert not heavy, f"imported {{heavy}}"
"""


@pytest.mark.parametrize(
    "code",
    [
        "import herdbook; assert herdbook.__version__; assert 'train' in dir(herdbook)",
        """
import runpy
sys.argv = ["herdbook", "--help"]
try:
    runpy.run_module("herdbook.cli.main", run_name="__main__")
except SystemExit as exit:
    assert not exit.code, exit.code
else:
    raise AssertionError("--help did not exit")
""",
    ],
    ids=["import", "help"],
)
def test_torch_is_not_imported_before_it_is_needed(code: str, tmp_path: Path) -> None:
    result = run(sys.executable, "-c", NO_TORCH.format(code=code), cwd=tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", herdbook.__all__)
def test_lazy_names_lead_somewhere(name: str) -> None:
    value = getattr(herdbook, name)
    assert name == "__version__" or (callable(value) and value.__name__ == name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'trian'; it has .*train"):
        _ = herdbook.trian


def imports(source: str) -> Iterator[tuple[str, list[str], int]]:
    """(module, imported names, line) of every import of ours in `source`; strings such as "herdbook.cli.main" count."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "herdbook":
                    yield alias.name, [], node.lineno
        elif isinstance(node, ast.ImportFrom):
            if node.level or (node.module or "").split(".")[0] == "herdbook":
                yield node.module or ".", [alias.name for alias in node.names], node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if match := re.fullmatch(r"(herdbook\.\w+(?:\.\w+)+)(?::(\w+))?", node.value):
                yield match[1], [match[2]] if match[2] else [], node.lineno


def violations(folder: str, source: str) -> list[str]:
    """What a module of `folder` with this source may not do; one line each."""
    found, foreign = [], set()
    for module, names, line in imports(source):
        parts = module.split(".")
        if parts == ["herdbook"]:
            if names != ["__version__"]:
                found.append(f"line {line}: import from the module itself, not from herdbook (only __version__)")
            continue
        if parts[0] != "herdbook" or parts[1] not in RANK:
            found.append(f"line {line}: {module} is no folder of ours, or a relative import")
            continue
        home = parts[1]
        if home != folder and RANK[home] >= RANK[folder] and not {home, folder} <= FAMILIES:
            found.append(f"line {line}: {folder} may not import {module}")
        if home == folder or not {home, folder} <= FAMILIES:
            continue
        if RANK[home] > RANK[folder]:
            found.append(f"line {line}: {folder} may not import {module}")
        if len(parts) < 3 or not names:
            found.append(f"line {line}: from {home}, import functions by name, not modules")
        for name in names:
            if name[:1].isupper() or name == "*":
                foreign.add(name)
                if folder not in CONSTRUCTORS or home not in CONSTRUCTED:
                    found.append(f"line {line}: {folder} may not import the class {name} of {home}")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            bases = {part.id for base in node.bases for part in ast.walk(base) if isinstance(part, ast.Name)}
            found += [f"line {node.lineno}: {node.name} subclasses {name}" for name in bases & foreign]
    return found


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("core", "from herdbook.datasets.replay import ReplayBuffer"),
        ("core", "def f():\n    import herdbook.cli.main"),
        ("core", "import herdbook"),
        ("core", "from herdbook import train"),
        ("core", 'HOME = "herdbook.experiments.train:train"'),
        ("datasets", "from herdbook.evaluation.evaluate import evaluate"),
        ("evaluation", "from herdbook.online.ppo import ppo_loss"),
        ("online", "from herdbook.offline.iql import expectile_loss"),
        ("tabular", "from herdbook.online.ppo import PPO"),
        ("offline", "from herdbook.experiments.catalogue import names"),
        ("offline", "from herdbook.online.sac import SAC"),
        ("offline", "from herdbook.online import sac"),
        ("offline", "import herdbook.online.sac"),
        ("offline", "from .cql import cql_loss"),
        ("marl", "from herdbook.offline.td3_bc import TD3BC"),
        ("irl", "from herdbook.meta.rl2 import RL2"),
        ("irl", "from herdbook.online.ppo import PPO\nclass Mine(PPO):\n    pass"),
        ("irl", "from herdbook.online.ppo import PPO\nclass Mine(Generic[PPO]):\n    pass"),
        ("irl", "from herdbook.tabular.mdp import MDP\nclass Mine(MDP):\n    pass"),
    ],
)
def test_the_import_rules_catch_a_violation(folder: str, source: str) -> None:
    assert violations(folder, source)


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("core", "from herdbook import __version__\nfrom herdbook.core.types import Spec\nimport torch"),
        ("datasets", "from herdbook.core.types import Transitions"),
        ("evaluation", "from herdbook.datasets.episodes import Episodes\nclass Mine(Episodes):\n    pass"),
        ("offline", "from herdbook.online.sac import temperature_loss"),
        ("marl", "from herdbook.offline.cql import conservative_penalty"),
        ("irl", "from herdbook.online.ppo import PPO, PPOConfig\nagent = PPO(PPOConfig())"),
        ("irl", "from herdbook.tabular.mdp import MDP"),
        ("meta", "from herdbook.offline.iql import IQL, expectile_loss"),
        ("cli", 'CATALOGUE = {"cql": "herdbook.offline.cql:CQL"}\nfrom herdbook.offline.cql import CQL'),
    ],
)
def test_the_import_rules_leave_the_rest_alone(folder: str, source: str) -> None:
    assert not violations(folder, source)


def test_imports_obey_the_direction(repo_root: Path) -> None:
    found = [
        f"{path.relative_to(repo_root)}: {violation}"
        for folder in sorted(folders(repo_root))
        for path in sorted((repo_root / folder).rglob("*.py"))
        for violation in violations(folder, path.read_text(encoding="utf-8"))
    ]
    found = [f for f in found if not any(f.startswith(path) and f.endswith(what) for path, what in UPWARDS)]
    assert not found, "\n".join(found)


def test_an_import_up_the_layers_is_made_once_and_only_where_it_is_used(repo_root: Path) -> None:
    for path, what in UPWARDS:
        source = (repo_root / path).read_text(encoding="utf-8")
        assert sum(violation.endswith(what) for violation in violations(path.split("/")[0], source)) == 1
        module = f"herdbook.{path.removesuffix('.py').replace('/', '.')}"
        above = f"m.startswith({tuple(f'herdbook.{folder}' for layer in LAYERS[3:] for folder in layer)})"
        code = f"import sys, {module}; sys.exit(any({above} for m in sys.modules))"
        assert run(sys.executable, "-c", code, cwd=repo_root).returncode == 0


ORDER = {
    "core": (
        {"atari", "checkpoint", "config", "distributions", "logging", "moments", "needs", "preferences", "random"},
        {"recurrence"},
        {"memory", "notices", "registry", "returns", "runs", "types", "wrappers"},
        {"seeds", "spaces", "threads", "trees"},
        {"frames", "returned"},
        {"environments"},
        {"actor", "growing", "networks", "policy", "random_policy", "runner"},
        {"book", "chunked", "exploration", "learner", "member", "units"},
        {"collector", "fine_tuning", "on_policy", "parameter_noise"},
        {"loop", "off_policy", "step_collector"},
        {"joint.boundary"},
        {"joint.parallel", "joint.types"},
        {"joint.actions", "joint.actor", "joint.games", "joint.random_policy", "joint.rounds", "specs"},
        {"joint.environments", "joint.networks"},
        {"joint.policy", "joint.runner"},
        {"episode_collector"},
    ),
    "experiments": (
        {"catalogue", "settings", "sides"},
        {"environments", "options"},
        {"domain", "records"},
        {"many_agents", "single_agent"},
        {"domains"},
        {"build"},
        {"restore"},
        {"experts", "opponents", "rewards"},
        {"collect", "evaluate", "relabel", "tasks", "true_rewards", "video"},
        {"train"},
        {"recipes", "reward_evaluation"},
    ),
}
"""The modules of a layer from the bottom up: each imports only modules of the sets before its own."""


def imported(path: Path, known: Collection[str]) -> set[str]:
    """The modules among `known` that a file imports anywhere, in functions too; not for type checkers alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for guarded in block.body
        for node in ast.walk(guarded)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & set(known)


@pytest.fixture(scope="module")
def graph(repo_root: Path) -> dict[str, set[str]]:
    """Every module of ours and those that it imports."""
    paths = {
        "herdbook." + ".".join(path.relative_to(repo_root).with_suffix("").parts): path
        for folder in folders(repo_root)
        for path in (repo_root / folder).rglob("*.py")
    }
    return {module: imported(path, paths.keys()) for module, path in paths.items()}


def a_cycle(graph: Mapping[str, Collection[str]]) -> list[str] | None:
    """The modules of one import cycle, the first one again at its end; None without any."""
    finished: set[str] = set()

    def search(module: str, path: list[str]) -> list[str] | None:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in finished:
            return None
        for following in sorted(graph[module]):
            if found := search(following, [*path, module]):
                return found
        finished.add(module)
        return None

    return next((found for module in sorted(graph) if (found := search(module, []))), None)


def test_a_cycle_is_found() -> None:
    assert a_cycle({"a": {"b"}, "b": {"c"}, "c": set()}) is None
    assert a_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_no_module_imports_one_that_imports_it(graph: dict[str, set[str]]) -> None:
    assert len(graph) > 100
    cycle = a_cycle(graph)
    assert cycle is None, " imports ".join(cycle or [])


@pytest.mark.parametrize("layer", ORDER)
def test_modules_of_a_layer_keep_to_their_order(layer: str, graph: dict[str, set[str]]) -> None:
    rank = {f"herdbook.{layer}.{name}": rank for rank, names in enumerate(ORDER[layer]) for name in names}
    present = {module for module in graph if module.startswith(f"herdbook.{layer}.")}
    assert present == rank.keys(), f"give each its place in ORDER: {sorted(present ^ rank.keys())}"
    upwards = [f"{m} may not import {i}" for m in sorted(present) for i in graph[m] & present if rank[i] >= rank[m]]
    assert not upwards, "\n".join(upwards)


def private_names_of_torch(source: str) -> set[str]:
    """Names of torch that begin with an underscore and that a module reads or imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            found.add(ast.unparse(node))
    return {name for name in found if re.match(r"torch(\.\w+)*\._", name)}


@pytest.mark.parametrize(
    "source",
    [
        "torch._fused_adam_(x)",
        "torch.utils._pytree.tree_map(f, x)",
        "from torch.utils import _pytree as pytree",
        "from torch.utils._pytree import tree_map",
        "import torch._dynamo",
    ],
)
def test_private_names_of_torch_are_found(source: str) -> None:
    assert private_names_of_torch(source)


def test_nothing_private_of_torch_is_used(repo_root: Path) -> None:
    """But for operations on lists of tensors and the registration of batches as trees, which have no public name."""
    found = {
        (str(path.relative_to(repo_root)), name)
        for folder in folders(repo_root)
        for path in (repo_root / folder).rglob("*.py")
        for name in private_names_of_torch(path.read_text(encoding="utf-8"))
        if not name.startswith("torch._foreach_")
    }
    assert found == {("core/types.py", "torch.utils._pytree")}


@pytest.mark.parametrize("name", sorted(path.stem for path in (Path(__file__).parents[1] / "benchmarks").glob("*.py")))
def test_benchmarks_can_be_imported(name: str, repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are run by hand, so a name that has moved would show late."""
    if name == "d3rlpy_worker":
        pytest.skip("it runs in an environment of its own, which has d3rlpy")
    monkeypatch.syspath_prepend(str(repo_root / "benchmarks"))
    assert importlib.import_module(name).__doc__
