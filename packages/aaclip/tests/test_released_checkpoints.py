"""Checkpoints in the released format, from a few lines that save as the released code does."""

import shlex
import shutil
from pathlib import Path

import pytest
import torch
from helpers.commands import refused, succeeded
from helpers.released import save_image, save_text
from torch import nn

from aaclip.detector.detector import Detector
from aaclip.models.prompts import embed_classes, load_prompts
from aaclip.released.checkpoints import find_files, make_detector, read_released, save_released
from aaclip.training.experiment import prepare, resolve


@pytest.fixture
def small(clip_folder) -> list[str]:
    """Overrides for the small CLIP; what the files say is not among them."""
    kept = [f"backbone.{name}=null" for name in ("pretrained", "image_size", "activation")]
    return [f"backbone.name=local-dir:{clip_folder}", *kept, "levels=[2, 4]", "surgery.blocks=6"]


@pytest.fixture
def released(tmp_path):
    """A folder with text_adapter.pth and image_adapter.pth of widths 16 -> 24 and 32 -> 24."""
    torch.manual_seed(0)
    folder = tmp_path / "ckpt, groß"
    folder.mkdir()
    return folder, save_text(folder), save_image(folder)


def loaded(source: Path, overrides: list[str], **more) -> Detector:
    return make_detector(read_released(source, overrides=overrides, **more))


def edit(file: Path, key: str, change) -> None:
    """Change the weights of a file in place."""
    content = torch.load(file, weights_only=True)
    change(content[key])
    torch.save(content, file)


def test_every_weight_finds_its_place(small, released):
    folder, text, image = released
    model = loaded(folder, small).model
    for number in range(3):
        assert torch.equal(model.text_adapter.layers[number][0].weight, text[number].fc[0].weight)
    assert torch.equal(model.text_adapter.final[0].weight, text[3].fc[0].weight)
    assert isinstance(model.text_adapter.final[1], nn.LeakyReLU)
    for number in range(2):
        assert torch.equal(model.image_adapter.layers[number][0].weight, image["layer_adapters"][number].fc[0].weight)
        assert torch.equal(model.image_adapter.segmentation[number][0].weight, image["seg_proj"][number].fc.weight)
    assert torch.equal(model.image_adapter.detection[0].weight, image["det_proj"].fc.weight)


def test_the_keys_of_both_files_are_the_released_ones(released):
    """So that this file's own classes are not what is tested."""
    folder, *_ = released
    text, image = (torch.load(folder / f"{key}.pth")[key] for key in ("text_adapter", "image_adapter"))
    assert set(text) == {"0.fc.0.weight", "1.fc.0.weight", "2.fc.0.weight", "3.fc.0.weight"}
    assert set(image) == {
        *("layer_adapters.0.fc.0.weight", "layer_adapters.1.fc.0.weight", "det_proj.fc.weight"),
        *("seg_proj.0.fc.weight", "seg_proj.1.fc.weight"),
    }


def test_what_was_imported_is_saved_as_safetensors_and_comes_back(small, released, tmp_path):
    detector = loaded(released[0], small)
    text = detector.class_embedding("metal nut")
    detector.save_pretrained(tmp_path / "saved")
    again = Detector.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.class_embedding("metal nut"), text)
    images = torch.randn(2, 3, 32, 32)
    pair = text.expand(2, -1, -1)
    torch.testing.assert_close(again.scores(images, pair).maps_BSS, detector.scores(images, pair).maps_BSS)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("text_blocks", "image_blocks", "levels"), [(1, 3, 2), (2, 2, 3), (0, 1, 4), (4, 8, 1)])
