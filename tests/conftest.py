"""What every test shares. A test runs in an empty folder of its own and never reads or writes the user's data."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two workers with a pool of threads each slow each other
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test reaches the network; what asks for it fails at once

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
def _seeded() -> Iterator[None]:
    """Each test starts with the same global random state, whichever tests its worker ran before.

    HERDBOOK_TEST_SEED chooses another one: a test that then fails asserts luck.
    """
    from herdbook.core.random import scoped_seed

    with scoped_seed(int(os.environ.get("HERDBOOK_TEST_SEED", "0"))):
        yield


@pytest.fixture(autouse=True)
def _nothing_told_yet() -> None:
    """Each test sees the notices that an earlier one has caused, too."""
    from herdbook.core.notices import notice

    notice.cache_clear()


@pytest.fixture(autouse=True)
def _away_from_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, session_minari_root: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(session_minari_root))


@pytest.fixture
def die_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int, type, Callable[[], object]], None]:
    """`die_at(kind, number, algorithm, function)`: run the function up to its nth update of the algorithm, checkpoint,
    rename (`link`), line of a file or block that a replay takes (`add_joint`: of episodes), and dies as by kill -9.
    """
    from herdbook.core.book import Book
    from herdbook.core.runs import JSONLines
    from herdbook.datasets.joint.replay import JointReplay
    from herdbook.datasets.replay import ReplayBuffer

    class Killed(BaseException):
        """Nothing of ours runs after it."""

    def run(kind: str, number: int, algorithm: type, function: Callable[[], object]) -> None:
        owner, name = {
            "update": (algorithm, "update"),
            "checkpoint": (Book, "checkpoint"),
            "link": (os, "replace"),
            "line": (JSONLines, "write"),
            "add": (ReplayBuffer, "extend"),
            "add_joint": (JointReplay, "add"),
        }[kind]
        original, calls = getattr(owner, name), 0

        def die(*arguments: object, **keywords: object) -> object:
            nonlocal calls
            calls += 1
            if calls == number:
                raise Killed
            return original(*arguments, **keywords)

        with monkeypatch.context() as patched:
            patched.setattr(owner, name, die)
            with pytest.raises(Killed):
                function()

    return run


@pytest.fixture
def at_every_rename(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Callable[[], object]], list[Path]]:
    """`at_every_rename(path, function)`: run the function and return a copy of the run directory `path` from before
    each rename, new link and removal in it, as a kill at that instant leaves it.
    """
    remove: Callable[..., None] = shutil.rmtree

    def run(path: Path, function: Callable[[], object]) -> list[Path]:
        copies: list[Path] = []

        def copy(target: object) -> None:
            if Path(str(target)).absolute().is_relative_to(path.absolute()):
                copies.append(path.with_name(f"{path.name}-{len(copies)}"))
                shutil.copytree(path, copies[-1], symlinks=True)

        def copying(original: Callable[..., object]) -> Callable[..., object]:
            def call(source: object, target: object, *rest: object, **options: object) -> object:
                copy(target)
                return original(source, target, *rest, **options)

            return call

        def removing(target: Path, *rest: object, **options: Any) -> None:
            if target.exists():
                copy(target)
                remove(target, *rest, **options)

        with monkeypatch.context() as patched:
            for name in ("rename", "replace", "symlink"):
                patched.setattr(os, name, copying(getattr(os, name)))
            patched.setattr(shutil, "rmtree", removing)
            function()
        return copies

    return run


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making, resetting or stepping an environment fails."""
    import gymnasium
    import pettingzoo.utils

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("its needs declare no environment, and it made one")

    def below(base: type) -> Iterator[type]:
        yield base
        for each in base.__subclasses__():
            yield from below(each)

    monkeypatch.setattr(gymnasium, "make", refuse)
    for base in (gymnasium.Env, gymnasium.vector.VectorEnv, pettingzoo.AECEnv, pettingzoo.ParallelEnv):
        for each in set(below(base)):
            for name in ("reset", "step"):
                monkeypatch.setattr(each, name, refuse)


@pytest.fixture
def minari_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty Minari root of this test's own."""
    root = tmp_path / "minari"
    root.mkdir()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    return root


