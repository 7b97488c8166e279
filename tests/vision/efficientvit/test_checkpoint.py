"""EfficientViT weights from files: official, timm's, damaged and hostile ones."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.reference.cases import COPIES, assert_close, normal
from tests.vision.efficientvit.weights import lively
from vision.efficientvit import EfficientViT, build, load_official, to_official, to_timm
from vision.efficientvit.attention import relative_index, resize_bias
from vision.efficientvit.checkpoint import from_timm
from vision.errors import InputError

TINY: dict[str, Any] = {
    "img_size": 224,
    "num_classes": 5,
    "embed_dim": (16, 32, 48),
    "depth": (1, 1, 2),
    "num_heads": (2, 2, 3),
    "kernels": (5, 3, 7),
    "distillation": True,
}
ATTENTION = "blocks3.4.mixer.m.attn"
State = dict[str, Tensor]


def official(**settings: Any) -> State:
    """A tiny network's state dict as the official code would save it."""
    return to_official(lively(EfficientViT(**{**TINY, **settings})))


@torch.no_grad()
def logits(network: EfficientViT, size: int = 224) -> Tensor:
    answer: Tensor = network(normal((2, 3, size, size)))
    return answer


def training_checkpoint(state: State) -> dict[str, Any]:
    """What the official training script saves."""
    return {
        "model": state,
        "optimizer": {
            "state": {0: {"step": 3, "exp_avg": torch.ones(2)}},
            "param_groups": [{"lr": 0.1, "params": [0]}],
        },
        "lr_scheduler": {"last_epoch": 7},
        "epoch": 7,
        "scaler": {"scale": 65536.0},
        "args": argparse.Namespace(model="EfficientViT_M0", lr=1e-3, opt_betas=None, color_jitter=0.4),
    }


def save_pth(state: State, path: Path) -> None:
    torch.save(state, path)


def save_training_checkpoint(state: State, path: Path) -> None:
    torch.save(training_checkpoint(state), path)


def save_old_pth(state: State, path: Path) -> None:
    torch.save({"model": state}, path, _use_new_zipfile_serialization=False)


def save_safetensors(state: State, path: Path) -> None:
    save_file({key: value.contiguous() for key, value in state.items()}, path)


FORMATS: list[tuple[Callable[[State, Path], None], str]] = [
    (save_pth, "weights.pth"),
    (save_training_checkpoint, "checkpoint.pth"),
    (save_old_pth, "old.pth"),
    (save_safetensors, "weights.safetensors"),
]


# ---------------------------------------------------------------------------------------------- what can be read
@pytest.mark.parametrize(("save", "name"), FORMATS)
@torch.no_grad()
def test_official_and_timm_files_give_the_logits_of_timm(
    save: Callable[[State, Path], None], name: str, tmp_path: Path
) -> None:
    theirs = timm.create_model("efficientvit_m0").eval()
    theirs.load_state_dict(lively(theirs))
    names = json.loads((COPIES / "efficientvit" / "keymap_timm.json").read_text())["map_m0"]
    state: State = {}
    for ours, name_in_timm in names.items():
        if name_in_timm is None:
            side = 4 if ours.startswith("blocks3") else 7
            state[ours] = relative_index(side, side).clone()
        else:
            state[ours] = theirs.state_dict()[name_in_timm]
    save(state, tmp_path / f"official_{name}")
    save(theirs.state_dict(), tmp_path / f"timm_{name}")

    x = normal((2, 3, 224, 224))
    results = [load_official(tmp_path / f"{source}_{name}")(x) for source in ("official", "timm")]
    assert torch.equal(results[0], results[1])
    assert_close("logits", results[0], theirs(x))


def test_settings_are_read_from_the_shapes() -> None:
    network = load_official(official(num_classes=9, in_chans=4, key_dim=(8, 16, 24)))
    assert not network.training
    assert network(torch.zeros(1, 4, 64, 64)).shape == (1, 9)
    assert network.head_dist is not None
    assert [len(stage) for stage in (network.blocks1, network.blocks2, network.blocks3)] == [1, 4, 5]
    attention = network.get_submodule(ATTENTION)
    assert [dw.c.weight.shape for dw in attention.dws] == [(24, 1, 5, 5), (24, 1, 3, 3), (24, 1, 7, 7)]


