"""Many agents in Minari: what we write plain Minari opens, and it reads back to the bit."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer

from herdbook.core.environments import EnvironmentSpec, ReferenceScores
from herdbook.core.joint.types import JointEpisode, JointSpec
from herdbook.core.spaces import flatten
from herdbook.datasets.episodes import DataError, Episodes
from herdbook.datasets.joint.episodes import JointEpisodes
from herdbook.datasets.joint.minari import read_joint, save_joint
from herdbook.datasets.load import load_dataset
from herdbook.datasets.minari import read_minari, write_minari
from herdbook.datasets.storage import JOINT

VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float64)
LARGE_IMAGE = spaces.Box(0, 255, (36, 32, 3), np.uint8)
UNSORTED = spaces.Dict([("wheel", spaces.MultiDiscrete([2, 3])), ("arm", VECTOR)])

CREW = tuple(f"agent_{i}" for i in range(11))
ELEVEN = JointSpec(
    agents=CREW,
    observation_spaces=dict.fromkeys(CREW, VECTOR),
    action_spaces=dict.fromkeys(CREW, spaces.Discrete(5)),
    state_space=spaces.Box(-np.inf, np.inf, (33,), np.float32),
)
SPEAKER = JointSpec(  # its agents are not in the order of the alphabet
    agents=("speaker_0", "listener_0"),
    observation_spaces={
        "speaker_0": spaces.Box(-np.inf, np.inf, (3,)),
        "listener_0": spaces.Box(-np.inf, np.inf, (11,)),
    },
    action_spaces={"speaker_0": spaces.Discrete(3), "listener_0": spaces.Discrete(5)},
    state_space=spaces.Box(-np.inf, np.inf, (14,), np.float32),
)
MIXED = JointSpec(
    agents=("scout", "camera_b", "camera_a", "rover", "table"),
    observation_spaces={
        "scout": UNSORTED,
        "camera_b": spaces.Dict({"eye": LARGE_IMAGE, "pose": spaces.Tuple((VECTOR, spaces.Discrete(3, start=1)))}),
        "camera_a": LARGE_IMAGE,
        "rover": UNSORTED,
        "table": spaces.Discrete(4, start=2),
    },
    action_spaces={
        "scout": spaces.Discrete(4, start=1),
        "camera_b": spaces.Box(-1, 1, (2, 2), np.float64),
        "camera_a": spaces.Box(0.5, 2, (1,), np.float32),
        "rover": spaces.Discrete(4, start=1),
        "table": spaces.Discrete(2),
    },
    state_space=spaces.Dict({"map": LARGE_IMAGE, "time": spaces.Box(0, 1, (1,), np.float32)}),
    masked=True,
    turn_based=True,
)


def play(spec: JointSpec, acts: Any, seed: int, state: bool = True) -> JointEpisode:
    """Random values of the agents' own spaces where they are present; every second agent terminates."""
    acts = np.asarray(acts, dtype=bool)
    length, generator = len(acts), np.random.default_rng(seed)
    alive = np.concatenate([acts, np.zeros_like(acts[:1])])
    present = alive.copy()
    present[1:] |= acts
    last = (np.arange(length)[:, None] == [np.flatnonzero(column).max(initial=-1) for column in acts.T]) & acts
    terminates = np.arange(len(spec.agents)) % 2 == 0
    observations, actions, masks = {}, {}, {}
    for kind in spec.kinds:
        seen, taken, legal = [], [], []
        for agent in kind.agents:
            number, space = spec.index[agent], spec.observation_spaces[agent]
            space.seed(int(generator.integers(2**31)))
            kind.action_space.seed(int(generator.integers(2**31)))
            rows = [flatten(space, space.sample()) for _ in range(length + 1)]
            seen.append(where_present(rows, present[:, number]))
            moves = np.stack([kind.action_space.sample() for _ in range(length)])
            taken.append(where_present(list(moves), acts[:, number]))
            if isinstance(kind.action_space, spaces.Discrete):
                mask = generator.integers(0, 2, (length + 1, int(kind.action_space.n))).astype(bool)
                mask[np.arange(length), moves - kind.action_space.start] = True
                legal.append(mask | ~alive[:, [number]])
        observations[kind.name] = together(seen)
        actions[kind.name] = np.stack(taken, axis=1)
        if legal:
            masks[kind.name] = np.stack(legal, axis=1)
    moments = [spec.state_space.sample() for _ in range(length + 1)] if state and spec.state_space else None
    return JointEpisode(
        observations=observations,
        actions=actions,
        rewards=generator.normal(size=acts.shape) * acts,
        terminated=last & terminates,
        truncated=last & ~terminates,
        alive=alive,
        action_mask=masks if spec.masked else None,
        state=None if moments is None else where_present(moments, np.ones(length + 1, bool)),
        metadata={"seed": seed, "options": {"level": 3}},
    )


