"""The memory that training holds between the forward and the backward pass, counted exactly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import _pytree as pytree

from vision.measure.state import unchanged


def _tensors(known: Any) -> Iterator[Tensor]:
    for leaf in pytree.tree_leaves(known):
        if isinstance(leaf, nn.Module):
            yield from leaf.parameters()
            yield from leaf.buffers()
        elif isinstance(leaf, Tensor):
            yield leaf


class _Kept:
    """A tensor that autograd keeps; when it goes, so does this."""

    __slots__ = ("by", "tensor")

    def __init__(self, tensor: Tensor, by: SavedActivations) -> None:
        self.tensor, self.by = tensor, by

    def __del__(self) -> None:
        self.by._let_go(self.tensor)


class SavedActivations:
    """Counts what autograd keeps for the backward pass of everything that is computed in its ``with`` block.

    Each storage counts once and whole, however many views of it are kept, so the figure is the memory that they hold
    rather than the sizes of the tensors. It does not depend on the device. What a compiled graph or a custom
    function keeps without ``save_for_backward`` is not seen.

    Args:
        known: modules and tensors (or collections of them) that are there anyway: the storages of their
            parameters, of their buffers and of the tensors are left out.

    Example:
        >>> with SavedActivations(model, images) as saved:
        ...     loss = model(images).sum()
        >>> saved.bytes
    """

    def __init__(self, *known: Any) -> None:
        self._known = {tensor.untyped_storage()._cdata for tensor in _tensors(known)}
        # By the storages' own addresses: those of their data are all 0 on the meta device. Keeping the storages keeps
        # the addresses from being given to others while the block runs.
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._holders = Counter[int]()
        self._now = self._bytes = self._peak = 0
        self._hooks = saved_tensors_hooks(self._pack, lambda kept: kept.tensor)

    def _pack(self, tensor: Tensor) -> _Kept:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._storages[storage._cdata] = storage
            self._holders[storage._cdata] += 1
            if self._holders[storage._cdata] == 1:
                self._now += storage.nbytes()
                self._peak = max(self._peak, self._now)
        return _Kept(tensor, self)

    def _let_go(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if self._holders[storage._cdata] > 0:
            self._holders[storage._cdata] -= 1
            if self._holders[storage._cdata] == 0:
                self._now -= storage.nbytes()

    def __enter__(self) -> Self:
        self._now = self._bytes = self._peak = 0
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, traceback)
        self._bytes = sum(storage.nbytes() for storage in self._storages.values())
        self._storages.clear()
        self._holders.clear()

    @property
    def bytes(self) -> int:
        """Bytes kept by all that was computed; known when the block has ended."""
        return self._bytes

    @property
    def peak_bytes(self) -> int:
        """The most bytes kept at one time, where backward passes within the block let go of some."""
        return self._peak


def saved_activations(model: nn.Module, *inputs: Any) -> int:
    """Bytes that one forward pass in training keeps for the backward pass.

    Parameters, buffers and inputs are not counted, nor is a loss. A model in evaluation mode is measured in training
    mode; one in training mode as it is, with what it has frozen. It is left as it was, batch statistics too.
    """
    with unchanged(model), torch.enable_grad():
        if not model.training:
            model.train()
        with SavedActivations(model, inputs) as saved:
            model(*inputs)
    return saved.bytes
