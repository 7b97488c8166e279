"""Lightning data modules, named after a kind of data and shared by the systems."""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no look-up of newer versions over the network

from datamodules.corruption_stream import CorruptionStream
from datamodules.domains import Domains
from datamodules.image_folder import ImageFolder
from datamodules.multitask_images import MultitaskImages
from datamodules.segmentation_stream import SegmentationStream
from datamodules.text_images import TextImages
from datamodules.video_folder import VideoFolder

__all__ = [
    "CorruptionStream",
    "Domains",
    "ImageFolder",
    "MultitaskImages",
    "SegmentationStream",
    "TextImages",
    "VideoFolder",
]
