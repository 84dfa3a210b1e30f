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


def test_training_takes_digits_unless_told(asked):
    request = asked("train", "resnet20", "--epochs", "2")
    assert (request.model, request.data, request.method) == ("resnet20", "digits", "dense")
    assert request.training == requests.TrainingChoices(epochs=2)


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
        (("export", "run", "--normalize", "--softmax"), {"run": Path("run"), "normalize": True, "softmax": True}),
        (("build", "--engine", "trt-rtx"), {"run": None, "engine": "trt-rtx", "batches": (1, 32)}),
        (("report", "run", "--out", "pages"), {"run": Path("run"), "out": Path("pages")}),
        (("demo", "--threads", "1", "--resume"), {"threads": 1, "resume": True, "engine": "auto"}),
    ],
)
def test_the_other_commands_pass_on_what_they_are_given(arguments, expected, asked):
    request = asked(*arguments)
    assert {name: getattr(request, name) for name in expected} == expected