def test_the_numbers_and_the_heads_are_told_from_the_keys(small, tmp_path, text_blocks, image_blocks, levels, relu):
    torch.manual_seed(0)
    save_text(tmp_path, blocks=text_blocks)
    image = save_image(tmp_path, blocks=image_blocks, levels=levels, relu=relu)
    detector = loaded(tmp_path, [*small, f"levels={[2, 4, 6, 8][:levels]}"])
    adapters, heads = detector.config.adapters, detector.config.heads
    assert (adapters.text_blocks, adapters.image_blocks, adapters.kind) == (text_blocks, image_blocks, "linear")
    assert (heads.activation, heads.detection) == ("leaky" if relu else "none", "mean")
    tokens_BLF = torch.randn(2, 5, 32)
    own = image["seg_proj"][0].fc(tokens_BLF)
    assert torch.equal(detector.model.image_adapter.segmentation[0](tokens_BLF), own)  # the slope of .01 too
    assert torch.equal(detector.model.image_adapter.detection(tokens_BLF), image["det_proj"].fc(tokens_BLF))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("adapters.text_blocks=2", "was trained with adapters.text_blocks=3, not 2: leave adapters.text_blocks out"),
        ("adapters.text_adapt_until=2", "adapters.text_blocks=3, not 2"),
        ("adapters.image_blocks=6", "adapters.image_blocks=2, not 6"),
        ("adapters.kind=bottleneck", "adapters.kind=linear, not bottleneck"),
        ("adapters.final_init=clip", "adapters.final_init=xavier, not clip"),
        ("heads.activation=relu", "heads.activation=none, not relu"),
        ("heads.detection=class_token", "heads.detection=mean, not class_token"),
        ("heads.detection=attention", "heads.detection=mean, not attention"),
        ("heads.detection=levels", "heads.detection=mean, not levels"),
        ("levels=[2, 4, 6]", "has heads for 2 levels, but levels=[2, 4, 6] names 3: give the 2 blocks"),
    ],
)
def test_an_override_that_contradicts_the_files_is_refused_with_what_fits(small, released, override, said):
    with pytest.raises(ValueError) as error:
        read_released(released[0], overrides=[*small, override])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_an_override_that_says_the_same_is_none(small, released):
    given = ["adapters.text_blocks=3", "adapters.kind=linear", "heads.activation=none"]
    assert read_released(released[0], overrides=[*small, *given]).config.adapters.text_blocks == 3


@pytest.mark.parametrize(
    ("key", "lost", "said"),
    [
        ("text_adapter", "1.fc.0.weight", "lacks text adapter 1, though it has text adapter 3"),
        ("image_adapter", "layer_adapters.0.fc.0.weight", "lacks image adapter 0"),
        ("image_adapter", "seg_proj.0.fc.weight", "lacks head 0"),
        ("image_adapter", "seg_proj.1.fc.weight", "has heads for 1 levels, but levels=[2, 4] names 2"),
        (
            "image_adapter",
            "det_proj.fc.weight",
            "has no head det_proj: get the file again, or set heads",
        ),
        # the final projection: what is left reads as fewer adapters, of another size
        ("text_adapter", "3.fc.0.weight", "does not fit the adapters of this configuration"),
    ],
)
def test_a_file_that_lacks_weights_is_refused(small, released, aaclip, tmp_path, key, lost, said):
    folder, *_ = released
    edit(folder / f"{key}.pth", key, lambda weights: weights.pop(lost))
    refused(aaclip("import", folder, tmp_path / "out", *small), said)
    assert not (tmp_path / "out").exists()


def test_both_stages_by_the_command(aaclip, small, released, tmp_path):
    folder, *_ = released
    printed = succeeded(aaclip("import", folder, tmp_path / "out", *small))
    for name in ("text_adapter.pth", "image_adapter.pth"):
        assert f"read   {folder / name}" in printed
    assert "they say adapters.text_blocks=3 adapters.final_init=xavier adapters.kind=linear" in printed
    assert f"detector in {tmp_path / 'out'}" in printed
    assert f"aaclip fit-score {tmp_path / 'out'} SET" in printed
    assert Detector.from_pretrained(tmp_path / "out").config.adapters.text_blocks == 3


@pytest.fixture
def epochs(released):
    """The folder of a released training with several epochs; epoch -> the weight of its first head."""
    folder, _, image = released
    weights = {None: image["seg_proj"][0].fc.weight}
    for epoch in (2, 15):
        weights[epoch] = save_image(folder, name=f"image_adapter_{epoch}.pth")["seg_proj"][0].fc.weight
    return folder, weights


