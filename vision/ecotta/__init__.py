"""Test-time adaptation at a fraction of the memory: EcoTTA, and the methods that it is measured beside."""

from vision.ecotta.checkpoint import load_official, official_state_dict
from vision.ecotta.ecotta import EcoTTA
from vision.ecotta.guard import GuardOptions
from vision.ecotta.method import Descent, Method, Snapshot, Step
from vision.ecotta.online import Online
from vision.ecotta.source import load_adapter
from vision.ecotta.wrn import WideResNet

__all__ = [
    "Descent",
    "EcoTTA",
    "GuardOptions",
    "Method",
    "Online",
    "Snapshot",
    "Step",
    "WideResNet",
    "load_adapter",
    "load_official",
    "official_state_dict",
]
