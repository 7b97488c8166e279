"""EfficientViT's published figures, and its tables and picture from a benchmark's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from scripts.bench.results import claims_table, markdown, setting_line
from vision.pictures import ACCENT, INK, MUTED, Picture, render

Row = Mapping[str, Any]


class Published(NamedTuple):
    """What the official release says of a variant."""

    parameters: int
    mega_macs: float
    top1: float  # per cent, ImageNet-1k


class Peer(NamedTuple):
    """A network of like accuracy."""

    size: int  # pixels a side that it is made for
    top1: float  # per cent, ImageNet-1k, as published
    title: str


PUBLISHED = {
    "efficientvit_m0": Published(2_349_436, 79.2, 63.2),
    "efficientvit_m1": Published(2_980_560, 167.1, 68.4),
    "efficientvit_m2": Published(4_187_554, 201.0, 70.8),
    "efficientvit_m3": Published(6_900_722, 262.7, 73.4),
    "efficientvit_m4": Published(8_804_228, 299.3, 74.3),
    "efficientvit_m5": Published(12_473_772, 521.6, 77.1),
}
PEERS = {
    "mobilenetv3_large_100": Peer(224, 75.2, "MobileNetV3-Large"),
    "mobilenetv4_conv_small": Peer(224, 73.8, "MobileNetV4-Conv-S"),
    "repvit_m0_9": Peer(224, 77.4, "RepViT-M0.9"),
    "fastvit_t8": Peer(256, 75.6, "FastViT-T8"),
    "edgenext_xx_small": Peer(256, 71.2, "EdgeNeXt-XXS"),
    "mobilevit_xxs": Peer(256, 69.0, "MobileViT-XXS"),
}
ABOUT = 0.5  # points of published accuracy that count as the same
_FORMS = {
    "timm eager": "timm eager",
    "timm eager, channels last": "channels last",
    "timm fused, channels last": "fused, channels last",
    "timm traced": "traced",
    "timm compiled": "compiled",
    "timm compiled, frozen": "compiled, frozen",
    "timm onnxruntime": "ORT",
    "ours eager": "ours eager",
    "ours deploy": "deploy",
    "ours deploy, compiled": "deploy, compiled",
    "ours onnxruntime": "ours ORT",
    "ours onnxruntime int8": "ours ORT int8",
}


def _short(network: str) -> str:
    return network.removeprefix("efficientvit_").upper() if network in PUBLISHED else PEERS[network].title


def _top1(network: str) -> float:
    return PUBLISHED[network].top1 if network in PUBLISHED else PEERS[network].top1


def _group(rows: Sequence[Row], name: str) -> list[Row]:
    return [row for row in rows if row["group"] == name]


def _counts(rows: Sequence[Row]) -> str:
    cells = []
    for row in _group(rows, "counts"):
        network, metrics = row["network"], row["metrics"]
        official = PUBLISHED.get(network)
        cells.append(
            [
                _short(network),
                f"{metrics['parameters']:,}",
                f"{official.parameters:,}" if official else None,
                f"{metrics['macs'] / 1e6:.1f}",
                f"{official.mega_macs:.1f}" if official else None,
                f"{metrics['saved_activations_mib_per_image']:.2f}",
                f"{_top1(network):.1f}",
            ]
        )
    columns = ["network", "parameters", "official", "MACs, M", "official", "saved in training, MiB/image", "top-1, %"]
    return markdown(columns, cells)


def _forms(rows: Sequence[Row], batch: int) -> str:
    """Speeds relative to timm's fused network, whose latency is given."""
    timed = [row for row in _group(rows, "forms") if row["batch"] == batch]
    present = [form for form in _FORMS if any(row["form"] == form for row in timed)]
    cells = []
    for network in dict.fromkeys(row["network"] for row in timed):
        of = {row["form"]: row["metrics"] for row in timed if row["network"] == network}
        ratios = [f"{of[form]['speed_ratio']:.2f}" if form in of else None for form in present]
        cells.append([_short(network), f"{of['timm fused']['latency_ms']:.1f}", *ratios])
    return markdown(["", "timm fused, ms", *(_FORMS[form] for form in present)], cells) if cells else ""


