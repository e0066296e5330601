"""The report: self-contained, true to its numbers, and honest about gaps."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from wamkit.errors import WamkitError
from wamkit.evaluation import report_figures as figures
from wamkit.evaluation import report_text as text
from wamkit.evaluation.report import ReportFigure, ReportVideo, films_from_imagine, videos_from_eval, write_report
from wamkit.evaluation.report_monitor import promise_sentence
from wamkit.evaluation.results import build_eval, write_eval
from wamkit.evaluation.statistics import success_rate
from wamkit.evaluation.watched_arm import alarm_rates
from wamkit.inference.monitor_calibration import Calibration, Scale


def run(arm, rates, n=20, seeds=(0,)):
    return [
        {
            "arm": arm, "task": task, "trial": trial, "seed": seed, "success": trial < round(rate * n),
            "steps": 40, "seconds": 1.0, "retries": 0,
        }
        for seed in seeds
        for task, rate in zip(("push-v3", "door-open-v3"), rates, strict=True)
        for trial in range(n)
    ]  # fmt: skip


@pytest.fixture
def evaluation():
    episodes = run("policy", (1.0, 0.9)) + run("no_op", (0, 0)) + run("blind", (0.5, 0.0))
    episodes += run("swapped_instruction", (0.1, 0.0)) + run("without_lawm", (1.0, 0.85))
    return build_eval(episodes, {"date": "2026-01-01", "versions": {"mujoco": "3.8.1"}})


@pytest.fixture
def imagine():
    return {
        "feature_error": {
            "horizon_s": [0.2, 0.4], "model": [0.2, 0.3], "copy_present": [0.6, 0.9], "ratio": [0.33, 0.33],
            "ratio_ci95": [[0.3, 0.4], [0.3, 0.4]], "n": 50,
        },
        "action_dependence": {
            "latent_action": {"error": 0.2, "error_shuffled": 0.6, "ratio": 3.0, "ci95": [2.5, 3.5], "n": 50}
        },
        "latent_action_probe": {"r2": 0.7, "n_train": 40, "n_test": 50},
        "not_measured": {"encoder_probe": "No state was recorded."},
    }  # fmt: skip


@pytest.fixture
def examples():
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 255, size=(32, 32, 3), dtype=np.uint8)
    maps = {name: rng.random(16).astype(np.float32) for name in ("a", "b", "c", "d")}
    subgoal = figures.SubgoalExample(
        now=frame, later=frame, grid=(4, 4), patch=5, similarity_predicted=maps["a"], similarity_true=maps["b"],
        change_predicted=maps["c"], change_true=maps["d"], label="push <b>the</b> puck", horizon_s=0.2,
    )  # fmt: skip
    transfer = figures.TransferExample(
        source_now=frame, source_later=frame, source_change=maps["a"], target_now=frame, target_change=maps["b"],
        grid=(4, 4), source_label="push", target_label="open",
    )  # fmt: skip
    return [subgoal], [transfer]


@pytest.fixture
def video(tmp_path):
    import av

    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for shade in range(0, 250, 50):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), shade, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


LOG = [
    {"step": step, "stage": stage, "stage_step": step, "loss": 1 / (1 + step), "action": 0.5 / (1 + step), "lr": 1e-4}
    for stage in ("latent_action", "policy")
    for step in range(5)
]


def test_whole_report_is_one_file_that_loads_nothing(tmp_path, evaluation, imagine, examples, video):
    latency = {"parts": {"vlm": {"p50_ms": 20.0}}, "total": {"p50_ms": 31.0, "p99_ms": 40.0}, "boundary": "policy"}
    path = write_report(
        tmp_path / "out" / "report.html",
        eval=evaluation,
        imagine=imagine,
        training_logs=LOG,
        videos=[ReportVideo(video, "policy", "push-v3", 3, True), ReportVideo(video, "policy", "push-v3", 4, False)],
        subgoals=examples[0],
        transfers=examples[1],
        latency=latency,
        figures=[ReportFigure("Ablation", figures.horizon_chart(imagine["feature_error"]), "a caption")],
        notes=["Stand-in visuals."],
    )
    html = path.read_text()
    addresses = re.findall(r'(?:src|srcset|href|poster)="([^"]{0,40})', html)
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.search(r"https?://|@import|url\(", html)
    for kind in ("data:video/mp4", "data:image/png", "data:image/jpeg"):
        assert kind in html
    assert 'name="viewport"' in html
    assert "prefers-color-scheme: dark" in html
    assert "push &lt;b&gt;the&lt;/b&gt; puck" in html  # an instruction is text, never markup
    assert "Stand-in visuals." in html
    assert "✓ success" in html
    assert "✗ failure" in html
    assert "3.8.1" in html
    assert str(tmp_path) not in html
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_latent_actions_are_told_in_numbers(tmp_path, imagine):
    region = {"ratio": 4.25, "ratio_bias_removed": 2.5, "correlation": 0.3, "control_correlation": 0.4, "n": 50}
    plain = imagine | {"effect_region": region}
    assert "4.25 times as much as the background, 2.50 times" in _page(tmp_path, plain)
    moved = {
        "target_over_source": 1.75, "ci95": [1.5, 2.0], "arm_over_rest": 3.25, "recovered_r2": 0.875,
        "partners": "of another instruction", "n": 48,
    }  # fmt: skip
    step = imagine["feature_error"] | {"ratio": [0.625], "ratio_ci95": [[0.5, 0.75]], "horizon_s": [0.2]}
    whole = imagine | {
        "effect_region": region | {"ci95": [3.5, 5.0], "true_ratio": 6.5},
        "transfer": moved,
        "latent_action_error": step,
    }
    page = _page(tmp_path, whole)
    for words in (
        "95 % interval 3.50–5.00; the true change, 6.50 times",
        "of another instruction, a latent action changes that scene's arm 1.75 times as much",
        "3.25 times as much as the background. Read again from the scene that it produced, it comes back with R² 0.88.",
        "The latent action's own step, 0.2 s: 0.62 times the error of copying the present",
    ):
        assert words in page
    assert "Read again" not in _page(tmp_path, whole | {"transfer": moved | {"recovered_r2": None}})


@pytest.fixture
def video_model():
    """imagine.json of a model that imagines pictures and goes on from them."""
    curves = {name: [20.0, 19.0, 18.0] for name in ("true", "none", "copy_first", "reconstruction")}
    curves["swapped"] = [15.0, 14.0, None]
    return {
        "pixel_error": {
            "horizon_s": [0.1, 0.2], "ratio": [0.75, 0.5], "ratio_ci95": [[0.7, 0.8], [0.4, 0.6]],
            "psnr": {"model": [30.0, 29.0], "copy_present": [28.0, 25.0], "reconstruction": [40.0, 40.0]},
        },
        "forward_dynamics": {
            "horizon_s": [0.1, 0.2], "over_copy": 0.45, "over_copy_ci95": [0.4, 0.5], "swapped_over_true": 1.35,
            "swapped_over_true_ci95": [1.2, 1.5], "n": 64, "episodes": 5,
        },
        "episode_rollouts": {
            "horizon_s": [0.1, 0.2, 0.3], "episodes_at": [2, 2, 1], "main": "true",
            "psnr": curves, "ssim": curves,
            "over_copy": 0.62, "over_copy_ci95": [0.5, 0.75], "swapped_over_true": 1.8,
            "swapped_over_true_ci95": [1.4, 2.2], "none_over_true": 1.3, "none_over_true_ci95": None,
            "swap_effect": 0.0017, "swap_effect_ci95": [0.001, 0.25],
            "episodes": [
                {"episode": 4, "task": "push <it>", "seconds": 0.3, "swapped_with": 7, "film": "clip.mp4"},
                {"episode": 7, "task": "", "seconds": 0.2, "swapped_with": 4, "film": None},
            ],
            "not_measured": {"none_over_true_ci95": "Too few."},
        },
        "not_measured": {"fvd": "No weights."},
    }  # fmt: skip


def test_a_video_models_episodes_are_shown_and_judged(tmp_path, video_model, video):
    films = films_from_imagine(video_model, video.parent)
    assert [film.path for film in films] == [video]
    html = write_report(tmp_path / "report.html", imagine=video_model, films=films).read_text()
    page = re.sub(r"\s+", " ", html.replace("&nbsp;", " ").replace("\u00a0", " ")).replace("&#39;", "'")
    for words in (
        "Its imagined video, told the recorded actions, beats copying the first picture over whole episodes: 0.62",
        "The imagined video listens to the actions that it is told: told another episode's, its squared error is 1.80",
        "Episode 4, “push &lt;it&gt;”, 0.3 s; on the right it is told what was done in episode 7",
        'told no actions, over told its own: <b class="finding">1.30</b><span class="detail">no interval of one',
        "Told what the robot did, over copying the present: 0.45 times the squared error over 0.2 s (95 % interval 0.4",
        "0.75 (0.70–0.80)",
        '<b class="finding">0.002</b><span class="detail">95 % interval 0.001–0.25, 2 episodes',
        "No weights.",
        "Too few.",
        '<video src="data:video/mp4;base64,',
    ):
        assert words in page, words
    addresses = re.findall(r'(?:src|srcset|href|poster)="([^"]{0,40})', html)
    assert all(address.startswith(("data:", "#")) for address in addresses)
    small = write_report(tmp_path / "report.html", imagine=video_model, films=films, video_budget_mb=1e-4).read_text()
    assert "left out here for its size, see clip.mp4" in small
    assert "data:video" not in small
    with pytest.raises(WamkitError, match="There is no film"):
        write_report(
            tmp_path / "report.html", imagine=video_model, films=films_from_imagine(video_model, tmp_path / "x")
        )


@pytest.mark.parametrize(
    ("ci95", "words"),
    [([1.1, 1.4], "is worse than"), ([0.9, 1.1], "cannot be told from"), (None, "one episode gives no interval")],
)
def test_imagined_episodes_are_judged_by_their_interval(video_model, ci95, words):
    rolled = video_model["episode_rollouts"] | {"over_copy_ci95": ci95, "main": "none"}
    said = text.verdict(None, video_model | {"episode_rollouts": rolled})
    assert words in said
    assert "told no actions" in said


def test_a_window_judges_a_model_that_does_not_go_on(video_model):
    del video_model["episode_rollouts"]
    assert "beats copying the present 0.2 s ahead" in text.verdict(None, video_model).replace(text.NBSP, " ")
    said = text.told_sentence(video_model)
    assert "listens to" in said
    assert "1.35 times" in said
    told = video_model["forward_dynamics"]
    for low, words in ((1.01, "hardly listens to"), (0.9, "is not shown to listen to")):
        entry = told | {"swapped_over_true_ci95": [low, 1.5]}
        assert words in text.told_sentence({"forward_dynamics": entry})
    assert text.told_sentence({"forward_dynamics": {"swapped_over_true": None}}) is None


def _page(folder: Path, imagine: dict) -> str:
    """The page's text with its lines joined."""
    html = write_report(folder / "report.html", imagine=imagine).read_text()
    return re.sub(r"\s+", " ", html.replace("&nbsp;", " ")).replace("&#39;", "'")