@pytest.mark.parametrize("epoch", [None, 2, 15])
def test_an_epoch_or_a_file_can_be_named(aaclip, small, epochs, tmp_path, epoch):
    folder, weights = epochs
    by_epoch = loaded(folder, small, epoch=epoch)
    assert torch.equal(by_epoch.model.image_adapter.segmentation[0][0].weight, weights[epoch])
    file = folder / ("image_adapter.pth" if epoch is None else f"image_adapter_{epoch}.pth")
    printed = succeeded(aaclip("import", file, tmp_path / "out", *small))
    assert f"read   {folder / 'text_adapter.pth'}" in printed
    assert f"read   {file}" in printed
    found = Detector.from_pretrained(tmp_path / "out").model.state_dict()
    expected = by_epoch.model.state_dict()
    for name in found:
        if name.startswith(("text_adapter", "image_adapter")):
            assert torch.equal(found[name], expected[name])


def test_an_epoch_that_is_not_there_is_one_line(aaclip, small, epochs, tmp_path):
    folder, _ = epochs
    refused(aaclip("import", folder, tmp_path / "out", "--epoch=3", *small), "image_adapter_3.pth", "epochs are 2, 15")
    refused(aaclip("import", folder / "image_adapter_2.pth", tmp_path / "out", "--epoch=2"), "leave out the epoch 2")
    (folder / "image_adapter.pth").unlink()
    refused(aaclip("import", folder, tmp_path / "out", *small), "only epochs 2, 15: name one, --epoch 15")
    shutil.copy(folder / "text_adapter.pth", folder / "final.pth")
    refused(aaclip("import", folder / "final.pth", tmp_path / "out"), "final.pth: expected text_adapter.pth", "rename")
    refused(aaclip("import", tmp_path / "gone", tmp_path / "out"), "gone: expected a folder with text_adapter.pth")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:image score not fitted")  # a random CLIP need not find a defect
def test_text_alone_is_that_stage_and_no_detector(aaclip, small, released, parts, photos, tmp_path):
    folder, text, _ = released
    out, whole = tmp_path / "text", loaded(folder, small)
    printed = succeeded(aaclip("import", folder / "text_adapter.pth", out, *small))
    assert f"stages.text.epochs=0 start={out} data.root=SET" in printed
    said = "holds the text adapters alone: train the image stage against them with aaclip train"
    refused(aaclip("test", out, parts), said)
    refused(aaclip("predict", out, photos, "--name=mug", "--out", tmp_path / "p"), said)
    refused(aaclip("fit-score", out, parts), said)
    with pytest.raises(ValueError, match=said):
        make_detector(read_released(folder / "text_adapter.pth", overrides=small))
    (folder / "image_adapter.pth").unlink()
    assert find_files(folder) == (folder / "text_adapter.pth", None)

    command = shlex.split(printed.partition("aaclip train ")[2].replace("data.root=SET", f"data.root={parts}"))
    short = ["stages.image.epochs=1", "stages.image.batch_size=8", "name=two", f"runs={tmp_path / 'runs'}"]
    succeeded(aaclip("train", *command, *small, *short, "data.mode=full_shot", "data.labelled=all"))
    run = Detector.from_pretrained(tmp_path / "runs" / "aaclip" / "two")
    assert torch.equal(run.model.text_adapter.layers[2][0].weight, text[2].fc[0].weight)
    expected = whole.class_embedding("mug")
    torch.testing.assert_close(run.classes["mug"], expected)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["adapters.text_blocks=2"],
            "trained with adapters.text_blocks=3, which this configuration changes: set that too",
        ),
        (["adapters.text_weight=0.2"], "was trained with adapters.text_weight=0.1, which"),
        (["adapters.kind=mlp"], "was trained with adapters.kind=linear"),
        (["backbone.activation=quick_gelu"], None),
    ],
)
def test_a_text_stage_of_other_settings_is_refused(small, released, parts, tmp_path, given, said):
    start = save_released(read_released(released[0] / "text_adapter.pth", overrides=small), tmp_path / "text")
    told = ["adapters.text_blocks=3", "stages.text.epochs=0", f"start={start}", f"data.root={parts}"]
    settings = resolve(config="official", overrides=[*small, *told, "data.mode=full_shot", *given])
    if said is None:  # null as it was imported: as the weights say
        prepare(settings, stage="both")
        return
    with pytest.raises(ValueError, match=said):
        prepare(settings, stage="both")


