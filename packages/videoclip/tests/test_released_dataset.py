"""The original data set, made in its layout with its pitfalls, becomes a manifest that is checked and trained on."""

import csv
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import refused, succeeded
from helpers.files import write

from clip_common.video import write_video
from videoclip.data.manifest import read_manifest
from videoclip.released.annotations import DISEASES, VideoEntry, find_rows, make_key, read_doctor
from videoclip.released.dataset import import_dataset

FPS, SIZE = 8, 32
DOCTOR = ["", "video file name", "video number", "flag", "path", "attention", "disease"]
LOST = "/workspace/data/split_pad_dataset_512/fold0/train"


def skeleton(seconds: float, *, people: int = 1) -> dict[str, np.ndarray]:
    """Joints at (0.25, 0.5) with confidence 0.9; joint 0 is not found, and estimators write that in several ways."""
    frames = round(seconds * FPS)
    keypoint = np.full((people, frames, 17, 2), (0.25, 0.5), dtype=np.float32)
    score = np.full((people, frames, 17), 0.9, dtype=np.float32)
    keypoint[:, 0, 0] = -0.1
    keypoint[:, 1, 0] = 0
    keypoint[:, 2, 0] = np.nan
    return {"keypoint": keypoint, "keypoint_score": score}


class Original:
    """A folder in the original's layout."""

    def __init__(self, root: Path) -> None:
        self.root = root / "clinical_CLIP_dataset"
        self.annotations: list[dict] = []
        self.doctors: list[list[list[str]]] = [[], []]

    def add(self, disease: str, stem: str, *, name: str | None = None, seconds: float = 1.0, shade: int = 0) -> None:
        """A video of its own content, its JSON file, and its skeleton under the name of the video."""
        name = name or stem
        place = self.root / "video" / "fold0" / "train" / f"{name}.mp4"
        place.parent.mkdir(parents=True, exist_ok=True)
        number = len(self.annotations)
        rng = np.random.default_rng(number)
        write_video(place, rng.integers(0, 255, (round(seconds * FPS), SIZE, SIZE, 3), dtype=np.uint8), fps=FPS)
        info = {"video_name": name, "video_path": f"{LOST}/{name}.mp4", "label": DISEASES.index(disease), "bbox": []}
        write(self.root / "json_mix" / disease / f"{stem}.json", json.dumps(info))
        shape = {"img_shape": (SIZE, SIZE), "total_frames": round(seconds * FPS), "label": info["label"]}
        self.annotations.append({"frame_dir": f"{LOST}/{name}.mp4", **shape, **skeleton(seconds)})

    def attend(self, doctor: int, video: str, attention: str) -> None:
        """A row as the doctors' program writes it."""
        rows = self.doctors[doctor - 1]
        rows.append([str(len(rows)), video, "0001", "0", f"videos\\{video}", attention, "['asd_btn']"])

    def finish(self) -> Path:
        for number, rows in enumerate(self.doctors, start=1):
            file = write(self.root / "doctor_result" / f"doctor{number}.csv", "")
            with file.open("w", newline="", encoding="utf-8") as stream:
                csv.writer(stream).writerows([DOCTOR, *rows])
        file = self.root / "seg_skeleton_pkl" / "whole_annotations.pkl"
        file.parent.mkdir()
        file.write_bytes(pickle.dumps({"annotations": self.annotations, "split": {"train": [], "val": []}}))
        (self.root / "json_mix" / "log").mkdir()
        write(self.root / "index_mapping" / "3" / "index.json", "{}")
        return self.root


@pytest.fixture
def original(tmp_path) -> Original:
    """Five patients of ASD and DHS each, two of LCS_HipOA; the first has two sessions, with names of two systems."""
    made = Original(tmp_path)
    for disease, count in (("ASD", 5), ("DHS", 5), ("LCS_HipOA", 5)):
        word = disease.split("_")[0]
        for number in range(1, count + 1):
            patient = f"2016010{number}_{word}_lat_"
            made.add(disease, f"{patient}_V1-0001")
            for doctor, region in ((1, "foot"), (2, "shoulder")):
                made.attend(doctor, patient, f"['{region}_btn']")
    made.add("ASD", "20160101_ASD_lat__V2-0001", seconds=2.5)
    made.add("ASD", "20160101_ASD_lat_-0002", name="20160101_ASD_lat__ (2)")
    return made


