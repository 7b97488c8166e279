"""What libraries say of themselves is kept out of a user's terminal; ``--debug`` brings it back."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator


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


@contextlib.contextmanager
def native_errors_hidden() -> Iterator[None]:
    """What native code writes to the error output, past Python, is lost."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 (a device)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
