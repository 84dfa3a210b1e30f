"""Which engines a machine may load, decided from the sidecar alone."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from prune2deploy.engines.tensorrt.engine_file import EngineRecord, read_engine, sidecar_path, write_engine
from prune2deploy.errors import EngineError, InputError
from prune2deploy.storage import sha256_of_file

L4, A100, T4, B200 = "NVIDIA L4 sm_89", "NVIDIA A100 sm_80", "Tesla T4 sm_75", "NVIDIA RTX 5090 sm_120"


@pytest.fixture
def stored(tmp_path: Path) -> Any:
    def store(**fields: Any) -> Path:
        path = tmp_path / "net.engine"
        path.write_bytes(b"an engine")
        record = {
            "engine": "trt",
            "precision": "fp16",
            "onnx_sha256": "1" * 64,
            "engine_sha256": sha256_of_file(path),
            "bytes_total": 9,
            "library_version": "10.8.0.43",
            "device": L4,
            "platform": "linux-x86_64",
            "batches": (1, 32),
            "ranges": ((2, 8, 16),),
            "profiles": (),
            "build_seconds": 1.0,
        }
        write_engine(path, b"an engine", EngineRecord(**(record | fields)))
        return path

    return store


def read(path: Path, **here: Any) -> EngineRecord:
    machine = {"engine": "trt", "library_version": "10.8.0.43", "device": L4, "platform": "linux-x86_64"}
    content, record = read_engine(path, **(machine | here))
    assert content == b"an engine"
    return record


def test_what_was_written_is_read_back(stored) -> None:
    record = read(stored(compute_capabilities=((8, 9),)), batches=(1, 2, 16, 32), precision="fp16")
    assert (record.ranges, record.compute_capabilities) == (((2, 8, 16),), ((8, 9),))


@pytest.mark.parametrize("batch", [17, 31, 33])
def test_a_batch_that_no_profile_takes_is_refused_with_those_that_there_are(stored, batch: int) -> None:
    with pytest.raises(EngineError, match=rf"batches of 1, 32, 2 to 16 \(best 8\), and {batch} is asked for"):
        read(stored(), batches=(batch,))


@pytest.mark.parametrize(("device", "fits"), [(L4, True), (A100, True), (B200, True), (T4, False), (None, False)])
def test_hardware_compatible_engines_run_from_ampere_on(stored, device: str | None, fits: bool) -> None:
    path = stored(hardware_compatible=True)
    if fits:
        read(path, device=device)
    else:
        with pytest.raises(EngineError, match=r"was built for GPUs from compute capability 8\.0 on"):
            read(path, device=device)


@pytest.mark.parametrize(("device", "fits"), [(L4, True), (A100, True), (B200, True), (None, True), (T4, False)])
def test_engines_without_a_list_run_from_ampere_on(stored, device: str | None, fits: bool) -> None:
    path = stored(device=None)
    if fits:
        read(path, device=device)
    else:
        with pytest.raises(EngineError, match=r"was built for GPUs from compute capability 8\.0 on, here is Tesla T4"):
            read(path, device=device)


@pytest.mark.parametrize("device", [A100, B200, T4, None])
def test_other_engines_run_on_their_own_gpu_only(stored, device: str | None) -> None:
    with pytest.raises(EngineError, match=f"was built for {L4}, here is"):
        read(stored(), device=device)


@pytest.mark.parametrize(("device", "fits"), [(L4, True), (T4, True), (A100, False), (B200, False), (None, False)])
def test_listed_compute_capabilities_are_the_only_ones(stored, device: str | None, fits: bool) -> None:
    path = stored(device=None, compute_capabilities=((7, 5), (8, 9)))
    if fits:
        read(path, device=device)
    else:
        with pytest.raises(EngineError, match=r"was built for compute capability 7\.5, 8\.9, here is"):
            read(path, device=device)


@pytest.mark.parametrize(
    ("here", "fits"),
    [("10.8.0.43", True), ("10.9.0", True), ("10.8.0.42", False), ("10.7", False), ("11.0", False), ("9.9", False)],
)
def test_version_compatible_engines_run_on_later_versions_of_the_same_major_one(stored, here: str, fits: bool) -> None:
    path = stored(version_compatible=True)
    if fits:
        read(path, library_version=here)
    else:
        with pytest.raises(EngineError, match=f"was built by trt 10.8.0.43, here is {here}"):
            read(path, library_version=here)


def test_other_engines_run_on_their_own_version_only(stored) -> None:
    with pytest.raises(EngineError, match=r"here is 10\.9\.0"):
        read(stored(), library_version="10.9.0")


def test_an_engine_of_another_platform_is_refused(stored) -> None:
    with pytest.raises(EngineError, match="was built on linux-x86_64, here is win32-AMD64"):
        read(stored(), platform="win32-AMD64")


def test_a_record_of_schema_1_is_read_as_one_without_options(stored) -> None:
    path = stored(ranges=())
    document = json.loads(sidecar_path(path).read_text())
    known = {"engine", "precision", "onnx_sha256", "engine_sha256", "bytes_total", "library_version", "device"}
    known |= {"batches", "profiles", "build_seconds", "details"}
    old = {name: value for name, value in document.items() if name in known} | {"schema_version": 1}
    sidecar_path(path).write_text(json.dumps(old))
    record = read(path)
    assert asdict(record) | {"schema_version": 2, "platform": "linux-x86_64"} == asdict(read(stored(ranges=())))


def test_a_record_with_unknown_fields_is_damaged(stored) -> None:
    path = stored()
    document = json.loads(sidecar_path(path).read_text()) | {"surprise": 1}
    sidecar_path(path).write_text(json.dumps(document))
    with pytest.raises(InputError, match="is damaged"):
        read(path)
