"""What an adaptation looks like: how sure a network was along a stream, and the classes of pixels."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datamodules.decoding import read_image
from datamodules.video_decoding import iterate_frames
from vision.errors import InputError
from vision.pictures import ACCENT, BAD, GOOD, INK, MUTED, Picture, contact_sheet
from vision.preprocessing import Preprocessing

MOST_CLASSES = 256  # of a palette
BEST = 3  # classes that are named of an image whose pixels are labelled
MOST_PICTURES = 60
THUMBNAIL = 320  # pixels of the long side
MARKED = 60  # batches up to which each has a mark
SMOOTHED = 40  # points that a longer line keeps, about


def class_colours(classes: int) -> NDArray[np.uint8]:
    """A colour of each class, uint8 ``(classes, 3)``: neighbours far apart, all dark enough for text on white."""
    hues = (i * 0.618034 % 1 for i in range(classes))
    chosen = [colorsys.hsv_to_rgb(hue, (0.9, 0.65)[i % 2], (0.75, 0.6, 0.45)[i % 3]) for i, hue in enumerate(hues)]
    return (255 * np.asarray(chosen)).round().astype(np.uint8)


class LabelPictures:
    """Writes the classes of pixels as pictures.

    Args:
        folder: gets ``labels/NAME.png``, whose values are the classes and whose palette their colours, and
            ``labels/overlays/NAME.png``, through which the image shows by half.
        class_names: of the network.
        preprocessing: of the network; the pictures show what it was shown.

    Raises:
        InputError: there are more classes than a palette has colours.
    """

    def __init__(self, folder: Path, class_names: Sequence[str], preprocessing: Preprocessing) -> None:
        if len(class_names) > MOST_CLASSES:
            raise InputError(f"--checkpoint: pictures of labels have {MOST_CLASSES} classes, found {len(class_names)}")
        self.folder, self.class_names, self.preprocessing = folder, class_names, preprocessing
        self.colours = class_colours(len(class_names))
        self._taken: set[str] = set()

    def write(self, logits: Tensor, image: Tensor, name: str) -> dict[str, Any]:
        """Writes both pictures of an image.

        Args:
            logits: ``(C, h, w)``, of any size.
            image: ``(3, H, W)``, normalised.
            name: of the files, without suffix; it gets a number where another has the same.

        Returns:
            The classes of most pixels and their shares, and the files' places below the folder, for a JSON file.

        Raises:
            InputError: the folder cannot be written.
        """
        sized = F.interpolate(logits[None], size=image.shape[1:], mode="bilinear")[0]
        labels = sized.argmax(dim=0).byte().cpu().numpy()
        mapped = Image.fromarray(labels)
        mapped.putpalette(self.colours.tobytes())
        file = self._file(name)
        places = {"labels": f"labels/{file}.png", "overlay": f"labels/overlays/{file}.png"}
        write_picture(mapped, self.folder / places["labels"])
        shown = Image.fromarray(self._as_picture(image))
        write_picture(Image.blend(shown, mapped.convert("RGB"), 0.5), self.folder / places["overlay"])
        shares = np.bincount(labels.ravel(), minlength=len(self.class_names)) / labels.size
        best = [int(i) for i in np.argsort(-shares, kind="stable")[:BEST] if shares[i] > 0]
        found = [{"class": self.class_names[i], "share": round(float(shares[i]), 6)} for i in best]
        return {"classes": found, **places}

    def colour(self, class_name: str) -> str:
        """The colour of a class, as ``#rrggbb``."""
        red, green, blue = self.colours[self.class_names.index(class_name)]
        return f"#{red:02x}{green:02x}{blue:02x}"

    def _as_picture(self, image: Tensor) -> Picture:
        """The normalisation undone."""
        mean, std = (torch.tensor(of)[:, None, None] for of in (self.preprocessing.mean, self.preprocessing.std))
        return np.asarray(((image.float().cpu() * std + mean).clamp(0, 1) * 255).round().byte().permute(1, 2, 0))

    def _file(self, name: str) -> str:
        file, number = name, 2
        while file in self._taken:
            file, number = f"{name}-{number}", number + 1
        self._taken.add(file)
        return file


