"""From batches to predictions, from predictions to numbers, and two systems against one another."""

import json
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score

from clip_common.errors import DataError
from clip_common.runs.files import write_json
from videoclip.models import normalise
from videoclip.scoring.evaluation import evaluate, paired_bootstrap
from videoclip.scoring.predictions import Predictions, predict


def some(*, subjects=9, clips=4, classes=3, seed=0, skill=1.5, **changed):
    """Clips of subjects whose class is their number modulo `classes`; a larger `skill` is a better model."""
    generator = np.random.default_rng(seed)
    subject = np.repeat(np.arange(subjects), clips)
    label = subject % classes
    attn = generator.normal(size=(len(label), 8)).astype(np.float32)
    arrays = {
        "logits_NK": (generator.normal(size=(len(label), classes)) + skill * np.eye(classes)[label]).astype(np.float32),
        "video_embed_ND": (attn + generator.normal(size=attn.shape)).astype(np.float32),
        "attn_embed_ND": attn,
        "label_N": label,
        "subject_N": 100 + 7 * subject,
        "map_N": np.arange(len(label)) // 2,
        "regions_N": np.arange(len(label)) // 3,
        "agreement_N3": generator.random((len(label), 3), dtype=np.float32),
        "centre_N3": generator.random((len(label), 3), dtype=np.float32),
        "valid_N": np.ones(len(label), bool),
        "clip_ids": tuple(f"Gehweg ü {index}" for index in range(len(label))),
    }
    return Predictions(**(arrays | changed))


def same(one, other):
    return one.clip_ids == other.clip_ids and all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=getattr(one, name).dtype == np.float32)
        and getattr(one, name).dtype == getattr(other, name).dtype
        for name in (field.name for field in fields(Predictions) if field.name != "clip_ids")
    )


@dataclass
class FakeBatch:
    video_B3THW: torch.Tensor
    map_BCTHW: torch.Tensor
    valid_B: torch.Tensor
    guides_B: torch.Tensor
    label_B: torch.Tensor
    subject_B: torch.Tensor
    map_B: torch.Tensor
    regions_B: torch.Tensor
    clip_ids: tuple[str, ...]
    moved_to: str | None = None

    def to(self, device):
        return replace(self, moved_to=device)


class FakeModel(torch.nn.Module):
    """Logits are the colour means of what it is given; it forgets half of them in training mode."""

    def __init__(self):
        super().__init__()
        self.dropout = torch.nn.Dropout(0.5)
        self.seen = []

    def forward(self, video_B3THW, map_BCTHW, *, valid_B=None, guides_B=None):
        assert torch.is_inference_mode_enabled()
        self.seen.append(valid_B)
        logits_BK = self.dropout(video_B3THW.mean((2, 3, 4)))
        return SimpleNamespace(
            logits=logits_BK.bfloat16(),
            video_embed=logits_BK,
            attn_embed=map_BCTHW.mean((2, 3, 4)).expand(-1, 3),
            video_tokens=video_B3THW,
            predicted_map=map_BCTHW,
        )


def batches(*sizes):
    generator, start, made = torch.Generator().manual_seed(0), 0, []
    for size in sizes:
        rows = torch.arange(start, start + size)
        made.append(
            FakeBatch(
                torch.randint(256, (size, 3, 2, 4, 4), generator=generator, dtype=torch.uint8),
                torch.rand(size, 1, 2, 4, 4, generator=generator),
                rows % 2 == 0,
                rows % 2 == 0,
                rows % 3,
                rows // 2,
                rows,
                rows // 4,
                tuple(f"clip {row}" for row in rows.tolist()),
            )
        )
        start += size
    return made


def test_prediction_keeps_every_clip_of_ragged_batches_in_order():
    model, steps, loader = FakeModel().train(), [], batches(4, 4, 1)
    found = predict(model, loader, device="cpu", progress=lambda *step: steps.append(step))
    assert model.training
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert found.clip_ids == tuple(f"clip {row}" for row in range(9))
    video = torch.cat([batch.video_B3THW for batch in loader])
    expected = normalise(video).mean((2, 3, 4))
    assert torch.equal(torch.from_numpy(found.logits_NK), expected.bfloat16().float())
    assert found.video_embed_ND == pytest.approx(expected.numpy())
    assert found.attn_embed_ND.dtype == np.float32
    assert torch.equal(torch.cat(model.seen), torch.from_numpy(found.valid_N))
    # its predicted map is the clip's own map, where there is one
    assert found.agreement_N3[found.valid_N] == pytest.approx(1)
    assert np.isnan(found.agreement_N3[~found.valid_N]).all()
    for name, tensor in (
        ("label_N", "label_B"),
        ("subject_N", "subject_B"),
        ("map_N", "map_B"),
        ("regions_N", "regions_B"),
    ):
        assert getattr(found, name).tolist() == torch.cat([getattr(batch, tensor) for batch in loader]).tolist()
    assert same(predict(model, batches(9 - 4, 4)), predict(model, batches(9 - 4, 4)))


