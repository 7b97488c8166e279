"""What the parts of a network start from: every kind of file, the hand-over between stages, and broken files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch.testing import assert_close

from tests.vision.vivit.networks import (
    SMALL,
    clips,
    config,
    fresh,
    lively,
    same_weights,
    stir,
    weights,
    write_flax,
    write_npz,
)
from vision.classifiers import ClassifierRecord, create_classifier
from vision.errors import InputError
from vision.labels import LabelSchema
from vision.preprocessing import Preprocessing
from vision.vivit.checkpoint import VideoRecord
from vision.vivit.embedding import inflate
from vision.vivit.model import AdapterOptions, TemporalOptions
from vision.vivit.official import to_official
from vision.vivit.start import Start, apply_start

SCHEMA = {"action": ["a", "b", "c", "d", "e"]}


def image_transformer(**options):
    torch.manual_seed(5)
    settings = {"num_classes": 7, "img_size": (32, 32), **SMALL, **options}
    return stir(timm.create_model("test_vit", **settings)).eval()


def video_checkpoint(network, path: Path) -> Path:
    """As ``vision fit`` writes it."""
    record = VideoRecord(network.config, LabelSchema.parse(SCHEMA), Preprocessing(size=(32, 32)), 2)
    torch.save(
        {
            "state_dict": {f"model.{key}": value for key, value in network.state_dict().items()},
            "vivit": record.as_dict(),
            "epoch": 3,
            "optimizer_states": [{"state": {}, "param_groups": [{"lr": 0.1}]}],
        },
        path,
    )
    return path


def save_plain(state: dict[str, Any], path: Path) -> Path:
    (save_file if path.suffix == ".safetensors" else torch.save)(state, path)
    return path


def spatial(network, path: Path, **options) -> list[str]:
    return apply_start(network, Start(spatial=str(path), **options))


def temporal(network, path: Path | str) -> list[str]:
    return apply_start(network, Start(spatial="random", temporal=str(path)))


# ------------------------------------------------------------------------------------------------ the spatial part
@pytest.mark.parametrize("name", ["vit.pth", "vit.safetensors"])
def test_weights_of_timms(name, tmp_path):
    vit = image_transformer()
    path = save_plain(vit.state_dict(), tmp_path / name)
    network = fresh()
    others = weights(network)
    said = spatial(network, path)
    expected = {key: value for key, value in vit.state_dict().items() if not key.startswith("head.")}
    assert same_weights(network.spatial.vit.state_dict(), expected)
    assert said[0] == f"spatial part: {len(expected)} tensors of {path}"
    assert set(said[1].removeprefix(f"not taken of {path}: ").split(", ")) == {"head.weight", "head.bias"}
    moved = {key for key, value in network.state_dict().items() if not torch.equal(value, others[key])}
    assert all(key.startswith("spatial.") for key in moved)


@pytest.mark.parametrize("averaged", [False, True])
def test_an_image_classifier_of_ours(averaged, tmp_path):
    """Frames give the features that the classifier has of them; of the averaged weights where there are such."""
    classifier = stir(create_classifier("timm:test_vit", 3, (32, 32))).eval()
    state = {f"model.{key}": value for key, value in classifier.state_dict().items()}
    if averaged:
        state |= {f"ema.module.{key}": value + 0.1 for key, value in classifier.state_dict().items()}
        classifier.load_state_dict({key: value + 0.1 for key, value in classifier.state_dict().items()})
    record = ClassifierRecord("timm:test_vit", ["a", "b", "c"], Preprocessing(size=(32, 32)))
    path = save_plain({"state_dict": state, "classifier": record.as_dict(), "epoch": 1}, tmp_path / "views.ckpt")
    network = fresh("none", backbone_options={})
    spatial(network, path)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert_close(network.spatial(images[None])[0], classifier.forward_features(images))


@pytest.mark.parametrize("inflation", ["central_frame", "average"])
@torch.no_grad()
def test_central_frame_looks_at_the_second_of_two_and_an_average_at_both(inflation, tmp_path):
    vit = image_transformer()
    network = fresh("none", tubelet=2)
    said = spatial(network, save_plain(vit.state_dict(), tmp_path / "vit.pth"), inflation=inflation)
    assert f"its embedding for tubelets of 2 frames ({inflation})" in said[0]
    video = torch.randn(1, 8, 3, 32, 32)
    seen = video[0, 1::2] if inflation == "central_frame" else (video[0, ::2] + video[0, 1::2]) / 2
    assert_close(network.spatial(video)[0], vit.forward_features(seen), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("inflation", ["central_frame", "average", "average_arp"])
@torch.no_grad()
def test_weights_of_timms_hub(inflation, tmp_path):
    """For which a file stands in here, as timm lets it."""
    vit = image_transformer(num_classes=0)
    hub = {"pretrained_cfg_overlay": {"file": str(save_plain(vit.state_dict(), tmp_path / "hub.pth"))}}
    network = fresh(tubelet=3, image_size=(40, 40), backbone_options={**SMALL, **hub})
    said = apply_start(network, Start(spatial="pretrained", inflation=inflation))
    found = weights(network.spatial.vit)
    assert_close(found.pop("patch_embed.proj.weight"), inflate(vit.patch_embed.proj.weight, 3, inflation))
    positions = checkpoint_filter_fn(vit.state_dict(), image_transformer(img_size=(40, 40)))["pos_embed"]
    assert_close(found.pop("pos_embed"), positions)
    assert all(torch.equal(value, vit.state_dict()[key]) for key, value in found.items())
    assert "of timm's weights of test_vit, its embedding for tubelets of 3 frames" in said[0]
    assert len(said) == 1


def test_positions_of_an_image_transformer_are_resized_as_timm_does_it(tmp_path):
    vit, larger = image_transformer(), image_transformer(img_size=(48, 40))
    expected = checkpoint_filter_fn(vit.state_dict(), larger)["pos_embed"]
    network = fresh(image_size=(48, 40))
    said = spatial(network, save_plain(vit.state_dict(), tmp_path / "vit.pth"))
    found = network.spatial.vit.pos_embed
    assert_close(found.detach(), expected)
    assert torch.equal(found[:, 0], vit.pos_embed[:, 0])
    assert said[0].endswith("positions resized to 6x5")


def test_positions_of_a_video_network_are_resized_with_corners_aligned(tmp_path):
    network = lively()
    larger = fresh(image_size=(56, 56))
    spatial(larger, video_checkpoint(network, tmp_path / "a.ckpt"))
    old, new = (of.spatial.vit.pos_embed.detach()[0] for of in (network, larger))
    assert torch.equal(new[0], old[0])
    plane = new[1:].unflatten(0, (7, 7))
    assert_close(plane[::2, ::2], old[1:].unflatten(0, (4, 4)))
    assert_close(plane[1::2], (plane[:-1:2] + plane[2::2]) / 2)


def test_class_token_of_an_image_transformer_arrives(tmp_path):
    """The official code loses it, which a frozen part would not get over."""
    vit, network = image_transformer(), fresh()
    assert float(vit.cls_token.detach().abs().max()) > 0.5
    spatial(network, save_plain(vit.state_dict(), tmp_path / "vit.pth"))
    assert torch.equal(network.spatial.vit.cls_token, vit.cls_token)


# ------------------------------------------------------------------------------------------------ two stages
def test_the_second_stage_begins_where_the_first_one_ended(tmp_path):
    """More frames, another adapter: the same spatial and temporal weights and head, four positions become sixteen."""
    first = lively("grid", tubelet=2)
    path = video_checkpoint(first, tmp_path / "first.ckpt")
    second = fresh("grid_residual", frames=32, tubelet=2, seed=1)
    adapter = weights(second.adapter)
    said = apply_start(second, Start(spatial=str(path), temporal=str(path)), LabelSchema.parse(SCHEMA))
    assert same_weights(weights(second.spatial), weights(first.spatial))
    assert same_weights(weights(second.head), weights(first.head))
    assert same_weights(weights(second.adapter), adapter)
    old, new = first.temporal.state_dict(), second.temporal.state_dict()
    assert all(torch.equal(new[key], value) for key, value in old.items() if key != "pos_embed")
    assert torch.equal(new["pos_embed"][:, 0], old["pos_embed"][:, 0])
    ends = np.linspace(0, 3, 16)
    expected = np.stack([np.interp(ends, range(4), line) for line in old["pos_embed"][0, 1:].T.numpy()], axis=1)
    assert_close(new["pos_embed"][0, 1:].numpy(), expected.astype(np.float32), rtol=1e-5, atol=1e-6)

    spatial_line, temporal_line, rest = said
    used = [int(line.split(": ")[1].split()[0]) for line in (spatial_line, temporal_line)]
    left = ["adapter.reduce.weight", "adapter.reduce.bias", "adapter.expand.weight", "adapter.expand.bias"]
    assert rest == f"not taken of {path}: {', '.join(left)}"
    assert sum(used) + len(left) == len(first.state_dict()), "every tensor is used or named"


def test_the_three_switches_are_independent(tmp_path):
    a = video_checkpoint(lively(seed=1), tmp_path / "a.ckpt")
    b = video_checkpoint(lively(seed=2), tmp_path / "b.ckpt")
    parts = ("spatial", "temporal", "adapter")
    for start, taken in (
        (Start(spatial=str(a)), {"spatial": 1}),
        (Start(spatial="random", temporal=str(b)), {"temporal": 2}),
        (Start(spatial="random", readout=str(b)), {"adapter": 2}),
        (Start(spatial=str(a), temporal=str(b), readout=str(a)), {"spatial": 1, "temporal": 2, "adapter": 1}),
    ):
        network = fresh(seed=3)
        before = {part: weights(getattr(network, part)) for part in parts}
        apply_start(network, start)
        for part in parts:
            expected = weights(getattr(lively(seed=taken[part]), part)) if part in taken else before[part]
            assert same_weights(weights(getattr(network, part)), expected), (start, part)


def test_the_head_comes_along_only_where_all_of_it_fits(tmp_path):
    path = video_checkpoint(lively(pre_logits=6), tmp_path / "a.ckpt")
    head = ("head.weight", "head.bias", "pre_logits.weight", "pre_logits.bias")
    for options, comes in (({"pre_logits": 6}, True), ({"pre_logits": 6, "num_classes": 4}, False), ({}, False)):
        network = fresh(seed=1, **options)
        before = weights(network)
        said = " ".join(apply_start(network, Start(str(path), str(path), str(path)), LabelSchema.parse(SCHEMA)))
        found, old = network.state_dict(), lively(pre_logits=6).state_dict()
        for key in set(head) & set(before):
            assert torch.equal(found[key], (old if comes else before)[key])
        assert all((key in said) != comes for key in head), "what is not taken is named"


@pytest.mark.parametrize("classes", [["b", "a", "c", "d", "e"], ["v", "w", "x", "y", "z"]])
def test_the_head_stays_new_where_as_many_classes_are_others(classes, tmp_path):
    path = video_checkpoint(lively(), tmp_path / "a.ckpt")
    network = fresh(seed=1)
    before = weights(network.head)
    said = apply_start(network, Start(str(path), str(path)), LabelSchema.parse({"action": classes}))
    assert same_weights(weights(network.head), before)
    assert "temporal part: " in said[1]
    assert "head.weight" in said[2]


def test_each_query_has_a_line_of_positions(tmp_path):
    first = lively("attention", adapter=AdapterOptions("attention", queries=2))
    second = fresh("attention", frames=15, adapter=AdapterOptions("attention", queries=2))
    path = video_checkpoint(first, tmp_path / "a.ckpt")
    temporal(second, path)
    old, new = (of.temporal.pos_embed.detach()[0, 1:].unflatten(0, (-1, 2)) for of in (first, second))
    assert_close(new[::2], old)
    assert_close(new[1::2], (old[:-1] + old[1:]) / 2)
    with pytest.raises(InputError, match=r"a\.ckpt: its adapter gives 2 vectors a tubelet, this network's 1"):
        temporal(fresh(), path)


def test_class_tokens_over_time(tmp_path):
    with_token, without = lively("none"), lively("none", temporal_pool="mean")
    path = video_checkpoint(with_token, tmp_path / "token.ckpt")
    network = fresh("none", temporal_pool="mean")
    said = apply_start(network, Start(str(path), str(path)), LabelSchema.parse(SCHEMA))
    assert torch.equal(network.temporal.pos_embed, with_token.temporal.pos_embed[:, 1:])
    assert said[2:] == [f"not taken of {path}: temporal.cls_token"]
    with pytest.raises(InputError, match="its temporal part has no class token: set temporal_pool to mean"):
        temporal(fresh("none"), video_checkpoint(without, tmp_path / "mean.ckpt"))


# ------------------------------------------------------------------------------------- blocks of other encoders
def videomae(naming: str) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
    """An encoder of three blocks and a decoder, without biases of the keys; and the blocks under our names."""
    torch.manual_seed(7)
    blocks, state = [], {}
    for number in range(3):
        q, k, v, proj = (torch.randn(64, 64) for _ in range(4))
        block = {f"norm{i}.{of}": torch.randn(64) for i in (1, 2) for of in ("weight", "bias")}
        query, value = torch.randn(64), torch.randn(64)
        block |= {"attn.qkv.weight": torch.cat([q, k, v]), "attn.qkv.bias": torch.cat([query, torch.zeros(64), value])}
        block |= {"attn.proj.weight": proj, "attn.proj.bias": torch.randn(64)}
        block |= {"mlp.fc1.weight": torch.randn(256, 64), "mlp.fc1.bias": torch.randn(256)}
        block |= {"mlp.fc2.weight": torch.randn(64, 256), "mlp.fc2.bias": torch.randn(64)}
        blocks.append(block)
        if naming == "transformers":
            at = f"videomae.encoder.layer.{number}."
            names = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense"}
            names |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
            parts = dict(zip(("query", "key", "value"), (q, k, v), strict=True))
            state |= {f"{at}attention.attention.{part}.weight": weight for part, weight in parts.items()}
            state |= {f"{at}attention.attention.q_bias": query, f"{at}attention.attention.v_bias": value}
        else:
            at = f"{'encoder.' if naming == 'pre-trained' else ''}blocks.{number}."
            names = {}
            state |= {
                f"{at}attn.q_bias": query,
                f"{at}attn.v_bias": value,
                f"{at}attn.qkv.weight": block["attn.qkv.weight"],
            }
        for key, tensor in block.items():
            part, _, of = key.rpartition(".")
            if part != "attn.qkv":
                state[f"{at}{names.get(part, part)}.{of}"] = tensor
    if naming == "transformers":
        state["videomae.embeddings.patch_embeddings.projection.weight"] = torch.randn(64, 3, 2, 8, 8)
    else:
        state["decoder.blocks.2.norm1.weight"] = torch.randn(32)
        state[f"{'encoder.' if naming == 'pre-trained' else ''}patch_embed.proj.weight"] = torch.randn(64, 3, 2, 8, 8)
    return state, blocks


@pytest.mark.parametrize(("naming", "key"), [("pre-trained", "model"), ("fine-tuned", "module"), ("transformers", "")])
def test_the_last_blocks_of_a_videomae_encoder(naming, key, tmp_path):
    state, blocks = videomae(naming)
    torch.save({key: state, "epoch": 3} if key else state, tmp_path / "mae.pth")
    network = fresh("none")
    before = weights(network)
    said = temporal(network, tmp_path / "mae.pth")
    for own, block in zip(network.temporal.blocks, blocks[1:], strict=True):
        assert same_weights(own.state_dict(), block)
    kept = [name for name in before if ".blocks." not in name]
    assert all(torch.equal(network.state_dict()[name], before[name]) for name in kept)
    first = "videomae.encoder.layer.0." if naming == "transformers" else "blocks.0."
    assert first in said[-1], "blocks that were not taken are named"
    with pytest.raises(InputError, match=r"mae\.pth: has 3 blocks, the temporal transformer 4"):
        temporal(fresh("none", layers=4), tmp_path / "mae.pth")


def test_the_last_blocks_of_the_spatial_part(tmp_path):
    network = fresh("none", temporal=TemporalOptions(1, mlp_ratio=3))
    path = save_plain(image_transformer().state_dict(), tmp_path / "vit.pth")
    apply_start(network, Start(spatial=str(path), temporal="image"))
    assert same_weights(network.temporal.blocks[0].state_dict(), network.spatial.vit.blocks[1].state_dict())


def test_joint_models_of_hugging_face_are_refused(tmp_path):
    kernel = "embeddings.patch_embeddings.projection.weight"
    for prefix in ("", "vivit."):
        block = {f"{prefix}encoder.layer.0.attention.attention.query.bias": torch.zeros(64)}
        torch.save({prefix + kernel: torch.zeros(64, 3, 2, 8, 8), **block}, tmp_path / "joint.pth")
        for start in (spatial, temporal):
            with pytest.raises(InputError, match=r"joint\.pth: holds the joint space-time model \(Hugging Face's Vi"):
                start(fresh(), tmp_path / "joint.pth")
    torch.save({f"vit.{kernel}": torch.zeros(64, 3, 8, 8)}, tmp_path / "image.pth")
    with pytest.raises(InputError, match="neither a video network nor an image transformer of timm's"):
        spatial(fresh(), tmp_path / "image.pth")


# ------------------------------------------------------------------------------------------------ flax's parameters
@pytest.mark.parametrize("root", ["optimizer/target", "optimizer/target/params", "params", "params/params"])
def test_official_checkpoints(root, tmp_path):
    """Both parts, the class tokens too; moments of the optimizer are not parameters."""
    first = lively("none", tubelet=2)
    query = "SpatialTransformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel"
    path = write_flax(tmp_path / "checkpoint_100", to_official(first), root, chunked=query)
    second = fresh("none", tubelet=2, seed=1)
    said = apply_start(second, Start(spatial=str(path), temporal=str(path)))
    assert same_weights(weights(second.spatial), weights(first.spatial))
    assert same_weights(weights(second.temporal), weights(first.temporal))
    assert said[2:] == [f"not taken of {path}: head.weight, head.bias"], "whose classes they are is not said"


def test_flattened_arrays(tmp_path):
    first = lively("none", tubelet=2)
    path = write_npz(tmp_path / "vivit.npz", to_official(first))
    second = fresh("grid", tubelet=2, seed=1, frames=12)
    apply_start(second, Start(spatial=str(path), temporal=str(path)))
    assert same_weights(weights(second.spatial), weights(first.spatial))
    assert second.temporal.pos_embed.shape[1] == 7


# ------------------------------------------------------------------------------------------------ what is refused
def refused(start, path: Path) -> str:
    network = fresh("none")
    before = weights(network)
    with pytest.raises(InputError) as caught:
        start(network, path)
    assert same_weights(weights(network), before)
    message = str(caught.value)
    assert path.name in message
    assert "\n" not in message
    return message


class Trap:
    """Makes a folder when unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("name", ["vit.pth", "vit.safetensors", "vit.npz", "vit.msgpack", "checkpoint_7"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "text"])
