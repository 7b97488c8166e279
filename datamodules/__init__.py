"""Lightning data modules, named after a kind of data and shared by the systems."""

from datamodules.image_folder import ImageFolder

__all__ = ["ImageFolder"]
