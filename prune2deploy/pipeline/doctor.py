"""What this machine can do, and what to install for the rest: the work of ``p2d doctor``."""

import os
import platform
import shutil
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from prune2deploy.bench.machine.environment import cpu_name, gpu_description, versions
from prune2deploy.engines.engine import Engine
from prune2deploy.engines.registry import all_engines
from prune2deploy.pipeline.outcomes import DoctorOutcome
from prune2deploy.progress import SILENT, Progress

SCHEMA_VERSION = 1
ENOUGH_DISK_BYTES = 2 << 30

_EXTRAS = {"timm": ("timm", "timm's architectures"), "datasets": ("huggingface", "Hugging Face data sets")}


def run_doctor(progress: Progress = SILENT, *, engines: Sequence[Engine] | None = None) -> DoctorOutcome:
    """Look at engines (those registered, unless ``engines`` names others), torch, optional packages and the machine."""
    found = list(engines) if engines is not None else list(all_engines())
    with progress.task("looking at this machine", total=len(found) + 1) as task:
        torch = _torch()
        task.advance()
        rows = []
        for engine in found:
            rows.append(_engine(engine))
            task.advance()
    machine = _machine()
    extras = [_extra(package) for package in _EXTRAS]
    usable = any(row["runs"] for row in rows)
    advice = _advice(torch=torch, engines=rows, extras=extras, machine=machine)
    document = {
        "schema_version": SCHEMA_VERSION,
        "usable": usable,
        "machine": machine,
        "torch": torch,
        "engines": rows,
        "extras": extras,
        "versions": versions(),
        "advice": list(advice),
    }
    return DoctorOutcome(document=document, usable=usable, advice=advice)


def _machine() -> dict[str, Any]:
    folder = Path.cwd()
    return {
        "cpu": cpu_name(),
        "cores_physical": psutil.cpu_count(logical=False),
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": gpu_description(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "folder": str(folder),
        "folder_writable": os.access(folder, os.W_OK),
        "disk_free_bytes": shutil.disk_usage(folder).free,
    }


def _torch() -> dict[str, Any]:
    """Torch as it really imports, since an installed one can still lack a library."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return {"version": _version("torch"), "works": False, "device": None, "reason": str(error)}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"version": torch.__version__, "works": True, "device": device, "reason": None}


def _engine(engine: Engine) -> dict[str, Any]:
    availability = engine.availability()
    return {
        "name": engine.name,
        "runs": availability.runs,
        "builds": availability.builds,
        "version": availability.version,
        "device": availability.device,
        "precisions": sorted(engine.precisions),
        "reason": availability.reason,
        "hint": availability.hint,
    }


def _extra(package: str) -> dict[str, Any]:
    extra, purpose = _EXTRAS[package]
    version = _version(package)
    hint = None if version else f"pip install 'prune2deploy[{extra}]'"
    return {"name": package, "version": version, "purpose": purpose, "hint": hint}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _advice(
    *, torch: dict[str, Any], engines: list[dict[str, Any]], extras: list[dict[str, Any]], machine: dict[str, Any]
) -> tuple[str, ...]:
    advice = []
    if not torch["works"]:
        advice.append(
            f"torch does not import ({torch['reason']}): reinstall it with pip install --force-reinstall torch"
        )
    if not machine["folder_writable"]:
        advice.append(f"{machine['folder']} cannot be written: change to a folder of yours, or pass --out")
    if machine["disk_free_bytes"] < ENOUGH_DISK_BYTES:
        advice.append(f"{machine['folder']} has less than {ENOUGH_DISK_BYTES >> 30} GiB free: a run may not fit")
    if machine["gpu"] and torch["works"] and torch["device"] == "cpu":
        advice.append("there is a GPU that torch does not see: install a torch built for its CUDA driver")
    advice += [f"{row['name']}: {row['hint']}" for row in engines if not row["runs"] and row["hint"]]
    advice += [f"{row['name']}, for {row['purpose']}: {row['hint']}" for row in extras if row["hint"]]
    return tuple(advice)
