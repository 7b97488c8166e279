"""Networks from files of DCC's and UniOT's official code and of OpenAI's CLIP, to compare with or to start from."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from vision.checkpoints import StateDict, as_state_dict, check_finite, check_keys, load_strict, read_checkpoint
from vision.classifiers import create_timm
from vision.errors import InputError, shorten
from vision.memspm.head import Head
from vision.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

DCC_PREPROCESSING = Preprocessing((224, 224), IMAGENET_MEAN, IMAGENET_STD, "bilinear", 0.875)
"""DCC's official code resizes the short side to 256 and crops 224x224."""

UNIOT_PREPROCESSING = replace(DCC_PREPROCESSING, crop_mode="squash")
"""UniOT's official code resizes to 256x256 without keeping the aspect ratio and crops 224x224."""

UNIOT_ENCODER_PREPROCESSING = replace(
    UNIOT_PREPROCESSING,
    mean=tuple(mean * (1 + std) for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)),  # type: ignore[arg-type]
    std=tuple(std * std for std in IMAGENET_STD),  # type: ignore[arg-type]
)
"""What UniOT's encoder was trained on, for use without :class:`UniOTNetwork`: its two normalisations in one."""

# Where the official code keeps the parts of a ResNet: in a Sequential of torchvision's children.
_CHILDREN = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
_UNIOT_PARTS = ("feature_extractor", "classifier", "cluster_head")

# OpenAI's vision transformers by pixels of a patch's side, width and number of positions.
_CLIP_VITS = {
    (32, 768, 50): "vit_base_patch32_clip_quickgelu_224.openai",
    (16, 768, 197): "vit_base_patch16_clip_quickgelu_224.openai",
    (14, 1024, 257): "vit_large_patch14_clip_quickgelu_224.openai",
    (14, 1024, 577): "vit_large_patch14_clip_quickgelu_336.openai",
}
# timm's names of the parameters to OpenAI's; timm's own filter goes the other way.
_TO_CLIP = (
    (r"^patch_embed\.proj\.", "conv1."),
    (r"^pos_embed$", "positional_embedding"),
    (r"^cls_token$", "class_embedding"),
    (r"^norm_pre\.", "ln_pre."),
    (r"^norm\.", "ln_post."),
    (r"^head\.weight$", "proj"),
    (r"\.norm([12])\.", r".ln_\1."),
    (r"\.attn\.qkv\.", ".attn.in_proj_"),
    (r"\.attn\.proj\.", ".attn.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"^blocks\.", "transformer.resblocks."),
)


class DCCNetwork(nn.Module):
    """DCC's network: a ResNet-50 and the head on its features.

    Args:
        classes: of the source domain, common and private.
        width: of the head's features.
        **encoder: settings of ``timm.create_model`` for the ResNet.
    """

    def __init__(self, classes: int, width: int = 256, **encoder: Any) -> None:
        super().__init__()
        self.encoder = create_timm("resnet50", num_classes=0, **encoder)
        self.head = Head(int(self.encoder.num_features), classes, width)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)``, prepared as :data:`DCC_PREPROCESSING` says, to logits ``(B, classes)``."""
        logits: Tensor = self.head(self.encoder(images))
        return logits


class Prototypes(nn.Module):
    """Cosines to prototypes, divided by a temperature.

    Args:
        count: of prototypes.
        width: of the features.
        temperature: above 0.
    """

    def __init__(self, count: int, width: int, temperature: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(count, width)))
        self.temperature = temperature

    def forward(self, features: Tensor) -> Tensor:
        """Features ``(B, width)`` of any length to ``(B, count)``."""
        return F.linear(F.normalize(features), F.normalize(self.weight)) / self.temperature


class UniOTNetwork(nn.Module):
    """UniOT's network: a ResNet-50, a projection, prototypes of the source's classes and of the target's clusters.

    Images are given in [0, 1] and normalised **once**, as :data:`UNIOT_PREPROCESSING` says and as for any other network
    here. The network then normalises them again with its file's own ``mean`` and ``std``. That second time is a known
    mistake of the official code, but one that it makes in training as well as in evaluation, so that the weights
    expect it. Whoever takes the encoder alone prepares images by :data:`UNIOT_ENCODER_PREPROCESSING` instead.

    Args:
        classes: of the source domain, common and private.
        clusters: of the target domain, K.
        width: of the projected features.
        hidden: width of the projection's hidden layer.
        temperature: that cosines are divided by. The file does not say it; all of the official settings have 0.1.
        **encoder: settings of ``timm.create_model`` for the ResNet.

    Attributes:
        K: the number of clusters.
        beta: (classes,) float64, the share of the target's mass that training left to each class. The official
            evaluation rejects unknowns by optimal transport of the whole target with it, which is not done here.
    """

    mean: Tensor
    std: Tensor
    beta: Tensor

    def __init__(
        self,
        classes: int,
        clusters: int,
        width: int = 256,
        hidden: int = 2048,
        temperature: float = 0.1,
        **encoder: Any,
    ) -> None:
        super().__init__()
        self.encoder = create_timm("resnet50", num_classes=0, **encoder)
        features = int(self.encoder.num_features)  # type: ignore[arg-type]
        self.projection_head = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.prototypes = Prototypes(classes, width, temperature)
        self.cluster_head = Prototypes(clusters, width, temperature)
        self.K = clusters
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        self.register_buffer("beta", torch.full((classes,), 1 / classes, dtype=torch.float64))

    def project(self, images: Tensor) -> Tensor:
        """Images as in :meth:`forward` to projected features ``(B, width)``, for either kind of prototypes."""
        features: Tensor = self.projection_head(self.encoder((images - self.mean) / self.std))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)``, normalised once, to logits ``(B, classes)``."""
        logits: Tensor = self.prototypes(self.project(images))
        return logits


