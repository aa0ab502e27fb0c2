"""Games with two sides, whose rewards no team should sum up."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

_SIDES = {
    "mpe2/simple_adversary": ("adversary_*", "agent_*"),
    "mpe2/simple_crypto": ("eve_*", "alice_* bob_*"),
    "mpe2/simple_push": ("adversary_*", "agent_*"),
    "mpe2/simple_tag": ("adversary_*", "agent_*"),
    "mpe2/simple_world_comm": ("*adversary_*", "agent_*"),
    "magent2/adversarial_pursuit": ("predator_*", "prey_*"),
    **{f"magent2/{game}": ("red*", "blue*") for game in ("battle", "battlefield", "combined_arms")},
    "magent2/tiger_deer": ("tiger_*", "deer_*"),
    **{
        f"atari/{game}": ("first_*", "second_*")
        for game in (
            *("boxing", "combat_plane", "combat_tank", "double_dunk", "entombed_competitive", "flag_capture"),
            *("ice_hockey", "maze_craze", "othello", "pong", "space_war", "surround", "tennis", "video_checkers"),
        )
    },
}
"""Simultaneous games that are known to have two sides, and the patterns of their agents as for `--learn`."""


def sides_of(name: str, agents: Sequence[str]) -> tuple[str, str] | None:
    """The patterns of the two sides of a game, for `--learn`; None if only one of them is among `agents`.

    None does not mean that there are no sides: it is also the answer for unknown games.
    """
    found = re.fullmatch(r"(\w+)(\.\w+)*/(\w+)_v\d+", name)
    sides = _SIDES.get(f"{found[1]}/{found[3]}") if found else None
    if sides is None:
        return None
    present = [any(fnmatchcase(a, p) for a in agents for p in patterns.split()) for patterns in sides]
    return sides if all(present) else None
