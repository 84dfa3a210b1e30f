"""A comparison as tables and sentences."""

from dataclasses import replace

from prune2deploy.bench.across.changes import BaselineLatency, Change, Comparison, Outcome
from prune2deploy.report.across_tables import across_tables, baseline_tables, changes_in_words

CHANGE = Change(
    variant="pruned",
    engine="ort-cpu",
    precision="fp32",
    batch=1,
    before=2.0,
    after=1.9,
    estimate=0.95,
    low=0.94,
    high=0.96,
    confidence=0.95,
    p_value=0.001,
    builds_before=5,
    builds_after=7,
    same_file=True,
    outcome=Outcome.SLOWER,
)
DENSE = BaselineLatency(
    variant="dense", engine="ort-cpu", precision="fp32", batch=1, before_ns=1e6, after_ns=2e6, same_file=False
)
COMPARISON = Comparison(
    tolerance=0.01,
    changes=(CHANGE,),
    baselines=(DENSE,),
    only_before=(("old", "ort-cpu", "fp32", 1),),
    only_after=(),
    differences={"onnxruntime": ("1.30", "1.31")},
)


def test_the_tables_show_the_change_its_interval_and_what_else_differs():
    changes, latencies, differences = across_tables(COMPARISON)
    assert changes.rows == (
        ("pruned", "ort-cpu", "fp32", "1", "same", "2.00×", "1.90×", "0.950", "0.940 to 0.960", "slower"),
    )
    assert latencies.rows == (("dense", "ort-cpu", "fp32", "1", "other", "1.00 ms", "2.00 ms"),)
    assert differences.rows == (("onnxruntime", "1.30", "1.31"),)
    assert all(len(row) == len(table.columns) for table in (changes, latencies, differences) for row in table.rows)


def test_empty_tables_are_left_out():
    assert [table.key for table in across_tables(replace(COMPARISON, differences={}))] == ["across", "across-baselines"]


def test_each_change_is_one_sentence_and_rows_of_one_side_are_named():
    assert changes_in_words(COMPARISON) == (
        "slower: pruned on ort-cpu at fp32, batch 1: its speed-up shrank (2.00× before, 1.90× after, change 0.950 "
        "(0.940 to 0.960))",
        "measured only before: old on ort-cpu at fp32, batch 1",
    )


def test_what_cannot_be_decided_says_why():
    undecided = replace(CHANGE, outcome=Outcome.UNDECIDED)
    without = replace(undecided, low=None, high=None, p_value=None)
    texts = changes_in_words(replace(COMPARISON, changes=(undecided, without), only_before=()))
    assert "whether its speed-up changed cannot be told" in texts[0]
    assert "fewer than three builds decide nothing" in texts[1]
    assert "change" not in texts[1]


def test_a_result_without_a_baseline_has_no_such_tables(make_result):
    assert baseline_tables(make_result()) == ()
    compared = replace(make_result(), baseline_comparison={"file": "old.json", **COMPARISON.to_document()})
    assert [table.key for table in baseline_tables(compared)] == ["across", "across-baselines", "across-differences"]
