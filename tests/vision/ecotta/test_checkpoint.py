"""What others have trained: files of RobustBench, the community's EcoTTA files, and our own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from vision.ecotta import EcoTTA, Online, WideResNet, load_adapter, load_official, official_state_dict
from vision.ecotta.source import RECORD, AdapterRecord, SourceRecord, load_source
from vision.ecotta.wrn import PREPROCESSING
from vision.errors import InputError
from vision.preprocessing import IMAGENET_MEAN, IMAGENET_STD

CLASSES = 7
HALF = ((0.5,) * 3, (0.5,) * 3)
NAMES = [f"class {i}" for i in range(CLASSES)]


def images(size: int = 8, side: int = 32) -> Tensor:
    return torch.rand(size, 3, side, side, generator=torch.Generator().manual_seed(0))


def stirred(model: nn.Module) -> nn.Module:
    """With running statistics that are not those of a new network, and in evaluation mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.get_buffer("running_mean"), -0.2, 0.2)
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 1.5)
    return model.eval()


def wide(depth: int = 16, width: int = 1, normalised: bool = False) -> WideResNet:
    torch.manual_seed(0)
    mean, std = HALF if normalised else (None, None)
    model = stirred(WideResNet(depth, width, CLASSES, mean, std))
    assert isinstance(model, WideResNet)
    return model