def _profile(rows: Sequence[Row]) -> str:
    shares = [
        f"{_short(row['network'])}, batch {row['batch']}: {row['metrics']['library_share']:.0%}"
        for row in _group(rows, "profile")
    ]
    if not shares:
        return ""
    return f"Share of the compiled form's time in libraries' matrix products and convolutions: {'; '.join(shares)}."


def _speed(rows: Sequence[Row], network: str, form: str, batch: int) -> float | None:
    """Images a second; of PyTorch's layouts the faster one's."""
    found = [
        float(row["metrics"]["images_per_second"])
        for row in _group(rows, "peers")
        if (row["network"], row["form"].split(",")[0], row["batch"]) == (network, form, batch)
    ]
    return max(found, default=None)


def _deciding(rows: Sequence[Row]) -> str:
    """The form that networks are ranked by."""
    return "onnxruntime" if any(row["form"] == "onnxruntime" for row in _group(rows, "peers")) else "pytorch"


def _beaten(rows: Sequence[Row], peer: str, form: str) -> str:
    """The variants that a peer is faster than at batch 1, and about as accurate as or more."""
    speed = _speed(rows, peer, form, 1) or 0.0
    ours = [name for name in PUBLISHED if _top1(peer) >= _top1(name) - ABOUT]
    return ", ".join(_short(name) for name in ours if speed > (_speed(rows, name, form, 1) or speed))


def _peers(rows: Sequence[Row]) -> str:
    timed = _group(rows, "peers")
    pairs = sorted({(row["form"].split(",")[0], row["batch"]) for row in timed}, key=lambda pair: (pair[0], -pair[1]))[
        ::-1
    ]
    form = _deciding(rows)
    names = sorted(dict.fromkeys(row["network"] for row in timed), key=lambda name: -(_speed(rows, name, form, 1) or 0))
    cells = []
    for name in names:
        speeds = [_speed(rows, name, *pair) for pair in pairs]
        title = f"EfficientViT-{_short(name)}" if name in PUBLISHED else _short(name)
        beaten = _beaten(rows, name, form) if name in PEERS else None
        cells.append([title, f"{_top1(name):.1f}", *(f"{speed:.0f}" if speed else None for speed in speeds), beaten])
    titles = {"onnxruntime": "ORT", "pytorch": "PyTorch"}
    headers = [f"{titles[form]}, batch {batch}, img/s" for form, batch in pairs]
    return markdown(["network", "top-1, %", *headers, "beats"], cells) if cells else ""


def _reading(rows: Sequence[Row]) -> str:
    """Which network to take, from the rows themselves."""
    form = _deciding(rows)
    sentences = []
    for peer in PEERS:
        beaten = _beaten(rows, peer, form)
        if beaten:
            sentences.append(f"{_short(peer)} is faster than {beaten}")
    if not sentences:
        return "No other network of this table is faster than ours at about the same accuracy."
    return f"At batch 1, and no more than {ABOUT} points less accurate: {'; '.join(sentences)}."


def _int8(rows: Sequence[Row]) -> str:
    cells = []
    for row in _group(rows, "int8"):
        of = row["metrics"]
        flips = f"{of['flipped']} of {of['images']}"
        error = f"{of['rms_relative_logit_error']:.3f}"
        cells.append([row["data"], f"{of['top1_float']:.1%}", f"{of['top1_int8']:.1%}", flips, error])
    columns = ["built-in images", "top-1, float", "top-1, int8", "decisions flipped", "RMS relative error of logits"]
    return markdown(columns, cells) if cells else ""


