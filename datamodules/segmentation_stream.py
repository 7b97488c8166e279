"""Street scenes that are labelled pixel by pixel, and streams of them in bad weather."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import albumentations as A
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2
from numpy.typing import NDArray
from torch import Tensor

from datamodules.cityscapes import CLASS_NAMES, Scenes, list_corrupted, list_scenes, read_labels
from datamodules.decoding import read_image
from datamodules.files import FileDataset, Sample, stack
from datamodules.stream import Corruptor, Pictures, Stream, stored_split
from datamodules.stream_order import Stretch
from datamodules.transforms import INTERPOLATION, eval_transform, seed_steps
from vision.batches import ImageBatch
from vision.preprocessing import Preprocessing

WEATHER = ("brightness", "fog", "frost", "snow")


def read_scene(path: str, labels: str, max_pixels: int) -> dict[str, NDArray[np.uint8]]:
    """``image`` ``(H, W, 3)`` and ``mask`` ``(H, W)``, under the names that albumentations has for them.

    Raises:
        UnreadableFileError: of either file.
    """
    image = read_image(path, max_pixels)
    return {"image": image, "mask": read_labels(labels, image.shape[:2])}


def join(scene: dict[str, Tensor]) -> Tensor:
    """Picture and labels as one tensor, float32 ``(4, H, W)``, since a sample of a batch is one."""
    return torch.cat([scene["image"], scene["mask"][None].float()])


class SceneCollate:
    """Joined pictures and labels to an :class:`~vision.batches.ImageBatch` whose targets are int64 ``(B, H, W)``.

    Args:
        size: (height, width), for the shape of a batch in which nothing could be read.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __call__(self, samples: Sequence[Sample]) -> ImageBatch:
        """The readable samples as a batch, with what could not be read."""
        read, joined = stack(samples, (4, *self.size))
        return {
            "image": joined[:, :3].contiguous(),
            "target": joined[:, 3].long(),
            "path": [sample.path for sample in read],
            "unreadable": [entry for sample in samples for entry in sample.unreadable],
        }


class SceneDataset(FileDataset):
    """Decodes and transforms pictures and their labels.

    Args:
        scenes: the files.
        transform: of picture and labels alike.
        max_pixels: larger pictures count as unreadable.
        substitute: take the next readable picture for an unreadable one (training), or leave it out (evaluation).
    """

    listing: Scenes

    def __init__(self, scenes: Scenes, transform: A.Compose, max_pixels: int, substitute: bool) -> None:
        super().__init__(scenes, substitute)
        self.transform, self.max_pixels = transform, max_pixels

    def load(self, index: int, seed: int) -> Tensor:
        """Picture and labels, joined."""
        scene = read_scene(self.listing.paths[index], self.listing.targets[index], self.max_pixels)
        seed_steps(self.transform, seed)
        return join(self.transform(**scene))


class ScenePictures(Pictures):
    """Scenes that are corrupted in memory, or were before.

    Args:
        scenes: the clean ones.
        preprocessing: of the network.
        max_pixels: larger pictures count as unreadable.
        corruptor: corrupts clean ones.
        stored: by corruption and severity, scenes that are corrupted already.
    """

    def __init__(
        self,
        scenes: Scenes,
        preprocessing: Preprocessing,
        max_pixels: int,
        corruptor: Corruptor,
        stored: dict[Stretch, Scenes],
    ) -> None:
        super().__init__(scenes.targets, preprocessing)
        self.scenes, self.max_pixels, self.corruptor, self.stored = scenes, max_pixels, corruptor, stored

    def path(self, index: int, corruption: str, severity: int) -> str:
        """The file of a picture."""
        return self.stored.get((corruption, severity), self.scenes).paths[index]

    def load(self, index: int, corruption: str, severity: int) -> Tensor:
        """Picture and labels, joined; only the picture is corrupted."""
        path = self.path(index, corruption, severity)
        scene = self.to_size(**read_scene(path, self.scenes.targets[index], self.max_pixels))
        if (corruption, severity) not in self.stored:
            scene["image"] = self.corruptor(scene["image"], index, corruption, severity)
        return join(self.to_tensor(**scene))


