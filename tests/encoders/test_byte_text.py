"""Text as bytes."""

from __future__ import annotations

import pytest

from wamkit.encoders.byte_text import ByteTokenizer, InstructionTooLong
from wamkit.errors import WamkitError


def test_bytes_padded_on_the_right():
    ids, valid = ByteTokenizer()(["ab", "für"])
    assert ids.shape == (2, 8)
    assert ids[0, :2].tolist() == [97, 98]
    assert valid.sum(dim=1).tolist() == [2, 4]
    assert (ids[~valid] == ByteTokenizer.pad).all()


def test_an_empty_instruction_has_no_valid_token():
    assert not ByteTokenizer()([""])[1].any()


def test_a_long_instruction_is_refused_not_cut():
    assert issubclass(InstructionTooLong, WamkitError)
    with pytest.raises(InstructionTooLong, match="'open door' has 9 bytes and the model reads 8: shorten it"):
        ByteTokenizer(max_tokens=8)(["open", "open door"])
