"""A picture's score and verdict do not depend on its company; what is saved comes back, or is refused in one line."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import expit
from torch.nn.functional import normalize

from aaclip.data import DataError
from aaclip.detector.calibration import Threshold
from aaclip.detector.detector import Detector
from aaclip.detector.files import WEIGHTS, save_threshold
from clip_common.runs.opening import MARKER


@pytest.fixture
def files(parts) -> list[Path]:
    return sorted((parts / "mug" / "test").rglob("*.png"))


def scores(found) -> list[float]:
    return [one.score for one in found]


def with_middle_threshold(detector: Detector, files: list[Path]) -> Detector:
    """So that some are on either side."""
    detector.threshold = Threshold(float(np.median(scores(detector.predict(files, name="mug")))), method="given")
    return detector


def test_alone_in_a_batch_and_in_another_order(detector, files):
    with_middle_threshold(detector, files)
    alone = [detector.predict(file, name="mug") for file in files]
    assert {one.verdict for one in alone} == {"normal", "anomalous"}
    assert len({round(score, 4) for score in scores(alone)}) > 4  # they could be told apart
    for batch_size in (2, 3, len(files)):
        together = detector.predict(files, name="mug", batch_size=batch_size)
        assert scores(together) == pytest.approx(scores(alone), abs=1e-6)
        for one, other in zip(together, alone, strict=True):
            np.testing.assert_allclose(one.heatmap_HW, other.heatmap_HW, atol=1e-5)
    backwards = detector.predict(files[::-1], name="mug")[::-1]
    assert scores(backwards) == pytest.approx(scores(alone), abs=1e-6)
    assert [one.verdict for one in backwards] == [one.verdict for one in alone]


PROCESS = """
import sys
from aaclip import Detector
for found in Detector.from_pretrained(sys.argv[1]).predict(sys.argv[2:], name="mug"):
    print(repr(found.score), found.verdict)
"""


@pytest.mark.slow  # importing torch and open_clip anew
def test_in_another_process(detector, saved, files):
    with_middle_threshold(detector, files).save_pretrained(saved)
    here = detector.predict(files, name="mug")
    command = [sys.executable, "-c", PROCESS, str(saved), *map(str, reversed(files))]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[::-1]
    assert [float(line.split()[0]) for line in lines] == pytest.approx(scores(here), abs=1e-6)
    assert [line.split()[1] for line in lines] == [one.verdict for one in here]


def test_the_score_and_the_heatmap_are_what_they_say(detector, files):
    """Score: sigmoid of 20·cls + 0.3·top + 0.1; heatmap: sigmoid of the map less the border, at the picture's size."""
    picture = Image.open(files[0]).convert("RGB")
    found = detector.predict(picture, name="mug")
    size = (detector.size, detector.size)
    image_13SS = detector.preprocess(picture.resize(size, Image.Resampling.BICUBIC))[None]
    plain = detector.scores(image_13SS, detector.class_embedding("mug")[None])
    logit = 20 * plain.classification_B.item() + 0.3 * plain.top_B.item() + 0.1
    assert found.score == pytest.approx(expit(logit), abs=1e-3)
    assert found.heatmap_HW.dtype == np.float32
    assert found.heatmap_HW.shape == (48, 48)
    np.testing.assert_array_equal(found.mask_HW, found.heatmap_HW > 0.5)

    detector.border = float(plain.maps_BSS.median())
    halved = detector.predict(picture, name="mug").mask_HW
    assert 0.3 < halved.mean() < 0.7
    detector.border = 1e3
    nothing = detector.predict(picture, name="mug")
    assert not nothing.mask_HW.any()
    assert nothing.boxes == []
    assert nothing.score == pytest.approx(found.score)  # the border is of masks alone


def test_the_score_sees_a_small_defect_before_the_blur(detector):
    images_B3SS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    text_BD2 = detector.class_embedding("mug").expand(2, -1, -1)
    scores = detector.scores(images_B3SS, text_BD2)
    with torch.inference_mode():
        patches = torch.stack(detector.model.features(images_B3SS).levels).mean(dim=0)
    logits_BL2 = 100 * patches @ text_BD2
    hottest = (logits_BL2[..., 1] - logits_BL2[..., 0]).amax(dim=1)  # 1 % of 16 patches: one at least
    torch.testing.assert_close(scores.top_B, hottest, atol=1e-4, rtol=1e-4)
    assert (scores.maps_BSS.amax(dim=(1, 2)) < scores.top_B - 0.1).all()


