"""Recursive refinement on questions about two objects: every number of loops, beside plain layers and none.

    uv run python benchmarks/edgeglass_trm.py            # the model of edgeglass_vlm_world.py; an hour of one core
    uv run python benchmarks/edgeglass_trm.py --table    # what is finished
    uv run python benchmarks/edgeglass_trm.py --quick    # few images, one seed, some minutes: does it run

The model that sees was trained on questions about one object, or a count of all, and is frozen here: its last hidden
states are computed once. Every part below learns from them, in the same batches, questions that compare two objects,
count those that meet a condition, or ask what is beside another. The recursion has T = 4 loops of n = 1 updates of one
layer (8 applications). `plain, 8 layers` has as many layers of their own, the same compute; `plain, 1 layer` the same
parameters. The recursive decoder replaces the language model: it reads the image tokens through the frozen projector
and one of its own, and learns the words from nothing.

An answer is right if the most probable token is right at every place; one pass gives the accuracy after each number of
loops, on test scenes. Intervals are those of the mean over seeds (t, 95 %). `falls at` lists the loops whose accuracy
is below that of the loop before by more than the interval of the difference over the same seeds.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import report
from _trm_baselines import use_plain_layers
from edgeglass_vlm_world import add_options, draw, train_one
from scipy.stats import t as student
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clip_common.features import FeatureCache
from clip_common.reporting import silent
from edgeglass.config import TrmConfig
from edgeglass.data.conversations import read_conversations
from edgeglass.models.vlm.sequences import NOT_SUPERVISED, Rows
from edgeglass.models.vlm.trm import LatentRecursion, supervise
from edgeglass.models.vlm.trm_cost import (
    count_decoder_flops,
    count_layer_flops,
    count_parameters,
    count_recursion_flops,
)
from edgeglass.models.vlm.trm_decoder import TRMDecoder
from edgeglass.training.vlm_batches import VlmSplit
from edgeglass.training.vlm_experiment import prepare_split
from edgeglass.vlm.vlm import VLM

LOOPS = 8
"""Loops 0 to 8 are scored."""
IMAGES = 8
"""Images of a batch, each with its questions."""
LR = 2e-3
WARMUP = 20


@dataclass(frozen=True)
class Arm:
    """One model of the table: its settings, and the number of plain layers, if it has them."""

    trm: TrmConfig
    plain_layers: int | None = None
    decoder: bool = False


SIZE = TrmConfig(steps=4, inner=1, layers=1, width=64, heads=4)
ARMS = {
    "no recursion": Arm(replace(SIZE, steps=0)),
    "plain, 1 layer": Arm(SIZE, plain_layers=1),
    "plain, 8 layers": Arm(SIZE, plain_layers=8),
    "recursion, last": Arm(SIZE),
    "recursion, all": Arm(replace(SIZE, supervise="all")),
    "recursion, monotone": Arm(replace(SIZE, supervise="monotone")),
    "TRMDecoder, all": Arm(replace(SIZE, supervise="all", width=128), decoder=True),
}


@dataclass
class Prepared:
    """Batches of a split with what the frozen model makes of them, and the type of each question.

    Attributes:
        rows: Rows of tokens of each batch.
        hidden: Last hidden states (R, T, E) of each batch.
        embeds: Input embeddings (R, T, E) of each batch: image tokens through the projector, and words.
        types: Type of each conversation, in order.
    """

    rows: list[Rows]
    hidden: list[Tensor]
    embeds: list[Tensor]
    types: list[str]


@torch.no_grad()
def prepare(vlm: VLM, split: VlmSplit) -> Prepared:
    """Return a split with the frozen model's states, one image with its questions a row."""
    found = Prepared([], [], [], [turn.type for one in split.conversations for turn in one.turns])
    for start in range(0, len(split.units), IMAGES):
        numbers = [number for unit in split.units[start : start + IMAGES] for number in unit]
        batch = split.batch(numbers, row_length=1).to(vlm.device)  # a block a row
        embeds_RTE = vlm.model.embed(batch.rows, batch.images)
        state_RTE = vlm.model.states(embeds_RTE, mask_R1TK=batch.rows.mask(), positions_RT=batch.rows.positions_RT)[-1]
        found.rows.append(batch.rows)
        found.hidden.append(state_RTE.half())
        found.embeds.append(embeds_RTE.half())
    return found


