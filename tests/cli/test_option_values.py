"""Bad values are refused before any stage runs, in one line that names the option and what is wrong with it."""

import pytest

from prune2deploy.cli import values
from prune2deploy.errors import InputError

TARGETS = {
    "0": "nothing would be left",
    "1": "nothing would be removed",
    "2": "is more than the whole model",
    "33": "did you mean --flops 0.33?",
    "-1": "is negative",
    "nan": "is not a finite number",
    "inf": "is not a finite number",
    "a third": "is not a number",
}

REFUSED = [
    (["prune", "m"], "no target is set; say what of the dense model stays: --latency 0.5, --flops 0.33"),
    (["train", "m", "--method", "3sp"], "no target is set; say what of the dense model stays: --latency 0.5"),
    (["prune", "m", "--latency", "2.0"], "--latency 2.0: has no unit, and is more than the whole latency"),
    (["prune", "m", "--latency", "2.0"], "pass a time such as --latency 2.0ms, or the share of the dense latency"),
    (["prune", "m", "--latency", "1"], "--latency 1: nothing would be removed"),
    (["prune", "m", "--latency", "0"], "--latency 0: nothing would be left"),
    (["prune", "m", "--latency", "-2ms"], "--latency -2ms: is no time; for instance --latency 2.0ms"),
    (["prune", "m", "--latency", "0s"], "--latency 0s: is no time"),
    (["prune", "m", "--latency", "fast"], "--latency fast: is not a number; for instance --latency 0.5, or a time"),
    (["prune", "m", "--latency", "2min"], "--latency 2min: is not a number"),
    (["prune", "m", "--memory", "2"], "--memory 2: is more than the whole model"),
    (["prune", "m", "--pareto", "0.5,0.5"], "--pareto 0.5,0.5: names a share twice"),
    (["prune", "m", "--pareto", "0.5,1.5"], "--pareto 1.5: is more than the whole model"),
    (["prune", "m", "--pareto", "0.5,"], "--pareto : is not a number"),
    (["prune", "m", "--pareto", "0.5", "--latency", "0.5"], "--latency and --pareto: both set what latency stays"),
    (
        ["prune", "m", "--pareto", "0.5", "--variants", "pruned,reduced"],
        "reduced would compare with one pruned network",
    ),
    (["prune", "m", "--pareto", "0.5", "--cuts", "3"], "--cuts: cuts one network while it trains"),
    (
        ["prune", "m", "--flops", "0.5", "--batch", "4"],
        "--batch 4: is used by nothing that was asked for; it is for --lat",
    ),
    (["prune", "m", "--flops", "0.5", "--threads", "1"], "--threads 1: is used by nothing that was asked for"),
    (["prune", "m", "--memory", "0.5", "--threads", "1"], "--threads 1: is used by nothing that was asked for"),
    (
        ["prune", "m", "--flops", "0.5", "--solver-seconds", "9"],
        "--solver-seconds 9: is used by nothing that was asked for",
    ),
    (
        ["prune", "m", "--latency", "0.5", "--ranking", "global", "--solver-seconds", "9"],
        "--solver-seconds 9: is used by nothing that was asked for; it is for --ranking optimal",
    ),
    (["prune", "m", "--latency", "0.5", "--solver-seconds", "0"], "--solver-seconds 0: is no time"),
    (
        ["prune", "m", "--latency", "0.5", "--precision", "int8"],
        "--precision int8: latencies are not measured in int8; prune at --precision fp32",
    ),
    (["prune", "m", "--pareto", "0.5", "--precision", "int8"], "--precision int8: latencies are not measured in int8"),
    (
        ["train", "m", "--method", "3sp", "--latency", "0.5", "--precision", "int8"],
        "--precision int8: latencies are not measured in int8",
    ),
    (["train", "m", "--method", "epi", "--memory", "0.5", "--solver-seconds", "9"], "it is for --ranking optimal"),
    (["train", "m", "--method", "epi", "--flops", "0.5", "--batch", "2"], "--batch 2: is used by nothing"),
    (["train", "m", "--latency", "0.5"], "--method dense removes nothing"),
    (["family", "run", "--factors", "0.5,half"], "--factors half: is not a number"),
    (["family", "run", "--factors", "0.5,,2"], "--factors : is not a number"),
    (["family", "run", "--factors", "-1"], "--factors -1: is no positive number"),
    (["family", "run", "--factors", "0"], "--factors 0: is no positive number"),
    (["family", "run", "--factors", "inf"], "--factors inf: is no positive number"),
    (["prune", "m", "--flops", "0.5", "--cuts", "2", "--every-steps", "9"], "each say when to cut"),
    (["prune", "m", "--flops", "0.5", "--flop-penalty", "-1"], "--flop-penalty -1: is out of range"),
    (
        ["prune", "m", "--flops", "0.5", "--method", "magic"],
        "choose l1, l2, bn-scale, lamp, fpgm, taylor, taylor-bn, fisher or random",
    ),
    (["prune", "m", "--flops", "0.5", "--criterion", "tailor"], "did you mean taylor?"),
    (["prune", "m", "--flops", "0.5", "--ranking", "local"], "choose global, per-layer or optimal"),
    (["prune", "m", "--flops", "0.5", "--scope", "blocks"], "choose all or inside-blocks"),
    (["prune", "m", "--flops", "0.5", "--align", "0"], "--align 0: is no granule"),
    (["build", "--batch", "1,,2"], "--batch 1,,2: is no list of batch sizes; for instance --batch 1,32 or 1:8:32"),
    (["build", "--batch", "1:8"], "--batch 1:8: is no list of batch sizes"),
    (["build", "--batch", "0:1:2"], "--batch 0:1:2: is no list of batch sizes"),
    (["build", "--batch", "1,32:8:64"], "--batch 1,32:8:64: 32:8:64 does not ascend; pass smallest, best and largest"),
    (["build", "--workspace", "2"], "--workspace 2: is no size; for instance --workspace 512MiB or --workspace 2GiB"),
    (["build", "--workspace", "0GiB"], "--workspace 0GiB: is no size"),
    (["build", "--compute-capability", "89"], "--compute-capability 89: is no list of compute capabilities"),
    (["build", "--compute-capability", "8.6,x.9"], "--compute-capability 8.6,x.9: is no list of compute capabilities"),
    (["build", "--optimization-level", "6"], "--optimization-level"),
    (["prune", "m", "--flops", "0.5", "--align", "some"], "--align some: is no granule"),
    (["prune", "m", "--flops", "0.5", "--variants", "dense"], "leaves out the variant that pruning makes"),
    (["prune", "m", "--flops", "0.5", "--variants", "pruned,tiny"], "--variants tiny: is not available"),
    (["prune", "m", "--flops", "0.5", "--precision", "fp8"], "--precision fp8: is not available in this version"),
    (["prune", "m", "--flops", "0.5", "--engine", "tvm"], "--engine tvm: is not available in this version"),
    (["prune", "m", "--flops", "0.5", "--input", "224"], "--input 224: is no input shape"),
    (["prune", "m", "--flops", "0.5", "--input", "3x0x9"], "--input 3x0x9: is no input shape"),
    (["prune", "m", "--flops", "0.5", "--lr", "0"], "--lr 0: is out of range; it must be more than 0"),
    (["prune", "m", "--flops", "0.5", "--lr", "nan"], "--lr nan: is out of range"),
    (["prune", "m", "--flops", "0.5", "--label-smoothing", "1"], "it must be 0 or more and less than 1"),
    (["prune", "m", "--flops", "0.5", "--weight-decay", "-1"], "--weight-decay -1: is out of range"),
    (["prune", "m", "--flops", "0.5", "--optimizer", "lion"], "choose sgd or adamw"),
    (["prune", "m", "--flops", "0.5", "--schedule", "sgdr"], "choose cosine, step or constant"),
    (["prune", "m", "--flops", "0.5", "--mixed-precision", "fp8"], "choose no, fp16 or bf16"),
    (["train", "resnet20", "--method", "3sp"], "no target is set"),
    (["export", "--precision", "int4"], "--precision int4: is not available in this version"),
    (["build", "--batch", "1,0"], "--batch 1,0: is no list of batch sizes"),
    (["bench", "--batch", "all"], "--batch all: is no list of positive whole numbers"),
    (["bench", "--engine", "gpu"], "--engine gpu: is not available in this version"),
    (["bench", "--claim", "fast"], "--claim fast: is not a number"),
    (["bench", "--claim", "-3"], "--claim -3: is no speed-up"),
    (["bench", "--claim", "nan"], "--claim nan: is no speed-up"),
    (["bench", "--max-seconds", "0"], "--max-seconds 0: is out of range"),
    (["bench", "--baseline", "old.json"], "--baseline old.json: does not exist; name a result of `p2d bench`"),
    (["bench", "--baseline-tolerance", "2"], "--baseline-tolerance 2: is no tolerance"),
    (["bench", "--shape", "input=1x3x8x8"], "--shape: is for ONNX files that are named"),
    (
        ["bench", "--shape", "1x3x8x8"],
        "--shape 1x3x8x8: is no shape of an input; for instance --shape input=1x3x224x224",
    ),
    (["bench", "--shape", "input=1x0"], "--shape input=1x0: is no shape of an input"),
    (["bench", "--shape", "a=1", "--shape", "a=2"], "--shape a=2: input a is named twice; give each shape once"),
    (["bench", "nowhere.onnx"], "nowhere.onnx: does not exist"),
]


