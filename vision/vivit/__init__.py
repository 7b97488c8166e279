"""ViViT's factorised encoder with a frozen spatial transformer (arXiv 2103.15691, 2306.04822)."""

from vision.vivit.checkpoint import load_network
from vision.vivit.model import AdapterOptions, FactorisedViViT, TemporalOptions, ViViTConfig
from vision.vivit.official import load_official
from vision.vivit.streaming import StreamingRecogniser

__all__ = [
    "AdapterOptions",
    "FactorisedViViT",
    "StreamingRecogniser",
    "TemporalOptions",
    "ViViTConfig",
    "load_network",
    "load_official",
]
