"""A model exported as a stock SentenceTransformer: the same embeddings, in a process without this package."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_models as toy
from helpers.real import real_data, real_model
from PIL import Image
from torch import Tensor, nn

from edgeglass.aligner.export import export_model
from edgeglass.config import Config
from edgeglass.models.alignment import MultimodalAlignmentModel
from edgeglass.models.building import build_model

CLOSE = 0.99999
TEXTS = ["a red ball", "b", "a longer text of many letters 0123456789"]
SECONDS = (0.4, 0.01, 1.23, 2.0)
"""Of the toy Whisper's window of 2 s."""

FRESH = """
import json, sys
from pathlib import Path
import numpy as np
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer

folder, work = sys.argv[1:]
work = Path(work)
model = SentenceTransformer(folder, trust_remote_code=False, device="cpu")
inputs = json.loads((work / "inputs.json").read_text(encoding="utf-8"))
found = {}
if inputs["texts"]:
    found["text"] = model.encode(inputs["texts"])
if inputs["images"]:
    found["image"] = model.encode([Image.open(file).convert("RGB") for file in inputs["images"]])
    found["image by path"] = model.encode(inputs["images"])
if inputs["sounds"]:
    sounds = [np.load(file) for file in inputs["sounds"]]
    found["audio"] = model.encode([{"audio": {"array": sound, "sampling_rate": 16000}} for sound in sounds])
np.savez(work / "found.npz", **found)
state = {name: route[0].model.state_dict() for name, route in model[0].sub_modules.items()}
torch.save(state, work / "state.pt")
names = {name.partition(".")[0] for name in sys.modules}
(work / "modules.json").write_text(json.dumps(sorted(names)), encoding="utf-8")
"""


def make_config(folder: Path, *, modalities: Sequence[str] = ("image", "text", "audio")) -> Config:
    config = Config()
    encoders = config.encoders
    encoders.vision.name = "tiny"
    encoders.text.name = str(toy.save_text_encoder(folder / "text encoder"))
    encoders.audio.name = str(toy.save_audio_encoder(folder / "audio encoder")) if "audio" in modalities else None
    config.audio.context = "full"
    config.mrl.width, config.mrl.dims = 24, [8]
    return config


def embed(model: MultimodalAlignmentModel, modality: str, sources: Sequence[Any], *, centre: bool = False) -> Tensor:
    """Embeddings of texts, files of images or samples, by this package."""
    encoder = model.encoder_of(modality)
    feed: Any = encoder.encoder.feed
    if modality == "image":
        items = [feed.load(Path(source).read_bytes(), name=str(source)) for source in sources]
    else:
        items = list(sources) if modality == "text" else [feed.from_samples(torch.from_numpy(one)) for one in sources]
    with torch.no_grad():
        return model.eval().embed(modality, encoder(feed.batch(items)).pooled, centre=centre)


