"""What must not grow: weight gradients, attention maps, memory; ViT-L's shape; real images; the published table.

Shapes: B images or texts, H heads, T tokens.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from helpers.real import real_data
from torch.utils._python_dispatch import TorchDispatchMode

from aaclip.config import Config
from aaclip.models import PlainCLIP
from aaclip.models.backbone import make_model
from aaclip.models.prompts import load_prompts
from aaclip.training.experiment import read_training_records, resolve, train
from aaclip.training.fits import Job, embed_training_classes, make_dataset
from aaclip.training.modules import ImageStage, Stage, StageData, TextStage
from clip_common.config import load_config

ROOT = Path(__file__).resolve().parents[3]
TOKENS, HEADS = 4 * 4 + 1, 2
"""Of an image of the small CLIP, and of both its towers."""
PROMPTS, LENGTH = 16, 16
"""Of a class, and tokens of each."""


@pytest.fixture
def stage_of(small, bundle):
    """`stage_of("text")` -> the stage on the small CLIP, and a batch of 4 images."""

    def get(name: str) -> tuple[Stage, object]:
        config = load_config(Config, overrides=small)
        records, prompts = read_training_records(config), load_prompts(config.prompts)
        model = make_model(bundle, config)
        if name == "text":
            stage: Stage = TextStage(model, config.stages.text, config.loss, prompts=prompts)
        else:
            classes = embed_training_classes(Job(config, "both", records, model, prompts), {})
            stage = ImageStage(model, config.stages.image, config.loss, classes=classes, contexts={})
        stage.log = stage.log_dict = lambda *_, **__: None  # no trainer is there to log to
        data = StageData(make_dataset(model, records, config, colour=False), batch_size=4, seed=0, workers=0)
        data.trainer = type("OneProcess", (), {"global_rank": 0, "world_size": 1})
        return stage.train(), next(iter(data.train_dataloader()))

    return get


@contextmanager
def saved_shapes() -> Iterator[list[torch.Size]]:
    """Shapes of all tensors that are kept for the way back."""
    shapes: list[torch.Size] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        shapes.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield shapes


class Outputs(TorchDispatchMode):
    """Names of all operations, and shapes of what they give."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.shapes: list[torch.Size] = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        given = function(*arguments, **(keywords or {}))
        self.names.add(str(function))
        self.shapes += [one.shape for one in (given if isinstance(given, tuple) else (given,)) if torch.is_tensor(one)]
        return given


def maps_in(shapes: list[torch.Size], rows: int, tokens: int) -> list[torch.Size]:
    """Attention maps (B, H, T, T) or (B·H, T, T) among shapes."""
    return [one for one in shapes if one in ((rows, HEADS, tokens, tokens), (rows * HEADS, tokens, tokens))]


@pytest.mark.parametrize("name", ["text", "image"])
def test_a_step_makes_no_gradient_of_a_frozen_weight_and_keeps_no_attention_map(stage_of, name):
    stage, batch = stage_of(name)
    with saved_shapes() as shapes:
        loss = stage.training_step(batch, 0)
    loss.backward()
    towers = [*stage.model.image_tower.parameters(), *stage.model.text_tower.parameters()]
    assert towers
    assert not any(weight.requires_grad or weight.grad is not None for weight in towers)
    learned = [weight for weight in stage.parameters() if weight.requires_grad]
    assert learned
    assert all(weight.grad is not None and weight.grad.any() for weight in learned)
    assert shapes
    texts = PROMPTS * len(set(batch.class_names))
    rows, tokens = (texts, LENGTH) if name == "text" else (4, TOKENS)
    assert any(shape[:2] == (rows, tokens) for shape in shapes)  # these are the numbers that a map would have
    assert not maps_in(shapes, rows, tokens)


def test_an_attention_map_that_was_kept_would_be_seen(bundle):
    block = bundle.image_tower.trunk.blocks[0].module
    x_BTF = torch.randn(2, TOKENS, 32, requires_grad=True)
    with saved_shapes() as shapes:
        block.attn(x_BTF, x_BTF, x_BTF, need_weights=True, average_attn_weights=False)
    assert maps_in(shapes, 2, TOKENS)


def test_neither_a_test_nor_frozen_features_write_attention_maps_out(bundle, config):
    model = make_model(bundle, config).eval()
    images_B3HW = torch.randn(2, 3, 32, 32)
    with torch.inference_mode(), Outputs() as found:
        model(images_B3HW, torch.randn(2, 24, 2))
        model.frozen_patches(images_B3HW)
        PlainCLIP(bundle)(images_B3HW, torch.randn(2, 24, 2))
        bundle.image_tower(images_B3HW, layers=[2])
    assert any("attention" in name for name in found.names)
    assert not any("native_multi_head_attention" in name for name in found.names)  # it does, where no mode can see
    assert not maps_in(found.shapes, 2, TOKENS)
    block = bundle.image_tower.trunk.blocks[0].module
    with torch.inference_mode(), Outputs() as found:
        block(torch.randn(2, TOKENS, 32))
    assert any("native_multi_head_attention" in name for name in found.names)