def test_unreadable_files(name, damage, tmp_path):
    path = tmp_path / name
    if path.suffix in (".pth", ".safetensors"):
        save_plain(image_transformer().state_dict(), path)
    else:
        (write_npz if path.suffix == ".npz" else write_flax)(path, to_official(lively("none")))
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "truncated": whole[: len(whole) // 2]}.get(damage, b"not weights\n"))
    if damage == "missing":
        path.unlink()
    reason = {"missing": "no such checkpoint file", "empty": "the checkpoint file is empty"}.get(
        damage, "not a readable"
    )
    assert reason in refused(spatial, path)


def test_a_byte_of_an_archive_that_is_not_what_it_was(tmp_path):
    path = tmp_path / "vivit.npz"
    np.savez_compressed(path, **{name: value.numpy() for name, value in to_official(lively("none")).items()})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert "not a readable .npz of parameters" in refused(spatial, path)


def test_pickled_objects_are_never_executed(tmp_path):
    trap, path = Trap(tmp_path / "caught"), tmp_path / "vit.pth"
    torch.save({"model": image_transformer().state_dict(), "args": trap}, path)
    assert "pickled object, which is never executed" in refused(spatial, path)
    np.savez(tmp_path / "vit.npz", hook=np.array([trap], dtype=object))
    assert "not a readable .npz" in refused(spatial, tmp_path / "vit.npz")
    assert not trap.folder.exists()
    torch.load(path, weights_only=False)
    assert trap.folder.exists(), "the trap does not work, so nothing was tested"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(value, tmp_path):
    state = image_transformer().state_dict()
    state["blocks.1.norm1.weight"][3] = value
    found = refused(spatial, save_plain(state, tmp_path / "vit.pth"))
    assert found.endswith("NaN or infinite values in blocks.1.norm1.weight")
    official = to_official(lively("none"))
    official["TemporalTransformer/encoder_norm/scale"][3] = value
    for path in (write_npz(tmp_path / "vivit.npz", official), write_flax(tmp_path / "vivit.msgpack", official)):
        assert refused(temporal, path).endswith("infinite values in TemporalTransformer/encoder_norm/scale")


def test_weights_of_another_network(tmp_path):
    state = image_transformer().state_dict()
    path = tmp_path / "vit.pth"
    less = {key: value for key, value in state.items() if key != "blocks.1.attn.qkv.bias"}
    assert "missing blocks.1.attn.qkv.bias" in refused(spatial, save_plain(less, path))
    assert "unexpected blocks.2.norm1.bias" in refused(
        spatial, save_plain({**state, "blocks.2.norm1.bias": torch.zeros(64)}, path)
    )
    wrong = {**state, "norm.weight": torch.zeros(65)}
    assert "misshapen norm.weight (65,) where the network has (64,)" in refused(spatial, save_plain(wrong, path))
    for shape in ((1, 16, 64), (17, 64), (1, 17, 32)):
        positions = {**state, "pos_embed": torch.zeros(shape)}
        assert f"pos_embed {shape}" in refused(spatial, save_plain(positions, path))
    assert "holds neither a video network nor an image transformer" in refused(
        spatial, save_plain({"layer1.0.conv1.weight": torch.zeros(2)}, path)
    )
    assert "holds no temporal transformer" in refused(
        temporal, save_plain({"layer1.0.conv1.weight": torch.zeros(2)}, path)
    )
    assert "holds no adapter; set start.readout to new" in _refused_readout(path)


def _refused_readout(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        apply_start(fresh("grid"), Start(spatial="random", readout=str(path)))
    return str(caught.value)


def test_video_networks_that_do_not_fit(tmp_path):
    wide = video_checkpoint(lively("grid", layers=3), tmp_path / "three.ckpt")
    assert "unexpected blocks.2." in refused(temporal, wide)
    flat = video_checkpoint(lively("none", layers=0), tmp_path / "flat.ckpt")
    assert "holds no temporal transformer" in refused(temporal, flat)
    other = video_checkpoint(lively("frame"), tmp_path / "frame.ckpt")
    assert "frame.ckpt: the adapter: does not fit the network: missing reduce.weight" in _refused_readout(other)
    whole = torch.load(wide, weights_only=True)
    state = {key: value for key, value in whole["state_dict"].items() if not key.startswith("model.spatial.")}
    part = save_plain({**whole, "state_dict": state}, tmp_path / "part.ckpt")
    assert "was written without its spatial part; give the file that this came from" in refused(spatial, part)
    for start in (Start(spatial="random", temporal=str(wide)), Start(spatial="random", temporal="image")):
        with pytest.raises(InputError, match=r"start\.temporal must be random where the network has no temporal"):
            apply_start(fresh("none", layers=0), start)


def test_flax_files_that_do_not_fit(tmp_path):
    official = to_official(lively("none"))
    key = "SpatialTransformer/encoderblock_1/MlpBlock_0/Dense_0/bias"
    path = write_npz(tmp_path / "vivit.npz", {name: value for name, value in official.items() if name != key})
    assert f"missing {key}" in refused(spatial, path)
    wrong = {**official, key: official[key][None]}
    assert f"misshapen {key} (1, 192)" in refused(spatial, write_npz(path, wrong))
    images = {name.replace("SpatialTransformer", "Transformer"): value for name, value in official.items()}
    images = {name: value for name, value in images.items() if "Temporal" not in name}
    found = refused(spatial, write_npz(path, images))
    assert "holds no parameters of a factorised encoder (of an image transformer, take timm's weights)" in found


def test_a_network_made_from_its_own_record(tmp_path):
    network = lively("grid", tubelet=2)
    record = VideoRecord(network.config, LabelSchema.parse(SCHEMA), Preprocessing(size=(32, 32)), None)
    assert VideoRecord.from_dict(record.as_dict()) == record
    assert record.config == config("grid", tubelet=2)
    assert network(clips(1, 8)).shape == (1, 5)
