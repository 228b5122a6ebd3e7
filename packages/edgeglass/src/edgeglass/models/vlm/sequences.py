"""Rows of tokens for a decoder: one conversation a row, padded, or several packed, none of which sees another.

A row holds blocks. A block is a head (tokens before an image, then the image) and the conversations about that image:
each sees the head and itself, and its positions go on from the head, as if it were alone.

Shapes: R rows, T tokens of a row, G images, P prefix tokens of an image, S conversations, N supervised tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from edgeglass.models.vlm.layout import EncodedConversation

NOT_SUPERVISED = -100
"""Target of a token after which nothing is learned."""
PADDING = -1


@dataclass(frozen=True, slots=True)
class Rows:
    """R rows of T tokens.

    Attributes:
        ids_RT: Ids of text tokens, long; 0 for image tokens and padding.
        image_RT: Image of an image token, its place in the batch, long; -1 for text and padding.
        place_RT: Number of an image token in its image, long.
        positions_RT: Position that the decoder is told, long: as if every conversation were alone.
        block_RT: Block of a token in its row, long; -1 for padding.
        conversation_RT: Conversation of a token in the batch, long; -1 for heads and padding.
        targets_RT: Id of the token that follows, long, where the decoder learns it; else -100.
    """

    ids_RT: Tensor
    image_RT: Tensor
    place_RT: Tensor
    positions_RT: Tensor
    block_RT: Tensor
    conversation_RT: Tensor
    targets_RT: Tensor

    def mask(self) -> Tensor:
        """Return (R, 1, T, T) bool: whether a token (first T) attends to another one (second T).

        It attends to itself, to the head of its block before it, and to its own conversation before it.
        """
        count = self.ids_RT.shape[1]
        own_RT1, own_R1T = self.conversation_RT[:, :, None], self.conversation_RT[:, None, :]
        block_RTT = self.block_RT[:, :, None] == self.block_RT[:, None, :]
        seen_RTT = (own_R1T == -1) | (own_R1T == own_RT1)
        earlier_TT = torch.ones(count, count, dtype=torch.bool, device=self.ids_RT.device).tril()
        present_R1T = (self.block_RT != PADDING)[:, None, :]
        itself_TT = torch.eye(count, dtype=torch.bool, device=self.ids_RT.device)
        return ((block_RTT & seen_RTT & earlier_TT & present_R1T) | itself_TT)[:, None]

    def valid(self) -> Tensor:
        """Return (R, T) bool: false for padding."""
        return self.block_RT != PADDING

    def to(self, device: torch.device) -> "Rows":
        """Return the rows on a device."""
        return Rows(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


@dataclass(frozen=True, slots=True)
class Block:
    """The conversations about one image that share its tokens; `image` is its place in the batch, None without one."""

    image: int | None
    prefix: int
    conversations: tuple[int, ...]

    def head(self, conversations: Sequence[EncodedConversation]) -> int:
        """Return the number of tokens of the head."""
        return len(conversations[self.conversations[0]].before) + self.prefix

    def length(self, conversations: Sequence[EncodedConversation]) -> int:
        """Return the number of tokens, head included."""
        return self.head(conversations) + sum(len(conversations[one].ids) for one in self.conversations)


def pad_conversations(
    conversations: Sequence[EncodedConversation],
    images: Sequence[int | None],
    prefixes: Sequence[int],
    *,
    side: Literal["left", "right"] = "right",
) -> Rows:
    """Return one conversation a row, padded to the longest.

    Args:
        conversations: S conversations.
        images: The image of each, its place in the batch; None for one without an image.
        prefixes: Tokens of each image of the batch.
        side: Of the padding: right in training, left where tokens are generated after the row's end.
    """
    blocks = [[Block(image, 0 if image is None else prefixes[image], (number,))] for number, image in enumerate(images)]
    return lay_rows(blocks, conversations, side=side)


def pack_conversations(
    conversations: Sequence[EncodedConversation],
    images: Sequence[int | None],
    prefixes: Sequence[int],
    *,
    row_length: int,
) -> Rows:
    """Return as few rows as first-fit-decreasing finds; conversations about one image share its tokens.

    Args:
        conversations, images, prefixes: As for `pad_conversations`.
        row_length: Most tokens of a row; a longer block has a row of its own.
    """
    blocks = make_blocks(conversations, images, prefixes, row_length=row_length)
    lengths = [block.length(conversations) for block in blocks]
    rows: list[list[Block]] = []
    free: list[int] = []
    for number in sorted(range(len(blocks)), key=lambda one: -lengths[one]):
        place = next((row for row, space in enumerate(free) if space >= lengths[number]), None)
        if place is None:
            rows.append([])
            free.append(row_length)
            place = len(rows) - 1
        rows[place].append(blocks[number])
        free[place] -= lengths[number]
    return lay_rows(rows, conversations)


def make_blocks(
    conversations: Sequence[EncodedConversation],
    images: Sequence[int | None],
    prefixes: Sequence[int],
    *,
    row_length: int,
) -> list[Block]:
    """Return blocks of at most `row_length` tokens where conversations allow; a conversation is never split."""
    blocks: list[Block] = []
    open_blocks: dict[int, Block] = {}
    for number, image in enumerate(images):
        if image is None:
            blocks.append(Block(None, 0, (number,)))
            continue
        before = open_blocks.get(image)
        longer = None if before is None else Block(image, before.prefix, (*before.conversations, number))
        if longer is None or longer.length(conversations) > row_length:
            if before is not None:
                blocks.append(before)
            longer = Block(image, prefixes[image], (number,))
        open_blocks[image] = longer
    return [*blocks, *open_blocks.values()]


def lay_rows(
    rows: Sequence[Sequence[Block]],
    conversations: Sequence[EncodedConversation],
    *,
    side: Literal["left", "right"] = "right",
) -> Rows:
    """Return the tokens of rows of blocks, padded to the longest row."""
    count = max(sum(block.length(conversations) for block in row) for row in rows)
    shape = (len(rows), count)
    ids, places, positions = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
    image, block_RT, owner = (torch.full(shape, -1) for _ in range(3))
    targets = torch.full(shape, NOT_SUPERVISED)
    for row, blocks in enumerate(rows):
        length = sum(block.length(conversations) for block in blocks)
        at = count - length if side == "left" else 0
        for number, block in enumerate(blocks):
            before = conversations[block.conversations[0]].before
            head = block.head(conversations)
            block_RT[row, at : at + block.length(conversations)] = number
            positions[row, at : at + head] = torch.arange(head)
            ids[row, at : at + len(before)] = torch.tensor(before, dtype=torch.long)
            if block.image is not None:
                image[row, at + len(before) : at + head] = block.image
                places[row, at + len(before) : at + head] = torch.arange(block.prefix)
            at += head
            for one in block.conversations:
                own = torch.tensor(conversations[one].ids)
                stop = at + len(own)
                ids[row, at:stop] = own
                positions[row, at:stop] = head + torch.arange(len(own))
                owner[row, at:stop] = one
                learned = torch.tensor(conversations[one].supervised)
                targets[row, at : stop - 1] = torch.where(learned[1:], own[1:], NOT_SUPERVISED)
                at = stop
    return Rows(ids, image, places, positions, block_RT, owner, targets)
