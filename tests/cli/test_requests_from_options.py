"""What the user types is what the pipeline is asked for."""

from pathlib import Path

import pytest

from prune2deploy.errors import TargetError
from prune2deploy.pipeline import requests


@pytest.fixture
def asked(stage, run_p2d):
    """Run a command whose stage only records its request and stops."""

    def ask(command, *arguments):
        def stop(progress):
            raise TargetError("stop")

        recorded = stage(command, stop)
        assert run_p2d(command, *arguments).exit_code == 3
        return recorded[0]

    return ask


def test_a_plain_prune_leaves_every_choice_to_the_pipeline(asked):
    request = asked("prune", "resnet50.pth", "--flops", "0.33")
    assert request == requests.PruneRequest(
        checkpoint=Path("resnet50.pth"), targets=requests.Targets(flops=0.33), command=request.command
    )


def test_every_option_of_prune_arrives(asked):
    request = asked(
        *("prune", "net.pth", "--flops", "0.5", "--params", "0.6", "--model", "resnet20", "--data", "digits"),
        *("--input", "1x8x8", "--method", "l2", "--ranking", "per-layer", "--scope", "inside-blocks", "--align", "8"),
        *("--protect", "head, blocks.0.*", "--only", "blocks.*", "--exact-only", "--backend", "graph"),
        *("--attention", "head-dim"),
        *("--engine", "trt", "--precision", "fp32", "--variants", "pruned,dense", "--trust-pickle"),
        *("--epochs", "3", "--lr", "0.1", "--batch-size", "16", "--optimizer", "adamw", "--schedule", "step"),
        *("--warmup-epochs", "1", "--label-smoothing", "0.1", "--weight-decay", "5e-4", "--mixed-precision", "bf16"),
        *("--seed", "7", "--resume", "--out", "there"),
    )
    assert request == requests.PruneRequest(
        checkpoint=Path("net.pth"),
        targets=requests.Targets(flops=0.5, parameters=0.6),
        model="resnet20",
        data="digits",
        input_shape=(1, 8, 8),
        method="l2",
        ranking="per-layer",
        scope="inside-blocks",
        protect=("head", "blocks.0.*"),
        only=("blocks.*",),
        exact_only=True,
        backend="graph",
        attention="head-dim",
        alignment=8,
        engine="trt",
        precision="fp32",
        variants=("dense", "pruned"),
        training=requests.TrainingChoices(
            epochs=3,
            learning_rate=0.1,
            batch_size=16,
            optimizer="adamw",
            schedule="step",
            warmup_epochs=1,
            label_smoothing=0.1,
            weight_decay=5e-4,
            mixed_precision="bf16",
        ),
        seed=7,
        resume=True,
        out=Path("there"),
        trust_pickle=True,
        command=request.command,
    )


@pytest.mark.parametrize(
    ("typed", "target"),
    [
        ("0.5", {"fraction": 0.5}),
        ("2.0ms", {"nanoseconds": 2e6}),
        ("800us", {"nanoseconds": 8e5}),
        ("800µs", {"nanoseconds": 8e5}),
        ("1.5s", {"nanoseconds": 1.5e9}),
        ("90000 ns", {"nanoseconds": 9e4}),
    ],
)
@pytest.mark.parametrize("command", [("prune", "net.pth"), ("train", "resnet20", "--method", "3sp")])
def test_a_latency_is_a_share_or_a_time_with_its_unit(asked, command, typed, target):
    request = asked(*command, "--latency", typed)
    targets = request.targets if command[0] == "prune" else request.pruning.targets
    assert targets == requests.Targets(latency=requests.LatencyTarget(**target))


def test_what_a_latency_is_measured_with_arrives(asked):
    measured = ("--engine", "ort-cpu", "--precision", "fp16", "--batch", "8", "--threads", "2", "--solver-seconds", "9")
    targets = requests.Targets(flops=0.7, parameters=0.6, memory=0.5, latency=requests.LatencyTarget(nanoseconds=2e6))
    all_targets = ("--flops", "0.7", "--params", "0.6", "--memory", "0.5", "--latency", "2ms")
    expected = {"targets": targets, "engine": "ort-cpu", "precision": "fp16", "batch": 8, "threads": 2}
    expected |= {"solver_seconds": 9.0, "chosen_ranking": "optimal"}
    request = asked("prune", "net.pth", *all_targets, *measured)
    assert {name: getattr(request, name) for name in expected} == expected
    request = asked("train", "resnet20", "--method", "epi", *all_targets, *measured, "--ranking", "optimal")
    assert {name: getattr(request.pruning, name) for name in expected} == expected


