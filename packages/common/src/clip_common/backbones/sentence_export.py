"""Write encoders under projection heads as a SentenceTransformer of stock modules: a `Router` with one route for each.

    encoder → pooling → LayerNorm, Dense … → (Normalize, Dense for a mean that is subtracted) → Normalize

The folder needs sentence-transformers alone, and no code of its own. What its modules cannot express is refused.

Shapes: B batch, F width of an encoder, D shared width, T tokens, L patch tokens among them, M mel bands.
"""

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clip_common.backbones.audio_models import WhisperAudio
from clip_common.backbones.clip_conversion import convert_clip_vision
from clip_common.backbones.encoder import ImageFeed, SoundFeed, TextFeed
from clip_common.backbones.huggingface import without_code, without_progress_bar, without_report
from clip_common.backbones.mel import STRIDE
from clip_common.backbones.open_clip_trunks import OpenClipVision
from clip_common.backbones.spec import BackboneError
from clip_common.backbones.text_models import SentenceText, TransformersText
from clip_common.backbones.tokenizers import TransformersTokenizer
from clip_common.backbones.trunk import Trunk
from clip_common.backbones.vision_models import TransformersVision, make_image_processor

TOKENS, MASK, SENTENCE = "token_embeddings", "attention_mask", "sentence_embedding"
"""Features of sentence-transformers that its modules read and write."""
SPECTROGRAM = "input_features"
PROCESSOR = "preprocessor_config.json"
CLASSES = {"image_processor_type": "CLIPImageProcessorPil", "feature_extractor_type": "WhisperFeatureExtractor"}
"""Class to load, by the key that gives the kind of a processor. By the kind alone, transformers would resize pictures
with torchvision, and add a tokenizer to Whisper's extractor."""
USE = {
    "image": 'images = model.encode(["photo.jpg"])',
    "text": 'texts = model.encode(["a red ball"])',
    "audio": 'sounds = model.encode([{"audio": {"array": samples, "sampling_rate": 16000}}])  # (T,) float32 of numpy',
}
"""A call for each modality. A sound without the key `audio` around it is taken by `Router` for inputs of two tasks."""
COUNTER_WIDTH = 4
"""Width of the model that counts frames: the least for which transformers makes Whisper's table of positions."""


@dataclass(frozen=True)
class ExportBranch:
    """One encoder under its head.

    Attributes:
        trunk: Computes features.
        feed: Makes its input.
        head: LayerNorm, Linear, activation and Dropout layers, from (B, F) to (B, D).
        pooling: Features of an image: its pooled output, the mean over patch tokens, or over all tokens.
        layer: Block of an image trunk whose tokens are used, from 1; None: the tokens after its final norm.
        mean: (D,) subtracted from unit embeddings; None: nothing.
    """

    trunk: Trunk
    feed: Any
    head: nn.Sequential
    pooling: Literal["pooled", "patches", "tokens"] = "pooled"
    layer: int | None = None
    mean: Tensor | None = None


