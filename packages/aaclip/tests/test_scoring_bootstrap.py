"""Paired differences of two detectors: hand-computed, covered as often as promised, and zero for equal scores."""

import numpy as np
import pytest
from scipy.stats import norm

from aaclip.scoring.bootstrap import compare_runs, compare_scores, draw_images, interval_of_mean
from aaclip.scoring.evaluation import Evaluation
from aaclip.scoring.metrics import METRICS, ClassMetrics
from aaclip.scoring.stored import load_scores, save_scores


def scores_of(scores, labels, maps=None, masks=None, names=None):
    metrics = ClassMetrics()
    names = [f"{number}.png" for number in range(len(labels))] if names is None else names
    metrics.update(scores, labels, maps, masks, names_B=names)
    return metrics.scores()


def whole(seed, *, sharp=1.0, side=16):
    """Scores of 12 images with maps; images and labels are the same for every seed."""
    generator = np.random.default_rng(seed)
    labels = np.arange(12) >= 6
    masks = np.zeros((12, side, side), dtype=bool)
    for number in range(6, 12):
        masks[number, number - 4 : number + 1, 2:6] = True
    maps = (generator.normal(size=masks.shape) + sharp * masks).astype(np.float32)
    return scores_of(generator.normal(size=12) + labels, labels, maps, masks)


def test_equal_scores_differ_by_exactly_zero():
    one, other = ({"nut": whole(0), "mug": whole(1)} for _ in range(2))
    found = compare_scores(one, other, samples=100)
    for paired in [*found.mean.values(), *found.classes["nut"].values(), *found.classes["mug"].values()]:
        assert (paired.difference, paired.low, paired.high, paired.p) == (0, 0, 0, 1)
    assert set(found.mean) == set(METRICS)


def test_differences_by_hand():
    # theirs: anomalous a and b, normal c and d, scored a > c > b > d: 3 of 4 pairs are right, ours has all. In a
    # resample theirs lacks share(b)·share(c); a share is 0, 1/2 or 1 with probability 1/4, 1/2, 1/4
    labels = [True, True, False, False]
    ours, theirs = {"nut": scores_of([4, 3, 1, 0], labels)}, {"nut": scores_of([0.9, 0.4, 0.6, 0.1], labels)}
    samples = 4000
    drawn = [side["nut"].resample(samples=samples, seed=(0, 0))["image/auroc"] for side in (ours, theirs)]
    values, counts = np.unique(drawn[0] - drawn[1], return_counts=True)
    assert values.tolist() == [0, 0.25, 0.5, 1]
    assert counts / samples == pytest.approx([7 / 16, 4 / 16, 4 / 16, 1 / 16], abs=0.03)
    paired = compare_scores(ours, theirs, samples=samples).classes["nut"]["image/auroc"]
    assert (paired.difference, paired.low, paired.high) == (0.25, 0, 1)
    assert paired.p == pytest.approx(7 / 8, abs=0.06)  # twice the share of resamples without a difference


def test_a_known_difference_is_covered_and_the_pairing_narrows_it():
    # anomalous scores are one, or one and a half, above normal ones: AUROC Φ(d/√2); the two share most of their noise
    truth, covered, widths = norm.cdf(1.5 / 2**0.5) - norm.cdf(1 / 2**0.5), 0, []
    labels = np.arange(80) % 2 == 1
    for seed in range(60):
        generator = np.random.default_rng(seed)
        shared = generator.normal(size=80)
        theirs, ours = (
            {"nut": scores_of(0.9 * shared + 0.19**0.5 * generator.normal(size=80) + gain * labels, labels)}
            for gain in (1.0, 1.5)
        )
        paired = compare_scores(ours, theirs, samples=200).mean["image/auroc"]
        covered += paired.low <= truth <= paired.high
        alone = [interval_of_mean(side, samples=200)["image/auroc"] for side in (ours, theirs)]
        widths.append((paired.high - paired.low) / np.hypot(*(high - low for low, high in alone)))
    assert 52 <= covered <= 60
    assert np.median(widths) < 0.75  # of the interval that two separate sets would give


def test_pixel_differences_pair_the_images():
    """The interval of the difference is that of the resampled differences, not of two separate intervals."""
    sharp, dull = whole(3, sharp=2.0), whole(3, sharp=0.5)  # the same noise, and images
    found = compare_scores({"nut": sharp}, {"nut": dull}, samples=200).mean
    drawn = [one.resample(samples=200, seed=(0, 0)) for one in (sharp, dull)]
    for metric in METRICS:
        difference = drawn[0][metric] - drawn[1][metric]
        assert found[metric].difference == pytest.approx(sharp.values[metric] - dull.values[metric])
        low, high = np.quantile(difference, [0.025, 0.975])
        assert (found[metric].low, found[metric].high) == pytest.approx((low, high))
    assert found["pixel/auroc"].low > 0


