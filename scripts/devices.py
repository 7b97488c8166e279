"""The device that a command is asked to run on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vision.errors import InputError


def usable_device(name: str | None, kinds: Sequence[str]) -> torch.device:
    """The device of a ``--device`` flag; a GPU where there is one when it was not given.

    Raises:
        InputError: it is none of ``kinds``, or is not there.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device: '{name}' cannot be used here ({str(error).splitlines()[0]})") from error
    if device.type not in kinds:
        raise InputError(f"--device takes {', '.join(kinds)}, got '{name}'")
    return device
