"""The options of a run. Their names are reserved: no algorithm's config may have a field of the same name."""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from herdbook.core.needs import Needs
from herdbook.core.threads import usable_cores
from herdbook.experiments.catalogue import UserError

_APPLIES: dict[str, Callable[[Needs], bool]] = {
    "always": lambda needs: True,
    "data": lambda needs: bool(needs.data),
    "one agent": lambda needs: needs.agents == "one",
    "data of one agent": lambda needs: bool(needs.data) and needs.agents == "one",
    "expert": lambda needs: needs.expert,
    "many agents": lambda needs: needs.agents == "many",
    "fine-tuning": lambda needs: needs.agents == "one" and needs.environment is not True and not needs.demonstrations,
    "environments": lambda needs: bool(needs.environment) or needs.agents == "one",
    "workers": lambda needs: bool(needs.environment) and needs.interaction == "episodes",
}
"""The algorithms that an option applies to."""


def _option(default: Any, group: str, applies: str = "always", *, low: int | None = None) -> Any:
    """A field: the group that `--help` shows it in, the algorithms that it applies to, and its smallest value."""
    return field(default=default, metadata={"group": group, "applies": _APPLIES[applies], "low": low})


GROUPS = {
    "data": "The dataset that the algorithm learns from.",
    "environment": "The environment, for learning or for evaluation.",
    "fine_tuning": "Learning goes on in the environment after the last offline update.",
    "evaluation": "How the policies are evaluated during training.",
    "run": "How long the run is, and what it writes.",
}
"""The groups of options beside the algorithm's own, and what `--help` says about each."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of a run, beside the config of its algorithm. Raises UserError for values out of range."""

    dataset: str | None = _option(None, "data", "data")
    """A Minari id (D4RL/pointmaze/umaze-v2), a recipe (classic/pendulum), a D4RL or d3rlpy file (.hdf5, .h5), or a
    Minari directory."""
    demonstrations: int | None = _option(None, "data", "data of one agent", low=1)
    """Number of the dataset's episodes that are learned from, the first ones. The default is all of them."""
    subsample: int = _option(1, "data", "data of one agent", low=1)
    """Learn from every K-th step of each episode, its first step among them. The default is every step."""
    min_return: float | None = _option(None, "data", "data of one agent")
    """Leave out the episodes with a lower return, before the first ones are counted. Returns are sums of the rewards in
    the dataset."""
    steps: int = _option(100_000, "run", low=0)
    """Number of updates; for an algorithm that learns in an environment, environment steps of each seed."""
    online_steps: int = _option(0, "fine_tuning", "fine-tuning", low=0)
    """Environment steps of each seed after the updates on the dataset. The new steps join the dataset."""
    online_updates: float = _option(1.0, "fine_tuning", "fine-tuning")
    """Updates per environment step."""
    online_noise: float | None = _option(None, "fine_tuning", "fine-tuning")
    """Exploration noise: the standard deviation for actions in [-1, 1], or the probability of a random discrete action.
    The default is 0.1 for deterministic policies (td3_bc, and bc with continuous actions), else 0."""
    online_share: float | None = _option(None, "fine_tuning", "fine-tuning")
    """Share of each batch that is drawn from the new steps, for example 0.5. By default, old and new steps are equally
    likely."""
    online_replay: int = _option(1_000_000, "fine_tuning", "fine-tuning", low=1)
    """Number of new steps that are kept; the oldest are dropped first."""
    seeds: tuple[int, ...] = _option((0,), "run")
    """Random seeds, all trained in one run. Each seed has its own parameters, batches and scores."""
    run_dir: str | None = _option(None, "run")
    """Directory of the run. The default is runs/<name>."""
    name: str | None = _option(None, "run")
    """Name of the run. The default is <algorithm>-<dataset or environment>, with a number if that exists."""
    device: str = _option("auto", "run")
    """auto (cuda if there is a GPU, else cpu), cpu, cuda, cuda:1, ..."""
    time_limit: Literal["bootstrap", "terminal"] = _option("bootstrap", "run")
    """At a truncation, bootstrap from the next value, or treat the time limit as the end of the task."""
    reward: str | None = _option(None, "data", "one agent")
    """A learned reward to learn from: the directory of a saved reward, or a run that learned one. It replaces the
    rewards of the dataset and the environment, without its shaping; reported returns do not change."""
    reward_transform: str = _option("none", "data", "one agent")
    """Transform of the rewards that are learned from; reported returns do not change. none, minus_one: r - 1 (antmaze),
    clip: to [-1, 1] (Atari), scale:X, shift:X. For datasets also return_range: r * 1000 / (best - worst return in the
    dataset), and standardise. Several are applied in turn: shift:2,return_range."""
    observation_keys: tuple[str, ...] | None = _option(None, "data", "one agent")
    """Parts of a Dict observation that the algorithm sees. The default is all of them."""
    action_bounds: tuple[float, float] | None = _option(None, "environment", "one agent")
    """Lowest and highest action of continuous actions whose space has no bounds. In a dataset, actions beyond the
    bounds of their space are then clipped, and a notice says how many."""
    data_dir: str | None = _option(None, "data", "data")
    """Directory of the Minari datasets. The default is Minari's own, then the user's cache."""
    env: str | None = _option(None, "environment")
    """Environment to learn in, or to evaluate in: a Gymnasium id, a PettingZoo name (mpe2/simple_spread_v3) or
    module:callable. An offline algorithm is evaluated in the dataset's environment by default. If that is named again,
    it keeps its arguments, time limit and wrappers."""
    env_kwargs: tuple[str, ...] = _option((), "environment")
    """Keyword arguments of the environment, as `name value name value ...` (Python literals, else text)."""
    max_steps: int | None = _option(None, "environment", low=1)
    """Steps after which an episode is cut off, in training and evaluation, on top of the environment's own limit.
    Without either, episodes are cut off after 10,000 steps."""
    num_envs: int | None = _option(None, "environment", "environments", low=1)
    """Environments that each seed steps side by side while it learns. The default is the algorithm's."""
    workers: int | None = _option(None, "environment", "workers", low=0)
    """Worker processes that play episodes while the learner updates. The default is 1 if there is a second core. With
    equal --threads, the results do not depend on it."""
    learn: tuple[str, ...] = _option((), "environment", "many agents")
    """Names of the agents that learn; * matches any letters ('adversary_*'). The default is all agents."""
    others: str = _option("random", "environment", "many agents")
    """Policy of the other agents: random (uniform legal actions), or the directory of a run."""
    others_step: int | None = _option(None, "environment", "many agents")
    """Checkpoint of that run, which is copied into this run. The default is its last one."""
    expert: str | None = _option(None, "environment", "expert")
    """The expert that labels states: the directory of a run, whose policy is copied into this run, a recipe with a
    scripted controller (classic/cartpole, classic/pendulum), or module:callable, which returns a policy."""
    log_every: int | None = _option(None, "run", low=1)
    """Steps between log lines. The default is 1 % of the steps, at most 1000."""
    evaluate_every: int | None = _option(None, "evaluation", low=1)
    """Steps between evaluations. The default is 10 % of the steps. The final policies are always evaluated."""
    eval_episodes: int = _option(10, "evaluation", low=0)
    """Episodes per evaluation; 0 switches evaluation off."""
    eval_seed: int = _option(10_000, "evaluation", low=0)
    """Episode i of an evaluation is reset with the seed eval_seed + i."""
    checkpoint_every: int | None = _option(None, "run", low=1)
    """Steps between checkpoints. The default is 5 % of the steps."""
    keep: int = _option(2, "run", low=2)
    """Number of checkpoints that are kept, the newest ones; at least 2."""
    compile: Literal["auto", "on", "off"] = _option("auto", "run")
    """Compile the losses with torch.compile; auto is off on a CPU."""
    threads: int | None = _option(None, "run", low=1)
    """CPU threads of PyTorch. The default depends on the cores, the worker processes and the size of the networks."""
    wandb: str | None = _option(None, "run")
    """Weights & Biases project (needs the extra `wandb`)."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value, low = getattr(self, f.name), f.metadata["low"]
            check(low is None or value is None or value >= low, f.name, f"{low} or more", value)
            idle = f.metadata["group"] == "fine_tuning" and self.online_steps == 0 and value != f.default
            check(not idle, f.name, "--online-steps beside it", value)
        check(len(self.seeds) > 0, "seeds", "at least one", self.seeds)
        check(min(self.seeds) >= 0, "seeds", "numbers of 0 or more", self.seeds)
        check(len(set(self.seeds)) == len(self.seeds), "seeds", "each one once", " ".join(map(str, self.seeds)))
        updates, noise, share = self.online_updates, self.online_noise, self.online_share
        check(0 < updates < math.inf, "online_updates", "a finite number above 0", updates)
        check(noise is None or 0 <= noise < math.inf, "online_noise", "a finite number of 0 or more", noise)
        check(share is None or 0 <= share <= 1, "online_share", "a number in [0, 1]", share)
        least = self.min_return
        check(least is None or math.isfinite(least), "min_return", "a finite number", least)
        check_bounds(self.action_bounds)
        literal_pairs(self.env_kwargs)

    @property
    def part_of_data(self) -> dict[str, Any]:
        """The options that choose a part of the dataset and are not at their defaults, by name."""
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name in ("demonstrations", "subsample", "min_return") and getattr(self, f.name) != f.default
        }

    @property
    def total_steps(self) -> int:
        """Steps of the whole run: updates or environment steps, and the environment steps of fine-tuning."""
        return self.steps + self.online_steps

    def lanes(self, needs: Needs) -> int:
        """Environments that each seed steps side by side."""
        return self.num_envs or needs.num_envs

    def worker_processes(self, needs: Needs) -> int:
        """Worker processes that play while the learner updates."""
        if not _APPLIES["workers"](needs):
            return 0
        return min(1, usable_cores() - 1) if self.workers is None else self.workers


def options_for(needs: Needs) -> dict[str, list[str]]:
    """The names of the options that apply to an algorithm with these needs, by group; empty groups are left out."""
    applying = [f for f in fields(RunOptions) if f.metadata["applies"](needs)]
    found = {group: [f.name for f in applying if f.metadata["group"] == group] for group in GROUPS}
    return {group: names for group, names in found.items() if names}


def descriptions() -> dict[str, str]:
    """The docstring below each field of `RunOptions`, by the field's name."""
    (body,) = (node for node in ast.parse(inspect.getsource(RunOptions)).body if isinstance(node, ast.ClassDef))
    found = {}
    for node, following in zip(body.body, body.body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(following, ast.Expr):
            found[node.target.id] = " ".join(ast.literal_eval(following.value).split())
    return found


RESERVED = frozenset(f.name for f in fields(RunOptions)) | {"algorithm", "config", "networks", "resume"}


def check(fine: bool, name: str, expected: str, got: Any) -> None:
    """Raise UserError, naming the field, unless `fine`."""
    if not fine:
        raise UserError(f"{name}: expected {expected}, got {got}")


def check_bounds(bounds: tuple[float, float] | None) -> None:
    """Raise UserError unless bounds of actions are finite and in order."""
    fine = bounds is None or (len(bounds) == 2 and -math.inf < bounds[0] < bounds[1] < math.inf)
    check(fine, "action_bounds", "two finite numbers, the lower one first", bounds)


def literal_pairs(words: Sequence[str], option: str = "env_kwargs") -> dict[str, Any]:
    """`("local_ratio", "0", "mode", "fast")` → `{"local_ratio": 0, "mode": "fast"}`: Python literals, else text."""
    if len(words) % 2:
        raise UserError(f"{option}: expected pairs of a name and a value, got {len(words)} words: {' '.join(words)}")
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
