"""EfficientViT M0-M5 (CVPR 2023): networks, official checkpoints, and forms for inference."""

from vision.efficientvit.checkpoint import load_official, to_official, to_timm
from vision.efficientvit.deploy import DeployedEfficientViT, compile_deployed, deploy, fuse
from vision.efficientvit.model import VARIANTS, EfficientViT, build, variant_config

__all__ = [
    "VARIANTS",
    "DeployedEfficientViT",
    "EfficientViT",
    "build",
    "compile_deployed",
    "deploy",
    "fuse",
    "load_official",
    "to_official",
    "to_timm",
    "variant_config",
]
