"""The report as text: what it says, that it escapes, that it loads nothing, and how it is written."""

import errno
import html
import json
import os
import re
import tomllib
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from made_run import make_lines, make_record, write_run

from largebatch.errors import InputError
from largebatch.report.run_folder import RunFolder
from largebatch.report.run_page import write_report
from largebatch.report.summary import comparisons, terminal_lines

HOSTILE = "</script><script>hostile = 1</script><img src=x onerror='hostile=2'>&amp;\""


def made_page(folder: Path, record: dict[str, Any] | None = None, lines: list[dict] | None = None) -> str:
    record = record or make_record()
    return write_report(write_run(folder, record, make_lines(record) if lines is None else lines)).read_text("utf-8")


class Text(HTMLParser):
    """Collects what a reader sees, and every tag with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.inside: list[str] = []
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input"):
            self.inside.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.inside.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.inside and self.inside[-1] == "script":
            self.scripts[-1] += data
        elif self.inside and self.inside[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def test_the_head_says_what_was_trained_and_what_came_of_it(tmp_path: Path) -> None:
    text = Text(made_page(tmp_path)).text
    for part in (
        "bert-demo",
        "Complete",
        "A BERT of 4.42 million parameters (2 layers of 128 units), trained on pydocs in 2 stages: 270 steps of 256 "
        "samples at sequence length 64 and 30 steps of 128 samples at sequence length 128.",
        "All 300 steps are done: 72,960 samples or 4.92 million tokens",
        "on Example CPU @ 2.40GHz (1 process of 2 threads).",
        "5.478 nat",
        "1.142 nat below the unigram loss",
        "20.4 %",
        "4.4 times the commonest token's",
        "63.9 %",
        "13.9 points above chance",
        "Skipped steps 1",
        "3.1 times the probability",
    ):
        assert part in text


def test_the_difference_is_of_the_last_evaluation(tmp_path: Path) -> None:
    lines = make_lines(make_record())
    last = [line for line in lines if line["kind"] == "eval"][-1]
    last["metrics"] |= {"mlm_loss": 7.0, "unigram_loss": 6.5, "mlm_accuracy": 0.01, "nsp_accuracy": 0.4}
    text = Text(made_page(tmp_path, lines=lines)).text
    assert "0.500 nat above the unigram loss" in text
    assert "has not learned more than word frequencies" in text
    assert "10.0 points below chance" in text
    assert "below the unigram loss" not in text


def test_the_configuration_is_whole(tmp_path: Path) -> None:
    record = make_record()
    record["run"]["optimizer"]["an_odd_option"] = True
    text = Text(made_page(tmp_path, record)).text
    for part in (
        "length-64 256 270 0.01 27 steps from 0 polynomial, power 1 new 64 10",
        "length-128 128 30 0.00707107 10 steps from 0 polynomial, power 1 kept 128 20",
        "corpus corpora/pydocs",
        "betas 0.9, 0.999",
        "eps 1e-06",
        "an odd option yes",
        "precision fp32",
        "torch 2.11.0",
        "commit 0123456789ab",
        "2025-01-02 03:04:05 UTC started 0 1 2",
        "2025-01-02 04:04:05 UTC resumed 120 1 2",
        "largebatch train bert-demo --seed 3 --task.corpus 'corpora/my texts'",
    ):
        assert part in text


def test_a_schedule_that_goes_on_is_described(tmp_path: Path) -> None:
    record = make_record()
    for stage, offset in zip(record["run"]["stages"], (0, 270), strict=True):
        stage["schedule"] |= {"warmup_steps": 280, "offset_steps": offset, "span_steps": 300, "decay_origin": "start"}
    text = Text(made_page(tmp_path, record, [])).text
    assert "280 steps from 0 polynomial, power 1, from step 0, over 300 steps in all new" in text
    assert "10 steps left polynomial, power 1, from step 0, over 300 steps in all to be kept" in text


def test_many_processes_are_repeated_with_torchrun(tmp_path: Path) -> None:
    record = make_record(sessions=[{"started": "now", "ranks": 8, "threads": 1, "from_step": 0}], overrides={"seed": 3})
    text = Text(made_page(tmp_path, record)).text
    assert "torchrun --nproc-per-node 8 -m largebatch train bert-demo --seed 3" in text
    assert "(8 processes of 1 thread)" in text


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    page = made_page(tmp_path)
    tags = Text(page).tags
    assert not [attributes for _, attributes in tags if "src" in attributes]
    assert {tag for tag, _ in tags} & {"link", "iframe", "img", "object", "embed", "base"} == set()
    assert [attributes["href"] for _, attributes in tags if "href" in attributes] == ["#figures"]
    policies = [attributes for _, attributes in tags if attributes.get("http-equiv") == "Content-Security-Policy"]
    assert str(policies[0]["content"]).startswith("default-src 'none';")
    assert page.count("Plotly.js v") <= 2 or page.count("plotly.js v") <= 2  # its script stands there once
    assert 4e6 < len(page.encode()) < 6e6


def test_every_figure_has_a_name_a_sentence_and_its_numbers(tmp_path: Path) -> None:
    page = Text(made_page(tmp_path))
    plots = [attributes for tag, attributes in page.tags if tag == "div" and attributes.get("class") == "plot"]
    assert [attributes["id"] for attributes in plots] == [
        "held-out-loss",
        "held-out-accuracy",
        "loss",
        "learning-rate",
        "loss-terms",
        "gradient-norm",
        "throughput",
        "noise-scale",
        "noise-by-layer",
        "trust-ratio-map",
    ]
    assert all(attributes["role"] == "img" and len(str(attributes["aria-label"])) > 40 for attributes in plots)
    assert sum(tag == "figcaption" for tag, _ in page.tags) == len(plots)
    assert sum(tag == "details" for tag, _ in page.tags) == len(plots)
    assert "length-64: highest 0.01 at step 28; length-128: highest 0.007071 at step 281." in page.text
    assert "have no ratio and are left out (2 of them were recorded)" in page.text


def test_the_table_of_the_loss_has_the_held_out_one_where_it_was_measured(tmp_path: Path) -> None:
    lines = make_lines(make_record())
    figure = made_page(tmp_path, lines=lines).split('id="loss"')[1].split("</figure>")[0]
    cells = [re.sub("<[^>]+>", " ", row).split() for row in figure.split("<tr")[2:]]
    found = {row[-4]: row[-1] for row in cells}
    measured = {str(line["step"]): f"{line['loss']:.4g}" for line in lines if line["kind"] == "eval"}
    assert {step: loss for step, loss in found.items() if loss != "–"} == measured
    assert len(found) > len(measured), "steps without an evaluation are in it too"


def embedded(page: str) -> dict[str, Any]:
    return json.loads(next(script for script in Text(page).scripts if script.startswith('{"bands"')))


def test_the_embedded_curves_are_the_runs(tmp_path: Path) -> None:
    lines = make_lines(make_record())
    data = embedded(made_page(tmp_path, lines=lines))
    charts = {chart["id"]: chart for chart in data["charts"]}
    rates = [line for line in lines if line["kind"] == "train"]
    (curve,) = charts["learning-rate"]["series"]
    assert curve["steps"] == [line["step"] for line in rates]
    assert curve["samples"] == [line["samples"] for line in rates]
    assert curve["y"] == pytest.approx([line["lr"] for line in rates], rel=1e-5, abs=1e-12)
    assert [band["steps"] for band in data["bands"]] == [[0, 270], [270, 300]]
    assert [band["samples"] for band in data["bands"]] == [[0, 69_120], [69_120, 72_960]]
    model, unigram = charts["held-out-loss"]["series"]
    assert model["steps"] == [50, 100, 150, 200, 250, 270, None, 300]  # broken between the stages
    assert (unigram["steps"][0], unigram["steps"][-1]) == (0, 300)
    assert unigram["y"][0] == 6.61
    ratios = data["ratios"]
    layers = [line for line in lines if line["kind"] == "layers"]
    for row, name in enumerate(name for name, value in layers[0]["ratios"].items() if value is not None):
        assert [10**value for value in ratios["z"][row]] == pytest.approx(
            [line["ratios"][name] for line in layers], rel=2e-3
        )


def test_the_average_does_not_run_across_a_stage_boundary(tmp_path: Path) -> None:
    lines = make_lines(make_record())
    for line in lines:
        if line["kind"] == "train":
            line["loss"] = 1.0 if line["step"] <= 270 else 2.0
    charts = {chart["id"]: chart for chart in embedded(made_page(tmp_path, lines=lines))["charts"]}
    mean = next(series for series in charts["loss"]["series"] if series["style"] == "line")
    assert set(mean["y"]) == {1, 2, None}  # an average across it would hold values in between


def test_a_long_run_stays_small_and_keeps_its_spike(tmp_path: Path) -> None:
    record = make_record(first_steps=18_000, second_steps=2_000)
    lines = make_lines(record)
    spike = next(line for line in lines if line["kind"] == "train" and line["step"] == 7_777)
    spike["loss"], spike["grad_norm"] = 99.0, 1_234.5
    page = made_page(tmp_path, record, lines)
    charts = {chart["id"]: chart for chart in embedded(page)["charts"]}
    assert len(page.encode()) < 6e6
    for chart in charts.values():
        for series in chart["series"]:
            assert len(series["y"]) <= 2_100
    assert max(value for value in charts["loss"]["series"][0]["y"] if value is not None) == 99
    assert max(value for value in charts["gradient-norm"]["series"][0]["y"] if value is not None) == 1_234.5
    assert charts["gradient-norm"]["logarithmic"]
    ratios = embedded(page)["ratios"]
    assert len(ratios["z"][0]) == 400
    assert "share 400 columns" in Text(page).text


# --- unusual runs -----------------------------------------------------------------------------------


def test_a_run_that_is_not_done(tmp_path: Path) -> None:
    record = make_record()
    page = made_page(tmp_path, record, make_lines(record, steps=140))
    assert "Unfinished: step 140 of 300" in Text(page).text
    assert "Complete" not in Text(page).text
    assert [band["steps"] for band in embedded(page)["bands"]] == [[0, 140]]


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_a_run_that_has_hardly_begun(tmp_path: Path, steps: int) -> None:
    record = make_record()
    page = made_page(tmp_path, record, make_lines(record, steps=steps))
    expected = f"Unfinished: step {steps} of 300" if steps else "No step recorded yet"
    assert expected in Text(page).text


def test_a_task_that_is_no_bert(tmp_path: Path) -> None:
    record = make_record()
    lines = make_lines(record)
    for line in lines:
        if line["kind"] == "eval":
            line["metrics"] = {"accuracy": 0.93, "top5_accuracy": 0.99}
        if line["kind"] == "train":
            line["losses"] = {"cross_entropy": line["loss"]}
    page = made_page(tmp_path, record, [line for line in lines if line["kind"] != "layers"])
    text = Text(page).text
    assert "A model of 4.42 million parameters" in text
    assert "Held-out loss 6.118" in text
    assert "After step 300: top 5 99.0 % and accuracy 93.0 %." in text
    assert "BERT" not in text
    assert "Trust ratio of each layer" not in text
    assert embedded(page)["ratios"] is None


def test_a_run_where_nothing_was_finite(tmp_path: Path) -> None:
    record = make_record()
    lines = make_lines(record, steps=5, skipped=(1, 2, 3, 4, 5))
    text = Text(made_page(tmp_path, record, lines)).text
    assert "Skipped steps 5" in text
    assert "No gradient norm was recorded" in text


def test_records_with_little_in_them(tmp_path: Path) -> None:
    record = {
        "format_version": 1,
        "run": {"stages": [{"name": "a", "steps": 2, "global_batch_samples": 3}]},
    }
    text = Text(made_page(tmp_path, record, [{"kind": "train", "step": 1}, {"kind": "train", "step": 2}])).text
    assert "Complete" in text
    assert "A model, trained in 1 stage: 2 steps of 3 samples." in text


# --- escaping ---------------------------------------------------------------------------------------


def poisoned(value: Any, names: tuple[str, ...]) -> Any:
    """Return the value with every text (and every key in ``names``) replaced by the hostile one."""
    if isinstance(value, dict):
        return {(HOSTILE if key in names else key): poisoned(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [poisoned(item, names) for item in value]
    return HOSTILE if isinstance(value, str) and value not in ("polynomial", "step") else value


def hostile_run() -> tuple[dict[str, Any], list[dict]]:
    record = make_record()
    lines = make_lines(record)
    for line in lines:
        if line["kind"] == "layers":
            line["ratios"] = {name.replace("query", HOSTILE): ratio for name, ratio in line["ratios"].items()}
        line.update({"stage": HOSTILE} if "stage" in line else {})
        if line["kind"] == "train":
            line["losses"][HOSTILE] = 1.0
        if line["kind"] == "eval":
            line["metrics"][HOSTILE + "accuracy"] = 0.5
    return poisoned(record, ("sequence_length", "eps", "torch", "seed", "hidden_size")), lines


def assert_only_our_tags(page: str) -> None:
    tags = Text(page).tags
    assert sum(tag == "script" for tag, _ in tags) == 4
    assert not [tag for tag, attributes in tags if tag == "img" or "onerror" in attributes]


def test_nothing_hostile_gets_through(tmp_path: Path) -> None:
    record, lines = hostile_run()
    page = made_page(tmp_path, record, lines)
    assert_only_our_tags(page)
    assert Text(page).words.count(HOSTILE) >= 10  # it stands there, as text
    names = embedded(page)["ratios"]["names"]
    assert any("hostile" in name for name in names)
    assert not any("<" in name for name in names)  # Plotly reads markup in labels
    assert html.unescape(names[2]).endswith(f"attention.self.{HOSTILE}")


def test_the_escape_test_notices_raw_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("largebatch.report.markup.html.escape", lambda text, quote=True: text)
    page = made_page(tmp_path, *hostile_run())
    with pytest.raises(AssertionError):
        assert_only_our_tags(page)


# --- writing ----------------------------------------------------------------------------------------


def test_where_the_report_is_written(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", make_record(), [])
    assert write_report(folder) == folder / "report.html"
    assert write_report(folder, tmp_path / "page.html") == tmp_path / "page.html"
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.jsonl", "report.html", "run.json"]
    first = (folder / "report.html").read_bytes()
    write_report(folder)
    assert (folder / "report.html").read_bytes() == first


def test_a_full_disk_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path, make_record(), [])
    (folder / "report.html").write_text("the old one")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"report\.html cannot be written: No space left on device"):
        write_report(folder)
    assert (folder / "report.html").read_text() == "the old one"
    assert not (folder / "report.html.partial").exists()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    folder = write_run(tmp_path, make_record(), [])
    with pytest.raises(InputError, match=r"page\.html cannot be written: No such file or directory"):
        write_report(folder, tmp_path / "nowhere" / "page.html")


def test_style_and_script_are_installed_with_the_package() -> None:
    for name in ("page.css", "page.js"):
        assert resources.files("largebatch.report").joinpath(name).is_file()
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]
    listed = [
        *patterns.get("largebatch.report", []),
        *(name.removeprefix("report/") for name in patterns["largebatch"]),
    ]
    assert {"*.css", "*.js"} <= set(listed) or {"page.css", "page.js"} <= set(listed)


def test_pairs_are_judged_by_the_commoner_answer_where_it_is_known(tmp_path: Path) -> None:
    record = make_record()
    lines = [dict(line) for line in make_lines(record)]
    for line in lines:
        if line["kind"] == "eval":
            line["metrics"] = {**line["metrics"], "nsp_accuracy": 0.61, "nsp_majority_accuracy": 0.6}
    run = RunFolder.read(write_run(tmp_path, record, lines))
    (found,) = [item for item in comparisons(run) if item.title.startswith("Next-sentence")]
    assert (found.baseline, found.verdict) == (0.6, "1.0 points above always giving it")
    assert any("commoner answer 60.0 %" in line for line in terminal_lines(run))


def test_the_share_of_the_device_is_a_mean_over_time(tmp_path: Path) -> None:
    record = make_record()
    lines = make_lines(record)
    assert "Model operations per second" not in made_page(tmp_path / "untold", record, lines)
    trained = [line for line in lines if line["kind"] == "train"]
    for line in trained:
        line |= {"seconds": 1.0, "flops_per_second": 2e9, "utilisation": 0.25}
    # One step takes three times as long at a third of the rate.
    trained[5] |= {"seconds": 3.0, "flops_per_second": 2e9 / 3, "utilisation": 0.25 / 3}
    page = Text(made_page(tmp_path / "told", record, lines)).text
    count = len(trained)
    share = 100 * 0.25 * count / (count + 2)
    assert f"{2 * count / (count + 2):.3g} billion {share:.1f} % of a plain product" in page.replace("\u2009", " ")