def load_official(source: str | Path | Mapping[str, Any], **config: Any) -> nn.Module:
    """A network from somebody else's file, in evaluation mode; what the file is of is told by its keys.

    Of DCC's ``Res50`` this is a :class:`DCCNetwork`, of UniOT's ``final.pkl`` a :class:`UniOTNetwork`, of OpenAI's CLIP
    timm's vision transformer of the same sizes with QuickGELU, from ``(B, 3, H, W)`` to the projection ``(B, 512)`` (or
    768), whose bias is zero. CLIP's text encoder is passed over. CLIP was published with short side and centre crop of
    the network's size, bicubic; timm's own figures for B/32 and B/16 resize to 248 before the crop of 224. Weights of
    other makers under CLIP's keys are taken to be OpenAI's too: keys do not tell GELU from QuickGELU.

    DCC's files have the head's two layers twice, once under ``classifer.main``, because the official module holds them
    twice. The copies may be left out, but not differ: then the file is damaged, or was edited in one place only.

    Args:
        source: a file, or its content. ``module.`` before the keys is passed over.
        **config: arguments of the network that the tensors do not say: ``temperature`` of UniOT, or settings of
            ``timm.create_model`` for the encoder, such as ``img_size`` for CLIP, whose positions are resampled to it.

    Raises:
        InputError: the file is unreadable, or executable (TorchScript), or of none of the three; parameters are
            missing, unexpected or misshapen.
    """
    name = "state dict" if isinstance(source, Mapping) else str(source)
    content = source if isinstance(source, Mapping) else _read(Path(source))
    release = release_of(content)
    if release == "UniOT":
        return _load_uniot(content, name, config).eval()
    state = as_state_dict(content, name)
    if release is None:
        raise InputError(
            f"{name}: of neither DCC (features.*), nor UniOT (feature_extractor), nor OpenAI's CLIP (visual.*); it has "
            f"{shorten(list(state), 3)}"
        )
    return (_load_clip if release == "CLIP" else _load_dcc)(state, name, config).eval()


