"""Atari games with the preprocessing of deep Q-learning (Mnih et al. 2015; Machado et al. 2018, arXiv:1709.06009).

The name `ALE/Pong-v5` means the game with Gymnasium's `AtariPreprocessing`: an action lasts 4 frames, whose last two
are max-pooled to one grey 84 × 84 uint8 image; an episode begins with 1 to 30 no-ops; each frame repeats the previous
action with probability 0.25 (`repeat_action_probability`). The wrapper is part of the environment's spec, so datasets
and runs record it and plain Gymnasium can make it again. Passing `obs_type` or `frameskip` gives the game without it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gymnasium.envs.registration import EnvSpec, WrapperSpec

_ENTRY_POINT = "gymnasium.wrappers.atari_preprocessing:AtariPreprocessing"
_DEFAULTS = {
    "noop_max": 30,
    "frame_skip": 4,
    "screen_size": 84,
    "terminal_on_life_loss": False,
    "grayscale_obs": True,
    "grayscale_newaxis": False,
    "scale_obs": False,
}
_ARGUMENTS = ("noop_max", "frame_skip", "screen_size", "terminal_on_life_loss", "grayscale_obs")  # pixels stay uint8
_RAW = ("obs_type", "frameskip")


def is_game(name: str, arguments: Mapping[str, Any]) -> bool:
    """True if the name, with these keyword arguments, means a game with preprocessing."""
    return re.fullmatch(r"ALE/\w+-v5", name) is not None and not any(key in arguments for key in _RAW)


def preprocessed(spec: EnvSpec) -> EnvSpec:
    """Add `AtariPreprocessing` to a game's registered spec; the wrapper then skips frames instead of the game."""
    spec = copy.deepcopy(spec)
    spec.kwargs |= {"frameskip": 1, "obs_type": "grayscale"}  # unread by the wrapper; colour costs 13 %
    spec.additional_wrappers = (WrapperSpec("AtariPreprocessing", _ENTRY_POINT, dict(_DEFAULTS)),)
    return spec


def with_arguments(spec: EnvSpec, arguments: Mapping[str, Any]) -> tuple[EnvSpec, dict[str, Any]]:
    """Move the arguments of `AtariPreprocessing` into the spec's wrapper; returns the spec and the other arguments."""
    own = {name: value for name, value in arguments.items() if name in _ARGUMENTS}
    if not own or not any(wrapper.entry_point == _ENTRY_POINT for wrapper in spec.additional_wrappers):
        return spec, dict(arguments)
    spec = copy.deepcopy(spec)
    spec.additional_wrappers = tuple(
        replace(wrapper, kwargs={**(wrapper.kwargs or {}), **own}) if wrapper.entry_point == _ENTRY_POINT else wrapper
        for wrapper in spec.additional_wrappers
    )
    return spec, {name: value for name, value in arguments.items() if name not in own}


def ends_with_a_life(spec: EnvSpec) -> bool:
    """True if an episode ends with a life, which is meant for training only (Machado et al. 2018, § 4.1)."""
    return any(
        wrapper.entry_point == _ENTRY_POINT and (wrapper.kwargs or {}).get("terminal_on_life_loss", False)
        for wrapper in spec.additional_wrappers
    )


def silence_banner() -> None:
    """Stop the emulator from printing its name and version when the first game is made."""
    import ale_py

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
