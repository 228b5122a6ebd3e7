"""Files to verdicts: every kind of picture, files that are none, odd names, thresholds from normal pictures."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aaclip.data import DataError
from aaclip.detector.calibration import Logistic, Threshold
from aaclip.detector.detector import Detector
from aaclip.detector.predict import LINES, calibrate, name_outputs, predict_files
from clip_common.images import find_images


def picture(file: Path, *, seed: int = 0, size: tuple[int, int] = (40, 24)) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    return file


def looked_at(detector: Detector, files: list[Path], folder: Path, **more):
    return predict_files(detector, files, name="mug", folder=folder, **more)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / LINES).read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def kinds(tmp_path) -> Path:
    """A folder of pictures of every mode."""
    folder = tmp_path / "kinds"
    rgb = Image.open(picture(folder / "rgb.png"))
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.save(folder / "turned.jpg", exif=exif)
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.convert("P").save(folder / "palette.png", transparency=3)
    rgb.convert("L").save(folder / "gray.bmp")
    rgb.convert("LA").save(folder / "gray_alpha.png")
    rgb.convert("1").save(folder / "bilevel.tif")
    transparent = rgb.convert("RGBA")
    transparent.putalpha(40)
    transparent.save(folder / "alpha.webp", lossless=True)
    Image.fromarray(np.linspace(0, 65535, 960).reshape(24, 40).astype(np.uint16)).save(folder / "wide.tiff")
    picture(folder / "one.png", size=(1, 1))
    picture(folder / "column.png", size=(1, 30))
    return folder


def test_every_kind_of_picture_gets_an_overlay_a_mask_and_a_line_of_its_own_size(detector, kinds, tmp_path):
    files = find_images([str(kinds)])
    found = looked_at(detector, files, tmp_path / "out", page=tmp_path / "page.html")
    assert found.failures == {}
    assert [line["image"] for line in lines(tmp_path / "out")] == [str(file) for file in files]
    assert lines(tmp_path / "out") == found.lines
    sizes = {"one.png": (1, 1), "column.png": (1, 30), "turned.jpg": (24, 40)}
    for line in found.lines:
        assert 0 < line["score"] < 1
        assert line["verdict"] is None
        for kind in ("overlay", "mask"):
            with Image.open(line[kind]) as image:
                assert image.size == sizes.get(Path(line["image"]).name, (40, 24)), line["image"]
                assert image.mode == {"overlay": "RGB", "mask": "L"}[kind]
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count('<p class="verdict">') == len(files) == 11


def test_what_is_written_is_what_was_found(detector, tmp_path):
    file = picture(tmp_path / "in" / "part.png")
    detector.threshold = Threshold(0.1, method="given")
    line = looked_at(detector, [file], tmp_path / "out").lines[0]
    found = detector.predict(file, name="mug")
    assert line["score"] == pytest.approx(found.score, abs=1e-6)
    assert line["verdict"] == "anomalous"
    assert len(line["boxes"]) == len(found.boxes) > 0
    assert line["boxes"][0]["area"] == found.boxes[0].area
    np.testing.assert_array_equal(np.asarray(Image.open(line["mask"])) > 0, found.mask_HW)


def test_the_batch_goes_on_over_files_that_are_no_pictures(detector, tmp_path):
    good = [picture(tmp_path / "in" / name, seed=seed) for seed, name in enumerate(("a.png", "z.png"))]
    cut = picture(tmp_path / "in" / "cut.png")
    cut.write_bytes(cut.read_bytes()[:300])
    (tmp_path / "in" / "text.jpg").write_text("not an image")
    (tmp_path / "in" / "void.png").touch()
    files = find_images([str(tmp_path / "in")])
    found = looked_at(detector, files, tmp_path / "out", page=tmp_path / "page.html")
    assert [line["image"] for line in lines(tmp_path / "out")] == [str(file) for file in good]
    assert sorted(Path(file).name for file in found.failures) == ["cut.png", "text.jpg", "void.png"]
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    for file, problem in found.failures.items():
        assert problem.startswith(f"{file}: not a readable image")
        assert "\n" not in problem
        assert Path(file).name in page
    assert "3 could not be read" in page


def test_only_failures_still_leave_the_files_and_the_page(detector, tmp_path):
    (tmp_path / "no.png").write_text("no")
    found = looked_at(detector, [tmp_path / "no.png"], tmp_path / "out", page=tmp_path / "page.html")
    assert (len(found.failures), found.lines, lines(tmp_path / "out")) == (1, [], [])
    assert "could not be read" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", [None, "page.html"])
def test_each_line_is_on_the_disk_before_the_next_batch_is_looked_at(detector, tmp_path, monkeypatch, page):
    monkeypatch.setattr("aaclip.detector.predict.BATCH", 2)
    files = [picture(tmp_path / "in" / f"{seed}.png", seed=seed) for seed in range(7)]
    looked_at(detector, files[::-1], tmp_path / "out")  # an earlier job's lines are no part of this one's
    real, written = detector.scores, []

    def stopping(images, *given, **more):
        written.append(lines(tmp_path / "out"))
        if len(written) == 4:
            raise KeyboardInterrupt
        assert len(images) == 2
        return real(images, *given, **more)

    monkeypatch.setattr(detector, "scores", stopping)
    with pytest.raises(KeyboardInterrupt):
        looked_at(detector, files, tmp_path / "out", page=page and tmp_path / page)
    done = [[line["image"] for line in one] for one in written]
    assert done == [[str(file) for file in files[:n]] for n in (0, 2, 4, 6)]
    assert lines(tmp_path / "out") == written[-1]
    for line in written[-1]:
        assert Path(line["overlay"]).is_file()
        assert Path(line["mask"]).is_file()
    assert not (tmp_path / "page.html").exists()


def test_batches_are_those_of_one_picture_at_a_time_and_hold_few_pixels(detector, tmp_path, monkeypatch):
    files = [picture(tmp_path / "in" / f"{seed}.png", seed=seed, size=(40 + seed, 24)) for seed in range(7)]
    files[2].write_text("no")
    real, sizes = detector.scores, []

    def counted(images, *more, **named):
        sizes.append(len(images))
        return real(images, *more, **named)

    monkeypatch.setattr(detector, "scores", counted)
    together = looked_at(detector, files, tmp_path / "together")
    assert sizes == [6]
    monkeypatch.setattr("aaclip.detector.predict.PIXELS", 1900)
    few = looked_at(detector, files, tmp_path / "few")
    assert sizes[1:] == [2, 2, 2]
    monkeypatch.setattr("aaclip.detector.predict.BATCH", 1)
    alone = looked_at(detector, files, tmp_path / "alone")
    for found in (together, few):
        assert [line["image"] for line in found.lines] == [line["image"] for line in alone.lines]
        assert found.failures == alone.failures
        assert [line["score"] for line in found.lines] == pytest.approx(
            [line["score"] for line in alone.lines], abs=2e-6
        )
        for one, other in zip(found.lines, alone.lines, strict=True):
            np.testing.assert_array_equal(Image.open(one["mask"]), Image.open(other["mask"]))


def test_a_name_that_is_none_leaves_nothing(detector, tmp_path):
    with pytest.raises(ValueError, match="name of a thing is empty"):
        predict_files(detector, [picture(tmp_path / "a.png")], name=" ", folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_odd_names_and_names_that_repeat(detector, tmp_path):
    names = ["Schraube, groß.png", "螺丝 [b]1[/b].png", "a/part.png", "b/part.png", "b/part.jpg", "x.y/part.png"]
    files = [picture(tmp_path / "in" / name, seed=seed) for seed, name in enumerate(names)]
    found = looked_at(detector, files, tmp_path / "out", page=tmp_path / "page.html")
    assert [line["image"] for line in lines(tmp_path / "out")] == [str(file) for file in files]
    written = [line[kind] for line in found.lines for kind in ("overlay", "mask")]
    assert len(set(written)) == 2 * len(files)
    assert all(Path(file).is_file() for file in written)
    assert "Schraube, groß" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_name_that_is_no_text_is_told_with_a_mark(detector, tmp_path):
    try:
        file = picture(tmp_path / "in" / "ok.png").rename(tmp_path / "in" / os.fsdecode(b"\xff.png"))
    except OSError:
        pytest.skip("this file system takes text only")
    bad = tmp_path / "in" / os.fsdecode(b"\xfe.png")
    bad.write_text("no")
    found = looked_at(detector, [file, bad], tmp_path / "out", page=tmp_path / "page.html")
    assert [Path(line["image"]).name for line in lines(tmp_path / "out")] == ["\N{REPLACEMENT CHARACTER}.png"]
    assert [problem.isprintable() for problem in found.failures.values()] == [True]


def test_names_as_long_as_a_file_system_takes(detector, tmp_path):
    files = [picture(tmp_path / "in" / f"{'é' * 124}{end}.png") for end in "12"]  # 253 bytes
    found = looked_at(detector, files, tmp_path / "out")
    assert [line["image"] for line in found.lines] == [str(file) for file in files]
    assert len(list((tmp_path / "out").iterdir())) == 5


def test_stems_differ_where_names_or_folders_do_not():
    files = [Path(name) for name in ("/p/x.png", "/q/x.png", "/r/q/x.png", "/q_x.png", "/p/x.jpg", "/p/x.bmp")]
    stems = name_outputs(files)
    assert stems[files[0]] == "x"
    assert stems[files[1]] == "q_x"
    assert len(set(stems.values())) == len(files)
    assert not any("/" in stem for stem in stems.values())


def test_a_page_of_somebody_else_is_refused_before_anything_is_looked_at(detector, tmp_path):
    page = tmp_path / "mine.html"
    page.write_text("<html>my own</html>")
    with pytest.raises(ValueError, match=r"mine\.html exists and is no page of aaclip predict"):
        looked_at(detector, [picture(tmp_path / "a.png")], tmp_path / "out", page=page)
    assert page.read_text() == "<html>my own</html>"
    assert not (tmp_path / "out").exists()


def test_an_earlier_page_and_earlier_files_are_replaced(detector, tmp_path):
    file = picture(tmp_path / "a.png")
    for name in ("Erstes", "Zweites"):
        predict_files(detector, [file], name=name, folder=tmp_path / "out", page=tmp_path / "new" / "page.html")
    assert "Zweites" in (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert [line["name"] for line in lines(tmp_path / "out")] == ["Zweites"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["a_mask.png", "a_overlay.png", LINES]


def test_files_folders_and_globs(tmp_path):
    names = ["b.PNG", "a.jpg", "deep/er/c.tif", "notes.txt", ".hidden.png", ".cache/d.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_images([str(tmp_path)]) == [tmp_path / name for name in ("a.jpg", "b.PNG", "deep/er/c.tif")]
    assert find_images([str(tmp_path / "*.jpg"), str(tmp_path / "a.jpg")]) == [tmp_path / "a.jpg"]  # once
    assert find_images([str(tmp_path / "**" / "*.tif")]) == [tmp_path / "deep/er/c.tif"]
    assert tmp_path / "deep" not in find_images([str(tmp_path / "*")])  # a folder is no picture
    assert find_images([str(tmp_path / ".hidden.png")]) == [tmp_path / ".hidden.png"]  # named by the user
    (tmp_path / "[ab].png").touch()
    assert find_images([str(tmp_path / "[ab].png")]) == [tmp_path / "[ab].png"]  # a file before a pattern


def test_relative_globs(tmp_path, monkeypatch):
    (tmp_path / "x.png").touch()
    monkeypatch.chdir(tmp_path)
    assert find_images(["*.png"]) == [Path("x.png")]
    assert find_images(["."]) == [Path("x.png")]


@pytest.mark.parametrize("source", ["empty", "gone.png", "*.png", "text"])
def test_nothing_to_look_at_is_one_line(tmp_path, source):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").touch()
    with pytest.raises(DataError, match="no picture there") as error:
        find_images([str(tmp_path / source)])
    assert str(tmp_path / source) in str(error.value)
    assert "\n" not in str(error.value)


def test_outputs_beside_the_pictures_are_not_looked_at_the_next_time(detector, tmp_path):
    picture(tmp_path / "a.png")
    for _ in range(2):
        files = find_images([str(tmp_path)], exclude=tmp_path / "out")
        assert files == [tmp_path / "a.png"]
        looked_at(detector, files, tmp_path / "out")


@pytest.fixture
def normal(tmp_path) -> list[Path]:
    return [picture(tmp_path / "normal" / f"{seed}.png", seed=seed) for seed in range(10)]


@pytest.mark.parametrize(("guarantee", "above"), [(False, 2), (True, 1)])
def test_calibration_sets_the_rate_of_false_alarms(detector, saved, normal, guarantee, above):
    """Of 10 scores a quantile at 0.2 lets 2 pass; a promise of 0.2 for the 11th lets floor(0.2 · 11) − 1 = 1 pass."""
    calibration = calibrate(saved, normal, name="mug", target_fpr=0.2, guarantee=guarantee)
    again, threshold = Detector.from_pretrained(saved), calibration.threshold
    assert calibration.failures == {}
    assert again.threshold == threshold
    assert (threshold.images, threshold.target_fpr) == (10, 0.2)
    assert threshold.method == ("conformal" if guarantee else "normal_quantile")
    found = again.predict(normal, name="mug")
    assert [one.verdict for one in found].count("anomalous") == above
    alone = [again.predict(file, name="mug").verdict for file in normal]
    assert alone == [one.verdict for one in found]


def test_normal_pictures_that_score_1_are_no_ground_for_a_threshold(detector, saved, normal):
    """Nothing scores more: every picture would be called normal from then on."""
    detector.score = Logistic(a=0.0, b=0.0, c=60.0)
    detector.save_pretrained(saved)
    with pytest.raises(ValueError, match="more than 20 % of the 10 normal pictures score 1"):
        calibrate(saved, normal, name="mug", target_fpr=0.2, guarantee=False)
    assert Detector.from_pretrained(saved).threshold is None


def test_too_few_pictures_for_a_promise_leave_the_detector_without_a_threshold(saved, normal):
    with pytest.raises(ValueError, match="10 normal images cannot promise it, 99 can"):
        calibrate(saved, normal, name="mug", target_fpr=0.01, guarantee=True)
    assert Detector.from_pretrained(saved).threshold is None


def test_a_normal_picture_that_cannot_be_read_is_left_out_and_told(saved, normal):
    normal[3].write_text("no")
    steps = []
    calibration = calibrate(
        saved, normal, name="mug", target_fpr=0.2, guarantee=False, progress=lambda *step: steps.append(step)
    )
    assert list(calibration.failures) == [str(normal[3])]
    assert "3.png: not a readable image" in calibration.failures[str(normal[3])]
    assert steps == [(done, 10) for done in range(1, 11)]
    alone = calibrate(saved, normal[:3] + normal[4:], name="mug", target_fpr=0.2, guarantee=False)
    assert alone.threshold == calibration.threshold
    assert calibration.threshold.images == 9
    with pytest.raises(ValueError, match=r"9 normal images cannot promise it, 99 can.*\(1 of 10 could not be read\)"):
        calibrate(saved, normal, name="mug", target_fpr=0.01, guarantee=True)
    assert Detector.from_pretrained(saved).threshold == calibration.threshold


def test_normal_pictures_of_which_none_can_be_read_leave_the_threshold(saved, normal):
    for file in normal:
        file.write_text("no")
    with pytest.raises(DataError, match=r"none of 10 images could be read, first .*0\.png: not a readable image"):
        calibrate(saved, normal, name="mug", target_fpr=0.2, guarantee=False)
    assert Detector.from_pretrained(saved).threshold is None


def test_pictures_that_a_run_learned_from_set_no_threshold(trained, parts, tmp_path):
    run = Path(shutil.copytree(trained(), tmp_path / "run"))
    files = find_images([str(parts / "mug" / "train" / "good")])
    for source in (run, run / "model"):
        with pytest.raises(
            DataError, match=r"^2 of 2 images to calibrate on are among those that .*: calibrate on other"
        ):
            calibrate(source, files, name="mug", target_fpr=0.2, guarantee=False)
    assert Detector.from_pretrained(run).threshold is None
    calibrate(run, [picture(tmp_path / "new.png")], name="mug", target_fpr=0.2, guarantee=False)
    assert Detector.from_pretrained(run).threshold is not None
