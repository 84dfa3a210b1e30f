"""The plots of a latency target: what is drawn, named and described."""

import re
from dataclasses import replace

import pytest

from prune2deploy.report.content import ReportContent
from prune2deploy.report.latency_plots import chosen_widths_plot, exchange_plot, family_plot
from prune2deploy.report.plots import report_plots


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_the_largest_cuts_are_named_and_all_are_told(make_latency) -> None:
    document = make_latency(blocks=6)
    plot = exchange_plot(document)
    assert plot is not None
    shown = set(texts(plot.svg)) & {group["name"] for group in document["groups"]}
    assert {"layer1", "layer4"} <= shown
    assert len(shown) <= 6
    assert "layer3.1.conv1: 0.60% for" in plot.svg
    assert "layer3.5: 1.20% for 940 µs" in plot.svg
    assert "layer3.5.conv1" not in plot.svg
    assert "whole branch" in texts(plot.svg)


def test_small_gains_are_drawn_in_microseconds(make_latency) -> None:
    document = make_latency()
    assert "gained, µs" in texts(exchange_plot(document).svg)
    for group in document["groups"]:
        group["saved_ns"] *= 10
    assert "gained, ms" in texts(exchange_plot(document).svg)


def test_a_cut_that_costs_time_stays_in_the_picture(make_latency) -> None:
    document = make_latency()
    document["groups"][0]["saved_ns"] = -300_000.0
    plot = exchange_plot(document)
    assert "layer1: 4.20% for −300 µs" in plot.svg
    ticks = [float(text.replace("−", "-")) for text in texts(plot.svg) if re.fullmatch(r"−?\d+", text)]
    assert min(ticks) < 0


def test_nothing_is_drawn_where_nothing_was_cut(make_latency) -> None:
    document = make_latency()
    whole = [group | {"kept": group["dense"]} for group in document["groups"]]
    assert exchange_plot(document | {"groups": whole, "branches": []}) is None
    assert exchange_plot({}) is None
    assert chosen_widths_plot({}) is None


@pytest.mark.parametrize("blocks", [2, 12], ids=["named", "many"])
def test_widths_stand_beside_those_that_flops_would_choose(make_latency, blocks: int) -> None:
    document = make_latency(blocks=blocks)
    plot = chosen_widths_plot(document)
    groups = document["groups"]
    wider = sum(group["kept"] > group["flop_optimal"] for group in groups)
    narrower = sum(group["kept"] < group["flop_optimal"] for group in groups)
    assert f"{wider} groups are wider here, {narrower} narrower" in plot.description
    assert ("layer4.1.conv1" in texts(plot.svg)) == (blocks == 2)
    assert "by FLOPs" in texts(plot.svg)
    alone = chosen_widths_plot({"groups": [group | {"flop_optimal": None} for group in groups]})
    assert "by FLOPs" not in alone.svg
    assert "FLOPs" not in alone.description


def test_a_family_is_drawn_once_with_every_target(make_latency, make_manifest) -> None:
    told = {f"pruned-{fraction}": {"latency": make_latency(fraction=fraction)} for fraction in (0.8, 0.65, 0.5)}
    content = ReportContent(manifest=replace(make_manifest(), pruning={"family": told}), result=None)
    keys = [plot.key for plot in report_plots(content)]
    assert keys.count("latency-family") == 1
    assert "latency-exchange" not in keys
    plot = family_plot(content.latency_targets)
    assert {"0.795", "0.646", "0.497"} <= set(texts(plot.svg))
    assert "pruned-0.65: 0.646 of dense" in plot.svg


def test_every_colour_follows_the_page(make_latency) -> None:
    document = make_latency()
    for plot in (exchange_plot(document), chosen_widths_plot(document), family_plot({"a": document, "b": document})):
        assert not re.search(r"#0a0[bc]0", plot.svg)
        assert "var(--" in plot.svg


def test_a_run_with_a_target_has_both_plots(make_manifest, make_latency) -> None:
    manifest = make_manifest()
    content = ReportContent(
        manifest=replace(manifest, pruning={**manifest.pruning, "latency": make_latency()}), result=None
    )
    keys = [plot.key for plot in report_plots(content)]
    assert keys.index("latency-exchange") < keys.index("latency-widths") < keys.index("widths")
