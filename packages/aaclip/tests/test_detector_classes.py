"""What a detector holds belongs to a class as the user names it, not to the words that prompts use for it."""

import json
import shutil

import pytest
import torch
from helpers.commands import succeeded
from PIL import Image

from aaclip.detector.detector import Detector
from aaclip.detector.files import FORMAT
from aaclip.models.names import normalise_class, read_names
from aaclip.scoring.evaluation import evaluate
from aaclip.scoring.score import read_test_records, remember_training_split
from clip_common.runs.opening import MARKER


def picture(colour: int, size: int = 48) -> Image.Image:
    return Image.linear_gradient("L").resize((size, size)).rotate(colour).convert("RGB")


@pytest.mark.parametrize("name", ["metal_nut", "metal nut", "Metal Nut", " metal  nut", "METAL_NUT"])
def test_one_class_in_every_spelling(name):
    assert normalise_class(name) == "metal nut"


def test_another_class_is_another():
    assert len({normalise_class(name) for name in ("pcb1", "pcb2", "größe", "grosse nut", "螺丝", "01", "1")}) == 7


def test_two_classes_that_prompts_call_a_scan_keep_their_own_memories(detector, tmp_path):
    assert detector.prompts.name_of("Brain") == detector.prompts.name_of("Liver") == "scan"
    detector.remember([picture(0), picture(20)], name="Brain")
    of_brain = [level.patches_ND.clone() for level in detector.memory_of("Brain").levels]
    detector.remember([picture(90)], name="Liver")
    for one in (detector, Detector.from_pretrained(detector.save_pretrained(tmp_path / "saved"))):
        assert {name: memory.images for name, memory in one.memories.items()} == {"brain": 2, "liver": 1}
        for level, patches_ND in zip(one.memory_of("brain").levels, of_brain, strict=True):
            torch.testing.assert_close(level.patches_ND, patches_ND, atol=1e-3, rtol=1e-3)
    assert detector.memory_of("scan") is None


def test_a_memory_by_noun_is_that_of_the_folder_and_the_reverse(detector):
    assert detector.prompts.name_of("metal nut") == "metal nut which has four notched edges"
    detector.remember([picture(0)], name="metal nut")
    assert detector.memory_of("metal_nut") is detector.memory_of("Metal nut") is not None
    detector.remember([picture(0), picture(20)], name="pipe_fryum")
    assert detector.memory_of("pipe fryum").images == 2


def test_the_commands_remember_for_a_class_whose_prompts_have_another_name(aaclip, saved, photos, parts, tmp_path):
    """Its folder is `metal_nut`, and the user writes "metal nut"."""
    shutil.copytree(parts / "mug", tmp_path / "set" / "metal_nut")
    succeeded(aaclip("remember", saved, photos, "--name", "metal nut"))
    detector = Detector.from_pretrained(saved)
    with_memory = evaluate(detector, read_test_records(tmp_path / "set"), samples=5)
    detector.memories.clear()
    without = evaluate(detector, read_test_records(tmp_path / "set"), samples=5)
    assert with_memory.scores["metal_nut"].scores_N.tolist() != without.scores["metal_nut"].scores_N.tolist()


def test_a_test_remembers_each_of_two_classes_of_one_name(detector, parts, tmp_path):
    for name, kind in (("Brain", "mug"), ("Liver", "star")):
        shutil.copytree(parts / kind, tmp_path / "set" / name)
    remember_training_split(detector, tmp_path / "set", images=2)
    brain, liver = (detector.memory_of(name).levels[0].patches_ND for name in ("Brain", "Liver"))
    assert not torch.equal(brain, liver)


def test_with_cross_attention_two_classes_of_one_name_have_their_own_contexts_and_embeddings(parts, trained, tmp_path):
    root = tmp_path / "set"
    for name, kind in (("Brain", "mug"), ("Liver", "star")):
        shutil.copytree(parts / kind, root / name)
    more = ["cross_attention.enabled=true", "cross_attention.weight=0.5", f"data.root={root}"]
    detector = Detector.from_pretrained(trained(*more))
    held = (detector.classes, detector.contexts.image, detector.contexts.text)
    assert all(one.keys() == {"brain", "liver"} for one in held)
    assert not torch.equal(*(detector.contexts.image[name] for name in ("brain", "liver")))
    assert not torch.equal(*(detector.class_embedding(name) for name in ("Brain", "Liver")))


def test_a_user_s_name_of_a_class_is_found_in_every_spelling(tmp_path):
    file = tmp_path / "names.yaml"
    file.write_text("Metal_Nut: steel nut\n", encoding="utf-8")
    assert read_names(str(file)) == {"metal nut": "steel nut"}
    file.write_text("metal_nut: steel nut\nMetal nut: brass nut\n", encoding="utf-8")
    with pytest.raises(ValueError, match="two names for Metal nut, 'steel nut' and 'brass nut': keep one"):
        read_names(str(file))


def test_a_detector_whose_memories_have_descriptive_names_is_refused_in_one_line(saved):
    content = json.loads((saved / MARKER).read_text())
    (saved / MARKER).write_text(json.dumps(content | {"format": FORMAT - 1}))
    with pytest.raises(ValueError, match=r"was saved by an older version of aaclip.*train it again") as error:
        Detector.from_pretrained(saved)
    assert "\n" not in str(error.value)
