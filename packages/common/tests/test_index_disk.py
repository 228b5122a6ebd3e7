"""An index on disk: whole after a kill, a full disk or a second writer; damage is refused in one line."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import toy_index as toy
from helpers.files import full_disk
from safetensors.torch import save_file

from clip_common.index import VectorIndex, VectorIndexError, store

fork = multiprocessing.get_context("fork")


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "toy.index"


def state(folder: Path) -> dict:
    return toy.contents(VectorIndex.open(folder))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def check_nothing_is_left_over(folder: Path) -> None:
    listed = json.loads((folder / "index.json").read_text())["segments"]
    assert sorted(file.name for file in folder.iterdir()) == sorted([".lock", "index.json", *listed])


# kills


def edit_and_save(folder: Path, round: int) -> None:
    """One state of many: each round adds two items, replaces one and deletes one; some merge segments."""
    index = toy.index_in(folder)
    toy.put(index, 3 * round, 3 * round + 1)
    toy.put(index, 0)
    index.delete([id for id in ["1", str(3 * round - 3)] if id in index and id != "0"])
    index.save()


def kill_at_event(number: int, folder: Path, round: int) -> None:
    """Kill this process at the number-th time that it opens, renames or removes anything."""
    events = 0

    def hook(event: str, _arguments: object) -> None:
        nonlocal events
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.listdir", "os.chmod"):
            events += 1
            if events == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    edit_and_save(folder, round)


@pytest.mark.parametrize("rounds", [0, 1, 3, 16])  # the first save, one more, one that drops rows, one that merges
def test_a_kill_at_any_step_of_a_save_leaves_the_former_or_the_new_state(folder, rounds):
    for round in range(rounds):
        edit_and_save(folder, round)
    former = state(folder) if rounds else None
    whole = folder.with_name("whole")
    if rounds:
        shutil.copytree(folder, whole)
    edit_and_save(whole, rounds)
    new = state(whole)
    seen = set()
    for number in range(1, 1000):
        copy = folder.with_name(f"killed at {number}")
        if rounds:
            shutil.copytree(folder, copy)
        process = fork.Process(target=kill_at_event, args=(number, copy, rounds))
        process.start()
        process.join()
        if (copy / "index.json").exists():
            found = state(copy)
            assert found in (former, new), f"killed at step {number}"
        else:
            assert former is None, f"killed at step {number}"
            found = None
        seen.add("new" if found == new else "former")
        if process.exitcode == 0:
            break
        edit_and_save(copy, rounds)  # a later process goes on, and sweeps
        assert toy.contents(VectorIndex.open(copy)).keys() == new.keys()
        check_nothing_is_left_over(copy)
        shutil.rmtree(copy)
    assert number > 8, "the hook saw nothing"
    assert seen == {"former", "new"}


def save_without_end(folder: Path, told: Path) -> None:
    index = toy.index_in(folder)
    for round in range(len(index), 100_000):
        toy.put(index, round)
        index.save()
        told.write_text(str(round + 1))


def test_a_kill_at_any_time_loses_nothing_that_was_saved(folder, tmp_path):
    told, delays = tmp_path / "told", random.Random(0)
    for _ in range(12):
        process = fork.Process(target=save_without_end, args=(folder, told))
        process.start()
        time.sleep(delays.uniform(0.05, 0.4))
        process.kill()
        process.join()
        if folder.exists():
            count = int(told.read_text() or 0) if told.exists() else 0
            ids = toy.index_in(folder).ids
            assert ids == [str(number) for number in range(len(ids))]
            assert len(ids) >= count
    assert len(ids) > 12
    index = toy.index_in(folder)
    index.delete(["0"])
    index.save()
    check_nothing_is_left_over(folder)


def save_much(folder: Path) -> None:
    index = toy.index_in(folder)
    index.add(["large"], torch.zeros(1, 20_000_000))
    index.save()


def test_a_kill_while_a_segment_is_written_leaves_nothing_for_long(folder):
    process = fork.Process(target=save_much, args=(folder,))
    process.start()
    while process.is_alive() and not list(folder.glob(".tmp*")):  # what safetensors calls a file before it is whole
        time.sleep(0.0005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    index = toy.index_in(folder)
    assert len(index) == 0
    toy.put(index, 1)
    index.save()
    check_nothing_is_left_over(folder)


# a full disk


@pytest.mark.parametrize("size", [0, 100, 2000])
def test_a_full_disk_leaves_the_former_state_and_the_changes(folder, size):
    index = toy.index_in(folder)
    toy.put(index, *range(300))
    index.save()
    before = snapshot(folder)
    toy.put(index, *range(200, 400))
    expected = toy.contents(index)
    with full_disk(size), pytest.raises(OSError, match=r"too large"):
        index.save()
    assert snapshot(folder) == before
    assert toy.contents(index) == expected
    index.save()
    assert state(folder) == expected


def test_a_failure_before_the_manifest_is_replaced_leaves_the_former_state(folder, monkeypatch):
    index = toy.index_in(folder)
    toy.put(index, 1)
    index.save()
    before = snapshot(folder)
    toy.put(index, 2)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(store, "write_manifest", full)
        with pytest.raises(OSError, match="No space left"):
            index.save()
    assert snapshot(folder) == before
    index.save()
    assert state(folder).keys() == {"1", "2"}


def test_ctrl_c_in_a_save_loses_nothing(folder, monkeypatch):
    index = toy.index_in(folder)
    toy.put(index, 1)
    index.save()
    toy.put(index, 2)
    write = store.write_manifest

    def interrupted(*arguments):
        write(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(store, "write_manifest", interrupted)
        with pytest.raises(KeyboardInterrupt):
            index.save()
    assert state(folder).keys() == {"1", "2"}
    toy.put(index, 3)
    index.save()
    assert state(folder) == toy.contents(index)
    assert index.ids == ["1", "2", "3"]


# several processes


def add_own(folder: Path, writer: int, rounds: int) -> None:
    index = toy.index_in(folder)
    for round in range(rounds):
        toy.put(index, 1000 * writer + round)
        if round:
            index.delete([str(1000 * writer + round - 1)] if round % 3 == 0 else [])
        index.save()


def own(writer: int, rounds: int) -> set[str]:
    gone = {round - 1 for round in range(3, rounds, 3)}
    return {str(1000 * writer + round) for round in range(rounds) if round not in gone}


def test_writers_take_turns_and_readers_see_whole_states(folder):
    writers = [fork.Process(target=add_own, args=(folder, writer, 40)) for writer in (1, 2)]
    for writer in writers:
        writer.start()
    reads = 0
    while any(writer.is_alive() for writer in writers):
        try:
            index = VectorIndex.open(folder)
        except FileNotFoundError:
            continue
        reads += 1
        assert len(index.nearest(toy.vectors_of([1])[0], 1000)) == len(index) == len(toy.contents(index))
        for writer in (1, 2):
            ids = {id for id in index.ids if int(id) // 1000 == writer}
            assert ids in [own(writer, rounds) for rounds in range(41)]
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert reads > 10
    assert set(VectorIndex.open(folder).ids) == own(1, 40) | own(2, 40)


def test_a_writer_applies_its_changes_to_the_newest_state(folder):
    first, second = toy.index_in(folder), toy.index_in(folder)
    toy.put(first, 1, 2, 3)
    first.save()
    toy.put(second, 3, 4)
    second.save()
    assert second.ids == ["1", "2", "3", "4"]
    first.delete(["2", "3"])
    second.delete(["3"])
    second.save()
    first.save()
    assert first.ids == VectorIndex.open(folder).ids == ["1", "4"]


def test_a_reader_goes_on_with_what_it_opened(folder):
    index = toy.index_in(folder)
    toy.put(index, *range(20))
    index.save()
    reader = VectorIndex.open(folder)
    expected = toy.contents(reader)
    index.delete([str(number) for number in range(15)])
    index.save()  # removes the segment that the reader maps
    assert toy.contents(reader) == expected
    assert len(reader.nearest(toy.vectors_of([1])[0], 20)) == 20


def test_an_index_deleted_while_it_was_in_use_is_told(folder):
    index = toy.index_in(folder)
    toy.put(index, 1)
    index.save()
    shutil.rmtree(folder)
    toy.put(index, 2)
    with pytest.raises(VectorIndexError, match="deleted or replaced by another index"):
        index.save()


# damage


def segment_of(folder: Path) -> Path:
    return next(folder.glob("segment-*.safetensors"))


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def manifest_with(folder: Path, **changes: object) -> None:
    file = folder / "index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


DAMAGES = {
    "half a segment": lambda folder: halve(segment_of(folder)),
    "no segment": lambda folder: segment_of(folder).unlink(),
    "weights as a segment": lambda folder: save_file({"weight": torch.zeros(3)}, segment_of(folder)),
    "half a manifest": lambda folder: halve(folder / "index.json"),
    "no JSON object": lambda folder: (folder / "index.json").write_text("[]"),
    "no format": lambda folder: (folder / "index.json").write_text("{}"),
    "a later format": lambda folder: manifest_with(folder, format=3),
    "an unknown field": lambda folder: manifest_with(folder, more=1),
    "another width": lambda folder: manifest_with(folder, width=5),
    "a segment too few": lambda folder: manifest_with(
        folder, segments=json.loads((folder / "index.json").read_text())["segments"][1:]
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_index_is_refused_in_one_line_that_says_what_to_do(folder, damage):
    index = toy.index_in(folder)
    toy.put(index, 1, 2, 3, 4, 5, 6, 7, 8)
    index.save()
    toy.put(index, 8, 9)
    index.save()
    damage(folder)
    for opened in (VectorIndex.open, toy.index_in):
        with pytest.raises(VectorIndexError) as error:
            opened(folder)
        assert str(error.value).startswith(f"{folder} is damaged, or no index of this version (")
        assert str(error.value).endswith("): delete it, and the items are encoded again")
        assert "\n" not in str(error.value)
    shutil.rmtree(folder)
    assert len(toy.index_in(folder)) == 0


def test_an_index_of_the_former_version_is_refused(tmp_path):
    file = tmp_path / "photos.safetensors"
    parts = {"names": torch.tensor([97], dtype=torch.uint8), "vectors": torch.ones(1, 4)}
    save_file(parts, file, metadata={"index": '{"format": 1}'})
    with pytest.raises(VectorIndexError, match=r"photos\.safetensors .*\(a file.*delete it, and the items are encoded"):
        toy.index_in(file)


def test_a_folder_of_other_files_is_no_place_for_an_index(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(VectorIndexError, match=r"holds model\.safetensors and no index: name a new folder"):
        toy.index_in(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == b"weights"
