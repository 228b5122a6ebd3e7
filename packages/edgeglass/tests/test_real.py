"""Real encoders, real captions and real spoken digits, where they are at hand: what alignment reaches on them."""

import json

import pytest
import torch
from helpers.real import real_data, real_model

from clip_common.config import load_config
from clip_common.features import FeatureCache
from edgeglass.aligner.aligner import Aligner
from edgeglass.config import Config
from edgeglass.data import read_samples
from edgeglass.models.alignment import MultimodalAlignmentModel
from edgeglass.models.building import build_model
from edgeglass.scoring.score import score, score_samples
from edgeglass.training.experiment import train

pytestmark = pytest.mark.real

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HELD_OUT = "theo"


def embed_words(model: MultimodalAlignmentModel) -> torch.Tensor:
    """Sentence embeddings of the ten words by the model's own encoder of texts, without its head."""
    encoder = model.encoder_of("text")
    feed = encoder.encoder.feed
    with torch.no_grad():
        return encoder.features(feed.batch([feed.load(word, name=word) for word in WORDS])).tokens


def test_digits_of_a_speaker_who_was_not_heard_find_their_words(tmp_path):
    """Chance is .1; a logistic regression on the same features reaches .96 as the mean over held-out speakers."""
    rows = []
    for file in sorted(real_data("spoken_digits").glob("*.wav")):
        digit, speaker, take = file.stem.split("_")
        split = "test" if speaker == HELD_OUT else "val" if int(take) < 5 else "train"
        rows.append({"audio": str(file), "caption": WORDS[int(digit)], "split": split})
    (tmp_path / "digits.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    overrides = [
        f"data.root={tmp_path / 'digits.jsonl'}",
        f"encoders.text.name={real_model('minilm')}",
        f"encoders.audio.name={real_model('whisper')}",
        f"runs={tmp_path / 'runs'}",
        "name=digits",
    ]
    config = load_config(Config, config="small_sounds", overrides=overrides, package="edgeglass")
    before = embed_words(build_model(config))
    run = train(config).run
    metrics = score(run.path).evaluation.metrics
    assert metrics["a2t/R@1"] > 0.9
    assert torch.equal(embed_words(Aligner.from_pretrained(run.path, device="cpu").model), before)


def test_captions_are_found_far_more_often_than_by_untrained_heads(tmp_path):
    """A ridge map between the same features reaches an rsum of 232 on these 201 test images."""
    overrides = [
        f"data.root={real_data('captions')}",
        f"encoders.vision.name={real_model('dinov2')}",
        f"encoders.text.name={real_model('minilm')}",
        f"runs={tmp_path / 'runs'}",
        "name=captions",
        "trainer.max_epochs=100",
    ]
    config = load_config(Config, config="small_captions", overrides=overrides, package="edgeglass")
    trained = score(train(config).run.path).evaluation.metrics
    samples = read_samples(config.data).splits["test"]
    cache = FeatureCache(config.cache_folder / "features")
    untrained = score_samples(build_model(config), samples, config, cache=cache).metrics

    def rsum(metrics: dict[str, float]) -> float:
        return 100 * sum(metrics[f"{way}/R@{k}"] for way in ("i2t", "t2i") for k in (1, 5, 10))

    assert rsum(trained) > 170
    assert rsum(untrained) < 40
