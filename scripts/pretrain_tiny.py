"""Train the tiny CLIP that clip_common ships, with `clipse.train`, on the procedural world.

    uv run python scripts/pretrain_tiny.py                                   # the full recipe: hours on two cores
    uv run python scripts/pretrain_tiny.py --folder runs/small --scenes 1000 --parts 500 --epochs 6 --epochs-112 1

Draw the world, train the tokenizer, train the model at 64 pixels and then at 112, and print the second run's folder.
Repeating the command skips finished steps and resumes an interrupted run.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from clip_common import cli
from clip_common.runs import write_json
from clip_common.runs.resolve import resolve
from clip_common.synthetic import captions, sample_scene, write_pretraining
from clip_common.synthetic.part_captions import part_captions
from clip_common.synthetic.parts import sample_part
from clipse import train
from clipse.config import Config

VOCABULARY = 1024
SPECIAL = ("<pad>", "<start>", "<end>")  # <end> must have the largest id, because CLIP pools at the largest


def draw_texts(count: int = 4000) -> Iterator[str]:
    """Yield the captions that train the tokenizer, of `count` scenes and as many parts."""
    for index in range(count):
        part = sample_part(0, index)
        yield from (*captions(sample_scene(0, index)), *part_captions(part), *part_captions(part.flawless()))


def write_tokenizer(folder: Path) -> int:
    """Train and save a lower-case byte-level BPE on the world's captions, and return its size.

    A word that the captions do not contain takes several tokens.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL), initial_alphabet=alphabet, min_frequency=2, show_progress=False
    )
    tokenizer.train_from_iterator(draw_texts(), trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    pad, start, end = SPECIAL
    ids = [(token, tokenizer.token_to_id(token)) for token in (start, end)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{start} $A {end}", special_tokens=ids)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, bos_token=start, eos_token=end)
    wrapped.save_pretrained(folder)
    return len(wrapped)


def train_stage(name: str, overrides: list[str], *, root: Path) -> Path:
    """Return the folder of a finished run: train it, resume it, or reuse it."""
    folder = root / "clipse" / name
    if (folder / "model" / "config.json").exists():
        print(f"{folder} is finished")
        return folder
    resume = folder if folder.exists() else None
    paths = [f"name={name}", f"runs={root}", f"results={root / 'results'}"]
    if resume:
        config = resolve(Config, package="clipse", resume=resume)
    else:
        config = resolve(Config, package="clipse", config="pretrain-tiny", overrides=[*paths, *overrides])
    return train(config, resume=resume, reporter=cli.progress).run.path


def main() -> None:
    """Run every step of the recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs") / "tiny")
    parser.add_argument("--scenes", type=int, default=8_000)
    parser.add_argument("--parts", type=int, default=16_000)
    parser.add_argument("--epochs", type=int, default=10, help="epochs at 64 pixels")
    parser.add_argument("--epochs-112", type=int, default=4, help="epochs at 112 pixels")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw the world")
    parser.add_argument("--start", help="start from these weights (local-dir:FOLDER or tiny) instead of from scratch")
    options = parser.parse_args()

    given = {name: str(value) for name, value in vars(options).items() if name != "workers"}
    recipe = options.folder / "recipe.json"
    if recipe.exists() and json.loads(recipe.read_text(encoding="utf-8")) != given:
        raise SystemExit(f"{recipe} has other options than this command: repeat those, or name another --folder")
    write_json(recipe, given)
    world, tokenizer = options.folder / "world", options.folder / "tokenizer"
    if not world.exists():
        counts = {"scenes": options.scenes, "parts": options.parts}
        held_out = {"val_scenes": max(50, options.scenes // 40), "val_parts": max(20, options.parts // 60)}
        with cli.progress("drawing the world") as progress:
            write_pretraining(world, **counts, **held_out, workers=options.workers, progress=progress)
    if not (tokenizer / "tokenizer.json").exists():
        write_tokenizer(tokenizer)
    size = len(json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]) + len(SPECIAL)
    text = "model.architecture.text_cfg"
    start = [f"{text}.vocab_size={size}", f"{text}.hf_tokenizer_name={tokenizer}"]
    own = ["model.architecture=null", "model.pretrained=null"]  # the starting weights determine both
    if options.start:
        start = [f"model.name={options.start}", "model.image_size=64", *own]
    data = [f"data.root={world}"]
    first = train_stage("tiny-64", [*data, *start, f"trainer.max_epochs={options.epochs}"], root=options.folder)
    weights = [f"model.name=local-dir:{first / 'model'}", *own]
    fine_tuning = ["model.image_size=112", "optim.lr=0.0006", f"trainer.max_epochs={options.epochs_112}"]
    print(train_stage("tiny-112", [*data, *weights, *fine_tuning], root=options.folder))


if __name__ == "__main__":
    main()