def test_a_bare_evaluation_names_every_gap(tmp_path, evaluation):
    html = write_report(tmp_path / "report.html", eval=write_eval(tmp_path / "eval.json", evaluation)).read_text()
    assert html.count("Not measured in this run.") == 7
    for gap in ("World-model metrics", "Subgoal heat maps", "Training curves", "Latency", "Scripted expert"):
        assert gap in html[html.index("What was not measured") :]


def test_nothing_at_all_is_still_a_page(tmp_path):
    assert "Nothing was measured in this run." in write_report(tmp_path / "report.html").read_text()


def test_reason_of_the_model_reaches_the_page(tmp_path, imagine):
    html = write_report(tmp_path / "report.html", imagine=imagine).read_text()
    assert "No state was recorded." in html
    assert "beats copying the present" in html


def test_verdict_says_what_the_numbers_say(evaluation, imagine):
    said = text.verdict(evaluation, None).replace(text.NBSP, " ")
    assert said.startswith("The policy solves 95 % of 40 trials over 2 tasks")
    assert "images blanked it solves 25 %" in said
    lead = " ".join(text.lead_sentences(evaluation, imagine)).replace(text.NBSP, " ")
    assert "It uses its eyes: 70 points better" in lead
    assert "It depends on its instruction" in lead
    alone = build_eval(run("policy", (0.5, 0.5)), {})
    assert text.verdict(alone, None).endswith("no control arm was run.")


