"""Minari in and out: what plain Minari stores is read as it is, and what we write plain Minari opens."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer

from herdbook.core.environments import EnvironmentSpec, ReferenceScores
from herdbook.datasets.episodes import DataError, Episodes
from herdbook.datasets.minari import read_minari, write_minari
from herdbook.datasets.storage import list_minari

VECTOR = spaces.Box(-np.inf, np.inf, (2,), np.float64)
IMAGE = spaces.Box(0, 255, (6, 5, 3), np.uint8)
LARGE_IMAGE = spaces.Box(0, 255, (40, 32, 3), np.uint8)
ACTION = spaces.Box(-2, 2, (1,), np.float32)


def column(values: list[Any]) -> Any:
    """A list of observations as Minari's buffers want it: lists inside dicts and tuples."""
    if isinstance(values[0], dict):
        return {key: column([value[key] for value in values]) for key in values[0]}
    if isinstance(values[0], tuple):
        return tuple(column([value[i] for value in values]) for i in range(len(values[0])))
    return [np.asarray(value) for value in values]


def store(
    observation_space: spaces.Space[Any] = VECTOR,
    action_space: spaces.Space[Any] = ACTION,
    lengths: tuple[int, ...] = (3, 1, 4),
    dataset_id: str = "test/made-v0",
    **arguments: Any,
) -> list[EpisodeBuffer]:
    """A dataset that plain Minari writes; every second episode terminates."""
    observation_space.seed(0), action_space.seed(0)
    buffers = [
        EpisodeBuffer(
            id=number,
            seed=100 + number,
            observations=column([observation_space.sample() for _ in range(n + 1)]),
            actions=column([action_space.sample() for _ in range(n)]),
            rewards=list(np.arange(n) + number / 10),
            terminations=[False] * (n - 1) + [number % 2 == 0],
            truncations=[False] * (n - 1) + [number % 2 == 1],
        )
        for number, n in enumerate(lengths)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Minari warns of each piece of metadata that is not given
        minari.create_dataset_from_buffers(
            dataset_id, buffers, observation_space=observation_space, action_space=action_space, **arguments
        )
    return buffers


@pytest.mark.usefixtures("minari_root")
@pytest.mark.parametrize("action_space", [ACTION, spaces.Discrete(3, start=1)], ids=str)
@pytest.mark.parametrize("space", [VECTOR, spaces.Discrete(5), IMAGE], ids=str)
def test_what_minari_stores_is_read_as_it_is(space: Any, action_space: Any) -> None:
    buffers = store(space, action_space)
    data = read_minari("test/made-v0")
    assert data.lengths().tolist() == [3, 1, 4]
    np.testing.assert_array_equal(
        data.observations, np.concatenate([b.observations for b in buffers]).astype(data.observations.dtype)
    )
    np.testing.assert_array_equal(data.actions, np.concatenate([b.actions for b in buffers]))
    np.testing.assert_array_equal(data.rewards, np.concatenate([b.rewards for b in buffers]))
    assert np.flatnonzero(data.terminated).tolist() == [2, 7] and np.flatnonzero(data.truncated).tolist() == [3]
    assert [m["seed"] for m in data.episode_metadata] == [100, 101, 102]
    assert data.action_space == action_space and data.raw_observation_space == space


@pytest.mark.usefixtures("minari_root")
def test_dict_and_tuple_observations_are_flattened_by_gymnasiums_rule() -> None:
    space = spaces.Dict({"goal": VECTOR, "pair": spaces.Tuple((spaces.Discrete(3), VECTOR))})
    buffers = store(space)
    data = read_minari("test/made-v0")
    first = {"goal": buffers[0].observations["goal"][0], "pair": tuple(p[0] for p in buffers[0].observations["pair"])}
    np.testing.assert_allclose(data.observations[0], spaces.utils.flatten(space, first), rtol=1e-6)
    assert data.observation_space.shape == (7,)
    goals = read_minari("test/made-v0", observation_keys=["goal"])
    np.testing.assert_allclose(goals.observations, data.observations[:, :2])
    assert goals.observation_keys == ("goal",) and goals.raw_observation_space == space
    with pytest.raises(ValueError, match="no observation key 'gaol'"):
        read_minari("test/made-v0", observation_keys=["gaol"])


@pytest.mark.usefixtures("minari_root")
def test_large_images_are_jpeg_unless_we_write_them() -> None:
    """Minari >= 0.5.3 stores images of 32x32 and more as lossy JPEG; its own decoder reads them, we write them raw."""
    store(spaces.Dict({"camera": LARGE_IMAGE, "speed": VECTOR}), lengths=(2, 3))
    data = read_minari("test/made-v0")
    plain = minari.load_dataset("test/made-v0")
    np.testing.assert_array_equal(
        data.observations["camera"], np.concatenate([e.observations["camera"] for e in plain])
    )
    assert data.lengths().tolist() == [2, 3] and data.observations["speed"].shape == (7, 2)
    write_minari(data, "test/lossless-v0")
    again = read_minari("test/lossless-v0")
    assert again.fingerprint() == data.fingerprint()


@pytest.mark.usefixtures("minari_root")
def test_arrow_is_read_through_minari() -> None:
    pytest.importorskip("pyarrow")
    buffers = store(data_format="arrow")
    data = read_minari("test/made-v0")
    np.testing.assert_array_equal(data.rewards, np.concatenate([b.rewards for b in buffers]))
    np.testing.assert_array_equal(data.actions, np.concatenate([b.actions for b in buffers]))
    assert data.lengths().tolist() == [3, 1, 4]


@pytest.mark.usefixtures("minari_root")
@pytest.mark.parametrize(
    "space",
    [
        VECTOR,
        IMAGE,
        LARGE_IMAGE,
        spaces.Discrete(4, start=2),
        spaces.Box(-1, 1, (2, 2), np.float32),
        spaces.Dict({"b": VECTOR, "a": spaces.Tuple((spaces.MultiDiscrete([2, 3]), VECTOR))}),
        spaces.Dict({"camera": IMAGE, "arm": spaces.Dict({"eye": IMAGE, "angle": VECTOR})}),
    ],
    ids=str,
)
def test_any_episodes_round_trip_through_plain_minari(space: spaces.Space[Any]) -> None:
    store(space, jpeg_encoding=False)
    data = replace(
        read_minari("test/made-v0"),
        environment=EnvironmentSpec(id="CartPole-v1", max_episode_steps=7),
        reference_scores=ReferenceScores(-1.5, 20.0, "ours"),
        episode_metadata=tuple({"seed": i, "options": {"level": i, "name": "x"}} for i in range(3)),
    ).with_rewards(np.arange(8) / 3, "thirds")
    write_minari(data, "test/again-v2", author="herd", description="a copy", algorithm_name="random")
    again = read_minari("test/again-v2")
    assert again.fingerprint() == data.fingerprint()
    for name in ("observation_space", "action_space", "environment", "reference_scores", "episode_metadata"):
        if name != "environment":
            assert getattr(again, name) == getattr(data, name), name
    assert again.environment is not None and again.environment.max_episode_steps == 7
    assert again.transforms == ("rewards: thirds",) and again.source == "test/again-v2"
    plain = minari.load_dataset("test/again-v2")
    assert plain.total_steps == 8 and plain.storage.metadata["author"] == {"herd"}
    assert plain.spec.env_spec is not None and plain.spec.env_spec.id == "CartPole-v1"
    assert (plain.storage.metadata["ref_min_score"], plain.storage.metadata["ref_max_score"]) == (-1.5, 20.0)
    np.testing.assert_array_equal(plain[2].rewards, data.episode(2).rewards)
    assert [m["seed"] for m in plain.storage.get_episode_metadata(range(3))] == [0, 1, 2]
    assert space.contains(first_of(plain[1].observations, space))
    assert "test/again-v2" in minari.list_local_datasets()


def first_of(values: Any, space: spaces.Space[Any]) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: first_of(values[key], part) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(first_of(value, part) for value, part in zip(values, space.spaces, strict=True))
    return values[0]


@pytest.mark.usefixtures("minari_root")
def test_an_environment_comes_back() -> None:
    store(env="CartPole-v1", observation_space=gymnasium.make("CartPole-v1").observation_space, eval_env="Pendulum-v1")
    data = read_minari("test/made-v0")
    assert data.environment is not None and data.environment.id == "Pendulum-v1"  # the one to evaluate in


@pytest.mark.usefixtures("minari_root")
def test_a_chosen_part_is_written_as_that_part() -> None:
    store(spaces.Dict({"goal": VECTOR, "rest": IMAGE}))
    goals = read_minari("test/made-v0", observation_keys=["goal"])
    write_minari(goals, "test/goals-v0")
    again = read_minari("test/goals-v0")
    assert again.fingerprint() == goals.fingerprint()
    assert again.raw_observation_space == spaces.Dict({"goal": VECTOR})


def test_an_existing_or_malformed_id_is_refused(minari_root: Path) -> None:
    store()
    data = read_minari("test/made-v0")
    with pytest.raises(DataError, match="test/made-v0 exists at .*; choose another id"):
        write_minari(data, "test/made-v0")
    for bad in ("test/made", "test made-v0"):
        with pytest.raises(DataError, match="expected a Minari id such as"):
            write_minari(data, bad)
    with pytest.raises(DataError, match="subsampled steps cannot be stored"):
        write_minari(data.subsample(2), "test/masked-v0")
    assert list_minari() == ["test/made-v0"]


def test_an_interrupted_write_leaves_no_dataset(minari_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store()
    data = read_minari("test/made-v0")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("herdbook.datasets.storage._make_namespaces", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_minari(data, "test/half-v0")
    assert [p.name for p in minari_root.iterdir()] == ["test"]
    assert list_minari() == ["test/made-v0"]


def data_file(root: Path) -> Path:
    return root / "test" / "made-v0" / "data" / "main_data.hdf5"


@pytest.mark.parametrize("damage", ["truncated", "not HDF5", "empty", "missing"])
def test_corrupt_files_are_named(minari_root: Path, damage: str) -> None:
    store()
    path = data_file(minari_root)
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"truncated": content[: len(content) // 2], "not HDF5": b"hello", "empty": b""}[damage])
    with pytest.raises(DataError, match="main_data.hdf5: expected a Minari HDF5 file, but it is truncated"):
        read_minari("test/made-v0")


def stored_contiguously(root: Path) -> tuple[Path, dict[str, int]]:
    """The file of `test/made-v0` as we write it, and where in it the bytes of each of its arrays begin."""
    store(dataset_id="test/other-v0")
    write_minari(read_minari("test/other-v0"), "test/made-v0")
    with h5py.File(data_file(root)) as file:
        return data_file(root), {leaf.name: leaf.id.get_offset() for group in file.values() for leaf in group.values()}


@pytest.mark.parametrize("where", ["anywhere", "values"])
def test_flipped_bytes_are_an_error_or_valid_data(minari_root: Path, where: str) -> None:
    """Minari's HDF5 has no checksums: a flipped bit of a number is another number, and is read as one.

    Promised is a `DataError` and no other, or data that is whole: finite, inside its spaces, flags only where episodes
    end; and where values alone are damaged, of the same layout.
    """
    path, begins = stored_contiguously(minari_root)
    whole, content = read_minari("test/made-v0"), path.read_bytes()
    first = min(begins.values()) if where == "values" else 0
    generator, read = np.random.default_rng(0), 0
    for _ in range(25):
        broken = bytearray(content)
        for place in generator.integers(first, first + 100, 2) if first else generator.integers(0, len(content), 40):
            broken[place] ^= int(generator.integers(1, 256))
        path.write_bytes(broken)
        try:
            data = read_minari("test/made-v0")
        except DataError:
            continue
        read += 1
        assert len(data.observations) == data.num_steps + len(data)
        assert all(np.isfinite(values).all() for values in (data.observations, data.actions, data.rewards))
        assert (np.abs(data.actions) <= 2 + 1e-5).all()
        for flags in (data.terminated, data.truncated):
            assert set(flags.view(np.uint8)) <= {0, 1} and set(np.flatnonzero(flags)) <= set(data.offsets[1:] - 1)
        if first:
            assert data.offsets.tolist() == whole.offsets.tolist()
    assert (read > 5) == (where == "values")


def test_a_flag_that_is_neither_0_nor_1_is_refused(minari_root: Path) -> None:
    """HDF5 stores a bool as a byte and gives it back whatever it holds."""
    path, begins = stored_contiguously(minari_root)
    content = bytearray(path.read_bytes())
    content[begins["/episode_2/terminations"] + 3] = 5
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"expected terminations as booleans .*, got 5 at episode 2, step 3"):
        read_minari("test/made-v0")


@pytest.mark.parametrize(
    ("spaces_", "name", "change", "message"),
    [
        (
            (VECTOR, spaces.Discrete(3)),
            "actions",
            lambda v: v + 0.7,
            r"actions as whole numbers, got \d\.7 .* 1, step 0",
        ),
        (
            (VECTOR, ACTION),
            "terminations",
            lambda v: v * np.nan,
            "terminations as booleans .*, got nan at .* 1, step 0",
        ),
        ((VECTOR, ACTION), "truncations", lambda v: v + 2, "truncations as booleans .*, got 3 at episode 1, step 0"),
        ((IMAGE, ACTION), "observations", lambda v: v.astype(int) + 300, r"observations as .* in \[0, 255\], got"),
        (
            (IMAGE, ACTION),
            "observations",
            lambda v: v * 0 + 0.5,
            "observations as whole .*, got 0.5 at episode 1, step 0",
        ),
        ((spaces.Discrete(5), ACTION), "observations", lambda v: v + 0.5, "observations as whole numbers, got .*5 at"),
        (
            (spaces.Discrete(5), ACTION),
            "observations",
            lambda v: v * 0 + 5,
            r"observations in \[0, 4\] .* episode 1, s",
        ),
        (
            (spaces.Dict({"kind": spaces.Discrete(5), "x": VECTOR}), ACTION),
            "observations/kind",
            lambda v: v * 0 + 5,
            r"observations\['kind'\] in \[0, 4\] .*, got 5 at episode 1, step 0",
        ),
    ],
)
def test_stored_values_that_their_space_cannot_hold_are_refused(
    minari_root: Path, spaces_: Any, name: str, change: Any, message: str
) -> None:
    store(*spaces_)
    with h5py.File(data_file(minari_root), "a") as file:
        values = change(file[f"episode_1/{name}"][()])
        del file[f"episode_1/{name}"]
        file[f"episode_1/{name}"] = values
    with pytest.raises(DataError, match=f"test/made-v0: expected {message}"):
        read_minari("test/made-v0")


@pytest.mark.usefixtures("minari_root")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one, two: (one["actions"].append(one["actions"][0]), two["actions"].pop()), r"actions .* in episode 0"),
        (
            lambda one, two: two["rewards"].pop(),
            r"observations/camera of shape \(2, .* in episode 1 \(T\+1 for its T = 1",
        ),
        (lambda one, two: two["terminations"].pop(), r"terminations of shape \(2,\) in episode 1"),
        (lambda one, two: two["observations"].pop("speed"), "observations/speed in episode 1, got none"),
        (lambda one, two: two.pop("truncations"), "truncations in episode 1, got none"),
        (
            lambda one, two: two.update(truncations=[0, np.nan]),
            "truncations as booleans .*, got nan at episode 1, step 1",
        ),
    ],
)
def test_what_minari_decodes_is_checked_by_episode(monkeypatch: pytest.MonkeyPatch, change: Any, message: str) -> None:
    store(spaces.Dict({"camera": LARGE_IMAGE, "speed": VECTOR}), lengths=(2, 2))
    storage = type(minari.load_dataset("test/made-v0").storage)
    decode = storage.get_episodes

    def changed(self: Any, numbers: Any) -> list[Any]:
        episodes = [dict(episode) for episode in decode(self, numbers)]
        for episode in episodes:
            for name in ("actions", "rewards", "terminations", "truncations"):
                episode[name] = list(episode[name])
        change(*episodes)
        return episodes

    monkeypatch.setattr(storage, "get_episodes", changed)
    with pytest.raises(DataError, match=f"test/made-v0: expected {message}"):
        read_minari("test/made-v0")