class Part(nn.Module):
    """The part in question, on the states of the frozen model."""

    def __init__(self, arm: Arm, vlm: VLM) -> None:
        super().__init__()
        self.arm = arm
        self.head = vlm.model.decoder
        width, vocabulary = vlm.model.decoder.width, vlm.language.spec.vocabulary
        self.recursion: LatentRecursion | None = None
        self.decoder: TRMDecoder | None = None
        if arm.decoder:
            self.decoder = TRMDecoder(vocabulary, arm.trm, vlm.limit)
            self.project = nn.Linear(width, self.decoder.width)
        elif arm.trm.steps:
            self.recursion = LatentRecursion(width, arm.trm)
            if arm.plain_layers is not None:
                use_plain_layers(self.recursion, arm.trm, arm.plain_layers)

    @property
    def own(self) -> list[nn.Parameter]:
        """Parameters that train."""
        return [parameter for name, parameter in self.named_parameters() if not name.startswith("head.")]

    def states(self, data: Prepared, number: int, *, steps: int | None = None) -> list[Tensor]:
        """Return the states (N, E) at the supervised tokens of a batch after each number of loops."""
        rows = data.rows[number]
        taught_RT = rows.targets_RT != NOT_SUPERVISED
        given: dict[str, Any] = {"mask_B1QK": rows.mask(), "positions_BQ": rows.positions_RT, "steps": steps}
        if self.decoder is not None:
            seen_RT1 = (rows.image_RT >= 0)[..., None]
            words_RTD = self.decoder.embed(rows.ids_RT)
            embeds_RTD = torch.where(seen_RT1, self.project(data.embeds[number].float()), words_RTD)
            return [state_RTE[taught_RT] for state_RTE in self.decoder.states(embeds_RTD, **given)]
        hidden_RTE = data.hidden[number].float()
        if self.recursion is None:
            return [hidden_RTE[taught_RT]]
        return [state_RTE[taught_RT] for state_RTE in self.recursion(hidden_RTE, **given)]

    def logits(self, state_NE: Tensor) -> Tensor:
        """Return the logits (N, V)."""
        logits: Tensor = (self.head if self.decoder is None else self.decoder).logits(state_NE)
        return logits

    def losses(self, data: Prepared, number: int) -> list[Tensor]:
        """Return the cross-entropy of each supervised token (N,) after each supervised number of loops."""
        rows = data.rows[number]
        targets_N = rows.targets_RT[rows.targets_RT != NOT_SUPERVISED]
        states = self.states(data, number)
        chosen = states[-1:] if self.arm.trm.supervise == "last" else states
        return [cross_entropy(self.logits(state_NE), targets_N, reduction="none") for state_NE in chosen]

    @property
    def flops(self) -> Iterator[int]:
        """Operations per token of the part, at a context of 70 tokens: the image and half of a question."""
        trm = self.arm.trm
        if self.decoder is not None:
            yield count_decoder_flops(trm, self.decoder.embedding.num_embeddings, 70)
        elif self.arm.plain_layers is not None:
            yield self.arm.plain_layers * count_layer_flops(trm, 70) + 4 * self.head.width * trm.width
        else:
            yield count_recursion_flops(trm, self.head.width, 70)


def run_one(name: str, vlm: VLM, train: Prepared, test: Prepared, *, seed: int) -> dict[str, Any]:
    """Train one part for an epoch; return its size, its compute, and which answers are right after each loop."""
    torch.manual_seed(seed)
    part = Part(ARMS[name], vlm)
    start = time.perf_counter()
    steps = len(train.rows)
    if part.own:
        optimizer = torch.optim.AdamW(part.own, lr=LR, betas=(0.9, 0.95), weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / WARMUP, (1 + math.cos(math.pi * step / steps)) / 2)
        )
        for number in np.random.default_rng(seed).permutation(steps):
            loss = supervise(part.losses(train, int(number)), ARMS[name].trm.supervise)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(part.own, 1.0)
            optimizer.step()
            schedule.step()
    return {
        "seconds": time.perf_counter() - start,
        "parameters": count_parameters(part) - count_parameters(part.head),
        "flops": sum(part.flops),
        "types": test.types,
        "right": score_loops(part.eval(), test).int().tolist(),
    }