def test_a_whole_set_is_imported_checked_and_trained_on(original, videoclip, tmp_path, small):
    root, out = original.finish(), tmp_path / "gait"
    printed = succeeded(videoclip("data", "import", root, out, "--folds", 3))
    assert "19 clips of 17 videos; labels (patients): 0 ASD (5), 1 DHS (5), 2 LCS_HipOA (5)" in printed
    assert "index_mapping/ is not read" in printed
    assert f"videoclip data check {out} model.model_class_num=3" in printed
    records = read_manifest(out / "manifest.csv")
    of_first = [record for record in records if record.subject_id == "20160101_ASD"]  # one person, three videos
    assert [(record.clip_id, record.start_s, record.end_s) for record in of_first] == [
        ("20160101_ASD_lat_-0002_000", 0, 1),
        ("20160101_ASD_lat__V1-0001_000", 0, 1),
        ("20160101_ASD_lat__V2-0001_000", 0, 1),
        ("20160101_ASD_lat__V2-0001_001", 1, 2),
        ("20160101_ASD_lat__V2-0001_002", 2, 2.5),
    ]
    for record in records:
        assert (record.regions_doctor1, record.regions_doctor2) == (("foot",), ("shoulder",))
        assert record.spans == "video"
        assert record.video.is_relative_to(out / ".." / "clinical_CLIP_dataset")  # videos are not copied
    assert {record.label for record in records} == {0, 1, 2}
    assert len({(record.subject_id, record.fold) for record in records}) == 15  # a patient is in one fold
    assert {record.fold for record in records} == {0, 1, 2}
    joints = np.load(of_first[1].keypoints)
    assert joints.shape == (FPS, 17, 3)
    assert joints[3, 5].tolist() == pytest.approx([8, 16, 0.9])  # shares of 32 x 32 pixels
    assert not joints[:3, 0].any()
    assert joints[3, 0, 2] == np.float32(0.9)
    printed = succeeded(videoclip("data", "check", out))
    assert "no subject or video is in two parts of a fold" in " ".join(printed.split())
    settings = [text for text in small if not text.startswith("data.root")]
    succeeded(videoclip("train", f"data.root={out}", *settings, "model.map_guided=true", "data.maps=doctor2"))


def test_two_classes_and_the_folder_that_holds_the_set(original, tmp_path):
    original.finish()
    imported = import_dataset(tmp_path, tmp_path / "gait", classes=2, folds=3)
    assert imported.patients == {"ASD": 5, "others": 10}
    assert {record.label for record in read_manifest(imported.manifest)} == {0, 1}


def lose_video(original):
    (original.root / "video" / "fold0" / "train" / "20160102_ASD_lat__V1-0001.mp4").unlink()


def copy_video(original):
    source = original.root / "video" / "fold0" / "train" / "20160102_ASD_lat__V1-0001.mp4"
    (original.root / "video" / "fold0" / source.name).write_bytes(source.read_bytes())  # its path ends otherwise


def twin_video(original):
    source = original.root / "video" / "fold0" / "train" / "20160102_ASD_lat__V1-0001.mp4"
    for folder in ("one", "two"):
        twin = original.root / "video" / folder / source.name
        twin.parent.mkdir()
        twin.write_bytes(source.read_bytes())
    source.unlink()


def damage_video(original):
    (original.root / "video" / "fold0" / "train" / "20160102_ASD_lat__V1-0001.mp4").write_bytes(b"damaged")


def change(**values):
    def act(original):
        original.annotations[1] |= values

    return act


PITFALLS = {
    "no video": (lose_video, "1 video(s) are left out, the first: 20160102_ASD_lat__V1-0001.json: no video(s)", 16),
    "damaged": (damage_video, "1 video(s) are left out, the first: ", 16),
    "several videos": (twin_video, "json: 2 video(s) of the name 20160102_ASD_lat__V1-0001.mp4 in video/", 16),
    "another folder": (copy_video, None, 17),
    "longer": (
        change(**skeleton(2)),
        "of another length and get none, the first: 20160102_ASD_lat__V1-0001, 16 of 8",
        17,
    ),
    "several people": (change(**skeleton(1, people=2)), "1 video(s) show several people; the joints are those of", 17),
    "another name": (change(frame_dir="elsewhere/x.mp4"), "1 video(s) have no skeleton, the first: 20160102_ASD", 17),
    "twice, equal": (lambda made: made.annotations.append(made.annotations[1]), None, 17),
    "twice, different": (
        lambda made: made.annotations.append(made.annotations[1] | skeleton(2)),
        "1 video(s) have two different skeletons and get none, the first: 20160102_ASD",
        17,
    ),
    "no doctor": (
        lambda made: made.doctors[0].pop(0),
        "3 video(s) have no region by doctor 1, the first: 20160101_ASD",
        17,
    ),
    "a row too many": (
        lambda made: made.attend(2, "20991231_ASD_lat_", "['foot_btn']"),
        "1 row(s) of doctor 2 are about no video, the first: line 17",
        17,
    ),
    "no opinion": (
        lambda made: made.doctors[1][0].__setitem__(5, "['focus_unkonwn_btn']"),
        "3 video(s) have no region by doctor 2",
        17,
    ),
}


