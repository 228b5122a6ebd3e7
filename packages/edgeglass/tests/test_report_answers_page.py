"""The page of answers: every picture, question and answer, nothing loaded, nothing executed."""

import pytest
from PIL import Image

from edgeglass.report.answers_page import PageAnswer, write_answers


def test_a_page_of_answers(tmp_path):
    Image.new("RGB", (400, 200), (200, 0, 0)).save(tmp_path / "ü red.png")
    answers = [
        PageAnswer(tmp_path / "ü red.png", "what colour?", "red", "red", 1.0),
        PageAnswer(tmp_path / "ü red.png", "<b>how</b> many?", "<script>1</script>", "2", 0.0),
        PageAnswer(None, "the capital of France?", "", "Paris", 0.0),
    ]
    page = write_answers(tmp_path / "answers.html", answers, title="run <1>", note="3 questions, accuracy 0.333")
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/jpeg;base64,") == 2
    assert text.count("✓") == 1
    assert text.count("✗") == 2
    assert "truth: <bdi>2</bdi>" in text
    assert "(nothing)" in text
    assert "<script>" not in text
    assert "&lt;b&gt;how&lt;/b&gt;" in text
    write_answers(page, answers[:1], title="again", note="")
    assert "again" in page.read_text(encoding="utf-8")


def test_a_foreign_file_is_not_replaced(tmp_path):
    (tmp_path / "notes.html").write_text("mine")
    with pytest.raises(ValueError, match="exists and is no page of edgeglass vlm-eval"):
        write_answers(tmp_path / "notes.html", [], title="run", note="")
