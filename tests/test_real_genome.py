"""Figures on Escherichia coli K-12 MG1655, fetched as a user would: the rooms together, on real data."""

import gzip
import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from hyena_blt_savanna.data.batches import EvaluationWindows
from hyena_blt_savanna.data.corpus.pipeline import prepare_source
from hyena_blt_savanna.data.corpus.plan import SourceConfig
from hyena_blt_savanna.data.fasta import read_fasta
from hyena_blt_savanna.data.genomes import GenomeError, fetch_genome, load_genomes
from hyena_blt_savanna.data.indexed import IndexedReader
from hyena_blt_savanna.data.prepare import DataConfig, prepare_dataset
from hyena_blt_savanna.nucleotides import END_OF_DOCUMENT
from hyena_blt_savanna.patching.annotate import annotate_dataset
from hyena_blt_savanna.patching.annotation_config import AnnotationConfig
from hyena_blt_savanna.patching.ngram import NgramConfig
from hyena_blt_savanna.testing.toy_corpus import write_tar

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def ecoli(tmp_path_factory):
    folder = ROOT / "genomes" if (ROOT / "genomes" / "ecoli_k12.fa").is_file() else tmp_path_factory.mktemp("genomes")
    try:
        return fetch_genome("ecoli_k12", folder)
    except GenomeError as error:
        if os.environ.get("CI") or shutil.which("apt-get"):
            raise
        pytest.skip(f"E. coli can't be had here: {error}")


@pytest.mark.slow
def test_an_ngram_of_order_12_needs_less_than_1_93_bits_on_the_last_tenth(ecoli):
    [record] = read_fasta(ecoli)
    train, test = np.split(record.sequence, [len(record.sequence) * 9 // 10])
    stream = np.append(train, np.uint8(END_OF_DOCUMENT))
    assert NgramConfig(order=12).fit(stream).bits_per_base(test) == pytest.approx(1.912, abs=0.002)


@pytest.mark.slow
def test_patches_of_equal_information_are_eight_bases_long_on_sequence_that_was_never_seen(ecoli, tmp_path):
    config = {"inputs": [str(ecoli)], "output": str(tmp_path), "split": {"by": "stretch", "test": 0.1}}
    prepare_dataset(DataConfig.parse(config))
    annotation = AnnotationConfig.load([ROOT / "configs" / "patching" / "budget.yaml", f"data={tmp_path}"])
    manifests = annotate_dataset(annotation)
    for split in ("train", "validation", "test"):
        for strand in ("forward", "reverse"):
            assert manifests[split].statistics[strand].mean_bases == pytest.approx(8, abs=0.05)
    windows = EvaluationWindows(tmp_path / "test", "patches", "forward", 65_536)
    [record] = read_fasta(ecoli)
    read = np.concatenate([window.bases for window in windows])
    assert np.array_equal(read[:-1], record.sequence[-(len(read) - 1) :])
    assert sum(int(window.patch_lengths.sum()) for window in windows) == len(read)


@pytest.mark.slow
def test_a_source_of_two_genomes_has_every_base_of_them(ecoli, tmp_path):
    genomes = load_genomes()
    paths = {"ecoli_k12": ecoli, "saureus_n315": fetch_genome("saureus_n315", ecoli.parent)}
    packed = tmp_path / "ecoli_k12.fa.gz"
    packed.write_bytes(gzip.compress(ecoli.read_bytes(), compresslevel=1))
    archive = write_tar(tmp_path / "more.tar", {"saureus_n315.fna": paths["saureus_n315"].read_bytes()})
    tree = {
        "source": "two",
        "inputs": [str(packed), str(archive)],
        "output": tmp_path / "two",
        "shard_bases": 3_000_000,
        "seed": 2,
    }
    source = prepare_source(SourceConfig.parse(tree | {"split": {"by": "record"}}))
    assert len(source.splits["train"]) >= 2
    assert source.counts.clean_bases == sum(genomes[name].num_bases for name in paths)
    readers = [IndexedReader(tmp_path / "two" / shard.name) for shard in source.shards()]
    documents = [reader.document(i)[:-1].tobytes() for reader in readers for i in range(reader.num_documents)]
    digests = {hashlib.sha256(document.upper()).hexdigest() for document in documents}
    assert digests == {genomes[name].sequence_sha256 for name in paths}
