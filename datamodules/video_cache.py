"""What a feature cache keeps of the listing of videos, so that it can be used where the videos are not."""

from __future__ import annotations

import json
import os
from dataclasses import astuple
from pathlib import Path

import numpy as np

from datamodules.feature_store import read_index
from datamodules.video_decoding import Span
from datamodules.video_listing import VideoListing
from vision.errors import InputError
from vision.labels import LabelSchema

_FILE = "listing.json"


def save_listing(folder: Path, listing: VideoListing, root: Path) -> None:
    """Writes a listing beside the features of its videos; paths become relative to the data's folder.

    Raises:
        InputError: the folder cannot be written.
    """
    content = {
        "paths": [os.path.relpath(path, root) for path in listing.paths],
        "spans": [None if span is None else astuple(span) for span in listing.spans],
        "labels": listing.labels.tolist(),
        "schema": listing.schema.as_dict(),
        "origins": listing.origins,
    }
    temporary = folder / f".listing-{os.getpid()}.json"
    try:
        temporary.write_text(json.dumps(content), encoding="utf-8")
        temporary.replace(folder / _FILE)
    except OSError as error:
        raise InputError(f"data.cache: {folder} cannot be written ({error.strerror})") from error


def load_listing(folder: Path, root: Path) -> VideoListing | None:
    """The listing of the videos that a folder has features of; None where it has none.

    Raises:
        InputError: the file is damaged.
    """
    file = folder / _FILE
    if not file.is_file() or read_index(folder) is None:
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return VideoListing(
            [os.path.join(root, path) for path in content["paths"]],
            [None if span is None else Span(*span) for span in content["spans"]],
            np.array(content["labels"], np.int64),
            LabelSchema.parse(content["schema"]),
            content["origins"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: not the listing of a feature cache ({error})") from error
