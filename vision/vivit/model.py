"""The factorised encoder (arXiv 2103.15691, model 2) with an adapter and a spatial part that can be frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vision.clips import uniform_indices
from vision.errors import InputError
from vision.preprocessing import Preprocessing
from vision.vivit.adapters import Form, Layout, create_adapter
from vision.vivit.spatial import SpatialTransformer, create_vit
from vision.vivit.temporal import Pool, TemporalTransformer, set_layer_drop


@dataclass(frozen=True)
class AdapterOptions:
    """Which adapter, see :func:`vision.vivit.adapters.create_adapter`.

    Attributes:
        form: of the adapter.
        width: channels within; a quarter of the spatial transformer's by default.
        grid: cells a side of the ``grid`` forms.
        heads: of ``attention``.
        queries: of ``attention``.
    """

    form: Form = "grid"
    width: int | None = None
    grid: int = 4
    heads: int = 4
    queries: int = 1


@dataclass(frozen=True)
class TemporalOptions:
    """The temporal transformer.

    Attributes:
        layers: blocks; 0 takes the mean over time instead (the official ``spatial_only_baseline``).
        heads: of the attention; those of the spatial transformer by default.
        mlp_ratio: hidden over width.
        pos_std: of the positions at the start.
    """

    layers: int = 4
    heads: int | None = None
    mlp_ratio: float = 4.0
    pos_std: float = 0.02


@dataclass(frozen=True)
class ViViTConfig:
    """What a network is made of.

    Attributes:
        backbone: a vision transformer of timm's, the spatial part.
        num_classes: outputs, of all label sets together.
        frames: of a clip.
        image_size: (height, width) in pixels.
        tubelet: frames that a token spans.
        sampled_frames: take so many of a clip's frames, uniformly, one a token (the official ``temporal_sampling``).
        pool: how a tubelet's tokens become one vector, where the adapter's form does not say.
        temporal_pool: the same over time.
        adapter: between the two parts.
        temporal: the temporal transformer.
        pre_logits: width of a dense layer with tanh before the head, 0 for none.
        layer_drop: rate of the last block; both parts ramp up from 0.
        backbone_options: further arguments of timm's network.
    """

    backbone: str
    num_classes: int
    frames: int
    image_size: tuple[int, int] = (224, 224)
    tubelet: int = 1
    sampled_frames: int | None = None
    pool: Pool = "token"
    temporal_pool: Pool = "token"
    adapter: AdapterOptions = field(default_factory=AdapterOptions)
    temporal: TemporalOptions = field(default_factory=TemporalOptions)
    pre_logits: int = 0
    layer_drop: float = 0.0
    backbone_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tubelets(self) -> int:
        """Tubelets of a clip.

        Raises:
            InputError: a clip has not even one.
        """
        frames = min(self.frames, self.sampled_frames or self.frames)
        if frames < self.tubelet or self.tubelet < 1:
            raise InputError(f"a clip of {frames} frames is shorter than a tubelet of {self.tubelet}")
        return frames // self.tubelet

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ViViTConfig:
        """The inverse of :meth:`as_dict`.

        Raises:
            InputError: something is missing or unknown.
        """
        try:
            parts = {
                "adapter": AdapterOptions(**values["adapter"]),
                "temporal": TemporalOptions(**values["temporal"]),
                "image_size": tuple(values["image_size"]),
            }
            return cls(**{**values, **parts})
        except (LookupError, TypeError) as error:
            raise InputError(f"what it says of its network is unusable ({error!r})") from error


class FactorisedViViT(nn.Module):
    """Clips to logits: spatial transformer over each tubelet, adapter, temporal transformer, head.

    The pass has two steps. :meth:`summarise` runs the spatial transformer and keeps of its tokens what the adapter
    reads; where the spatial transformer is frozen it runs without a graph. :meth:`read` does the rest.

    Args:
        config: of the network.
        preprocessing: whose mean and standard deviation uint8 videos are normalised with.

    Raises:
        InputError: parts that do not go together.
    """

    temporal: TemporalTransformer | None

    def __init__(self, config: ViViTConfig, preprocessing: Preprocessing | None = None) -> None:
        super().__init__()
        preprocessing = preprocessing or Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        if config.num_classes < 1:
            raise InputError(f"num_classes must be at least 1, got {config.num_classes}")
        if not 0 <= config.layer_drop < 1:
            raise InputError(f"layer_drop must be in [0, 1), got {config.layer_drop}")
        if config.temporal.layers < 0:
            raise InputError(f"temporal.layers must be at least 0, got {config.temporal.layers}")
        self.config = config
        vit: Any = create_vit(config.backbone, config.image_size, pretrained=False, options=config.backbone_options)
        if config.layer_drop:
            set_layer_drop(vit.blocks, config.layer_drop)
        self.spatial = SpatialTransformer(vit, config.image_size, config.tubelet, preprocessing.mean, preprocessing.std)
        layout = Layout(self.spatial.dim, self.spatial.prefix, self.spatial.grid, self.spatial.has_class_token)
        options = config.adapter
        self.adapter = create_adapter(
            options.form, layout, config.pool, options.width, options.grid, options.heads, options.queries
        )
        time = config.temporal
        self.temporal = None
        if time.layers:
            self.temporal = TemporalTransformer(
                layout.dim,
                config.tubelets * self.adapter.vectors_per_tubelet,
                time.layers,
                time.heads or self._spatial_heads(vit),
                time.mlp_ratio,
                config.temporal_pool,
                config.layer_drop,
                time.pos_std,
            )
        width = config.pre_logits or layout.dim
        self.pre_logits = nn.Linear(layout.dim, width) if config.pre_logits else None
        self.head = nn.Linear(width, config.num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @staticmethod
    def _spatial_heads(vit: Any) -> int:
        heads = getattr(getattr(vit.blocks[0], "attn", None), "num_heads", None)
        if heads is None:
            raise InputError("temporal.heads must be given: the spatial transformer does not say how many it has")
        return int(heads)

    def freeze_spatial(self, trained_blocks: int = 0) -> None:
        """See :meth:`vision.vivit.spatial.SpatialTransformer.freeze`."""
        self.spatial.freeze(trained_blocks)

    def clip(self, video: Tensor) -> Tensor:
        """The frames of a clip that are looked at."""
        if self.config.sampled_frames is None:
            return video
        chosen = uniform_indices(video.shape[1], self.config.sampled_frames)
        return video[:, torch.from_numpy(chosen).to(video.device)]

    def summarise(self, video: Tensor) -> Tensor:
        """What the adapter needs of a clip.

        Args:
            video: ``(N, T, 3, H, W)``, uint8 in [0, 255], or float and normalised.

        Returns:
            ``(N, t, ...)``, see the adapter's ``summarise``; without a graph where the spatial part is frozen.
        """
        summaries: Tensor = self.spatial(self.clip(video), self.adapter.summarise)
        return summaries

    def read(self, summaries: Tensor) -> Tensor:
        """Summaries ``(N, t, ...)`` to logits ``(N, num_classes)``."""
        logits: Tensor = self.head(self.features(self.adapter(summaries)))
        return logits

    def features(self, vectors: Tensor) -> Tensor:
        """The vectors ``(N, t, D)`` of a clip to the one that the head reads."""
        pooled = self.temporal.pooled(self.temporal(vectors)) if self.temporal is not None else vectors.mean(dim=1)
        return torch.tanh(self.pre_logits(pooled)) if self.pre_logits is not None else pooled

    def forward(self, video: Tensor) -> Tensor:
        """``(N, T, 3, H, W)`` to logits ``(N, num_classes)``."""
        return self.read(self.summarise(video))

    def no_weight_decay(self) -> set[str]:
        """Parameters that go without weight decay although they are no vectors: positions and class tokens."""
        return {name for name, _ in self.named_parameters() if name.endswith(("pos_embed", "cls_token", "reg_token"))}