def test_the_mean_pairs_the_classes_that_have_a_metric():
    labels = np.arange(8) % 2 == 1
    ours, theirs = (
        {
            "nut": whole(4, sharp=sharp),
            "polyp": scores_of(np.arange(8), np.ones(8, dtype=bool)),  # no normal image, no masks
            "mug": scores_of(sharp * labels + np.arange(8) % 3, labels),
        }
        for sharp in (2.0, 0.5)
    )
    found = compare_scores(ours, theirs, samples=50)
    assert found.classes["polyp"] == {}
    assert set(found.classes["mug"]) == {"image/auroc", "image/ap", "image/f1_max"}
    both = [found.classes[name]["image/auroc"].difference for name in ("nut", "mug")]
    assert found.mean["image/auroc"].difference == pytest.approx(np.mean(both))
    assert found.mean["pixel/aupro"].difference == found.classes["nut"]["pixel/aupro"].difference


def test_draws_do_not_depend_on_how_many_are_made_at_once():
    labels = np.arange(30) % 3 == 0
    few, many = (np.concatenate(list(draw_images(labels, samples=99, seed=5, width=width))) for width in (1, 2**17))
    assert len(list(draw_images(labels, samples=99, seed=5, width=2**17))) > 10
    assert np.array_equal(few, many)


def test_a_resample_without_a_defective_pixel_is_left_out():
    sides = []
    for sharp in (2.0, 1.0):
        labels, masks = np.array([False, False, True, True]), np.zeros((4, 8, 8), dtype=bool)
        masks[2, 2:4, 2:4] = True  # the other anomalous image has an empty mask
        maps = np.random.default_rng(0).normal(size=masks.shape).astype(np.float32) + sharp * masks
        sides.append({"nut": scores_of(np.arange(4), labels, maps, masks)})
    paired = compare_scores(*sides, samples=200).mean["pixel/auroc"]
    assert np.isfinite([paired.low, paired.high]).all()


@pytest.mark.parametrize("names", [["0.png", "1.png", "2.png", "other.png"], ["1.png", "0.png", "2.png", "3.png"]])
def test_other_images_are_refused(names):
    labels = [True, True, False, False]
    with pytest.raises(ValueError, match="needs scores of the same images in the same order") as error:
        compare_scores({"nut": scores_of(range(4), labels)}, {"nut": scores_of(range(4), labels, names=names)})
    assert "\n" not in str(error.value)


def test_scores_survive_a_file(tmp_path):
    scores = {"größe": whole(5), "polyp": scores_of([1.0, 2.0], [True, True])}
    evaluation = Evaluation({}, {}, {}, failures={"bad.png": "not a readable image"}, scores=scores)
    save_scores(tmp_path / "new" / "kept.npz", evaluation)
    found = load_scores(tmp_path / "new" / "kept.npz")
    assert found.failures == evaluation.failures
    assert found.images == {"größe": 12, "polyp": 2}
    assert found.classes == {name: dict(one.values) for name, one in scores.items()}
    assert compare_scores(scores, found.scores, samples=30).mean["pixel/aupro"].high == 0
    assert [one.names for one in found.scores.values()] == [one.names for one in scores.values()]


def test_several_trainings_by_hand():
    # differences of two trainings, +0.25 and 0: their mean is 0.125; a draw of trainings takes each with chance 1/2
    labels = [True, True, False, False]
    ours, theirs = {"nut": scores_of([4, 3, 1, 0], labels)}, {"nut": scores_of([0.9, 0.4, 0.6, 0.1], labels)}
    found = compare_runs([(ours, theirs), (ours, ours)], seeds=[0, 0], samples=4000, judged=["image/auroc"])
    paired = found["image/auroc"]
    assert (paired.difference, paired.low) == (0.125, 0)
    assert paired.high == pytest.approx(0.75, abs=0.25)  # both draws are the first training: 0.5 or 1 in a sixteenth
    assert found["judged"] == paired


def test_one_training_is_a_plain_comparison():
    ours, theirs = ({"nut": whole(seed), "mug": whole(seed + 5)} for seed in (0, 1))
    found = compare_runs([(ours, theirs)], seeds=[7], samples=200, judged=["image/auroc", "pixel/aupro"])
    plain = compare_scores(ours, theirs, samples=200, seed=7).mean
    for metric, paired in plain.items():
        assert found[metric].difference == pytest.approx(paired.difference)
        assert (found[metric].low, found[metric].high) == pytest.approx((paired.low, paired.high), abs=1e-9)
    middle = (plain["image/auroc"].difference + plain["pixel/aupro"].difference) / 2
    assert found["judged"].difference == pytest.approx(middle)
