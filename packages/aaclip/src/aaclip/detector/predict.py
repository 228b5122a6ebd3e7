"""Verdicts for files, a folder or a glob, and what a person looks at: overlays, masks, one JSON line each, a page."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image

from aaclip.data import read_image
from aaclip.data.selection import check_not_trained_on
from aaclip.data.unreadable import Unreadable, all_unreadable, attempt
from aaclip.detector.calibration import Threshold, conformal, normal_quantile
from aaclip.detector.detection import Detection
from aaclip.detector.detector import Detector
from aaclip.detector.files import save_memories, save_threshold
from aaclip.detector.regions import Finding
from aaclip.report.overlay import overlay
from aaclip.report.pages import require_replaceable, write_page
from clip_common.page import printable
from clip_common.reporting import Progress, Reporter, silent
from clip_common.runs import write_atomically

LINES = "predictions.jsonl"
STEM = 180
"""Bytes of an output's name before what is added to it; file systems allow 255 in all."""


@dataclass
class Predictions:
    """What `predict_files` leaves.

    Attributes:
        folder: Where everything was written.
        lines: The JSON lines, as they were written.
        failures: File → what is wrong with it; the others were looked at all the same.
        page: The HTML report, if one was asked for.
    """

    folder: Path
    lines: list[dict[str, Any]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    page: Path | None = None


@dataclass(frozen=True)
class Calibration:
    """What `calibrate_on` leaves.

    Attributes:
        threshold: As it was written beside the weights.
        failures: File → what is wrong with it; the threshold rests on the others.
    """

    threshold: Threshold
    failures: dict[str, str]


def predict_files(
    detector: Detector,
    files: Sequence[Path],
    *,
    name: str,
    tile: int | None = None,
    folder: Path,
    page: Path | None = None,
    model: str,
    reporter: Reporter = silent,
) -> Predictions:
    """Look at every file; one that cannot be read does not stop the others.

    A picture's files and its line are written as it is looked at, so that a killed job leaves those of what it did.

    Args:
        detector: Its threshold makes the verdicts.
        files: Pictures.
        name: What is in them.
        tile: Side of the tiles to look at; None: whole pictures.
        folder: Gets an overlay and a mask a picture, and predictions.jsonl.
        page: An HTML report besides.
        model: What the report calls the model.
        reporter: Shows progress.

    Raises:
        ValueError: A name that is none, a page that is somebody else's, or tiles that the threshold is not for; nothing
            has been written then.
    """
    if page is not None:
        require_replaceable(page)
    detector.class_embedding(name)
    detector.limit(None, tile=tile)
    predictions = Predictions(folder, page=page)
    stems, failures = name_outputs(files), predictions.failures
    folder.mkdir(parents=True, exist_ok=True)

    def findings(stream: TextIO, progress: Progress | None) -> Iterator[Finding]:
        for file, picture, found in looks(detector, files, name=name, tile=tile, failures=failures, progress=progress):
            line = write_one(folder, stems[file], file, picture, found, name=name)
            predictions.lines.append(line)
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
            stream.flush()
            yield finding_of(file, found, name=name)

    with (
        reporter(f"looking at {len(files):,} pictures") as progress,
        (folder / LINES).open("w", encoding="utf-8", newline="\n") as stream,
    ):
        if page is None:
            for _ in findings(stream, progress):
                continue
        else:
            title, threshold, found = f"{name}: {len(files):,} pictures", detector.threshold, findings(stream, progress)
            write_page(page, found, title=title, threshold=threshold, model=model, failures=failures)
    return predictions


def looks(
    detector: Detector,
    files: Sequence[Path],
    *,
    name: str,
    tile: int | None,
    failures: dict[str, str],
    progress: Progress | None = None,
) -> Iterator[tuple[Path, Image.Image, Detection]]:
    """One file after another with what is found in it; those that cannot be read go to `failures` instead."""
    for done, file in enumerate(files, start=1):
        picture = attempt(read_image, file, file=file)
        if isinstance(picture, Unreadable):
            failures[picture.file] = picture.problem
        else:
            yield file, picture, next(detector.predictions([picture], name=name, tile=tile))
        if progress is not None:
            progress(done, len(files))


def write_one(
    folder: Path, stem: str, file: Path, picture: Image.Image, found: Detection, *, name: str
) -> dict[str, Any]:
    """Overlay and mask of one picture; what its line says."""
    shown = overlay(picture, found.heatmap_HW, regions=found.boxes)
    mask = Image.fromarray(found.mask_HW.astype(np.uint8) * 255)
    written = {"overlay": folder / f"{stem}_overlay.png", "mask": folder / f"{stem}_mask.png"}
    for image, target in ((shown, written["overlay"]), (mask, written["mask"])):
        with write_atomically(target) as temporary:
            image.save(temporary, format="PNG")
    return {
        "image": printable(file),
        "name": name,
        "verdict": found.verdict,
        "score": round(found.score, 6),
        "boxes": [asdict(region) for region in found.boxes],
        **{key: printable(path) for key, path in written.items()},
    }


def finding_of(file: Path, found: Detection, *, name: str) -> Finding:
    """What the report shows."""
    anomalous = None if found.verdict is None else found.verdict == "anomalous"
    return Finding(file, name, found.score, anomalous, found.heatmap_HW, tuple(found.boxes))


def calibrate_on(
    source: Path,
    files: Sequence[Path],
    *,
    name: str,
    target_fpr: float,
    guarantee: bool,
    tile: int | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Set a saved detector's threshold from normal pictures, and write it beside the weights.

    A picture that cannot be read does not stop the others.

    Args:
        source: A run folder or a saved detector.
        files: Normal pictures; any that the run was trained on are refused.
        name: What is in them.
        target_fpr: Share of normal pictures that may be called anomalous.
        guarantee: Promise that share for the next picture (`calibration.conformal`).
        tile: Side of the tiles that will be looked at; None: whole pictures.
        progress: Called as `progress(done, total)`.

    Raises:
        ValueError: Pictures that the run learned from, none that can be read, too few for the promise, or too many that
            score 1 to five digits: nothing scores more, so there would be no verdict but "normal". The threshold stays
            as it was.
    """
    check_not_trained_on(source, files, purpose="calibrate")
    detector = Detector.from_pretrained(source)
    failures: dict[str, str] = {}
    detector.threshold = None  # of whichever tiles
    seen = looks(detector, files, name=name, tile=tile, failures=failures, progress=progress)
    scores = [found.score for *_, found in seen]
    if not scores:
        raise all_unreadable(failures)
    try:
        threshold = replace((conformal if guarantee else normal_quantile)(scores, target_fpr), tile=tile)
    except ValueError as error:
        if not failures:
            raise
        raise ValueError(f"{error} ({len(failures)} of {len(files)} could not be read)") from error
    if threshold.value > 1:
        raise ValueError(
            f"more than {100 * target_fpr:g} % of the {len(scores)} normal pictures score 1, to five digits: "
            "give a higher --target-fpr or a fitting --name, or train on pictures like these"
        )
    save_threshold(source, threshold)
    return Calibration(threshold, failures)


def remember_files(source: Path, files: Sequence[Path], *, name: str) -> int:
    """Let a saved detector remember normal pictures (`Detector.remember`), and write it. Returns how many.

    Raises:
        ValueError: A picture that cannot be read; nothing is changed then.
    """
    detector = Detector.from_pretrained(source)
    detector.remember(files, name=name)
    save_memories(source, detector.memories)
    return len(files)


def name_outputs(files: Sequence[Path]) -> dict[Path, str]:
    """What the outputs of each file are called: its name, with its folders where names repeat."""
    stems: dict[Path, str] = {}
    taken: set[str] = set()
    for file in files:
        parts = list(file.absolute().parts[1:])
        stem, depth = _cut(file.stem), 1
        while stem in taken and depth < len(parts):
            depth += 1
            stem = _cut("_".join([*parts[-depth:-1], file.stem]))
        while stem in taken:  # a.png beside a.jpg
            stem = f"{stem}_{file.suffix[1:]}"
        taken.add(stem)
        stems[file] = stem
    return stems


def _cut(stem: str) -> str:
    coded = os.fsencode(stem)
    return stem if len(coded) <= STEM else coded[:STEM].decode("utf-8", "ignore")
