"""What a network costs: parameters, multiply-accumulates, memory and time, each counted or compared side by side."""

from vision.measure.activations import SavedActivations, saved_activations
from vision.measure.adaptation import AdaptationProfile, profile_adaptation
from vision.measure.counts import Parameters, count_macs, count_parameters
from vision.measure.environment import environment
from vision.measure.memory import peak_memory
from vision.measure.timing import Comparison, Spread, compare

__all__ = [
    "AdaptationProfile",
    "Comparison",
    "Parameters",
    "SavedActivations",
    "Spread",
    "compare",
    "count_macs",
    "count_parameters",
    "environment",
    "peak_memory",
    "profile_adaptation",
    "saved_activations",
]
