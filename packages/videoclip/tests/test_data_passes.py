"""Files that can only be decoded from their start: once for all clips, by any number of threads and processes."""

import multiprocessing
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from videoclip.config import DataConfig
from videoclip.data import ClipCache, ClipRecord, passes, read_pair
from videoclip.data.decoding import read_frames_at
from videoclip.data.passes import DecodingPass

SECONDS, FPS, SIDE = 8, 25, 64  # players assume 25 frames per second of a raw stream
FRAMES = SECONDS * FPS


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """A raw stream with B pictures and no timestamps, grey by frame."""
    path = tmp_path_factory.mktemp("raw") / "walk.h264"
    with av.open(str(path), "w", format="h264") as out:
        stream = out.add_stream("libx264", rate=FPS, options={"crf": "10"})
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = SIDE, SIDE, "yuv420p", 12
        for number in range(FRAMES):
            pixels = np.full((SIDE, SIDE, 3), number, dtype=np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def whole(raw) -> np.ndarray:
    with av.open(str(raw)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture(scope="module")
def order(raw) -> np.ndarray:
    with av.open(str(raw)) as container:
        return np.array([place for place, _ in passes.decode_in_order(container, container.streams.video[0])])


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """The packets of all frames that passes decode."""
    seen: list[int] = []
    decode = passes.decode_in_order

    def count(container, stream):
        for place, frame in decode(container, stream):
            seen.append(place)
            yield place, frame

    monkeypatch.setattr(passes, "decode_in_order", count)
    return seen


def to_rgb(frame: av.VideoFrame) -> np.ndarray:
    return frame.to_ndarray(format="rgb24")


def test_clips_in_order_share_one_pass(raw, whole, order, decoded):
    one = DecodingPass(raw, order)
    for rows in ([0, 3, 9], [9, 12], [12, 12], [150, 199]):
        pixels = one.read(rows, to_rgb)
        assert all(np.array_equal(pixels[row], whole[row]) for row in rows)
    assert len(decoded) == FRAMES
    assert one.read([FRAMES], to_rgb) == {}


def test_an_earlier_clip_starts_a_new_pass(raw, whole, order, decoded):
    one = DecodingPass(raw, order)
    for rows in ([50], [199], [20], [199]):
        assert np.array_equal(one.read(rows, to_rgb)[rows[0]], whole[rows[0]])
    assert len(decoded) == 2 * FRAMES


def test_the_threads_of_a_cache_decode_a_file_once(raw, whole, decoded, tmp_path):
    records = [ClipRecord(f"{s:02d}", "a", raw, start_s=s, end_s=s + 1) for s in range(SECONDS)]
    config = DataConfig(frames=5, size=SIDE)
    cache = ClipCache(tmp_path, records, config, channels=1)
    # threads that start at once may begin twice; a pass per clip would be four times as much
    assert len(decoded) < 2 * FRAMES
    for second, record in enumerate(records):
        rows = [second * FPS + row for row in (2, 7, 12, 17, 22)]
        assert np.array_equal(cache[record].frames_T3SS.permute(0, 2, 3, 1), whole[rows])
        assert torch.equal(cache[record].frames_T3SS, read_pair(record, config, channels=1, side=SIDE).frames_T3SS)


def _read_in_child(path: Path, rows: list[int], queue) -> None:
    queue.put(read_frames_at(path, rows))


def test_a_forked_process_leaves_its_parents_pass_alone(raw, whole):
    assert np.array_equal(read_frames_at(raw, [30])[0], whole[30])
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_read_in_child, args=(raw, [40, 60], queue))
    child.start()
    assert np.array_equal(queue.get(timeout=60), whole[[40, 60]])
    child.join()
    assert np.array_equal(read_frames_at(raw, [41, 199]), whole[[41, 199]])
