"""From raw samples to the result document, checked against the published schema, and back."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prune2deploy.bench.claims.verdicts import Verdict, exit_code
from prune2deploy.bench.result import BenchResult, read_result, read_samples, write_result
from prune2deploy.bench.samples import Block, BuildSamples, Cell
from prune2deploy.bench.subjects import BenchOptions, BenchRequest, Subject
from prune2deploy.bench.summary import summarise
from prune2deploy.errors import InputError

NUMBER = (int, float)
# The fields of docs/cli.md with their types; None beside a type means that null is allowed.
ROW_SCHEMA: Mapping[str, tuple[type | None, ...]] = {
    "variant": (str,),
    "engine": (str,),
    "precision": (str,),
    "batch": (int,),
    "latency_ns": (dict,),
    "throughput_per_s": NUMBER,
    "speedups": (list,),
    "flops_fraction": (*NUMBER, None),
    "parameters_fraction": (*NUMBER, None),
    "yield": (*NUMBER, None),
    "accuracy": (*NUMBER, None),
    "parity_max_error": (*NUMBER, None),
    "agreement": (*NUMBER, None),
    "file": (str,),
    "sha256": (str,),
}
SPEEDUP_SCHEMA = {
    "against": (str,),
    "estimate": NUMBER,
    "low": (*NUMBER, None),
    "high": (*NUMBER, None),
    "confidence": NUMBER,
}
LATENCY_SCHEMA = {"p50": NUMBER, "p90": (*NUMBER, None), "p99": (*NUMBER, None), "samples": (int,)}
CLAIM_SCHEMA = {
    "claim": NUMBER,
    "variant": (str,),
    "engine": (str,),
    "precision": (str,),
    "batch": (int,),
    "verdict": (str,),
}
CONTROL_SCHEMA = {
    "engine": (str,),
    "precision": (str,),
    "batch": (int,),
    "low": (*NUMBER, None),
    "high": (*NUMBER, None),
    "confidence": NUMBER,
}

MEDIANS_NS = {("dense", 0): 1000, ("pruned", 0): 400, ("reduced", 0): 350, ("dense", 1): 1001}


def check(document: Mapping[str, Any], schema: Mapping[str, tuple[type | None, ...]]) -> None:
    for name, kinds in schema.items():
        assert name in document, name
        value = document[name]
        assert (value is None and None in kinds) or isinstance(value, tuple(kind for kind in kinds if kind)), name


def subject_of(variant: str, flops_fraction: float | None) -> Subject:
    return Subject(
        variant=variant,
        precision="fp32",
        onnx_path=Path(f"onnx/{variant}-fp32.onnx"),
        sha256="00" * 32,
        flops_fraction=flops_fraction,
        parameters_fraction=flops_fraction,
        accuracy=0.9,
    )


def request_of(*, claim: Any = None, builds: int = 5, max_seconds: float | None = None) -> BenchRequest:
    subjects = (subject_of("dense", 1.0), subject_of("pruned", 0.33), subject_of("reduced", 0.32))
    options = BenchOptions(builds=builds, max_seconds=max_seconds)
    return BenchRequest(subjects=subjects, engine="ort-cpu", batches=(1,), claim=claim, options=options)


def build_of(number: int, *, control: float = 1.0, steady: bool = True) -> BuildSamples:
    blocks = []
    for position, ((variant, copy), median_ns) in enumerate(MEDIANS_NS.items()):
        centre = median_ns * (1000 + number) * (control if copy else 1)
        samples = tuple(round(centre + offset) for offset in (-10, 0, 10))
        blocks.append(Block(variant=variant, copy=copy, round=0, position=position, samples_ns=samples))
    warmup = ({"variant": "dense", "copy": 0, "medians_ns": [1.0], "steady": steady},)
    cell = Cell(precision="fp32", batch=1, blocks=tuple(blocks), warmup=warmup, signals=({"load_1min": 0.1}, {}))
    engines = tuple(
        {"variant": variant, "copy": 0, "precision": "fp32", "parity_max_error": number * 1e-7}
        for variant in ("dense", "pruned", "reduced")
    )
    return BuildSamples(
        build=number,
        cpus=(0,),
        cells=(cell,),
        engines=engines,
        accuracies={"pruned/fp32": 0.97} if number == 0 else {},
        seconds=4.0,
        minimum_seconds=2.0,
    )


def result_of(builds: int = 5, *, control: float = 1.0, **choices: Any) -> BenchResult:
    made = [build_of(number, control=control) for number in range(builds)]
    environment = {"cpu": "x", "gpu": None, "threads": 1, "versions": {}}
    return summarise(request_of(builds=choices.pop("asked", builds), **choices), made, environment=environment)


def test_document_has_every_published_field() -> None:
    document = json.loads(json.dumps(result_of(claim=2.0).to_document(), allow_nan=False))
    assert document["schema_version"] == 1
    assert {"cpu", "gpu", "threads", "versions"} <= document["environment"].keys()
    assert [row["variant"] for row in document["rows"]] == ["dense", "pruned", "reduced"]
    for row in document["rows"]:
        check(row, ROW_SCHEMA)
        check(row["latency_ns"], LATENCY_SCHEMA)
        for speedup in row["speedups"]:
            check(speedup, SPEEDUP_SCHEMA)
    for claim in document["claims"]:
        check(claim, CLAIM_SCHEMA)
    for control in document["controls"]:
        check(control, CONTROL_SCHEMA)
        assert control["confidence"] == 0.999


def test_document_reads_back_as_it_was() -> None:
    result = result_of(claim=2.0)
    document = json.loads(json.dumps(result.to_document()))
    again = BenchResult.from_document(document)
    assert again == replace(result, samples=(), protocol=document["protocol"], environment=document["environment"])


def test_rows_say_what_the_samples_say() -> None:
    rows = {row.variant: row for row in result_of().rows}
    pruned = rows["pruned"]
    against_dense, against_reduced = pruned.speedup_against("dense"), pruned.speedup_against("reduced")
    assert against_dense is not None
    assert against_reduced is not None
    assert against_dense.estimate == pytest.approx(2.5)
    assert against_reduced.estimate == pytest.approx(0.875)
    assert pruned.latency_ns.p50 == pytest.approx(400 * 1002)
    assert pruned.throughput_per_s == pytest.approx(1e9 / (400 * 1002))
    assert pruned.flop_yield == pytest.approx(2.5 * 0.33)
    assert pruned.build_medians_ns == tuple(400 * (1000 + number) for number in range(5))
    assert rows["dense"].speedups == ()
    assert [speedup.against for speedup in rows["reduced"].speedups] == ["dense"]


def test_accuracy_through_the_engine_takes_the_place_of_the_trained_one() -> None:
    rows = {row.variant: row for row in result_of().rows}
    assert (rows["pruned"].accuracy, rows["reduced"].accuracy) == (0.97, 0.9)


def test_what_was_never_trained_has_no_accuracy_though_the_engine_found_one() -> None:
    request = request_of()
    untrained = replace(request, subjects=tuple(replace(one, trained=False) for one in request.subjects))
    made = [build_of(number) for number in range(5)]
    assert {row.accuracy for row in summarise(untrained, made, environment={}).rows} == {None}
    assert Subject.from_document(untrained.subjects[0].to_document()) == untrained.subjects[0]


def test_parity_error_is_the_largest_over_the_builds() -> None:
    assert all(row.parity_max_error == pytest.approx(4e-7) for row in result_of().rows)


def test_engines_that_compute_in_several_precisions_are_told_with_their_shares() -> None:
    census = {"layers": {"fp32": 2, "int8": 19}, "flops": {"fp32": 0.2, "int8": 0.8}, "origin": "engine"}
    build = build_of(0)
    engines = [dict(fact) for fact in build.engines]
    engines[0]["details"] = {"census": {"layers": {"fp32": 21}, "flops": {"fp32": 1.0}, "origin": "engine"}}
    engines[1] |= {"details": {"census": census}, "agreement": 0.97}
    request, builds = request_of(builds=1), [replace(build, engines=tuple(engines))]
    result = summarise(request, builds, environment={})
    variant = engines[1]["variant"]
    told = [note for note in result.notes if "several precisions" in note]
    assert told == [f"{variant} at fp32 on ort-cpu computes in several precisions: int8 80.0%, fp32 20.0% of FLOPs"]
    agreements = {row.variant: row.agreement for row in result.rows}
    assert agreements[variant] == 0.97
    assert [agreement for agreement in agreements.values() if agreement is not None] == [0.97]


@pytest.mark.parametrize(
    ("claim", "verdict", "code"),
    [
        (2.0, Verdict.CONFIRMED, 0),
        (3.0, Verdict.REFUTED, 10),
        ("flops", Verdict.REFUTED, 10),
        (None, Verdict.REFUTED, 0),
    ],
)
def test_claims_are_about_the_pruned_rows(claim: Any, verdict: Verdict, code: int) -> None:
    claims = result_of(claim=claim).claims
    assert [(judged.variant, judged.verdict) for judged in claims] == [("pruned", verdict)]
    assert claims[0].claim == pytest.approx(1 / 0.33 if claim in ("flops", None) else claim)
    assert exit_code(claims) == code


def test_a_failed_control_makes_every_verdict_of_its_setting_invalid() -> None:
    result = result_of(claim=2.0, control=1.05)
    assert result.controls[0].passed is False
    assert {claim.verdict for claim in result.claims} == {Verdict.INVALID}
    assert exit_code(result.claims) == 12
    assert any("A/A control failed" in note for note in result.notes)


def test_two_builds_decide_nothing_and_say_why() -> None:
    result = result_of(builds=2, asked=5, claim=2.0, max_seconds=9.0)
    assert result.claims[0].verdict is Verdict.UNDECIDED
    assert (result.controls[0].passed, result.claims[0].low) == (None, None)
    assert any("only 2 of 5 builds fitted into 9 s" in note and "--max-seconds 12" in note for note in result.notes)


def test_unsteady_warm_up_is_told() -> None:
    made = [build_of(number, steady=False) for number in range(3)]
    result = summarise(request_of(builds=3), made, environment={})
    assert any("3 warm-ups" in note for note in result.notes)


def test_files_named_alone_compare_with_the_first_and_all_others_are_claimed() -> None:
    request = BenchRequest(subjects=(subject_of("a", None), subject_of("b", None)), engine="ort-cpu", claim=1.5)
    assert request.baseline == "a"
    assert [request.is_claimed(variant) for variant in ("a", "b")] == [False, True]


def test_result_and_samples_survive_the_disk(tmp_path: Path) -> None:
    result = result_of()
    result_path, samples_path = write_result(result, tmp_path / "bench")
    assert read_result(result_path).rows == result.rows
    assert read_samples(samples_path) == result.samples


def test_raw_samples_are_written_the_same_bytes_each_time(tmp_path: Path) -> None:
    first, second = write_result(result_of(), tmp_path / "a")[1], write_result(result_of(), tmp_path / "b")[1]
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    "damage", [{"schema_version": 9}, {"rows": [{}]}, {"rows": None}, {"claims": [{"verdict": "MAYBE"}]}]
)
def test_a_damaged_result_is_refused(damage: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="bench"):
        BenchResult.from_document({**result_of().to_document(), **damage})


@pytest.mark.parametrize("content", [b"", b"text", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03junk"])
def test_damaged_samples_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "samples.json.gz"
    path.write_bytes(content)
    with pytest.raises(InputError):
        read_samples(path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"subjects": ()},
        {"subjects": (subject_of("a", None), subject_of("a", None))},
        {"batches": ()},
        {"batches": (1, 1)},
        {"batches": (0,)},
        {"claim": 0.0},
        {"claim": -1.0},
        {"claim": float("nan")},
        {"subjects": (subject_of("a", None), subject_of("b", None)), "claim": "flops"},
    ],
)
def test_a_request_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"subjects": (subject_of("dense", 1.0),), "engine": "ort-cpu", **wrong}
    with pytest.raises(InputError):
        BenchRequest(**fields)


@pytest.mark.parametrize(
    "wrong", [{"threads": 0}, {"builds": 0}, {"rounds": 0}, {"max_seconds": 0.0}, {"confidence": 1.0}]
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        BenchOptions(**wrong)