def run_fresh(
    folder: Path, work: Path, *, texts: Sequence[str] = (), images: Sequence[Path] = (), sounds: Sequence[Any] = ()
) -> dict[str, Tensor]:
    """Embeddings by sentence-transformers in a process of its own."""
    work.mkdir(exist_ok=True)
    files = [work / f"{number}.npy" for number in range(len(sounds))]
    for file, sound in zip(files, sounds, strict=True):
        np.save(file, sound)
    inputs = {"texts": list(texts), "images": list(map(str, images)), "sounds": list(map(str, files))}
    (work / "inputs.json").write_text(json.dumps(inputs), encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", FRESH, str(folder), str(work)]
    done = subprocess.run(command, env=environment, cwd=work, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name: torch.from_numpy(rows) for name, rows in np.load(work / "found.npz").items()}


def load_exported(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", trust_remote_code=False)


def assert_close(found: Any, expected: Tensor) -> None:
    cosines = (torch.as_tensor(found) * expected).sum(dim=1)
    assert cosines.min() >= CLOSE, cosines


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images ü")
    return [toy.draw_image(folder / f"{seed}.png", seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> tuple[MultimodalAlignmentModel, Config, Path, Path]:
    """A model of all three modalities with means, its configuration, its export, and a folder for work."""
    folder = tmp_path_factory.mktemp("exported")
    config = make_config(folder)
    config.embeddings.centre = True
    config.fusion.kind = "gated"
    model = build_model(config).eval()
    torch.manual_seed(0)
    model.set_means({name: 0.1 * torch.randn(24) for name in (*model.modalities, "image+audio")})
    exported = export_model(model, config, folder / "out ü")
    return model, config, exported, folder / "work"


def test_a_fresh_process_gives_the_same_embeddings_of_all_three(
    aligned: tuple[MultimodalAlignmentModel, Config, Path, Path], images: list[Path]
) -> None:
    model, _, exported, work = aligned
    sounds = [toy.make_samples(number, seconds=seconds) for number, seconds in enumerate(SECONDS)]
    found = run_fresh(exported, work, texts=TEXTS, images=images, sounds=sounds)
    assert_close(found["text"], embed(model, "text", TEXTS, centre=True))
    assert_close(found["image"], embed(model, "image", images, centre=True))
    assert_close(found["image by path"], embed(model, "image", images, centre=True))
    assert_close(found["audio"], embed(model, "audio", sounds, centre=True))
    names = json.loads((work / "modules.json").read_text(encoding="utf-8"))
    assert not {"clip_common", "edgeglass", "open_clip"} & set(names)
    # every weight of Whisper's encoder: transformers draws those it does not find
    trunk: Any = model.encoder_of("audio").trunk
    loaded = torch.load(work / "state.pt", weights_only=True)["audio"]
    assert loaded.keys() == trunk.model.state_dict().keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in trunk.model.state_dict().items())


def test_the_example_of_the_card_runs(
    aligned: tuple[MultimodalAlignmentModel, Config, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, exported, _ = aligned
    card = (exported / "README.md").read_text(encoding="utf-8")
    for note in ("fusion of image and audio is not part", "truncate_dim=8", "first 2 s", "| text | `text encoder` |"):
        assert note in card
    code = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)[0]
    toy.draw_image(tmp_path / "photo.png", seed=1).rename(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"folder": str(exported), "samples": toy.make_samples(1)}
    exec(code, names)
    assert names["images"].shape == names["texts"].shape == names["sounds"].shape == (1, 24)


def test_one_modality_has_the_rows_it_has_among_three(
    aligned: tuple[MultimodalAlignmentModel, Config, Path, Path], tmp_path: Path
) -> None:
    model, config, exported, _ = aligned
    only = export_model(model, config, tmp_path / "text", modalities=["text"])
    np.testing.assert_array_equal(load_exported(only).encode(TEXTS), load_exported(exported).encode(TEXTS))
    assert not [*only.glob("image*"), *only.glob("audio*")]
    with pytest.raises(ValueError, match="no encoder of sound"):
        export_model(model, config, tmp_path / "sound", modalities=["sound"])


def save_vision(folder: Path, kind: str) -> Path:
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    wide = {"intermediate_size": 32}
    made = {
        "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**sizes)),
        "registers": lambda: transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(**sizes, num_register_tokens=3)
        ),
        "siglip": lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**sizes, **wide)),
        "clip": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes, **wide)),
    }
    torch.manual_seed(0)
    model = made[kind]()
    for parameter in model.parameters():  # transformers' own start is too even to tell tokens apart
        nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("tiny", {"pooling": "own"}),
        ("tiny", {"pooling": "mean"}),
        ("tiny", {"select_feature": "cls_patch"}),
        ("tiny", {"select_layer": 3}),
        ("dinov2", {"pooling": "own", "projector": "linear"}),
        ("dinov2", {"pooling": "mean"}),
        ("dinov2", {"select_feature": "cls_patch"}),
        ("dinov2", {"select_layer": -2}),
        ("registers", {"pooling": "mean"}),
        ("siglip", {"pooling": "own"}),
        ("siglip", {"pooling": "mean"}),
        ("clip", {"pooling": "mean"}),
    ],
)
def test_images_of_each_encoder_and_pooling(
    kind: str, settings: dict[str, Any], images: list[Path], tmp_path: Path
) -> None:
    config = make_config(tmp_path, modalities=("image", "text"))
    vision = config.encoders.vision
    if kind != "tiny":
        vision.name, vision.image_size = str(save_vision(tmp_path / kind, kind)), 32
    for name, value in settings.items():
        setattr(vision, name, value)
    model = build_model(config)
    exported = export_model(model, config, tmp_path / "out", modalities=["image"])
    expected = embed(model, "image", images)
    assert_close(load_exported(exported).encode([Image.open(file) for file in images]), expected)
    assert (expected @ expected.T).min() < 0.999  # of different pictures


