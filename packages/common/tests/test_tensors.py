"""Tensors in files: they come back as they were, damage is one line, a write is whole or not there."""

import errno
import multiprocessing
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
import torch
from helpers.files import full_disk
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from toy_tensors import write_many

from clip_common.tensors import (
    TensorsError,
    check_fingerprint,
    check_fit,
    load_state,
    read_checkpoint,
    read_metadata,
    read_tensor,
    read_tensors,
    write_tensors,
)

STATE = {"visual.proj": torch.arange(6.0).reshape(2, 3), "text.proj": torch.ones(4, dtype=torch.float16)}


@contextmanager
def refused(*words: str):
    with pytest.raises(TensorsError) as caught:
        yield
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


@pytest.fixture
def file(tmp_path):
    return tmp_path / "größe 大 [1]" / "model ü.safetensors"


def test_tensors_come_back_as_they_were(file):
    given = STATE | {
        "ids": torch.tensor([3, 1], dtype=torch.int64),
        "mask": torch.tensor([True, False]),
        "scalar": torch.tensor(0.5, requires_grad=True),
        "none": torch.empty(0, 7),
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    assert write_tensors(file, given) == file
    found = read_tensors(file)
    assert found.keys() == given.keys()
    for name, tensor in given.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor.detach())


def test_strides_and_slices_are_written_as_they_look(file):
    whole = torch.arange(12.0).reshape(3, 4)
    write_tensors(file, {"turned": whole.T, "columns": whole[:, 1:3], "lines": whole[::2]})
    found = read_tensors(file)
    assert torch.equal(found["turned"], whole.T)
    assert torch.equal(found["columns"], whole[:, 1:3])
    assert torch.equal(found["lines"], whole[::2])
    assert all(tensor.is_contiguous() for tensor in found.values())


@given(st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=4))
def test_any_metadata_comes_back(tmp_path_factory, metadata):
    file = tmp_path_factory.mktemp("metadata") / "x.safetensors"
    write_tensors(file, STATE, metadata=metadata)
    assert read_metadata(file) == {"format": "pt"} | metadata


def test_a_file_without_metadata_has_an_empty_dict(tmp_path):
    save_file(STATE, tmp_path / "x.safetensors")
    assert read_metadata(tmp_path / "x.safetensors") == {}


def test_a_part_is_read_without_the_rest(file, monkeypatch):
    write_tensors(file, STATE)
    asked = []

    class Watched:
        def __init__(self, *arguments, **options):
            self.opened = safe_open(*arguments, **options)

        def __enter__(self):
            self.stored = self.opened.__enter__()
            return self

        def __exit__(self, *error):
            return self.opened.__exit__(*error)

        def keys(self):
            return self.stored.keys()

        def get_tensor(self, name):
            asked.append(name)
            return self.stored.get_tensor(name)

    monkeypatch.setattr("safetensors.safe_open", Watched)
    assert torch.equal(read_tensor(file, "text.proj"), STATE["text.proj"])
    assert read_tensors(file, without=("text.", "other")).keys() == {"visual.proj"}
    assert read_checkpoint(file, without=("visual.",)).keys() == {"text.proj"}
    assert asked == ["text.proj", "visual.proj", "text.proj"]
    with refused("model ü.safetensors", "absent"):
        read_tensor(file, "absent")


def test_a_file_may_be_read_by_whoever_may_read_files_made_here(file):
    write_tensors(file, STATE)
    other = file.with_name("other")
    other.touch()
    assert file.stat().st_mode == other.stat().st_mode


# damage


