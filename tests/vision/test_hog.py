"""Histograms of oriented gradients: scikit-image's numbers, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.feature import hog
from skimage.transform import resize
from sklearn.datasets import load_digits
from torch.testing import assert_close

from vision.errors import InputError
from vision.hog import HOG, load_official


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    """``(10, 32, 32)``, one handwritten digit of each kind, in [0, 1]."""
    return np.stack([resize(image / 16, (32, 32), order=1) for image in load_digits().images[:10]])


def _skimage(picture: np.ndarray) -> np.ndarray:
    return hog(picture, orientations=9, pixels_per_cell=(8, 8), cells_per_block=(2, 2), block_norm="L2-Hys")


@pytest.mark.parametrize("crop", [(32, 32), (16, 16), (16, 24), (29, 18)])
def test_the_features_are_scikit_images(digits, crop):
    pictures = digits[:, : crop[0], : crop[1]]
    images = torch.from_numpy(pictures).float()[:, None].expand(-1, 3, -1, -1)
    model = HOG(0, crop)
    features = model(images)
    expected = torch.from_numpy(np.stack([_skimage(picture) for picture in pictures])).float()
    assert features.shape == (10, model.num_features)
    assert_close(features, expected, rtol=0, atol=1e-6)


def test_of_colours_the_mean_counts(digits):
    picture = torch.from_numpy(digits[3]).float()
    colours = torch.stack([picture, torch.zeros_like(picture), 2 * picture])
    assert_close(HOG(0, (32, 32))(colours[None])[0], torch.from_numpy(_skimage(digits[3])).float(), rtol=0, atol=1e-6)


def test_a_vertical_edge_votes_for_one_direction():
    image = torch.zeros(1, 3, 16, 16)
    image[..., 8:] = 1
    features = HOG(0, (16, 16))(image).view(4, 9)  # cells, directions
    # Four equal votes in one block, 1/2 each, are cut to 0.2 and brought back to length 1.
    assert_close(features[:, 0], torch.full((4,), 0.5), rtol=0, atol=1e-6)
    assert not features[:, 1:].any()


def test_light_on_dark_is_as_dark_on_light(digits):
    images = torch.from_numpy(digits).float()[:, None].expand(-1, 3, -1, -1)
    model = HOG(0, (32, 32))
    assert_close(model(1 - images), model(images), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(digits, dtype):
    images = torch.from_numpy(digits).float()[:, None].expand(-1, 3, -1, -1)
    images = torch.cat([images, torch.full_like(images[:1], 0.5)])  # the last without any gradient
    model = HOG(4, (32, 32)).to(dtype)
    features = model.forward_features(images.to(dtype))
    assert features.dtype == dtype
    assert not features[-1].any()
    assert (features.float() - HOG(0, (32, 32))(images)).abs().mean() < 0.01
    assert model(images.to(dtype)).isfinite().all()


def test_the_classifier_is_all_that_is_trained_and_is_kept(digits):
    torch.manual_seed(0)
    model = HOG(4, (32, 32))
    assert {name: tuple(value.shape) for name, value in model.named_parameters()} == {
        "head.weight": (4, 324),
        "head.bias": (4,),
    }
    images = torch.from_numpy(digits).float()[:, None].expand(-1, 3, -1, -1)
    assert torch.equal(load_official(model.state_dict())(images), model(images))
    model.reset_classifier(0)
    assert model(images).shape == (10, 324)


def test_pictures_without_room_for_a_block():
    with pytest.raises(InputError) as caught:
        HOG(4, (32, 15))
    assert str(caught.value) == "HOG takes pictures of at least 16x16 pixels, got 32x15"
