"""Files of video networks: ours, and the official release's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from vision.checkpoints import load_strict, read_checkpoint, refuse_other_record
from vision.classifiers import weights_of
from vision.errors import InputError
from vision.labels import LabelSchema
from vision.preprocessing import Preprocessing
from vision.vivit.embedding import Inflation
from vision.vivit.flax_file import is_flax
from vision.vivit.model import FactorisedViViT, ViViTConfig
from vision.vivit.official import load_official
from vision.vivit.start import RECORD, SPATIAL, Start, apply_start

OFFICIAL_PREPROCESSING = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bilinear")
FROZEN = "frozen_spatial"  # under this key a checkpoint without the frozen weights says which they were


@dataclass(frozen=True)
class VideoRecord:
    """What a file needs to say beside its weights so that the network can be used on new videos.

    Attributes:
        config: of the network.
        schema: label sets and classes, in the order of the outputs.
        preprocessing: what the network expects.
        stride: frames of a video from one frame of a clip to the next; None where a clip was spread over its video.
    """

    config: ViViTConfig
    schema: LabelSchema
    preprocessing: Preprocessing
    stride: int | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {
            "config": self.config.as_dict(),
            "schema": self.schema.as_dict(),
            "preprocessing": self.preprocessing.as_dict(),
            "stride": self.stride,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VideoRecord:
        """The inverse of :meth:`as_dict`.

        Raises:
            InputError: something is missing, unknown or unusable.
        """
        try:
            return cls(
                ViViTConfig.from_dict(values["config"]),
                LabelSchema.parse(values["schema"]),
                Preprocessing.from_dict(values["preprocessing"]),
                values["stride"],
            )
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise InputError(f"what it says of its network is unusable ({error!r})") from error


def load_network(checkpoint: str | Path, spatial: str | Path | None = None) -> tuple[FactorisedViViT, VideoRecord]:
    """A trained network from a file, in evaluation mode.

    Args:
        checkpoint: of ``vision fit``, which says everything itself, or of the official release (classes by number).
        spatial: the file that the frozen spatial part was started from, where the checkpoint was written without it.

    Raises:
        InputError: the file is unreadable or does not fit, or the frozen part is needed and not given, or another one.
    """
    if is_flax(checkpoint):
        network = load_official(checkpoint)
        schema = LabelSchema.parse({"action": [str(i) for i in range(network.config.num_classes)]})
        preprocessing = replace(OFFICIAL_PREPROCESSING, size=network.config.image_size)
        return network, VideoRecord(network.config, schema, preprocessing, 2)
    content = read_checkpoint(checkpoint)
    if not isinstance(content.get(RECORD), Mapping):
        refuse_other_record(content, RECORD, str(checkpoint))
        raise InputError(f"{checkpoint}: not a checkpoint of a video network")
    try:
        record = VideoRecord.from_dict(content[RECORD])
    except InputError as error:
        raise InputError(f"{checkpoint}: {error}") from error
    network = FactorisedViViT(record.config, record.preprocessing)
    state = weights_of(content, str(checkpoint))
    if frozen := content.get(FROZEN):
        state = {**state, **frozen_weights(network, frozen, spatial, str(checkpoint))}
    load_strict(network, state, str(checkpoint))
    return network.eval(), record


def frozen_weights(
    network: FactorisedViViT, frozen: Mapping[str, str], spatial: str | Path | None, checkpoint: str
) -> dict[str, Any]:
    """The spatial weights that a checkpoint was written without, from where they came from, checked by their hash.

    Args:
        network: of the checkpoint's configuration; its spatial part is changed.
        frozen: ``source`` (a file, or ``pretrained``), ``inflation`` and ``sha256``.
        spatial: a file, in the place of ``source``.
        checkpoint: for the errors.

    Raises:
        InputError: they cannot be had, or are others.
    """
    source = str(spatial or frozen["source"])
    if source != "pretrained" and not Path(source).is_file():
        raise InputError(
            f"{checkpoint}: was written without the frozen spatial part, which came from {source}, and that is not "
            "there; name the file with --spatial, or with model.start.spatial in training"
        )
    apply_start(network, Start(spatial=source, inflation=cast("Inflation", frozen["inflation"])))
    if network.spatial.weights_hash() != frozen["sha256"]:
        raise InputError(f"{checkpoint}: was trained with another frozen spatial part than that of {source}")
    return {SPATIAL + key: value for key, value in network.spatial.vit.state_dict().items()}
