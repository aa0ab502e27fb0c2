"""Atari games as deep Q-learning plays them (Mnih et al. 2015; Machado et al. 2018, arXiv:1709.06009).

The name `ALE/Pong-v5` means the game seen through Gymnasium's `AtariPreprocessing`: an action lasts 4 frames, of which
the last two are merged, made grey and 84 × 84, uint8; up to 30 no-ops begin an episode; with probability 0.25 a frame
repeats the action before (`repeat_action_probability`). The wrapper is a part of the environment's spec: so data and
runs record it, and plain Gymnasium makes it again. `obs_type` or `frameskip` asks for the game without it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
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
    """Whether a name, with these keyword arguments, means a game as above."""
    return re.fullmatch(r"ALE/\w+-v5", name) is not None and not any(key in arguments for key in _RAW)


def preprocessed(spec: EnvSpec) -> EnvSpec:
    """The registered spec of a game with `AtariPreprocessing`, which skips the frames in the game's stead."""
    spec = copy.deepcopy(spec)
    spec.kwargs |= {"frameskip": 1, "obs_type": "grayscale"}  # the wrapper reads the screen itself: colours cost 13 %
    spec.additional_wrappers = (WrapperSpec("AtariPreprocessing", _ENTRY_POINT, dict(_DEFAULTS)),)
    return spec


def with_arguments(spec: EnvSpec, arguments: Mapping[str, Any]) -> tuple[EnvSpec, dict[str, Any]]:
    """A spec whose `AtariPreprocessing` has those of the arguments that are its own, and the other arguments."""
    own = {name: value for name, value in arguments.items() if name in _ARGUMENTS}
    if not own or not any(wrapper.entry_point == _ENTRY_POINT for wrapper in spec.additional_wrappers):
        return spec, dict(arguments)
    spec = copy.deepcopy(spec)
    spec.additional_wrappers = tuple(
        WrapperSpec(wrapper.name, wrapper.entry_point, {**(wrapper.kwargs or {}), **own})
        if wrapper.entry_point == _ENTRY_POINT
        else wrapper
        for wrapper in spec.additional_wrappers
    )
    return spec, {name: value for name, value in arguments.items() if name not in own}


def ends_with_a_life(spec: EnvSpec) -> bool:
    """Whether an episode is one life: a help to learning, of which no evaluation is made (Machado et al. 2018, 4.1)."""
    return any(
        wrapper.entry_point == _ENTRY_POINT and (wrapper.kwargs or {}).get("terminal_on_life_loss", False)
        for wrapper in spec.additional_wrappers
    )


def silence_banner() -> None:
    """Keep the emulator from printing its name and version when the first game is made."""
    import ale_py

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
