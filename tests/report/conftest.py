"""A run and a measurement to report on: figures made up, passed through the real statistics."""

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prune2deploy.bench.across.changes import Change, Outcome
from prune2deploy.bench.aside.attribution import with_attributions
from prune2deploy.bench.aside.profile import Kind, Product, Profile, ProfiledLayer
from prune2deploy.bench.result import SCHEMA_VERSION, BenchResult
from prune2deploy.bench.samples import Block, BuildSamples, Cell
from prune2deploy.bench.subjects import BenchOptions, BenchRequest, Subject
from prune2deploy.bench.summary import summarise
from prune2deploy.report.content import ReportContent
from prune2deploy.run import OnnxRecord, RunFolder, RunManifest, VariantRecord

LATENCIES_NS = {"dense": 1_500_000, "pruned": 520_000, "reduced": 490_000}
FRACTIONS = {"dense": 1.0, "pruned": 0.327, "reduced": 0.331}
ACCURACIES = {"dense": 0.991, "pruned": 0.986, "reduced": 0.981}

MakeResult = Callable[..., BenchResult]
MakeManifest = Callable[..., RunManifest]


def builds_of(
    latencies_ns: dict[str, int],
    *,
    batches: tuple[int, ...],
    builds: int,
    control_ratio: float,
    accurate: bool,
    rounds: int = 1,
) -> list[BuildSamples]:
    """Simulated builds: log-normal runs around a latency that varies from build to build.

    With several rounds there are signals between them, and the first of the second build was disturbed.
    """
    generator = np.random.default_rng(11)
    baseline = next(iter(latencies_ns))
    slots = [*((variant, 0) for variant in latencies_ns), (baseline, 1)]
    made = []
    for build in range(builds):
        cells = []
        for batch in batches:
            blocks = []
            for position, (variant, copy) in enumerate(slots):
                centre = latencies_ns[variant] * batch**0.8 * np.exp(generator.normal(0, 0.008))
                centre *= control_ratio if copy else 1
                runs = centre * np.exp(np.abs(generator.normal(0, 0.05, 200)))
                for number, part in enumerate(np.array_split(runs, rounds)):
                    samples = tuple(int(value) for value in part)
                    blocks.append(
                        Block(variant=variant, copy=copy, round=number, position=position, samples_ns=samples)
                    )
            signals = [
                {"run_delay_longest_seconds": moment * 1e-3, "frequency_mhz": 2900 + moment, "steal_longest_seconds": 0}
                for moment in range(rounds + 1)
            ]
            cells.append(
                Cell(
                    precision="fp32",
                    batch=batch,
                    blocks=tuple(blocks),
                    warmup=(),
                    signals=tuple(signals) if rounds > 1 else ({}, {}),
                    dropped={"0": "waited 31.0% of the round for a CPU"} if rounds > 1 and build == 1 else {},
                )
            )
        made.append(
            BuildSamples(
                build=build,
                cpus=(1,),
                cells=tuple(cells),
                engines=tuple(
                    {"variant": variant, "precision": "fp32", "copy": copy, "parity_max_error": 1.3e-6}
                    for variant, copy in slots
                ),
                accuracies={f"{name}/fp32": ACCURACIES.get(name, 0.97) for name in latencies_ns} if accurate else {},
                seconds=7.5,
                minimum_seconds=2.5,
            )
        )
    return made


@pytest.fixture(scope="session")
def make_result() -> MakeResult:
    def make(
        *,
        latencies_ns: dict[str, int] | None = None,
        batches: tuple[int, ...] = (1, 32),
        builds: int = 5,
        claim: float | None = None,
        control_ratio: float = 1.0,
        accurate: bool = True,
        rounds: int = 1,
    ) -> BenchResult:
        latencies_ns = latencies_ns or LATENCIES_NS
        request = BenchRequest(
            subjects=tuple(
                Subject(
                    variant=variant,
                    precision="fp32",
                    onnx_path=Path(f"onnx/{variant}-fp32.onnx"),
                    sha256="ab" * 32,
                    flops_fraction=FRACTIONS.get(variant),
                    parameters_fraction=FRACTIONS.get(variant),
                )
                for variant in latencies_ns
            ),
            engine="ort-cpu",
            batches=batches,
            claim=claim,
            options=BenchOptions(builds=builds),
        )
        environment = {
            "machine_class": "Test CPU, 2 CPUs",
            "cpu": "Test CPU",
            "gpu": None,
            "threads": 1,
            "versions": {"numpy": "2.4"},
        }
        samples = builds_of(
            latencies_ns,
            batches=batches,
            builds=builds,
            control_ratio=control_ratio,
            accurate=accurate,
            rounds=rounds,
        )
        return summarise(request, samples, environment=environment)

    return make


