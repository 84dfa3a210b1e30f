"""Tables of a whole report as pure rows of text: the terminal, Markdown and HTML draw them each in their own way."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prune2deploy.bench.subjects import PRUNED
from prune2deploy.report.across_tables import baseline_tables
from prune2deploy.report.content import ReportContent
from prune2deploy.report.costs import costs_table
from prune2deploy.report.figures import (
    NOTHING,
    spell_bytes,
    spell_count,
    spell_error,
    spell_number,
    spell_percent,
)
from prune2deploy.report.latency_tables import latency_tables
from prune2deploy.report.measured_tables import engines_table, result_tables
from prune2deploy.report.methods import method_tables
from prune2deploy.report.profile_tables import profile_tables
from prune2deploy.report.protocol_tables import protocol_tables
from prune2deploy.report.resource_tables import resources_table
from prune2deploy.report.table import Table
from prune2deploy.run import OnnxRecord, VariantRecord

_HIDDEN_FACTS = frozenset({"versions"})
_CHECKS: Mapping[str, tuple[str, Callable[[float | None], str]]] = {
    "accuracy": ("accuracy", spell_percent),
    "agreement": ("agreement", spell_percent),
    "sqnr_db": ("signal to noise", lambda value: NOTHING if value is None else f"{value:.1f} dB"),
}
_CHECKED = (
    "Accuracy is that of the file, run by ONNX Runtime on the CPU. Agreement is the share of images on which an int8 "
    "file names the class that fp32 names; signal to noise compares the outputs of the two."
)


def report_tables(content: ReportContent) -> tuple[Table, ...]:
    """All tables of a report that have something to show, in reading order."""
    result = content.result
    measured = (*result_tables(result), *baseline_tables(result), *profile_tables(result)) if result is not None else ()
    rest = (
        variants_table(content),
        *latency_tables(content),
        costs_table(content),
        *method_tables(content),
        resources_table(content.result),
        engines_table(content.result),
        files_table(content),
        widths_table(content.pruning),
        frozen_table(content.pruning),
        *history_tables(content),
        *(protocol_tables(content.result) if content.result is not None else ()),
        environment_table(content),
        provenance_table(content),
    )
    return (*measured, *(table for table in rest if table.rows))


def variants_table(content: ReportContent) -> Table:
    """Cost and accuracy of each variant, at each moment that was recorded."""
    moments = tuple(
        dict.fromkeys(moment for variant in content.variants for moment in variant.accuracies if moment != "final")
    )
    columns = (
        "variant",
        "FLOPs",
        "kept",
        "parameters",
        "kept",
        *(_spell_moment(moment) for moment in moments),
        "final",
    )
    rows = tuple(
        (
            variant.name,
            spell_count(variant.flops),
            spell_percent(content.flops_fraction_of(variant.name)),
            spell_count(variant.parameters),
            spell_percent(content.parameters_fraction_of(variant.name)),
            *(spell_percent(variant.accuracies.get(moment)) for moment in moments),
            spell_percent(variant.accuracy),
        )
        for variant in content.variants
    )
    return Table(
        key="variants",
        title="Variants",
        columns=columns,
        rows=rows,
        numeric=frozenset(range(1, len(columns))),
        note="FLOPs of one input. The last columns are top-1 accuracies.",
    )


def files_table(content: ReportContent) -> Table:
    """The exported files, with what was checked before they were written."""
    files = [(variant, precision, file) for variant in content.variants for precision, file in variant.onnx.items()]
    checks = [name for name in _CHECKS if any(name in file.checks for _, _, file in files)]
    dropping = any(_drop(variant, file) is not None for variant, _, file in files)
    columns = (
        "variant",
        "precision",
        "file",
        "size",
        "parity error",
        *(_CHECKS[name][0] for name in checks),
        *(("against fp32",) if dropping else ()),
        "SHA-256",
    )
    rows = tuple(
        (
            variant.name,
            precision,
            file.file,
            spell_bytes(file.bytes_total),
            spell_error(file.parity_max_error),
            *(_CHECKS[name][1](file.checks.get(name)) for name in checks),
            *((_spell_points(_drop(variant, file)),) if dropping else ()),
            file.sha256,
        )
        for variant, precision, file in files
    )
    return Table(
        key="files",
        title="ONNX files",
        columns=columns,
        rows=rows,
        numeric=frozenset(range(3, len(columns) - 1)),
        note=_CHECKED if checks else "",
    )


def _drop(variant: VariantRecord, file: OnnxRecord) -> float | None:
    """How far the accuracy of a file lies above that of the same variant's fp32 file, in [-1, 1]."""
    first = variant.onnx.get("fp32")
    if first is None or file is first or not {"accuracy"} <= file.checks.keys() & first.checks.keys():
        return None
    return file.checks["accuracy"] - first.checks["accuracy"]