class Unreadable(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise DataError("clip.mp4: not a video")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_clip_that_cannot_be_read_is_one_line_also_from_a_worker(workers):
    loader = torch.utils.data.DataLoader(Unreadable(), num_workers=workers)
    with pytest.raises(DataError, match=r"^clip\.mp4: not a video$"):
        predict(torch.nn.Identity(), loader)


def test_predictions_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "läufe" / "predictions.npz"
    written = some(clip_ids=tuple(f"步态 {index}" for index in range(36)))
    assert written.save(path) == path
    read = Predictions.load(path)
    assert same(written, read)
    assert [file.name for file in path.parent.iterdir()] == ["predictions.npz"]


def test_files_that_are_no_predictions_are_told(tmp_path):
    path = tmp_path / "predictions.npz"
    with pytest.raises(DataError, match=r"predictions\.npz: no such file: run `videoclip test`"):
        Predictions.load(path)
    some().save(path)
    whole = path.read_bytes()
    np.save(tmp_path / "array.npy", np.ones(3))
    middle = len(whole) // 2
    damaged = whole[:middle] + bytes(byte ^ 255 for byte in whole[middle : middle + 200]) + whole[middle + 200 :]
    for content in (b"", b"no", whole[:middle], damaged, (tmp_path / "array.npy").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(DataError, match="not a file of predictions") as raised:
            Predictions.load(path)
        assert "\n" not in str(raised.value)
    np.savez(path, logits_NK=np.ones((3, 3)))
    with pytest.raises(DataError, match="not a file of predictions"):
        Predictions.load(path)


def test_the_numbers_by_name():
    predictions = some()
    found = evaluate(predictions, train_labels=[0, 0, 1, 2, -1], classes=3, samples=50)
    levels = ("", "subject_", "majority_", "majority_subject_")
    expected = {level + name for level in levels for name in ("accuracy", "balanced_accuracy", "macro_f1")}
    expected |= {f"recall_{label}" for label in range(3)}
    expected |= {
        f"retrieval_r{k}_{way}{suffix}"
        for k in (1, 5)
        for way in ("v2a", "a2v", "chance")
        for suffix in ("", "_group", "_regions")
    }
    expected |= {f"{whose}_{measure}" for whose in ("map", "centre") for measure in ("corr", "iou", "pointing")}
    expected |= {f"align_sim_{name}" for name in ("correct", "incorrect", "gap", "corr")}
    assert set(found.metrics) == expected
    uncertain = {name for name in expected if not name.startswith(("majority", "recall")) and "chance" not in name}
    assert set(found.intervals) == uncertain
    for name, (low, high) in found.intervals.items():
        assert low <= found.metrics[name] <= high, name
    assert (found.clips, found.labelled, found.mapped, found.subjects, found.majority) == (36, 36, 36, 9, 0)
    assert found.metrics["align_sim_gap"] == pytest.approx(
        found.metrics["align_sim_correct"] - found.metrics["align_sim_incorrect"]
    )


def test_the_numbers_are_scikit_learns_at_both_levels():
    predictions = some(skill=0.8)
    found = evaluate(predictions, train_labels=[2], classes=3, samples=2)
    label, said = predictions.label_N, predictions.logits_NK.argmax(1)
    assert found.metrics["accuracy"] == pytest.approx((label == said).mean())
    assert found.metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(label, said))
    assert found.metrics["macro_f1"] == pytest.approx(f1_score(label, said, average="macro"))
    assert found.metrics["majority_macro_f1"] == pytest.approx(f1_score(label, [2] * 36, average="macro"))
    assert found.metrics["majority_balanced_accuracy"] == pytest.approx(1 / 3)
    probability = torch.from_numpy(predictions.logits_NK).double().softmax(1).reshape(9, 4, 3).mean(1)
    said = probability.argmax(1).numpy()
    assert found.metrics["subject_accuracy"] == pytest.approx((np.arange(9) % 3 == said).mean())
    assert found.metrics["subject_macro_f1"] == pytest.approx(f1_score(np.arange(9) % 3, said, average="macro"))
    assert found.subject_confusion_KK.sum() == 9
    assert found.confusion_KK.sum(1).tolist() == [12, 12, 12]


def test_the_majority_baseline_says_one_class_of_all_clips_and_subjects():
    label = np.repeat([0, 0, 0, 1, 1, 2, 2, 2, 2], 4)
    found = evaluate(some(label_N=label), train_labels=[0, 0, 1], classes=3, samples=2)
    for level in ("", "subject_"):
        assert found.metrics[f"majority_{level}accuracy"] == pytest.approx(3 / 9)
        assert found.metrics[f"majority_{level}balanced_accuracy"] == pytest.approx(1 / 3)
        assert found.metrics[f"majority_{level}macro_f1"] == pytest.approx(2 * 3 / (3 + 9) / 3)


def test_as_dict_is_json(tmp_path):
    found = evaluate(some(), train_labels=[0], classes=3, samples=5).as_dict()
    path = write_json(tmp_path / "result.json", found)
    assert json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail) == found


