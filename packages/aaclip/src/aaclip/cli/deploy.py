"""The verbs of `aaclip` that put a detector to use elsewhere: export and serve."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from aaclip.cli.data import Model
from clip_common import cli
from clip_common.cli import console
from clip_common.errors import check_extra


def add_deploy_verbs(app: cli.Application) -> None:
    """Add the verbs to the command."""
    app.command()(export)
    app.command()(serve)


def export(
    source: Model,
    out: Annotated[Path, typer.Argument(help="File to write, .onnx or .pt2; FILE.json beside it describes it.")],
    name: Annotated[list[str], typer.Option(help="What the images show; repeat it for several things.")],
    format: Annotated[
        Literal["onnx", "torch"], typer.Option(help="ONNX for onnxruntime, or a program of torch.export.")
    ] = "onnx",
    int8: Annotated[
        bool, typer.Option("--int8", help="Linear layers in 8 bits: a smaller file, scores up to 0.1 different.")
    ] = False,
    check: Annotated[
        list[str] | None,
        typer.Option(metavar="IMAGES", help="Images to compare the file on; default: a few training images."),
    ] = None,
) -> None:
    """Write the detector for some things as one file that runs without aaclip, and compare the two on real images.

    Class embeddings, remembered images, border and threshold are inside. The file takes batches of any size of RGB
    pixels. A file whose results differ from aaclip's by more than 0.0001 is not kept.

    Examples:

        aaclip export runs/aaclip/first nut.onnx --name "metal nut" --check photos/

        aaclip export runs/aaclip/first parts.onnx --name "metal nut" --name screw --int8

        aaclip export runs/aaclip/first nut.pt2 --format torch --name "metal nut"
    """
    from aaclip.detector.detector import Detector
    from aaclip.detector.export import check_request, choose_images, export_detector
    from aaclip.detector.fitting import note_unfitted

    check_request(out, names=name, format=format, int8=int8)
    detector = Detector.open(source, device="cpu")
    images = choose_images(source, check or [], config=detector.config)
    exported = export_detector(
        detector, out, names=name, images=images, format=format, int8=int8, reporter=cli.progress
    )
    parity = exported.parity
    console.print(
        f"compared with aaclip on {parity.images} images, alone and in batches of {parity.batch}: scores within "
        f"{parity.score:.1g}, maps within {parity.map:.1g}, {parity.verdicts} verdicts differ",
        soft_wrap=True,
    )
    if detector.threshold is None:
        console.print("no threshold is set, so the file gives scores and no verdicts: aaclip calibrate sets one")
    cli.print_notes(note_unfitted(source, detector.score))
    cli.print_files("file", [exported.file, exported.description])
    console.print(f"{exported.file.stat().st_size / 2**20:,.1f} MiB")


def serve(
    source: Model,
    name: Annotated[str, typer.Option(help="What the images show, unless a request names another noun.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: reachable from other machines.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: a free one.")] = 8000,
    normal: Annotated[
        str | None,
        typer.Option(metavar="IMAGES", help="Normal images to remember while it runs: one is enough."),
    ] = None,
) -> None:
    """Serve a page to inspect images on, and the same as JSON, until Ctrl-C.

    Drop an image, type a noun, and see heatmap and verdict; a slider moves the threshold. POST /inspect takes an image
    as its body; GET /openapi.json describes it. There are no passwords: listen on other addresses than 127.0.0.1 only
    in a network that you trust.

    Examples:

        aaclip serve runs/aaclip/first --name "metal nut"

        aaclip serve runs/aaclip/first --name "metal nut" --normal good-parts/ --port 9000

        curl --data-binary @photo.jpg "http://127.0.0.1:8000/inspect?name=metal%20nut"
    """
    check_extra("aaclip[serve]", "fastapi", "uvicorn", purpose="aaclip serve")
    from aaclip.serving.server import serve as serve_detector

    def ready(notes: Sequence[str], url: str) -> None:
        cli.print_notes(notes)
        console.print(f"open {url}  (Ctrl-C stops it)", soft_wrap=True)

    serve_detector(source, name=name, host=host, port=port, normal=normal, ready=ready)
