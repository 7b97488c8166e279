"""A stream is recognised as its windows would be one by one, at constant cost."""

from __future__ import annotations

import gc
import tracemalloc

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.vision.vivit.networks import clips, lively
from vision.errors import InputError
from vision.vivit.model import AdapterOptions, FactorisedViViT
from vision.vivit.streaming import StreamingRecogniser, Window

FORMS = {
    "none": AdapterOptions("none"),
    "grid": AdapterOptions("grid", width=4, grid=3),
    "grid_residual": AdapterOptions("grid_residual", width=4),
    "conv3d": AdapterOptions("conv3d", width=4),
    "attention": AdapterOptions("attention", queries=2),
}


def expected(network: FactorisedViViT, video: Tensor, stride: int, hop: int) -> list[Window]:
    """Window after window through the whole network."""
    frames, step = network.config.frames, hop * network.config.tubelet * stride
    windows = []
    for first in range(0, len(video), step):
        chosen = video[first::stride][:frames]
        if len(chosen) < frames:
            break
        with torch.no_grad():
            windows.append(Window(first, first + (frames - 1) * stride, network(chosen[None])[0]))
    return windows


def agree(found: list[Window], expected: list[Window]) -> None:
    assert [window[:2] for window in found] == [window[:2] for window in expected]
    assert len(found) > 2
    for one, other in zip(found, expected, strict=True):
        assert_close(one.logits, other.logits, rtol=0, atol=1e-5)
    assert not torch.allclose(found[0].logits, found[1].logits, atol=1e-3)


@pytest.mark.parametrize("hop", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("tubelet", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_windows_equal_the_network_on_their_frames(form, tubelet, stride, hop):
    network = lively(adapter=FORMS[form], tubelet=tubelet, frames=4 * tubelet)
    video = clips(40, seed=3)
    stream = StreamingRecogniser(network, stride, hop)
    found = [stream.push(frame) for frame in video]
    places = [number for number, window in enumerate(found) if window is not None]
    windows = [window for window in found if window is not None]
    assert places == [window.last for window in windows], "an answer comes with the last frame of its window"
    agree(windows, expected(network, video, stride, hop))


@pytest.mark.parametrize(("stride", "hop"), [(1, 1), (3, 1), (2, 5)])
def test_frames_may_come_in_pieces_of_any_size(stride, hop):
    network, video = lively(adapter=FORMS["conv3d"], tubelet=2, frames=8), clips(75, seed=4)
    stream, found = StreamingRecogniser(network, stride, hop), []
    for piece in video.split([1, 2, 3, 0, 11, 1, 1, 16, 40]):
        found += stream.extend(piece)
    agree(found, expected(network, video, stride, hop))


def test_every_tubelet_is_encoded_once():
    network = lively(tubelet=2, frames=8)
    passed: list[int] = []
    network.spatial.vit.patch_embed.register_forward_hook(lambda module, given, out: passed.append(len(out)))
    stream = StreamingRecogniser(network, stride=2, hop=1)
    windows = [window for window in map(stream.push, clips(40)) if window is not None]
    assert passed == [1] * 10, "twenty of the forty frames, two a tubelet"
    assert len(windows) == 7


def test_memory_of_an_endless_stream():
    options = {"patch_size": 8, "depth": 1}
    network = lively("none", layers=1, frames=4, image_size=(16, 16), backbone_options=options)
    stream, frames = StreamingRecogniser(network, hop=20), clips(100, size=(16, 16))

    def run(hundreds: int) -> tuple[int, int]:
        for _ in range(hundreds):
            stream.push(frames[0])
            stream.extend(frames[1:])
        gc.collect()
        return sum(type(entry) is Tensor for entry in gc.get_objects()), tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        run(2)
        tensors, held = run(1)
        later, held_later = run(100)
    finally:
        tracemalloc.stop()
    assert later <= tensors
    assert held_later - held < 10_000, "less than a byte a frame"


def test_frames_at_a_distance_that_is_a_whole_clip():
    """Windows with gaps between them."""
    network, video = lively(frames=4), clips(30)
    agree(StreamingRecogniser(network, hop=6).extend(video), expected(network, video, 1, 6))


def test_sampling_networks():
    with pytest.raises(InputError, match="a network that samples frames of its clips cannot run on a stream"):
        StreamingRecogniser(lively(sampled_frames=4))
    for sampled in (8, 12):  # all of the eight frames
        network, video = lively(sampled_frames=sampled), clips(12)
        agree(StreamingRecogniser(network).extend(video), expected(network, video, 1, 1))


@pytest.mark.parametrize(("options", "words"), [({"stride": 0}, "stride"), ({"hop": -1}, "hop")])
def test_impossible_steps(options, words):
    with pytest.raises(InputError, match=f"{words} must be at least 1"):
        StreamingRecogniser(lively(), **options)


def test_frames_of_another_size():
    with pytest.raises(InputError, match="frames of 16x32 pixels, the network takes 32x32"):
        StreamingRecogniser(lively()).push(clips(1, size=(16, 32))[0])