def write_sentence_transformer(branches: Mapping[str, ExportBranch], folder: Path) -> None:
    """Write a SentenceTransformer that routes `image`, `text` and `audio` inputs to these branches.

    Args:
        branches: By modality.
        folder: Filled; it may exist.

    Raises:
        BackboneError: A branch that stock modules cannot express.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Router

    makers = {"image": _make_image_modules, "text": _make_text_modules, "audio": _make_audio_modules}
    with tempfile.TemporaryDirectory() as scratch, without_code(), without_progress_bar(), without_report():
        routes = {}
        for name, branch in branches.items():
            encoder = makers[name](branch, Path(scratch) / name)
            routes[name] = [*encoder, *_make_head(branch.head), *_make_centring(branch.mean)]
        router = Router(
            routes, route_mappings={(None, name): name for name in routes}, default_route=None, allow_empty_key=False
        )
        prompts: dict[str, Any] = {}
        if "text" in branches and isinstance(text := branches["text"].trunk, SentenceText):
            prompts = {"prompts": text.model.prompts, "default_prompt_name": text.model.default_prompt_name}
        model = SentenceTransformer(modules=[router, Normalize()], device="cpu", similarity_fn_name="cosine", **prompts)
        model.save(str(folder), create_model_card=False)
    for name in routes:
        for file in folder.glob(f"{name}_*/{PROCESSOR}"):
            _name_processor(file)


def format_usage(modalities: Sequence[str]) -> str:
    """Return the Python code that loads an exported folder and embeds an input of each modality."""
    lines = ["from sentence_transformers import SentenceTransformer", "", "model = SentenceTransformer(folder)"]
    lines += [USE[name] for name in modalities]
    if len(modalities) > 1:
        first, second = (USE[name].split(" = ")[0] for name in modalities[:2])
        lines += [f"model.similarity({first}, {second})"]
    return "\n".join(lines)


def _make_image_modules(branch: ExportBranch, scratch: Path) -> list[Any]:
    from sentence_transformers.sentence_transformer.modules import Pooling

    trunk = branch.trunk
    settings = make_image_processor(branch.feed)
    if isinstance(trunk, OpenClipVision):
        model, projection = convert_clip_vision(trunk), trunk.visual.proj
    elif isinstance(trunk, TransformersVision):
        model, projection = trunk.model, None
    else:
        raise BackboneError(
            f"{type(trunk).__name__} has no counterpart in transformers: use a vision transformer of open_clip, or a "
            "CLIPVisionModel, SiglipVisionModel or Dinov2Model"
        )
    pooled_BF, tokens = _run_once(model, branch.feed)
    if branch.pooling == "pooled":
        if pooled_BF is None:
            modules = [_wrap(model, settings, scratch, "image", output="last_hidden_state")]
            return [*modules, Pooling(trunk.width, "cls")]
        modules = [_wrap(model, settings, scratch, "image", output="pooler_output", name=SENTENCE)]
        return modules if projection is None else [*modules, _make_dense(projection.T)]
    if branch.layer is not None:
        modules = [_wrap(model, settings, scratch, "image", output=["hidden_states", branch.layer])]
        modules[0].config.tie_last_hidden_states = False  # the last block as it is, without the final norm
    elif isinstance(trunk, OpenClipVision):  # its patch tokens have the last norm, those of CLIPVisionModel do not
        norm = _make_head(nn.Sequential(trunk.visual.ln_post))
        moved = _make_dense(torch.eye(trunk.width), source=SENTENCE, target=TOKENS)
        modules = [_wrap(model, settings, scratch, "image", output="last_hidden_state", name=SENTENCE), *norm, moved]
    else:
        modules = [_wrap(model, settings, scratch, "image", output="last_hidden_state")]
    others = 0 if branch.pooling == "tokens" else tokens - (branch.feed.preprocess.size // trunk.patch_size) ** 2
    if others:  # a mask without the class token and registers; Pooling reads it
        mask_T = torch.cat([torch.zeros(others), torch.ones(tokens - others)])
        constant = _make_dense(torch.zeros(tokens, trunk.width), mask_T, source=SENTENCE, target=MASK)
        modules += [Pooling(trunk.width, "cls"), constant]
    return [*modules, Pooling(trunk.width, "mean")]


def _run_once(model: Any, feed: ImageFeed) -> tuple[Tensor | None, int]:
    """Return the pooled output of an image model, or None, and its number of tokens."""
    with torch.no_grad():
        output = model(pixel_values=feed.example[None].to(model.device, model.dtype))
    return output.pooler_output, output.last_hidden_state.shape[1]


def _make_text_modules(branch: ExportBranch, scratch: Path) -> list[Any]:
    from sentence_transformers.sentence_transformer.modules import Pooling

    trunk = branch.trunk
    if isinstance(trunk, SentenceText):
        return list(trunk.model.children())
    feed: TextFeed = branch.feed
    if not (isinstance(trunk, TransformersText) and isinstance(feed.tokenizer, TransformersTokenizer)):
        raise BackboneError(
            f"{type(trunk).__name__} is no text model of transformers: use a SentenceTransformer or a text model"
        )
    tokenizer = feed.tokenizer
    padding = True if tokenizer.padding == "longest" else tokenizer.padding
    text = {"padding": padding, "max_length": tokenizer.context_length, "return_attention_mask": not trunk.pooled}
    settings: dict[str, Any] = {"processing": {"text": text}}
    if trunk.pooled:
        settings |= {"output": "pooler_output", "name": SENTENCE}
        return [_wrap(trunk.model, tokenizer.tokenizer, scratch, "text", **settings)]
    module = _wrap(trunk.model, tokenizer.tokenizer, scratch, "text", output="last_hidden_state", **settings)
    return [module, Pooling(trunk.width, "mean")]


def _make_audio_modules(branch: ExportBranch, scratch: Path) -> list[Any]:
    """Return a Whisper encoder and the mean over its tokens that hold sound.

    The extractor gives a mask of spectrogram frames, twice as long as the tokens, and Pooling reads only masks of their
    own length. Dense layers take no integers either. So a Whisper without layers, whose every token is 1, is pooled
    under that mask: n ones over √n make √n, for n frames. A Dense layer turns √n into the mask of ⌈n / 2⌉ tokens.
    """
    from sentence_transformers.sentence_transformer.modules import Pooling

    trunk = branch.trunk
    feed: SoundFeed = branch.feed
    if not isinstance(trunk, WhisperAudio):
        raise BackboneError(f"{type(trunk).__name__} is no Whisper: use one")
    if trunk.context != "full":
        raise BackboneError(
            "audio.context=sound cuts the encoder's table of positions for each sound, but the Whisper of transformers "
            "takes its whole window only: align with audio.context=full"
        )
    config = trunk.model.config
    frames = STRIDE * config.max_source_positions
    extractor = feed.mel.extractor
    padded = {"padding": "max_length", "max_length": feed.mel.window, "return_attention_mask": True}
    settings: dict[str, Any] = {"output": "last_hidden_state", "processing": {"audio": padded}}
    counter = make_frame_counter(config, frames=frames)
    sharpness = 16 * math.sqrt(frames)  # Hardsigmoid is 0 or 1 exactly, for every n
    starts_T = (STRIDE * torch.arange(frames // STRIDE) + 0.5).sqrt()
    weight_TF = torch.full((frames // STRIDE, COUNTER_WIDTH), sharpness / COUNTER_WIDTH)
    return [
        _wrap(trunk.model, extractor, scratch / "encoder", "audio", name="speech", **settings),
        _make_dense(torch.zeros(1, frames), source=SPECTROGRAM, target="zeros"),
        _make_dense(torch.zeros(STRIDE * frames, 1), source="zeros", target=SPECTROGRAM),
        _wrap(counter, extractor, scratch / "counter", "audio", **settings),
        Pooling(COUNTER_WIDTH, "mean_sqrt_len_tokens"),
        _make_dense(weight_TF, -sharpness * starts_T, activation=nn.Hardsigmoid(), source=SENTENCE, target=MASK),
        _make_dense(torch.eye(trunk.width), source="speech", target=TOKENS),
        Pooling(trunk.width, "mean"),
    ]


def make_frame_counter(config: Any, *, frames: int) -> Any:
    """Return a WhisperEncoder without layers: as many tokens as spectrogram frames, all of them ones.

    Args:
        config: Of the encoder whose spectrograms are counted.
        frames: T of its spectrograms.
    """
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    own = WhisperConfig(
        num_mel_bins=config.num_mel_bins,
        d_model=COUNTER_WIDTH,
        encoder_layers=0,
        encoder_attention_heads=1,
        encoder_ffn_dim=1,
        max_source_positions=frames,
    )
    model = WhisperEncoder(own).eval()
    with torch.no_grad():
        model.layer_norm.weight.zero_()
        model.layer_norm.bias.fill_(1.0)
    return model


def _make_head(head: nn.Sequential) -> list[Any]:
    from sentence_transformers.sentence_transformer.modules import LayerNorm

    modules: list[Any] = []
    layers = [layer for layer in head if not isinstance(layer, nn.Dropout)]
    for layer, following in zip(layers, [*layers[1:], None], strict=True):
        if isinstance(layer, nn.LayerNorm):
            norm = LayerNorm(layer.normalized_shape[0])  # starts as a norm without weight and bias
            if layer.eps != norm.norm.eps:
                raise BackboneError(f"a LayerNorm with eps={layer.eps}: the stock module has {norm.norm.eps}")
            if layer.elementwise_affine:
                norm.norm.load_state_dict(layer.state_dict())
            modules.append(norm)
        elif isinstance(layer, nn.Linear):
            activation = nn.Identity() if following is None or list(following.parameters()) else following
            modules.append(_make_dense(layer.weight, layer.bias, activation=activation))
        elif list(layer.parameters()):
            raise BackboneError(f"{type(layer).__name__} has no stock module: use a linear projector or an MLP")
    return modules


def _make_centring(mean_D: Tensor | None) -> list[Any]:
    """Return modules that subtract a mean from unit embeddings; the Normalize that follows is the Router's."""
    from sentence_transformers.sentence_transformer.modules import Normalize

    return [] if mean_D is None else [Normalize(), _make_dense(torch.eye(len(mean_D)), -mean_D)]


