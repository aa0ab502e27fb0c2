"""The fields of a run, beside those of its algorithm's config. Their names are reserved: no config may use one."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from herdbook.experiments.catalogue import UserError


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What is trained on, for how long, and what is written when. Raises UserError for values out of range."""

    dataset: str | None = None
    """Minari id (D4RL/pointmaze/umaze-v2), recipe (classic/pendulum), D4RL .hdf5 file or Minari directory."""
    steps: int = 100_000
    """Updates; of an algorithm that learns in an environment, environment steps of each seed."""
    online_steps: int = 0
    """Of an algorithm that learns from a dataset: environment steps in which its policy is fine-tuned after `steps`
    updates. What it plays joins the dataset."""
    online_updates: float = 1.0
    """Updates for each of these steps."""
    online_noise: float | None = None
    """Noise of the policy that plays: a deviation, where actions are [-1, 1], or the share of random discrete actions;
    by default 0.1 for td3_bc, and for bc of a Box, whose own policies have none, else 0."""
    online_share: float | None = None
    """Of every batch that is new, as 0.5; by default all steps are drawn alike, old and new."""
    online_replay: int = 1_000_000
    """How many of the new steps are kept; the oldest leave first."""
    seeds: tuple[int, ...] = (0,)
    """Trained together as one program; each has its own parameters, batches and scores."""
    run_dir: str | None = None
    """Directory of this run; by default runs/<name>."""
    name: str | None = None
    """Name of the run; by default <algorithm>-<dataset>, numbered where it exists."""
    device: str = "auto"
    """auto (cuda where there is one), cpu, cuda, cuda:1 …"""
    time_limit: Literal["bootstrap", "terminal"] = "bootstrap"
    """Whether values are bootstrapped through a truncation, or the time limit ends the task."""
    reward_transform: str = "none"
    """Of what is learned from; returns stay as they are. none, minus_one: r - 1 (antmaze), clip: to [-1, 1] (Atari),
    scale:X, shift:X; and of a dataset return_range: r * 1000 / (best - worst return in it), or standardise."""
    observation_keys: tuple[str, ...] | None = None
    """Parts of a Dict observation to use; by default all."""
    data_dir: str | None = None
    """Where Minari datasets are; by default Minari's own directory."""
    env: str | None = None
    """Environment to learn in, or to evaluate in (by default the dataset's): a Gymnasium id, a PettingZoo name
    (mpe2/simple_spread_v3) or module:callable."""
    env_kwargs: tuple[str, ...] = ()
    """Its keyword arguments, as `name value name value …` (Python literals, else text)."""
    num_envs: int | None = None
    """Environments stepped side by side while learning, of each seed; by default the algorithm's own number."""
    workers: int | None = None
    """Processes that step those of many agents while the learner learns; by default 1 where there is a second core.
    The results are the same for any number."""
    learn: tuple[str, ...] = ()
    """Names of the agents that learn, * for any letters ('adversary_*'); by default all."""
    others: str = "random"
    """Who plays the others: random (legal actions), or the directory of a run."""
    others_step: int | None = None
    """Of that run's checkpoint, which is copied into this run; by default its last one."""
    log_every: int | None = None
    """Steps between log lines; by default 1 % of the steps, at most 1000."""
    evaluate_every: int | None = None
    """Steps between evaluations; by default 10 % of the steps. The final policies are always evaluated."""
    eval_episodes: int = 10
    """Episodes of each evaluation; 0 for none."""
    eval_seed: int = 10_000
    """Episode i of an evaluation is reset with eval_seed + i."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; by default 5 % of the steps."""
    keep: int = 2
    """How many of the newest checkpoints are kept (at least 2)."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile for the losses; auto is off on CPU."""
    threads: int | None = None
    """CPU threads of torch; by default torch's own choice."""
    wandb: str | None = None
    """Project at Weights & Biases (needs the extra `wandb`)."""

    def __post_init__(self) -> None:
        check(self.steps >= 0, "steps", "0 or more", self.steps)
        check(len(self.seeds) > 0, "seeds", "at least one", self.seeds)
        check(min(self.seeds) >= 0, "seeds", "numbers of 0 or more", self.seeds)
        twice = sorted({seed for seed in self.seeds if self.seeds.count(seed) > 1})
        check(not twice, "seeds", "each one once", " ".join(map(str, self.seeds)))
        for name in ("log_every", "evaluate_every", "checkpoint_every", "threads", "num_envs"):
            value = getattr(self, name)
            check(value is None or value >= 1, name, "1 or more", value)
        check(self.online_steps >= 0, "online_steps", "0 or more", self.online_steps)
        check(0 < self.online_updates < math.inf, "online_updates", "a finite number above 0", self.online_updates)
        noise, share = self.online_noise, self.online_share
        check(noise is None or 0 <= noise < math.inf, "online_noise", "a finite number of 0 or more", noise)
        check(share is None or 0 <= share <= 1, "online_share", "a number in [0, 1]", share)
        for name in ("online_updates", "online_noise", "online_share", "online_replay"):
            value = getattr(self, name)
            idle = self.online_steps == 0 and value != type(self).__dataclass_fields__[name].default
            check(not idle, name, "--online-steps beside it", value)
        check(self.online_replay >= 1, "online_replay", "1 or more", self.online_replay)
        check(self.workers is None or self.workers >= 0, "workers", "0 or more", self.workers)
        check(self.eval_episodes >= 0, "eval_episodes", "0 or more", self.eval_episodes)
        check(self.eval_seed >= 0, "eval_seed", "0 or more", self.eval_seed)
        check(self.keep >= 2, "keep", "2 or more", self.keep)
        literal_pairs(self.env_kwargs)

    @property
    def total_steps(self) -> int:
        """Where the run ends: updates, or environment steps, and the environment steps of fine-tuning."""
        return self.steps + self.online_steps


RESERVED = frozenset(f.name for f in fields(RunOptions)) | {"algorithm", "config", "networks", "resume"}


def check(fine: bool, name: str, expected: str, got: Any) -> None:
    """Raise UserError, naming the field, unless `fine`."""
    if not fine:
        raise UserError(f"{name}: expected {expected}, got {got}")


def literal_pairs(words: Sequence[str]) -> dict[str, Any]:
    """`("local_ratio", "0", "mode", "fast")` → `{"local_ratio": 0, "mode": "fast"}`: Python literals, else text."""
    if len(words) % 2:
        raise UserError(f"env_kwargs: expected pairs of a name and a value, got {len(words)} words: {' '.join(words)}")
    return {name: _literal(value) for name, value in zip(words[::2], words[1::2], strict=True)}


def as_words(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """The inverse of `literal_pairs`, for keyword arguments given in Python. Raises UserError for no literal."""
    for name, value in arguments.items():
        try:
            ast.literal_eval(repr(value))
        except (ValueError, SyntaxError) as error:
            raise UserError(
                f"env_kwargs: expected Python literals (numbers, text, lists …), got {name}={value!r}; "
                "bind it in a callable that makes the environment, and give that as env="
            ) from error
    return tuple(word for name, value in arguments.items() for word in (name, repr(value)))


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
