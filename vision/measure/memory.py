"""Peak memory of a computation."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _resident(what: str) -> int:
    found = re.search(rf"^{what}:\s*(\d+) kB$", _STATUS.read_text(encoding="ascii"), re.M)
    if found is None:
        raise OSError(f"{_STATUS} has no {what}")
    return int(found[1]) * 1024


def peak_memory(run: Callable[[], Any], device: str | torch.device = "cpu") -> int | None:
    """Bytes by which memory grew, at its highest, while ``run()`` was carried out once.

    On a CUDA device this is what PyTorch's allocator handed out, exact. On a CPU it is the resident memory of the
    whole process: good to a few MiB, and blind to memory that an earlier computation freed and the process kept, so
    measure the larger of two computations first, or each in a process of its own.

    Returns:
        None where the system does not tell (other than CUDA, only Linux does).
    """
    device = torch.device(device)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        _CLEAR.write_text("5", encoding="ascii")  # sets the highest mark back to the present
        before = _resident("VmRSS")
    except OSError:
        return None
    run()
    return max(0, _resident("VmHWM") - before)
