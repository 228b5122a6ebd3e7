"""A detector on another device: weights, inputs and everything remembered meet there, and every command asks for one.

Without a GPU, fake tensors take its place: they have a device and shapes but no values, and refuse to mix devices.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from aaclip.detector.detector import Detector
from aaclip.detector.memory import Level, Memory
from clip_common.devices import pick_device

GPU = torch.device("cuda", 0)
ON = "cross_attention.enabled=true"


def fake_gpu() -> FakeTensorMode:
    return FakeTensorMode(allow_non_fake_inputs=True)


def remember(detector: Detector) -> None:
    """Remember random patches, on the CPU."""
    patches, width = (detector.size // 8) ** 2, 24
    levels = [Level(torch.randn(patches, width), torch.tensor(0.5)) for _ in detector.model.levels]
    detector.memories["mug"] = Memory(levels, images=1)


@pytest.mark.parametrize("kind", ["saved", "cross-attention", "plain"])
def test_inputs_and_what_is_remembered_are_moved_to_the_device(request, trained, clip_folder, kind):
    if kind == "plain":
        detector = Detector.plain(f"local-dir:{clip_folder}", device="cpu")
        detector.classes["mug"] = detector.class_embedding("mug").clone()  # fake tensors know no inference mode
    else:
        source = trained(ON) if kind == "cross-attention" else request.getfixturevalue("saved")
        detector = Detector.from_pretrained(source, device="cpu")
    remember(detector)
    with fake_gpu():
        text_D2, context = detector.class_embedding("mug"), detector.text_contexts(["mug"])
        assert detector.to("cuda:0") is detector
        assert detector.device == GPU
        assert detector.class_embedding("mug").device == GPU
        assert all(tensor.device == GPU for level in detector.memory_of("mug").levels for tensor in level)
        assert {weight.device.type for weight in detector.model.state_dict().values()} <= {"cuda", "meta"}
        images = torch.randn(2, 3, detector.size, detector.size)
        for own in (None, context):  # of the detector, and one that a caller kept from before
            given = detector.text_contexts(["mug"]) if own is None else own
            scores = detector.scores(images, text_D2.expand(2, -1, -1), memory=detector.memory_of("mug"), context=given)
            assert {one.device for one in scores} == {GPU}
            assert scores.maps_BSS.shape == (2, detector.size, detector.size)


def test_a_text_tower_that_was_left_out_stays_so_and_inputs_that_stay_behind_are_seen(saved):
    detector = Detector.from_pretrained(saved, device="cpu")
    with fake_gpu():
        detector.to(GPU)
        assert all(weight.is_meta for weight in detector.model.text_tower.parameters())
        assert all(weight.device == GPU for weight in detector.model.image_tower.parameters())
        with pytest.raises(RuntimeError, match=r"cuda:0.*cpu|cpu.*cuda:0"):
            detector.model.features(torch.randn(1, 3, 32, 32))


@pytest.fixture
def asked(monkeypatch):
    """How often a detector asked for its device."""
    times = []

    def pick(devices="auto"):
        times.append(devices)
        return pick_device(devices)

    monkeypatch.setattr("aaclip.detector.detector.pick_device", pick)
    return times


@pytest.mark.parametrize(
    "command",
    [
        ("test", "{run}", "{set}"),
        ("test", "local-dir:{clip}", "{set}", "--out", "{out}"),
        ("calibrate", "{run}", "{photos}", "--name", "mug", "--target-fpr", "0.5"),
        ("predict", "{run}", "{photos}", "--name", "mug", "--out", "{out}"),
        ("remember", "{run}", "{photos}", "--name", "mug"),
        ("fit-score", "{run}", "{set}"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_every_command_uses_an_accelerator_if_there_is_one(
    aaclip, asked, saved, parts, photos, clip_folder, tmp_path, command, monkeypatch
):
    monkeypatch.setattr(Detector, "to", lambda detector, device: moved.append(torch.device(device)) or detector)
    moved: list[torch.device] = []
    places = {"run": saved, "set": parts, "photos": photos, "clip": clip_folder, "out": tmp_path / "out"}
    code, _, error = aaclip(*(word.format(**places) for word in command))
    assert code == 0 or "is higher for the 12 anomalous images" in error  # a random CLIP need not find a defect
    assert asked
    assert moved == [pick_device()] * len(moved)
