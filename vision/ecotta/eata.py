"""Entropy minimisation on few, chosen predictions: ETA, EATA (arXiv 2204.02610) and RDumb (arXiv 2306.05401)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from vision.ecotta.baselines import Tent
from vision.ecotta.losses import MARGIN, confident, eata_weights, filtered_entropy, flat_logits
from vision.ecotta.method import Step
from vision.errors import InputError

DECAY = 0.9  # of the moving mean of the probabilities


class ETA(Tent):
    """TENT on predictions that are sure and unlike what was seen before, of which the surer count more (Eq. 3-5).

    Args:
        model: see :class:`~vision.ecotta.baselines.Tent`.
        margin: predictions with an entropy of ``margin * ln C`` or more are left out.
        similarity: so are those whose probabilities have at least this cosine with the moving mean of what was
            learned from: 0.4 for 10 classes (CIFAR-10), 0.1 for 100, 0.05 for 1000 (ImageNet).
        kwargs: of :class:`~vision.ecotta.baselines.Tent`.

    Attributes:
        mean: ``(C,)`` the moving mean; None before anything was learned.
    """

    mean: Tensor | None

    def __init__(self, model: nn.Module, *, margin: float = MARGIN, similarity: float = 0.4, **kwargs: Any) -> None:
        super().__init__(model, **kwargs)
        if not margin > 0:
            raise InputError(f"margin must be above 0, got {margin}")
        if not similarity > 0:
            raise InputError(f"similarity must be above 0, got {similarity}")
        self.margin, self.similarity = margin, similarity
        self.register_buffer("mean", None, persistent=False)

    def loss(self, rows: Tensor, entropies: Tensor) -> tuple[Tensor | None, float]:
        """The mean weighted entropy of the chosen predictions, which enter the moving mean."""
        classes, probabilities = rows.shape[1], rows.detach().softmax(dim=1)
        kept = confident(entropies.detach(), classes, self.margin)
        if self.mean is not None:
            kept &= F.cosine_similarity(self.mean[None], probabilities, dim=1).abs() < self.similarity
        weights = eata_weights(entropies, self.margin * math.log(classes))
        loss = filtered_entropy(weights * entropies, kept)
        if loss is not None:
            found = probabilities[kept].mean(dim=0)
            self.mean = found if self.mean is None else DECAY * self.mean + (1 - DECAY) * found
        return loss, float(kept.float().mean())

    def extra_state(self) -> dict[str, Any]:
        """The moving mean, which is never written but replaced."""
        return {"mean": self.mean}

    def set_extra_state_(self, state: Mapping[str, Any]) -> None:
        """See :meth:`extra_state`."""
        self.mean = state["mean"]


class EATA(ETA):
    """ETA that holds on to the parameters that matter on the source (Eq. 8, 9).

    Args:
        model: see :class:`~vision.ecotta.baselines.Tent`.
        source: batches of source images ``(B, 3, H, W)``, which need no labels; read here, once.
        alpha: of the penalty ``sum F (p - p_0)^2``: 1 for CIFAR, 2000 for ImageNet.
        source_images: how many images are read at most.
        kwargs: of :class:`ETA`.

    Attributes:
        fisher: ``F`` of all trained parameters, in a row: the squared gradient of the cross entropy with the own
            predictions, a mean over the batches.
        origin: ``p_0``, the parameters themselves at that time.

    Raises:
        InputError: the source gives no images, or some that lead to predictions which are not finite.
    """

    fisher: Tensor
    origin: Tensor

    def __init__(
        self,
        model: nn.Module,
        source: Iterable[Tensor],
        *,
        alpha: float = 1.0,
        source_images: int = 2000,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, **kwargs)
        if not alpha >= 0:
            raise InputError(f"alpha must be at least 0, got {alpha}")
        if source_images < 1:
            raise InputError(f"source_images must be at least 1, got {source_images}")
        self.alpha = alpha
        with torch.inference_mode(False), torch.enable_grad():
            self.register_buffer("fisher", self._fishers(source, source_images))
            self.register_buffer("origin", parameters_to_vector(self.trained()).detach())

    def _fishers(self, source: Iterable[Tensor], most: int) -> Tensor:
        total, batches, images = torch.zeros(()), 0, 0
        for batch in source:
            if not isinstance(batch, Tensor) or batch.dim() != 4 or not len(batch):
                found = tuple(batch.shape) if isinstance(batch, Tensor) else type(batch).__name__
                raise InputError(f"source: batch {batches} must be images (B, 3, H, W), got {found}")
            # A copy, for images that were made in inference mode cannot be kept for a backward pass.
            rows = flat_logits(self.logits(batch[: most - images].clone()))
            loss = F.cross_entropy(rows, rows.argmax(dim=1))
            if not bool(torch.isfinite(loss)):
                raise InputError(f"source: the predictions of batch {batches} are not finite")
            gradients = torch.autograd.grad(loss, self.trained(), materialize_grads=True)
            total = total.to(loss.device) + parameters_to_vector(gradients).square()
            batches, images = batches + 1, images + len(batch)
            if images >= most:
                break
        if not batches:
            raise InputError("source: there are no images in it")
        return total / batches

    def loss(self, rows: Tensor, entropies: Tensor) -> tuple[Tensor | None, float]:
        """ETA's, and the penalty where there is something to learn."""
        loss, kept = super().loss(rows, entropies)
        return None if loss is None else loss + self.alpha * self.penalty(), kept

    def penalty(self) -> Tensor:
        """``sum F (p - p_0)^2`` over the trained parameters, a scalar."""
        return (self.fisher * (parameters_to_vector(self.trained()) - self.origin).square()).sum()


class RDumb(ETA):
    """ETA that starts anew from the source every so many steps: a control that few methods beat on long streams.

    Args:
        model: see :class:`~vision.ecotta.baselines.Tent`.
        period: steps between one start and the next.
        kwargs: of :class:`ETA`.
    """

    steps: Tensor

    def __init__(self, model: nn.Module, *, period: int = 1000, **kwargs: Any) -> None:
        super().__init__(model, **kwargs)
        if period < 1:
            raise InputError(f"period must be at least 1, got {period}")
        self.period = period

    def step(self, x: Tensor) -> tuple[Tensor, Step]:
        """ETA's, after the new start where one is due; that leaves the stream's counters and the guard as they are."""
        if self.steps > 0 and self.steps % self.period == 0:
            assert self._start is not None
            self.rollback(self._start)
            self._scale_rate(len(x))  # which the rollback has set back too
        return super().step(x)
