"""The report: complete, escaped, readable without colour, and never over somebody else's file."""

import base64
import io
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aaclip.data import DataError
from aaclip.detector.calibration import Threshold
from aaclip.report.findings import Finding, Region
from aaclip.report.pages import write_page

THRESHOLD = Threshold(0.5, "conformal", target_fpr=0.01, images=120)


class Page(HTMLParser):
    """Tags with their attributes, the text between, and whether every tag is closed."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if self.open[-1:] != ["style"] else ""

    def all(self, tag):
        return [attributes for each, attributes in self.tags if each == tag]

    def pictures(self):
        prefix = "data:image/jpeg;base64,"
        sources = [attributes["src"] for attributes in self.all("img")]
        assert all(source.startswith(prefix) for source in sources)
        return [Image.open(io.BytesIO(base64.b64decode(source.removeprefix(prefix)))) for source in sources]


def finding(folder, name="part.png", *, score=0.75, anomalous=True, size=(60, 40), hot=0.0, regions=(), **options):
    path = folder / name
    Image.new("RGB", size, (90, 120, 150)).save(path)
    heat_HW = np.full((size[1] // 2, size[0] // 2), hot, np.float32)
    return Finding(path, options.get("noun", "metal nut"), score, anomalous, heat_HW, tuple(regions))


def report(folder, *findings, file="report.html", **options):
    arguments = {"title": "Shift 3", "threshold": THRESHOLD, "model": "aaclip/first"} | options
    if threshold := arguments["threshold"]:
        arguments |= {"threshold": threshold.value, "threshold_reason": threshold.describe()}
    return write_page(folder / file, findings, **{"threshold_reason": ""} | arguments)


def test_a_report_tells_what_was_found(tmp_path):
    region = Region(left=2, top=3, right=12, bottom=8, area=40, peak=0.875)
    file = report(
        tmp_path,
        finding(tmp_path, "low.png", score=0.125, anomalous=False),
        finding(tmp_path, "high.png", score=0.875, regions=[region]),
        finding(tmp_path, "mid.png", score=0.625),
        failures={"bad/ü <1>.png": "not a readable image"},
    )
    page = Page(file)
    assert page.open == []
    assert "Shift 3" in page.text
    assert "▲ 2 anomalous" in page.text
    assert "✓ 1 normal" in page.text
    assert "✕ 1 could not be read" in page.text
    assert "no verdict" not in page.text
    assert "A score of 0.500 or more means anomalous" in page.text
    assert "at most 1 %, judged by 120 images" in page.text
    assert "aaclip/first · 20" in page.text  # and the date
    assert "bad/ü <1>.png: not a readable image" in page.text
    found = re.findall(r"([▲✓] \w+?)(0\.\d{3})", page.text)
    assert found == [("▲ anomalous", "0.875"), ("▲ anomalous", "0.625"), ("✓ normal", "0.125")]
    assert "20 × 10 pixels at (4, 6), peak 0.88" in page.text  # the map is half as large as the picture
    assert page.text.index("Could not be read") > page.text.index("low.png")


def test_the_bar_shows_score_and_threshold(tmp_path):
    page = Page(report(tmp_path, finding(tmp_path, score=0.875)))
    (bar,) = [attributes for attributes in page.all("div") if attributes.get("role") == "img"]
    assert bar["aria-label"] == "score 0.875, threshold 0.500"
    assert [page.all(tag)[0]["style"] for tag in ("i", "u")] == ["width:87.5%", "left:50.0%"]
    page = Page(report(tmp_path, finding(tmp_path, score=-3.0), threshold=Threshold(1.5, "given")))
    assert [page.all(tag)[0]["style"] for tag in ("i", "u")] == ["width:0.0%", "left:100.0%"]


def test_without_a_threshold_there_are_no_verdicts(tmp_path):
    page = Page(report(tmp_path, finding(tmp_path, anomalous=None), threshold=None))
    assert "No threshold is set" in page.text
    assert "– 1 no verdict" in page.text
    assert "anomalous" not in page.text.replace("Anomalous", "").lower()
    assert page.all("u") == []


@pytest.mark.parametrize(
    ("threshold", "said"),
    [
        (Threshold(0.25, "normal_quantile", 0.05, 40), "at most 5 % of 40 images that are normal reach it"),
        (Threshold(0.25, "best_f1", None, 1200), "the best F1 on 1,200 images"),
        (Threshold(0.25, "given"), "0.250 or more means anomalous: as given"),
    ],
)
def test_the_threshold_is_explained(tmp_path, threshold, said):
    assert said in Page(report(tmp_path, finding(tmp_path), threshold=threshold)).text


def test_a_report_stands_alone(tmp_path):
    file = report(tmp_path, finding(tmp_path, size=(1200, 400)))
    assert [picture.size for picture in Page(file).pictures()] == [(360, 120)] * 2
    rest = re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", file.read_text(encoding="utf-8"))
    assert not [word for word in ("<script", "<link", "http:", "https:", "//", "url(", "@import") if word in rest]
    assert "prefers-color-scheme: dark" in rest
    assert "width=device-width" in rest


def test_heat_is_on_one_scale_and_beside_the_picture(tmp_path):
    findings = [finding(tmp_path, f"{hot}.png", score=1 - hot, hot=hot) for hot in (0.0, 0.25, 1.0)]
    pixels = [np.asarray(picture, float).mean(axis=(0, 1)) for picture in Page(report(tmp_path, *findings)).pictures()]
    plain = np.array([90, 120, 150])
    heat = [np.abs(pixels[place] - plain).max() for place in (1, 3, 5)]
    assert [np.abs(pixels[place] - plain).max() < 3 for place in (0, 2, 4)] == [True] * 3
    assert heat[0] < 3 < heat[1] < heat[2]


def test_everything_is_escaped(tmp_path):
    odd = '<img src=x onerror="alert(1)">&amp;'
    try:
        found = finding(tmp_path, odd.replace("/", "") + ".png", noun=odd)
    except OSError:
        pytest.skip("this file system takes no such name")
    file = report(tmp_path, found, title=odd, model=odd, failures={odd: odd})
    page = Page(file)
    assert page.text.count(odd) >= 6
    assert len(page.all("img")) == 2
    assert not [attributes for _, attributes in page.tags if "onerror" in attributes]


def test_names_that_are_no_utf8_are_shown(tmp_path):
    try:
        found = finding(tmp_path, os.fsdecode(b"latin \xe9.png"))
    except OSError:
        pytest.skip("this file system takes no such name")
    file = report(tmp_path, found, failures={os.fsdecode(b"\xe9.png"): "gone"})
    assert "latin \N{REPLACEMENT CHARACTER}.png" in Page(file).text
    assert "\N{REPLACEMENT CHARACTER}.png: gone" in Page(file).text


def test_many_regions_are_counted(tmp_path):
    regions = [Region(column, 0, column + 1, 1, 1, 0.9) for column in range(0, 20, 2)]
    page = Page(report(tmp_path, finding(tmp_path, regions=regions)))
    assert page.text.count("pixels at") == 4
    assert "and 6 more" in page.text


def test_findings_may_come_one_by_one_and_failures_with_them(tmp_path):
    failures = {}

    def looked():
        yield finding(tmp_path)
        failures["late.png"] = "truncated"

    page = Page(
        write_page(
            tmp_path / "r.html", looked(), title="t", threshold=None, threshold_reason="", model="m", failures=failures
        )
    )
    assert "✕ 1 could not be read" in page.text
    assert "late.png: truncated" in page.text


def test_nothing_found_is_a_report_too(tmp_path):
    assert "no picture" in Page(report(tmp_path)).text


def test_equal_scores_keep_their_order(tmp_path):
    page = Page(report(tmp_path, *(finding(tmp_path, f"{name}.png") for name in "bac")))
    assert re.findall(r"(\w)\.png · ", page.text) == ["b", "a", "c"]


def test_a_report_replaces_a_report_and_nothing_else(tmp_path):
    file = tmp_path / "report.html"
    file.write_text("<p>mine</p>")
    with pytest.raises(ValueError, match=r"report\.html exists and is no page of aaclip predict"):
        report(tmp_path, finding(tmp_path))
    assert file.read_text() == "<p>mine</p>"
    file.unlink()
    report(tmp_path, finding(tmp_path))
    report(tmp_path, finding(tmp_path), title="again")
    assert "again" in Page(file).text


def test_a_report_is_written_whole_or_not_at_all(tmp_path):
    gone = finding(tmp_path, "gone.png")
    gone.path.unlink()
    with pytest.raises(DataError, match=r"gone\.png"):
        report(tmp_path, finding(tmp_path), gone)
    assert not list(tmp_path.glob("*.html"))
    assert not list(tmp_path.glob(".*"))
