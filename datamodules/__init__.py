"""Lightning data modules, named after a kind of data and shared by the systems."""

from datamodules.image_folder import ImageFolder
from datamodules.multitask_images import MultitaskImages

__all__ = ["ImageFolder", "MultitaskImages"]
