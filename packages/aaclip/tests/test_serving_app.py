"""The application: its answers are the detector's, every bad upload is one line of JSON, and it goes on."""

import asyncio
import base64
import io
import json
import re
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import refused
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.testclient import TestClient

from aaclip.detector.calibration import Threshold
from aaclip.detector.detector import Detector
from aaclip.serving import inspector as inspecting
from aaclip.serving import server
from aaclip.serving.app import make_app, receive
from aaclip.serving.inspector import Inspector, Limits

HOSTILE = "</script><script>alert(1)</script>{{nonce}} ../../etc/passwd"


@pytest.fixture
def client(saved):
    detector = Detector.from_pretrained(saved)
    detector.threshold = Threshold(0.5, "given")
    with TestClient(make_app(detector, name="mug", limits=Limits(bytes=20_000, pixels=10_000))) as client:
        yield client


def png(width: int = 24, height: int = 16) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A grey PNG of a few kilobytes that names this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_an_answer_is_the_detectors_own(client, saved):
    found = client.post("/inspect", content=png(), params={"name": "mug"}).json()
    detector = Detector.from_pretrained(saved)
    own = detector.predict(Image.open(io.BytesIO(png())), name="mug", threshold=0.5)
    assert found["score"] == pytest.approx(own.score, abs=1e-9)
    assert (found["verdict"], found["threshold"], found["name"]) == (own.verdict, 0.5, "mug")
    assert (found["width"], found["height"]) == (24, 16)
    assert [box["area"] for box in found["boxes"]] == [box.area for box in own.boxes]
    heat_HW = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["heatmap"]))))
    np.testing.assert_allclose(heat_HW / 255, own.heatmap_HW, atol=1 / 255)
    assert client.post("/inspect", content=png()).json() == found  # the noun that the server was started with


def test_the_heatmap_of_a_large_picture_is_scaled_down(saved):
    with TestClient(make_app(Detector.from_pretrained(saved), name="mug")) as client:
        found = client.post("/inspect", content=png(1200, 600)).json()
    assert (found["width"], found["height"], found["verdict"]) == (1200, 600, None)
    assert Image.open(io.BytesIO(base64.b64decode(found["heatmap"]))).size == (512, 256)


@pytest.mark.parametrize(
    ("body", "query", "status", "words"),
    [
        (b"", {}, 422, "the upload: not a readable image"),
        (b"not an image", {}, 422, "the upload: not a readable image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", {}, 422, "not a readable image"),
        (png()[:200], {}, 422, "not a readable image"),
        (bytes(20_001), {}, 413, "more than 20,000 bytes"),
        (bytes(3_000_000), {}, 413, "more than 20,000 bytes"),
        (png(150, 100), {}, 413, "more than 20,000 bytes"),
        (bomb(101, 100), {}, 413, "101 x 100 pixels, expected at most 10,000"),
        (bomb(60_000, 60_000), {}, 413, "not a readable image (Image size"),
        (png(), {"name": ""}, 422, "expected a noun"),
        (png(), {"name": "   "}, 422, "expected a noun"),
        (png(), {"name": "a\x00b"}, 422, "expected a noun"),
        (png(), {"name": "a\nb"}, 422, "expected a noun"),
        (png(), {"name": "a" * 81}, 422, "name: String should have at most 80 characters"),
    ],
    ids=lambda value: repr(value)[:24] if isinstance(value, bytes) else None,
)
def test_a_bad_upload_is_one_line_of_json_and_the_next_is_answered(client, body, query, status, words):
    response = client.post("/inspect", content=body, params=query)
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    assert words in response.json()["error"]
    assert "\n" not in response.json()["error"]
    assert client.post("/inspect", content=png()).status_code == 200


@pytest.mark.parametrize("noun", [HOSTILE, "../../etc/passwd", "<b>nut</b>", "größe 🔩", "%00", "{}", "{0.__class__}"])
def test_a_noun_is_only_ever_a_noun(client, noun):
    found = client.post("/inspect", content=png(), params={"name": noun})
    assert found.status_code == 200
    assert found.headers["content-type"] == "application/json"
    assert found.json()["name"] == noun


def test_a_form_a_wrong_path_and_a_wrong_method(client):
    form = client.post("/inspect", files={"image": png()})
    assert form.status_code == 415
    assert "curl --data-binary" in form.json()["error"]
    assert client.get("/inspect").json() == {"error": "Method Not Allowed"}
    assert client.get("/../etc/passwd").json() == {"error": "Not Found"}
    assert client.get("/docs").status_code == 404


def test_openapi_describes_body_noun_and_every_refusal(client):
    operation = client.get("/openapi.json").json()["paths"]["/inspect"]["post"]
    assert operation["requestBody"]["required"]
    assert [one["name"] for one in operation["parameters"]] == ["name"]
    assert set(operation["responses"]) == {"200", "408", "413", "415", "422", "503"}


