"""Exported files: equal to this package alone and in a batch, run where torch is absent, never left behind if wrong."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import refused, succeeded
from PIL import Image

from aaclip.config import Config
from aaclip.detector import export
from aaclip.detector.baked import BakedDetector
from aaclip.detector.calibration import Logistic, Threshold
from aaclip.detector.detector import Detector
from aaclip.models.backbone import make_model
from aaclip.models.contexts import Contexts
from clip_common.backbones import load_clip
from clip_common.config import load_config
from clip_common.images import find_images

README = Path(__file__).parents[1] / "README.md"
NAMES = ["mug", "größer <b>star</b>"]


ARCHITECTURE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
"""Two blocks: exporting takes time by the operation."""


@pytest.fixture(scope="module")
def source(parts) -> Detector:
    """With contexts, a threshold, and remembered images of one of the two names."""
    settings = ["prompts.set=compact", "cross_attention.enabled=true", "cross_attention.weight=0.5"]
    config = load_config(Config, overrides=settings)
    clip = load_clip("two-blocks", pretrained="random", model_config=ARCHITECTURE, seed=0)
    torch.manual_seed(0)
    contexts = Contexts(image={"mug": torch.randn(16, 16), "star": torch.randn(16, 16)})
    detector = Detector(
        make_model(clip, config),
        config,
        score=Logistic(a=20.0, b=0.3, c=0.1, images=8),
        contexts=contexts,
        device="cpu",
    )
    detector.remember(find_images([parts / "mug" / "train"]), name="mug")
    found = detector.predict(find_images([parts]), name="mug")
    detector.threshold = Threshold(float(np.median([one.score for one in found])) + 1e-5, "given")
    return detector


@pytest.fixture(scope="module")
def pictures(parts) -> list[Path]:
    """Twenty drawn parts."""
    return find_images([parts / kind / split for kind in ("mug", "star") for split in ("train", "test")])[:20]


@pytest.fixture(scope="module")
def written(source, pictures, tmp_path_factory) -> export.Exported:
    file = tmp_path_factory.mktemp("exported") / "größer.onnx"
    return export.export_detector(source, file, names=NAMES, images=pictures)


def pixels(files: list[Path], size: int) -> np.ndarray:
    return np.stack([np.asarray(Image.open(file).convert("RGB").resize((size, size), 3)) for file in files])


def reference(detector: Detector, files: list[Path], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores and maps by the detector's own way."""
    context, memory = detector.text_contexts([name]), detector.memory_of(name)
    images_B3SS = torch.stack([detector.preprocess(Image.open(file)) for file in files])
    text_BD2 = detector.class_embedding(name).expand(len(files), -1, -1)
    scores = detector.scores(images_B3SS, text_BD2, memory=memory, context=context)
    return scores.scores_B.numpy(), torch.sigmoid(scores.maps_BSS - detector.border).numpy()


def test_onnx_equals_torch_on_twenty_images_alone_and_in_a_batch_of_32(source, written, pictures):
    import onnxruntime

    session = onnxruntime.InferenceSession(written.file)
    assert len(pictures) == 20
    batch = [*pictures, *pictures[:12]]
    for number, name in enumerate(NAMES):
        images_BSS3, row = pixels(batch, source.size), np.array(number)
        scores_B, maps_BSS = reference(source, batch, name)
        assert scores_B.std() > 1e-3
        together = session.run(None, {"images": images_BSS3, "name": row})
        alone = [session.run(None, {"images": one[None], "name": row}) for one in images_BSS3[:20]]
        for found, count in ((together, 32), ([np.concatenate(part) for part in zip(*alone, strict=True)], 20)):
            score_B, map_BSS, verdict_B = found
            np.testing.assert_allclose(score_B, scores_B[:count], atol=1e-4, rtol=0)
            np.testing.assert_allclose(map_BSS, maps_BSS[:count], atol=1e-4, rtol=0)
            np.testing.assert_array_equal(verdict_B, scores_B[:count] >= source.threshold.value)
    assert set(np.unique(verdict_B)) <= {False, True}