def test_a_text_stage_of_another_clip_or_no_folder_is_refused(small, released, parts, other_clip, tmp_path):
    start = save_released(read_released(released[0] / "text_adapter.pth", overrides=small), tmp_path / "text")
    told = ["adapters.text_blocks=3", "stages.text.epochs=0", f"data.root={parts}", "data.mode=full_shot"]
    for more, said in (
        ([f"start={start}", f"backbone.name=local-dir:{other_clip}"], "is of another model"),
        ([f"start={parts}"], "neither a run folder nor a saved model"),
    ):
        with pytest.raises(ValueError, match=said):
            prepare(resolve(config="official", overrides=[*small, *told, *more]), stage="both")


def test_image_alone_uses_plain_clip_s_text(aaclip, small, released, bundle, tmp_path):
    folder, _, image = released
    (folder / "text_adapter.pth").unlink()
    printed = succeeded(aaclip("import", folder, tmp_path / "out", *small))
    assert "no text_adapter.pth: plain CLIP embeds the classes, as after --text_epoch 0" in printed
    found = Detector.from_pretrained(tmp_path / "out")
    assert torch.equal(found.model.image_adapter.layers[1][0].weight, image["layer_adapters"][1].fc[0].weight)

    def encode(texts):
        return bundle.text_tower(bundle.tokenizer(texts))

    expected = embed_classes(encode, ["mug"], load_prompts(found.config.prompts))[0]
    torch.testing.assert_close(found.class_embedding("mug"), expected)


def test_the_documents_bottleneck_is_read_too(small, tmp_path):
    fc = {f"0.fc{n}.{what}": torch.randn(shape) for n, what, shape in
          [(1, "weight", (8, 16)), (1, "bias", (8,)), (2, "weight", (16, 8)), (2, "bias", (16,))]}  # fmt: skip
    fc["1.fc.0.weight"] = torch.randn(24, 16)
    heads = {"seg_proj.0.fc.weight": (24, 32), "seg_proj.0.fc.bias": (24,)}
    heads |= {"det_proj.fc.weight": (24, 32), "det_proj.fc.bias": (24,)}
    torch.save({"text_adapter": fc}, tmp_path / "text_adapter.pth")
    torch.save({"image_adapter": {k: torch.randn(v) for k, v in heads.items()}}, tmp_path / "image_adapter.pth")
    detector = loaded(tmp_path, [*small, "levels=[8]"])
    assert (detector.config.adapters.kind, detector.config.heads.activation) == ("bottleneck", "relu")
    assert torch.equal(detector.model.text_adapter.layers[0][2].bias, fc["0.fc2.bias"])
    assert detector.model.image_adapter.detection[1].negative_slope == 0.2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"image_adapter": {}}, "it has no text_adapter"),
        ({"text_adapter": {}}, "nothing is no weight of AA-CLIP's adapters"),
        ({"text_adapter": {"7.strange.weight": torch.zeros(1)}}, "no weight of AA-CLIP's adapters"),
        ({"text_adapter": {"0.fc.0.weight": torch.zeros(3, 3)}}, "does not fit the adapters of this configuration"),
        ({"text_adapter": {"0.fc1.weight": torch.zeros(8, 16)}}, "without the final projection 1.fc.0.weight"),
    ],
)
def test_other_files_are_one_line(small, tmp_path, content, said):
    torch.save(content, tmp_path / "text_adapter.pth")
    save_image(tmp_path)
    with pytest.raises(ValueError, match=said) as error:
        loaded(tmp_path, small)
    assert "\n" not in str(error.value)