def test_minari_validates_nothing(minari_root: Path) -> None:
    """T observations for T actions, NaN and a missing field go into Minari without a word; we name the episode."""
    for number, (name, change, message) in enumerate(
        [
            ("observations", lambda v: v[:-1], r"observations of shape \(4, 2\) in episode 0 \(T\+1 for its T = 3 rew"),
            ("actions", lambda v: v[:-1], r"actions of shape \(3, 1\) in episode 0 \(T for its T = 3 rewards\), got"),
            ("rewards", lambda v: np.full_like(v, np.nan), "expected finite rewards, got nan at episode 0, step 0"),
            ("actions", lambda v: v + 9, r"expected actions in \[-2, 2\]"),
            ("terminations", lambda v: ~np.zeros_like(v), "terminated is set inside episode 0, at step 0 of 3"),
            ("truncations", lambda v: None, "lacks a field"),
        ]
    ):
        dataset_id = f"test/bad-v{number}"
        store(dataset_id=dataset_id)
        with h5py.File(minari_root / dataset_id / "data" / "main_data.hdf5", "a") as file:
            group = file["episode_0"]
            values = change(group[name][()])
            del group[name]
            if values is not None:
                group[name] = values
        with pytest.raises(DataError, match=message):
            read_minari(dataset_id)