def where_present(rows: list[Any], present: Any) -> Any:
    if isinstance(rows[0], dict):
        return {key: where_present([row[key] for row in rows], present) for key in rows[0]}
    array = np.stack(rows)
    return array * present.reshape(-1, *(1,) * (array.ndim - 1)).astype(array.dtype)


def together(agents: list[Any]) -> Any:
    if isinstance(agents[0], dict):
        return {key: together([agent[key] for agent in agents]) for key in agents[0]}
    return np.stack(agents, axis=1)


def make(spec: JointSpec = SPEAKER, state: bool = True, **fields: Any) -> JointEpisodes:
    """Three episodes; where there are more than two agents, some leave early, join late, or never take part."""
    count = len(spec.agents)
    full = np.ones((3, count))
    dying, late = full[:2].copy(), full.copy()
    if count > 2:
        dying[1, :2] = 0
        late[0, 1:3] = 0
        late[:, -1] = 0
    episodes = [play(spec, acts, seed, state) for seed, acts in enumerate((full, dying, late))]
    return JointEpisodes.from_episodes(
        episodes,
        spec,
        **{
            "environment": EnvironmentSpec(id="mpe2/simple_speaker_listener_v4", kwargs={"max_cycles": 25}),
            "packages": {"mpe2": "1.1.1", "pettingzoo": "1.27.0"},
            "reference_scores": ReferenceScores(-80.0, -16.0, "our own"),
            **fields,
        },
    )


@pytest.mark.usefixtures("minari_root")
@pytest.mark.parametrize("state", [True, False], ids=["state", "no state"])
@pytest.mark.parametrize("spec", [ELEVEN, SPEAKER, MIXED], ids=["eleven", "speaker", "mixed"])
def test_round_trip_to_the_bit(spec: JointSpec, state: bool) -> None:
    data = make(spec, state)
    folder = save_joint(data, "test/many-v0", author="herd", description="many")
    again = load_dataset("test/many-v0")
    assert isinstance(again, JointEpisodes)
    assert again.fingerprint() == data.fingerprint()
    assert again.spec == spec and again.spec.agents == spec.agents and again.spec.kinds == spec.kinds
    for name in ("environment", "packages", "reference_scores", "episode_metadata"):
        assert getattr(again, name) == getattr(data, name), name
    assert again.source == "test/many-v0" and (again.state is None) == (not state)
    for kind in spec.kinds:
        assert again.actions[kind.name].dtype == data.actions[kind.name].dtype
    assert folder.name == "many-v0" and load_dataset(folder).fingerprint() == data.fingerprint()


@pytest.mark.usefixtures("minari_root")
def test_agents_come_back_in_the_environments_order() -> None:
    """gymnasium.spaces.Dict sorts its keys, in Minari too: agent_10 before agent_2, listener before speaker."""
    for spec in (ELEVEN, SPEAKER):
        data = replace(make(spec), rewards=np.arange(8.0 * len(spec.agents)).reshape(8, -1))
        save_joint(data, f"test/{spec.agents[0]}-v0")
        plain = minari.load_dataset(f"test/{spec.agents[0]}-v0")
        assert list(plain.observation_space.spaces) == sorted(spec.agents) != list(spec.agents)
        again = read_joint(f"test/{spec.agents[0]}-v0")
        assert again.spec.agents == spec.agents
        assert again.rewards[0].tolist() == list(range(len(spec.agents)))


@pytest.mark.usefixtures("minari_root")
def test_parts_of_an_observation_keep_their_order() -> None:
    """A Dict that is not in the order of the alphabet: read sorted, the columns of its flat vector would move."""
    save_joint(make(MIXED), "test/mixed-v0")
    read = read_joint("test/mixed-v0").spec.observation_spaces["scout"]
    assert isinstance(read, spaces.Dict) and list(read.spaces) == ["wheel", "arm"]
    flat = spaces.Box(-np.inf, np.inf, (8,), np.float32)
    rows = np.array([[1, 0, 0, 1, 0, 0.5, 1.5, 2.5], [0, 1, 1, 0, 0, 3.5, 4.5, 5.5]], np.float32)
    single = Episodes(
        observations=rows,
        actions=np.zeros((1, 1)),
        rewards=[0],
        terminated=[True],
        truncated=[False],
        offsets=[0, 1],
        observation_space=flat,
        action_space=spaces.Box(-1, 1, (1,)),
        raw_observation_space=UNSORTED,
    )
    write_minari(single, "test/single-v0")
    assert read_minari("test/single-v0").observations.tolist() == rows.tolist()


