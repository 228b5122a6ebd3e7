"""Every mistake of a user's is one line on stderr and exit code 2; nothing is lost, nothing is left half-written."""

import errno
import shutil
from pathlib import Path

import pytest
import torch
from helpers.commands import refused

from clip_common.config import load_config, to_yaml
from clip_common.runs import Run
from clipse import Config


def runs_of(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "runs").glob("clipse/*"))


@pytest.fixture
def copy(scenes, tmp_path) -> Path:
    return Path(shutil.copytree(scenes, tmp_path / "copy"))


def first_image(folder: Path) -> Path:
    name = (folder / "Flickr_8k.trainImages.txt").read_text().split()[0]
    return folder / "Images" / name


def test_a_missing_folder(clipse, small, tmp_path):
    refused(clipse("train", *small, "data.root=nowhere"), "nowhere")
    assert runs_of(tmp_path) == []


def test_no_folder_at_all(clipse, small, tmp_path):
    refused(clipse("train", *small, "data.root=null"), "data.root")


def test_empty_captions(clipse, small, copy, tmp_path):
    (copy / "captions.txt").write_text("image,caption\n")
    refused(clipse("train", *small, f"data.root={copy}"), "caption")
    assert runs_of(tmp_path) == []


def test_a_caption_of_an_absent_image(clipse, small, copy, tmp_path):
    image = first_image(copy)
    image.unlink()
    refused(clipse("train", *small, f"data.root={copy}"), image.name, "1")
    assert runs_of(tmp_path) == []


def test_a_truncated_jpeg_stops_the_run_and_names_the_file(clipse, small, copy):
    image = first_image(copy)
    image.write_bytes(image.read_bytes()[:200])
    refused(clipse("train", *small, f"data.root={copy}"), image.name)


def test_a_truncated_jpeg_is_skipped_and_counted_when_asked(clipse, small, copy, tmp_path):
    image = first_image(copy)
    image.write_bytes(image.read_bytes()[:200])
    code, _, error = clipse("train", *small, f"data.root={copy}", "data.on_error=skip", "name=skipping")
    assert code == 0, error
    assert '"skipped_images": 1' in (tmp_path / "runs" / "clipse" / "skipping" / "result.json").read_text()


def test_duplicate_split_entries(clipse, small, copy):
    train = copy / "Flickr_8k.trainImages.txt"
    (copy / "Flickr_8k.testImages.txt").write_text(train.read_text())
    refused(clipse("train", *small, f"data.root={copy}"), first_image(copy).name)


def test_a_one_image_set(clipse, small, copy):
    image = first_image(copy).name
    (copy / "captions.txt").write_text(f"image,caption\n{image},a red cup\n")
    for split in ("train", "dev", "test"):
        (copy / f"Flickr_8k.{split}Images.txt").unlink()
    refused(clipse("train", *small, f"data.root={copy}"), "1")


def test_a_batch_larger_than_the_set(clipse, small):
    refused(clipse("train", *small, "data.batch_size=49"), "data.batch_size", "48")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.batch_size=0", "data.batch_size"),
        ("data.batch_size=-4", "data.batch_size"),
        ("data.batch_size=1", "from 2"),
        ("data.workers=-1", "data.workers"),
        ("data.hold_out=-1", "data.hold_out"),
        ("loss.temperature=0", "loss.temperature"),
        ("loss.ema_decay=3", "loss.ema_decay"),
        ("loss.ema_decay=0", "loss.ema_decay"),
    ],
)
def test_a_number_out_of_its_range(clipse, small, tmp_path, override, said):
    refused(clipse("train", *small, override), said, "expected", override.partition("=")[2])
    assert runs_of(tmp_path) == []


@pytest.mark.parametrize("devices", ["cpu:3", "3", "0,1,2"])
def test_a_batch_that_does_not_divide_among_the_devices(clipse, small, tmp_path, devices):
    refused(clipse("train", *small, f"trainer.devices={devices}"), "data.batch_size=16", "3 devices", "=15")
    assert runs_of(tmp_path) == []


def test_a_run_of_another_package_is_not_opened(clipse, small, tmp_path, scenes):
    other = Run.create("aaclip", config_yaml="levels: [6]\n", name="first", root=tmp_path / "runs").path
    for arguments in (("train", "--resume", other), ("eval", other), ("search", other, "a mug", scenes)):
        refused(clipse(*map(str, arguments)), "is a run of aaclip, not of clipse", "the command `aaclip`")


