"""A whole test of 40 images at 518 pixels and 24 blocks: ours beside the straightforward way; time, peak, figures.

    uv run python benchmarks/aaclip_test_pass.py            # width 256: ten minutes on a free core
    uv run python benchmarks/aaclip_test_pass.py --quick    # narrow, four blocks, 6 images: does it run

The straightforward way is what research code does: softmax(QKᵀ)V written out, each level's two logits blurred and
interpolated to the picture by themselves, all maps and masks kept, and sklearn on all pixels at the end. Ours is
`evaluate`, which also makes the sketches and 95 % intervals that the other leaves out. Both have the same random
weights, images and batches. Each arm runs once, in a process of its own: its time is that of the processor, to which
other programs of a shared machine add little, and its peak is that of the whole process.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import arm_in_own_process, report
from aaclip_step import attention
from torch import Tensor
from torch.nn.functional import interpolate, normalize
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import gaussian_blur

from aaclip.config import Config
from aaclip.data import AnomalyDataset, collate
from aaclip.detector.calibration import top_mean
from aaclip.detector.detector import Detector
from aaclip.models import AnomalyModel
from aaclip.models.backbone import make_model
from aaclip.models.maps import BLUR, TEMPERATURE
from aaclip.models.vision import get_image_trunk
from aaclip.scoring.evaluation import evaluate
from aaclip.scoring.score import read_test_records
from clip_common.backbones import load_clip

Figures = dict[str, float]
BATCH = 8
LARGE, QUICK = (256, 24, 40), (64, 4, 6)
"""Width, blocks and images."""
TIME, MEMORY = 0.4, 0.6
"""The bars."""
TOLERANCE = {"auroc": 1e-3, "ap": 2e-3, "f1_max": 2e-3, "aupro": 1e-2}  # of 200 thresholds and of random weights
ARMS = ("ours", "straightforward")


def detector_of(width: int, blocks: int) -> Detector:
    """Random weights; the text tower is small."""
    vision = {"image_size": 518, "patch_size": 14, "width": width, "layers": blocks, "head_width": 64}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 4}
    shape = {"embed_dim": 64, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    bundle = load_clip("blocks", pretrained="random", model_config=shape)
    torch.manual_seed(0)
    return Detector(make_model(bundle, Config()), Config(), device="cpu")


def run_tower(detector: Detector, images_B3SS: Tensor, *, adapted: bool) -> tuple[list[Tensor], Tensor]:
    """Return the patches (B, L, F) of each level, and all tokens (B, T, F) after the last block."""
    assert isinstance(detector.model, AnomalyModel)
    adapter, trunk = detector.model.image_adapter, get_image_trunk(detector.model.image_tower)
    x_BTF, patches = trunk.embed(images_B3SS), []
    modules: list[Any] = [block.module for block in trunk.blocks]
    for number, block in enumerate(modules, start=1):
        attended_BTF, _ = attention(block.attn, block.ln_1(x_BTF))
        x_BTF = x_BTF + attended_BTF
        x_BTF = x_BTF + block.mlp(block.ln_2(x_BTF))
        if adapted and number <= len(adapter.layers):
            layer: Any = adapter.layers[number - 1]
            x_BTF = layer.mix(x_BTF, layer(x_BTF))
        if number in adapter.levels:
            patches.append(trunk.norm(x_BTF[:, 1:]))
    return patches, x_BTF


def score_batch(detector: Detector, images_B3SS: Tensor, text_D2: Tensor) -> tuple[Tensor, Tensor]:
    """Return maps (B, S, S) and image scores (B,)."""
    assert isinstance(detector.model, AnomalyModel)
    trunk, size = get_image_trunk(detector.model.image_tower), detector.size
    patches, _ = run_tower(detector, images_B3SS, adapted=True)
    _, tokens_BTF = run_tower(detector, images_B3SS, adapted=False)
    class_BD = normalize(trunk.project(tokens_BTF[:, 0]), dim=-1)
    width, sigma = BLUR["industrial"]
    maps, grids = [], []
    for head, patches_BLF in zip(detector.model.image_adapter.segmentation, patches, strict=True):
        logits_BL2 = TEMPERATURE * normalize(head(patches_BLF), dim=-1) @ text_D2
        side = int(logits_BL2.shape[1] ** 0.5)
        logits_B2gg = logits_BL2.transpose(1, 2).unflatten(2, (side, side))
        grids.append(logits_B2gg[:, 1] - logits_B2gg[:, 0])
        blurred_B2gg = gaussian_blur(logits_B2gg, kernel_size=[width, width], sigma=[sigma, sigma])
        logits_B2SS = interpolate(blurred_B2gg, size=(size, size), mode="bilinear", align_corners=True)
        maps.append(logits_B2SS[:, 1] - logits_B2SS[:, 0])
    cosines_B2 = class_BD @ text_D2
    top_B = top_mean(torch.stack(grids).mean(dim=0))
    return torch.stack(maps).mean(dim=0), detector.score.logits(cosines_B2[:, 1] - cosines_B2[:, 0], top_B)


@torch.no_grad()
def test_straightforward(detector: Detector, root: Path) -> Figures:
    """Keep everything, then compute."""
    from aaclip_test_memory import all_others  # brings sklearn, which counts in this arm's process alone

    dataset = AnomalyDataset(read_test_records(root), preprocess=detector.preprocess, size=detector.size, seed=0)
    text_D2 = detector.class_embedding("part0")
    columns: list[list[np.ndarray]] = [[], [], [], []]
    for batch in DataLoader(dataset, batch_size=BATCH, collate_fn=collate):
        maps_BSS, scores_B = score_batch(detector, batch.images_B3HW, text_D2)
        found = (scores_B, batch.anomalous_B.bool(), maps_BSS, batch.masks_BHW.bool())
        for column, value in zip(columns, found, strict=True):
            column.append(value.numpy())
    scores_N, anomalous_N, maps_NSS, masks_NSS = map(np.concatenate, columns)
    return all_others((scores_N, anomalous_N, maps_NSS, masks_NSS))


def test_ours(detector: Detector, root: Path) -> Figures:
    """Return the figures of `evaluate`."""
    found = evaluate(detector, read_test_records(root), batch_size=BATCH)
    return {name: value for name, value in found.classes["part0"].items() if value is not None}


def run_arm(arm: str, root: Path, shape: tuple[int, int, int]) -> None:
    """Print the figures, the seconds of the processor and the peak of the process as JSON."""
    detector = detector_of(*shape[:2])
    start = time.process_time()
    figures = (test_ours if arm == "ours" else test_straightforward)(detector, root)
    seconds = time.process_time() - start
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    print(json.dumps({"figures": figures, "s": seconds, "mib": int(peak.split()[1]) / 1024}))


def main() -> None:
    """Draw, run both, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--arm", choices=ARMS, help="run one arm on --root and print it as JSON")
    parser.add_argument("--root", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    shape = QUICK if options.quick else LARGE
    if options.arm:
        run_arm(options.arm, options.root, shape)
        return
    from aaclip_test_memory import draw

    with tempfile.TemporaryDirectory() as place:
        root = draw(Path(place) / "set", images=shape[2], classes=1)
        more = ["--root", str(root), *(["--quick"] if options.quick else [])]
        ours, theirs = (arm_in_own_process(__file__, arm, *more) for arm in ARMS)
    assert ours["figures"].keys() == theirs["figures"].keys()
    differ = {name: abs(ours["figures"][name] - value) for name, value in theirs["figures"].items()}
    row = {
        "ours s": ours["s"],
        "straightforward s": theirs["s"],
        "time ratio": ours["s"] / theirs["s"],
        "ours MiB": round(ours["mib"]),
        "straightforward MiB": round(theirs["mib"]),
        "peak ratio": ours["mib"] / theirs["mib"],
        "pixel AUROC": ours["figures"]["pixel/auroc"],
        "figures differ by": max(differ.values()),
    }
    width, blocks, images = shape
    note = f"{images} images of 518 x 518, {blocks} blocks of width {width}, one run each, seconds of the processor"
    report("aaclip_test_pass", [row], note=f"{note}; bars: time {TIME}, peak of the process {MEMORY}")
    for name, difference in differ.items():
        assert difference <= TOLERANCE[name.partition("/")[2]], f"{name} differs by {difference}"


if __name__ == "__main__":
    main()
