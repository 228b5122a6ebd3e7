"""Train the tiny language model that clip_common ships, on descriptions of the procedural world with questions.

    uv run python scripts/pretrain_tiny_decoder.py --workers 8             # four minutes on an H100
    uv run python scripts/pretrain_tiny_decoder.py --folder runs/small-decoder --steps 50 --rows 16
    cp -r runs/tiny-decoder packages/common/src/clip_common/backbones/tiny/decoder

The folder holds a model in half precision with its tokenizer, their checksums, and a card with the log and the results
on held-out worlds. A repeated command skips a finished model. In the run that made the shipped weights the learning
rate fell with the elapsed share of 225 seconds, in which there were 3,896 steps; here it falls with the steps, so that
their number alone says how a model is trained.

Shapes: R rows, T tokens of a row, E width, N targets, V vocabulary.
"""

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _tiny_talk import (
    ALL_TYPES,
    CELLS,
    CONTEXT,
    DROPPED,
    GRIDS,
    MISTAKEN,
    NOT_SUPERVISED,
    Batch,
    Row,
    Speaker,
    make_batch,
    make_tokenizer,
)
from pretrain_tiny_encoders import finish, make_table
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from clip_common.backbones import save_language
from clip_common.devices import pick_device
from clip_common.runs.files import write_new_folder
from clip_common.synthetic import Scene, sample_scene
from clip_common.synthetic.scenes import PRETRAINING_SEED, VERSION

SIZES = {
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
}
QUESTIONS = 24
"""Questions of a row."""
LENGTH = 400
"""Most tokens of a row in training."""
LR = 2e-3
WARMUP = 200
NOISE = 0.3
"""Length of the noise on an embedding of a context, as a share of the embedding's."""
NOISY = 60
"""Tokens of a context that get noise in training: every cell of a grid."""
EVERY = 600
"""Steps between two rows of the log."""
HELD_OUT = (1000, 1001, 1002)
"""Seeds of the worlds on which the results are measured."""
SCENES = 200
"""Scenes of each of them."""
CONTEXTS = ("description", "grid", "another scene")

CARD = """# The tiny language model

{parameters:,} parameters: a Qwen2ForCausalLM of {layers} blocks, width {width}, with a byte-level tokenizer of
{vocabulary} tokens in which every word of the world is one. It answers questions about a scene of the procedural world
(version {version}) of `clip_common.synthetic`, and knows nothing else. It exists so that every command, test and demo
of edgeglass runs without a network.

    from clip_common.backbones import load_language
    language = load_language("tiny")

It reads {cells} vectors that tell of a scene, or a description in words, then the question and a line break, and writes
the answer:

    a small red striped mug at the top left. a large blue plain star in the middle. on sand.
    what is in the middle?
    star<|endoftext|>

## Results

Share of balanced questions that greedy decoding answers right, by type of question, on {scenes} scenes of each of
{worlds} worlds whose seeds it was not trained on. "description": after a description in words. "grid": after {cells}
vectors, one for each cell of a grid over the scene, the sum of the embeddings of the words for the cell, as a projector
can make them from the tokens of an image. "another scene": after the description of another scene, which tells how many
answers are guessed from the question.

{results}

It is made to read grids. Descriptions in words are the context of {described:.0%} of the rows only, which was not
enough for it to learn to look things up in them: it finds out what there is and how much of it, but guesses often when
asked for the colour or the place of a thing, or to compare two things (colour, place, compare, relation).

## Training

`scripts/pretrain_tiny_decoder.py`: {steps:,} steps of {rows} rows on the world of seed {seed}, each row one scene with
{questions} questions and a caption, in {seconds:.0f} s on {hardware}. No picture takes part: {grids:.0%} of the rows
begin with a grid made from the words of the scene, with {dropped:.0%} of its words missing, {mistaken:.0%} of its kinds
random, and noise of {noise} times the length of its vectors; the others begin with a description. Loss of the tokens of
answers; then the share of right answers on the first held-out world, after descriptions and after grids.

{log}
"""


