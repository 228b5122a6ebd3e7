"""Open a port, and serve an application until it is interrupted."""

import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import uvicorn

from aaclip.detector.detector import Detector
from aaclip.detector.fitting import note_unfitted
from aaclip.serving.app import make_app
from aaclip.serving.inspector import check_noun
from clip_common.images import find_images

BACKLOG = 1024
"""Connections that the system holds until they are accepted."""


def serve(
    source: str,
    *,
    name: str,
    host: str,
    port: int,
    normal: str | Path | None = None,
    ready: Callable[[Sequence[str], str], None],
) -> None:
    """Serve a detector until the process is interrupted.

    Args:
        source: A run, a saved detector, or the name of a CLIP.
        name: The noun that requests without one mean.
        host: Address to listen on.
        port: Port; 0: a free one.
        normal: File, folder or glob of normal images of `name`, which are remembered while it runs.
        ready: Called before the first request is answered, with lines that a person should know, and the URL.

    Raises:
        OSError: The port is taken.
        ValueError: An unusable source, or no normal image.
    """
    name = check_noun(name)
    with listen(host, port) as listener:
        detector = Detector.open(source)
        if normal is None:
            detector.class_embedding(name)
        else:
            detector.remember(find_images([normal]), name=name)
        app = make_app(detector, name=name)
        shown = f"[{host}]" if ":" in host else host
        notes = note_unfitted(source, detector.score)
        if detector.threshold is None:
            notes.append("no threshold is set: JSON has no verdicts, and the page starts at 0.5; calibrate sets one")
        ready(notes, f"http://{shown}:{listener.getsockname()[1]}")
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", backlog=BACKLOG))
        server.run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket, or raise OSError that names the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        error.filename = f"{host}:{port}"
        raise
