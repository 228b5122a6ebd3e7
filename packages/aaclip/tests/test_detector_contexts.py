"""A detector with cross-attention: one context for each class, stored; alone, in a batch, saved, traced, refused."""

import json
import shutil

import numpy as np
import pytest
import torch

from aaclip.data import read_dataset
from aaclip.detector.detector import Detector
from aaclip.detector.files import CONTEXTS
from aaclip.detector.scorer import Scores
from aaclip.models import PlainCLIP
from aaclip.models.backbone import make_model
from aaclip.scoring.evaluation import evaluate
from clip_common.runs.opening import MARKER
from clip_common.tensors import read_metadata, read_tensors, write_tensors

ON = "cross_attention.enabled=true"


@pytest.fixture
def run(trained):
    return trained(ON, "cross_attention.weight=0.5")


@pytest.fixture
def folder(run, tmp_path):
    """The detector's folder, free to be changed."""
    return shutil.copytree(run / "model", tmp_path / "größer")


@pytest.fixture
def files(parts):
    return sorted((parts / "mug" / "test").rglob("*.png"))


def test_alone_in_a_batch_and_beside_another_class(run, files, parts):
    detector = Detector.from_pretrained(run)
    alone = [detector.predict(file, name="mug") for file in files]
    together = detector.predict(files, name="mug", batch_size=len(files))
    assert [one.score for one in together] == pytest.approx([one.score for one in alone], abs=1e-6)
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.heatmap_HW, other.heatmap_HW, atol=1e-5)
    images_4B = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    names = ["star", "mug", "mug", "bell"]
    text_BD2 = torch.stack([detector.class_embedding(name) for name in names])
    mixed = detector.scores(images_4B, text_BD2, context=detector.text_contexts(names))
    for row, name in enumerate(names):
        context = detector.text_contexts([name])
        one = detector.scores(images_4B[row : row + 1], text_BD2[row : row + 1], context=context)
        torch.testing.assert_close(one.maps_BSS[0], mixed.maps_BSS[row], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(one.scores_B[0], mixed.scores_B[row], atol=1e-6, rtol=0)


def test_an_image_s_map_depends_on_its_class(run):
    detector = Detector.from_pretrained(run)
    image, text = torch.randn(1, 3, 32, 32), detector.class_embedding("mug")[None]
    maps = [detector.scores(image, text, context=detector.text_contexts([name])).maps_BSS for name in ("mug", "star")]
    assert not torch.allclose(*maps, atol=1e-3)


def test_known_classes_do_not_need_the_text_tower_and_new_names_do(run, files):
    detector = Detector.from_pretrained(run)
    detector.predict(files[0], name="mug")
    assert all(weight.is_meta for weight in detector.model.text_tower.parameters())
    detector.predict(files[0], name="cog wheel")
    assert not any(weight.is_meta for weight in detector.model.text_tower.parameters())


def test_a_new_name_attends_to_the_mean_context_and_comes_back(run, files, tmp_path):
    detector = Detector.from_pretrained(run)
    found = detector.predict(files[:2], name="cog wheel")
    contexts = detector.contexts
    mean = (contexts.image["mug"] + contexts.image["star"]) / 2
    torch.testing.assert_close(contexts.image_of("cog wheel"), mean)
    again = Detector.from_pretrained(detector.save_pretrained(tmp_path / "saved"))
    assert again.contexts.text.keys() == {"mug", "star", "cog wheel"}
    assert [one.score for one in again.predict(files[:2], name="cog wheel")] == [one.score for one in found]
    assert all(weight.is_meta for weight in again.model.text_tower.parameters())


def test_what_is_saved_is_what_was_trained(run, tmp_path):
    detector = Detector.from_pretrained(run)
    detector.save_pretrained(tmp_path / "again")
    one, other = (read_tensors(folder / CONTEXTS) for folder in (run / "model", tmp_path / "again"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], value) for name, value in other.items())


def test_a_training_class_embedded_again_is_the_stored_embedding(run):
    """Its prompts attend to the stored context, not to that of a batch."""
    detector = Detector.from_pretrained(run)
    stored = detector.classes.pop("mug")
    torch.testing.assert_close(detector.class_embedding("mug"), stored, atol=1e-6, rtol=1e-5)


