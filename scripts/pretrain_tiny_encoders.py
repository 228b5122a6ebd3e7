"""Train the tiny text and audio encoders that clip_common ships, on captions and sounds of the procedural world.

    uv run python scripts/pretrain_tiny_encoders.py            # half an hour on one core
    uv run python scripts/pretrain_tiny_encoders.py --folder runs/small --scenes 1000 --steps 150
    cp -r runs/tiny-encoders/text runs/tiny-encoders/audio packages/common/src/clip_common/backbones/tiny/

Each folder holds a model in half precision, its checksums, and a card with the log and the results on held-out worlds.
A repeated command skips the models that are finished.

No picture takes part. Both encoders learn three things: from the mean over its tokens, to state the claims of a caption
or a sound ("there is a red mug", "two things") and to find the scene whose claims they are; and at each token, to name
the attributes of its thing.

Shapes: B batch, T tokens, P tokens of things, F width of an encoder, C claims, A attributes of a thing, N scenes.
"""

import argparse
import hashlib
import itertools
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _tiny_world import (
    BANDS,
    HEARD,
    POSITIONS,
    SEEN,
    TEXT_LENGTH,
    ClaimSet,
    Example,
    draw_sounds,
    draw_texts,
    make_extractor,
    make_tokenizer,
)
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize, pad

from clip_common.backbones.shipped import SUMS
from clip_common.runs.files import write_new_folder
from clip_common.synthetic import sample_scene
from clip_common.synthetic.scenes import PRETRAINING_SEED, VERSION
from clip_common.tables import markdown_table
from clip_common.tensors import write_tensors

