"""Every configuration for the hub's OpenGenome2, on the miniature: the walk of docs/opengenome2.md."""

import re
from pathlib import Path

import pytest
import yaml

from hyena_blt_savanna.data.corpus.pipeline import prepare_source
from hyena_blt_savanna.data.corpus.plan import SourceConfig
from hyena_blt_savanna.data.corpus.source import read_source
from hyena_blt_savanna.data.inspection import inspect_dataset
from hyena_blt_savanna.data.mixture import MixtureSourceConfig, check_sources
from hyena_blt_savanna.testing.toy_corpus import write_hub

REPOSITORY = Path(__file__).parents[3]
CONFIGS = sorted((REPOSITORY / "configs" / "data" / "opengenome2").glob("*.yaml"))


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    return write_hub(tmp_path_factory.mktemp("hub"), scale=2)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_source_of_the_hub_can_be_made(hub, tmp_path, monkeypatch, path):
    monkeypatch.setenv("OPENGENOME2", str(hub))
    config = SourceConfig.load([path, f"output={tmp_path}", "cleaning.min_bases=20", "shard_bases=8000"])
    assert config.source == path.stem
    source = prepare_source(config)
    by_name = path.stem in {folder.name for folder in hub.glob("json/*/*")}
    assert set(source.splits) >= ({"train", "validation", "test"} if by_name else {"train"})
    assert source.counts.bad_records == 0
    assert source.counts.clean_bases + source.counts.short_bases + source.counts.unknown_bases_left_out >= (
        source.counts.letters
    )
    # No index is wrong, no letter has changed.
    assert inspect_dataset(tmp_path, verify=True).all_problems == []
    expected = {"rna": "rna"}.get(source.alphabet, "dna")
    assert (expected == "rna") == (path.stem in {"mrna", "ncrna", "fasta_transcripts"})
    assert read_source(tmp_path) == source


def test_every_folder_of_rows_has_its_configuration(hub):
    folders = {folder.name for folder in hub.glob("json/*/*")}
    assert folders == {path.stem for path in CONFIGS if not path.stem.startswith("fasta_")}


def test_the_walk_names_every_configuration():
    text = (REPOSITORY / "docs" / "opengenome2.md").read_text()
    missing = [path.stem for path in CONFIGS if not re.search(rf"\b{path.stem}\b", text)]
    assert not missing


def sources_of(phase: str) -> dict[str, float]:
    """Weights of a shipped mixture, by the name of the source."""
    tree = yaml.safe_load((CONFIGS[0].parent / "mixtures" / f"{phase}.yaml").read_text())
    found = [MixtureSourceConfig.parse(source) for source in tree["data"]["sources"]]
    check_sources(found)
    return {source.name: source.weight for source in found}


def test_the_mixtures_of_both_phases():
    rows = {path.stem for path in CONFIGS if not path.stem.startswith("fasta_")}
    short, long = sources_of("short"), sources_of("long")
    assert len(short) == 9
    assert set(short) <= rows
    assert sorted(short.values(), reverse=True) == [0.35, 0.24, 0.18, 0.09, 0.09, 0.03, 0.02, 0.005, 0.0003]
    assert len(long) == 50
    genomes = {"animalia": 0.36, "plantae": 0.12, "fungi": 0.04, "protista": 0.008, "chromista": 0.008}
    parts = {name: weight for name, weight in long.items() if name.split("_")[0] in genomes}
    assert len(parts) == 40
    for kingdom, share in genomes.items():
        weights = [weight for name, weight in parts.items() if name.startswith(kingdom)]
        assert len(weights) == 8
        assert sum(weights) == pytest.approx(share)
    assert set(long) - set(parts) <= rows
    assert sum(long.values()) == pytest.approx(0.9986)
