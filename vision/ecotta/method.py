"""What every method of test-time adaptation offers: ``adapt(x) -> logits``, and ways back."""

from __future__ import annotations

import math
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from vision.ecotta.frozen import FrozenOps, Memory
from vision.ecotta.guard import Guard, GuardOptions, Signals
from vision.ecotta.losses import MARGIN, confident, entropy, flat_logits
from vision.errors import InputError

SMALL = 8  # images under which batch statistics are too noisy to go without a warning


@dataclass(frozen=True)
class Step:
    """What one call of ``adapt`` did.

    Attributes:
        loss: that was minimised, NaN where there was none.
        entropy: mean entropy of the predictions, in nats.
        kept: share of the predictions that were learned from.
        distance: sum of the regularisers ``R_k``, 0 where there are none.
        updated: whether the parameters were changed.
        event: what the guard did, in words.
    """

    loss: float = float("nan")
    entropy: float = float("nan")
    kept: float = 0.0
    distance: float = 0.0
    updated: bool = False
    event: str | None = None


@dataclass(frozen=True)
class Snapshot:
    """The state of a method at a moment: trained parameters, optimizer, and what else it keeps."""

    parameters: list[Tensor]
    optimizer: dict[str, Any]
    extra: dict[str, Any]


@dataclass(frozen=True)
class Descent:
    """How a method descends: its optimizer and rate.

    Attributes:
        optimizer: ``sgd`` (with momentum, without weight decay) or ``adam``.
        lr: for batches of ``lr_batch`` images, or for all where that is None.
        momentum: of SGD.
        lr_batch: the rate is ``lr * images / lr_batch``.
    """

    optimizer: str = "sgd"
    lr: float = 5e-3
    momentum: float = 0.9
    lr_batch: int | None = None

    def make(self, parameters: list[nn.Parameter]) -> Optimizer:
        """The optimizer."""
        if not 0 <= self.lr < math.inf:
            raise InputError(f"lr must be at least 0, got {self.lr}")
        if self.lr_batch is not None and self.lr_batch < 1:
            raise InputError(f"lr_batch must be at least 1, got {self.lr_batch}")
        if self.optimizer == "sgd":
            return SGD(parameters, lr=self.lr, momentum=self.momentum)
        if self.optimizer == "adam":
            return Adam(parameters, lr=self.lr)
        raise InputError(f"optimizer must be sgd or adam, got {self.optimizer}")