def test_keys_of_a_distributed_run() -> None:
    state = official()
    prefixed = {f"module.{key}": value for key, value in state.items()}
    assert torch.equal(logits(load_official(prefixed)), logits(load_official(state)))


def test_pointwise_convolutions_kept_as_matrices() -> None:
    state = official()
    pointwise = [key for key, value in state.items() if value.ndim == 4 and value.shape[2:] == (1, 1)]
    assert len(pointwise) > 20
    matrices = {key: value[:, :, 0, 0] if key in pointwise else value for key, value in state.items()}
    assert torch.equal(logits(load_official(matrices)), logits(load_official(state)))


def test_other_convolutions_as_matrices_are_refused() -> None:
    state = official()
    key = f"{ATTENTION}.dws.1.c.weight"
    with pytest.raises(InputError, match=key.replace(".", r"\.")):
        load_official({**state, key: state[key].flatten(1)})


@pytest.mark.parametrize("convert", [lambda state: state, to_timm])
def test_tables_are_interpolated_for_another_size(convert: Callable[[State], State]) -> None:
    state = official()
    network = load_official(convert(state), img_size=448)
    own = network.state_dict()
    for key in [key for key in state if key.endswith("attention_biases")]:
        if key.startswith("blocks3"):  # 4x4 at 224, 7x7 at 448
            assert torch.equal(own[key], resize_bias(state[key], (4, 4), (7, 7)))
        else:
            assert torch.equal(own[key], state[key])
    assert_close("logits", logits(network, 448), logits(load_official(state), 448))


# --------------------------------------------------------------------------------------------------- round trips
def test_round_trips() -> None:
    state = lively(build("efficientvit_m2"))
    for way_back in (to_official, lambda state: from_timm(to_timm(to_official(state)))):
        again = load_official(way_back(state)).state_dict()
        assert list(again) == list(state)
        assert all(torch.equal(again[key], state[key]) for key in state)
    timm.create_model("efficientvit_m2").load_state_dict(to_timm(to_official(state)))


def test_rectangular_windows_do_not_exist_in_the_official_format() -> None:
    network = EfficientViT(**{**TINY, "img_size": (224, 112)})
    with pytest.raises(InputError, match="square windows only"):
        to_official(network.state_dict())


# ---------------------------------------------------------------------------------------------- what is refused
def test_every_missing_tensor_is_named() -> None:
    state = official(img_size=64)
    # Index buffers are computed, so a file need not have them; of normalisations the head's will do.
    for key in [k for k in state if not k.endswith("attention_bias_idxs") and (".bn." not in k or "head" in k)]:
        with pytest.raises(InputError) as caught:
            load_official({other: value for other, value in state.items() if other != key}, img_size=64)
        assert key in str(caught.value)


def test_every_tensor_without_dimensions_is_named() -> None:
    state = official(img_size=64)
    for key, value in state.items():
        if value.ndim < 2 or key.endswith("attention_bias_idxs"):
            continue
        with pytest.raises(InputError) as caught:
            load_official({**state, key: torch.ones((), dtype=value.dtype)}, img_size=64)
        assert key in str(caught.value)


@pytest.mark.parametrize("part", ["qkvs", "dws", "proj", "attention_biases"])
def test_missing_parts_of_an_attention_are_named(part: str) -> None:
    state = {key: value for key, value in official().items() if f"blocks1.0.mixer.m.attn.{part}" not in key}
    with pytest.raises(InputError, match=rf"blocks1\.0\.mixer\.m\.attn\.{part}"):
        load_official(state)