@pytest.mark.parametrize("kind", ["bert", "clip"])
def test_text_models_of_transformers(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer, CLIPTextConfig, CLIPTextModel

    config = make_config(tmp_path, modalities=("image", "text"))
    folder = tmp_path / "text encoder parts"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if kind == "clip":
        sizes = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
            eos_token_id=tokenizer.sep_token_id,
        )
        CLIPTextModel(sizes).save_pretrained(tmp_path / "clip")
        tokenizer.save_pretrained(tmp_path / "clip")
        folder = tmp_path / "clip"
    else:
        assert AutoModel.from_pretrained(folder).config.model_type == "bert"
    config.encoders.text.name = str(folder)
    model = build_model(config)
    exported = export_model(model, config, tmp_path / "out", modalities=["text"])
    assert_close(load_exported(exported).encode(TEXTS), embed(model, "text", TEXTS))


def test_trained_encoders_and_merged_adapters(images: list[Path], tmp_path: Path) -> None:
    config = make_config(tmp_path, modalities=("image", "text"))
    config.encoders.text.lora.rank = 2
    config.encoders.vision.freeze = False
    model = build_model(config)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():  # as after training: adapters start at zero
        if "lora" in name or "visual" in name:
            nn.init.normal_(parameter, std=0.1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    exported = load_exported(export_model(model, config, tmp_path / "out"))
    assert_close(exported.encode(TEXTS), embed(model, "text", TEXTS))
    assert_close(exported.encode([str(file) for file in images]), embed(model, "image", images))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("section", "value", "says"),
    [
        ("vision", "perceiver", "encoders.vision.pooling=perceiver .* pooling=mean or own, or export text,audio alone"),
        ("vision", "attention", "encoders.vision.pooling=attention .* pooling=mean or own"),
        ("audio", "perceiver", "encoders.audio.pooling=perceiver .* pooling=mean, or export image,text alone"),
        ("context", "sound", "audio.context=sound .* audio.context=full, or export image,text alone"),
    ],
)
def test_what_has_no_counterpart_is_refused_and_nothing_written(
    section: str, value: str, says: str, tmp_path: Path
) -> None:
    config = make_config(tmp_path / "encoders")
    if section == "context":
        config.audio.context = "sound"
    else:
        getattr(config.encoders, section).pooling = value
    model = build_model(config)
    (tmp_path / "exports").mkdir()
    with pytest.raises(ValueError, match=says) as caught:
        export_model(model, config, tmp_path / "exports" / "out")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "exports").iterdir())


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    config = make_config(tmp_path, modalities=("image", "text"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="exists"):
        export_model(build_model(config), config, tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("corner", ["even", "down"])
def test_crops_of_models_of_transformers_agree_and_others_are_at_most_a_pixel_apart(corner: str) -> None:
    """transformers rounds the corner of a crop down; open_clip and torchvision to the nearest even pixel."""
    from clip_common.backbones.encoder import ImageFeed
    from clip_common.backbones.preprocess import Preprocess
    from clip_common.backbones.sentence_export import make_image_processor

    preprocess = Preprocess(size=16, corner=corner)
    processor = make_image_processor(ImageFeed(preprocess))
    for longer in range(16, 26):
        pixels = np.random.default_rng(longer).integers(0, 256, (16, longer, 3), dtype=np.uint8)
        margin = (longer - 16) / 2
        ours = preprocess(Image.fromarray(pixels))
        theirs = processor([Image.fromarray(pixels)], return_tensors="pt")["pixel_values"][0]
        for found, start in ((ours, round(margin) if corner == "even" else int(margin)), (theirs, int(margin))):
            expected = preprocess(Image.fromarray(pixels[:, start : start + 16]))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.real
def test_real_encoders_agree_in_a_fresh_process(tmp_path: Path) -> None:
    """DINOv2, MiniLM and Whisper tiny.en under random heads: captions, their pictures, and spoken digits."""
    from clip_common.sounds import read_sound

    vision, text, audio = (str(real_model(name)) for name in ("dinov2", "minilm", "whisper"))
    spoken, photographs = real_data("spoken_digits"), real_data("captions") / "Images"
    config = Config()
    encoders = config.encoders
    encoders.vision.name, encoders.text.name = vision, text
    encoders.audio.name, config.audio.context = audio, "full"
    config.mrl.width, config.mrl.dims = 256, [64]
    model = build_model(config)
    captions = ["a dog runs over the grass", "two children at the beach", "zero"]
    pictures = sorted(photographs.iterdir())[:40]
    digits = sorted(spoken.glob("*.wav"))[::100]
    sounds = [read_sound(file).numpy() for file in digits] + [toy.make_samples(3, seconds=30.0)]
    exported = export_model(model, config, tmp_path / "out")
    found = run_fresh(exported, tmp_path / "work", texts=captions, images=pictures, sounds=sounds)
    assert_close(found["text"], embed(model, "text", captions))
    assert_close(found["image by path"], embed(model, "image", pictures))
    assert_close(found["audio"], embed(model, "audio", sounds))