class SegmentationStream(Stream):
    """Street scenes that are labelled pixel by pixel (Cityscapes layout), and a stream of them in bad weather.

    Below ``root`` are ``leftImg8bit/{train,val}/<city>/*_leftImg8bit.png``, and below
    ``gtFine/{train,val}/<city>/*_gtFine_labelTrainIds.png`` the labels: 19 classes, 255 where there is none. Validation
    and the stream have the pictures of ``val``, whole, resized to the network's size whatever their shape; labels are
    resized with them, to the nearest pixel. Batches are as :class:`~datamodules.image_folder.ImageFolder` makes them,
    except that ``target`` is int64 ``(B, H, W)``. The defaults are the stream of EcoTTA (section 5).

    Args:
        root: folder of the data.
        corrupted: folder with ``<corruption>/<severity>/<city>/*_leftImg8bit.png``, of the names and sizes of the clean
            pictures, which are resized like those. By default the pictures of ``root`` are corrupted as they are
            loaded, after they are resized.
        corruptions: by name, in the order of the stream. By default brightness, fog, frost and snow.
        order: ``continual`` shows one corruption after the other; ``gradual`` lets the severity of each rise from 1 to
            ``severity`` and fall back to 1; with ``mixed``, each picture has one corruption, drawn by ``seed``.
        rounds: how often the whole sequence is shown.
        batch_size: pictures a step and process.
        scale: range of the share of the area that a training crop keeps; it has the shape of the network's input.
        horizontal_flip: probability.
        kwargs: see :class:`~datamodules.stream.Stream`.

    Raises:
        InputError: at construction, ``setup`` or the request for the stream, for whatever a user can put right.
    """

    kind = "pictures"
    splits: dict[str, Scenes]

    def __init__(
        self,
        root: str,
        corrupted: str | None = None,
        corruptions: list[str] | None = None,
        order: Literal["continual", "gradual", "mixed"] = "continual",
        rounds: int = 10,
        batch_size: int = 2,
        scale: tuple[float, float] = (0.25, 1.0),
        horizontal_flip: float = 0.5,
        **kwargs: Any,
    ) -> None:
        # The whole picture is judged, so evaluation crops nothing.
        super().__init__(
            root,
            corrupted=corrupted,
            corruptions=list(WEATHER) if corruptions is None else corruptions,
            order=order,
            rounds=rounds,
            batch_size=batch_size,
            crop_pct=1.0,
            crop_mode="squash",
            **kwargs,
        )
        self.scale, self.horizontal_flip = scale, horizontal_flip

    @property
    def class_names(self) -> list[str]:
        """The 19 classes, in the order of the labels."""
        return list(CLASS_NAMES)

    def read_splits(self, root: Path) -> dict[str, Scenes]:
        """Lists the pictures of both splits, and those that are corrupted already."""
        val = list_scenes(root, "val")
        splits = {"train": list_scenes(root, "train"), "val": val, "test": val}
        if self.corrupted is not None:
            for name, severity in self.shown():
                folder = Path(self.corrupted) / name / str(severity)
                splits[stored_split(name, severity)] = list_corrupted(folder, val)
        return splits

    def dataset(self, split: str) -> SceneDataset:
        """Pictures and labels, cropped and flipped in training."""
        training = split == "train"
        transform = self._train_transform() if training else eval_transform(self.preprocessing)
        return SceneDataset(self.splits[split], transform, self.max_pixels, substitute=training)

    def _train_transform(self) -> A.Compose:
        height, width = self.preprocessing.size
        shape = width / height
        return A.Compose(
            [
                A.RandomResizedCrop(
                    (height, width),
                    scale=self.scale,
                    ratio=(shape, shape),
                    interpolation=INTERPOLATION[self.preprocessing.interpolation],
                    area_for_downscale="image",
                ),
                A.HorizontalFlip(p=self.horizontal_flip),
                A.Normalize(self.preprocessing.mean, self.preprocessing.std),
                ToTensorV2(),
            ]
        )

    def collate(self, split: str) -> SceneCollate:
        """Batches with the labels of all pixels."""
        return SceneCollate(self.preprocessing.size)

    def pictures(self) -> tuple[ScenePictures, ScenePictures]:
        """Of the stream, and of the clean probes."""
        stored = {}
        if self.corrupted is not None:
            stored = {stretch: self.splits[stored_split(*stretch)] for stretch in self.shown()}
        pictures = ScenePictures(self.splits["test"], self.preprocessing, self.max_pixels, self.corruptor, stored)
        return pictures, pictures
