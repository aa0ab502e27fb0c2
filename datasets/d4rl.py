"""D4RL: its reference scores and its HDF5 layouts, neither of which needs the `d4rl` package."""

from __future__ import annotations

import re

from herdbook.core.environments import ReferenceScores

D4RL_REFERENCES = {
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
    "maze2d-umaze": (23.85, 161.86),
    "maze2d-medium": (13.13, 277.39),
    "maze2d-large": (6.7, 273.99),
    "antmaze": (0.0, 1.0),
    "pen": (96.262799, 3076.8331017826877),
    "hammer": (-274.856578, 12794.134825156867),
    "relocate": (-6.425911, 4233.877797728884),
    "door": (-56.512833, 2880.5693087298737),
    "kitchen": (0.0, 4.0),
}
"""Environment family -> (random, expert) return of Fu et al. 2020, arXiv:2004.07219 (d4rl/infos.py)."""

_MUJOCO = ("halfcheetah", "hopper", "walker2d", "ant")


def d4rl_references(name: str) -> ReferenceScores | None:
    """The D4RL reference scores of a D4RL dataset (`hopper-medium-v2`) or a Gymnasium MuJoCo environment (`Hopper-v5`).

    D4RL measured them in its own environments; for a Gymnasium environment they are a convention, and labelled so.
    None for other names.
    """
    found = re.fullmatch(r"([A-Za-z0-9]+)-v(\d+)", name)
    if found and found[1].lower() in _MUJOCO:
        scores = D4RL_REFERENCES[found[1].lower()]
        return ReferenceScores(*scores, source=f"D4RL (Fu et al. 2020), applied to {name} by convention")
    for family, scores in D4RL_REFERENCES.items():
        if re.match(rf"{family}\b", name.lower()):
            return ReferenceScores(*scores, source="D4RL (Fu et al. 2020)")
    return None
