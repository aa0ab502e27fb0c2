"""Datasets by name: what is found, what is made, and what an unknown name is answered."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pytest

from herdbook.core.environments import EnvironmentSpec, ReferenceScores
from herdbook.datasets.arrays import from_arrays
from herdbook.datasets.episodes import DataError, Episodes
from herdbook.datasets.load import dataset_roots, find_dataset, list_datasets, load_dataset
from herdbook.datasets.minari import write_minari
from herdbook.datasets.recipes import registry
from herdbook.datasets.recipes.recipe import Recipe


def small(reward: float = 0.0) -> Episodes:
    return from_arrays(np.zeros((3, 2)), np.zeros((2, 1)), [reward, reward], [False, True], [False, False])


class Hub:
    """The session of huggingface_hub."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.asked = error, 0

    def head(self, url: str, *, timeout: float) -> None:
        assert url.startswith("https://") and timeout <= 5
        self.asked += 1
        if self.error is not None:
            raise self.error


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub()
    monkeypatch.setattr("huggingface_hub.get_session", lambda: found)
    monkeypatch.delenv("MINARI_REMOTE", raising=False)
    return found


@pytest.fixture(autouse=True)
def _own_roots(minari_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_ids_of_this_machine_and_their_versions(minari_root: Path) -> None:
    for version in (0, 2, 10):
        write_minari(small(version), f"lab/maze/walk-v{version}")
    assert list_datasets() == ["lab/maze/walk-v0", "lab/maze/walk-v10", "lab/maze/walk-v2"]
    assert load_dataset("lab/maze/walk-v2").rewards[0] == 2
    assert load_dataset("lab/maze/walk").rewards[0] == 10  # the newest
    assert load_dataset(minari_root / "lab/maze/walk-v0").rewards[0] == 0
    assert load_dataset(minari_root / "lab/maze/walk-v0" / "data").rewards[0] == 0


def test_data_dir_overrides_the_minari_root(tmp_path: Path, minari_root: Path) -> None:
    write_minari(small(1), "lab/walk-v0")
    write_minari(small(2), "lab/walk-v0", data_dir=tmp_path / "other")
    assert load_dataset("lab/walk-v0").rewards[0] == 1
    assert load_dataset("lab/walk-v0", data_dir=tmp_path / "other").rewards[0] == 2
    assert find_dataset("lab/walk-v0", data_dir=tmp_path / "third") is None
    assert dataset_roots() == [minari_root, tmp_path / "cache" / "herdbook" / "datasets"]


def test_an_unknown_dataset_names_the_nearest() -> None:
    write_minari(small(), "lab/maze/walk-v0")
    with pytest.raises(DataError, match="did you mean 'lab/maze/walk-v0'"):
        load_dataset("lab/maze/wlak-v0", download=False)
    with pytest.raises(DataError, match="did you mean 'classic/pendulum'"):
        load_dataset("clasic/pendulum")
    with pytest.raises(DataError, match="an id ends in its version, as in nowhere-v0"):
        load_dataset("nowhere")


def test_without_a_network_the_hub_is_asked_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client tries five times, for half a minute."""
    asked: list[str] = []
    monkeypatch.setattr(minari, "download_dataset", asked.append)
    hub.error = ConnectionError("name not known")
    with pytest.raises(DataError, match=r"did you mean 'classic/pendulum'.* \(ConnectionError: name not known\)"):
        load_dataset("clasic/pendulum-v0")
    assert hub.asked == 1 and asked == []
    monkeypatch.setenv("MINARI_REMOTE", "gs://elsewhere")  # another host's network is its client's
    with pytest.raises(DataError, match="cannot be downloaded"):
        load_dataset("clasic/pendulum-v0")
    assert hub.asked == 1 and asked == ["clasic/pendulum-v0"]


@pytest.mark.usefixtures("hub")
def test_no_network_says_how_to_make_or_place_one(minari_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(_: str) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(minari, "download_dataset", offline)
    with pytest.raises(DataError) as caught:
        load_dataset("D4RL/pointmaze/umaze-v2")
    text = str(caught.value)
    assert "cannot be downloaded (ConnectionError: no route to host)" in text
    assert f"copy the dataset's folder to {minari_root}/D4RL/pointmaze/umaze-v2" in text
    assert "classic/pendulum" in text
    assert os.environ["MINARI_DATASETS_PATH"] == str(minari_root)
    assert list(minari_root.iterdir()) == []


@pytest.mark.usefixtures("hub")
def test_a_download_arrives_whole(minari_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minari, "download_dataset", lambda name: write_minari(small(7), name))
    assert load_dataset("far/away-v1").rewards[0] == 7
    assert list_datasets() == ["far/away-v1"]


class Counted:
    """A recipe whose making is counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: bool = False) -> None:
        self.made = 0
        recipe = Recipe(
            id="herdbook/tiny/walk-v0",
            description="two steps",
            environment=EnvironmentSpec(id="CartPole-v1"),
            behaviours=tuple,
            reference_scores=ReferenceScores(0, 1, "ours"),
        )

        def make(_: Any, folder: Path | None) -> Episodes:
            self.made += 1
            if fails:
                raise KeyboardInterrupt
            return small(5)

        monkeypatch.setattr(Recipe, "make", make)
        monkeypatch.setattr(registry, "RECIPES", {recipe.id: recipe})


def test_a_recipe_is_made_on_first_use_and_stored_as_a_minari_dataset(
    minari_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Counted(monkeypatch)
    for name in ("tiny/walk", "herdbook/tiny/walk-v0"):
        data = load_dataset(name)
        assert data.rewards[0] == 5 and data.source == "herdbook/tiny/walk-v0"
    assert recipe.made == 1
    assert minari.load_dataset("herdbook/tiny/walk-v0").storage.metadata["description"] == "two steps"


def test_an_interrupted_make_leaves_no_half_dataset(minari_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Counted(monkeypatch, fails=True)
    with pytest.raises(KeyboardInterrupt):
        load_dataset("tiny/walk")
    assert list_datasets() == []


def test_recipes_go_to_the_cache_where_the_minari_root_is_read_only(
    minari_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Counted(monkeypatch)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != minari_root and access(path, mode))
    load_dataset("tiny/walk")
    load_dataset("tiny/walk")
    assert recipe.made == 1 and list(minari_root.iterdir()) == []
    assert (tmp_path / "cache/herdbook/datasets/herdbook/tiny/walk-v0/data/metadata.json").is_file()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(DataError, match="expected a writable folder among"):
        load_dataset("tiny/walk", data_dir=tmp_path / "elsewhere")
