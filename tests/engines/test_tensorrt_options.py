"""Every build option on real builds of TensorRT for RTX, and what becomes of it in the sidecar."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from prune2deploy.engines.cuda import NoCudaDevice, find_device
from prune2deploy.engines.engine import BuildOptions, TensorRTOptions
from prune2deploy.engines.tensorrt.engine_file import read_record, sidecar_path
from prune2deploy.engines.tensorrt.family import TensorRTRTXEngine
from prune2deploy.engines.tensorrt.settings import offered_capabilities
from prune2deploy.errors import EngineError, InputError, StorageError

library = pytest.importorskip("tensorrt_rtx")

ENGINE = TensorRTRTXEngine()
SHAPE = (3, 8, 8)
without_gpu = pytest.mark.skipif(not isinstance(find_device(), NoCudaDevice), reason="this machine has a GPU")


def asking(*, batches: tuple[int, ...] = (1,), **options: Any) -> BuildOptions:
    return BuildOptions(batches=batches, tensorrt=TensorRTOptions(**options))


def test_single_sizes_come_before_ranges_and_each_has_its_profile(write_network, tmp_path: Path) -> None:
    path = tmp_path / "net.engine"
    ENGINE.build_file(write_network(), path, asking(batches=(4, 1), ranges=((1, 8, 32), (2, 2, 4))))
    record = read_record(path)
    assert (record.batches, record.ranges) == ((1, 4), ((1, 8, 32), (2, 2, 4)))
    assert [[shape[0] for shape in profile["input"]] for profile in record.profiles] == [
        [1, 1, 1],
        [4, 4, 4],
        [1, 8, 32],
        [2, 2, 4],
    ]
    assert {shape[1:] for profile in record.profiles for shape in profile["input"]} == {SHAPE}


def test_a_range_alone_is_enough(write_network, tmp_path: Path) -> None:
    path = tmp_path / "net.engine"
    ENGINE.build_file(write_network(), path, asking(batches=(), ranges=((1, 8, 32),)))
    assert (read_record(path).batches, len(read_record(path).profiles)) == ((), 1)


def test_a_fixed_batch_has_no_range(write_network, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"fixed batch of 2, and 2, 1 to 4 \(best 2\) is asked for; pass --batch 2"):
        ENGINE.build_file(write_network(batch=2), tmp_path / "a.engine", asking(batches=(2,), ranges=((1, 2, 4),)))


@pytest.mark.parametrize("wrong", [(0, 1, 2), (4, 2, 8), (1, 16, 8)])
def test_a_range_is_smallest_best_largest(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match="is no range of batch sizes; pass smallest, best and largest"):
        TensorRTOptions(ranges=(wrong,))


@pytest.mark.parametrize("wrong", [{"workspace_bytes": 0}, {"optimization_level": 6}, {"optimization_level": -1}])
def test_limits_and_levels_are_checked(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError):
        TensorRTOptions(**wrong)


def test_capabilities_are_built_for_and_recorded(write_network, tmp_path: Path) -> None:
    plain, listed = tmp_path / "plain.engine", tmp_path / "listed.engine"
    ENGINE.build_file(write_network(), plain, asking())
    ENGINE.build_file(write_network(), listed, asking(compute_capabilities=((8, 9), (8, 6))))
    assert read_record(plain).compute_capabilities == ()
    assert read_record(listed).compute_capabilities == ((8, 6), (8, 9))
    assert plain.read_bytes() != listed.read_bytes()


def test_every_offered_capability_can_be_built_for_in_half_precision(write_network, tmp_path: Path) -> None:
    offered = offered_capabilities(library)
    assert (8, 6) in offered
    assert (9, 0) not in offered
    path = tmp_path / "net.engine"
    ENGINE.build_file(
        write_network(precision="fp16"), path, replace(asking(compute_capabilities=offered), precision="fp16")
    )
    assert read_record(path).compute_capabilities == offered


def test_an_operator_that_one_capability_lacks_is_named_with_both(write_network, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"operator MatMul \(node 'head'\).*leave 7\.5 out of --compute-capability"):
        ENGINE.build_file(write_network(), tmp_path / "net.engine", asking(compute_capabilities=((7, 5), (8, 9))))


def test_an_unknown_capability_is_refused_with_those_that_there_are(write_network, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not build for 9\.0; choose from 7\.5, 8\.0, 8\.6, 8\.9, 12\.0"):
        ENGINE.build_file(write_network(), tmp_path / "net.engine", asking(compute_capabilities=((8, 6), (9, 0))))
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_a_workspace_that_is_too_small_is_named(write_network, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"workspace.*allow more with --workspace") as caught:
        ENGINE.build_file(write_network(), tmp_path / "net.engine", asking(workspace_bytes=1))
    assert "\n" not in str(caught.value)
    ENGINE.build_file(write_network(), tmp_path / "net.engine", asking(workspace_bytes=1 << 30))
    assert read_record(tmp_path / "net.engine").workspace_bytes == 1 << 30


@pytest.mark.parametrize("level", [0, 5])
def test_levels_are_taken_and_recorded(write_network, tmp_path: Path, level: int) -> None:
    path = tmp_path / "net.engine"
    ENGINE.build_file(write_network(), path, asking(optimization_level=level))
    assert read_record(path).optimization_level == level


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("hardware_compatible", r"--hardware-compatible: trt-rtx 1\..* has nothing like it; leave it out"),
        (
            "version_compatible",
            "--version-compatible: trt-rtx cannot build it, since its lean runtime",
        ),
        ("strip_weights", "--strip-weights, trt-rtx: needs a GPU while it builds"),
    ],
)
@without_gpu
def test_what_the_library_lacks_is_refused_by_the_name_of_its_option(
    write_network, tmp_path: Path, option: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(EngineError, match=said):
        ENGINE.build_file(write_network(), tmp_path / "out" / "net.engine", asking(**{option: True}))
    assert not (tmp_path / "out").exists()
    assert capfd.readouterr() == ("", "")
    # A refusal must not disturb the builds after it: the library keeps its first logger, and calls it.
    ENGINE.build_file(write_network(), tmp_path / "out" / "net.engine", asking())


def test_an_engine_that_is_what_would_be_built_is_left_as_it_is(write_network, tmp_path: Path) -> None:
    path, network = tmp_path / "net.engine", write_network()
    first = ENGINE.build_file(network, path, asking(batches=(1, 2)))
    written = path.stat().st_mtime_ns
    again = ENGINE.build_file(network, path, asking(batches=(2, 1)))
    assert (first.reused, again.reused) == (False, True)
    assert path.stat().st_mtime_ns == written
    assert replace(again, reused=False) == first


@pytest.mark.parametrize(
    "change",
    ["batch", "range", "capability", "level", "network", "damage", "sidecar", "version"],
)
def test_any_other_engine_is_built_anew(write_network, write_nodes, tmp_path: Path, change: str) -> None:
    path, network, options = tmp_path / "net.engine", write_network(), asking()
    ENGINE.build_file(network, path, options)
    if change == "batch":
        options = asking(batches=(1, 2))
    elif change == "range":
        options = asking(ranges=((1, 2, 4),))
    elif change == "capability":
        options = asking(compute_capabilities=((8, 6),))
    elif change == "level":
        options = asking(optimization_level=1)
    elif change == "network":
        network = write_nodes([helper.make_node("Relu", ["input"], ["output"])], element=TensorProto.FLOAT)
    elif change == "damage":
        path.write_bytes(path.read_bytes()[:-1])
    elif change == "sidecar":
        sidecar_path(path).unlink()
    else:
        document = json.loads(sidecar_path(path).read_text()) | {"library_version": "0.1"}
        sidecar_path(path).write_text(json.dumps(document))
    assert not ENGINE.build_file(network, path, options).reused
    assert ENGINE.build_file(network, path, options).reused


def test_a_disk_without_room_is_seen_before_the_build(
    write_network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(StorageError, match=r"net\.engine: needs about 1\.0 MiB, and 0\.0 MiB are free"):
        ENGINE.build_file(write_network(), tmp_path / "out" / "net.engine", asking())
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_up_leaves_no_part_of_an_engine(write_network, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    network = write_network()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel refuses to let any file grow beyond this, in the middle of the write.
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(StorageError, match="cannot be written"):
            ENGINE.build_file(network, tmp_path / "out" / "net.engine", asking())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "out").exists()


def test_an_engine_whose_record_cannot_be_written_is_removed(write_network, tmp_path: Path) -> None:
    path = tmp_path / "out" / "net.engine"
    sidecar_path(path).mkdir(parents=True)
    with pytest.raises(StorageError, match=r"net\.engine\.json"):
        ENGINE.build_file(write_network(), path, asking())
    assert [left.name for left in path.parent.iterdir()] == ["net.engine.json"]
