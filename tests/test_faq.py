"""The answers of docs/faq.md are backed by what exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_each_answer_is_backed():
    text = (ROOT / "docs" / "faq.md").read_text()
    answers = re.split(r"\n(?=\d+\. \*\*)", text)[1:]
    assert [int(answer.partition(".")[0]) for answer in answers] == list(range(1, 21))
    for answer in answers:
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", answer)
        assert named, answer
        for path, name in named:
            source = (ROOT / path).read_text()
            assert not name or f"def {name}(" in source, f"{path}::{name}"
        for path in re.findall(r"`((?:tools|launch|slurm|bench)/[\w./]+)`", answer):
            assert (ROOT / path).is_file(), path
        for path in re.findall(r"\]\(([\w-]+\.md)\)", answer):
            assert (ROOT / "docs" / path).is_file(), path


def test_the_cluster_page_names_what_exists():
    text = (ROOT / "docs" / "cluster.md").read_text()
    paths = re.findall(r"\b((?:tools|launch|slurm|bench|tests|configs)/[\w./*-]+\w)", text)
    assert len(paths) > 10
    for path in paths:
        if "MINE" not in path:
            assert list(ROOT.glob(path)), path
