"""tfrecord and tf.train.Example without TensorFlow, and the traps of RLDS data."""

from __future__ import annotations

import io
import json
import shutil
import struct

import numpy as np
import pytest
from PIL import Image

from wamkit.data.importers import ImportFailure, import_recording
from wamkit.data.importers.tfrecord import crc32c, masked_crc, parse_example, read_records
from wamkit.data.lerobot import LeRobotSource

RECORDS = "octo_bridge_rlds/bridge_dataset/1.0.0/bridge_dataset-train.tfrecord-00000-of-00001"


def varint(value: int) -> bytes:
    value &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def example(**features: bytes) -> bytes:
    entries = [field(1, field(1, name.encode()) + field(2, feature)) for name, feature in features.items()]
    return field(1, b"".join(entries))


def record(data: bytes) -> bytes:
    head = struct.pack("<Q", len(data))
    return head + struct.pack("<I", masked_crc(head)) + data + struct.pack("<I", masked_crc(data))


def test_checksum_is_castagnolis():
    # RFC 3720, B.4
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


def test_example_kinds():
    parsed = parse_example(
        example(
            text=field(1, field(1, b"go") + field(1, b"")),
            packed=field(2, field(1, np.array([1.5, -2], "<f4").tobytes())),
            single=field(2, varint(1 << 3 | 5) + struct.pack("<f", 0.25)),
            numbers=field(3, field(1, varint(3) + varint(-1) + varint(2**40))),
            number=field(3, varint(1 << 3) + varint(7)),
            nothing=b"",
        )
    )
    assert parsed["text"] == [b"go", b""]
    assert parsed["nothing"] == []
    np.testing.assert_array_equal(parsed["packed"], [1.5, -2])
    np.testing.assert_array_equal(parsed["single"], [0.25])
    np.testing.assert_array_equal(parsed["numbers"], [3, -1, 2**40])
    np.testing.assert_array_equal(parsed["number"], [7])
    with pytest.raises(ImportFailure, match=r"not a tf\.train\.Example"):
        parse_example(b"\x0a\xff")


def test_damage_names_the_record(tmp_path):
    whole = record(b"first") + record(b"second")
    path = tmp_path / "x.tfrecord"
    path.write_bytes(whole)
    assert list(read_records(path)) == [b"first", b"second"]
    cases = {
        whole[:-3]: r"record 1 of .* cut off after 7 of 10 bytes: the file is truncated; restore it",
        whole[:26]: r"record 1 of .* cut off after 5 bytes: the file is truncated",
        whole.replace(b"second", b"sEcond"): r"record 1 of .* is damaged \(checksum differs\)",
        b"\x06" + whole[1:]: r"record 0 of .* damaged length",
    }
    for content, message in cases.items():
        path.write_bytes(content)
        with pytest.raises(ImportFailure, match=message):
            list(read_records(path))
    with pytest.raises(ImportFailure, match="is missing"):
        list(read_records(tmp_path / "y.tfrecord"))


@pytest.fixture(scope="module")
def imported(test_data, tmp_path_factory):
    root = tmp_path_factory.mktemp("rlds") / "out"
    return import_recording(test_data / "octo_bridge_rlds", root, limit=3), LeRobotSource(root)


def test_rows_are_the_files(imported, test_data):
    summary, source = imported
    assert (source.fps, source.embodiment, summary.format) == (5, "bridge", "rlds")
    assert [episode.length for episode in source.episodes] == [10] * 3  # shorter than a 16-step chunk, and kept
    for episode, data in zip(source.episodes, read_records(test_data / RECORDS), strict=False):
        steps = parse_example(data)
        for name, key in (("action", "steps/action"), ("observation.state", "steps/observation/state")):
            np.testing.assert_array_equal(source.column(name)[episode.rows].ravel(), steps[key])
        assert episode.task == steps["steps/language_instruction"][0].decode() != ""


