"""EfficientViT beside timm's form of it and beside other small classifiers: size, memory, speed, int8."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from datamodules.builtin import resolve_root
from datamodules.listing import find_images
from scripts.bench.efficientvit_tables import PEERS, PUBLISHED, pictures, tables
from scripts.bench.forms import (
    Contender,
    channels_last,
    compiled,
    compiler_trouble,
    fused,
    given,
    library_share,
    onnx_contender,
    onnx_runtime,
    traced,
    vary,
)
from scripts.bench.results import Measured, Options, claim, rounded
from scripts.demo.efficientvit import TASKS, train
from scripts.demo.steps import Steps
from scripts.export.graph import export_classifier
from scripts.export.quantize import compare_decisions, draw, quantize
from scripts.export.session import OnnxClassifier
from scripts.infer.inputs import image_batches
from vision.classifiers import ClassifierRecord, load_classifier
from vision.efficientvit import VARIANTS, EfficientViT, build, compile_deployed, deploy, to_timm
from vision.measure import Comparison, compare, count_macs, count_parameters, peak_memory, saved_activations
from vision.preprocessing import Preprocessing

__all__ = ["measure", "pictures", "tables"]

SIZE = (224, 224)
QUICK = ("efficientvit_m0", "efficientvit_m4")
QUICK_PEERS = ("mobilenetv3_large_100", "mobilenetv4_conv_small")
PROFILED = ("efficientvit_m0", "efficientvit_m4")
LEAST_TOP1 = {"photographs": 0.90, "digits": 0.97}  # on unseen images
MOST_SECONDS = 240.0  # of training, both together
OURS, THEIRS = "ours", "timm"


def _say(text: str) -> None:
    print(text, flush=True)


def _record(name: str) -> ClassifierRecord:
    return ClassifierRecord(name, [str(i) for i in range(1000)], Preprocessing(SIZE))


def _pair(name: str) -> tuple[EfficientViT, nn.Module]:
    """Our network and timm's, with the same weights."""
    ours = build(name)
    vary(ours)
    theirs = timm.create_model(name)
    theirs.load_state_dict(to_timm(ours.state_dict()))
    return ours, theirs.eval()


# ------------------------------------------------------------------------------------------------- what is counted
def _counted(name: str) -> dict[str, Any]:
    network: nn.Module = build(name) if name in VARIANTS else timm.create_model(name)
    size = PEERS[name].size if name in PEERS else SIZE[0]
    pair = torch.randn(2, 3, size, size)
    metrics = {
        "parameters": count_parameters(network).total,
        "macs": count_macs(network, pair[:1]),
        "saved_activations_mib_per_image": rounded(saved_activations(network, pair) / 2 / 2**20),
    }
    return {"name": name, "group": "counts", "network": name, "image_size": size, "metrics": metrics}


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _worst(differences: Iterable[float]) -> float:
    """The largest; NaN where one is, which ``max`` would lose."""
    return float(torch.tensor(list(differences), dtype=torch.float64).max())


@torch.no_grad()
def _deploy_difference(network: EfficientViT) -> float:
    """Largest difference of the deployed network's logits, as a share of the largest logit, odd sizes included."""
    deployed = deploy(network)
    sizes = (SIZE, (200, 130), (97, 63))
    images = [torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)) for size in sizes]
    return _worst(_difference(deployed(x), network(x)) for x in images)


# ------------------------------------------------------------------------------------------------- what is timed
def _rows(found: Comparison, group: str, batch: int, over: str, names: Mapping[str, tuple[str, str]]) -> list[Any]:
    rows = []
    for key, (network, form) in names.items():
        latency, speed = found.latency(key), found.speedup(key, over=over)
        metrics = {
            "latency_ms": rounded(latency.median),
            "latency_ms_low": rounded(latency.low),
            "latency_ms_high": rounded(latency.high),
            "images_per_second": rounded(found.throughput(key, batch)),
            "speed_ratio": rounded(speed.median),
            "speed_ratio_low": rounded(speed.low),
            "speed_ratio_high": rounded(speed.high),
        }
        row = {"name": f"{network}, {form}, batch {batch}", "group": group, "network": network, "form": form}
        rows.append({**row, "batch": batch, "over": over, "metrics": metrics})
    return rows


