"""The random views of a batch over which CoTTA's teacher is averaged (arXiv 2203.13591)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as T
from torch import Tensor

BRIGHTNESS = (0.6, 1.4)
CONTRAST = (0.7, 1.3)
SATURATION = (0.5, 1.5)
HUE = (-0.06, 0.06)
GAMMA = (0.7, 1.3)
DEGREES = (-15.0, 15.0)
SHIFT = (-1 / 8, 1 / 8)  # of the sides; the official code says 1 / 16, of images padded to twice their size
SCALE = (0.9, 1.1)
SIGMA = (0.001, 0.5)  # of the blur, in pixels
NOISE = 0.005


def view(images: Tensor, generator: torch.Generator, moved: bool = True, mirrored: bool = True) -> Tensor:
    """One random view of a batch: all of its images are changed alike, but for the noise.

    Args:
        images: ``(B, 3, H, W)`` in [0, 1] (what lies outside is cut off), or with one channel.
        generator: on the CPU, for all that is random.
        moved: rotate, shift and scale too; not for predictions that belong to pixels.
        mirrored: mirror every other view, if they are moved.

    Returns:
        Images of the same shape, in [0, 1].
    """

    def draw(bounds: tuple[float, float]) -> float:
        return bounds[0] + (bounds[1] - bounds[0]) * float(torch.rand((), generator=generator))

    changes = (
        lambda x: T.adjust_brightness(x, draw(BRIGHTNESS)),
        lambda x: T.adjust_contrast(x, draw(CONTRAST)),
        lambda x: T.adjust_saturation(x, draw(SATURATION)),
        lambda x: T.adjust_hue(x, draw(HUE)),
        lambda x: T.adjust_gamma(x, draw(GAMMA)),
    )
    images = images.clamp(0, 1)
    for i in torch.randperm(len(changes), generator=generator).tolist():
        images = changes[i](images)
    if moved:
        images = affine(images, draw(DEGREES), (draw(SHIFT), draw(SHIFT)), draw(SCALE))
    images = T.gaussian_blur(images, [5, 5], [draw(SIGMA)])
    if moved and mirrored and draw((0.0, 1.0)) < 0.5:
        images = images.flip(-1)
    noise = torch.randn(images.shape, generator=seeded(generator, images.device), device=images.device)
    return (images + NOISE * noise).clamp(0, 1)


def affine(images: Tensor, degrees: float, shift: tuple[float, float], scale: float) -> Tensor:
    """Images ``(B, C, H, W)`` turned about their middle and enlarged; what comes in from outside repeats the edge.

    Args:
        images: of floating point.
        degrees: of the rotation, clockwise.
        shift: to the right and downwards, as shares of width and height.
        scale: factor of all lengths.
    """
    height, width = images.shape[-2:]
    cos, sin = (f(math.radians(degrees)) / scale for f in (math.cos, math.sin))
    right, down = (2 * share for share in shift)  # the sides are 2 long to the sampler
    # It is told where each pixel comes from, which is the inverse.
    ratio = height / width
    rows = [[cos, sin * ratio], [-sin / ratio, cos]]
    matrix = images.new_tensor([[a, b, -a * right - b * down] for a, b in rows])
    grid = F.affine_grid(matrix.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def seeded(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """A generator on a device, seeded by a draw from the one on the CPU."""
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=generator)))
