"""A real server in a process of its own: concurrent uploads, uploads that break off, and what is left on disk."""

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from aaclip.detector.detector import Detector

UPLOADS = 200


@pytest.fixture
def served(saved, tmp_path) -> Iterator[tuple[int, Path]]:
    """The port, and the only folder for temporary files."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-m", "aaclip", "serve", str(saved), "--name", "mug", "--port", "0"]
    environment = os.environ | {"TMPDIR": str(scratch), "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        port = next(int(found[1]) for line in process.stdout if (found := re.search(r"open http://.*:(\d+)", line)))
        yield port, scratch
        assert process.poll() is None, "the server ended by itself"
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


def post(port: int, body: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request("POST", "/inspect?name=mug", body=body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_two_hundred_concurrent_uploads_are_all_answered_as_the_detector_answers(served, saved, photos):
    port, scratch = served
    with socket.create_connection(("127.0.0.1", port)) as broken:
        broken.sendall(b"POST /inspect HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + bytes(10))
    with socket.create_connection(("127.0.0.1", port)) as garbage:
        garbage.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
    assert post(port, bytes(40 * 2**20))[0] == 413  # read to its end, or the client could not read the answer
    files = sorted(photos.iterdir())
    bodies = [file.read_bytes() for file in files]
    expected = [Detector.from_pretrained(saved).predict(file, name="mug").score for file in files]
    start, answers = threading.Barrier(UPLOADS), {}

    def upload(number: int) -> None:
        start.wait()
        answers[number] = post(port, b"no image" if number % 20 == 19 else bodies[number % len(bodies)])

    threads = [threading.Thread(target=upload, args=(number,)) for number in range(UPLOADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == UPLOADS
    for number, (status, body) in answers.items():
        if number % 20 == 19:
            assert status == 422
        else:
            assert status == 200
            assert json.loads(body)["score"] == pytest.approx(expected[number % len(expected)], abs=1e-6)
    assert list(scratch.iterdir()) == []