def _time(contenders: Mapping[str, Contender], images: Tensor, options: Options) -> Comparison:
    rounds, seconds = (7, 0.05) if options.quick else (11, 0.15)
    found = compare(contenders, images, rounds=rounds, seconds=seconds, threads=1, device=options.device)
    _say(f"{found}\n")
    return found


def _cpu_forms(name: str, images: Tensor, options: Options, int8: Path | None, compiling: bool) -> dict[str, Contender]:
    ours, theirs = _pair(name)
    folded = fused(theirs)
    last = images.contiguous(memory_format=torch.channels_last)
    theirs_last, folded_last = channels_last(theirs), channels_last(folded)
    forms: dict[str, Contender] = {
        "timm fused": folded,
        "timm eager": theirs,
        "timm eager, channels last": given(theirs_last, last),
        "timm fused, channels last": given(folded_last, last),
        "timm traced": given(traced(folded_last, last), last),
    }
    if compiling:
        forms["timm compiled"] = given(compiled(channels_last(folded)), last)
        settings = {"freezing": True, "cpp_wrapper": True}
        forms["timm compiled, frozen"] = given(compiled(channels_last(folded), **settings), last)
    forms["timm onnxruntime"] = onnx_runtime(folded, options.folder / f"timm-{name}.onnx", SIZE)
    forms["ours eager"] = ours
    forms["ours deploy"] = given(deploy(ours), last)
    if compiling:
        forms["ours deploy, compiled"] = given(compile_deployed(deploy(ours), last), last)
    forms["ours onnxruntime"] = onnx_contender(options.folder / f"{name}.onnx")
    if int8 is not None:
        forms["ours onnxruntime int8"] = onnx_contender(int8)
    return forms


def _cuda_forms(name: str, images: Tensor, options: Options, compiling: bool) -> dict[str, Contender]:
    """Half precision; the compiled ones record CUDA graphs."""
    ours, theirs = _pair(name)
    on_device: Callable[[nn.Module], nn.Module] = lambda model: channels_last(model).to(options.device).half()  # noqa: E731
    forms: dict[str, Contender] = {
        "timm fused": on_device(fused(theirs)),
        "timm eager": on_device(theirs),
        "ours eager": on_device(ours),
        "ours deploy": deploy(ours).to(options.device).half(),
    }
    if compiling:
        forms["timm compiled"] = torch.compile(on_device(fused(theirs)), mode="reduce-overhead")
        deployed = deploy(ours).to(options.device).half()
        forms["ours deploy, compiled"] = compile_deployed(deployed, images)
    return forms


def _best(found: Comparison, names: Iterable[str]) -> str:
    return min(names, key=lambda name: found.latency(name).median)


def _pytorch(found: Comparison, whose: str) -> list[str]:
    return [name for name in found.milliseconds if name.startswith(whose) and "onnxruntime" not in name]


def _form_claims(name: str, batch: int, found: Comparison, cpu: bool) -> list[dict[str, Any]]:
    short = f"{name.removeprefix('efficientvit_')}_b{batch}"
    title = f"{name.removeprefix('efficientvit_').upper()}, batch {batch}"
    ours, theirs = _best(found, _pytorch(found, OURS)), _best(found, _pytorch(found, THEIRS))
    claims = []
    if "ours deploy, compiled" in found.milliseconds:
        claims.append(
            claim(
                f"best_pytorch_{short}",
                f"{title}: our fastest PyTorch form ({ours}) over timm's fastest ({theirs}), at least",
                found.speedup(ours, over=theirs),
                at_least=1.3,
            )
        )
    if cpu and batch == 1:
        claims += [
            claim(
                f"onnx_over_fused_{short}",
                f"{title}: our ONNX Runtime fp32 over timm fused eager, at least",
                found.speedup("ours onnxruntime", over="timm fused"),
                at_least=2.0,
            ),
            claim(
                f"onnx_over_onnx_{short}",
                f"{title}: our ONNX Runtime fp32 over timm's network exported in the same way, at least level",
                found.speedup("ours onnxruntime", over="timm onnxruntime"),
                at_least=1.0,
            ),
        ]
    if "ours onnxruntime int8" in found.milliseconds and name in ("efficientvit_m4", "efficientvit_m5"):
        claims.append(
            claim(
                f"int8_over_onnx_{short}",
                f"{title}: our int8 over timm's fp32 export, both ONNX Runtime, at least",
                found.speedup("ours onnxruntime int8", over="timm onnxruntime"),
                at_least=1.5,
            )
        )
    return claims