PLAIN = """
import sys, json
import minari, numpy as np

dataset = minari.load_dataset("test/plain-v0")
episodes = list(dataset.iterate_episodes())
episode = episodes[1]
own = {agent: space.dtype for agent, space in dataset.observation_space.spaces.items()}
print(json.dumps({
    "herdbook": "herdbook" in sys.modules,
    "steps": [dataset.total_episodes, dataset.total_steps, [len(e.rewards) for e in episodes]],
    "agents": dataset.storage.metadata["herdbook_many_agents"]["agents"],
    "inside": all(
        dataset.observation_space.contains(
            {a: np.asarray(rows[t], own[a]) for a, rows in e.observations.items()}
        ) and (t == len(e.rewards) or dataset.action_space.contains({a: rows[t] for a, rows in e.actions.items()}))
        for e in episodes for t in range(len(e.rewards) + 1)
    ),
    "rewards": episode.rewards.tolist(),
    "team": np.sum(list(episode.infos["rewards"].values()), axis=0).tolist(),
    "rows": {key: sorted({len(v) for v in (part.values() if isinstance(part, dict) else [part])})
             for key, part in episode.infos.items()},
    "ends": [[bool(e.terminations[-1]), bool(e.truncations[-1])] for e in episodes],
    "alive": episode.infos["alive"]["speaker_0"].tolist(),
    "sampled": len(dataset.sample_episodes(2)),
    "filtered": dataset.filter_episodes(lambda e: len(e.rewards) == 3).total_episodes,
}))
"""