def widths_table(pruning: Mapping[str, Any]) -> Table:
    """Widths and FLOPs of every layer, dense and pruned; of a family the widths of each of its networks."""
    layers = list(pruning.get("layers", ()))
    entries = dict.fromkeys(name for layer in layers for name in layer)
    variants = [name for name in entries if name not in ("name", "exact", "dense") and not name.startswith("flops_")]
    single = not variants or PRUNED in variants
    widths = ["dense", *([PRUNED] if single else []), *(name for name in variants if name != PRUNED)]
    rows = tuple(
        (
            str(layer["name"]),
            *(spell_number(layer.get(name)) for name in widths),
            *((spell_percent(_fraction(layer.get(PRUNED), layer.get("dense"))),) if single else ()),
            spell_count(layer.get("flops_dense")),
            *((spell_count(layer.get("flops_pruned")),) if single else ()),
            _spell_exactness(layer, variants),
        )
        for layer in layers
    )
    kept, flops = (("kept",), ("FLOPs pruned",)) if single else ((), ())
    columns = ("layer", *widths, *kept, "FLOPs dense", *flops, "cut")
    numeric = frozenset(range(1, len(columns) - 1))
    return Table(key="widths", title="Widths", columns=columns, rows=rows, numeric=numeric)


def _spell_exactness(layer: Mapping[str, Any], variants: Sequence[str]) -> str:
    """Whether a layer's channels were cut exactly; inexact where a norm takes its statistics over them."""
    cut = [name for name in variants if name == PRUNED or name.startswith(f"{PRUNED}-")]
    if "exact" not in layer or all(layer.get(name) == layer.get("dense") for name in cut):
        return spell_number(None)
    return "exact" if layer["exact"] else "inexact"


def frozen_table(pruning: Mapping[str, Any]) -> Table:
    """What could not be pruned, and why."""
    rows = tuple(
        (
            str(entry.get("named") or ", ".join(entry.get("layers", ()))),
            str(entry.get("reason", "")),
            str(entry.get("operator", "")),
            str(entry.get("source") or entry.get("place", "")),
            spell_percent(entry.get("flops_fraction")),
        )
        for entry in pruning.get("frozen", ())
    )
    columns = ("layers", "reason", "operator", "place", "share of FLOPs")
    return Table(key="frozen", title="Kept whole", columns=columns, rows=rows, numeric=frozenset({4}))


def history_tables(content: ReportContent) -> tuple[Table, ...]:
    """One table of epochs for each variant that was trained."""
    tables = []
    for variant in content.variants:
        rows = tuple(
            (
                spell_number(epoch.get("epoch")),
                spell_number(epoch.get("loss")),
                spell_percent(epoch.get("accuracy")),
                spell_number(epoch.get("learning_rate")),
                spell_number(epoch.get("seconds")),
            )
            for epoch in variant.training.get("history", ())
        )
        tables.append(
            Table(
                key=f"history-{variant.name}",
                title=f"Training of {variant.name}",
                columns=("epoch", "loss", "accuracy", "learning rate", "seconds"),
                rows=rows,
                numeric=frozenset(range(5)),
            )
        )
    return tuple(tables)


def environment_table(content: ReportContent) -> Table:
    """The machine that measured, and what it was asked for."""
    if content.result is None:
        return Table(key="environment", title="Environment", columns=("what", "value"), rows=())
    facts = {name: value for name, value in content.result.environment.items() if name not in _HIDDEN_FACTS}
    facts |= {f"protocol: {name}": value for name, value in content.result.protocol.items() if name != "rounds"}
    versions = content.result.environment.get("versions", {})
    rows = (*_facts(facts), *((f"version: {name}", str(version)) for name, version in versions.items()))
    return Table(key="environment", title="Environment", columns=("what", "value"), rows=tuple(rows))


def provenance_table(content: ReportContent) -> Table:
    """Where the run comes from: enough to repeat it. Empty without a run."""
    manifest, pruning = content.manifest, content.pruning
    if manifest is None:
        return Table(key="provenance", title="Provenance", columns=("what", "value"), rows=())
    facts: dict[str, Any] = {
        "command": " ".join(manifest.command),
        "created": manifest.created,
        "model": manifest.model,
        "input": "x".join(str(size) for size in manifest.input_shape),
        "data": manifest.data,
        "seed": manifest.seed,
    }
    facts |= {f"option: {name}": value for name, value in manifest.options.items()}
    facts |= {
        f"pruning: {name}": value
        for name, value in pruning.items()
        if name not in ("layers", "frozen", "inexact", "plan", "latency", "family")
    }
    facts |= {f"made with {name}": version for name, version in manifest.versions.items()}
    return Table(key="provenance", title="Provenance", columns=("what", "value"), rows=tuple(_facts(facts)))


def _facts(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    return ((name.replace("_", " "), spell_number(value)) for name, value in facts.items())


def _spell_moment(moment: str) -> str:
    return moment.replace("_", " ")


def _spell_points(difference: float | None) -> str:
    """A difference of accuracies in points: +0.3, -1.2."""
    return NOTHING if difference is None else f"{100 * difference:+.1f} points"


def _fraction(part: Any, whole: Any) -> float | None:
    return part / whole if isinstance(part, int | float) and isinstance(whole, int | float) and whole else None
