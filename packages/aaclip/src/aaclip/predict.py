"""Verdicts for files, a folder or a glob, and what a person looks at: overlays, masks, one JSON line each, a page."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aaclip.calibration import Threshold, conformal, normal_quantile
from aaclip.data import DataError, read_image
from aaclip.detector import Detection, Detector, save_threshold
from aaclip.overlay import overlay
from aaclip.page import require_replaceable, write_page
from aaclip.regions import Finding
from clip_common.page import printable
from clip_common.reporting import Progress, Reporter, silent
from clip_common.runs import write_atomically
from clip_common.runs.files import write_text

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
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


def predict_files(
    detector: Detector,
    files: Sequence[Path],
    *,
    name: str,
    folder: Path,
    page: Path | None = None,
    model: str,
    reporter: Reporter = silent,
) -> Predictions:
    """Look at every file; one that cannot be read does not stop the others.

    Args:
        detector: Its threshold makes the verdicts.
        files: Pictures.
        name: What is in them.
        folder: Gets an overlay and a mask a picture, and predictions.jsonl.
        page: An HTML report besides.
        model: What the report calls the model.
        reporter: Shows progress.
    """
    if page is not None:
        require_replaceable(page)
    predictions = Predictions(folder, page=page)
    stems = unique_stems(files)
    folder.mkdir(parents=True, exist_ok=True)

    def findings(progress: Progress | None) -> Iterator[Finding]:
        for done, file in enumerate(files, start=1):
            try:
                picture = read_image(file)
            except DataError as error:
                predictions.failures[printable(file)] = printable(str(error))
            else:
                found = next(detector.predictions([picture], name=name))
                predictions.lines.append(write_one(folder, stems[file], file, picture, found, name=name))
                yield finding_of(file, found, name=name)
            if progress is not None:
                progress(done, len(files))

    with reporter(f"looking at {len(files):,} pictures") as progress:
        if page is None:
            for _ in findings(progress):  # each picture's files are written as it is looked at
                continue
        else:
            title, failures = f"{name}: {len(files):,} pictures", predictions.failures
            threshold = detector.threshold
            write_page(page, findings(progress), title=title, threshold=threshold, model=model, failures=failures)
    write_text(folder / LINES, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in predictions.lines))
    return predictions


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
    progress: Progress | None = None,
) -> Threshold:
    """Set a saved detector's threshold from normal pictures, and write it beside the weights.

    Args:
        source: A run folder or a saved detector.
        files: Normal pictures, none of them trained on.
        name: What is in them.
        target_fpr: Share of normal pictures that may be called anomalous.
        guarantee: Promise that share for the next picture (`calibration.conformal`).
        progress: Called as `progress(done, total)`.

    Raises:
        ValueError: A picture that cannot be read, too few for the promise, or too many that score 1: nothing scores
            more, so there would be no verdict but "normal".
    """
    detector = Detector.from_pretrained(source)
    scores = []
    # one at a time, as `predict_files` looks at them: a batch may round the score that the threshold lies just above
    for done, found in enumerate(detector.predictions(files, name=name, batch_size=1), start=1):
        scores.append(found.score)
        if progress is not None:
            progress(done, len(files))
    threshold = (conformal if guarantee else normal_quantile)(scores, target_fpr)
    if threshold.value > 1:
        raise ValueError(
            f"more than {100 * target_fpr:g} % of the {len(files)} normal pictures score 1, and nothing more: "
            "give a higher --target-fpr or a fitting --name, or train on pictures like these"
        )
    save_threshold(source, threshold)
    return threshold


def files_of(sources: Sequence[str], *, without: Path | None = None) -> list[Path]:
    """The pictures that files, folders (to any depth) and globs stand for, in the order of their names.

    Args:
        sources: Hidden files in a folder are no pictures of it.
        without: Folder of earlier outputs, which are not looked at in turn when they lie in a folder of pictures.

    Raises:
        DataError: Nothing is there, or a folder without pictures.
    """
    found: list[Path] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if _is_picture_of(path, file, without=without))
        elif path.exists():
            inside = [path]
        else:
            matching = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
            inside = sorted(file for file in matching if file.is_file())
        if not inside:
            kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
            raise DataError(f"{source}: no picture there ({kinds}); name a file, a folder or a glob")
        found += inside
    return list(dict.fromkeys(found))


def _is_picture_of(folder: Path, file: Path, *, without: Path | None) -> bool:
    if file.suffix.lower() not in SUFFIXES or not file.is_file():
        return False
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not hidden and not (without is not None and file.absolute().is_relative_to(without.absolute()))


def unique_stems(files: Sequence[Path]) -> dict[Path, str]:
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
