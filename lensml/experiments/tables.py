"""Numbers as text, names as JSON keys, and tables of results."""

import html
import math
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

NO_BREAK = "\u00a0"
TARGET = re.compile(r"(>=|<=|<|>) *([\d.,]+(?:e[+-]?\d+)?)(?![\w.])")
OBSERVER_COLUMNS = {
    "roc_auc": "ROC AUC",
    "balanced_accuracy": "balanced accuracy",
    "recall_at_1pct": "recall at 1 % false positives",
    "dchi2_at_half_recall": "delta-chi2 at 50 % recall",
    "bound_z": "network above ideal [standard errors]",
}


def plain(value: Any) -> Any:
    """Convert numpy scalars, arrays and nested mappings to what JSON can hold; NaN to None."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"a result of type {type(value).__name__} cannot be stored: {value!r}")


def is_interval(value: Any) -> bool:
    """Whether `value` is stored as ``{"value", "low", "high"}``."""
    return isinstance(value, Mapping) and {"value", "low", "high"} <= set(value)


def flatten(numbers: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Numbers and intervals under joined names ``a_b``; lists are left out."""
    flat: dict[str, Any] = {}
    for key, value in numbers.items():
        name = "".join(c if c.isalnum() else "_" for c in f"{prefix}{key}")
        if isinstance(value, Mapping) and not is_interval(value):
            flat |= flatten(value, f"{name}_")
        elif not isinstance(value, list | tuple | np.ndarray):
            flat[name] = value
    return flat


def result_key(name: str) -> str:
    """Key under which a result of that name is stored.

    "0.05 mag" becomes "50_mmag", "25 %" "25_pct", "baseline, 0.1 mag" "baseline_0p1_mag" and
    "wide, s > 3" "wide_s_3_above"; a name without blanks keeps its characters, but for hyphens
    beside two letters.
    """
    if found := re.fullmatch(r"([\d.]+) (mag|%)", name):
        number, unit = found.groups()
        return f"{1000 * float(number):g}_mmag" if unit == "mag" else f"{number}_pct"
    if not re.search(r"\s", name):
        return re.sub(r"(?<=[A-Za-z]{2})-|-(?=[A-Za-z]{2})", "_", name)
    side = "_above" if ">" in name else "_below" if "<" in name else ""
    spelled = name.lower().replace("%", " pct ").replace(".", "p").replace("_", "")
    return re.sub(r"[^a-z0-9]+", "_", spelled).strip("_") + side


def safe_keys(numbers: Any) -> Any:
    """`numbers` with every key as `result_key` spells it."""
    if isinstance(numbers, Mapping):
        return {result_key(str(key)): safe_keys(value) for key, value in numbers.items()}
    return numbers


def format_number(value: Any) -> str:
    """The one way a value is printed: three figures, or the decimals its interval allows.

    Value and ends have the same decimals, four at most; no-break spaces keep them on one line. An
    interval without ends, or whose ends are one point, is printed as its value.
    """
    if is_interval(value):
        value, low, high = value["value"], value["low"], value["high"]
        if None in (value, low, high) or not high - low > 1e-9 * abs(high):
            return format_number(value)
        decimals = decimals_of(high - low)
        while decimals < 4 and value < 1 and f"{value:.{decimals}f}" == f"{1:.{decimals}f}":
            decimals += 1
        text, *ends = (f"{x:,.{decimals}f}" for x in (value, low, high))
        if value < 1 and text == "1.0000":
            text = "> 0.9999"
            ends = [] if ends == ["1.0000"] * 2 else ends
        shown = text + (f" ({ends[0]} to {ends[1]})" if ends else "")
        shown = re.sub(r"-(0(?:\.0+)?)(?![\d.])", r"\1", shown)  # no minus zero
        return shown.replace(" ", NO_BREAK)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {format_number(item)}" for key, item in value.items())
    if isinstance(value, list | tuple | np.ndarray):
        return ", ".join(map(format_number, value))
    if value is None:
        return f"not{NO_BREAK}defined"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, int | np.integer) or abs(value) >= 1000:
        return f"{value:,.0f}"
    if 0.9 < abs(value) < 1:  # what is missing to one is the message
        text = f"{value:.{max(3, decimals_of(2 - 2 * abs(value)))}f}"
        return f">{NO_BREAK}0.9999" if text == "1.0000" else text
    return re.sub("e-0", "e-", f"{value + 0.0:.3g}")


