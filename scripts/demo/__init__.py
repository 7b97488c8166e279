"""A bite of every system that is in the house, and the report of them: ``make demo``."""

import os

# As in the command: threads that wait by spinning steal the cores. Read by OpenMP when PyTorch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
