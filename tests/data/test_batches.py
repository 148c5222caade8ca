"""Batches: their layout, and an order that neither ranks nor restarts change."""

import threading

import numpy as np
import pytest
import torch

from hyena_blt_savanna.data.batches import Batch, BatchLoader, EvaluationWindows, TrainingSamples, collate
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.indexed import IndexedReader
from hyena_blt_savanna.data.weights import loss_weights
from hyena_blt_savanna.data.windows import Window, WindowReader
from hyena_blt_savanna.testing.toy_genomes import random_genome, write_dataset, write_random_boundaries


def make_window(text: bytes, lengths: list[int], **fields) -> Window:
    return Window(np.frombuffer(text, dtype=np.uint8), np.array(lengths, dtype=np.int32), 0, **fields)


def test_layout_of_a_batch():
    windows = [
        make_window(b"ACgtN@R\0", [3, 5]),
        make_window(b"S|\0|T;A|C\0|A_", [2, 1, 10], num_leading_tag_bytes=2, num_cut_patches=4),
        make_window(b"", []),
    ]
    batch = collate(windows, repeat_weight=0.25)
    front, pad = b"\0", b"\1"
    expected = [front + b"ACGTN@R\0" + pad * 5, front + b"S|\0|T;A|C\0|A_", front + pad * 13]
    assert batch.bases.dtype == torch.int64
    assert [bytes(row.tolist()) for row in batch.bases] == expected
    assert batch.patch_lengths.dtype == torch.int32
    assert batch.patch_lengths.tolist() == [[1, 3, 5, 0], [1, 2, 1, 10], [1, 0, 0, 0]]
    assert batch.loss_weights.dtype == torch.float32
    quarter = 0.25
    assert batch.loss_weights.tolist() == [
        [0, 1, 1, quarter, quarter, 0, 0, 0, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0],
        [0] * 14,
    ]
    assert batch.num_scored_bases == 8
    assert batch.num_bases == 21
    assert batch.num_cut_patches == 4


def test_padding_to_a_given_size():
    window = make_window(b"ACGT", [4])
    batch = collate([window], pad_bases_to=9, pad_patches_to=3)
    assert batch.bases.tolist() == [[0, *b"ACGT", 1, 1, 1, 1]]
    assert batch.patch_lengths.tolist() == [[1, 4, 0]]
    # What is needed is never cut.
    assert collate([window], pad_bases_to=2, pad_patches_to=1).bases.shape == (1, 5)


def test_moving_a_batch():
    batch = collate([make_window(b"ACGT", [4], num_cut_patches=2)]).to("meta")
    assert {batch.bases.device.type, batch.patch_lengths.device.type, batch.loss_weights.device.type} == {"meta"}
    assert batch.num_cut_patches == 2


class TestTrainingSamples:
    WINDOW = 2000

    def test_an_epoch_has_every_window_of_both_strands_once(self, toy):
        samples = TrainingSamples(toy, seed=3)
        num_windows = samples.num_windows(self.WINDOW)
        assert num_windows == 2 * -(-samples.num_bytes // self.WINDOW)
        for epoch in (0, 1):
            drawn = [samples.sample(0, self.WINDOW, epoch * num_windows + i) for i in range(num_windows)]
            seen = {"forward": np.zeros(samples.num_bytes), "reverse": np.zeros(samples.num_bytes)}
            readers = {strand: WindowReader(toy, "patches", strand) for strand in seen}
            for window in drawn:
                places = (window.start + np.arange(len(window.bases))) % samples.num_bytes
                equal = [
                    strand
                    for strand, reader in readers.items()
                    if np.array_equal(reader.bases.read(0, samples.num_bytes)[places], window.bases)
                ]
                assert len(equal) == 1
                seen[equal[0]][places] += 1
            assert min(counts.min() for counts in seen.values()) == 1

    def test_the_grid_and_the_order_depend_on_seed_stage_and_epoch(self, toy):
        def starts(seed, stage, epoch):
            samples = TrainingSamples(toy, seed=seed)
            first = epoch * samples.num_windows(self.WINDOW)
            return tuple(samples.sample(stage, self.WINDOW, first + i).start for i in range(5))

        assert starts(0, 0, 0) == starts(0, 0, 0)
        assert len({starts(*key) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]}) == 4

    def test_one_strand(self, toy):
        samples = TrainingSamples(toy, strands="forward")
        assert samples.num_windows(self.WINDOW) == -(-samples.num_bytes // self.WINDOW)
        stream = IndexedReader(toy).stream
        window = samples.sample(0, self.WINDOW, 1)
        places = (window.start + np.arange(len(window.bases))) % len(stream)
        assert np.array_equal(stream[places], window.bases)

    def test_too_many_patches_are_cut_and_counted(self, toy):
        whole = TrainingSamples(toy).sample(0, self.WINDOW, 4)
        cut = TrainingSamples(toy, window_patches=50).sample(0, self.WINDOW, 4)
        assert np.array_equal(cut.patch_lengths, whole.patch_lengths[:50])
        assert cut.num_cut_patches == len(whole.patch_lengths) - 50 > 0

    def test_a_stream_shorter_than_a_window_is_refused(self, toy):
        samples = TrainingSamples(toy)
        too_long = samples.num_bytes + 1
        with pytest.raises(DataError, match=r"train\.bin has .* fewer than one window of"):
            samples.sample(0, too_long, 0)
        assert samples.num_windows(samples.num_bytes) == 2

    def test_a_patch_longer_than_a_window_is_refused(self, toy):
        with pytest.raises(DataError, match="longest patch has 16 bases, more than a window of 15"):
            TrainingSamples(toy).num_windows(15)


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("bases", "patch_lengths", "loss_weights"))