def release_of(content: Mapping[str, Any]) -> Literal["DCC", "UniOT", "CLIP"] | None:
    """Whose file this is, by its keys; None where it is none of these."""
    if any(part in content for part in ("feature_extractor", "cluster_head")):
        return "UniOT"
    inner = next((of for name in ("model", "state_dict") if isinstance(of := content.get(name), Mapping)), content)
    keys = [str(key).removeprefix("module.") for key in inner]
    if any(key.startswith("visual.") for key in keys):
        return "CLIP"
    return "DCC" if any(key.startswith("classifer.") for key in keys) else None


def encoder_state(source: str | Path | Mapping[str, Any]) -> StateDict:
    """The encoder of somebody else's file by timm's keys, for an adaptation to start from.

    They are those of timm's ``resnet50`` without its classifier for DCC and UniOT, and for CLIP those of the
    ``vit_*_clip_quickgelu_*`` of the file's sizes, its projection included (as ``head``). An encoder of UniOT's expects
    images prepared by :data:`UNIOT_ENCODER_PREPROCESSING`.

    Args:
        source: as for :func:`load_official`; the whole file must be sound.

    Raises:
        InputError: as :func:`load_official`.
    """
    network = load_official(source)
    encoder = network.encoder if isinstance(network, DCCNetwork | UniOTNetwork) else network
    return dict(encoder.state_dict())


def _read(path: Path) -> dict[str, Any]:
    # PyTorch's reader refuses an archive too, but in words that tell of pickled objects.
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        entries = []  # what is wrong with the file, if anything is, the reader says
    if any(re.fullmatch(r"[^/]+/constants\.pkl", entry) for entry in entries):
        raise InputError(
            f"{path}: a TorchScript archive, which is code; save its tensors with "
            "torch.save(torch.jit.load(FILE, 'cpu').state_dict(), NEW_FILE)"
        )
    return read_checkpoint(path)


def _shape(state: Mapping[str, Tensor], key: str, rank: int, name: str) -> torch.Size:
    """Of a tensor that sizes are read from."""
    if key not in state:
        raise InputError(f"{name}: does not fit the network: missing {key}")
    shape = state[key].shape
    if len(shape) != rank or min(shape) < 1:
        raise InputError(
            f"{name}: does not fit the network: misshapen {key} {tuple(shape)}, expected {rank} axes, none empty"
        )
    return shape


def _load_renamed(network: nn.Module, state: StateDict, theirs: Callable[[str], str], name: str) -> None:
    """Strictly; ``theirs`` gives the file's name of a parameter of ours, which errors speak of."""
    names = {key: theirs(key) for key in network.state_dict()}
    check_keys(state, {names[key]: value.shape for key, value in network.state_dict().items()}, name)
    network.load_state_dict({key: state[names[key]] for key in names})


def _in_sequence(key: str, prefix: str) -> str:
    """The file's name of the encoder's parameter ``key``."""
    child, rest = key.removeprefix("encoder.").split(".", 1)
    return f"{prefix}.{_CHILDREN[child]}.{rest}"


def _load_dcc(state: StateDict, name: str, config: Mapping[str, Any]) -> DCCNetwork:
    for copy, original in (("main.0", "bottleneck"), ("main.1", "fc")):
        for kind in ("weight", "bias"):
            twin = state.pop(f"classifer.{copy}.{kind}", None)
            own = state.get(f"classifer.{original}.{kind}")
            if twin is not None and own is not None and (twin.shape != own.shape or bool((twin != own).any())):
                raise InputError(
                    f"{name}: classifer.{copy}.{kind} differs from classifer.{original}.{kind}, whose copy it is"
                )
    classes, width = _shape(state, "classifer.fc.weight", 2, name)
    network = DCCNetwork(classes, width, **config)
    _load_renamed(network, state, _dcc_name, name)
    return network


def _dcc_name(key: str) -> str:
    return _in_sequence(key, "features") if key.startswith("encoder.") else key.replace("head.", "classifer.", 1)


