"""`check_conversations`: every image decoded, problems and remarks named, contents counted."""

import pytest
import toy_conversations as toy
from toy_conversations import ROWS

from edgeglass.data.conversations import check_conversations


def test_counts(tmp_path):
    toy.write_set(tmp_path)
    done = []
    report = check_conversations(tmp_path, progress=lambda *state: done.append(state))
    assert report.ok
    assert report.remarks == []
    assert report.format == "jsonl"
    assert report.counts == {
        "conversations": {"train": 4, "val": 1, "test": 1},
        "turns": {"train": 4, "val": 1, "test": 1},
        "images": {"train": 2, "val": 1, "test": 1},
        "text only": {"train": 1, "val": 0, "test": 0},
    }
    assert report.types == {
        "": {"train": 3, "val": 1, "test": 0},
        "colour": {"train": 0, "val": 0, "test": 1},
        "object": {"train": 1, "val": 0, "test": 0},
    }
    assert done[-1] == (4, 4)


def test_problems_and_remarks(tmp_path):
    toy.write_set(tmp_path)
    toy.write_rows(tmp_path, [*ROWS, {"question": "q?", "answer": "", "split": "val"}])
    (tmp_path / "images" / "zwölf.png").unlink()
    (tmp_path / "images" / "ein hund.png").write_bytes(b"no image")
    (tmp_path / "images" / "d.png").write_bytes((tmp_path / "images" / "c.png").read_bytes())
    report = check_conversations(tmp_path)
    assert not report.ok
    missing, broken, empty = report.problems
    assert "zwölf.png: no such file" in missing
    assert "ein hund.png: not a readable image" in broken
    assert "questions.jsonl, line 7: an empty answer to 'q?'" in empty
    (copy,) = report.remarks
    assert "d.png: in test, with the same content as " in copy
    assert report.counts["conversations"] == {"train": 1, "val": 1, "test": 1}


def test_a_set_that_cannot_be_read(tmp_path):
    with pytest.raises(toy.DataError, match="no set of a known format"):
        check_conversations(tmp_path)
    toy.write_rows(tmp_path, [toy.dialogue("q?", image=None)])
    with pytest.raises(toy.DataError, match="ends with a question"):
        check_conversations(tmp_path)
