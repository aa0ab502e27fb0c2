"""Environment steps per second of whole GAIL runs: herdbook against imitation.

    python benchmarks/gail_speed.py [--imitation-python PATH] [--threads 1 2] [--pairs 3]

Both sides train GAIL on PPO in CartPole-v1 from the same demonstrations of a linear controller, with the same settings
of PPO, the same widths and batches of the discriminator, and the same numbers of updates (see TASK). The protocol is
that of sb3_speed.py. imitation writes its log as CSV; herdbook also writes checkpoints, as a run does by default.

imitation needs a Python environment of its own, because it pins old versions of Gymnasium and stable-baselines3. PATH
is the Python of such an environment; without PATH the benchmark creates one in a temporary folder.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from sb3_speed import measure, peer_python

IMITATION = "imitation==1.0.1"
EPISODES, STEPS = 4, 500
PAIR = {"hidden_sizes": (32, 32), "discriminator_updates": 8, "batch_size": 256, "lr": 1e-3}
PPO = {"rollout_steps": 128, "batch_size": 256, "epochs": 10, "hidden_sizes": (64, 64), "lr": 3e-4, "discount": 0.99}
TASK: dict[str, Any] = {"env": "CartPole-v1", "steps": 100_000, "num_envs": 8, "pair": PAIR, "ppo": PPO}
THEIRS = """
import json, sys, tempfile, time
import numpy as np, torch
torch.set_num_threads(json.loads(sys.argv[2])["threads"])
import imitation
from imitation.algorithms.adversarial.gail import GAIL
from imitation.data.types import Transitions
from imitation.rewards.reward_nets import BasicRewardNet
from imitation.util import logger
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

task = json.loads(sys.argv[2])
ppo, pair, data = task["ppo"], task["pair"], dict(np.load(task["data"]))
del data["ends"]
env = make_vec_env(task["env"], task["num_envs"], seed=0)
policy = PPO(
    "MlpPolicy", env, seed=0, device="cpu", n_steps=ppo["rollout_steps"], batch_size=ppo["batch_size"],
    n_epochs=ppo["epochs"], learning_rate=ppo["lr"], gamma=ppo["discount"],
    policy_kwargs={"net_arch": list(ppo["hidden_sizes"])},
)
steps = ppo["rollout_steps"] * task["num_envs"]
begun = None

def clock(number):
    global begun
    if begun is None and (number + 1) * steps >= task["steps"] // 10:
        begun = (number, time.perf_counter())

with tempfile.TemporaryDirectory() as folder:
    trainer = GAIL(
        demonstrations=Transitions(infos=np.array([{}] * len(data["acts"])), **data),
        demo_batch_size=pair["batch_size"] // 2, gen_replay_buffer_capacity=steps,
        n_disc_updates_per_round=pair["discriminator_updates"], venv=env, gen_algo=policy,
        reward_net=BasicRewardNet(env.observation_space, env.action_space, hid_sizes=tuple(pair["hidden_sizes"])),
        disc_opt_kwargs={"lr": pair["lr"]}, allow_variable_horizon=True,
        custom_logger=logger.configure(folder, ["csv"]),
    )
    trainer.train(task["steps"], clock)
rounds, at = begun
rate = (task["steps"] // steps - 1 - rounds) * steps / (time.perf_counter() - at)
print(json.dumps({"rate": rate, "version": imitation.__version__}))
"""
OURS = """
import json, sys, tempfile
import numpy as np, torch
torch.set_num_threads(json.loads(sys.argv[2])["threads"])
import gymnasium
import herdbook
from herdbook.core.memory import keep_freed_memory
from herdbook.datasets.episodes import Episodes
from herdbook.irl.gail import GAILConfig
from herdbook.online.ppo import PPOConfig

keep_freed_memory()
task = json.loads(sys.argv[2])
data, env = np.load(task["data"]), gymnasium.make(task["env"])
ends = np.flatnonzero(data["ends"]) + 1
episodes = [
    {
        "observations": np.concatenate([data["obs"][begin:end], data["next_obs"][end - 1 : end]]),
        "actions": data["acts"][begin:end], "rewards": np.ones(end - begin), "terminated": False, "truncated": True,
    }
    for begin, end in zip([0, *ends[:-1]], ends)
]
data = Episodes.from_episodes(episodes, observation_space=env.observation_space, action_space=env.action_space)
ppo, pair = ({k: tuple(v) if isinstance(v, list) else v for k, v in task[name].items()} for name in ("ppo", "pair"))
config = GAILConfig(ppo=PPOConfig(**ppo), standardise_observations=False, allow_variable_horizon=True, **pair)
with tempfile.TemporaryDirectory() as folder:
    run = herdbook.train(
        config, dataset=data, env=task["env"], steps=task["steps"], num_envs=task["num_envs"], eval_episodes=0,
        quiet=True, run_dir=folder + "/run", threads=task["threads"], log_every=task["steps"] // 20,
    )
    lines = [json.loads(line) for line in (run.path / "timing.jsonl").read_text().splitlines()]
first, last = lines[1], lines[-1]
print(json.dumps({"rate": (last["step"] - first["step"]) / (last["seconds"] - first["seconds"])}))
"""


def demonstrations(path: Path) -> Path:
    """Write whole episodes of a linear controller to an npz file, with the fields of imitation's transitions."""
    env, rows = gymnasium.make(TASK["env"]), list[tuple[Any, ...]]()
    for number in range(EPISODES):
        seen, _ = env.reset(seed=number)
        for step in range(1, STEPS + 1):
            action = int(seen @ np.array([0.1, 0.3, 1.0, 0.5]) > 0)
            following, _, terminated, _, _ = env.step(action)
            assert not terminated, "the controller balances the pole"
            rows.append((seen, action, following, step == STEPS))
            seen = following
    obs, acts, next_obs, ends = map(np.array, zip(*rows, strict=True))
    np.savez(path, obs=obs, acts=acts, next_obs=next_obs, dones=np.zeros(len(acts), dtype=bool), ends=ends)
    return path


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--imitation-python", help="Python of an environment with imitation; by default one is created")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="numbers of torch threads to measure")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each side")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of steps")
    options = parser.parse_args()
    print(f"{platform.platform()}, {os.cpu_count()} cores, torch {version('torch')}\n")
    print("| environment | copies | threads | herdbook, steps/s | imitation's | ratio (range) |")
    print("|---|---|---|---|---|---|")
    with peer_python(options.imitation_python, IMITATION) as python, tempfile.TemporaryDirectory() as folder:
        data = str(demonstrations(Path(folder) / "expert.npz"))
        for threads in options.threads:
            task = {**TASK, "steps": int(TASK["steps"] * options.scale), "threads": threads, "data": data}
            pairs = []
            for _ in range(options.pairs):
                pairs.append((measure(sys.executable, OURS, "gail", task), measure(python, THEIRS, "gail", task)))
            ratios = sorted(ours["rate"] / theirs["rate"] for ours, theirs in pairs)
            mine, other = (statistics.median(pair[side]["rate"] for pair in pairs) for side in (0, 1))
            print(
                f"| {task['env']} | {task['num_envs']} | {threads} | {mine:.0f} "
                f"| {other:.0f} ({pairs[0][1]['version']}) "
                f"| **{statistics.median(ratios):.2f}** ({ratios[0]:.2f}–{ratios[-1]:.2f}) |",
                flush=True,
            )


if __name__ == "__main__":
    main()
