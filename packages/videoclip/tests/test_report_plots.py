"""The pictures of a run and of a series: written whole, and showing what they are told."""

import numpy as np
import pytest
from PIL import Image

from clip_common.metrics import Paired
from clip_common.runs import Run
from videoclip.report.plots import (
    LABELS,
    draw_ablation,
    draw_confusion,
    draw_folds,
    draw_similarity,
    draw_training,
    find_baseline,
)
from videoclip.scoring.evaluation import evaluate
from videoclip.scoring.predictions import Predictions
from videoclip.scoring.score import draw_evaluation

CLASSES = ["normal", "dragging foot", "stiff arm"]
BLUE, ORANGE = (0x3B, 0x6F, 0xB6), (0xD9, 0x79, 0x2B)


def some(*, clips=24, seed=0, **changed):
    generator = np.random.default_rng(seed)
    label = np.arange(clips) // 3 % 3
    arrays = {
        "logits_NK": (generator.normal(size=(clips, 3)) + np.eye(3)[label]).astype(np.float32),
        "video_embed_ND": generator.normal(size=(clips, 4)).astype(np.float32),
        "attn_embed_ND": generator.normal(size=(clips, 4)).astype(np.float32),
        "label_N": label,
        "subject_N": np.arange(clips) // 3,
        "map_N": np.arange(clips),
        "regions_N": np.arange(clips),
        "agreement_N3": np.ones((clips, 3), np.float32),
        "centre_N3": np.ones((clips, 3), np.float32),
        "valid_N": np.ones(clips, bool),
        "clip_ids": tuple(map(str, range(clips))),
    }
    return Predictions(**(arrays | changed))


def judged(predictions):
    """Similarity and correctness of the clips that have both."""
    kept = predictions.judged_N
    correct = predictions.predicted_N == predictions.label_N
    return predictions.similarity_N[kept], correct[kept]