def _forms(options: Options, int8: Mapping[str, Path], can_compile: bool) -> tuple[list[Any], list[Any]]:
    """Every variant's forms, each compared with timm's."""
    cpu = options.device.type == "cpu"
    rows, claims = [], []
    for name in QUICK if options.quick else VARIANTS:
        for batch in (1,) if options.quick else (1, 16) if cpu else (1, 256):
            torch.compiler.reset()  # graphs of other shapes would be generalised, and too many are given up on
            images = torch.randn(batch, 3, *SIZE, device=options.device)
            if not cpu:
                images = images.half().contiguous(memory_format=torch.channels_last)
            compiling = can_compile and (batch == 1 or not cpu or name in PROFILED)
            if cpu:
                forms = _cpu_forms(name, images, options, int8.get(name), compiling)
            else:
                forms = _cuda_forms(name, images, options, compiling)
            _say(f"{name}, batch {batch}")
            found = _time(forms, images, options)
            timed = _rows(found, "forms", batch, "timm fused", {form: (name, form) for form in forms})
            for row in timed:
                # What a compiled form needs is allocated when it is compiled.
                if not cpu and "compiled" not in row["form"]:
                    row["metrics"]["peak_memory_mib"] = _peak(forms[row["form"]], images)
            rows += timed
            claims += _form_claims(name, batch, found, cpu)
            if cpu and compiling and name in PROFILED:
                rows.append(_profiled(name, batch, deploy(_pair(name)[0]), images))
    return rows, claims


@torch.no_grad()
def _peak(contender: Contender, images: Tensor) -> float | None:
    grown = peak_memory(lambda: contender(images), images.device)
    return None if grown is None else rounded(grown / 2**20)


def _profiled(name: str, batch: int, deployed: nn.Module, images: Tensor) -> dict[str, Any]:
    """How much of our compiled form is products and convolutions of libraries, which every form has.

    Compiled without the C++ wrapper, whose calls the profiler does not see.
    """
    share = library_share(compiled(deployed), images.contiguous(memory_format=torch.channels_last))
    row = {"name": f"{name}, deploy, compiled, batch {batch}, profiled", "group": "profile", "network": name}
    return {**row, "batch": batch, "metrics": {"library_share": rounded(share, 3)}}


def _peers(options: Options) -> tuple[list[Any], list[Any]]:
    """All variants and the other networks in one comparison: in PyTorch, in either layout, and on a CPU as ONNX."""
    cpu = options.device.type == "cpu"
    ours = QUICK if options.quick else tuple(VARIANTS)
    networks: dict[str, tuple[nn.Module, int]] = {name: (deploy(_pair(name)[0]), SIZE[0]) for name in ours}
    for name in QUICK_PEERS if options.quick else PEERS:
        networks[name] = fused(vary(timm.create_model(name))), PEERS[name].size
    rows, claims = [], []
    for batch in (1,) if options.quick else (1, 16) if cpu else (1, 256):
        contenders: dict[str, Contender] = {}
        names: dict[str, tuple[str, str]] = {}
        for name, (network, size) in networks.items():
            images = torch.randn(batch, 3, size, size)
            forms = {"pytorch": given(network, images)}
            last = images.contiguous(memory_format=torch.channels_last)
            forms["pytorch, channels last"] = given(channels_last(network), last)
            if cpu:
                file = options.folder / f"{name}.onnx"
                forms["onnxruntime"] = given(onnx_runtime(network, file, (size, size)), images)
            else:
                half = channels_last(network).to(options.device).half()
                forms = {"pytorch, channels last": given(half, last.to(options.device).half())}
            for form, contender in forms.items():
                contenders[f"{name} {form}"] = contender
                names[f"{name} {form}"] = (name, form)
        _say(f"networks of like accuracy, batch {batch}")
        found = _time(contenders, torch.empty(0), options)
        over = "efficientvit_m4 onnxruntime" if cpu else "efficientvit_m4 pytorch, channels last"
        rows += _rows(found, "peers", batch, over, names)
        claims += _paper_claims(found, batch, options)
    return rows, claims


