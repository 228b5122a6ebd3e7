"""How far copies of a video are from other videos, and what the search for copies costs beside decoding the clips.

    uv run python benchmarks/videoclip_copies.py            # 120 walks and their copies: about three minutes
    uv run python benchmarks/videoclip_copies.py --quick    # 15 walks: a smoke test

Walks are those of `videoclip data synthetic`; `one room` shows their people small, before one picture of a room, as a
camera on a tripod films patient after patient. `reach` is the worst of each kind: the lowest correlation of a copy, the
highest of two people.
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
from PIL import Image, ImageDraw

from clip_common.synthetic import write_walking
from clip_common.synthetic.figure_draw import keypoints
from clip_common.synthetic.figures import sample_clip, sample_subject
from videoclip.config import DataConfig
from videoclip.data import fingerprints
from videoclip.data.decoding import read_frames
from videoclip.data.fingerprints import Fingerprint, compute_fingerprint, correlate, fingerprint_videos
from videoclip.data.manifest import read_manifest
from videoclip.data.pairs import read_pair

FPS = 24
BONES = ((5, 7), (7, 9), (6, 8), (8, 10), (5, 11), (6, 12), (11, 13), (13, 15), (12, 14), (14, 16), (0, 5))

Frames = NDArray[np.uint8]


def encode(path: Path, frames: Frames, codec: str, *, scale: tuple[float, float] = (1, 1), **options: str) -> None:
    """Write frames of another size with a codec."""
    height, width = (round(side * factor / 2) * 2 for side, factor in zip(frames.shape[1:3], scale, strict=True))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for frame in frames:
            pixels = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def save_pictures(path: Path, frames: Frames) -> None:
    """Write frames as a folder of JPEGs."""
    path.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(path / f"{number}.jpg", quality=60)


COPIES: dict[str, tuple[str, Callable[[Path, Frames], None]]] = {
    "H.264, crf 35": ("copy.mp4", partial(encode, codec="libx264", crf="35")),
    "H.264, half of each side": ("copy.mp4", partial(encode, codec="libx264", scale=(0.5, 0.5))),
    "H.264, 1.7 times as high, 2.2 times as wide": ("copy.mkv", partial(encode, codec="libx264", scale=(1.7, 2.2))),
    "MPEG-4 in AVI, 60 kbit/s": ("copy.avi", partial(encode, codec="mpeg4", b="60k")),
    "VP9, crf 40": ("copy.webm", partial(encode, codec="libvpx-vp9", crf="40", b="0", deadline="realtime")),
    "a folder of JPEGs": ("copy", save_pictures),
}


def film_in_room(number: int, room: Image.Image, random: np.random.Generator) -> Frames:
    """Draw a person, a fifth of the picture's width, who crosses a room."""
    clip = sample_clip(sample_subject(7, number), 0)
    step, start = (1.4 if clip.facing == "right" else -1.4), random.integers(38, 58)
    colours, width = random.integers(0, 255, size=(2, 3)), int(random.integers(4, 8))
    frames = []
    for time, joints in enumerate(keypoints(clip, size=64, fps=FPS)):
        picture, shift = room.copy(), start + step * (time - FPS / 2)
        for one, other in BONES:
            ends = [(float(joints[joint, 0]) + shift, float(joints[joint, 1]) + 25) for joint in (one, other)]
            ImageDraw.Draw(picture).line(ends, fill=tuple(colours[int(other > 12)]), width=width)
        frames.append(np.asarray(picture))
    return np.stack(frames)


def highest(prints: list[Fingerprint]) -> float:
    """Return the highest correlation of two of them."""
    alike = correlate(prints, prints)
    np.fill_diagonal(alike, -1)
    return float(alike.max())


def main() -> None:
    """Write the walks, compare them and their copies, and time the search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    count, copied = (15, 3) if options.quick else (120, 40)
    random = np.random.default_rng(0)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        walks = write_walking(Path(place) / "walks", subjects=count, clips_per_subject=1, seed=5)
        records = read_manifest(walks / "manifest.csv")
        videos = [record.video for record in records]
        prints = fingerprint_videos(videos)
        for kind, (name, make) in COPIES.items():
            lowest = 1.0
            for number, video in enumerate(videos[:copied]):
                folder = Path(place) / kind / str(number)
                folder.mkdir(parents=True)
                make(folder / name, read_frames(video, start_s=0, end_s=None, frames=FPS))
                (copy,) = fingerprint_videos([folder / name]).values()
                lowest = min(lowest, float(correlate([prints[video]], [copy])[0, 0]))
            rows.append({"videos": f"copies: {kind}", "number": copied, "reach": lowest})
        rows.append({"videos": "other people", "number": count, "reach": highest(list(prints.values()))})
        coarse = Image.fromarray(random.integers(60, 200, size=(9, 16, 3), dtype=np.uint8))
        room = coarse.resize((160, 96), Image.Resampling.BICUBIC)
        shown = [film_in_room(number, room, random)[1::3] for number in range(count)]
        in_room = [own for own in map(compute_fingerprint, shown) if own is not None]
        rows.append({"videos": "other people, one room", "number": count, "reach": highest(in_room)})

        config, kept = DataConfig(), Path(place) / "kept"

        def decode() -> None:
            for record in records:
                read_pair(record, config, channels=1, side=config.size)

        def search(folder: Path | None) -> None:
            fingerprints._known.clear()
            found = list(fingerprint_videos(videos, folder=folder).values())
            correlate(found, found)

        search(kept)
        for what, ours in (("the first time", partial(search, None)), ("from the cache", partial(search, kept))):
            timing = alternate(ours, decode, pairs=2 if options.quick else 5, warmup=1)
            rows.append(
                {"videos": f"search, {what}", "number": count, "ours s": timing.ours_s, "decoding s": timing.theirs_s,
                 "ratio": timing.ratio}
            )  # fmt: skip
    report("videoclip_copies", rows, note=f"videos are copies from a correlation of {fingerprints.ALIKE}")


if __name__ == "__main__":
    main()
