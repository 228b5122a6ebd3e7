"""The training set as columns: fresh or at most so many steps old, with the rows of the batch always fresh."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clip_common.backbones import Encoder, Spec, Tower
from clip_common.backbones.trunk import Trunk
from edgeglass.config import TextConfig, VisionConfig
from edgeglass.data.records import Sample
from edgeglass.models.alignment import MultimodalAlignmentModel
from edgeglass.models.encoders import TextEncoder, VisionEncoder
from edgeglass.scoring.features import CachedInputs, LiveInputs
from edgeglass.training import corpus
from edgeglass.training.batches import Batch, SplitData
from edgeglass.training.corpus import Corpus
from edgeglass.training.losses import AlignmentLoss, Columns, CorpusAlignmentLoss

CAPTIONS = [("a",), ("b", "c"), ("a",), (), ("d",)]  # sample 3 has no caption, sample 4 no image
IMAGES = ["0.png", "1.png", "2.png", "3.png", None]


class Features(Trunk):
    """A trunk that is never run: its features are given."""

    width = 6


def make(every: int = 1) -> tuple[MultimodalAlignmentModel, SplitData, Corpus]:
    torch.manual_seed(0)
    feed: Any = None
    spec = Spec(kind="image", name="toy", width=6, depth=0, embed_dim=6, fingerprint="0" * 64)
    encoder = Encoder(Tower(Features()), feed, spec)
    model = MultimodalAlignmentModel(
        {
            "image": VisionEncoder(encoder, VisionConfig(name="toy", hidden=7), widths=(8, 4)),
            "text": TextEncoder(encoder, TextConfig(name="toy", hidden=7), widths=(8, 4)),
        }
    )
    samples = [
        Sample(id=number, name=str(number), captions=captions, image=None if image is None else Path(image))
        for number, (captions, image) in enumerate(zip(CAPTIONS, IMAGES, strict=True))
    ]
    data = SplitData(
        samples,
        {"image": CachedInputs(torch.randn(4, 6)), "text": CachedInputs(torch.randn(4, 6))},
        seed=0,
    )
    columns = Corpus(model, data, every=every)
    columns.set_epoch(0)
    return model, data, columns


def batch_of(data: SplitData, columns: Corpus, *rows: int) -> Batch:
    return data.batch(rows, columns.captions_N)


def embed(model: MultimodalAlignmentModel, data: SplitData, name: str) -> Tensor:
    return model.encoder_of(name)(data.sources[name].batch(range(4))).pooled


def change(model: MultimodalAlignmentModel) -> None:
    """Move every weight, as an optimizer step does."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1


@pytest.mark.parametrize("part", [1, 3, 1024])
def test_columns_are_all_items_with_what_they_belong_to(monkeypatch, part):
    monkeypatch.setattr(corpus, "PART", part)
    model, data, columns = make()
    own, found = columns.columns(batch_of(data, columns, 1, 3))
    torch.testing.assert_close(found["image"].embeddings_CD, embed(model, data, "image"))
    torch.testing.assert_close(found["text"].embeddings_CD, embed(model, data, "text"))
    assert found["image"].samples_C.tolist() == [0, 1, 2, 3]
    assert found["text"].captions_C.tolist() == [0, 1, 2, 3]
    assert found["text"].samples_C.tolist() == [0, 1, 1, 4]
    shown = columns.captions_N
    assert found["image"].captions_C.tolist() == shown[:4].tolist()
    assert shown[0] == shown[2] == 0
    assert shown[3] < 0
    torch.testing.assert_close(own["image"], embed(model, data, "image")[[1, 3]])
    torch.testing.assert_close(own["text"][0], embed(model, data, "text")[shown[1]])


def test_captions_change_with_the_epoch():
    _, _, columns = make()
    chosen = set()
    for epoch in range(20):
        columns.set_epoch(epoch)
        chosen.add(columns.captions_N[1].item())
    assert chosen == {1, 2}


def test_fresh_columns_give_the_loss_and_the_gradients_of_a_batch_with_the_same_rows():
    model, data, columns = make()
    batch = batch_of(data, columns, 0, 1)
    own, found = columns.columns(batch)
    for name, rows in {"image": [0, 1], "text": [0, int(columns.captions_N[1])]}.items():
        one = found[name]
        fields = (one.embeddings_CD, one.captions_C, one.groups_C, one.samples_C)
        found[name] = Columns(*(part[rows] for part in fields))
    labels = {"captions": batch.captions_B, "groups": batch.groups_B}
    ours = CorpusAlignmentLoss(dims=(4,)).against(own, found, present=batch.present, samples=batch.samples_B, **labels)
    theirs = AlignmentLoss(dims=(4,))(
        {name: encoder(batch.inputs[name]).pooled for name, encoder in model.encoders.items()}, **labels
    )
    torch.testing.assert_close(ours.loss, theirs.loss)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for one, other in zip(*(torch.autograd.grad(x.loss, parameters) for x in (ours, theirs)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_corpus_every_keeps_columns_for_so_many_steps_and_the_rows_of_the_batch_fresh():
    model, data, columns = make(every=3)
    start = embed(model, data, "image").detach()
    for step in range(4):
        now = embed(model, data, "image")
        own, found = columns.columns(batch_of(data, columns, 1, 4))
        image = found["image"].embeddings_CD
        torch.testing.assert_close(own["image"][0], now[1])
        torch.testing.assert_close(image[1], now[1])
        torch.testing.assert_close(image[[0, 2, 3]], (start if step < 3 else now)[[0, 2, 3]])
        others = image[[0, 2, 3]].square().sum()
        gradients = torch.autograd.grad(others, list(model.encoder_of("image").head.parameters()), retain_graph=True)
        assert all((gradient == 0).all() for gradient in gradients)
        assert image[1].requires_grad
        change(model)


def test_stored_columns_are_restored_with_their_age():
    model, data, columns = make(every=3)
    columns.columns(batch_of(data, columns, 0, 1))
    state = columns.state_dict()
    change(model)
    again = Corpus(model, data, every=3)
    again.set_epoch(0)
    again.load_state_dict(state)
    for one in (columns, again):
        found = one.columns(batch_of(data, one, 0, 1))[1]["text"].embeddings_CD
        torch.testing.assert_close(found[3], state["items"]["text"][3])
        assert one.age == 2


def test_an_encoder_that_trains_has_no_columns():
    model, data, _ = make()
    feed: Any = None
    live = SplitData(data.samples, {**data.sources, "text": LiveInputs(feed, ["a"])}, seed=0)
    with pytest.raises(ValueError, match="the encoder of text trains: freeze it without adapters"):
        Corpus(model, live, every=1)
