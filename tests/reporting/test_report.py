import re
from dataclasses import replace
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from iar_study.errors import InputError
from iar_study.reporting.report import conclusion, markdown, write_index, write_report

FD, NLL = "fd/classifier@2k", "val/token_nll"
ODD = "<script>alert('1')</script> 50% a_b|c*d `e` [f](g)"


class Page(HTMLParser):
    """What a browser would make of a page: its tags, the addresses it asks for, its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.ids, self.text, self.alts = [], [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.addresses += [values[key] for key in ("src", "href") if key in values]
        self.alts += [values.get("alt")] if tag == "img" else []

    def handle_data(self, data):
        self.text += data


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def ascii_minus(text):
    return text.replace("\N{MINUS SIGN}", "-")


def light(results):
    """Drop what takes long to draw and is not looked at."""
    return replace(results, curves=results.curves[:0], final=results.final[results.final["metric"].isin([FD, NLL])])


def without(results, arm):
    return replace(
        results,
        final=results.final[results.final["arm"] != arm],
        curves=results.curves[results.curves["arm"] != arm],
        samples={name: grid for name, grid in results.samples.items() if name != arm},
        missing=pd.DataFrame({"arm": [arm] * 2, "seed": [0, 1], "status": "not finished", "step": [40.0, np.nan]}),
    )


@pytest.fixture(scope="module")
def report(results, tmp_path_factory):
    return write_report(results, tmp_path_factory.mktemp("reports"))


@pytest.fixture(scope="module")
def page(report):
    return report.read_text()


def test_same_results_same_bytes(results, report, tmp_path):
    shuffled = replace(
        results,
        final=results.final.sample(frac=1, random_state=0),
        curves=results.curves.sample(frac=1, random_state=0),
    )
    again = write_report(shuffled, tmp_path)
    assert files(again.parent) == files(report.parent)


def test_everything_the_page_asks_for_is_there(report, page):
    local = [a for a in Page(page).addresses if not re.match("https://|data:", a)]
    assert len(local) >= 12
    assert all((report.parent / unquote(address)).is_file() for address in local)
    drawn = re.findall(r"!\[.*?\]\((.*?)\)", (report.parent / "index.md").read_text())
    assert len(drawn) >= 11
    assert all((report.parent / name).is_file() for name in drawn)


def test_the_page_is_small_and_needs_no_script(report, page):
    assert sum(map(len, files(report.parent).values())) < 1_000_000
    assert "script" not in Page(page).tags
    assert all(Page(page).alts)
    with Image.open(report.parent / "samples.png") as picture:
        assert picture.info.keys() <= {"dpi"}


def test_what_a_reader_looks_for_comes_in_order(page, results):
    text = Page(page).text
    parts = [results.question, results.claim, conclusion(results), "Every arm", "What was run", "Differences", "During"]
    parts += ["Samples", "before and after", "Wrong token", "not comparable with the numbers", "How each metric"]
    places = [text.rindex(part) for part in parts]
    assert places == sorted(places)
    assert "iar-study run components --profile quick --seeds 0 1" in text
    assert "28 such comparisons, each at 95% by itself and without correction" in text
    assert all(trial[:12] in text for trial in results.final["trial"])
    assert all(run_id in text for run_id in results.final["run_id"])


def test_the_numbers_are_in_the_csv(report, results):
    table = pd.read_csv(report.parent / "results.csv", float_precision="round_trip")
    assert len(table) == len(results.final)
    assert list(table.columns) == list(results.final.columns)
    np.testing.assert_array_equal(np.sort(table["value"]), np.sort(results.final["value"]))


def test_conclusion_tells_findings_scale_and_limit(results):
    said = conclusion(results)
    assert said.startswith("On fashion-mnist (28 x 28 pixels; GPT, 0.28 M weights; 2 seeds), compared with baseline")
    assert re.search(
        r"FD \(classifier\) is better for iar \(-6\.\d+ \[-[\d.]+, -[\d.]+\]\), worse for random", ascii_minus(said)
    )
    assert "inconclusive for rearranged and blocks; token NLL is" in said
    assert said.endswith("none of it says anything about other data or other sizes.")
    assert said.count(". ") == 0


def test_conclusion_is_never_stronger_than_its_intervals(build):
    said = conclusion(build(seeds=(0,)))
    assert "FD (classifier) is inconclusive for every arm; token NLL is inconclusive for every arm" in said
    assert "does not show equality" in said
    assert not re.search("better|worse", said)


def test_conclusion_without_headline_metric(results):
    said = conclusion(replace(results, final=results.final[results.final["metric"] != FD]))
    assert "FD (classifier) was not measured; token NLL is better" in said


def test_conclusion_of_a_lone_baseline(results):
    lone = replace(results, arms={"baseline": ""}, final=results.final[results.final["arm"] == "baseline"])
    assert "only the baseline baseline was run" in conclusion(lone)


def test_a_bound_is_not_rounded_to_the_zero_it_excludes(results, tmp_path):
    final = results.final.copy()
    for seed, gain in enumerate((0.0300, 0.0303)):
        rows = (final["metric"] == FD) & (final["seed"] == seed)
        final.loc[rows & (final["arm"] == "baseline"), "value"] = 41.0
        final.loc[rows & (final["arm"] == "iar"), "value"] = 41.0 - gain
    said = ascii_minus(conclusion(replace(results, final=final)))
    assert "better for iar (-0.03 [-0.03, -0.03])" in said
    final.loc[rows & (final["arm"] == "iar"), "value"] = 41.0 - 0.0345
    said = ascii_minus(conclusion(replace(results, final=final)))
    assert "better for iar (-0.032 [-0.061, -0.004])" in said


def test_many_findings_are_named_without_their_intervals(build):
    results = build(arms={f"k{i}": "" for i in range(6)})
    final = results.final.copy()
    arms = (final["metric"] == FD) & (final["arm"] != "k0")
    final.loc[arms, "value"] -= 30
    said = conclusion(replace(results, final=final))
    assert "FD (classifier) is better for k1, k2, k3, k4 and k5;" in said
    final.loc[arms & ~final["arm"].isin(["k1"]), "value"] += 30 + 100 * final["seed"]
    said = conclusion(replace(results, final=final))
    assert "inconclusive for the other 4 arms;" in said


@pytest.mark.parametrize("make", ["one seed", "missing arm", "missing baseline", "not a number", "bare"])
def test_gaps_are_shown_not_hidden(build, results, tmp_path, make):
    if make == "one seed":
        results = light(build(seeds=(3,)))
    elif make.startswith("missing"):
        results = without(light(results), "blocks" if make == "missing arm" else "baseline")
    elif make == "not a number":
        results = light(results)
        final = results.final.copy()
        final.loc[(final["arm"] == "iar") & (final["seed"] == 1) & final["metric"].str.startswith("val/"), "value"] = (
            np.nan
        )
        results = replace(results, final=final)
    else:
        results = replace(results, samples={}, reconstructions={}, curves=results.curves[:0], class_names=(), scale={})
    text = Page(write_report(results, tmp_path).read_text()).text
    said = conclusion(results)
    assert said in text
    assert "nan" not in re.sub("[^a-z ]", "", text).split()
    if make == "one seed":
        assert "inconclusive for every arm" in said
        assert "--seeds 3" in text
    elif make == "missing arm":
        assert "of 10 trials 2 not finished" in said
        assert "No samples of blocks." in text
        assert "0 of 2 seeds" in text
        assert "Missing trials" in text
    elif make == "missing baseline":
        assert "inconclusive for every arm" in said
    elif make == "not a number":
        assert "1 of 2 seeds, 1 not finite" in text
        assert re.search("token NLL is worse for random .*, inconclusive for rearranged, blocks and iar", said)
    else:
        assert "On a data set not stated (image size not stated; model size not stated; 2 seeds)" in said


def test_quality_over_training_is_drawn_from_two_sampled_points_on(results, report, page, tmp_path):
    name, caption = "quality-samples-fd_classifier.png", "How soon each arm reaches a quality"
    assert (report.parent / name).is_file()
    assert caption in Page(page).text
    assert caption in (report.parent / "index.md").read_text()
    once = results.curves[(results.curves["metric"] == FD) & (results.curves["step"] == 500)]
    again = write_report(replace(light(results), curves=once, samples={}), tmp_path)
    assert not (again.parent / name).exists()


def test_a_report_without_pictures_to_compare_with_says_so(results, tmp_path):
    final, curves = (frame[~frame["metric"].str.contains("@")] for frame in (results.final, results.curves))
    scale = {**results.scale, "FD (classifier)": "not measured: encoded data without images"}
    results = replace(results, final=final, curves=curves, scale=scale, reconstructions={})
    path = write_report(results, tmp_path)
    text = Page(path.read_text()).text
    assert "FD (classifier) was not measured; token NLL is better" in text
    assert "not measured: encoded data without images" in text
    assert {p.name for p in path.parent.glob("*samples*")} == {"samples.png"}
    assert "nan" not in text.lower()


def test_missing_trials_say_how_far_they_got(results, tmp_path):
    missing = pd.DataFrame(
        [("iar", 1, "diverged", 237), ("blocks", 0, "not finished", 40), ("random", 1, "not finished", np.nan)],
        columns=results.missing.columns,
    )
    path = write_report(replace(light(results), missing=missing, samples={}), tmp_path)
    lines = [
        line for line in path.with_suffix(".md").read_text().splitlines() if "not finished" in line or "237" in line
    ]
    assert lines[-3:] == [
        "| blocks | 0 | not finished, at step 40 |",
        "| random | 1 | not finished |",
        "| iar | 1 | diverged at step 237 |",
    ]


def test_odd_names_are_shown_as_they_are(build, tmp_path):
    arms = {"base": "plain", ODD: ODD}
    command = "iar-study run '100% <b>|_' --set 'data.name=folder:a b|c'"
    results = replace(
        build(arms=arms, study="100% <b>|_"),
        question=ODD,
        claim=ODD,
        settings={"data.name": "folder:a b|c"},
        command=command,
    )
    results = replace(results, curves=results.curves[results.curves["metric"] == NLL], reconstructions={})
    path = write_report(results, tmp_path)
    assert path == tmp_path / "100% <b>|_" / "index.html"
    page = Page(path.read_text())
    assert "script" not in page.tags
    assert page.text.count(ODD) >= 4
    assert command in page.text
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(path.with_suffix(".md").read_text())
    shown = Page(rendered)
    assert "script" not in shown.tags
    assert shown.text.count(ODD) >= 4
    rows = [row.count("<td") for row in re.findall("<tr>.*?</tr>", rendered, re.S)]
    assert set(rows) == {0, 2, 4, 6}
    index = Page(write_index(tmp_path).read_text())
    assert "script" not in index.tags
    assert all((tmp_path / unquote(link)).is_file() for link in index.addresses if link != "data:,")


@pytest.mark.parametrize("name", ["", ".", "..", "../out", "a/b", ".hidden"])
def test_a_study_name_cannot_leave_the_folder(results, tmp_path, name):
    with pytest.raises(InputError, match="cannot name a folder"):
        write_report(replace(results, study=name), tmp_path / "reports")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_the_users_is_left_alone(results, tmp_path):
    (tmp_path / "components").mkdir()
    (tmp_path / "components" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"'notes\.txt', which no report wrote"):
        write_report(results, tmp_path)
    assert files(tmp_path / "components") == {"notes.txt": b"mine"}


def test_a_new_report_takes_the_place_of_the_old(results, tmp_path):
    assert (write_report(light(results), tmp_path).parent / "samples.png").exists()
    path = write_report(replace(light(results), samples={}), tmp_path)
    assert not (path.parent / "samples.png").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["components"]


def test_a_failure_leaves_the_old_report(results, tmp_path):
    results = replace(light(results), samples={})
    path = write_report(results, tmp_path)
    before = files(path.parent)
    broken = replace(results, reconstructions={"originals": np.zeros((2, 4, 4, 2), np.uint8)})
    with pytest.raises(InputError):
        write_report(broken, tmp_path)
    assert files(path.parent) == before
    assert [p.name for p in tmp_path.iterdir()] == ["components"]


def test_no_finished_trial_is_an_input_error(results, tmp_path):
    with pytest.raises(InputError, match="no finished trial"):
        write_report(replace(results, final=results.final[:0]), tmp_path)


def test_changed_pixels_after_rearrangement_are_told(results, tmp_path):
    stages = dict(results.reconstructions)
    stages["decoded after rearrangement"] = stages["decoded"] ^ 1
    page = write_report(replace(light(results), reconstructions=stages, samples={}), tmp_path).read_text()
    assert "pixels differ by up to 1 of 255; they should not differ at all" in page


def test_index_lists_reports_and_nothing_else(results, tmp_path):
    assert "No report yet" in write_index(tmp_path).read_text()
    write_report(replace(light(results), samples={}), tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "index.html").write_text("<title>not ours</title>")
    page = Page(write_index(tmp_path).read_text())
    assert conclusion(results) in page.text
    assert page.addresses == ["data:,", "components/index.html"]


@pytest.mark.parametrize("text", ["1. one", "- a", "+ b", "a | b", "<b>", "# x", "$x$", "&amp;", "`c`", "a\nb", "5.46"])
def test_markdown_shows_text_as_it_is(text):
    rendered = Page(MarkdownIt("commonmark").render(markdown(text)))
    assert rendered.tags == ["p"]
    assert rendered.text.strip() == " ".join(text.split())
