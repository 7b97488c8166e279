"""What data modules of streams share: the order of the stream, its batches, and that it is never divided."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, get_args

import albumentations as A
import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.corruptions import CORRUPTIONS, Suite, corrupt, image_seed
from datamodules.corruptions.constants import check_corruption, check_severity
from datamodules.decoding import UnreadableFileError
from datamodules.files import Files, Sample
from datamodules.stream_order import CLEAN, MIXED, Items, Leg, Order, Plan, Serving, Stretch, even_mix, stretches
from datamodules.transforms import eval_transform
from vision.batches import ImageBatch, StreamBatch
from vision.errors import InputError
from vision.preprocessing import Preprocessing

# Which of the seed's random choices: each has numbers of its own, so that one option does not change another's.
SHUFFLE, PROBES, MIX, RUNS, VALIDATION = range(5)

Served = tuple[Serving, list[Sample]]


class Pictures(ABC):
    """The pictures of a stream in all their corruptions; a picture has the same number in each.

    Args:
        targets: one a picture.
        preprocessing: of the network.
    """

    def __init__(self, targets: Sequence[Any], preprocessing: Preprocessing) -> None:
        self.targets, self.size = targets, preprocessing.size
        # In two, since what a camera or the weather does to a picture comes between.
        *resize, normalize, to_tensor = eval_transform(preprocessing).transforms
        self.to_size, self.to_tensor = A.Compose(resize), A.Compose([normalize, to_tensor])

    @abstractmethod
    def path(self, index: int, corruption: str, severity: int) -> str:
        """The file of a picture, or file and row."""

    @abstractmethod
    def load(self, index: int, corruption: str, severity: int) -> Tensor:
        """A picture of the network's size, corrupted and normalised, float32 ``(C, H, W)``.

        Raises:
            UnreadableFileError: it cannot be decoded.
        """

    def sample(self, index: int, corruption: str, severity: int) -> Sample:
        """The same with path and target, or why it cannot be read."""
        sample = Sample(self.path(index, corruption, severity), self.targets[index], 0)
        try:
            sample.media = self.load(index, corruption, severity)
        except UnreadableFileError as error:
            sample.unreadable = [(sample.path, error.reason)]
        return sample


class Corruptor:
    """Corrupts pictures in memory; a function of picture and seed alone.

    Args:
        suite: whose strengths of the corruptions.
        seed: of all that is random in them.
        frost_folder: photographs of frost, in the place of the drawn ones.
    """

    def __init__(self, suite: Suite, seed: int, frost_folder: str | None) -> None:
        self.suite, self.seed = suite, seed
        self.frost_folder = Path(frost_folder) if frost_folder is not None else None

    def __call__(self, pixels: NDArray[np.uint8], index: int, corruption: str, severity: int) -> NDArray[np.uint8]:
        """Picture number ``index``, uint8 ``(H, W, 3)``, corrupted; ``clean`` leaves it as it is."""
        if corruption == CLEAN:
            return pixels
        seed = image_seed(self.seed, corruption, index)
        return corrupt(pixels, corruption, severity, seed, self.suite, self.frost_folder)


class StreamDataset(Dataset[Served]):
    """The pictures of whole batches.

    Args:
        corrupted: of which the stream is.
        clean: of which the probes are.
    """

    def __init__(self, corrupted: Pictures, clean: Pictures) -> None:
        self.corrupted, self.clean = corrupted, clean

    def __getitem__(self, serving: Serving) -> Served:
        pictures = self.clean if serving.probe else self.corrupted
        shown = zip(serving.items, serving.corruptions, strict=True)
        return serving, [pictures.sample(index, corruption, serving.severity) for index, corruption in shown]


class StreamCollate:
    """What a :class:`StreamDataset` gives to a :class:`~vision.batches.StreamBatch`.

    Args:
        collate: makes a batch of the samples, as in an evaluation.
    """

    def __init__(self, collate: Callable[[Sequence[Sample]], ImageBatch]) -> None:
        self.collate = collate

    def __call__(self, served: Served) -> StreamBatch:
        """The readable samples as a batch, with what could not be read."""
        serving, samples = served
        corruptions = zip(serving.corruptions, samples, strict=True)
        return {
            **self.collate(samples),
            "domain": [corruption for corruption, sample in corruptions if sample.media is not None],
            "position": serving.position,
            "round": serving.round,
            "probe": serving.probe,
        }


def stored_split(corruption: str, severity: int) -> str:
    """The key of corrupted pictures among the splits of a data module, for which they are listed like others."""
    return f"{corruption}/{severity}"


class Stream(Files, ABC):
    """Files with a stream of corrupted test pictures in the place of the test loader.

    The stream shows one stretch after the other, a corruption at a severity, in a fixed order. A picture is resized to
    the network's size as in evaluation, corrupted, and normalised; it looks the same in every round, whatever the size
    of the batches and the number of workers.

    Args:
        root: folder of the data, or ``builtin:NAME``.
        corrupted: folder with test pictures that are corrupted already. By default the test pictures of ``root`` are
            corrupted as they are loaded.
        suite: strengths of the corruptions made here: ``imagenet`` for pictures of some 224 pixels, ``cifar`` for 32.
        severity: 1 to 5.
        corruptions: by name, in the order of the stream. By default the 15 of the benchmarks.
        order: ``continual`` shows one corruption after the other; ``gradual`` lets the severity of each rise from 1 to
            ``severity`` and fall back to 1; with ``mixed``, each picture has one corruption, drawn by ``seed``.
        rounds: how often the whole sequence is shown.
        probes: so many clean test pictures to measure with, not to adapt on, before the first stretch and after each:
            always the same ones, drawn by ``seed``.
        images: at most so many pictures a stretch, the first ones of the order. By default all.
        frost_folder: photographs of frost for the corruptions made here. By default frost is drawn.
        shuffle: pictures in an order drawn by ``seed``, the same for every stretch, or as they are listed.
        stream_batch_size: pictures a batch of the stream, by default ``batch_size``; the last one of a stretch may
            have fewer.
        kwargs: see :class:`~datamodules.files.Files`.

    Raises:
        InputError: at construction, ``setup`` or the request for the loader, for whatever a user can put right.
    """

    orders: Sequence[str] = ("continual", "gradual", "mixed")

    def __init__(
        self,
        root: str,
        corrupted: str | None = None,
        suite: Suite = "imagenet",
        severity: int = 5,
        corruptions: list[str] | None = None,
        order: Order = "continual",
        rounds: int = 1,
        probes: int = 0,
        images: int | None = None,
        frost_folder: str | None = None,
        shuffle: bool = True,
        stream_batch_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        for name, choice, choices in (("order", order, self.orders), ("suite", suite, get_args(Suite))):
            if choice not in choices:
                raise InputError(f"{name} must be one of {', '.join(choices)}, got {choice}")
        check_severity(severity)
        for name, number, least in (
            ("seed", self.seed, 0),
            ("rounds", rounds, 1),
            ("probes", probes, 0),
            ("images", images, 1),
            ("stream_batch_size", stream_batch_size, 1),
        ):
            if number is not None and number < least:
                raise InputError(f"{name} must be at least {least}, got {number}")
        if corruptions == []:
            raise InputError("corruptions: expected one at least, found an empty list")
        self.corrupted, self.severity, self.order = corrupted, severity, order
        self.corruptions = list(corruptions or CORRUPTIONS)
        if corrupted is None:
            for name in self.corruptions:
                check_corruption(name)
        self.rounds, self.probes, self.images, self.shuffle = rounds, probes, images, shuffle
        self.stream_batch_size = stream_batch_size or self.batch_size
        self.corruptor = Corruptor(suite, self.seed, frost_folder)

    # ------------------------------------------------------------------------------------------- of a subclass
    @abstractmethod
    def pictures(self) -> tuple[Pictures, Pictures]:
        """Of the stream, and of the clean probes; after ``setup``."""

    def arrange(self, items: Items, stretch: int) -> Items:
        """The pictures of a stretch in their order; ``items`` are in the order that all stretches share."""
        return items

    # -------------------------------------------------------------------------------------------------- stream
    @property
    def stretches(self) -> list[Stretch]:
        """The stretches of one round: corruption (or ``mixed``) and severity."""
        return stretches(self.order, self.corruptions, self.severity)

    def shown(self) -> list[Stretch]:
        """Every corruption at every severity that the stream has pictures of, once."""
        mixed = [*product(self.corruptions, [self.severity])]
        return list(dict.fromkeys(mixed if self.order == "mixed" else self.stretches))

    def _random(self, *choice: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, *choice))

    def setup(self, stage: str | None = None) -> None:
        """Lists the files of all splits and of the stream, and settles the preprocessing."""
        super().setup(stage)
        self.stream, self.probed = self.pictures()
        if self.corrupted is None:
            # Tried here, where it can be said in one line; what a worker raises comes with its traceback.
            name = "frost" if "frost" in self.corruptions else self.corruptions[0]
            self.corruptor(np.zeros((*self.preprocessing.size, 3), np.uint8), 0, name, self.severity)

    def plan(self) -> Plan:
        """Which pictures come when; after ``setup``."""
        targets = self.stream.targets
        items = self._random(SHUFFLE).permutation(len(targets)) if self.shuffle else np.arange(len(targets))
        items = items[: self.images]
        legs = []
        for number, (name, severity) in enumerate(self.stretches):
            names = [name] * len(items)
            if name == MIXED:
                names = even_mix(self.corruptions, len(items), self._random(MIX))
            legs.append(Leg(self.arrange(items, number), names, severity))
        probes = self._random(PROBES).permutation(len(self.probed.targets))[: self.probes]
        return Plan(legs, probes, self.stream_batch_size, self.rounds)

    def test_dataloader(self) -> DataLoader[Any]:
        """The stream: each batch a :class:`~vision.batches.StreamBatch`.

        Raises:
            InputError: several processes ask for it.
        """
        processes, _ = self.processes()
        if processes > 1:
            raise InputError(
                "a stream is adapted on in its order, by one process: "
                f"set trainer.devices and trainer.num_nodes to 1 (there are {processes} processes)"
            )
        options = self._loader_options("test", self.dataset("test"))
        options["collate_fn"] = StreamCollate(options["collate_fn"])
        options["batch_size"] = None
        return DataLoader(StreamDataset(self.stream, self.probed), sampler=self.plan(), **options)

    def predict_dataloader(self) -> DataLoader[Any]:
        """The stream."""
        return self.test_dataloader()
