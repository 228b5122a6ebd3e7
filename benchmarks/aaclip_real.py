"""Two real sets, MVTec's bottle and magnetic tiles: aaclip trained on one and tested on the other, both ways.

    uv run python benchmarks/aaclip_real.py            # tiny at 112 and 336 pixels; about forty minutes on one core
    uv run python benchmarks/aaclip_real.py --quick    # 112 pixels, 4 images to train on, one epoch: does it run

The baseline is plain CLIP with the same prompts and maps. Training is few-shot, on normal and anomalous images; every
test image of the other set is scored. The tiny CLIP was trained on drawings, and these are its figures on photographs.
"""

import argparse
import os
import shutil
from pathlib import Path

from _measure import report

from aaclip.config import BackboneConfig
from aaclip.detector.detector import Detector
from aaclip.scoring.evaluation import evaluate
from aaclip.scoring.score import read_test_records
from aaclip.training.experiment import resolve, train

ASSETS = Path(__file__).resolve().parents[2] / "shared" / "assets" / "data"
SETS = ("bottle", "magnetic_tile")
SIZES = (112, 336)
KEYS = ("pixel/auroc", "image/auroc", "pixel/aupro")
STEPS = (
    "stages.text.batch_size=8",
    "stages.text.epochs=5",
    "stages.image.batch_size=2",
    "stages.image.epochs=20",
    "stages.image.lr=5e-4",
)
"""Settings of the source documents for epochs, batch and rate, so that few images make enough steps."""


def trained_on(root: Path, *, size: int, options: argparse.Namespace) -> Detector:
    """Train a detector on a few images of one set."""
    name = f"{root.name}-{size}"
    shutil.rmtree(options.runs / "aaclip" / name, ignore_errors=True)
    images = ["data.mode=few_shot", f"data.shot={options.shot}"]
    place = [f"data.root={root}", f"runs={options.runs}", f"name={name}", f"backbone.image_size={size}"]
    epochs = ["stages.text.epochs=1", "stages.image.epochs=1"] if options.quick else []
    found = train(resolve(config="tiny", overrides=[*place, *images, *STEPS, *epochs, *options.overrides]))
    assert found.detector is not None
    return found.detector


def row_of(learned: str, tested: Path, detector: Detector) -> dict[str, object]:
    """The figures of one set, each with its 95 % interval over images."""
    found = evaluate(detector, read_test_records(tested))
    row: dict[str, object] = {"pixels": detector.size, "trained on": learned, "tested on": tested.name}
    for key in KEYS:
        low, high = found.intervals[tested.name][key]
        row[key] = f"{found.classes[tested.name][key]:.3f} ({low:.3f}-{high:.3f})"
    return row | {"images": found.images[tested.name]}


def main() -> None:
    """Before and after, for each size and both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(os.environ.get("CLIP_REAL_DATA", ASSETS))
    parser.add_argument("--defects", type=Path, default=data / "defects", help=f"folder of {' and '.join(SETS)}")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "aaclip-real")
    parser.add_argument("--shot", type=int, default=32, help="training images: half normal, half with a defect")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    for name in SETS:
        if not (options.defects / name).exists():
            parser.error(f"{options.defects / name} is absent: this benchmark needs real images, see CONTRIBUTING.md")
    if options.quick:
        options.sizes, options.shot = SIZES[:1], 4
    rows = []
    for size in options.sizes:
        plain = Detector.plain(BackboneConfig(name="tiny", pretrained=None, activation=None, image_size=size))
        for learned, tested in (SETS, SETS[::-1]):
            rows.append(row_of("nothing: plain CLIP", options.defects / tested, plain))
            rows.append(
                row_of(
                    learned,
                    options.defects / tested,
                    trained_on(options.defects / learned, size=size, options=options),
                )
            )
            print(*rows[-2:], sep="\n", flush=True)
    report("aaclip_real", rows, note=f"the tiny CLIP, {options.shot} training images, one seed")


if __name__ == "__main__":
    main()