def _paper_claims(found: Comparison, batch: int, options: Options) -> list[dict[str, Any]]:
    """The paper's abstract, where it can be tried: throughput against MobileNetV3-Large and MobileViT-XXS."""
    if options.quick or batch == 1:
        return []

    def pytorch(network: str) -> str:
        return _best(found, [key for key in found.milliseconds if key.startswith(f"{network} pytorch")])

    m5 = found.speedup(pytorch("efficientvit_m5"), over=pytorch("mobilenetv3_large_100"))
    m2 = found.speedup(pytorch("efficientvit_m2"), over=pytorch("mobilevit_xxs"))
    if options.device.type != "cpu":
        text = f"(paper: V100, batch 2048; here: fp16, no compiler, batch {batch}), at least"
        return [
            claim("paper_m5_gpu", f"M5 over MobileNetV3-Large on a GPU {text}", m5, at_least=1.404, source="paper"),
            claim("paper_m2_gpu", f"M2 over MobileViT-XXS on a GPU {text}", m2, at_least=5.8, source="paper"),
        ]
    here = f"(paper: Xeon; here: one thread, no compiler, batch {batch}), at least"
    onnx = found.speedup("efficientvit_m2 onnxruntime", over="mobilevit_xxs onnxruntime")
    return [
        claim("paper_m5_cpu", f"M5 over MobileNetV3-Large on a CPU {here}", m5, at_least=1.452, source="paper"),
        claim("paper_m2_cpu", f"M2 over MobileViT-XXS on a CPU {here}", m2, at_least=3.7, source="paper"),
        claim(
            "paper_m2_onnx",
            f"M2 over MobileViT-XXS as ONNX (here: one thread, batch {batch}), at least",
            onnx,
            at_least=7.4,
            source="paper",
        ),
    ]


# ------------------------------------------------------------------------------------------------- what is exported
def _exports(options: Options) -> tuple[dict[str, Path], dict[str, float]]:
    """Float files of the variants (all, or the quick ones), their int8 files, and their differences from PyTorch."""
    photographs = find_images(resolve_root("builtin:photographs") / "train")
    calibration, _ = draw(photographs, 32)
    int8, differences = {}, {}
    for name in QUICK if options.quick else VARIANTS:
        file = options.folder / f"{name}.onnx"
        record = _record(name)
        differences[name] = export_classifier(_pair(name)[0], record, file).difference
        if options.quick and name != "efficientvit_m4":
            continue
        int8[name] = file.with_suffix(".int8.onnx")
        batches = (batch["image"] for batch in image_batches(calibration, record.preprocessing, 8))
        quantize(file, int8[name], batches)
    return int8, differences


def _demo(options: Options) -> tuple[list[Any], list[Any]]:
    """Trains on the built-in images afresh, exports the best networks, and compares int8 with float."""
    steps = Steps(options.folder / "demo")
    rows, claims = [], []
    seconds = 0.0
    for data, config in TASKS.items():
        done = train(steps, options.folder / "runs", data, config)
        figures = done["figures"]
        seconds += figures["fit_seconds"]
        rows.append({"name": f"{data}, trained from scratch", "group": "demo", "data": data, "metrics": figures})
        claims.append(
            claim(
                f"demo_{data}_top1",
                f"M0 from scratch on the built-in {data}: top-1 on unseen images, at least",
                figures["test_top1"],
                at_least=LEAST_TOP1[data],
            )
        )
        compared = _int8_on(options.folder / data, done["run"] / "checkpoints" / "best.ckpt", data)
        rows.append({"name": f"{data}, int8 beside float", "group": "int8", "data": data, "metrics": compared})
        claims.append(
            claim(
                f"int8_{data}_drop",
                f"M0 trained on the built-in {data}: percentage points of top-1 that int8 loses, at most",
                compared["top1_drop_points"],
                at_most=1.0,
            )
        )
    claims.append(
        claim("demo_seconds", "Both trainings, seconds of wall time, at most", round(seconds, 1), at_most=MOST_SECONDS)
    )
    return rows, claims