def _demo(rows: Sequence[Row]) -> str:
    cells = []
    for row in _group(rows, "demo"):
        of = row["metrics"]
        cells.append([row["data"], f"{of['test_top1']:.1%}", f"{of['test_f1_macro']:.3f}", f"{of['fit_seconds']:.0f}"])
    return markdown(["built-in images, M0 from scratch", "top-1", "macro F1", "training, s"], cells) if cells else ""


def _headline(rows: Sequence[Row]) -> str:
    """The README's few figures."""
    cells = []
    kept = {row["network"]: row["metrics"]["saved_activations_mib_per_image"] for row in _group(rows, "counts")}
    of = {(row["network"], row["form"]): row["metrics"] for row in _group(rows, "forms") if row["batch"] == 1}
    for name in PUBLISHED:
        speeds = [
            of.get((name, form)) for form in ("ours deploy, compiled", "ours onnxruntime", "ours onnxruntime int8")
        ]
        ratio = kept["mobilenetv3_large_100"] / kept[name]
        ratios = [f"{speed['speed_ratio']:.1f}x" if speed else None for speed in speeds]
        cells.append([f"EfficientViT-{_short(name)}", f"{_top1(name):.1f}", f"{1 / ratio:.0%}", *ratios])
    columns = [
        "",
        "top-1 (published), %",
        "activations kept in training, of MobileNetV3-L's",
        "speed: compiled",
        "ORT",
        "ORT int8",
    ]
    return markdown(columns, cells)


def tables(result: Mapping[str, Any]) -> dict[str, str]:
    """The tables that pages may show, by name, from a result as the JSON file has it; empty where rows are missing."""
    rows = result["rows"]
    batches = sorted({row["batch"] for row in _group(rows, "forms")})
    forms = {f"forms_{name}": _forms(rows, batch) for name, batch in zip(("single", "batch"), batches, strict=False)}
    return {
        "counts": _counts(rows),
        **{f"forms_{name}": "" for name in ("single", "batch")},
        **forms,
        "profile": _profile(rows),
        "peers": _peers(rows),
        "reading": _reading(rows),
        "int8": _int8(rows),
        "demo": _demo(rows),
        "headline": _headline(rows),
        "claims": claims_table(result["claims"]),
        "setting": setting_line(result),
    }


def pictures(result: Mapping[str, Any]) -> dict[str, Picture]:
    """By what is added to the file's name: published accuracy against the speed measured at batch 1."""
    return {"": _accuracy_over_speed(result["rows"])}


def _accuracy_over_speed(rows: Sequence[Row]) -> Picture:
    form = _deciding(rows)
    figure = Figure(figsize=(7.2, 4.6), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    networks = dict.fromkeys(row["network"] for row in _group(rows, "peers"))
    points = {name: (_speed(rows, name, form, 1) or 0.0, _top1(name)) for name in networks}
    ours = sorted(points[name] for name in points if name in PUBLISHED)
    axes.plot(*zip(*ours, strict=True), color=ACCENT, marker="o", markersize=6, linewidth=1.5, label="EfficientViT")
    others = [points[name] for name in points if name in PEERS]
    axes.plot(*zip(*others, strict=True), color=INK, marker="s", markersize=5, linestyle="", label="other networks")
    for name, (speed, top1) in points.items():
        colour = ACCENT if name in PUBLISHED else INK
        axes.annotate(_short(name), (speed, top1), (6, 5), textcoords="offset points", fontsize=8, color=colour)
    where = "ONNX Runtime fp32, one thread" if form == "onnxruntime" else "PyTorch, fp16, GPU"
    axes.set_xlabel(f"images a second at batch 1 ({where}); further right is faster")
    axes.set_ylabel("ImageNet top-1, %, as published")
    axes.set_xscale("log")
    ticks = [20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000]
    low, high = axes.get_xlim()
    axes.set_xticks([tick for tick in ticks if low <= tick <= high], minor=False)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(lambda value, _position: f"{value:g}")
    axes.margins(x=0.18, y=0.12)
    axes.grid(color=MUTED, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
    return render(figure)
