"""The 15 corruptions: reference values, hand-worked cases, statistics of chance, and seeds."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_sample_image
from torch.utils.data import DataLoader, Dataset

from datamodules.corruptions import CORRUPTIONS, corrupt, corrupt_batch, image_seed
from datamodules.corruptions.blur import clipped_zoom, shuffled, traced
from datamodules.corruptions.constants import LEVELS
from datamodules.corruptions.digital import smooth_field
from datamodules.corruptions.plasma import plasma
from tests.reference.cases import load_case
from vision.errors import InputError

SUITES = ("imagenet", "cifar")
SEEDS = range(4)


@pytest.fixture(scope="module")
def photograph() -> NDArray[np.uint8]:
    """64 pixels a side: a temple before the sky."""
    return cv2.resize(load_sample_image("china.jpg")[100:324, 200:424], (64, 64), interpolation=cv2.INTER_AREA)


def _flat(value: int, side: int = 200) -> NDArray[np.uint8]:
    return np.full((side, side, 3), value, dtype=np.uint8)


def _random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# ------------------------------------------------------------------------------------------------------- reference
def test_those_without_chance_are_the_published_ones():
    arrays = load_case("ecotta", "corruptions_deterministic").arrays
    checked = set()
    for key, expected in arrays.items():
        if key.startswith("image"):
            continue
        prefix, rest = key.split("_", 1)
        name, severity = rest.rsplit("_s", 1)
        image, suite = {"inc": (arrays["image48"], "imagenet"), "cifarc": (arrays["image32"], "cifar")}[prefix]
        difference = np.abs(corrupt(image, name, int(severity), 0, suite).astype(int) - expected)
        # The library's build decides what a JPEG file holds.
        assert difference.mean() < 2 if name == "jpeg_compression" else difference.max() <= 1, key
        checked.add((suite, name))
    assert len(checked) == 12


def test_there_are_15_and_each_has_five_levels():
    assert len(set(CORRUPTIONS)) == 15
    assert CORRUPTIONS[0] == "gaussian_noise"
    assert CORRUPTIONS[-1] == "jpeg_compression"
    assert set(LEVELS) == set(CORRUPTIONS)
    assert all(len(LEVELS[name][suite]) == 5 for name in CORRUPTIONS for suite in SUITES)


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name not in {"frost", "elastic_transform"}])
@pytest.mark.parametrize("suite", SUITES)
def test_distortion_grows_with_the_severity(photograph, name, suite):
    """Mean change of a value, over seeds. Frost darkens as it covers; elastic transforms shear less as they bend more.

    Where levels differ in several numbers, they follow each other less strictly.
    """
    changes = [
        np.mean([np.abs(corrupt(photograph, name, severity, seed, suite) - photograph.astype(float)) for seed in SEEDS])
        for severity in range(1, 6)
    ]
    assert changes[4] > 1.2 * changes[0] > 0
    if name not in {"glass_blur", "motion_blur", "snow", "fog"}:
        assert np.all(np.diff(changes) > 0)


# ------------------------------------------------------------------------------------------------------------ seeds
def test_the_same_seed_gives_the_same_bytes(photograph):
    images = np.stack([photograph[:32, :32], photograph[32:, :32], photograph[:32, 32:]])
    for name in CORRUPTIONS:
        seeds = [image_seed(7, name, index) for index in range(3)]
        whole = corrupt_batch(images, name, 3, seeds, "cifar")
        split = [corrupt_batch(images[i : i + 1], name, 3, seeds[i : i + 1], "cifar")[0] for i in range(3)]
        np.random.seed(1)  # noqa: NPY002 (must not matter)
        assert np.array_equal(whole, np.stack(split)), name
        assert np.array_equal(whole[1], corrupt(images[1], name, 3, list(seeds[1]), "cifar")), name


def test_seeds_differ_between_images_corruptions_and_data(photograph):
    seeds = {image_seed(seed, name, index) for seed in (0, 1) for name in CORRUPTIONS for index in range(3)}
    assert len(seeds) == 2 * 15 * 3
    assert image_seed(3, "fog", 5) == (3, 2192108819, 5)  # the same in every process and version
    for name in ("gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost", "fog"):
        assert not np.array_equal(corrupt(photograph, name, 3, (0, 1)), corrupt(photograph, name, 3, (0, 2))), name


class _Corrupted(Dataset):
    """One image of every corruption."""

    def __init__(self, image: NDArray[np.uint8]) -> None:
        self.image = image

    def __len__(self) -> int:
        return len(CORRUPTIONS)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        name = CORRUPTIONS[index]
        return corrupt(self.image, name, 4, image_seed(0, name, index))


def test_worker_processes_give_the_same_bytes(photograph):
    data = _Corrupted(photograph)
    loader = DataLoader(data, batch_size=2, num_workers=2, collate_fn=list)
    found = [image for batch in loader for image in batch]
    for index, name in enumerate(CORRUPTIONS):
        assert np.array_equal(found[index], data[index]), name


def test_threads_of_opencv_do_not_matter(photograph):
    image = cv2.resize(photograph, (160, 130))
    threads = cv2.getNumThreads()
    results = []
    try:
        for number in (1, 2):
            cv2.setNumThreads(number)
            results.append([corrupt(image, name, 5, 1) for name in CORRUPTIONS])
    finally:
        cv2.setNumThreads(threads)
    for name, one, other in zip(CORRUPTIONS, *results, strict=True):
        assert np.array_equal(one, other), name


# ----------------------------------------------------------------------------------------------------------- inputs
@pytest.mark.parametrize("shape", [(8, 8, 3), (8, 8), (9, 21, 3), (40, 16)])
def test_any_size_and_grey(photograph, shape):
    image = cv2.resize(photograph, shape[1::-1])
    image = image if len(shape) == 3 else image[:, :, 1].copy()
    before = image.copy()
    image.setflags(write=False)
    for name in CORRUPTIONS:
        for suite in SUITES:
            for severity in range(1, 6):
                result = corrupt(image, name, severity, 0, suite)
                assert result.shape == shape
                assert result.dtype == np.uint8
    assert np.array_equal(image, before)


def test_a_view_is_corrupted_as_its_copy(photograph):
    view = photograph[::-2, 8:40]
    for name in CORRUPTIONS:
        assert np.array_equal(corrupt(view, name, 2, 0), corrupt(view.copy(), name, 2, 0)), name


@pytest.mark.parametrize(
    "name", ["brightness", "contrast", "pixelate", "defocus_blur", "zoom_blur", "jpeg_compression"]
)
def test_grey_is_as_the_same_picture_in_three_channels(photograph, name):
    grey = photograph[:, :, 0].copy()
    in_colour = corrupt(np.stack([grey] * 3, axis=2), name, 3, 0)
    difference = np.abs(corrupt(grey, name, 3, 0).astype(int) - in_colour[:, :, 0])
    assert difference.max() <= (2 if name == "jpeg_compression" else 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"severity": 0}, "severity must be 1, 2, 3, 4 or 5, got 0"),
        ({"severity": 6}, "severity must be 1, 2, 3, 4 or 5, got 6"),
        ({"severity": 2.0}, "severity must be 1, 2, 3, 4 or 5, got 2.0"),
        ({"severity": True}, "severity must be 1, 2, 3, 4 or 5, got True"),
        ({"name": "gausian_noise"}, "no corruption 'gausian_noise' (did you mean 'gaussian_noise'?); there are gaus"),
        ({"suite": "cifar10"}, "suite must be imagenet or cifar, got 'cifar10'"),
        ({"seed": -1}, "seed must be whole numbers that are not negative, got -1"),
        ({"image": np.zeros((8, 8, 3))}, "image must be an array of uint8, got float64 (8, 8, 3)"),
        ({"image": [[0]]}, "image must be an array of uint8, got list"),
        ({"image": np.zeros((8, 8, 4), np.uint8)}, "image must be RGB (H, W, 3) or grey (H, W), got uint8 (8, 8, 4)"),
        ({"image": np.zeros((1, 8, 8, 3), np.uint8)}, "image must be RGB (H, W, 3) or grey (H, W), got uint8 (1, 8"),
        ({"image": np.zeros((9, 7, 3), np.uint8)}, "image must have at least 8 pixels a side, got 9x7"),
    ],
)
def test_what_cannot_be_corrupted_is_named(change, message):
    arguments = {"image": np.zeros((8, 8, 3), np.uint8), "name": "fog", "severity": 1, "seed": 0, **change}
    with pytest.raises(InputError) as caught:
        corrupt(**arguments)
    assert str(caught.value).startswith(message)


def test_a_batch_needs_a_seed_for_each_image():
    with pytest.raises(InputError, match="expected one for each of 2 images, got 1"):
        corrupt_batch(np.zeros((2, 8, 8, 3), np.uint8), "fog", 1, [0])


# ------------------------------------------------------------------------------------------------------------ noise
def test_gaussian_noise_has_its_deviation():
    noisy = corrupt(_flat(128), "gaussian_noise", 1, 0).astype(float)
    assert noisy.std() == pytest.approx(0.08 * 255, rel=0.01)
    assert noisy.mean() == pytest.approx(128 - 0.5, abs=0.3)  # fractions are cut off
    assert abs(np.corrcoef(noisy[:, :, 0].ravel(), noisy[:, :, 1].ravel())[0, 1]) < 0.02


def test_shot_noise_has_the_variance_of_photons():
    """x / rate on the [0, 1] scale: 0.4 / 500."""
    noisy = corrupt(_flat(102), "shot_noise", 1, 0, "cifar") / 255
    assert noisy.mean() == pytest.approx(0.4, abs=0.004)
    assert noisy.var() == pytest.approx(0.4 / 500, rel=0.03)
    assert not corrupt(_flat(0), "shot_noise", 5, 0).any()


def test_impulse_noise_replaces_its_share():
    noisy = corrupt(_flat(77), "impulse_noise", 5, 0)
    assert set(np.unique(noisy)) == {0, 77, 255}
    assert np.mean(noisy == 255) == pytest.approx(0.27 / 2, abs=0.004)
    assert np.mean(noisy == 0) == pytest.approx(0.27 / 2, abs=0.004)


# ------------------------------------------------------------------------------------------------------------- blur
@pytest.mark.parametrize(("shape", "reach"), [((8, 8), 1), ((8, 8), 4), ((20, 31), 2), ((32, 32), 3)])
def test_shuffling_is_the_loop_over_pixels(shape, reach):
    image = _random().integers(0, 256, (*shape, 3), dtype=np.uint8)
    (height, width), expected = shape, image.copy()
    rows, columns = range(reach + 1, height - reach + 1), range(reach + 1, width - reach + 1)
    ways = _random(5).integers(-reach, reach, (2, len(rows), len(columns)))
    for row in reversed(rows):
        for column in reversed(columns):
            down, right = ways[:, row - rows[0], column - columns[0]]
            expected[row, column] = expected[row + down, column + right]
    assert np.array_equal(shuffled(image, reach, _random(5)), expected)


def test_a_trace_is_half_a_gaussian_along_a_line():
    image = np.zeros((9, 9, 1), dtype=np.float32)
    image[4, 6] = 100
    found = traced(image, radius=1, deviation=1, angle=0)[:, :, 0]
    weights = np.exp([0, -0.5, -2])
    expected = np.zeros((9, 9))
    expected[4, 6:3:-1] = 100 * weights / weights.sum()  # the colours come from the right
    assert found == pytest.approx(expected, abs=1e-4)
    upwards = traced(image, radius=1, deviation=1, angle=-90)[:, :, 0]
    assert upwards[4:7, 6] == pytest.approx(expected[4, 6:3:-1], abs=1e-4)


def test_motion_leaves_the_sum_of_a_flat_image():
    for name in ("motion_blur", "defocus_blur", "glass_blur", "zoom_blur"):
        assert np.abs(corrupt(_flat(90, 24), name, 5, 0).astype(int) - 90).max() <= 1, name


@pytest.mark.parametrize("side", [8, 9, 20, 33, 97])
def test_zooming_is_scipys(side):
    image = _random().random((side, side + 3, 3), dtype=np.float32)
    for factor in (1.0, 1.07, 1.3, 2.0, 2.5, 4.5):
        cut = [math.ceil(length / factor) for length in image.shape[:2]]
        top, left = ((length - kept) // 2 for length, kept in zip(image.shape, cut, strict=False))
        large = ndimage.zoom(image[top : top + cut[0], left : left + cut[1]], (factor, factor, 1), order=1)
        top, left = ((large.shape[i] - image.shape[i]) // 2 for i in (0, 1))
        expected = large[top : top + side, left : left + side + 3]
        assert clipped_zoom(image, factor) == pytest.approx(expected, abs=1e-5)


# ---------------------------------------------------------------------------------------------------------- digital
def test_brightness_by_hand():
    """Value 100 + 76.5, the other channels by the same factor; black becomes grey, and what is full stays."""
    image = np.tile(np.array([[100, 50, 0], [0, 0, 0], [255, 51, 0]], np.uint8), (8, 3, 1))
    found = corrupt(image, "brightness", 3, 0)[0, :3]
    assert found.tolist() == [[176, 88, 0], [76, 76, 76], [255, 51, 0]]


def test_contrast_by_hand():
    """Each channel about its own mean of 60, 100 and 0, a fifth of the distance left."""
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    image[:4] = (20, 100, 0)
    image[4:] = (100, 100, 0)
    found = corrupt(image, "contrast", 3, 0)
    assert found[0, 0].tolist() == [52, 100, 0]
    assert found[7, 7].tolist() == [68, 100, 0]


def test_pixelate_makes_squares_of_the_mean():
    image = np.zeros((8, 8), dtype=np.uint8)
    image[:4, :4:2] = 100
    found = corrupt(image, "pixelate", 5, 0)
    assert np.array_equal(found, np.kron([[50, 0], [0, 0]], np.ones((4, 4))))


@pytest.mark.parametrize(("size", "deviation"), [((8, 8), 5.0), ((32, 20), 2.0), ((64, 64), 45.0)])
def test_smooth_fields_are_scipys(size, deviation):
    noise = 2 * _random(1).random(size, dtype=np.float32) - 1
    expected = ndimage.gaussian_filter(noise.astype(float), deviation, mode="reflect", truncate=3)
    assert smooth_field(*size, deviation, _random(1)) == pytest.approx(expected, abs=1e-6)


# ---------------------------------------------------------------------------------------------------------- weather
def test_snow_only_adds_light(photograph):
    for severity in (1, 5):
        assert np.all(corrupt(photograph, "snow", severity, 0) >= photograph.astype(int) - 1)


def test_fog_is_not_lighter_than_the_image():
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    assert not corrupt(image, "fog", 5, 0).any()
    image[0, 0] = 200
    found = corrupt(image, "fog", 5, 0)
    assert found.max() <= 200
    assert found[4:].max() > 120


def test_plasma_is_smoother_the_more_it_is_asked_to_be():
    rough, smooth = (plasma(64, smoothness, _random(2)) for smoothness in (1.2, 3.0))
    for clouds in (rough, smooth):
        assert clouds.min() == 0
        assert clouds.max() == 1
    assert np.abs(np.diff(rough)).mean() > 3 * np.abs(np.diff(smooth)).mean()


def test_frost_from_a_folder_by_hand(tmp_path):
    """Severity 3: 0.7 of the image and 0.7 of the picture, which is enlarged to cover it."""
    Image.new("RGB", (20, 9), (100, 50, 10)).save(tmp_path / "ice.png")
    found = corrupt(np.full((40, 30, 3), 100, np.uint8), "frost", 3, 0, frost_folder=tmp_path)
    assert np.unique(found.reshape(-1, 3), axis=0).tolist() == [[140, 105, 77]]


def test_frost_takes_any_part_of_any_picture(tmp_path):
    for number in range(3):
        ramp = np.tile(np.arange(60, dtype=np.uint8) + 80 * number, (60, 1))
        Image.fromarray(np.stack([ramp] * 3, axis=2)).save(tmp_path / f"{number}.png")
    corners = {int(corrupt(_flat(0, 8), "frost", 1, seed, frost_folder=tmp_path)[0, 0, 0]) for seed in range(60)}
    assert {value // 32 for value in corners} == {0, 1, 2}
    assert len(corners) > 20


def test_frost_pictures_that_cannot_be_read_are_named(tmp_path):
    image = _flat(0, 8)
    with pytest.raises(InputError, match=r"^frost_folder: .*/nowhere has no pictures$"):
        corrupt(image, "frost", 1, 0, frost_folder=tmp_path / "nowhere")
    (tmp_path / "ice.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"^frost_folder: .*/ice.png: empty file") as caught:
        corrupt(image, "frost", 1, 0, frost_folder=tmp_path)
    assert type(caught.value) is InputError  # or a loader would leave out the image and go on
