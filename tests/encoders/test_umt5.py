"""Text features: fixed length, computed once, from the store before the encoder."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from wamkit.encoders.umt5 import TextFeaturesError, UMT5Settings, UMT5Text

SETTINGS = UMT5Settings(
    weights=None, width=16, layers=1, heads=2, key_width=8, mlp_width=32, max_tokens=24, prompt="do: {task}"
)


@pytest.fixture(scope="module")
def text() -> UMT5Text:
    torch.manual_seed(0)
    return UMT5Text(SETTINGS)


def test_fixed_length_padded_with_zeros(text):
    features = text(("open it", "close it now"), "cpu")
    assert features.shape == (2, 24, 16)
    assert features[0, len("do: open it") :].abs().sum() == 0
    assert features[0, : len("do: open it")].abs().min(dim=-1).values.sum() >= 0
    assert not torch.allclose(features[0, :8], features[1, :8])


def test_a_prompt_is_encoded_once_whatever_stands_beside_it(text, monkeypatch):
    text.forget()
    encoded: list[str] = []
    original = text._encode
    monkeypatch.setattr(text, "_encode", lambda prompts: encoded.extend(prompts) or original(prompts))
    alone = text(("open it",), "cpu")
    beside = text(("open it", "push the long one", "open it"), "cpu")
    assert encoded == ["do: open it", "do: push the long one"]
    torch.testing.assert_close(beside[0], alone[0])
    assert torch.equal(beside[0], beside[2])


def test_features_follow_loaded_weights():
    torch.manual_seed(1)
    one, other = UMT5Text(SETTINGS), UMT5Text(SETTINGS)
    before = other(("open",), "cpu")
    other.load_state_dict(one.state_dict())
    assert torch.equal(other(("open",), "cpu"), one(("open",), "cpu"))
    assert not torch.equal(before, other(("open",), "cpu"))


def test_the_encoder_is_frozen(text):
    assert not any(parameter.requires_grad for parameter in text.parameters())


def test_random_weights_have_no_store(tmp_path):
    with pytest.raises(TextFeaturesError, match=r"Leave text\.store out"):
        replace(SETTINGS, store=str(tmp_path))


def test_stored_features_need_no_encoder(tmp_path):
    published = replace(SETTINGS, weights=str(tmp_path / "absent"), store=str(tmp_path / "store"))
    text = UMT5Text(published)
    assert not list(text.parameters())
    text._store.put("do: open it", torch.ones(24, 16))
    assert torch.equal(text(("open it",), "cpu"), torch.ones(1, 24, 16))
    with pytest.raises(TextFeaturesError, match=r"not stored.*set text.store"):
        text(("another",), "cpu")


def test_published_files_fill_the_store(tmp_path):
    """A folder in diffusers' layout at small size: text_encoder/ and tokenizer/."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    words = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", "do", ":", "open", "it"])}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", eos_token="</s>")
    tokenizer.save_pretrained(tmp_path / "wan" / "tokenizer")
    torch.manual_seed(0)
    config = UMT5Config(vocab_size=len(words), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0)
    encoder = UMT5EncoderModel(config).eval()
    encoder.save_pretrained(tmp_path / "wan" / "text_encoder")

    settings = replace(SETTINGS, weights=str(tmp_path / "wan"), store=str(tmp_path / "store"))
    text = UMT5Text(settings)
    features = text(("open it",), "cpu")
    assert not list(text.parameters())
    assert not text.state_dict()
    with torch.no_grad():
        ids = torch.tensor([[words[word] for word in ("do", ":", "open", "it")]])
        expected = encoder(input_ids=ids).last_hidden_state[0]
    torch.testing.assert_close(features[0, :4], expected)
    assert features[0, 4:].abs().sum() == 0
    again = UMT5Text(replace(settings, weights=str(tmp_path / "wan")))
    stored = again._store.get("do: open it")
    torch.testing.assert_close(stored, features[0], rtol=1e-2, atol=1e-2)  # kept in bfloat16
