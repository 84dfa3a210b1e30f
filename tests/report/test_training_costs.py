"""What training cost, and what a method saw on the way."""

from dataclasses import replace
from typing import Any

from prune2deploy.report.content import ReportContent
from prune2deploy.report.costs import costs_table
from prune2deploy.report.html import html_report
from prune2deploy.report.markdown import markdown_report
from prune2deploy.report.methods import size_plot
from prune2deploy.report.plots import report_plots
from prune2deploy.report.tables import report_tables
from prune2deploy.report.verdict import summary_of
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


def with_findings(manifest: RunManifest, **findings: Any) -> ReportContent:
    return content_of(with_training(manifest, "pruned", findings=findings))


def keys_of(content: ReportContent) -> set[str]:
    return {table.key for table in report_tables(content)} | {plot.key for plot in report_plots(content)}


EPI = {
    "threshold": 0.983,
    "curve": [
        {"epoch": epoch, "epi": None if epoch < 3 else 0.9 + epoch / 100, "widths": [8, 9]} for epoch in range(1, 8)
    ],
    "pruned": {"epoch": 7, "how": "fallback", "epi": 0.97, "alignment": 16},
}


def test_when_epi_pruned_is_drawn_and_why_then(make_manifest) -> None:
    content = with_findings(make_manifest(), **EPI)
    assert {"epi", "method-epi", "method"} <= keys_of(content)
    (plot,) = [plot for plot in report_plots(content) if plot.key == "epi"]
    assert plot.description.endswith("pruned after epoch 7, the fallback.")
    (table,) = [table for table in report_tables(content) if table.key == "method-epi"]
    assert table.rows[0] == ("1", "–", "17")
    assert table.rows[-1] == ("7", "0.97", "17")


def test_a_curve_that_is_not_defined_anywhere_is_not_drawn(make_manifest) -> None:
    content = with_findings(make_manifest(), **{**EPI, "curve": EPI["curve"][:2]})
    assert "epi" not in keys_of(content)


def test_what_survived_each_reconfiguration_is_drawn(make_manifest) -> None:
    manifest = make_manifest(layers=2)
    first, second = (layer["name"] for layer in manifest.pruning["layers"])
    cut = {"dead": 5, "removed": 4, "kept_for_alignment": 1, "kept_as_last": 0, "branches": [], "batch_size": 128}
    cut |= {"flops": 0.5, "parameters": 0.6}
    cuts = [{**cut, "epoch": epoch, "widths": {first: 64 - epoch, second: 32}} for epoch in (10, 20)]
    content = with_findings(manifest, reconfigurations=cuts, schedule={"epochs": 25, "steps": 100})
    assert {"surviving", "method-reconfigurations", "method-widths"} <= keys_of(content)
    (table,) = [table for table in report_tables(content) if table.key == "method-widths"]
    assert table.columns == ("layer", "epoch 10", "epoch 20")
    assert table.rows == ((first, "54", "44"), (second, "32", "32"))
    (plot,) = [plot for plot in report_plots(content) if plot.key == "surviving"]
    assert "76 of 128 channels stay after 2 reconfigurations" in plot.description


def test_densities_are_drawn_with_the_cuts_between_rounds(make_manifest) -> None:
    curve = [{"epoch": epoch, "round": epoch // 4, "densities": {"a": 0.5, "b": 0.25}} for epoch in range(1, 7)]
    rounds = [{"begins_after": 0, "epochs": 3, "widths": {"a": 8, "b": 8}, "densities": {"a": 0.5, "b": 0.25}}]
    rounds += [{"begins_after": 3, "epochs": 3, "widths": {"a": 4, "b": 2}, "densities": None}]
    rounds = [{**one, "training_accuracy": 0.9, "flops": 0.5, "parameters": 0.5} for one in rounds]
    content = with_findings(make_manifest(), curve=curve, rounds=rounds, stopped="densities no longer move")
    assert {"densities", "method-rounds", "method-widths"} <= keys_of(content)
    (plot,) = [plot for plot in report_plots(content) if plot.key == "densities"]
    assert "Upright lines show 1 cut. They ended because densities no longer move." in plot.description
    (table,) = [table for table in report_tables(content) if table.key == "method-widths"]
    assert table.columns == ("layer", "round 0", "density", "round 1")
    assert table.rows == (("a", "8", "50.0%", "4"), ("b", "8", "25.0%", "2"))


def test_a_run_without_a_method_shows_none_of_this(make_manifest) -> None:
    assert not {key for key in keys_of(content_of(make_manifest())) if key.startswith("method")}


def test_a_layer_that_left_whole_is_drawn_without_a_width(make_manifest) -> None:
    manifest = make_manifest(layers=2)
    first, second = manifest.pruning["layers"]
    layers = [first, {**second, "pruned": 0}]
    content = content_of(replace(manifest, pruning={**manifest.pruning, "layers": layers}))
    (plot,) = [plot for plot in report_plots(content) if plot.key == "widths"]
    assert f"{first['pruned']} of 128 channels stay in 2 layers" in plot.description


def test_an_untrained_dense_network_is_not_compared_in_accuracy(make_manifest) -> None:
    manifest = make_manifest()
    untrained = replace(manifest.variants["dense"], accuracies={}, training={})
    content = content_of(replace(manifest, variants={**manifest.variants, "dense": untrained}))
    said = summary_of(content).sentences
    assert "Top-1 accuracy is 98.6%; dense is untrained, and there to be timed." in said
    assert not any("against" in sentence for sentence in said if "accuracy" in sentence)
