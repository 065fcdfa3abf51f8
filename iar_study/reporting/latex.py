r"""The comparison tables of a study as LaTeX, by booktabs.

The preamble needs \usepackage{booktabs}; names that are not Latin need XeLaTeX or LuaLaTeX, and a font that has them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from iar_study.evidence.results import Results
from iar_study.reporting.tables import comparison_tables

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\N{MINUS SIGN}": "$-$",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    "\N{EN DASH}": "--",
}


def latex(text: object) -> str:
    r"""Return `text` so that LaTeX prints it as it is, in one line.

    >>> latex("50% of x_1 <script>")
    '50\\% of x\\_1 \\textless{}script\\textgreater{}'
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    # A bracket at the start of a row would be read as an argument of the line break before it.
    return re.sub(r"^\[", "{[}", "".join(_SPECIAL.get(c, c) for c in line))


def latex_tables(results: Results) -> str:
    """Return the tables of every arm beside its baseline: one a metric, each a `table` with caption and label."""
    head = f"% Study {latex(results.study)}, profile {latex(results.profile)}; \\usepackage{{booktabs}} is needed.\n"
    return head + "".join(
        _table(results, table["title"], column, compared, table["rows"])
        for table in comparison_tables(results)
        for column, compared in enumerate(table["compared"])
    )


def _table(results: Results, title: str, column: int, compared: dict, rows: Sequence[dict]) -> str:
    about, key = compared["about"], compared["key"]
    direction = f" ({about.direction})" if about.direction else ""
    caption = (
        f"{about.label}{direction}. {title}: mean over seeds with half of its 95% interval, difference from "
        f"{results.baseline_in_words} paired by seed with its 95% interval, p of the paired test, and what "
        f"follows. Data: {results.scale.get('data set', 'not stated')}."
    )
    label = re.sub(r"[^A-Za-z0-9]+", "-", f"{results.study}-{key}").strip("-")
    cells = [
        (
            row["arm"],
            cell["mean"],
            f"{cell['difference']} {cell['interval']}".strip(),
            cell["p"],
            cell["finding"] + (f" ({cell['note']})" if cell["note"] else ""),
        )
        for row in rows
        for cell in [row["cells"][column]]
    ]
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{latex(caption)}}}",
        rf"  \label{{tab:{label}}}",
        r"  \begin{tabular}{lrrrl}",
        r"    \toprule",
        f"    {_row(('arm', 'mean', 'difference', 'p', 'finding'))}",
        r"    \midrule",
        *(f"    {_row(row)}" for row in cells),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n" + "\n".join(lines) + "\n"


def _row(cells: Iterable[object]) -> str:
    return " & ".join(map(latex, cells)) + r" \\"
