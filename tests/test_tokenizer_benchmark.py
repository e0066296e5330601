"""``benchmarks/tokenizer.py``: tokenizers are trained, measured, taken from checkpoints; wrong names are told."""

from __future__ import annotations

import pytest


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_tokenizers_are_trained_measured_and_taken_from_checkpoints(benchmark, tmp_path, last_line):
    tokenizer = benchmark("tokenizer")
    flags = ["--toy", "--json", "--device", "cpu", "--output_dir", str(tmp_path)]
    names = ["repvitok", "representation"]
    tokenizer.main([*flags, "--tokenizers", *names])
    result = last_line()
    assert list(result["tokenizers"]) == names
    for name in names:
        (row,) = result["tokenizers"][name].values()
        assert row["windows"]["episodes"] == 3
        assert 0 <= row["action_probe"]["share_within"]["share"] <= 1
        assert ("reconstruction" in row) == (name != "representation")
        assert row["origin"]["parameters"] > 0
        assert {"rfid", "rfvd"} <= row["not_measured"].keys() or name == "representation"
    checkpoint = tmp_path / "repvitok/seed0"
    tokenizer.main([*flags, "--tokenizers", f"mine={checkpoint}", f"eyes={checkpoint}:representation"])
    again = last_line()["tokenizers"]
    assert again["mine"]["0"]["reconstruction"] == result["tokenizers"]["repvitok"]["0"]["reconstruction"]
    assert again["eyes"]["0"]["action_probe"] == result["tokenizers"]["representation"]["0"]["action_probe"]
    assert any("repvitok" in line for line in benchmark("_tables").tokenizer(result))


def test_wrong_names_and_a_missing_recording_are_told(benchmark, capsys):
    tokenizer = benchmark("tokenizer")
    with pytest.raises(SystemExit):
        tokenizer.options_of(["--toy", "--tokenizers", "repvitk"])
    assert "Did you mean 'repvitok'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tokenizer.options_of(["--toy", "--weights", "dinov2=folder"])
    assert "Did you mean 'dinov3'" in capsys.readouterr().err
    options = tokenizer.options_of(["--toy", "--tokenizers", "dinov3", "mine=a:b", "--weights", "dinov3=folder"])
    assert options.weights == {"dinov3": "folder"}
    with pytest.raises(SystemExit):
        tokenizer.options_of([])
    assert "--root" in capsys.readouterr().err
