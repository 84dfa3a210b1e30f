"""What a ``claims.toml`` may hold, and the one line that every mistake in it gives."""

from pathlib import Path

import pytest

from prune2deploy.bench.claims.file import read_claims
from prune2deploy.bench.claims.kinds import KINDS, Claim
from prune2deploy.errors import InputError


def claims_from(folder: Path, text: str) -> tuple[Claim, ...]:
    path = folder / "claims.toml"
    path.write_text(text, encoding="utf-8")
    return read_claims(path)


def test_claims_are_read_in_order_with_their_filters(tmp_path: Path) -> None:
    first, second, third = claims_from(
        tmp_path,
        """
        [[claim]]
        name = "twice as fast"
        speedup = 2
        against = "reduced"
        variant = "pruned"
        engine = "ort-cpu"
        precision = "fp32"
        batch = 32

        [[claim]]
        latency_ms = 4.5
        percentile = 99

        [[claim]]
        speedup = "flops"
        """,
    )
    where = f"{tmp_path / 'claims.toml'}, claim"
    assert first == Claim(
        kind="speedup",
        bound=2.0,
        variant="pruned",
        engine="ort-cpu",
        precision="fp32",
        batch=32,
        against="reduced",
        name="twice as fast",
        where=f"{where} 1",
    )
    assert second == Claim(kind="latency_ms", bound=4.5, percentile=99, where=f"{where} 2")
    assert third == Claim(kind="speedup", bound="flops", where=f"{where} 3")


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_kind_reads_the_example_that_its_messages_give(kind: object, tmp_path: Path) -> None:
    (claim,) = claims_from(tmp_path, f"[[claim]]\n{kind.key} = {kind.example}")  # type: ignore[attr-defined]
    assert claim.bound == float(kind.example)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"claims\.toml: holds no claims; write one table"),
        ("claim = []", r"claims\.toml: holds no claims"),
        ("claim = 3", r"claims\.toml: claim is no table"),
        ("claim = [1]", r"claims\.toml: claim is no table"),
        ("[claim]\nspeedup = 2", r"claims\.toml: \[claim\] stands in single brackets; write \[\[claim\]\]"),
        ("[[claims]]\nspeedup = 2", r"claims\.toml: has an unknown table or key 'claims'"),
        ("[[claim]\nspeedup = 2", r"claims\.toml: is no TOML: .*line 1"),
        ("[[claim]]\nspeedup = 2\n[[claim]]\nspeed = 2", r"claim 2: unknown key 'speed'; bounds are speedup"),
        ("[[claim]]\nvariant = 'pruned'", r"claim 1: there is no bound; write exactly one of speedup, latency_ms"),
        ("[[claim]]\nspeedup = 2\nlatency_ms = 3", r"claim 1: there are several bounds \(speedup, latency_ms\)"),
        ("[[claim]]\nspeedup = 'fast'", r"claim 1, speedup: is a factor above 0 or \"flops\", not 'fast'"),
        ("[[claim]]\nspeedup = 0", r"claim 1, speedup: is a number above 0, not 0; write speedup = 2\.5"),
        ("[[claim]]\nspeedup = true", r"claim 1, speedup: is a number above 0, not True"),
        ("[[claim]]\nlatency_ms = '4'", r"claim 1, latency_ms: is a number above 0, in ms, not '4'"),
        ("[[claim]]\nlatency_ms = nan", r"claim 1, latency_ms: is a number above 0, in ms, not nan"),
        ("[[claim]]\nlatency_ms = inf", r"claim 1, latency_ms: is a number above 0, in ms, not inf"),
        ("[[claim]]\nthroughput_per_s = -1", r"claim 1, throughput_per_s: is a number above 0, in inputs/s, not -1"),
        ("[[claim]]\naccuracy = 97", r"accuracy: is a number above 0 and at most 1, not 97; write accuracy = 0\.97"),
        ("[[claim]]\naccuracy_drop_points = -0.5", r"points: is a number from 0 and at most 100, in percentage"),
        ("[[claim]]\nsize_mb = 5\npercentile = 90", r"claim 1, percentile: size_mb has no percentile; leave it out"),
        ("[[claim]]\nlatency_ms = 5\npercentile = 95", r"claim 1, percentile: is one of 50, 90, 99, not 95"),
        ("[[claim]]\nlatency_ms = 5\nagainst = 'dense'", r"claim 1, against: latency_ms compares with nothing"),
        ("[[claim]]\nspeedup = 2\nagainst_precision = 'fp32'", r"speedup is compared within one precision"),
        ("[[claim]]\naccuracy = 0.9\nagainst_precision = 'fp32'", r"against_precision: accuracy compares with nothing"),
        ("[[claim]]\naccuracy = 0.9\nbatch = 32", r"claim 1, batch: accuracy is that of a file and its engine"),
        ("[[claim]]\nspeedup = 2\nbatch = 0", r"claim 1, batch: is a batch size, a whole number from 1, not 0"),
        ("[[claim]]\nspeedup = 2\nbatch = true", r"claim 1, batch: is a batch size, a whole number from 1, not True"),
        ("[[claim]]\nspeedup = 2\nvariant = 3", r"claim 1, variant: is a text in quotes, not 3"),
        ("[[claim]]\nspeedup = 2\nname = ' '", r"claim 1, name: is a text in quotes, not ' '"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_that_names_file_claim_and_key(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said) as caught:
        claims_from(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "claims.toml") in str(caught.value)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.toml: there is no such file"):
        read_claims(tmp_path / "nowhere.toml")
    with pytest.raises(InputError, match="cannot be read"):
        read_claims(tmp_path)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is no TOML"):
        read_claims(tmp_path / "bytes.toml")
