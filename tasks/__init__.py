"""Lightning modules: how each system is trained, validated, tested and predicted with."""

from tasks.classification import ImageClassifier

__all__ = ["ImageClassifier"]
