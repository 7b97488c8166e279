"""What a step of adaptation takes, of networks whose figures can be worked out by hand, and of the paper's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vision.ecotta import EcoTTA, WideResNet
from vision.ecotta.baselines import Source, Tent
from vision.ecotta.cotta import CoTTA
from vision.ecotta.frozen import Memory
from vision.measure import AdaptationProfile, SavedActivations, profile_adaptation

pytestmark = pytest.mark.filterwarnings("ignore:batches of")
FLOAT = 4
ALL = 9.0  # a margin, in ln C, that no entropy reaches


def images(size: int = 2, side: int = 6) -> Tensor:
    return torch.rand(size, 3, side, side, generator=torch.Generator().manual_seed(0))


def tiny() -> nn.Module:
    """3x6x6 images to 8x6x6, rectified, to 5x3x3, normalised, rectified, to 4 classes."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 5, 3, stride=2, padding=1), nn.BatchNorm2d(5), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4),
    )  # fmt: skip


WIDE, NARROW = 8 * 6 * 6, 5 * 3 * 3  # numbers in the two feature maps of an image
BITS = (WIDE + NARROW) / 8  # a bit for each input of the two rectifiers, in bytes
WEIGHTS = 3 * 8 * 9 + 2 * 8 + 8 * 5 * 9 + 5 + 2 * 5 + 5 * 4 + 4


def whole() -> Tent:
    """All is trained."""
    method = Tent(tiny())
    method.model.requires_grad_(True)
    return method


@pytest.mark.parametrize(
    ("method", "image_bytes", "trained"),
    [
        (Source, 0.0, 0),
        # Inputs of the normalisations; frozen convolutions count for nothing.
        (Tent, FLOAT * (WIDE + NARROW) + BITS, 2 * 8 + 2 * 5),
        # Those of the convolutions and of the last layer too.
        (lambda _: whole(), FLOAT * (3 * 36 + WIDE + WIDE + NARROW + 5) + BITS, WEIGHTS),
    ],
)
def test_the_papers_count_by_hand(method: Any, image_bytes: float, trained: int) -> None:
    """Four bytes for a trained weight, one for a frozen one; images times what each of them keeps."""
    profile = profile_adaptation(method(tiny()), images())
    assert (profile.images, profile.parameters, profile.trained) == (2, WEIGHTS, trained)
    assert profile.paper_image_bytes == image_bytes
    weights = 4 * trained + (WEIGHTS - trained)
    assert profile.paper_mb() == pytest.approx((2 * image_bytes + weights) / 1e6)
    assert profile.paper_mb(64) == pytest.approx((64 * image_bytes + weights) / 1e6)


def test_of_a_method_with_copies_all_weights_count_four_bytes() -> None:
    profile = profile_adaptation(CoTTA(tiny(), threshold=0.0), images())
    assert (profile.copies, profile.parameters, profile.trained) == (2, WEIGHTS, WEIGHTS)
    whole_bytes = profile_adaptation(whole(), images()).paper_image_bytes
    assert profile.paper_image_bytes == whole_bytes, "the teacher's passes keep nothing"
    assert profile.paper_mb(10) == pytest.approx((10 * whole_bytes + 3 * 4 * WEIGHTS) / 1e6)
    assert profile.copy_bytes == 2 * 4 * WEIGHTS
    assert profile.held_mb == pytest.approx((profile.held_bytes + 2 * 4 * WEIGHTS) / 1e6)


def test_meta_networks_count_the_inputs_of_their_layers() -> None:
    """One group: its input for the convolution, the convolution's output and the group's for the normalisations."""
    network = EcoTTA.attach(WideResNet(10, 1, 4), 1, calibrate=False, margin=ALL, memory="memsave", input_size=(8, 8))
    profile = profile_adaptation(network, images(2, 8))
    rectified = (
        16 * 64 + 16 * 64 + 16 * 64 + 32 * 16 + 32 * 16 + 64 * 4 + 64 * 4
    )  # numbers: two a block, one before the head
    assert profile.paper_image_bytes == FLOAT * (16 * 64 + 2 * 64 * 4) + rectified / 8
    assert profile.trained == 16 * 64 * 9 + 4 * 64


@pytest.mark.parametrize("memory", ["eager", "memsave", "checkpoint"])
def test_the_papers_count_knows_of_no_saving(memory: Memory) -> None:
    """A group that is computed anew, and a second pass after a step, do not count again."""
    profiles = [
        profile_adaptation(
            EcoTTA.attach(WideResNet(16, 1, 4), calibrate=False, margin=ALL, memory=of, update=update), images(2, 32)
        )
        for of, update in (("eager", "joint"), (memory, "joint"), (memory, "two_step"))
    ]
    assert len({(profile.paper_image_bytes, profile.paper_peak_bytes) for profile in profiles}) == 1


