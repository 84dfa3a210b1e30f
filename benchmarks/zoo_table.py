"""The records of ``zoo.py`` as a table of Markdown, with what they add up to."""

import statistics
from typing import Any

Record = dict[str, Any]
TOOK_OVER = "took over"


def line_of(record: Record) -> str:
    """One network's figures, as soon as they are known."""
    return " | ".join(cells_of(record))


def table_of(records: list[Record]) -> list[str]:
    """Markdown: what it adds up to, then a row for each network."""
    head = ("network", "cut", "FLOPs left", "parameters left", "frozen", "first cause", "error", "export, s",
            "besides, s", "memory", "Torch-Pruning", "theirs, s")  # fmt: skip
    lines = [*summary_of(records), "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return [*lines, *(f"| {' | '.join(cells_of(record))} |" for record in records)]


def cells_of(record: Record) -> list[str]:
    """The cells of one row."""
    own, peer = record["ours"], record.get("theirs")
    verdict = "-" if peer is None else peer.get("failure", "right").replace("|", "/")[:60]
    other = [verdict, f"{peer['seconds']:.2f}" if peer and "seconds" in peer else ""]
    if "backend" not in own:
        return [record["model"], "none: " + own["failure"].replace("|", "/")[:90], *[""] * 8, *other]
    reason = own["frozen"][0] if own["frozen"] and own["frozen"][0]["share"] >= 0.001 else None
    cause = (
        f"{reason['reason']} [{reason['operator']}]"
        if reason and reason["operator"]
        else (reason or {}).get("reason", "")
    )
    return [
        record["model"],
        own["backend"],
        f"{own['flops_left']:.3f}",
        f"{own['parameters_left']:.3f}",
        f"{own['frozen_share']:.3f}",
        cause,
        f"{own['relative_error']:.0e}" if "relative_error" in own else "NOT PROVED: " + own["failure"][:90],
        f"{own['seconds_exporting']:.2f}",
        f"{own['seconds_besides']:.2f}",
        f"{own['memory_of_model']:.1f}x",
        *other,
    ]


def summary_of(records: list[Record]) -> list[str]:
    """The targets and what was reached, as Markdown list items."""
    exported = [record for record in records if record["ours"].get("exported")]
    proved = [record for record in exported if "relative_error" in record["ours"]]
    beyond = [record["model"] for record in records if TOOK_OVER in record["ours"].get("failure", "")]
    failed = [one["model"] for one in records if "failure" in one["ours"] and one["model"] not in beyond]
    pruned = [record for record in proved if record["ours"]["parameters_left"] < 1]
    left = sorted(record["ours"]["flops_left"] for record in pruned)
    small = [record["ours"] for record in proved if record["ours"]["parameters"] < 100e6]
    large = [record["ours"]["memory_of_model"] for record in proved if record["ours"]["parameters"] >= 50e6]
    worst = max((record["ours"]["relative_error"] for record in proved), default=0.0)
    lines = [
        f"- {len(records)} networks, {len(exported)} exported within the limits, {len(pruned)} of them pruned and "
        f"proved; largest relative error {worst:.0e}",
        f"- beyond the limits of time or memory: {', '.join(beyond) or 'none'}",
        f"- refused, or failed otherwise: {', '.join(failed) or 'none'}",
        f"- by slicing modules {sum(record['ours']['backend'] == 'module' for record in pruned)}, by editing the graph "
        f"{sum(record['ours']['backend'] == 'graph' for record in pruned)}",
    ]
    if pruned:
        lines.append(
            f"- FLOPs left after halving: {statistics.median(left):.3f} in the median, at most "
            f"{left[len(left) * 9 // 10]:.3f} in 90% of the networks"
        )
        besides = sorted(one["seconds_besides"] for one in small)
        lines.append(
            f"- seconds besides export, under 100 M parameters: {statistics.median(besides):.2f} in the median, "
            f"{besides[len(besides) * 9 // 10]:.2f} at 90%, {besides[-1]:.2f} at most"
        )
    if large:
        lines.append(
            f"- peak memory over the size of the network, from 50 M parameters: {statistics.median(large):.1f} in the "
            f"median, {max(large):.1f} at most"
        )
    beside = [record for record in records if "theirs" in record]
    if beside:
        right = [record for record in beside if "failure" not in record["theirs"]]
        both = [record for record in right if "relative_error" in record["ours"]]
        mine = sum(record["ours"]["seconds_exporting"] + record["ours"]["seconds_besides"] for record in both)
        other = sum(record["theirs"]["seconds"] for record in both)
        wrong = sum(record["theirs"].get("failure") == "wrong output shape" for record in beside)
        late = sum(TOOK_OVER in record["theirs"].get("failure", "") for record in beside)
        lines.append(
            f"- Torch-Pruning: right on {len(right)} of {len(beside)}, wrong output shape on {wrong}, beyond the "
            f"limits on {late}; over the "
            f"{len(both)} that both prune, ours took {mine:.0f} s in total with export, theirs {other:.0f} s"
        )
    return lines