def decimals_of(width: float) -> int:
    """Decimals for one figure of half an interval of this width; two figures below 3.55."""
    return int(np.clip(-math.floor(math.log10(width / 7.1)), 0, 4)) if width > 0 else 3


class ResultsTable:
    """Headings, rows of text, a note below and a caption; as HTML, Markdown and plain text."""

    def __init__(
        self,
        headings: Sequence[str],
        rows: Sequence[Sequence[str]],
        note: str = "",
        caption: str = "",
    ) -> None:
        self.headings, self.rows = list(headings), [list(row) for row in rows]
        self.note, self.caption = note, caption

    def __repr__(self) -> str:
        lines = ["  ".join(line) for line in (self.headings, *self.rows)]
        return "\n".join(filter(None, [self.caption, *lines, self.note]))

    def _repr_html_(self) -> str:
        def line(cells: list[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

        body = "".join(line(row, "td") for row in self.rows)
        note, caption = (_inline_html(text) for text in (self.note, self.caption))
        return (
            '<table class="table">'
            + f'<caption style="caption-side: top">{caption}</caption>' * bool(caption)
            + f"<thead>{line(self.headings, 'th')}</thead><tbody>{body}</tbody></table>"
            + f"<p><em>{note}</em></p>" * bool(note)
        )


def _inline_html(text: str) -> str:
    """A sentence as HTML: its code and bold words, all else as it stands."""
    text = re.sub("`(.+?)`", r"<code>\1</code>", html.escape(text))
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text)


def results_table(
    rows: Mapping[str, Mapping],
    columns: Sequence | Mapping[str, str],
    note: str = "",
    caption: str = "",
) -> ResultsTable:
    """One row a name, a column a number; a dash where a row has no such number.

    `rows` are numbers and intervals by key, by name; `columns` their keys, or headings by key.
    """
    if not isinstance(columns, Mapping):
        columns = {key: str(key).replace("_", " ") for key in columns}
    cells = [
        [name, *(format_number(plain(row[key])) if key in row else "-" for key in columns)]
        for name, row in rows.items()
    ]
    return ResultsTable(["", *columns.values()], cells, note, caption)


def observers_table(summaries: Mapping[str, Mapping[str, Any]], note: str = "") -> ResultsTable:
    """Network and ideal observer of each condition, one row each (`evaluation.summary`)."""
    rows = {}
    for name, summary in summaries.items():
        rows[f"{name}: network"] = summary["network"] | {"bound_z": summary["bound_z"]}
        rows[f"{name}: ideal observer"] = summary["ideal"]
    return results_table(rows, OBSERVER_COLUMNS, note)


def provenance_line(chapter: str, record: Mapping[str, Any] | None) -> str:
    """One sentence on where the committed numbers come from."""
    if record is None:
        return (
            f"No result of {chapter} is committed yet; "
            f"`python -m lensml run {chapter} --size desk` makes one."
        )
    p = record["provenance"]
    seeds = ", ".join(map(str, p["seeds"]))
    changed = " with local changes" if p["modified"] else ""
    return (
        f"Committed result: size {p['size']}, commit {p['commit'][:10]}{changed}, seed {seeds}, "
        f"{p['device']}, {p['wall_time_s']:,.0f} s, {p['date']}."
    )


def target_met(value: float | Mapping[str, float], target: str) -> bool | None:
    """Whether `value` meets `>= 50` or `< 2`; None without a target."""
    if not target:
        return None
    if (found := TARGET.match(target)) is None:
        raise ValueError(f"`target` is {target!r}, but '>= 50' or '< 2' was expected")
    value = value["value"] if isinstance(value, Mapping) else value
    relation, limit = found.groups()
    limit = float(limit.replace(",", ""))
    compare = {">=": operator.ge, "<=": operator.le, "<": operator.lt, ">": operator.gt}
    return compare[relation](value, limit)


def benchmark_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Rows `[quantity, value, target, met or missed]` of one benchmark record, as text."""
    rows = []
    for name, value in record["numbers"].items():
        target = record["marks"].get(name, "")
        outcome = {None: "", True: "met", False: "missed"}[target_met(value, target)]
        rows.append([name.replace("_", " "), format_number(value), target, outcome])
    return rows
