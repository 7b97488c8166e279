"""What a step of adaptation takes: memory by the paper's count and really held, and time by turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn

from scripts.bench.forms import vary
from scripts.bench.results import Options, rounded
from vision.ecotta import EcoTTA, Method, WideResNet
from vision.ecotta.baselines import BatchStatistics, Tent
from vision.ecotta.checkpoint import resnet
from vision.ecotta.cotta import CoTTA
from vision.ecotta.meta import MetaResidual
from vision.measure import Comparison, compare, profile_adaptation

Row = dict[str, Any]
EVERYTHING = 9.0  # margin of the entropy: no prediction is left out, so that each step is a whole one

# Network: how it is made, the size of its images, the paper's batch; and the paper's megabytes (Tables 1 and 2).
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int, dict[str, float]]] = {
    "WRN-40-2": (
        lambda: WideResNet(40, 2, 10), 32, 64, {"TENT": 188, "CoTTA": 409, "EcoTTA K=4": 80, "EcoTTA K=5": 92},
    ),
    "WRN-28-10": (
        lambda: WideResNet(28, 10, 10), 32, 64, {"TENT": 646, "CoTTA": 1697, "EcoTTA K=4": 404, "EcoTTA K=5": 471},
    ),
    "ResNet-50, 32 px": (
        lambda: resnet([3, 4, 6, 3], True, 10, small=True), 32, 64,
        {"TENT": 925, "CoTTA": 2066, "EcoTTA K=4": 296, "EcoTTA K=5": 498},
    ),
    "ResNet-50, 224 px": (
        lambda: resnet([3, 4, 6, 3], True, 1000, small=False), 224, 32,
        {"TENT": 1486, "CoTTA": 3132, "EcoTTA K=4": 438, "EcoTTA K=5": 747},
    ),
}  # fmt: skip
BACKBONES = (
    "resnet18", "mobilenetv3_small_100", "efficientnet_b0", "convnext_atto", "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224", "densenet121", "regnety_002", "efficientvit_b0", "ghostnet_100",
)  # fmt: skip


def _eco(model: nn.Module, size: int, groups: int = 4, **options: Any) -> EcoTTA:
    torch.manual_seed(0)
    return EcoTTA.attach(model, groups, input_size=(size, size), calibrate=False, margin=EVERYTHING, **options)


def _cotta(model: nn.Module) -> CoTTA:
    return CoTTA(model, views=1, threshold=0.0)


def contenders(make: Callable[[], nn.Module], size: int) -> dict[str, Callable[[], Method]]:
    """Methods by name, each with a network of its own."""
    return {
        "TENT": lambda: Tent(make()),
        "TENT, memsave": lambda: Tent(make(), memory="memsave"),
        "CoTTA": lambda: _cotta(make()),
        "EcoTTA K=4, eager": lambda: _eco(make(), size, memory="eager"),
        "EcoTTA K=4, checkpoint": lambda: _eco(make(), size, memory="checkpoint"),
        "EcoTTA K=4": lambda: _eco(make(), size),
        "EcoTTA K=5": lambda: _eco(make(), size, 5),
    }


def memory(quick: bool) -> list[Row]:
    """Megabytes of a step, of the paper's networks at the paper's batches."""
    rows = []
    for network, (make, size, batch, paper) in list(NETWORKS.items())[: 1 if quick else None]:
        # Both counts are linear in the batch, so that few images do; WRN-40-2 is measured with the whole batch.
        images = torch.randn(batch if network == "WRN-40-2" else 1, 3, size, size)
        for name, method in contenders(make, size).items():
            found = profile_adaptation(method(), images)
            held = found.held_bytes * batch / len(images)
            metrics = {
                "paper_mb": found.paper_mb(batch),
                "printed_mb": paper.get(name),
                "held_mb": rounded(held / 1e6),
                "copies_mb": rounded(found.copy_bytes / 1e6),
                "trained_parameters": found.trained,
                "parameters": found.parameters,
            }
            metrics["paper_mb"] = rounded(found.paper_mb(batch), 5)
            row = {"name": f"{network}, {name}", "group": "memory", "network": network, "method": name}
            rows.append({**row, "batch": batch, "metrics": metrics})
            print(f"{network}, {name}: {metrics}", flush=True)
    return rows


def backbones(quick: bool) -> list[Row]:
    """Networks that their blocks were found of, at 224 pixels: what a step holds."""
    rows = []
    for name in BACKBONES[: 3 if quick else None]:
        images = torch.randn(2, 3, 224, 224)
        network = timm.create_model(name)
        ways = {"eager": _eco(vary(network), 224, memory="eager"), "memsave": _eco(vary(network), 224)}
        found = {way: profile_adaptation(adapter, images) for way, adapter in ways.items()}
        tent = profile_adaptation(Tent(vary(timm.create_model(name))), images)
        adapter = ways["memsave"]
        metrics = {
            "parameters": sum(p.numel() for p in network.parameters()),
            "trained_parameters": found["memsave"].trained,
            "tent_held_bytes": tent.held_bytes // 2,
            "eager_held_bytes": found["eager"].held_bytes // 2,
            "memsave_held_bytes": found["memsave"].held_bytes // 2,
        }
        form = "residual" if isinstance(adapter.metas[0], MetaResidual) else "conv"
        sizes = [len(names) for names in adapter.groups]
        rows.append({"name": name, "group": "backbones", "groups": sizes, "form": form, "metrics": metrics})
    return rows


def steps(options: Options) -> tuple[list[Row], Comparison]:
    """Time of a step of WRN-40-2 at batches of 64, by turns."""
    size, batch = 32, 16 if options.quick else 64
    images = torch.randn(batch, 3, size, size).to(options.device)
    torch.manual_seed(0)
    methods: dict[str, Method] = {"batch statistics": BatchStatistics(vary(WideResNet(40, 2, 100)))}
    for name, make in contenders(lambda: vary(WideResNet(40, 2, 100)), size).items():
        methods[name] = make()
    methods["EcoTTA K=4, two steps"] = _eco(vary(WideResNet(40, 2, 100)), size, memory="eager", update="two_step")
    calls: dict[str, Callable[[Tensor], Any]] = {
        name: method.to(options.device).adapt for name, method in methods.items()
    }
    timed = compare(calls, images, rounds=5 if options.quick else 9, seconds=0.01, device=options.device, warm_up=0.1)
    rows = []
    for name in methods:
        metrics = {
            "ms": rounded(timed.latency(name).median),
            "of_eager": rounded(timed.speedup("EcoTTA K=4, eager", over=name).median),
        }
        rows.append({"name": name, "group": "steps", "batch": batch, "method": name, "metrics": metrics})
    return rows, timed
