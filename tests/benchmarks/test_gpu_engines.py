"""The table of ``benchmarks/gpu_engines.py``."""

from gpu_engines import VARIANTS, table


def test_what_a_gpu_engine_tells_beside_the_time_of_a_run_stands_with_it() -> None:
    rows = [
        {
            "variant": variant,
            "batch": 1,
            "latency_ns": {"p50": 1_230_000},
            "speedups": [],
            "device_ns": {"p50": 1_100_000},
            "copy_ns": {"p50": 95_000},
        }
        for variant in VARIANTS
    ]
    control = {"batch": 1, "passed": False}
    document = {"cells": {"trt/fp16/1": {"rows": rows, "controls": [control], "seconds": 1.0}}}
    told = "1.23 ms (1.1 ms on the device, 0.095 ms inputs to it) (control failed)"
    assert table(document)[2].startswith(f"| trt | fp16 | 1 | {told} |")
    for row in rows:
        row["device_ns"] = row["copy_ns"] = None
    assert table(document)[2].startswith("| trt | fp16 | 1 | 1.23 ms (control failed) |")