class Method(nn.Module, ABC):
    """A network that is adapted on the images that it is shown.

    The network stays in evaluation mode (no dropout), whatever :meth:`train` is told; ``prior`` says which statistics
    its batch normalisations use. Their buffers are never written. Calls from several threads wait for each other.

    Args:
        model: gives logits ``(B, C)``, or ``(B, C, H, W)`` for pictures that are labelled pixel by pixel (or a
            dictionary that has them under ``out``). It is taken over, not copied: parameters that the method does not
            train are frozen in it.
        prior: statistics of batch normalisation: 0 for the batch's, infinity for the source's, between them AdaptBN's
            mixture, where the source's count for so many images.
        memory: see :class:`~vision.ecotta.frozen.FrozenOps`.
        guard: watch for a collapse and go back; None for no guard.
    """

    copies = 0
    """Copies of all the network's weights that the method holds beside the network."""

    steps: Tensor
    images: Tensor

    def __init__(
        self,
        model: nn.Module,
        prior: float = 0.0,
        memory: Memory = "eager",
        guard: GuardOptions | None = None,
    ) -> None:
        super().__init__()
        if not prior >= 0:
            raise InputError(f"prior must be at least 0, got {prior}")
        self.model = model
        self.prior, self.memory = prior, memory
        self.guard = None if guard is None else Guard(guard)
        self.constant_statistics: bool | None = None
        self.last = Step()
        self.optimizer: Optimizer | None = None
        self.descent = Descent()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("images", torch.zeros((), dtype=torch.int64))
        self._start: Snapshot | None = None
        self._good: list[Snapshot] = []
        self._slowed = 1.0
        self._lock = threading.RLock()
        super().train(False)
        self.register_load_state_dict_post_hook(_begins_anew)  # type: ignore[no-untyped-call]

    # ------------------------------------------------------------------------------------------ what methods say
    @abstractmethod
    def step(self, x: Tensor) -> tuple[Tensor, Step]:
        """Predicts and learns: logits from before the step, and what was done; called with gradients enabled."""

    def prepare(self, x: Tensor) -> None:
        """Called with every batch before its step, and before the method remembers where it starts."""

    def trained(self) -> list[nn.Parameter]:
        """The parameters that the method changes."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def extra_state(self) -> dict[str, Any]:
        """What a snapshot has beside parameters and optimizer; copies."""
        return {}

    def set_extra_state_(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`extra_state`."""

    # --------------------------------------------------------------------------------------------------- the API
    def adapt(self, x: Tensor) -> Tensor:
        """Predicts a batch, and learns from it.

        Works under ``torch.no_grad`` and ``torch.inference_mode`` as well.

        Args:
            x: images ``(B, 3, H, W)`` as the network takes them, ``B`` at least 1.

        Returns:
            Logits from before the step, float32 ``(B, C)`` or ``(B, C, H, W)``, detached.

        Raises:
            InputError: no images, or values that are not finite; nothing has changed then.
        """
        with self._lock, torch.inference_mode(False), torch.enable_grad():
            x = self._checked(x)
            self.prepare(x)
            self._begin()
            # A warm-up leaves its last gradients, and so does a step that was broken off.
            if self.optimizer is not None:
                self.optimizer.zero_grad()
            self._scale_rate(len(x))
            logits, done = self.step(x)
            logits = logits.detach()
            self.steps += 1
            self.images += len(x)
            self.last = self._guarded(logits, done)
            return logits

    def predict(self, x: Tensor) -> Tensor:
        """Predicts a batch as :meth:`adapt` would, and learns nothing.

        Raises:
            InputError: as :meth:`adapt`.
        """
        with self._lock, torch.inference_mode(False), torch.no_grad():
            return self.logits(self._checked(x))

    def forward(self, x: Tensor) -> Tensor:
        """The same as :meth:`predict`."""
        return self.predict(x)

    def snapshot(self) -> Snapshot:
        """What the method has learned so far, to come back to."""
        with self._lock:
            self._begin()
            assert self.optimizer is not None or not self.trained()
            return Snapshot(
                [parameter.detach().clone() for parameter in self.trained()],
                _copied(self.optimizer.state_dict()) if self.optimizer is not None else {},
                self.extra_state(),
            )

    def rollback(self, to: Snapshot) -> None:
        """Back to a snapshot, to the bit."""
        with self._lock, torch.inference_mode(False), torch.no_grad():
            self._begin()
            for parameter, value in zip(self.trained(), to.parameters, strict=True):
                parameter.copy_(value)
            if self.optimizer is not None:
                self.optimizer.load_state_dict(_copied(to.optimizer))
            self.set_extra_state_(to.extra)

    def reset(self) -> None:
        """Back to the state before the first step."""
        with self._lock:
            if self._start is not None:
                self.rollback(self._start)
            self._forget_course()
            self.steps.zero_()
            self.images.zero_()

    # --------------------------------------------------------------------------------------------- for the methods
    def forget_start(self) -> None:
        """The next step begins with a new optimizer, and :meth:`reset` goes back to the state before it."""
        self._start = self.optimizer = None
        self._forget_course()

    def logits(self, x: Tensor) -> Tensor:
        """The network's answer, float32."""
        with self.operations():
            return logits_of(self.model(x))

    @contextmanager
    def operations(self) -> Iterator[None]:
        """The block in which the network's operations are those that ``prior`` and ``memory`` say."""
        with FrozenOps(self.prior, self.memory, self.constant_statistics):
            yield

    def descend(self, loss: Tensor) -> bool:
        """A step down the loss, if loss and gradients are finite; tells whether it was taken."""
        assert self.optimizer is not None
        if bool(torch.isfinite(loss)):
            loss.backward()
        else:
            self.optimizer.zero_grad()
        return self.take_step()

    def take_step(self) -> bool:
        """A step by the gradients that are there, if they are finite; they are cleared either way."""
        assert self.optimizer is not None
        grads = [parameter.grad for parameter in self.trained() if parameter.grad is not None]
        # One number to look at: every look at a GPU's tensor waits for it.
        fine = bool(grads) and bool(torch.isfinite(torch.stack(torch._foreach_norm(grads))).all())
        if fine:
            self.optimizer.step()
        self.optimizer.zero_grad()
        return fine

    def train(self, mode: bool = True) -> Method:
        """Nothing: the network is always in evaluation mode."""
        return super().train(False)

    # -------------------------------------------------------------------------------------------------- the inside
    def _checked(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or x.dim() != 4 or not x.is_floating_point():
            found = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"adapt: images must be a floating-point tensor (B, 3, H, W), got {found}")
        if not len(x):
            raise InputError("adapt: the batch holds no images")
        kind = x.device.type
        if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16:
            raise InputError("adapt: float16 has no room for gradients this small; use bfloat16 or float32")
        if not bool(torch.isfinite(x).all()):
            raise InputError("adapt: the images hold NaN or infinite values; nothing was changed")
        if len(x) < SMALL and self.prior == 0 and any(map(_is_batch_norm, self.model.modules())):
            warnings.warn(
                f"batches of {len(x)} give noisy statistics: mix in the source's with prior=16 (AdaptBN)", stacklevel=3
            )
        return x.clone() if x.is_inference() else x

    def _begin(self) -> None:
        """Makes the optimizer, and remembers where the method started, at the first use."""
        if self._start is None:
            if self.optimizer is None and (parameters := self.trained()):
                self.optimizer = self.descent.make(parameters)
            self._start = Snapshot([], {}, {})  # so that the snapshot does not begin anew
            self._start = self.snapshot()

    def _forget_course(self) -> None:
        """What was noted along the stream: good snapshots, halvings of the rate, the guard's averages."""
        self._good = []
        self._slowed = 1.0
        if self.guard is not None:
            self.guard.forget()

    def _scale_rate(self, images: int) -> None:
        if self.optimizer is None:
            return
        batch = self.descent.lr_batch
        for group in self.optimizer.param_groups:
            group["lr"] = self.descent.lr * self._slowed * (images / batch if batch else 1.0)

    def _guarded(self, logits: Tensor, done: Step) -> Step:
        if self.guard is None:
            return done
        rows = flat_logits(logits)
        entropies = entropy(rows)
        classes = rows.shape[1]
        signals = Signals(
            rows.softmax(dim=1).mean(dim=0),
            float(entropies.mean()) / math.log(classes),
            float(confident(entropies, classes, MARGIN).float().mean()),
            done.distance,
        )
        trouble = self.guard.watch(signals)
        if trouble is None:
            if int(self.steps) % self.guard.options.every == 0:
                self._good = [*self._good[-1:], self.snapshot()]
            return done
        assert self._start is not None
        # The older one of two: what is seen now began before the newer one, it may be.
        self.rollback(self._good[0] if self._good else self._start)
        self._good = self._good[:1]
        self._slowed /= 2
        if self.optimizer is not None:
            self.optimizer.state.clear()
        self.guard.settle()
        event = f"{trouble}; rolled back, learning rate now {self.descent.lr * self._slowed:g}"
        return Step(**{**done.__dict__, "event": event})

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        nn.Module.__setstate__(self, state)
        self._lock = threading.RLock()


def _begins_anew(method: nn.Module, _: Any) -> None:
    """After other weights were loaded, these are what ``reset`` goes back to."""
    if isinstance(method, Method):
        method.forget_start()


def logits_of(output: Any) -> Tensor:
    """The logits of a network's output: itself, or what a dictionary has under ``out``; float32."""
    found = output["out"] if isinstance(output, Mapping) else output
    if not isinstance(found, Tensor):
        raise InputError(f"the network must give logits, or a dictionary with them under 'out', got {type(output)}")
    return found.float()


def freeze(model: nn.Module) -> nn.Module:
    """The network without a trained parameter, in evaluation mode."""
    return model.requires_grad_(False).eval()


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """Its batch normalisations."""
    return [module for module in model.modules() if _is_batch_norm(module)]


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    def copy(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.clone()
        if isinstance(value, dict):
            return {key: copy(inner) for key, inner in value.items()}
        return [copy(inner) for inner in value] if isinstance(value, list) else value

    return {key: copy(value) for key, value in state.items()}
