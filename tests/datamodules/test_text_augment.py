"""Pictures of words become tensors: the official resize, aspect, rotation, and the published augmentation."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import timm.data.auto_augment as timm_tables
import torch
from PIL import Image

from datamodules.text_augment import WordAugment, operations
from datamodules.text_images import PREPROCESSING
from datamodules.text_transforms import TextTransform

EXPECTED = (
    (0.952941, -0.843137, 0.600000, -0.584314),
    (-0.670588, -0.035294, 0.733333, -0.121569),
    (0.458824, -0.466667, -0.286274, -0.749020),
    (-0.349020, 0.890196, 0.082353, 0.592157),
)


def _noise(height: int = 20, width: int = 50) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_the_official_preprocessing():
    """Values of CFE's own transform (commit 0f2ea6f) for this picture: every 8th row and 32nd column of red."""
    found = TextTransform(PREPROCESSING)(_noise())
    assert (found.shape, found.dtype) == ((3, 32, 128), torch.float32)
    expected = torch.tensor(EXPECTED)
    assert torch.allclose(found[0, ::8, ::32], expected, atol=1e-6)


def test_aspect_may_be_kept():
    white = np.full((10, 20, 3), 255, np.uint8)
    kept = TextTransform(PREPROCESSING, keep_aspect=True)(white)
    assert (kept[:, :, :64] == 1).all()
    assert torch.allclose(kept[:, :, 64:], torch.tensor((128 / 255 - 0.5) / 0.5), atol=1e-6)
    assert (TextTransform(PREPROCESSING, keep_aspect=True)(np.repeat(white, 9, axis=1)) == 1).all()
    assert (TextTransform(PREPROCESSING)(white) == 1).all()


def test_rotation_turns_without_cutting():
    picture = _noise(32, 128)
    turned = TextTransform(PREPROCESSING, rotation=180)(picture)
    assert torch.equal(turned, TextTransform(PREPROCESSING)(picture).flip(1, 2))
    upright = TextTransform(PREPROCESSING, rotation=90)(np.rot90(picture, -1).copy())
    assert torch.equal(upright, TextTransform(PREPROCESSING)(picture))


def test_the_sixteen_operations():
    before = dict(timm_tables.NAME_TO_OP), dict(timm_tables.LEVEL_TO_ARG)
    found = {operation.name: operation for operation in operations()}
    assert set(found) == {
        *("AutoContrast", "Equalize", "Invert", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd"),
        *("ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "ShearX", "ShearY"),
        *("TranslateXRel", "TranslateYRel", "GaussianBlur", "PoissonNoise"),
    }
    assert all((operation.prob, operation.magnitude) == (0.5, 5) for operation in found.values())
    # Magnitude 5 of 10 halves the published strengths.
    strengths = {"Rotate": 15, "ShearX": 0.45, "ShearY": 0.1, "TranslateXRel": 0.05, "TranslateYRel": 0.15}
    for name, strength in strengths.items():
        drawn = {round(found[name].level_fn(5, {})[0], 6) for _ in range(40)}
        assert drawn == {-strength, strength}
    assert found["GaussianBlur"].level_fn(5, {}) == (2,)
    assert found["PoissonNoise"].level_fn(5, {}) == (20,)
    assert before == (timm_tables.NAME_TO_OP, timm_tables.LEVEL_TO_ARG)


def test_strength_of_noise_and_blur():
    grey = Image.new("RGB", (100, 40), (128, 128, 128))
    found = {operation.name: operation.aug_fn for operation in operations()}
    noise = np.asarray(found["PoissonNoise"](grey, 20.0)).astype(int) - 128
    assert (noise == noise[..., :1]).all()
    assert abs(noise).mean() == pytest.approx(21, abs=1)  # the next odd number
    assert abs(noise.mean()) < 2
    small = np.asarray(found["PoissonNoise"](grey.resize((20, 8)), 20.0)).astype(int) - 128
    assert abs(small).mean() == pytest.approx(5, abs=1)  # a fifth of the longer side
    edge = Image.fromarray(np.repeat(np.repeat([[0, 255]], 50, axis=1), 40, axis=0).astype(np.uint8)).convert("RGB")
    steps = [np.unique(np.asarray(found["GaussianBlur"](edge, radius))[20, :, 0]).size for radius in (1.0, 2.0)]
    assert 2 < steps[0] < steps[1]
    turned = found["Rotate"](grey, 15.0)
    assert turned.size[0] > 100
    assert turned.size[1] > 60


def test_three_different_operations_are_drawn():
    policy = WordAugment("randaugment")._policy
    names: Counter[str] = Counter()
    calls: list[str] = []
    for operation in policy.ops:
        operation.prob, operation.level_fn = 1.0, None
        operation.aug_fn = lambda picture, name=operation.name, **_: calls.append(name) or picture
    for _ in range(300):
        calls.clear()
        policy(Image.new("RGB", (4, 4)))
        assert len(set(calls)) == 3
        names.update(calls)
    assert len(names) == 16


@pytest.mark.parametrize("kind", ["none", "randaugment", "hard"])
def test_an_augmentation_is_a_function_of_picture_and_seed(kind):
    picture = Image.fromarray(_noise(24, 80))
    random.seed(5)
    expected = random.random()
    random.seed(5)
    augment = WordAugment(kind, rotate_90=0.5)
    first = [np.asarray(augment(picture, seed)) for seed in range(12)]
    assert random.random() == expected  # the generators that timm draws from were only lent
    other = WordAugment(kind, rotate_90=0.5)
    assert all(np.array_equal(other(picture, seed), first[seed]) for seed in reversed(range(12)))
    assert len({image.tobytes() for image in first}) >= 3


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (30, 1), (9, 9), (500, 8)])
def test_pictures_of_any_size(size):
    picture = Image.fromarray(_noise(*size))
    for kind in ("randaugment", "hard"):
        for seed in range(15):
            assert TextTransform(PREPROCESSING, augment=WordAugment(kind))(np.asarray(picture), seed).isfinite().all()


def test_quarter_turns():
    picture = Image.fromarray(_noise(6, 12))
    turns = [picture.rotate(angle, expand=True).tobytes() for angle in (0, 90, 180, 270)]
    found = Counter(turns.index(WordAugment("none", 0.6)(picture, seed).tobytes()) for seed in range(400))
    assert [found[turn] / 400 for turn in range(4)] == pytest.approx([0.4, 0.2, 0.2, 0.2], abs=0.06)
    assert WordAugment("none")(picture, 1).tobytes() == turns[0]
