"""The table of ``p2d export``: sizes, checks and precisions of the files."""

from pathlib import Path
from typing import Any

from prune2deploy.cli.tables import exported_table
from prune2deploy.pipeline.outcomes import ExportedFile


def exported(precision: str, **changes: Any) -> ExportedFile:
    file = Path(f"onnx/pruned-{precision}.onnx")
    fields = {"variant": "pruned", "precision": precision, "file": file, "bytes_total": 2048, "parity_max_error": 1e-6}
    return ExportedFile(**{**fields, **changes})


def test_a_file_says_what_it_computes_in():
    table = exported_table([exported("fp16", computes="fp16 100% of FLOPs")])
    assert table.columns == ("variant", "precision", "size", "parity error", "computes in", "file")
    assert table.rows == (("pruned", "fp16", "2.0 KiB", "1.0e-06", "fp16 100% of FLOPs", "onnx/pruned-fp16.onnx"),)


def test_checks_are_columns_where_one_file_has_them():
    int8 = exported("int8", checks={"agreement": 0.9953, "sqnr_db": 31.26, "accuracy": 0.98})
    table = exported_table([exported("fp32"), int8])
    assert table.columns[4:7] == ("accuracy", "agreement", "signal to noise")
    assert [row[4:7] for row in table.rows] == [("-", "-", "-"), ("98.0%", "99.5%", "31.3 dB")]
    assert table.numeric == {2, 3, 4, 5, 6}