def test_dummy_views_are_found_by_content_not_by_flag(imported, test_data):
    summary, source = imported
    steps = parse_example(next(read_records(test_data / RECORDS)))
    assert all(steps[f"episode_metadata/has_image_{view}"] == 0 for view in range(4))  # the trap: all flags are False
    assert source.cameras == ("image_0", "image_1", "image_2")
    assert "image_3 is a dummy in the first 8 episodes and left out" in summary.notes
    for camera in source.cameras:
        assert source.decode(camera, 0, [0.0, 1.8]).std() > 30
    assert source.episodes[0].absent_cameras == ()


def test_a_view_that_one_episode_lacks(tmp_path):
    def picture(value: int) -> bytes:
        out = io.BytesIO()
        pixels = np.zeros((16, 16, 3), np.uint8) if value == 0 else np.indices((16, 16, 3)).sum(0) * value
        Image.fromarray(pixels.astype(np.uint8)).save(out, "PNG")
        return field(1, picture_list(out.getvalue()))

    def picture_list(data: bytes) -> bytes:
        return field(1, data) * 2  # two steps

    def episode(second_view: int) -> bytes:
        features = {
            "steps/observation/image_0": picture(3),
            "steps/observation/image_1": picture(second_view),
            "steps/action": field(2, field(1, np.array([1, 2, 3, 4], "<f4").tobytes())),
            "steps/language_instruction": field(1, field(1, b"") * 2),
        }
        return record(example(**features))

    image = {"image": {"shape": {"dimensions": ["16", "16", "3"]}}}
    steps = {
        "observation": {"featuresDict": {"features": {"image_0": image, "image_1": image}}},
        "action": {"tensor": {"shape": {"dimensions": ["2"]}}},
    }
    sequence = {"sequence": {"feature": {"featuresDict": {"features": steps}}}}
    (tmp_path / "features.json").write_text(json.dumps({"featuresDict": {"features": {"steps": sequence}}}))
    (tmp_path / "dataset_info.json").write_text('{"name": "droid_100"}')
    for number, views in enumerate([(3, 0), (3,)]):
        path = tmp_path / f"x-train.tfrecord-0000{number}-of-00002"
        path.write_bytes(b"".join(episode(view) for view in views))
    import_recording(tmp_path, tmp_path / "out")
    source = LeRobotSource(tmp_path / "out")
    assert source.extra["source_episodes"] == ["train-00000/0", "train-00000/1", "train-00001/0"]
    assert [episode.absent_cameras for episode in source.episodes] == [(), ("image_1",), ()]
    assert (source.fps, source.state_names, source.embodiment) == (15, None, "droid")
    assert source.column("action").tolist() == [[1, 2], [3, 4]] * 3
    assert source.decode("image_1", 1, [0.0]).max() < 8
    assert source.decode("image_1", 2, [0.0]).max() > 60


def test_truncated_file_and_unknown_rate(test_data, tmp_path):
    folder = tmp_path / "some_dataset/1.0.0"
    shutil.copytree(test_data / "octo_bridge_rlds/bridge_dataset/1.0.0", folder)
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**info, "name": "some_dataset"}))
    with pytest.raises(ImportFailure, match=r"do not hold the control rate of 'some_dataset': say it with --fps"):
        import_recording(tmp_path / "some_dataset", tmp_path / "out")
    for path in folder.glob("*.tfrecord-*"):
        path.write_bytes(path.read_bytes()[:300_000])
    with pytest.raises(ImportFailure, match=r"Episode train/2 .*: record 2 of .*train.* is cut off"):
        import_recording(tmp_path / "some_dataset", tmp_path / "out", fps=5)
    summary = import_recording(tmp_path / "some_dataset", tmp_path / "out", fps=5, resume=True, skip_broken=True)
    assert LeRobotSource(tmp_path / "out").extra["source_episodes"] == ["train/0", "train/1", "val/0", "val/1"]
    assert [name for name, _ in summary.skipped] == ["train/2", "val/2"]
