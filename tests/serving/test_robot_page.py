"""The page that a robot engineer follows: its recipe is a recipe, and what it says of messages is so."""

from __future__ import annotations

import re

from fake_policy import Talk, observation, running

from wamkit.serving.requests import RequestFormat


def test_its_recipe_fits_together(repository):
    page = (repository / "docs/on_a_robot.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    namespace: dict = {}
    exec(compile(next(block for block in blocks if "def my_arm" in block), "docs/on_a_robot.md", "exec"), namespace)
    for config, own in ((namespace["config"], []), (namespace["my_arm"]("small"), ["encoder"])):
        assert config.model_config.cameras == ("front", "wrist")
        assert [stage.name for stage in config.stages] == [*own, "latent_action", "policy"]
        *before, policy = (stage.window for stage in config.stages)
        assert all(window.cameras == ("front",) for window in before)  # what the world model sees
        assert policy.cameras == ("front", "wrist")
        assert all(window.frame_offsets_s in ((0.0,), (0.0, 0.8)) for window in (*before, policy))
        assert (policy.chunk_s, policy.action_count(30.0)) == (0.8, 24)
    for block in blocks:  # the others need a robot, but are Python
        compile(block, "docs/on_a_robot.md", "exec")


def test_it_names_every_word_of_the_protocol(repository):
    page = (repository / "docs/on_a_robot.md").read_text()
    from wamkit.serving.requests import _WORDS

    with running() as server, Talk(server) as talk:
        reply = talk.ask(observation())
        said = talk.metadata
    words = [*_WORDS, *reply, *RequestFormat(cameras={}, action_dim=1).metadata()]
    words += [word for word in said if word not in ("server", "version", "protocol", "model")]
    for word in words:
        assert f"`{word}`" in page, word