def rows(batches: list[Batch]) -> list[list[int]]:
    """Rows without padding, comparable whatever they were padded to."""
    result = []
    for batch in batches:
        for bases, lengths in zip(batch.bases, batch.patch_lengths, strict=True):
            result.append(bases[: int(lengths.sum())].tolist() + lengths[lengths > 0].tolist())
    return result


class TestBatchLoader:
    @pytest.fixture
    def samples(self, toy):
        return TrainingSamples(toy, seed=5, repeat_weight=0.1)

    def load(self, samples, num_steps, rank=0, num_ranks=1, micro=2, start_step=0):
        with BatchLoader(samples, 1, 500, 8, rank, num_ranks, micro, start_step) as loader:
            return [next(loader) for _ in range(num_steps * loader.micro_batches_per_step)]

    def test_batches_are_the_samples_in_order(self, samples):
        expected = [collate([samples.sample(1, 500, i), samples.sample(1, 500, i + 1)], 0.1) for i in range(0, 24, 2)]
        found = self.load(samples, 3)
        assert len(found) == len(expected)
        assert all(same(a, b) for a, b in zip(found, expected, strict=True))
        assert (found[0].loss_weights == torch.tensor(0.1)).any()

    def test_resuming_gives_the_same_batches(self, samples):
        whole = self.load(samples, 5)
        resumed = self.load(samples, 3, start_step=2)
        assert all(same(a, b) for a, b in zip(whole[8:], resumed, strict=True))

    @pytest.mark.parametrize(("num_ranks", "micro"), [(1, 8), (1, 1), (2, 2), (2, 1), (4, 2), (8, 1)])
    def test_ranks_share_the_same_samples_in_the_same_order(self, samples, num_ranks, micro):
        expected = rows(self.load(samples, 2))
        by_rank = [self.load(samples, 2, rank, num_ranks, micro) for rank in range(num_ranks)]
        per_step = 8 // num_ranks // micro
        found = []
        for step in range(2):
            for batches in by_rank:
                found += rows(batches[step * per_step : (step + 1) * per_step])
        assert found == expected

    def test_epochs_follow_one_another_within_a_step(self, tmp_path):
        write_dataset(tmp_path / "train", [random_genome(999)])
        write_random_boundaries(tmp_path / "train")
        samples = TrainingSamples(tmp_path / "train")
        assert samples.num_windows(300) == 8
        with BatchLoader(samples, 0, 300, 6, micro_batch_windows=6) as loader:
            found = rows([next(loader) for _ in range(3)])
        assert found == rows([collate([samples.sample(0, 300, i)]) for i in range(18)])

    def test_more_ranks_than_windows(self, tmp_path):
        write_dataset(tmp_path / "train", [random_genome(999)])
        write_random_boundaries(tmp_path / "train")
        samples = TrainingSamples(tmp_path / "train")
        with pytest.raises(DataError, match=r"has 8 windows of 300 bases, but 5 ranks with micro batches of 2 need 10"):
            BatchLoader(samples, 0, 300, 10, 0, 5, 2)

    def test_a_step_that_cannot_be_divided(self, samples):
        with pytest.raises(DataError, match=r"batch_windows 6 can't be divided among 2 ranks .* multiple of 4"):
            BatchLoader(samples, 0, 300, 6, 0, 2, 2)

    def test_an_error_of_the_thread_is_raised_where_batches_are_asked_for(self, samples, monkeypatch):
        def broken(*_):
            raise OSError("the disk has gone")

        monkeypatch.setattr(samples, "find", broken)
        loader = BatchLoader(samples, 0, 300, 2)
        with pytest.raises(OSError, match="the disk has gone"):
            next(loader)
        with pytest.raises(StopIteration):
            next(loader)

    def test_closing_ends_the_thread(self, samples):
        before = threading.active_count()
        loader = BatchLoader(samples, 0, 300, 2)
        next(loader)
        assert threading.active_count() == before + 1
        loader.close()
        assert threading.active_count() == before
        assert list(loader) == []


@pytest.mark.parametrize("strand", ["forward", "reverse"])
def test_evaluation_sees_every_base_once(toy, strand):
    windows = EvaluationWindows(toy, "patches", strand, 5000)
    reader = WindowReader(toy, "patches", strand)
    whole = reader.find(0, reader.num_bytes).read()
    assert len(windows) == len(list(windows))
    assert np.array_equal(np.concatenate([window.bases for window in windows]), whole.bases)
    assert np.array_equal(np.concatenate([window.patch_lengths for window in windows]), whole.patch_lengths)
    weights = [loss_weights(window.bases, 1.0, window.num_leading_tag_bytes) for window in windows]
    assert np.array_equal(np.concatenate(weights), loss_weights(whole.bases, 1.0, whole.num_leading_tag_bytes))
    assert all(len(window.bases) for window in windows)
    with pytest.raises(IndexError):
        windows[len(windows)]
