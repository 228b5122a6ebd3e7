"""Names of the published classes, found under the class names that each set's own layout gives; names from files."""

import json
from pathlib import Path

import pytest

from aaclip.config import PromptConfig
from aaclip.data import read_dataset
from aaclip.models.names import find_domain, read_names
from aaclip.models.prompts import load_prompts, note_unnamed

VISA = {
    "candle": "candle",
    "capsules": "capsules",
    "cashew": "cashew nut",
    "chewinggum": "chewing gum",
    "fryum": "wheel-shaped fryum snack",
    "macaroni1": "orange macaroni",
    "macaroni2": "scattered yellow macaroni",
    "pcb1": "dual ultrasonic distance sensor pcb module",
    "pcb2": "integrated circuits board",
    "pcb3": "infrared sensor pcb module",
    "pcb4": "battery charging pcb module",
    "pipe_fryum": "pipe-shaped fryum",
}
MVTEC = {
    "bottle": "dark bottle",
    "cable": "top view of three cables",
    "capsule": "black and orange capsule",
    "carpet": "gray carpet",
    "grid": "metal or plastic mesh",
    "hazelnut": "single brown hazelnut",
    "leather": "brown leather",
    "metal_nut": "metal nut which has four notched edges",
    "pill": "pill",
    "screw": "screw",
    "tile": "speckled tile surface",
    "toothbrush": "toothbrush head",
    "transistor": "a three-legged transistor placed vertically",
    "wood": "wood surface",
    "zipper": "a black zipper",
}
MPDD = {
    "bracket_black": "bracket black",
    "bracket_brown": "bracket brown",
    "bracket_white": "bracket white",
    "connector": "metal clamps with black adjustment knobs",
    "metal_plate": "blue rectangular metal plate with a notch on one side",
    "tubes": "scattered metal objects",
}
BTAD = {"01": "01", "02": "02", "03": "03"}
SCANS = dict.fromkeys(["Brain", "Brain_AD", "Liver", "Liver_AD", "Retina", "Retina_RESC_AD", "RESC"], "scan")
POLYPS = ["Colon_clinicDB", "CVC-ClinicDB", "Colon_colonDB", "CVC-ColonDB", "Colon_Kvasir", "Kvasir"]
COLON = dict.fromkeys([*POLYPS, "Colon_cvc300", "CVC-300"], "colon endoscopy image")
LAYOUTS = {
    "mvtec": (MVTEC, ["train/good/0.png", "test/cut/0.png", "ground_truth/cut/0_mask.png"]),
    "mpdd": (MPDD, ["train/good/0.png", "test/cut/0.png", "ground_truth/cut/0_mask.png"]),
    "btad": (BTAD, ["train/ok/0.png", "test/ko/0.png", "ground_truth/ko/0.png"]),
    "bmad": (SCANS, ["train/good/0.png", "test/Ungood/img/0.png", "test/Ungood/label/0.png"]),
    "polyp": (COLON, ["images/0.png", "masks/0.png"]),
}
UNNAMED = ["01", "02", "03", "bracket_black", "bracket_brown", "bracket_white", "pill"]


