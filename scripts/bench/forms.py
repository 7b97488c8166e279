"""The forms that a classifier can be run in, as contenders of a comparison."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from timm.utils.model import reparameterize_model
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from scripts.export.graph import write_onnx
from scripts.export.session import onnx_session
from scripts.quiet import native_errors_hidden

LIBRARY = re.compile(r"^(aten|mkldnn|mkl)::.*(mm|conv2d_forward|convolution|_pointwise|_mkl_linear)$")  # operators
Contender: TypeAlias = Callable[[Tensor], Any]


def vary(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random normalisations and bias tables, in place of initial ones that leave whole branches at zero."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.affine:
            mean, variance = cast("Tensor", module.running_mean), cast("Tensor", module.running_var)
            with torch.no_grad():
                module.weight.uniform_(0.5, 1, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)
                mean.normal_(0, 0.1, generator=generator)
                variance.uniform_(0.5, 1.5, generator=generator)
    for name, parameter in model.named_parameters():
        if name.endswith("attention_biases"):
            nn.init.normal_(parameter, std=0.5, generator=generator)
    return model.eval()


def fused(model: nn.Module) -> nn.Module:
    """The form that timm itself has for inference: batch normalisations and parallel branches folded."""
    folded: nn.Module = reparameterize_model(copy.deepcopy(model)).eval()
    return folded


def channels_last(model: nn.Module) -> nn.Module:
    """A copy in PyTorch's channels-last layout."""
    return copy.deepcopy(model).to(memory_format=torch.channels_last)


def traced(model: nn.Module, images: Tensor) -> Contender:
    """``torch.jit.trace``, as in the official speed test."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        contender: Contender = torch.jit.trace(model, images)
    return contender


def compiled(model: nn.Module, **options: Any) -> Contender:
    """``torch.compile``; it compiles at the first call.

    ``options`` are inductor's. They are set globally during that call as well, since some (``freezing``) are not
    heeded otherwise in PyTorch 2.15.
    """
    function = torch.compile(model, options=options or None)
    ready = False

    def run(images: Tensor) -> Any:
        nonlocal ready
        if ready:
            return function(images)
        with torch._inductor.config.patch(options):
            ready = True
            return function(images)

    return run


def compiler_trouble() -> str | None:
    """Why ``torch.compile`` does not work here (most often: no C++ compiler), or None where it does."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(1))
    except Exception as error:  # noqa: BLE001 (a compiler's troubles come in any class)
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None


def onnx_runtime(model: nn.Module, file: Path, image_size: tuple[int, int]) -> Contender:
    """Exported to ``file`` and run on one thread."""
    if not file.exists():
        write_onnx(model, file, image_size)
    return onnx_contender(file)


def onnx_contender(file: Path) -> Contender:
    """An ONNX file on one thread."""
    session = onnx_session(file, "cpu", threads=1)
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images.numpy()})


def library_share(contender: Contender, images: Tensor) -> float:
    """The share of a call's time, on one thread, that PyTorch spends in libraries' products and convolutions."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            contender(images)
            # The profiler tells of each start, and of missing GPUs.
            with native_errors_hidden(), profile(activities=[ProfilerActivity.CPU]) as profiled:
                for _ in range(5):
                    contender(images)
    finally:
        torch.set_num_threads(threads)
    events = profiled.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    return float(sum(event.self_cpu_time_total for event in events if LIBRARY.search(event.key)) / total)


def given(contender: Contender, images: Tensor) -> Contender:
    """A contender that always takes these images: of its own size or layout, made beforehand."""
    return lambda _images: contender(images)
