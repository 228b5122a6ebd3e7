"""Recursive refinement on questions that need two objects: every number of loops, beside plain layers and none.

    edgeglass data synthetic questions/ --what questions --train 6000 --per-picture 10 --val 48 --test 192 \\
        --types colour,shape,count,place,yes/no,compare,count_if,relation
    uv run python benchmarks/edgeglass_trm.py questions/                # all models, 5 seeds: hours on two cores
    uv run python benchmarks/edgeglass_trm.py questions/ --only monotone --seeds 0,1     # part of it
    uv run python benchmarks/edgeglass_trm.py questions/ --table        # the table of what is finished

Every model trains on the same questions in the same batches: projector, adapters of the tiny language model, and the
part in question. The recursion has T = 4 loops of n = 2 updates of one layer (12 applications); `plain` has 12 layers of
their own, the same compute; `plain, 1 layer` the same parameters. The recursive decoder replaces the language model and
starts from nothing. Answers are right if the most probable token is right at every place; one pass gives the accuracy
after each number of loops. Intervals are those of the mean over seeds (t, 95 %); the paired column compares each number
of loops with the one before it on the same questions and seeds.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import report
from _trm_baselines import use_plain_layers
from scipy.stats import t as student

from clip_common.config import load_config, to_yaml
from clip_common.devices import pick_device
from clip_common.features import FeatureCache
from clip_common.reporting import silent
from clip_common.runs import Run
from clip_common.training import fit
from edgeglass.config import VlmConfig
from edgeglass.data.conversations import read_conversations
from edgeglass.models.vlm.qwen_vlm import QwenVLM
from edgeglass.models.vlm.sequences import NOT_SUPERVISED
from edgeglass.models.vlm.trm_cost import (
    count_decoder_flops,
    count_layer_flops,
    count_parameters,
    count_recursion_flops,
)
from edgeglass.training.vlm_batches import VlmSplit
from edgeglass.training.vlm_experiment import prepare_split
from edgeglass.training.vlm_modules import VlmData, VlmModule
from edgeglass.vlm.building import build_vlm, load_decoder, load_prefix
from edgeglass.vlm.vlm import VLM

REASONING = ("compare", "count_if", "relation")
LOOPS = 9
"""Loops 0 to 8 are scored."""
CONTEXT = 70
"""Tokens that a question's token attends to, on the average: the image and half of a question."""


@dataclass(frozen=True)
class Arm:
    """One model of the table: what its configuration overrides, and the number of plain layers, if it has them."""

    overrides: tuple[str, ...]
    plain_layers: int | None = None


ARMS = {
    "no recursion": Arm(()),
    "plain, 1 layer": Arm(("trm.steps=4",), plain_layers=1),
    "plain, 12 layers": Arm(("trm.steps=4",), plain_layers=12),
    "last": Arm(("trm.steps=4", "trm.supervise=last")),
    "all": Arm(("trm.steps=4", "trm.supervise=all")),
    "monotone": Arm(("trm.steps=4", "trm.supervise=monotone")),
    "TRMDecoder": Arm(
        ("decoder.kind=trm", "trm.steps=4", "trm.supervise=all", "trm.width=192", "trm.layers=2", "trm.inner=1")
    ),
}


def read_config(arm: Arm, options: argparse.Namespace, *, seed: int) -> VlmConfig:
    """Return the configuration of one training."""
    overrides = [
        f"data.root={options.questions}",
        f"data.cache_dir={options.runs / 'cache'}",
        "data.batch_size=32",
        "trm.width=96",
        "trm.inner=2",
        f"decoder.name={options.decoder}",
        f"trainer.max_epochs={options.epochs}",
        f"trainer.seed={seed}",
        f"trainer.devices={options.devices}",
        f"runs={options.runs}",
        *arm.overrides,
    ]
    return load_config(VlmConfig, config="tiny_vlm", overrides=overrides, package="edgeglass")


def run_one(name: str, options: argparse.Namespace, *, seed: int) -> dict[str, Any]:
    """Train one model and return its size, compute, and the right answers of each question after each loop."""
    config = read_config(ARMS[name], options, seed=seed)
    sets = read_conversations(config.data)
    language = load_decoder(config)
    prefix, sight = load_prefix(config)
    model = build_vlm(config, prefix=prefix, language=language)
    layers = ARMS[name].plain_layers
    if layers is not None:
        assert model.recursion is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            use_plain_layers(model.recursion, config.trm, layers)
    vlm = VLM(model, config, sight=sight, language=language, device=pick_device(config.trainer.devices))
    cache = FeatureCache(config.cache_folder / "features")
    data = {
        split: prepare_split(vlm, sets.splits[split], cache=cache, reporter=silent, name=split)
        for split in ("train", "val", "test")
    }
    module = VlmModule(model.to("cpu"), config, data)
    run = Run.create("edgeglass", config_yaml=to_yaml(config), label=f"{name}-{seed}", root=config.runs, verb="vlm")
    start = time.perf_counter()
    fit(module, VlmData(data, config), config.trainer, run, monitor="val/loss", mode="min")
    seconds = time.perf_counter() - start
    right_LQ = score_loops(model.eval().to(vlm.device), data["test"])
    part = model.decoder if model.recursion is None else model.recursion
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {
        "arm": name,
        "seed": seed,
        "seconds": seconds,
        "trained": trained,
        "part": 0 if name == "no recursion" else count_parameters(part),
        "flops": count_flops(config, model, layers),
        "types": [turn.type for one in data["test"].conversations for turn in one.turns],
        "right": right_LQ.int().tolist(),
    }


