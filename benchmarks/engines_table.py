"""The tables of ``engines.py``, as Markdown."""

from collections.abc import Iterator, Mapping
from typing import Any

from engines_networks import NETWORKS

Record = Mapping[str, Any]
Cells = Mapping[str, Record]

_MIB = 2**20


def tables(document: Mapping[str, Any]) -> Iterator[list[str]]:
    """What runs, what it cost, what failed, and how much faster int8 is; without what has no record."""
    cells: Cells = document["cells"]
    if cells:
        failures: list[str] = []
        yield _matrix(cells, document["networks"], failures)
        if failures:
            yield [f"({number}) {text}" for number, text in enumerate(failures, start=1)]
    if document["speed"]:
        yield _speeds(document["speed"])


def line_of(record: Record) -> str:
    """One record in a line."""
    if "failed" in record:
        return f"failed: {record['failed']}"
    if record.get("state") == "not offered":
        return str(record["reason"])
    parts = []
    if "relative_error" in record:
        parts.append(f"error {record['relative_error']:.1e}, agreement {record['agreement']:.0%}")
    if "bytes_total" in record:
        parts.append(_size(record["bytes_total"]))
    if record.get("census"):
        parts.append(_census(record["census"]))
    return ", ".join(parts)


def _matrix(cells: Cells, networks: Cells, failures: list[str]) -> list[str]:
    rows = list(dict.fromkeys(tuple(key.split("/")[:3]) for key in cells))
    # Several networks are worked on at once, so the records come mixed.
    order = [*NETWORKS, *networks]
    rows.sort(key=lambda row: order.index(row[0]))
    columns = list(dict.fromkeys(key.split("/")[3] for key in cells if not key.split("/")[3].startswith("onnx")))
    lines = [
        "| network | variant | precision | ONNX | its layers | torch's own | " + " | ".join(columns) + " |",
        "|" + "---|" * (6 + len(columns)),
    ]
    for network, variant, precision in rows:
        written = _written(cells, network, variant, precision, failures)
        shown = [
            _shown(cells.get(f"{network}/{variant}/{precision}/{engine}"), precision, failures) for engine in columns
        ]
        rounding = networks.get(network, {}).get("rounding", {}).get(variant, {}).get(precision)
        own = "" if rounding is None else f"{rounding:.0e}"
        lines.append(f"| {network} | {variant} | {precision} | {written} | {own} | " + " | ".join(shown) + " |")
    return lines


def _written(cells: Cells, network: str, variant: str, precision: str, failures: list[str]) -> str:
    """Size and census of the ONNX file, of both where int8 is quantised in two ways."""
    prefix = f"{network}/{variant}/{precision}/onnx"
    records = [record for key, record in cells.items() if key.startswith(prefix)]
    sizes, layers = [], []
    for record in records:
        if "failed" in record:
            sizes.append(_failed(record, failures))
            continue
        sizes.append(_size(record["bytes_total"]))
        layers.append(_census(record["census"]))
    return f"{' / '.join(dict.fromkeys(sizes))} | {' / '.join(dict.fromkeys(layers))}"


def _shown(record: Record | None, precision: str, failures: list[str]) -> str:
    if record is None:
        return ""
    if "failed" in record:
        if record["failed"].startswith("export: "):
            return "–"
        return _failed(record, failures)
    if record["state"] == "not offered":
        return "–"
    if record["state"] == "built":
        return f"built, {_size(record['bytes_total'])}"
    parity = f"{record['relative_error']:.0e}{'' if record.get('within_gate', True) else ' (over)'}"
    if precision == "int8":
        parity = f"{record['agreement']:.1%}, {record['sqnr_db']:.0f} dB" if record["sqnr_db"] else "exact"
    return f"{parity}, {_census(record['census'])}" if record.get("census") else parity


def _failed(record: Record, failures: list[str]) -> str:
    """The number of a failure's line below the table; what failed alike has one line."""
    text = record["failed"]
    if text not in failures:
        failures.append(text)
    return f"failed ({failures.index(text) + 1})"


def _census(census: Record) -> str:
    """The precisions that FLOPs are computed in, the largest share first; layers where FLOPs are not known."""
    shares = census["flops"]
    if shares:
        ordered = sorted(shares.items(), key=lambda one: -one[1])
        return ", ".join(name if share > 0.9995 else f"{name} {share:.1%}" for name, share in ordered if share)
    return ", ".join(f"{count} {name}" for name, count in census["layers"].items())


def _size(bytes_total: int) -> str:
    return f"{bytes_total / _MIB:.1f} MiB"


def _speeds(speeds: Mapping[str, Record]) -> list[str]:
    lines = [
        "| engine | fp32 | int8 | int8 over fp32 (95% interval) | fp32 over fp32 (control) | int8 layers |",
        "|---|---|---|---|---|---|",
    ]
    for engine, record in speeds.items():
        if "failed" in record:
            lines.append(f"| {engine} | failed: {record['failed']} | | | | |")
            continue
        ratio, control = record["speedup"], record["control"]
        census = _census(record["census"]) if record.get("census") else ""
        lines.append(
            f"| {engine} | {record['fp32_ms']:.2f} ms | {record['int8_ms']:.2f} ms | {_interval(ratio)} | "
            f"{_interval(control)} | {census} |"
        )
    return lines


def _interval(interval: Record) -> str:
    ends = f" ({interval['low']:.2f} to {interval['high']:.2f})" if interval["low"] is not None else ""
    return f"{interval['estimate']:.2f}x{ends}"
