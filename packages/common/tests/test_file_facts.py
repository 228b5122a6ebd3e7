"""Facts about files: served while a file stays the same, and never after it has changed."""

import os
import time

import pytest

from clip_common.file_facts import FileFacts


@pytest.fixture
def photo(tmp_path):
    """A file that has not changed for a minute."""
    file = tmp_path / "bild ä.jpg"
    file.write_bytes(b"old")
    _age(file, seconds=60)
    return file


def _age(file, *, seconds):
    moment = time.time_ns() - seconds * 10**9
    os.utime(file, ns=(moment, moment))


def noted(tmp_path, photo, **part):
    facts = FileFacts(tmp_path / "cache" / "facts.json")
    facts.note(photo, "fact", **part)
    facts.save()
    return FileFacts(tmp_path / "cache" / "facts.json")


def test_a_fact_is_found_again(tmp_path, photo):
    assert noted(tmp_path, photo).find(photo) == "fact"


def test_parts_of_a_file_have_facts_of_their_own(tmp_path, photo):
    facts = noted(tmp_path, photo, part="0+2")
    assert facts.find(photo, part="0+2") == "fact"
    assert facts.find(photo, part="2+2") is None
    assert facts.find(photo) is None


@pytest.mark.parametrize("change", ["content", "time"])
def test_a_changed_file_has_none(tmp_path, photo, change):
    facts = noted(tmp_path, photo)
    if change == "content":
        photo.write_bytes(b"longer")
        _age(photo, seconds=60)
    else:
        _age(photo, seconds=30)
    assert facts.find(photo) is None


def test_a_file_that_has_just_changed_is_not_noted(tmp_path, photo):
    """It may change again within one tick of the clock, at the same size."""
    photo.write_bytes(b"new")
    assert noted(tmp_path, photo).find(photo) is None
    assert not (tmp_path / "cache").exists()


def test_what_others_saved_is_kept(tmp_path, photo):
    other = tmp_path / "other.jpg"
    other.write_bytes(b"x")
    _age(other, seconds=60)
    one, two = (FileFacts(tmp_path / "facts.json") for _ in range(2))
    one.note(photo, "first")
    two.note(other, "second")
    one.save()
    two.save()
    both = FileFacts(tmp_path / "facts.json")
    assert (both.find(photo), both.find(other)) == ("first", "second")


def test_the_work_is_done_once(tmp_path, photo):
    facts, done = FileFacts(tmp_path / "facts.json"), []
    for _ in range(2):
        assert facts.recall(photo, lambda: done.append(1) or "fact") == "fact"
    assert done == [1]


def test_a_file_that_changes_during_the_work_is_not_noted(tmp_path, photo):
    facts = FileFacts(tmp_path / "facts.json")
    assert facts.recall(photo, lambda: _age(photo, seconds=30) or "old") == "old"
    assert facts.find(photo) is None


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": 3}', '{"a": [1]}'])
def test_a_damaged_file_of_facts_counts_as_empty(tmp_path, photo, content):
    (tmp_path / "facts.json").write_text(content, encoding="utf-8")
    facts = FileFacts(tmp_path / "facts.json")
    assert facts.find(photo) is None
    facts.note(photo, "fact")
    facts.save()
    assert FileFacts(tmp_path / "facts.json").find(photo) == "fact"


def test_a_file_that_is_gone_is_an_error(tmp_path, photo):
    facts = noted(tmp_path, photo)
    photo.unlink()
    with pytest.raises(FileNotFoundError):
        facts.find(photo)
