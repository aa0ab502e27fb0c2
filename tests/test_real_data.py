"""Every algorithm on every real dataset that fits it. Skipped where the datasets are not there."""

import json
import math
from pathlib import Path

import pytest

from herdbook.cli.main import main

CONTINUOUS = ("bc", "bcq", "cql", "td3_bc", "iql")
DISCRETE = ("bc", "discrete_bcq", "discrete_cql")
DATASETS = {
    "rlzoo/hopper/expert-v0": CONTINUOUS,
    "rlzoo/hopper/medium-v0": CONTINUOUS,
    "rlzoo/hopper/mixed-v0": CONTINUOUS,
    "rlzoo/pendulum/expert-v0": CONTINUOUS,
    "rlzoo/pendulum/mixed-v0": CONTINUOUS,
    "rlzoo/cartpole/expert-v0": DISCRETE,
    "rlzoo/cartpole/mixed-v0": DISCRETE,
}


@pytest.mark.slow  # up to a minute each
@pytest.mark.parametrize(("dataset", "name"), [(d, name) for d, names in DATASETS.items() for name in names])
def test_it_trains_and_is_scored(shared_data: Path, dataset: str, name: str) -> None:
    words = ("train", name, "--dataset", dataset, "--data-dir", str(shared_data), "--steps", "300")
    assert main([*words, "--eval-episodes", "5", "--threads", "1", "--run-dir", "r"]) == 0
    lines = [json.loads(line) for line in Path("r/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 300
    losses = [value for line in lines for key, value in line.items() if key.startswith("loss/")]
    assert losses and all(math.isfinite(value) for value in losses)
    final = json.loads(Path("r/evaluations.jsonl").read_text().splitlines()[-1])
    assert final["step"] == 300 and len(final["returns"]) == 5
    assert final["normalized_score"] is not None