def sheet(rows: Sequence[Mapping[str, Any]], folder: Path, video: str | None, labels: LabelPictures | None) -> Picture:
    """The least certain images with their answers.

    Args:
        rows: the images, see :class:`scripts.infer.ecotta.Stream`.
        folder: that overlays are in.
        video: that frames are of, which it is decoded for once more; None for images.
        labels: of networks that label pixels.
    """
    chosen = sorted(rows, key=lambda row: -row["entropy"])[:MOST_PICTURES]
    if labels is not None:
        pictures = [_thumbnail(read_image(folder / row["overlay"])) for row in chosen]
    elif video is not None:
        wanted = {row["frame"] for row in chosen}
        frames = islice(enumerate(iterate_frames(video)), max(wanted) + 1)
        again = {number: _thumbnail(frame) for number, (_, frame) in frames if number in wanted}
        pictures = [again[row["frame"]] for row in chosen]
    else:
        pictures = [_thumbnail(read_image(row["path"])) for row in chosen]
    captions = []
    for row in chosen:
        name = Path(row["path"]).name if video is None else f"{row['seconds']:.1f} s, frame {row['frame']}"
        if labels is None:
            said = [(f"{row['class']} {row['probability']:.0%}", INK)]
        else:
            said = [(f"{of['class']} {of['share']:.0%}", labels.colour(of["class"])) for of in row["classes"]]
        captions.append([(name, MUTED), (f"entropy {row['entropy']:.2f}", MUTED), *said])
    return contact_sheet(pictures, captions)


def _thumbnail(image: Picture) -> Picture:
    picture = Image.fromarray(image)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return np.asarray(picture)


def write_picture(picture: Image.Image, file: Path) -> None:
    """Writes a picture, and makes its folder where it is missing.

    Raises:
        InputError: it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file)
    except OSError as error:
        raise InputError(f"--out: {file} cannot be written ({error.strerror})") from error


def stream_figure(batches: Sequence[Mapping[str, Any]], unit: str) -> Figure:
    """How sure the network was along the stream, and where the guard went back.

    Args:
        batches: of each ``until`` (where it ends on the axis), ``entropy``, ``kept`` and ``spread``, all in [0, 1],
            and ``event``, the guard's words or None. Of many batches the lines are means over several, and each one's
            values are drawn faint.
        unit: of ``until``, for the axis.
    """
    figure = Figure(figsize=(9, 3.4), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    places = np.asarray([batch["until"] for batch in batches], float)
    width = 1 if len(batches) <= MARKED else -(-len(batches) // SMOOTHED)
    for key, colour, label in (
        ("entropy", ACCENT, "entropy, mean\n(share of ln C)"),
        ("kept", GOOD, "kept: sure enough\nto learn from"),
        ("spread", MUTED, "entropy of the\nmean prediction"),
    ):
        values = np.asarray([batch[key] for batch in batches], float)
        if width > 1:
            axes.plot(places, values, color=colour, linewidth=0.8, alpha=0.3)
        mark = "o" if len(batches) <= MARKED else None
        axes.plot(*_means(places, values, width), color=colour, marker=mark, markersize=3, label=label)
    events = [batch["until"] for batch in batches if batch["event"] is not None]
    for number, place in enumerate(events):
        axes.axvline(place, color=BAD, linestyle="--", linewidth=1.2, label=None if number else "rolled back")
    axes.set_xlabel(unit)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlim(left=0)
    axes.grid(color="#e4e7eb", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False, fontsize=9, labelspacing=1)
    return figure


def _means(
    places: NDArray[np.float64], values: NDArray[np.float64], width: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means over ``width`` neighbours, each at the mean of their places."""
    starts = np.arange(0, len(values), width)
    sizes = np.diff([*starts, len(values)])
    return np.add.reduceat(places, starts) / sizes, np.add.reduceat(values, starts) / sizes
