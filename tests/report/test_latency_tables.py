"""A latency target in sentences, tables, Markdown and on the page: from a document made up."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from prune2deploy.report.content import ReportContent
from prune2deploy.report.document import report_document
from prune2deploy.report.html import html_report
from prune2deploy.report.latency_tables import LISTED_GROUPS, groups_table, latency_tables, target_table
from prune2deploy.report.latency_words import latency_sentences, spell_solver, taken_round
from prune2deploy.report.markdown import markdown_report
from prune2deploy.report.table import Table
from prune2deploy.report.tables import report_tables
from prune2deploy.report.verdict import summary_of

MakeContent = Callable[[dict[str, Any]], ReportContent]

FAMILY = {"pruned-0.8": 0.8, "pruned-0.5": 0.5, "pruned-0.35": 0.35}


@pytest.fixture
def content_of(make_manifest) -> MakeContent:
    def make(document: dict[str, Any]) -> ReportContent:
        manifest = make_manifest()
        return ReportContent(manifest=replace(manifest, pruning={**manifest.pruning, "latency": document}), result=None)

    return make


@pytest.fixture
def family(make_manifest, make_latency) -> ReportContent:
    manifest = make_manifest(names=("dense", *FAMILY))
    members = {name: {"latency": make_latency(fraction=fraction)} for name, fraction in FAMILY.items()}
    members["pruned-0.35"]["latency"] |= {"met": False, "ratio": 0.38}
    return ReportContent(manifest=replace(manifest, pruning={"family": members}), result=None)


def by_key(tables: tuple[Table, ...]) -> dict[str, Table]:
    return {table.key: table for table in tables}


def test_the_sentence_names_target_setting_latencies_interval_and_rounds(content_of, make_latency) -> None:
    said, *_ = latency_sentences(content_of(make_latency()))
    assert said == (
        "Timed while it was planned, on ort-cpu, fp32, batch 1, 1 thread: pruned takes 10.6 ms, "
        "0.497 (0.495 to 0.499) of dense's 21.3 ms. The target of 0.500 (10.7 ms) is met after 2 measured plans."
    )


def test_a_missed_target_is_called_missed_everywhere(content_of, make_latency) -> None:
    content = content_of(make_latency() | {"met": False, "ratio": 0.51, "low": 0.505, "high": 0.515})
    assert "is missed after 2 measured plans." in next(latency_sentences(content))
    assert ("met", "no") in by_key(latency_tables(content))["latency-target"].rows


def test_without_an_interval_none_is_shown(content_of, make_latency) -> None:
    said = next(latency_sentences(content_of(make_latency() | {"low": None, "high": None})))
    assert "10.6 ms, 0.497 of dense's 21.3 ms" in said
    assert said.endswith("by the estimate alone: there is no interval.")


def test_an_interval_across_the_target_leaves_it_to_the_estimate(content_of, make_latency) -> None:
    content = content_of(make_latency() | {"low": 0.3, "high": 0.78})
    said = next(latency_sentences(content))
    assert said.endswith(
        "is met after 2 measured plans, by the estimate alone: its interval reaches across the target."
    )
    assert ("met", "yes, by the estimate") in by_key(latency_tables(content))["latency-target"].rows


@pytest.mark.parametrize(
    ("status", "gap", "sentence", "shortly"),
    [
        ("optimal", 0.0, "nothing more could be kept within that time by other choices", "optimal"),
        ("optimal", 0.004, "at most 0.4% more could be kept", "at most 0.4% more could be kept (optimal)"),
        (
            "time limit",
            0.031,
            "so much was proven when its time was up",
            "at most 3.1% more could be kept (time limit)",
        ),
        ("greedy", None, "found greedily: how much more a better plan could keep is not known", "greedy, no bound"),
        ("time limit", None, "how much more a better plan could keep is not known", "time limit, no bound"),
    ],
)
def test_what_is_proven_is_said_and_no_more(
    content_of, make_latency, status: str, gap: float | None, sentence: str, shortly: str
) -> None:
    document = make_latency()
    document["rounds"][-1]["solver"] |= {"status": status, "gap": gap}
    assert sentence in list(latency_sentences(content_of(document)))[1]
    assert spell_solver(document["rounds"][-1]["solver"]) == shortly


def test_a_target_in_milliseconds_is_told_as_a_share_too(content_of, make_latency) -> None:
    document = make_latency()
    document["target"] = {"fraction": None, "ns": 10_650_000.0}
    content = content_of(document)
    assert "The target of 0.500 (10.7 ms) is met" in next(latency_sentences(content))
    assert ("target", "0.500 of dense, 10.7 ms") in by_key(latency_tables(content))["latency-target"].rows


def test_widths_that_no_solver_chose_are_said_to_be_ranked(content_of, make_latency) -> None:
    document = make_latency()
    document["rounds"][-1]["solver"] = {"status": None, "gap": None, "seconds": None, "ranking": "global"}
    content = content_of(document)
    assert "Its widths were ranked (global): how much more" in list(latency_sentences(content))[1]
    table = by_key(latency_tables(content))["latency-rounds"]
    assert table.rows[1][-2:] == ("global ranking, no solver", "–")


def test_a_plan_is_told_by_its_own_round_where_a_later_one_was_worse(make_latency) -> None:
    document = make_latency()
    document["rounds"].append({**document["rounds"][0], "measured_ns": 2 * document["pruned_ns"]})
    assert taken_round(document) is document["rounds"][1]


def test_the_flop_optimal_plan_is_priced_beside_this_one(content_of, make_latency) -> None:
    content = content_of(make_latency())
    assert (
        "would take 11.8 ms by the corrected table and this one takes 10.5 ms: 1.12× as long"
        in list(latency_sentences(content))[-1]
    )
    table = by_key(latency_tables(content))["latency-flops"]
    assert table.rows == (
        ("this plan", "10.5 ms", "1.00×", "84.1%", "32.7%"),
        ("FLOP-optimal", "11.8 ms", "1.12×", "84.0%", "41.2%"),
    )


def test_each_group_has_importance_lost_against_time_gained(content_of, make_latency) -> None:
    table = by_key(latency_tables(content_of(make_latency())))["latency-groups"]
    assert table.columns == (*("group", "dense", "kept", "FLOP-optimal", "importance lost", "gained", "lost per ms"),)
    assert len(table.rows) == 12
    # 4.2% of the importance for 0.825 ms.
    assert table.rows[0] == ("layer1", "64", "32", "48", "4.20%", "825 µs", "5.09%")
    assert [row[0] for row in table.rows[:4]] == ["layer1", "layer2", "layer3", "layer4"]
    assert "latency-every" not in by_key(latency_tables(content_of(make_latency())))


def test_the_longest_list_is_cut_at_the_largest_gains_and_whole_in_another(content_of, make_latency) -> None:
    document = make_latency(blocks=6)
    tables = by_key(latency_tables(content_of(document)))
    assert len(tables["latency-groups"].rows) == LISTED_GROUPS
    assert tables["latency-groups"].note.startswith(f"The {LISTED_GROUPS} of 28 groups that gain most.")
    assert [row[0] for row in tables["latency-every"].rows] == [group["name"] for group in document["groups"]]
    largest = sorted(document["groups"], key=lambda group: -group["saved_ns"])[:LISTED_GROUPS]
    assert {row[0] for row in tables["latency-groups"].rows} == {group["name"] for group in largest}


def test_a_cut_that_costs_time_has_a_minus_and_no_price(make_latency) -> None:
    (group, *_) = make_latency()["groups"]
    (row,) = groups_table([group | {"saved_ns": -12_000.0}]).rows
    assert row[-2:] == ("−12.0 µs", "–")


def test_a_small_network_has_prices_of_a_microsecond(make_latency) -> None:
    groups = [group | {"saved_ns": group["saved_ns"] / 300} for group in make_latency()["groups"]]
    table = groups_table(groups)
    assert table.columns[-1] == "lost per µs"
    # 4.2% for 2.75 µs.
    assert table.rows[0][-2:] == ("2.75 µs", "1.53%")


def test_a_group_that_left_with_its_branch_says_so(make_latency) -> None:
    (gone,) = [group for group in make_latency()["groups"] if group["kept"] == 0]
    ((*_, gained, price),) = groups_table([gone | {"saved_ns": 0.0}]).rows
    assert (gained, price) == ("with its branch", "–")


def test_groups_without_a_flop_optimal_width_have_no_column_of_it(make_latency) -> None:
    groups = [group | {"flop_optimal": None} for group in make_latency()["groups"]]
    assert "FLOP-optimal" not in groups_table(groups).columns


def test_branches_that_left_whole_are_listed_and_those_that_stayed_counted(content_of, make_latency) -> None:
    table = by_key(latency_tables(content_of(make_latency())))["latency-branches"]
    assert table.rows == (("layer3.1", "1.20%", "940 µs", "1.28%"),)
    assert table.note == "1 of 4 that could."


def test_rounds_show_the_sum_of_the_table_beside_what_was_measured(content_of, make_latency) -> None:
    table = by_key(latency_tables(content_of(make_latency())))["latency-rounds"]
    assert table.rows[0][1:4] == ("10.5 ms", "11.5 ms", "1.10×")
    assert table.rows[1][1:4] == ("9.66 ms", "10.6 ms", "1.10×")
    assert table.rows[1][4:6] == ("0.497", "0.493 to 0.501")
    assert table.rows[1][-2:] == ("at most 0.8% more could be kept (time limit)", "59.9 s")


def test_operators_without_a_price_are_named_with_their_number(make_latency) -> None:
    table = target_table(make_latency())
    assert ("operators without a price", "sort ×2, <cumsum> ×1") in table.rows
    assert "correction" in table.note
    every = target_table(make_latency() | {"unpriced": {}})
    assert all(row[0] != "operators without a price" for row in every.rows)


def test_what_a_document_lacks_is_left_out(content_of, make_latency) -> None:
    document = make_latency()
    for name in ("groups", "branches", "flop_optimal", "correction", "table", "unpriced"):
        del document[name]
    tables = by_key(latency_tables(content_of(document)))
    assert set(tables) == {"latency-target", "latency-rounds"}
    assert len(list(latency_sentences(content_of(document)))) == 2


@pytest.mark.parametrize(
    ("measured", "shown"), [(412, "412 points timed in 123.4 s, 88 reused; "), (0, "88 points reused; ")]
)
def test_it_is_said_how_many_points_were_timed_for_it(make_latency, measured: int, shown: str) -> None:
    document = make_latency()
    document["table"]["measured"] = measured
    assert ("latency table", f"{shown}typical spread 0.8%") in target_table(document).rows


def test_a_family_has_an_overview_and_a_table_of_each(family: ReportContent) -> None:
    tables = by_key(latency_tables(family))
    overview = tables["latency-family"]
    assert [row[0] for row in overview.rows] == list(FAMILY)
    columns = overview.columns
    missed = dict(zip(columns, overview.rows[2], strict=True))
    assert (missed["target"], missed["of dense"], missed["met"]) == ("0.350", "0.380", "no, by the estimate")
    assert (missed["FLOP-optimal"], missed["gap"]) == ("1.12×", "0.8%")
    assert missed["FLOPs kept"] == "50.0%"
    assert missed["accuracy"] == "97.0%"
    assert tables["latency-member1-groups"].title == "Importance against time, by group, pruned-0.5"
    assert summary_of(family).headline == "3 networks were cut to latencies on ort-cpu, as timed while planning"
    assert list(latency_sentences(family)) == [
        "Of 3 latency targets, timed while they were planned on ort-cpu, fp32, batch 1, 1 thread, 2 are met; "
        "missed: pruned-0.35 (0.380)."
    ]


def test_markdown_folds_what_is_long_and_shows_the_rest(content_of, make_latency, family: ReportContent) -> None:
    text = markdown_report(content_of(make_latency(blocks=6)))
    assert "## Importance against time, by group" in text
    assert "<details><summary>All groups of the latency target</summary>" in text
    told = markdown_report(family)
    assert "## Latency targets" in told
    assert "<details><summary>Rounds of correction, pruned-0.8</summary>" in told


def test_the_page_and_the_json_hold_it_once(content_of, make_latency) -> None:
    content = content_of(make_latency())
    page = html_report(content)
    assert page.index('id="table-latency-groups"') < page.index("<details")
    assert "&lt;cumsum&gt;" in page
    assert "<cumsum>" not in page
    document = report_document(content)
    assert document["run"]["pruning"]["latency"]["groups"][0]["name"] == "layer1"
    assert "0.497 (0.495 to 0.499)" in json.dumps(document["summary"])
    provenance = by_key(report_tables(content))["provenance"]
    assert all("latency" not in row[0] for row in provenance.rows)


def test_a_page_before_the_benchmark_says_where_its_latencies_come_from(content_of, make_latency) -> None:
    summary = summary_of(content_of(make_latency()))
    assert summary.headline == "The pruned model takes 49.7% of dense's latency on ort-cpu, as timed while planning"
    (waiting, *_) = summary.sentences
    assert waiting == ("The variants wait for “p2d bench”; the figures below come from pruning and training alone.")


def test_a_run_without_a_latency_target_says_nothing_of_it(make_manifest) -> None:
    content = ReportContent(manifest=make_manifest(), result=None)
    assert latency_tables(content) == ()
    assert list(latency_sentences(content)) == []
    assert "latency table" not in markdown_report(content)
