"""Which frames of a video a clip is made of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def uniform_indices(count: int, wanted: int) -> NDArray[np.intp]:
    """Indices of ``wanted`` of ``count`` frames, evenly spread, away from both ends; or all.

    The official ``sample_frames_uniformly``: the inner ones of ``wanted + 2`` points from 0 to ``count``, rounded.
    Where there are no more frames than wanted these are all of them.
    """
    if wanted >= count:
        return np.arange(count)
    return np.rint(np.linspace(0, count, wanted + 2)[1:-1]).astype(np.intp)