def test_train_does_not_resume_a_series(clipse, small, tmp_path):
    text = to_yaml(load_config(Config, overrides=small))
    series = Run.create("clipse", group="compare", verb="compare", config_yaml=text, name="two", root=tmp_path).path
    refused(clipse("train", "--resume", str(series)), "is a run of `clipse compare`, not of `clipse train`")
    assert not (series / "checkpoints").exists()


def test_an_unknown_key_names_the_nearest(clipse, small):
    refused(clipse("train", *small, "loss.nmae=clip"), "loss.nmae", "loss.name")


def test_a_wrong_type_names_field_type_and_value(clipse, small):
    refused(clipse("train", *small, "data.batch_size=many"), "data.batch_size", "int", "many")


def test_an_unknown_loss_names_the_known(clipse, small, tmp_path):
    refused(clipse("train", *small, "loss.name=sanw_bandpas"), "sanw_bandpas", "sanw_bandpass")
    assert runs_of(tmp_path) == []


def test_an_unknown_model_names_the_nearest(clipse, small, tmp_path):
    refused(clipse("train", *small, "model.architecture=null", "model.name=ViT-B-23"), "ViT-B-23", "ViT-B-32")
    assert runs_of(tmp_path) == []


def test_offline_without_cache_names_prefetch(clipse, small, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    overrides = ["model.architecture=null", "model.name=ViT-B-32", "model.pretrained=laion2b_s34b_b79k"]
    refused(clipse("train", *small, *overrides), "prefetch ViT-B-32 laion2b_s34b_b79k")
    assert runs_of(tmp_path) == []


def test_a_run_folder_that_exists(clipse, small, tmp_path):
    assert clipse("train", *small, "name=twice", "trainer.fast_dev_run=true")[0] == 0
    before = (tmp_path / "runs" / "clipse" / "twice" / "result.json").read_text()
    refused(clipse("train", *small, "name=twice"), "twice")
    assert (tmp_path / "runs" / "clipse" / "twice" / "result.json").read_text() == before


def test_a_checkpoint_of_another_architecture(clipse, small, tmp_path):
    weights = tmp_path / "checkpoint_epoch_3.pt"
    torch.save({"epoch": 3, "model_state_dict": {"visual.proj": torch.zeros(8, 8)}}, weights)
    refused(clipse("eval", str(weights), "model.weights_of=ViT-B-32", *small[-3:]), "checkpoint_epoch_3.pt", "ViT-B-32")


def test_a_full_disk_while_caching_images_leaves_nothing(clipse, small, tmp_path, monkeypatch):
    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("numpy.save", full)
    refused(clipse("train", *small, "data.cache=true", "name=full"), "No space left")
    assert [path for path in (tmp_path / "runs").rglob("*") if path.is_file()] == []


def test_a_damaged_run_is_refused(clipse, trained, tmp_path):
    run = shutil.copytree(trained(), tmp_path / "damaged")
    weights = run / "model" / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(clipse("eval", run), "open_clip_model.safetensors")


@pytest.mark.parametrize("override", ["loss.name=siglip", "model.pretrained=openai", "trainer.seed=5", "name=other"])
def test_what_a_run_was_cannot_be_overridden_when_it_is_scored(clipse, trained, override):
    refused(clipse("eval", trained(), override), override.partition("=")[0], "data.*")


def test_resume_of_no_run(clipse, tmp_path):
    refused(clipse("train", "--resume", tmp_path), "run")


def test_overrides_cannot_change_a_resumed_run(clipse, trained):
    refused(clipse("train", "--resume", trained(), "optim.lr=1"), "--resume")


def test_the_traceback_is_shown_under_debug(clipse, small):
    code, _, error = clipse("--debug", "train", *small, "loss.nmae=clip")
    assert code == 2
    assert "Traceback" in error


def test_an_odd_number_of_parts(clipse, tmp_path):
    code, out, error = clipse("data", "synthetic", tmp_path / "parts", "--what", "parts", "--train", "33")
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert "parts come in pairs" in error
    assert not (tmp_path / "parts").exists()