def _make_dense(
    weight_OI: Tensor,
    bias_O: Tensor | None = None,
    *,
    activation: nn.Module | None = None,
    source: str = SENTENCE,
    target: str = SENTENCE,
) -> Any:
    """Return a Dense module from one feature to another: activation(W x + b)."""
    from sentence_transformers.sentence_transformer.modules import Dense

    weight_OI = weight_OI.detach().float().cpu()
    return Dense(
        weight_OI.shape[1],
        weight_OI.shape[0],
        bias=bias_O is not None,
        activation_function=activation or nn.Identity(),
        init_weight=weight_OI.clone(),
        init_bias=None if bias_O is None else bias_O.detach().float().cpu().clone(),
        module_input_name=source,
        module_output_name=target,
    )


def _wrap(
    model: Any,
    processor: Any,
    scratch: Path,
    modality: str,
    *,
    output: str | list[str | int],
    name: str = TOKENS,
    processing: dict[str, Any] | None = None,
) -> Any:
    """Return a Transformer module that holds a copy of a model.

    Args:
        model: Of transformers.
        processor: Its tokenizer, image processor or feature extractor.
        scratch: Folder for the copy, from which the module loads.
        modality: Of its input.
        output: Field of the model's output that it passes on, or the keys that lead to it.
        name: Feature that the field becomes.
        processing: Settings of the processor, by modality.

    Raises:
        BackboneError: sentence-transformers loads the model as something else, or without a weight.
    """
    from sentence_transformers.sentence_transformer.modules import Transformer

    model.save_pretrained(scratch, save_original_format=False)
    processor.save_pretrained(scratch)
    if (scratch / PROCESSOR).is_file():
        _name_processor(scratch / PROCESSOR)
    module = Transformer(
        str(scratch),
        model_kwargs={"dtype": torch.float32, "local_files_only": True},
        processing_kwargs=processing or {},
        modality_config={modality: {"method": "forward", "method_output_name": output}},
        module_output_name=name,
    )
    # a class that finds no weight under its names draws it at random, and only logs that
    expected, loaded = model.state_dict(), module.model.state_dict()
    if expected.keys() != loaded.keys() or any(not loaded[key].equal(expected[key].float().cpu()) for key in loaded):
        raise BackboneError(
            f"sentence-transformers loads a {type(model).__name__} as a {type(module.model).__name__} with other "
            "weights: use another encoder"
        )
    return module


def _name_processor(file: Path) -> None:
    """Add the name of the class to the settings of an image processor or feature extractor."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    named = next(name for key, name in CLASSES.items() if key in settings)
    file.write_text(json.dumps(settings | {"processor_class": named}, indent=2) + "\n", encoding="utf-8")
