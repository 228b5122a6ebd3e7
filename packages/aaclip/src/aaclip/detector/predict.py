"""Predict, calibrate and remember on files: overlays, masks, one JSON line each, an HTML page, a threshold."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image

from aaclip.data.selection import check_not_trained_on
from aaclip.data.unreadable import Unreadable, all_unreadable, attempt
from aaclip.detector.calibration import Threshold, choose_threshold, conformal, normal_quantile
from aaclip.detector.detection import Detection
from aaclip.detector.detector import Detector
from aaclip.detector.files import save_memories, save_threshold
from aaclip.report.findings import Finding
from aaclip.report.overlay import overlay
from aaclip.report.pages import check_replaceable, write_page
from clip_common.errors import printable
from clip_common.images import find_images, read_image
from clip_common.reporting import Progress, Reporter, silent
from clip_common.runs import write_atomically

LINES = "predictions.jsonl"
BATCH, PIXELS = 8, 2**25
"""Pictures or tiles at a time, and the pixels from which a batch of pictures is full: 100 MB of them."""
STEM = 180
"""Bytes of an output's name before its suffix; file systems allow 255 in all."""


@dataclass
class Predictions:
    """Result of `predict_files`.

    Attributes:
        folder: Where everything was written.
        images: Pictures that were given.
        threshold: Behind the verdicts; None: there are none.
        lines: The JSON lines, as they were written.
        failures: File → what is wrong with it; the others were predicted all the same.
        page: The HTML report, if one was asked for.
    """

    folder: Path
    images: int
    threshold: Threshold | None
    lines: list[dict[str, Any]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    page: Path | None = None


@dataclass(frozen=True)
class Calibration:
    """Result of `calibrate`.

    Attributes:
        threshold: As it was written beside the weights.
        images: Pictures that were given.
        failures: File → what is wrong with it; the threshold is from the others.
    """

    threshold: Threshold
    images: int
    failures: dict[str, str]


def predict_files(
    detector: Detector,
    images: Sequence[str | Path],
    *,
    name: str,
    folder: Path,
    threshold: float | None = None,
    tile: int | None = None,
    page: Path | None = None,
    reporter: Reporter = silent,
) -> Predictions:
    """Predict every picture; one that cannot be read does not stop the others.

    A picture's files and its line are written before the next batch, so that a killed job leaves what it finished.

    Args:
        detector: Makes the predictions.
        images: Files, folders or globs; pictures in `folder` are left out.
        name: What they show.
        folder: Gets an overlay and a mask for each picture, and predictions.jsonl.
        threshold: Of the score, instead of the detector's own.
        tile: Side of the tiles to look at; None: whole pictures.
        page: An HTML report besides.
        reporter: Shows progress.

    Raises:
        ValueError: No picture, an empty name, a page that another program wrote, or tiles that the threshold was not
            calibrated with; nothing has been written then.
    """
    files = find_images(images, exclude=folder)
    if page is not None:
        check_replaceable(page)
    detector.class_embedding(name)
    limit = choose_threshold(detector.threshold, threshold, tile=tile)
    predictions = Predictions(folder, images=len(files), threshold=limit, page=page)
    stems, failures = name_outputs(files), predictions.failures
    folder.mkdir(parents=True, exist_ok=True)

    def findings(stream: TextIO, progress: Progress | None) -> Iterator[Finding]:
        seen = _predict_each(
            detector, files, name=name, threshold=threshold, tile=tile, failures=failures, progress=progress
        )
        for file, picture, found in seen:
            line = _write_outputs(folder, stems[file], file, picture, found, name=name)
            predictions.lines.append(line)
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
            stream.flush()
            anomalous = None if found.verdict is None else found.verdict == "anomalous"
            yield Finding(file, name, found.score, anomalous, found.heatmap_HW, tuple(found.boxes))

    with (
        reporter(f"looking at {len(files):,} pictures") as progress,
        (folder / LINES).open("w", encoding="utf-8", newline="\n") as stream,
    ):
        if page is None:
            for _ in findings(stream, progress):
                continue
        else:
            write_page(
                page,
                findings(stream, progress),
                title=f"{name}: {len(files):,} pictures",
                threshold=None if limit is None else limit.value,
                threshold_reason="" if limit is None else limit.describe(),
                model=detector.name,
                failures=failures,
            )
    return predictions


def calibrate(
    source: Path,
    images: Sequence[str | Path],
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
        images: Normal pictures: files, folders or globs; any that the run was trained on are refused.
        name: What they show.
        target_fpr: Share of normal pictures that may be called anomalous.
        guarantee: Promise that share for the next picture (`calibration.conformal`).
        tile: Side of the tiles that will be predicted; None: whole pictures.
        progress: Called as `progress(done, total)`.

    Raises:
        ValueError: Pictures that the run learned from, none that can be read, too few for the promise, or too many that
            score 1 to five digits: no score is higher, so every verdict would be "normal". The threshold stays
            unchanged.
    """
    files = find_images(images)
    check_not_trained_on(source, files, purpose="calibrate")
    detector = Detector.from_pretrained(source)
    detector.threshold = None  # it may be for other tiles
    failures: dict[str, str] = {}
    seen = _predict_each(detector, files, name=name, tile=tile, failures=failures, progress=progress)
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
    return Calibration(threshold, len(files), failures)


def remember_files(source: Path, images: Sequence[str | Path], *, name: str) -> int:
    """Let a saved detector remember normal pictures (`Detector.remember`), and save them beside the weights.

    Args:
        source: A run folder or a saved detector.
        images: Normal pictures: files, folders or globs.
        name: What they show.

    Returns:
        Number of pictures.

    Raises:
        ValueError: A picture that cannot be read; nothing is changed then.
    """
    files = find_images(images)
    detector = Detector.from_pretrained(source)
    detector.remember(files, name=name)
    save_memories(source, detector.memories)
    return len(files)


def name_outputs(files: Sequence[Path]) -> dict[Path, str]:
    """Return the stem of each file's outputs: its own, with its folders before it if names repeat."""
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


def _predict_each(
    detector: Detector,
    files: Sequence[Path],
    *,
    name: str,
    threshold: float | None = None,
    tile: int | None,
    failures: dict[str, str],
    progress: Progress | None = None,
) -> Iterator[tuple[Path, Image.Image, Detection]]:
    """Yield each file with its picture and prediction; those that cannot be read go to `failures` instead.

    Whole pictures are read and predicted in batches, each when its first one is asked for.
    """
    done = 0
    for batch in _read_batches(files, size=1 if tile else BATCH):
        pictures = [picture for _, picture in batch if not isinstance(picture, Unreadable)]
        found = detector.predictions(pictures, name=name, threshold=threshold, tile=tile, batch_size=BATCH)
        for file, picture in batch:
            if isinstance(picture, Unreadable):
                failures[picture.file] = picture.problem
            else:
                yield file, picture, next(found)
            done += 1
            if progress is not None:
                progress(done, len(files))


def _read_batches(files: Sequence[Path], *, size: int) -> Iterator[list[tuple[Path, Image.Image | Unreadable]]]:
    """Yield files with their pictures, up to `size` at a time, or fewer once they have `PIXELS` together."""
    batch: list[tuple[Path, Image.Image | Unreadable]] = []
    pixels = 0
    for file in files:
        picture = attempt(read_image, file, file=file)
        batch.append((file, picture))
        pixels += 0 if isinstance(picture, Unreadable) else picture.width * picture.height
        if len(batch) == size or pixels >= PIXELS:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


def _write_outputs(
    folder: Path, stem: str, file: Path, picture: Image.Image, found: Detection, *, name: str
) -> dict[str, Any]:
    """Write overlay and mask of one picture, and return its JSON line."""
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


def _cut(stem: str) -> str:
    coded = os.fsencode(stem)
    return stem if len(coded) <= STEM else coded[:STEM].decode("utf-8", "ignore")
