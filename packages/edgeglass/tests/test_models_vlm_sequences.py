"""Rows of conversations: alone, padded on either side and packed, the loss and the logits of each are the same."""

import pytest
import torch
import toy_decoders
from toy_decoders import ANSWERS, QUESTIONS, build_toy, draw_images, make_layout

from edgeglass.models.vlm.layout import EncodedConversation
from edgeglass.models.vlm.sequences import Rows, make_blocks, pack_conversations, pad_conversations

KINDS = ("qwen", "qwen+trm", "trm")
IMAGES = (0, 1, 0, None, 0, 1)
"""The image of each of six conversations; the fourth is about none."""
LENGTHS = (7, 4)


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return toy_decoders.load_toy(tmp_path_factory.mktemp("toy") / "language")


def encode(language, kind="plain"):
    layout = make_layout(language, kind)
    turns = [[(QUESTIONS[i % 4], ANSWERS[i % 4])] for i in range(6)]
    turns[1] = [(QUESTIONS[0], ANSWERS[0]), (QUESTIONS[3], ANSWERS[3])]
    return [layout.encode(own, image=image is not None, limit=None) for own, image in zip(turns, IMAGES, strict=True)]


def layouts(encoded) -> dict[str, Rows]:
    return {
        "right": pad_conversations(encoded, IMAGES, LENGTHS),
        "left": pad_conversations(encoded, IMAGES, LENGTHS, side="left"),
        "packed": pack_conversations(encoded, IMAGES, LENGTHS, row_length=120),
        "one row": pack_conversations(encoded, IMAGES, LENGTHS, row_length=10_000),
    }


@pytest.mark.parametrize("text", ["plain", "chat"])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_those_of_each_conversation_alone(kind, text, tmp_path):
    language = toy_decoders.load_toy(tmp_path / "language")
    model = build_toy(kind, language, supervise="all")
    encoded = encode(language, text)
    images = draw_images(*LENGTHS)
    with torch.no_grad():
        alone = []
        for one, image in zip(encoded, IMAGES, strict=True):
            own = None if image is None else draw_images_of(images, image)
            rows = pad_conversations([one], [None if image is None else 0], [] if image is None else [LENGTHS[image]])
            alone.append(model(rows, own).losses_S)
        expected = torch.cat(alone)
        for name, rows in layouts(encoded).items():
            torch.testing.assert_close(model(rows, images).losses_S, expected, rtol=1e-5, atol=1e-5, msg=name)


def draw_images_of(images, row):
    return type(images)(images.tokens[row : row + 1, : LENGTHS[row]], images.mask[row : row + 1, : LENGTHS[row]])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_packed_rows_are_those_of_padded_ones(kind, tmp_path):
    language = toy_decoders.load_toy(tmp_path / "language")
    model = build_toy(kind, language)
    encoded, images = encode(language), draw_images(*LENGTHS)
    found = []
    for rows in layouts(encoded).values():
        model.zero_grad()
        model(rows, images).loss.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    for other in found[1:]:
        for name, gradient in found[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_a_packed_row_by_hand():
    one = EncodedConversation((), (5, 6, 7), (False, True, True))
    two = EncodedConversation((), (8, 9), (False, True))
    rows = pack_conversations([one, two], [0, 0], [2], row_length=100)
    assert rows.ids_RT.tolist() == [[0, 0, 5, 6, 7, 8, 9]]
    assert rows.image_RT.tolist() == [[0, 0, -1, -1, -1, -1, -1]]
    assert rows.place_RT.tolist() == [[0, 1, 0, 0, 0, 0, 0]]
    assert rows.positions_RT.tolist() == [[0, 1, 2, 3, 4, 2, 3]]
    assert rows.targets_RT.tolist() == [[-100, -100, 6, 7, -100, 9, -100]]
    assert rows.mask()[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1, 1],
    ]


def test_padding_attends_to_itself_alone_and_is_attended_by_nothing():
    one = EncodedConversation((), (5, 6), (False, True))
    two = EncodedConversation((), (8, 9, 9, 9), (False, True, True, True))
    rows = pad_conversations([one, two], [None, None], [], side="left")
    assert rows.valid().tolist() == [[False, False, True, True], [True] * 4]
    assert rows.mask()[0, 0].int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert rows.positions_RT.tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]


def test_a_block_longer_than_a_row_is_split_and_repeats_its_image():
    long = [EncodedConversation((), (1,) * 10, (False,) + (True,) * 9) for _ in range(3)]
    blocks = make_blocks(long, [0, 0, 0], [5], row_length=26)
    assert [block.conversations for block in blocks] == [(0, 1), (2,)]
    rows = pack_conversations(long, [0, 0, 0], [5], row_length=26)
    assert rows.ids_RT.shape == (2, 25)
    assert (rows.image_RT == 0).sum() == 10
    assert pack_conversations(long, [0, 0, 0], [50], row_length=26).ids_RT.shape == (3, 60)


def test_nothing_supervised_is_an_error(language):
    rows = pad_conversations([EncodedConversation((), (5, 6), (False, False))], [None], [])
    with pytest.raises(ValueError, match="every conversation needs an answer"):
        build_toy("trm", language)(rows, None)
