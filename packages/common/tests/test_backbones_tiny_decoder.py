"""The tiny language model in the package: stock classes, whole files, and right answers about scenes that it reads.

The bars are a little below what its card states, and far above what it answers about another scene.

Shapes: N questions, T tokens, E width.
"""

import hashlib
import math
import shutil

import numpy as np
import pytest
import torch
import transformers

from clip_common.backbones import BackboneError, load_language, shipped
from clip_common.backbones.shipped import SUMS, TINY
from clip_common.synthetic import REASONING_TYPES, TYPES, captions, draw_questions, sample_scene
from clip_common.synthetic.captions import WORDS
from clip_common.synthetic.scenes import PLACES, SIDE, centre
from clip_common.tensors import read_tensors

FOLDER = TINY / "decoder"
SEED = 1100  # the model was trained on seed 0, its card states results from 1000 on
CELLS = 7


@pytest.fixture(scope="module")
def tiny():
    return load_language("tiny")


def read_grid(tiny, scene):
    """The grid (49, E) of a scene: of each cell the sum of the embeddings of its words, divided by √(their number)."""
    table = tiny.model.get_input_embeddings().weight
    vectors = []
    for y, x in np.ndindex(CELLS, CELLS):
        here = ((x + 0.5) / CELLS, (y + 0.5) / CELLS)
        place = min(PLACES, key=lambda name: math.dist(centre(name), here))
        things = [
            thing
            for thing in scene.things
            if max(abs(a - b) for a, b in zip(here, centre(thing.place), strict=True)) <= SIDE[thing.size] / 2
        ]
        front = min(things, key=lambda thing: SIDE[thing.size], default=None)
        words = f"{front.size} {front.texture} {front.colour} {front.kind}" if front else scene.background
        ids = tiny.tokenizer(f" {words} {place}")["input_ids"]
        vectors.append(table[ids].sum(dim=0) / math.sqrt(len(ids)))
    return torch.stack(vectors)


def read_description(tiny, scene):
    """The embeddings (T, E) of a description in words."""
    things = [
        f"a {thing.size} {thing.texture} {thing.colour} {thing.kind} {WORDS['place'][thing.place][0]}"
        for thing in scene.things
    ]
    ids = tiny.tokenizer(f"{'. '.join(things)}. on {scene.background}.\n")["input_ids"]
    return tiny.model.get_input_embeddings().weight[ids]


def answer(tiny, read, asked):
    """Greedy answers by transformers to questions about what was read, padded on the left."""
    table = tiny.model.get_input_embeddings().weight
    rows = [
        torch.cat([read_TE, table[tiny.tokenizer(f"{question.text}\n")["input_ids"]]])
        for read_TE, question in zip(read, asked, strict=True)
    ]
    embeds_NTE = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left")
    lengths_N1 = torch.tensor([len(row) for row in rows])[:, None]
    mask_NT = torch.arange(embeds_NTE.shape[1]) >= embeds_NTE.shape[1] - lengths_N1
    options = {"do_sample": False, "max_new_tokens": 4, "eos_token_id": list(tiny.spec.stop_ids)}
    written = tiny.model.generate(
        inputs_embeds=embeds_NTE, attention_mask=mask_NT.long(), pad_token_id=tiny.tokenizer.pad_token_id, **options
    )
    return tiny.tokenizer.batch_decode(written, skip_special_tokens=True)


def share_right(tiny, read, *, scenes, questions, shift=0):
    """Share of right answers by type; `shift` reads another scene."""
    scenes = [sample_scene(SEED, index) for index in range(scenes)]
    random = np.random.default_rng(0)
    right = {}
    with torch.inference_mode():
        contexts = [read(tiny, scene) for scene in scenes]
        for start in range(0, len(scenes), 20):
            part = range(start, min(start + 20, len(scenes)))
            drawn = [
                (contexts[place - shift], question)
                for place in part
                for question in draw_questions(scenes[place], questions, random=random, types=TYPES + REASONING_TYPES)
            ]
            asked = [question for _, question in drawn]
            for question, said in zip(asked, answer(tiny, [one for one, _ in drawn], asked), strict=True):
                right.setdefault(question.type, []).append(said == question.answer)
    return {type: float(np.mean(hits)) for type, hits in right.items()}


