"""CoTTA: continual test-time adaptation by a teacher that is averaged over weights and views (arXiv 2203.13591)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vision.ecotta.cotta_views import seeded, view
from vision.ecotta.guard import GuardOptions
from vision.ecotta.losses import cross_entropy_of, entropy, flat_logits, symmetric_cross_entropy
from vision.ecotta.method import Descent, Method, Snapshot, Step, freeze, logits_of
from vision.errors import InputError


class CoTTA(Method):
    """The network learns from a teacher, which is a moving average of it; now and then a weight is put back.

    The predictions are the teacher's. All parameters are trained. ``model`` is the student; teacher and source are
    copies of it.

    Args:
        model: see :class:`~vision.ecotta.method.Method`.
        threshold: where the source network's mean confidence (largest probability) in a batch is below this, the
            teacher's logits are averaged over views of it: 0.92 for CIFAR-10, 0.72 for CIFAR-100, 0.1 for ImageNet.
            Views of pictures that are labelled pixel by pixel are not rotated, shifted, scaled or mirrored.
        views: how many.
        mirror: mirror every other view; not for images that mean something else then, such as digits.
        momentum: of the teacher's average, in [0, 1].
        restore: probability with which a weight is put back to the source's after a step (0.001 for ImageNet).
        symmetric: minimise half of each direction's cross entropy between teacher and student (ImageNet); else the
            teacher's with the student.
        mean: that was subtracted from images in [0, 1], one or one a channel; views are made of these images.
        std: by which they were divided then.
        seed: of views and restored weights.
        descent: by default Adam with a rate of 1e-3 (CIFAR); for ImageNet ``Descent("sgd", 0.01)``.
        prior: see :class:`~vision.ecotta.method.Method`; for student, teacher and source.
        guard: see :class:`~vision.ecotta.method.Method`.

    Raises:
        InputError: an argument is out of its range.
    """

    copies = 2

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        threshold: float = 0.92,
        views: int = 32,
        mirror: bool = True,
        momentum: float = 0.999,
        restore: float = 0.01,
        symmetric: bool = False,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        seed: int = 0,
        descent: Descent | None = None,
        prior: float = 0.0,
        guard: GuardOptions | None = None,
    ) -> None:
        super().__init__(model, prior, guard=guard)
        for name, value in (("threshold", threshold), ("momentum", momentum), ("restore", restore)):
            if not 0 <= value <= 1:
                raise InputError(f"{name} must be in [0, 1], got {value}")
        if views < 1:
            raise InputError(f"views must be at least 1, got {views}")
        if min(std) <= 0:
            raise InputError(f"std must be above 0, got {tuple(std)}")
        self.threshold, self.views, self.momentum, self.restore = threshold, views, momentum, restore
        self.descent = descent or Descent("adam", 1e-3)
        self.mirror, self.symmetric = mirror, symmetric
        self.source, self.teacher = freeze(copy.deepcopy(model)), freeze(copy.deepcopy(model))
        model.requires_grad_(True)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.random = torch.Generator().manual_seed(seed)

    def step(self, x: Tensor) -> tuple[Tensor, Step]:
        """The teacher's logits, a step of the student towards them, and of the teacher towards the student."""
        with self.operations():
            student = flat_logits(logits_of(self.model(x)))
        with torch.no_grad():
            logits = self._taught(x, self.random)
        teacher = flat_logits(logits)
        losses = symmetric_cross_entropy(student, teacher) if self.symmetric else cross_entropy_of(teacher, student)
        loss = losses.mean()
        if updated := self.descend(loss):
            self._follow()
        mean = float(entropy(teacher).mean())
        return logits, Step(float(loss.detach()), mean, 1.0, updated=updated)

    def logits(self, x: Tensor) -> Tensor:
        """The teacher's answer, float32, over the views that the next step would take."""
        return self._taught(x, copy.deepcopy(self.random))

    def _taught(self, x: Tensor, random: torch.Generator) -> Tensor:
        with self.operations():
            confidence = flat_logits(logits_of(self.source(x))).softmax(dim=1).amax(dim=1).mean()
            plain = logits_of(self.teacher(x))
        if confidence >= self.threshold:
            return plain
        images = x.float() * self.std + self.mean
        total = torch.zeros_like(plain)
        for _ in range(self.views):
            seen = (view(images, random, plain.dim() == 2, self.mirror) - self.mean) / self.std
            with self.operations():
                total += logits_of(self.teacher(seen.to(x.dtype)))
        return total / self.views

    @torch.no_grad()
    def _follow(self) -> None:
        """The teacher's average, then the restored weights."""
        student, source = _weights(self.model), _weights(self.source)
        torch._foreach_lerp_(_weights(self.teacher), student, 1 - self.momentum)
        random = seeded(self.random, student[0].device)
        for parameter, original in zip(student, source, strict=True):
            chosen = torch.rand(parameter.shape, generator=random, device=parameter.device) < self.restore
            parameter.copy_(torch.where(chosen, original, parameter))

    def _begin(self) -> None:
        first = self._start is None
        super()._begin()
        if not first:
            return
        assert self._start is not None
        weights = _weights(self.source)
        if _same(weights, self._start.parameters) and _same(weights, self._start.extra["teacher"]):
            # The source network's weights need no further copies.
            self._start = Snapshot(weights, self._start.optimizer, {**self._start.extra, "teacher": weights})

    def extra_state(self) -> dict[str, Any]:
        """The teacher's parameters, and where the random numbers stand."""
        teacher = [weight.clone() for weight in _weights(self.teacher)]
        return {"teacher": teacher, "random": self.random.get_state()}

    @torch.no_grad()
    def set_extra_state_(self, state: Mapping[str, Any]) -> None:
        """See :meth:`extra_state`."""
        for weight, value in zip(_weights(self.teacher), state["teacher"], strict=True):
            weight.copy_(value)
        self.random.set_state(state["random"])


def _weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach() for parameter in model.parameters()]


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(map(torch.equal, one, other))
