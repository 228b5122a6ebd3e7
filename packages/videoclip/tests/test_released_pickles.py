"""A pickle of arrays and containers is read as `pickle` reads it; any other is refused in one line and runs nothing."""

import builtins
import collections
import os
import pathlib
import pickle
import pickletools
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_common.errors import DataError
from videoclip.released.pickles import PlainArray, read_plain_pickle


def plain(value):
    """The content with arrays in place of PlainArrays."""
    if isinstance(value, PlainArray):
        return value.value
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    return value


CONTENT = {
    "annotations": [
        {
            "keypoint": np.arange(2 * 3 * 17 * 2, dtype=np.float32).reshape(2, 3, 17, 2),
            "keypoint_score": np.asfortranarray(np.random.default_rng(0).random((1, 3, 17))),
            "frame_dir": "/workspace/é/a.mp4",
            "img_shape": (512, 512),
            "total_frames": np.int64(3),
            "label": 2,
            "empty": np.zeros((0, 4), dtype=np.uint8),
            "other": [np.array([True, False]), np.array(5, dtype=">i2"), None, 1.5, b"bytes", {1, 2}],
        }
    ],
    "split": collections.OrderedDict(train=["a"], val=[]),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("core", ["numpy._core", "numpy.core"])
def test_it_reads_what_pickle_reads(tmp_path, protocol, core):
    file = tmp_path / "plain.pkl"
    content = pickle.dumps(CONTENT, protocol=protocol)
    if core == "numpy.core" and protocol < 4:  # as NumPy 1 wrote; later protocols count the letters of a name
        content = content.replace(b"cnumpy._core.", b"cnumpy.core.")
    file.write_bytes(content)
    found = plain(read_plain_pickle(file))
    np.testing.assert_equal(found, CONTENT)
    for name in ("keypoint", "keypoint_score", "empty"):
        assert found["annotations"][0][name].dtype == CONTENT["annotations"][0][name].dtype


class Runs:
    """Unpickled by `pickle`, it calls a function with arguments."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


FOREIGN = {
    "os.system": Runs(os.system, "touch ran"),
    "builtins.eval": Runs(builtins.eval, "open('ran', 'w')"),
    "builtins.getattr": Runs(getattr, "", "join"),
    "builtins.open": Runs(open, "ran", "w"),
    "pathlib": pathlib.PurePosixPath("a"),
    "torch._utils": torch.zeros(2),
    "numpy.dtype": [Runs(np.dtype, "O")],
    "collections.defaultdict": collections.defaultdict(list),
    "numpy objects": np.array([Runs(os.system, "touch ran")], dtype=object),
    "numpy text": np.array(["a"]),
    "a function": os.getcwd,
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_it_refuses_all_else_in_one_line_and_runs_nothing(tmp_path, monkeypatch, name, protocol):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "foreign.pkl"
    file.write_bytes(pickle.dumps({"annotations": FOREIGN[name]}, protocol=protocol))
    with pytest.raises(
        DataError, match=r"foreign\.pkl: (refused, because it names|not a pickle of plain values)"
    ) as raised:
        read_plain_pickle(file)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "ran").exists()


HAND_MADE = {
    "setstate of a class": b"cnumpy.core.multiarray\n_reconstruct\n(I1\nI2\ntb.",
    "an array of a class of its own": b"cnumpy.core.multiarray\n_reconstruct\n)\x81}b.",
    "call of ndarray": b"cnumpy\nndarray\n(I1000000000\ntR.",
    "a name in a name": b"\x80\x04\x8c\x05numpy\x8c\x14ndarray.tofile.__call__\x93.",
    "a registered extension": b"\x80\x02\x82\x01.",
    "a persistent id": b"\x80\x02U\x01aQ.",
    "codec": b"c_codecs\nencode\n(Va\nVzlib\ntR.",
    "type of no number": b"cnumpy\ndtype\n(VO8\ntR.",
    "an array larger than its bytes": (
        b"cnumpy.core.numeric\n_frombuffer\n(C\x02abcnumpy\ndtype\n(Vu1\ntR(I1000000000000\ntVC\ntR."
    ),
    "cut off": pickle.dumps(CONTENT)[:-40],
    "empty": b"",
    "text": b"not a pickle",
    "no stop": b"(lp0\n",
}


@pytest.mark.parametrize("name", HAND_MADE)
def test_hand_made_and_damaged_pickles_are_one_line(tmp_path, name):
    file = tmp_path / "made.pkl"
    file.write_bytes(HAND_MADE[name])
    with pytest.raises(DataError) as raised:
        read_plain_pickle(file)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(DataError, match=r"none\.pkl: cannot be read \(No such file"):
        read_plain_pickle(tmp_path / "none.pkl")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_anywhere_is_a_value_or_one_line(tmp_path_factory, data):
    content = bytearray(pickle.dumps(CONTENT, protocol=data.draw(st.integers(0, 5))))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.mktemp("damaged") / "damaged.pkl"
    file.write_bytes(content)
    with suppress(DataError):  # and no other error
        read_plain_pickle(file)


def test_the_test_content_has_the_calls_that_matter():
    called = {argument for _, argument, _ in pickletools.genops(pickle.dumps(CONTENT, protocol=2)) if argument}
    assert {"numpy._core.multiarray _reconstruct", "_codecs encode", "numpy._core.multiarray scalar"} <= {
        text for text in called if isinstance(text, str)
    }
