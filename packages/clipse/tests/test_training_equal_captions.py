"""Equal captions of different images as positives or left out, and the loss that a collapsed model has."""

import math

import pytest
import torch
from torch.nn.functional import normalize
from toy_runs import configured

from clip_common.losses import Boosted, Decoupled, InfoNCE, SigLIP, contrastive_loss
from clipse import train
from clipse.data.equal_captions import count_same, hash_caption, normalise_caption
from clipse.training.losses import RetrievalLoss, SANWDebias
from clipse.training.modules import RetrievalModule

IMAGES, TEXTS = torch.tensor([0, 0, 1, 2, 2, 3]), torch.tensor([5, 6, 5, 7, 7, 8])  # images 0 and 1 share caption 5


def pairs(rows: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return tuple(torch.randn(rows, 8, generator=random, dtype=torch.float64).requires_grad_() for _ in range(2))


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("A dog runs.", "a  dog runs", True),
        ("A dog, running!", "a dog\trunning", True),
        ("ＤＯＧ", "dog", True),
        ("Straße", "STRASSE", True),
        ("a dog", "a dog's", False),
        ("कि", "का", False),
        ("!!!", "???", False),
        ("🐶", "🐱", False),
    ],
)
def test_captions_are_equal_apart_from_case_whitespace_and_punctuation(one, other, equal):
    assert (normalise_caption(one) == normalise_caption(other)) is equal
    assert (hash_caption(one) == hash_caption(other)) is equal
    assert 0 <= hash_caption(one) < 2**63


def test_texts_of_a_batch_with_the_same_image_or_caption_are_counted():
    assert count_same(IMAGES, TEXTS).tolist() == [[2, 2, 3], [2, 1, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 1, 1]]


@pytest.mark.parametrize("form", [InfoNCE(), Decoupled(), SigLIP()], ids=str)
@pytest.mark.parametrize("tile", [None, 4])
def test_equal_captions_are_positives_or_left_out_as_masks_say(form, tile, monkeypatch):
    image, text = pairs()
    same_image, same_text = (ids[:, None] == ids[None] for ids in (IMAGES, TEXTS))
    z = 5.0 * normalize(image, dim=1) @ normalize(text, dim=1).T
    eye = torch.eye(6, dtype=torch.bool)
    for keywords, positive, negative in (
        ({"positive": "caption"}, same_text, ~(same_image | same_text)),
        ({"exclude": "caption"}, eye, ~(same_image | same_text)),
        ({}, eye, ~same_image),
    ):

        def one_way(z, positive=positive, negative=negative):
            top, rest = (z.masked_fill(~mask, -torch.inf).logsumexp(1) for mask in (positive, negative))
            mean = (z * positive).sum(1) / positive.sum(1)
            if isinstance(form, SigLIP):
                softplus = torch.nn.functional.softplus
                return (softplus(-z) * positive).sum(1) + (softplus(z) * negative).sum(1)
            return (rest if isinstance(form, Decoupled) else torch.logaddexp(top, rest)) - mean

        loss = RetrievalLoss(form=form, **keywords)
        if tile is not None:
            monkeypatch.setattr("clip_common.losses.tiles.DENSE_NUMBERS", 0)
            monkeypatch.setattr("clip_common.losses.tiles.TILE_NUMBERS", 4 * tile**2)
        ours = loss(image, text, scale=5.0, image_ids=IMAGES, text_ids=TEXTS).loss
        torch.testing.assert_close(ours, (one_way(z).mean() + one_way(z.T).mean()) / 2)


