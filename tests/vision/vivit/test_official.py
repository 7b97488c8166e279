"""The official release's parameters: to ours and back, and files that are not quite theirs."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.vision.vivit.networks import (
    clips,
    flax_array,
    flax_chunks,
    lively,
    same_weights,
    weights,
    write_flax,
    write_npz,
)
from vision.errors import InputError
from vision.vivit.checkpoint import load_network
from vision.vivit.flax_file import read_flax
from vision.vivit.model import FactorisedViViT, TemporalOptions
from vision.vivit.official import from_official, load_official, to_official

LIKE_THEIRS = {"patch_size": 8, "depth": 2, "act_layer": "gelu_tanh", "mlp_ratio": 4.0, "num_heads": 4}
QUERY = "SpatialTransformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel"


def theirs(**options: Any) -> FactorisedViViT:
    """A network as the official code has it: tanh GELU, and norms of the same epsilon as timm's."""
    settings = {"tubelet": 2, "temporal": TemporalOptions(2, heads=4), "backbone_options": LIKE_THEIRS}
    return lively("none", **{**settings, **options})


def parameters(**options: Any) -> dict[str, Tensor]:
    return to_official(theirs(**options))


@pytest.mark.parametrize("options", [
    {}, {"tubelet": 1}, {"pre_logits": 6}, {"temporal": TemporalOptions(0), "frames": 2},
    {"pool": "mean", "temporal_pool": "mean",
     "backbone_options": {**LIKE_THEIRS, "class_token": False, "global_pool": ""}},
])  # fmt: skip
@torch.no_grad()
def test_round_trip_to_the_bit_and_the_same_answers(options):
    network = theirs(**options)
    again = load_official(to_official(network))
    assert not again.training
    assert same_weights(weights(again), weights(network))
    assert same_weights(to_official(again), to_official(network))
    video = clips(1, network.config.frames)
    assert_close(again(video), network(video), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["msgpack", "npz"])
def test_files_give_the_same_network(kind, tmp_path):
    given = parameters()
    if kind == "npz":
        path = write_npz(tmp_path / "vivit.npz", given)
    else:
        path = write_flax(tmp_path / "checkpoint_100", given, chunked=QUERY)
    assert same_weights(weights(load_official(path)), weights(load_official(given)))
    network, record = load_network(path)
    assert same_weights(weights(network), weights(load_official(given)))
    assert record.preprocessing.size == record.config.image_size == (32, 32)
    assert record.preprocessing.mean == record.preprocessing.std == (0.5, 0.5, 0.5)
    assert list(record.schema.tasks["action"].classes) == ["0", "1", "2", "3", "4"]


def test_sizes_that_the_parameters_do_not_say():
    given = parameters(image_size=(32, 16), frames=9)
    with pytest.raises(InputError, match="its positions are for 8 patches, no square: give image_size"):
        load_official(given)
    network = load_official(given, image_size=(32, 16), frames=9)
    assert network.config.frames == 9
    assert network(clips(1, 9, size=(32, 16))).shape == (1, 5)
    with pytest.raises(InputError, match=r"misshapen .*posembed_input/pos_embedding \(1, 5, 64\)"):
        load_official(given, image_size=(32, 16), frames=12)


def test_frames_may_be_more_than_those_that_are_sampled():
    given = parameters(tubelet=1)
    network, video = load_official(given, frames=20), clips(1, 20)
    assert network.config.sampled_frames == 8
    assert torch.equal(network(video), load_official(given)(network.clip(video)))


def test_layouts_without_a_place_for_an_adapter():
    with pytest.raises(InputError, match=r"the official layout has no place for adapter\.reduce\.weight"):
        to_official(lively("grid"))


