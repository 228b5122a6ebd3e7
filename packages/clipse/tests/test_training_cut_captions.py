"""Captions with more tokens than the text tower reads: counted and told."""

import warnings

import pytest
from toy_runs import configured

from clipse import train
from clipse.data import check


@pytest.fixture
def long(scenes, tmp_path):
    """The scenes with one caption each: every second has 90 words, the first 87 bytes but few tokens."""
    folder = tmp_path / "long"
    folder.mkdir()
    (folder / "Images").symlink_to(scenes / "Images")
    names = sorted(path.name for path in (scenes / "Images").iterdir())
    captions = ["dog " * 90 if place % 2 else f"thing {place}" for place in range(len(names))]
    captions[0] = "a considerable neighbourhood " * 3
    lines = [f"{name},{caption.strip()}" for name, caption in zip(names, captions, strict=True)]
    (folder / "captions.txt").write_text("image,caption\n" + "\n".join(lines) + "\n")
    return folder


def test_a_run_warns_of_cut_captions_and_counts_them_in_its_result(small, long, scenes):
    said = r"of \d+ captions of the (train|val) split .* the first is 'dog dog"
    with pytest.warns(UserWarning, match=said) as warned:
        run = train(configured(small, f"data.root={long}", "name=long", "trainer.max_epochs=1")).run
    cut = run.result["cut_captions"]
    assert cut["train"] > 10
    assert cut["val"] > 0
    assert len([one for one in warned if "left out" in str(one.message)]) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run = train(configured(small, "name=short", "trainer.max_epochs=1")).run
    assert run.result["cut_captions"] == {"train": 0, "val": 0}


def test_data_check_notes_cut_captions(long, scenes, clipse):
    assert any("40 of 80 captions have more than the 77 tokens that CLIP reads" in note for note in check(long).notes)
    code, printed, _ = clipse("data", "check", str(long))
    assert code == 0
    assert "the first is 'dog dog" in " ".join(printed.split())
    assert not any("tokens" in note for note in check(scenes).notes)
