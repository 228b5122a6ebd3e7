"""Exported detectors beside torch: size of the file, seconds of one image, difference of scores and maps.

    python benchmarks/aaclip_export.py                  the tiny CLIP with adapters, 112 pixels
    python benchmarks/aaclip_export.py ViT-B-16         any CLIP of open_clip, its weights random; on four images

Each row is timed in pairs with torch, in one process.
"""

import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _measure import alternate, report

from aaclip.config import Config
from aaclip.detector.baked import BakedDetector
from aaclip.detector.detector import Detector
from aaclip.detector.export import Format, export_detector, open_exported
from aaclip.models.backbone import load_backbone, make_model
from clip_common.images import find_images, read_image
from clip_common.synthetic import write_mvtec

NAME = "bell"
KINDS: dict[str, tuple[Format, bool]] = {"ONNX": ("onnx", False), "ONNX, int8": ("onnx", True), "pt2": ("torch", False)}


def make_detector(name: str) -> Detector:
    """Return a detector with untrained adapters: its speed and size are those of a trained one."""
    torch.manual_seed(0)
    config = Config()
    pretrained = None if name == "tiny" else "random"
    config = replace(
        config, backbone=replace(config.backbone, name=name, pretrained=pretrained, activation=None, image_size=None)
    )
    return Detector(make_model(load_backbone(config.backbone), config), config, device="cpu")


def main() -> None:
    detector = make_detector(sys.argv[1] if len(sys.argv) > 1 else "tiny")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        parts = write_mvtec(Path(scratch) / "parts", kinds=(NAME,), train=1, good=10, damaged=2, size=detector.size)
        images = find_images([parts / NAME / "test"])[: 20 if detector.config.backbone.name == "tiny" else 4]
        picture = read_image(images[0]).resize((detector.size, detector.size))
        one_1SS3 = np.array(picture)[None]
        baked = BakedDetector(detector, [NAME], threshold=None).eval()

        def by_torch() -> object:
            with torch.inference_mode():
                return baked(torch.from_numpy(one_1SS3), torch.tensor(0))

        weights = sum(tensor.nbytes for tensor in baked.state_dict().values())
        for kind, (format, int8) in KINDS.items():
            file = Path(scratch) / f"exported.{'pt2' if format == 'torch' else 'onnx'}"
            exported = export_detector(detector, file, names=[NAME], images=images, format=format, int8=int8)
            run = open_exported(file, format=format)
            timing = alternate(partial(run, one_1SS3, 0), by_torch)
            parity = exported.parity
            rows.append(
                {
                    "file": kind,
                    "MiB": file.stat().st_size / 2**20,
                    "weights in torch, MiB": weights / 2**20,
                    "s": timing.ours_s,
                    "torch s": timing.theirs_s,
                    "ratio": timing.ratio,
                    "scores within": parity.score,
                    "maps within": parity.map,
                    "images": parity.images,
                    "batch": parity.batch,
                }
            )
    report(
        f"aaclip_export_{detector.config.backbone.name}",
        rows,
        note=f"{detector.config.backbone.name}, {detector.size} pixels, one image",
    )


if __name__ == "__main__":
    main()
