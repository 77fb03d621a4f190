"""Tables of chapter 8's comparison with classical searches."""

from collections.abc import Mapping, Sequence
from typing import Any

from lensml.experiments import Comparison, format_number, plain

__all__ = ["fixed_table", "method_table", "verdict"]


def method_table(compared: Mapping[str, Mapping[str, Any]]) -> Comparison:
    """One row a method, `classical.compare`: the headline and the recall of every bin."""
    bins = next(iter(compared.values()))["recall_by_dchi2"]
    headings = ["", "ROC area", "recall", "delta-chi2 at half recall"]
    headings += [f"{row['bin']} ({row['binaries']})" for row in bins]
    rows = []
    for name, found in compared.items():
        head = [found[key] for key in ("roc_auc", "recall", "dchi2_at_half_recall")]
        each = [f"{r['recall']:.2f}" if r["binaries"] else "-" for r in found["recall_by_dchi2"]]
        rows.append([name, *map(format_number, plain(head)), *each])
    return Comparison(headings, rows, "Recall in bins of delta-chi2 (binaries in the bin).")


def fixed_table(fixed: Mapping[str, Mapping[str, Any]]) -> Comparison:
    """One row a rule, `anomaly.score_at_fixed_thresholds`."""
    bins = next(iter(fixed.values()))["recall_by_dchi2"]
    headings = ["template called if", "false positives", "recall", *(row["bin"] for row in bins)]
    rows = []
    for name, found in fixed.items():
        cells = [f"{found['false_positives']:.4f}", f"{found['recall']:.3f}"]
        cells += [f"{r['recall']:.2f}" if r["binaries"] else "-" for r in found["recall_by_dchi2"]]
        at = f" (delta-chi2 > {found['threshold']:.1f})" if "threshold" in found else ""
        rows.append([name + at, *cells])
    return Comparison(headings, rows, "The last row takes its threshold from these single lenses.")


def verdict(beaten: Sequence[Mapping[str, Any]], above: float = 25.0) -> str:
    """Where the network is not better, in words: `classical.bins_where_worse`."""
    start = rf"Above $\Delta\chi^2$ = {above:g}"
    if not beaten:
        return f"{start} no classical method finds more than the network in any bin."
    bins = dict.fromkeys(row["bin"] for row in beaten)
    each = [in_one_bin([row for row in beaten if row["bin"] == name]) for name in bins]
    return f"{start} the network finds less than a classical method {'; '.join(each)}."


def in_one_bin(rows: Sequence[Mapping[str, Any]]) -> str:
    """The method that leads in one bin, by how much, and how many others are ahead."""
    lead = max(rows, key=lambda row: row["other"])
    certain = sum(row["certain"] for row in rows)
    gap = {key: round(value, 2) for key, value in lead["difference"].items()}
    ahead = f"{len(rows)} method{'s' * (len(rows) > 1)} ahead, {certain} of them beyond chance"
    return (
        f"at {lead['bin']} (recall {lead['network']:.2f} against {lead['other']:.2f} of "
        f"{lead['method']}, {lead['binaries']} binaries, difference {gap['value']:.2f}, "
        f"{gap['low']:.2f} to {gap['high']:.2f}; {ahead})"
    )
