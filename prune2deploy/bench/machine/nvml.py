"""What NVIDIA's management library (NVML) tells of a GPU: clocks, heat, throttling, energy. All of ``pynvml`` is here.

Everything here answers None where the library, the driver or the GPU cannot tell, and never raises. All of it is asked
between rounds and aside, never inside a timed block.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_FIELDS = (
    "gpu_clock_mhz",
    "gpu_memory_clock_mhz",
    "gpu_temperature_c",
    "gpu_power_watts",
    "gpu_throttle_reasons",
    "gpu_other_processes",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedGpu:
    """One GPU as NVML lists it, in the order of PCI addresses. ``memory_bytes`` is None where it may not be asked."""

    name: str
    uuid: str
    memory_bytes: int | None = None


class GpuMonitor:
    """One GPU, asked again and again. ``close`` ends the library's session.

    ``partitioned`` says that the engine gets a slice of the GPU (MIG): its power and energy are then those of
    all slices together, and are not told.
    """

    def __init__(self, library: Any, handle: Any, *, partitioned: bool) -> None:
        self._library = library
        self._handle = handle
        self._partitioned = partitioned

    def signals(self) -> dict[str, float | None]:
        """What could explain a slow round: MHz, degrees Celsius, watts, NVML's bit mask of throttle reasons, and how
        many compute processes other than this one hold the GPU.
        """
        nvml, handle = self._library, self._handle
        milliwatts = None if self._partitioned else self._ask(nvml.nvmlDeviceGetPowerUsage, handle)
        processes = self._ask(nvml.nvmlDeviceGetComputeRunningProcesses, handle)
        values = (
            self._ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
            self._ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM),
            self._ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            None if milliwatts is None else milliwatts / 1000,
            # The old name: drivers before 535 do not know the new one, and all know this one.
            self._ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle),
            None if processes is None else other_processes([process.pid for process in processes], own=os.getpid()),
        )
        return dict(zip(_FIELDS, values, strict=True))

    def energy_joules(self) -> float | None:
        """Energy used since the driver was loaded (Volta and newer). It is updated every 20 to 100 ms only."""
        if self._partitioned:
            return None
        millijoules = self._ask(self._library.nvmlDeviceGetTotalEnergyConsumption, self._handle)
        return None if millijoules is None else millijoules / 1000

    def memory_used_bytes(self) -> int | None:
        """The memory that all processes together hold on the GPU now; None of a slice, which NVML counts elsewhere."""
        memory = None if self._partitioned else self._ask(self._library.nvmlDeviceGetMemoryInfo, self._handle)
        return None if memory is None else int(memory.used)

    def close(self) -> None:
        """Leave the library."""
        self._ask(self._library.nvmlShutdown)

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return _ask(self._library, function, *arguments)


def open_gpu(environment: Mapping[str, str] = os.environ) -> GpuMonitor | None:
    """The GPU that engines run on, which is the first that CUDA shows; None where it cannot be told or asked."""
    library = _library()
    if library is None:
        return None
    monitor = _open(library, environment)
    if monitor is None:
        _ask(library, library.nvmlShutdown)
    return monitor


def no_gpu_signals() -> dict[str, float | None]:
    """The fields of ``GpuMonitor.signals`` where there is nothing to ask."""
    return dict.fromkeys(_FIELDS)


def describe_gpus() -> str | None:
    """Name, memory and driver of all NVIDIA GPUs, as ``name, 81559 MiB, driver 570.1; ...``; None without any."""
    library = _library()
    if library is None:
        return None
    try:
        driver = _ask(library, library.nvmlSystemGetDriverVersion)
        return description_of(_listed(library), driver=driver)
    finally:
        _ask(library, library.nvmlShutdown)


def description_of(gpus: Sequence[ListedGpu], *, driver: str | None) -> str | None:
    """GPUs in words; None where there is none."""
    return "; ".join(f"{gpu.name}, {_mebibytes(gpu)}, driver {driver or 'unknown'}" for gpu in gpus) or None


def first_visible(gpus: Sequence[ListedGpu], *, visible: str | None, by_address: bool) -> int | None:
    """The place in NVML's list of the GPU that CUDA calls number 0.

    ``visible`` is CUDA_VISIBLE_DEVICES (None: not set) and ``by_address`` whether CUDA_DEVICE_ORDER is PCI_BUS_ID.
    None where CUDA shows no GPU or a slice of one, and where it cannot be told: unless asked otherwise CUDA counts
    the fastest GPU first and NVML by address, which is the same only for equal GPUs.
    """
    wanted = "0" if visible is None else visible.split(",")[0].strip()
    if wanted.isascii() and wanted.isdigit():
        same_order = by_address or len({gpu.name for gpu in gpus}) <= 1
        return int(wanted) if same_order and int(wanted) < len(gpus) else None
    # CUDA takes any beginning of a UUID that fits one GPU only.
    fitting = [place for place, gpu in enumerate(gpus) if wanted and gpu.uuid.startswith(wanted)]
    return fitting[0] if len(fitting) == 1 else None


def other_processes(pids: Sequence[int], *, own: int) -> int:
    """How many processes on the GPU are not this one.

    Inside a container the numbers can be those of the host, and this process counts as another: only growth tells.
    """
    return len(set(pids) - {own})


def _open(library: Any, environment: Mapping[str, str]) -> GpuMonitor | None:
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    wanted = "" if visible is None else visible.split(",")[0].strip()
    if wanted.startswith("MIG-"):
        slice_handle = _ask(library, library.nvmlDeviceGetHandleByUUID, wanted)
        handle = slice_handle and _ask(library, library.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, slice_handle)
        return None if handle is None else GpuMonitor(library, handle, partitioned=True)
    by_address = environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    place = first_visible(_listed(library), visible=visible, by_address=by_address)
    handle = None if place is None else _ask(library, library.nvmlDeviceGetHandleByIndex, place)
    if handle is None:
        return None
    modes = _ask(library, library.nvmlDeviceGetMigMode, handle)
    return GpuMonitor(library, handle, partitioned=modes is not None and modes[0] == library.NVML_DEVICE_MIG_ENABLE)


def _library() -> Any:
    """NVML with an open session, or None. Imported here: few machines have it, and none needs it to start."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def _listed(library: Any) -> list[ListedGpu]:
    """All GPUs, those that do not answer included: left out, they would shift the places of the others."""
    found = []
    for place in range(_ask(library, library.nvmlDeviceGetCount) or 0):
        handle = _ask(library, library.nvmlDeviceGetHandleByIndex, place)
        if handle is None:
            found.append(ListedGpu(name="GPU that does not answer", uuid=""))
            continue
        memory = _ask(library, library.nvmlDeviceGetMemoryInfo, handle)
        found.append(
            ListedGpu(
                name=_ask(library, library.nvmlDeviceGetName, handle) or "unknown GPU",
                uuid=_ask(library, library.nvmlDeviceGetUUID, handle) or "",
                memory_bytes=None if memory is None else int(memory.total),
            )
        )
    return found


def _ask(library: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except library.NVMLError:
        return None


def _mebibytes(gpu: ListedGpu) -> str:
    return "unknown memory" if gpu.memory_bytes is None else f"{gpu.memory_bytes // 2**20} MiB"
