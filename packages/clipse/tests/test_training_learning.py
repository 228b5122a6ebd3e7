"""That training learns: a quarter of a minute from scratch, against a figure that the untrained model is far from."""

from clip_common.config import load_config
from clip_common.synthetic import write_flickr8k
from clipse import Config, read_records, train
from clipse.models.retrieval import RetrievalModel, load_towers
from clipse.scoring.score import score_records

OVERRIDES = [
    "model.architecture={embed_dim: 64,"
    " vision_cfg: {image_size: 32, patch_size: 8, width: 64, layers: 3, head_width: 16},"
    " text_cfg: {context_length: 77, vocab_size: 49408, width: 64, heads: 4, layers: 2}}",
    "model.pretrained=random",
    "data.batch_size=64",
    "data.augment=false",
    "data.cache=true",
    "optim.lr=2e-3",
    "optim.weight_decay=0.1",
    "trainer.max_epochs=5",
]


def test_a_little_training_retrieves_scenes_it_has_not_seen(tmp_path):
    folder = write_flickr8k(tmp_path / "scenes", train=1000, val=100, test=100, size=32)
    overrides = [*OVERRIDES, f"data.root={folder}", f"runs={tmp_path / 'runs'}", f"results={tmp_path / 'results'}"]
    config = load_config(Config, overrides=overrides, package="clipse")
    trained = train(config)
    test = read_records(config.data).splits["test"]
    untrained = score_records(RetrievalModel(load_towers(config.model, seed=0)).eval(), test)
    learned = score_records(RetrievalModel.from_pretrained(trained.run.path / "model"), test)
    assert untrained.result.metrics["rsum"] < 50  # chance is 31.6
    assert learned.result.metrics["rsum"] > 100