@pytest.fixture(scope="session")
def make_scenario() -> MakeResult:
    """Three builds in which pruned takes half of dense, with blocks of these kinds (and what they sum up)."""

    def make(scenario: str, kinds: dict[str, tuple[int, int]]) -> BenchResult:
        def blocks(build: int) -> tuple[Block, ...]:
            return tuple(
                Block(
                    variant=variant,
                    copy=copy,
                    round=0,
                    position=0,
                    kind=kind,
                    runs=runs,
                    samples_ns=(nanoseconds // (2 if variant == "pruned" else 1) + build,) * (1 if runs > 1 else 64),
                )
                for variant, copy in (("dense", 0), ("pruned", 0), ("dense", 1))
                for kind, (nanoseconds, runs) in kinds.items()
            )

        builds = [
            BuildSamples(
                build=build,
                cpus=None,
                engines=(),
                accuracies={"dense/fp16": 0.99, "pruned/fp16": 0.98},
                cells=(Cell(precision="fp16", batch=1, blocks=blocks(build), warmup=(), signals=({}, {})),),
            )
            for build in range(3)
        ]
        subjects = tuple(
            Subject(variant=variant, precision="fp16", onnx_path=Path(f"{variant}.onnx"), sha256="")
            for variant in ("dense", "pruned")
        )
        options = BenchOptions(builds=3, scenario=scenario)
        return summarise(BenchRequest(subjects=subjects, engine="trt", options=options), builds, environment={})

    return make


@pytest.fixture(scope="session")
def make_manifest() -> MakeManifest:
    def make(*, layers: int = 7, data: str | None = "digits", names: tuple[str, ...] = tuple(FRACTIONS)) -> RunManifest:
        widths = [64, 64, 128, 128, 256, 256, 256]
        variants = {}
        for name in names:
            last = ACCURACIES.get(name, 0.97)
            history = [
                {
                    "epoch": epoch,
                    "loss": 2.0 / (epoch + 1),
                    "accuracy": last - 0.4 / (epoch + 1) ** 2 if data else None,
                    "learning_rate": 0.1,
                    "seconds": 1.25,
                }
                for epoch in range(1, 13)
            ]
            accuracies = {"final": last} if data else {}
            if data and name == "pruned":
                accuracies = {
                    "before_pruning": 0.991,
                    "after_pruning": 0.42,
                    "after_recalibration": 0.91,
                    "final": last,
                }
            variants[name] = VariantRecord(
                name=name,
                bundle=name,
                flops=int(41_100_000 * FRACTIONS.get(name, 0.5)),
                parameters=int(2_780_000 * FRACTIONS.get(name, 0.5)),
                accuracies=accuracies,
                onnx={
                    "fp32": OnnxRecord(
                        file=f"onnx/{name}-fp32.onnx", sha256="ab" * 32, bytes_total=3_600_000, parity_max_error=1.2e-6
                    )
                },
                training={"recipe": {"optimizer": "sgd"}, "history": history} if data else {},
            )
        return RunManifest(
            command=("p2d", "demo"),
            created="2026-01-31T14:25:30+00:00",
            versions={"prune2deploy": "0.1.0", "torch": "2.15.0"},
            model="small-wide",
            input_shape=(1, 8, 8),
            data=data,
            seed=0,
            options={"flops": 0.33, "align": "auto"},
            pruning={
                "method": "taylor",
                "criterion": "taylor",
                "targets": {"flops": 0.33},
                "achieved": {"flops": 0.327, "parameters": 0.31},
                "alignment": 16,
                "layers": [
                    {
                        "name": f"layer{index + 1}.0.conv1",
                        "dense": widths[index % 7],
                        "pruned": max(16, widths[index % 7] * (3 + index % 3) // 8 // 16 * 16),
                        "reduced": widths[index % 7] * 9 // 16,
                        "flops_dense": 9_000_000 // (index + 1),
                        "flops_pruned": 3_000_000 // (index + 1),
                    }
                    for index in range(layers)
                ],
                "frozen": [
                    {
                        "reason": "an output",
                        "operator": "aten.linear",
                        "place": "fc, model.py:88",
                        "flops_fraction": 0.01,
                    }
                ],
                "inexact": [],
            },
            variants=variants,
            notes=("the target was met at 0.327 of the FLOPs",),
            finished=True,
        )

    return make


@pytest.fixture(scope="session")
def make_change() -> Callable[[Outcome], Change]:
    def make(outcome: Outcome) -> Change:
        return Change(
            variant="pruned",
            engine="ort-cpu",
            precision="fp32",
            batch=1,
            before=3.0,
            after=2.7,
            estimate=0.9,
            low=0.88,
            high=0.92,
            confidence=0.95,
            p_value=0.001,
            builds_before=5,
            builds_after=5,
            same_file=True,
            outcome=outcome,
        )

    return make


def profile_of(latency_ns: float) -> Profile:
    """A run of two layers with a little time between them."""
    product = Product(node="conv", flops=1_000_000, input_width=64, output_width=64, groups=1)
    layers = (
        ProfiledLayer(
            name="conv", operator="Conv", kind=Kind.COMPUTE, latency_ns=0.7 * latency_ns, products=(product,)
        ),
        ProfiledLayer(name="pool", operator="MaxPool", kind=Kind.MEMORY, latency_ns=0.2 * latency_ns),
    )
    return Profile(
        layers=layers,
        whole_ns=latency_ns,
        profiled_ns=latency_ns,
        beside_ns=latency_ns,
        runs=20,
        granule=16,
        told_by="a profiler that was made up",
        left_out=(),
        seconds=0.1,
    )


def latency_document(*, fraction: float = 0.5, blocks: int = 2) -> dict[str, Any]:
    """A ResNet cut to a latency: four stages of so many blocks, the last block of the third left whole."""
    groups, branches = [], []
    for stage in range(4):
        names = [f"layer{stage + 1}", *(f"layer{stage + 1}.{block}.conv1" for block in range(blocks))]
        dense = 64 << stage
        for place, name in enumerate(names):
            kept = int(dense * fraction * (1.3 if place == 0 else 0.9)) // 16 * 16
            groups.append(
                {
                    "name": name,
                    "dense": dense,
                    "kept": 0 if name == f"layer3.{blocks - 1}.conv1" else kept,
                    "importance_lost": (0.021 if place == 0 else 0.006) * (4 - stage) * (1 - fraction),
                    "saved_ns": (1_650_000 if place == 0 else 610_000) * (1 - 0.15 * stage) * (1 - fraction),
                    "flop_optimal": max(16, kept + (16 if stage < 2 else -16)),
                }
            )
        branches += [
            {
                "name": f"layer{stage + 1}.{block}",
                "removed": (stage, block) == (2, blocks - 1),
                "importance_lost": 0.012 if (stage, block) == (2, blocks - 1) else 0.0,
                "saved_ns": 940_000 if (stage, block) == (2, blocks - 1) else 0,
            }
            for block in range(1, blocks)
        ]
    dense_ns = 21_300_000
    measured = [dense_ns * fraction * 1.083, dense_ns * fraction * 0.994]
    offset_ns, scale = 412_000.0, 1.043
    predicted = [dense_ns * fraction * 0.985, (dense_ns * fraction * 0.985 - offset_ns) / scale]
    return {
        "engine": "ort-cpu",
        "precision": "fp32",
        "batch": 1,
        "threads": 1,
        "device": "Test CPU",
        "target": {"fraction": fraction, "ns": dense_ns * fraction},
        "dense_ns": dense_ns,
        "pruned_ns": measured[-1],
        "ratio": measured[-1] / dense_ns,
        "low": measured[-1] / dense_ns - 0.002,
        "high": measured[-1] / dense_ns + 0.002,
        "met": True,
        "rounds": [
            {
                "predicted_ns": expected,
                "measured_ns": found,
                "ratio": found / dense_ns,
                "low": found / dense_ns - 0.004,
                "high": found / dense_ns + 0.004,
                "solver": {"status": "time limit", "gap": 0.008, "seconds": 59.9, "ranking": "optimal"},
            }
            for expected, found in zip(predicted, measured, strict=True)
        ],
        "correction": {"offset_ns": offset_ns, "scale": scale},
        "groups": groups,
        "branches": branches,
        "flop_optimal": {
            "predicted_ns": dense_ns * fraction * 0.985 * 1.121,
            "importance_kept": 0.999 - 0.318 * (1 - fraction),
            "flops_fraction": 0.412,
        },
        "importance_kept": 1 - 0.318 * (1 - fraction),
        "unpriced": {"sort": 2, "<cumsum>": 1},
        "table": {"measured": 412, "reused": 88, "seconds": 123.4, "spread": 0.008},
    }


MakeLatency = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def make_latency() -> MakeLatency:
    return latency_document


@pytest.fixture(scope="session")
def full_content(make_manifest: MakeManifest, make_result: MakeResult) -> ReportContent:
    """All that a page can hold: long names, samples, signals, a disturbed round, profiles, sizes, a latency target."""
    latencies_ns = LATENCIES_NS | {
        "family-0.25": 300_000,
        "family-0.75": 900_000,
        "pruned-by-a-method-with-a-very-long-name": 555_555,
        "bottleneck": 700_000,
    }
    result = make_result(latencies_ns=latencies_ns, claim=2.5, rounds=5)
    rows = [
        replace(
            row,
            file_bytes=3_600_000,
            memory_bytes=41_000_000,
            energy_joules=0.012,
            profile=profile_of(row.latency_ns.p50).to_document(),
        )
        for row in result.rows
    ]
    result = replace(result, rows=tuple(with_attributions(rows, result.baseline)))
    listing = {"schema_version": SCHEMA_VERSION, "builds": [build.to_document() for build in result.samples]}
    manifest = make_manifest(names=tuple(latencies_ns))
    return ReportContent(
        manifest=replace(manifest, pruning={**manifest.pruning, "latency": latency_document()}),
        result=result,
        archive=gzip.compress(json.dumps(listing).encode(), mtime=0),
    )


@pytest.fixture
def run_folder(tmp_path: Path, make_manifest: MakeManifest) -> RunFolder:
    return RunFolder.create(make_manifest(), name="test", out=tmp_path / "run")
