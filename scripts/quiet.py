"""What libraries say of themselves is kept out of a user's terminal; ``--debug`` brings it back."""

from __future__ import annotations

import logging
import os
import warnings


def quieten() -> None:
    """Sets the levels; imports none of the libraries."""
    for name in ("pytorch_lightning", "lightning_fabric", "torch.distributed", "timm"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("POSSIBLE_USER_WARNINGS", "off")  # Lightning's advice on workers and the like
    for module in ("torch", "pytorch_lightning", "lightning_fabric", "torchmetrics", "albumentations", "timm"):
        warnings.filterwarnings("ignore", module=rf"{module}\..*")
    warnings.showwarning = lambda message, *_args, **_kwargs: print(f"vision: {message}", flush=True)
