"""Retrieval metrics against research code's usual way: for each K a full similarity and torch.topk in both directions.

    uv run python benchmarks/metrics_retrieval.py            # 1000 × 5000, then 5000 × 25000
    uv run python benchmarks/metrics_retrieval.py --quick    # 1000 × 5000 only, fewer pairs

The way comes in three kinds: a function of (queries, gallery, K), which computes a similarity for each K and
direction; a cheaper one that shares it between the directions; and that one with mAP@10 from one more similarity and
top-10. Ours gives all of these figures and MedR, MeanR and MRR, whichever it is compared with. Embeddings: width 512,
float32, five noisy captions an image (text→image R@1 near 0.6). Peak memory of each arm: in a process of its own.
"""

import argparse
import json

import torch
from _measure import PeakMemory, alternate, arm_in_own_process, report
from torch import Tensor
from torch.nn import functional

from clip_common.metrics import image_text_retrieval

KS = (1, 5, 10)


def embeddings(images: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image_of_text = torch.arange(images).repeat_interleave(5)
    image_ND = torch.randn(images, 512, generator=generator)
    text_MD = 0.16 * image_ND[image_of_text] + torch.randn(len(image_of_text), 512, generator=generator)
    return image_ND, text_MD, image_of_text


def ours(image_ND: Tensor, text_MD: Tensor, image_of_text: Tensor) -> dict[str, float]:
    return image_text_retrieval(image_ND, text_MD, image_of_text).metrics


def recall_by_function(image_ND: Tensor, text_MD: Tensor, image_of_text: Tensor) -> dict[str, float]:
    image_ND, text_MD = functional.normalize(image_ND), functional.normalize(text_MD)
    image = torch.arange(len(image_ND))

    def recall(queries_QD: Tensor, gallery_GD: Tensor, query_image_Q: Tensor, item_image_G: Tensor, k: int) -> float:
        best_Qk = (queries_QD @ gallery_GD.T).topk(k, dim=1).indices
        return (item_image_G[best_Qk] == query_image_Q[:, None]).any(1).double().mean().item()

    return {f"i2t/R@{k}": recall(image_ND, text_MD, image, image_of_text, k) for k in KS} | {
        f"t2i/R@{k}": recall(text_MD, image_ND, image_of_text, image, k) for k in KS
    }


def recall_by_shared_similarity(image_ND: Tensor, text_MD: Tensor, image_of_text: Tensor) -> dict[str, float]:
    image_ND, text_MD = functional.normalize(image_ND), functional.normalize(text_MD)
    metrics = {}
    for k in KS:
        for way, hit_Qk in _hits(image_ND @ text_MD.T, image_of_text, k=k).items():
            metrics[f"{way}/R@{k}"] = hit_Qk.any(1).double().mean().item()
    return metrics


def recall_and_map_by_shared_similarity(image_ND: Tensor, text_MD: Tensor, image_of_text: Tensor) -> dict[str, float]:
    metrics = recall_by_shared_similarity(image_ND, text_MD, image_of_text)
    similarity_NM = functional.normalize(image_ND) @ functional.normalize(text_MD).T
    for way, hit_Qk in _hits(similarity_NM, image_of_text, k=10).items():
        precision_Qk = hit_Qk.cumsum(1) / torch.arange(1, 11)
        positives = 5 if way == "i2t" else 1
        metrics[f"{way}/mAP@10"] = ((precision_Qk * hit_Qk).sum(1) / positives).double().mean().item()
    return metrics


def _hits(similarity_NM: Tensor, image_of_text: Tensor, *, k: int) -> dict[str, Tensor]:
    image = torch.arange(len(similarity_NM))
    return {
        "i2t": image_of_text[similarity_NM.topk(k, dim=1).indices] == image[:, None],
        "t2i": similarity_NM.T.topk(k, dim=1).indices == image_of_text[:, None],
    }


ARMS = {
    "ours": ours,
    "R@K": recall_by_function,
    "R@K, shared": recall_by_shared_similarity,
    "R@K and mAP@10, shared": recall_and_map_by_shared_similarity,
}


def compare(images: int, arm: str, *, pairs: int, warmup: int, memory: bool) -> dict[str, object]:
    data = embeddings(images)
    found, expected = ours(*data), ARMS[arm](*data)
    for name, value in expected.items():
        close = 1e-3  # of scores within 1e-6 of each other every order counts in ours, and one by chance in theirs
        assert abs(found[name] - value) < close, f"{name}: ours {found[name]}, theirs {value}"
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the small gallery only, three pairs")
    parser.add_argument("--arm", choices=ARMS, help="measure the peak memory of one arm and print it as JSON")
    parser.add_argument("--images", type=int, default=1000, help="images in the gallery of --arm")
    options = parser.parse_args()
    if options.arm:
        ARMS[options.arm](*embeddings(100))
        data = embeddings(options.images)
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
        note="width 512, float32; bars: 4 times faster at 1000 × 5000, under 1024 MiB at 5000 × 25000",
    )


if __name__ == "__main__":
    main()
