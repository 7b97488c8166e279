"""Which frames and crops a view takes, on cases that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from datamodules.video_sampling import (
    crop_corners,
    dense_indices,
    random_start,
    uniform_clip,
    window_starts,
)
from vision.clips import uniform_indices
from vision.errors import InputError


def test_a_clip_takes_every_stride_th_frame():
    assert dense_indices(20, 4, 3, start=5).tolist() == [5, 8, 11, 14]


def test_a_video_that_is_too_short_is_repeated():
    assert dense_indices(3, 8, 2, start=0).tolist() == [0, 2, 1, 0, 2, 1, 0, 2]
    assert dense_indices(1, 4, 5, start=0).tolist() == [0, 0, 0, 0]


def test_several_starts_give_a_row_each():
    assert dense_indices(9, 3, 2, np.array([0, 4, 6])).tolist() == [[0, 2, 4], [4, 6, 8], [6, 8, 1]]


def test_training_clips_start_anywhere_that_leaves_room():
    random = np.random.default_rng(0)
    # The last frame is start + 3 * 2, of 10: starts 0 to 3.
    assert {random_start(10, 4, 2, random) for _ in range(200)} == {0, 1, 2, 3}
    assert {random_start(7, 4, 2, random) for _ in range(20)} == {0}
    # Too short: any of the three frames, since the video is repeated.
    assert {random_start(3, 4, 2, random) for _ in range(100)} == {0, 1, 2}


def test_test_clips_spread_from_the_first_to_the_last_start():
    # 100 frames, clips of 8 * 4 = 32: from 0 to 68, by 22.67, rounded down.
    assert window_starts(100, 8, 4, 4).tolist() == [0, 22, 45, 68]
    assert window_starts(100, 8, 4, 2).tolist() == [0, 68]
    assert window_starts(31, 8, 4, 3).tolist() == [0, 0, 0]


def test_a_single_test_clip_is_the_central_one():
    assert window_starts(100, 8, 4, 1).tolist() == [34]
    assert window_starts(33, 8, 4, 1).tolist() == [0]
    assert window_starts(10, 8, 4, 1).tolist() == [0]


def test_uniform_frames_keep_their_distance_from_the_ends():
    assert uniform_indices(10, 4).tolist() == [2, 4, 6, 8]
    assert uniform_indices(10, 1).tolist() == [5]


def test_uniform_frames_of_a_short_video_are_all_that_it_has_and_stand_still_in_a_clip():
    assert uniform_indices(4, 8).tolist() == [0, 1, 2, 3]
    assert uniform_clip(4, 8).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert uniform_clip(3, 4).tolist() == [0, 0, 1, 2]
    assert uniform_clip(10, 4).tolist() == uniform_indices(10, 4).tolist()


@pytest.mark.parametrize("count", [1, 2, 7, 16, 17, 300])
def test_uniform_clips_have_their_length_and_stay_in_the_video(count):
    clip = uniform_clip(count, 16)
    assert clip.shape == (16,)
    assert clip.min() >= 0
    assert clip.max() < count
    assert (np.diff(clip) >= 0).all()


def test_crops_lie_along_the_longer_side():
    # 340 - 224 = 116 and 256 - 224 = 32 pixels are left over.
    assert crop_corners(256, 340, 224, 3).tolist() == [[16, 0], [16, 58], [16, 116]]
    assert crop_corners(340, 256, 224, 3).tolist() == [[0, 16], [58, 16], [116, 16]]
    assert crop_corners(256, 256, 224, 3).tolist() == [[16, 0], [16, 16], [16, 32]]


def test_half_a_pixel_is_rounded_up_in_the_centre():
    assert crop_corners(257, 341, 224, 1).tolist() == [[17, 59]]


def test_crops_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="crops must be 1 or 3, got 2"):
        crop_corners(256, 340, 224, 2)
    with pytest.raises(InputError, match="a crop of 300 pixels does not fit a frame of 340x256"):
        crop_corners(256, 340, 300, 1)
