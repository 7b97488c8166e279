"""Words in pictures: LMDB trees, folders with lists, and drawn words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.files import FileDataset, Files, Sample, stack
from datamodules.text_augment import Augment, WordAugment
from datamodules.text_renderer import RenderOptions
from datamodules.text_sources import Names, SourceReader
from datamodules.text_transforms import TextTransform
from datamodules.text_words import Words, dropped_table, require_words
from vision.batches import TextBatch
from vision.errors import InputError
from vision.preprocessing import Preprocessing
from vision.text import read_charset

CHARSET = "36"
LONGEST = 25
PREPROCESSING = Preprocessing((32, 128), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), crop_pct=1.0, crop_mode="squash")
"""CFE's, where no task says another."""
TEST = "test/"  # in front of the names of test sets, among the splits
# What a stage of the Trainer needs; 14 million training labels are not read for a test.
_STAGES = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


class TextDataset(FileDataset):
    """Decodes and transforms pictures of words; draws carry the seed.

    Args:
        words: the pictures.
        transform: makes tensors of them.
        max_pixels: larger pictures count as unreadable.
        substitute: take the next readable picture for an unreadable one (training), or leave it out (evaluation).
    """

    listing: Words

    def __init__(
        self, words: Words, transform: Callable[[Any, int], Tensor], max_pixels: int, substitute: bool
    ) -> None:
        super().__init__(words, substitute)
        self.transform, self.max_pixels = transform, max_pixels

    def load(self, index: int, seed: int) -> Tensor:
        """The picture as the transform gives it."""
        return self.transform(self.listing.pixels(index, self.max_pixels), seed)


