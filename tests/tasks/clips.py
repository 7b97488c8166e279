"""Clips in memory, in the place of a data module of videos."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vision.labels import LabelSchema
from vision.preprocessing import Preprocessing

SIZE = (32, 32)
ONE_SET = {"motion": ["left", "right"]}
TWO_SETS = {"noun": ["cup", "pan", "jar"], "verb": ["take", "put", "cut", "wash"]}


def batch_of(video: Tensor, labels: Tensor, first: int = 0) -> dict[str, Any]:
    paths = [f"clip_{first + i}.mp4" for i in range(len(video))]
    return {"video": video, "labels": labels, "path": paths, "unreadable": []}


class Clips(pl.LightningDataModule):
    """Batches of the same clips in the same order, for every split.

    Args:
        video: uint8 ``(N, V, T, 3, H, W)``.
        labels: ``(N, sets)``.
        schema: label sets and classes.
        sizes: of the batches; by default eight.
    """

    def __init__(self, video: Tensor, labels: Tensor, schema: dict[str, Any], sizes: list[int] | int = 8) -> None:
        super().__init__()
        self.schema = LabelSchema.parse(schema)
        self.frames, self.stride = video.shape[2], 2
        self.preprocessing = Preprocessing(size=SIZE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        self.batches, first = [], 0
        for part, of in zip(video.split(sizes), labels.split(sizes), strict=True):
            self.batches.append(batch_of(part, of, first))
            first += len(part)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.batches, batch_size=None)  # type: ignore[arg-type]

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


def noise(count: int, views: int = 1, frames: int = 4, seed: int = 0) -> Tensor:
    """Random clips."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, views, frames, 3, *SIZE), dtype=torch.uint8, generator=generator)


def moving_squares(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A square that goes to the left or to the right; the same frames make up both, in the opposite order."""
    generator = torch.Generator().manual_seed(seed)
    video = torch.randint(0, 40, (count, 1, 4, 3, *SIZE), generator=generator)
    labels = torch.arange(count) % 2
    for clip, right in zip(video[:, 0], labels.tolist(), strict=True):
        row, start = (int(torch.randint(0, 13, (1,), generator=generator)) for _ in range(2))
        for time in range(4):
            column = start + 4 * (time if right else 3 - time)
            clip[time, :, row : row + 10, column : column + 8] += 200
    return video.to(torch.uint8), labels[:, None]


def random_labels(count: int, schema: dict[str, Any], seed: int = 0) -> Tensor:
    """``(count, sets)``."""
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randint(0, len(classes), (count,), generator=generator) for classes in schema.values()]
    return torch.stack(columns, dim=1)
