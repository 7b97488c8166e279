"""ViViT's factorised encoder with a frozen spatial transformer (arXiv 2103.15691, 2306.04822)."""

from vision.vivit.model import AdapterOptions, FactorisedViViT, TemporalOptions, ViViTConfig

__all__ = ["AdapterOptions", "FactorisedViViT", "TemporalOptions", "ViViTConfig"]