def make_model(tokenizer: Any) -> Any:
    """Return an untrained Qwen2."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=len(tokenizer),
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.05,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
        **SIZES,
    )
    return Qwen2ForCausalLM(config)


class Batches(Dataset[Batch]):
    """Batches of rows of new scenes and questions; each is a function of its number.

    Args:
        speaker: Makes the rows.
        steps: Number of batches.
        rows: Of a batch.
    """

    def __init__(self, speaker: Speaker, *, steps: int, rows: int) -> None:
        self.speaker, self.steps, self.rows = speaker, steps, rows

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        random = np.random.default_rng((PRETRAINING_SEED, step))
        scenes = (sample_scene(PRETRAINING_SEED, step * self.rows + row) for row in range(self.rows))
        return make_batch([self.speaker.make_row(scene, QUESTIONS, random) for scene in scenes], length=LENGTH)


def predict(model: Any, batch: Batch, *, noise: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return the logits (N, V) at the targets of a batch, and the targets (N,), on the model's device.

    Args:
        model: The language model.
        batch: On any device.
        noise: Length of Gaussian noise on the first `NOISY` embeddings of contexts, as a share of the embedding's.
    """
    batch = Batch(*(tensor.to(model.device, non_blocking=True) for tensor in batch))
    embeds_RTE = (model.get_input_embeddings()(batch.ids_RTK) * batch.weights()[..., None]).sum(dim=2)
    if noise:
        noisy_RT = (batch.owners_RT == -1) & (batch.positions_RT < NOISY)
        scale_RT1 = embeds_RTE.detach().norm(dim=-1, keepdim=True) * noise / math.sqrt(embeds_RTE.shape[-1])
        embeds_RTE = embeds_RTE + torch.randn_like(embeds_RTE) * scale_RT1 * noisy_RT[..., None]
    states_RTE = model.model(
        inputs_embeds=embeds_RTE, attention_mask=batch.mask(), position_ids=batch.positions_RT, use_cache=False
    ).last_hidden_state
    learned_RT = batch.targets_RT != NOT_SUPERVISED
    return model.lm_head(states_RTE[learned_RT]), batch.targets_RT[learned_RT]


def train(
    model: Any, speaker: Speaker, held_out: Sequence[Scene], *, steps: int, rows: int, workers: int
) -> list[dict[str, float]]:
    """Train with AdamW, in bfloat16 on a GPU; return the losses and results after every `EVERY` steps."""
    weights, on_gpu = list(model.parameters()), model.device.type == "cuda"
    optimizer = torch.optim.AdamW(weights, lr=LR, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, 1) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    loader = DataLoader(
        Batches(speaker, steps=steps, rows=rows),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=6 if workers else None,
        pin_memory=on_gpu,
        multiprocessing_context="spawn" if workers else None,  # forked tokenizers warn
    )
    log, recent = [], []
    for step, batch in enumerate(loader, start=1):
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=on_gpu):
            logits_NV, targets_N = predict(model, batch, noise=NOISE)
        loss = cross_entropy(logits_NV.float(), targets_N)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        recent.append(loss.detach())
        if step % EVERY == 0 or step == steps:
            scores = {name: score(model, speaker, held_out, context=name) for name in CONTEXTS[:2]}
            shown = {f"{name}: {type}": one[type] for name, one in scores.items() for type in ALL_TYPES}
            log.append({"step": step, "loss": torch.stack(recent).mean().item()} | shown)
            recent = []
            print(
                "  ".join(f"{name} {value:.3f}" if value % 1 else f"{name} {value}" for name, value in log[-1].items())
            )
    return log