@pytest.mark.parametrize("keywords", [{}, {"positive": "caption"}, {"exclude": "caption"}], ids=str)
@pytest.mark.parametrize(
    ("form", "weighting"),
    [
        (InfoNCE(), None),
        (InfoNCE(), SANWDebias()),
        (Decoupled(), None),
        (Boosted(beta=0.5), SANWDebias()),
        (SigLIP(), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_chance_is_the_loss_of_a_collapsed_model(form, weighting, keywords):
    loss = RetrievalLoss(weighting, form=form, **keywords)
    one = torch.ones(6, 4, dtype=torch.float64)
    chance = loss.chance(count_same(IMAGES, TEXTS))
    biases = torch.linspace(-6, 6, 601, dtype=torch.float64) if isinstance(form, SigLIP) else [None]
    losses = [loss(one, one, scale=1.0, image_ids=IMAGES, text_ids=TEXTS, bias=bias).loss.item() for bias in biases]
    if not isinstance(form, SigLIP):
        assert chance == pytest.approx(losses[0], rel=1e-6)
    else:  # each row has its own best score, a model has one for all
        assert chance <= min(losses) < chance + 0.15


def test_chance_of_siglip_by_hand_and_of_weights_with_an_unknown_sum():
    each = count_same(torch.arange(4), torch.arange(4))
    assert RetrievalLoss().chance(each) == pytest.approx(math.log(4))
    assert RetrievalLoss().chance(each, processes=2) == pytest.approx(math.log(8))
    # all scores ln(1/3): the positive costs ln 4, each of three negatives ln 4/3
    assert RetrievalLoss(form=SigLIP()).chance(each) == pytest.approx(math.log(4) + 3 * math.log(4 / 3))
    assert RetrievalLoss(SANWDebias(), normalise="none").chance(each) is None


def test_several_ids_leave_out_pairs_that_share_any_of_them():
    image, text = pairs()
    both = torch.stack([IMAGES, TEXTS], dim=1)
    ours = contrastive_loss(image, text, scale=5.0, exclude=both, tile=4)
    hidden = ((both[:, None] == both[None]).any(2)) & ~torch.eye(6, dtype=torch.bool)
    z = (5.0 * normalize(image, dim=1) @ normalize(text, dim=1).T).masked_fill(hidden, -torch.inf)
    target = torch.arange(6)
    theirs = (torch.nn.functional.cross_entropy(z, target) + torch.nn.functional.cross_entropy(z.T, target)) / 2
    torch.testing.assert_close(ours, theirs)
    with pytest.raises(ValueError, match=r"exclude must hold one id of each row .* ids \(3, 2\) and \(3, 2\)"):
        contrastive_loss(image, text, scale=5.0, exclude=both[:3])
    with pytest.raises(ValueError, match="positive must hold one id"):
        contrastive_loss(image, text, scale=5.0, positive=both)


@pytest.mark.parametrize(
    ("loss", "setting"), [("siglip", "loss.positive=caption"), ("clip", "loss.exclude=caption")], ids=str
)
def test_a_run_with_equal_captions_trains_on_another_loss(small, tmp_path, scenes, loss, setting):
    folder = tmp_path / "repeated"
    folder.mkdir()
    (folder / "Images").symlink_to(scenes / "Images")
    names = sorted(path.name for path in (scenes / "Images").iterdir())
    lines = [f"{name},{'A thing.' if place % 2 else f'thing {place}'}" for place, name in enumerate(names)]
    (folder / "captions.txt").write_text("image,caption\n" + "\n".join(lines) + "\n")
    losses = []
    for name, overrides in {"plain": [], "alike": [setting]}.items():
        config = configured(
            small, f"data.root={folder}", f"name={name}", f"loss.name={loss}", "trainer.max_epochs=1", *overrides
        )
        steps = [float(row["train/loss"]) for row in train(config).run.metrics.rows() if row["train/loss"]]
        losses.append(steps[0])
    assert losses[0] != pytest.approx(losses[1], rel=0.01)


@pytest.mark.parametrize("overrides", [[], ["loss.name=siglip"], ["data.captions=all"]], ids=str)
def test_the_alarm_compares_with_the_chance_of_the_run(small, monkeypatch, overrides):
    seen = []

    def collapsed(self, *arguments, **keywords):
        output = step(self, *arguments, **keywords)
        seen.append(self.contrastive_chance)
        self.trainer.callback_metrics["train/loss"] = torch.tensor(self.contrastive_chance)
        return output

    step = RetrievalModule.training_step
    monkeypatch.setattr(RetrievalModule, "training_step", collapsed)
    train(configured(small, "name=chance", "trainer.max_epochs=1", *overrides))
    expected = {
        "[]": math.log(16),
        "['loss.name=siglip']": math.log(16) + 15 * math.log(16 / 15),
        "['data.captions=all']": math.log(1 + 75),  # 80 captions, 5 of each image
    }[str(overrides)]
    assert seen == pytest.approx([expected] * 3)
