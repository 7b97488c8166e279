"""Cutting a network into the groups of blocks that get a meta network each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast

from torch import nn

from vision.ecotta.discovery import Block, Call, find_blocks, find_named, find_stages
from vision.ecotta.meta import Form
from vision.ecotta.partition import ParameterBytes, cheapest_near, check_sizes, default_sizes, group_bytes
from vision.errors import InputError

Partition = Literal["default", "auto"] | Sequence[int] | Sequence[Sequence[str]]


def cut(
    model: nn.Module,
    root: Call,
    groups: int | None,
    partition: Partition,
    memory_budget_mb: float | None,
    batch_size: int,
    form: Form,
    kernel: int | None,
) -> tuple[list[list[Block]], int]:
    """The groups of blocks, shallow to deep, and the kernel of their convolutions.

    Args:
        model: the network.
        root: its traced pass.
        groups: see :meth:`vision.ecotta.EcoTTA.attach`, as all others.
        partition: names, numbers, or how they are found.
        memory_budget_mb: for ``auto``.
        batch_size: for ``auto``.
        form: of the meta networks.
        kernel: None for the usual one.

    Raises:
        InputError: blocks, partition, budget or kernel do not fit the network.
    """
    if isinstance(partition, str) and partition not in ("default", "auto"):
        raise InputError(f"attach: partition must be default, auto, or lists, got '{partition}'")
    if (partition == "auto") != (memory_budget_mb is not None):
        raise InputError("attach: partition 'auto' and memory_budget_mb need each other")
    names = _names(partition)
    blocks = _found(model, root) if names is None else find_named(root, [name for group in names for name in group])
    bottlenecks = _bottlenecks(model, blocks)
    taken_kernel = kernel if kernel is not None else (1 if bottlenecks else 3)
    if taken_kernel < 1 or taken_kernel % 2 == 0:
        raise InputError(f"attach: kernel must be an odd number, got {kernel}")
    if names is not None:
        sizes = [len(group) for group in names]
    elif memory_budget_mb is not None:
        if form == "residual":
            raise InputError("attach: partition 'auto' counts convolutions; give the numbers of blocks")
        weights = ParameterBytes(sum(p.numel() for p in model.parameters()), taken_kernel, form == "separable")
        sizes = _within(blocks, groups, memory_budget_mb, batch_size, rectifier_bytes(root), weights, bottlenecks)
    elif partition == "default":
        sizes = default_sizes(len(blocks), min(4, len(blocks)) if groups is None else groups, bottlenecks)
    else:
        sizes = check_sizes(cast("Sequence[int]", partition), len(blocks))
    if groups is not None and groups != len(sizes):
        raise InputError(f"attach: the partition has {len(sizes)} groups, groups is {groups}")
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [blocks[end - size : end] for end, size in zip(ends, sizes, strict=True)], taken_kernel


def _names(partition: Partition) -> list[list[str]] | None:
    """The blocks' names, where the partition gives them."""
    if isinstance(partition, str) or not partition or isinstance(partition[0], int):
        return None
    if not all(isinstance(names, Sequence) and names and not isinstance(names, str) for names in partition):
        raise InputError(f"attach: partition must list the names of each group's blocks, got {list(partition)}")
    return [list(cast("Sequence[str]", names)) for names in partition]


def _found(model: nn.Module, root: Call) -> list[Block]:
    blocks = find_blocks(root)
    head = [call for call in root.calls if call.made is not None and call.made.dim() == 2]
    body = _weights(model, "") - sum(_weights(model, call.name) for call in head)
    if sum(_weights(model, block.name) for block in blocks) < body / 3:
        # A short row is a part of some other structure.
        blocks = find_stages(model, root)[1:]
    if not blocks:
        raise InputError("attach: no blocks in a row were found; name them: partition=[['layer1', ...], ...]")
    return blocks


def _within(
    blocks: Sequence[Block],
    groups: int | None,
    memory_budget_mb: float,
    batch_size: int,
    fixed_bytes: float,
    weights: ParameterBytes,
    bottlenecks: bool,
) -> list[int]:
    """The numbers of blocks that fit into a budget."""
    for number in [groups] if groups is not None else range(min(5, len(blocks)), 0, -1):
        wanted = default_sizes(len(blocks), number, bottlenecks)
        if found := cheapest_near(blocks, wanted, fixed_bytes, weights, batch_size, memory_budget_mb * 1e6):
            return found
    first, last = blocks[0].before, blocks[-1].after
    least = batch_size * (fixed_bytes + group_bytes(first, last)) + weights.frozen + weights.of(first, last)
    raise InputError(
        f"attach: no partition fits into {memory_budget_mb:g} MB; one group takes {least / 1e6:.1f} MB at batches of "
        f"{batch_size}"
    )


def rectifier_bytes(call: Call) -> float:
    """Bytes an image that all rectifiers keep, by the paper's count: a bit for each of their inputs."""
    own = call.given.numel() / 8 if isinstance(call.module, nn.ReLU) and call.given is not None else 0.0
    return own + math.fsum(rectifier_bytes(inner) for inner in call.calls)


def channels_last(blocks: Sequence[Block]) -> bool:
    """Whether feature maps have their channels last: those of the deepest one are more than its places."""
    shape = blocks[-1].after
    return len(shape) == 4 and shape[3] > max(shape[1], shape[2])


def _bottlenecks(model: nn.Module, blocks: Sequence[Block]) -> bool:
    return any("Bottleneck" in type(model.get_submodule(block.name)).__name__ for block in blocks)


def _weights(model: nn.Module, name: str) -> int:
    return sum(parameter.numel() for parameter in model.get_submodule(name).parameters())
