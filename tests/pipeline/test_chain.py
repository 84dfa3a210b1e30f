"""The whole chain on the bundled digits, as a user types it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

import prune2deploy as p2d
from prune2deploy.checkpoint.bundle import read_manifest
from prune2deploy.cli.app import app
from prune2deploy.evaluation import EvaluationSet
from prune2deploy.storage import sha256_of_file

pytestmark = pytest.mark.slow

VARIANTS = ("dense", "pruned", "reduced")


def p2d_here(*arguments: object) -> str:
    """Run a command that has to succeed; gives its standard output."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="p2d")
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The current folder of all these tests, in which train, prune and export were run."""
    folder = tmp_path_factory.mktemp("chain")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        p2d_here("train", "resnet8_wide", "--epochs", 1, "--batch-size", 64)
        p2d_here("prune", "p2d-runs/latest", "--flops", 0.33, "--epochs", 1, "--batch-size", 64)
        p2d_here("export")
        yield folder
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def run(folder):
    return (folder / "p2d-runs/latest").resolve()


@pytest.fixture(scope="module")
def manifest(run):
    return json.loads((run / "run.json").read_text())


def test_the_manifest_tells_what_was_done(manifest, run):
    assert manifest["finished"]
    assert set(manifest["variants"]) == set(VARIANTS)
    assert manifest["data"] == "digits"
    assert {"torch", "onnx", "python", "prune2deploy"} <= manifest["versions"].keys()
    assert list(manifest["variants"]["pruned"]["accuracies"]) == [
        "before_pruning",
        "after_pruning",
        "after_recalibration",
        "final",
    ]
    assert (
        manifest["variants"]["dense"]["accuracies"]["final"]
        == (manifest["variants"]["pruned"]["accuracies"]["before_pruning"])
    )
    # As long as dense training and fine-tuning together.
    assert len(manifest["variants"]["reduced"]["training"]["history"]) == 2
    assert not list(run.rglob("*.partial*"))


def test_the_target_is_met_and_the_flops_are_those_that_torch_counts(manifest, run):
    counted = {}
    for name in VARIANTS:
        model = p2d.load(run / name).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, *manifest["input_shape"]))
        counted[name] = counter.get_total_flops()
        assert manifest["variants"][name]["flops"] == counted[name]
        assert manifest["variants"][name]["parameters"] == sum(one.numel() for one in model.parameters())
    assert 0.97 * 0.33 <= counted["pruned"] / counted["dense"] <= 0.33
    assert counted["reduced"] == pytest.approx(counted["pruned"], rel=0.02)
    widths = [row["pruned"] for row in manifest["pruning"]["layers"]]
    assert all(width % manifest["pruning"]["alignment"] == 0 for width in widths)
    assert manifest["pruning"]["alignment"] == 16
    assert manifest["pruning"]["proof_relative_error"] < 1e-4


def test_variants_load_in_a_fresh_process_to_the_weights_that_were_exported(run, tmp_path):
    program = (
        "import sys, torch, prune2deploy as p2d\n"
        "inputs = torch.load(sys.argv[1])\n"
        "torch.save({path: (p2d.load(path).eval()(inputs).detach(), p2d.load(path).state_dict()) "
        "for path in sys.argv[3:]}, sys.argv[2])\n"
    )
    inputs = torch.randn(3, 1, 8, 8)
    torch.save(inputs, tmp_path / "inputs.pt")
    paths = [str(run / name) for name in VARIANTS]
    subprocess.run(
        [sys.executable, "-c", program, tmp_path / "inputs.pt", tmp_path / "outputs.pt", *paths], check=True, cwd="/"
    )
    there = torch.load(tmp_path / "outputs.pt")
    for path in paths:
        here = p2d.load(path).eval()
        state = here.state_dict()
        assert state.keys() == there[path][1].keys()
        assert all(torch.equal(tensor, there[path][1][name]) for name, tensor in state.items())
        torch.testing.assert_close(here(inputs), there[path][0])


def test_onnx_files_say_what_they_are_and_agree_with_the_manifest(manifest, run):
    for name in VARIANTS:
        record = manifest["variants"][name]["onnx"]["fp32"]
        file = run / record["file"]
        assert sha256_of_file(file) == record["sha256"]
        assert record["parity_max_error"] <= 1e-4
        said = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
        assert said["variant"] == name
        assert said["p2d_version"] == p2d.__version__
        assert said["weights_sha256"] == read_manifest(run / name).weights_sha256
    evaluation = EvaluationSet.load(run / "onnx/evaluation.npz")
    assert set(evaluation.references) == set(VARIANTS)
    assert evaluation.labels is not None


def test_exporting_again_changes_nothing_and_a_change_of_the_graph_exports_anew(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    p2d_here("export", copy)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before
    (copy / "onnx/pruned-fp32.onnx").write_bytes(b"damaged")
    p2d_here("export", copy, "--softmax")
    evaluation = EvaluationSet.load(copy / "onnx/evaluation.npz")
    for name in VARIANTS:
        assert evaluation.references[name].sum(axis=1) == pytest.approx(1, abs=1e-5)
        onnx.checker.check_model(onnx.load(copy / f"onnx/{name}-fp32.onnx"))


def test_trt_rtx_engines_are_built_without_a_gpu(run):
    pytest.importorskip("tensorrt_rtx")
    p2d_here("build", "--engine", "trt-rtx", "--batch", 1)
    for name in VARIANTS:
        assert (run / f"engines/{name}-fp32-trt-rtx.engine").stat().st_size > 0


def test_bench_and_report_give_every_variant_and_a_verdict(run):
    options = ("--engine", "ort-cpu", "--threads", 1, "--batch", 1, "--builds", 2, "--max-seconds", 6)
    result = CliRunner().invoke(app, [str(one) for one in ("bench", "--json", "--claim", "flops", *options)])
    document = json.loads(result.stdout)
    verdicts = {claim["verdict"] for claim in document["claims"]}
    assert verdicts <= {"CONFIRMED", "REFUTED", "UNDECIDED", "INVALID"}
    assert result.exit_code in {0, 10, 11, 12}
    assert document["schema_version"] == 1
    assert {row["variant"] for row in document["rows"]} == set(VARIANTS)
    for row in document["rows"]:
        assert {"latency_ns", "throughput_per_s", "speedups", "flops_fraction", "accuracy", "sha256"} <= row.keys()
        assert row["latency_ns"]["p50"] > 0
        assert row["accuracy"] is not None
    assert document["environment"]["threads"] == 1
    assert [control["engine"] for control in document["controls"]] == ["ort-cpu"]
    assert json.loads((run / "bench/result.json").read_text())["rows"] == document["rows"]
    printed = p2d_here("report")
    for name in ("report.html", "report.md", "report.json", "junit.xml"):
        assert (run / "report" / name).stat().st_size > 0
        assert f"p2d-runs/{run.name}/report/{name}" in printed


def test_onnx_files_alone_are_measured_without_torch(run, tmp_path):
    program = (
        "import sys\n"
        "from prune2deploy.cli.app import main\n"
        "sys.argv = ['p2d', 'bench', *sys.argv[1:]]\n"
        "try:\n    main()\n"
        "finally:\n    assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    files = [str(run / f"onnx/{name}-fp32.onnx") for name in ("dense", "pruned")]
    options = ["--engine", "ort-cpu", "--threads", "1", "--batch", "1", "--builds", "1", "--max-seconds", "3", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", program, *files, *options], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [row["variant"] for row in json.loads(done.stdout)["rows"]] == ["dense-fp32", "pruned-fp32"]
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_moved_goes_on_elsewhere(run, tmp_path):
    moved = shutil.copytree(run, tmp_path / "elsewhere")
    (moved / "onnx/dense-fp32.onnx").unlink()
    p2d_here("export", moved)
    assert (moved / "onnx/dense-fp32.onnx").is_file()
    p2d_here("report", moved)
    assert "resnet8_wide" in p2d_here("inspect", moved)


def test_pruning_twice_composes(run, folder):
    out = folder / "twice"
    options = ("--epochs", 1, "--batch-size", 64, "--variants", "dense,pruned")
    p2d_here("prune", run / "pruned", "--flops", 0.6, "--out", out, *options)
    once, twice = read_manifest(run / "pruned").plan, read_manifest(out / "pruned").plan
    assert once is not None
    assert twice is not None
    assert twice.fingerprint == once.fingerprint
    kept_once = {(entry.tensor, entry.dim): set(entry.kept) for entry in once.entries}
    assert all(set(entry.kept) <= kept_once.get((entry.tensor, entry.dim), set(entry.kept)) for entry in twice.entries)
    first, second = (json.loads((path / "run.json").read_text())["variants"] for path in (run, out))
    assert second["dense"]["flops"] == first["pruned"]["flops"]
    assert second["pruned"]["flops"] <= 0.6 * first["pruned"]["flops"]
    assert second["dense"]["accuracies"]["final"] == pytest.approx(first["pruned"]["accuracies"]["final"])
    p2d.load(out / "pruned")(torch.zeros(1, 1, 8, 8))
    p2d_here("export", out)
    assert Path("p2d-runs/latest").resolve() == out.resolve()


def test_inspect_shows_checkpoints_models_and_runs(run):
    document = json.loads(p2d_here("inspect", run, "--json"))
    assert {variant["name"] for variant in document["variants"]} == set(VARIANTS)
    assert all(group["pruned_width"] <= group["width"] for group in document["groups"])
    bundle = json.loads(p2d_here("inspect", run / "pruned", "--json"))
    assert bundle["flops"] == next(row["flops"] for row in document["variants"] if row["name"] == "pruned")
    small = json.loads(p2d_here("inspect", "resnet20", "--json"))
    assert small["input_shape"] == [3, 32, 32]
    assert small["groups"]
    assert small["variants"] == []
    mobile = json.loads(p2d_here("inspect", "torchvision:mobilenet_v2", "--input", "3x64x64", "--json"))
    assert mobile["input_shape"] == [3, 64, 64]
    assert mobile["parameters"] == 3_504_872
