"""A detector of the released code, imported and tested, has the figures of the released arithmetic, written out here.

Shapes: P prompts, T tokens, L patches, F width of a tower, D shared width.
"""

import json

import pytest
import torch
from helpers.commands import succeeded
from helpers.released import save_image, save_text
from sklearn.metrics import average_precision_score, roc_auc_score
from torch.nn.functional import conv2d, interpolate, leaky_relu, normalize, pad

from aaclip.data import read_dataset
from aaclip.data.augment import squash
from aaclip.detector.detector import open_picture
from clip_common.images import read_mask

NORMAL = ["{}", "a {}", "the {}"]
ABNORMAL = ["a damaged {}", "a broken {}", "a {} with flaw", "a {} with defect", "a {} with damage"]
TEMPLATES = ["{}.", "a photo of {}."]


def adapt(x, weight):
    """A released adapter, scaled to the norm of its input and mixed with a share of a tenth."""
    adapted = leaky_relu(x @ weight.T)
    return 0.1 * adapted * x.norm(dim=-1, keepdim=True) / adapted.norm(dim=-1, keepdim=True) + 0.9 * x


def embed_text(clip, weights, tokens_PT):
    """(P, D) with adapters after the first blocks, all 77 positions."""
    text = clip.text_tower.trunk.text
    x_PTF = text.token_embedding(tokens_PT) + text.positional_embedding
    mask_TT = torch.full((77, 77), float("-inf")).triu(1)
    for number, block in enumerate(text.transformer.resblocks):
        x_PTF = block(x_PTF, attn_mask=mask_TT)
        if f"{number + 1}.fc.0.weight" in weights:  # the last number is the projection
            x_PTF = adapt(x_PTF, weights[f"{number}.fc.0.weight"])
    ends_PF = text.ln_final(x_PTF)[torch.arange(len(tokens_PT)), tokens_PT.argmax(dim=-1)]
    return leaky_relu(ends_PF @ weights[f"{len(weights) - 1}.fc.0.weight"].T)


def embed_class(clip, weights, name):
    """(D, 2): unit mean of the unit prompts of either state."""
    means = []
    for states in (NORMAL, ABNORMAL):
        texts = [template.format(state.format(name)) for state in states for template in TEMPLATES]
        embedded_PD = normalize(embed_text(clip, weights, clip.tokenizer(texts)), dim=-1)
        means.append(normalize(embedded_PD.mean(dim=0), dim=-1))
    return torch.stack(means, dim=1)


def project(x, weights, head, relu):
    return leaky_relu(x @ weights[f"{head}.fc.0.weight"].T) if relu else x @ weights[f"{head}.fc.weight"].T


def see(clip, weights, image_3HW, levels, relu):
    """Unit patches (L, D) of each level, and the (D,) detection token."""
    visual = clip.image_tower.trunk.visual
    patches_LF = visual.conv1(image_3HW[None]).flatten(2).permute(0, 2, 1)
    x_TF = torch.cat([visual.class_embedding.expand(1, 1, -1), patches_LF], dim=1) + visual.positional_embedding
    x_TF, found = visual.ln_pre(x_TF), []
    for number, block in enumerate(visual.transformer.resblocks):
        x_TF = block(x_TF)
        if f"layer_adapters.{number}.fc.0.weight" in weights:
            x_TF = adapt(x_TF, weights[f"layer_adapters.{number}.fc.0.weight"])
        if number + 1 in levels:
            found.append(visual.ln_post(x_TF[0, 1:]))
    patches = [normalize(project(x, weights, f"seg_proj.{k}", relu), dim=-1) for k, x in enumerate(found)]
    return patches, normalize(project(found[-1], weights, "det_proj", relu), dim=-1).mean(dim=0)


def blur(map_11gg, width, sigma):
    offsets = torch.arange(width) - width // 2
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel_KK = torch.outer(kernel, kernel) / kernel.sum() ** 2
    return conv2d(pad(map_11gg, [width // 2] * 4, mode="reflect"), kernel_KK[None, None])


def score_map(patches, text_D2, size):
    """(H, W): each level by itself blurred and interpolated, then summed."""
    total = torch.zeros(size, size)
    for patches_LD in patches:
        similar_L2 = 100 * patches_LD @ text_D2
        side = int(len(patches_LD) ** 0.5)
        map_11gg = ((similar_L2[:, 1] + 1 - similar_L2[:, 0]) / 2).reshape(1, 1, side, side)
        total += interpolate(blur(map_11gg, 7, 1.0), (size, size), mode="bilinear", align_corners=True)[0, 0]
    return total


def stretch(values, lowest):
    return (values - lowest) / (values.max() - lowest)


@torch.no_grad()
def released_figures(clip, text, image, root, name, *, levels, relu):
    maps, cosines, labels, masks = [], [], [], []
    text_D2 = embed_class(clip, text, name)
    for record in read_dataset(root).of(split="test", classes=[name]):
        picture = open_picture(record.image)
        mask = read_mask(record.mask, size=picture.size) if record.mask else None
        squashed, mask_HW = squash(picture, mask, side=32)
        patches, token_D = see(clip, image, clip.preprocess(squashed), levels, relu)
        maps.append(score_map(patches, text_D2, 32))
        cosines.append(token_D @ text_D2[:, 1])
        labels.append(record.anomalous)
        masks.append(torch.from_numpy(mask_HW))
    maps, cosines = torch.stack(maps), torch.stack(cosines)
    scores = 0.5 * stretch(maps.amax(dim=(1, 2)), maps.min()) + 0.5 * stretch(cosines, cosines.min())
    marked = torch.stack(masks).flatten().numpy()
    return {
        "image/auroc": roc_auc_score(labels, scores.numpy()),
        "image/ap": average_precision_score(labels, scores.numpy()),
        "pixel/auroc": roc_auc_score(marked, maps.flatten().numpy()),
        "pixel/ap": average_precision_score(marked, maps.flatten().numpy()),
    }


@pytest.mark.parametrize("relu", [False, True])
def test_a_detector_of_the_release_gives_its_figures(aaclip, bundle, clip_folder, parts, tmp_path, relu):
    torch.manual_seed(3)
    text = save_text(tmp_path, blocks=2).state_dict()
    image = save_image(tmp_path, blocks=3, levels=3, relu=relu).state_dict()
    kept = [f"backbone.{name}=null" for name in ("pretrained", "image_size", "activation")]
    small = [f"backbone.name=local-dir:{clip_folder}", *kept, "levels=[2, 5, 8]", "surgery.blocks=6"]
    succeeded(aaclip("import", tmp_path, tmp_path / "detector", *small))
    succeeded(aaclip("test", tmp_path / "detector", parts, "--out", tmp_path / "out"))
    found = json.loads((tmp_path / "out" / "results.json").read_text())["classes"]
    for name in ("mug", "star"):
        expected = released_figures(bundle, text, image, parts, name, levels=[2, 5, 8], relu=relu)
        for key, value in expected.items():  # pixels are counted in bins of the map's values
            assert found[name][key] == pytest.approx(value, abs=1e-6 if key.startswith("image") else 1e-4), key
