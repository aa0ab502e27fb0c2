"""Returns of policies after a short training: herdbook against stable-baselines3, same settings and evaluation.

    python benchmarks/sb3_scores.py --out scores.jsonl [--sb3-python PATH] [--algorithms sac td3] [--seeds 0 1 2 3 4]
        [--steps 50000] [--side both]

Each (algorithm, seed) of each side trains in a process of its own with one thread. The final policy is evaluated
without noise in 20 episodes (reset seeds 10000 to 10019), and the result is appended to the file. Results that are
already in the file are not computed again, so an interrupted benchmark can be continued. At the end the benchmark
prints, as Markdown, the means with Student's interval over the seeds, and Welch's interval of their difference.

stable-baselines3 needs a Python environment of its own. PATH is the Python of such an environment; without PATH the
benchmark creates one in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from sb3_speed import SB3, measure, peer_python
from scipy import stats

from herdbook.evaluation.statistics import t_interval

ENVIRONMENT = "HalfCheetah-v5"
EPISODES, EVALUATION_SEED = 20, 10_000
TASKS: dict[str, dict[str, Any]] = {  # both sides' defaults, except for these
    "sac": {"ours": {"warmup_steps": 1_000}, "theirs": {"learning_starts": 1_000}, "widths": [256, 256]},
    "td3": {  # as in stable-baselines3's tuned settings for this task
        "ours": {"warmup_steps": 10_000, "hidden_sizes": (400, 300), "actor_lr": 1e-3, "critic_lr": 1e-3},
        "theirs": {"learning_starts": 10_000, "learning_rate": 1e-3, "batch_size": 256},
        "widths": [400, 300],
    },
}
THEIRS = """
import json, sys
import gymnasium, numpy as np, torch
torch.set_num_threads(1)
import stable_baselines3 as sb3
from stable_baselines3.common.noise import NormalActionNoise

name, task = sys.argv[1], json.loads(sys.argv[2])
env, more = gymnasium.make(task["env"]), dict(task["theirs"])
if name == "td3":
    size = env.action_space.shape[0]
    more["action_noise"] = NormalActionNoise(np.zeros(size), 0.1 * np.ones(size))
model = getattr(sb3, name.upper())(
    "MlpPolicy", env, seed=task["seed"], device="cpu", policy_kwargs={"net_arch": task["widths"]}, **more
)
model.learn(task["steps"])
returns = []
env = gymnasium.make(task["env"])
for episode in range(task["episodes"]):
    observation, over, total = env.reset(seed=task["evaluation_seed"] + episode)[0], False, 0.0
    while not over:
        action = model.predict(observation, deterministic=True)[0]
        observation, reward, terminated, truncated, _ = env.step(action)
        total, over = total + float(reward), terminated or truncated
    returns.append(total)
print(json.dumps({"returns": returns, "version": sb3.__version__}))
"""
OURS = """
import json, sys, tempfile
import torch
torch.set_num_threads(1)
import herdbook
from importlib.metadata import version
from herdbook.core.memory import keep_freed_memory

keep_freed_memory()
name, task = sys.argv[1], json.loads(sys.argv[2])
config = {k: tuple(v) if isinstance(v, list) else v for k, v in task["ours"].items()}
with tempfile.TemporaryDirectory() as folder:
    run = herdbook.train(
        name, env=task["env"], steps=task["steps"], seeds=[task["seed"]], quiet=True, run_dir=folder + "/run",
        threads=1, evaluate_every=task["steps"], eval_episodes=task["episodes"], eval_seed=task["evaluation_seed"],
        **config
    )
    print(json.dumps({"returns": run.evaluations()[-1]["returns"], "version": version("herdbook")}))
"""


def read(path: Path) -> list[dict[str, Any]]:
    """The results that the file contains."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []  # without an unfinished last line
    return [json.loads(line) for line in lines]


def table(rows: list[dict[str, Any]]) -> str:
    """The means of both sides over the seeds, and their differences, in Markdown."""
    lines = ["| algorithm | side | per seed | mean [95 % interval] |", "|---|---|---|---|"]
    differences = []
    for name in TASKS:
        sides = {side: means(rows, name, side) for side in ("ours", "theirs")}
        for side, values in sides.items():
            if len(values) > 1:
                mean = t_interval(values)
                each = ", ".join(f"{value:.0f}" for value in values)
                lines.append(f"| {name} | {side} | {each} | {mean.value:.0f} [{mean.low:.0f}, {mean.high:.0f}] |")
        ours, theirs = sides["ours"], sides["theirs"]
        if min(len(ours), len(theirs)) > 1:
            apart = float(np.mean(ours) - np.mean(theirs))
            low, high = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
            share = np.mean(ours) / np.mean(theirs)
            differences.append(f"{name}: ours − theirs {apart:.0f} [{low:.0f}, {high:.0f}], ours / theirs {share:.2f}")
    return "\n".join([*lines, "", *differences])


def means(rows: list[dict[str, Any]], algorithm: str, side: str) -> list[float]:
    """The mean return of each seed of one side, in the order of the seeds."""
    scores = {r["seed"]: r["returns"] for r in rows if r["algorithm"] == algorithm and r["side"] == side}
    return [float(np.mean(scores[seed])) for seed in sorted(scores)]


def main() -> None:
    """Train the runs that are missing from the file, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON-lines file to which results are appended")
    parser.add_argument(
        "--sb3-python", help="Python of an environment with stable-baselines3; by default the benchmark creates one"
    )
    parser.add_argument("--algorithms", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--side", choices=["ours", "theirs", "both"], default="both")
    options = parser.parse_args()
    sides = ("ours", "theirs") if options.side == "both" else (options.side,)
    with peer_python(options.sb3_python, SB3, "gymnasium[mujoco]") as python:
        for name in options.algorithms:
            for seed in options.seeds:
                for side in sides:
                    key = {"algorithm": name, "side": side, "seed": seed, "steps": options.steps}
                    if any(all(row[k] == v for k, v in key.items()) for row in read(options.out)):
                        continue
                    task = {
                        **TASKS[name],
                        "env": ENVIRONMENT,
                        "steps": options.steps,
                        "seed": seed,
                        "threads": 1,
                        "episodes": EPISODES,
                        "evaluation_seed": EVALUATION_SEED,
                    }
                    script, program = (OURS, sys.executable) if side == "ours" else (THEIRS, python)
                    answer = measure(program, script, name, task)
                    with options.out.open("a") as file:
                        file.write(json.dumps(key | answer) + "\n")
    print(table([row for row in read(options.out) if row["steps"] == options.steps]))


if __name__ == "__main__":
    main()
