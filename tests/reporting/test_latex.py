import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iar_study.reporting.latex import latex, latex_tables
from tests.reporting.made_up import ODD

COMMANDS = r"\\(?:textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar|textquotedbl)\{\}"
FREE = rf"(?:{COMMANDS}|\\[&%$#_{{}}]|\$-\$|\$\\pm\$|\{{\[\}}|[^\\&%$#_{{}}~^<>|\"])*"
"""What LaTeX prints as it is: a character without a meaning of its own, or one that is escaped."""


@given(st.text())
def test_no_character_keeps_a_meaning_of_its_own(text):
    assert re.fullmatch(FREE, latex(text))
    assert "\n" not in latex(text)


@given(st.text(st.sampled_from('ab&%$#_{}~^<>|\\"-[] 中é')))
def test_what_is_printed_is_the_text(text):
    back = {
        r"\textbackslash{}": "\\",
        r"\textasciitilde{}": "~",
        r"\textasciicircum{}": "^",
        r"\textless{}": "<",
        r"\textgreater{}": ">",
        r"\textbar{}": "|",
        r"\textquotedbl{}": '"',
        "{[}": "[",
        **{f"\\{sign}": sign for sign in "&%$#_{}"},
    }
    printed = re.sub("|".join(map(re.escape, back)), lambda found: back[found[0]], latex(text))
    assert printed == " ".join(text.split())


def test_tables_are_whole_and_tell_every_arm(results):
    text = latex_tables(results)
    tables = text.count(r"\begin{table}")
    assert tables == 14
    for part in (r"\end{table}", r"\toprule", r"\midrule", r"\bottomrule", r"\caption{", r"\label{tab:"):
        assert text.count(part) == tables
    labels = re.findall(r"\\label\{(.*?)\}", text)
    assert len(set(labels)) == tables
    assert all(re.fullmatch(r"tab:[A-Za-z0-9-]+", label) for label in labels)
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == tables * (1 + 5)
    assert {line.replace(r"\&", "").count("&") for line in rows} == {4}


@pytest.mark.parametrize("odd", [ODD, "_" * 300, "表 ß \\input{x}"])
def test_odd_names_are_escaped(build, odd):
    text = latex_tables(build(arms={"base": "", odd: ""}, study=odd))
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in rows} == {4}
    assert any(line.strip().startswith(latex(odd)) for line in rows)
    body = text.partition("\n")[2]
    assert r"\input" not in body
    assert body.count("{") == body.count("}")
