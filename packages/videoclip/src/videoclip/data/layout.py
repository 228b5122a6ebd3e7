"""The folder format: videos/SUBJECT/NAME.mp4, attention_maps/SUBJECT/NAME.npy and labels.csv, cut into clips."""

import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from clip_common.errors import DataError
from clip_common.tables import read_table
from videoclip.data.decoding import read_seconds
from videoclip.data.manifest import compose_name, parse_name, parse_whole_number
from videoclip.data.records import ClipRecord

VIDEOS, MAPS, LABELS = "videos", "attention_maps", "labels.csv"
_VIDEO_FILES = frozenset((
    ".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".avi", ".divx", ".mkv", ".webm", ".ogv", ".flv", ".wmv", ".asf",
    ".mpg", ".mpeg", ".m2v", ".vob", ".mod", ".ts", ".mts", ".m2ts", ".mxf", ".dv", ".npz",
))  # fmt: skip
_MAP_FILES = _VIDEO_FILES | {".npy"}


def read_layout(root: Path, *, clip_seconds: float, skip: bool = False) -> list[ClipRecord]:
    """Read a folder of videos/SUBJECT/NAME.*, attention_maps/SUBJECT/NAME.* (optional) and labels.csv.

    A video belongs to the subject whose folder it is in, and is cut into clips of `clip_seconds` (see `cut_spans`). A
    folder in a subject's folder is a video, or a map, of frames. A map belongs to the video of the same name, or, if
    the subject has one map and one video, to that video; it spans the whole video. labels.csv has the columns
    subject_id,label or video,label, with video as in videos/SUBJECT/NAME.mp4; an empty label is unknown. Other files
    are left out, with a warning that counts them.

    Args:
        root: The folder.
        clip_seconds: Length of a clip.
        skip: Return one clip for a video that cannot be read, to be skipped when it is decoded, instead of raising.

    Raises:
        DataError: A file in the wrong place, or a video without a line in labels.csv.
    """
    videos_of = {folder.name: _list_entries(folder, _VIDEO_FILES) for folder in _list_subjects(root / VIDEOS)}
    left_out = _describe_left_out(root)
    if not any(videos_of.values()):
        found = f"; {left_out}" if left_out else ""
        raise DataError(f"{root / VIDEOS}: no videos; expected {VIDEOS}/SUBJECT/NAME.mp4{found}")
    if left_out:
        warnings.warn(f"{root}: {left_out}", stacklevel=2)
    strangers = [folder for folder in _list_subjects(root / MAPS) if folder.name not in videos_of]
    if strangers:
        raise DataError(
            f"{strangers[0]}: maps of a subject without videos; expected {root / VIDEOS / strangers[0].name}"
        )
    labels = _read_labels(root, [video for videos in videos_of.values() for video in videos.values()])
    records = []
    for subject, videos in videos_of.items():
        maps = _match_maps(root / MAPS / subject, videos)
        for name, video in videos.items():
            for number, (start_s, end_s) in enumerate(_cut_video(video, clip_seconds=clip_seconds, skip=skip)):
                records.append(
                    ClipRecord(
                        clip_id=compose_name(f"{subject}_{name}_{number:03d}"),
                        subject_id=compose_name(subject),
                        video=video,
                        label=labels[video],
                        start_s=start_s,
                        end_s=end_s,
                        map=maps.get(name),
                        spans="video",
                    )
                )
    return records


def cut_spans(seconds: float, *, clip_seconds: float) -> list[tuple[float, float]]:
    """Return start and end of a video's clips, in seconds: whole clips, and a last one of at least half a clip.

    A video shorter than half a clip is one clip.
    """
    count = max(1, int(seconds / clip_seconds + 0.5))
    return [(place * clip_seconds, min((place + 1) * clip_seconds, seconds)) for place in range(count)]


def _cut_video(video: Path, *, clip_seconds: float, skip: bool) -> Sequence[tuple[float, float | None]]:
    try:
        return cut_spans(read_seconds(video), clip_seconds=clip_seconds)
    except DataError:
        if not skip:
            raise
        return [(0.0, None)]