@torch.inference_mode()
def score(model: Any, speaker: Speaker, scenes: Sequence[Scene], *, context: str) -> dict[str, float]:
    """Return the share of right greedy answers by type of question.

    An answer is right if each of its tokens and its end is the most probable one after those before it.
    """
    random = np.random.default_rng(PRETRAINING_SEED)
    right: dict[str, list[bool]] = {}
    for start in range(0, len(scenes), 20):
        rows = []
        for place in range(start, min(start + 20, len(scenes))):
            told = scenes[place - 1] if context == "another scene" else scenes[place]
            read = speaker.make_context(told, random, grid=context == "grid")
            rows.append(Row(read, tuple(speaker.make_turns(scenes[place], QUESTIONS, random)), apart=True))
        batch = make_batch(rows, length=CONTEXT)
        logits_NV, targets_N = predict(model, batch)
        owners_N = batch.turns_RT[batch.targets_RT != NOT_SUPERVISED]
        wrong = set(owners_N[(logits_NV.argmax(dim=1) != targets_N).cpu()].tolist())
        for number, turn in enumerate(turn for row in rows for turn in row.turns):
            right.setdefault(turn.type, []).append(number not in wrong)
    return {type: float(np.mean(hits)) for type, hits in right.items()}


def write_card(model: Any, speaker: Speaker, log: Sequence[dict[str, float]], **facts: Any) -> str:
    """Return the card of a model, with results on the held-out worlds.

    Args:
        model: With the weights that are shipped.
        speaker: Of its tokenizer.
        log: Of `train`.
        facts: Its `steps`, `rows`, `seconds` and `hardware`.
    """
    worlds = [[sample_scene(seed, index) for index in range(SCENES)] for seed in HELD_OUT]
    results = []
    for context in CONTEXTS:
        scores = [score(model, speaker, world, context=context) for world in worlds]
        results.append({"after": context} | {type: float(np.mean([one[type] for one in scores])) for type in ALL_TYPES})
    return CARD.format(
        parameters=model.num_parameters(),
        layers=SIZES["num_hidden_layers"],
        width=SIZES["hidden_size"],
        vocabulary=len(speaker.tokenizer),
        version=VERSION,
        scenes=SCENES,
        worlds=len(HELD_OUT),
        cells=CELLS**2,
        results=make_table(results),
        seed=PRETRAINING_SEED,
        questions=QUESTIONS,
        grids=GRIDS,
        described=1 - GRIDS,
        dropped=DROPPED,
        mistaken=MISTAKEN,
        noise=NOISE,
        log=make_table(log),
        **facts,
    )


def main() -> None:
    """Train the model, if it is not finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs") / "tiny-decoder")
    parser.add_argument("--steps", type=int, default=3_900)
    parser.add_argument("--rows", type=int, default=64, help="rows of a step")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--workers", type=int, default=0, help="processes that make rows; 0: none but this one")
    options = parser.parse_args()
    if options.folder.exists():
        print(f"{options.folder} is finished")
        return
    device = pick_device() if options.device == "auto" else torch.device(options.device)
    torch.manual_seed(PRETRAINING_SEED)
    tokenizer = make_tokenizer()
    speaker, model = Speaker(tokenizer), make_model(tokenizer).to(device)
    held_out = [sample_scene(HELD_OUT[0], index) for index in range(SCENES)]
    start = time.perf_counter()
    log = train(model, speaker, held_out, steps=options.steps, rows=options.rows, workers=options.workers)
    seconds = time.perf_counter() - start
    model.half().float()  # as it is shipped
    hardware = f"one {torch.cuda.get_device_name()} in bfloat16" if device.type == "cuda" else "a CPU"
    card = write_card(model, speaker, log, steps=options.steps, rows=options.rows, seconds=seconds, hardware=hardware)
    with write_new_folder(options.folder) as draft:
        save_language(model.half().cpu(), tokenizer, draft / "model")
        for file in (draft / "model").iterdir():
            file.rename(draft / file.name)
        (draft / "model").rmdir()
        finish(draft, card)
    print(options.folder)


if __name__ == "__main__":
    main()
