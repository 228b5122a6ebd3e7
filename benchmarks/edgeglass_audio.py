"""What a Whisper encoder should see of a short sound: time and accuracy of `context=sound` against `context=full`.

    uv run python benchmarks/edgeglass_audio.py            # 1,000 spoken digits; half an hour on two cores
    uv run python benchmarks/edgeglass_audio.py --quick    # 400 of them, one pair of timings

Accuracy is that of MTEB's protocol for classification: a logistic regression on 8 sounds a label, scored on the test
sounds, mean over 10 draws. Recordings 0 to 4 of a speaker and digit are the test sounds, as its authors split the set.
Features are means over tokens: all 1,500 of the window, or those that hold sound. MTEB stops the regression after 100
iterations, converged or not. Time is that of 16 sounds of half a second, a batch of `FeatureCache`, from the content of
their files to features; with fewer at a time, calls of small layers cost `sound` more of its advantage.
"""

import argparse
import os
import warnings
from pathlib import Path

import numpy as np
import torch
from _measure import alternate, report
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import cosine_similarity

from clip_common.backbones import AudioEncoder, load_audio
from clip_common.backbones.audio_models import WhisperAudio
from clip_common.sounds import RATE, read_sound

ASSETS = Path(os.environ.get("CLIP_REAL_ASSETS", Path.home() / ".cache" / "clip-real-assets"))
DIGITS = Path(__file__).resolve().parents[2] / "shared" / "assets" / "data" / "spoken_digits"
PER_LABEL = 8
DRAWS = 10
TIMED = 16
BATCH = 8


def compute_features(encoder: AudioEncoder, files: list[Path]) -> dict[str, Tensor]:
    """Return the means (N, F) over all tokens of the first segment, and over those that hold sound."""
    trunk = encoder.tower.trunk
    assert isinstance(trunk, WhisperAudio)
    means: dict[str, list[Tensor]] = {"all tokens": [], "tokens with sound": []}
    for start in range(0, len(files), BATCH):
        items = [encoder.feed.load(file.read_bytes(), name=file.name) for file in files[start : start + BATCH]]
        inputs = encoder.feed.batch(items)
        with torch.no_grad():
            for mel_MT, frames in zip(inputs["mel"], inputs["frames"].tolist(), strict=True):
                tokens_TF = trunk.encode(mel_MT[None])[0]
                means["all tokens"].append(tokens_TF.mean(dim=0))
                means["tokens with sound"].append(tokens_TF[:frames].mean(dim=0))
        if start % 200 == 0:
            print(f"{encoder.spec.context}: {start + len(items)} of {len(files)} sounds", flush=True)
    return {name: torch.stack(rows) for name, rows in means.items()}


def probe(features: Tensor, labels: NDArray[np.int64], is_test: NDArray[np.bool_]) -> float:
    """Return the mean accuracy of logistic regressions on `PER_LABEL` training sounds a label."""
    random, order, scores = np.random.RandomState(42), np.flatnonzero(~is_test), []
    rows = features.numpy()
    for _ in range(DRAWS):
        random.shuffle(order)
        chosen = np.concatenate([order[labels[order] == label][:PER_LABEL] for label in np.unique(labels)])
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
            model = LogisticRegression(max_iter=100).fit(rows[chosen], labels[chosen])
        scores.append(model.score(rows[is_test], labels[is_test]))
    return float(np.mean(scores))


def time_contexts(sound: AudioEncoder, full: AudioEncoder, files: list[Path], *, pairs: int) -> dict[str, object]:
    """Time both contexts on the first 16 files of about half a second."""
    near = [file for file in files if abs(len(read_sound(file)) / RATE - 0.5) < 0.05][:TIMED]
    contents = [file.read_bytes() for file in near]

    def run(encoder: AudioEncoder) -> Tensor:
        items = [encoder.feed.load(content, name="") for content in contents]
        with torch.no_grad():
            return encoder.tower.trunk_features(encoder.feed.batch(items))

    timing = alternate(lambda: run(sound), lambda: run(full), pairs=pairs, warmup=1)
    return {
        "what": f"{len(near)} sounds of half a second",
        "sound": timing.ours_s,
        "full": timing.theirs_s,
        "full / sound": 1 / timing.ratio,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", type=Path, default=DIGITS)
    parser.add_argument("--quick", action="store_true", help="400 sounds, one pair of timings: does it run")
    options = parser.parse_args()
    whisper = ASSETS / "whisper"
    for part in (whisper, options.digits):
        if not part.exists():
            parser.error(f"{part} is absent: this benchmark needs real weights and sounds, see CONTRIBUTING.md")
    files = sorted(options.digits.glob("*.wav"))
    numbers = np.array([int(file.stem.split("_")[2]) for file in files])
    if options.quick:
        files = [file for file, number in zip(files, numbers, strict=True) if number < 10]
        numbers = numbers[numbers < 10]
    labels = np.array([int(file.stem.split("_")[0]) for file in files])
    sound, full = load_audio(whisper), load_audio(whisper, context="full")
    rows = [time_contexts(sound, full, files, pairs=1 if options.quick else 5)]
    features = {encoder.spec.context: compute_features(encoder, files) for encoder in (sound, full)}
    for name in ("all tokens", "tokens with sound"):
        row: dict[str, object] = {"what": f"accuracy, mean of {name}"}
        for encoder in (sound, full):
            row[encoder.spec.context] = probe(features[encoder.spec.context][name], labels, numbers < 5)
        rows.append(row)
    cosine = cosine_similarity(features["sound"]["tokens with sound"], features["full"]["tokens with sound"]).mean()
    rows.append({"what": "cosine between the two", "sound": cosine.item()})
    report("edgeglass_audio", rows, note=f"{len(files)} spoken digits, {(numbers < 5).sum()} of them for testing")