DAMAGE = {
    "empty": lambda content: b"",
    "short": lambda content: content[:5],
    "header cut": lambda content: content[:40],
    "values cut": lambda content: content[:-3],
    "text": lambda content: b"these are no weights at all, whatever it is",
    "another format": lambda content: b"PK\x03\x04" + bytes(60),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("read", [read_tensors, read_metadata, lambda file: read_tensor(file, "text.proj")])
def test_a_damaged_file_is_one_line(file, damage, read):
    write_tensors(file, STATE)
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    with refused("model ü.safetensors is damaged", "delete it"):
        read(file)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin", ".ckpt"])
def test_a_damaged_checkpoint_is_one_line(file, damage, suffix):
    file = file.with_suffix(suffix)
    file.parent.mkdir()
    write_tensors(file, STATE) if suffix == ".safetensors" else torch.save(STATE, file)
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    with refused(file.name, "cannot be read as weights", "truncated", "get it again"):
        read_checkpoint(file)


@pytest.mark.parametrize("read", [read_tensors, read_metadata, read_checkpoint])
def test_no_file_and_a_folder_are_one_line(file, read):
    with refused(str(file), "no such file"):
        read(file)
    with refused("no such file"):
        read(file.parent.parent)


def test_a_file_that_may_not_be_read_is_one_line(file, monkeypatch):
    def forbidden(*arguments, **options):
        raise PermissionError("Permission denied (os error 13)")

    write_tensors(file, STATE)
    monkeypatch.setattr("safetensors.safe_open", forbidden)
    with refused("model ü.safetensors", "Permission denied"):
        read_tensors(file)


# checkpoints


@pytest.mark.parametrize("wrapper", ["", "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_is_unwrapped(tmp_path, wrapper, prefix):
    state = {f"{prefix}{name}": tensor for name, tensor in STATE.items()} | {"epoch": 3}
    torch.save({wrapper: state, "optimizer": {"lr": 0.1}} if wrapper else state, tmp_path / "c.pt")
    found = read_checkpoint(tmp_path / "c.pt")
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)
    assert read_checkpoint(tmp_path / "c.pt", without=("text.",)).keys() == {"visual.proj"}


def test_a_prefix_that_some_lack_is_kept(tmp_path):
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "c.pt")
    assert read_checkpoint(tmp_path / "c.pt").keys() == {"module.a", "b"}


@pytest.mark.parametrize("content", [{"epoch": 3}, [torch.ones(1)], torch.ones(1), {"model": {}}, {}])
def test_a_checkpoint_without_weights_is_one_line(tmp_path, content):
    torch.save(content, tmp_path / "c.pt")
    with refused("c.pt holds no weights", "state_dict"):
        read_checkpoint(tmp_path / "c.pt")


def test_no_pickle_is_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("the pickle ran",))

    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pt")
    with refused("bomb.pt"):
        read_checkpoint(tmp_path / "bomb.pt")


# tensors of another model


def test_a_module_is_filled():
    module, other = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    other(torch.randn(5, 3))
    load_state(module, other.state_dict(), source="x.pt", called="a norm")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in module.state_dict().items())


def test_tensors_of_another_model_are_one_line_and_change_nothing():
    module = torch.nn.Linear(3, 2)
    before = module.weight.detach().clone()
    state = {"weight": torch.zeros(2, 4), "gain": torch.zeros(1)}
    with refused(
        "x.pt does not fit small: ",
        "of another model",
        "1 missing, such as bias",
        "1 foreign, such as gain",
        "1 of another shape, such as weight with (2, 4) instead of (2, 3)",
        "give the weights",
    ):
        load_state(module, state, source="x.pt", called="small")
    assert torch.equal(module.weight, before)
    with refused("2 missing, such as bias"):
        check_fit(module.state_dict(), {}, source="x.pt", called="small")
    check_fit(STATE, dict(reversed(STATE.items())), source="x.pt", called="small")


def test_a_fingerprint_tells_another_model():
    check_fingerprint("ab" * 32, "ab" * 32, source="saved", what="the image tower of ViT-B-32")
    with refused("saved is of another model", "the image tower of ViT-B-32", "cdcdcdcdcdcd…", "abababababab…"):
        check_fingerprint("ab" * 32, "cd" * 32, source="saved", what="the image tower of ViT-B-32")


# whole or not there


def test_a_full_disk_is_an_error_of_the_system_and_leaves_the_former_file(file):
    write_tensors(file, STATE)
    before = file.read_bytes()
    with full_disk(1000), pytest.raises(OSError, match="model ü") as caught:
        write_tensors(file, {"large": torch.ones(3000)})
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(file))
    assert file.read_bytes() == before
    assert sorted(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("text", ["Error while serializing: I/O error: No space left on device (os error 28)", "odd"])
def test_an_error_of_safetensors_leaves_nothing(file, monkeypatch, text):
    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError(text)

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError) as caught:
        write_tensors(file, STATE)
    assert caught.value.errno == (errno.ENOSPC if "28" in text else errno.EIO)
    assert sorted(file.parent.iterdir()) == []


@pytest.mark.parametrize("make", [threading.Thread, multiprocessing.get_context("spawn").Process])
def test_two_writers_at_once_leave_one_of_them_whole(file, make):
    writers = [make(target=write_many, args=(file, value)) for value in (1, 2)]
    for each in writers:
        each.start()
    while any(each.is_alive() for each in writers):
        if file.exists():
            assert read_tensor(file, "value").unique().tolist() in ([1], [2])
    for each in writers:
        each.join()
        assert getattr(each, "exitcode", 0) == 0
    assert read_tensor(file, "value").unique().tolist() in ([1], [2])
    assert sorted(file.parent.iterdir()) == [file]


def test_the_module_is_imported_without_safetensors():
    code = "import sys, clip_common.tensors; sys.exit('safetensors' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
