"""Files of adapted networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vision.checkpoints import check_finite, load_strict, read_checkpoint, refuse_other_record
from vision.classifiers import weights_of
from vision.errors import InputError
from vision.memspm.encoder import Feature, create_encoder
from vision.memspm.memory import MemoryOptions
from vision.memspm.model import AdaptationNetwork, Method
from vision.memspm.rejection import RULES, Rule
from vision.preprocessing import Preprocessing

RECORD = "domains"  # the key under which a training checkpoint keeps a DomainRecord


@dataclass(frozen=True)
class DomainRecord:
    """What a file needs to say beside its weights so that the network can be used on new pictures.

    Attributes:
        backbone: a name for :func:`vision.classifiers.create_classifier`.
        feature: which of its features.
        class_names: common and source-private ones.
        preprocessing: what the network expects.
        method: see :class:`~vision.memspm.model.AdaptationNetwork`.
        memory: likewise.
        width: likewise.
        decoder: likewise.
        rule: by which pictures are rejected.
    """

    backbone: str
    feature: Feature
    class_names: list[str]
    preprocessing: Preprocessing
    method: Method
    memory: MemoryOptions
    width: int
    decoder: int
    rule: Rule

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {**self.__dict__, "preprocessing": self.preprocessing.as_dict(), "memory": asdict(self.memory)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DomainRecord:
        """The inverse of :meth:`as_dict`.

        Raises:
            InputError: values are missing or unknown.
        """
        try:
            own = {
                "preprocessing": Preprocessing.from_dict(values["preprocessing"]),
                "memory": MemoryOptions(**values["memory"]),
            }
            record = cls(**{**values, **own})
        except (KeyError, TypeError) as error:
            raise InputError(f"the checkpoint's '{RECORD}' is damaged or of another version ({error})") from error
        if record.rule not in RULES:
            raise InputError(f"the checkpoint's '{RECORD}' is of another version (no rule '{record.rule}')")
        return record

    def build(self, state: Mapping[str, Tensor], source: str) -> AdaptationNetwork:
        """The network with its weights, in evaluation mode.

        Args:
            state: its tensors by their names.
            source: the file, for messages.

        Raises:
            InputError: they do not fit.
        """
        encoder, features = create_encoder(self.backbone, self.preprocessing.size, feature=self.feature)
        network = AdaptationNetwork(
            encoder, features, len(self.class_names), self.method, self.memory, self.width, self.decoder
        )
        network.clusters.resize(state)
        load_strict(network, state, source)
        return network.eval()


def load_adapted(checkpoint: str | Path) -> tuple[AdaptationNetwork, DomainRecord]:
    """An adapted network from its training checkpoint, in evaluation mode.

    Raises:
        InputError: the file is unreadable, holds another kind of network, or does not fit itself.
    """
    content = read_checkpoint(checkpoint)
    if not isinstance(content.get(RECORD), Mapping):
        refuse_other_record(content, RECORD, str(checkpoint))
        raise InputError(
            f"{checkpoint}: not a checkpoint of UniversalDomainAdaptation; of an official release the encoder is of "
            "use, as model.checkpoint of a training"
        )
    state = weights_of(content, str(checkpoint))
    check_finite(state, str(checkpoint))
    record = DomainRecord.from_dict(content[RECORD])
    return record.build(state, str(checkpoint)), record