def test_flags_stored_as_integers_and_rewards_as_float32_are_read(minari_root: Path) -> None:
    store()
    with h5py.File(data_file(minari_root), "a") as file:
        for number in range(3):
            for name, dtype in (("terminations", np.int64), ("rewards", np.float32)):
                values = file[f"episode_{number}/{name}"][()].astype(dtype)
                del file[f"episode_{number}/{name}"]
                file[f"episode_{number}/{name}"] = values
    data = read_minari("test/made-v0")
    assert np.flatnonzero(data.terminated).tolist() == [2, 7] and data.rewards.dtype == np.float64


def edit(root: Path, **values: Any) -> None:
    path = root / "test" / "made-v0" / "data" / "metadata.json"
    metadata = json.loads(path.read_text())
    metadata.update(values)
    path.write_text(json.dumps({k: v for k, v in metadata.items() if v is not None}))


def test_reference_scores_of_d4rl_are_labelled_a_convention(minari_root: Path) -> None:
    """`mujoco/*-v0` carries no reference scores: D4RL's are taken, and said to be."""
    store(env="CartPole-v1", observation_space=VECTOR)
    edit(minari_root, env_spec='{"id": "Hopper-v5"}')
    scores = read_minari("test/made-v0").reference_scores
    assert scores is not None and (scores.minimum, scores.maximum) == (-20.272305, 3234.3)
    assert "convention" in scores.source and "Hopper-v5" in scores.source
    edit(minari_root, ref_min_score=1.0, ref_max_score=2.0)
    scores = read_minari("test/made-v0").reference_scores
    assert scores == ReferenceScores(1.0, 2.0, "recorded in test/made-v0")
    edit(minari_root, ref_min_score=3.0)
    with pytest.raises(DataError, match="minimum < maximum"):
        read_minari("test/made-v0")