@torch.no_grad()
def score_loops(part: Part, test: Prepared) -> Tensor:
    """Return whether each question is answered right after each number of loops (L, Q), bool."""
    found = []
    for number, rows in enumerate(test.rows):
        taught_RT = rows.targets_RT != NOT_SUPERVISED
        owner_N, targets_N = rows.conversation_RT[taught_RT], rows.targets_RT[taught_RT]
        wrong = [
            part.logits(state_NE).argmax(dim=-1) != targets_N for state_NE in part.states(test, number, steps=LOOPS)
        ]
        found.append(torch.stack([torch.bincount(owner_N, weights=wrong_N.float()) == 0 for wrong_N in wrong]))
    return torch.cat(found, dim=1)


def make_rows(results: Path) -> list[dict[str, Any]]:
    """Return a row a model: accuracy after each number of loops over all questions, and the loops at which it falls."""
    rows = []
    for name, arm in ARMS.items():
        runs = [json.loads(file.read_text()) for file in sorted(results.glob(f"{name}-*.json"))]
        if not runs:
            continue
        means_SL = np.array([run["right"] for run in runs], dtype=float).mean(axis=2)
        row: dict[str, Any] = {
            "model": name,
            "seeds": len(runs),
            "parameters": f"{runs[0]['parameters']:,}",
            "kFLOP a token": round(runs[0]["flops"] / 1000),
        }
        first = 1 if arm.decoder else 0  # a recursive decoder has no answer before its first loop
        row |= {
            f"T={loop}": f"{mean_S.mean():.3f} ± {half_interval(mean_S):.3f}"
            for loop, mean_S in enumerate(means_SL.T, start=first)
        }
        steps_SL = np.diff(means_SL, axis=1)
        falls = [
            str(loop + first + 1)
            for loop in range(steps_SL.shape[1])
            if steps_SL[:, loop].mean() + half_interval(steps_SL[:, loop]) < 0
        ]
        rows.append(row | {"falls at": ", ".join(falls) or "none"})
    columns = ("model", "seeds", "parameters", "kFLOP a token", *(f"T={loop}" for loop in range(LOOPS + 1)), "falls at")
    return [{column: row.get(column, "") for column in columns} for row in rows]


def half_interval(values_S: np.ndarray) -> float:
    """Return half the 95 % interval of a mean over seeds."""
    count = len(values_S)
    return float(student.ppf(0.975, count - 1) * values_S.std(ddof=1) / count**0.5) if count > 1 else math.nan


def main() -> None:
    """Train what is not finished, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--parts", type=Path, default=Path("runs/trm"), help="folder of what each part answered")
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.set_defaults(seeds=5)
    options = parser.parse_args()
    parts = options.parts / "quick" if options.quick else options.parts
    parts.mkdir(parents=True, exist_ok=True)
    if not options.table:
        vlm = VLM.from_pretrained(train_one(options, seed=0))
        vlm.model.requires_grad_(False)
        counts = {"train": 60, "test": 24} if options.quick else {"train": 1000, "test": 96}
        questions = draw(
            parts / "questions", val=0, seed=5, per_picture=12, types=("compare", "count_if", "relation"), **counts
        )
        sets = read_conversations(replace(vlm.config.data, root=str(questions)))
        cache = FeatureCache(vlm.config.cache_folder / "features")
        train, test = (
            prepare(vlm, prepare_split(vlm, sets.splits[split], cache=cache, reporter=silent, name=split))
            for split in ("train", "test")
        )
        for seed in range(1 if options.quick else options.seeds):
            for name in ARMS:
                file = parts / f"{name}-{seed}.json"
                if not file.exists():
                    found = run_one(name, vlm, train, test, seed=seed)
                    file.write_text(json.dumps(found))
                    print(f"{name}, seed {seed}: {found['seconds']:.0f} s", flush=True)
    report("edgeglass_trm", make_rows(parts), note="accuracy, mean over seeds ± half its 95 % interval")


if __name__ == "__main__":
    main()
