"""Claims of every kind against made-up builds whose figures are known: what is confirmed, refuted, open and invalid."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prune2deploy.bench.claims.kinds import KINDS, Claim
from prune2deploy.bench.claims.targets import require_measured
from prune2deploy.bench.claims.verdicts import JudgedClaim, Verdict, exit_code, judge
from prune2deploy.bench.result import BenchResult
from prune2deploy.bench.samples import Block, BuildSamples, Cell
from prune2deploy.bench.statistics.intervals import Interval
from prune2deploy.bench.statistics.proportions import difference_interval, share_interval
from prune2deploy.bench.subjects import BenchOptions, BenchRequest, Subject
from prune2deploy.bench.summary import summarise
from prune2deploy.errors import InputError
from prune2deploy.evaluation import EvaluationSet

CENTRES_NS = {"dense": 8_000_000, "pruned": 4_000_000, "reduced": 5_000_000}
BYTES = {"dense": 10_000_000, "pruned": 4_000_000, "reduced": 5_000_000}
BATCHES = (1, 8)
IMAGES = 400
# Of 400 images dense names 396; pruned loses 4 of those and wins 2 back.
ANSWERS = {
    "dense": "1" * 396 + "0" * 4,
    "pruned": "0" * 4 + "1" * 392 + "11" + "00",
    "reduced": "1" * 380 + "0" * 20,
}


def builds_of(
    *,
    builds: int = 5,
    runs: int = 70,
    control_ratio: float = 1.0,
    dropped: int = 0,
    memory: tuple[int, ...] = (),
    answers: dict[str, str] | None = ANSWERS,
) -> list[BuildSamples]:
    """Builds whose figures differ by up to 1% from a common centre, evenly to both sides.

    Batch 8 takes six times as long as batch 1. One run of twenty takes twice as long, and so the 99th percentile is
    twice the median.
    """
    made = []
    for number in range(builds):
        cells = []
        for batch in BATCHES:
            blocks = []
            for variant, copy in [*((name, 0) for name in CENTRES_NS), ("dense", 1)]:
                # Variants lean to different sides, or ratios would be without spread.
                lean = {"dense": 1, "pruned": -1, "reduced": 0}[variant] if copy == 0 else -1
                spread = math.exp(lean * 0.01 * (2 * number / max(builds - 1, 1) - 1))
                centre = CENTRES_NS[variant] * (6 if batch == 8 else 1) * spread * (control_ratio if copy else 1)
                times = [round(centre)] * (runs - runs // 20) + [round(2 * centre)] * (runs // 20)
                blocks += [
                    Block(variant=variant, copy=copy, round=turn, position=0, samples_ns=tuple(part.tolist()))
                    for turn, part in enumerate(np.array_split(np.array(times), 4))
                ]
            reasons = {str(turn): "was disturbed by a test" for turn in range(dropped)}
            cells.append(
                Cell(
                    precision="fp32",
                    batch=batch,
                    blocks=tuple(blocks),
                    warmup=(),
                    signals=({},) * 5,
                    dropped=reasons,
                )
            )
        made.append(
            BuildSamples(
                build=number,
                cpus=None,
                cells=tuple(cells),
                engines=(),
                answers={f"{name}/fp32": told for name, told in (answers or {}).items()} if number == 0 else {},
                memory_bytes={"pruned/fp32": memory} if number == 0 and memory else {},
                seconds=1.0,
                minimum_seconds=1.0,
            )
        )
    return made


def request_with(*claims: Claim, **choices: Any) -> BenchRequest:
    return BenchRequest(
        subjects=tuple(
            Subject(
                variant=name,
                precision="fp32",
                onnx_path=Path(f"{name}.onnx"),
                sha256="ab",
                flops_fraction=CENTRES_NS[name] / 2 / CENTRES_NS["dense"] if name != "dense" else 1.0,
                file_bytes=BYTES[name],
            )
            for name in CENTRES_NS
        ),
        engine="ort-cpu",
        batches=BATCHES,
        claims=claims,
        **choices,
    )


def result_of(*claims: Claim, options: BenchOptions | None = None, **choices: Any) -> BenchResult:
    request = request_with(*claims, options=options or BenchOptions(builds=choices.get("builds", 5)))
    return summarise(request, builds_of(**choices), environment={})


def judged(kind: str, bound: float, *, builds: dict[str, Any] | None = None, **filters: Any) -> JudgedClaim:
    """The only verdict on one claim, at batch 1 where it has a batch."""
    if KINDS[kind].of_batch:
        filters.setdefault("batch", 1)
    (claim,) = result_of(Claim(kind=kind, bound=bound, **filters), **(builds or {})).claims
    return claim


# Pruned is twice as fast as dense, 1.25 times as fast as reduced; its figures vary by 1% between builds.
@pytest.mark.parametrize(
    ("kind", "kept", "broken", "near", "estimate"),
    [
        ("speedup", 1.9, 2.1, 2.0, 2.0),
        ("latency_ms", 4.2, 3.8, 4.0, 4.0),
        ("throughput_per_s", 230.0, 250.0, 238.0, 70 / 73 * 250),
        ("yield", 0.48, 0.52, 0.5, 0.5),
        ("accuracy", 0.95, 0.999, 0.98, 394 / 400),
        ("accuracy_drop_points", 5.0, None, 1.0, 0.5),
        ("size_mb", 4.0, 3.99, None, 4.0),
        ("size_fraction", 0.4, 0.39, None, 0.4),
    ],
)
def test_a_claim_is_confirmed_or_refuted_by_the_whole_interval(
    kind: str, kept: float, broken: float | None, near: float | None, estimate: float
) -> None:
    confirmed = judged(kind, kept)
    assert (confirmed.kind, confirmed.verdict) == (kind, Verdict.CONFIRMED)
    assert confirmed.estimate == pytest.approx(estimate, rel=1e-3)
    if broken is not None:
        refuted = judged(kind, broken)
        assert refuted.verdict is Verdict.REFUTED
        assert ("lies below it" if refuted.at_least else "lies above it") in refuted.reason
    if near is not None:
        undecided = judged(kind, near)
        assert undecided.verdict is Verdict.UNDECIDED
        assert undecided.reason == "the interval is too wide to tell"


def test_an_accuracy_drop_is_refuted_where_even_the_interval_s_lower_end_is_more() -> None:
    worse = {"answers": {**ANSWERS, "pruned": "1" * 300 + "0" * 100}}
    claim = judged("accuracy_drop_points", 5.0, builds=worse)
    assert claim.verdict is Verdict.REFUTED
    assert claim.estimate == pytest.approx(24.0)
    assert claim.low is not None
    assert claim.low > 5.0


def test_a_bound_is_kept_by_a_figure_that_equals_it() -> None:
    assert judged("size_mb", 4.0).verdict is Verdict.CONFIRMED
    assert judged("size_fraction", 0.4).confidence is None
    exact = Interval(estimate=2.0, low=2.0, high=2.0, confidence=0.95, builds=5)
    assert judge(2.0, exact, control_passed=True) is Verdict.CONFIRMED
    assert judge(2.0, exact, control_passed=True, at_least=False) is Verdict.CONFIRMED


def test_the_interval_of_a_latency_is_the_t_interval_of_the_logarithms_of_its_builds() -> None:
    claim = judged("latency_ms", 4.2)
    logs = [math.log(4.0) + offset for offset in (0.01, 0.005, 0, -0.005, -0.01)]
    # t(0.975; 4) = 2.776445
    reach = 2.776445 * float(np.std(logs, ddof=1)) / math.sqrt(5)
    assert claim.low == pytest.approx(4 * math.exp(-reach), rel=1e-5)
    assert claim.high == pytest.approx(4 * math.exp(reach), rel=1e-5)
    assert claim.confidence == 0.95


def test_percentiles_are_taken_in_each_build_and_need_enough_runs_there() -> None:
    plenty = {"runs": 700}
    high = judged("latency_ms", 9.0, percentile=99, builds=plenty)
    assert (high.verdict, high.percentile) == (Verdict.CONFIRMED, 99)
    assert high.estimate == pytest.approx(8.0, rel=1e-3)
    assert judged("latency_ms", 7.0, percentile=99, builds=plenty).verdict is Verdict.REFUTED
    assert judged("latency_ms", 4.2, percentile=90, builds=plenty).verdict is Verdict.CONFIRMED
    few = judged("latency_ms", 9.0, percentile=99)
    assert few.verdict is Verdict.UNDECIDED
    assert few.reason == "percentile 99 needs 662 runs in every build, and one has only 70"
    assert few.estimate is None
    pooled = judged("latency_ms", 9.0, percentile=99, builds={"runs": 200})
    assert pooled.estimate == pytest.approx(8.0, rel=0.02)
    assert pooled.verdict is Verdict.UNDECIDED


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.timed])
@pytest.mark.parametrize(
    ("builds", "reason"),
    [
        ({"control_ratio": 1.2}, "two copies of one model differed, so this measurement proves nothing"),
        ({"dropped": 3}, "15 of 20 rounds were disturbed, so this measurement proves nothing"),
    ],
)
def test_noise_makes_claims_about_time_invalid(kind: str, builds: dict[str, Any], reason: str) -> None:
    claim = judged(kind, 1.0, builds=builds)
    assert (claim.verdict, claim.reason) == (Verdict.INVALID, reason)


@pytest.mark.parametrize(
    ("kind", "bound"),
    [("accuracy", 0.95), ("accuracy_drop_points", 5.0), ("size_mb", 4.5), ("size_fraction", 0.5), ("memory_mb", 60.0)],
)
def test_noise_says_nothing_against_accuracy_size_and_memory(kind: str, bound: float) -> None:
    noisy = {"control_ratio": 1.2, "dropped": 3, "memory": (50_000_000, 50_200_000, 49_900_000)}
    assert judged(kind, bound, builds=noisy).verdict is Verdict.CONFIRMED


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.timed])
def test_too_few_builds_decide_nothing_about_time(kind: str) -> None:
    claim = judged(kind, 1.0, builds={"builds": 2})
    assert (claim.verdict, claim.low, claim.confidence) == (Verdict.UNDECIDED, None, None)
    assert claim.reason == "too few builds were measured for an interval"
    assert claim.estimate is not None


@pytest.mark.parametrize(
    ("bound", "verdict"), [(60.0, Verdict.CONFIRMED), (45.0, Verdict.REFUTED), (50.1, Verdict.UNDECIDED)]
)
def test_memory_is_judged_by_its_processes(bound: float, verdict: Verdict) -> None:
    claim = judged("memory_mb", bound, builds={"memory": (50_000_000, 51_000_000, 49_000_000)})
    assert claim.verdict is verdict
    assert claim.estimate == pytest.approx(50.0, rel=1e-3)
    assert claim.batch is None


@pytest.mark.parametrize(
    ("joules", "bound", "verdict"),
    [
        ((0.010, 0.0101, 0.0099), 11.0, Verdict.CONFIRMED),
        ((0.010, 0.0101, 0.0099), 9.0, Verdict.REFUTED),
        ((0.010, 0.0101, 0.0099), 10.1, Verdict.UNDECIDED),
        ((0.010, 0.0101), 11.0, Verdict.UNDECIDED),
    ],
)
def test_energy_is_judged_by_the_builds_that_counted_it(
    joules: tuple[float, ...], bound: float, verdict: Verdict
) -> None:
    counted = {"variant": "pruned", "precision": "fp32", "batch": 1, "idle_watts": None}
    builds = builds_of()
    for number, figure in enumerate(joules):
        builds[number] = replace(builds[number], energies=({**counted, "joules": figure},))
    request = request_with(Claim(kind="energy_mj", bound=bound, batch=1))
    (claim,) = summarise(request, builds, environment={}).claims
    assert claim.verdict is verdict
    assert claim.estimate == pytest.approx(10.0, rel=0.01)


def test_energy_of_a_cpu_is_refused_beforehand() -> None:
    with pytest.raises(InputError, match="energy_mj: ort-cpu runs on the CPU, whose energy is not counted"):
        require_measured(request_with(Claim(kind="energy_mj", bound=15.0)), device="CPU (AVX2)")


def test_what_was_not_measured_is_undecided_and_says_so() -> None:
    assert judged("memory_mb", 60.0).reason == "its memory was not measured"
    lonely = judged("memory_mb", 60.0, builds={"memory": (50_000_000,)})
    assert (lonely.verdict, lonely.estimate) == (Verdict.UNDECIDED, pytest.approx(50.0))
    unknown = judged("accuracy", 0.9, builds={"answers": None})
    assert (unknown.verdict, unknown.estimate) == (Verdict.UNDECIDED, None)
    assert unknown.reason == "no accuracy was measured through the engine"
    assert "on the same images" in judged("accuracy_drop_points", 1.0, builds={"answers": None}).reason
    energy = judged("energy_mj", 15.0)
    assert (energy.verdict, energy.estimate, energy.reason) == (Verdict.UNDECIDED, None, "no energy was counted")


def test_without_filters_a_claim_asks_every_pruned_row_and_named_ones_only_those() -> None:
    everywhere = result_of(Claim(kind="speedup", bound=1.5), Claim(kind="accuracy", bound=0.9)).claims
    assert [(claim.variant, claim.batch) for claim in everywhere] == [("pruned", 1), ("pruned", 8), ("pruned", None)]
    named = result_of(Claim(kind="latency_ms", bound=50.0, variant="reduced", batch=8)).claims
    assert [(claim.variant, claim.batch, claim.against) for claim in named] == [("reduced", 8, None)]


def test_a_speed_up_is_judged_against_whom_it_names() -> None:
    claim = judged("speedup", 1.2, against="reduced")
    assert (claim.against, claim.verdict) == ("reduced", Verdict.CONFIRMED)
    assert claim.estimate == pytest.approx(1.25, rel=1e-3)
    slower = judged("speedup", 0.4, variant="dense", against="pruned")
    assert slower.estimate == pytest.approx(0.5, rel=1e-3)


def test_the_speed_up_that_flops_imply_is_judged_unasked_only_where_nothing_was_claimed() -> None:
    (first, second) = result_of().claims
    assert (first.asked, first.claim, first.batch, second.batch) == (False, pytest.approx(4.0), 1, 8)
    asked = result_of(Claim(kind="speedup", bound="flops", batch=1)).claims
    assert [(claim.asked, claim.claim) for claim in asked] == [(True, pytest.approx(4.0))]


def test_claim_and_claims_are_both_judged() -> None:
    request = request_with(Claim(kind="size_mb", bound=5.0), claim=1.5)
    claims = summarise(request, builds_of(), environment={}).claims
    assert [(claim.kind, claim.batch) for claim in claims] == [("speedup", 1), ("speedup", 8), ("size_mb", None)]
    assert all(claim.asked for claim in claims)
    assert exit_code(claims) == 0


def test_claims_survive_the_document_and_old_documents_still_read() -> None:
    result = result_of(
        Claim(kind="latency_ms", bound=9.0, percentile=90, name="fast enough"), Claim(kind="size_mb", bound=5.0)
    )
    document = result.to_document()
    assert BenchResult.from_document(document).claims == result.claims
    fields = ["claim", "variant", "engine", "precision", "batch", "verdict", "against", "asked"]
    fields += ["estimate", "low", "high"]
    document["claims"] = [{name: claim[name] for name in fields} for claim in result_of().to_document()["claims"]]
    old = BenchResult.from_document(document).claims
    assert [(claim.kind, claim.at_least, claim.verdict) for claim in old] == [("speedup", True, Verdict.REFUTED)] * 2


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        ({"kind": "speedup", "bound": 2.0, "variant": "family"}, "variant: family is not measured in this run"),
        ({"kind": "speedup", "bound": 2.0, "against": "scratch"}, "against: scratch is not measured in this run"),
        ({"kind": "speedup", "bound": 2.0, "engine": "trt"}, "engine: trt is not measured .*; measured are ort-cpu"),
        ({"kind": "speedup", "bound": 2.0, "precision": "int8"}, "precision: int8 is not .*; measured are fp32"),
        ({"kind": "speedup", "bound": 2.0, "batch": 4}, "batch: 4 is not measured in this run; measured are 1, 8"),
        ({"kind": "size_fraction", "bound": 0.5, "against_precision": "int8"}, "int8 is not measured"),
        ({"kind": "speedup", "bound": 2.0, "variant": "dense"}, "nothing that is measured is claimed"),
        ({"kind": "speedup", "bound": "flops", "against": "reduced"}, "FLOPs are known relative to dense"),
        ({"kind": "accuracy", "bound": 0.9}, "there are no labelled images to count with"),
        ({"kind": "accuracy_drop_points", "bound": 1.0}, "there are no labelled images to count with"),
    ],
)  # fmt: skip
def test_what_is_not_measured_is_refused_beforehand(claim: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"^claims.toml, claim 7(, .*)?: .*{said}|^claims.toml, claim 7, {said}"):
        require_measured(request_with(Claim(**claim, where="claims.toml, claim 7")), device="a GPU")


def test_flops_and_training_must_be_known_to_claim_what_rests_on_them(tmp_path: Path) -> None:
    yielding = request_with(Claim(kind="yield", bound=0.8))
    unknown = tuple(replace(subject, flops_fraction=None) for subject in yielding.subjects)
    with pytest.raises(InputError, match="the FLOPs of pruned are not known"):
        require_measured(replace(yielding, subjects=unknown), device="a GPU")
    path = tmp_path / "evaluation.npz"
    EvaluationSet(inputs=np.ones((2, 1), np.float32), labels=np.zeros(2, np.int64)).save(path)
    accurate = request_with(Claim(kind="accuracy", bound=0.8, variant="reduced"), evaluation=path)
    require_measured(accurate, device="a GPU")
    untrained = tuple(replace(subject, trained=subject.variant != "reduced") for subject in accurate.subjects)
    with pytest.raises(InputError, match="reduced is untrained"):
        require_measured(replace(accurate, subjects=untrained), device="a GPU")


def test_one_file_alone_can_be_held_to_a_latency() -> None:
    alone = request_with(Claim(kind="latency_ms", bound=9.0), Claim(kind="size_mb", bound=20.0))
    alone = replace(alone, subjects=alone.subjects[:1])
    require_measured(alone, device="a GPU")
    claims = summarise(alone, builds_of(), environment={}).claims
    assert [(claim.variant, claim.verdict.value) for claim in claims] == [
        ("dense", "CONFIRMED"), ("dense", "REFUTED"), ("dense", "CONFIRMED"),
    ]  # fmt: skip
    with pytest.raises(InputError, match="nothing that is measured is claimed; name another variant"):
        require_measured(replace(alone, claims=(Claim(kind="speedup", bound=2.0),)), device="a GPU")


def test_a_speed_up_claimed_of_nothing_is_refused() -> None:
    alone = request_with(claim=2.0)
    with pytest.raises(InputError, match=r"^--claim 2\.0: there is nothing to compare dense with"):
        require_measured(replace(alone, subjects=alone.subjects[:1]), device="CPU")
    require_measured(alone, device="CPU")


def test_sizes_and_accuracies_compare_across_precisions() -> None:
    request = request_with()
    smaller = tuple(replace(subject, precision="int8", file_bytes=1_000_000) for subject in request.subjects)
    both = replace(
        request,
        subjects=request.subjects + smaller,
        claims=(Claim(kind="size_fraction", bound=0.2, precision="int8", against_precision="fp32"),),
    )
    require_measured(both, device="a GPU")
    builds = [
        replace(
            build,
            cells=tuple(replace(cell, precision=name) for cell in build.cells for name in ("fp32", "int8")),
        )
        for build in builds_of()
    ]
    (claim,) = summarise(both, builds, environment={}).claims
    assert (claim.precision, claim.against, claim.against_precision) == ("int8", "dense", "fp32")
    assert (claim.estimate, claim.verdict) == (pytest.approx(0.1), Verdict.CONFIRMED)


def test_the_interval_of_a_share_is_the_exact_one() -> None:
    # Clopper and Pearson 1934: of 10, none seen, at 95%: from 0 to 1 - 0.025^(1/10).
    assert share_interval(0, 10, confidence=0.95) == pytest.approx((0.0, 1 - 0.025**0.1))
    assert share_interval(10, 10, confidence=0.95)[1] == 1.0


@pytest.mark.parametrize(
    ("lost", "won", "images", "interval"),
    # The first is the airway example of Fagerland, Lydersen and Laake 2014, table 6: -0.517 to -0.026.
    [(1, 7, 21, (-0.517, -0.026)), (7, 1, 21, (0.026, 0.517))],
)
def test_the_interval_of_a_paired_difference_is_that_of_the_literature(
    lost: int, won: int, images: int, interval: tuple[float, float]
) -> None:
    assert difference_interval(lost, won, images, confidence=0.95) == pytest.approx(interval, abs=5e-4)


@pytest.mark.parametrize(("lost", "won", "images"), [(0, 0, 100), (100, 0, 100), (0, 100, 100), (0, 0, 1), (1, 0, 1)])
def test_a_paired_difference_has_an_interval_even_at_the_edges(lost: int, won: int, images: int) -> None:
    low, high = difference_interval(lost, won, images, confidence=0.95)
    assert -1 <= low <= (lost - won) / images <= high <= 1
    assert low < high


@pytest.mark.parametrize(("images", "lost", "won"), [(360, 0.02, 0.01), (1000, 0.03, 0.03), (100, 0.1, 0.05)])
def test_intervals_of_paired_differences_cover_the_truth_as_often_as_they_say(
    images: int, lost: float, won: float
) -> None:
    generator = np.random.default_rng(5)
    known: dict[tuple[int, int], tuple[float, float]] = {}
    covered = 0
    for first, second, _ in generator.multinomial(images, [lost, won, 1 - lost - won], size=1500).tolist():
        if (first, second) not in known:
            known[first, second] = difference_interval(first, second, images, confidence=0.95)
        low, high = known[first, second]
        covered += low <= lost - won <= high
    assert 0.93 <= covered / 1500 <= 0.98
