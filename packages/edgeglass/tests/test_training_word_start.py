"""The start of a projector from words: its closed form, its targets, and that untrained tokens name what they show."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import Ridge
from torch.nn.functional import cosine_similarity
from toy_questions import configured

from clip_common.config import ConfigError
from clip_common.features import FeatureCache
from clip_common.reporting import silent
from edgeglass.data.conversations import read_conversations
from edgeglass.training.vlm_experiment import prepare_split, train_vlm
from edgeglass.training.word_start import Moments, average_words, start_from_words
from edgeglass.vlm.building import build_vlm, load_decoder, load_prefix
from edgeglass.vlm.vlm import VLM

COLOURS = {"red": (200, 30, 30), "green": (30, 170, 40), "blue": (30, 50, 200), "yellow": (230, 210, 40)}
WORDS = ["prefix.start=words", "prefix.projector=linear"]


def paint(folder, *, images, answers=tuple(COLOURS)):
    """Write images of one colour each, with the question which colour it is; `answers` repeat."""
    random, lines = np.random.default_rng(0), []
    for number in range(images):
        colour = list(COLOURS)[number % len(COLOURS)]
        pixels = np.clip(np.array(COLOURS[colour]) + random.normal(0, 12, (32, 32, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        row = {"image": f"{number}.png", "question": "which colour?", "answer": answers[number % len(answers)]}
        lines.append(json.dumps(row | {"split": "train" if number % 8 < 4 else "val"}))
    (folder / "colours.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def open_splits(config):
    """Return an untrained model with its splits."""
    language = load_decoder(config)
    prefix, sight = load_prefix(config)
    model = build_vlm(config, prefix=prefix, language=language)
    vlm = VLM(model, config, sight=sight, language=language, device=torch.device("cpu"))
    sets, cache = read_conversations(config.data), FeatureCache(config.cache_folder / "features")
    return vlm, {
        name: prepare_split(vlm, sets.splits[name], cache=cache, reporter=silent, name=name)
        for name in ("train", "val")
    }


def test_the_closed_form_is_ridge_regression():
    random = np.random.default_rng(0)
    images = [(random.normal(2, 1, (5, 6)), random.normal(size=4)) for _ in range(8)]
    parts = [Moments.empty(6, 4) for _ in range(2)]
    for number, (tokens, target) in enumerate(images):
        parts[number % 2].add(torch.from_numpy(tokens), torch.from_numpy(target))
    moments = parts[0].join(parts[1])
    x, y = np.concatenate([tokens for tokens, _ in images]), np.repeat([target for _, target in images], 5, axis=0)
    expected = Ridge(alpha=0.3 * x.var(axis=0).mean() * len(x)).fit(x, y)
    weight, bias = moments.solve(0.3)
    assert weight.T.numpy() == pytest.approx(expected.coef_, abs=1e-5)
    assert bias.numpy() == pytest.approx(expected.intercept_, abs=1e-5)
    fitted = x @ weight.numpy()
    assert moments.spread(weight) == pytest.approx(np.sqrt(((fitted - fitted.mean(axis=0)) ** 2).mean()), rel=1e-5)


def test_words_that_every_image_has_do_not_count(asked, tmp_path):
    answers = ("a red thing", "a blue thing")
    config = configured(asked, *WORDS, f"data.root={paint(tmp_path, images=16, answers=answers)}")
    vlm, splits = open_splits(config)
    mean_GE, known_G, spread = average_words(vlm.model, splits["train"])

    def ids(text):
        return vlm.language.tokenizer(text)["input_ids"]

    differing = [[id for id in ids(one) if id not in ids(other)] for one, other in (answers, answers[::-1])]
    for row, own in enumerate(differing * 4):  # all of them occur in half of the images: their weights are equal
        expected_E = vlm.model.decoder.embed(torch.tensor([own]))[0].mean(dim=0)
        assert mean_GE[row].numpy() == pytest.approx(expected_E.detach().numpy(), abs=1e-6)
    assert known_G.all()
    assert spread > 0


def test_untrained_tokens_name_what_they_show(asked, tmp_path):
    config = configured(asked, *WORDS, f"data.root={paint(tmp_path, images=64)}")
    vlm, splits = open_splits(config)
    names = list(COLOURS)
    ids = [torch.tensor([vlm.language.tokenizer(name)["input_ids"]]) for name in names]
    word_E = torch.stack([vlm.model.decoder.embed(own)[0].mean(dim=0) for own in ids]).detach()

    def share_right():
        right = []
        for number, one in enumerate(splits["val"].conversations):
            features, _, _ = splits["val"].images.select([number])
            token_E = vlm.model.project(features)[0].mean(dim=0) - word_E.mean(dim=0)
            found = cosine_similarity(token_E[None], word_E - word_E.mean(dim=0)).argmax()
            right.append(names[int(found)] == one.turns[0].answer)
        return np.mean(right)

    assert share_right() < 0.6  # one in four by chance
    start_from_words(vlm.model, splits["train"])
    assert share_right() > 0.9
    token_NE = vlm.model.project(splits["val"].images.select(range(len(splits["val"].conversations)))[0]).flatten(0, 1)
    _, _, spread = average_words(vlm.model, splits["train"])
    assert (token_NE - token_NE.mean(dim=0)).square().mean().sqrt().item() == pytest.approx(spread, rel=0.2)


def test_a_run_starts_from_words_once(asked, tmp_path):
    """A resumed run keeps what it has learned."""
    paint(tmp_path, images=64)
    config = configured(asked, *WORDS, f"data.root={tmp_path}", "optim.lr=0", "name=words", "trainer.max_epochs=1")
    trained = train_vlm(config)
    vlm, splits = open_splits(config)
    start_from_words(vlm.model, splits["train"])
    saved = VLM.from_pretrained(trained.run.path).model.vision_proj
    assert torch.equal(saved.last.weight, vlm.model.vision_proj.last.weight)
    with torch.no_grad():
        again = train_vlm(config, resume=trained.run.path)
    assert again.validation == trained.validation


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prefix.projector=mlp2x_gelu"], "set prefix.projector=linear, not mlp2x_gelu"),
        (["prefix.projector=linear", "decoder.kind=trm", "trm.steps=2"], "no words before it trains"),
    ],
)
def test_what_has_no_closed_form_is_refused(asked, overrides, message):
    with pytest.raises(ConfigError, match=message):
        configured(asked, "prefix.start=words", *overrides)


def test_too_few_images_are_refused_before_anything_is_written(asked, tmp_path):
    overrides = [*WORDS, f"data.root={paint(tmp_path, images=16, answers=('red',))}", "name=same", "data.batch_size=4"]
    with pytest.raises(ValueError, match="0 training images have answers that tell them apart, and it needs 10"):
        train_vlm(configured(asked, *overrides))
    assert not list((tmp_path / "runs").rglob("same"))