@pytest.mark.parametrize("extra", ["blocks3.3.ffn2.m.pw1.c.weight", "stages.9.conv.weight", "head_aux.l.bias"])
def test_unexpected_tensor_is_named(extra: str) -> None:
    with pytest.raises(InputError, match="unexpected") as caught:
        load_official({**official(), extra: torch.zeros(2)})
    assert extra.rpartition(".conv")[0] in str(caught.value)


@pytest.mark.parametrize("key", ["patch_embed.2.c.weight", "blocks2.1.se.fc1.weight", "head.bn.weight", "head.l.bias"])
def test_misshapen_tensor_is_named_with_both_shapes(key: str) -> None:
    state = official()
    wrong = torch.cat([state[key], state[key]])
    with pytest.raises(InputError, match="misshapen") as caught:
        load_official({**state, key: wrong})
    assert f"{key} {tuple(wrong.shape)} where the network has {tuple(state[key].shape)}" in str(caught.value)


def test_table_of_another_number_of_heads_is_refused() -> None:
    state, key = official(), f"{ATTENTION}.attention_biases"
    with pytest.raises(InputError, match=r"attention_biases \(2, 49\)"):
        load_official({**state, key: torch.zeros(2, 49)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_named(value: float, tmp_path: Path) -> None:
    state = official()
    state["blocks2.3.dw0.m.bn.running_var"][3] = value
    torch.save({"model": state}, tmp_path / "weights.pth")
    with pytest.raises(
        InputError, match=r"weights\.pth: NaN or infinite values in blocks2\.3\.dw0\.m\.bn\.running_var$"
    ):
        load_official(tmp_path / "weights.pth")


@pytest.mark.parametrize(
    "index",
    [
        relative_index(4, 4).view(4, 4, 4, 4).permute(1, 0, 3, 2).reshape(16, 16),  # column by column
        relative_index(4, 4)[:15],
        torch.tensor(3),
    ],
)
def test_other_relative_positions_are_refused(index: Tensor) -> None:
    key = f"{ATTENTION}.attention_bias_idxs"
    with pytest.raises(InputError, match=rf"relative positions in {key} are not"):
        load_official({**official(), key: index})


class Trap:
    """Makes a folder when unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["beside", "in args"])
def test_pickled_objects_are_never_executed(place: str, zipped: bool, tmp_path: Path) -> None:
    trap, path = Trap(tmp_path / "caught"), tmp_path / "weights.pth"
    content = {"model": official(), "args": argparse.Namespace(hook=trap)}
    if place == "beside":
        content = {"model": official(), "hook": trap}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"weights\.pth: .*pickled object.*never executed"):
        load_official(path)
    assert not trap.folder.exists()
    torch.load(path, weights_only=False)
    assert trap.folder.exists(), "the trap does not work, so nothing was tested"


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("damage", ["empty", "truncated", "cut short", "text"])
def test_damaged_files_are_named(name: str, damage: str, tmp_path: Path) -> None:
    path = tmp_path / name
    (save_safetensors if path.suffix == ".safetensors" else save_pth)(official(), path)
    whole = path.read_bytes()
    content = {"empty": b"", "truncated": whole[: len(whole) // 2], "cut short": whole[:-1], "text": b"not weights\n"}
    path.write_bytes(content[damage])
    with pytest.raises(InputError, match=name.replace(".", r"\.")) as caught:
        load_official(path)
    assert "\n" not in str(caught.value)


def test_other_contents_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such checkpoint file"):
        load_official(tmp_path / "nowhere.pth")
    for content, message in (
        ([torch.zeros(2)], "expected a dictionary of tensors, found list"),
        ({"epoch": 3}, "expected tensors by their names"),
        ({0: torch.zeros(2)}, "not an EfficientViT|expected"),
        ({"weight": torch.zeros(2)}, "not an EfficientViT of the official release"),
        ({"model": {**official(), "epoch": 3}}, "expected tensors only, found other values under epoch"),
    ):
        torch.save(content, tmp_path / "odd.pth")
        with pytest.raises(InputError, match=message):
            load_official(tmp_path / "odd.pth")
