"""Checkpoints of the fork with cross-attention and loops, from a few lines that save as it does."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import refused, succeeded
from helpers.released import WIDTHS, SimpleAdapter, SimpleProj
from torch import nn

from aaclip.detector.detector import Detector
from aaclip.released.checkpoints import make_detector
from aaclip.released.fork import ERAS, find_fork_files, is_fork, list_fork_loops, read_fork


class Attention(nn.Module):
    def __init__(self, width, context):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(*sizes) for sizes in ((width, context), (context, context), (context, context), (context, width))
        )


def parts(seed):
    """State dicts of the four parts of a model for the small CLIP, as the fork names them."""
    torch.manual_seed(seed)
    text, image, shared = (WIDTHS[name] for name in ("text", "image", "shared"))
    attention = Attention(text, text)
    attention.k_proj, attention.v_proj = nn.Linear(shared, text), nn.Linear(shared, text)  # 768 = 768 at full size
    adapters = {
        "text_adapter": nn.ModuleList([*(SimpleAdapter(text) for _ in range(3)), SimpleProj(text, shared)]),
        "text_cross_attn": attention,
        "image_adapter": nn.ModuleDict(
            {
                "layer_adapters": nn.ModuleList(SimpleAdapter(image) for _ in range(2)),
                "seg_proj": nn.ModuleList(SimpleProj(image, shared, relu=False) for _ in range(2)),
                "det_proj": SimpleProj(image, shared, relu=False),
            }
        ),
        "image_cross_attn": Attention(image, text),
    }
    return {name: module.state_dict() for name, module in adapters.items()}


def save_pair(folder: Path, seed: int, names: tuple[str, str], **more):
    """Save stage 1 and stage 2 in files of their own; return the four parts."""
    whole = parts(seed)
    for stage, name in zip(("text", "image"), names, strict=True):
        own = {part: whole[part] for part in (f"{stage}_adapter", f"{stage}_cross_attn")}
        optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(2))]).state_dict()
        torch.save({"epoch": 3, **own, f"{stage}_optimizer": optimizer, **more}, folder / name)
    return whole


@pytest.fixture
def overrides(clip_folder) -> list[str]:
    """Overrides for the small CLIP; what the files say is not among them."""
    kept = [f"backbone.{name}=null" for name in ("pretrained", "image_size", "activation")]
    return [f"backbone.name=local-dir:{clip_folder}", *kept, "levels=[2, 4]", "surgery.blocks=6"]


@pytest.fixture
def loops(tmp_path):
    """A folder of train_implementation with 11 loops, and the four parts of each loop and of the final model."""
    folder = tmp_path / "loops, groß"
    folder.mkdir()
    saved = {}
    for loop in (1, 2, 10, 11):
        losses = {f"{name}_loss": np.float64(loop / 7) for name in ("text", "image", "combined")}
        saved[loop] = parts(loop)
        torch.save({"loop": loop, **saved[loop], **losses}, folder / f"loop_{loop}_final.pth")
    torch.save({"total_loops": 11, **parts(99)}, folder / "final_model.pth")
    torch.save({"losses": [np.float64(1)]}, folder / "feedback_summary.pth")
    return folder, saved, parts(99)


def check_weights(detector, whole):
    state = detector.model.state_dict()
    assert torch.equal(state["text_adapter.layers.0.0.weight"], whole["text_adapter"]["0.fc.0.weight"])
    assert torch.equal(state["text_adapter.final.0.weight"], whole["text_adapter"]["3.fc.0.weight"])
    head = whole["image_adapter"]["seg_proj.1.fc.weight"]
    assert torch.equal(state["image_adapter.segmentation.1.0.weight"], head)
    for part in ("text_cross_attn", "image_cross_attn"):
        assert {name for name in state if name.startswith(part)} == {f"{part}.{name}" for name in whole[part]}
        for name, tensor in whole[part].items():
            assert torch.equal(state[f"{part}.{name}"], tensor)


def test_the_final_model_and_each_loop_by_number(loops, overrides):
    folder, saved, final = loops
    check_weights(make_detector(read_fork(folder, overrides=overrides)), final)
    for loop, whole in saved.items():
        check_weights(make_detector(read_fork(folder, overrides=overrides, loop=loop)), whole)
    assert list(list_fork_loops(folder)) == [1, 2, 10, 11]
    (folder / "final_model.pth").unlink()
    assert find_fork_files(folder) == (folder / "loop_11_final.pth",)  # the last by number, not loop 2 by its name
    with pytest.raises(ValueError, match="has no whole loop 3: its loops are 1, 2, 10, 11"):
        find_fork_files(folder, loop=3)


def test_a_loop_that_was_saved_stage_by_stage(tmp_path, overrides):
    for loop in (1, 2):
        names = (f"loop_{loop}_text_adapter.pth", f"loop_{loop}_image_adapter.pth")
        whole = save_pair(tmp_path, loop, names, loop=loop)
        torch.save({"mug": torch.zeros(16, 77, 16)}, tmp_path / f"loop_{loop}_text_context_dict.pth")
    torch.save({"loop": 3, **whole}, tmp_path / "loop_3_text_adapter.pth")  # killed before its stage 2
    check_weights(make_detector(read_fork(tmp_path, overrides=overrides)), whole)
    check_weights(make_detector(read_fork(tmp_path / "loop_2_image_adapter.pth", overrides=overrides)), whole)
    with pytest.raises(ValueError, match=r"loop_3_image_adapter.pth: no such file"):
        read_fork(tmp_path / "loop_3_text_adapter.pth", overrides=overrides)


def test_a_training_without_loops_and_its_epochs(tmp_path, overrides):
    save_pair(tmp_path, 1, ("text_adapter_cross_attn.pth", "image_adapter_cross_attn_2.pth"))
    whole = save_pair(tmp_path, 2, ("text_adapter_cross_attn.pth", "image_adapter_cross_attn.pth"))
    torch.save({"mug": torch.zeros(16, 77, 16)}, tmp_path / "text_context_dict.pth")
    check_weights(make_detector(read_fork(tmp_path, overrides=overrides)), whole)
    at_two = make_detector(read_fork(tmp_path, overrides=overrides, epoch=2))
    check_weights(at_two, {**whole, **{part: parts(1)[part] for part in ("image_adapter", "image_cross_attn")}})
    with pytest.raises(ValueError, match=r"image_adapter_cross_attn_9.pth: no such file"):
        read_fork(tmp_path, overrides=overrides, epoch=9)


def test_losses_of_either_numpy_are_read_and_nothing_else_is(loops, tmp_path, overrides):
    folder, saved, _ = loops
    file = tmp_path / "loop_1_final.pth"
    for before, after, read in (
        ("numpy._core", "numpy.core", True),
        ("numpy._core.multiarray\nscalar", "posix\nsystem", False),
    ):
        with zipfile.ZipFile(folder / "loop_1_final.pth") as old, zipfile.ZipFile(file, "w") as new:
            for name in old.namelist():
                content = old.read(name)
                if name.endswith("data.pkl"):
                    assert before.encode() in content
                    content = content.replace(before.encode(), after.encode())
                new.writestr(name, content)
        if read:
            check_weights(make_detector(read_fork(file, overrides=overrides)), saved[1])
        else:
            with pytest.raises(ValueError, match="not a checkpoint of weights and plain containers"):
                read_fork(file, overrides=overrides)


@pytest.mark.parametrize("era", list(ERAS))
def test_the_era_is_asked_for_and_said(aaclip, loops, overrides, tmp_path, era):
    given = [] if era == "matched" else ["--era", era]
    printed = succeeded(aaclip("import", loops[0], tmp_path / "out", *given, *overrides))
    assert f"cross-attention of the era {era}" in printed
    config = Detector.from_pretrained(tmp_path / "out").config.cross_attention
    expected = {"unscaled": (1.0, False), "scaled": (0.1, False), "matched": (0.1, True)}[era]
    assert (config.weight, config.norm_match) == expected
    assert (config.enabled, config.at_test, config.padding, config.context) == (True, False, "kept", "batch")


def test_tests_of_the_fork_do_not_use_cross_attention(loops, overrides):
    """So that its figures come out in every era: embeddings and scores are those of the adapters alone."""
    detectors = [make_detector(read_fork(loops[0], overrides=overrides, era=era)) for era in ERAS]
    images, text = torch.randn(2, 3, 32, 32), [detector.class_embedding("mug") for detector in detectors]
    assert torch.equal(text[0], text[2])
    maps = [one.scores(images, text[0].expand(2, -1, -1)).maps_BSS for one in detectors]
    assert torch.equal(maps[0], maps[2])


def test_base_checkpoints_are_not_taken_for_the_fork_s(tmp_path):
    for name in ("text_adapter.pth", "image_adapter.pth", "image_adapter_3.pth", "loop.pth"):
        (tmp_path / name).touch()
    assert not is_fork(tmp_path)
    assert not is_fork(tmp_path / "gone.pth")
    (tmp_path / "loop_1_final.pth").touch()
    assert is_fork(tmp_path)


def test_files_that_cannot_be_imported_are_one_line(aaclip, loops, overrides, tmp_path):
    folder, _, final = loops
    out = tmp_path / "out"
    refused(aaclip("import", folder, out, *overrides, "--loop", 5), "has no whole loop 5")
    refused(aaclip("import", folder, out, *overrides, "cross_attention.weight=0.5", "--era=scaled"), "weight=0.1")
    refused(aaclip("import", folder / "final_model.pth", out, *overrides, "--loop", 1), "leave out --loop")
    without = {name: part for name, part in final.items() if name != "image_cross_attn"}
    torch.save({"total_loops": 1, **without}, folder / "final_model.pth")
    refused(aaclip("import", folder, out, *overrides), "has no image_cross_attn")
    final["text_cross_attn"].pop("q_proj.bias")
    torch.save({"total_loops": 1, **final}, folder / "final_model.pth")
    refused(aaclip("import", folder, out, *overrides), "text_cross_attn is not the fork's", "q_proj.bias")
    (folder / "final_model.pth").write_bytes(b"PK")
    refused(aaclip("import", folder, out, *overrides), "truncated, or not a checkpoint")
    (tmp_path / "empty").mkdir()
    refused(aaclip("import", tmp_path / "empty", out, *overrides, "--loop", 1), "its loops are none")
    assert not out.exists()
