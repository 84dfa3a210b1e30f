"""Which GPU is meant and what is told of it. The lists are of the kind that NVML gives; the real one needs a GPU."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from prune2deploy.bench.machine.nvml import (
    GpuMonitor,
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


class RecordedError(Exception):
    """Stands where NVML says that something is not supported."""


class RecordedLibrary:
    """Answers of NVML as it gives them, in its units; what is not recorded is not supported."""

    NVMLError = RecordedError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, **answers):
        self.answers = answers

    def __getattr__(self, name):
        def call(*arguments):
            if name not in self.answers:
                raise RecordedError(name)
            answer = self.answers[name]
            return answer[arguments[1]] if isinstance(answer, dict) else answer

        return call


RECORDED = {
    "nvmlDeviceGetClockInfo": {1: 1980, 2: 2619},
    "nvmlDeviceGetTemperature": 54,
    "nvmlDeviceGetPowerUsage": 312_450,
    "nvmlDeviceGetCurrentClocksThrottleReasons": 0x4,
    "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=1), SimpleNamespace(pid=os.getpid())],
    "nvmlDeviceGetTotalEnergyConsumption": 123_456_789,
}


def test_readings_are_told_in_the_units_of_their_names():
    gpu = GpuMonitor(RecordedLibrary(**RECORDED), None, partitioned=False)
    assert gpu.signals() == {
        "gpu_clock_mhz": 1980,
        "gpu_memory_clock_mhz": 2619,
        "gpu_temperature_c": 54,
        "gpu_power_watts": 312.45,
        "gpu_throttle_reasons": 4,
        "gpu_other_processes": 1,
    }
    assert gpu.energy_joules() == 123_456.789


def test_what_a_gpu_does_not_support_is_unknown_and_no_error():
    gpu = GpuMonitor(RecordedLibrary(nvmlDeviceGetTemperature=54), None, partitioned=False)
    assert gpu.signals() == {**no_gpu_signals(), "gpu_temperature_c": 54}
    assert gpu.energy_joules() is None
    gpu.close()


def test_of_a_slice_of_a_gpu_no_power_and_no_energy_is_told():
    gpu = GpuMonitor(RecordedLibrary(**RECORDED), None, partitioned=True)
    assert gpu.signals()["gpu_power_watts"] is None
    assert gpu.energy_joules() is None


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