@pytest.mark.parametrize("pitfall", PITFALLS)
def test_what_is_left_out_is_counted(original, tmp_path, pitfall):
    act, note, videos = PITFALLS[pitfall]
    act(original) if "video" not in act.__name__ else None
    root = original.finish()
    act(original) if "video" in act.__name__ else None
    imported = import_dataset(root, tmp_path / "gait", folds=3)
    assert imported.videos == videos
    others = [line for line in imported.notes if "index_mapping" not in line]
    assert len(others) == (note is not None), others
    assert note is None or note in others[0]


REFUSED = {
    "in space": (change(keypoint=np.zeros((1, 8, 17, 3), np.float32)), "joints in space, in metres: give seg_skeleton"),
    "in pixels": (change(keypoint=np.full((1, 8, 17, 2), 200, np.float32)), "as shares of width and height, got 200"),
    "other joints": (change(keypoint=np.zeros((1, 8, 33, 2), np.float32)), "expected keypoint (people, frames, 17, 2)"),
    "scores": (change(keypoint_score=np.full((1, 8, 17), 3, np.float32)), "expected scores from 0 to 1, got 0 to 3"),
    "a path": (change(frame_dir=Path("a.mp4")), "refused, because it names pathlib"),
    "no name": (lambda made: made.attend(1, " ", "['foot_btn']"), "line 17: expected a video file name, got nothing"),
    "a region": (
        lambda made: made.attend(1, "a", "['knee_btn']"),
        "unknown region in attention 'knee': known are foot",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_be_used_is_one_line_and_leaves_nothing(original, videoclip, tmp_path, fault):
    act, message = REFUSED[fault]
    act(original)
    refused(videoclip("data", "import", original.finish(), tmp_path / "gait"), message)
    assert not (tmp_path / "gait").exists()


def test_missing_parts_unknown_diseases_and_too_few_patients_are_one_line(original, videoclip, tmp_path):
    refused(videoclip("data", "import", original.root, tmp_path / "gait"), "doctor1.csv: missing; expected json_mix/")
    root = original.finish()
    refused(
        videoclip("data", "import", root, tmp_path / "gait", "--folds", 16), "--folds 16: data.folds=16 needs as many"
    )
    (root / "json_mix" / "DHX").mkdir()
    refused(videoclip("data", "import", root, tmp_path / "gait"), "unknown disease 'DHX': did you mean DHS?")
    (root / "json_mix" / "DHX").rmdir()
    (tmp_path / "there").mkdir()
    refused(videoclip("data", "import", root, tmp_path / "there"), "there exists: name a folder that does not")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clinical_CLIP_dataset", "there"]


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("20170130_ASD_lat_-0003", "20170130_ASD"),
        ("20160523_1_ASD_lat__V1-0001", "20160523_1_ASD"),
        ("20160523_1_ASD_lat__V2-0001", "20160523_1_ASD"),
        ("20160523_2_ASD_lat__V1-0001", "20160523_2_ASD"),
        ("20180620_DHS_lat_V1-0001", "20180620_DHS"),
        ("20180620_HipOA-0001", "20180620_HipOA"),
        ("anna__-0001", "anna"),
        ("anna", "anna"),
    ],
)
def test_whose_video_it_is(name, patient):
    entry = VideoEntry(file=Path(f"{name}.json"), disease="ASD", names=(), path=Path("a"), label=None)
    assert entry.patient == patient


def test_a_row_is_about_videos_whose_name_begins_with_its_words(tmp_path):
    rows = [DOCTOR] + [["0", name, "1", "0", "", "['foot_btn', 'head_btn']", ""] for name in ("P1", "p10_", "P1 V2")]
    file = write(tmp_path / "doctor.csv", "\n".join(",".join(f'"{cell}"' for cell in row) for row in rows))
    found = read_doctor(file)
    assert found[0].regions == ("foot", "head")
    names = {name: [row.line for row in find_rows(found, [make_key(name)])] for name in ("P1_V2-1", "P10-1", "XP1-1")}
    assert names == {"P1_V2-1": [2, 4], "P10-1": [3], "XP1-1": []}
