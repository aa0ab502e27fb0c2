"""From a class, a config and a spec to an algorithm on a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from herdbook.core.config import Config
from herdbook.core.needs import Needs
from herdbook.core.seeds import SeedBySeed
from herdbook.core.types import Policy
from herdbook.experiments.catalogue import UserError, needs_of
from herdbook.experiments.domain import Domain, Networks
from herdbook.experiments.domains import domain_for


def choose_device(name: str) -> str:
    """`auto` is cuda where there is one, else cpu. Raises UserError for a device that is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device: expected auto, cpu, cuda or cuda:<n>, got {name!r}") from error
    there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if device.type == "mps" and torch.backends.mps.is_available():
        there.append("mps")
    if device.type != "cpu" and name not in there and not (name == "cuda" and len(there) > 1):
        raise UserError(f"device: {name} is not there; this machine has {', '.join(there)}")
    return name


def build_algorithm(
    algorithm: type[Any],
    config: Config,
    spec: Any,
    *,
    seeds: Sequence[int],
    device: str,
    plays: bool,
    networks: Networks | None = None,
    compile: str = "off",
    demonstrations: Any = None,
    mdp: Any = None,
    expert: Policy | None = None,
) -> Any:
    """Construct an algorithm for the spaces of `spec`: one of all seeds, or a `SeedBySeed`.

    Seeds train one by one where the algorithm `plays`, or is fine-tuned later, and where it cannot train them together.
    `networks` and `compile` are passed only where they are used, so that a user's own class need not know them;
    `demonstrations`, a replay or None, is passed where `needs.demonstrations`, `mdp`, an `MDP` or None, where
    `needs.dynamics`, and `expert`, a policy or None, where `needs.expert`.

    Raises UserError if it cannot learn in these spaces.
    """
    needs = needs_of(algorithm)
    optional: dict[str, Any] = {} if networks is None else {"networks": networks}
    if compile == "on" or (compile == "auto" and device.startswith("cuda")):
        optional["compile"] = True
    if needs.demonstrations:
        optional["demonstrations"] = demonstrations
    if needs.dynamics:
        optional["mdp"] = mdp
    if needs.expert:
        optional["expert"] = expert
    try:
        domain_for(needs).check_actions(spec, needs, algorithm.__name__)
        if plays or config.recurrent or not needs.seeds_together:
            return SeedBySeed([algorithm(config, spec, seeds=(seed,), device=device, **optional) for seed in seeds])
        return algorithm(config, spec, seeds=tuple(seeds), device=device, **optional)
    except ValueError as error:
        raise UserError(str(error)) from error


def check_domain(algorithm: type[Any], there: Domain) -> None:
    """Raise UserError unless the task's domain is the algorithm's."""
    needs: Needs = needs_of(algorithm)
    own = domain_for(needs)
    if own is not there:
        raise UserError(
            f"{algorithm.__name__} is an algorithm for {own.title}, the data are of {there.title}; "
            "`herdbook list algorithms` says which there are"
        )
    if needs.environment and needs.interaction not in own.interactions:
        raise UserError(
            f"{algorithm.__name__}: expected an interaction for {own.title} among {', '.join(own.interactions)}, "
            f"got needs.interaction={needs.interaction!r}"
        )
