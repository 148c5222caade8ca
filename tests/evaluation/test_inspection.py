"""What is read of a dataset or a FASTA file, against cutting all of it; the page, the pictures and the tool."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from hyena_blt_savanna.data.boundaries import BoundaryReader
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.fasta import read_fasta
from hyena_blt_savanna.data.genomes import GenomeError, fetch_genome
from hyena_blt_savanna.data.prepare import DataConfig, prepare_dataset
from hyena_blt_savanna.evaluation.inspection import find_patcher, read_stretch
from hyena_blt_savanna.evaluation.native_checkpoint import PretrainedError
from hyena_blt_savanna.patching.annotate import annotate_dataset
from hyena_blt_savanna.patching.annotation_config import AnnotationConfig
from hyena_blt_savanna.patching.inspection import THIS, inspect
from hyena_blt_savanna.patching.inspection_figures import as_png, pictures_of, write_pictures
from hyena_blt_savanna.patching.inspection_page import as_page
from hyena_blt_savanna.patching.inspection_stretch import InspectionError
from hyena_blt_savanna.patching.patcher import DEFAULT_PATCHER, Patcher
from hyena_blt_savanna.testing.toy_genomes import random_genome, write_fasta

ROOT = Path(__file__).parents[2]
FIRST, SECOND = random_genome(30_000, 1, num_unknown_runs=3, num_iupac=5), random_genome(4_000, 2)


@pytest.fixture(scope="module")
def fasta(tmp_path_factory) -> Path:
    return write_fasta(tmp_path_factory.mktemp("fasta") / "toy.fa", {"one first": FIRST, "two": SECOND})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, fasta) -> Path:
    """Two documents in each split; boundaries with and without stored entropies."""
    folder = tmp_path_factory.mktemp("dataset") / "toy"
    split = {"by": "stretch", "validation": 0.1, "test": 0.2}
    prepare_dataset(DataConfig.parse({"inputs": [str(fasta)], "output": str(folder), "split": split}))
    tree = {
        "data": str(folder),
        "entropy_model": {"kind": "ngram", "order": 3},
        "rule": {"kind": "budget", "max_patch_bases": 12},
        "calibrate_to": {"mean_patch_bases": 5},
        "folds": 2,
        "both_strands": False,
        "store_entropies": True,
    }
    annotate_dataset(AnnotationConfig.parse(tree))
    static = {"kind": "static", "patch_bases": 4}
    rule = {"name": "static", "rule": static, "entropy_model": None, "calibrate_to": None, "store_entropies": False}
    annotate_dataset(AnnotationConfig.parse(tree | rule))
    return folder


def patches(stretch):
    return list(zip(stretch.starts.tolist(), stretch.lengths.tolist(), strict=True))


def test_a_dataset_shows_its_own_boundaries_and_entropies(dataset):
    patcher = Patcher.load(dataset / "patches.patcher")
    whole = read_stretch(dataset)
    stream = np.fromfile(dataset / "test.bin", dtype=np.uint8)
    assert np.array_equal(whole.bases, stream)
    end = int(np.flatnonzero(stream == 0)[0]) + 1
    by_document = [patcher.compute_entropy(stream[:end]), patcher.compute_entropy(stream[end:])]
    assert np.array_equal(whole.entropies, np.concatenate(by_document))
    first, lengths = BoundaryReader(dataset / "test").patches(0, len(stream))
    assert first == 0
    assert np.array_equal(whole.lengths, lengths)
    assert np.array_equal(whole.starts, np.cumsum(lengths) - lengths)
    assert whole.rule == patcher.rule
    assert whole.calibrated_mean_bases == pytest.approx(5, rel=0.02)
    assert whole.title == "toy, test (patches)"
    assert read_stretch(dataset / "validation").title == "toy, validation (patches)"


def test_regions_of_a_dataset_are_those_of_the_stream_or_of_a_document(dataset):
    whole = read_stretch(dataset)
    region = read_stretch(dataset, "test:101-1,500")
    assert (region.first, len(region.bases)) == (101, 1400)
    assert np.array_equal(region.entropies, whole.entropies[100:1500])
    assert patches(region) == [(a - 100, n) for a, n in patches(whole) if 100 <= a < 1500]
    end = int(np.flatnonzero(whole.bases == 0)[0]) + 1
    document = read_stretch(dataset / "test", "test/2:11-20")
    assert document.first == 11
    assert np.array_equal(document.bases, whole.bases[end + 10 : end + 20])
    assert patches(document) == [(a - end - 10, n) for a, n in patches(whole) if end + 10 <= a < end + 20]


def test_entropies_of_a_region_are_those_of_the_whole_where_none_are_stored(dataset):
    whole, region = (read_stretch(dataset, region, annotation="static") for region in (None, "test:5,001-6,500"))
    assert np.array_equal(region.entropies, whole.entropies[5000:6500])
    assert whole.entropies.std() > 0
    assert set(whole.lengths.tolist()) <= {1, 2, 3, 4}
    assert "The rule reads no entropies" in whole.notes[0]


def test_a_dataset_can_be_cut_anew(dataset):
    stored, anew = read_stretch(dataset), read_stretch(dataset, patcher=dataset / "patches.patcher")
    assert np.array_equal(anew.entropies, stored.entropies)
    assert patches(anew) == patches(stored)
    assert "Cut anew" in anew.notes[0]
    region = read_stretch(dataset, "test:5,900-6,700", patcher=dataset / "patches.patcher")
    assert patches(region) == patches(read_stretch(dataset, "test:5,900-6,700"))


def test_a_fasta_file_is_cut_record_by_record(fasta, dataset):
    whole = read_stretch(fasta, patcher=dataset / "patches.patcher")
    patcher = Patcher.load(dataset / "patches.patcher")
    documents = [np.append(sequence, np.uint8(0)) for sequence in (FIRST, SECOND)]
    assert np.array_equal(whole.bases, np.concatenate(documents))
    assert np.array_equal(whole.lengths, np.concatenate([patcher.segment_sequence(each) for each in documents]))
    assert np.array_equal(whole.entropies, np.concatenate([patcher.compute_entropy(each) for each in documents]))
    assert whole.calibrated_mean_bases == pytest.approx(5, rel=0.02)
    region = read_stretch(fasta, "one:12,001-13,000", patcher=dataset / "patches.patcher")
    assert region.first == 12_001
    assert patches(region) == [(a - 12_000, n) for a, n in patches(whole) if 12_000 <= a < 13_000]
    assert np.array_equal(region.entropies, whole.entropies[12_000:13_000])


def test_without_a_patcher_a_fasta_file_is_cut_by_the_default_one_and_says_so(tmp_path):
    stretch = read_stretch(write_fasta(tmp_path / "two.fa", {"two": SECOND}), "two:3,001-4,000")
    assert np.array_equal(stretch.entropies, DEFAULT_PATCHER.compute_entropy(SECOND)[3000:])
    starts = np.cumsum(lengths := DEFAULT_PATCHER.segment_sequence(SECOND)) - lengths
    assert np.array_equal(stretch.starts, starts[starts >= 3000] - 3000)
    assert "No patcher was given" in stretch.notes[0]
    assert stretch.calibrated_mean_bases is None


def test_coding_follows_the_records(tmp_path, fasta):
    gff = tmp_path / "genes.gff"
    gff.write_text("one\t.\tCDS\t101\t400\t.\t+\t0\t.\ntwo\t.\tCDS\t5\t10\t.\t-\t0\t.\n")
    whole = read_stretch(fasta, gff=gff)
    expected = np.zeros(len(whole.bases), np.uint8)
    expected[100:400], expected[30_001 + 4 : 30_001 + 10] = 1, 2
    assert np.array_equal(whole.coding.strands, expected)
    assert whole.coding.codon_places[30_005:30_011].tolist() == [2, 1, 0, 2, 1, 0]
    region = read_stretch(fasta, "one:201-500", gff=gff)
    assert np.array_equal(region.coding.strands, expected[200:500])
    assert np.array_equal(region.coding.codon_places, whole.coding.codon_places[200:500])


def test_patchers_come_from_their_folders_checkpoints_and_runs(tmp_path, dataset, model_of):
    model_of("budget").save(tmp_path / "run" / "checkpoints" / "step_7" / "native")
    for path in ("run", "run/checkpoints/step_7", "run/checkpoints/step_7/native"):
        assert find_patcher(tmp_path / path).rule == model_of("budget").patcher.rule
    assert find_patcher(dataset / "static.patcher").rule.kind == "static"
    model_of("isotropic").save(tmp_path / "isotropic")
    with pytest.raises(InspectionError, match=r"patcher: no such folder; a model of single bases"):
        find_patcher(tmp_path / "isotropic")
    with pytest.raises(InspectionError, match="no such folder; give that of a patcher"):
        find_patcher(tmp_path / "none")
    with pytest.raises(PretrainedError, match="holds no whole checkpoint"):
        find_patcher(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{fasta}", "three:1-5"], "no record named 'three'; its records: one, two"),
        (["{fasta}", "two:1-4001"], "record 'two': no region 1-4,001 in it: it has 4,000 bases"),
        (["{fasta}", "two"], "is not RECORD:FROM-TO"),
        (["{fasta}.gz"], "neither a FASTA file nor a dataset"),
        (["{dataset}/tests"], "neither a FASTA file nor a dataset"),
        (["{dataset}/static.patcher"], "neither a FASTA file nor a dataset"),
        (["{dataset}", "chr:1-5"], "region of 'chr': .* splits here: train, validation, test"),
        (["{dataset}/test", "train:1-5"], "region of 'train': .* splits here: test"),
        (["{dataset}", "test/x:1-5"], "with the number of a document"),
        (["{dataset}", "test/3:1-5"], "no document 3; it has 2"),
        (["{dataset}", "test:1-9999999"], "test: no region 1-9,999,999 in it: it has"),
        (["{dataset}", "test/2:1-9999"], "document 2: no region 1-9,999 in it"),
        (["{dataset}", None, None, "other"], r"test\.other\.manifest\.json: no such file; annotate the data"),
        (["{fasta}", None, None, "patches"], "boundaries named 'patches' belong to a dataset"),
        (["{fasta}", None, "{dataset}/no"], "no: no such folder; give that of a patcher"),
        (["{dataset}", None, None, None, "{fasta}"], "doesn't keep the names of its records"),
        (["{fasta}", None, None, None, "{gff}"], r"no feature lies on one, two; its sequences: chrX"),
        (["{fasta}", None, None, None, "{fasta}"], "no feature lies on one, two"),
    ],
)
def test_what_cannot_be_shown_gets_one_clear_message(tmp_path, fasta, dataset, arguments, message):
    gff = tmp_path / "other.gff"
    gff.write_text("chrX\t.\tCDS\t1\t400\t.\t+\t0\t.\n")
    filled = [each and each.format(fasta=fasta, dataset=dataset, gff=gff) for each in arguments]
    paths = [None if each is None else Path(each) for each in filled]
    data, _, patcher, _, annotation_of_genes = [*paths, *[None] * 5][:5]
    _, region, _, annotation, _ = [*filled, *[None] * 5][:5]
    with pytest.raises((InspectionError, DataError), match=message):
        read_stretch(data, region, patcher, annotation, annotation_of_genes)


class Page(HTMLParser):
    """What a page refers to, how its elements nest, and the cells of its tables."""

    def __init__(self, text):
        super().__init__()
        self.open, self.references, self.rows, self.ids = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "href", "xlink:href"):
                self.references.append(value)
            if name == "id":
                self.ids.append(value)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def figures_of(page):
    return json.loads(re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)[1])


@pytest.fixture(scope="module")
def inspection(fasta, dataset):
    return inspect(read_stretch(fasta, "one:1-20000", dataset / "patches.patcher"), ["static", "entropy", "budget"])


def test_a_page_needs_nothing_else_and_holds_the_figures(inspection):
    text = as_page(inspection)
    page = Page(text)
    assert page.open == []
    assert all(reference.startswith("#") for reference in page.references)
    assert {reference[1:] for reference in page.references} <= set(page.ids)
    assert set(re.findall(r"url\((.)", text)) == {"#"}
    assert len(re.findall("<svg", text)) == len(pictures_of(inspection)) - 1
    assert "currentColor" in text
    assert "#010203" not in text
    assert figures_of(text) == json.loads(json.dumps(inspection.to_dict()))
    cells = {row[0]: row for row in page.rows if row}
    assert cells["static"][0] == "static"
    assert ["homopolymers", f"{inspection.composition['homopolymers'].num_bases:,}"] in [row[:2] for row in page.rows]
    assert as_page(inspection) == text


def test_a_short_stretch_has_a_page_too_and_names_cannot_break_it(tmp_path, dataset):
    path = write_fasta(tmp_path / "a<b>&.fa", {"<script>": SECOND})
    text = as_page(inspect(read_stretch(path, "<script>:1-40", dataset / "patches.patcher"), ["static"]))
    assert Page(text).open == []
    assert text.count("<script") == 1
    assert "&lt;script&gt;:1-40" in text
    assert figures_of(text)["title"] == "a<b>&.fa, <script>:1-40"


def test_pictures_are_png_files_of_moderate_size(tmp_path, inspection):
    write_pictures(inspection, tmp_path / "pictures")
    files = {path.name: path.read_bytes() for path in (tmp_path / "pictures").iterdir()}
    assert set(files) == {f"{name}.png" for name in pictures_of(inspection)}
    assert {"stretch.png", "lengths.png", "entropies.png", "composition.png", "agreement.png", "along.png"} == set(
        files
    )
    for data in files.values():
        assert data.startswith(b"\x89PNG")
        assert len(data) < 150_000
    assert as_png(pictures_of(inspection)["lengths"], 50) != files["lengths.png"]


def run_tool(*arguments):
    return subprocess.run(
        [sys.executable, ROOT / "tools" / "inspect_patches.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
    )


def test_the_tool_shows_phage_lambda(tmp_path, fasta):
    try:
        genome = fetch_genome("lambda", tmp_path)
    except GenomeError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"phage lambda can't be had here: {error}")
    [record] = read_fasta(genome)
    html, figures = tmp_path / "page.html", tmp_path / "figures"
    done = run_tool(genome, "--html", html, "--figures", figures, "--rules", "static", "budget")
    assert (done.returncode, done.stderr) == (0, "")
    lengths = DEFAULT_PATCHER.segment_sequence(record.sequence)
    found = figures_of(html.read_text())
    assert found["summary"]["num_bases"] == 48_502
    assert found["summary"]["num_patches"] == len(lengths)
    assert found["summary"]["mean_bases"] == pytest.approx(lengths.mean())
    assert list(found["cuttings"]) == [THIS, "static", "budget"]
    text = record.sequence.tobytes().decode()
    runs = sum(len(run[0]) for run in re.finditer(r"A{5,}|C{5,}|G{5,}|T{5,}", text))
    assert found["composition"]["homopolymers"]["num_bases"] == runs
    assert f"{len(lengths):,}" in done.stdout
    assert (figures / "stretch.png").is_file()
    refused = run_tool(fasta, "--region", "one:1-5", "--rules", "magic")
    assert refused.returncode == 1
    assert refused.stderr.startswith("no rule is named 'magic'")