def test_the_interval_is_that_of_subjects_not_of_clips():
    # half of the subjects are right in all of their clips, half in none: clips say nothing that subjects do not
    label = np.zeros(400, int)
    right = np.repeat([1, 0], 200)
    logits = np.eye(2, dtype=np.float32)[1 - right]
    predictions = some(subjects=20, clips=20, classes=2, label_N=label, logits_NK=logits)
    intervals = evaluate(predictions, train_labels=[0], classes=2, samples=4000).intervals
    for name in ("accuracy", "subject_accuracy"):
        # binomial of 20 subjects has the standard deviation 0.11; of 400 clips it would be 0.025
        assert intervals[name] == pytest.approx((0.3, 0.7), abs=0.051)


def test_numbers_that_do_not_exist_are_left_out():
    label = np.arange(36) // 4 % 3
    perfect = some(logits_NK=9 * np.eye(3, dtype=np.float32)[label])
    found = evaluate(perfect, train_labels=[0], classes=3, samples=20)
    assert found.metrics["accuracy"] == 1
    assert found.metrics["align_sim_correct"] == pytest.approx(perfect.similarity_N.mean())
    assert not {"align_sim_incorrect", "align_sim_gap", "align_sim_corr"} & {*found.metrics, *found.intervals}

    missing = some(label_N=np.where(label == 2, 1, label))
    found = evaluate(missing, train_labels=[0], classes=3, samples=20)
    assert "recall_2" not in found.metrics
    assert found.confusion_KK[2].tolist() == [0, 0, 0]


@pytest.mark.parametrize("mapped", [0, 1])
def test_clips_without_a_map_retrieve_nothing(mapped):
    predictions = some(valid_N=np.arange(36) < mapped)
    found = evaluate(predictions, train_labels=[0], classes=3, samples=20)
    assert not [name for name in {*found.metrics, *found.intervals} if name.startswith("retrieval")]
    aligned = {name for name in found.metrics if name.startswith("align")}
    assert len(aligned & {"align_sim_correct", "align_sim_incorrect"}) == len(aligned) == mapped
    assert found.mapped == mapped
    assert found.metrics["accuracy"] == evaluate(some(), train_labels=[0], classes=3, samples=2).metrics["accuracy"]


def test_a_map_that_says_nothing_does_not_count():
    attn = some().attn_embed_ND.copy()
    attn[::3] = 0
    with_zeros = some(attn_embed_ND=attn, valid_N=np.arange(36) % 3 > 0)
    kept = np.flatnonzero(np.arange(36) % 3)
    whole = some()
    without = Predictions(
        **{name: getattr(whole, name)[kept] for name in vars(whole) if name.endswith(("_N", "_NK", "_ND", "_N3"))},
        clip_ids=tuple(whole.clip_ids[row] for row in kept),
    )
    one, other = (evaluate(p, train_labels=[0], classes=3, samples=5).metrics for p in (with_zeros, without))
    names = [name for name in one if name.startswith(("retrieval", "align"))]
    assert len(names) == 22
    assert {name: one[name] for name in names} == pytest.approx({name: other[name] for name in names})


