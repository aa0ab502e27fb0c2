"""A film of one episode of a run's policy: `herdbook eval RUN_DIR --video episode.gif`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.wrappers import RenderCollection

from herdbook.core.environments import EnvironmentSource, make_environment, whole_games
from herdbook.core.joint.rollout import JointRollout
from herdbook.core.joint.types import JointSpec
from herdbook.core.runs import Run
from herdbook.core.types import Array, Policy, Spec
from herdbook.evaluation.evaluate import evaluate
from herdbook.experiments.build import play_options, with_arguments
from herdbook.experiments.catalogue import UserError
from herdbook.experiments.records import environment_from_record, options_of
from herdbook.experiments.train import restore

FRAMES_PER_SECOND = 15


def record(
    run_dir: str | Path,
    out: str | Path,
    *,
    seed: int = 0,
    step: int | None = None,
    algorithm: str | type[Any] | None = None,
    env: EnvironmentSource | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
) -> int:
    """Film one episode of the first seed's policy, reset with `seed`; returns the number of frames.

    `out` ends in .gif, or in .mp4 (the extra `video`). The environment is made with render_mode="rgb_array".

    Raises UserError for another ending, a missing extra, or an environment that draws nothing.
    """
    out = check_name(out)
    run = Run(run_dir)
    source = env if env is not None else environment_from_record(run.config["environment"])
    bound = with_arguments(source, {**(env_kwargs or {}), "render_mode": "rgb_array"})
    assert bound is not None  # source is not
    bound = whole_games(bound)
    built, spec, _ = restore(run, algorithm, step, run.seeds[0], "cpu", None)
    frames = _film(built.policy(), bound, spec, seed, play_options(options_of(run)))
    if not frames or any(frame is None for frame in frames):
        raise UserError("video: the environment draws no pictures with render_mode='rgb_array'")
    _write(out, frames)
    return len(frames)


def check_name(out: str | Path) -> Path:
    """Where a film is written. Raises UserError for an ending that is none of a film."""
    out = Path(out)
    if out.suffix not in (".gif", ".mp4"):
        raise UserError(f"video: expected a name that ends in .gif or .mp4, got {out}")
    return out


def _film(policy: Policy, source: EnvironmentSource, spec: Spec | JointSpec, seed: int, playing: Any) -> list[Any]:
    if isinstance(spec, JointSpec):
        frames: list[Any] = []
        rollout = JointRollout(source, 1, spec=spec, **playing)
        try:
            played = rollout.run(policy, [seed], watch=lambda environment: frames.append(environment.render()))
        finally:
            rollout.close()
        if played.failures:
            raise UserError(f"video: {played.failures[0]}")
        return frames
    films: list[RenderCollection[Any, Any]] = []

    def filmed() -> Any:
        films.append(RenderCollection(make_environment(source), pop_frames=False, reset_clean=True))
        return films[-1]

    evaluate(policy, filmed, 1, seed, spec=spec)
    return list(films[-1].frame_list)


def _write(out: Path, frames: Sequence[Array]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".gif":
        from PIL import Image

        first, *rest = (Image.fromarray(np.asarray(frame, dtype=np.uint8)) for frame in frames)
        first.save(out, save_all=True, append_images=rest, duration=1000 // FRAMES_PER_SECOND, loop=0)
        return
    try:
        import imageio
    except ImportError as error:
        raise UserError("video: .mp4 needs imageio: pip install 'herdbook[video]', or choose .gif") from error
    imageio.mimsave(out, list(frames), fps=FRAMES_PER_SECOND)
