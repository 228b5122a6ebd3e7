"""Speed and memory on the GPU of this machine: losses, a CLIP step, aaclip's maps, and edgeglass's language model.

    uv run python benchmarks/gpu.py                         # at most five minutes on an H100
    uv run python benchmarks/gpu.py --device cpu --quick    # tiny sizes: does every part run
    uv run python benchmarks/gpu.py --part losses

Without a CUDA device it says so and measures nothing. A part that fails gives one row with the reason, and the next
one runs. "Times better" is the alternative's time by ours. "Share" is the arithmetic of ours by its time, as a share of
the rate at which the card multiplies two 8192 x 8192 matrices in bfloat16; the losses compute in float32.
"""

import argparse
import gc
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import backbone_step
import edgeglass_vlm
import losses
import open_clip
import torch
from _measure import PeakMemory, alternate, report
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from aaclip.config import AdapterConfig, HeadConfig, SurgeryConfig
from aaclip.detector.calibration import UNFITTED
from aaclip.detector.scorer import Scorer
from aaclip.models import AnomalyModel
from clip_common.backbones import load_clip

Row = dict[str, object]
OUT_OF_MEMORY = "out of memory"
TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 56, "patch_size": 14, "width": 64, "layers": 8, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@dataclass(frozen=True)
class Run:
    """Where and how large.

    Attributes:
        device: Of everything.
        quick: Tiny sizes.
        rate: Of the card's products in bfloat16, a second.
    """

    device: torch.device
    quick: bool
    rate: float

    def pick(self, full: int, tiny: int) -> int:
        """Return the size to run."""
        return tiny if self.quick else full

    def autocast(self, *, enabled: bool = True) -> Any:
        """Return automatic bfloat16."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def share(self, flops: float, seconds: float) -> str:
        """Return the share of the card's bfloat16 rate."""
        return f"{flops / seconds / self.rate:.0%}"

    def free(self) -> None:
        """Give memory that is no longer used back to the card."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def wait(self) -> None:
        """Wait for the card."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def time(self, run: Callable[[], object], *, repeats: int = 3) -> float:
        """Return the median seconds of a call, after one to warm up."""
        run()
        spent = []
        for _ in range(repeats):
            self.wait()
            start = time.perf_counter()
            run()
            self.wait()
            spent.append(time.perf_counter() - start)
        return statistics.median(spent)


def measure_rate(device: torch.device, *, size: int) -> float:
    """Return the operations a second of a product of two square matrices in bfloat16."""
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    plain = Run(device, quick=False, rate=1.0)
    return 2 * size**3 / plain.time(lambda: one @ other, repeats=10)


# the losses


def inputs_on(device: torch.device, rows: int, width: int) -> tuple[Tensor, Tensor]:
    """Return two (rows, width) tensors on a device that require gradients."""
    x, y = (side.detach().to(device).requires_grad_() for side in losses.make_inputs(rows, width))
    return x, y


def measure_losses(run: Run) -> Iterator[Row]:
    """Forward and backward of InfoNCE and of SANW, beside open_clip's loss with its B x B matrices."""
    width = run.pick(512, 32)
    for name in ("infonce", "sanw"):
        for rows in (run.pick(65_536, 512), run.pick(32_768, 256)):
            row = compare_losses(run, name, rows, width)
            yield row
            if row["alternative s"] != OUT_OF_MEMORY:
                break


def compare_losses(run: Run, name: str, rows: int, width: int) -> Row:
    """Return a row for one batch size; an alternative that does not fit has no time."""
    x, y = inputs_on(run.device, rows, width)

    def step(loss: str) -> Callable[[], object]:
        return lambda: losses.run_step(losses.ARMS[loss], x, y)

    with PeakMemory() as ours:
        step(name)()
    row: Row = {"what": f"{name}, B={rows:,}, D={width}", "ours MiB": round(ours.mib), "alternative": "ClipLoss"}
    try:
        with PeakMemory() as theirs:
            step("open_clip")()
        run.free()
        timing = alternate(step(name), step("open_clip"), pairs=3, warmup=1)
        seconds = timing.ours_s
        row |= {
            "alternative s": timing.theirs_s,
            "alternative MiB": round(theirs.mib),
            "times better": 1 / timing.ratio,
        }
    except torch.OutOfMemoryError:
        row["alternative s"] = OUT_OF_MEMORY
        run.free()
        seconds = run.time(step(name))
    products = 4 if name == "infonce" else 4 + 2 * 2  # weights: two products of references in each pass
    return row | {"ours s": seconds, "share": run.share(products * 2 * rows**2 * width, seconds)}