def test_the_peak_that_the_authors_print() -> None:
    """392,864,976 bytes for all of WRN-40-2 with 100 classes at batches of 64; their tables have the other figure."""
    method = Tent(WideResNet(40, 2, 100))
    method.model.requires_grad_(True)
    profile = profile_adaptation(method, images(2, 32))
    assert (profile.paper_image_bytes, profile.paper_peak_bytes) == (5_966_336, 5_997_568)
    assert round(profile.paper_mb(64, peak=True) * 1e6) == 392_864_976


def test_what_is_held_by_hand() -> None:
    """TENT, of float32 maps: before and behind each normalisation, each once; and the statistics of the batch.

    Behind the second rectifier nothing is held but the probabilities' logarithms and the loss's own.
    """
    method = Tent(tiny())
    profile = profile_adaptation(method, images())
    maps = FLOAT * 2 * (2 * WIDE + 2 * NARROW)
    assert maps + 2 * FLOAT * (8 + 5) <= profile.held_bytes <= maps + 2 * FLOAT * (8 + 5) + 8 * FLOAT * 2 * 4
    assert profile.copy_bytes == 0


def test_nothing_is_held_where_nothing_is_trained_and_little_with_memsave() -> None:
    assert profile_adaptation(Source(tiny()), images()).held_bytes == 0
    eager, spared = (
        EcoTTA.attach(WideResNet(16, 1, 4), calibrate=False, margin=ALL, memory=memory)
        for memory in ("eager", "memsave")
    )
    x = images(8, 32)
    assert profile_adaptation(spared, x).held_bytes < 0.5 * profile_adaptation(eager, x).held_bytes


def test_what_a_backward_pass_lets_go_of_is_no_longer_held() -> None:
    """Two networks one after the other hold no more at one time than the larger of them."""
    small, large = nn.Sequential(nn.Linear(10, 7), nn.Tanh()), nn.Sequential(nn.Linear(10, 30), nn.Tanh())
    x = torch.rand(2, 10)

    def run(*networks: nn.Module) -> tuple[int, int]:
        with SavedActivations(small, large, x) as saved:
            for network in networks:
                network(x).sum().backward()
        return saved.bytes, saved.peak_bytes

    assert run(small, large) == (FLOAT * 2 * (7 + 30), FLOAT * 2 * 30)
    assert run(large, small) == (FLOAT * 2 * (7 + 30), FLOAT * 2 * 30)
    with SavedActivations(small, large, x) as saved:
        both = small(x).sum() + large(x).sum()
        both.backward()
    assert saved.bytes == saved.peak_bytes == FLOAT * 2 * (7 + 30)


def test_a_profile_leaves_the_method_as_it_is() -> None:
    method = Tent(tiny())
    state = {key: value.clone() for key, value in method.state_dict().items()}
    profile_adaptation(method, images())
    assert all(torch.equal(value, state[key]) for key, value in method.state_dict().items())
    assert (int(method.steps), method.optimizer) == (0, None)
    assert not any(module._forward_hooks for module in method.modules())


def test_a_profile_in_words() -> None:
    profile = AdaptationProfile(
        images=10, paper_image_bytes=1e6, paper_peak_bytes=2e6, parameters=3_000_000, trained=3_000_000,
        copies=1, held_bytes=20_000_000, copy_bytes=12_000_000,
    )  # fmt: skip
    assert str(profile).splitlines() == [
        "      34.0 MB  by the papers' count, 10 images",
        "      20.0 MB  really held for the backward pass",
        "      12.0 MB  1 more copies of the network",
        "3,000,000 of 3,000,000 parameters are trained",
    ]


def test_ecotta_holds_a_quarter_of_what_tent_and_cotta_do() -> None:
    """WRN-40-2 with four groups. Held activations are linear in the batch, so that 16 images stand for 64."""
    x = images(16, 32)
    own = EcoTTA.attach(WideResNet(40, 2), 4, calibrate=False, margin=ALL, memory="memsave")
    held = {
        name: profile_adaptation(method, x)
        for name, method in {
            "ecotta": own,
            "tent": Tent(WideResNet(40, 2)),
            "cotta": CoTTA(WideResNet(40, 2), threshold=0.0),
        }.items()
    }
    assert held["ecotta"].held_mb <= 0.25 * held["tent"].held_mb
    assert held["ecotta"].held_mb <= 0.25 * held["cotta"].held_mb
    assert held["ecotta"].held_bytes <= 0.25 * held["cotta"].held_bytes