def test_spaces_that_are_not_stored_come_from_the_environment(minari_root: Path) -> None:
    env = gymnasium.make("CartPole-v1")
    store(env.observation_space, env.action_space, env="CartPole-v1")
    edit(minari_root, observation_space=None, action_space=None)
    assert read_minari("test/made-v0").action_space == spaces.Discrete(2)
    edit(minari_root, env_spec='{"id": "Nowhere-v0"}')
    with pytest.raises(DataError, match="does not hold both spaces, and .*Nowhere-v0"):
        read_minari("test/made-v0")
    edit(minari_root, env_spec=None)
    with pytest.raises(DataError, match="neither both spaces nor an environment"):
        read_minari("test/made-v0")


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize(
    "spec",
    [
        {"id": "os:system", "kwargs": {"command": "touch executed"}},
        {"id": "CartPole-v1", "entry_point": "os:system", "kwargs": {"command": "touch executed"}},
        {"id": "Own-v0", "entry_point": "os:system", "kwargs": {"command": "touch executed"}},
        {"id": "os:system", "kwargs": 7},
    ],
    ids=str,
)
def test_code_that_a_file_names_is_not_executed(minari_root: Path, spec: dict[str, Any], image: bool) -> None:
    """Nor by Minari's reader, which makes the environment of env_spec where spaces are missing."""
    store(LARGE_IMAGE if image else VECTOR)
    filled = {"additional_wrappers": [], "vector_entry_point": None, **spec}
    edit(minari_root, action_space=None, env_spec=json.dumps(filled))
    edit(minari_root, eval_env_spec='{"id": "CartPole-v1"}' if image else None)
    with pytest.raises(DataError, match="test/made-v0: "):
        read_minari("test/made-v0")
    assert not list(Path.cwd().glob("executed"))


