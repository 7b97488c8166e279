"""The spatial transformer: any of timm's vision transformers, over every tubelet on its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, Self

import timm
import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn

from vision.checkpoints import weights_hash
from vision.classifiers import create_timm, timm_name
from vision.errors import InputError
from vision.vivit.embedding import TubeletEmbed

Keep = Callable[[Tensor], Tensor]


def create_vit(
    backbone: str, image_size: tuple[int, int] | None, pretrained: bool, options: Mapping[str, Any]
) -> nn.Module:
    """A vision transformer of timm's without its head.

    Args:
        backbone: a name of timm's.
        image_size: (height, width) in pixels; None for the network's own.
        pretrained: with the weights of timm's hub.
        options: further arguments of the network (``{depth: 3, patch_size: 8}``).

    Raises:
        InputError: timm has no such network, it is no transformer whose output are tokens of patches, or it does not
            take these arguments.
    """
    name = timm_name(backbone)
    settings: dict[str, Any] = {"num_classes": 0, "pretrained": pretrained, **options}
    config = timm.get_pretrained_cfg(name)
    if image_size is not None and config is not None and config.fixed_input_size:
        settings["img_size"] = image_size
    try:
        vit = create_timm(name, **settings)
    except (AssertionError, TypeError) as error:
        raise InputError(f"'{backbone}' cannot be made with {settings} ({error})") from error
    for part in ("patch_embed", "blocks", "num_prefix_tokens"):
        if not hasattr(vit, part):
            raise InputError(f"'{backbone}' is not a plain vision transformer of timm's (it has no {part})")
    if not isinstance(vit.patch_embed, PatchEmbed):
        raise InputError(f"'{backbone}' does not begin with one convolution over patches")
    vit.reset_classifier(0, "")  # type: ignore[operator]  # without attention pooling, which tokens do not pass
    return vit


class SpatialTransformer(nn.Module):
    """Encodes every tubelet of a video on its own, all by the same weights (arXiv 2103.15691, sec. 3.3, model 2).

    Videos may be uint8: they are then normalised here, a few tubelets at a time.

    Args:
        vit: of timm's, see :func:`create_vit`.
        image_size: (height, width) of the frames in pixels.
        tubelet: frames that one token spans; 1 keeps the image transformer's own embedding.
        mean: of the RGB channels on the [0, 1] scale, for uint8 videos.
        std: the same.

    Raises:
        InputError: patches of the transformer do not fill frames of that size, or it takes another size only.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        vit: nn.Module,
        image_size: tuple[int, int],
        tubelet: int = 1,
        mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        std: tuple[float, float, float] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__()
        if tubelet < 1:
            raise InputError(f"tubelet must be at least 1, got {tubelet}")
        self.vit: Any = vit
        self.tubelet, self.image_size = tubelet, image_size
        self.grid = self._patches(image_size)
        if tubelet > 1:
            vit.patch_embed = TubeletEmbed(vit.patch_embed, tubelet)  # type: ignore[arg-type]
        self.dim: int = vit.num_features  # type: ignore[assignment]
        self.prefix: int = vit.num_prefix_tokens  # type: ignore[assignment]
        self.has_class_token = getattr(vit, "cls_token", None) is not None
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        self.frozen = False
        self.bfloat16_pass = False
        self.chunk = 0
        self._features: Callable[[Tensor], Tensor] = self._forward_features

    def _patches(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns."""
        (height, width), (high, wide) = image_size, self.vit.patch_embed.patch_size
        if height % high or width % wide:
            raise InputError(
                f"image_size must be a multiple of the {high}x{wide} pixels of a patch, got {height}x{width}"
            )
        grid, own = (height // high, width // wide), tuple(self.vit.patch_embed.grid_size)
        if grid != own and not getattr(self.vit, "dynamic_img_size", False):
            raise InputError(
                f"image_size {height}x{width} is {grid[0]}x{grid[1]} patches, this transformer takes {own[0]}x{own[1]}"
            )
        return grid

    # ------------------------------------------------------------------------------------------------- freezing
    def freeze(self, trained_blocks: int = 0) -> None:
        """Keeps the weights as they are, but for the last blocks and, with them, the final norm.

        Raises:
            InputError: there are not that many blocks.
        """
        blocks = list(self.vit.blocks)
        if not 0 <= trained_blocks <= len(blocks):
            raise InputError(f"trained_blocks must be in 0 ... {len(blocks)}, got {trained_blocks}")
        self.requires_grad_(False)
        self.frozen = True
        self._trained: list[nn.Module] = [*blocks[len(blocks) - trained_blocks :]] if trained_blocks else []
        if trained_blocks:
            self._trained.append(self.final_norm)
        for module in self._trained:
            module.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As in PyTorch, but what is frozen stays in evaluation mode: no dropout, no layer drop."""
        super().train(mode and not self.frozen)
        if self.frozen:
            self.training = mode
            for module in self._trained:
                module.train(mode)
        return self

    @property
    def without_graph(self) -> bool:
        """Whether nothing in it is trained, so that it runs without keeping anything for a backward pass."""
        return not any(parameter.requires_grad for parameter in self.parameters())

    def trained_before_frozen(self) -> list[str]:
        """Trained parameters with a frozen block behind them, for whose sake that block's whole graph is kept."""
        names = [name for name, _ in self.named_parameters()]
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        blocks = [i for i, block in enumerate(self.vit.blocks) if not any(p.requires_grad for p in block.parameters())]
        if not blocks:
            return []
        behind = max(blocks)
        first = ("vit.patch_embed.", "vit.pos_embed", "vit.cls_token", "vit.reg_token", "vit.norm_pre.")
        before = first + tuple(f"vit.blocks.{i}." for i in range(behind))
        return [name for name in names if name in trained and name.startswith(before)]

    def configure(self, bfloat16: bool = False, chunk: int = 0, compiled: bool = False) -> None:
        """How a pass is carried out.

        Args:
            bfloat16: in bfloat16, where the weights are not trained; the weights themselves stay as they are.
            chunk: tubelets at a time without a graph, 0 for all; bounds the memory of the pass.
            compiled: by ``torch.compile``.
        """
        self.bfloat16_pass, self.chunk = bfloat16, chunk
        self._features = torch.compile(self._forward_features) if compiled else self._forward_features

    # ------------------------------------------------------------------------------------------------- the pass
    @property
    def final_norm(self) -> nn.Module:
        """What the last block's tokens pass: networks that pool by the mean have it under another name."""
        norm: nn.Module = self.vit.norm
        other = getattr(self.vit, "fc_norm", None)
        return other if isinstance(norm, nn.Identity) and other is not None else norm

    def tubelets(self, video: Tensor) -> Tensor:
        """``(N, T, 3, H, W)`` to ``(N, T // tubelet, 3, [tubelet,] H, W)``; a rest of frames is left out."""
        length = video.shape[1] // self.tubelet
        if length < 1:
            raise InputError(f"a clip of {video.shape[1]} frames is shorter than a tubelet of {self.tubelet}")
        if self.tubelet == 1:
            return video
        cut: Tensor = video[:, : length * self.tubelet].unflatten(1, (length, self.tubelet))
        return cut.transpose(2, 3)

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 pixels as the transformer takes them; others are taken as they are. ``(N, 3, [frames,] H, W)``."""
        if pixels.dtype != torch.uint8:
            return pixels
        mean, std = (value.unsqueeze(1) if pixels.ndim == 5 else value for value in (self.mean, self.std))
        return (pixels.to(mean.dtype) / 255 - mean) / std

    def embed(self, tubelets: Tensor) -> Tensor:
        """``(N, 3, [frames,] H, W)`` to the tokens before positions and class token, ``(N, patches, D)``."""
        tokens: Tensor = self.vit.patch_embed(self.normalise(tubelets))
        return tokens.flatten(1, -2)

    def _forward_features(self, pixels: Tensor) -> Tensor:
        tokens: Tensor = self.vit.forward_features(self.normalise(pixels))
        return tokens if self.final_norm is self.vit.norm else self.final_norm(tokens)

    def forward(self, video: Tensor, keep: Keep | None = None) -> Tensor:
        """Encodes each tubelet.

        Args:
            video: ``(N, T, 3, H, W)``, uint8, or float and normalised.
            keep: what is kept of the tokens ``(M, tokens, D)`` of some tubelets, ``(M, ...)``; by default all.

        Returns:
            ``(N, t, prefix + patches, D)`` after the final norm, ``t = T // tubelet``; or what ``keep`` made of them.

        Raises:
            InputError: the clip is shorter than a tubelet, or of another size.
        """
        found, size = tuple(video.shape[-2:]), self.image_size
        if found != size:
            raise InputError(f"frames of {found[0]}x{found[1]} pixels, the network takes {size[0]}x{size[1]}")
        tubelets = self.tubelets(video)
        shape, flat = tubelets.shape[:2], tubelets.flatten(0, 1)
        pieces = [self._piece(part, keep) for part in self._chunks(flat)]
        tokens = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        clips: Tensor = tokens.unflatten(0, tuple(shape))
        return clips

    def _chunks(self, flat: Tensor) -> Iterator[Tensor]:
        if not self.chunk or (torch.is_grad_enabled() and not self.without_graph):
            yield flat
            return
        yield from flat.split(self.chunk)

    def _piece(self, pixels: Tensor, keep: Keep | None) -> Tensor:
        def run() -> Tensor:
            tokens = self._features(pixels)
            if tokens.shape[1] != self.prefix + self.grid[0] * self.grid[1]:
                raise InputError(
                    f"the spatial transformer gives {tokens.shape[1]} tokens, where {self.prefix} and "
                    f"{self.grid[0]}x{self.grid[1]} patches were expected"
                )
            return keep(tokens) if keep is not None else tokens

        if not self.without_graph:
            return run()
        # Where a frozen pass is run by a training, its result has to be an ordinary tensor, so no inference mode.
        own = torch.autocast(pixels.device.type, torch.bfloat16) if self.bfloat16_pass else nullcontext()
        with torch.no_grad(), own:
            return run().to(self.mean.dtype)

    def weights_hash(self) -> str:
        """What features and checkpoints without frozen weights depend on."""
        return weights_hash(self)
