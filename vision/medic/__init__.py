"""MEDIC: one network for several classification tasks, trained on tables with missing labels (arXiv 2108.12828)."""

from vision.medic.checkpoint import MultitaskRecord, load_network, load_official, to_official
from vision.medic.model import MultitaskNetwork

__all__ = ["MultitaskNetwork", "MultitaskRecord", "load_network", "load_official", "to_official"]
