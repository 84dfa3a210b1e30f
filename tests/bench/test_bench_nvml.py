"""Which GPU is meant and what is told of it. The lists are of the kind that NVML gives; the real one needs a GPU."""

from pathlib import Path

import pytest

from prune2deploy.bench.nvml import (
    ListedGpu,
    describe_gpus,
    description_of,
    first_visible,
    no_gpu_signals,
    open_gpu,
    other_processes,
)

H100 = "NVIDIA H100 80GB HBM3"
PAIR = (
    ListedGpu(name=H100, uuid="GPU-aa11", memory_bytes=85520809984),
    ListedGpu(name=H100, uuid="GPU-ab22", memory_bytes=85520809984),
)
MIXED = (ListedGpu(name="NVIDIA T400", uuid="GPU-cc33", memory_bytes=None), PAIR[0])


@pytest.mark.parametrize(
    ("gpus", "visible", "by_address", "place"),
    [
        (PAIR, None, False, 0),
        (PAIR, "1", False, 1),
        (PAIR, " 1 ,0", False, 1),
        (PAIR, "2", False, None),
        (PAIR, "", False, None),
        (PAIR, "-1", False, None),
        (PAIR, "GPU-ab22", False, 1),
        (PAIR, "GPU-ab", False, 1),
        (PAIR, "GPU-a", False, None),
        (PAIR, "MIG-5c89852c", False, None),
        (PAIR, "²", False, None),
        (MIXED, None, False, None),
        (MIXED, "1", False, None),
        (MIXED, "1", True, 1),
        (MIXED, "GPU-aa11", False, 1),
        ((), None, False, None),
    ],
)
def test_the_first_gpu_of_cuda_is_found_in_nvmls_list(gpus, visible, by_address, place):
    assert first_visible(gpus, visible=visible, by_address=by_address) == place


def test_gpus_are_described_by_name_memory_and_driver():
    assert description_of(PAIR[:1], driver="570.86.15") == f"{H100}, 81559 MiB, driver 570.86.15"
    assert description_of(MIXED, driver=None) == (
        f"NVIDIA T400, unknown memory, driver unknown; {H100}, 81559 MiB, driver unknown"
    )
    assert description_of((), driver="570.86.15") is None


def test_this_process_is_no_other_process():
    assert other_processes([], own=7) == 0
    assert other_processes([7], own=7) == 0
    assert other_processes([7, 8, 8, 9], own=7) == 2


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is an NVIDIA driver")
def test_without_a_driver_there_is_no_gpu_and_no_error():
    assert open_gpu() is None
    assert describe_gpus() is None


@pytest.mark.gpu
def test_this_gpu_tells_what_it_does():
    gpu = open_gpu()
    assert gpu is not None
    try:
        signals = gpu.signals()
    finally:
        gpu.close()
    assert signals.keys() == no_gpu_signals().keys()
    assert signals["gpu_clock_mhz"] is None or 0 < signals["gpu_clock_mhz"] < 10_000
    assert signals["gpu_temperature_c"] is None or 0 < signals["gpu_temperature_c"] < 130
    assert describe_gpus()
