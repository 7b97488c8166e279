"""Lightning modules: how each system is trained, validated, tested and predicted with."""

from tasks.classification import ImageClassifier
from tasks.ecotta import TestTimeAdaptation
from tasks.medic import MultitaskClassifier
from tasks.memspm import UniversalDomainAdaptation
from tasks.vivit import VideoClassifier

__all__ = [
    "ImageClassifier",
    "MultitaskClassifier",
    "TestTimeAdaptation",
    "UniversalDomainAdaptation",
    "VideoClassifier",
]
