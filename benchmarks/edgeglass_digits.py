"""Spoken digits of a speaker nobody trained on, named by aligned sounds and words: edgeglass on Whisper and MiniLM.

    uv run python benchmarks/edgeglass_digits.py            # 4 speakers, negatives of the batch and of the corpus
    uv run python benchmarks/edgeglass_digits.py --quick    # one speaker, 3 epochs: does it run

Each of four speakers is held out in turn. Of the other three every fifth recording selects the epoch, and the rest
trains. A sound is named by the nearest of the ten words "zero" to "nine". Beside it, a logistic regression on the same
features of the same training sounds. `edgeglass_audio.py` has the probe by MTEB's protocol, with known speakers.

The encoder of texts is never changed: the script asserts that its embeddings are the same bits before and after.
"""

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from _measure import report
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from clip_common.config import load_config
from clip_common.features import FeatureCache
from edgeglass.aligner.aligner import Aligner
from edgeglass.config import Config
from edgeglass.data import Sample, read_samples
from edgeglass.models.building import build_encoders
from edgeglass.models.encoders import ModalityEncoder
from edgeglass.scoring.embedding import embed_split
from edgeglass.scoring.evaluation import evaluate
from edgeglass.training.experiment import train

ASSETS = Path(os.environ.get("CLIP_REAL_ASSETS", Path.home() / ".cache" / "clip-real-assets"))
DIGITS = Path(__file__).resolve().parents[2] / "shared" / "assets" / "data" / "spoken_digits"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write_digits(digits: Path, file: Path, *, held_out: str) -> Path:
    """Write the sounds as JSON lines: the held-out speaker is the test split, every fifth of the others is val."""
    rows = []
    for sound in sorted(digits.glob("*.wav")):
        digit, speaker, number = sound.stem.split("_")
        split = "test" if speaker == held_out else "val" if int(number) % 5 == 0 else "train"
        rows.append({"audio": str(sound.absolute()), "caption": WORDS[int(digit)], "split": split})
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def embed_words(encoder: ModalityEncoder) -> Tensor:
    """Return the sentence embeddings (10, F) of the words, without a head."""
    feed = encoder.encoder.feed
    with torch.no_grad():
        return encoder.features(feed.batch([feed.load(word, name=word) for word in WORDS])).tokens[:, 0]


def train_and_score(config: Config, cache: FeatureCache, splits: dict[str, list[Sample]]) -> dict[int, float]:
    """Train one run; return, at each width, the share of test sounds whose nearest word is theirs."""
    words_before = embed_words(build_encoders(config)["text"])
    model = Aligner.from_pretrained(train(config).run.path).model
    assert torch.equal(words_before, embed_words(model.encoder_of("text"))), "alignment changed the encoder of texts"
    found = evaluate(
        embed_split(model, splits["test"], config, cache=cache),
        pairs=[("audio", "text")],
        widths=config.mrl.widths,
        ceilings={},
        samples=len(splits["test"]),
    )
    return {way.width: way.result.metrics["R@1"] for way in found.directions if way.name == "a2t"}


def probe_features(config: Config, cache: FeatureCache, splits: dict[str, list[Sample]]) -> float:
    """Return the accuracy on the test sounds of a logistic regression on the features of the training sounds."""
    encoder = build_encoders(config)["audio"].encoder
    sounds = {name: [sample.audio for sample in splits[name] if sample.audio is not None] for name in ("train", "test")}
    rows = {name: cache.features(encoder, found).numpy() for name, found in sounds.items()}
    words = {name: [sample.captions[0] for sample in splits[name]] for name in ("train", "test")}
    return float(LogisticRegression(max_iter=200).fit(rows["train"], words["train"]).score(rows["test"], words["test"]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", type=Path, default=DIGITS)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "digits")
    parser.add_argument("--quick", action="store_true", help="one speaker, 3 epochs: does it run")
    options = parser.parse_args()
    for part in (ASSETS / "whisper", ASSETS / "minilm", options.digits):
        if not part.exists():
            parser.error(f"{part} is absent: this benchmark needs real weights and sounds, see CONTRIBUTING.md")
    speakers = sorted({sound.stem.split("_")[1] for sound in options.digits.glob("*.wav")})
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for speaker in speakers[:1] if options.quick else speakers:
            file = write_digits(options.digits, Path(folder) / f"{speaker}.jsonl", held_out=speaker)
            for negatives in ("batch", "corpus"):
                name = f"{speaker}-{negatives}"
                shutil.rmtree(options.runs / "edgeglass" / name, ignore_errors=True)
                overrides = [
                    f"data.root={file}",
                    f"encoders.audio.name={ASSETS / 'whisper'}",
                    f"encoders.text.name={ASSETS / 'minilm'}",
                    f"loss.negatives={negatives}",
                    f"runs={options.runs}",
                    f"name={name}",
                    *(["trainer.max_epochs=3"] if options.quick else []),
                ]
                config = load_config(Config, config="small_sounds", overrides=overrides, package="edgeglass")
                splits, cache = read_samples(config.data).splits, FeatureCache(config.cache_folder / "features")
                if negatives == "batch":
                    rows.append(
                        {
                            "speaker": speaker,
                            "method": "logistic regression",
                            "features": probe_features(config, cache, splits),
                        }
                    )
                scores = train_and_score(config, cache, splits)
                rows.append(
                    {"speaker": speaker, "method": f"edgeglass, {negatives}"}
                    | {str(width): score for width, score in scores.items()}
                )
                print(rows[-1], flush=True)
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        numbers = [key for key in mine[0] if key not in ("speaker", "method")]
        rows.append(
            {"speaker": "mean", "method": method} | {key: sum(row[key] for row in mine) / len(mine) for key in numbers}
        )
    report("edgeglass_digits", rows, note="R@1 among ten words on the held-out speaker, by width; chance 0.1")