USER_ALGORITHM = '''
"""A user's own algorithm: behaviour cloning by a linear policy, every seed a row of one matrix."""
from dataclasses import dataclass

import torch

from herdbook.core.config import Config
from herdbook.core.distributions import Deterministic
from herdbook.core.needs import Needs
from herdbook.core.policy import FeedForwardPolicy, Scaling


@dataclass(frozen=True, kw_only=True)
class MineConfig(Config):
    lr: float = 0.1
    batch_size: int = 16
    fail_seed: int = -1  # its loss becomes NaN ...
    fail_step: int = 0  # ... at this update
    fail_weights: bool = False  # instead, this update leaves it NaN weights, its own loss being finite
    pause: float = 0.0  # seconds per update

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"expected batch_size >= 1, got {self.batch_size}")


class Mine:
    needs = Needs(data=True, actions="box")

    def __init__(self, config: MineConfig, spec, *, seeds=(0,), device="cpu"):
        self.config, self.seeds, self.updates = config, tuple(seeds), 0
        self.scaling = Scaling(spec, device=device)
        shape = (len(self.seeds), self.scaling.action_size, spec.observation_space.shape[0])
        self.weights = torch.zeros(shape)
        self.noise = [torch.Generator().manual_seed(seed) for seed in self.seeds]

    def sample(self, replay, generators):
        return replay.sample(self.config.batch_size, generators, discount=0.99)

    def update(self, batch):
        import time

        time.sleep(self.config.pause)
        self.updates += 1
        observations, actions = batch.observations, batch.actions
        if len(self.seeds) == 1:
            observations, actions = observations[None], actions[None]
        error = observations @ self.weights.mT - self.scaling.actions(actions)  # [S, B, A]
        jitter = torch.stack([torch.rand((), generator=g) for g in self.noise])
        self.weights -= self.config.lr * jitter[:, None, None] * error.mT @ observations / self.config.batch_size
        loss = error.square().mean((1, 2))
        if self.updates >= self.config.fail_step and self.config.fail_seed in self.seeds:
            failing = self.weights if self.config.fail_weights else loss
            failing[self.seeds.index(self.config.fail_seed)] = torch.nan
        delayed = {} if self.updates % 2 else {"weight": self.weights.abs().mean((1, 2))}  # every second update
        return {"loss/clone": loss} | delayed

    def policy(self, seed_index=0, *, deterministic=True):
        weights = self.weights[seed_index]
        return FeedForwardPolicy(self.scaling, lambda o: Deterministic((o @ weights.mT).clamp(-1, 1)))

    def state_dict(self):
        return {"weights": self.weights, "updates": self.updates, "noise": list(self.noise)}

    def load_state_dict(self, state):
        if state["weights"].shape != self.weights.shape:
            raise ValueError(f"expected weights {tuple(self.weights.shape)}, got {tuple(state['weights'].shape)}")
        self.weights.copy_(state["weights"])
        self.updates = state["updates"]
        for own, saved in zip(self.noise, state["noise"], strict=True):
            own.set_state(saved)
'''


@pytest.fixture
def user_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A module `user_code` in the working directory with a class `Mine`, its `MineConfig`, and `make_pendulum`."""
    own_environment = "\n\ndef make_pendulum(limit=20):\n    import gymnasium\n\n"
    own_environment += "    return gymnasium.make('Pendulum-v1', max_episode_steps=limit)\n"
    (tmp_path / "user_code.py").write_text(USER_ALGORITHM + own_environment)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("user_code", None)
    yield "user_code"
    sys.modules.pop("user_code", None)


@pytest.fixture(scope="session")
def small_dataset(session_minari_root: Path) -> str:
    """The id of a small Pendulum dataset of random actions: 6 episodes of 20 steps."""
    import gymnasium

    from herdbook.core.environments import EnvironmentSpec
    from herdbook.core.random_policy import RandomPolicy
    from herdbook.datasets.minari import write_minari
    from herdbook.evaluation.evaluate import evaluate

    environment = EnvironmentSpec(id="Pendulum-v1", max_episode_steps=20)
    space = gymnasium.make("Pendulum-v1").action_space
    episodes = evaluate(RandomPolicy(space), environment, 6, 0)
    write_minari(episodes, "tests/pendulum/random-v0", data_dir=session_minari_root)
    return "tests/pendulum/random-v0"
