"""Runs read back: the algorithm of a checkpoint, and its policy."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

from herdbook.core.actor import Actor
from herdbook.core.config import Config
from herdbook.core.joint.actor import JointActor
from herdbook.core.random import generator
from herdbook.core.runs import Run, RunError, written_whole
from herdbook.core.types import Policy
from herdbook.experiments.build import build_algorithm, choose_device
from herdbook.experiments.catalogue import ALGORITHMS, UserError, algorithm_class, config_class, needs_of
from herdbook.experiments.domain import Domain, Networks
from herdbook.experiments.domains import domain_for
from herdbook.experiments.records import check_networks, config_from_values, options_of


def load(
    path: str | Path,
    algorithm: str | type[Any] | None = None,
    *,
    step: int | None = None,
    seed: int | None = None,
    device: str = "cpu",
    networks: Networks | None = None,
    deterministic: bool = True,
) -> Actor | JointActor:
    """The policy of a run, as an `Actor` with NumPy in and out (a dict by agent for many agents).

    Args:
        path: The run directory.
        algorithm: Needed for a user's own algorithm: the class, or `module:Class`.
        step: The checkpoint; by default the last, or the last good one of a seed that stopped.
        seed: One of the run's seeds; by default the first.
        device: The policy's device.
        networks: Needed where the run was trained with a user's own modules.
        deterministic: The mode of a stochastic policy; else it is sampled.

    Raises RunError, CheckpointError or UserError, saying what is missing or what there is.
    """
    run = Run(path)
    chosen = seed_of(run, seed)
    device = choose_device(device)
    restored = restore(run, algorithm, step, chosen, device, networks)
    policy = restored.policy(deterministic=deterministic)
    noise = generator(chosen, device=device)
    actor: Actor | JointActor = restored.domain.actor(policy, restored.spec, device=device, generator=noise)
    return actor


@dataclass(frozen=True, kw_only=True)
class Restored:
    """An algorithm as it was at a checkpoint."""

    algorithm: Any
    domain: Domain
    spec: Any
    step: int
    seed_index: int

    def policy(self, *, deterministic: bool = True) -> Policy:
        """The policy of the seed that the checkpoint was chosen for. Raises UserError where none was learned."""
        if not self.algorithm.needs.policy:
            name = self.algorithm.config.algorithm
            raise UserError(f"{name} learns a reward and no policy; train a policy on it with --reward RUN")
        policy: Policy = self.algorithm.policy(self.seed_index, deterministic=deterministic)
        return policy


def restore(
    run: Run, algorithm: str | type[Any] | None, step: int | None, seed: int, device: str, networks: Networks | None
) -> Restored:
    """The algorithm at the checkpoint of `step`, by default the last one that is good for `seed`."""
    name, chosen = algorithm_of(run, algorithm)
    check_networks(run, networks)
    state = run.checkpoints.load(step)
    if step is None and (good := good_step(state, seed)) != state["step"]:
        state = run.checkpoints.load(good)
    at = int(state["step"])
    if state["algorithm"] != name:
        raise RunError(f"{run.checkpoints.path(at)}: expected a checkpoint of {name}, got one of {state['algorithm']}")
    needs = needs_of(chosen)
    domain = domain_for(needs)
    spec = domain.spec_from_state(state["spec"])
    config = config_from_values(config_class(chosen), state["config"])
    built = build_algorithm(
        chosen,
        config,
        spec,
        seeds=run.seeds,
        device=device,
        plays=needs.plays(run.config["dataset"] is not None, config.online) or options_of(run).online_steps > 0,
        networks=networks,
    )
    try:
        built.load_state_dict(state["state"])
    except (ValueError, KeyError, RuntimeError) as error:
        raise RunError(f"{run.checkpoints.path(at)}: does not fit {name}: {error}") from error
    return Restored(algorithm=built, domain=domain, spec=spec, step=at, seed_index=run.seeds.index(seed))


def good_step(state: Mapping[str, Any], seed: int) -> int:
    """The step of the checkpoint that is the last good one of a seed, by the state of the last checkpoint."""
    stopped = state["stopped"].get(str(seed))
    return int(state["step"] if stopped is None else stopped["checkpoint"])


def copy_checkpoint(run: Run, step: int, folder: Path) -> None:
    """Copy one checkpoint of a run, and its config.json, to a new folder, because the run may go on or be deleted."""
    source = run.checkpoints.path(step)
    with written_whole(folder) as copy:
        shutil.copy(run.path / "config.json", copy)
        shutil.copytree(source, copy / "checkpoints" / source.name)


def seed_of(run: Run, seed: int | None) -> int:
    """A seed of the run, by default its first. Raises RunError for one that it does not have."""
    chosen = run.seeds[0] if seed is None else seed
    if chosen not in run.seeds:
        raise RunError(f"{run.path}: there is no seed {chosen}; it has seeds {', '.join(map(str, run.seeds))}")
    return chosen


def resolve(algorithm: str | type[Any] | Any) -> tuple[str, type[Any]]:
    """The name that config.json records, and the class."""
    if isinstance(algorithm, str):
        return algorithm, algorithm_class(algorithm)
    if isinstance(algorithm, type) and not is_dataclass(algorithm):
        own = f"{algorithm.__module__}:{algorithm.__qualname__}"
        return next((name for name, target in ALGORITHMS.items() if target == own), own), algorithm
    if isinstance(algorithm, Config) and algorithm.algorithm in ALGORITHMS:
        return algorithm.algorithm, algorithm_class(algorithm.algorithm)
    raise UserError(
        f"expected the config of an algorithm in the catalogue, a name or a class, got {algorithm!r}; "
        "for your own algorithm: train(Mine, config=MineConfig(…), …)"
    )


def algorithm_of(run: Run, algorithm: str | type[Any] | None) -> tuple[str, type[Any]]:
    """The algorithm of a run. A name in config.json is only looked up in the catalogue, never imported."""
    if algorithm is None:
        if run.algorithm not in ALGORITHMS:
            raise UserError(
                f"{run.path}: its algorithm is code, {run.algorithm}; code that a run directory names is not imported: "
                f"give it again with --algorithm {run.algorithm} (algorithm= in Python) if you trust it"
            )
        return resolve(run.algorithm)
    name, chosen = resolve(algorithm)
    if run.algorithm in ALGORITHMS and name != run.algorithm:
        raise RunError(f"{run.path}: expected a run of {name}, got a run of {run.algorithm}")
    return run.algorithm, chosen
