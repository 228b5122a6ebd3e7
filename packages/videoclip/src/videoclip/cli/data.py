"""The commands `videoclip data …`: check a data set, draw its maps, import the original one, or make one."""

from pathlib import Path
from typing import Annotated

import typer

from clip_common import cli
from clip_common.cli import NewFolder, Overrides, console

data = cli.Application(
    "data", help="Check a data set, draw its maps, import the original one, or make a synthetic one."
)

Root = Annotated[
    Path, typer.Argument(help="A manifest, a folder with one, or a folder of videos/.", show_default=False)
]


@data.command()
def check(root: Root, overrides: Overrides = None) -> None:
    """Decode every clip and map, split into folds and look for leaks; list problems, and exit with 2 if there are any.

    Warns of what can be used but is rarely meant: joints in one place or outside the picture, faint maps, frames of one
    colour, names of subjects that differ only by case or zeros.

    Examples:

        videoclip data check gait/

        videoclip data check gait/ data.maps=doctor1 model.model_class_num=4 data.folds=3
    """
    from clip_common.config import load_config
    from videoclip.config import Config
    from videoclip.data import check as check_data

    config = load_config(Config, overrides=overrides or [])
    config.data.root = str(root)
    model = config.model
    with cli.progress("decoding clips and maps") as progress:
        report = check_data(
            config.data, classes=model.model_class_num, channels=model.attn_in_channels, progress=progress
        )
    rows = []
    for row in report.counts:
        cells = ("" if value is None else str(value) for value in (row.fold, row.label, row.subjects, row.clips))
        rows.append([*cells, f"{row.seconds:.1f}", str(row.map_files), str(row.keypoints)])
    header = ["fold", "class", "subjects", "clips", "seconds", "maps", "keypoints"]
    cli.print_table(header, rows, title=str(root))
    maps = report.maps
    if maps.mean is not None:
        console.print(f"maps: mean {maps.mean:.3f}; {100 * (maps.focus or 0):.1f} % of a map above half its maximum")
    for clips, what in ((maps.without, "without a map"), (maps.constant, "with a constant map")):
        if clips:
            console.print(f"{len(clips)} clip(s) {what}, such as {', '.join(clips[:3])}", soft_wrap=True)
    if maps.two_doctors:
        console.print(f"both doctors attended the same regions in {maps.agreeing} of {maps.two_doctors} clips")
    for note in report.notes:
        console.print(note, soft_wrap=True)
    for warning in report.warnings:
        console.print(f"warning: {warning}", soft_wrap=True)
    cli.check_no_problems(root, report.problems)
    console.print("every clip and every map can be read, and no subject or video is in two parts of a fold")


@data.command("render-maps")
def render_maps(
    root: Root,
    out: NewFolder,
    maps: Annotated[str, typer.Option(help="Whose regions to draw: doctor1, doctor2 or both.")] = "both",
    size: Annotated[int, typer.Option(min=16, help="Height and width of a map in pixels.")] = 112,
) -> None:
    """Draw maps from keypoints and attended regions, a Gaussian on each joint, and write a manifest with them.

    Example:

        videoclip data render-maps gait/ rendered/ --maps doctor1
    """
    from videoclip.data.rendering import render

    with cli.progress("drawing maps") as progress:
        manifest, drawn, without = render(root, out, maps=maps, size=size, progress=progress)
    console.print(f"{drawn} maps; the data set with them is {manifest}", soft_wrap=True)
    if without:
        console.print(
            f"{len(without)} clip(s) have no map, because they lack keypoints or regions, such as {without[0]}"
        )


@data.command("import")
def import_original(
    root: Annotated[Path, typer.Argument(help="The folder clinical_CLIP_dataset/.", show_default=False)],
    out: NewFolder,
    classes: Annotated[
        int, typer.Option(min=2, max=3, help="3: ASD, DHS, LCS_HipOA (and Normal as a fourth); 2: ASD and others.")
    ] = 3,
    folds: Annotated[int, typer.Option(min=3, help="Number of parts of a cross-validation, by patient.")] = 5,
) -> None:
    """Turn the original project's data set into a manifest: one-second clips, doctors' regions, joints, folds.

    Videos stay where they are. Nothing in the pickle of joints is executed. docs/videoclip.md lists what is mended.

    Example:

        videoclip data import clinical_CLIP_dataset/ gait/
    """
    from videoclip.released.dataset import import_dataset

    with cli.progress("importing videos") as progress:
        imported = import_dataset(root, out, classes=classes, folds=folds, progress=progress)
    for note in imported.notes:
        console.print(note, soft_wrap=True)
    people = ", ".join(f"{label} {name} ({count})" for label, (name, count) in enumerate(imported.patients.items()))
    console.print(f"{imported.clips} clips of {imported.videos} videos; labels (patients): {people}", soft_wrap=True)
    console.print(
        f"Check it:  videoclip data check {out} model.model_class_num={len(imported.patients)}", soft_wrap=True
    )


@data.command()
def synthetic(
    folder: NewFolder,
    subjects: Annotated[int, typer.Option(help="Number of people; each has one condition.")] = 60,
    clips: Annotated[int, typer.Option(help="Clips per person.")] = 4,
    size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 112,
    seconds: Annotated[float, typer.Option(help="Length of a clip in seconds; one second shows a whole stride.")] = 1.0,
    folds: Annotated[int, typer.Option(help="Number of parts of a cross-validation.")] = 5,
    seed: Annotated[int, typer.Option(help="Another seed makes another set.")] = 1,
) -> None:
    """Film walking figures: a pathology makes one joint region asymmetric, and two doctors attend some regions.

    Example:

        videoclip data synthetic walks/ --subjects 120 --clips 2
    """
    from clip_common.synthetic import write_walking
    from clip_common.synthetic.figures import CONDITIONS

    with cli.progress("filming walks") as progress:
        write_walking(
            folder,
            subjects=subjects,
            clips_per_subject=clips,
            size=size,
            seconds=seconds,
            folds=folds,
            seed=seed,
            progress=progress,
        )
    labels = ", ".join(f"{label} {name}" for label, name in enumerate(CONDITIONS))
    console.print(f"{subjects * clips} clips of {subjects} people in {folder}; labels: {labels}", soft_wrap=True)
