"""Fingerprints of videos, by which copies are found: remuxed, renamed, as pictures, scaled, or encoded again.

Pictures of two people in one corridor are alike, so a fingerprint is what moves: the changes between eight frames that
are spread over the video, as thumbnails. The correlation of two is at least .91 for copies, such as a quarter of the
pixels or H.264 at crf 35, and at most .79 for other people, filmed by one camera in one room too
(`benchmarks/videoclip_copies.py`). A fade, a lamp that flickers and a title are the same in many videos, so brightness
and contrast of the frames are made equal, and each change counts alike. Only a video in which nothing moves is compared
by its picture.

N videos; T = 8 frames; S = 32 pixels a side of a thumbnail.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clip_common.errors import DataError
from clip_common.pixels import key_of, state_of
from clip_common.reporting import Progress
from clip_common.runs.files import write_atomically
from videoclip.data.decoding import read_frames
from videoclip.data.numpy_files import open_numpy

_VERSION = 2  # raise it when the same video would get another fingerprint
_FRAMES, _SIDE = 8, 32
_STILL, _MOVING_FRAMES = 0.5, 3
"""Grey levels of 255, rms: changes below are the noise of an encoder. A title that comes and goes makes two above."""
_LEAST_CHANGE = 1.0
"""Grey levels, rms: changes above count alike, changes below less, because encoders add noise to them."""
_BLANK, _FLAT = 1.0, 4.0
"""Grey levels, standard deviation: a picture below the first tells nothing; one below the second gains no contrast."""
ALIKE, ALIKE_STILL = 0.88, 0.99
"""Correlation from which two videos are copies; two still ones may share most of their picture, the room."""

Fingerprint = NDArray[np.int8]
"""(T, S, S): T − 1 changes and a frame of zeros; of a still video, zeros and its mean frame."""

_known: dict[str, Fingerprint | None] = {}
"""State of a file → its fingerprint: a process checks the same videos for each fold."""


def fingerprint_videos(
    videos: Iterable[Path], *, folder: Path | None = None, progress: Progress | None = None
) -> dict[Path, Fingerprint]:
    """Return the fingerprint of each video that has one; each is decoded once, in threads.

    A video that is missing or cannot be read has none, because nothing can be learned from it, nor has one in which
    nothing moves in front of one colour.

    Args:
        videos: Files, or folders of frames.
        folder: Where fingerprints are kept, of about 8 kB each; None keeps them for this process.
        progress: Called as `progress(done, total)`, in videos.
    """
    videos = [video for video in dict.fromkeys(videos) if video.exists()]
    found = {}
    with ThreadPoolExecutor() as pool:  # FFmpeg decodes without the interpreter lock
        prints = pool.map(lambda video: _fingerprint(video, folder), videos)
        for done, (video, own) in enumerate(zip(videos, prints, strict=True), start=1):
            if own is not None:
                found[video] = own
            if progress is not None:
                progress(done, len(videos))
    return found


def find_copy(mine: Sequence[Fingerprint], others: Sequence[Fingerprint]) -> tuple[int, int, float] | None:
    """Return the most similar pair of copies: its places in `mine` and `others`, and its correlation; None without one.

    Args:
        mine, others: Fingerprints of two groups of videos.
    """
    if not mine or not others:
        return None
    alike_NN = correlate(mine, others)
    least_N = np.array([ALIKE if each[:-1].any() else ALIKE_STILL for each in mine], dtype=np.float32)
    alike_NN[alike_NN < least_N[:, None]] = 0
    row, column = np.unravel_index(alike_NN.argmax(), alike_NN.shape)
    most = float(alike_NN[row, column])
    return (int(row), int(column), most) if most > 0 else None


def correlate(mine: Sequence[Fingerprint], others: Sequence[Fingerprint]) -> NDArray[np.float32]:
    """Return the correlation of each fingerprint with each of the others, (N, M); 0 if only one of two is still."""
    return _normalise(mine) @ _normalise(others).T


def compute_fingerprint(frames_THW3: NDArray[np.uint8]) -> Fingerprint | None:
    """Return the fingerprint of T frames; None if they are of one colour."""
    return _describe(np.stack([_shrink(frame_HW3) for frame_HW3 in frames_THW3]))


def _describe(thumbnails_TSS: NDArray[np.uint8]) -> Fingerprint | None:
    grey_TSS = _equalise(thumbnails_TSS.astype(np.float32))
    changes_SS, picture_SS = np.diff(grey_TSS, axis=0), grey_TSS.mean(axis=0)
    rms = np.sqrt((changes_SS**2).mean(axis=(1, 2), keepdims=True))
    values = np.zeros(grey_TSS.shape, dtype=np.float32)
    if (rms >= _STILL).sum() >= _MOVING_FRAMES:
        values[:-1] = changes_SS / np.maximum(rms, _LEAST_CHANGE)
    elif picture_SS.std() >= _BLANK:
        values[-1] = picture_SS
    else:
        return None
    return np.rint(values * (127 / np.abs(values).max())).astype(np.int8)


def _equalise(grey_TSS: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return frames of mean 0 and of one contrast, that of most of them."""
    spread_T11 = grey_TSS.std(axis=(1, 2), keepdims=True)
    gain_T11 = np.median(spread_T11) / np.maximum(spread_T11, _FLAT)
    return np.asarray((grey_TSS - grey_TSS.mean(axis=(1, 2), keepdims=True)) * gain_T11, dtype=np.float32)


def _shrink(frame_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(frame_HW3).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX))


def _normalise(prints: Sequence[Fingerprint]) -> NDArray[np.float32]:
    values_ND = np.stack(prints).reshape(len(prints), -1).astype(np.float32)
    return values_ND / np.linalg.norm(values_ND, axis=1, keepdims=True)


def _fingerprint(video: Path, folder: Path | None) -> Fingerprint | None:
    state = state_of(video)
    if state not in _known:
        file = None if folder is None else folder / f"{key_of(['fingerprint', _VERSION, state])}.npy"
        if file is not None and file.exists():
            with open_numpy(file) as kept:
                _known[state] = kept
        else:
            _known[state] = own = _compute(video)
            if file is not None and own is not None:
                with write_atomically(file) as draft, draft.open("wb") as stream:
                    np.save(stream, own)
    return _known[state]


def _compute(video: Path) -> Fingerprint | None:
    try:
        return _describe(read_frames(video, start_s=0, end_s=None, frames=_FRAMES, convert=_shrink))
    except DataError:  # whoever reads its clips is told
        return None
