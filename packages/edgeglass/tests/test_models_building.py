"""Encoders from a configuration: which model a name means, adapters, the effect of every field, and refusals."""

import dataclasses
from functools import cache

import pytest
import torch
from toy_encoders import make_config, make_inputs
from toy_models import save_audio_encoder, save_text_encoder

from clip_common.config import ConfigError, load_config
from edgeglass import config as settings
from edgeglass.config import Config
from edgeglass.models import building
from edgeglass.models.building import build_encoders, build_model, load_encoder
from edgeglass.training.losses import Columns, CorpusAlignmentLoss, build_loss

CAPTIONS = torch.tensor([0, 1, 2, 3, 0, 5])
LORA = "lora.rank=2"
PERCEIVER = "pooling=perceiver"


def observe(config: Config) -> dict[str, object]:
    """Everything that a field can change: trainable parameters, embeddings, loss and gradients of a training step."""
    model = build_model(config, loss=build_loss(config)).train()
    given = make_inputs(model)
    embedded = {name: rows.detach() for name, rows in model.eval()(**given).embeddings.items()}
    torch.manual_seed(0)
    output = model.train()(**given, captions=CAPTIONS, groups=torch.arange(6))
    loss = output.loss
    if isinstance(model.loss, CorpusAlignmentLoss):
        rows = torch.arange(6)
        columns = {name: Columns(part, CAPTIONS, rows, rows) for name, part in output.embeddings.items()}
        first = {name: part[:3] for name, part in output.embeddings.items()}
        loss = model.loss.against(
            first, columns, present={}, captions=CAPTIONS[:3], groups=rows[:3], samples=rows[:3]
        ).loss
    loss.backward()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return {
        "shapes": {name: tuple(p.shape) for name, p in trainable.items()},
        "widths": model.widths,
        "embedded": embedded,
        "loss": loss.item(),
        "gradients": {name: p.grad.abs().sum().item() for name, p in trainable.items() if p.grad is not None},
    }


def differ(one: object, other: object) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() != other.keys() or any(differ(one[key], other[key]) for key in one)
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape != other.shape or not torch.allclose(one, other, atol=1e-6)
    return one != other


@pytest.fixture(scope="module")
def observed(encoder_folders, tmp_path_factory):
    """`observe` by overrides; "{folder}" in them is a folder with another text and another audio encoder."""
    folder = tmp_path_factory.mktemp("others")
    save_text_encoder(folder / "text", seed=1)
    save_audio_encoder(folder / "audio", seed=1)

    @cache
    def look(*overrides: str) -> dict[str, object]:
        filled = [one.replace("{folder}", str(folder)).replace("{encoders}", str(encoder_folders)) for one in overrides]
        return observe(make_config(encoder_folders, *filled))

    return look


def shared(modality: str) -> dict[str, tuple[str, ...]]:
    """Field → what it needs, then its change: of the fields that all encoders have."""
    at = f"encoders.{modality}"
    lora = f"{at}.{LORA}"
    return {
        f"{at}.projector": (f"{at}.projector=linear",),
        f"{at}.hidden": (f"{at}.hidden=5",),
        f"{at}.dropout": (f"{at}.dropout=0.5",),
        f"{at}.freeze": (f"{at}.freeze=false",),
        f"{at}.lora.rank": (lora, f"{at}.lora.rank=3"),
        f"{at}.lora.alpha": (lora, f"{at}.lora.alpha=4"),
        f"{at}.lora.targets": (lora, f"{at}.lora.targets=[v_proj,value]"),
    }


def pooled(modality: str) -> dict[str, tuple[str, ...]]:
    at = f"encoders.{modality}"
    sizes = {"latents": 2, "layers": 2, "heads": 4, "ff_mult": 2}
    return {f"{at}.pooling": (f"{at}.pooling=attention",)} | {
        f"{at}.perceiver.{name}": (f"{at}.{PERCEIVER}", f"{at}.perceiver.{name}={value}")
        for name, value in sizes.items()
    }