def touch(file: Path) -> None:
    """A file that is never opened: sets are read by their names."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()


def called(root: Path, **more) -> dict[str, str]:
    prompts = load_prompts(PromptConfig(set="compact"))
    return {name: prompts.name_of(name) for name in read_dataset(root, **more).classes}


@pytest.mark.parametrize("format", LAYOUTS)
def test_every_class_of_a_tree_has_its_name(tmp_path, format):
    names, files = LAYOUTS[format]
    for class_name in names:
        for file in files:
            touch(tmp_path / "set" / class_name / file)
    assert called(tmp_path / "set", format=format) == names
    for class_name, name in names.items():  # the folder of one class is a set too
        assert called(tmp_path / "set" / class_name, format=format) == {class_name: name}


def test_every_class_of_visa_s_table_has_its_name(tmp_path):
    rows = [f"{name},test,anomaly,{name}/0.png,{name}/0_mask.png" for name in VISA]
    for name in VISA:
        touch(tmp_path / name / "0.png")
        touch(tmp_path / name / "0_mask.png")
    touch(tmp_path / "split_csv" / "1cls.csv")
    (tmp_path / "split_csv" / "1cls.csv").write_text("\n".join(["object,split,label,image,mask", *rows]))
    assert called(tmp_path) == VISA


@pytest.mark.parametrize("kind", ["jsonl", "meta"])
def test_every_class_of_a_list_has_its_name(tmp_path, kind):
    names = VISA | MVTEC | MPDD | BTAD | SCANS | COLON
    assert len(names) == 12 + 15 + 6 + 3 + 7 + 8
    touch(tmp_path / "0.png")
    for name in names:
        touch(tmp_path / name / "0.png")
    if kind == "jsonl":
        rows = [{"image_path": f"{name}/0.png", "label": 0, "class_name": name, "mask_path": ""} for name in names]
        (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        row = {"anomaly": 0, "mask_path": "", "specie_name": ""}
        entries = {name: [{**row, "img_path": f"{name}/0.png", "cls_name": name}] for name in names}
        (tmp_path / "meta.json").write_text(json.dumps({"train": {}, "test": entries}))
    assert called(tmp_path) == names


def test_the_released_prompts_say_once_which_classes_they_call_by_their_folders(tmp_path):
    official, names = PromptConfig(set="compact"), VISA | MVTEC | MPDD | BTAD | SCANS | COLON
    (line,) = note_unnamed(official, load_prompts(official), names)
    assert line == (f"prompts call these classes by their folders: {', '.join(UNNAMED)}; prompts.names=FILE names them")
    assert note_unnamed(official, load_prompts(official), set(names) - set(UNNAMED)) == []
    assert note_unnamed(PromptConfig(), load_prompts(PromptConfig()), names) == []  # folders are the design there
    file = tmp_path / "names.yaml"
    file.write_text("".join(f"{name}: a thing\n" for name in UNNAMED))
    own = PromptConfig(set="compact", names=str(file))
    assert note_unnamed(own, load_prompts(own), names) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.yaml", "01: motor part\npill: white pill\n"),
        ("names.yml", "BTAD:\n  01: motor part\nMVTec:\n  pill: white pill\n"),
        (
            "constants.py",
            "import torch\nREAL_NAMES = {'BTAD': {'01': 'motor part'}, 'MVTec': {'pill': 'white pill'}}\n",
        ),
        ("größe.py", "boom()\nREAL_NAMES: dict[str, str] = {'01': 'motor part', 'pill': 'white pill'}\n"),
        ("mixed.py", "REAL_NAMES = {'BTAD': {'01': 'motor part'}, 'pill': 'white pill'}\n"),
    ],
)
def test_names_from_a_file(tmp_path, name, content):
    file = tmp_path / name
    file.write_text(content, encoding="utf-8")
    assert read_names(str(file)) == {"01": "motor part", "pill": "white pill"}
    prompts = load_prompts(PromptConfig(names=str(file)))
    assert (prompts.name_of("01"), prompts.name_of("pill")) == ("motor part", "white pill")
    assert prompts.name_of("cashew") == "cashew nut"  # the others keep theirs


def test_the_constants_are_never_executed(tmp_path):
    file = tmp_path / "constants.py"
    file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nREAL_NAMES = {{'pill': 'white pill'}}\n")
    read_names(str(file))
    assert not (tmp_path / "ran").exists()


def test_names_of_the_file_win_over_those_of_an_own_prompt_set(tmp_path):
    own, names = tmp_path / "own.yaml", tmp_path / "names.yaml"
    own.write_text("names: {pill: from the set, m1: M1 bolt, 01: motor part}\n")
    names.write_text("pill: from the names\n")
    prompts = load_prompts(PromptConfig(set=str(own), names=str(names)))
    assert (prompts.name_of("pill"), prompts.name_of("m1")) == ("from the names", "M1 bolt")
    assert prompts.name_of("01") == "motor part"  # not the number 1


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("no.yaml", None, "no such file"),
        ("a.yaml", "", "expected class: name"),
        ("a.yaml", "- pill\n", "expected class: name"),
        ("a.yaml", "a: [", "cannot be read"),
        ("a.yaml", "pill: [white]\n", "expected text as the name of 'pill'"),
        ("a.yaml", "pill: ''\n", "expected text as the name of 'pill'"),
        ("a.yaml", "A: {pill: one}\nB: {pill: two}\n", "two names for pill"),
        ("a.py", "REAL_NAMES = dict(pill='white pill')\n", "is computed"),
        ("a.py", "REAL_NAMES = {'pill': f'{1}'}\n", "is computed"),
        ("a.py", "NAMES = {}\n", "has no REAL_NAMES"),
        ("a.py", "REAL_NAMES = {\n", "cannot be read"),
        ("a.py", "REAL_NAMES = {'pill': 3}\n", "expected text as the name of 'pill'"),
        ("a.py", "REAL_NAMES = ['pill']\n", "expected class: name"),
        ("a.py", "REAL_NAMES = {}\n", "expected class: name"),
    ],
)
def test_a_wrong_file_of_names_is_one_line(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError) as error:
        load_prompts(PromptConfig(names=str(tmp_path / name)))
    assert str(error.value).startswith(f"prompts.names={tmp_path / name}: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_domain_of_a_set_is_that_of_its_classes():
    assert [find_domain(names) for names in (VISA, MVTEC, MPDD, BTAD)] == ["industrial"] * 4
    assert [find_domain([name]) for name in (SCANS | COLON)] == ["medical"] * 15
    assert find_domain(["mug", "star"]) is None
    assert find_domain(["mug", "Brain"]) == "medical"
    with pytest.raises(
        ValueError, match=r"two domains \(pill is industrial, Brain is medical\): choose with score.dom"
    ):
        find_domain(["pill", "Brain"])
