"""The result of ``latency.py`` as Markdown."""

from collections.abc import Iterable, Mapping
from statistics import mean, median
from typing import Any

from prune2deploy.bench.statistics.welch import mean_shift

FASTER_THAN = {"torch-pruning": 1.25, "flops": 1.1}
WORDS = {
    "latency": "to half of the latency",
    "flops": "to a FLOP count, aligned",
    "torch-pruning": "Torch-Pruning, global",
    "uniform": "uniform, rounded to 16",
    "flops-global": "to the FLOPs, global",
    "flops-optimal": "to the FLOPs, optimal",
}

Record = Mapping[str, Any]


def tables(document: Record) -> str:
    """All tables, one below the other."""
    cells = document["cells"]
    settings = list(dict.fromkeys(record["setting"] for record in cells.values() if "setting" in record))
    parts = [_setting_table(setting, cells) for setting in settings]
    parts += [_errors(cells)]
    parts += [_yield_table(setting, record) for setting, record in document["yield"].items()]
    parts += [_accuracy_table(document["accuracy"])]
    return "\n\n".join(part for part in parts if part)


def _setting_table(setting: str, cells: Record) -> str:
    engine, threads, batch = setting.split(":")
    records = [record for record in cells.values() if record.get("setting") == setting]
    lines = [
        f"{engine}, {threads} thread{'' if threads == '1' else 's'}, batch {batch}:",
        "",
        "| network | measured share of the dense latency | FLOPs | importance | faster than by FLOPs | "
        "faster than Torch-Pruning | rounds | solver, gap | table |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        ours = record["variants"]["latency"]
        lines.append(
            f"| {record['network']}{'' if record['valid'] else ' (disturbed: not valid)'} | "
            f"{_interval(ours, 'ratio')} | "
            f"{ours['flops_fraction']:.3f} | {ours['importance']:.3f} | {_faster(record, 'flops')} | "
            f"{_faster(record, 'torch-pruning')} | {len(record['rounds'])} | "
            f"{_solved(record['solver'])} | "
            f"{record['table']['measured']} points, {record['table']['seconds']:.0f} s |"
        )
    for rival, least in FASTER_THAN.items():
        found = [one["against"][rival]["estimate"] for one in records if rival in one["against"]]
        if found:
            below = [one["network"] for one in records if one["against"].get(rival, {}).get("estimate", least) < least]
            lines += [
                "",
                f"Median against {rival}: {median(found):.2f}x over {len(found)} networks (asked: {least}x); "
                f"below it: {', '.join(below) or 'none'}.",
            ]
    return "\n".join(lines)


def _solved(solutions: list[Record]) -> str:
    """The longest solution and the widest gap of all rounds."""
    seconds = max((one["seconds"] for one in solutions), default=0)
    gaps = [one["gap"] for one in solutions]
    return f"{seconds:.0f} s, {'none proven' if None in gaps else f'{max(gaps, default=0):.1%}'}"


def _faster(record: Record, rival: str) -> str:
    if rival not in record["against"]:
        return "failed"
    return f"{_interval(record['against'][rival], 'estimate')}x at {record['variants'][rival]['importance']:.3f}"


def _interval(record: Record, name: str) -> str:
    low, high = record["low"], record["high"]
    between = "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"
    return f"{record[name]:.3f}{between}"


def _errors(cells: Record) -> str:
    lines = [f"- {key}: {record['error']}" for key, record in cells.items() if "error" in record]
    lines += [
        f"- {key}: {rival} failed ({reason})"
        for key, record in cells.items()
        for rival, reason in record.get("failed", {}).items()
    ]
    return "\n".join(["Not made:", "", *lines]) if lines else ""


def _yield_table(setting: str, record: Record) -> str:
    lines = [
        f"ResNet-50 on {setting.replace(':', ', ')} (threads, batch), {record['target_flops']} of the FLOPs:",
        "",
        "| variant | FLOPs | share of the dense latency | yield | importance |",
        "|---|---|---|---|---|",
    ]
    for name, row in record["variants"].items():
        if name != "dense":
            words = "to the latency of the FLOPs, global" if name == "latency" else WORDS.get(name, name)
            lines.append(
                f"| {words} | {row['flops_fraction']:.3f} | {_interval(row, 'ratio')} | {row['yield']:.3f} | "
                f"{row['importance']:.3f} |"
            )
    return "\n".join(lines)


def _accuracy_table(cells: Record) -> str:
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in cells.values():
        if "variants" in record:
            groups.setdefault((record["task"], record["model"]), []).append(record)
    if not groups:
        return ""
    lines = [
        "| task | network | seeds | variant | accuracy, mean | to the latency has more by, points | "
        "share of the dense latency, median | slower than to the latency, median |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (task, model), records in groups.items():
        ours = _accuracies(records, "latency")
        for name in ("dense", "latency", "flops", "torch-pruning"):
            found = [one for one in records if name in one["variants"]]
            if not found:
                continue
            accuracies = _accuracies(found, name)
            lines.append(
                f"| {task} | {model} | {len(found)} | {WORDS.get(name, name)} | {mean(accuracies):.3f} | "
                f"{_difference(ours, accuracies) if name not in ('dense', 'latency') else ''} | "
                f"{median(one['variants'][name]['ratio'] for one in found):.3f} | {_slower(found, name)} |"
            )
    return "\n".join(lines)


def _accuracies(records: Iterable[Record], name: str) -> list[float]:
    return [float(one["variants"][name]["accuracy"]) for one in records]


def _difference(ours: list[float], theirs: list[float]) -> str:
    shift = mean_shift(theirs, ours, confidence=0.95)
    between = ""
    if shift.low is not None and shift.high is not None:
        between = f" ({100 * shift.low:+.1f} to {100 * shift.high:+.1f})"
    return f"{100 * shift.estimate:+.1f}{between}"


def _slower(records: list[Record], name: str) -> str:
    found = [one["against"][name]["estimate"] for one in records if name in one["against"]]
    return f"{median(found):.2f}x" if found else ""
