"""What a checkpoint says of its encoders: self-trained, published, or handed on; and the report repeats it."""

from __future__ import annotations

import json

import pytest
import torch
from micro_lawam import LAWAM
from safetensors.torch import save_file

from wamkit.configuration import to_dict
from wamkit.encoders.dinov3 import DINOv3Config
from wamkit.evaluation.encoder_record import PARTS, encoder_record, sentence, weights_digest
from wamkit.evaluation.provenance import checkpoint_record
from wamkit.evaluation.report import write_report
from wamkit.models import registry

STAGES = [{"name": name, "steps": steps} for name, steps in (("encoder", 400), ("latent_action", 300), ("policy", 9))]
WEIGHTS = {"vision_encoder.a": torch.ones(2, 3), "vlm.b": torch.zeros(4), "flow.c": torch.zeros(1)}


def checkpoint(folder, *, stage="policy", selected=(), begun=None, run=True, **config):
    folder.mkdir()
    described = {"type": "lawam", "stage": stage, **to_dict(LAWAM), **config}
    (folder / "config.json").write_text(json.dumps(described))
    if run:
        values = {"stages": STAGES, "selected_stages": list(selected), "policy": {"path": begun}}
        (folder / "train_config.json").write_text(json.dumps(values))
    save_file(WEIGHTS, folder / "model.safetensors")
    return folder


def test_an_encoder_of_the_runs_own(tmp_path):
    record = encoder_record(checkpoint(tmp_path / "run"))
    assert record.keys() == {"encoder", "vlm"}
    assert record["encoder"]["kind"] == "patch_encoder"
    assert record["encoder"]["objective"] == "masked_autoencoder"
    assert record["encoder"]["origin"] == "no published weights: trained in stage 'encoder' of this run, 400 steps"
    assert "trained in stage 'policy'" in record["vlm"]["origin"]
    assert "objective" not in record["vlm"]
    assert sentence("encoder", record["encoder"]).startswith(
        "encoder: patch encoder (masked autoencoder), no published"
    )
    # Half-way through the run the trunk is as it was drawn.
    half = encoder_record(checkpoint(tmp_path / "half", stage="latent_action"))
    assert half["vlm"]["origin"] == "no published weights: initialised at random, not trained"
    assert half["encoder"] == record["encoder"]


def test_an_encoder_with_published_weights(tmp_path):
    config = {
        "encoder": to_dict(DINOv3Config()),
        "vlm": to_dict(LAWAM.vlm) | {"weights": "/somewhere/private/qwen"},
    }
    folder = checkpoint(tmp_path / "run", **config)
    record = encoder_record(folder, shown=lambda path: f".../{str(path).split('/')[-1]}")
    assert record["encoder"]["kind"] == "dinov3"
    assert record["encoder"]["origin"] == "published weights facebook/dinov3-vitb16-pretrain-lvd1689m"
    assert record["vlm"]["origin"] == "published weights .../qwen, then trained in stage 'policy'"


def test_weights_that_came_from_elsewhere(tmp_path):
    later = checkpoint(tmp_path / "later", selected=("policy",), begun="runs/first")
    assert encoder_record(later)["encoder"]["origin"] == (
        "no published weights: from the checkpoint runs/first that the run began with"
    )
    bare = encoder_record(checkpoint(tmp_path / "bare", run=False))
    assert "no training run is recorded" in bare["encoder"]["origin"]
    assert encoder_record(tmp_path / "nothing") == {}


def test_the_digest_is_of_the_encoders_weights_alone(tmp_path):
    path = checkpoint(tmp_path / "run") / "model.safetensors"
    before = weights_digest(path, ("vision_encoder.",))
    save_file(WEIGHTS | {"flow.c": torch.ones(1)}, path)
    assert weights_digest(path, ("vision_encoder.",)) == before
    save_file(WEIGHTS | {"vision_encoder.a": torch.full((2, 3), 2.0)}, path)
    assert weights_digest(path, ("vision_encoder.",)) not in (before, None)
    assert weights_digest(path, ("text.",)) is None


@pytest.mark.parametrize("source", ["eval", "imagine"])
def test_the_report_names_the_encoder(tmp_path, source):
    record = checkpoint_record(checkpoint(tmp_path / "run"))
    episode = {"arm": "policy", "task": "a", "trial": 0, "seed": 0, "success": True, "steps": 1, "seconds": 0.1}
    from wamkit.evaluation.results import build_eval

    provenance = {"checkpoint": record}
    given = {
        "eval": {"eval": build_eval([episode | {"retries": 0}], provenance)},
        "imagine": {"imagine": {"provenance": provenance}},
    }[source]
    page = write_report(tmp_path / "report.html", **given).read_text().replace("&#39;", "'")
    assert "patch encoder (masked autoencoder)" in page
    assert "trained in stage 'encoder' of this run, 400 steps" in page
    assert record["encoders"]["encoder"]["sha256"][:12] in page


@pytest.mark.parametrize("model", registry.model_names())
@pytest.mark.parametrize("preset", ["tiny", "paper"])
def test_no_models_encoder_is_forgotten(model, preset):
    config = to_dict(registry.model_class(model).preset(preset))
    published = {name for name, values in config.items() if isinstance(values, dict) and "weights" in values}
    assert published <= PARTS.keys() | {"video"}, "a part with weights of its own, which the record leaves out"
    assert PARTS.keys() & {name for name, values in config.items() if isinstance(values, dict)}
