"""The trunk against transformers' own forward, and what its queries can see."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from wamkit.encoders.byte_text import ByteTokenizer
from wamkit.encoders.qwen3_vl import Qwen3VLSettings, Qwen3VLTrunk
from wamkit.errors import MisfitError, WeightsError

SETTINGS = Qwen3VLSettings(
    weights=None,
    resolution=64,
    width=32,
    layers=3,
    heads=4,
    key_value_heads=2,
    head_dim=12,
    mlp_width=48,
    vocabulary=ByteTokenizer.vocabulary,
    rope_theta=1e4,
    rope_sections=(2, 2, 2),
    vision_width=16,
    vision_layers=3,
    vision_heads=2,
    vision_mlp_width=32,
    vision_patch=8,
    vision_position_grid=6,
    deepstack_layers=(0, 1),
)
LATENT, ACTION = 3, 2
TASKS = ("open", "turn the wheel")


def trunk_of(settings: Qwen3VLSettings = SETTINGS) -> Qwen3VLTrunk:
    torch.manual_seed(0)
    trunk = Qwen3VLTrunk(settings, latent_queries=LATENT, action_queries=ACTION).eval()
    for name, parameter in trunk.named_parameters():
        torch.nn.init.normal_(parameter, std=1.0 if "embed_tokens" in name or "query" in name else 0.2)
    return trunk


@pytest.fixture(scope="module")
def trunk() -> Qwen3VLTrunk:
    return trunk_of()


def frames(seed: int, count: int = len(TASKS)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 64, 64), generator=generator, dtype=torch.uint8)


def run(trunk: Qwen3VLTrunk, images: dict[str, Tensor], tasks=TASKS, missing: str | None = None):
    ids, valid = trunk.tokenize(tasks)
    present = {name: torch.full((len(tasks),), name != missing) for name in images}
    with torch.no_grad():
        return trunk(images, present, ids, valid)


def reference(
    trunk: Qwen3VLTrunk, images: list[Tensor], sample: int, ids: list[int], *, grid_positions: bool
) -> Tensor:
    """Hidden states of one sample by transformers' model; -1 and -2 in ``ids`` are the two banks' placeholders."""
    from transformers import Qwen3VLModel

    config = copy.deepcopy(trunk.model.config)
    config._attn_implementation = "eager"
    config.image_token_id, config.vision_start_token_id = ByteTokenizer.image_token, ByteTokenizer.vision_start
    config.vision_end_token_id, config.video_token_id = ByteTokenizer.vision_end, 261
    model = Qwen3VLModel(config).eval()
    model.load_state_dict(trunk.model.state_dict())
    # Each image: patches in blocks of 2 x 2, a patch as channel, time (twice the same), row, column.
    rows = []
    for image in images:
        pixels = image[sample] / 255.0 * 2 - 1
        for top in range(0, 64, 16):
            for left in range(0, 64, 16):
                for y in (top, top + 8):
                    for x in (left, left + 8):
                        patch = pixels[:, y : y + 8, x : x + 8]
                        rows.append(torch.stack([patch, patch], dim=1).flatten())
    token = torch.tensor([ids])
    embeds = model.language_model.embed_tokens(token.clamp(min=0))
    embeds[token == -1], embeds[token == -2] = trunk.latent_query, trunk.action_query
    known = token.clamp(min=0)
    grid = torch.tensor([[1, 8, 8]] * len(images))
    positions = None
    if grid_positions:
        kinds = (known == ByteTokenizer.image_token).int()
        positions, _ = model.get_rope_index(known, kinds, image_grid_thw=grid)
    with torch.no_grad():
        output = model(
            inputs_embeds=embeds,
            attention_mask=torch.ones_like(known),
            position_ids=positions,
            pixel_values=torch.stack(rows),
            image_grid_thw=grid,
        )
    return output.last_hidden_state[0]


IMAGE = [ByteTokenizer.vision_start, *[ByteTokenizer.image_token] * 16, ByteTokenizer.vision_end]


@pytest.mark.parametrize("sample", [0, 1])
@pytest.mark.parametrize("cameras", [1, 2])
def test_equals_transformers_forward(trunk, sample, cameras):
    images = {f"camera{index}": frames(index) for index in range(cameras)}
    out = run(trunk, images)
    ids = [*IMAGE, *TASKS[sample].encode(), *[-1] * LATENT, *(cameras - 1) * IMAGE, *[-2] * ACTION]
    expected = reference(trunk, list(images.values()), sample, ids, grid_positions=True)
    torch.testing.assert_close(out.hidden[sample][out.valid[sample]], expected, rtol=1e-5, atol=1e-5)
    start = len(IMAGE) + len(TASKS[sample])
    torch.testing.assert_close(out.latent_queries[sample], expected[start : start + LATENT], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.action_queries[sample], expected[-ACTION:], rtol=1e-5, atol=1e-5)


def test_a_missing_view_is_as_if_it_were_not_there(trunk):
    images = {"front": frames(0), "wrist": frames(1)}
    without = run(trunk, {"front": images["front"]})
    missing = run(trunk, images, missing="wrist")
    torch.testing.assert_close(missing.action_queries, without.action_queries, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(missing.latent_queries, without.latent_queries, rtol=1e-5, atol=1e-5)


def test_released_layout_equals_transformers_without_ids():
    """The released code gives the model embeddings alone, so its positions count tokens."""
    trunk = trunk_of(replace(SETTINGS, layout="released"))
    images = {"front": frames(0), "wrist": frames(1)}
    out = run(trunk, images)
    space = [ord(" ")]
    ids = [
        *b"<|im_start|>user\n",
        *IMAGE,
        *b"Your task is turn the wheel.\n\nFrom main-view observations, infer the robot arm's motion.\n",
        *[-1, *space, -1, *space, -1],
        *IMAGE,
        *b"Then use observations and the inferred motion to produce the robot policy actions.\n",
        *[-2, *space, -2],
        *b"<|im_end|>\n<|im_start|>assistant\n",
    ]
    expected = reference(trunk, list(images.values()), 1, ids, grid_positions=False)
    torch.testing.assert_close(out.hidden[1][out.valid[1]], expected, rtol=1e-5, atol=1e-5)
    placeholders = torch.tensor(ids)
    torch.testing.assert_close(out.latent_queries[1], expected[placeholders == -1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.action_queries[1], expected[placeholders == -2], rtol=1e-5, atol=1e-5)


def test_latent_queries_see_neither_the_wrist_view_nor_anything_later(trunk):
    first = run(trunk, {"front": frames(0), "wrist": frames(1)})
    other = run(trunk, {"front": frames(0), "wrist": frames(2)})
    assert torch.equal(first.latent_queries, other.latent_queries)
    assert not torch.equal(first.action_queries, other.action_queries)
    changed = copy.deepcopy(trunk)
    torch.nn.init.normal_(changed.action_query)
    assert torch.equal(run(changed, {"front": frames(0), "wrist": frames(1)}).latent_queries, first.latent_queries)


def test_latent_queries_see_the_primary_view_and_the_instruction(trunk):
    first = run(trunk, {"front": frames(0)})
    assert not torch.equal(run(trunk, {"front": frames(3)}).latent_queries, first.latent_queries)
    other = run(trunk, {"front": frames(0)}, tasks=("shut", "turn the wheel"))
    assert not torch.equal(other.latent_queries[0], first.latent_queries[0])


def test_padding_of_the_instruction_changes_nothing(trunk):
    alone = run(trunk, {"front": frames(0)[:1]}, tasks=TASKS[:1])
    padded = run(trunk, {"front": frames(0)})
    assert padded.hidden.shape[1] > alone.hidden.shape[1]
    torch.testing.assert_close(alone.latent_queries[0], padded.latent_queries[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(alone.action_queries[0], padded.action_queries[0], rtol=1e-5, atol=1e-5)


def test_other_resolutions_are_refused(trunk):
    with pytest.raises(MisfitError, match=r"takes 64x64 frames, got 32x32"):
        run(trunk, {"front": frames(0)[..., :32, :32]})


def test_published_weights_load_from_a_folder(tmp_path):
    from transformers import Qwen3VLModel

    torch.manual_seed(5)
    published = Qwen3VLModel(trunk_of().model.config)
    published.save_pretrained(tmp_path)
    trunk = Qwen3VLTrunk(
        replace(SETTINGS, weights=str(tmp_path), layers=2), latent_queries=LATENT, action_queries=ACTION
    )
    trunk.load_pretrained()
    loaded = trunk.model.state_dict()
    assert all(torch.equal(value, published.state_dict()[name]) for name, value in loaded.items())
    assert len(trunk.model.language_model.layers) == 2
    deeper = Qwen3VLTrunk(
        replace(SETTINGS, weights=str(tmp_path), layers=4), latent_queries=LATENT, action_queries=ACTION
    )
    with pytest.raises(WeightsError, match="has other dimensions than the config .*set vlm to its own"):
        deeper.load_pretrained()


def test_weights_that_are_not_there_say_what_to_do():
    trunk = Qwen3VLTrunk(replace(SETTINGS, weights="/nowhere"), latent_queries=LATENT, action_queries=ACTION)
    with pytest.raises(WeightsError, match=r"set vlm\.weights to the folder"):
        trunk.load_pretrained()
    with pytest.raises(WeightsError, match=r"tokenizer '/nowhere' cannot be loaded .*set vlm\.weights"):
        trunk.tokenize(TASKS)
