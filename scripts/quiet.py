"""What libraries say of themselves is kept out of a user's terminal; ``--debug`` brings it back."""

from __future__ import annotations

import logging
import os
import warnings


def quieten() -> None:
    """Sets the levels; imports none of the libraries."""
    # A filter, since Lightning sets the level of its loggers when it is imported.
    for name in ("pytorch_lightning", "lightning_fabric"):
        for part in ("", ".utilities.rank_zero", ".utilities.seed", ".utilities.distributed"):
            logging.getLogger(name + part).addFilter(lambda record: record.levelno >= logging.WARNING)
    # torch.compile on a machine without a GPU says so each time.
    logging.getLogger("torch.utils.cpp_extension").addFilter(lambda record: record.levelno > logging.WARNING)
    os.environ.setdefault("POSSIBLE_USER_WARNINGS", "off")  # Lightning's advice on workers and the like
    for module in ("torch", "pytorch_lightning", "lightning_fabric", "torchmetrics", "albumentations", "timm"):
        warnings.filterwarnings("ignore", module=rf"{module}\..*")
    warnings.showwarning = lambda message, *_args, **_kwargs: print(f"vision: {message}", flush=True)