def prefixed(model: nn.Module, prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in model.state_dict().items()}


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@torch.no_grad()
def answer(model: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = model(x)
    return out


# --------------------------------------------------------------------------------------------- RobustBench's networks
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model."])
@pytest.mark.parametrize("under", [None, "state_dict"])
def test_a_wide_network_of_robustbench(tmp_path: Path, prefix: str, under: str | None) -> None:
    model = wide()
    content = prefixed(model, prefix)
    loaded = load_official(saved(tmp_path / "net.pt", {under: content, "epoch": 3} if under else content))
    assert isinstance(loaded, WideResNet)
    assert (loaded.depth, loaded.width, loaded.num_classes, loaded.training) == (16, 1, CLASSES, False)
    assert torch.equal(answer(loaded, images()), answer(model, images()))


@pytest.mark.parametrize(
    ("given", "asked", "normalised"),
    [
        ((40, 2), "auto", True),  # the AugMix network, whose file does not say it
        ((40, 2), "none", False),
        ((28, 1), "auto", False),
        ((28, 1), HALF, True),
    ],
)
def test_which_wide_networks_normalise_their_images(given: tuple[int, int], asked: Any, normalised: bool) -> None:
    model = wide(*given, normalised=normalised)
    assert "mu" not in model.state_dict(), "published files lack it"
    loaded = load_official(model.state_dict(), asked)
    assert torch.equal(answer(loaded, images()), answer(model, images()))


def test_a_normalisation_in_the_file_is_kept() -> None:
    buffers = {"mu": torch.full((1, 3, 1, 1), 0.25), "sigma": torch.full((1, 3, 1, 1), 0.5)}
    loaded = load_official({**wide().state_dict(), **buffers})
    assert torch.equal(answer(loaded, images()), answer(wide(), (images() - 0.25) / 0.5))


def residual(block: Any = Bottleneck, small: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = ResNet(block, (1, 2, 1, 1), num_classes=CLASSES)
    if small:
        model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return stirred(model)


@pytest.mark.parametrize("block", [Bottleneck, BasicBlock])
@pytest.mark.parametrize("small", [False, True])
def test_a_residual_network_behind_its_normalisation(block: Any, small: bool) -> None:
    """Robustbench's form: ``normalize`` and ``model``. The stages, their blocks and the stem follow from the keys."""
    model, x = residual(block, small), images(2, 64)
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(1, 3, 1, 1)
    state = {"normalize.mean": mean, "normalize.std": std, **prefixed(model, "model.")}
    torch.testing.assert_close(answer(load_official(state), x), answer(model, (x - mean) / std))
    bare = load_official(prefixed(model, "model."), "none")
    assert torch.equal(answer(bare, x), answer(model, x))
    usual = load_official(prefixed(model, "module."))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(answer(usual, x), answer(model, (x - mean) / std))


def without(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if part not in key}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (without(wide().state_dict(), "bn2.bias"), "missing block1.layer.0.bn2.bias"),
        ({**wide().state_dict(), "extra": torch.zeros(1)}, "unexpected extra"),
        ({**wide().state_dict(), "conv1.weight": torch.zeros(8, 3, 3, 3)}, r"conv1.weight \(8, 3, 3, 3\)"),
        (without(wide().state_dict(), "fc.weight"), "no wide residual network"),
        (without(residual().state_dict(), "layer2.0.conv2"), "missing layer2.0.conv2.weight"),
        (without(residual().state_dict(), "layer3."), "missing layer3.0.conv1.weight"),
        (without(residual().state_dict(), "fc.weight"), "no ResNet"),
        ({"weight": torch.zeros(3)}, "neither a wide residual network .* nor a ResNet .* nor an EcoTTA network"),
        ({**wide().state_dict(), "fc.bias": torch.full((CLASSES,), torch.nan)}, "NaN or infinite .* fc.bias"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, state: dict[str, Tensor], message: str) -> None:
    path = saved(tmp_path / "broken.pt", state)
    with pytest.raises(InputError, match=f"broken.pt.*{message}") as caught:
        load_official(path)
    assert "\n" not in str(caught.value)


class Sly:
    """An object that would run code where it is unpickled."""

    def __reduce__(self) -> Any:
        return print, ("run",)


def test_pickled_objects_are_refused_unless_they_are_trusted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {"state_dict": wide().state_dict(), "options": Sly()}
    path = saved(tmp_path / "sly.pt", content)
    with pytest.raises(InputError, match="holds a pickled object, which is never executed"):
        load_official(path)
    assert capsys.readouterr().out == ""
    assert torch.equal(answer(load_official(path, trusted=True), images()), answer(wide(), images()))


def test_options_are_of_adapted_networks_only() -> None:
    with pytest.raises(InputError, match="is no EcoTTA network, which strength would be of"):
        load_official(wide().state_dict(), strength=0.1)


# ------------------------------------------------------------------------------------------- the community's EcoTTA
def adapted(partition: Any = (1, 2, 3)) -> EcoTTA:
    network = EcoTTA.attach(wide(), partition=partition, calibrate=False)
    stirred(network.metas)
    network.adapt(images())
    return network


@pytest.mark.parametrize("partition", [(1, 2, 3), (6,), (1, 1, 1, 1, 1, 1)])
@pytest.mark.parametrize("under", [None, "net"])
def test_the_communitys_files_come_back(tmp_path: Path, partition: tuple[int, ...], under: str | None) -> None:
    network = adapted(partition)
    state = official_state_dict(network)
    assert "encoders.0.original_part.0.conv1.weight" in state
    assert {key.split(".")[0] for key in state} == {"conv1", "encoders", "classifier"}
    path = saved(tmp_path / "eco.pt", {under: state, "optim": {"lr": 0.1}} if under else state)
    loaded = load_official(path, strength=0.25)
    assert isinstance(loaded, EcoTTA)
    assert (loaded.groups, loaded.kernel, loaded.strength) == (network.groups, 3, 0.25)
    assert torch.equal(loaded.predict(images()), network.predict(images()))
    written = official_state_dict(loaded)
    assert written.keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in written.items())


def test_community_networks_take_images_as_they_are_unless_told() -> None:
    """The community's code drops the normalisation of WRN-40-2; it can be put back."""
    network = EcoTTA.attach(wide(40, 2), groups=4, calibrate=False)
    state, x = official_state_dict(network), images()
    plain, normalising = load_official(state), load_official(state, HALF)
    assert isinstance(plain, EcoTTA)
    assert isinstance(normalising, EcoTTA)
    assert torch.equal(plain.predict(x), network.predict(x))
    torch.testing.assert_close(normalising.predict(x), network.predict(2 * x - 1), rtol=1e-3, atol=1e-4)


def community_residual(network: EcoTTA) -> dict[str, Tensor]:
    """The community's names of a network round a ResNet."""
    names = {"conv1": "conv1.conv1", "bn1": "conv1.bn1", "fc": "classifier.fc"}
    names |= {
        name: f"encoders.{k}.original_part.{i}" for k, of in enumerate(network.groups) for i, name in enumerate(of)
    }
    state = {
        f"encoders.{key.replace('.', '.meta_part.', 1)}": value for key, value in network.metas.state_dict().items()
    }
    for key, value in network.model.state_dict().items():
        own = max((name for name in names if key.startswith(f"{name}.")), key=len)
        state[names[own] + key.removeprefix(own)] = value
    return state


@pytest.mark.parametrize(("block", "small"), [(Bottleneck, True), (Bottleneck, False), (BasicBlock, True)])
def test_community_networks_round_residual_ones(block: Any, small: bool) -> None:
    """Stages follow from where a way round has a convolution; the first one of small blocks has none."""
    groups = [["layer1.0", "layer2.0"], ["layer2.1", "layer3.0", "layer4.0"]]
    network = EcoTTA.attach(residual(block, small), partition=groups, kernel=1, calibrate=False, input_size=(64, 64))
    x = images(8, 32 if small else 64)
    state = community_residual(network)
    loaded = load_official(state)
    assert isinstance(loaded, EcoTTA)
    assert (loaded.groups, loaded.kernel) == (network.groups, 1)
    assert torch.equal(loaded.predict(x), network.predict(x))
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(1, 3, 1, 1)
    normalising = load_official({**state, "conv1.norm.mean": mean, "conv1.norm.std": std})
    assert isinstance(normalising, EcoTTA)
    torch.testing.assert_close(normalising.predict(x), network.predict((x - mean) / std))


def test_community_names_are_those_of_wide_networks() -> None:
    network = EcoTTA.attach(residual(small=True), groups=2, input_size=(32, 32), calibrate=False)
    with pytest.raises(InputError, match="known for wide residual networks only"):
        official_state_dict(network)


def official(**changes: Tensor | None) -> dict[str, Tensor]:
    state = {**official_state_dict(adapted()), **changes}
    return {key: value for key, value in state.items() if value is not None}


BLOCK, META = "encoders.1.original_part.1.", "encoders.2.meta_part."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{META}meta_bn.weight": None}, "missing 2.meta_bn.weight"),
        ({f"{META}extra": torch.zeros(1)}, "unexpected 2.extra"),
        ({f"{META}conv_block.conv.weight": torch.zeros(64, 16, 1, 1)}, "misshapen 2.conv_block.conv.weight"),
        ({f"{BLOCK}bn1.bias": None}, "missing block2.layer.0.bn1.bias"),
        ({"encoders.0.other.weight": torch.zeros(1)}, "unexpected encoders.0.other.weight"),
        ({"encoders.0.meta_part.conv_block.conv.weight": None}, "must each have original_part and meta_part"),
        ({"classifier.fc.weight": None}, "no wide residual network"),
        ({"encoders.3.original_part.0.bn1.bias": torch.zeros(64)}, "7 blocks are not three stages"),
    ],
)
def test_community_files_that_do_not_fit(tmp_path: Path, changes: dict[str, Tensor | None], message: str) -> None:
    path = saved(tmp_path / "eco.pt", {"net": official(**changes)})
    with pytest.raises(InputError, match=rf"eco\.pt: .*{message}"):
        load_official(path)


