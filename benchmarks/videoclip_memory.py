"""Peak memory of caching twelve clips of 4K: frames resized one by one, and all frames of a clip decoded first.

    uv run python benchmarks/videoclip_memory.py            # 3840 x 2160: some minutes
    uv run python benchmarks/videoclip_memory.py --quick    # 640 x 360: a smoke test

Four files of three seconds in H.264, each cut into three clips of sixteen frames, as a phone films and a config reads.
Each arm runs in a process of its own; the peak is above the memory resident before the first clip, after all imports.
"""

import argparse
import json
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import torch
from _measure import PeakMemory, arm_in_own_process, report
from torchvision.transforms.v2 import functional

from videoclip.config import DataConfig
from videoclip.data.cache import ClipCache
from videoclip.data.decoding import read_frames
from videoclip.data.maps import read_map
from videoclip.data.pairs import Pair
from videoclip.data.records import ClipRecord

FPS, FILES, SECONDS, FRAMES = 16, 4, 3, 16
BAR = 600.0  # MiB, of the specification


def film(path: Path, *, height: int, width: int) -> None:
    """Write three seconds of a moving texture."""
    random = np.random.default_rng(0)
    wall = random.integers(16, 240, size=(height // 8, width // 4, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "crf": "30"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(SECONDS * FPS):
            left = 8 * number
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(wall[:, left : left + width]), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def list_clips(folder: Path) -> list[ClipRecord]:
    """Return the twelve clips."""
    return [
        ClipRecord(f"{file.stem}_{second}", file.stem, file, start_s=second, end_s=second + 1)
        for file in sorted(folder.glob("*.mp4"))
        for second in range(SECONDS)
    ]


def decode_then_resize(records: list[ClipRecord], config: DataConfig) -> list[Pair]:
    """Decode all frames of a clip, then resize them together, in the threads of a default pool."""

    def read(record: ClipRecord) -> Pair:
        frames_THW3 = read_frames(record.video, start_s=record.start_s, end_s=record.end_s, frames=config.frames)
        frames_T3HW = torch.from_numpy(frames_THW3).permute(0, 3, 1, 2)
        return Pair(
            frames_T3SS=functional.resize(frames_T3HW, [config.size, config.size], antialias=True),
            map_CTSS=read_map(record, config, channels=1, side=config.size),
        )

    with ThreadPoolExecutor() as pool:
        return list(pool.map(read, records))


def measure(arm: str, folder: Path) -> float:
    """Return the peak of one arm, in MiB."""
    records, config = list_clips(folder), DataConfig(frames=FRAMES)
    functional.resize(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [4, 4], antialias=True)
    with PeakMemory() as peak:
        if arm == "ours":
            ClipCache(folder / "cache", records, config, channels=1)
        else:
            decode_then_resize(records, config)
    return peak.mib


def main() -> None:
    """Write the files and measure both arms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--arm", choices=("ours", "before"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        print(json.dumps({"mib": measure(options.arm, options.folder)}))
        return
    height, width = (360, 640) if options.quick else (2160, 3840)
    with tempfile.TemporaryDirectory() as place:
        film(Path(place) / "walker_0.mp4", height=height, width=width)
        for number in range(1, FILES):
            shutil.copy(Path(place) / "walker_0.mp4", Path(place) / f"walker_{number}.mp4")
        peaks = {arm: arm_in_own_process(__file__, arm, "--folder", place)["mib"] for arm in ("ours", "before")}
    row = {
        "clips": FILES * SECONDS, "pixels": f"{width}x{height}", "ours MiB": peaks["ours"],
        "all frames first MiB": peaks["before"], "ratio": peaks["ours"] / peaks["before"], "bar MiB": BAR,
    }  # fmt: skip
    report("videoclip_memory", [row], note="peak resident memory of a process of its own, above its start")


if __name__ == "__main__":
    main()