def test_a_score_at_the_threshold_is_anomalous(detector, files):
    assert detector.predict(files[0], name="mug").verdict is None
    score = detector.predict(files[0], name="mug").score
    detector.threshold = Threshold(score, method="given")
    assert detector.predict(files[0], name="mug").verdict == "anomalous"
    detector.threshold = Threshold(float(np.nextafter(score, 2)), method="given")
    assert detector.predict(files[0], name="mug").verdict == "normal"


def turned(folder: Path) -> Path:
    picture = Image.effect_noise((40, 24), 80).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / "turned.png", exif=exif)
    return folder / "turned.png"


def wide(folder: Path) -> Path:
    Image.fromarray(np.linspace(0, 65535, 40 * 24).reshape(24, 40).astype(np.uint16)).save(folder / "wide.png")
    return folder / "wide.png"


@pytest.mark.parametrize("make", [turned, wide])
def test_an_opened_picture_is_looked_at_as_its_file_is(detector, tmp_path, make):
    file = make(tmp_path)
    with Image.open(file) as opened:
        of_picture, of_file = detector.predict(opened, name="mug"), detector.predict(file, name="mug")
    assert of_picture.score == pytest.approx(of_file.score, abs=1e-6)
    np.testing.assert_allclose(of_picture.heatmap_HW, of_file.heatmap_HW, atol=1e-6)


def test_none_one_and_several_pictures(detector, files):
    assert detector.predict([], name="mug") == []
    assert len(detector.predict(files[:1], name="mug")) == 1
    assert len(detector.predict((file for file in files), name="mug")) == len(files)


def test_a_file_that_is_no_picture_is_named(detector, tmp_path):
    (tmp_path / "no.png").write_text("no")
    with pytest.raises(DataError, match=r"no\.png: not a readable image"):
        detector.predict(tmp_path / "no.png", name="mug")


def test_any_noun_and_what_it_is_called(detector):
    one, other = detector.class_embedding("metal bolt"), detector.class_embedding("Schlüssel, groß {0}")
    assert one.shape == other.shape == (24, 2)
    assert not torch.allclose(one, other)
    torch.testing.assert_close(one.norm(dim=0), torch.ones(2))
    assert torch.equal(detector.class_embedding("metal_bolt"), one)  # as folders write it


@pytest.mark.parametrize("name", ["", "  "])
def test_no_noun_is_refused(detector, name):
    with pytest.raises(ValueError, match="name of a thing is empty"):
        detector.class_embedding(name)


def test_own_states_and_templates_are_used_and_not_kept(detector):
    usual = detector.class_embedding("mug")
    assert not torch.allclose(detector.class_embedding("mug", states=(["fine {}"], ["rusty {}"])), usual)
    assert not torch.allclose(detector.class_embedding("mug", templates=["an x-ray of a {}."]), usual)
    assert torch.equal(detector.class_embedding("mug"), usual)


def test_stored_embeddings_are_taken_and_the_text_tower_is_not_asked(saved, files, monkeypatch):
    again = Detector.from_pretrained(saved)
    monkeypatch.setattr(again.model, "encode_text", lambda texts: pytest.fail("the text tower was asked"))
    assert 0 < again.predict(files[0], name="mug").score < 1


def test_what_was_saved_comes_back(detector, saved, files):
    detector.threshold, detector.border = Threshold(0.4, method="conformal", target_fpr=0.1, images=30), 0.25
    detector.save_pretrained(saved)
    again = Detector.from_pretrained(saved)
    assert (again.threshold, again.border, again.score) == (detector.threshold, 0.25, detector.score)
    assert again.config == detector.config
    assert again.predict(files, name="mug")[3].score == pytest.approx(detector.predict(files, name="mug")[3].score)


def test_a_new_threshold_leaves_the_weights(saved):
    before = (saved / WEIGHTS).read_bytes()
    save_threshold(saved, Threshold(0.7, method="given"))
    assert (saved / WEIGHTS).read_bytes() == before
    assert Detector.from_pretrained(saved).threshold == Threshold(0.7, method="given")


def truncate_weights(saved: Path) -> None:
    (saved / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes()[:500])


def truncate_description(saved: Path) -> None:
    (saved / MARKER).write_text((saved / MARKER).read_text()[:60])


def mix_detectors(saved: Path) -> None:
    told = json.loads((saved / MARKER).read_text())
    (saved / MARKER).write_text(json.dumps(told | {"classes": ["mug", "bottle"]}))


def other_adapters(saved: Path) -> None:
    text = (saved / MARKER).read_text()
    assert '"kind": "bottleneck"' in text
    (saved / MARKER).write_text(text.replace('"kind": "bottleneck"', '"kind": "mlp"'))


def no_weights(saved: Path) -> None:
    (saved / WEIGHTS).unlink()


def no_description(saved: Path) -> None:
    (saved / MARKER).unlink()


