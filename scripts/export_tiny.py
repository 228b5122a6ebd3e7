"""Export a run of scripts/pretrain_tiny.py as package data of clip_common: half precision, checksums, model card.

    uv run python benchmarks/tiny.py --model local-dir:runs/tiny/clipse/tiny-112/model
    uv run python scripts/export_tiny.py runs/tiny/clipse/tiny-64 runs/tiny/clipse/tiny-112

Name every run that led to the weights, in order. The card includes the latest results of benchmarks/tiny.py
(results/benchmarks/tiny.json): run that on the same weights first.
"""

import argparse
import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from clip_common.backbones.shipped import SUMS, TINY
from clip_common.runs import Run
from clip_common.synthetic import VERSION
from clip_common.tables import markdown_table
from clip_common.tensors import read_tensors, write_tensors

CURVE = Path(__file__).resolve().parents[1] / "docs" / "pictures" / "tiny.png"
SCORES = Path("results") / "benchmarks" / "tiny.json"
COPIED = ("open_clip_config.json", "tokenizer.json", "tokenizer_config.json")
MAX_BYTES = 6 * 2**20

CARD = """# The tiny CLIP

{parameters:,} parameters: a ViT of 8 blocks, width 128, patch 8, at {image_size} pixels, and a causal text
transformer of 4 blocks over a byte-level BPE of {vocabulary} tokens. It knows the procedural world (version {version})
of `clip_common.synthetic` and nothing else. It exists so that every command, test and demo runs without a network. Do
not use it on photographs.

    from clip_common.backbones import load_clip
    bundle = load_clip("tiny")

## Results

On worlds of seeds that it was not trained on (`benchmarks/tiny.py`); {note}.

{scores}

"oracle" reads every attribute of every scene: the best possible result. The damage figures are zero-shot: the model
saw no picture of the set. "held pair": it never saw this damage on this kind; "held kind": it never saw any damage on
this kind. The thumbnail guard is a linear classifier on 16 x 16 pixels that was trained on examples. "kind, scenes":
one thing anywhere on a background, queried in all sizes, textures and colours. The mistakes are thin outlines (fish,
keys and leaves taken for stars) and things of twelve pixels.

## Training

Trained with `clipse train` (`scripts/pretrain_tiny.py`, configuration `pretrain-tiny`, seed 0) and CLIP's loss, in
batches of 128, on scenes and parts of the world of seed 0. Each batch also holds pictures that differ from them in one
word.{remark}

{runs}
"""


def describe_run(path: Path) -> str:
    """Return a run's section of the card: machine and duration, then a table with a row per epoch."""
    run = Run.open(path)
    machine = json.loads((run.path / "environment.json").read_text(encoding="utf-8"))["hardware"]
    ledger = json.loads((run.path / "phases.json").read_text(encoding="utf-8")).get("fit", {})
    times = [datetime.fromisoformat(ledger[key]) for key in ("started", "finished") if key in ledger]
    duration = f", {(times[1] - times[0]).total_seconds() / 60:.0f} minutes" if len(times) == 2 else ", stopped early"
    by_epoch: dict[int, list[dict[str, str]]] = {}
    for row in run.metrics.rows():
        by_epoch.setdefault(int(row["epoch"]), []).append(row)
    table = []
    for epoch, rows in by_epoch.items():
        losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
        rsum = next((f"{float(row['val/rsum']):.1f}" for row in rows if row["val/rsum"]), "")
        steps = max(int(row["step"]) for row in rows)
        table.append([str(epoch), f"{steps:,}", f"{sum(losses) / len(losses):.3f}", rsum])
    heading = f"{run.name}, one core of {machine['cores']} ({machine['cpu']}){duration}:"
    return f"{heading}\n\n{markdown_table(['epoch', 'steps', 'mean loss', 'validation rsum'], table)}"


def draw_curve(runs: Sequence[Path], file: Path) -> None:
    """Draw training loss and validation rsum of all runs, in order on one axis of steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    start = 0
    for path in runs:
        rows = Run.open(path).metrics.rows()
        loss = [(start + int(row["step"]), float(row["train/loss"])) for row in rows if row["train/loss"]]
        means = [(x, sum(y for _, y in loss[max(0, i - 24) : i + 1]) / min(25, i + 1)) for i, (x, _) in enumerate(loss)]
        left.plot(*zip(*means, strict=True), label=path.name)
        rsum = [(start + int(row["step"]), float(row["val/rsum"])) for row in rows if row["val/rsum"]]
        right.plot(*zip(*rsum, strict=True), marker="o")
        start = loss[-1][0]
    left.set(xlabel="step", ylabel="loss, mean of 25 steps", yscale="log")
    right.set(xlabel="step", ylabel="validation rsum")
    left.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)


def main() -> None:
    """Build the package data in a temporary folder, then replace the old folder with it, and draw the curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--remark", default="", help="text appended to the card's first paragraph on training")
    options = parser.parse_args()
    model = options.runs[-1] / "model"
    results = json.loads(SCORES.read_text(encoding="utf-8"))
    state = {name: tensor.half() for name, tensor in read_tensors(model / "model.safetensors").items()}
    with tempfile.TemporaryDirectory(dir=TINY.parent, prefix=".tiny-") as temporary:
        draft = Path(temporary) / "tiny"
        draft.mkdir()
        for name in COPIED:
            shutil.copyfile(model / name, draft / name)
        config = json.loads((draft / "open_clip_config.json").read_text(encoding="utf-8"))
        config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "tiny"  # in the same folder, not a path on this machine
        (draft / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        write_tensors(draft / "open_clip_model.safetensors", state)
        header = ["what", "mean", *(key for key in results["rows"][0] if key.startswith("seed"))]
        scores = [[v if isinstance(v, str) else f"{v:.3f}" for v in row.values()] for row in results["rows"]]
        card = CARD.format(
            parameters=sum(tensor.numel() for tensor in state.values()),
            image_size=config["model_cfg"]["vision_cfg"]["image_size"],
            vocabulary=config["model_cfg"]["text_cfg"]["vocab_size"],
            version=VERSION,
            note=results["note"],
            scores=markdown_table(header, scores),
            remark=f" {options.remark.strip()}" if options.remark else "",
            runs="\n\n".join(describe_run(path) for path in options.runs),
        )
        (draft / "README.md").write_text(card, encoding="utf-8")
        files = sorted(path for path in draft.iterdir())
        size = sum(path.stat().st_size for path in files)
        if size > MAX_BYTES:
            raise SystemExit(
                f"{model} needs {size / 2**20:.1f} MiB, the limit is {MAX_BYTES / 2**20:.0f}: export a smaller model"
            )
        covered = [path for path in files if path.suffix != ".md"]
        sums = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in covered)
        (draft / SUMS).write_text(sums, encoding="utf-8")
        for part in ("text", "audio"):  # of scripts/pretrain_tiny_encoders.py
            shutil.copytree(TINY / part, draft / part)
        shutil.rmtree(TINY)
        draft.rename(TINY)
    draw_curve(options.runs, CURVE)
    print(f"{TINY}: {size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
