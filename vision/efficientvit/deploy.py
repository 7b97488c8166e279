"""EfficientViT for inference: batch normalisation folded, and a form whose layout suits CPUs and compilers.

Two forms give the outputs of the network they are made from:

- :func:`fuse` keeps the class and the NCHW layout: what exporters (ONNX) and convolution libraries like best;
- :func:`deploy` works on (tokens, channels): 1x1 convolutions are plain matrix products, windows are cut by
  one copy, and a compiler turns each depthwise convolution into one loop over contiguous channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision.efficientvit.attention import CascadedGroupAttention, LocalWindowAttention
from vision.efficientvit.layers import FFN, BNLinear, ConvBN, PatchMerging, Residual
from vision.efficientvit.model import EfficientViT, EfficientViTBlock, check_images, stage_resolutions
from vision.errors import InputError


def fuse(model: EfficientViT) -> EfficientViT:
    """A copy in evaluation mode without batch normalisation; the source is left as it is.

    Every normalisation is folded into its convolution or linear layer, the scale of the attention into the
    depthwise convolution of the queries, and the mean of two distillation heads into one linear layer. The products
    are formed in float64. Not to be trained: the statistics are gone.

    Raises:
        InputError: ``model`` has been fused before, or is no EfficientViT.
    """
    if not isinstance(model, EfficientViT):
        raise InputError(f"fuse takes an EfficientViT, got {type(model).__name__}")
    if not any(isinstance(module, ConvBN) for module in model.modules()):
        raise InputError("this EfficientViT has no batch normalisation left: it has been fused before")
    fused = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
    for module in list(fused.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, (ConvBN, BNLinear)):
                setattr(module, name, child.fuse().requires_grad_(requires_grad=False))
    for attention in fused.modules():
        if isinstance(attention, CascadedGroupAttention):
            for parameter in attention.dws.parameters():
                parameter.mul_(attention.scale)
            attention.scale = 1.0
    if isinstance(fused.head_dist, nn.Linear) and isinstance(fused.head, nn.Linear):
        for mean, other in zip(fused.head.parameters(), fused.head_dist.parameters(), strict=True):
            mean.copy_((mean.double() + other.double()) / 2)
    fused.head_dist, fused.distillation = None, False
    return fused


class _Pointwise(nn.Module):
    """A 1x1 convolution on ``(..., channels)``."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight = nn.Parameter(conv.weight.flatten(1), requires_grad=False)
        self.bias = nn.Parameter(cast("Tensor", conv.bias), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class _Depthwise(nn.Module):
    """A depthwise convolution on ``(B, H, W, channels)``, zero-padded by half the kernel."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.kernel, self.stride = conv.kernel_size[0], conv.stride[0]
        # (k, k, channels): each tap is a contiguous row, which a compiled loop reads with whole vectors.
        self.weight = nn.Parameter(conv.weight[:, 0].permute(1, 2, 0).contiguous(), requires_grad=False)
        self.bias = nn.Parameter(cast("Tensor", conv.bias), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, channels)`` to ``(B, ceil(H / stride), ceil(W / stride), channels)``."""
        if x.device.type == "cpu" and torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting():
            return self._sum_of_taps(x)
        weight = self.weight.permute(2, 0, 1).unsqueeze(1)
        padding, groups = self.kernel // 2, x.shape[-1]
        out = F.conv2d(x.permute(0, 3, 1, 2), weight, self.bias, self.stride, padding, groups=groups)
        return out.permute(0, 2, 3, 1)

    def _sum_of_taps(self, x: Tensor) -> Tensor:
        # Written out for the compiler, which makes one loop of it and what stands around it, and calls no library.
        side, (height, width) = self.kernel // 2, x.shape[1:3]
        padded = F.pad(x, (0, 0, side, side, side, side))
        rows, columns = (height - 1) // self.stride + 1, (width - 1) // self.stride + 1
        out: Tensor = self.bias
        for dy in range(self.kernel):
            for dx in range(self.kernel):
                bottom, right = dy + (rows - 1) * self.stride + 1, dx + (columns - 1) * self.stride + 1
                out = out + padded[:, dy : bottom : self.stride, dx : right : self.stride] * self.weight[dy, dx]
        return out


class _FFN(nn.Module):
    def __init__(self, ffn: FFN) -> None:
        super().__init__()
        self.pw1, self.pw2 = _pointwise(ffn.pw1), _pointwise(ffn.pw2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.pw2(F.relu(self.pw1(x)))
        return out


class _Mixing(nn.Module):
    """Depthwise convolution and FFN, both residual."""

    def __init__(self, depthwise: Residual, ffn: Residual) -> None:
        super().__init__()
        self.dw, self.ffn = _depthwise(depthwise.m), _FFN(cast("FFN", ffn.m))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.ffn(x + self.dw(x))
        return out


class _PatchMerging(nn.Module):
    def __init__(self, merging: PatchMerging) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (
            _pointwise(merging.conv1),
            _depthwise(merging.conv2),
            _pointwise(merging.conv3),
        )
        self.squeeze, self.excite = _pointwise(merging.se.fc1), _pointwise(merging.se.fc2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        gate = self.excite(F.relu(self.squeeze(x.mean(dim=(1, 2))))).sigmoid()
        out: Tensor = self.conv3(x * gate[:, None, None])
        return out


class _Attention(nn.Module):
    """Cascaded group attention within windows, on ``(B, H, W, channels)``, residual."""

    def __init__(self, attention: LocalWindowAttention, resolution: tuple[int, int]) -> None:
        super().__init__()
        attn = attention.attn
        self.source = copy.deepcopy(attn)  # its table gives the bias of windows that none was made for
        del self.source.qkvs, self.source.dws, self.source.proj
        self.window, self.key_dim, self.value_dim = attention.window, attn.key_dim, attn.value_dim
        self.qkvs = nn.ModuleList(_pointwise(qkv) for qkv in attn.qkvs)
        self.dws = nn.ModuleList(_depthwise(dw) for dw in attn.dws)
        self.proj = _pointwise(attn.proj[1])
        self.grid = (min(self.window, resolution[0]), min(self.window, resolution[1]))
        for i, bias in enumerate(attn.bias(*self.grid)):
            self.register_buffer(f"bias{i}", bias.clone())

    def _biases(self, height: int, width: int) -> list[Tensor]:
        if (height, width) == self.grid:
            return [cast("Tensor", getattr(self, f"bias{i}")) for i in range(len(self.qkvs))]
        return list(self.source.bias(height, width))

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, dim = x.shape
        wh, ww = min(self.window, height), min(self.window, width)
        rows, columns = -(-height // wh), -(-width // ww)
        cut = rows * columns > 1
        tokens = x
        if cut:
            tokens = F.pad(x, (0, 0, 0, columns * ww - width, 0, rows * wh - height))
            tokens = tokens.view(-1, rows, wh, columns, ww, dim).permute(0, 1, 3, 2, 4, 5)
        slices = tokens.reshape(-1, wh * ww, dim).chunk(len(self.qkvs), dim=-1)
        feature, outputs = slices[0], []
        sizes = [self.key_dim, self.key_dim, self.value_dim]
        for i, (qkv, dw, bias) in enumerate(zip(self.qkvs, self.dws, self._biases(wh, ww), strict=True)):
            if i:
                feature = feature + slices[i]
            q, k, v = qkv(feature).split(sizes, dim=-1)
            q = dw(q.reshape(-1, wh, ww, self.key_dim)).flatten(1, 2)
            feature = (q @ k.transpose(1, 2) + bias).softmax(dim=-1) @ v
            outputs.append(feature)
        mixed = F.relu(torch.cat(outputs, dim=-1))
        if cut:
            mixed = mixed.view(-1, rows, columns, wh, ww, dim).permute(0, 1, 3, 2, 4, 5)
            mixed = mixed.reshape(-1, rows * wh, columns * ww, dim)[:, :height, :width]
        out: Tensor = x + self.proj(mixed.view(x.shape) if not cut else mixed)
        return out


def _pointwise(module: nn.Module) -> _Pointwise:
    return _Pointwise(cast("nn.Conv2d", module))


def _depthwise(module: nn.Module) -> _Depthwise:
    return _Depthwise(cast("nn.Conv2d", module))


class DeployedEfficientViT(nn.Module):
    """What :func:`deploy` gives: ``(B, in_chans, H, W) -> (B, num_classes)`` logits, for inference only.

    Attributes:
        img_size: (height, width) that the biases are made for; other sizes work, and compute theirs at each call.
    """

    def __init__(self, fused: EfficientViT) -> None:
        super().__init__()
        self.img_size, self.in_chans, self.num_classes = fused.img_size, fused.in_chans, fused.num_classes
        self.preprocessing = fused.preprocessing
        self.stem = fused.patch_embed.to(memory_format=torch.channels_last)
        layers: list[nn.Module] = []
        stages = (fused.blocks1, fused.blocks2, fused.blocks3)
        for stage, resolution in zip(stages, stage_resolutions(fused.img_size), strict=True):
            for block in stage:
                if isinstance(block, EfficientViTBlock):
                    layers += [
                        _Mixing(block.dw0, block.ffn0),
                        _Attention(cast("LocalWindowAttention", block.mixer.m), resolution),
                        _Mixing(block.dw1, block.ffn1),
                    ]
                elif isinstance(block, PatchMerging):
                    layers.append(_PatchMerging(block))
                else:
                    depthwise, ffn = cast("nn.Sequential", block)
                    layers.append(_Mixing(cast("Residual", depthwise), cast("Residual", ffn)))
        self.layers = nn.Sequential(*layers)
        self.head = fused.head
        self.requires_grad_(requires_grad=False).eval()

    def forward(self, x: Tensor) -> Tensor:
        """Logits, or pooled features ``(B, embed_dim[2])`` of a network without a head.

        Raises:
            InputError: the input is not a batch of images of ``in_chans`` channels and at least 16 pixels a side.
        """
        check_images(x, self.in_chans)
        x = self.stem(x).permute(0, 2, 3, 1)
        out: Tensor = self.head(self.layers(x).mean(dim=(1, 2)))
        return out


def deploy(model: EfficientViT) -> DeployedEfficientViT:
    """The network for inference, equal to ``model.eval()`` within rounding; the source is left as it is.

    As it is it needs no compiler; :func:`compile_deployed` makes the fastest PyTorch form of it. For ONNX Runtime,
    :func:`fuse` gives the better graph.

    Raises:
        InputError: ``model`` has been fused before, or is no EfficientViT.
    """
    return DeployedEfficientViT(fuse(model))


def compile_deployed(model: DeployedEfficientViT, images: Tensor) -> Callable[[Tensor], Tensor]:
    """The fastest PyTorch form: compiled at once for the shape, type and device of ``images``.

    On a CPU this needs a C++ compiler; on a GPU the calls are recorded as CUDA graphs. Other shapes are compiled when
    they come.

    Args:
        model: a deployed network, on the device of ``images``.
        images: ``(B, in_chans, H, W)`` like those to come.

    Returns:
        ``(B, in_chans, H, W) -> (B, num_classes)``, without gradients.
    """
    # On CPUs, hundreds of small calls: made from C++ they cost less. Freezing the weights costs speed here: it
    # takes MKL's packed products, which are slower at these sizes.
    cpu = images.device.type == "cpu"
    compiled = torch.compile(model, dynamic=False, options={"cpp_wrapper" if cpu else "triton.cudagraphs": True})

    @torch.no_grad()
    def run(x: Tensor) -> Tensor:
        out: Tensor = compiled(x)
        return out if cpu else out.clone()  # the next call of a CUDA graph writes over its outputs

    run(images)
    return run
