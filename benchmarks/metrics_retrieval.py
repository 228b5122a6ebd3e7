"""Retrieval metrics against common research code: for each K a full similarity and torch.topk in both directions.

    uv run python benchmarks/metrics_retrieval.py            # 1000 × 5000, then 5000 × 25000
    uv run python benchmarks/metrics_retrieval.py --quick    # 1000 × 5000 only, fewer pairs
    uv run python benchmarks/metrics_retrieval.py --busy 1 --busy 4    # against one product and top-10 both ways, quiet
                                                                       # and beside 1 and 4 busy processes

Three variants of that code: "R@K" computes a similarity for each K and direction; "R@K, shared" shares it between the
directions; "R@K and mAP@10, shared" adds mAP@10 from one more similarity and top-10. Ours always computes all of these
and MedR, MeanR and MRR. Embeddings: width 512, float32, five noisy captions per image (text→image R@1 near 0.6). Peak
memory of each arm is measured in its own process.
"""

import argparse
import json

import torch
from _measure import PeakMemory, alternate, arm_in_own_process, compare_busy, report
from torch import Tensor
from torch.nn import functional

from clip_common.metrics import image_text_retrieval

KS = (1, 5, 10)


def draw_embeddings(images: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the embeddings of images and of five captions for each, and the image of each caption."""
    generator = torch.Generator().manual_seed(0)
    image_of_text = torch.arange(images).repeat_interleave(5)
    image_ND = torch.randn(images, 512, generator=generator)
    text_MD = 0.16 * image_ND[image_of_text] + torch.randn(len(image_of_text), 512, generator=generator)
    return image_ND, text_MD, image_of_text


def ours(image_ND: Tensor, text_MD: Tensor, image_of_text: Tensor) -> dict[str, float]:
    return image_text_retrieval(image_ND, text_MD, image_of_text).metrics


def recall_by_direction(image_ND: Tensor, text_MD: Tensor, image_of_text: Tensor) -> dict[str, float]:
    """Compute R@K with a new similarity for each K and direction."""
    image_ND, text_MD = functional.normalize(image_ND), functional.normalize(text_MD)
    image = torch.arange(len(image_ND))

    def recall(queries_QD: Tensor, gallery_GD: Tensor, query_image_Q: Tensor, item_image_G: Tensor, k: int) -> float:
        best_Qk = (queries_QD @ gallery_GD.T).topk(k, dim=1).indices
        return (item_image_G[best_Qk] == query_image_Q[:, None]).any(1).double().mean().item()

    return {f"i2t/R@{k}": recall(image_ND, text_MD, image, image_of_text, k) for k in KS} | {
        f"t2i/R@{k}": recall(text_MD, image_ND, image_of_text, image, k) for k in KS
    }


def recall_by_shared_similarity(image_ND: Tensor, text_MD: Tensor, image_of_text: Tensor) -> dict[str, float]:
    """Compute R@K with one similarity for each K, shared between the directions."""
    image_ND, text_MD = functional.normalize(image_ND), functional.normalize(text_MD)
    metrics = {}
    for k in KS:
        for direction, hit_Qk in _find_hits(image_ND @ text_MD.T, image_of_text, k=k).items():
            metrics[f"{direction}/R@{k}"] = hit_Qk.any(1).double().mean().item()
    return metrics


def recall_and_map_by_shared_similarity(image_ND: Tensor, text_MD: Tensor, image_of_text: Tensor) -> dict[str, float]:
    """Compute R@K as `recall_by_shared_similarity` does, and mAP@10 from one more similarity."""
    metrics = recall_by_shared_similarity(image_ND, text_MD, image_of_text)
    similarity_NM = functional.normalize(image_ND) @ functional.normalize(text_MD).T
    for direction, hit_Qk in _find_hits(similarity_NM, image_of_text, k=10).items():
        precision_Qk = hit_Qk.cumsum(1) / torch.arange(1, 11)
        positives = 5 if direction == "i2t" else 1
        metrics[f"{direction}/mAP@10"] = ((precision_Qk * hit_Qk).sum(1) / positives).double().mean().item()
    return metrics


def rank_plainly(image_ND: Tensor, text_MD: Tensor, image_of_text: Tensor) -> dict[str, float]:
    """Compute the hits of both directions from one similarity: the least that research code does."""
    hits = _find_hits(functional.normalize(image_ND) @ functional.normalize(text_MD).T, image_of_text, k=max(KS))
    return {f"{way}/R@{k}": hit_Qk[:, :k].any(1).double().mean().item() for way, hit_Qk in hits.items() for k in KS}


def _find_hits(similarity_NM: Tensor, image_of_text: Tensor, *, k: int) -> dict[str, Tensor]:
    """Return for each direction (Q, k): whether each of the first k results is a positive of its query."""
    image = torch.arange(len(similarity_NM))
    return {
        "i2t": image_of_text[similarity_NM.topk(k, dim=1).indices] == image[:, None],
        "t2i": similarity_NM.T.topk(k, dim=1).indices == image_of_text[:, None],
    }


ARMS = {
    "ours": ours,
    "R@K": recall_by_direction,
    "R@K, shared": recall_by_shared_similarity,
    "R@K and mAP@10, shared": recall_and_map_by_shared_similarity,
}


def compare(images: int, arm: str, *, pairs: int, warmup: int, memory: bool) -> dict[str, object]:
    """Return a row of the table, after asserting that the metrics of both arms agree."""
    data = draw_embeddings(images)
    result, expected = ours(*data), ARMS[arm](*data)
    for name, value in expected.items():
        tolerance = 1e-3  # scores within 1e-6 of each other tie: ours averages over their orders, theirs takes one
        assert abs(result[name] - value) < tolerance, f"{name}: ours {result[name]}, theirs {value}"
    timing = alternate(lambda: ours(*data), lambda: ARMS[arm](*data), pairs=pairs, warmup=warmup)
    row: dict[str, object] = {
        "gallery": f"{images} × {5 * images}",
        "against": arm,
        "ours s": timing.ours_s,
        "theirs s": timing.theirs_s,
        "times faster": 1 / timing.ratio,
    }
    if memory:
        for name, measured in (("ours MiB", "ours"), ("theirs MiB", arm)):
            row[name] = arm_in_own_process(__file__, measured, "--images", str(images))["mib"]
    return row


def main() -> None:
    """Compare every variant, or measure the memory of one arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the small gallery only, with three pairs")
    parser.add_argument("--arm", choices=ARMS, help="measure the peak memory of one arm and print it as JSON")
    parser.add_argument("--images", type=int, default=1000, help="number of images for --arm")
    parser.add_argument("--busy", type=int, action="append", metavar="N", help="beside N busy processes; repeatable")
    options = parser.parse_args()
    if options.busy:
        data = draw_embeddings(1000)
        assert all(abs(ours(*data)[name] - value) < 1e-3 for name, value in rank_plainly(*data).items())
        rows = compare_busy(
            "1000 × 5000 / one product and top-10 both ways",
            lambda: ours(*data),
            lambda: rank_plainly(*data),
            busy=options.busy,
        )
        report("metrics_retrieval_busy", rows, note="width 512, float32; target: at least 0.8 kept")
        return
    if options.arm:
        ARMS[options.arm](*draw_embeddings(100))
        data = draw_embeddings(options.images)
        with PeakMemory() as memory:
            ARMS[options.arm](*data)
        print(json.dumps({"mib": memory.mib}))
        return
    pairs = 3 if options.quick else 7
    rows = [compare(1000, arm, pairs=pairs, warmup=2, memory=True) for arm in list(ARMS)[1:]]
    if not options.quick:
        rows.append(compare(5000, "R@K", pairs=3, warmup=1, memory=True))
    report(
        "metrics_retrieval",
        rows,
        note="width 512, float32; targets: 4 times faster at 1000 × 5000, under 1024 MiB at 5000 × 25000",
    )


if __name__ == "__main__":
    main()
