"""Computer vision under a budget of memory, compute and time: the networks, losses and algorithms."""

__version__ = "0.1.0"