def count_flops(config: VlmConfig, model: QwenVLM, layers: int | None) -> int:
    """Return the operations per token of the part in question."""
    if config.decoder.kind == "trm":
        return count_decoder_flops(config.trm, model.decoder.embedding.num_embeddings, CONTEXT)
    if layers is not None:
        return layers * count_layer_flops(config.trm, CONTEXT) + 4 * model.decoder.width * config.trm.width
    return count_recursion_flops(config.trm, model.decoder.width, CONTEXT)


@torch.no_grad()
def score_loops(model: QwenVLM, split: VlmSplit) -> torch.Tensor:
    """Return whether each question of a split is answered right after each number of loops (L, Q), bool."""
    parts = []
    for start in range(0, len(split.conversations), 64):
        numbers = range(start, min(start + 64, len(split.conversations)))
        batch = split.batch(numbers, row_length=300).to(model.device)
        taught_RT = batch.rows.targets_RT != NOT_SUPERVISED
        owner_N, targets_N = batch.rows.conversation_RT[taught_RT], batch.rows.targets_RT[taught_RT]
        embeds_RTE = model.embed(batch.rows, batch.images)
        states = model.states(
            embeds_RTE, mask_R1TK=batch.rows.mask(), positions_RT=batch.rows.positions_RT, steps=LOOPS - 1
        )
        right = []
        for state_RTE in states:
            wrong_N = model.decoder.logits(state_RTE[taught_RT]).argmax(dim=-1) != targets_N
            right.append(torch.bincount(owner_N, weights=wrong_N.float()) == 0)
        parts.append(torch.stack(right).cpu())
    return torch.cat(parts, dim=1)


def main() -> None:
    """Train what is not finished, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", type=Path)
    parser.add_argument("--only", default=";".join(ARMS), help="models of the table, with ; between them")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--decoder", default="tiny")
    parser.add_argument("--devices", default="auto")
    parser.add_argument("--runs", type=Path, default=Path("runs/trm"))
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args()
    results = options.runs / "results"
    results.mkdir(parents=True, exist_ok=True)
    if not options.table:
        for seed in map(int, options.seeds.split(",")):
            for name in options.only.split(";"):
                file = results / f"{name}-{seed}.json"
                if not file.exists():
                    file.write_text(json.dumps(run_one(name, options, seed=seed)))
                    print(f"{name}, seed {seed}: done", flush=True)
    report("edgeglass_trm", make_rows(results), note=NOTE)


NOTE = "accuracy on reasoning questions (compare, count_if, relation): mean over seeds ± half its 95 % interval"


def make_rows(results: Path) -> list[dict[str, Any]]:
    """Return one row a model: its accuracy after each number of loops, and the paired change from loop to loop."""
    rows = []
    for name in ARMS:
        runs = [json.loads(file.read_text()) for file in sorted(results.glob(f"{name}-*.json"))]
        if not runs:
            continue
        reasons_Q = np.isin(runs[0]["types"], REASONING)
        right_SLQ = np.array([run["right"] for run in runs], dtype=float)
        means_SL = right_SLQ[:, :, reasons_Q].mean(axis=2)
        row: dict[str, Any] = {
            "model": name,
            "seeds": len(runs),
            "parameters": runs[0]["part"],
            "kFLOP a token": round(runs[0]["flops"] / 1000),
            "all types": f"{right_SLQ[:, -1 if len(means_SL[0]) < 5 else 4 - (len(means_SL[0]) == 8)].mean():.3f}",
        }
        first = 1 if len(means_SL[0]) == LOOPS - 1 else 0  # a recursive decoder has no answer before its first loop
        for loop, mean_S in enumerate(means_SL.T, start=first):
            row[f"T={loop}"] = f"{mean_S.mean():.3f} ± {half_interval(mean_S):.3f}"
        steps_SL = np.diff(means_SL, axis=1)
        falls = [
            loop + first + 1
            for loop in range(steps_SL.shape[1])
            if steps_SL[:, loop].mean() + half_interval(steps_SL[:, loop]) < 0
        ]
        row["falls at"] = ", ".join(map(str, falls)) or "none" if len(means_SL[0]) > 2 else ""
        rows.append(row)
    return rows


def half_interval(values_S: np.ndarray) -> float:
    """Return half the 95 % interval of a mean over seeds."""
    count = len(values_S)
    if count < 2:
        return float("nan")
    return float(student.ppf(0.975, count - 1) * values_S.std(ddof=1) / count**0.5)


if __name__ == "__main__":
    main()