def test_an_undecided_result_is_called_so(evaluation):
    useless = build_eval(run("policy", (0.5, 0.5)) + run("blind", (0.5, 0.45)), {})
    assert "do not show that it uses its eyes" in " ".join(text.lead_sentences(useless, None))
    entry = text.overall_comparison(evaluation, "without_lawm")
    words = text.comparison_sentences(entry)
    assert words["finding"] == "not told apart"
    assert "paired trials would tell them apart" in words["needed"]
    better = text.comparison_sentences(text.overall_comparison(evaluation, "no_op"))
    assert better["finding"] == "95 points better"
    assert better["needed"] == ""


@pytest.mark.parametrize(
    ("ratio", "ci95", "words"),
    [(0.5, [0.4, 0.6], "beats"), (1.0, [0.9, 1.1], "cannot be told"), (1.3, [1.1, 1.5], "is worse than")],
)
def test_imagination_is_judged_by_its_interval(ratio, ci95, words):
    entry = {"horizon_s": [0.2], "ratio": [ratio], "ratio_ci95": [ci95]}
    assert words in text.imagination_sentence({"feature_error": entry})


def test_following_is_claimed_above_the_control_only():
    def swap(k, control):
        return {
            "followed": success_rate([True] * k + [False] * (60 - k)).to_json(),
            "control": success_rate(control).to_json(),
        }

    assert text.path_sentence(swap(50, [False] * 60)).startswith("It follows the other instruction")
    assert text.path_sentence(swap(35, [True] * 30 + [False] * 30)).startswith("It is not shown")
    assert text.path_sentence({"rows": []}) is None


