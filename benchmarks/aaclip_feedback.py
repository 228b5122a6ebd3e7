"""Three feedback loops of aaclip, end to end, against as many epochs of plain training.

    uv run python benchmarks/aaclip_feedback.py            # three seeds; about twenty-five minutes on two cores
    uv run python benchmarks/aaclip_feedback.py --real     # two real sets instead, one seed
    uv run python benchmarks/aaclip_feedback.py --quick    # one seed, few images and epochs: does it run

Trained on defects of twelve kinds of drawn parts, tested on four other kinds; each seed draws its own sets. The
baseline has as many epochs of both stages as the three loops together, and neither cross-attention nor loops. Loops
learn from four fifths of the images, because they hold out the rest; so does the baseline, a feedback run of one loop.
Differences are paired by image; their intervals are a bootstrap over images and seeds. Called again, it continues.
"""

import argparse
import os
from pathlib import Path

from _measure import report

from aaclip.config import Config
from aaclip.data import Record
from aaclip.detector.files import list_loops
from aaclip.scoring.bootstrap import compare_runs
from aaclip.scoring.evaluation import Evaluation
from aaclip.scoring.score import JUDGED, LABELS, read_test_records
from aaclip.scoring.stored import hash_scoring
from aaclip.series.compare import format_difference, score_source
from aaclip.training.feedback import feedback, resolve
from clip_common.reporting import silent
from clip_common.runs import Run
from clip_common.runs.folder import is_run
from clip_common.synthetic import write_mvtec
from clip_common.synthetic.parts import HELD_KINDS
from clip_common.synthetic.scenes import KINDS

ASSETS = Path(__file__).resolve().parents[2] / "shared" / "assets" / "data"
REAL = ("bottle", "magnetic_tile")
LOOPS = 3
BASE = "as many epochs, no loops"


def draw(place: Path, seed: int, *, quick: bool) -> tuple[Path, Path]:
    """Draw the sets of a seed, unless an earlier call did."""
    known = KINDS[:2] if quick else tuple(kind for kind in KINDS if kind not in HELD_KINDS)
    sets = [
        (place / "train", known, 6 if quick else 12, 1 if quick else 3, 2 * seed),
        (place / "test", HELD_KINDS, 4 if quick else 20, 1 if quick else 5, 2 * seed + 1),
    ]
    for folder, kinds, good, damaged, drawn in sets:
        if not (folder / "done").exists():
            write_mvtec(folder, kinds=kinds, train=0, good=good, damaged=damaged, seed=drawn)
            (folder / "done").touch()
    return sets[0][0], sets[1][0]


def settings(root: Path, runs: Path, *, name: str, seed: int, options: argparse.Namespace) -> list[Config]:
    """Return the configurations of the baseline and of the loops."""
    place = [f"data.root={root}", f"runs={runs}", f"trainer.seed={seed}"]
    if options.real:
        place += ["data.mode=few_shot", "data.shot=32", "stages.text.batch_size=8", "stages.image.batch_size=2"]
    text, image = ([1, 1], [2, 1]) if options.quick else ([2, 1], [5, 3])
    loops = [f"feedback.text_epochs={text}", f"feedback.image_epochs={image}", f"feedback.loops={LOOPS}"]
    totals = [sum(given[min(loop, 1)] for loop in range(LOOPS)) for given in (text, image)]
    base = [f"feedback.text_epochs=[{totals[0]}]", f"feedback.image_epochs=[{totals[1]}]", "feedback.loops=1"]
    return [
        resolve(config="tiny", overrides=[*place, *own, f"name={name}-{kind}", *options.overrides])
        for kind, own in (("base", [*base, "cross_attention.enabled=false"]), ("loops", loops))
    ]


def train(config: Config) -> Path:
    """Return a finished run: trained, resumed or reused."""
    path = Path(config.runs) / "aaclip" / str(config.name)
    return feedback(config, resume=path if is_run(path) else None).run.path


def score(source: str | Path, records: list[Record], place: Path) -> Evaluation:
    """Score a detector, or read its scores of an earlier call."""
    file = place / f"{hash_scoring(source, records)}.npz"
    return score_source(source, records, file=file, label=str(source), reporter=silent)


def run_seed(
    root: Path, test: Path, place: Path, *, name: str, seed: int, options: argparse.Namespace
) -> dict[str, Evaluation]:
    """Train and score everything of one seed."""
    base, loops = (train(config) for config in settings(root, place / "runs", name=name, seed=seed, options=options))
    records = read_test_records(test)
    sources: dict[str, str | Path] = {BASE: base, "plain CLIP": "tiny"}
    sources |= {f"loop {loop}": file for loop, file in list_loops(loops).items()}
    found = {label: score(source, records, place / "scores") for label, source in sources.items()}
    figures = [Run.open(run).result["loops"] for run in (base, loops)]
    print(f"{name}, seed {seed}: {len(records)} images tested, held-out figures {figures}", flush=True)
    return found


def make_rows(found: list[dict[str, Evaluation]], *, samples: int) -> list[dict[str, object]]:
    """Return one row for each detector that all seeds have: means over the seeds, and differences from the baseline."""
    rows = []
    for label in found[0]:
        if not all(label in of_seed for of_seed in found):
            continue  # a plateau ended the loops of another seed
        row: dict[str, object] = {"model": label}
        differences = {}
        if label != BASE:
            pairs = [(of_seed[label].scores, of_seed[BASE].scores) for of_seed in found]
            differences = compare_runs(pairs, seeds=range(len(found)), samples=samples)
        for key in JUDGED:
            values = [of_seed[label].mean[key] for of_seed in found]
            row[LABELS[key]] = " ".join(f"{value:.3f}" for value in values if value is not None)
            if key in differences:
                row[f"{LABELS[key]}, difference in points"] = format_difference(differences[key])
        rows.append(row)
    return rows


def main() -> None:
    """Draw, train, score and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs") / "aaclip-feedback")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--real", action="store_true", help=f"train on {REAL[0]}, test on {REAL[1]}, and the reverse")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    folder = options.folder / ("quick" if options.quick else "full")
    if options.real:
        data = Path(os.environ.get("CLIP_REAL_DATA", ASSETS)) / "defects"
        for learned, tested in (REAL, REAL[::-1]):
            place = folder / f"real-{learned}"
            found = run_seed(data / learned, data / tested, place, name=learned, seed=1, options=options)
            note = f"trained on 32 images of {learned}, tested on {tested}; one seed, intervals over images"
            report(f"aaclip_feedback_{learned}", make_rows([found], samples=options.samples), note=note)
        return
    seeds = []
    for seed in range(1, 2 if options.quick else options.seeds + 1):
        place = folder / str(seed)
        train_root, test_root = draw(place, seed, quick=options.quick)
        seeds.append(run_seed(train_root, test_root, place, name="world", seed=seed, options=options))
    report(
        "aaclip_feedback",
        make_rows(seeds, samples=options.samples),
        note=f"{len(seeds)} seed(s), each with its own sets; bootstrap over images and seeds",
    )


if __name__ == "__main__":
    main()
