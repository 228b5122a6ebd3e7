"""The published table of AA-CLIP: trained on all of VisA, tested on every other set; our row and the released log's.

    uv run python benchmarks/aaclip_published.py --visa visa/ --mvtec mvtec/ --btad btad/ --brain brain/ …
    uv run python benchmarks/aaclip_published.py --quick    # drawn sets and the tiny CLIP: does it run

It needs the weights of CLIP ViT-L/14-336 (`aaclip prefetch ViT-L-14-336 openai`, or `--weights FILE`), a GPU for hours,
and VisA; sets that are not given are left out. Both presets are trained: `official` is the released code with its slips
and should reproduce the published figures, `default` is ours. An interrupted run continues where it stopped.
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

from _measure import report

from aaclip.config import Config
from aaclip.detector.detector import Detector
from aaclip.released.training import train
from aaclip.scoring.evaluation import evaluate
from aaclip.scoring.score import read_test_records
from aaclip.training.experiment import resolve
from clip_common import cli
from clip_common.synthetic import write_mvtec

PUBLISHED: dict[str, tuple[float, float | None]] = {
    "mvtec": (91.9, 90.5),
    "btad": (97.0, 94.3),
    "mpdd": (96.6, 77.5),
    "brain": (95.7, 79.3),
    "liver": (97.9, 68.8),
    "retina": (95.3, 81.8),
    "clinicdb": (89.6, None),
    "colondb": (83.6, None),
    "kvasir": (87.1, None),
}
"""Pixel and image AUROC in percent, of the released code's log; polyp sets have no normal image."""
INDUSTRIAL = ("mvtec", "btad", "mpdd")
PRESETS: dict[str, str | None] = {"official": "official", "default": None}
TINY = (
    *(f"backbone.{name}=null" for name in ("pretrained", "activation", "image_size")),
    "backbone.name=tiny",
    "levels=null",
    "surgery.blocks=null",
    "adapters.text_blocks=null",
    "adapters.image_blocks=null",
    "stages.text.epochs=1",
    "stages.image.epochs=1",
)
"""The presets on the tiny CLIP, an epoch each."""


def draw(folder: Path) -> dict[str, Path]:
    """Small drawn sets in place of three; the last as polyp sets are: images and masks side by side, none normal."""
    for seed, (name, kinds) in enumerate({"visa": ("mug", "star"), "mvtec": ("key", "leaf")}.items(), start=1):
        write_mvtec(folder / name, kinds=kinds, train=0, good=4, damaged=1, seed=seed)
    for part, source in (("images", "test/[!g]*"), ("masks", "ground_truth/*")):
        (folder / "colondb" / part).mkdir(parents=True)
        for file in (folder / "mvtec" / "leaf").glob(f"{source}/*.png"):
            shutil.copy(file, folder / "colondb" / part / file.name.replace("_mask", ""))
    return {name: folder / name for name in ("visa", "mvtec", "colondb")}


def train_on_visa(preset: str, sets: dict[str, Path], options: argparse.Namespace) -> Detector:
    """Trained on VisA, full-shot; what is tested must not be in it."""
    overrides = [*TINY] if options.quick else [f"backbone.pretrained={options.weights}"]
    config: Config = resolve(
        config=PRESETS[preset],
        overrides=[f"data.root={sets['visa']}", "data.mode=full_shot", *overrides, *options.overrides],
    )
    config.data.test_roots = [str(root) for name, root in sets.items() if name != "visa"]
    found = train(config, save_path=options.runs / preset, reporter=cli.progress)
    assert found.detector is not None
    return found.detector


def row_of(name: str, root: Path, preset: str, detector: Detector) -> dict[str, object]:
    """Test one set: means over its classes, in percent."""
    domain: Literal["industrial", "medical"] = "industrial" if name in INDUSTRIAL else "medical"
    score = replace(detector.config.score, domain=domain)
    detector.config = replace(detector.config, score=score)
    records = read_test_records(root)
    with cli.progress(f"{preset} on {name}") as progress:
        found = evaluate(detector, records, progress=progress)
    published = dict(zip(("pixel/auroc", "image/auroc"), PUBLISHED[name], strict=True))
    row: dict[str, object] = {"set": name, "preset": preset, "classes": len(found.classes), "images": len(records)}
    for key in ("pixel/auroc", "image/auroc", "pixel/aupro"):
        row[key] = _percent(found.mean[key], scale=100)
        if key in published:
            row[f"{key} published"] = _percent(published[key])
    return row


def _percent(value: float | None, *, scale: float = 1) -> str:
    return "n/a" if value is None else f"{scale * value:.1f}"


def main() -> None:
    """Train with each preset, test on each set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("visa", *PUBLISHED):
        parser.add_argument(f"--{name}", type=Path, help="trained on" if name == "visa" else "tested on")
    parser.add_argument("--weights", default="openai", help="of ViT-L-14-336: a tag, or a file")
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--runs", type=Path, default=Path("runs") / "aaclip-published")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("overrides", nargs="*", help="section.field=value, of both presets")
    options = parser.parse_args()
    given = {name: root for name in ("visa", *PUBLISHED) if (root := getattr(options, name)) is not None}
    if options.quick:
        options.runs = options.runs / "quick"
        shutil.rmtree(options.runs, ignore_errors=True)
    sets = draw(options.runs / "drawn") if options.quick else given
    if not sets:  # `make bench` runs it so
        print("nothing is measured: give --visa to train on, and sets to test on (--mvtec, --btad, …)")
        return
    if "visa" not in sets or len(sets) == 1:
        parser.error("--visa is what is trained on, and one set or more to test on is needed")
    rows = []
    for preset in options.presets:
        detector = train_on_visa(preset, sets, options)
        rows += [row_of(name, root, preset, detector) for name, root in sets.items() if name != "visa"]
    rows.sort(key=lambda row: list(PUBLISHED).index(str(row["set"])))
    if options.quick:
        report("aaclip_published_quick", rows, note="drawn sets stand where real ones belong: not a measurement")
    else:
        report("aaclip_published", rows, note="trained on VisA, full-shot; percent; published: the released code's log")


if __name__ == "__main__":
    main()
