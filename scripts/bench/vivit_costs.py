"""What training costs: at real sizes counted without computing, on a small network timed by turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from scripts.bench.results import Options, rounded
from vision.measure import Comparison, SavedActivations, compare, count_macs, count_parameters
from vision.vivit.adapters import Bottleneck, Form
from vision.vivit.model import AdapterOptions, FactorisedViViT, TemporalOptions, ViViTConfig
from vision.vivit.streaming import StreamingRecogniser

SIZES = {"B/16": "vit_base_patch16_224", "L/16": "vit_large_patch16_224", "H/14": "vit_huge_patch14_224"}
FRAMES = (32, 128)
FORMS: dict[str, tuple[Form, bool]] = {
    "end to end": ("none", False),
    "frozen": ("none", True),
    "frozen + token": ("token", True),
    "frozen + grid": ("grid", True),
}
CLASSES = 400


def _network(backbone: str, frames: int, form: Form, frozen: bool, size: int = 224, **more: Any) -> FactorisedViViT:
    config = ViViTConfig(
        backbone, CLASSES, frames, (size, size), adapter=AdapterOptions(form), **{"tubelet": 2, **more}
    )
    network = FactorisedViViT(config)
    if frozen:
        network.freeze_spatial()
    return network


def real_sizes(quick: bool) -> list[dict[str, Any]]:
    """Parameters, multiply-accumulates and bytes held for the backward pass of one clip, on fake tensors."""
    rows = []
    for size, backbone in list(SIZES.items())[: 1 if quick else None]:
        for frames in FRAMES:
            for name, (form, frozen) in FORMS.items():
                with torch.device("meta"):
                    network = _network(backbone, frames, form, frozen).train()
                with FakeTensorMode():
                    network._apply(lambda given: torch.empty(given.shape, dtype=given.dtype, device="cpu"))  # type: ignore[no-untyped-call]
                    clip = torch.zeros(1, frames, 3, 224, 224)
                    with SavedActivations(network, clip) as saved:
                        network(clip)
                    parameters = count_parameters(network)
                    metrics: dict[str, Any] = {
                        "parameters": parameters.total,
                        "trained_parameters": parameters.trainable,
                        "held_bytes": saved.bytes,
                        # Weights, and of what is trained the gradients and AdamW's two averages, float32.
                        "state_bytes": 4 * (parameters.total + 3 * parameters.trainable),
                    }
                    if name == "frozen":
                        spatial = count_macs(network.spatial, clip)
                        metrics |= {"spatial_macs": spatial, "other_macs": count_macs(network, clip) - spatial}
                row = {"name": f"{size}, {frames} frames, {name}", "group": "sizes", "size": size, "frames": frames}
                rows.append({**row, "form": name, "metrics": metrics})
    return rows


class _InBlock(nn.Module):
    """A block of the spatial transformer with a trained bottleneck behind it: adapters within, as in AIM."""

    def __init__(self, block: nn.Module, dim: int) -> None:
        super().__init__()
        self.block, self.bottleneck = block, Bottleneck(dim, dim // 4)

    def forward(self, tokens: Tensor) -> Tensor:
        passed: Tensor = self.block(tokens)
        adapted: Tensor = passed + self.bottleneck(passed)
        return adapted


def _small(form: Form, frozen: bool) -> FactorisedViViT:
    torch.manual_seed(0)
    return _network("vit_tiny_patch16_224", 8, form, frozen, size=96, tubelet=1, temporal=TemporalOptions(4))


def _step(network: FactorisedViViT, run: Callable[[], Tensor], labels: Tensor) -> Callable[[], None]:
    network.train()
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], fused=True)

    def step() -> None:
        with torch.enable_grad():
            optimizer.zero_grad()
            F.cross_entropy(run(), labels).backward()
            optimizer.step()

    return step


def steps(options: Options) -> tuple[list[dict[str, Any]], Comparison]:
    """A step of AdamW on four clips of eight 96-pixel frames, by each way of training, by turns."""
    place = options.device
    networks = {name: _small(form, frozen) for name, (form, frozen) in FORMS.items()}
    within = _small("none", frozen=True)
    for number, block in enumerate(within.spatial.vit.blocks):
        within.spatial.vit.blocks[number] = _InBlock(block, within.spatial.dim)
    networks["adapters in every block"] = within
    networks["frozen + grid, cached"] = _small("grid", frozen=True)
    video = torch.randint(256, (4, 8, 3, 96, 96), dtype=torch.uint8, device=place)
    labels = torch.arange(4, device=place)
    contenders: dict[str, Callable[[], None]] = {}
    rows: list[dict[str, Any]] = []
    for name, network in networks.items():
        network.to(place)
        run: Callable[[], Tensor]
        if name.endswith("cached"):
            with torch.no_grad():
                summaries = network.summarise(video)
            run = _bound(network.read, summaries)
        else:
            run = _bound(network, video)
        with torch.enable_grad(), SavedActivations(network, video) as saved:
            run()
        parameters = count_parameters(network)
        contenders[name] = _step(network, run, labels)
        trained = parameters.trainable
        metrics = {"held_bytes": saved.bytes, "trained_parameters": trained, "gradient_and_state_bytes": 12 * trained}
        rows.append({"name": f"{name}, step", "group": "steps", "form": name, "metrics": metrics})
    rounds, seconds = (5, 0.2) if options.quick else (15, 0.5)
    found = compare(contenders, rounds=rounds, seconds=seconds, device=place)
    for row in rows:
        ms, ratio = found.latency(row["form"]), found.speedup("end to end", over=row["form"])
        times = {"ms": rounded(ms.median), "ms_low": rounded(ms.low), "ms_high": rounded(ms.high)}
        row["metrics"] |= {**times, "of_end_to_end": rounded(ratio.median)}
    return rows, found


def _bound(function: Callable[[Tensor], Tensor], argument: Tensor) -> Callable[[], Tensor]:
    return lambda: function(argument)


def streaming(options: Options) -> tuple[list[dict[str, Any]], Comparison]:
    """A frame of a stream by the ring of features, and by running the network on the window anew; a window a frame."""
    network = _small("grid", frozen=True).to(options.device).eval()
    frames = torch.randint(256, (64, 3, 96, 96), dtype=torch.uint8, device=options.device)
    stream = StreamingRecogniser(network)
    numbers = {"ring": 0, "anew": 0}

    def ring() -> None:
        stream.push(frames[numbers["ring"] % 64])
        numbers["ring"] += 1

    def anew() -> None:
        first = numbers["anew"] % 56
        network(frames[None, first : first + 8])
        numbers["anew"] += 1

    rounds, seconds = (5, 0.2) if options.quick else (15, 0.5)
    found = compare({"anew": anew, "ring": ring}, rounds=rounds, seconds=seconds, device=options.device)
    rows = []
    for name in ("ring", "anew"):
        ms = found.latency(name)
        metrics = {"ms": rounded(ms.median), "ms_low": rounded(ms.low), "ms_high": rounded(ms.high)}
        rows.append({"name": f"stream, {name}", "group": "stream", "form": name, "metrics": metrics})
    return rows, found


def frames_at_the_memory_of(rows: Sequence[Mapping[str, Any]], size: str, budget: float) -> int:
    """How many frames a frozen network with the grid adapter can be trained on in ``budget`` bytes, one clip.

    Counted are weights, gradients, AdamW's averages, what is held for the backward pass, and the clip, a byte a value;
    not the passing activations of the frozen pass, which its chunks bound. 0 where not even the weights fit.
    """
    of = {row["frames"]: row["metrics"] for row in rows if row["size"] == size and row["form"] == "frozen + grid"}
    few, many = FRAMES
    each = (of[many]["held_bytes"] - of[few]["held_bytes"]) / (many - few)
    each += 3 * 224 * 224
    fixed = of[few]["state_bytes"] + of[few]["held_bytes"] - few * (each - 3 * 224 * 224)
    return max(0, int((budget - fixed) / each))
