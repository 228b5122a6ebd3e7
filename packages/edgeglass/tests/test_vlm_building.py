"""The image side of a model: aligned tokens or patches, merged or not, from stage 1's run and its feature cache."""

import json

import pytest
import torch
import toy_alignments
from toy_questions import configured

from clip_common.backbones.trunk import TokenSequence
from edgeglass.models.vlm.prefix import VisionProjector, merge_squares
from edgeglass.training.experiment import train
from edgeglass.training.vlm_experiment import train_vlm
from edgeglass.vlm.building import load_decoder, load_prefix, measure_embeddings
from edgeglass.vlm.vlm import VLM

POOLINGS = {
    "attention": ["encoders.vision.pooling=attention"],
    "mean": ["encoders.vision.pooling=mean", "encoders.vision.projector=linear"],
    "perceiver": ["encoders.vision.pooling=perceiver", "encoders.vision.perceiver.latents=4"],
}
TRAINED = ["encoders.vision.pooling=mean", "encoders.vision.freeze=false"]


@pytest.fixture
def aligned(small):
    """Align the tiny encoder of images with a pooling, and return the run."""

    def align(*overrides: str):
        return train(
            toy_alignments.configured(small, "trainer.max_epochs=1", "encoders.vision.image_size=32", *overrides)
        )

    return align


@pytest.mark.parametrize("pooling", POOLINGS)
def test_aligned_tokens_are_the_sequence_of_stage_1(asked, aligned, pooling, tmp_path):
    from edgeglass.aligner.aligner import Aligner

    run = aligned("name=first", *POOLINGS[pooling]).run
    overrides = [f"align={run.path}", "prefix.name=null", "prefix.image_size=null", "prefix.merge=1"]
    prefix, sight = load_prefix(configured(asked, *overrides))
    encoder = Aligner.from_pretrained(run.path, device="cpu").model.encoder_of("image")
    features: TokenSequence = prefix.trunk.sequence(torch.randn(2, 3, 32, 32))
    expected = encoder(features).sequence
    found = prefix(features)
    assert torch.equal(found.tokens, expected)
    assert prefix.count(features.tokens.shape[1]) == expected.shape[1]
    assert (sight.width, prefix.width) == (32, 32)


def test_a_model_needs_its_alignment_run_no_more(asked, aligned, question_parts, tmp_path):
    """The aligned head is saved with the model: a removed or retrained run changes nothing."""
    import shutil

    run = aligned("name=first", *POOLINGS["attention"]).run
    overrides = [f"align={run.path}", "prefix.name=null", "prefix.image_size=null", "prefix.merge=2"]
    trained = train_vlm(configured(asked, "name=seeing", "trainer.max_epochs=1", *overrides))
    image = sorted((question_parts / "questions" / "images").iterdir())[0]
    expected = VLM.from_pretrained(trained.run.path, device="cpu").ask(image, "how many things are there?")
    shutil.rmtree(run.path)
    assert VLM.from_pretrained(trained.run.path, device="cpu").ask(image, "how many things are there?") == expected


def test_stage_2_reads_the_features_that_stage_1_computed(asked, aligned, question_parts, tmp_path):
    lines = [json.loads(line) for line in (question_parts / "questions" / "questions.jsonl").read_text().splitlines()]
    images = {line["image"]: line["split"] for line in lines}
    rows = [
        {"image": str(question_parts / "questions" / image), "caption": f"a mug, number {number}", "split": split}
        for number, (image, split) in enumerate(images.items())
    ]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    shared = f"data.cache_dir={tmp_path / 'shared'}"
    run = aligned(
        "name=first",
        shared,
        f"data.root={tmp_path / 'captions.jsonl'}",
        "encoders.audio.name=null",
        *POOLINGS["mean"][1:],
        *POOLINGS["attention"],
    ).run
    before = list_files(tmp_path / "shared")
    overrides = [f"align={run.path}", "prefix.name=null", "prefix.image_size=null", "prefix.merge=1", shared]
    train_vlm(configured(asked, "name=seeing", "trainer.max_epochs=1", *overrides))
    assert list_files(tmp_path / "shared") == before, "features of images that stage 1 had seen were computed again"


def list_files(folder) -> dict[str, int]:
    """The files of a folder, each with the time of its last change."""
    return {str(file): file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")}


@pytest.mark.parametrize(
    ("pooling", "overrides", "message"),
    [
        ("own", [], "whose head knows no tokens, only pooled images: set prefix.tokens=patch"),
        ("attention", ["prefix.select_layer=2"], "prefix.select_layer belongs to prefix.tokens=patch"),
        ("perceiver", ["prefix.merge=2"], "the latents of a Perceiver form no grid"),
        ("trained", [], "trained its image encoder"),
    ],
)
def test_image_tokens_that_do_not_exist_are_refused(asked, aligned, pooling, overrides, message):
    others = {"trained": TRAINED, "own": ["encoders.vision.pooling=own"]}
    run = aligned("name=first", *(POOLINGS | others)[pooling]).run
    basic = [f"align={run.path}", "prefix.name=null", "prefix.image_size=null", "prefix.merge=1"]
    with pytest.raises(ValueError, match=message):
        load_prefix(configured(asked, *basic, *overrides))


def test_merged_tokens_by_hand():
    tokens = torch.arange(16.0).reshape(1, 16, 1)
    assert merge_squares(tokens, merge=2).tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]]


@pytest.mark.parametrize("kind", ["linear", "mlp2x_gelu"])
@pytest.mark.parametrize("scale", [0.01, 1.0, 50.0])
def test_untrained_image_tokens_have_the_size_of_words(asked, kind, scale):
    language = load_decoder(configured(asked))
    from edgeglass.models.vlm.qwen import QwenDecoder

    size = measure_embeddings(QwenDecoder(language.model), language.spec.vocabulary)
    words = language.model.get_input_embeddings().weight.square().mean().sqrt()
    assert size == pytest.approx(float(words), rel=0.05)
    tokens = VisionProjector(kind, width=64, decoder_width=32, size=size)(scale * torch.randn(500, 64))
    assert tokens.detach().square().mean().sqrt().item() == pytest.approx(size, rel=0.15)


def test_the_size_of_words_does_not_change_what_a_step_does():
    """Adam's steps are as long for small weights as for large ones, so a projector must not have small weights."""
    tokens = []
    for size in (1.0, 0.016):
        torch.manual_seed(0)
        proj = VisionProjector("mlp2x_gelu", width=64, decoder_width=32, size=size)
        optimizer = torch.optim.Adam(proj.parameters(), lr=1e-2)
        images, wanted = torch.randn(20, 64), torch.randn(20, 32)
        for _ in range(20):
            optimizer.zero_grad()
            (proj(images) / size - wanted).square().mean().backward()
            optimizer.step()
        tokens.append(proj(images).detach() / size)
    assert torch.allclose(tokens[0], tokens[1], atol=1e-4)
