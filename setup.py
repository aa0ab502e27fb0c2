"""Refuse to build from a tree whose links in src/herdbook are not folders; everything else is in pyproject.toml.

The folders of the package live at the root of the repository, and src/herdbook links them under one import name. A ZIP
download or a checkout without symlinks turns the links into small text files (or drops them), and setuptools would then
build a package without modules, without an error. In an sdist they are ordinary folders.
"""

from pathlib import Path

from setuptools import setup

FOLDERS = ("cli", "core", "datasets", "evaluation", "experiments", "irl", "marl", "offline", "online", "tabular")
"""The folders of the package, each one a link in src/herdbook."""


def check_links(package: Path) -> None:
    """Raise SystemExit unless `package` holds every folder of FOLDERS, with modules in it."""
    broken = [name for name in FOLDERS if not any((package / name).glob("*.py"))]
    if broken:
        raise SystemExit(
            f"herdbook cannot be built from this copy: expected {package} to link the folders {', '.join(FOLDERS)}, "
            f"but {', '.join(broken)} {'is' if len(broken) == 1 else 'are'} missing or no folder. A ZIP download and a "
            "Windows checkout without symlinks lose these links. Install with `pip install herdbook`, with `pip "
            "install git+<URL of the repository>`, or from the .tar.gz of a release (on Windows: git config --global "
            "core.symlinks true, then clone again)."
        )


check_links(Path(__file__).resolve().parent / "src" / "herdbook")
setup()
