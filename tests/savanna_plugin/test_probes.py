"""What is left of the plugin after a run, whether both kinds of blocks agree, and data in both directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hyena_blt_savanna.conversion.savanna_data import IndexMaps, import_dataset
from hyena_blt_savanna.data.indexed import IndexedReader
from hyena_blt_savanna.data.manifest import read_manifest

Probed = tuple[Path, dict[str, Any]]


def test_nothing_is_left_behind(probed: Probed) -> None:
    leaks = probed[1]["leaks"]
    # After a run, and after one whose data were missing.
    assert leaks["changed"] == [[], []]
    assert float(leaks["before"].std()) > 0.05
    # A plain model of Savanna's builds as before.
    assert torch.equal(leaks["before"], leaks["after"])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("unknown key", "Savanna refuses this configuration: "),
        ("another model", "is a checkpoint of another model than Savanna's keys and hyena-blt describe"),
        ("another model of ours", "local_width"),
        ("no checkpoint", "global_step7 has neither mp_rank_00_model_states.pt nor"),
        ("long windows", "evaluation cuts none off: set hyena-blt.window_patches, which is 4, to at least"),
        ("broken data", "none.manifest.json"),
    ],
)
def test_what_only_savanna_can_tell_is_refused(probed: Probed, name: str, says: str) -> None:
    assert says in probed[1]["refusals"].get(name, "nothing was raised")


@pytest.mark.parametrize("activation", ["None", "gelu"])
def test_savannas_blocks_and_ours_give_the_same_logits(probed: Probed, activation: str) -> None:
    ours, theirs = probed[1]["blocks"][activation]
    assert float(ours.std()) > 0.1
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5 * float(ours.abs().max()))


def test_the_same_weights_decay(probed: Probed) -> None:
    ours, theirs = probed[1]["blocks"]["decaying"]
    assert len(ours) > 10
    assert theirs == ours


def test_longer_windows_are_refused(probed: Probed) -> None:
    assert "and hyena-blt.window_patches is 64: raise it" in probed[1]["blocks"]["too long"]


def test_the_activation_of_the_mlps_matters(probed: Probed) -> None:
    blocks = probed[1]["blocks"]
    assert float((blocks["None"][0] - blocks["gelu"][0]).abs().max()) > 1e-3


def test_savanna_reads_our_data(probed: Probed, toy_data: Path) -> None:
    reader = IndexedReader(toy_data / "train")
    assert len(probed[1]["data"]["ours"]) == reader.num_documents
    for index, document in enumerate(probed[1]["data"]["ours"]):
        np.testing.assert_array_equal(document, reader.document(index))


def test_savannas_data_become_ours(probed: Probed, tmp_path: Path) -> None:
    source = IndexedReader(probed[0] / "uint16")
    manifest = import_dataset(probed[0] / "uint16", tmp_path / "train")
    ours = IndexedReader(tmp_path / "train")
    assert (source.stream.dtype, ours.stream.dtype) == (np.uint16, np.uint8)
    np.testing.assert_array_equal(ours.stream, source.stream)
    np.testing.assert_array_equal(ours.document_starts, source.document_starts)
    assert manifest.num_bases == 5 + 70 + 33 + 1 + 200
    assert read_manifest(tmp_path / "train") == manifest


def test_samples_come_in_savannas_order(probed: Probed) -> None:
    folder, found = probed
    reader = IndexedReader(folder / "uint16")
    maps = IndexMaps(folder / "uint16", "train_0", 40, 32, 7)
    assert len(maps) == len(found["data"]["samples"]) >= 40
    for index, sample in enumerate(found["data"]["samples"]):
        pieces = maps.pieces(index)
        tokens = np.concatenate([reader.document(piece.document)[piece.start : piece.stop] for piece in pieces])
        np.testing.assert_array_equal(tokens, sample)
    assert any(len(maps.pieces(index)) > 1 for index in range(len(maps)))