CORPUS = "loss.negatives=corpus"
EFFECTS: dict[str, tuple[str, ...]] = {
    **shared("vision"),
    **shared("text"),
    **shared("audio"),
    **pooled("vision"),
    **pooled("audio"),
    "encoders.vision.name": ("encoders.vision.name={encoders}/dinov2",),
    "encoders.vision.image_size": ("encoders.vision.image_size=42",),
    "encoders.vision.select_layer": ("encoders.vision.select_layer=1",),
    "encoders.vision.select_feature": ("encoders.vision.select_feature=cls_patch",),
    "encoders.text.name": ("encoders.text.name={folder}/text",),
    "encoders.audio.name": ("encoders.audio.name={folder}/audio",),
    "audio.context": ("audio.context=full",),
    "mrl.width": ("mrl.width=24",),
    "mrl.dims": ("mrl.dims=[8]",),
    "fusion.kind": ("fusion.kind=gated", "fusion.kind=concat"),
    "fusion.inputs": ("fusion.kind=gated", "fusion.inputs=[image,text]"),
    "fusion.weight": ("fusion.kind=gated", "fusion.weight=0.5"),
    "fusion.heads": ("fusion.kind=cross_attention", "fusion.heads=2"),
    "loss.image_text": ("loss.image_text=0.5",),
    "loss.audio_text": ("loss.audio_text=0",),
    "loss.image_audio": ("loss.image_audio=1",),
    "loss.clip": ("loss.clip=2",),
    "loss.mrl": ("loss.mrl=0.5",),
    "loss.dims_per_step": ("loss.dims_per_step=1",),
    "loss.temperature": ("loss.temperature=0.07",),
    "loss.negatives": (CORPUS,),
    "loss.corpus_widths": (CORPUS, "loss.corpus_widths=full"),
}
ELSEWHERE = {
    "encoders.vision.pretrained": "test_the_tag_of_weights_goes_to_open_clip, below",
    "loss.corpus_every": "test_training_corpus.py",
}


def field_names(section: type, name: str) -> list[str]:
    """Dotted names of all fields of a dataclass and those in it."""
    found = []
    for one in dataclasses.fields(section):
        inner = one.default_factory
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            found += field_names(inner, f"{name}.{one.name}")
        else:
            found.append(f"{name}.{one.name}")
    return found


def test_every_field_has_a_test_of_its_effect():
    sections = {
        "encoders": settings.EncodersConfig,
        "audio": settings.SoundConfig,
        "mrl": settings.MrlConfig,
        "fusion": settings.FusionConfig,
        "loss": settings.LossConfig,
    }
    names = [name for section, kind in sections.items() for name in field_names(kind, section)]
    assert sorted(names) == sorted([*EFFECTS, *ELSEWHERE])


@pytest.mark.parametrize("name", EFFECTS)
def test_a_field_changes_the_model_its_loss_or_what_trains(observed, name):
    *needed, _ = EFFECTS[name]
    assert differ(observed(*EFFECTS[name]), observed(*needed))


def test_the_same_configuration_gives_the_same_model(encoder_folders, observed):
    assert not differ(observe(make_config(encoder_folders)), observed())
    assert differ(observe(make_config(encoder_folders, "trainer.seed=1"))["embedded"], observed()["embedded"])


def test_the_tag_of_weights_goes_to_open_clip(encoder_folders, monkeypatch):
    asked = []

    def load(name: str, **keywords: object) -> None:
        asked.append((name, keywords))
        raise ValueError("asked")

    monkeypatch.setattr(building, "load_clip", load)
    for overrides in (["encoders.vision.pretrained=openai"], ["encoders.vision.name=ViT-B-32"]):
        with pytest.raises(ValueError, match="asked"):
            load_encoder(make_config(encoder_folders, *overrides), "image")
    assert [keywords["pretrained"] for _, keywords in asked] == ["openai", None]


@pytest.mark.parametrize("modality", ["vision", "text", "audio"])
def test_adapters_train_alone_and_change_nothing_at_the_start(encoder_folders, modality):
    name = "image" if modality == "vision" else modality
    plain = build_encoders(make_config(encoder_folders))[name].eval()
    config = make_config(encoder_folders, f"encoders.{modality}.{LORA}")
    model = build_model(config, loss=build_loss(config)).train()
    adapted, inputs = model.encoder_of(name), make_inputs(model)
    given = inputs[{"image": "images", "text": "texts", "audio": "audio"}[name]]
    before = {key: p.clone() for key, p in adapted.trunk.named_parameters() if "lora" not in key}
    with torch.no_grad():
        assert torch.equal(adapted.features(given).tokens, plain.features(given).tokens)
    training = {key for key, p in adapted.trunk.named_parameters() if p.requires_grad}
    assert training
    assert all("lora_" in key for key in training)
    assert not any(part.training for part in adapted.trunk.modules())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(**inputs).loss.backward()
    optimizer.step()
    after = dict(adapted.trunk.named_parameters())
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not torch.equal(adapted.features(given).tokens, plain.features(given).tokens)


