"""What the original data set says about its videos: diseases, patients, doctors' regions, and joints.

F frames of a video.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_common.errors import DataError
from clip_common.regions import REGIONS
from clip_common.tables import explain_unknown, read_json, read_table
from videoclip.data.manifest import compose_name
from videoclip.released.pickles import PlainArray, read_plain_pickle

DISEASES = ("ASD", "DHS", "LCS_HipOA", "Normal")
"""Folders of json_mix/, in the order of the original's labels: 0, 1, 2, 3."""
_UNKNOWN = ("focus_unkonwn", "focus_unknown")  # the first is how the doctors' program spells it
_SESSION = re.compile(r".+?_(?:ASD|DHS|LCS|HipOA|Normal)(?=[_\W]|$)", re.IGNORECASE)

Key = tuple[str, ...]
"""The letters and digits of a name: 20170130_ASD_lat__V1-0001 and 20170130_ASD_lat_V1-0001 have one key."""


@dataclass(frozen=True, slots=True)
class VideoEntry:
    """A JSON file of json_mix/.

    Attributes:
        file: The JSON file.
        disease: Its folder, one of `DISEASES`.
        names: Keys under which other files may name the video: the JSON file's name and its `video_name`.
        path: `video_path`, the place of the video on the machine that made the file.
        label: `label`, if it is a whole number.
    """

    file: Path
    disease: str
    names: tuple[Key, ...]
    path: PurePosixPath
    label: int | None

    @property
    def patient(self) -> str:
        """Name of the person: date, number and disease, without the view and the number of the walk.

        20160523_1_ASD_lat__V1-0001 and 20160523_1_ASD_lat__V2-0003 are of one patient, 20160523_1_ASD.
        """
        name = compose_name(self.file.stem)
        session = _SESSION.match(name)
        return session[0] if session else name.rpartition("-")[0].rstrip("_ ") or name


@dataclass(frozen=True, slots=True)
class DoctorRow:
    """A row of a doctor's CSV: the regions attended in videos whose names begin with `key`."""

    key: Key
    line: int
    regions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Skeleton:
    """Joints of a video.

    Attributes:
        places_F172: Share of width and height, from the left and the top.
        confidence_F17: 0 to 1; 0 for a joint that was not found.
        people: Number of people that were found; the joints are those of the first.
    """

    places_F172: NDArray[np.float32]
    confidence_F17: NDArray[np.float32]
    people: int


def make_key(name: str) -> Key:
    """Return the words and numbers of a name, in small letters."""
    return tuple(part for part in re.split(r"[\W_]+", compose_name(name).casefold()) if part)


def read_entries(folder: Path) -> list[VideoEntry]:
    """Read json_mix/: a folder for each disease, with a JSON file for each video.

    Raises:
        DataError: No such folder, a disease that is unknown, a file that cannot be read, or two files of one name.
    """
    folders = [inner for inner in sorted(folder.iterdir()) if inner.is_dir() and inner.name != "log"]
    unknown = [inner.name for inner in folders if inner.name not in DISEASES]
    if unknown:
        raise DataError(f"{folder}: {explain_unknown(unknown[0], kind='disease', known=DISEASES)}")
    entries: dict[str, VideoEntry] = {}
    for inner in folders:
        for file in sorted(inner.glob("*.json")):
            info = read_json(file)
            texts = [info.get(name) if isinstance(info, dict) else None for name in ("video_name", "video_path")]
            if not all(isinstance(text, str) and text.strip() for text in texts):
                raise DataError(f"{file}: expected an object with video_name and video_path as text")
            if file.stem in entries:
                raise DataError(f"{file}: {entries[file.stem].file} has the same name: remove or rename one")
            label = info.get("label")
            entries[file.stem] = VideoEntry(
                file=file,
                disease=inner.name,
                names=tuple(dict.fromkeys((make_key(file.stem), make_key(str(texts[0]))))),
                path=_parse_path(str(texts[1])),
                label=label if isinstance(label, int) else None,
            )
    if not entries:
        raise DataError(f"{folder}: no videos; expected {folder / DISEASES[0] / 'NAME.json'}")
    return list(entries.values())