TEXT = {"hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 6, "intermediate_size": 384}
AUDIO = {"d_model": 96, "encoder_layers": 3, "encoder_attention_heads": 3, "encoder_ffn_dim": 192}
SHARED = 192
"""Width of the space in which an input meets its scene's claims; it is not shipped."""
BATCH = {"text": 128, "audio": 64}
LR = 1e-3
WARMUP = 100
EVERY = 200
"""Steps between two rows of the log."""
HELD_OUT = (1000, 1001, 1002)
"""Seeds of the worlds on which the results are measured."""
GALLERY = 200
"""Scenes of each of them."""

CARD = """# The tiny {what} encoder

{parameters:,} parameters: {architecture}
It knows the {inputs} of the procedural world (version {version}) of `clip_common.synthetic` and nothing else. It exists
so that every command, test and demo of edgeglass runs without a network.

    from clip_common.backbones import load_{what}
    encoder = load_{what}("tiny")

## Results

On {gallery} scenes of each of {worlds} worlds whose seeds it was not trained on:

{results}

Linear layers, trained with the encoder and not shipped, read all of this: from the mean over the tokens of {inputs},
"scene", the share that finds its own scene among {gallery} whose claims are known, and "precision" and "recall" of the
claims of {inputs} themselves (such as "there is a red mug" and "there are two things"); {tokens}

## Training

`scripts/pretrain_tiny_encoders.py`: {steps:,} steps on {scenes:,} scenes of the world of seed {seed}, no picture,
in {minutes:.0f} minutes on a shared core. Losses of the claims of the input, of the contrast of the scenes in a batch,
and of the attributes of things at their tokens; then the results on the first held-out world.

{log}
"""
FACTS = {
    "text": {
        "architecture": "a SentenceTransformer of stock modules, a BERT of two blocks, width 192, over whole words,\n"
        "and the mean over its tokens.",
        "inputs": "captions",
        "tokens": 'and from the token of\na thing, its attributes, "kind" to "place", where the caption names them.',
    },
    "audio": {
        "architecture": "the encoder of a Whisper of three blocks, width 96, over 48 mel bands, with 25 tokens a\n"
        "second and a window of eight seconds; it has no decoder.",
        "inputs": "sounds",
        "tokens": 'and from the tokens in\nthe middle of a thing, its attributes, "kind" to "size".',
    },
}


class Learner(nn.Module):
    """An encoder with the heads that teach it.

    Args:
        encoder: BertModel or WhisperEncoder.
        width: F.
        claims: All claims of its inputs.
    """

    def __init__(self, encoder: Any, width: int, claims: ClaimSet) -> None:
        super().__init__()
        self.encoder, self.claims = encoder, claims
        self.state = nn.Linear(width, len(claims))
        self.share = nn.Linear(width, SHARED)
        self.scene = nn.Linear(len(claims), SHARED, bias=False)
        self.name = nn.ModuleList(nn.Linear(width, len(values)) for values in claims.values.values())
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        nn.init.constant_(self.state.bias, -4.0)  # most claims are false

    def embed(self, batch: Sequence[Example], *, length: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the tokens (B, T, F) of a batch and their mean (B, F) without padding.

        Args:
            batch: Inputs, padded to the longest.
            length: Pads sounds to this many frames instead.
        """
        if self.claims is SEEN:
            ids_BT = nn.utils.rnn.pad_sequence([example.tensor for example in batch], batch_first=True)
            tokens_BTF = self.encoder(input_ids=ids_BT, attention_mask=(ids_BT > 0).long()).last_hidden_state
        else:
            length = length or max(example.tensor.shape[1] for example in batch)
            length += length % 2
            # the last frame is silence
            mels = [pad(one.tensor, (0, length - one.tensor.shape[1]), mode="replicate") for one in batch]
            cut_positions(self.encoder, length // 2)
            tokens_BTF = self.encoder(torch.stack(mels)).last_hidden_state
        mask_BT = torch.arange(tokens_BTF.shape[1]) < torch.tensor([example.tokens for example in batch])[:, None]
        return tokens_BTF, (tokens_BTF * mask_BT[..., None]).sum(dim=1) / mask_BT.sum(dim=1, keepdim=True)

    def match(self, pooled_BF: Tensor, scenes: Sequence[Sequence[int]]) -> Tensor:
        """Return the cosines (B, N) of inputs with the claims of N scenes."""
        scene_NS = self.scene(self.claims.rows(scenes))
        return normalize(self.share(pooled_BF), dim=1) @ normalize(scene_NS, dim=1).T

    def forward(self, batch: Sequence[Example], *, length: int | None = None) -> Tensor:
        """Return the losses (3,): claims, contrast, things at tokens."""
        tokens_BTF, pooled_BF = self.embed(batch, length=length)
        own_BC = self.claims.rows([example.claims for example in batch])
        claims = len(self.claims) / 6 * binary_cross_entropy_with_logits(self.state(pooled_BF), own_BC)
        rows = [row for row, example in enumerate(batch) if example.scene is not None]
        scenes = [example.scene for example in batch if example.scene is not None]
        logits_NN = self.match(pooled_BF[rows], scenes) * self.log_scale.exp()
        right_N = torch.arange(len(rows))
        contrast = (cross_entropy(logits_NN, right_N) + cross_entropy(logits_NN.T, right_N)) / 2
        names, true_PA = self.name_things(tokens_BTF, batch)
        things = [cross_entropy(logits_PV, true_P) for logits_PV, true_P in zip(names, true_PA.T, strict=True)]
        return torch.stack([claims, contrast, torch.stack(things).sum()])

    def name_things(self, tokens_BTF: Tensor, batch: Sequence[Example]) -> tuple[list[Tensor], Tensor]:
        """Return logits (P, values) of each attribute at the P tokens of things, and the true values (P, A)."""
        tokens_PF = torch.cat([tokens_TF[one.places] for tokens_TF, one in zip(tokens_BTF, batch, strict=True)])
        return [layer(tokens_PF) for layer in self.name], torch.cat([example.things for example in batch])

    @torch.inference_mode()
    def score(self, examples: Sequence[Sequence[Example]]) -> dict[str, float]:
        """Return the results of the card, on the examples of a gallery of scenes."""
        inputs = sorted(
            ((one, scene) for scene, own in enumerate(examples) for one in own), key=lambda pair: pair[0].tokens
        )
        batches = [inputs[start : start + 100] for start in range(0, len(inputs), 100)]
        scenes = [own[0].scene for own in examples if own[0].scene is not None]
        hits: dict[str, list[Tensor]] = {}
        for part in batches:
            batch = [one for one, _ in part]
            tokens_BTF, pooled_BF = self.embed(batch)
            found = self.match(pooled_BF, scenes).argmax(dim=1)
            hits.setdefault("scene", []).append(found == torch.tensor([scene for _, scene in part]))
            stated_BC, true_BC = self.state(pooled_BF) > 0, self.claims.rows([one.claims for one in batch]) > 0
            hits.setdefault("precision", []).append(true_BC[stated_BC])
            hits.setdefault("recall", []).append(stated_BC[true_BC])
            names, true_PA = self.name_things(tokens_BTF, batch)
            for name, logits_PV, true_P in zip(self.claims.values, names, true_PA.T, strict=True):
                known_P = true_P >= 0
                hits.setdefault(name, []).append((logits_PV.argmax(dim=1) == true_P)[known_P])
        return {name: torch.cat(parts).float().mean().item() for name, parts in hits.items()}


def cut_positions(encoder: Any, positions: int) -> None:
    """Let a WhisperEncoder take spectrograms of this many tokens."""
    encoder.config.max_source_positions = encoder.embed_positions.num_embeddings = positions


def draw_batches(
    examples: Sequence[Sequence[Example]], size: int, random: np.random.Generator
) -> Iterator[list[Example]]:
    """Yield the batches of one epoch, of similar length: a caption of each scene or its sound, and queries."""
    order = random.permutation(len(examples))
    batches = []
    for start in range(0, len(order), 8 * size):
        part = sorted(order[start : start + 8 * size], key=lambda row: examples[row][0].tokens)
        batches += [part[at : at + size] for at in range(0, len(part) - size + 1, size)]
    for number in random.permutation(len(batches)):
        named = [[one for one in examples[row] if one.scene is not None] for row in batches[number]]
        queries = [one for row in batches[number][: size // 8] for one in examples[row] if one.scene is None]
        yield [own[int(random.integers(len(own)))] for own in named] + queries


def train(
    learner: Learner,
    examples: Sequence[Sequence[Example]],
    held_out: Sequence[Sequence[Example]],
    *,
    size: int,
    steps: int,
) -> list[dict[str, float]]:
    """Train an encoder with AdamW; return a row of losses and results every `EVERY` steps."""
    random = np.random.default_rng(PRETRAINING_SEED)
    weights = [weight for weight in learner.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LR, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, (1 + math.cos(math.pi * step / steps)) / 2)
    )
    epochs = (draw_batches(examples, size, random) for _ in itertools.count())
    rows, recent = [], []
    for step, batch in enumerate(itertools.islice(itertools.chain.from_iterable(epochs), steps), start=1):
        losses = learner(batch, length=draw_length(batch, random) if learner.claims is HEARD else None)
        optimizer.zero_grad()
        losses.sum().backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        recent.append(losses.detach())
        if step % EVERY == 0 or step == steps:
            means = dict(zip(("claims", "contrast", "things"), torch.stack(recent).mean(dim=0).tolist(), strict=True))
            rows.append(
                {"step": step} | {f"{name} loss": value for name, value in means.items()} | learner.score(held_out)
            )
            recent = []
            print(
                "  ".join(f"{name} {value:.3f}" if value % 1 else f"{name} {value}" for name, value in rows[-1].items())
            )
    return rows


def draw_length(batch: Sequence[Example], random: np.random.Generator) -> int | None:
    """Return a length in frames for some batches, so that an encoder knows any amount of silence after a sound."""
    kind = random.random()
    if kind < 0.1:
        return 2 * POSITIONS
    return int(random.integers(max(one.tensor.shape[1] for one in batch), 2 * POSITIONS + 1)) if kind < 0.3 else None


def make_text_learner(tokenizer: Any) -> Learner:
    """Return an untrained BERT with its heads."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=TEXT_LENGTH,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.05,
        pad_token_id=tokenizer.pad_token_id,
        **TEXT,
    )
    model = BertModel(config)
    nn.init.zeros_(model.pooler.dense.weight)  # sentence-transformers expects the pooler but does not use it
    return Learner(model, TEXT["hidden_size"], SEEN)


def make_audio_learner() -> Learner:
    """Return an untrained encoder of a Whisper with its heads."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    # settings of the decoder, which is not built, are as small as may be
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 1, "decoder_ffn_dim": 1, "max_target_positions": 1}
    special = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0}
    config = WhisperConfig(
        vocab_size=1, num_mel_bins=BANDS, max_source_positions=POSITIONS, init_std=0.05, **AUDIO, **decoder, **special
    )
    return Learner(WhisperEncoder(config), AUDIO["d_model"], HEARD)


def save_text(learner: Learner, tokenizer: Any, folder: Path) -> None:
    """Write a SentenceTransformer of stock modules in half precision."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    with tempfile.TemporaryDirectory() as parts:
        learner.encoder.save_pretrained(parts)
        tokenizer.save_pretrained(parts)
        model = SentenceTransformer(modules=[Transformer(parts), Pooling(TEXT["hidden_size"], "mean")], device="cpu")
        model.half().save_pretrained(str(folder), create_model_card=False)


def save_audio(learner: Learner, extractor: Any, folder: Path) -> None:
    """Write the configuration of a Whisper, and the weights of its encoder alone, in half precision."""
    config = learner.encoder.config
    cut_positions(learner.encoder, POSITIONS)
    config.architectures, config.dtype = ["WhisperModel"], torch.float16
    config.save_pretrained(folder)
    extractor.save_pretrained(folder)
    state = {f"encoder.{name}": tensor.half() for name, tensor in learner.encoder.state_dict().items()}
    write_tensors(folder / "model.safetensors", state)


def finish(folder: Path, card: str) -> None:
    """Write the card, and the checksums of all other files of a folder."""
    (folder / "model.safetensors").chmod(0o644)  # sentence-transformers makes a file that only its owner may read
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}" for path in files]
    (folder / SUMS).write_text("\n".join(sums) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")


def make_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table of rows of numbers."""
    cells = [[f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    return markdown_table(list(rows[0]), cells)


def main() -> None:
    """Train both encoders, or those that are not finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs") / "tiny-encoders")
    parser.add_argument("--scenes", type=int, default=12_000)
    parser.add_argument("--steps", type=int, default=1_200)
    options = parser.parse_args()
    for what in ("text", "audio"):
        folder = options.folder / what
        if folder.exists():
            print(f"{folder} is finished")
            continue
        torch.manual_seed(PRETRAINING_SEED)
        worlds = [[sample_scene(seed, index) for index in range(GALLERY)] for seed in HELD_OUT]
        scenes = [sample_scene(PRETRAINING_SEED, index) for index in range(options.scenes)]
        if what == "text":
            tool = make_tokenizer()
            learner = make_text_learner(tool)
            examples = draw_texts(scenes, tool, queries=True)
            galleries = [draw_texts(world, tool, queries=False) for world in worlds]
        else:
            tool = make_extractor()
            learner = make_audio_learner()
            examples = draw_sounds(scenes, tool)
            galleries = [draw_sounds(world, tool) for world in worlds]
        start = time.perf_counter()
        log = train(learner, examples, galleries[0], size=BATCH[what], steps=options.steps)
        minutes = (time.perf_counter() - start) / 60
        learner.encoder.half().float()  # as it is shipped
        results = [
            {"seed": str(seed)} | learner.score(gallery) for seed, gallery in zip(HELD_OUT, galleries, strict=True)
        ]
        card = CARD.format(
            what=what,
            parameters=sum(weight.numel() for weight in learner.encoder.parameters()),
            version=VERSION,
            gallery=GALLERY,
            results=make_table(results),
            scenes=options.scenes,
            seed=PRETRAINING_SEED,
            steps=options.steps,
            minutes=minutes,
            log=make_table(log),
            worlds=len(HELD_OUT),
            **FACTS[what],
        )
        with write_new_folder(folder) as draft:
            save_text(learner, tool, draft) if what == "text" else save_audio(learner, tool, draft)
            finish(draft, card)
        print(folder)


if __name__ == "__main__":
    main()
