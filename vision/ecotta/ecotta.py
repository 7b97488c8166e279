"""EcoTTA: continual test-time adaptation by small networks beside a frozen one (arXiv 2303.01904)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vision.ecotta.discovery import is_row, trace
from vision.ecotta.frozen import FrozenOps, Memory
from vision.ecotta.grouping import Partition, channels_last, cut
from vision.ecotta.guard import GuardOptions
from vision.ecotta.losses import Reduction, confident, entropy, filtered_entropy, flat_logits, regularisation
from vision.ecotta.meta import Form, MetaConv, MetaResidual, make_meta
from vision.ecotta.method import Descent, Method, Step, batch_norms, freeze, logits_of
from vision.errors import InputError

Joined = Callable[[int, Tensor, Tensor], Tensor]  # of group k, its input and its output: what goes on from there
Update = Literal["joint", "two_step"]


class EcoTTA(Method):
    """A frozen network, cut into groups of blocks, each with a meta network that is trained.

    Made by :meth:`attach`. One step of :meth:`adapt` is one forward pass: each group's regulariser is run backward at
    once, into its own meta network (Fig. 3c), then the entropy of the sure predictions through all of them (Eq. 3).

    Args:
        model: the network; frozen here, and not copied.
        metas: a meta network for each group.
        groups: the names of each group's blocks.
        in_row: each block takes the very tensor that the one before gave.
        strength: of the regulariser, lambda in Eq. 3.
        descent: SGD with momentum 0.9 and a rate of 5e-3 for batches of 64.
        margin: predictions with an entropy above ``margin * ln C`` are left out.
        reduction: of the entropies; ``kept`` as the community's code, ``batch`` as Eq. 2 has it.
        update: ``two_step`` is the community's: a step on the regularisers, then one on the entropy of a second
            forward pass, whose logits are returned.
        constant_statistics: gradients take the batch statistics of frozen normalisations for constants; by default
            with ``memsave``, which needs it for most of what it saves.
        prior: see :class:`~vision.ecotta.method.Method`.
        memory: ``memsave`` keeps next to nothing of the frozen network, ``checkpoint`` computes each group anew in
            the backward pass and has exact gradients, ``eager`` is plain PyTorch.
        guard: see :class:`~vision.ecotta.method.Method`.
    """

    def __init__(
        self,
        model: nn.Module,
        metas: Sequence[nn.Module],
        groups: Sequence[Sequence[str]],
        in_row: bool = True,
        *,
        strength: float = 0.5,
        descent: Descent | None = None,
        margin: float = 0.4,
        reduction: Reduction = "kept",
        update: Update = "joint",
        constant_statistics: bool | None = None,
        prior: float = 0.0,
        memory: Memory = "memsave",
        guard: GuardOptions | None = None,
    ) -> None:
        super().__init__(freeze(model), prior, memory, guard)
        for name, value, known in (
            ("memory", memory, ("eager", "memsave", "checkpoint")),
            ("reduction", reduction, ("kept", "batch")),
            ("update", update, ("joint", "two_step")),
        ):
            if value not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}, got {value}")
        if not strength >= 0:
            raise InputError(f"strength must be at least 0, got {strength}")
        if memory == "checkpoint" and not in_row:
            raise InputError("memory 'checkpoint' needs blocks in a row; this network's groups have others between")
        self.metas = nn.ModuleList(metas)
        self.metas.eval()
        self.groups = [tuple(names) for names in groups]
        self.strength, self.margin, self.reduction, self.update = strength, margin, reduction, update
        self.descent = descent or Descent()
        self.constant_statistics = constant_statistics
        self.needs_calibration = False
        self.form: Form = "conv"
        self.kernel = 3

    # ------------------------------------------------------------------------------------------------- attaching
    @classmethod
    def attach(
        cls,
        model: nn.Module,
        groups: int | None = None,
        partition: Partition = "default",
        *,
        memory_budget_mb: float | None = None,
        batch_size: int = 64,
        form: Form | Literal["auto"] = "auto",
        kernel: int | None = None,
        input_size: tuple[int, int] | None = None,
        calibrate: bool = True,
        **options: Any,
    ) -> EcoTTA:
        """Puts meta networks beside a network's blocks, which are found by one traced forward pass.

        Args:
            model: any of timm's networks, or one whose main path is blocks in a row (else name them). It is frozen and
                stays as it is otherwise; it can be used on its own.
            groups: how many, K. By default as many as ``partition`` has, 4 where there are as many blocks, or with
                ``auto`` the most (up to 5) that the budget allows.
            partition: ``default`` for the paper's cuts; numbers of blocks for each group, shallow to deep; the blocks'
                names in lists, one a group; or ``auto`` for the cuts nearest to the default that fit into
                ``memory_budget_mb``.
            memory_budget_mb: megabytes (1e6 bytes) by the paper's count, for ``auto`` alone.
            batch_size: images of a step, for ``auto``.
            form: ``conv`` (the paper's), ``separable``, or ``residual``; ``auto`` takes ``conv`` where the network has
                batch normalisations.
            kernel: of the convolutions; by default 1 for networks of bottlenecks and 3 for others.
            input_size: (height, width) of the images; by default what timm says of the network, else 224.
            calibrate: without a warm-up on source data, make the meta networks nearly the identity on the first
                batch (ours, not the paper's). :meth:`warm_up_logits` turns it off.
            options: of :class:`EcoTTA`.

        Raises:
            InputError: blocks, partition or budget do not fit the network.
        """
        normalised = any(isinstance(module, nn.LayerNorm | nn.GroupNorm) for module in model.modules())
        if not batch_norms(model) and not normalised:
            raise InputError("attach: the network has neither batch nor layer normalisation, so nothing to adapt by")
        parameter = next(model.parameters())
        image = torch.zeros(1, 3, *(input_size or _size_of(model)), device=parameter.device, dtype=parameter.dtype)
        root = trace(model, image)
        chosen_form: Form = ("conv" if batch_norms(model) else "residual") if form == "auto" else form
        if chosen_form not in ("conv", "separable", "residual"):
            raise InputError(f"form must be auto, conv, separable or residual, got {form}")
        found, taken_kernel = cut(model, root, groups, partition, memory_budget_mb, batch_size, chosen_form, kernel)
        blocks = [block for group in found for block in group]
        last = channels_last(blocks)
        metas = []
        previous = blocks[0].before
        for group in found:
            metas.append(make_meta(chosen_form, previous, group[-1].after, taken_kernel, last))
            previous = group[-1].after
        for meta in metas:
            meta.to(device=parameter.device, dtype=parameter.dtype)
        names = [[block.name for block in group] for group in found]
        adapter = cls(model, metas, names, is_row(root, blocks), **options)
        adapter.form, adapter.kernel = chosen_form, taken_kernel
        adapter.needs_calibration = calibrate and any(isinstance(meta, MetaConv) for meta in metas)
        return adapter

    # -------------------------------------------------------------------------------------------- before deployment
    def warm_up_logits(self, x: Tensor, prior: float | None = None) -> Tensor:
        """Logits with gradients for the meta networks, for a supervised warm-up on source images (Sec. 3.2).

        The meta networks' own normalisations use the batch's statistics here, and their running ones follow.

        Args:
            x: images ``(B, 3, H, W)``.
            prior: statistics of the frozen normalisations in this pass; by default those that are used online. A
                network that was warmed up with one kind alone need not work with the other; alternate between 0 and
                infinity for one that takes either, and AdaptBN's mixtures.
        """
        self.needs_calibration = False
        self.forget_start()
        online = self.prior
        self.metas.train()
        try:
            self.prior = online if prior is None else prior
            return self._run(x)
        finally:
            self.prior = online
            self.metas.eval()

    def calibrate(self, x: Tensor) -> None:
        """Makes the meta networks nearly the identity on these images ``(B, 3, H, W)``, which need no labels.

        That is the state which :meth:`reset` goes back to.

        Raises:
            InputError: as :meth:`adapt`.
        """
        with self._lock, torch.inference_mode(False):
            self._calibrate(self._checked(x))

    @torch.no_grad()
    def _calibrate(self, x: Tensor) -> None:
        def calibrated(k: int, before: Tensor, after: Tensor) -> Tensor:
            meta = cast("MetaConv | MetaResidual", self.metas[k])
            meta.calibrate(after)
            return cast("Tensor", meta(before, after))

        with self._attached(calibrated), self.operations():
            self.model(x)
        self.needs_calibration = False
        self.forget_start()

    # --------------------------------------------------------------------------------------------------- adapting
    def step(self, x: Tensor) -> tuple[Tensor, Step]:
        """See :class:`EcoTTA`."""
        distances: list[Tensor] = []
        logits = self._run(x, distances)
        distance = float(torch.stack(distances).sum())
        if not math.isfinite(distance):
            # The signs of such differences are finite still, but tell nothing.
            self.metas.zero_grad()
        if self.update == "two_step":
            self.take_step()
            logits = self._run(x)
        rows = flat_logits(logits)
        entropies = entropy(rows)
        kept = confident(entropies.detach(), rows.shape[1], self.margin)
        loss = filtered_entropy(entropies, kept, self.reduction)
        if loss is not None and bool(torch.isfinite(loss)) and math.isfinite(distance):
            loss.backward()
        updated = self.take_step()
        total = (float(loss.detach()) if loss is not None else 0.0) + self.strength * distance
        mean = float(entropies.detach().mean())
        return logits, Step(total, mean, float(kept.float().mean()), distance, updated)

    def logits(self, x: Tensor) -> Tensor:
        """The adapted network's answer, float32; before the calibration the network's own, which comes near it."""
        return super().logits(x) if self.needs_calibration else self._run(x)

    def prepare(self, x: Tensor) -> None:
        """The first batch calibrates meta networks that had no warm-up."""
        if self.needs_calibration:
            self._calibrate(x)

    # ------------------------------------------------------------------------------------------------ the passes
    def _run(self, x: Tensor, distances: list[Tensor] | None = None) -> Tensor:
        """A pass through network and meta networks.

        Args:
            x: images.
            distances: is given each group's ``R_k``; their gradients are then added to the meta networks'.
        """

        def joined(k: int, before: Tensor, after: Tensor) -> Tensor:
            adapted: Tensor = self.metas[k](before, after)
            if distances is not None:
                distances.append(self._regularise(k, adapted, after))
            return adapted

        with self._attached(joined), self.operations():
            return logits_of(self.model(x))

    def _regularise(self, k: int, adapted: Tensor, after: Tensor) -> Tensor:
        """``R_k``, whose gradient goes to the k-th meta network alone, and at once (Sec. 3.2)."""
        difference = adapted.detach() - after.detach()
        distance = regularisation(difference)
        if self.strength and adapted.requires_grad:
            # Of an absolute value the derivative is the sign. The graph up to this group's inputs is walked again for
            # the entropy; what lies before is not walked now, for it leads to none of these parameters.
            sign = difference.sign_().mul_(self.strength / difference.numel())
            torch.autograd.backward(adapted, sign, inputs=list(self.metas[k].parameters()), retain_graph=True)
        return distance

    @contextmanager
    def _attached(self, joined: Joined) -> Iterator[None]:
        """The block in which the network's groups give what ``joined(k, before, after)`` makes of them."""
        modules = dict(self.model.named_modules())
        before: list[Tensor] = []

        with ExitStack() as stack:
            if self.memory == "checkpoint" and torch.is_grad_enabled():
                for k, names in enumerate(self.groups):
                    self._computed_anew(stack, [modules[name] for name in names], k, joined)
                yield
                return

            def enter(_module: nn.Module, args: tuple[Any, ...]) -> None:
                before[:] = [args[0]]

            def leave(k: int) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
                def hook(_module: nn.Module, _args: tuple[Any, ...], after: Tensor) -> Tensor:
                    before[:] = [joined(k, before[0], after)]
                    return before[0]

                return hook

            first = modules[self.groups[0][0]]
            stack.callback(first.register_forward_pre_hook(enter, prepend=True).remove)
            for k, names in enumerate(self.groups):
                stack.callback(modules[names[-1]].register_forward_hook(leave(k)).remove)
            yield

    def _computed_anew(self, stack: ExitStack, blocks: list[nn.Module], k: int, joined: Joined) -> None:
        """Lets a group's first block compute the whole group, and the others pass on what they are given."""
        forwards = [block.forward for block in blocks]
        prior, memory, constant = self.prior, self.memory, self.constant_statistics  # which the warm-up changes

        def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
            # What is computed anew in the backward pass is computed outside of this pass's operations.
            return nullcontext(), FrozenOps(prior, memory, constant)

        def group(x: Tensor) -> Tensor:
            for forward in forwards:
                x = forward(x)
            return x

        def first(x: Tensor) -> Tensor:
            kept = x.requires_grad
            return joined(k, x, checkpoint(group, x, use_reentrant=False, context_fn=contexts) if kept else group(x))

        for i, block in enumerate(blocks):
            stack.callback(_give_back, block, block.__dict__.get("forward"))
            block.forward = first if i == 0 else _passed_on

    # ----------------------------------------------------------------------------------------------------- state
    def extra_state(self) -> dict[str, Any]:
        """Whether there has been a calibration, and the statistics that it sets."""
        statistics = [buffer.clone() for buffer in self.metas.buffers()]
        return {"needs_calibration": self.needs_calibration, "statistics": statistics}

    def set_extra_state_(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`extra_state`."""
        self.needs_calibration = state["needs_calibration"]
        for buffer, value in zip(self.metas.buffers(), state["statistics"], strict=True):
            buffer.copy_(value)

    def get_extra_state(self) -> Tensor:
        """Whether the meta networks have yet to be calibrated: a part of the state dict."""
        return torch.tensor(self.needs_calibration)

    def set_extra_state(self, state: Tensor) -> None:
        """The inverse of :meth:`get_extra_state`."""
        self.needs_calibration = bool(state)

    def meta_state_dict(self) -> dict[str, Tensor]:
        """The meta networks' parameters and statistics alone; the rest of the state is the frozen network's."""
        return {f"metas.{key}": value for key, value in self.metas.state_dict().items()}


def _passed_on(x: Tensor) -> Tensor:
    return x


def _give_back(block: nn.Module, forward: Callable[..., Any] | None) -> None:
    """The function that somebody else may have set on the block itself, else its class's."""
    del block.forward
    if forward is not None:
        block.forward = forward


def _size_of(model: nn.Module) -> tuple[int, int]:
    config = getattr(model, "pretrained_cfg", None) or {}
    size = config.get("input_size", (3, 224, 224))
    return int(size[1]), int(size[2])
