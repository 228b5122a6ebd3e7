"""Threads of one pool read arrays of every kind, and no two of them parse a header at the same time."""

import ast
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from videoclip.data.decoding import probe, read_seconds
from videoclip.data.joints import load_joints
from videoclip.data.map_files import read_array


def _joints(folder: Path, index: int) -> Callable[[], object]:
    file = folder / f"joints-{index}.npy"
    np.save(file, np.full((4, 17, 3), 0.5, dtype=np.float32))
    return lambda: load_joints(file, width=32, height=32)


def _map(folder: Path, index: int) -> Callable[[], object]:
    file = folder / f"map-{index}.npy"
    np.save(file, np.zeros((4, 8, 8), dtype=np.uint8))
    return lambda: read_array(file)


def _map_archive(folder: Path, index: int) -> Callable[[], object]:
    file = folder / f"map-{index}.npz"
    np.savez(file, map=np.zeros((4, 8, 8), dtype=np.uint8))
    return lambda: read_array(file)


def _frames(folder: Path, index: int, read: Callable[[Path], object] = probe) -> Callable[[], object]:
    file = folder / f"{read.__name__}-{index}.npz"
    np.savez(file, frames=np.zeros((4, 8, 8, 3), dtype=np.uint8), fps=25.0)
    return lambda: read(file)


def _seconds(folder: Path, index: int) -> Callable[[], object]:
    return _frames(folder, index, read_seconds)


KINDS = (_joints, _map, _map_archive, _frames, _seconds)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_parse_one_header_at_a_time(tmp_path, monkeypatch, kind):
    """Two at once end, now and then, in a SystemError of CPython 3.11.7 and before."""
    tasks = [kind(tmp_path, index) for index in range(8)]
    parse, busy, most = ast.literal_eval, [], []

    def watched(text):
        busy.append(text)
        most.append(len(busy))
        time.sleep(0.002)  # long enough for another thread to come in between
        busy.pop()
        return parse(text)

    monkeypatch.setattr(ast, "literal_eval", watched)
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(task) for task in tasks]:
            future.result()
    assert len(most) >= len(tasks)
    assert max(most) == 1
