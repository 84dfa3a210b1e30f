"""Options of methods that do not go together are refused in one line, before anything is imported or written."""

import pytest

REFUSED = [
    (("--method", "3sp"), "no target is set"),
    (("--method", "epi"), "no target is set"),
    (
        ("--method", "3sp", "--flops", "0.5", "--window", "5"),
        "--window 5: is no option of --method 3sp; it belongs to epi",
    ),
    (
        ("--method", "epi", "--flops", "0.5", "--per", "none"),
        "--per none: is no option of --method epi; it belongs to 3sp",
    ),
    (
        ("--method", "prunetrain", "--threshold", "0.9"),
        "it belongs to epi and activation-density; prunetrain takes --penalty",
    ),
    (("--method", "activation-density", "--no-dynamic-batch"), "--no-dynamic-batch: is no option of"),
    (("--interval", "5"), "--interval 5: is no option of --method dense; it belongs to prunetrain"),
    (("--flops", "0.5"), "--method dense removes nothing; name a method"),
    (("--variants", "pruned"), "--method dense removes nothing; name a method"),
    (("--method", "3spp"), "did you mean 3sp?"),
    (("--method", "3sp", "--flops", "0.5", "--variants", "dense"), "leaves out the variant that pruning makes"),
    (("--method", "3sp", "--flops", "1.5"), "is more than the whole model"),
    (("--method", "3sp", "--flops", "0.5", "--ema", "1"), "--ema 1: is out of range"),
]


@pytest.mark.parametrize(("typed", "line"), REFUSED)
def test_what_a_method_does_not_take_is_refused(run_p2d, tmp_path, monkeypatch, typed, line):
    monkeypatch.chdir(tmp_path)
    result = run_p2d("train", "resnet20", *typed)
    assert result.exit_code == 2
    assert line in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
