"""The tiny encoders learn one space from 600 scenes: a stated recall on held-out ones, which untrained heads miss."""

import pytest

from clip_common.config import load_config
from clip_common.features import FeatureCache
from clip_common.synthetic import write_sounds
from edgeglass.config import Config
from edgeglass.data.loading import read_samples
from edgeglass.models.building import build_model
from edgeglass.scoring.score import score, score_samples
from edgeglass.training.experiment import train

DIRECTIONS = ("i2t", "t2i", "a2t", "t2a", "i2a", "a2i")


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learned")
    write_sounds(folder / "world", train=600, val=100, test=100, seed=3, size=112)
    overrides = [f"data.root={folder / 'world'}", f"runs={folder / 'runs'}", "name=first", "trainer.max_epochs=15"]
    config = load_config(Config, config="tiny", overrides=overrides, package="edgeglass")
    run = train(config).run
    return config, run.path


def test_every_pair_reaches_four_fifths_of_its_ceiling_and_a_quarter_of_the_width_nearly_as_much(learned):
    _, run = learned
    scored = score(run, overrides=["split=test"])
    recalls = {(way.name, way.width): way.result.metrics["R@1"] for way in scored.evaluation.directions}
    for way in scored.evaluation.full:
        assert recalls[way.name, 512] > 0.8 * way.ceiling, way.name
        assert recalls[way.name, 128] > recalls[way.name, 512] - 0.05, way.name
    assert recalls["ia(sum)2t", 512] > max(recalls["i2t", 512], recalls["a2t", 512]) - 0.02
    for gap, gallery in (scored.centred[True], scored.centred[False]):
        assert all(abs(share - gallery.truth[name]) < 0.1 for name, share in gallery.overall.items())
        assert gap.keys() == {"image-text", "image-audio", "text-audio"}


def test_untrained_heads_reach_none_of_it(learned):
    config, _ = learned
    samples = read_samples(config.data).splits["test"]
    cache = FeatureCache(config.cache_folder / "features")
    metrics = score_samples(build_model(config), samples, config, cache=cache).metrics
    assert all(metrics[f"{way}/R@1"] < 0.1 for way in DIRECTIONS)