def test_percent_never_rounds_to_certainty():
    said = [text.percent(share).replace(text.NBSP, " ") for share in (0.0, 0.002, 0.934, 0.998, 1.0)]
    assert said == ["0 %", "0.2 %", "93 %", "99.8 %", "100 %"]


def test_videos_from_eval_takes_failures_first(tmp_path, evaluation, video):
    for episode in evaluation["episodes"]:
        if episode["arm"] == "policy":
            episode["video"] = video.name
    chosen = videos_from_eval(evaluation, tmp_path, per_cell=1)
    assert [(v.task, v.success) for v in chosen] == [
        ("door-open-v3", False),
        ("door-open-v3", True),
        ("push-v3", True),
    ]
    assert chosen[0].path == video
    html = write_report(tmp_path / "report.html", eval=evaluation, videos=chosen, video_budget_mb=0).read_text()
    assert "3 videos were recorded" in html
    with pytest.raises(WamkitError, match="no video"):
        write_report(tmp_path / "report.html", videos=[ReportVideo(tmp_path / "no.mp4", "policy", "push", 0, True)])
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    with pytest.raises(WamkitError, match="cannot be decoded"):
        write_report(tmp_path / "report.html", videos=[ReportVideo(tmp_path / "broken.mp4", "policy", "p", 0, True)])


def test_overlay_puts_the_colour_where_the_heat_is():
    import io

    from PIL import Image

    heat = np.zeros(16, np.float32)
    heat[5] = 1.0  # row 1, column 1
    picture = figures.overlay(np.full((64, 64, 3), 90, np.uint8), heat, (4, 4), low=0.0, high=1.0, side=64)
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)
    colour = pixels.max(axis=2) - pixels.min(axis=2)
    assert np.hypot(*(np.array(np.unravel_index(colour.argmax(), colour.shape)) - 24)) < 20
    assert colour[50:, 50:].max() < 12
    with pytest.raises(WamkitError, match="does not fit"):
        figures.overlay(np.zeros((8, 8, 3), np.uint8), heat, (3, 4), low=0, high=1)
    with pytest.raises(WamkitError, match="not finite"):
        figures.overlay(np.zeros((8, 8, 3), np.uint8), heat * np.nan, (4, 4), low=0, high=1)


def test_examples_survive_the_disk(tmp_path, examples):
    subgoals, transfers = figures.load_examples(figures.save_examples(tmp_path / "e.npz", *examples))
    assert subgoals[0].label == examples[0][0].label
    assert subgoals[0].grid == (4, 4)
    assert subgoals[0].patch == 5
    np.testing.assert_array_equal(transfers[0].target_change, examples[1][0].target_change)