def test_rankings_follow_the_targets_unless_one_is_named(asked):
    def ranking(*typed):
        return asked("prune", "net.pth", *typed).chosen_ranking

    assert ranking("--flops", "0.5") == "global"
    assert ranking("--flops", "0.5", "--ranking", "optimal", "--solver-seconds", "5") == "optimal"
    assert ranking("--memory", "0.5") == "optimal"
    assert ranking("--pareto", "0.5") == "optimal"
    assert ranking("--latency", "0.5", "--ranking", "per-layer") == "per-layer"
    trained = asked("train", "resnet20", "--method", "3sp", "--latency", "0.5").pruning
    assert trained.chosen_ranking == "global"


def test_a_family_of_latencies_arrives_the_slowest_first(asked):
    request = asked("prune", "net.pth", "--pareto", "0.35, 0.8,0.65", "--params", "0.9", "--batch", "4")
    assert request == requests.PruneRequest(
        checkpoint=Path("net.pth"),
        targets=requests.Targets(parameters=0.9),
        pareto=(0.8, 0.65, 0.35),
        variants=("dense", "pruned"),
        batch=4,
        command=request.command,
    )
    assert asked("prune", "net.pth", "--pareto", "0.5").targets == requests.Targets()


def test_training_takes_digits_unless_told(asked):
    request = asked("train", "resnet20", "--epochs", "2")
    assert (request.model, request.data, request.method) == ("resnet20", "digits", "dense")
    assert request.training == requests.TrainingChoices(epochs=2)
    assert request.pruning == requests.MethodChoices()


def test_every_common_option_of_a_method_arrives(asked):
    request = asked(
        *("train", "resnet20", "--method", "3sp", "--flops", "0.5", "--params", "0.6", "--ranking", "per-layer"),
        *("--scope", "inside-blocks", "--protect", "head", "--only", "blocks.*", "--exact-only", "--align", "8"),
        *("--engine", "trt", "--precision", "fp32", "--variants", "scratch,pruned,dense", "--score-images", "64"),
        *("--per", "none", "--criterion", "taylor", "--ema", "0.9", "--compile", "eager", "--micro-batches", "2"),
    )
    assert request.method == "3sp"
    assert request.training == requests.TrainingChoices(ema_decay=0.9, compile="eager", micro_batches=2)
    assert request.pruning == requests.MethodChoices(
        options={"criterion": "taylor", "per": "none", "images": 64},
        targets=requests.Targets(flops=0.5, parameters=0.6),
        ranking="per-layer",
        scope="inside-blocks",
        protect=("head",),
        only=("blocks.*",),
        exact_only=True,
        alignment=8,
        engine="trt",
        precision="fp32",
        variants=("dense", "pruned", "scratch"),
    )


@pytest.mark.parametrize(
    ("typed", "fields"),
    [
        (("epi", "--flops", "0.5", "--window", "3", "--fallback-epoch", "9"), {"window": 3, "fallback_epoch": 9}),
        (("epi", "--flops", "0.5", "--threshold", "0.9", "--prune-epoch", "2"), {"threshold": 0.9, "prune_epoch": 2}),
        (("prunetrain", "--penalty-ratio", "0.3", "--interval", "4"), {"ratio": 0.3, "interval": 4}),
        (("prunetrain", "--no-dynamic-batch", "--dead-below", "1e-3"), {"dynamic_batch": False, "dead_below": 1e-3}),
        (("prunetrain", "--dynamic-batch", "--largest-batch", "512"), {"dynamic_batch": True, "largest_batch": 512}),
        (
            ("activation-density", "--keep", "reinitialise", "--threshold", "0.1"),
            {"keep": "reinitialise", "threshold": 0.1},
        ),
        (("activation-density", "--plateau-window", "2", "--plateau-epsilon", "0.1"), {"window": 2, "epsilon": 0.1}),
        (
            ("activation-density", "--minimum-epochs", "2", "--max-rounds", "3", "--every", "4"),
            {"minimum_epochs": 2, "max_rounds": 3, "every": 4},
        ),
    ],
)
def test_options_of_a_method_become_fields_of_its_record(asked, typed, fields):
    request = asked("train", "resnet20", "--method", *typed)
    assert dict(request.pruning.options) == fields
    assert (request.pruning.targets is None) == ("--flops" not in typed)


def test_bench_takes_precisions_or_leaves_them_to_the_files(asked):
    assert asked("bench", "--precision", "int8,fp32").precisions == ("fp32", "int8")
    assert asked("bench").precisions is None


