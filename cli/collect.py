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
    """Play episodes with a trained or random policy and write them as a Minari dataset, or write a run's replay."""

    policy: tyro.conf.Positional[str]
    """Directory of a run, or `random`."""
    out: str
    """Minari id of the new dataset, for example mine/spread-expert-v0."""
    episodes: int | None = None
    """Number of episodes to play."""
    replay: bool = False
    """Play nothing; write the steps in the replay of the run's last checkpoint."""
    env: str | None = None
    """Environment to play in. The default is the run's environment. If it is named again, it keeps its arguments, time
    limit and wrappers."""
    env_kwargs: tuple[str, ...] = ()
    """Keyword arguments of the environment, as `name value name value ...`. Each replaces the run's own value."""
    max_steps: int | None = None
    """Steps after which an episode is cut off, on top of the environment's own limit. The default is the run's."""
    seed: int = 0
    """Episode i is reset with the seed `seed + i`. Evaluations during training use seeds from 10000 on."""
    step: int | None = None
    """Step of the checkpoint. The default is the last checkpoint."""
    run_seed: int | None = None
    """Seed of the run whose policy plays. The default is the first seed."""
    deterministic: bool = True
    """Play the policy's mode. Otherwise the policy samples or explores, as at the end of its exploration schedule."""
    noise: float = 0.0
    """Extra noise on the actions of a single agent: its standard deviation, in units of half the range of the actions,
    or the probability of a uniformly random discrete action."""
    action_bounds: tuple[float, float] | None = None
    """Lowest and highest action of a random policy, for continuous actions without bounds."""
    algorithm: str | None = None
    """module:Class, required for a run of your own algorithm."""
    data_dir: str | None = None
    """Directory for the dataset. The default is Minari's own."""
    num_envs: int = 20
    """Number of environments that are stepped side by side."""
    device: str = "cpu"
    """Device of the policy."""

    def __post_init__(self) -> None:
        from herdbook.experiments.options import check, check_bounds

        check_bounds(self.action_bounds)
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
        check(self.max_steps is None or self.max_steps >= 1, "max_steps", "1 or more", self.max_steps)


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
            max_steps=parsed.max_steps,
            step=parsed.step,
            deterministic=parsed.deterministic,
            noise=parsed.noise,
            action_bounds=parsed.action_bounds,
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
