"""Each package stands alone: its wheel, in a fresh environment, with nothing but what it declares."""

import json

from helpers.commands import refused
from helpers.environments import attempt, run

TEN_LINES = """
import torch
from clip_common.losses import InfoNCE
image, text = torch.randn(8, 16, requires_grad=True), torch.randn(8, 16)
loss = InfoNCE()(image, text, scale=10.0)
loss.backward()
assert loss.isfinite() and image.grad.abs().sum() > 0
"""
# What torch itself brings, and torch's own requirements, are not ours to count.
FRAMEWORKS = ("lightning", "open_clip", "transformers", "torchvision", "omegaconf", "typer", "PIL", "scipy", "sklearn")


def test_clip_common_without_extras_is_torch_and_numpy_and_its_losses_work(fresh_environment):
    binaries = fresh_environment("clip-common")
    run(binaries / "python", "-c", TEN_LINES)
    found = run(
        binaries / "python",
        "-c",
        f"import importlib.util as u, json; print(json.dumps([n for n in {FRAMEWORKS!r} if u.find_spec(n)]))",
    )
    assert json.loads(found) == []
    run(binaries / "python", "-c", "from clip_common.metrics import retrieval_metrics")


def test_aaclip_installs_alone_and_imports(fresh_environment):
    binaries = fresh_environment("aaclip")
    assert run(binaries / "python", "-c", "import aaclip; print(aaclip.__version__)").strip() == "0.1.0"
    for extra, words in (("export", ["export", "tiny", "nut.onnx"]), ("serve", ["serve", "tiny"])):
        refused(attempt(binaries / "aaclip", *words, "--name", "nut"), f'pip install "aaclip[{extra}]"')


def test_clipse_installs_alone_and_does_its_job(fresh_environment, tmp_path):
    binaries = fresh_environment("clipse")
    assert "train" in run(binaries / "clipse", "--help")
    sizes = ["--train", "48", "--val", "16", "--test", "16"]
    run(binaries / "clipse", "data", "synthetic", "parts", "--what", "parts", *sizes, cwd=tmp_path)
    overrides = ["data.root=parts", "data.batch_size=16", "trainer.max_epochs=1", "name=alone"]
    run(binaries / "clipse", "train", "--config", "tiny", *overrides, cwd=tmp_path)  # the tiny CLIP is in the wheel
    run(binaries / "clipse", "eval", "runs/clipse/alone", "data.root=parts", cwd=tmp_path)
    result = json.loads((tmp_path / "runs" / "clipse" / "alone" / "result.json").read_text())
    assert result["val"]["metrics"]["rsum"] > 0
    assert result["test"]["images"] == 16


def test_videoclip_installs_alone_and_does_its_job(fresh_environment, tmp_path):
    binaries = fresh_environment("videoclip")
    videoclip = binaries / "videoclip"
    sizes = ["--subjects", "15", "--clips", "2", "--size", "32"]
    run(videoclip, "data", "synthetic", "walks", *sizes, cwd=tmp_path)
    overrides = ["data.root=walks", "data.size=32", "data.batch_size=8", "trainer.max_epochs=1", "name=alone"]
    run(videoclip, "train", "--config", "walking", *overrides, cwd=tmp_path)
    run(videoclip, "test", "runs/videoclip/alone", cwd=tmp_path)
    result = json.loads((tmp_path / "runs" / "videoclip" / "alone" / "result.json").read_text())
    assert result["test"]["clips"] == 6


def test_edgeglass_installs_alone_and_does_its_job_without_its_extras(fresh_environment, tmp_path):
    binaries = fresh_environment("edgeglass")
    edgeglass = binaries / "edgeglass"
    assert "align" in run(edgeglass, "--help")
    sizes = ["--train", "48", "--val", "16", "--test", "16", "--size", "64"]
    run(edgeglass, "data", "synthetic", "world", *sizes, cwd=tmp_path)
    overrides = ["data.root=world", "data.batch_size=16", "trainer.max_epochs=1", "name=alone"]
    run(edgeglass, "align", "--config", "tiny", *overrides, cwd=tmp_path)  # the tiny encoders are in the wheels
    model = "runs/edgeglass/alone"
    run(edgeglass, "eval", model, cwd=tmp_path)
    result = json.loads((tmp_path / model / "result.json").read_text())
    assert result["test"]["samples"] == 16
    run(edgeglass, "embed", model, "world", "--out", "index", cwd=tmp_path)
    assert "images/scene" in run(edgeglass, "search", "index", "a red mug", "--modality", "image", cwd=tmp_path)

    (tmp_path / "set.parquet").write_bytes(b"")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    lancedb = ["embed", model, "world", "--out", "table", "--store", "lancedb"]
    for extra, words in (
        ("parquet", ["data", "check", "set.parquet"]),
        ("datasets", ["data", "check", "saved"]),
        ("lance", lancedb),
    ):
        refused(attempt(edgeglass, *words, cwd=tmp_path), f"pip install 'edgeglass[{extra}]'")
    assert not (tmp_path / "table").exists()
