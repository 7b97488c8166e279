"""What MemSPM's parts take beside what they replace: discrepancy, addressing, and a step without the encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.bench.results import Options, rounded
from vision.measure import Comparison, compare
from vision.memspm.addressing import dense, gather
from vision.memspm.discrepancy import contrastive_domain_discrepancy
from vision.memspm.encoder import create_encoder
from vision.memspm.memory import MemoryOptions
from vision.memspm.model import AdaptationNetwork

Row = dict[str, Any]
CLIP = "vit_base_patch16_clip_quickgelu_224.openai"
BATCH = 36  # source pictures of a step


def looped_discrepancy(source: Tensor, target: Tensor, classes: int, each: int) -> Tensor:
    """The discrepancy as the official code computes it: pair of classes by pair of classes, kernel by kernel."""

    def distances(a: Tensor, b: Tensor) -> Tensor:
        return (a[:, None] - b[None]).square().sum(dim=2)

    def kernel(distance: Tensor, gamma: Tensor) -> Tensor:
        widths = [gamma * 2.0**power for power in range(-2, 3)]
        return torch.stack([(-(distance / width).clamp(1e-5, 1e5)).exp() for width in widths]).sum(dim=0).mean()

    parts = [(source[i * each : (i + 1) * each], target[i * each : (i + 1) * each]) for i in range(classes)]
    intra: list[Tensor] = []
    inter: list[Tensor] = []
    for c, (own, _) in enumerate(parts):
        for d, (_, other) in enumerate(parts):
            ss, tt, st = distances(own, own), distances(other, other), distances(own, other)
            pairs = 4 * each * each - 2 * each
            gamma = ((ss.sum() + tt.sum() + 2 * st.sum()) / pairs).detach().clamp(min=1e-5)
            energy = kernel(ss, gamma) + kernel(tt, gamma) - 2 * kernel(st, gamma)
            (intra if c == d else inter).append(energy)
    return torch.stack(intra).mean() - torch.stack(inter).mean()


def _backward(loss: Callable[[], Tensor], *leaves: Tensor) -> Callable[[], None]:
    def run() -> None:
        with torch.enable_grad():
            torch.autograd.grad(loss(), leaves)

    return run


def discrepancy(options: Options) -> Comparison:
    """The discrepancy of 50 classes with 4 pictures a domain, forward and backward."""
    torch.manual_seed(0)
    source, target = (torch.randn(200, 256, requires_grad=True, device=options.device) for _ in range(2))
    of = torch.arange(50, device=options.device).repeat_interleave(4)
    return compare(
        {
            "looped": _backward(lambda: looped_discrepancy(source, target, 50, 4), source, target),
            "ours": _backward(lambda: contrastive_domain_discrepancy(source, of, target, of, 50).total, source, target),
        },
        rounds=5 if options.quick else 11,
        seconds=0.2,
        device=options.device,
    )


def addressing(options: Options, items: int, subs: int) -> Comparison:
    """A batch's embeddings from a memory of D = 512, forward and backward to features and memory."""
    torch.manual_seed(0)
    features = torch.randn(BATCH, 512, requires_grad=True, device=options.device)
    memory = torch.randn(items, subs, 512, requires_grad=True, device=options.device)
    aim = torch.randn(BATCH, 512, device=options.device)
    return compare(
        {
            "dense": _backward(
                lambda: (dense(features, memory, 4, 0.05, "exact").embedding * aim).sum(), features, memory
            ),
            "gather": _backward(lambda: (gather(features, memory, 4, 0.05).embedding * aim).sum(), features, memory),
        },
        rounds=5 if options.quick else 11,
        seconds=0.5,
        device=options.device,
    )


def steps(options: Options) -> Comparison:
    """A training step on source pictures of a ViT-B/16: from the pictures, and from cached features."""
    torch.manual_seed(0)
    encoder, features = create_encoder(CLIP, (224, 224))
    encoder.requires_grad_(False)
    network = AdaptationNetwork(encoder, features, 15, memory=MemoryOptions(100, 20)).to(options.device).train()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.01)
    images = torch.randn(BATCH, 3, 224, 224, device=options.device)
    cached = torch.randn(BATCH, features, device=options.device)
    labels = torch.randint(15, (BATCH,), device=options.device)

    def step(media: Tensor) -> Callable[[], None]:
        def run() -> None:
            with torch.enable_grad():
                optimizer.zero_grad()
                embedding = network.address(network.encode(media))[0]
                loss = F.cross_entropy(network.classify(network.head.neck(embedding)), labels)
                torch.autograd.backward(loss)
                optimizer.step()

        return run

    return compare(
        {"from pictures": step(images), "from cached features": step(cached)},
        rounds=3 if options.quick else 5,
        seconds=0.05,
        device=options.device,
    )


def costs(options: Options) -> tuple[list[Row], dict[str, Comparison]]:
    """All of these; rows and comparisons by what was done."""
    found = {
        "discrepancy of 50 classes, 4 pictures each": discrepancy(options),
        "addressing, N = 100, S = 20": addressing(options, 100, 20),
        "addressing, N = 500, S = 40": addressing(options, 500, 40),
        f"step of {BATCH} pictures, ViT-B/16": steps(options),
    }
    rows = []
    for what, comparison in found.items():
        print(f"{what}\n{comparison}\n", flush=True)
        first = next(iter(comparison.milliseconds))
        for name in comparison.milliseconds:
            ms, ratio = comparison.latency(name), comparison.speedup(name, over=first)
            metrics = {"ms": rounded(ms.median), "ms_low": rounded(ms.low), "ms_high": rounded(ms.high)}
            metrics |= {"times_as_fast": rounded(ratio.median)}
            rows.append({"name": f"{what}: {name}", "group": "costs", "what": what, "form": name, "metrics": metrics})
    return rows, found
