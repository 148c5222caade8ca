"""Genomes, patch boundaries and held-out windows of a benchmark, made once in its work folder."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Sequence
from pathlib import Path

from hyena_blt_savanna.config import merge
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.genomes import fetch_genome, load_genomes
from hyena_blt_savanna.data.manifest import read_annotation_manifest
from hyena_blt_savanna.data.prepare import DataConfig, prepare_dataset
from hyena_blt_savanna.patching.annotate import annotate_dataset
from hyena_blt_savanna.patching.annotation_flops import ModelTraining, annotation_flops
from hyena_blt_savanna.patching.control import permute_annotation
from hyena_blt_savanna.quality.config import AnnotationChoice, Benchmark, NeuralChoice, digest_of
from hyena_blt_savanna.quality.held_out import HeldOut, find_held_out
from hyena_blt_savanna.quality.processes import last_line, run_process
from hyena_blt_savanna.quality.recipe import Boundaries, EntropyCost
from hyena_blt_savanna.training.run_config import RunConfig

logger = logging.getLogger(__name__)


class Datasets:
    """What the trials of a benchmark read. Threads may share one: each thing is made once.

    Args:
        benchmark: what is compared.
        work: folder for the data.
        genomes: folders to look for FASTA files in.
        num_threads: of the training of a neural entropy model.

    Attributes:
        stop: ends such a training when set; it can go on.
    """

    def __init__(self, benchmark: Benchmark, work: Path, genomes: Sequence[Path] = (), num_threads: int = 1) -> None:
        self.stop = threading.Event()
        self._num_threads = num_threads
        self._benchmark = benchmark
        self._work = work
        self._genomes = list(genomes)
        self._lock = threading.Lock()
        self._folders: dict[str, Path] = {}
        self._boundaries: dict[tuple[str, str], Boundaries] = {}
        self._held_out: dict[tuple[str, int], HeldOut] = {}

    def folder(self, genome: str) -> Path:
        """The prepared dataset of a genome.

        Raises:
            DataError: no place has the genome, or it can't be read.
        """
        with self._lock:
            return self._folder(genome)

    def boundaries(self, contender: str, genome: str) -> Boundaries:
        """A contender's patches on a genome.

        Raises:
            ValueError: the recipe of the annotation has mistakes, or can't be followed.
            StoppedError: `stop` was set.
        """
        with self._lock:
            choice = self._benchmark.contenders[contender].annotation
            if choice is None:
                return Boundaries()
            key = (genome, choice.name)
            if key not in self._boundaries:
                self._boundaries[key] = self._annotate(choice, self._folder(genome))
            return self._boundaries[key]

    def held_out(self, genome: str, window_bases: int) -> HeldOut:
        """The held-out windows of a genome.

        Raises:
            DataError: no window is left.
        """
        with self._lock:
            key = (genome, window_bases)
            if key not in self._held_out:
                self._held_out[key] = find_held_out(self._folder(genome), window_bases, self._benchmark.config.held_out)
            return self._held_out[key]

    def window_bases(self, contender: str) -> int:
        """Bases of a training window."""
        tree = self._benchmark.tree(contender)
        draft = {**tree, "run": "draft", "data": {**tree.get("data", {}), "folder": "draft", "annotation": "draft"}}
        if self._benchmark.contenders[contender].annotation is None:
            draft["data"]["annotation"] = None
        return RunConfig.parse(draft, f"contender {contender}").training.stages[0].window_bases

    def _folder(self, genome: str) -> Path:
        if genome in self._folders:
            return self._folders[genome]
        config = self._benchmark.config.genomes[genome]
        fasta = config.fasta
        if fasta is None:
            if genome not in load_genomes():
                raise DataError(
                    f"genome {genome} has no fasta, and configs/data/genomes.yaml does not know it: set "
                    f"genomes.{genome}.fasta"
                )
            fasta = fetch_genome(genome, self._work / "genomes", self._genomes)
        elif not fasta.is_file():
            raise DataError(f"{fasta}: no such file; set genomes.{genome}.fasta to a FASTA file")
        folder = self._work / "data" / genome
        prepare_dataset(DataConfig(inputs=[fasta], output=folder, split=config.split))
        self._folders[genome] = folder
        return folder

    def _annotate(self, choice: AnnotationChoice, data: Path) -> Boundaries:
        source = self._benchmark.annotations[choice.permute] if choice.permute is not None else choice
        training = None
        if source.neural is not None:
            training = self._annotate_neural(source.name, source.neural, data)
        else:
            annotate_dataset(source.to_annotation_config(data))
        if choice.permute is not None:
            permute_annotation(data, source.name, choice.name, choice.seed)
        statistics = read_annotation_manifest(data / "train", choice.name).statistics["forward"]
        squares = sum(count * (length - statistics.mean_bases) ** 2 for length, count in statistics.histogram.items())
        spread = math.sqrt(squares / statistics.num_patches)
        spent = annotation_flops(data, choice.name, training)
        cost = EntropyCost(spent.total / spent.num_bases, spent.num_bases)
        return Boundaries(choice.name, statistics.mean_bases, spread, cost)

    def _annotate_neural(self, name: str, neural: NeuralChoice, data: Path) -> ModelTraining:
        run = self._work / "entropy" / f"{data.name}.{name}.{digest_of(merge(neural.recipe))[:8]}"
        log = run / "entropy_model.log"
        logger.info("%s: training the entropy models of %s", data, name)
        command = ["bash", "launch/entropy_model.sh", str(data.resolve()), str(run.resolve()), *neural.recipe]
        settings = {"FOLDS": str(neural.folds), "ANNOTATION": name}
        code = run_process(command, log, self._num_threads, self.stop, settings)
        if code != 0:
            raise DataError(f"launch/entropy_model.sh ended with code {code}, see {log}: {last_line(log)}")
        [stage] = RunConfig.load([run / "whole" / "config.yaml"]).training.stages
        return ModelTraining(stage.steps, stage.batch_windows, stage.window_bases)