def test_a_block_without_its_map_gives_what_the_block_gives_and_the_same_gradient(bundle):
    block = bundle.image_tower.trunk.blocks[0]
    x_BTF = torch.randn(2, TOKENS, 32, requires_grad=True)
    found, expected = block(x_BTF), block.module(x_BTF)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    ours, theirs = (torch.autograd.grad(output.square().sum(), x_BTF)[0] for output in (found, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(block(x_BTF), block.module(x_BTF), atol=1e-5, rtol=1e-5)


def test_what_is_kept_for_the_way_back_grows_with_the_tokens_not_with_their_square(bundle, config):
    """Bytes kept a token, of 16 and of 256 patches: an attention map would add a share that grows with them."""
    from clip_common.backbones import load_clip

    def kept(size: int) -> float:
        shape = {**bundle.spec.config, "vision_cfg": {**bundle.spec.config["vision_cfg"], "image_size": size}}
        model = make_model(load_clip("small", pretrained="random", model_config=shape), config)
        total = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.image_adapter(model.image_tower, torch.randn(1, 3, size, size))
        return total / ((size // 8) ** 2 + 1)

    assert kept(128) < 1.1 * kept(32)


VIT_L = """
import json, resource, sys
from pathlib import Path
from aaclip.scoring.evaluation import evaluate
from aaclip.scoring.score import read_test_records
from aaclip.training.experiment import resolve, train

trained = train(resolve(overrides=sys.argv[2:]))
found = evaluate(trained.detector, read_test_records(Path(sys.argv[1])), samples=10)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"levels": trained.detector.model.levels, "size": trained.detector.size, "images": found.images,
                  "values": found.classes["star"], "gib": peak}))
"""


@pytest.mark.slow
def test_a_tower_of_vit_ls_shape_runs_a_step_of_each_stage_and_a_test_at_518_pixels(tmp_path):
    from clip_common.synthetic import write_mvtec

    sets = [
        write_mvtec(tmp_path / name, kinds=(kind,), defects=("hole",), train=0, good=1, damaged=1, size=96)
        for name, kind in (("train", "mug"), ("test", "star"))
    ]
    settings = [
        f"data.root={sets[0]}",
        f"runs={tmp_path / 'runs'}",
        "name=large",
        "backbone.name=ViT-L-14-336",
        "backbone.pretrained=random",
        "stages.text.epochs=1",
        "stages.image.epochs=1",
        "trainer.fast_dev_run=true",
        "trainer.devices=cpu",
    ]
    command = [sys.executable, "-W", "ignore", "-c", VIT_L, str(sets[1]), *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"peak {found['gib']:.1f} GiB")
    assert (found["levels"], found["size"], found["images"]) == ([6, 12, 18, 24], 518, {"star": 2})
    assert all(0 <= value <= 1 for value in found["values"].values())
    assert found["gib"] < 24


@pytest.mark.slow
def test_the_command_of_the_published_table_runs_on_drawn_sets(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "aaclip_published.py"), "--quick", "--runs", "runs"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "results" / "benchmarks" / "aaclip_published_quick.json").read_text())["rows"]
    assert [(row["set"], row["preset"]) for row in rows] == [
        (name, preset) for name in ("mvtec", "colondb") for preset in ("official", "default")
    ]
    assert [row["image/auroc"] == "n/a" for row in rows] == [False, False, True, True]
    assert all(0 <= float(row["pixel/auroc"]) <= 100 for row in rows)


@pytest.mark.real
def test_trained_on_real_bottles_and_tested_on_real_tiles(tmp_path):
    from aaclip.scoring.evaluation import evaluate
    from aaclip.scoring.score import read_test_records

    bottles, tiles = real_data("defects/bottle"), real_data("defects/magnetic_tile")
    settings = [
        f"data.root={bottles}",
        "data.mode=few_shot",
        "data.shot=4",
        f"runs={tmp_path}",
        "stages.text.epochs=1",
        "stages.image.epochs=1",
    ]
    detector = train(resolve(config="tiny", overrides=settings)).detector
    records = read_test_records(tiles)
    assert [sum(record.anomalous == kind for record in records) for kind in (False, True)] == [191, 388]
    found = evaluate(detector, records[::40], samples=20)
    assert all(0 <= value <= 1 for value in found.classes["magnetic_tile"].values())
    assert detector.predict(records[0].image, name="magnetic tile").heatmap_HW.shape[0] > 100
