"""Time to read eight frames of one second: by planned indices, by decoding more than needed, and from the cache.

    uv run python benchmarks/videoclip_decoding.py            # 10 s of 720p at 50 fps: some minutes
    uv run python benchmarks/videoclip_decoding.py --quick    # 2 s of 180p: a smoke test

The file is H.264 with a keyframe every 30 frames, of a moving textured wall with sensor noise. The alternatives decode
the whole file, or that second from the keyframe before it, convert every frame to RGB and then pick eight. All decode
with one thread, as a loader's worker does. Nothing is cached: the planned way indexes the packets at each call,
although a run does so once per file.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch
from _measure import alternate, report
from numpy.typing import NDArray
from PIL import Image

from videoclip.config import DataConfig
from videoclip.data import packets
from videoclip.data.cache import ClipCache
from videoclip.data.decoding import read_frames
from videoclip.data.pairs import Pair, read_pair
from videoclip.data.planning import plan
from videoclip.data.records import ClipRecord

FPS, FRAMES = 50, 8
BARS = {"the whole file": 5.0, "the second": 1.5, "decoding": 10.0}

Frames = NDArray[np.uint8]


def film(path: Path, *, seconds: int, height: int, width: int) -> None:
    """Write the test video."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(40, 216, size=(20, 40, 3), dtype=np.uint8))
    wall = np.asarray(coarse.resize((width * 2, height), Image.Resampling.BICUBIC), dtype=np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "x264-params": "scenecut=0"})
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = height, width, "yuv420p", 30
        for number in range(seconds * FPS):
            noise = random.integers(-9, 10, size=(height, width, 1), dtype=np.int16)
            pixels = wall[:, number % width : number % width + width] + noise
            frame = av.VideoFrame.from_ndarray(pixels.clip(0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def planned(path: Path, start_s: float) -> Frames:
    """Read by planned indices, without a cached packet index."""
    packets._read_index.cache_clear()
    return read_frames(path, start_s=start_s, end_s=start_s + 1, frames=FRAMES)


def whole_file(path: Path, start_s: float) -> Frames:
    """Decode everything, then pick."""
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        times, frames = [], []
        for frame in container.decode(video=0):
            times.append(frame.time)
            frames.append(frame.to_ndarray(format="rgb24"))
    return np.stack([frames[row] for row in plan(times, start_s=start_s, end_s=start_s + 1, frames=FRAMES)])


def second_only(path: Path, start_s: float) -> Frames:
    """Seek to the keyframe before the second, decode up to its end, then pick."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        assert stream.time_base is not None
        container.seek(round(start_s / stream.time_base), stream=stream)
        times, frames = [], []
        for frame in container.decode(stream):
            if frame.time >= start_s + 1:
                break
            times.append(frame.time)
            frames.append(frame.to_ndarray(format="rgb24"))
    return np.stack([frames[row] for row in plan(times, start_s=start_s, end_s=start_s + 1, frames=FRAMES)])


def row(what: str, beside: str, ours: Callable[[], object], theirs: Callable[[], object], *, pairs: int) -> dict:
    """Return one comparison as a row of the table."""
    timing = alternate(ours, theirs, pairs=pairs, warmup=1)
    return {
        "reading": what, "beside": beside, "ours ms": 1000 * timing.ours_s, "beside ms": 1000 * timing.theirs_s,
        "times faster": 1 / timing.ratio, "bar": BARS[beside],
    }  # fmt: skip


def main() -> None:
    """Write the video, compare pixels and time the alternatives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seconds, height, width, pairs = (2, 180, 320, 2) if options.quick else (10, 720, 1280, options.pairs)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "street.mp4"
        film(path, seconds=seconds, height=height, width=width)
        # on a keyframe, between two, and just before the next one
        for start_s in (0.0, 0.4, 1.0) if options.quick else (3.0, 4.5, 6.5):
            ours = planned(path, start_s)
            for beside, other in (("the whole file", whole_file), ("the second", second_only)):
                assert np.array_equal(ours, other(path, start_s)), f"{beside}: other frames"
                rows.append(
                    row(
                        f"8 frames from {start_s} s",
                        beside,
                        partial(planned, path, start_s),
                        partial(other, path, start_s),
                        pairs=pairs,
                    )
                )
        records = [
            ClipRecord(str(second), "subject", path, start_s=second, end_s=second + 1) for second in range(seconds)
        ]
        config = DataConfig(frames=FRAMES)
        cache = ClipCache(Path(place) / "cache", records, config, channels=1)

        def decode() -> list[Pair]:
            return [read_pair(record, config, channels=1, side=config.size) for record in records]

        for record, pair in zip(records, decode(), strict=True):
            assert torch.equal(cache[record].frames_T3SS, pair.frames_T3SS)
            assert torch.equal(cache[record].map_CTSS, pair.map_CTSS)
        rows.append(
            row("all clips, cached", "decoding", lambda: [cache[record] for record in records], decode, pairs=pairs)
        )
    report("videoclip_decoding", rows, note="frames equal, bit for bit; one thread; bars as in the specification")


if __name__ == "__main__":
    main()
