"""`herdbook collect RUN_DIR|random --env ID --episodes N --out MINARI_ID`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import tyro

from herdbook.cli.parse import parse, show
from herdbook.experiments.catalogue import UserError


@dataclass(frozen=True, kw_only=True)
class CollectArguments:
    """Write the episodes of a policy, trained or random, of one agent or of many, as a Minari dataset; or the replay of
    a run that learned in an environment."""

    policy: tyro.conf.Positional[str]
    """The directory of a run, or random."""
    out: str
    """Id of the new dataset, as mine/spread-expert-v0."""
    episodes: int | None = None
    """How many are played."""
    replay: bool = False
    """Instead of playing: what the replay of the run's last checkpoint holds."""
    env: str | None = None
    """Environment to play in; by default the run's."""
    env_kwargs: tuple[str, ...] = ()
    """Its keyword arguments, as `name value name value …`."""
    seed: int = 0
    """Episode i is reset with seed + i; evaluations use 10000 and on."""
    step: int | None = None
    """Of the run's checkpoint; by default the last."""
    run_seed: int | None = None
    """Which of the run's seeds plays; by default the first."""
    deterministic: bool = True
    """The policy's mode; else it samples, or explores as it does once its schedule has ended."""
    noise: float = 0.0
    """On top of one agent's policy: the deviation of Gaussian noise, as a share of half the range of continuous
    actions, or the probability of a uniform discrete one."""
    algorithm: str | None = None
    """module:Class, for a run of your own algorithm."""
    data_dir: str | None = None
    """Where the dataset is written; by default Minari's own directory."""
    num_envs: int = 20
    """Environments stepped side by side."""
    device: str = "cpu"
    """Where the policy runs."""

    def __post_init__(self) -> None:
        from herdbook.experiments.options import check

        check(self.num_envs >= 1, "num_envs", "1 or more", self.num_envs)
        if self.replay:
            for name, default in _PLAYING.items():
                check(
                    getattr(self, name) == default,
                    name,
                    "none beside --replay, which plays nothing",
                    getattr(self, name),
                )
        else:
            check(self.episodes is not None and self.episodes >= 1, "episodes", "1 or more", self.episodes)
        check(0 <= self.noise < math.inf, "noise", "0 or more", self.noise)
        check(self.seed >= 0, "seed", "0 or more", self.seed)


_PLAYING = {
    f.name: f.default
    for f in fields(CollectArguments)
    if f.name not in ("policy", "out", "replay", "run_seed", "algorithm", "data_dir")
}


def run(arguments: Sequence[str]) -> int:
    """Collect; returns the exit status."""
    parsed = parse(CollectArguments, arguments, "collect")
    if parsed.policy == "random" and parsed.env is None:
        raise UserError("collect random: expected --env, the environment to play in")

    from herdbook.experiments.collect import collect, export_replay
    from herdbook.experiments.options import literal_pairs

    shared: dict[str, Any] = {
        "out": parsed.out,
        "run_seed": parsed.run_seed,
        "algorithm": parsed.algorithm,
        "data_dir": parsed.data_dir,
    }
    if parsed.episodes is None:
        episodes, folder = export_replay(parsed.policy, **shared)
    else:
        episodes, folder = collect(
            parsed.policy,
            episodes=parsed.episodes,
            seed=parsed.seed,
            env=parsed.env,
            env_kwargs=literal_pairs(parsed.env_kwargs),
            step=parsed.step,
            deterministic=parsed.deterministic,
            noise=parsed.noise,
            num_envs=parsed.num_envs,
            device=parsed.device,
            **shared,
        )
    returns = episodes.returns()
    show(
        f"{parsed.out}: {len(episodes):,} episodes, {episodes.num_steps:,} steps, return {returns.mean():.1f} ± "
        f"{returns.std():.1f}, in {folder}"
    )
    return 0