def check_losses(run: Run) -> Iterator[Row]:
    """Loss and gradients beside open_clip's, in float32 and under bfloat16 autocast."""
    x, y = inputs_on(run.device, run.pick(4096, 300), run.pick(512, 32))
    expected = losses.run_step(losses.open_clips, x, y)
    for name, enabled, most in (("float32", False, 1e-3), ("bfloat16 autocast", True, 1e-3)):
        with run.autocast(enabled=enabled):
            found = losses.run_step(losses.infonce, x, y)
        apart = max(relative(one, other) for one, other in zip(found, expected, strict=True))
        assert apart <= most, f"{name}: loss or gradients differ by {apart:.1e} of their norm"
        yield {"what": f"parity of InfoNCE, {name}, B={len(x):,}", "alternative": f"ClipLoss: differs by {apart:.1e}"}
    with run.autocast():
        rough = losses.run_step(losses.open_clips, x, y)
    apart = max(relative(one, other) for one, other in zip(rough, expected, strict=True))
    yield {"what": "ClipLoss itself under autocast", "alternative": f"differs by {apart:.1e} from float32"}


def relative(one: Tensor, other: Tensor) -> float:
    """Return how far a tensor is from another, in norms of it."""
    return ((one.float() - other.float()).norm() / other.float().norm()).item()


def check_compile(run: Run) -> Iterator[Row]:
    """torch.compile of the loss and of an image tower."""
    x, y = inputs_on(run.device, run.pick(2048, 64), run.pick(512, 32))
    expected = losses.run_step(losses.infonce, x, y)
    compiled: Any = torch.compile(losses.infonce)
    found = losses.run_step(compiled, x, y)
    apart = max(relative(one, other) for one, other in zip(found, expected, strict=True))
    assert apart <= 1e-3, f"the compiled loss or its gradients differ by {apart:.1e} of their norm"
    yield {"what": "torch.compile of InfoNCE", "alternative": f"eager: differs by {apart:.1e}"}
    bundle = load_backbone(run, "ViT-B-32")
    tower, size = bundle.image_tower.to(run.device), bundle.image.spec.image_size
    images = torch.randn(run.pick(256, 2), 3, size, size, device=run.device)
    fast: Any = torch.compile(tower.pooled)
    with torch.no_grad(), run.autocast():
        apart = relative(fast(images), tower.pooled(images))
        timing = alternate(lambda: fast(images), lambda: tower.pooled(images), pairs=3, warmup=1)
    assert apart <= 2e-2, f"the compiled tower differs by {apart:.1e} of its norm"
    yield {
        "what": f"image tower compiled, batch {len(images)}",
        "ours s": timing.ours_s,
        "alternative": f"eager: differs by {apart:.1e}",
        "alternative s": timing.theirs_s,
        "times better": 1 / timing.ratio,
    }


# CLIP and aaclip


def load_backbone(run: Run, name: str, **settings: Any) -> Any:
    """Return a CLIP of random weights on the CPU, tiny if the run is quick."""
    if run.quick:
        return load_clip("tiny shape", pretrained="random", model_config=TINY)
    return load_clip(name, pretrained="random", **settings)


def measure_clip_step(run: Run) -> Iterator[Row]:
    """Train ViT-B-32, our towers and loss beside open_clip's."""
    bundle = load_backbone(run, "ViT-B-32")
    batch, size = run.pick(512, 4), bundle.image.spec.image_size
    images = torch.randn(batch, 3, size, size, device=run.device)
    tokens = draw_captions(batch).to(run.device)
    theirs = backbone_step.copy_to_open_clip(bundle).to(run.device)
    ours, clip_loss = backbone_step.Ours(bundle).to(run.device), open_clip.ClipLoss()

    def our_loss() -> Tensor:
        with run.autocast():
            return ours.loss(images, tokens)

    def their_loss() -> Tensor:
        with run.autocast():
            return clip_loss(*theirs(images, tokens))

    one, other = our_loss().item(), their_loss().item()
    assert abs(one - other) <= 2e-2 * other, f"losses are {one} and {other}"
    steps = [make_step(module, loss) for module, loss in ((ours, our_loss), (theirs, their_loss))]
    with FlopCounterMode(display=False) as counter:
        steps[0]()
    timing = alternate(*steps, pairs=5, warmup=2)
    peaks = []
    for step in steps:
        with PeakMemory() as peak:
            step()
        peaks.append(round(peak.mib))
    yield {
        "what": f"training step, {'tiny' if run.quick else 'ViT-B-32'}, batch {batch}",
        "ours s": timing.ours_s,
        "alternative": "open_clip",
        "alternative s": timing.theirs_s,
        "times better": 1 / timing.ratio,
        "ours MiB": peaks[0],
        "alternative MiB": peaks[1],
        "share": run.share(counter.get_total_flops(), timing.ours_s),
    }


