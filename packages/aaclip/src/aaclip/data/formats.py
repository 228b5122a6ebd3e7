"""Read a folder of labelled pictures in any of the known formats, recognised by the files in it."""

from collections.abc import Sequence
from pathlib import Path

from aaclip.data.lists import LISTINGS, to_records
from aaclip.data.records import Dataset, Record
from aaclip.data.trees import TREES, Found, Tree, list_folders
from clip_common.errors import DataError, check_list

FORMATS = ("mvtec", "visa", "btad", "mpdd", "bmad", "polyp", "jsonl", "meta", "folder")
"""Values of `data.format` besides `auto`."""

_DESCRIPTIONS = {name: (TREES.get(name) or LISTINGS[name]).description for name in FORMATS}


def read_dataset(root: str | Path, *, format: str = "auto", classes: Sequence[str] | None = None) -> Dataset:
    """Read a set of labelled pictures, without opening any picture.

    Args:
        root: The set's folder; in layouts with class folders, also the folder of one class.
        format: `auto`, or one of `FORMATS`. MPDD has the layout of MVTec, so `auto` calls it mvtec.
        classes: Only these classes, by their names in the set; None takes all.

    Raises:
        DataError: No such folder; no format or several formats fit; an unknown or empty class; a list that cannot be
            read. A missing picture or mask is not an error here: see `check` and `check_masks`.
    """
    if classes is not None:
        check_list(classes, "classes", empty=False)
    root = Path(root)
    if root.name in (
        "",
        "..",
    ):  # a class may take its name from the folder; a link keeps the name that the user gave it
        root = root.resolve()
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; data.root is the folder of the images")
    if format == "auto":
        format = detect_format(root)
    elif format not in FORMATS:
        raise DataError(f"data.format={format}: expected auto or one of {', '.join(FORMATS)}")
    elif not _fits(root, format):
        raise DataError(f"{root}: not a set of the format {format}; expected {_DESCRIPTIONS[format]}")
    if format in TREES:
        records, problems = _read_tree(root, format, classes)
    else:
        rows = LISTINGS[format].read(root)
        _check_known(classes, {row.class_name for row in rows}, root)
        records, problems = to_records([row for row in rows if classes is None or row.class_name in classes], root)
    return Dataset(root, format, sorted(records, key=lambda record: record.image.as_posix()), problems)


def detect_format(root: Path) -> str:
    """Return the format of a folder.

    Raises:
        DataError: No known format fits, or more than one; the line lists what was looked for.
    """
    fitting = [name for name in FORMATS if name != "mpdd" and _fits(root, name)]
    if len(fitting) > 1:
        found = "; ".join(f"{name} ({_DESCRIPTIONS[name]})" for name in fitting)
        raise DataError(f"{root}: several formats fit: {found}: say which by data.format={fitting[0]}")
    if not fitting:
        looked_for = "; ".join(f"{name} ({_DESCRIPTIONS[name]})" for name in FORMATS)
        raise DataError(f"{root}: no labelled images found; looked for {looked_for}")
    return fitting[0]


def _fits(root: Path, format: str) -> bool:
    if format in LISTINGS:
        return bool(LISTINGS[format].files(root))
    tree = TREES[format]
    return tree.fits(root) or (format != "folder" and any(tree.fits(child) for child in list_folders(root)))


def _read_tree(root: Path, format: str, classes: Sequence[str] | None) -> tuple[list[Record], list[str]]:
    tree = TREES[format]
    class_folders = {root.name: root} if tree.fits(root) else {child.name: child for child in list_folders(root)}
    _check_known(classes, set(class_folders), root)
    chosen = {name: folder for name, folder in class_folders.items() if classes is None or name in classes}
    found = [_read_class(folder, name, tree, format) for name, folder in chosen.items()]
    return [record for one in found for record in one.records], [line for one in found for line in one.problems]


def _read_class(folder: Path, name: str, tree: Tree, format: str) -> Found:
    if not tree.fits(folder) and any(file.is_file() for file in folder.rglob("*")):
        raise DataError(
            f"{folder}: not a class of the format {format} ({tree.description}) as its neighbours are: "
            "move it away, or name the wanted classes in data.classes"
        )
    found = tree.read(folder, name)
    if not found.records:
        raise DataError(f"{folder}: a class folder without images; expected {tree.description}: fill or remove it")
    return found


def _check_known(classes: Sequence[str] | None, known: set[str], root: Path) -> None:
    unknown = sorted(set(classes or ()) - known)
    if unknown:
        raise DataError(f"{root}: no class {', '.join(unknown)}; data.classes may name {', '.join(sorted(known))}")