def read_doctor(file: Path) -> list[DoctorRow]:
    """Read a doctor's CSV, with the columns `video file name` and `attention` (['foot_btn']) among others.

    Raises:
        DataError: A file that cannot be read, a row without a name, or an unknown region.
    """
    rows = []
    for line, row in read_table(file, needed=("video file name", "attention"), delimiter=","):
        key = make_key(row["video file name"])
        if not key:
            raise DataError(f"{file}, line {line}: expected a video file name, got nothing: it would fit every video")
        named = [word.removesuffix("_btn") for word in re.findall(r"\w+", row["attention"])]
        regions = [word for word in named if word not in _UNKNOWN]
        unknown = [word for word in regions if word not in REGIONS]
        if unknown:
            raise DataError(
                f"{file}, line {line}: {explain_unknown(unknown[0], kind='region in attention', known=tuple(REGIONS))}"
            )
        rows.append(DoctorRow(key, line, tuple(dict.fromkeys(regions))))
    return rows


def find_rows(rows: Iterable[DoctorRow], names: Iterable[Key]) -> list[DoctorRow]:
    """Return the rows about a video: those whose name is the beginning of one of its names, word by word.

    P1 is not the beginning of P10-0001, as it is of its letters.
    """
    names = tuple(names)
    return [row for row in rows if any(name[: len(row.key)] == row.key for name in names)]


def read_skeletons(file: Path) -> tuple[dict[Key, Skeleton], set[Key]]:
    """Read whole_annotations.pkl (see `pickles`): joints by video, and the videos with two different skeletons.

    Raises:
        DataError: A file that cannot be read, or not of this form: {"annotations": [{"frame_dir": text, "keypoint":
            (people, F, 17, 2) shares of the picture, "keypoint_score": (people, F, 17)}]}.
    """
    content = read_plain_pickle(file)
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(annotations, list) or not annotations:
        raise DataError(f"{file}: expected a dict with a list of annotations")
    skeletons: dict[Key, Skeleton] = {}
    ambiguous = set()
    for number, annotation in enumerate(annotations):
        at = f"{file}, annotation {number}"
        name = annotation.get("frame_dir") if isinstance(annotation, dict) else None
        if not isinstance(name, str) or not name:
            raise DataError(f"{at}: expected frame_dir as text")
        key = make_key(_strip_suffix(_parse_path(name).name))
        skeleton = _parse_skeleton(annotation, at=f"{at} ({name})")
        former = skeletons.setdefault(key, skeleton)
        if not (
            np.array_equal(former.places_F172, skeleton.places_F172)
            and np.array_equal(former.confidence_F17, skeleton.confidence_F17)
        ):
            ambiguous.add(key)
    return skeletons, ambiguous


def _parse_skeleton(annotation: dict[str, Any], *, at: str) -> Skeleton:
    arrays = [annotation.get(name) for name in ("keypoint", "keypoint_score")]
    values = [array.value for array in arrays if isinstance(array, PlainArray) and array.value is not None]
    shapes = [value.shape for value in values]
    if len(shapes) == 2 and len(shapes[0]) == 4 and shapes[0][-1] == 3:
        raise DataError(f"{at}: joints in space, in metres: give seg_skeleton_pkl/, of joints in the picture")
    if (
        len(shapes) != 2
        or len(shapes[0]) != 4
        or shapes[0][2:] != (17, 2)
        or shapes[1] != shapes[0][:3]
        or not shapes[0][0]
    ):
        raise DataError(
            f"{at}: expected keypoint (people, frames, 17, 2) and keypoint_score (people, frames, 17), got "
            f"{' and '.join(map(str, shapes)) or 'no arrays'}"
        )
    places_F172, confidence_F17 = (np.array(value[0], dtype=np.float32) for value in values)
    # the pose estimator writes (0, 0), negative or no numbers for a joint that it did not find
    found_F17 = np.isfinite(places_F172).all(axis=2) & (places_F172 >= 0).all(axis=2) & places_F172.any(axis=2)
    found_F17 &= np.isfinite(confidence_F17)
    places_F172[~found_F17], confidence_F17[~found_F17] = 0, 0
    if (places_F172 > 2).any():
        raise DataError(f"{at}: expected joints as shares of width and height, got {places_F172.max():g}")
    if (confidence_F17 < 0).any() or (confidence_F17 > 1).any():
        raise DataError(f"{at}: expected scores from 0 to 1, got {confidence_F17.min():g} to {confidence_F17.max():g}")
    return Skeleton(places_F172, confidence_F17, people=len(values[0]))


def _parse_path(text: str) -> PurePosixPath:
    return PurePosixPath(text.strip().replace("\\", "/"))


def _strip_suffix(name: str) -> str:
    """Return a file's name without .mp4 and the like; a folder of frames may have a name with a dot."""
    return re.sub(r"\.(?:mp4|avi|mov|mkv)$", "", name, flags=re.IGNORECASE)