def test_bench_takes_files_claims_and_limits(asked, tmp_path):
    files = [tmp_path / "dense.onnx", tmp_path / "other.onnx"]
    for file in files:
        file.touch()
    request = asked(
        *("bench", *map(str, files), "--engine", "ort-cpu", "--batch", "8", "--threads", "2"),
        *("--builds", "3", "--max-seconds", "30", "--claim", "1.5", "--seed", "4", "--out", "measured"),
    )
    assert request == requests.BenchRequest(
        onnx_files=tuple(files),
        engine="ort-cpu",
        batches=(8,),
        threads=2,
        builds=3,
        max_seconds=30.0,
        claim=1.5,
        seed=4,
        out=Path("measured"),
        command=request.command,
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("inspect", "resnet20", "--scope", "inside-blocks"), {"subject": "resnet20", "scope": "inside-blocks"}),
        (("inspect", "resnet20", "--backend", "module"), {"subject": "resnet20", "backend": "module"}),
        (("inspect", "resnet20"), {"engine": None, "precision": None}),
        (("inspect", "run", "--engine", "trt", "--precision", "fp16"), {"engine": "trt", "precision": "fp16"}),
        (("export", "run", "--normalize", "--softmax"), {"run": Path("run"), "normalize": True, "softmax": True}),
        (
            ("export", "--precision", "int8,fp16", "--input", "uint8-nhwc@480x640", "--top-k", "5", "--batch", "8"),
            {"precisions": ("fp16", "int8"), "input_format": "uint8-nhwc", "source_size": (480, 640), "top_k": 5}
            | {"batch": 8, "io_precision": "fp32", "external_data": False, "engine": None, "max_drop": None},
        ),
        (
            ("export", "--io-precision", "same", "--external-data", "--check-engine", "--engine", "ort-cpu"),
            {"io_precision": "same", "external_data": True, "check_engine": True, "engine": "ort-cpu", "batch": None},
        ),
        (
            (
                *("export", "--data", "digits", "--calibration", "entropy", "--calibration-images", "64"),
                *("--float-ends", "--max-drop", "0.5", "--min-agreement", "0.95"),
            ),
            {"data": "digits", "calibration": "entropy", "calibration_images": 64, "quantize_ends": False}
            | {"max_drop": 0.5, "min_agreement": 0.95},
        ),
        (("build", "--engine", "trt-rtx"), {"run": None, "engine": "trt-rtx", "batches": (1, 32), "ranges": ()}),
        (
            (
                *("build", "--batch", "4,1:8:32,1", "--workspace", "2GiB", "--optimization-level", "5"),
                *("--compute-capability", "12.0,8.6", "--hardware-compatible", "--version-compatible"),
                *("--strip-weights", "--no-timing-cache", "--precision", "int8,fp16"),
            ),
            {
                "batches": (1, 4),
                "ranges": ((1, 8, 32),),
                "workspace_bytes": 2 << 30,
                "optimization_level": 5,
                "compute_capabilities": ((8, 6), (12, 0)),
                "hardware_compatible": True,
                "version_compatible": True,
                "strip_weights": True,
                "timing_cache": False,
                "precisions": ("fp16", "int8"),
            },
        ),
        (("report", "run", "--out", "pages"), {"run": Path("run"), "out": Path("pages")}),
        (("demo", "--threads", "1", "--resume"), {"threads": 1, "resume": True, "engine": "auto"}),
    ],
)
def test_the_other_commands_pass_on_what_they_are_given(arguments, expected, asked):
    request = asked(*arguments)
    assert {name: getattr(request, name) for name in expected} == expected


def test_gradual_cuts_teachers_and_all_variants_arrive(asked):
    request = asked(
        *("prune", "net.pth", "--flops", "0.5", "--every-steps", "100", "--flop-penalty", "0.5", "--distill"),
        *("--ema", "0.99", "--compile", "eager", "--micro-batches", "4", "--variants", "scratch,bottleneck,pruned"),
    )
    assert request == requests.PruneRequest(
        checkpoint=Path("net.pth"),
        targets=requests.Targets(flops=0.5),
        variants=("pruned", "bottleneck", "scratch"),
        training=requests.TrainingChoices(ema_decay=0.99, compile="eager", micro_batches=4),
        every_steps=100,
        flop_penalty=0.5,
        distill=True,
        command=request.command,
    )
    assert asked("prune", "net.pth", "--flops", "0.5", "--cuts", "5").cuts == 5


def test_factors_of_a_family_arrive_once_each(asked):
    request = asked("family", "run", "--factors", "1.5, 0.5,0.50", "--resume")
    assert request == requests.FamilyRequest(run=Path("run"), factors=(1.5, 0.5), resume=True, command=request.command)
    assert asked("family").run is None
