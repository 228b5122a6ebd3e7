"""Train the tiny language model that clip_common ships, on descriptions of the procedural world with questions.

    uv run python scripts/pretrain_tiny_decoder.py             # half an hour on one core
    uv run python scripts/pretrain_tiny_decoder.py --folder runs/small-decoder --steps 50
    cp -r runs/tiny-decoder packages/common/src/clip_common/backbones/tiny/decoder

The folder holds a model in half precision with its tokenizer, their checksums, and a card with the log and the results
on held-out worlds. A repeated command skips a finished model.

Shapes: R rows, T tokens of a row, E width, N targets, V vocabulary.
"""

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _tiny_talk import ALL_TYPES, CELLS, CONTEXT, NOT_SUPERVISED, Batch, Row, Speaker, make_batch, make_tokenizer
from pretrain_tiny_encoders import finish, make_table
from torch import Tensor
from torch.nn.functional import cross_entropy

from clip_common.backbones import save_language
from clip_common.runs.files import write_new_folder
from clip_common.synthetic import Scene, sample_scene
from clip_common.synthetic.scenes import PRETRAINING_SEED, VERSION

SIZES = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 384,
}
ROWS = 16
QUESTIONS = 24
"""Questions of a row."""
LENGTH = 400
"""Most tokens of a row in training."""
LR = 2e-3
WARMUP = 100
EVERY = 200
"""Steps between two rows of the log."""
HELD_OUT = (1000, 1001, 1002)
"""Seeds of the worlds on which the results are measured."""
SCENES = 200
"""Scenes of each of them."""
CONTEXTS = ("description", "grid", "another scene")

CARD = """# The tiny language model

{parameters:,} parameters: a Qwen2ForCausalLM of four blocks, width 128, with a byte-level tokenizer of {vocabulary}
tokens in which every word of the world is one. It answers questions about a described scene of the procedural world
(version {version}) of `clip_common.synthetic`, and knows nothing else. It exists so that every command, test and demo
of edgeglass runs without a network.

    from clip_common.backbones import load_language
    language = load_language("tiny")

It reads the description, then the question and a line break, and writes the answer:

    a small red striped mug at the top left. a large blue plain star in the middle. on sand.
    what colour is the mug?
    red<|endoftext|>

## Results

Share of balanced questions that greedy decoding answers right, by type of question, on {scenes} scenes of each of
{worlds} worlds whose seeds it was not trained on. "description": after a description in words. "grid": after {cells}
vectors, one for each cell of a grid over the scene, the sum of the embeddings of the words for the cell, as a projector
can make them from the tokens of an image. "another scene": after the description of another scene, which tells how many
answers are guessed from the question.

{results}

## Training

`scripts/pretrain_tiny_decoder.py`: {steps:,} steps of {rows} rows on the world of seed {seed}, each row one scene with
{questions} questions and a caption, in {minutes:.0f} minutes on a shared core. No picture takes part: half of the rows
begin with a description, half with a grid made from the words of the scene. Loss of the tokens of answers; then the
share of right answers on the first held-out world, after descriptions and after grids.

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


def predict(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the logits (N, V) at the targets of a batch, and the targets (N,)."""
    embeds_RTE = (model.get_input_embeddings()(batch.ids_RTK) * batch.weights_RTK[..., None]).sum(dim=2)
    states_RTE = model.model(
        inputs_embeds=embeds_RTE, attention_mask=batch.mask_R1TT, position_ids=batch.positions_RT, use_cache=False
    ).last_hidden_state
    learned_RT = batch.targets_RT != NOT_SUPERVISED
    return model.lm_head(states_RTE[learned_RT]), batch.targets_RT[learned_RT]


def draw_batches(speaker: Speaker, steps: int) -> Iterator[Batch]:
    """Yield batches of new scenes and questions."""
    random = np.random.default_rng(PRETRAINING_SEED)
    for step in range(steps):
        scenes = (sample_scene(PRETRAINING_SEED, step * ROWS + row) for row in range(ROWS))
        yield make_batch([speaker.make_row(scene, QUESTIONS, random) for scene in scenes], length=LENGTH)


def train(model: Any, speaker: Speaker, held_out: Sequence[Scene], *, steps: int) -> list[dict[str, float]]:
    """Train with AdamW; return a row of losses and results every `EVERY` steps."""
    weights = list(model.parameters())
    optimizer = torch.optim.AdamW(weights, lr=LR, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, (1 + math.cos(math.pi * step / steps)) / 2)
    )
    rows, recent = [], []
    for step, batch in enumerate(draw_batches(speaker, steps), start=1):
        loss = cross_entropy(*predict(model, batch))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        recent.append(loss.item())
        if step % EVERY == 0 or step == steps:
            scores = {name: score(model, speaker, held_out, context=name) for name in CONTEXTS[:2]}
            shown = {f"{name}: {type}": one[type] for name, one in scores.items() for type in ALL_TYPES}
            rows.append({"step": step, "loss": float(np.mean(recent))} | shown)
            recent = []
            print(
                "  ".join(f"{name} {value:.3f}" if value % 1 else f"{name} {value}" for name, value in rows[-1].items())
            )
    return rows


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
        wrong = set(owners_N[logits_NV.argmax(dim=1) != targets_N].tolist())
        for number, turn in enumerate(turn for row in rows for turn in row.turns):
            right.setdefault(turn.type, []).append(number not in wrong)
    return {type: float(np.mean(hits)) for type, hits in right.items()}


def main() -> None:
    """Train the model, if it is not finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs") / "tiny-decoder")
    parser.add_argument("--steps", type=int, default=3_000)
    options = parser.parse_args()
    if options.folder.exists():
        print(f"{options.folder} is finished")
        return
    torch.manual_seed(PRETRAINING_SEED)
    tokenizer = make_tokenizer()
    speaker, model = Speaker(tokenizer), make_model(tokenizer)
    worlds = {seed: [sample_scene(seed, index) for index in range(SCENES)] for seed in HELD_OUT}
    start = time.perf_counter()
    log = train(model, speaker, worlds[HELD_OUT[0]], steps=options.steps)
    minutes = (time.perf_counter() - start) / 60
    model.half().float()  # as it is shipped
    results = []
    for context in CONTEXTS:
        scores = [score(model, speaker, world, context=context) for world in worlds.values()]
        results.append(
            {"context": context} | {type: float(np.mean([one[type] for one in scores])) for type in ALL_TYPES}
        )
    card = CARD.format(
        parameters=model.num_parameters(),
        vocabulary=len(tokenizer),
        version=VERSION,
        scenes=SCENES,
        worlds=len(HELD_OUT),
        cells=CELLS**2,
        results=make_table(results),
        steps=options.steps,
        rows=ROWS,
        seed=PRETRAINING_SEED,
        questions=QUESTIONS,
        minutes=minutes,
        log=make_table(log),
    )
    with write_new_folder(options.folder) as draft:
        save_language(model.half(), tokenizer, draft / "model")
        for file in (draft / "model").iterdir():
            file.rename(draft / file.name)
        (draft / "model").rmdir()
        finish(draft, card)
    print(options.folder)


if __name__ == "__main__":
    main()
