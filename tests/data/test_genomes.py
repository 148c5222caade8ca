"""Fetching genomes: the order of places, the check of the sequence, and what is said when nothing works."""

import hashlib
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from io import BytesIO
from pathlib import Path

import pytest
import yaml

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.data import genomes
from hyena_blt_savanna.data.genomes import GENOME_TABLE, GenomeError, fetch_genome, load_genomes, sequence_digest
from hyena_blt_savanna.testing.toy_genomes import random_genome, write_fasta

REPOSITORY = Path(__file__).parents[2]
SEQUENCE = random_genome(5000, 1)
DIGEST = hashlib.sha256(SEQUENCE.tobytes().upper()).hexdigest()
URL = {"url": "https://example.org/toy.fa"}
PACKAGE = {"debian": "toy-examples", "member": "usr/share/toy*/toy.fa*"}
FOLDER = {"folder": "toy.f*a*"}


@pytest.fixture
def table(tmp_path):
    def write(*places):
        genome = {"description": "a toy", "num_records": 2, "num_bases": 5000, "sequence_sha256": DIGEST}
        path = tmp_path / "table.yaml"
        path.write_text(yaml.safe_dump({"toy": genome | {"places": list(places)}}))
        return path

    return write


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


def write_toy(path, sequence=SEQUENCE, **options):
    return write_fasta(path, {"one": sequence[:2000], "two": sequence[2000:]}, **options)


def test_the_digest_is_of_the_sequence_alone(tmp_path):
    variants = [
        write_toy(tmp_path / "a.fa"),
        write_toy(tmp_path / "b.fa", width=71, newline="\r\n", final_newline=False),
        write_toy(tmp_path / "c.gz", compress=True),
        write_fasta(tmp_path / "d.fa", {"other names": SEQUENCE | 0x20}),
    ]
    assert {sequence_digest(path) for path in variants} == {DIGEST}
    assert sequence_digest(write_toy(tmp_path / "e.fa", random_genome(5000, 2))) != DIGEST


def test_from_a_folder(tmp_path, table, folder):
    write_toy(folder / "toy.fasta.gz", compress=True)
    (folder / "toy.fa.fai").write_text("an index, no genome")
    path = fetch_genome("toy", tmp_path / "to", [tmp_path, folder], table(FOLDER, URL))
    assert path == tmp_path / "to" / "toy.fa"
    assert path.read_bytes().startswith(b">one\n")
    assert sequence_digest(path) == DIGEST


def test_a_right_file_is_kept(tmp_path, table):
    path = write_toy(tmp_path / "toy.fa", width=77)
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    assert fetch_genome("toy", tmp_path, table=table(FOLDER)) == path
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_a_wrong_file_is_neither_kept_nor_overwritten(tmp_path, table, folder):
    write_toy(folder / "toy.fa")
    path = write_toy(tmp_path / "toy.fa", random_genome(5000, 2))
    with pytest.raises(GenomeError, match=r"toy\.fa is another sequence than toy .*move it away"):
        fetch_genome("toy", tmp_path, [folder], table(FOLDER))
    assert sequence_digest(path) != DIGEST


def test_places_are_tried_in_order_until_one_has_the_sequence(tmp_path, table, folder, monkeypatch):
    write_toy(folder / "toy.fa", random_genome(5000, 2))
    content = write_toy(tmp_path / "right.fa").read_bytes()
    asked = []
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: asked.append(url) or BytesIO(content))
    path = fetch_genome("toy", tmp_path / "to", [folder], table(FOLDER, URL))
    assert asked == [URL["url"]]
    assert path.read_bytes() == content