def test_plain_minari_opens_it_without_herdbook(minari_root: Path) -> None:
    data = make(SPEAKER)
    save_joint(data, "test/plain-v0")
    ran = subprocess.run([sys.executable, "-c", PLAIN], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert not told["herdbook"] and told["inside"]
    assert told["steps"] == [3, 8, [3, 2, 3]]
    assert told["agents"] == ["speaker_0", "listener_0"]
    assert told["rewards"] == data.rewards[3:5].sum(1).tolist()
    assert told["team"] == [0.0, *told["rewards"]]
    assert told["rows"] == {key: [3] for key in ("alive", "rewards", "terminations", "truncations", "state")}
    assert told["ends"] == [[False, True]] * 3  # the listener was only cut off
    assert told["alive"] == [True, True, False]
    assert (told["sampled"], told["filtered"]) == (2, 2)


@pytest.mark.usefixtures("minari_root")
def test_what_plain_minari_writes_in_this_form_is_read() -> None:
    """With its own buffers, lossy images and `update_metadata`; also a dataset that Minari changed afterwards."""
    data = make(MIXED)
    save_joint(data, "test/ours-v0")
    ours = minari.load_dataset("test/ours-v0")
    buffers = [
        EpisodeBuffer(
            id=number,
            observations=listed(episode.observations),
            actions=listed(episode.actions),
            rewards=list(episode.rewards),
            terminations=list(episode.terminations),
            truncations=list(episode.truncations),
            infos=listed(episode.infos),
        )
        for number, episode in enumerate(ours.iterate_episodes())
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Minari warns of each piece of metadata that is not given
        theirs = minari.create_dataset_from_buffers(
            "test/theirs-v0", buffers, observation_space=ours.observation_space, action_space=ours.action_space
        )
    theirs.storage.update_metadata({JOINT: ours.storage.metadata[JOINT]})
    read = load_dataset("test/theirs-v0")
    assert isinstance(read, JointEpisodes) and read.spec.agents == MIXED.agents
    decoded = next(theirs.iterate_episodes()).observations["camera_a"]
    np.testing.assert_array_equal(read.episode(0).observations["camera_a"][:, 0], decoded)
    np.testing.assert_array_equal(read.state["map"], data.state["map"])  # infos are stored as they are
    for name in ("rewards", "terminated", "truncated", "alive"):
        np.testing.assert_array_equal(getattr(read, name), getattr(data, name))
    np.testing.assert_array_equal(read.action_mask["scout"], data.action_mask["scout"])


def listed(values: Any) -> Any:
    """As Minari's buffers want it: lists inside dicts and tuples."""
    if isinstance(values, dict):
        return {key: listed(part) for key, part in values.items()}
    return tuple(map(listed, values)) if isinstance(values, tuple) else list(values)


@pytest.mark.usefixtures("minari_root")
def test_large_images_are_stored_without_loss() -> None:
    """Minari >= 0.5.3 stores images of 32x32 and more as lossy JPEG by default."""
    data = make(MIXED)
    save_joint(data, "test/images-v0")
    plain = minari.load_dataset("test/images-v0")
    np.testing.assert_array_equal(plain[1].observations["camera_a"], data.episode(1).observations["camera_a"][:, 0])


@pytest.mark.usefixtures("minari_root")
def test_reading_makes_no_environment_and_imports_no_code_that_a_file_names(tmp_path: Path) -> None:
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    for name in ("nowhere/unheard_of_v0", "trap:make", "trap/make_v0"):
        data = make(SPEAKER, environment=EnvironmentSpec(id=name, kwargs={"n": 3}, max_episode_steps=7))
        save_joint(data, "test/trap-v0")
        assert load_dataset("test/trap-v0").environment == data.environment
        minari.delete_dataset("test/trap-v0")
    assert "trap" not in sys.modules


@pytest.mark.usefixtures("minari_root")
def test_one_agents_and_many_agents_data_are_told_apart() -> None:
    save_joint(make(SPEAKER), "test/many-v3")
    assert isinstance(load_dataset("test/many"), JointEpisodes)  # the newest version
    with pytest.raises(DataError, match="test/many-v3: expected a dataset of one agent, got one of many"):
        read_minari("test/many-v3")
    with pytest.raises(DataError, match="expected no observation_keys, which are for one agent"):
        load_dataset("test/many-v3", observation_keys=["x"])
    single = Episodes.from_episodes(
        [
            {
                "observations": np.zeros((2, 1)),
                "actions": np.zeros((1, 1)),
                "rewards": [0],
                "terminated": 1,
                "truncated": 0,
            }
        ],
        observation_space=spaces.Box(-1, 1, (1,)),
        action_space=spaces.Box(-1, 1, (1,)),
    )
    write_minari(single, "test/one-v0")
    assert isinstance(load_dataset("test/one-v0"), Episodes)
    with pytest.raises(DataError, match=f"test/one-v0: expected {JOINT} in metadata.json, as datasets of many agents"):
        read_joint("test/one-v0")


def test_what_cannot_be_written_leaves_nothing_behind(minari_root: Path) -> None:
    data = make(SPEAKER)
    for bad in ("test/many", "test many-v0"):
        with pytest.raises(DataError, match="expected a Minari id such as"):
            save_joint(data, bad)
    with pytest.raises(DataError, match="expected JSON values as the environment's arguments: .*ndarray"):
        save_joint(replace(data, environment=EnvironmentSpec(id="x", kwargs={"map": np.zeros(2)})), "test/many-v0")
    team = ("a/b",)
    spec = JointSpec(agents=team, observation_spaces={"a/b": VECTOR}, action_spaces={"a/b": spaces.Discrete(2)})
    with pytest.raises(DataError, match=r"expected agent names without a slash, got \['a/b'\]"):
        save_joint(make(spec), "test/many-v0")
    assert list(minari_root.iterdir()) == []
    save_joint(data, "test/many-v0")
    with pytest.raises(DataError, match="test/many-v0 exists at .*; choose another id"):
        save_joint(data, "test/many-v0")


def edit(root: Path, change: Callable[[Any], Any]) -> None:
    path = root / "test" / "many-v0" / "data" / "metadata.json"
    metadata = json.loads(path.read_text())
    metadata[JOINT] = change(metadata[JOINT])
    path.write_text(json.dumps(metadata))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: None, f"expected {JOINT} in metadata.json, .* got none"),
        (lambda r: [1], f"expected {JOINT} in metadata.json, .* got list"),
        (lambda r: {**r, "format": 2}, f"expected format 1 of {JOINT} in metadata.json, got 2; a newer herdbook"),
        (lambda r: {k: v for k, v in r.items() if k != "masked"}, rf"expected {JOINT} .* with \['agents'.*'masked'"),
        (lambda r: {**r, "colour": 1}, "got .*'colour'"),
        (lambda r: {**r, "turn_based": "no"}, rf"expected bool as {JOINT}\['turn_based'\] in metadata.json, got 'no'"),
        (lambda r: {**r, "agents": [1, 2]}, rf"expected text in {JOINT}\['agents'\] in metadata.json, got \[1, 2\]"),
        (lambda r: {**r, "packages": {"mpe2": 1}}, rf"expected text in {JOINT}\['packages'\]"),
        (lambda r: {**r, "agents": ["speaker_0"]}, r"a Dict of the agents \['speaker_0'\] as observation_space, got"),
        (lambda r: {**r, "agents": ["speaker_0", "listener_0"] * 2}, "expected distinct agents"),
        (lambda r: {**r, "state_space": None}, "'state_space'.* as it has the state, got none"),
        (lambda r: {**r, "state_space": "{"}, "cannot read the spaces in metadata.json"),
        (lambda r: {**r, "environment": {"id": "x"}}, rf"expected {JOINT}\['environment'\] in metadata.json with"),
        (
            lambda r: {**r, "environment": {**r["environment"], "kwargs": 3}},
            rf"expected dict as {JOINT}\['environment'\]\['kwargs'\] in metadata.json, got 3",
        ),
        (lambda r: {**r, "masked": True}, "infos/action_mask|lacks a field"),
    ],
)
def test_unknown_or_damaged_metadata_is_an_error_that_says_which(
    minari_root: Path, change: Callable[[Any], Any], message: str
) -> None:
    save_joint(make(SPEAKER), "test/many-v0")
    edit(minari_root, change)
    with pytest.raises(DataError, match=message):
        load_dataset("test/many-v0")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("rewards", lambda v: v + 1, "rewards that are the sum of infos/rewards over the agents, .* episode 1, step 0"),
        ("infos/rewards/table", lambda v: v + 1, "zero in the first row of infos/rewards/table, .* in episode 1"),
        ("infos/terminations/scout", lambda v: ~v, "zero in the first row of infos/terminations/scout, got True in"),
        ("infos/alive/rover", lambda v: v[:-1], r"infos/alive/rover of shape \(3,\) in episode 1 \(T\+1 for its T = 2"),
        ("infos/alive/rover", lambda v: ~v, "no agent to act at the last row of episode 1, .* but rover is alive"),
        ("infos/action_mask/scout", lambda v: v & False, "a legal action in action_mask of scout at .* 1"),
        ("infos/state/time", lambda v: v * np.nan, r"finite state\['time'\], got nan at episode 1, step 0"),
        ("observations/table", lambda v: v * 0 + 9, r"observations of table in \[2, 5\] .* first at episode 1, step 0"),
        ("observations/camera_b/pose/_index_0", lambda v: v * np.nan, "observations of camera_b.*, got nan"),
        ("observations/rover/wheel", lambda v: v + 7, r"observations of rover\['wheel'\] in .* at episode 1, step 0"),
        ("actions/rover", lambda v: v + 8, r"actions of rover in \[1, 4\] .* first at episode 1, step 0"),
        ("actions/scout", lambda v: v + 8, "1 as actions of scout at episode 1, step 1, an absent agent, got 9"),
        ("actions/camera_b", lambda v: v * 9, r"actions of camera_b in \[-1, 1\]"),
        ("actions/camera_a", lambda v: v[:, 0], r"actions/camera_a of shape \(2, 1\) in episode 1 .* got \(2,\)"),
        ("infos/truncations/table", lambda v: None, "lacks a field"),
    ],
)
def test_damaged_data_is_an_error_that_names_field_agent_and_episode(
    minari_root: Path, name: str, change: Callable[[Any], Any], message: str
) -> None:
    save_joint(make(MIXED), "test/many-v0")
    with h5py.File(minari_root / "test" / "many-v0" / "data" / "main_data.hdf5", "a") as file:
        values = change(file[f"episode_1/{name}"][()])
        del file[f"episode_1/{name}"]
        if values is not None:
            file[f"episode_1/{name}"] = values
    with pytest.raises(DataError, match=message):
        load_dataset("test/many-v0")


@pytest.mark.parametrize("name", ["actions/scout", "observations/camera_a", "infos/action_mask/scout"])
def test_an_agents_array_of_another_shape_is_refused(minari_root: Path, name: str) -> None:
    """In every episode, where the lengths agree."""
    save_joint(make(MIXED), "test/many-v0")
    with h5py.File(minari_root / "test" / "many-v0" / "data" / "main_data.hdf5", "a") as file:
        for group in file.values():
            values = group[name][()]
            del group[name]
            group[name] = values[:, None] if values.ndim == 1 else values[:, :2]
    with pytest.raises(DataError, match=rf"of {name.split('/')[-1]} of shape"):
        load_dataset("test/many-v0")


def test_a_truncated_file_is_named(minari_root: Path) -> None:
    path = save_joint(make(SPEAKER), "test/many-v0") / "data" / "main_data.hdf5"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match="main_data.hdf5: expected a Minari HDF5 file, but it is truncated"):
        load_dataset("test/many-v0")
