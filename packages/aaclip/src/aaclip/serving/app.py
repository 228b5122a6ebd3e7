"""The application: `GET /` is the page, `POST /inspect` answers in JSON, `GET /openapi.json` describes it."""

import asyncio
import json
import secrets
import tempfile
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import IO, Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from aaclip import __version__
from aaclip.detector.detector import Detector
from aaclip.serving.inspector import Inspection, Inspector, Limits, check_noun
from clip_common.heatmap import OPAQUE, colours
from clip_common.images import TooManyPixelsError

RETRY_AFTER = 5
"""Seconds after which a refused client should come again."""
DEFAULT_THRESHOLD = 0.5
"""Where the page's threshold starts if the detector has none: as likely normal as anomalous."""


@dataclass(frozen=True)
class Problem:
    """Why a request was refused.

    Attributes:
        error: One line.
    """

    error: str


PROBLEMS: dict[int | str, dict[str, Any]] = {
    408: {"model": Problem, "description": "The upload took too long."},
    413: {"model": Problem, "description": "Too many bytes or pixels."},
    415: {"model": Problem, "description": "A form instead of the image's bytes."},
    422: {"model": Problem, "description": "Not a readable image, or not a noun."},
    503: {"model": Problem, "description": "Too many requests wait already; Retry-After says when to come again."},
}
IMAGE = {
    "required": True,
    "description": "The bytes of one image: PNG, JPEG, WebP, TIFF, BMP, GIF, JPEG 2000 or AVIF.",
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
}


def make_app(detector: Detector, *, name: str, limits: Limits | None = None) -> FastAPI:
    """Return the application of a detector.

    Requests are answered one after the other, in a thread of their own; those that wait have their upload in a
    temporary file without a name, which vanishes with the request.

    Args:
        detector: With its threshold and remembered images.
        name: The noun that requests without one mean, and that the page starts with.
        limits: Of uploads.

    Raises:
        ValueError: A threshold for tiles.
    """
    limits = limits or Limits()
    inspector = Inspector(detector, limits)
    worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inspector")
    at_work: set[object] = set()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        worker.shutdown(cancel_futures=True)

    app = FastAPI(
        title="aaclip",
        version=__version__,
        description="Find defects in a picture of any thing, given its noun.",
        docs_url=None,  # the documentation page of FastAPI loads scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.add_exception_handler(RequestValidationError, _explain_validation)
    app.add_exception_handler(HTTPException, _explain_refusal)
    app.add_exception_handler(Exception, _explain_defect)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        nonce = secrets.token_urlsafe()
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src blob: data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return HTMLResponse(render_page(inspector, name=name, nonce=nonce), headers={"Content-Security-Policy": policy})

    @app.post("/inspect", responses=PROBLEMS, openapi_extra={"requestBody": IMAGE})
    async def inspect(
        request: Request,
        name: Annotated[str, Query(max_length=limits.noun, description="What the image shows: any noun.")] = name,
    ) -> Inspection:
        """Look for defects in one image, which is the body of the request."""
        if request.headers.get("content-type", "").startswith("multipart/"):
            raise HTTPException(415, "send the image's bytes as the body, not a form: curl --data-binary @image.jpg")
        if len(at_work) >= limits.waiting:
            raise HTTPException(
                503,
                f"{limits.waiting} requests wait already: come again in {RETRY_AFTER} seconds",
                headers={"Retry-After": str(RETRY_AFTER)},
            )
        ticket = object()
        at_work.add(ticket)
        try:
            noun = check_noun(name)
            with tempfile.TemporaryFile() as upload:
                await receive(request, upload, limits)
                return await asyncio.get_running_loop().run_in_executor(worker, inspector.inspect, upload, noun)
        except TooManyPixelsError as error:
            raise HTTPException(413, str(error)) from error
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        finally:
            at_work.remove(ticket)

    return app


async def receive(request: Request, upload: IO[bytes], limits: Limits) -> None:
    """Write the body of a request to a file.

    Raises:
        HTTPException: 413 for more bytes than the limit, 408 for an upload that takes too long, 400 for one that breaks
            off.
    """
    length = 0
    try:
        async with asyncio.timeout(limits.seconds):
            async for chunk in request.stream():
                length += len(chunk)
                if length > limits.bytes:
                    raise HTTPException(413, f"the upload has more than {limits.bytes:,} bytes: send a smaller file")
                upload.write(chunk)
    except TimeoutError as error:
        raise HTTPException(408, f"the upload took more than {limits.seconds:g} seconds") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "the upload broke off") from error


def render_page(inspector: Inspector, *, name: str, nonce: str) -> str:
    """Return the page: one file of HTML that loads nothing.

    Args:
        inspector: Its detector, threshold and limits are shown.
        name: The noun it starts with.
        nonce: Of the Content-Security-Policy, for its script and its style.
    """
    limit, limits = inspector.threshold, inspector.limits
    settings = {
        "model": inspector.detector.name,
        "name": name,
        "threshold": DEFAULT_THRESHOLD if limit is None else limit.value,
        "reason": "not calibrated" if limit is None else limit.describe(),
        "bytes": limits.bytes,
        "noun": limits.noun,
        "opaque": OPAQUE,
        "colours": colours().round().astype(int).tolist(),
    }
    # a script element ends at the first "</script", whatever is around it
    content = json.dumps(settings, separators=(",", ":")).replace("<", "\\u003c")
    template = files("aaclip.serving").joinpath("page.html").read_text(encoding="utf-8")
    return template.replace("{{nonce}}", nonce).replace("{{settings}}", content)


async def _explain_validation(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    lines = [f"{one['loc'][-1]}: {one['msg']}" for one in error.errors()]
    return JSONResponse({"error": "; ".join(lines)}, status_code=422)


async def _explain_refusal(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, status_code=error.status_code, headers=error.headers)


async def _explain_defect(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": f"a defect of the server: {type(error).__name__}"}, status_code=500)