def test_a_detector_of_an_earlier_format_is_refused_in_one_line(saved):
    content = json.loads((saved / MARKER).read_text())
    (saved / MARKER).unlink()
    (saved / "detector.json").write_text(json.dumps(content | {"format": 2}))
    (saved / "config.yaml").write_text("name: null\n")
    with pytest.raises(ValueError, match=r"was saved by an older version of aaclip.*train it again") as error:
        Detector.from_pretrained(saved)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncate_weights, rf"{WEIGHTS} is damaged"),
        (truncate_description, rf"{MARKER} is damaged"),
        (mix_detectors, rf"{WEIGHTS} belongs to another detector than {MARKER}"),
        (other_adapters, "does not fit the adapters of this configuration"),
        (no_weights, WEIGHTS),
        (no_description, "is neither a run folder nor a saved model of aaclip"),
    ],
)
def test_a_damaged_detector_is_one_line(saved, damage, said):
    damage(saved)
    with pytest.raises((ValueError, FileNotFoundError), match=said) as error:
        Detector.from_pretrained(saved)
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_backbone(saved, clip_folder, other_clip):
    """The folder that the configuration names holds other weights than those that were trained on."""
    text = (saved / MARKER).read_text()
    (saved / MARKER).write_text(text.replace(str(clip_folder), str(other_clip)))
    with pytest.raises(ValueError, match=r"is of another model: it was made with an image tower .*: load the one"):
        Detector.from_pretrained(saved)


def test_a_backbone_that_is_gone(saved, clip_folder, tmp_path):
    (saved / MARKER).write_text((saved / MARKER).read_text().replace(str(clip_folder), str(tmp_path / "gone")))
    with pytest.raises(ValueError, match="gone") as error:
        Detector.from_pretrained(saved)
    assert "\n" not in str(error.value)


def test_a_run_and_the_model_in_it_are_the_same_and_a_run_without_one_says_so(trained, files, tmp_path):
    run = shutil.copytree(trained(), tmp_path / "run")
    one, other = Detector.from_pretrained(run), Detector.from_pretrained(run / "model")
    assert one.predict(files[0], name="mug").score == pytest.approx(other.predict(files[0], name="mug").score)
    shutil.rmtree(run / "model")
    with pytest.raises(ValueError, match="is a run without a model yet: finish it with `aaclip train --resume"):
        Detector.from_pretrained(run)


def test_plain_clip_has_the_same_prompts_and_no_adapters(clip_folder, detector, files):
    plain = Detector.plain(f"local-dir:{clip_folder}", config=detector.config)
    assert plain.prompts == detector.prompts
    found = plain.predict(files, name="mug")
    assert all(0 <= one.score <= 1 and one.verdict is None for one in found)
    image_13SS = torch.randn(1, 3, 32, 32)
    image_1D = normalize(plain.model.image_tower(image_13SS).pooled, dim=-1)
    text_D2 = plain.class_embedding("mug")
    expected = (image_1D @ text_D2)[0].diff().item()  # cosine to abnormal minus cosine to normal
    assert plain.scores(image_13SS, text_D2[None]).classification_B.item() == pytest.approx(expected, abs=1e-6)
    changed = Detector.plain(replace(detector.config.backbone, image_size=48), config=detector.config)
    assert (changed.size, plain.size) == (48, 32)


def test_the_text_tower_waits_for_a_new_name(saved, files, monkeypatch):
    detector = Detector.from_pretrained(saved)
    assert all(weight.is_meta for weight in detector.model.text_tower.parameters())
    detector.predict(files[0], name="mug")  # its embedding is stored
    assert all(weight.is_meta for weight in detector.model.text_tower.parameters())
    again = Detector.from_pretrained(detector.save_pretrained(saved))  # saved without having been loaded
    new = again.predict(files[0], name="a lamp")
    assert not any(weight.is_meta for weight in again.model.text_tower.parameters())
    assert again.model.text_tower.trunk.text.attn_mask is not None
    assert again.model.bundle.image_tower is again.model.image_tower  # no second copy of it stays
    assert new.score != again.predict(files[0], name="mug").score


def test_a_new_name_is_embedded_as_before_saving(detector, saved):
    np.testing.assert_allclose(
        Detector.from_pretrained(saved).class_embedding("a lamp").numpy(),
        detector.class_embedding("a lamp").numpy(),
        atol=1e-6,
    )


def test_a_folder_and_a_threshold_of_ones_own(detector, files):
    folder = files[0].parent
    found = detector.predict(folder, name="mug", threshold=0.0)
    assert len(found) == len(list(folder.glob("*.png")))
    assert {one.verdict for one in found} == {"anomalous"}
    assert detector.threshold is None