@pytest.mark.parametrize(("text", "message"), TARGETS.items())
def test_a_target_that_means_nothing_is_explained(text, message, run_p2d):
    result = run_p2d("prune", "model.pth", "--flops", text)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"p2d: error: --flops {text}: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_a_bad_value_is_refused_in_one_line(arguments, message, run_p2d, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run_p2d(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_lists_are_ordered_and_each_entry_is_kept_once():
    assert values.counts("--batch", "32, 1,32") == (1, 32)
    assert values.names("--variants", "pruned,dense,pruned", {"dense": "", "pruned": "", "reduced": ""}) == (
        "dense",
        "pruned",
    )


def test_claims_are_factors_or_the_one_that_flops_imply():
    assert values.claim("--claim", "3") == 3.0
    assert values.claim("--claim", "flops") == "flops"
    assert values.claim("--claim", None) is None


def test_a_folder_is_a_run_and_files_are_onnx(tmp_path):
    run, first, second = tmp_path / "run", tmp_path / "a.onnx", tmp_path / "b.onnx"
    run.mkdir()
    first.touch()
    second.touch()
    assert values.run_or_files(None) == (None, ())
    assert values.run_or_files([run]) == (run, ())
    assert values.run_or_files([second, first]) == (None, (second, first))
    with pytest.raises(InputError, match="folder among several names"):
        values.run_or_files([first, run])
