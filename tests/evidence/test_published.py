"""What is told of the paper is what its tables hold, and gains are taken at equal tokens and epochs."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from iar_study.evidence import published
from iar_study.evidence.published import FIGURE_3A, FIGURE_3C, LLAMAGEN, REPRODUCTIONS, TABLE_2, gains

ROOT = Path(__file__).parents[2]

BY_HAND = {
    ("B", "16x16", 50): (0.32, 4.43),
    ("B", "16x16", 300): (0.32, 5.86),
    ("L", "16x16", 50): (0.10, 2.38),
    ("L", "16x16", 300): (0.40, 10.53),
    ("XL", "16x16", 50): (0.03, 0.88),
    ("XXL", "16x16", 50): (0.08, 2.59),
    ("B", "24x24", 50): (0.51, 6.14),
    ("B", "24x24", 300): (0.32, 5.25),
    ("L", "24x24", 50): (0.26, 5.64),
    ("L", "24x24", 300): (0.11, 3.34),
    ("XL", "24x24", 50): (0.09, 2.78),
    ("XL", "24x24", 300): (0.11, 4.18),
    ("XXL", "24x24", 50): (0.02, 0.69),
    ("XXL", "24x24", 300): (0.15, 6.41),
}
"""Of each pair of Table 2 the difference in FID, and in percent of LlamaGen's."""


def test_gains_are_those_counted_by_hand() -> None:
    found = {(gain.iar.size, gain.iar.tokens, gain.iar.epochs): (gain.fid, gain.percent) for gain in gains()}
    assert found.keys() == BY_HAND.keys()
    for pair, counted in BY_HAND.items():
        assert found[pair] == pytest.approx(counted, abs=0.006), pair
    assert published.RANGE == "0.02 to 0.51"
    assert published.RANGE_PERCENT == "0.7 to 10.5%"
    assert pytest.approx(61.12 / 14, abs=0.01) == published.MEAN_PERCENT
    assert "by 0.02 to 0.51, which is 0.7 to 10.5% of LlamaGen's, 4.4% on average" in published.CONCLUSION


def test_no_pair_mixes_methods_sizes_tokens_or_epochs() -> None:
    for gain in gains():
        assert (gain.llamagen.method, gain.iar.method) == ("LlamaGen", "IAR")
        for key in ("size", "tokens", "epochs"):
            assert getattr(gain.llamagen, key) == getattr(gain.iar, key)
    alone = next(each for each in TABLE_2 if each.method == "LlamaGen")
    for changed in ({"tokens": "24x24"}, {"epochs": 300}, {"size": "L"}):
        assert gains([alone, replace(alone, method="IAR", **changed)]) == []  # type: ignore[arg-type]


def test_the_table_is_whole() -> None:
    assert len(TABLE_2) == len({(each.method, each.size, each.tokens, each.epochs) for each in TABLE_2}) == 28
    untold = {(each.size, each.tokens, each.epochs) for each in TABLE_2 if each.size in ("XL", "XXL")}
    assert untold == {(size, *at) for size in ("XL", "XXL") for at in (("16x16", 50), ("24x24", 50), ("24x24", 300))}


def test_the_paper_claims_42_percent_and_not_half() -> None:
    assert 300 * published.share_to_reach() == pytest.approx(100 + 100 * 0.68 / 0.91)  # from 6.77 to 6.09, to 5.86
    assert f"{1 - published.share_to_reach():.0%}" == "42%"


def test_measures_that_do_not_gain_are_the_ones_that_are_told() -> None:
    lower = [
        (gain.iar.epochs, gain.iar.tokens, gain.iar.size, name)
        for gain in gains()
        for name in ("inception_score", "recall")
        if getattr(gain.iar, name) < getattr(gain.llamagen, name)
    ]
    assert lower == [
        (300, "16x16", "B", "recall"),
        (300, "16x16", "L", "recall"),
        (50, "24x24", "B", "inception_score"),
        (50, "24x24", "XL", "inception_score"),
        (300, "24x24", "XXL", "recall"),
    ]
    told = published.DISAGREEMENTS[4]
    assert "recall is lower with IAR for B and L at 16x16 tokens and for XXL at 24x24" in told
    assert "After 50 epochs at 24x24 the IS is lower for B and XL" in told


def numbers(value: object) -> set[float]:
    return {float(number) for number in re.findall(r"\d+(?:\.\d+)?", str(value))}


def test_no_sentence_tells_a_number_that_no_table_holds() -> None:
    known = numbers([TABLE_2, FIGURE_3A, FIGURE_3C, LLAMAGEN, REPRODUCTIONS])
    known |= {round(gain.fid, 2) for gain in gains()}
    known |= {2.19, 278.9, 2.28, 42.0}  # XXL in Table 1 and in Figure 3b; what is written in Figure 3c
    for sentence in (*published.DISAGREEMENTS, published.NOTE):
        values = re.sub(r"(Table|Figure) \d\w?|\d+x\d+", "", sentence)
        assert numbers(values) <= known, sentence


def test_nobody_is_told_the_gain_that_mixes_resolutions() -> None:
    """It was told of L: 16x16 tokens without IAR beside 24x24 with it."""
    files = [path for name in ("iar_study", "experiments") for path in (ROOT / name).rglob("*")]
    files += [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "reports" / "README.md"]
    read = [path for path in files if path.suffix in (".py", ".md", ".html")]
    texts = {path: path.read_text(encoding="utf-8") for path in read}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        # Of a notebook the words: what its code printed is measured here.
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts[path] = "\n".join("".join(cell["source"]) for cell in cells)
    assert len(texts) > 100
    for path, text in texts.items():
        assert not re.search(r"(?<![\d.])0\.62(?!\d)", text), path
        assert not re.search(r"3\.80?\s*(-|\N{MINUS SIGN}|to|and|->)\s*3\.18", text), path
        assert "MTAR" not in text, path


def test_the_readme_tells_of_the_paper_what_its_tables_hold() -> None:
    words = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert published.RANGE_PERCENT in words
    assert f"{published.MEAN_PERCENT:.1f}% on average" in words
    assert "reports/example/paper/index.md" in words
