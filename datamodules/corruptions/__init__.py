"""The 15 common corruptions of ImageNet-C and CIFAR-C for images of any size, from a seed alone."""

from datamodules.corruptions.constants import CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES, Suite
from datamodules.corruptions.suite import corrupt, corrupt_batch, image_seed

__all__ = ["CORRUPTIONS", "EXTRA_CORRUPTIONS", "SEVERITIES", "Suite", "corrupt", "corrupt_batch", "image_seed"]