def draw_captions(count: int) -> Tensor:
    """Return random token ids (count, 77) of captions of 8 to 32 tokens."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.zeros(count, 77, dtype=torch.long)
    for row, length in enumerate(torch.randint(8, 33, (count,), generator=generator).tolist()):
        tokens[row, : length - 1] = torch.randint(1, 49_000, (length - 1,), generator=generator)
        tokens[row, 0], tokens[row, length - 1] = 49_406, 49_407
    return tokens


def make_step(module: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """Return a training step; both arms have the same fused optimizer."""
    return backbone_step.make_step(module, loss, fused=True)


@torch.no_grad()
def measure_aaclip(run: Run) -> Iterator[Row]:
    """Maps and scores of images at 518 pixels, in bfloat16 and in float32."""
    bundle = load_backbone(run, "ViT-L-14", image_size=518)
    adapters = AdapterConfig(image_blocks=2, text_blocks=1) if run.quick else AdapterConfig()
    model = AnomalyModel(bundle, levels=None, surgery=SurgeryConfig(), adapters=adapters, heads=HeadConfig())
    scorer = Scorer(model, logistic=UNFITTED, domain="industrial").to(run.device).eval()
    batch, size = run.pick(32, 2), scorer.size
    images = torch.randn(batch, 3, size, size, device=run.device)
    text = nn.functional.normalize(torch.randn(batch, bundle.image.spec.embed_dim, 2, device=run.device), dim=1)

    def score(*, rough: bool) -> Any:
        with run.autocast(enabled=rough):
            return scorer(images, text)

    with FlopCounterMode(display=False) as counter:
        apart = relative(score(rough=True).maps_BSS, score(rough=False).maps_BSS)
    timing = alternate(lambda: score(rough=True), lambda: score(rough=False), pairs=3, warmup=1)
    yield {
        "what": f"aaclip, {size} px, {batch} images: {batch / timing.ours_s:.0f} a second in bfloat16",
        "ours s": timing.ours_s,
        "alternative": f"float32: {batch / timing.theirs_s:.0f} a second, maps differ by {apart:.0e}",
        "alternative s": timing.theirs_s,
        "times better": 1 / timing.ratio,
        "share": run.share(counter.get_total_flops() / 2, timing.ours_s),
    }


# edgeglass


def measure_vlm(part: str) -> Callable[[Run], Iterator[Row]]:
    """Return a part of benchmarks/edgeglass_vlm.py."""

    def measure(run: Run) -> Iterator[Row]:
        shape = edgeglass_vlm.choose_shape(part, run.device, quick=run.quick)
        shape = replace(shape, pairs=min(shape.pairs, 2) if part == "decoding" else shape.pairs)
        for row in edgeglass_vlm.measure_part(part, shape, run.device, quick=run.quick):
            flops = row.pop("flops", None)
            print(f"{row['what']}: {row.pop('note')}", flush=True)
            row["what"] = f"vlm, {row['what']}"
            if isinstance(flops, int) and isinstance(row["ours s"], float):
                row["share"] = run.share(flops, row["ours s"])
            for name in ("ours", "layers"):
                del row[name]
            yield row

    return measure


PARTS: dict[str, Callable[[Run], Iterator[Row]]] = {
    "losses": measure_losses,
    "parity": check_losses,
    "clip": measure_clip_step,
    "aaclip": measure_aaclip,
    **{f"vlm-{part}": measure_vlm(part) for part in edgeglass_vlm.PARTS},
    "compile": check_compile,  # the compiler takes longest
}


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Print how long a part took."""
    start = time.perf_counter()
    yield
    print(f"== {name}: {time.perf_counter() - start:.0f} s", flush=True)


def run_part(name: str, run: Run) -> list[Row]:
    """Return the rows of a part; of one that fails, those before, and its reason."""
    rows: list[Row] = []
    with timed(name):
        try:
            for row in PARTS[name](run):
                print(row, flush=True)
                rows.append(row)
        # whatever it is, the other parts can still be measured
        except Exception as error:
            traceback.print_exc()
            reason = (str(error).strip() or "no message").splitlines()[0]
            rows.append({"what": name, "alternative": f"failed: {type(error).__name__}: {reason[:120]}"})
    run.free()
    return rows


def main() -> None:
    """Run the parts on the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; may be repeated")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("not measured: no CUDA device")
        return
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    rate = measure_rate(device, size=512 if options.quick else 8192)
    run = Run(device, options.quick, rate)
    rows: list[Row] = [{"what": "bfloat16 product", "alternative": f"{rate / 1e12:.0f} TFLOP a second"}]
    for name in options.part or PARTS:
        rows += run_part(name, run)
    order = ("what", "ours s", "alternative", "alternative s", "times better", "bar", "ours MiB", "alternative MiB")
    columns = (*order, "share")
    shown = [{column: row[column] for column in columns if column in row} for row in rows]
    card = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    report("gpu", [dict.fromkeys(columns, "") | row for row in shown], note=f"on {card}")


if __name__ == "__main__":
    main()
