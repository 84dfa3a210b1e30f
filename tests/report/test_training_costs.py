"""What training cost, and what a method saw on the way."""

from dataclasses import replace
from typing import Any

from prune2deploy.report.content import ReportContent
from prune2deploy.report.costs import costs_table
from prune2deploy.report.html import html_report
from prune2deploy.report.markdown import markdown_report
from prune2deploy.report.methods import size_plot
from prune2deploy.report.plots import report_plots
from prune2deploy.run import RunManifest

IMAGES = 12_000


def cost(training_flops: int, **changes: Any) -> dict[str, Any]:
    return {
        "training_flops": training_flops,
        "dense_training_flops": 2 * training_flops,
        "images": IMAGES,
        "steps": 94,
        "seconds": {"training": 60.0, "evaluating": 2.0, "deciding": 0.5, "cutting": 0.25},
        "peak_memory_bytes": 1_500_000_000,
        "flops_fraction": 0.5,
        **changes,
    }


def with_training(manifest: RunManifest, name: str, **entries: Any) -> RunManifest:
    record = manifest.variants[name]
    changed = replace(record, training={**record.training, **entries})
    return replace(manifest, variants={**manifest.variants, name: changed})


def content_of(manifest: RunManifest) -> ReportContent:
    return ReportContent(manifest=manifest, result=None)


def test_the_share_is_of_dense_training_on_the_same_images(make_manifest) -> None:
    manifest = make_manifest()
    dense_step = 3 * manifest.variants["dense"].flops
    manifest = with_training(manifest, "dense", cost=cost(dense_step * IMAGES))
    manifest = with_training(manifest, "pruned", cost=cost(dense_step * IMAGES // 4))
    table = costs_table(content_of(manifest))
    shares = {row[0]: row[table.columns.index("of dense training")] for row in table.rows}
    assert shares == {"dense": "100.0%", "pruned": "25.0%"}


def test_phases_that_took_no_time_have_no_column(make_manifest) -> None:
    manifest = with_training(make_manifest(), "pruned", cost=cost(10**12))
    table = costs_table(content_of(manifest))
    assert [column for column in table.columns if column.endswith(", s")] == [
        *("training, s", "evaluating, s", "deciding, s", "cutting, s")
    ]
    (row,) = table.rows
    shown = dict(zip(table.columns, row, strict=True))
    assert (shown["training, s"], shown["images/s"], shown["peak memory"]) == ("60.0", "200", "1.50 GB")


def test_a_run_whose_trainings_were_not_accounted_for_has_no_such_table(make_manifest) -> None:
    assert costs_table(content_of(make_manifest())).rows == ()
    assert "What training cost" not in markdown_report(content_of(make_manifest()))


def test_the_pages_show_what_training_cost(make_manifest) -> None:
    content = content_of(with_training(make_manifest(), "pruned", cost=cost(10**12)))
    assert "## What training cost" in markdown_report(content)
    assert '<table id="table-costs">' in html_report(content)


def test_a_network_that_shrank_while_it_trained_is_drawn(make_manifest) -> None:
    manifest = make_manifest()
    dense, pruned = manifest.variants["dense"].flops, manifest.variants["pruned"].flops
    history = [
        {**epoch, "flops": dense if epoch["epoch"] < 4 else pruned}
        for epoch in manifest.variants["pruned"].training["history"]
    ]
    plot = size_plot(content_of(with_training(manifest, "pruned", history=history)))
    assert plot is not None
    assert "pruned: 100.0% in the first epoch, 32.7% at the end" in plot.description


def test_a_network_that_kept_its_size_is_not(make_manifest) -> None:
    manifest = make_manifest()
    history = [{**epoch, "flops": manifest.variants["dense"].flops} for epoch in [{"epoch": 1}, {"epoch": 2}]]
    assert size_plot(content_of(with_training(manifest, "dense", history=history))) is None
    assert "sizes" not in {plot.key for plot in report_plots(content_of(manifest))}