def _list_subjects(folder: Path) -> list[Path]:
    """Return the subjects' folders in videos/ or attention_maps/; none if that folder does not exist."""
    entries = [entry for entry in sorted(folder.iterdir()) if entry.name[0] != "."] if folder.is_dir() else []
    loose = [entry for entry in entries if entry.suffix.lower() in _MAP_FILES and not entry.is_dir()]
    if loose:
        raise DataError(f"{loose[0]}: a file in no subject's folder; expected {folder / 'SUBJECT' / loose[0].name}")
    return [entry for entry in entries if entry.is_dir()]


def _list_entries(folder: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    """Return name without suffix → file, or folder of frames."""
    entries: dict[str, Path] = {}
    for entry in sorted(folder.iterdir()):
        if entry.name[0] == "." or not (entry.is_dir() or entry.suffix.lower() in suffixes):
            continue
        name = entry.name if entry.is_dir() else entry.stem
        if name in entries:
            raise DataError(f"{folder}: {entries[name].name} and {entry.name} have the same name: rename one of them")
        entries[name] = entry
    return entries


def _describe_left_out(root: Path) -> str:
    """Return how many files in the folders of subjects are of no kind that is read, and of which kinds; else ""."""
    left_out = [
        entry
        for folder, suffixes in ((root / VIDEOS, _VIDEO_FILES), (root / MAPS, _MAP_FILES))
        for subject in _list_subjects(folder)
        for entry in sorted(subject.iterdir())
        if entry.name[0] != "." and not entry.is_dir() and entry.suffix.lower() not in suffixes
    ]
    if not left_out:
        return ""
    kinds = Counter(entry.suffix.lower() or "no suffix" for entry in left_out)
    counts = ", ".join(f"{count} of {kind}" for kind, count in kinds.most_common())
    return f"{len(left_out)} file(s) left out ({counts}), such as {left_out[0].relative_to(root)}"


def _match_maps(folder: Path, videos: dict[str, Path]) -> dict[str, Path]:
    """Return name of a video → its map."""
    maps = _list_entries(folder, _MAP_FILES) if folder.is_dir() else {}
    if len(maps) == len(videos) == 1:
        return dict(zip(videos, maps.values(), strict=True))
    orphans = [entry for name, entry in maps.items() if name not in videos]
    if orphans:
        names = ", ".join(video.name for video in videos.values())
        raise DataError(
            f"{orphans[0]}: the map of no video: name it as one of {names or 'the videos (there are none)'}"
        )
    return maps


def _read_labels(root: Path, videos: Sequence[Path]) -> dict[Path, int | None]:
    """Return the label of each video, read from labels.csv."""
    file = root / LABELS
    if not file.is_file():
        raise DataError(f"{file}: no such file; expected the columns subject_id,label or video,label")
    named: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for video in videos:
        named["subject_id", compose_name(video.parent.name)].append(video)
        named["video", compose_name(video.relative_to(root).as_posix())].append(video)
    labels: dict[Path, int | None] = {}
    for line, row in read_table(file, needed=("label",), known=("subject_id", "video", "label"), delimiter=","):
        at = f"{file}, line {line}"
        if len(row) != 2:
            raise DataError(f"{file}, line 1: expected subject_id,label or video,label, got {','.join(row)}")
        (key,) = row.keys() - {"label"}
        name = parse_name(row, key, at=at)
        if (key, name) not in named:
            raise DataError(f"{at}: there is no video of {key} {name}; expected {VIDEOS}/SUBJECT/NAME.mp4")
        for video in named[key, name]:
            if video in labels:
                raise DataError(f"{at}: {video} has a label already: leave one line for it")
            labels[video] = parse_whole_number({"label": row["label"].strip() or None}, "label", at=at)
    unlabelled = [video for video in videos if video not in labels]
    if unlabelled:
        raise DataError(
            f"{file}: no line for {len(unlabelled)} video(s), first {unlabelled[0]}: add one, with an empty label "
            "if it is unknown"
        )
    return labels