# ------------------------------------------------------------------------------------------------ what is refused
def refused(given: dict[str, Tensor]) -> str:
    with pytest.raises(InputError) as caught:
        load_official(given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_missing_or_misshapen_parameter_is_named():
    given = parameters(pre_logits=6)
    for key, value in given.items():
        message = refused({other: tensor for other, tensor in given.items() if other != key})
        # Without a class token or the layer before the head it is another network, of which something is too much.
        assert key in message or key.startswith(("cls_", "pre_logits/kernel")), key
        assert key in refused({**given, key: value[..., None]}), key


def test_extra_blocks_and_gaps_between_them():
    given = parameters()
    assert "unexpected SpatialTransformer/extra" in refused({**given, "SpatialTransformer/extra": torch.zeros(2)})
    gap = {key.replace("encoderblock_1", "encoderblock_900000000"): value for key, value in given.items()}
    assert "missing SpatialTransformer/encoderblock_1" in refused(gap)
    with pytest.raises(InputError, match="missing SpatialTransformer/encoderblock_1"):
        from_official(gap)


def test_heads_of_different_sizes():
    given = {**parameters(), QUERY: torch.zeros(64, 4, 8)}
    assert QUERY in refused(given)
    with pytest.raises(InputError, match="misshapen query, key or value"):
        from_official({**parameters(), QUERY: torch.zeros(32, 4, 16)})


def test_numbers_that_are_none():
    given = parameters()
    given["output_projection/bias"][2] = torch.nan
    assert refused(given).endswith("NaN or infinite values in output_projection/bias")


def test_other_models_of_the_same_release():
    joint = {key.replace("SpatialTransformer", "Transformer"): value for key, value in parameters().items()}
    assert "only the factorised encoder is known here" in refused(joint)


def packed(path, content: Any):
    path.write_bytes(msgpack.packb(content, use_bin_type=True))
    return path


def array(shape: tuple[int, ...], dtype: str, content: bytes) -> msgpack.ExtType:
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, content), use_bin_type=True))


def test_what_stands_beside_the_parameters_is_passed_over(tmp_path):
    content = {
        "params": {"a": {"kernel": flax_array(torch.arange(6.0).reshape(2, 3)), "bias": flax_array(torch.zeros(0))}},
        "key": array((2,), "key<fry>", b"\0" * 16),
        "number": msgpack.ExtType(2, b"\0" * 4),
        "step": msgpack.ExtType(3, msgpack.packb(((), "int32", b"\7\0\0\0"), use_bin_type=True)),
        "opt_state": [{"mu": 1}],
    }
    found = read_flax(packed(tmp_path / "state.msgpack", content))
    assert list(found) == ["a/kernel", "a/bias"]
    assert torch.equal(found["a/kernel"], torch.arange(6.0).reshape(2, 3))
    assert found["a/bias"].shape == (0,)


def _chunks_without(part: str) -> dict[str, Any]:
    return {key: value for key, value in flax_chunks(torch.zeros(2000), 1000).items() if key != part}


@pytest.mark.parametrize("content", [
    {"params": {"kernel": array((3,), "float32", b"\0" * 8)}},
    {"params": {"kernel": array((10**12,), "float32", b"")}},
    {"params": {"kernel": array((2,), "float32", b"\0" * 7)}},
    {"params": {"kernel": array((-2, -2), "float32", b"\0" * 16)}},
    {"params": {"kernel": msgpack.ExtType(1, b"\xc1")}},
    {"params": {"kernel": _chunks_without("chunks")}},
    {"params": {"kernel": _chunks_without("shape")}},
    {"params": {"kernel": {**flax_chunks(torch.zeros(2000), 1000), "shape": {"0": 2001}}}},
    [1, 2], {}, {"params": {}}, {"params": {"kernel": [0.0, 1.0]}},
])  # fmt: skip
def test_damaged_flax_files(content, tmp_path):
    path = packed(tmp_path / "state.msgpack", content)
    with pytest.raises(InputError, match=r"state\.msgpack: not a (readable )?flax checkpoint") as caught:
        read_flax(path)
    assert "\n" not in str(caught.value)