def test_it_is_a_small_qwen_of_stock_classes_in_half_precision(tiny):
    assert type(tiny.model) is transformers.Qwen2ForCausalLM
    assert type(tiny.tokenizer) is transformers.Qwen2Tokenizer
    assert tiny.model.num_parameters() < 2e6
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 4 * 2**20
    assert {tensor.dtype for tensor in read_tensors(FOLDER / "model.safetensors").values()} == {torch.float16}
    assert {weight.dtype for weight in tiny.model.parameters()} == {torch.float32}
    spec = tiny.spec
    assert (spec.name, spec.width, spec.context, spec.vocabulary) == ("tiny", 192, 1024, len(tiny.tokenizer))
    assert tiny.tokenizer.convert_ids_to_tokens(spec.stop_ids) == ["<|endoftext|>", "<|im_end|>"]


def test_checksums_cover_every_file_but_the_card():
    stated = dict(line.split()[::-1] for line in (FOLDER / SUMS).read_text(encoding="utf-8").splitlines())
    files = {file.name: file for file in FOLDER.iterdir()}
    assert set(stated) == set(files) - {SUMS, "README.md"}
    assert all(hashlib.sha256(files[name].read_bytes()).hexdigest() == stated[name] for name in stated)
    assert 'load_language("tiny")' in files["README.md"].read_text(encoding="utf-8")


def test_a_damaged_file_is_refused_in_one_line(tmp_path, monkeypatch):
    shutil.copytree(FOLDER, tmp_path / "decoder")
    monkeypatch.setattr(shipped, "TINY", tmp_path)
    assert load_language("tiny").spec.name == "tiny"
    (tmp_path / "decoder" / "tokenizer.json").write_text("{}")
    with pytest.raises(BackboneError, match=r"tokenizer\.json is absent or damaged: install clip-common again$"):
        load_language("tiny")


def test_words_of_the_world_are_one_token_and_any_text_survives(tiny):
    scenes = [sample_scene(SEED, index) for index in range(50)]
    texts = [text for scene in scenes for text in captions(scene)]
    words = {word for text in texts for word in text.replace(",", "").replace("medium-sized", "medium").split()}
    words |= {"larger", "same", "left", "right", "above", "below", "of", "nothing", "things", "than"}
    assert [word for word in sorted(words) if len(tiny.tokenizer(f" {word}")["input_ids"]) > 1] == []
    for text in ("Äpfel 図書館 🍏", "WHAT\tcolour?  \n\n", "x" * 300, ""):
        assert tiny.tokenizer.decode(tiny.tokenizer(text)["input_ids"]) == text


def test_its_chat_template_names_the_turns(tiny):
    text = tiny.tokenizer.apply_chat_template(
        [{"role": "user", "content": "what?"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nwhat?<|im_end|>\n<|im_start|>assistant\n"


def test_it_answers_questions_about_scenes_that_it_reads_as_grids(tiny):
    right = share_right(tiny, read_grid, scenes=60, questions=12)
    bars = dict.fromkeys(("colour", "place", "count", "count_if", "yes/no"), 0.97) | {"shape": 0.95, "compare": 0.93}
    assert all(right[type] > bar for type, bar in (bars | {"relation": 0.75}).items()), right


def test_it_does_not_know_the_scenes_that_it_does_not_read(tiny):
    wrong = share_right(tiny, read_grid, scenes=20, questions=12, shift=1)
    assert max(wrong[type] for type in ("colour", "place", "shape")) < 0.4, wrong


def test_of_a_description_it_knows_what_there_is_and_how_much(tiny):
    right = share_right(tiny, read_description, scenes=40, questions=12)
    assert min(right[type] for type in ("count", "yes/no", "shape", "count_if")) > 0.85, right


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_quantized_it_still_answers(quantization):
    right = share_right(load_language("tiny", quantization=quantization), read_grid, scenes=20, questions=12)
    assert min(right[type] for type in ("colour", "place", "shape", "count")) > 0.8, right
