"""What a step of test-time adaptation takes: by the count that papers print, and what PyTorch really holds."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from vision.measure.activations import SavedActivations

_NORMALISING = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear, *_NORMALISING)


class Adapts(Protocol):
    """A module that learns from the images that it predicts."""

    copies: int

    def adapt(self, x: Tensor) -> Tensor:
        """Predicts a batch, and learns from it."""


@dataclass(frozen=True)
class AdaptationProfile:
    """Memory of one step of adaptation. A megabyte is 1e6 bytes.

    Attributes:
        images: of the step.
        paper_image_bytes: of one image by the count of TinyTL's profiler, which the EcoTTA paper uses: 4 bytes for
            each input of a convolution, linear layer or normalisation that is trained, a bit for each input of a
            rectifier that is a module. What PyTorch keeps of frozen layers is not in it.
        paper_peak_bytes: of one image, the profiler's other figure: the most at any layer with its input and output.
        parameters: of the network and what is beside it, without copies.
        trained: those that are trained.
        copies: further copies of the network's weights.
        held_bytes: the most that PyTorch held for backward passes at one time, every storage once; parameters, buffers
            and the images are not in it, nor what a checkpointed group is computed anew into.
        copy_bytes: of the copies.
    """

    images: int
    paper_image_bytes: float
    paper_peak_bytes: float
    parameters: int
    trained: int
    copies: int
    held_bytes: int
    copy_bytes: int

    def paper_mb(self, images: int | None = None, peak: bool = False) -> float:
        """Megabytes as the paper prints them, for a batch of so many images.

        Trained weights count 4 bytes and frozen ones 1 (as if in eight bits); of a method with copies of the network
        all weights count 4 bytes, and so do those of the copies.
        """
        activations = (images or self.images) * (self.paper_peak_bytes if peak else self.paper_image_bytes)
        if self.copies:
            return (activations + 4 * self.parameters * (1 + self.copies)) / 1e6
        return (activations + 4 * self.trained + (self.parameters - self.trained)) / 1e6

    @property
    def held_mb(self) -> float:
        """Megabytes that PyTorch held for the backward passes, and the network's copies."""
        return (self.held_bytes + self.copy_bytes) / 1e6

    def __str__(self) -> str:
        lines = [
            f"{self.paper_mb():10.1f} MB  by the papers' count, {self.images} images",
            f"{self.held_bytes / 1e6:10.1f} MB  really held for the backward pass",
        ]
        if self.copies:
            lines.append(f"{self.copy_bytes / 1e6:10.1f} MB  {self.copies} more copies of the network")
        lines.append(f"{self.trained:,} of {self.parameters:,} parameters are trained")
        return "\n".join(lines)


class _PaperCount:
    """Adds up the profiler's figures over the calls of modules in passes that learn."""

    def __init__(self) -> None:
        self.kept = self.most = self.peak = 0.0

    def add(self, module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        """A forward hook."""
        given = args[0] if args and isinstance(args[0], Tensor) else None
        # A checkpointed group is called again in the backward pass.
        if given is None or not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1:
            return
        size = 4.0 * given.numel()
        own, present = size, size
        if isinstance(module, nn.ReLU):
            own = given.numel() / 8
        else:
            weight = module.weight
            if not isinstance(weight, Tensor) or not weight.requires_grad:
                own = 0.0
            if not isinstance(module, _NORMALISING):
                present += 4 * out.numel() // int(getattr(module, "groups", 1))
        self.peak = max(self.peak, self.kept + present)
        self.kept += own
        self.most = max(self.most, self.kept)

    def let_go(self, *_: Any) -> None:
        """After an optimizer's step, for the passes before it are over."""
        self.kept = 0.0


def profile_adaptation(model: Adapts, batch: Tensor) -> AdaptationProfile:
    """Measures a step of ``model.adapt(batch)`` on a copy of the model, which stays as it is.

    Args:
        model: a module with ``adapt``, such as :class:`vision.ecotta.EcoTTA` and the methods beside it.
        batch: images ``(B, 3, H, W)`` as it takes them.
    """
    method = copy.deepcopy(model)
    module = cast("nn.Module", method)
    method.adapt(batch)  # the first one makes optimizers, and may calibrate
    count = _PaperCount()
    handles = [
        inner.register_forward_hook(count.add) for inner in module.modules() if isinstance(inner, (nn.ReLU, *_WEIGHTED))
    ]
    handles.append(register_optimizer_step_post_hook(count.let_go))
    try:
        with SavedActivations(module, batch) as saved:
            method.adapt(batch)
    finally:
        for handle in handles:
            handle.remove()
    weights = sum(parameter.numel() for parameter in module.parameters())
    own = weights // (1 + model.copies)
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    return AdaptationProfile(
        images=len(batch),
        paper_image_bytes=count.most / len(batch),
        paper_peak_bytes=count.peak / len(batch),
        parameters=own,
        trained=trained,
        copies=model.copies,
        held_bytes=saved.peak_bytes,
        copy_bytes=4 * own * model.copies,
    )