def _int8_on(folder: Path, checkpoint: Path, data: str) -> dict[str, Any]:
    root = resolve_root(f"builtin:{data}")
    model, record = load_classifier(checkpoint)
    folder.mkdir()
    file, int8 = folder / "float.onnx", folder / "int8.onnx"
    export_classifier(model, record, file)
    calibration, _ = draw(find_images(root / "train"), 128)
    quantize(file, int8, (batch["image"] for batch in image_batches(calibration, record.preprocessing, 16)))
    compared = compare_decisions(OnnxClassifier(file), OnnxClassifier(int8), find_images(root / "test"))
    return {key: rounded(value) if isinstance(value, float) else value for key, value in compared.items()}


# ------------------------------------------------------------------------------------------------- all of it
def _counting_claims(counts: Sequence[Mapping[str, Any]], equal: float) -> list[dict[str, Any]]:
    metrics = {row["network"]: row["metrics"] for row in counts}
    off = max(abs(metrics[name]["macs"] / 1e6 / PUBLISHED[name].mega_macs - 1) for name in VARIANTS)
    wrong = sum(metrics[name]["parameters"] != PUBLISHED[name].parameters for name in VARIANTS)
    kept = "saved_activations_mib_per_image"
    ratio = metrics["efficientvit_m4"][kept] / metrics["mobilenetv3_large_100"][kept]
    logit = "largest relative difference of a logit, at most"
    return [
        claim(
            "parameters", "Variants whose parameters are not as many as the official code's, at most", wrong, at_most=0
        ),
        claim("macs", "MACs, largest relative difference from the official code's, at most", off, at_most=1e-3),
        claim("deploy_equal", f"Deployed against eager, all variants, odd sizes: {logit}", equal, at_most=1e-4),
        claim(
            "saved_activations",
            "M4's saved activations in training over MobileNetV3-Large's, at most",
            ratio,
            at_most=0.4,
        ),
    ]


def measure(options: Options) -> Measured:
    """Everything on the page of EfficientViT; the quick form leaves out training, compilers, batches, variants."""
    _say("counting")
    counts = [_counted(name) for name in (*VARIANTS, *(QUICK_PEERS if options.quick else PEERS))]
    equal = _worst(_deploy_difference(_pair(name)[0]) for name in VARIANTS)
    claims = _counting_claims(counts, equal)
    int8: dict[str, Path] = {}
    cpu = options.device.type == "cpu"
    if cpu:
        _say("exporting")
        int8, differences = _exports(options)
        worst = _worst(differences.values())
        text = "ONNX Runtime against PyTorch, largest relative difference of a logit, at most"
        claims.append(claim("onnx_equal", text, worst, at_most=1e-4))
    trouble = None if options.quick else compiler_trouble()
    form_rows, form_claims = _forms(options, int8, can_compile=not options.quick and trouble is None)
    peer_rows, peer_claims = _peers(options)
    demo_rows, demo_claims = _demo(options) if cpu and not options.quick else ([], [])
    rows = [*counts, *form_rows, *peer_rows, *demo_rows]
    left_out = [] if options.quick or not cpu else ["compiled forms at batch 16 of variants other than M0 and M4"]
    if trouble is not None:
        left_out = [f"compiled forms ({trouble})"]
    if options.quick:
        left_out = [
            "other variants' forms than M0's and M4's",
            "compiled forms",
            "batches",
            "training and int8's accuracy",
        ]
    precision = "one thread, fp32" if cpu else f"{options.device}, fp16"
    return Measured(
        setting=f"{precision}, random weights, {SIZE[0]} pixels unless said, contenders by turns in one process, "
        "medians over rounds; a ratio is the median of the rounds' ratios. Published accuracies are the authors' and "
        "were not measured here.",
        rows=rows,
        claims=[*claims, *form_claims, *peer_claims, *demo_claims],
        left_out=left_out,
    )