def test_clips_without_a_label_count_for_retrieval_alone():
    predictions = some(label_N=np.full(36, -1))
    found = evaluate(predictions, train_labels=[0], classes=3, samples=20)
    assert {name.split("_")[0] for name in found.metrics} == {"retrieval", "map", "centre"}
    assert found.labelled == 0
    assert found.confusion_KK.sum() == 0
    half = some(label_N=np.where(np.arange(36) < 18, some().label_N, -1))
    found = evaluate(half, train_labels=[0], classes=3, samples=20)
    assert found.metrics["accuracy"] == (some().predicted_N == some().label_N)[:18].mean()
    assert found.confusion_KK.sum() == 18


def test_one_subject_has_no_interval():
    found = evaluate(some(subjects=1, clips=5), train_labels=[0], classes=3)
    assert found.intervals == {}
    assert "accuracy" in found.metrics


def test_mistakes_are_told():
    with pytest.raises(DataError, match=r"clip Gehweg ü 8 has the label 2, but there are 2 classes, 0 to 1: set model"):
        evaluate(some(logits_NK=np.zeros((36, 2), np.float32)), train_labels=[0], classes=2)
    logits = some().logits_NK.copy()
    logits[3, 1], logits[9] = np.nan, np.inf
    with pytest.raises(ValueError, match="the logits of 2 of 36 clips are NaN or infinite: the model has diverged"):
        evaluate(some(logits_NK=logits), train_labels=[0], classes=3)


def test_a_better_system_is_ahead_and_a_system_is_not_ahead_of_itself():
    good, bad = some(subjects=30, skill=4.0), some(subjects=30, skill=0.0, seed=1)
    paired = paired_bootstrap(good, bad, key="accuracy", samples=500)
    accuracy = [evaluate(one, train_labels=[0], classes=3, samples=1).metrics["accuracy"] for one in (good, bad)]
    assert paired.difference == pytest.approx(accuracy[0] - accuracy[1])
    assert 0 < paired.low < paired.difference < paired.high < 1
    assert paired.p < 0.01
    own = paired_bootstrap(good, good, samples=200)
    assert (own.difference, own.low, own.high, own.p) == (0, 0, 0, 1)


def test_the_paired_interval_by_enumeration():
    # two subjects; ours is right on the first and theirs on neither: resamples are ahead by 0, 1/2, 1/2 and 1
    ours, theirs = (
        some(subjects=2, clips=1, classes=2, label_N=np.zeros(2, int), logits_NK=np.array(logits, np.float32))
        for logits in ([[1, 0], [0, 1]], [[0, 1], [0, 1]])
    )
    paired = paired_bootstrap(ours, theirs, key="accuracy", samples=4000)
    assert (paired.difference, paired.low, paired.high) == (0.5, 0, 1)
    assert paired.p == pytest.approx(0.5, abs=0.04)


def test_runs_are_paired_and_their_mean_is_compared():
    ours, theirs = [some(seed=seed) for seed in (1, 2, 3)], [some(seed=seed) for seed in (4, 5, 6)]
    paired = paired_bootstrap(ours, theirs, key="subject_accuracy", samples=300)
    accuracy = [
        np.mean([evaluate(one, train_labels=[0], classes=3, samples=1).metrics["subject_accuracy"] for one in side])
        for side in (ours, theirs)
    ]
    assert paired.difference == pytest.approx(accuracy[0] - accuracy[1])
    assert paired.low <= paired.difference <= paired.high


@pytest.mark.parametrize(
    ("ours", "theirs", "key", "message"),
    [
        ([some()], [some(), some()], "accuracy", "got 1 and 2 runs"),
        ([], [], "accuracy", "got 0 and 0 runs"),
        (some(), some(subjects=8), "accuracy", "of the same clips in the same order; got 36 and 32"),
        (some(), some(clip_ids=some().clip_ids[::-1]), "accuracy", "of the same clips in the same order"),
        (some(), some(label_N=some().label_N[::-1].copy()), "accuracy", "of the same clips in the same order"),
        (some(), some(), "acuracy", "no metric 'acuracy' of both systems; known: accuracy, align_sim_corr"),
        (some(), some(valid_N=np.zeros(36, bool)), "retrieval_r1_v2a", "no metric 'retrieval_r1_v2a'"),
        (some(subjects=1), some(subjects=1), "accuracy", "needs at least 2; got 1"),
    ],
)
def test_what_cannot_be_paired_is_told(ours, theirs, key, message):
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(ours, theirs, key=key, samples=5)