def test_the_parity_is_measured_and_described(written, source):
    described = json.loads(written.description.read_text(encoding="utf-8"))
    assert written.description.name == "größer.onnx.json"
    assert described["names"] == NAMES
    assert described["threshold"] == source.threshold.value
    assert described["inputs"]["images"]["shape"] == ["batch", 32, 32, 3]
    assert list(described["outputs"]) == ["score", "map", "verdict"]
    assert described["parity"] == {
        "images": 20,
        "batch": 10,
        "score": written.parity.score,
        "map": written.parity.map,
        "verdicts": 0,
    }
    assert 0 < max(written.parity.score, written.parity.map) <= 1e-4
    assert sorted(file.name for file in written.file.parent.iterdir()) == ["größer.onnx", "größer.onnx.json"]


def test_a_file_names_no_path_of_the_machine_it_was_made_on(written):
    content = written.file.read_bytes()
    assert not [word for word in (b"site-packages", b"aaclip/", b"stack_trace", b"metadata") if word in content]


def test_the_readmes_example_runs_where_torch_and_aaclip_are_not_installed(written, pictures, source, tmp_path):
    for module in ("torch", "aaclip", "clip_common", "onnx"):
        (tmp_path / f"{module}.py").write_text("raise ImportError('not installed here')")
    shutil.copy(written.file, tmp_path / "bell.onnx")
    shutil.copy(written.description, tmp_path / "bell.onnx.json")
    shutil.copy(pictures[0], tmp_path / "part.png")
    code = next(
        block
        for block in re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
        if "onnxruntime" in block
    )
    assert len([line for line in code.splitlines() if line and "import" not in line]) <= 10
    (tmp_path / "run.py").write_text(code.replace('"bell")', '"mug")'), encoding="utf-8")
    done = subprocess.run([sys.executable, "run.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    score, _ = reference(source, [pictures[0]], "mug")
    verdict = "anomalous" if score[0] >= source.threshold.value else "normal"
    assert done.stdout.strip() == f"{verdict} {score[0]:.3f} (1, 32, 32)"


def test_a_file_that_differs_is_not_left_behind_and_the_former_one_stays(source, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    file = tmp_path / "nut.pt2"
    file.write_text("former")
    with pytest.raises(ValueError, match="nothing was written"):
        export.export_detector(source, file, names=["mug"], images=pictures[:1], format="torch")
    assert [path.name for path in tmp_path.iterdir()] == ["nut.pt2"]
    assert file.read_text() == "former"


@pytest.mark.parametrize("bad", [float("nan"), 0.5])
@pytest.mark.parametrize("field", ["score", "map"])
def test_parity_fails_on_a_nan_too(field, bad):
    good = {"score": 1e-6, "map": 1e-6}
    export.check_parity(export.Parity(4, batch=4, verdicts=0, **good), int8=False)
    with pytest.raises(ValueError, match="is allowed"):
        export.check_parity(export.Parity(4, batch=4, verdicts=0, **good | {field: bad}), int8=False)


def test_the_program_of_torch_export_takes_any_batch_and_holds_no_text_tower(source, pictures, tmp_path):
    exported = export.export_detector(source, tmp_path / "two.pt2", names=NAMES, images=pictures[:3], format="torch")
    with zipfile.ZipFile(exported.file) as archive:
        assert not [name for name in archive.namelist() if b"site-packages" in archive.read(name)]
    program = torch.export.load(exported.file)
    assert not [name for name in program.state_dict if "text_tower" in name or "text_adapter" in name]
    for count in (1, 5):
        score_B, _, _ = program.module()(torch.from_numpy(pixels(pictures[:count], source.size)), torch.tensor(1))
        np.testing.assert_allclose(score_B, reference(source, pictures[:count], NAMES[1])[0], atol=1e-5)


def test_int8_stores_linear_layers_in_a_quarter_and_says_what_it_costs(
    aaclip, source, written, photos, tmp_path, monkeypatch
):
    import onnx

    monkeypatch.setattr(Detector, "open", lambda *_, **__: source)
    printed = succeeded(aaclip("export", "a run", tmp_path / "nut.onnx", "--name=mug", "--int8", "--check", photos))
    assert "compared with aaclip on 3 images, alone and in batches of 3: scores within" in printed
    for file, kind in ((written.file, onnx.TensorProto.FLOAT), (tmp_path / "nut.onnx", onnx.TensorProto.INT8)):
        weights = [tensor for tensor in onnx.load(file).graph.initializer if list(tensor.dims) == [32, 128]]
        assert len(weights) == 2, "the first matrix of each MLP, which two passes share"
        assert {tensor.data_type for tensor in weights} == {kind}
    described = json.loads((tmp_path / "nut.onnx.json").read_text())
    assert described["int8"] is True
    assert described["parity"]["score"] > written.parity.score


def test_names_with_and_without_memories_of_different_sizes(detector, parts, pictures):
    kept = [weight.requires_grad for weight in detector.model.parameters()]
    detector.remember(find_images([parts / "mug" / "train"]), name="mug")
    detector.remember(find_images([parts / "star" / "train"])[:1], name="star")
    names = ["star", "bell", "mug"]
    baked = BakedDetector(detector, names, threshold=None)
    images_BSS3 = torch.from_numpy(pixels(pictures[:2], detector.size))
    with torch.inference_mode():
        for row, name in enumerate(names):
            found, expected = baked(images_BSS3, torch.tensor(row)), reference(detector, pictures[:2], name)
            assert len(found) == 2
            for own, values in zip(found, expected, strict=True):
                np.testing.assert_allclose(own, values, atol=1e-5)
    assert baked.scorer.model.image_tower is not detector.model.image_tower
    own, shared = next(detector.model.parameters()), next(baked.scorer.model.parameters())
    assert own.data_ptr() == shared.data_ptr()
    assert [weight.requires_grad for weight in detector.model.parameters()] == kept
    assert detector.model.text_tower is not None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nut.pt2", "--name=a"], "ends in .onnx"),
        (["nut.onnx", "--name=a", "--format=torch"], "ends in .pt2"),
        (["nut.pt2", "--name=a", "--format=torch", "--int8"], "int8 is for the format onnx"),
        (["nut.onnx", "--name=a", "--name=a"], "each once"),
        (["nut.onnx", "--name= "], "one or more names"),
        (["folder.onnx", "--name=a"], "a folder"),
        (["nut.onnx", "--name=a"], "no training images to compare the exported file on: give --check IMAGES"),
        (["nut.onnx", "--name=a", "--check=empty"], "no picture there"),
        (["nut.onnx", "--name=a", "--check=bad.png"], "bad.png: not a readable image"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_what_export_refuses_in_one_line(aaclip, saved, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.png").write_text("no")
    before = sorted(tmp_path.iterdir())
    refused(aaclip("export", saved, *words), message)
    assert sorted(tmp_path.iterdir()) == before


def test_export_refuses_a_threshold_for_tiles(source, pictures, tmp_path):
    detector = Detector(
        source.model, source.config, contexts=source.contexts, threshold=Threshold(0.5, "given", tile=64)
    )
    with pytest.raises(ValueError, match="calibrated with tile=64"):
        export.export_detector(detector, tmp_path / "a.onnx", names=["mug"], images=pictures[:1])


def test_the_images_are_training_images_of_the_run_unless_others_are_given(trained, photos, tmp_path):
    run = trained()
    config = Detector.from_pretrained(run).config
    own = export.choose_images(run, [], config=config)
    assert len(own) == 4
    assert all(file.exists() for file in own)
    assert export.choose_images(run / "model", [], config=config) == own
    assert export.choose_images(run, [photos], config=config) == find_images([photos])


@pytest.mark.parametrize("module", ["onnx", "onnxruntime", "onnxscript"])
def test_without_its_extra_export_says_what_to_install(aaclip, saved, tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    refused(aaclip("export", saved, tmp_path / "a.onnx", "--name=mug"), module, 'pip install "aaclip[export]"')
