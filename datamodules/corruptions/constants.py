"""The names of the corruptions, and how strong each is at the five severities of both suites."""

from __future__ import annotations

from typing import Literal

from vision.errors import InputError, did_you_mean

Suite = Literal["imagenet", "cifar"]
Level = tuple[float, ...]
"""The numbers of a corruption at one severity."""

CORRUPTIONS: tuple[str, ...] = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
"""In the order in which continual test-time adaptation goes through them."""
EXTRA_CORRUPTIONS: tuple[str, ...] = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""The published data has these too; they are read and not made."""
SEVERITIES = (1, 2, 3, 4, 5)

ELASTIC_SIDE = 244 / 224  # the published ImageNet-C takes the side of its 224-pixel images for 244


def _elastic(*level: float) -> Level:
    return tuple(ELASTIC_SIDE * constant for constant in level)


LEVELS: dict[str, dict[Suite, tuple[Level, ...]]] = {
    # standard deviation on the [0, 1] scale
    "gaussian_noise": {
        "imagenet": ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,)),
        "cifar": ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,)),
    },
    # photons of a white pixel
    "shot_noise": {
        "imagenet": ((60,), (25,), (12,), (5,), (3,)),
        "cifar": ((500,), (250,), (100,), (75,), (50,)),
    },
    # share of the values that are replaced
    "impulse_noise": {
        "imagenet": ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,)),
        "cifar": ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,)),
    },
    # radius and standard deviation of the disk's softened edge, pixels
    "defocus_blur": {
        "imagenet": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        "cifar": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    },
    # standard deviation of the blur, longest way of a pixel, both in pixels; rounds
    "glass_blur": {
        "imagenet": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        "cifar": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    },
    # half the length and standard deviation of the trace, pixels
    "motion_blur": {
        "imagenet": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        "cifar": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    },
    # zoom factors from 1 up to the first number, the second one apart
    "zoom_blur": {
        "imagenet": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        "cifar": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    },
    # mean and deviation of the flakes, zoom, threshold, half length and deviation of the trace, share of the image
    "snow": {
        "imagenet": (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        "cifar": (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    },
    # weights of the image and of the frost, size of the frost's picture
    "frost": {
        "imagenet": ((1, 0.4, 1), (0.8, 0.6, 1), (0.7, 0.7, 1), (0.65, 0.7, 1), (0.6, 0.75, 1)),
        "cifar": ((1, 0.2, 0.2), (1, 0.3, 0.2), (0.9, 0.4, 0.2), (0.85, 0.4, 0.2), (0.75, 0.45, 0.2)),
    },
    # strength on the [0, 1] scale, how much smoother the fog is from one scale to the next finer one
    "fog": {
        "imagenet": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        "cifar": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    },
    # added to the value of HSV, on the [0, 1] scale
    "brightness": {
        "imagenet": ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),
        "cifar": ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,)),
    },
    # what is left of the distance to the mean
    "contrast": {
        "imagenet": ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),
        "cifar": ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,)),
    },
    # strength and smoothness of the displacement, largest way of the corners; shares of the image's side
    "elastic_transform": {
        "imagenet": (
            _elastic(2, 0.7, 0.1),
            _elastic(2, 0.08, 0.2),
            _elastic(0.05, 0.01, 0.02),
            _elastic(0.07, 0.01, 0.02),
            _elastic(0.12, 0.01, 0.02),
        ),
        "cifar": ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    },
    # size that the image is shrunk to
    "pixelate": {
        "imagenet": ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,)),
        "cifar": ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,)),
    },
    # quality
    "jpeg_compression": {
        "imagenet": ((25,), (18,), (15,), (10,), (7,)),
        "cifar": ((80,), (65,), (58,), (50,), (40,)),
    },
}
"""Of each corruption and suite the five levels. What is given in pixels is so for any size of image."""


def check_severity(severity: int) -> None:
    """That a severity is one.

    Raises:
        InputError: it is not a whole number from 1 to 5.
    """
    # True is an int too, and 1.0 a member of the tuple.
    if isinstance(severity, bool) or not hasattr(severity, "__index__") or severity not in SEVERITIES:
        raise InputError(f"severity must be 1, 2, 3, 4 or 5, got {severity!r}")


def check_corruption(name: str) -> None:
    """That a corruption is one of the 15.

    Raises:
        InputError: it is not.
    """
    if name not in CORRUPTIONS:
        raise InputError(f"no corruption '{name}'{did_you_mean(name, CORRUPTIONS)}; there are {', '.join(CORRUPTIONS)}")


def level_of(name: str, severity: int, suite: Suite) -> Level:
    """The numbers of a corruption.

    Raises:
        InputError: there is no such corruption, severity or suite.
    """
    check_corruption(name)
    check_severity(severity)
    if suite not in LEVELS[name]:
        raise InputError(f"suite must be imagenet or cifar, got '{suite}'")
    return LEVELS[name][suite][severity - 1]