def _load_uniot(content: Mapping[str, Any], name: str, config: Mapping[str, Any]) -> UniOTNetwork:
    if missing := [part for part in (*_UNIOT_PARTS, "K", "beta") if part not in content]:
        raise InputError(f"{name}: does not fit the network: missing {shorten(missing)}")
    if unexpected := [str(part) for part in content if part not in (*_UNIOT_PARTS, "K", "beta")]:
        raise InputError(f"{name}: does not fit the network: unexpected {shorten(unexpected)}")
    state: StateDict = {}
    for part in _UNIOT_PARTS:
        if not isinstance(content[part], Mapping):
            raise InputError(f"{name}: {part}: expected a state dict, found {type(content[part]).__name__}")
        tensors = as_state_dict(content[part], f"{name}: {part}")
        state |= {f"{part}.{key}": value for key, value in tensors.items()}
    if not isinstance(content["beta"], Tensor):
        raise InputError(f"{name}: beta: expected a tensor, found {type(content['beta']).__name__}")
    state["beta"] = content["beta"]
    check_finite(state, name)
    classes, width = _shape(state, "classifier.ProtoCLS.fc.weight", 2, name)
    hidden, _ = _shape(state, "classifier.projection_head.0.weight", 2, name)
    clusters, _ = _shape(state, "cluster_head.fc.weight", 2, name)
    if not isinstance(content["K"], int) or content["K"] != clusters:
        raise InputError(f"{name}: K is {content['K']}, but cluster_head.fc.weight has {clusters} rows")
    network = UniOTNetwork(classes, clusters, width, hidden, **config)
    _load_renamed(network, state, _uniot_name, name)
    return network


def _uniot_name(key: str) -> str:
    if key.startswith("encoder."):
        return _in_sequence(key, "feature_extractor.feature_extractor")
    for ours, theirs in (
        ("mean", "feature_extractor.mean"),
        ("std", "feature_extractor.std"),
        ("projection_head.", "classifier.projection_head."),
        ("prototypes.", "classifier.ProtoCLS.fc."),
        ("cluster_head.", "cluster_head.fc."),
    ):
        if key.startswith(ours):
            return key.replace(ours, theirs, 1)
    return key


def _load_clip(state: StateDict, name: str, config: Mapping[str, Any]) -> nn.Module:
    visual = {key: value for key, value in state.items() if key.startswith("visual.")}
    if any(key.startswith("visual.layer1.") for key in visual):
        raise InputError(f"{name}: one of CLIP's ResNets; of CLIP only vision transformers are known here")
    (width,) = _shape(visual, "visual.class_embedding", 1, name)
    patch = _shape(visual, "visual.conv1.weight", 4, name)[-1]
    positions, _ = _shape(visual, "visual.positional_embedding", 2, name)
    _, projection = _shape(visual, "visual.proj", 2, name)
    if (patch, width, positions) not in _CLIP_VITS:
        raise InputError(
            f"{name}: OpenAI has no vision transformer with patches of {patch} pixels, width {width} and {positions} "
            f"positions; expected one of {', '.join(map(str, _CLIP_VITS))}"
        )
    vit = _CLIP_VITS[patch, width, positions]
    with torch.device("meta"):
        published = create_timm(vit, num_classes=projection)
    check_keys(visual, _clip_shapes(published), name)
    network = create_timm(vit, num_classes=projection, **config)
    load_strict(network, checkpoint_filter_fn(visual, network), name)  # type: ignore[arg-type]
    return network


def _clip_shapes(network: nn.Module) -> dict[str, torch.Size]:
    """What OpenAI's file has where timm's network is ``network``."""
    shapes = {}
    for key, value in network.state_dict().items():
        if key == "head.bias":
            continue
        theirs = key
        for pattern, replacement in _TO_CLIP:
            theirs = re.sub(pattern, replacement, theirs)
        shape = value.shape
        if key in ("cls_token", "pos_embed"):
            shape = value.squeeze().shape
        elif key == "head.weight":
            shape = value.T.shape
        shapes[f"visual.{theirs}"] = shape
    return shapes
