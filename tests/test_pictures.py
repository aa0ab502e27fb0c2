"""Pictures are scaled by the bounds of their space, whatever the axis of the channels and the stacking of frames."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from herdbook.core.frames import Frames
from herdbook.core.networks import Encoder
from herdbook.core.runner import VectorRunner, fixed_episodes
from herdbook.core.spaces import channels_first, flat_space, is_image
from herdbook.datasets.arrays import from_arrays
from herdbook.datasets.episodes import DataError
from herdbook.datasets.minari import read_minari, write_minari


def _picture(shape: tuple[int, ...], low: int = 0, high: int = 255) -> spaces.Box:
    return spaces.Box(low, high, shape, np.uint8)


def _values(*shape: int, high: int = 255) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, high + 1, shape, dtype=np.uint8))


@pytest.mark.parametrize("high", [1, 10, 255])
@pytest.mark.parametrize("shape", [(8, 9, 2), (40, 40, 1), (3, 16, 16)])
def test_the_largest_value_of_the_space_is_one(shape: tuple[int, ...], high: int) -> None:
    bright, seen = Encoder(_picture(shape)), Encoder(_picture(shape, high=high))
    seen.load_state_dict(bright.state_dict())
    bits = _values(5, *shape, high=1)
    torch.testing.assert_close(seen(bits * high), bright(bits * 255))


def test_the_smallest_value_of_the_space_is_zero() -> None:
    encoder, from_zero = Encoder(_picture((8, 8, 1), low=100, high=200)), Encoder(_picture((8, 8, 1), high=100))
    encoder.load_state_dict(from_zero.state_dict())
    images = _values(4, 8, 8, 1, high=100)
    torch.testing.assert_close(encoder(images + 100), from_zero(images))


@pytest.mark.parametrize(
    ("shape", "first"),
    [
        ((84, 84, 3), False),
        ((84, 84, 12), False),
        ((210, 160, 3), False),
        ((7, 7, 3), False),
        ((8, 9, 12), False),
        ((1, 1, 3), False),
        ((4, 5, 6), False),
        ((3, 84, 84), True),
        ((4, 84, 84), True),
        ((3, 210, 160), True),
        ((3, 7, 7), True),
        ((12, 64, 64), True),
        ((1, 84, 84), True),
        ((1, 40, 1), False),
    ],
)
def test_the_axis_of_the_channels(shape: tuple[int, ...], first: bool) -> None:
    assert channels_first(shape) is first


@pytest.mark.parametrize("shape", [(4, 40, 44), (12, 40, 40), (3, 7, 7)])
def test_channels_first_are_encoded_as_channels_last(shape: tuple[int, ...]) -> None:
    last, first = Encoder(_picture((*shape[1:], shape[0]))), Encoder(_picture(shape))
    first.load_state_dict(last.state_dict())
    images = _values(2, 5, *shape)
    torch.testing.assert_close(first(images), last(images.movedim(-3, -1)))


@pytest.mark.parametrize("shape", [(40, 44, 3), (3, 40, 44)])
def test_a_stack_of_colour_frames_is_a_picture_with_more_channels(shape: tuple[int, ...]) -> None:
    space = _picture((4, *shape))
    assert is_image(space) and flat_space(space) == space
    stacked, frames = Encoder(space), Frames(_picture(shape), 4)
    laid_out = Encoder(frames.space)
    images = _values(2, 4, *shape)
    assert frames.space.shape == (40, 44, 12)
    stacked.load_state_dict(laid_out.state_dict())
    torch.testing.assert_close(stacked(images), laid_out(frames(images)))


def test_frames_with_channels_first_are_stacked_along_the_channels() -> None:
    images = _values(2, 3, 4, 9, 8)  # 2 stacks of 3 frames of 4 channels
    frames = Frames(_picture((4, 9, 8)), 3)
    assert frames.space.shape == (9, 8, 12)
    assert torch.equal(frames(images)[..., 4:8], images[:, 1].movedim(1, -1))


class Shown(gymnasium.Env[Any, Any]):
    """Pictures of a given shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.observation_space, self.action_space = _picture(shape), spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return np.full(self.observation_space.shape, 7, np.uint8), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.full(self.observation_space.shape, 8, np.uint8), 0.0, True, False, {}


def test_an_environments_stacked_frames_stay_uint8() -> None:
    runner = VectorRunner(lambda: Shown((4, 9, 8, 3)), 2, fixed_episodes(2, 0))
    assert runner._observations.shape == (2, 4, 9, 8, 3) and runner._observations.dtype == np.uint8


COLUMNS: tuple[Any, ...] = (np.array([0, 1, 0]), np.zeros(3), np.array([False, False, True]), np.zeros(3, bool))


@pytest.mark.parametrize("shape", [(9, 9), (9, 8, 3), (3, 9, 8), (4, 9, 8, 3)])
@pytest.mark.parametrize("high", [1, 255])
def test_uint8_arrays_are_pictures(shape: tuple[int, ...], high: int, minari_root: Any) -> None:
    images = _values(4, *shape, high=high).numpy()
    images.flat[0] = high
    data = from_arrays(images, *COLUMNS)
    if high == 1 and len(shape) == 2:
        assert data.observation_space == spaces.Box(0, 1, (81,), np.float32)  # bits, scaled as they are
        return
    assert data.observation_space == _picture(shape, high=high) and data.observations.dtype == np.uint8
    write_minari(data, "mine/pictures-v0")
    again = read_minari("mine/pictures-v0")
    assert again.observation_space == data.observation_space
    np.testing.assert_array_equal(again.observations, images)


def test_flattened_pictures_are_refused_until_their_space_is_told() -> None:
    images = _values(4, 81).numpy()
    with pytest.raises(DataError, match=r"expected observations of uint8 as images .* or give observation_space=Box"):
        from_arrays(images, *COLUMNS)
    data = from_arrays(images, *COLUMNS, observation_space=_picture((81,)))
    assert data.observations.dtype == np.float32


def test_a_picture_without_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match="expected an image with bounds"):
        Encoder(spaces.Box(-np.inf, np.inf, (8, 8, 3), np.float32))
