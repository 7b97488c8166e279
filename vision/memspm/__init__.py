"""MemSPM: universal domain adaptation by a memory of sub-prototypes (arXiv 2310.05453), and what it is beside."""

from vision.memspm.checkpoint import DomainRecord, load_adapted
from vision.memspm.memory import MemoryOptions, SubPrototypeMemory
from vision.memspm.model import AdaptationNetwork
from vision.memspm.official import load_official

__all__ = [
    "AdaptationNetwork",
    "DomainRecord",
    "MemoryOptions",
    "SubPrototypeMemory",
    "load_adapted",
    "load_official",
]
