"""Which frames a clip shows, planned from their times alone, before decoding.

F frames of a video, in order of presentation; T frames of a clip.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

_ROUNDING_S = 1e-6  # times are sums of fractions: a frame that starts in the middle of a bin is shown there


def plan(times_F: ArrayLike, *, start_s: float, end_s: float, frames: int) -> NDArray[np.int64]:
    """Return the frame on the screen in the middle of each of T bins of equal length.

    The frame rate may vary; a clip of fewer frames than bins repeats some. Before the first frame the first is shown,
    after the last one the last.

    Args:
        times_F: Time at which each frame appears, in seconds, rising.
        start_s, end_s: Start and end of the clip, in seconds.
        frames: T.

    Returns:
        (T,) indices into `times_F`, never falling.

    Raises:
        ValueError: No frames, no bins, or a clip that ends before it starts.
    """
    times_F = np.asarray(times_F, dtype=np.float64)
    if not len(times_F) or frames < 1 or not start_s < end_s:
        raise ValueError(
            "expected frames, bins and a clip that ends after it starts: "
            f"got {len(times_F)} frames, {frames} bins, {start_s} to {end_s} s"
        )
    middles_T = start_s + (np.arange(frames) + 0.5) * ((end_s - start_s) / frames)
    return np.maximum(np.searchsorted(times_F, middles_T + _ROUNDING_S, side="right") - 1, 0)


def even_times(rows: int, *, start_s: float, end_s: float) -> NDArray[np.float64]:
    """Return the times, in seconds, of `rows` frames spread evenly over a span."""
    return start_s + np.arange(rows, dtype=np.float64) * ((end_s - start_s) / rows)
