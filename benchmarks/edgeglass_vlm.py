"""A language model that sees, at the shape of Qwen2.5-0.5B: cached answers, shared prefixes, packing, loss memory.

    uv run python benchmarks/edgeglass_vlm.py            # about ten minutes on one core; a minute on a GPU
    uv run python benchmarks/edgeglass_vlm.py --quick    # two narrow layers: does it run, do both arms agree
    uv run python benchmarks/edgeglass_vlm.py --part packing --layers 6

Each part puts two ways to the same result side by side; what both compute is compared before anything is timed.

    decoding    64 tokens with keys and values kept, and with everything computed again for each token
    reuse       8 questions on an image whose prefix is read once, and in a batch in which each row reads it
    packing     training on mixed lengths in packed rows, and in padded ones
    memory      the loss with logits where a token is supervised, and at all positions

Weights are random: the time does not depend on them. A GPU computes in bfloat16, a CPU in float32. On a CPU the parts
are as small as makes their point, with fewer layers where a row says so; on a GPU more sequences fill the card.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from _measure import PeakMemory, alternate, arm_in_own_process, report
from _vlm_model import ON_CPU, ON_GPU, QUICK, Shape, build_model, draw_conversation, draw_images
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from clip_common.backbones.trunk import TokenSequence
from edgeglass.config import TrmConfig
from edgeglass.models.vlm.generation import Reading, collect, generate, read
from edgeglass.models.vlm.qwen_vlm import QwenVLM
from edgeglass.models.vlm.sequences import NOT_SUPERVISED, Rows, pack_conversations, pad_conversations

NO_STOP = (-1,)
LOOPS = TrmConfig(steps=4)
CPU_LAYERS = {"decoding": 8, "reuse": 8, "packing": 4}
"""Layers on a CPU where the bar does not need all of them."""


def row_of(
    what: str, shape: Shape, timing: Any, *, bar: float, ours: str, other: str, **more: object
) -> dict[str, object]:
    """Return a row of the table."""
    return {
        "what": what,
        "layers": shape.layers,
        "ours": ours,
        "ours s": timing.ours_s,
        "alternative": other,
        "alternative s": timing.theirs_s,
        "times better": 1 / timing.ratio,
        "bar": bar,
        **more,
    }


# a. decoding


@torch.no_grad()
def answer_anew(model: QwenVLM, embeds_BTE: Tensor, new: int) -> list[list[int]]:
    """Return greedy answers, for each token of which everything is read again."""
    tokens = []
    for _ in range(new):
        rows, length, _ = embeds_BTE.shape
        mask_11TT = torch.ones(length, length, dtype=torch.bool, device=embeds_BTE.device).tril()[None, None]
        positions_RT = torch.arange(length, device=embeds_BTE.device).expand(rows, -1)
        mask_R1TT = mask_11TT.expand(rows, -1, -1, -1)
        state_BTE, _ = model.final_state(embeds_BTE, mask_R1TK=mask_R1TT, positions_RT=positions_RT)
        tokens.append(model.decoder.logits(state_BTE[:, -1]).argmax(dim=-1))
        embeds_BTE = torch.cat((embeds_BTE, model.decoder.embed(tokens[-1][:, None])), dim=1)
    answers: list[list[int]] = torch.stack(tokens, dim=1).tolist()
    return answers


def answer_cached(model: QwenVLM, reading: Reading, embeds_BQE: Tensor, new: int) -> list[list[int]]:
    """Return greedy answers from kept keys and values."""
    valid_BQ = torch.ones(embeds_BQE.shape[:2], dtype=torch.bool, device=embeds_BQE.device)
    steps = generate(model, reading, embeds_BQE, valid_BQ, max_new_tokens=new, stop_ids=NO_STOP)
    return collect(steps, len(embeds_BQE))


def measure_decoding(shape: Shape, device: torch.device) -> list[dict[str, object]]:
    """Decode with and without kept keys and values, with and without a recursion."""
    measured = []
    for trm in (None, LOOPS):
        model = build_model(shape, device, trm=trm)
        for batch in shape.batches:
            prompts = [draw_conversation(shape, 36, 0, seed) for seed in range(batch)]
            rows = pad_conversations(prompts, [0] * batch, [shape.read]).to(device)
            with torch.no_grad():
                embeds_BTE = model.embed(rows, draw_images(shape, 1, shape.read, device))

            def ours(new: int, model: QwenVLM = model, embeds: Tensor = embeds_BTE) -> list[list[int]]:
                return answer_cached(model, Reading.start(len(embeds), device=device), embeds, new)

            def theirs(new: int, model: QwenVLM = model, embeds: Tensor = embeds_BTE) -> list[list[int]]:
                return answer_anew(model, embeds, new)

            same = share_of_equal(ours(4), theirs(4))
            timing = alternate(lambda: ours(shape.new), lambda: theirs(shape.new), pairs=shape.pairs, warmup=0)
            measured.append(
                row_of(
                    f"decoding, {batch} x {shape.new} tokens{', 4 loops' if trm else ''}", shape, timing,
                    bar=3.0, ours="cached", other="everything anew",
                    note=f"prompts of {embeds_BTE.shape[1]} tokens; {same:.0%} of the first 4 tokens are equal",
                )
            )  # fmt: skip
    return measured


def share_of_equal(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> float:
    """Return the share of equal tokens; in bfloat16 near ties fall either way."""
    pairs = [a == b for row, same in zip(one, other, strict=True) for a, b in zip(row, same, strict=True)]
    return sum(pairs) / len(pairs)


# b. reuse


def measure_reuse(shape: Shape, device: torch.device) -> list[dict[str, object]]:
    """Answer 8 questions on each image with its prefix read once, and read in every row."""
    model, questions, asked, new = build_model(shape, device), 8, 12, 8
    measured = []
    for images in shape.images:
        generator = torch.Generator().manual_seed(2)
        ids_BQ = torch.randint(shape.vocabulary, (images * questions, asked), generator=generator).to(device)
        with torch.no_grad():
            prefix_GPE = model.project(draw_images(shape, images, shape.prefix, device)).to(model.decoder.dtype)
            text_BQE = model.decoder.embed(ids_BQ)

        @torch.no_grad()
        def ours(prefix: Tensor = prefix_GPE, text: Tensor = text_BQE) -> list[list[int]]:
            reading = Reading.start(len(prefix), device=device)
            read(model, reading, prefix, torch.ones(prefix.shape[:2], dtype=torch.bool, device=device))
            return answer_cached(model, reading.repeat(questions), text, new)

        @torch.no_grad()
        def theirs(prefix: Tensor = prefix_GPE, text: Tensor = text_BQE) -> list[list[int]]:
            embeds_BTE = torch.cat((prefix.repeat_interleave(questions, dim=0), text), dim=1)
            return answer_cached(model, Reading.start(len(text), device=device), embeds_BTE, new)

        same = share_of_equal(ours(), theirs())
        timing = alternate(ours, theirs, pairs=shape.pairs, warmup=0)
        measured.append(
            row_of(
                f"{questions} questions on each of {images} images", shape, timing, bar=2.0, ours="prefix read once",
                other="in every row",
                note=f"{shape.prefix} prefix tokens, answers of {new}; {same:.0%} of the tokens are equal",
            )
        )  # fmt: skip
    return measured


# c. packing


def draw_lengths(count: int, most: int) -> list[tuple[int, int]]:
    """Return lengths of questions and answers; those of answers have a long tail (log-normal)."""
    generator = torch.Generator().manual_seed(3)
    asked = torch.randint(6, 20, (count,), generator=generator).tolist()
    answered = (2.7 + 1.1 * torch.randn(count, generator=generator)).exp().clamp(1, most).long().tolist()
    return list(zip(asked, answered, strict=True))


def measure_packing(shape: Shape, device: torch.device) -> list[dict[str, object]]:
    """Train on conversations of mixed lengths, half of them about an image, in packed and in padded rows."""
    model = build_model(shape, device, lora=True).train()
    count = shape.conversations
    conversations = [
        draw_conversation(shape, asked, answered, seed)
        for seed, (asked, answered) in enumerate(draw_lengths(count, shape.row - shape.shown - 20))
    ]
    cases: dict[str, list[int | None]] = {
        "training, half without an image": [number // 2 if number % 2 else None for number in range(count)],
        "training, 4 questions on each image": [number // 4 for number in range(count)],
    }
    measured = []
    for what, images in cases.items():
        shown = sorted({image for image in images if image is not None})
        places = [None if image is None else shown.index(image) for image in images]
        features = draw_images(shape, len(shown), shape.shown, device)
        prefixes = [shape.shown] * len(shown)
        padded = pad_conversations(conversations, places, prefixes).to(device)
        packed = pack_conversations(conversations, places, prefixes, row_length=shape.row).to(device)
        ours, theirs = (make_training_step(model, rows, features) for rows in (packed, padded))
        with FlopCounterMode(display=False) as counter:
            one = ours()
        other = theirs()
        torch.testing.assert_close(one, other, rtol=2e-2 if device.type == "cuda" else 1e-4, atol=1e-4)
        timing = alternate(ours, theirs, pairs=shape.pairs, warmup=0)
        useful = int(padded.valid().sum())
        measured.append(
            row_of(
                what, shape, timing, bar=1.8, ours="packed", other="padded",
                note=f"{useful} useful tokens, {useful / timing.ours_s:,.0f} and {useful / timing.theirs_s:,.0f} a "
                f"second; rows {describe(packed)} and {describe(padded)}; losses {one:.4f} and {other:.4f}",
                flops=counter.get_total_flops(),
            )
        )  # fmt: skip
    return measured


def describe(rows: Rows) -> str:
    """Return the size of rows, and the share that is not padding."""
    return f"{rows.ids_RT.shape[0]} x {rows.ids_RT.shape[1]} ({rows.valid().float().mean().item():.0%} full)"


def make_training_step(model: QwenVLM, rows: Rows, images: TokenSequence) -> Callable[[], float]:
    """Return a function that runs forward and backward, and gives the loss."""

    def run() -> float:
        model.zero_grad()
        loss = model(rows, images).loss
        loss.backward()
        return loss.item()

    return run


# d. memory


def straightforward_loss(model: QwenVLM, rows: Rows, images: TokenSequence) -> Tensor:
    """Return the loss as usual code computes it: logits at all positions, most of which are ignored."""
    embeds_RTE = model.embed(rows, images)
    states_RTE = model.states(embeds_RTE, mask_R1TK=rows.mask(), positions_RT=rows.positions_RT)[-1]
    logits_RTV = model.decoder.logits(states_RTE).float()
    return cross_entropy(logits_RTV.flatten(0, 1), rows.targets_RT.flatten(), ignore_index=NOT_SUPERVISED)


ARMS = ("ours", "straightforward")
CASES = {
    "step": "training step",
    "again": "training step, activations computed again",
    "head": "embeddings, head and loss without the layers",
}


def measure_arm(arm: str, case: str, shape: Shape, device: torch.device) -> dict[str, float]:
    """Return the loss of one arm and its peak of forward and backward above weights and inputs, in MiB."""
    if case == "head":
        shape = replace(shape, layers=0)
    model = build_model(shape, device, lora=case != "head", checkpointing=case == "again").train()
    conversations = [draw_conversation(shape, 24, 8, seed) for seed in range(2)]
    rows = pad_conversations(conversations, [0, 1], [shape.prefix] * 2).to(device)
    images = draw_images(shape, 2, shape.prefix, device)
    with PeakMemory() as peak:
        loss = model(rows, images).loss if arm == "ours" else straightforward_loss(model, rows, images)
        loss.backward()
    return {"mib": peak.mib, "loss": loss.item()}


def measure_memory(shape: Shape, device: torch.device, *, arguments: Sequence[str] = ()) -> list[dict[str, object]]:
    """Compare the peaks of both losses; on a CPU each arm runs in its own process."""
    measured: list[dict[str, object]] = []
    for case, what in CASES.items():
        found = []
        for arm in ARMS:
            if device.type == "cuda":
                found.append(measure_arm(arm, case, shape, device))
                torch.cuda.empty_cache()
            else:
                more = [*arguments, "--layers", str(shape.layers), "--case", case]
                found.append(arm_in_own_process(__file__, arm, *more))
        ours, other = found
        assert abs(ours["loss"] - other["loss"]) <= 2e-2 * other["loss"], found
        measured.append(
            {
                "what": f"peak: {what}",
                "layers": 0 if case == "head" else shape.layers,
                "ours": "logits where supervised",
                "ours MiB": round(ours["mib"]),
                "alternative": "at all positions",
                "alternative MiB": round(other["mib"]),
                "times better": other["mib"] / ours["mib"],
                "bar": 2.0,
                "note": f"batch 2, {shape.prefix} prefix tokens, 32 of text, vocabulary {shape.vocabulary}",
            }
        )
    return measured


PARTS: dict[str, Callable[[Shape, torch.device], list[dict[str, object]]]] = {
    "decoding": measure_decoding,
    "reuse": measure_reuse,
    "packing": measure_packing,
    "memory": measure_memory,
}


def choose_shape(part: str, device: torch.device, *, quick: bool, layers: int | None = None) -> Shape:
    """Return the sizes for a part on a device."""
    shape = QUICK if quick else ON_GPU if device.type == "cuda" else ON_CPU
    if not quick and device.type == "cpu":
        shape = replace(shape, layers=CPU_LAYERS.get(part, shape.layers))
    return shape if layers is None else replace(shape, layers=layers)


def measure_part(part: str, shape: Shape, device: torch.device, *, quick: bool) -> list[dict[str, object]]:
    """Return the rows of a part."""
    if part == "memory":
        return measure_memory(shape, device, arguments=["--quick"] if quick else [])
    return PARTS[part](shape, device)


def main() -> None:
    """Run the parts and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; may be repeated")
    parser.add_argument("--layers", type=int, help="layers of the language model")
    parser.add_argument("--arm", choices=ARMS, help="measure the peak memory of one arm and print it as JSON")
    parser.add_argument("--case", choices=CASES, default="step", help="with --arm: of what")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.arm:
        shape = choose_shape("memory", device, quick=options.quick, layers=options.layers)
        print(json.dumps(measure_arm(options.arm, options.case, shape, device)))
        return
    parts = options.part or list(PARTS)
    rows = []
    for part in parts:
        shape = choose_shape(part, device, quick=options.quick, layers=options.layers)
        found = measure_part(part, shape, device, quick=options.quick)
        for row in found:
            print(json.dumps(row), flush=True)
        rows += found
    name = "edgeglass_vlm" if parts == list(PARTS) else f"edgeglass_vlm_{'_'.join(parts)}"
    notes = [f"{row['what']}: {row.pop('note')}" for row in rows]
    for row in rows:
        row.pop("flops", None)
    notes.append("times better: the alternative's time or memory by ours, to be at least the bar")
    report(name, rows, note="\n".join(notes))


if __name__ == "__main__":
    main()
