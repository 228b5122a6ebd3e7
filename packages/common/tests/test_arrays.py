"""Arrays of numpy and nested lists in the place of tensors: the same losses and metrics, or one line."""

import numpy as np
import pytest
import torch

from clip_common.arrays import as_tensor
from clip_common.losses import (
    Boosted,
    Decoupled,
    Guided,
    InfoNCE,
    Matryoshka,
    PairwiseModalities,
    SigLIP,
    contrastive_loss,
    corpus_loss,
    gather_rows,
    pair_softplus,
    pair_statistics,
)
from clip_common.metrics import StreamingAUPRO, StreamingCurve, image_text_retrieval, retrieval_metrics

X, Y = (np.random.default_rng(seed).normal(size=(6, 8)).astype(np.float32) for seed in (0, 1))
IDS = np.array([0, 1, 2, 0, 1, 3])
EMBED = {"image": X, "text": Y}
HERE = np.array([True, True, False, True, True, True])
MASKS = np.zeros((2, 8, 8), dtype=bool)
MASKS[:, 2:5, 2:5] = True
MAPS = np.random.default_rng(2).random((2, 8, 8)).astype(np.float32)


def modalities(kind):
    embeddings = {name: kind(rows) for name, rows in EMBED.items()}
    return PairwiseModalities({("image", "text"): 1.0})(
        embeddings, present={"text": kind(HERE)}, exclude=kind(IDS), positive=kind(IDS)
    ).loss


def curve(meter, scores, labels):
    meter.update(scores, labels)
    return meter.compute()


CALLS = {
    **{
        type(form).__name__: lambda kind, form=form: form(kind(X), kind(Y), scale=14.0, exclude=kind(IDS), bias=-2.0)
        for form in (InfoNCE(), Decoupled(), Boosted(), SigLIP(), Guided(), Matryoshka(dims=(8, 4)))
    },
    "contrastive_loss": lambda kind: contrastive_loss(
        kind(X), kind(Y), scale=14.0, form=Guided(), references=(kind(Y), kind(X)), positive=kind(IDS)
    ),
    "ids of rows and of columns": lambda kind: contrastive_loss(
        kind(X), kind(Y[:4]), scale=14.0, positive=(kind(IDS), kind(IDS[:4]))
    ),
    "corpus_loss": lambda kind: corpus_loss(
        kind(X), kind(Y), scale=14.0, positive=(kind(IDS), kind(IDS)), exclude=(kind(IDS), kind(IDS))
    ),
    "pair_statistics": lambda kind: torch.stack([*pair_statistics(kind(X), kind(Y), scale=14.0, exclude=kind(IDS))]),
    "pair_softplus": lambda kind: pair_softplus(kind(X), kind(Y), scale=14.0, positive=kind(IDS))[0].negative_lse,
    "PairwiseModalities": modalities,
    "gather_rows": lambda kind: gather_rows(kind(X)),
    "retrieval_metrics": lambda kind: retrieval_metrics(kind(X), kind(Y), kind(np.arange(6)[::-1])).metrics,
    "image_text_retrieval": lambda kind: (
        image_text_retrieval(kind(X[:4]), kind(Y), kind(np.array([3, 0, 1, 2, 3, 0])), bootstrap=5).metrics
    ),
    "StreamingCurve": lambda kind: curve(StreamingCurve(), kind(MAPS), kind(MASKS)),
    "StreamingAUPRO": lambda kind: curve(StreamingAUPRO(), kind(MAPS), kind(MASKS)),
}
KINDS = {"arrays": lambda array: array, "lists": lambda array: array.tolist()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CALLS)
def test_arrays_and_lists_give_what_tensors_give(name, kind):
    expected = CALLS[name](lambda array: torch.from_numpy(np.ascontiguousarray(array)))
    given = CALLS[name](KINDS[kind])
    if isinstance(expected, torch.Tensor):
        assert torch.equal(given, expected)
    else:
        assert given == expected


def test_a_list_of_tensors_is_stacked_with_its_gradients():
    rows = [torch.randn(4, requires_grad=True) for _ in range(3)]
    InfoNCE()(rows, torch.randn(3, 4), scale=10.0).backward()
    assert all(row.grad is not None and row.grad.abs().sum() > 0 for row in rows)


def test_float64_arrays_stay_and_read_only_ones_are_taken():
    wide = X.astype(np.float64)
    wide.flags.writeable = False
    assert InfoNCE()(wide, wide, scale=10.0).dtype == torch.float64
    tensor = torch.zeros(2)
    assert as_tensor(tensor, "x") is tensor


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ("a dog", "queries holds <U5: expected numbers"),
        ([["a", "b"]], "queries holds <U1: expected numbers"),
        ([[1.0, 2.0], [3.0]], "queries holds lists of different lengths"),
        ([torch.zeros(2), torch.zeros(3)], "queries holds tensors of different shapes"),
        ([], "queries must be"),
        (None, "queries holds object"),
    ],
)
def test_what_is_no_array_of_numbers_is_one_line(values, words):
    with pytest.raises(ValueError, match=words) as caught:
        retrieval_metrics(values, Y, IDS)
    assert "\n" not in str(caught.value)
    with pytest.raises(
        ValueError, match=words.replace("queries holds", "x holds").replace("queries must", "x and y must")
    ):
        InfoNCE()(values, Y, scale=10.0)
