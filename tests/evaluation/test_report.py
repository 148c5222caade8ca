import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from hyena_blt_savanna.data.indexed import IndexedReader
from hyena_blt_savanna.evaluation.bits_per_base import evaluate_bits_per_base
from hyena_blt_savanna.evaluation.report import ReportConfig, ReportError, read_metrics, write_report
from hyena_blt_savanna.patching.ngram import NgramConfig
from hyena_blt_savanna.testing.toy_genomes import random_genome, write_dataset

KEYS = {
    "bits_per_base",
    "bits_per_base_ngram",
    "mean_patch_bases",
    "training_bases_per_second",
    "training_seconds",
    "num_parameters",
    "total_seconds",
}
TEST = [random_genome(900, seed=22, num_unknown_runs=1), random_genome(80, seed=23)]


def interval(step: int, bits: float | None, bases_per_second: float, step_seconds: float, seconds: float) -> dict:
    """A line of a logging interval."""
    return {
        "kind": "training",
        "step": step,
        "bits_per_base": bits,
        "bases_per_second": bases_per_second,
        "seconds_per_step": step_seconds,
        "seconds": seconds,
    }


LINES = [
    {"kind": "start", "step": 0},
    interval(10, 1.99, 100.0, 1.0, 10.0),
    {"kind": "validation", "step": 10, "bits_per_base": 1.98, "validation_seconds": 2.0},
    interval(15, None, 400.0, 2.0, 20.0),
    {"kind": "validation", "step": 15, "bits_per_base": 1.95},
    {"kind": "checkpoint", "step": 15, "name": "step_00000015", "save_seconds": 5.0},
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    run.mkdir()
    write_dataset(data / "train", [random_genome(8000, seed=21)])
    write_dataset(data / "test", [(b"", TEST[0]), (b"|D__TOY|", TEST[1])])
    (run / "config.yaml").write_text(yaml.safe_dump({"data": {"folder": str(data)}, "model": {}}))
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return run


@pytest.mark.parametrize("name", ["static", "budget", "isotropic"])
def test_report_of_a_run(run: Path, model_of, name: str) -> None:
    model = model_of(name)
    model.window_bases = 128
    model.save(run / "checkpoints" / "step_00000015" / "native")
    figures = write_report(run, ReportConfig(ngram_order=4, stretch_bases=100))
    assert figures == json.loads((run / "report" / "report.json").read_text())
    assert figures.keys() >= KEYS
    evaluated = evaluate_bits_per_base(model, TEST, 128, 64)
    # The tag of the second document is context, and no base.
    assert figures["evaluation"]["num_bases"] == evaluated.num_bases == figures["evaluation_ngram"]["num_bases"]
    assert figures["evaluation"]["num_unscored_letters"] == evaluated.num_unscored_letters + 8
    assert figures["bits_per_base"] == pytest.approx(evaluated.bits_per_base, abs=0.1)
    train = IndexedReader(run.parent / "data" / "train").stream
    nats = [NgramConfig(order=4).fit(train).log_probabilities(record) for record in TEST]
    wanted = -np.nanmean(np.concatenate(nats).astype(np.float64)) / np.log(2)
    assert figures["bits_per_base_ngram"] == pytest.approx(wanted, rel=1e-6)
    # 10 steps of 1 s at 100, 5 steps of 2 s at 400.
    assert figures["training_bases_per_second"] == pytest.approx(250.0)
    assert figures["training_seconds"] == 20.0
    # Training, one validation, one checkpoint, and the report itself.
    assert 27.0 < figures["total_seconds"] < 100.0
    assert figures["num_parameters"] == model.num_parameters
    pictures = {path.name for path in (run / "report").glob("*.png")}
    if name == "isotropic":
        assert figures["mean_patch_bases"] is None
        assert pictures == {"loss.png", "entropy.png"}
    else:
        assert figures["mean_patch_bases"] == figures["evaluation"]["mean_patch_bases"] > 1
        assert pictures == {"loss.png", "entropy.png", "patch_lengths.png"}
    for picture in pictures:
        assert (run / "report" / picture).read_bytes().startswith(b"\x89PNG")


def test_a_report_is_made_once(run: Path, model_of) -> None:
    model_of("static").save(run / "checkpoints" / "step_00000015" / "native")
    config = ReportConfig(ngram_order=2, window_bases=256)
    first = write_report(run, config)
    (run / "report" / "loss.png").write_bytes(b"")
    assert write_report(run, config) == first
    assert (run / "report" / "loss.png").read_bytes() == b""
    assert write_report(run, ReportConfig(ngram_order=3, window_bases=256))["ngram_order"] == 3
    model_of("budget").save(run / "checkpoints" / "step_00000015" / "native")
    again = write_report(run, ReportConfig(ngram_order=3, window_bases=256))
    assert again["patch_rule"]["kind"] == "budget"
    (run / "report" / "report.json").write_text("{")
    assert write_report(run, ReportConfig(ngram_order=3, window_bases=256))["bits_per_base"] == again["bits_per_base"]


def test_total_seconds_from_a_start(run: Path, model_of) -> None:
    model_of("static").save(run / "checkpoints" / "step_00000015" / "native")
    figures = write_report(run, ReportConfig(ngram_order=2, window_bases=256, started_unix_seconds=0.0))
    assert figures["total_seconds"] > 1e9
    assert figures["evaluation"]["overlap_bases"] == 128


def test_a_run_that_can_not_be_reported_on(run: Path) -> None:
    with pytest.raises(ReportError, match=r"nowhere/metrics.jsonl: no such file"):
        write_report(run / "nowhere", ReportConfig())
    for name in ("test.bin", "test.idx"):
        (run.parent / "data" / name).unlink()
    with pytest.raises(ReportError, match=r"test.bin: no such file; prepare the data with a test part"):
        write_report(run, ReportConfig())
    (run / "config.yaml").write_text("model: {}")
    with pytest.raises(ReportError, match=r"config.yaml has no data.folder"):
        write_report(run, ReportConfig())
    metrics = run / "metrics.jsonl"
    metrics.write_text('{"kind": "start", "step": 0}\n')
    with pytest.raises(ReportError, match=r"has no line of kind 'training'"):
        write_report(run, ReportConfig())
    metrics.write_text('{"kind": "start"}\n{"kind"')
    with pytest.raises(ReportError, match=r"metrics.jsonl, line 2: not JSON"):
        read_metrics(run)
    assert not (run / "report").exists()
