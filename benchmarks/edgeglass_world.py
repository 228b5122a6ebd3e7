"""edgeglass on the procedural world: retrieval beside its ceilings, fused queries, a mixed gallery, "nothing here".

    uv run python benchmarks/edgeglass_world.py            # 3 seeds, about ten minutes each on two cores
    uv run python benchmarks/edgeglass_world.py --seeds 1 --quick

Each seed draws its own world (3,000 training scenes, 200 for selection, 200 for the test) and its own heads. The test
split is scored once. "Nothing here" is calibrated on one collection, which lacks eight kinds of things, and tested on
another, which lacks four others; absent queries are captions that name a kind that their collection lacks. Similarities
are compared with those to training images.
"""

import argparse
import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import mean

from _measure import report

from clip_common.config import load_config
from clip_common.synthetic import Scene, captions, render, sample_scene, write_sounds
from clip_common.synthetic.scenes import KINDS
from edgeglass.aligner.aligner import Aligner
from edgeglass.aligner.calibration import calibrate
from edgeglass.aligner.index import Index
from edgeglass.config import Config
from edgeglass.scoring.score import Scored, score
from edgeglass.training.experiment import train

GROUPS = [KINDS[start : start + 4] for start in range(0, 16, 4)]
SEED_OF = {"fitted": 5000, "tested": 6000}
QUERIES = 500
BACKGROUND = 600
TARGET = 0.04
"""Share of false accepts aimed at; below the 5 % that are wanted, because the test asks for other kinds."""


def find_scenes(seed: int, *, kinds: Sequence[str], present: bool) -> Iterator[Scene]:
    """Yield scenes that hold one of `kinds`, or none."""
    index = 0
    while True:
        scene = sample_scene(seed, index)
        index += 1
        if any(thing.kind in kinds for thing in scene.things) == present:
            yield scene


def measure_nothing_here(
    aligner: Aligner, folder: Path, *, world: Path, group: int, scenes: int, queries: int
) -> dict[str, object]:
    """Fit the threshold on one collection and count accepts in another, which lacks the kinds of this group."""
    shown = folder / "background" / "images"
    shown.mkdir(parents=True)
    for file in sorted((world / "images").iterdir())[:BACKGROUND]:  # training images come first
        shutil.copy(file, shown)
    background = Index.build(aligner, shown, folder / "background" / "index")
    lacking = {
        "fitted": [*GROUPS[(group + 1) % 4], *GROUPS[(group + 2) % 4]],
        "tested": GROUPS[group],
    }
    indexes, absent, known = {}, {}, {}
    for name, kinds in lacking.items():
        seed, root = SEED_OF[name], folder / name / "images"
        root.mkdir(parents=True)
        gallery = list(islice(find_scenes(seed, kinds=kinds, present=False), scenes))
        for number, scene in enumerate(gallery):
            render(scene, size=112).save(root / f"{number:04d}.png")
        indexes[name] = Index.build(aligner, root, folder / name / "index")
        texts = (text for scene in find_scenes(seed + 1, kinds=kinds, present=True) for text in captions(scene))
        absent[name] = list(islice((text for text in texts if any(kind in text for kind in kinds)), queries))
        known[name] = [captions(scene)[0] for scene in gallery]
    calibrate(
        indexes["fitted"],
        absent=absent["fitted"],
        present=known["fitted"],
        target=TARGET,
        background=background,
        dims=[aligner.widths[0]],
    )
    found = Index.open(folder / "tested" / "index", aligner=aligner)

    def accepts(texts: Sequence[str]) -> float:
        return mean(float(found.search(text, k=1, modality="image")[0].matches or False) for text in texts)

    return {
        "lacks": ", ".join(lacking["tested"]),
        "false accepts": accepts(absent["tested"]),
        "true accepts": accepts(known["tested"]),
    }


def make_rows(seed: int, scored: Scored) -> list[dict[str, object]]:
    quarter = scored.config.mrl.width // 4
    at_quarter = {way.name: way for way in scored.evaluation.directions if way.width == quarter}
    rows = []
    for way in scored.evaluation.full:
        recall = way.result.metrics["R@1"]
        ceiling = way.ceiling or float("nan")
        rows.append(
            {
                "seed": seed,
                "direction": f"{way.query} to {way.gallery}",
                "R@1": round(recall, 3),
                "ceiling": round(ceiling, 3),
                "share": round(recall / ceiling, 3),
                "at a quarter of the width": round(at_quarter[way.name].result.metrics["R@1"], 3),
                "R@5": round(way.result.metrics["R@5"], 3),
            }
        )
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs") / "edgeglass-world")
    parser.add_argument("--quick", action="store_true", help="300 scenes and two epochs: does it run")
    parser.add_argument("overrides", nargs="*", help="of the configuration `tiny`")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    rows: list[dict[str, object]] = []
    galleries: list[dict[str, object]] = []
    nothing: list[dict[str, object]] = []
    for seed in range(1, options.seeds + 1):
        world = write_sounds(
            options.folder / f"world-{seed}",
            train=300 if options.quick else 3000,
            val=200,
            test=200,
            seed=seed,
            size=112,
        )
        config = load_config(
            Config,
            config="tiny",
            package="edgeglass",
            overrides=[
                f"data.root={world}",
                f"runs={options.folder}",
                f"name=seed-{seed}",
                f"trainer.seed={seed}",
                "fusion.kind=gated",
                *(["trainer.max_epochs=2"] if options.quick else []),
                *options.overrides,
            ],
        )
        run = train(config).run
        scored = score(run.path, overrides=["split=test"])
        rows += make_rows(seed, scored)
        for centre, (gaps, mixed) in scored.centred.items():
            if mixed is not None:
                shares: dict[str, object] = {name: round(share, 3) for name, share in mixed.overall.items()}
                gap: dict[str, object] = {f"gap {pair}": round(value, 3) for pair, value in gaps.items()}
                galleries.append({"seed": seed, "embeddings": "centred" if centre else "as aligned"} | shares | gap)
        aligner = Aligner.from_pretrained(run.path)
        size = 60 if options.quick else 200
        found = measure_nothing_here(
            aligner, options.folder / f"nothing-{seed}", world=world, group=seed % 4, scenes=size, queries=QUERIES
        )
        nothing.append({"seed": seed} | found)
    report("edgeglass_world", rows, note="200 test scenes, 1,000 captions; the ceiling is that of a perfect reader")
    report(
        "edgeglass_world_mixed", galleries, note="shares of the top ten of a gallery of as many images, texts, sounds"
    )
    report(
        "edgeglass_world_nothing",
        nothing,
        note=f"{QUERIES} captions that name an absent kind; threshold fitted elsewhere",
    )
