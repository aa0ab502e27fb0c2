"""A video of one episode: `herdbook eval RUN_DIR --video episode.gif`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from herdbook.core.environments import EnvironmentSource, whole_games
from herdbook.core.runs import Run, unwritable
from herdbook.core.types import Array
from herdbook.experiments.catalogue import UserError
from herdbook.experiments.domain import Task
from herdbook.experiments.environments import own_environment
from herdbook.experiments.opponents import opponents_of
from herdbook.experiments.records import options_of
from herdbook.experiments.restore import restore

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
    max_steps: int | None = None,
) -> int:
    """Record one episode of the first seed's policy, reset with `seed`; returns the number of frames.

    `out` ends in .gif, or in .mp4 (the extra `video`). The environment is made with render_mode="rgb_array".

    Raises UserError for another ending, a missing extra, or an environment that draws nothing or no pictures.
    """
    out = check_name(out)
    run = Run(run_dir)
    drawn = {**(env_kwargs or {}), "render_mode": "rgb_array"}
    bound = whole_games(own_environment(run.config["environment"], env, drawn))
    restored = restore(run, algorithm, step, run.seeds[0], "cpu", None)
    domain, options = restored.domain, options_of(run)
    task = Task(
        domain=domain,
        spec=restored.spec,
        environment=bound,
        opponents=opponents_of(options),
        max_steps=max_steps or options.max_steps,
    )
    frames = domain.film(task, restored.policy(), seed)
    if not frames or any(frame is None for frame in frames):
        raise UserError("video: the environment draws no pictures with render_mode='rgb_array'")
    _write(out, pictures(frames))
    return len(frames)


def pictures(frames: Sequence[Any]) -> list[Array]:
    """Frames as uint8 pictures, `[height, width]` or with channels; floats are taken as [0, 1], or as [0, 255].

    Of a list, the last picture is taken. Raises UserError for anything else.
    """
    found = []
    for frame in frames:
        array = np.asarray(frame[-1] if isinstance(frame, (list, tuple)) and len(frame) else frame)
        shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (1, 3, 4))
        if array.dtype.kind not in "buif" or not shaped or not array.size:
            came = type(frame).__name__ if array.dtype.kind not in "buif" else f"{array.dtype} of shape {array.shape}"
            raise UserError(f"video: expected pictures [height, width, 3] of uint8 from render(), got {came}")
        found.append(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array)
    low, high = min(array.min() for array in found), max(array.max() for array in found)
    if not (low >= 0 and high <= 255):
        raise UserError(f"video: expected pictures of uint8, or floats in [0, 1], from render(), got [{low}, {high}]")
    scale = 255 if high <= 1 and found[0].dtype.kind in "bf" else 1
    return [array if array.dtype == np.uint8 else np.rint(array * scale).astype(np.uint8) for array in found]


def check_name(out: str | Path) -> Path:
    """The path of a video. Raises UserError unless it ends in .gif or .mp4 and can be written here."""
    out = Path(out)
    if out.suffix not in (".gif", ".mp4"):
        raise UserError(f"video: expected a name that ends in .gif or .mp4, got {out}")
    if (reason := unwritable(out.parent)) is not None:
        raise UserError(f"video: {out} cannot be written: {reason}")
    if out.suffix == ".mp4":
        try:
            import imageio  # noqa: F401  # used later: here it shows whether it can be imported
            import imageio_ffmpeg  # noqa: F401  # which imageio needs
        except ImportError as error:
            raise UserError(f"video: .mp4 needs {error.name}: pip install 'herdbook[video]', or choose .gif") from error
    return out


def _write(out: Path, frames: Sequence[Array]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".gif":
        from PIL import Image

        first, *rest = map(Image.fromarray, frames)
        first.save(out, save_all=True, append_images=rest, duration=1000 // FRAMES_PER_SECOND, loop=0)
        return
    import imageio

    imageio.mimsave(out, list(frames), fps=FRAMES_PER_SECOND)