def test_tiny_is_an_image_encoder_of_the_package(encoder_folders):
    encoder = build_encoders(
        make_config(encoder_folders, "encoders.vision.name=tiny", "encoders.vision.image_size=null")
    )["image"]
    assert encoder(torch.randn(2, 3, 112, 112)).pooled.shape == (2, 16)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["mrl.dims=[4,8]"], r"mrl\.dims: expected whole numbers from 1, each below the one before, got \[4, 8\]"),
        (["mrl.dims=[8,8]"], r"mrl\.dims: .* got \[8, 8\]"),
        (["mrl.dims=[8,0]"], r"mrl\.dims: .* got \[8, 0\]"),
        (["mrl.dims=[32]"], r"mrl\.dims: 32 is wider than the embeddings, mrl\.width=16"),
        (["mrl.width=0", "mrl.dims=[]"], r"mrl\.width: expected a whole number from 1, got 0"),
        (["mrl.widht=8"], "widht.*width"),
        (["encoders.vision.pooling=max"], r"pooling.*max"),
        (["encoders.vision.perceiver.layers=0"], r"perceiver\.layers: expected a whole number from 1, got 0"),
        (["encoders.text.dropout=1"], r"dropout: expected a share from 0 to below 1, got 1"),
        (["encoders.text.lora.dropout=0.1"], "dropout"),
        (["encoders.text.lora.rank=2", "encoders.text.freeze=false"], r"lora\.rank=2 adapts a frozen encoder"),
        (["encoders.text.name=null", "encoders.audio.name=null"], "at least two"),
        (["fusion.kind=gated", "encoders.audio.name=null"], "no encoder of audio: this configuration has image, text"),
        (["fusion.kind=gated", "fusion.inputs=[image]"], r"fusion\.inputs: expected two different modalities"),
        (["fusion.kind=gated", "fusion.inputs=[image,image]"], r"two different modalities, got \['image', 'image'\]"),
        (["fusion.kind=gated", "fusion.weight=0"], r"fusion\.weight: expected a weight above 0, got 0"),
        (["loss.clip=-1"], r"loss\.clip: expected a weight from 0, got -1"),
        (["loss.temperature=0"], r"loss\.temperature: expected a temperature above 0, or null, got 0"),
        (["loss.negatives=corpus", "encoders.text.freeze=false"], "the encoder of text trains: set loss.negatives"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_in_one_line(overrides, said):
    with pytest.raises(ConfigError, match=said) as error:
        load_config(Config, overrides=["mrl.width=16", "mrl.dims=[8]", *overrides])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["encoders.vision.pooling=perceiver", "encoders.vision.perceiver.heads=3"], r"heads=3 does not divide .* 16"),
        (["fusion.kind=cross_attention", "fusion.heads=3"], r"fusion\.heads=3 does not divide the width 16"),
        (
            ["encoders.vision.select_layer=4"],
            r"select_layer=4: expected 1 to 3, or -1 to -3 .* of 3 transformer blocks",
        ),
        (["encoders.vision.select_layer=0"], r"select_layer=0: expected 1 to 3"),
        (
            ["encoders.audio.lora.rank=2", "encoders.audio.lora.targets=[query]"],
            r"lora\.targets=\['query'\].*its linear layers are .*q_pr",
        ),
        (
            ["loss.image_text=0", "loss.audio_text=0", "loss.image_audio=0"],
            "no pair of image, text, audio has a weight",
        ),
        (["encoders.text.name=/nowhere/model"], "/nowhere/model"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused_in_one_line(encoder_folders, overrides, said):
    config = make_config(encoder_folders, *overrides)
    with pytest.raises(ValueError, match=said) as error:
        build_model(config, loss=build_loss(config))
    assert "\n" not in str(error.value)
