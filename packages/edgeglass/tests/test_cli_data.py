"""`edgeglass data check` and `edgeglass data synthetic`."""

from functools import partial

import pytest
import toy_conversations
import toy_samples as toy
from helpers.commands import call, refused, succeeded

from edgeglass.cli.main import app


@pytest.fixture
def edgeglass(capsys):
    return partial(call, app, capsys)


def test_a_drawn_set_passes_its_check(edgeglass, tmp_path):
    arguments = ["--train", 6, "--val", 2, "--test", 2, "--size", 32]
    assert "10 scenes" in succeeded(edgeglass("data", "synthetic", tmp_path / "scenes", *arguments))
    printed = succeeded(edgeglass("data", "check", tmp_path / "scenes"))
    assert "jsonl" in printed
    counts = {" ".join(words[:-3]): words[-3:] for words in map(str.split, printed.splitlines())}
    assert counts["captions"] == ["30", "10", "10"]
    assert counts["with image and text"] == counts["with audio and text"] == counts["samples"] == ["6", "2", "2"]
    refused(edgeglass("data", "synthetic", tmp_path / "scenes", *arguments), "scenes")


def test_problems_are_listed_and_the_command_fails(edgeglass, tmp_path):
    toy.write_jsonl(tmp_path)
    (tmp_path / "sounds" / "zwölf.wav").write_bytes(b"no sound")
    (tmp_path / "sounds" / "d.wav").write_bytes(toy.wav(0 * toy.tone()))
    result = edgeglass("data", "check", tmp_path)
    refused(result, "1 problem(s), listed above; data.on_error=skip trains without them")
    assert "zwölf.wav" in result[1]
    assert "remark: " in result[1]
    assert "d.wav: silent" in result[1]


def test_a_folder_without_a_set(edgeglass, tmp_path):
    refused(edgeglass("data", "check", tmp_path), "no set of a known format")
    refused(edgeglass("data", "check", tmp_path / "nowhere"), "no such file or folder")


def counts_in(printed: str) -> dict[str, list[str]]:
    """Row of the table → its three numbers."""
    return {" ".join(words[:-3]): words[-3:] for words in map(str.split, printed.splitlines()) if len(words) > 3}


def test_drawn_questions_pass_their_check(edgeglass, tmp_path):
    arguments = ["--what", "questions", "--size", 32, "--types", "yes/no, compare"]
    arguments += ["--train", 5, "--per-picture", 4, "--val", 0, "--test", 16]
    assert "48 questions" in succeeded(edgeglass("data", "synthetic", tmp_path / "asked", *arguments))
    printed = succeeded(edgeglass("data", "check", tmp_path / "asked"))
    assert "every image decodes, every question has an answer" in printed
    counts = counts_in(printed)
    assert counts["conversations"] == counts["turns"] == ["20", "0", "28"]
    assert counts["images"][0] == "5"
    assert counts["text only"] == ["0", "0", "0"]
    assert counts["questions of type compare"][2] == "16"
    refused(edgeglass("data", "synthetic", tmp_path / "scenes", "--per-picture", 3), "add --what questions")
    refused(edgeglass("data", "synthetic", tmp_path / "b", "--what", "questions", "--types", "love"), "types=love")


def test_questions_and_captions_are_checked(edgeglass, tmp_path):
    toy.write_media(tmp_path / "media")
    questions = toy_conversations.write_rows(tmp_path, toy_conversations.ROWS)
    assert "4 problem(s)" in str(edgeglass("data", "check", questions))
    assert "every image decodes" in succeeded(edgeglass("data", "check", questions, "--images", tmp_path / "media"))
    toy.write_rows(tmp_path / "media", toy.rows())
    printed = succeeded(edgeglass("data", "check", tmp_path / "media", "--format", "captions"))
    assert counts_in(printed)["questions of type caption"] == ["4", "1", "2"]
    refused(edgeglass("data", "check", tmp_path / "media", "--images", "x"), "holds no questions")
