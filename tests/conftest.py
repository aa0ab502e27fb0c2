"""What every test shares. A test runs in an empty folder of its own and never reads or writes the user's data."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two workers with a pool of threads each slow each other
os.environ.setdefault("MPLBACKEND", "Agg")

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Datasets for tests that need real ones: HERDBOOK_TEST_DATA, else ../shared/data beside the checkout."""
    path = Path(os.environ.get("HERDBOOK_TEST_DATA") or ROOT.parent / "shared" / "data").resolve()
    if not path.is_dir():
        pytest.skip(f"no test datasets: {path} is no folder (set HERDBOOK_TEST_DATA)")
    return path


@pytest.fixture(scope="session")
def session_minari_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Minari root of a whole test session, for datasets that are slow to make."""
    return tmp_path_factory.mktemp("minari")


@pytest.fixture(autouse=True)
def _away_from_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, session_minari_root: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(session_minari_root))


@pytest.fixture
def minari_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty Minari root of this test's own."""
    root = tmp_path / "minari"
    root.mkdir()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    return root