def test_unreadable_metadata(minari_root: Path) -> None:
    store()
    path = minari_root / "test" / "made-v0" / "data" / "metadata.json"
    path.write_text("{")
    with pytest.raises(DataError, match="metadata.json: expected a Minari dataset's metadata as JSON"):
        read_minari("test/made-v0")
    with pytest.raises(DataError, match="no Minari dataset there"):
        read_minari("test/absent-v0")


def test_loading_200k_steps_is_lean(minari_root: Path) -> None:
    """At most 1.2 times the bytes of the raw arrays; how long it takes is for benchmarks/loading.py."""
    steps, episodes = 200_000, 400
    generator = np.random.default_rng(0)
    flags = np.zeros(steps, dtype=np.bool_)
    flags[steps // episodes - 1 :: steps // episodes] = True
    data = Episodes(
        observations=generator.standard_normal((steps + episodes, 11), dtype=np.float32),
        actions=generator.uniform(-1, 1, (steps, 3)).astype(np.float32),
        rewards=generator.standard_normal(steps),
        terminated=flags,
        truncated=np.zeros_like(flags),
        offsets=np.arange(episodes + 1) * (steps // episodes),
        observation_space=spaces.Box(-np.inf, np.inf, (11,), np.float32),
        action_space=spaces.Box(-1, 1, (3,), np.float32),
    )
    folder = write_minari(data, "test/large-v0")
    with h5py.File(folder / "data" / "main_data.hdf5") as file:
        raw = sum(leaf.nbytes for group in file.values() for leaf in group.values())
    loaded = read_minari("test/large-v0")
    assert loaded.nbytes <= 1.2 * raw
    assert loaded.fingerprint() == data.fingerprint()


@pytest.mark.parametrize(
    ("name", "steps", "mean_return"),
    [("hopper/medium", 200_063, 807.3), ("cartpole/mixed", 30_513, 79.5), ("pendulum/mixed", 40_000, -484.7)],
)
def test_real_datasets(shared_data: Path, name: str, steps: int, mean_return: float) -> None:
    data = read_minari(f"rlzoo/{name}-v0", data_dir=shared_data)
    assert data.num_steps == steps
    assert data.returns().mean() == pytest.approx(mean_return, abs=0.05)
    plain = minari.MinariDataset(shared_data / "rlzoo" / f"{name}-v0" / "data")
    for number in (0, len(data) // 2, len(data) - 1):
        one, episode = data.episode(number), plain[number]
        np.testing.assert_array_equal(one.observations, episode.observations)
        np.testing.assert_array_equal(one.rewards, episode.rewards)
