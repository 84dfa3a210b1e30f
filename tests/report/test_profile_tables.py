"""Where the time went, in tables, in a plot, in Markdown and on the page: from profiles made up."""

import re
from dataclasses import replace

import pytest

from prune2deploy.bench.aside.attribution import Cause, attribution_of, with_attributions
from prune2deploy.bench.aside.profile import Kind, Product, Profile, ProfiledLayer
from prune2deploy.bench.result import BenchResult
from prune2deploy.report.content import ReportContent
from prune2deploy.report.html import html_report
from prune2deploy.report.markdown import markdown_report
from prune2deploy.report.plots import report_plots
from prune2deploy.report.profile_plots import paid_ns, parts_of, profile_plots
from prune2deploy.report.profile_tables import LISTED_LAYERS, profile_tables


def conv(name: str, latency_ns: float, width: int) -> ProfiledLayer:
    product = Product(node=name, flops=width * 1000, input_width=64, output_width=width, groups=1)
    return ProfiledLayer(
        name=f"kernel {name}",
        operator="Conv",
        kind=Kind.COMPUTE,
        latency_ns=latency_ns,
        nodes=(name,),
        products=(product,),
    )


def profile(width: int, latency_ns: float, *, layers: int = 20) -> Profile:
    pool = ProfiledLayer(name="pool", operator="MaxPool", kind=Kind.MEMORY, latency_ns=5e4, nodes=("pool",))
    copy = ProfiledLayer(name="Reorder", operator="Reorder", kind=Kind.REFORMAT, latency_ns=4e4)
    convolutions = tuple(conv(f"<conv{number}>", latency_ns + 100 * number, width) for number in range(layers))
    total = sum(layer.latency_ns for layer in (*convolutions, pool, copy))
    return Profile(
        layers=(*convolutions, pool, copy),
        whole_ns=total * 1.1,
        profiled_ns=total * 1.1,
        beside_ns=total * 1.1,
        runs=20,
        granule=16,
        told_by="a profiler that was made up",
        left_out=("it leaves out <nothing>",),
        seconds=0.4,
    )


@pytest.fixture
def profiled(make_result) -> BenchResult:
    result = make_result(batches=(1,))
    profiles = {"dense": profile(64, 60_000), "pruned": profile(20, 19_000), "reduced": profile(32, 17_000)}
    rows = [replace(row, profile=profiles[row.variant].to_document()) for row in result.rows]
    return replace(result, rows=tuple(with_attributions(rows, "dense")))


def test_the_losses_of_every_variant_stand_side_by_side(profiled: BenchResult) -> None:
    where = profile_tables(profiled)[0]
    assert where.columns == ("", "pruned", "reduced")
    assert [row[0] for row in where.rows[:3]] == ["median", "FLOPs kept", "yield"]
    by_cause = {row[0]: row[1:] for row in where.rows[3:]}
    found = attribution_of(profiled.rows[1])
    assert found is not None
    share = found.losses[Cause.MISALIGNED]
    assert by_cause["lost to misaligned widths"][0].startswith(f"{share:.1%} (")
    # 32 channels are two granules.
    assert by_cause["lost to misaligned widths"][1].startswith("0.0%")
    # No layer is of unknown work.
    assert "lost to layers of unknown work" not in by_cause
    assert "pruned: yield" in where.note
    assert "It leaves out <nothing>." in where.note
    assert "no interval" in where.note


def test_a_gain_has_a_minus(profiled: BenchResult) -> None:
    where = profile_tables(profiled)[0]
    row = profiled.rows[2]
    found = attribution_of(row)
    assert found is not None
    gained = [cause for cause, share in found.losses.items() if share < -0.001]
    assert gained
    assert sum("−" in cells[2] for cells in where.rows) == len(gained)


def test_the_slowest_layers_stand_beside_those_of_dense(profiled: BenchResult) -> None:
    tables = {table.title: table for table in profile_tables(profiled)}
    layers = tables["Slowest layers, pruned, ort-cpu, fp32, batch 1"]
    assert layers.columns[2:4] == ("dense", "pruned")
    assert len(layers.rows) == LISTED_LAYERS
    name, bound, _, _, ratio, kept, widths = layers.rows[0]
    assert (name, bound, kept, widths) == ("<conv19>", "compute", "31.2%", "64×64 → 64×20")
    assert float(ratio.removesuffix("×")) > 1
    assert f"{LISTED_LAYERS} of the 23 layers of both" in layers.note


def test_a_layer_without_counterpart_leaves_the_other_side_open(profiled: BenchResult) -> None:
    rows = [
        replace(row, profile=profile(64 if row.variant == "dense" else 20, 2e4, layers=1).to_document())
        for row in profiled.rows[:2]
    ]
    layers = profile_tables(replace(profiled, rows=tuple(with_attributions(rows, "dense"))))[1]
    put_in = [row for row in layers.rows if row[0] == "Reorder"]
    assert sorted((row[2] == "–", row[3] == "–") for row in put_in) == [(False, True), (True, False)]
    assert layers.note.startswith("Shares of a profiled run")


def test_one_variant_alone_is_listed_without_comparison(profiled: BenchResult) -> None:
    (table,) = profile_tables(replace(profiled, rows=profiled.rows[:1]))
    assert table.columns == ("layer", "bound by", "dense")
    assert len(table.rows) == LISTED_LAYERS


def test_without_profiles_there_is_nothing(make_result, make_manifest) -> None:
    result = make_result()
    assert profile_tables(result) == ()
    assert list(profile_plots(ReportContent(manifest=make_manifest(), result=result))) == []


def test_the_parts_of_a_bar_sum_to_the_run(profiled: BenchResult, make_manifest) -> None:
    for row in profiled.rows:
        parts = parts_of(row)
        assert sum(parts.values()) == pytest.approx(1)
        assert min(parts.values()) >= 0
    pruned = profiled.rows[1]
    assert parts_of(pruned)["of that, padding"] == pytest.approx(parts_of(pruned)["computing"] * 12 / 20)
    paid = paid_ns(pruned)
    assert paid is not None
    assert pruned.flops_fraction is not None
    interval = pruned.speedup_against("dense")
    assert interval is not None
    assert paid == pytest.approx(pruned.latency_ns.p50 * interval.estimate * pruned.flops_fraction)


def test_plot_markdown_and_page_hold_it(profiled: BenchResult, make_manifest) -> None:
    content = ReportContent(manifest=make_manifest(), result=profiled)
    (plot,) = [plot for plot in report_plots(content) if plot.key == "parts0"]
    assert "padding" in plot.svg
    assert not re.search(r"#0a0[bc]0", plot.svg)
    assert "tall mark" in plot.description
    markdown = markdown_report(content)
    assert "## Where the speed went, ort-cpu, fp32, batch 1" in markdown
    assert "<details><summary>Slowest layers, pruned" in markdown
    page = html_report(content)
    assert "&lt;conv19&gt;" in page
    assert "<conv19>" not in page
    assert page.index("Where the speed went") < page.index("Slowest layers, pruned")
