"""EfficientViT M0-M5 (CVPR 2023): networks and official checkpoints."""

from vision.efficientvit.checkpoint import load_official, to_official, to_timm
from vision.efficientvit.model import VARIANTS, EfficientViT, build, variant_config

__all__ = ["VARIANTS", "EfficientViT", "build", "load_official", "to_official", "to_timm", "variant_config"]
