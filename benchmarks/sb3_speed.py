"""Environment steps per second of whole training runs: herdbook against stable-baselines3.

    python benchmarks/sb3_speed.py [--sb3-python PATH] [--tasks ppo dqn sac td3] [--threads 1 2] [--pairs 3]

Both sides use the same environments, networks, batch sizes, numbers of updates and threads (see TASKS). Each trains in
a process of its own. The two alternate, so that other load on the machine affects both, and the ratio is the median
over the pairs. The clock starts after the first tenth of the steps, which contains the warm-up. herdbook also writes
its logs and checkpoints, as a run does by default. The output is Markdown.

stable-baselines3 needs a Python environment of its own. PATH is the Python of such an environment; without PATH the
benchmark creates one in a temporary folder.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

SB3 = "stable-baselines3"
OFF_POLICY = {"steps": 6_000, "env": "HalfCheetah-v5", "num_envs": 1}
TASKS: dict[str, dict[str, Any]] = {
    "ppo": {
        "env": "CartPole-v1",
        "steps": 100_000,
        "num_envs": 8,
        "ours": {"rollout_steps": 128, "batch_size": 256, "epochs": 10, "hidden_sizes": (64, 64), "lr": 3e-4},
        "theirs": {"n_steps": 128, "batch_size": 256, "n_epochs": 10, "learning_rate": 3e-4},
        "widths": [64, 64],
    },
    "dqn": {
        "env": "CartPole-v1",
        "steps": 40_000,
        "num_envs": 1,
        "ours": {
            "double_q": False,
            "hidden_sizes": (64, 64),
            "batch_size": 32,
            "updates_per_step": 0.25,
            "warmup_steps": 100,
            "lr": 1e-4,
        },
        "theirs": {"batch_size": 32, "train_freq": 4, "learning_starts": 100, "buffer_size": 100_000},
        "widths": [64, 64],
    },
    "sac": {
        **OFF_POLICY,
        "ours": {"warmup_steps": 100},
        "theirs": {"learning_starts": 100},
        "widths": [256, 256],
    },
    "td3": {
        **OFF_POLICY,
        "ours": {"warmup_steps": 100, "hidden_sizes": (400, 300), "actor_lr": 1e-3, "critic_lr": 1e-3},
        "theirs": {"learning_starts": 100, "learning_rate": 1e-3},
        "widths": [400, 300],
    },
}
THEIRS = """
import json, sys, time
import numpy as np, torch
torch.set_num_threads(json.loads(sys.argv[2])["threads"])
import stable_baselines3 as sb3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise

name, task = sys.argv[1], json.loads(sys.argv[2])
env = make_vec_env(task["env"], task["num_envs"], seed=0)
more = dict(task["theirs"])
if name == "td3":
    size = env.action_space.shape[0]
    more["action_noise"] = NormalActionNoise(np.zeros(size), 0.1 * np.ones(size))
model = getattr(sb3, name.upper())(
    "MlpPolicy", env, seed=0, device="cpu", policy_kwargs={"net_arch": task["widths"]}, **more
)

class Clock(BaseCallback):
    begun = None

    def _on_step(self):
        if self.begun is None and self.num_timesteps >= task["steps"] // 10:
            self.begun = (self.num_timesteps, time.perf_counter())
        return True

clock = Clock()
model.learn(task["steps"], callback=clock)
steps, at = clock.begun
print(json.dumps({"rate": (model.num_timesteps - steps) / (time.perf_counter() - at), "version": sb3.__version__}))
"""
OURS = """
import json, sys, tempfile
import torch
torch.set_num_threads(json.loads(sys.argv[2])["threads"])
import herdbook
from herdbook.core.memory import keep_freed_memory

keep_freed_memory()
name, task = sys.argv[1], json.loads(sys.argv[2])
config = {k: tuple(v) if isinstance(v, list) else v for k, v in task["ours"].items()}
with tempfile.TemporaryDirectory() as folder:
    run = herdbook.train(
        name, env=task["env"], steps=task["steps"], num_envs=task["num_envs"], eval_episodes=0, quiet=True,
        run_dir=folder + "/run", threads=task["threads"], log_every=task["steps"] // 20, **config
    )
    lines = [json.loads(line) for line in (run.path / "timing.jsonl").read_text().splitlines()]
first, last = lines[1], lines[-1]
print(json.dumps({"rate": (last["step"] - first["step"]) / (last["seconds"] - first["seconds"])}))
"""


@contextmanager
def peer_python(given: str | None, *packages: str) -> Iterator[str]:
    """The Python of an environment that has these packages; unless one is given, it is created and then removed."""
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory() as folder:
        print(f"installing {packages[0]} into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / "bin" / "python")
        torch = f"torch=={version('torch').partition('+')[0]}"  # the same on both sides
        subprocess.run([python, "-m", "pip", "install", "--quiet", torch], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        yield python


def measure(python: str, script: str, name: str, task: dict[str, Any]) -> dict[str, Any]:
    """Run `script` for one task in a process of its own, with `task["threads"]` threads, and return its JSON."""
    words = [python, "-W", "ignore", "-c", script, name, json.dumps(task)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(task["threads"])}
    ran = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    answer: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return answer


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sb3-python", help="Python of an environment with stable-baselines3; by default the benchmark creates one"
    )
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="numbers of torch threads to measure")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each side")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of steps")
    options = parser.parse_args()
    print(f"{platform.platform()}, {os.cpu_count()} cores, torch {version('torch')}\n")
    print("| algorithm | environment | copies | threads | herdbook, steps/s | stable-baselines3's | ratio (range) |")
    print("|---|---|---|---|---|---|---|")
    with peer_python(options.sb3_python, SB3, "gymnasium[mujoco]") as python:
        for name, threads in itertools.product(options.tasks, options.threads):
            task = {**TASKS[name], "steps": int(TASKS[name]["steps"] * options.scale), "threads": threads}
            pairs = []
            for _ in range(options.pairs):
                pairs.append((measure(sys.executable, OURS, name, task), measure(python, THEIRS, name, task)))
            ratios = sorted(ours["rate"] / theirs["rate"] for ours, theirs in pairs)
            mine, other = (statistics.median(pair[side]["rate"] for pair in pairs) for side in (0, 1))
            their_version = pairs[0][1]["version"]
            print(
                f"| {name} | {task['env']} | {task['num_envs']} | {threads} | {mine:.0f} "
                f"| {other:.0f} ({their_version}) "
                f"| **{statistics.median(ratios):.2f}** ({ratios[0]:.2f}–{ratios[-1]:.2f}) |",
                flush=True,
            )


if __name__ == "__main__":
    main()
