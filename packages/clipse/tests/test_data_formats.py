"""One set in every format: the same images, captions and splits, and the same rsum to the last digit."""

from pathlib import Path

import pytest
from helpers.real import real_data
from toy_formats import FORMATS, Piece, png_as_jpeg, write_karpathy

from clipse import score
from clipse.data import check, load_captions


@pytest.fixture(scope="session")
def drawn(scenes) -> list[Piece]:
    """Drawn scenes in the order of their names, with captions that try commas and quotes."""
    pieces = []
    for number, record in enumerate(load_captions(scenes).images):
        awkward = (f'a "quoted", numbered scene {number}', f'scene {number}, "so to speak"')
        content = png_as_jpeg(record.read())
        pieces.append(Piece(f"{number:04} ä.jpg", record.split, (*record.captions, *awkward), content))
    return pieces


def evaluate(root: Path, overrides: list[str], runs: Path) -> dict[str, float]:
    """Metrics of the tiny CLIP on the test split, with nothing cached."""
    data = [override for override in overrides if override.startswith("data.root=")] or [f"data.root={root}"]
    rest = [override for override in overrides if not override.startswith("data.root=")]
    return score("tiny", overrides=[*data, *rest, f"runs={runs}"]).evaluation.result.metrics


@pytest.fixture(scope="session")
def expected(drawn, tmp_path_factory) -> dict[str, float]:
    folder = tmp_path_factory.mktemp("karpathy")
    write_karpathy(folder, drawn)
    return evaluate(folder, [], tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("layout", FORMATS)
def test_every_format_gives_the_same_records_and_the_same_scores(layout, drawn, expected, tmp_path, monkeypatch):
    format, write = FORMATS[layout]
    root = tmp_path / "set"
    root.mkdir()
    monkeypatch.chdir(tmp_path)
    overrides = write(root, drawn)
    settings = dict(override.removeprefix("data.").split("=", 1) for override in overrides)
    columns = {key.removeprefix("columns."): name for key, name in settings.items() if key.startswith("columns.")}
    files = settings.get("files", "[]").strip("[]").split(",") if "files" in settings else ()
    place = settings.get("root", root)
    data = load_captions(place, files=files, columns=columns)
    assert data.format == format
    for split in ("train", "val", "test"):
        ours = [(record.captions, record.read()) for record in data.split(split)]
        assert ours == [(piece.captions, piece.content) for piece in drawn if piece.split == split]
    report = check(place, files=files, columns=columns)
    assert (report.problems, report.unlisted) == ([], 0)
    assert evaluate(root, overrides, tmp_path / "runs") == expected


@pytest.mark.real
@pytest.mark.parametrize("layout", FORMATS)
def test_the_real_captions_give_the_same_scores_in_every_format(layout, real_pieces, real_scores, tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    overrides = FORMATS[layout][1](root, real_pieces)
    assert evaluate(root, [*overrides, f"data.cache_dir={tmp_path / 'cache'}"], tmp_path / "runs") == real_scores


@pytest.fixture(scope="session")
def real_pieces() -> list[Piece]:
    """The real captions in the order of the images' names, spaces and line ends in captions made single spaces."""
    records = sorted(load_captions(real_data("captions")).images, key=lambda record: record.name)
    words = [tuple(" ".join(caption.split()) for caption in record.captions) for record in records]
    return [Piece(one.name, one.split, said, one.read()) for one, said in zip(records, words, strict=True)]


@pytest.fixture(scope="session")
def real_scores(real_pieces, tmp_path_factory) -> dict[str, float]:
    folder = tmp_path_factory.mktemp("karpathy")
    write_karpathy(folder, real_pieces)
    return evaluate(folder, [], tmp_path_factory.mktemp("runs"))