def build_package(tmp_path):
    root = tmp_path / "package"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "usr/share/toy1").mkdir(parents=True)
    control = (
        "Package: toy-examples\nVersion: 1\nArchitecture: all\nMaintainer: nobody <n@example.org>\nDescription: toy\n"
    )
    (root / "DEBIAN/control").write_text(control)
    write_toy(root / "usr/share/toy1/toy.fa.gz", compress=True)
    subprocess.run(["dpkg-deb", "-b", str(root), str(tmp_path / "toy.deb")], check=True, capture_output=True)
    return tmp_path / "toy.deb"


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")
@pytest.mark.parametrize("lists_are_there", [True, False])
def test_from_a_debian_package(tmp_path, table, monkeypatch, lists_are_there):
    archive = build_package(tmp_path)
    programs = tmp_path / "programs"
    programs.mkdir()
    # An apt-get that downloads by copying; without lists it refuses until it is given a folder of its own for them.
    refuse = (
        "" if lists_are_there else 'case "$*" in *Dir::State::Lists*) ;; *) echo "E: no lists" >&2; exit 100;; esac\n'
    )
    (programs / "apt-get").write_text(
        f'#!/bin/sh\n{refuse}case "$*" in *download*) cp {archive} toy-examples_1_all.deb;; esac\n'
    )
    (programs / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    path = fetch_genome("toy", tmp_path / "to", table=table(FOLDER, PACKAGE))
    assert sequence_digest(path) == DIGEST


def test_what_is_said_when_nothing_works(tmp_path, table, folder, monkeypatch):
    def unreachable(url, timeout):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.setattr(genomes.shutil, "which", lambda program: None)
    with pytest.raises(GenomeError) as caught:
        fetch_genome("toy", tmp_path / "to", [folder], table(FOLDER, PACKAGE, URL))
    message = str(caught.value)
    for part in (
        "toy (a toy) was found nowhere",
        f"no file toy.f*a* in {folder}",
        "Debian package toy-examples: apt-get is not installed",
        f"{URL['url']}: can't be downloaded: no route to host",
        "--folder",
    ):
        assert part in message
    assert not (tmp_path / "to").exists()
    with pytest.raises(GenomeError, match="no folder given"):
        fetch_genome("toy", tmp_path / "to", [], table(FOLDER))


@pytest.mark.parametrize("broken", ["apt-get", "dpkg-deb"])
def test_a_package_tool_that_fails_is_quoted(tmp_path, table, monkeypatch, broken):
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("apt-get", "dpkg-deb"):
        fails = f'echo "E: {name} has failed" >&2; exit 1' if name == broken else "touch toy.deb"
        (programs / name).write_text(f"#!/bin/sh\n{fails}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    with pytest.raises(GenomeError, match=f"{broken} can't .*E: {broken} has failed"):
        fetch_genome("toy", tmp_path / "to", table=table(PACKAGE))


def test_unknown_name(tmp_path, table):
    with pytest.raises(GenomeError, match=r"no genome named 'yeast' in .*; known: toy"):
        fetch_genome("yeast", tmp_path, table=table(FOLDER))


@pytest.mark.parametrize(
    ("place", "says"),
    [
        (FOLDER | URL, "exactly one"),
        ({}, "exactly one"),
        ({"debian": "toy"}, "go together"),
        ({"url": "http://example.org"}, "https"),
    ],
)
def test_a_place_that_is_none(table, place, says):
    with pytest.raises(ConfigError, match=says):
        load_genomes(table(place))


def test_the_shipped_table():
    table = load_genomes()
    assert {"ecoli_k12", "lambda", "human_chr20"} <= set(table)
    assert len({genome.sequence_sha256 for genome in table.values()}) == len(table)
    for name, genome in table.items():
        kinds = [next(kind for kind in ("folder", "debian", "url") if getattr(place, kind)) for place in genome.places]
        assert kinds == sorted(kinds, key=["folder", "debian", "url"].index), name
        assert kinds[-1] == "url"
        assert genome.num_bases > 0
    assert GENOME_TABLE.is_file()


def test_tool(tmp_path, folder):
    tool = [sys.executable, str(REPOSITORY / "tools" / "fetch_genomes.py")]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    listed = subprocess.run(tool, capture_output=True, text=True, check=True, env=environment)
    assert "ecoli_k12" in listed.stdout
    unknown = subprocess.run(
        [*tool, "yeast", "--to", str(tmp_path)], capture_output=True, text=True, check=False, env=environment
    )
    assert unknown.returncode == 1
    assert "no genome named 'yeast'" in unknown.stderr
    assert "Traceback" not in unknown.stderr