def test_tiles_memory_and_a_whole_test(run, files, parts):
    detector = Detector.from_pretrained(run)
    tiled = detector.predict(files[0], name="mug", tile=32)
    assert tiled.heatmap_HW.shape == (48, 48)
    before = detector.predict(files[0], name="mug").score
    records = read_dataset(parts).of(split="test")
    plain = evaluate(detector, records, samples=10, batch_size=3)
    assert plain.images == {"mug": 8, "star": 8}
    detector.remember(sorted((parts / "mug" / "train").rglob("*.png")), name="mug")
    assert detector.predict(files[0], name="mug").score != before


def test_torch_export_traces_the_scorer_with_a_context(run):
    detector = Detector.from_pretrained(run)
    text_BD2, context = detector.class_embedding("mug").expand(2, -1, -1), detector.text_contexts(["mug"])
    images, others = torch.randn(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exported = torch.export.export(detector.scorer, (images, text_BD2, [], context)).module()
        expected = detector.scorer(others, text_BD2, [], context)
        found = Scores(*exported(others, text_BD2, [], context))
    for own, values in zip(found, expected, strict=True):
        torch.testing.assert_close(own, values, atol=1e-5, rtol=1e-5)


def without(folder, key, kind):
    """Take a name's context out of the file."""
    names = json.loads(read_metadata(folder / CONTEXTS)["contexts"])
    state = read_tensors(folder / CONTEXTS)
    kept = [name for name in names[kind] if key not in (name, "*")]
    rows = {f"{kind}.{row}": state[f"{kind}.{names[kind].index(name)}"] for row, name in enumerate(kept)}
    state = {name: value for name, value in state.items() if not name.startswith(kind)} | rows
    write_tensors(folder / CONTEXTS, state, metadata={"contexts": json.dumps(names | {kind: kept})})


def change_config(folder, **changes):
    content = json.loads((folder / MARKER).read_text())
    content["config"]["cross_attention"] |= changes
    (folder / MARKER).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda folder: (folder / CONTEXTS).unlink(), r"größer holds no context of any class"),
        (lambda folder: without(folder, "*", "image"), r"no image context of any class"),
        (lambda folder: without(folder, "mug", "text"), r"no context of 'mug'"),
        (lambda folder: (folder / CONTEXTS).write_bytes(b"?"), r"damaged"),
        (lambda folder: change_config(folder, enabled=False), r"was trained with cross-attention, which this"),
        (lambda folder: change_config(folder, scale="gate"), r"does not fit the adapters"),
    ],
)
def test_contexts_that_are_missing_or_damaged_are_one_line(folder, damage, match):
    damage(folder)
    with pytest.raises(ValueError, match=match) as error:
        Detector.from_pretrained(folder)
    assert "\n" not in str(error.value)


def test_a_base_detector_under_cross_attention_is_one_line_unless_it_changes_nothing(trained, run, tmp_path):
    base = shutil.copytree(trained() / "model", tmp_path / "base")
    shutil.copy(run / "model" / CONTEXTS, base)
    change_config(base, enabled=True)
    with pytest.raises(ValueError, match=r"was trained without cross-attention.*start=") as error:
        Detector.from_pretrained(base)
    assert "\n" not in str(error.value)
    for still in ({"weight": 0.0}, {"scale": "gate"}):
        change_config(base, **still)
        detector, plain = Detector.from_pretrained(base), Detector.from_pretrained(trained())
        image, text = torch.randn(1, 3, 32, 32), plain.class_embedding("mug")[None]
        found = detector.scores(image, text, context=detector.text_contexts(["mug"]))
        assert torch.equal(found.maps_BSS, plain.scores(image, text).maps_BSS)
        change_config(base, weight=0.1, scale="fixed")


def test_a_detector_without_any_context_is_one_line(bundle, config):
    config.cross_attention.enabled = True
    with pytest.raises(ValueError, match=r"needs the image context of a class or more, got none: train it") as error:
        Detector(make_model(bundle, config), config)
    assert "\n" not in str(error.value)
    Detector(PlainCLIP(bundle), config)  # plain CLIP attends to nothing, whatever the configuration is of
    config.cross_attention.at_test = False
    assert Detector(make_model(bundle, config), config).contexts is None
