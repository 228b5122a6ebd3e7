"""200 concurrent uploads to `aaclip serve`: how many are answered, their latency, and the memory of the server.

python benchmarks/aaclip_serving.py          a server of the tiny CLIP in a process of its own; needs Linux
"""

import http.client
import io
import re
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
from _measure import report
from PIL import Image

UPLOADS = 200
ROUNDS = 3
SIDES = (1280, 960)
"""Pixels of a photo."""


def make_photo() -> bytes:
    """Return a picture that compresses as badly as a photo does."""
    width, height = SIDES
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def read_memory(process: int, field: str) -> float:
    """Return VmRSS or VmHWM of a process in MiB."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+)", text)[1]) / 1024  # type: ignore[index]


def upload(port: int, photo: bytes) -> tuple[int, float]:
    """Return status and seconds of one upload."""
    start = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("POST", "/inspect?name=bell", body=photo)
    status = connection.getresponse()
    status.read()
    connection.close()
    return status.status, time.perf_counter() - start


def upload_together(port: int, photo: bytes, count: int) -> list[tuple[int, float]]:
    """Return status and seconds of uploads that start at once."""
    answers: list[tuple[int, float]] = []
    start = threading.Barrier(count)

    def one() -> None:
        start.wait()
        answers.append(upload(port, photo))

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def main() -> None:
    command = [sys.executable, "-m", "aaclip", "serve", "tiny", "--name", "bell", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    rows = []
    try:
        port = next(int(found[1]) for line in process.stdout if (found := re.search(r"open http://.*:(\d+)", line)))
        photo = make_photo()
        alone = [upload(port, photo)[1] for _ in range(10)]
        for number in range(1, ROUNDS + 1):
            before = read_memory(process.pid, "VmRSS")
            start = time.perf_counter()
            answers = upload_together(port, photo, UPLOADS)
            spent = time.perf_counter() - start
            seconds = sorted(taken for _, taken in answers)
            rows.append(
                {
                    "round": number,
                    "uploads": UPLOADS,
                    "answered": sum(status == 200 for status, _ in answers),
                    "MB each": len(photo) / 1e6,
                    "one alone, s": statistics.median(alone),
                    "p50 s": seconds[len(seconds) // 2],
                    "p95 s": seconds[int(0.95 * len(seconds))],
                    "images/s": UPLOADS / spent,
                    "MiB before": before,
                    "MiB after": read_memory(process.pid, "VmRSS"),
                    "MiB peak": read_memory(process.pid, "VmHWM"),
                }
            )
    finally:
        process.terminate()
        process.wait(60)
    decoded = UPLOADS * SIDES[0] * SIDES[1] * 3 / 2**20
    report("aaclip_serving", rows, note=f"all {UPLOADS} photos decoded at once would take {decoded:,.0f} MiB")


if __name__ == "__main__":
    main()