def test_a_defect_is_told_and_the_server_stays_up(saved, monkeypatch):
    with TestClient(make_app(Detector.from_pretrained(saved), name="mug"), raise_server_exceptions=False) as client:
        with monkeypatch.context() as patch:
            patch.setattr(Inspector, "inspect", lambda *_: 1 // 0)
            broken = client.post("/inspect", content=png())
        assert (broken.status_code, broken.json()) == (500, {"error": "a defect of the server: ZeroDivisionError"})
        assert client.post("/inspect", content=png()).status_code == 200


def test_requests_wait_up_to_the_limit_and_more_are_told_when_to_come_again(saved, monkeypatch):
    begun, free, plain = threading.Semaphore(0), threading.Event(), Inspector.inspect

    def slow(self, *arguments):
        begun.release()
        assert free.wait(60)
        return plain(self, *arguments)

    monkeypatch.setattr(Inspector, "inspect", slow)
    app = make_app(Detector.from_pretrained(saved), name="mug", limits=Limits(waiting=1))
    codes: list[int] = []
    with TestClient(app) as client:
        waiting = threading.Thread(target=lambda: codes.append(client.post("/inspect", content=png()).status_code))
        waiting.start()
        assert begun.acquire(timeout=60)
        busy = client.post("/inspect", content=png())
        assert (busy.status_code, busy.headers["retry-after"]) == (503, "5")
        assert "1 requests wait already" in busy.json()["error"]
        free.set()
        waiting.join(60)
        assert codes == [200]
        assert client.post("/inspect", content=png()).status_code == 200


@pytest.mark.parametrize(("ends", "status"), [(False, 408), (True, 400)])
def test_an_upload_that_stalls_or_breaks_off(ends, status):
    async def message() -> dict:
        if not ends:
            await asyncio.sleep(600)
        return {"type": "http.disconnect"}

    request = Request({"type": "http", "method": "POST", "headers": []}, message)
    with pytest.raises(HTTPException) as refusal:
        asyncio.run(receive(request, io.BytesIO(), Limits(seconds=0.01)))
    assert refusal.value.status_code == status


def test_old_nouns_are_forgotten_and_answer_the_same_again(saved, monkeypatch):
    monkeypatch.setattr(inspecting, "NOUNS", 2)
    detector = Detector.from_pretrained(saved)
    inspector = Inspector(detector, Limits())
    scores = [inspector.inspect(io.BytesIO(png()), noun).score for noun in ("a", "b", "mug", "c", "a", "mug")]
    assert set(detector.classes) == {"mug", "c", "a"}
    assert scores[0] == pytest.approx(scores[4], abs=1e-9)
    assert scores[2] == pytest.approx(scores[5], abs=1e-9)


def test_the_page_loads_nothing_and_cannot_be_broken_by_a_noun(saved):
    with TestClient(make_app(Detector.from_pretrained(saved), name=HOSTILE)) as client:
        response = client.get("/")
    text = response.text
    assert not re.findall(r"https?://|src=|@import|url\(|<link", text.replace("img-src", ""))
    assert text.count("<script") == 2
    assert "default-src 'none'" in response.headers["content-security-policy"]
    nonce = re.search(r"script-src 'nonce-([^']+)'", response.headers["content-security-policy"]).group(1)
    assert text.count(f'nonce="{nonce}"') == 2
    settings = json.loads(re.search(r'id="settings">(.*?)</script>', text, flags=re.DOTALL).group(1))
    assert settings["name"] == HOSTILE
    assert (settings["threshold"], settings["reason"]) == (0.5, "not calibrated")
    assert len(settings["colours"]) == 256


def test_normal_images_are_remembered_while_it_runs_and_not_on_disk(saved, photos, monkeypatch):
    served = []
    monkeypatch.setattr(server.uvicorn.Server, "run", lambda self, sockets: served.append(self.config.app))
    before = {file.name: file.read_bytes() for file in saved.iterdir()}
    told: list = []
    for normal in (None, photos / "0.png"):
        server.serve(
            str(saved), name="mug", host="127.0.0.1", port=0, normal=normal, ready=lambda notes, url: told.append(url)
        )
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before
    assert all(re.fullmatch(r"http://127\.0\.0\.1:\d+", url) for url in told)
    detector = Detector.from_pretrained(saved)
    detector.remember([photos / "0.png"], name="mug")
    picture = (photos / "1.png").read_bytes()
    scores = [TestClient(app).post("/inspect", content=picture).json()["score"] for app in served]
    assert scores[1] == pytest.approx(detector.predict(photos / "1.png", name="mug").score, abs=1e-9)
    assert scores[1] != pytest.approx(scores[0], abs=1e-6)


def test_what_serve_refuses_in_one_line(aaclip, saved, tmp_path, monkeypatch):
    with server.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        refused(aaclip("serve", saved, "--name=mug", f"--port={port}"), f"127.0.0.1:{port}: Address already in use")
    refused(aaclip("serve", tmp_path, "--name=mug", "--port=0"), str(tmp_path))
    (tmp_path / "empty").mkdir()
    refused(aaclip("serve", saved, "--name=mug", "--port=0", "--normal", tmp_path / "empty"), "no picture there")
    refused(aaclip("serve", saved, "--name= ", "--port=0"), "noun")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    refused(aaclip("serve", saved, "--name=mug"), "aaclip serve needs uvicorn", 'pip install "aaclip[serve]"')


def test_the_page_is_a_file_of_the_package():
    assert Path(server.__file__).with_name("page.html").is_file()