# ------------------------------------------------------------------------------------------------------------ our own
def test_a_source_network_has_the_classes_of_the_data(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt", wide().state_dict())
    model, record = load_source(path, None, NAMES, PREPROCESSING)
    assert torch.equal(answer(model, images()), answer(wide(), images()))
    assert (record.backbone, record.class_names, record.normalisation) == (None, NAMES, None)
    with pytest.raises(InputError, match=r"net\.pt: the network has 7 classes, the data has 6"):
        load_source(path, None, NAMES[:6], PREPROCESSING)


def test_a_record_gives_the_network_back(tmp_path: Path) -> None:
    """A training checkpoint holds weights under ``adapter.``, and a record of plain values."""
    model = wide(16, 1, normalised=True)
    online = Online(lr=0.02, prior=16.0, memory="checkpoint")
    network = EcoTTA.attach(model, 2, form="separable", calibrate=False, **online.options())
    for _ in range(2):
        network.adapt(images())
    source = SourceRecord(None, NAMES, PREPROCESSING, HALF)
    record = AdapterRecord(source, [list(names) for names in network.groups], network.form, network.kernel, online)
    assert AdapterRecord.from_dict(record.as_dict()) == record
    content = {RECORD: record.as_dict(), "state_dict": prefixed(network, "adapter.")}
    path = saved(tmp_path / "last.ckpt", content)
    loaded, found = load_adapter(path)
    assert found == source
    assert (loaded.form, loaded.memory, loaded.prior, loaded.descent.lr) == ("separable", "checkpoint", 16.0, 0.02)
    assert torch.equal(loaded.predict(images()), network.predict(images()))
    assert (int(loaded.steps), int(loaded.images)) == (2, 16)
    other, _ = load_adapter(path, online=Online(memory="eager", strength=0.1))
    assert (other.memory, other.strength, other.prior) == ("eager", 0.1, 0.0)

    content["state_dict"] = {key: value for key, value in content["state_dict"].items() if "metas.1" not in key}
    with pytest.raises(InputError, match=r"last\.ckpt: does not fit the network: missing metas\.1\."):
        load_adapter(saved(path, content))


def test_a_network_that_was_not_warmed_up_is_calibrated_on_what_it_sees(tmp_path: Path) -> None:
    loaded, record = load_adapter(saved(tmp_path / "net.pt", wide().state_dict()))
    assert (len(record.class_names), loaded.needs_calibration) == (CLASSES, True)
    assert loaded.adapt(images()).shape == (8, CLASSES)
    eco, record = load_adapter(saved(tmp_path / "eco.pt", {"net": official_state_dict(adapted())}))
    assert (len(record.class_names), eco.needs_calibration) == (CLASSES, False)
    assert torch.equal(eco.predict(images()), adapted().predict(images()))


def test_another_systems_checkpoint_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "other.ckpt", {"multitask": {}, "state_dict": wide().state_dict()})
    with pytest.raises(InputError, match=re.escape("other.ckpt: holds another kind of network; 'vision infer medic'")):
        load_adapter(path)