def test_training_log_of_a_killed_run_and_of_a_broken_one(tmp_path):
    log = tmp_path / "train_log.jsonl"
    log.write_text('{"step": 1, "stage": "policy", "loss": 1.0}\n{"step": 2, "sta')
    assert "Stage policy" in write_report(tmp_path / "r.html", training_logs=log).read_text()
    log.write_text('{"step": 1\n{"step": 2, "stage": "policy", "loss": 1.0}\n')
    with pytest.raises(WamkitError, match="Line 1"):
        write_report(tmp_path / "r.html", training_logs=log)
    with pytest.raises(WamkitError, match="no training log"):
        write_report(tmp_path / "r.html", training_logs=tmp_path / "none.jsonl")


def test_alarms_of_a_monitor_are_shown_by_arm_and_outcome(tmp_path):
    calibration = Calibration(
        threshold=1.25, scale=Scale("copy_present", {}), false_alarm_rate=0.1, memory=1, episodes=36
    )
    # Of the policy's 20 + 18 successes every tenth trial raises an alarm, and both of its failures do.
    policy = [
        episode
        | {"surprises": [], "alarms_s": [0.5, 2.0] if episode["trial"] % 10 == 9 or not episode["success"] else []}
        for episode in run("policy", (1.0, 0.9))
    ]
    monitor = alarm_rates(policy, calibration)
    page = _page_of(tmp_path, build_eval(policy + run("blind", (0.5, 0.0)), {}, monitor=monitor))
    (rows,) = re.findall(r'<section id="monitor">.*?<tbody>(.*?)</tbody>', page, flags=re.DOTALL)
    cells = [
        [re.sub(r"<.*?>", "", cell).strip() for cell in re.findall(r"<t[dh].*?>(.*?)</t[dh]>", row, flags=re.DOTALL)]
        for row in re.findall(r"<tr>(.*?)</tr>", rows, flags=re.DOTALL)
    ]
    done = "nothing: the policy went on"
    assert cells == [
        ["Policy", "that succeeded", "38", "3", "8 %", "3–21 %", "0.5 s", done],
        ["Policy", "that failed", "2", "2", "100 %", "34–100 %", "0.5 s", done],
    ]
    assert "a surprise above 1.25" in page
    assert "on 36 successful episodes, so that of episodes like them at most 10 % raise one" in page
    assert "Here 8 % of the successful episodes did (3–21 %), which does not contradict it." in page
    assert "Alarms of a monitor" not in page


def test_a_broken_promise_and_an_untested_one_are_said():
    promised = {"threshold": 1.0, "false_alarm_rate": 0.1, "calibration_episodes": 11, "failed": None}
    often = success_rate([True] * 9 + [False]).to_json()
    assert "more than promised" in promise_sentence(promised | {"successful": often})
    assert "not tested" in promise_sentence(promised | {"successful": None})


def test_a_report_without_a_monitor_says_how_to_have_one(tmp_path, evaluation):
    assert "Alarms of a monitor</dt><dd>No monitor watched; run `wam calibrate`" in _page_of(tmp_path, evaluation)


def _page_of(tmp_path, evaluation) -> str:
    return write_report(tmp_path / "r.html", eval=evaluation).read_text().replace("\u00a0", " ")


def test_no_legend_lies_on_a_curve(monkeypatch):
    """Whatever the curves, and however many: the legend has a place of its own, and the axes stay as high."""
    drawn = []
    png = figures._png
    monkeypatch.setattr(figures, "_png", lambda figure: (drawn.append(figure), png(figure))[1])
    for count in (1, 2, 9):
        record = {f"term {number}": 1.0 + number for number in range(count)}
        figures.training_charts([{"step": step, **record} for step in (1, 2)])
    figures.horizon_chart({"horizon_s": [0.2, 0.4], "model": [0.2, 0.3], "copy_present": [0.6, 0.9]})
    heights = []
    for figure in drawn:
        (axis,), (legend,) = figure.axes, figure.legends
        assert not legend.get_window_extent().overlaps(axis.get_tightbbox())
        heights.append(axis.get_window_extent().height)
    assert min(heights[:6]) > 0.95 * max(heights[:6])


def test_charts_keep_the_order_of_stages_and_leave_bookkeeping_out():
    charts = figures.training_charts(LOG)
    assert [stage for stage, _ in charts] == ["latent_action", "policy"]
    assert "lr" not in charts[0][1].alt
    assert charts[0][1].light[:4] == b"\x89PNG"
    assert charts[0][1].light != charts[0][1].dark