class TextCollate:
    """Samples to a :class:`~vision.batches.TextBatch`.

    Args:
        size: (height, width), for the shape of a batch in which nothing could be read.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __call__(self, samples: Sequence[Sample]) -> TextBatch:
        """The readable samples as a batch, with what could not be read."""
        read, image = stack(samples, (3, *self.size))
        return {
            "image": image,
            "text": [sample.target for sample in read],
            "path": [sample.path for sample in read],
            "unreadable": [entry for sample in samples for entry in sample.unreadable],
        }


class TextImages(Files):
    """Pictures of one word each.

    A source is a path below ``root`` (or absolute): an LMDB (a folder with ``data.mdb``), a folder with a list
    (``labels.tsv``, ``.csv``, ``.txt``, ``.jsonl`` or MMOCR's ``.json``), a list of any name, a folder with any number
    of these at any depth, or the word ``rendered``, which needs no files. Several are given as a list. Paths in lists
    are relative to the list's folder.

    Labels that a network cannot learn are dropped as in the published evaluations
    (:func:`vision.text.clean_label`), counted by source and reason, and printed. Size, mean and standard deviation
    are the task's ``preprocessing`` unless given here; ``charset`` and ``max_label_length`` are the task's too.

    Args:
        root: folder that sources are relative to.
        train: sources of the training pictures.
        val: sources of the validation pictures.
        test: sources of the test pictures. Each LMDB and each list below them is a test set of its own, named after
            its folder; ``{name: sources}`` names sets and what belongs to each. ``rendered`` gives ``clean`` and
            ``hard``.
        predict: sources to predict; here they may also be pictures without labels: a file, a folder or a pattern. By
            default the test pictures.
        rendered: what ``rendered`` draws. Its test words are the same for every seed.
        charset: ``36``, ``62``, ``94``, a file or the characters; see :func:`vision.text.read_charset`.
        max_label_length: characters of a label at most.
        augment: of training pictures: ``none``; ``randaugment``, CFE's recipe; or ``hard``, which bends and blurs more.
        rotate_90: probability that a training picture is turned by 90, 180 or 270 degrees.
        rotation: degrees, counter-clockwise, that every test picture and every picture to predict is turned by.
        keep_aspect: resize to the network's height and pad with grey on the right; by default pictures are squashed.
        kwargs: see :class:`~datamodules.files.Files`; there is no crop.

    Raises:
        InputError: at construction or ``setup``, for whatever a user can put right; also where nothing is left of a
            split or a test set.
    """

    kind = "pictures"
    splits: dict[str, Words]

    def __init__(
        self,
        root: str = ".",
        train: str | list[str] = "train",
        val: str | list[str] = "val",
        test: str | list[str] | dict[str, str | list[str]] = "test",
        predict: str | list[str] | None = None,
        rendered: RenderOptions | None = None,
        charset: str | None = None,
        max_label_length: int | None = None,
        augment: Augment = "none",
        rotate_90: float = 0.0,
        rotation: float = 0.0,
        keep_aspect: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        for name in ("crop_pct", "crop_mode"):
            if self.own_preprocessing[name] is not None:
                raise InputError(f"{name}: words are never cropped; leave it out")
            self.own_preprocessing[name] = getattr(PREPROCESSING, name)
        if max_label_length is not None and max_label_length < 1:
            raise InputError(f"max_label_length must be at least 1, got {max_label_length}")
        if not np.isfinite(rotation):
            raise InputError(f"rotation must be a number of degrees, got {rotation}")
        self.sources: dict[str, Names | dict[str, Names] | None] = {
            "train": train,
            "val": val,
            "test": test,
            "predict": predict,
        }
        for split, names in self.sources.items():
            if names is not None and not names:
                raise InputError(f"data.{split}: expected a source at least, found none")
        self.rendered = rendered or RenderOptions()
        self._given = dict(self.own_preprocessing)
        self._own_charset = read_charset(charset) if charset is not None else None
        self._own_longest = max_label_length
        self.charset, self.max_label_length = self._own_charset or read_charset(CHARSET), max_label_length or LONGEST
        self.keep_aspect, self.rotation = keep_aspect, rotation
        self.augment = WordAugment(augment, rotate_90)
        self._wanted: tuple[str, ...] = ()

    @property
    def test_sets(self) -> list[str]:
        """The names of the test sets, in the order of their loaders; after ``setup``."""
        return [name.removeprefix(TEST) for name in self.splits if name.startswith(TEST)]

    # ------------------------------------------------------------------------------------------------- listing
    def setup(self, stage: str | None = None) -> None:
        """Settles characters and preprocessing, and reads the labels of what the stage needs, each once."""
        task = self.trainer.lightning_module if self.trainer is not None else None
        before = self.charset, self.max_label_length
        self._settle(task)
        done = self.splits if before == (self.charset, self.max_label_length) else {}
        base = {} if hasattr(task, "preprocessing") else PREPROCESSING.as_dict()
        self.own_preprocessing = {**base, **{name: value for name, value in self._given.items() if value is not None}}
        read = {name.split("/")[0] for name in done}
        wanted = _STAGES[stage] if stage is not None else ("train", "val", "test")
        self._wanted = tuple(split for split in wanted if split not in read)
        self.splits = {}
        super().setup(stage)
        if self.processes()[1] == 0 and (table := dropped_table(self.splits)):
            print(table, flush=True)
        self.splits = {**done, **self.splits}

    def _settle(self, task: Any) -> None:
        """The characters, and how many of them a label has at most: the task's, or those that are given here."""
        known = getattr(task, "charset", None)
        known = read_charset(known) if known is not None else None
        self.charset = self._own_charset or known or read_charset(CHARSET)
        unknown = next((character for character in self.charset if known is not None and character not in known), None)
        if unknown is not None:
            raise InputError(f"data.charset: the network does not know '{unknown}' (U+{ord(unknown):04X})")
        longest = getattr(task, "max_label_length", None)
        self.max_label_length = self._own_longest or longest or LONGEST
        if longest is not None and self.max_label_length > longest:
            raise InputError(
                f"data.max_label_length: {self.max_label_length} is more than the {longest} characters of the network"
            )

    def read_splits(self, root: Path) -> dict[str, Words]:
        """Reads the labels of the splits that are wanted."""
        options = self.rendered
        options = replace(
            options, alphabet=options.alphabet or self.charset, size=options.size or self.preprocessing.size
        )
        reader = SourceReader(root, self.charset, self.max_label_length, options)
        found: dict[str, Words] = {}
        for split in self._wanted:
            names = self.sources[split]
            if split == "test":
                found |= self._read_tests(reader)
            elif names is None:
                tests = self._read_tests(reader).values()
                found[split] = Words([source for words in tests for source in words.sources])
            else:
                assert not isinstance(names, dict)
                found[split] = reader.words(split, names)
                require_words(split, found[split])
        return found

    def _read_tests(self, reader: SourceReader) -> dict[str, Words]:
        names = self.sources["test"]
        assert names is not None
        sets = {TEST + name: words for name, words in reader.sets("test", names).items()}
        for name, words in sets.items():
            require_words(name, words)
        return sets

    @property
    def _listed(self) -> tuple[int, int]:
        """Rows and files, which are as many: names of millions of pictures are not kept to be compared."""
        sources = {source.name: len(source.labels) for words in self.splits.values() for source in words.sources}
        pictures = sum(sources.values())
        return pictures, pictures

    # ------------------------------------------------------------------------------------------------- loaders
    def dataset(self, split: str) -> TextDataset:
        """The pictures, augmented in training, turned in testing where that is asked for."""
        training, testing = split == "train", split == "predict" or split.startswith(TEST)
        transform = TextTransform(
            self.preprocessing,
            self.keep_aspect,
            self.rotation if testing else 0.0,
            self.augment if training else None,
        )
        return TextDataset(self.splits[split], transform, self.max_pixels, substitute=training)

    def collate(self, split: str) -> TextCollate:
        """Batches with words."""
        return TextCollate(self.preprocessing.size)

    def test_dataloader(self) -> list[DataLoader[Any]]:  # type: ignore[override]
        """A loader for each of ``test_sets``, each picture once."""
        return [self._eval_dataloader(TEST + name) for name in self.test_sets]

    def predict_dataloader(self) -> DataLoader[Any]:
        """The pictures to predict, one loader for all sources."""
        return self._eval_dataloader("predict")
