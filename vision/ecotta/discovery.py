"""Finding the blocks of any network along its main path, by one traced forward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from vision.errors import InputError, shorten

_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.ConvTranspose2d)


@dataclass
class Call:
    """A module's call in the traced pass.

    Attributes:
        name: of the module, dotted.
        module: itself.
        given: the tensor that it took, if it took a single one (positional; keywords may be beside it).
        made: the tensor that it gave, if it gave a single one.
        calls: of modules within, in their order.
    """

    name: str
    module: nn.Module
    given: Tensor | None
    made: Tensor | None = None
    calls: list[Call] = field(default_factory=list)

    @property
    def weighted(self) -> int:
        """How many convolutions and linear layers are in it."""
        return sum(isinstance(module, _WEIGHTED) for module in self.module.modules())

    @property
    def leaf(self) -> bool:
        """Whether no modules are in it."""
        return next(self.module.children(), None) is None


@dataclass(frozen=True)
class Block:
    """A block of the main path, and the shapes of its input and output (of one image)."""

    name: str
    before: torch.Size
    after: torch.Size


def trace(model: nn.Module, image: Tensor) -> Call:
    """One forward pass in evaluation mode, without gradients.

    Raises:
        InputError: the network does not take such images.
    """
    root = Call("", model, image)
    stack = [root]
    names = {module: name for name, module in model.named_modules()}

    def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
        given = args[0] if len(args) == 1 and isinstance(args[0], Tensor) else None
        call = Call(names[module], module, given)
        stack[-1].calls.append(call)
        stack.append(call)

    def leave(_module: nn.Module, _args: tuple[Any, ...], made: Any) -> None:
        stack.pop().made = made if isinstance(made, Tensor) else None

    handles = []
    for module in names:
        if module is not model:
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    training = [module for module in names if module.training]
    try:
        model.eval()
        with torch.no_grad():
            out = model(image)
    # Of networks for one size, timm's say so by an assertion.
    except (RuntimeError, AssertionError, ValueError) as error:
        size, reason = "x".join(map(str, image.shape[1:])), next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"attach: the network does not take images of {size} ({reason})") from error
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
    # A dictionary's logits stand for it: see find_blocks.
    root.made = out.get("out") if isinstance(out, Mapping) else out if isinstance(out, Tensor) else None
    return root


def _follows(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and one is other


def _is_chain(call: Call) -> bool:
    """Whether the calls within do all the work, one after the other."""
    inner = call.calls
    if not inner or not _follows(call.given, inner[0].given) or not _follows(inner[-1].made, call.made):
        return False
    return all(_follows(a.made, b.given) for a, b in pairwise(inner))


def _is_row_of_blocks(call: Call) -> bool:
    """Whether a module is blocks in a row, or stages of them, and not a block itself."""
    if not _is_chain(call):
        return False
    big = [inner for inner in call.calls if not inner.leaf and inner.weighted >= 2]
    return len(big) >= 2 or any(_is_row_of_blocks(inner) for inner in big)


def _units(call: Call) -> Iterator[Call]:
    for inner in call.calls:
        # What gives a dictionary of features (a backbone in a segmentation network) is looked into as well.
        if inner.made is None or _is_row_of_blocks(inner):
            yield from _units(inner)
        else:
            yield inner


def find_blocks(root: Call) -> list[Block]:
    """The longest row of blocks in which each takes what the one before gave.

    A block has layers with weights within. The stem (which takes the image) and the head (which gives no features)
    are none. Empty where no two blocks follow each other.
    """
    times = Counter(call.module for call in _all(root))
    best: list[Call] = []
    run: list[Call] = []
    for unit in _units(root):
        if unit.given is not None and unit.given is unit.made:
            continue  # an identity
        fits = (
            not unit.leaf
            and unit.weighted > 0
            and times[unit.module] == 1
            and unit.given is not None
            and unit.given is not root.given
            and unit.made is not None
            and unit.made is not root.made
            and unit.made.dim() in (3, 4)
            and unit.made.dim() == unit.given.dim()
        )
        if fits and run and _follows(run[-1].made, unit.given):
            run.append(unit)
        else:
            run = [unit] if fits else []
        if len(run) > len(best):
            best = list(run)
    if best and root.made is not None and _is_pixel_head(best[-1], root.made):
        best.pop()
    return [_block(call) for call in best] if len(best) > 1 else []


def _is_pixel_head(call: Call, logits: Tensor) -> bool:
    """Whether a module gives the logits of a network that labels pixels, which are then enlarged."""
    return logits.dim() == 4 and call.made is not None and call.made.shape[1] == logits.shape[1]


def _all(call: Call) -> Iterator[Call]:
    for inner in call.calls:
        yield inner
        yield from _all(inner)


def _block(call: Call) -> Block:
    assert call.given is not None
    assert call.made is not None
    return Block(call.name, call.given.shape, call.made.shape)


def find_named(root: Call, names: Sequence[str]) -> list[Block]:
    """Modules by name, as blocks, in the order in which the network calls them.

    Raises:
        InputError: one is not there, is named or called several times, lies within another, or does not turn one
            tensor into one.
    """
    calls: dict[str, list[Call]] = {}
    for call in _all(root):
        calls.setdefault(call.name, []).append(call)
    if unknown := [name for name in names if name not in calls]:
        raise InputError(f"attach: the network calls no module named {shorten(unknown)}")
    for name, times in Counter(names).items():
        if times > 1:
            raise InputError(f"attach: {name} is named {times} times; a block is in one group")
        if outer := [other for other in names if name.startswith(f"{other}.")]:
            raise InputError(f"attach: {name} lies within {outer[0]}; name one of them")
        if len(calls[name]) > 1:
            raise InputError(f"attach: the network calls {name} {len(calls[name])} times; a block is called once")
        if calls[name][0].given is None or calls[name][0].made is None:
            raise InputError(f"attach: {name} does not turn one tensor into one tensor")
    order = list(calls)
    found = [calls[name][0] for name in sorted(names, key=order.index)]
    if [call.name for call in found] != list(names):
        raise InputError(f"attach: the network calls these in the order {', '.join(call.name for call in found)}")
    return [_block(call) for call in found]


def is_row(root: Call, blocks: Sequence[Block]) -> bool:
    """Whether each block takes the very tensor that the one before gave."""
    calls = {call.name: call for call in _all(root)}
    return all(_follows(calls[a.name].made, calls[b.name].given) for a, b in pairwise(blocks))


def find_stages(model: nn.Module, root: Call) -> list[Block]:
    """The stages that timm's ``feature_info`` names, for networks whose blocks are in no row; empty without it."""
    info = getattr(model, "feature_info", None)
    names = [entry["module"] for entry in getattr(info, "info", info) or [] if isinstance(entry, dict)]
    called = {call.name: call for call in _all(root)}
    calls = [called[name] for name in names if name in called]
    return [_block(call) for call in calls if call.given is not None and call.made is not None]