def colours(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn, by file name, to look into."""
    from clip_common import plots

    figures, save = {}, plots.save_figure

    def kept(figure, path):
        figures[path.name] = figure
        return save(figure, path)

    for module in ("clip_common.plots", "videoclip.report.plots"):
        monkeypatch.setattr(f"{module}.save_figure", kept)
    return figures


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_confusion_tells_counts_and_shares_of_the_true_class(tmp_path, drawn):
    table = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    path = draw_confusion(table, tmp_path / "läufe" / "confusion.png", names=["normal", "hinkend", "x"])
    assert path.is_file()
    axes = drawn["confusion.png"].axes[0]
    assert texts(axes) == ["6\n75 %", "2\n25 %", "0", "1\n25 %", "3\n75 %", "0", "0", "0", "0"]
    assert axes.get_title(loc="left") == "12 clips, balanced accuracy 75 %"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["normal", "hinkend", "x"]
    assert [file.name for file in path.parent.iterdir()] == ["confusion.png"]


def test_confusion_of_nothing(tmp_path, drawn):
    draw_confusion(np.zeros((2, 2), int), tmp_path / "confusion.png", of="subjects")
    axes = drawn["confusion.png"].axes[0]
    assert axes.get_title(loc="left") == "0 subjects"
    assert texts(axes) == ["0"] * 4


def test_similarity_has_a_histogram_for_the_correct_and_one_for_the_incorrect(tmp_path, drawn):
    predictions = some()
    path = draw_similarity(*judged(predictions), tmp_path / "similarity.png")
    assert {BLUE, ORANGE} <= colours(path)
    correct = predictions.predicted_N == predictions.label_N
    axes = drawn["similarity.png"].axes[0]
    bars = [patch.get_height() for patch in axes.patches if hasattr(patch, "get_height")]
    assert sum(bars) == pytest.approx(2)  # shares of the correct and of the incorrect clips
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    means = [predictions.similarity_N[kept].mean() for kept in (correct, ~correct)]
    assert legend == [
        f"correct: {correct.sum()} clips, mean {means[0]:.2f}",
        f"incorrect: {(~correct).sum()} clips, mean {means[1]:.2f}",
    ]


def test_similarity_of_correct_clips_alone_and_of_none(tmp_path):
    perfect = some(logits_NK=np.eye(3, dtype=np.float32)[some().label_N])
    found = colours(draw_similarity(*judged(perfect), tmp_path / "perfect.png"))
    assert BLUE in found
    assert ORANGE not in found
    one = some(clips=1)
    assert draw_similarity(*judged(one), tmp_path / "one.png").is_file()
    scored = evaluate(some(), train_labels=[0], classes=3, samples=5)
    for nothing in (some(valid_N=np.zeros(24, bool)), some(label_N=np.full(24, -1))):
        draw_evaluation(scored, nothing, tmp_path, prefix="none", classes=CLASSES)
    assert [file.name for file in tmp_path.glob("*confusion.png")] == ["none-confusion.png"]
    assert not (tmp_path / "none-similarity.png").exists()


def new_run(tmp_path):
    return Run.create("videoclip", config_yaml="", name="some", root=tmp_path)


def test_a_run_gets_its_curves_and_those_parts_that_have_a_weight(tmp_path, drawn):
    run = new_run(tmp_path)
    run.metrics.extend(
        [
            {
                "phase": "fit",
                "step": step,
                "train/loss": 2 / step,
                "train/loss_classification": 1 / step,
                "train/loss_contrastive": 1 / step,
                "train/loss_token": 0.0,
            }
            for step in range(1, 41)
        ]
    )
    run.metrics.append({"phase": "fit", "step": 40, "val/loss": 0.4, "val/macro_f1": 0.6, "val/accuracy": 0.7})
    plots = draw_training(run.path / "metrics.csv", run.folder("plots"))
    assert [plot.name for plot in plots] == ["loss.png", "validation.png", "parts.png"]
    assert {BLUE, ORANGE} <= colours(plots[0]) & colours(plots[2])
    legend = [text.get_text() for text in drawn["parts.png"].axes[0].get_legend().get_texts()]
    assert legend == ["cross-entropy", "contrastive", "weighted sum"]  # tokens have no weight


def test_a_run_with_cross_entropy_only_has_no_parts(tmp_path):
    run = new_run(tmp_path)
    run.metrics.append(
        {
            "step": 1,
            "train/loss": 1.0,
            "train/loss_classification": 1.0,
            "train/loss_contrastive": 0.0,
            "val/macro_f1": 1.0,
        }
    )
    assert [plot.name for plot in draw_training(run.path / "metrics.csv", tmp_path)] == ["loss.png", "validation.png"]


def test_scores_are_drawn_into_the_run(tmp_path):
    run, predictions = new_run(tmp_path), some()
    evaluation = evaluate(predictions, train_labels=[0], classes=3, samples=5)
    names = [
        plot.name
        for plot in draw_evaluation(evaluation, predictions, run.folder("plots"), prefix="test", classes=CLASSES)
    ]
    assert names == ["test-confusion.png", "test-confusion-subjects.png", "test-similarity.png"]
    assert {file.name for file in (run.path / "plots").iterdir()} == {*names}
    unmapped = some(valid_N=np.zeros(24, bool))
    evaluation = evaluate(unmapped, train_labels=[0], classes=3, samples=5)
    assert len(draw_evaluation(evaluation, unmapped, tmp_path, prefix="val", classes=CLASSES)) == 2


def test_every_figure_of_folds_has_its_own_baseline(tmp_path, drawn):
    folds = [evaluate(some(seed=seed), train_labels=[0], classes=3, samples=2).metrics for seed in range(3)]
    assert {*LABELS, *map(find_baseline, LABELS)} <= {*folds[0]}
    draw_folds(folds, tmp_path / "folds.png")
    axes = drawn["folds.png"].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(LABELS.values())
    means = [float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == "D"]
    assert means == pytest.approx([np.mean([fold[name] for fold in folds]) for name in LABELS])
    grey = [float(line.get_xdata()[0]) for line in axes.lines if line.get_color() == "#6b6b6b"]
    assert grey == pytest.approx([np.mean([fold[find_baseline(name)] for fold in folds]) for name in LABELS])
    assert len(drawn["folds.png"].axes) == 1


def test_a_figure_that_a_fold_lacks_is_left_out(tmp_path, drawn):
    folds = [evaluate(some(seed=seed), train_labels=[0], classes=3, samples=2).metrics for seed in range(2)]
    folds[1] = {name: value for name, value in folds[1].items() if not name.startswith("retrieval")}
    draw_folds(folds, tmp_path / "folds.png")
    labels = [label.get_text() for label in drawn["folds.png"].axes[0].get_yticklabels()]
    assert labels == [label for name, label in LABELS.items() if not name.startswith("retrieval")]


def test_an_ablation_shows_runs_and_differences(tmp_path, drawn):
    rows = {"B0": [0.4, 0.5], "B3": [0.7, 0.9]}
    against = {"B3": Paired(difference=0.35, low=0.1, high=0.5, p=0.01)}
    draw_ablation(rows, tmp_path / "ablation.png", against=against, mark=0.2)
    left, right = drawn["ablation.png"].axes
    assert [float(line.get_xdata()[0]) for line in left.lines if line.get_marker() == "D"] == pytest.approx([0.45, 0.8])
    assert [line.get_xdata()[0] for line in right.lines if line.get_marker() == "D"] == [0.35]
    assert [tuple(line.get_xdata()) for line in right.lines if line.get_marker() == "|"] == [(0.1, 0.5)]
    assert left.get_title(loc="left") == "Macro F1"
    assert right.get_title(loc="left") == "Difference to B0"
    assert left.get_xlabel() == "share; mean ± sd over the runs; grey: majority class"
    assert right.get_xlabel() == "95 % interval (paired bootstrap over subjects)"


def test_one_run_has_no_spread(tmp_path, drawn):
    draw_ablation({"B0": [0.4]}, tmp_path / "one.png", figure="retrieval_r1_v2a", mark=0.1)
    (axes,) = drawn["one.png"].axes
    assert axes.get_xlabel() == "share; grey: chance"
    assert not [line for line in axes.lines if line.get_marker() == "|"]
