"""Exports load by transformers, with and without this package, and say what the native models say."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.conversion import transformers_export
from hyena_blt_savanna.conversion.huggingface.causal_lm import GenomeModelError
from hyena_blt_savanna.conversion.huggingface.configuration_hyena_blt import GenomeConfig
from hyena_blt_savanna.conversion.huggingface.modeling_hyena_blt import HyenaBLTForCausalLM
from hyena_blt_savanna.conversion.huggingface.tokenization_hyena_blt import GenomeTokenizer
from hyena_blt_savanna.conversion.transformers_export import load, write
from hyena_blt_savanna.conversion.weights import ConversionError, ModelWeights
from hyena_blt_savanna.evaluation.generation import generate
from hyena_blt_savanna.evaluation.pretrained import HyenaBLTModel
from hyena_blt_savanna.evaluation.row_readers import WholePassRows, row_reader
from hyena_blt_savanna.evaluation.tensor_files import lazy
from hyena_blt_savanna.model.hnet import HNetConfig
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.model.kmer_tokens import KmerTokensConfig
from hyena_blt_savanna.nucleotides import NUM_SCORED, SCORED
from hyena_blt_savanna.patching.entropy_models import EntropyModelError
from hyena_blt_savanna.patching.neural import NeuralConfig, NeuralModel
from hyena_blt_savanna.patching.ngram import NgramConfig
from hyena_blt_savanna.patching.patcher import Patcher
from hyena_blt_savanna.patching.rules import BudgetRule, EntropyRule, StaticRule
from hyena_blt_savanna.testing.toy_genomes import random_genome

STACK = {"width": 16, "num_heads": 2, "blocks": ["hyena_se", "hyena_mr", "attention"]}
HYBRID = {
    "local_width": 12,
    "max_patch_bases": 8,
    "kmers": {"sizes": [2, 3, 4]},
    "encoder": {"blocks": ["gated_convolution"], "num_taps": 3, "hidden_width": 16},
    "global_model": {"width": 16, "num_heads": 2, "blocks": ["hyena_se", "hyena_li", "attention"]},
    "decoder": {"blocks": ["gated_convolution"] * 2, "num_taps": 4, "hidden_width": 16},
}
CASES = ["isotropic", "scored", "static", "ngram", "neural"]
SEQUENCE = "acgttgcaNNACGGTRTTACGAGCAT" * 5 + "GAT"
SCORED_COLUMNS = list(SCORED)
NO_END = {"suppress_tokens": [index for index in range(512) if chr(index) not in "ACGT"]}


def configs() -> dict[str, Config]:
    hybrid = HyenaBLTConfig.parse(HYBRID)
    return {
        "isotropic": IsotropicConfig.parse({"stack": STACK}),
        "scored": IsotropicConfig.parse({"stack": STACK, "head": "scored", "kmers": {"sizes": [3, 5]}}),
        "static": hybrid,
        "ngram": hybrid,
        "neural": hybrid,
    }


def patchers() -> dict[str, Patcher | None]:
    torch.manual_seed(4)
    network = IsotropicConfig.parse({"stack": {"width": 8, "blocks": ["hyena_se"]}, "head": "scored"})
    neural = NeuralModel(NeuralConfig(model=network), network.build().state_dict())
    ngram = NgramConfig(order=3).fit(random_genome(20_000, seed=5))
    return {
        "static": Patcher(None, StaticRule(patch_bases=4, max_patch_bases=8)),
        "ngram": Patcher(ngram, BudgetRule(budget_nats=6.0, max_patch_bases=8), about={"trained_on": "toys"}),
        "neural": Patcher(neural, EntropyRule(threshold_nats=1.3855, max_patch_bases=8)),
    }


def build(config: Config, seed: int = 0) -> torch.nn.Module:
    """A model none of whose weights is zero, and whose logits differ a lot."""
    torch.manual_seed(seed)
    module = config.build()  # type: ignore[attr-defined]
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "head" in name or "start" in name or "embedding" in name or parameter.abs().max() == 0:
                parameter.normal_(std=0.5)
    return module.eval()


def weights_of(model: HyenaBLTModel) -> ModelWeights:
    tensors = {name: lazy(tensor) for name, tensor in model.module.state_dict().items()}
    return ModelWeights(model.config, tensors, model.patcher, 4096, {"data_sha256": "abc", "left_out": None})


@pytest.fixture(scope="module")
def natives() -> dict[str, HyenaBLTModel]:
    torch.set_num_threads(1)
    cutters = patchers()
    return {name: HyenaBLTModel(build(config), config, cutters.get(name)) for name, config in configs().items()}


@pytest.fixture(scope="module")
def folders(natives: dict[str, HyenaBLTModel], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("exports")
    for name, model in natives.items():
        assert write(weights_of(model), place / name) == []
    return {name: place / name for name in natives}


@pytest.fixture
def tokenizer(folders: dict[str, Path]) -> GenomeTokenizer:
    return GenomeTokenizer.from_pretrained(folders["static"])


def native_logits(model: HyenaBLTModel, sequence: str) -> torch.Tensor:
    """[1 + L, C] of a sequence behind its end-of-document byte, the last ones as generation has them."""
    bases = np.frombuffer(sequence.upper().encode(), dtype=np.uint8)
    is_hybrid = model.patcher is not None
    lengths = [1, *(model.patcher.segment_sequence(bases) if is_hybrid and sequence else [])]
    with torch.inference_mode():
        reader = row_reader(model, [bases]) if is_hybrid else WholePassRows(model.module, None, [bases], model.device)
        ids = torch.tensor([[0, *bases]])
        logits = model.module(ids, torch.tensor([lengths], dtype=torch.int32))[0]
        return torch.cat([logits[:-1], reader.ready()[1]])


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_native_model(
    name: str, natives: dict[str, HyenaBLTModel], folders: dict[str, Path], tokenizer: GenomeTokenizer
) -> None:
    model = load(folders[name])
    for num_bases in (0, 1, 7, len(SEQUENCE)):
        wanted = native_logits(natives[name], SEQUENCE[:num_bases])
        with torch.inference_mode():
            found = model(**tokenizer(SEQUENCE[:num_bases], return_tensors="pt")).logits
        assert found.shape == (1, 1 + num_bases, 512)
        is_narrow = wanted.shape[1] == NUM_SCORED
        torch.testing.assert_close(found[0, :, SCORED_COLUMNS] if is_narrow else found[0], wanted, rtol=0, atol=1e-5)
        if is_narrow:
            others = [index for index in range(512) if index not in SCORED_COLUMNS]
            assert (found[0, :, others] == torch.finfo(torch.float32).min).all()


@pytest.mark.parametrize("name", ["isotropic", "ngram", "static"])
def test_greedy_generation_is_that_of_the_native_model(
    name: str, natives: dict[str, HyenaBLTModel], folders: dict[str, Path], tokenizer: GenomeTokenizer
) -> None:
    model, native, prompt = load(folders[name]), natives[name], "acgttgca"
    inputs = tokenizer(prompt, return_tensors="pt")
    endless = model.generate(**inputs, max_new_tokens=30, **NO_END)[0]
    assert tokenizer.decode(endless, skip_special_tokens=True) == native.generate(prompt, 38, temperature=0)
    wanted = generate(native, prompt, 30, temperature=0, stop_at_end=True)
    ids = model.generate(**inputs, max_new_tokens=30)[0]
    assert tokenizer.decode(ids, skip_special_tokens=True) == wanted.sequence
    assert wanted.ended == (ids[-1] == 0)


def test_generation_ends_with_the_document(folders: dict[str, Path], tokenizer: GenomeTokenizer) -> None:
    model = load(folders["static"])
    with torch.no_grad():
        # The last column scores the end: a model that always ends.
        model.model.decoder.norm.weight.zero_()
        model.model.decoder.head = torch.nn.Linear(12, NUM_SCORED)
        model.model.decoder.head.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.0, 9.0]))
    ids = model.generate(**tokenizer("ACGT", return_tensors="pt"), max_new_tokens=9)[0]
    assert ids.tolist() == [0, *b"ACGT", 0]


@pytest.mark.parametrize("name", ["isotropic", "ngram"])
def test_samples_follow_the_models_probabilities(
    name: str, natives: dict[str, HyenaBLTModel], folders: dict[str, Path], tokenizer: GenomeTokenizer
) -> None:
    model, num_drawn = load(folders[name]), 4000
    torch.manual_seed(1)
    inputs = tokenizer(["ACGTT"] * num_drawn, return_tensors="pt")
    drawn = model.generate(**inputs, do_sample=True, top_k=0, temperature=2.0, max_new_tokens=1)[:, -1]
    logits = native_logits(natives[name], "ACGTT")[-1]
    columns = SCORED_COLUMNS if len(logits) == 512 else list(range(NUM_SCORED))
    wanted = (logits[columns] / 2).softmax(0)
    found = torch.stack([(drawn == byte).float().mean() for byte in SCORED_COLUMNS])
    assert found.sum() == 1
    torch.testing.assert_close(found, wanted, rtol=0, atol=5 * 0.5 / num_drawn**0.5)


@pytest.mark.parametrize("name", ["isotropic", "ngram"])
def test_hidden_states_are_those_of_the_native_model(
    name: str, natives: dict[str, HyenaBLTModel], folders: dict[str, Path], tokenizer: GenomeTokenizer
) -> None:
    wanted = natives[name].embed(SEQUENCE)
    inputs = tokenizer(SEQUENCE, return_tensors="pt")
    model = load(folders[name])
    with torch.inference_mode():
        found = model(**inputs, output_hidden_states=True)
        assert model(**inputs).hidden_states is None
    np.testing.assert_allclose(found.hidden_states[-1][0, 1:], wanted.bases, atol=1e-5)
    if name == "isotropic":
        module = natives[name].module
        with torch.inference_mode():
            x = module.embedding(torch.tensor([[0, *SEQUENCE.upper().encode()]]))
            for depth, block in enumerate(module.stack.blocks[:-1]):
                torch.testing.assert_close(found.hidden_states[depth], x, rtol=0, atol=1e-5)
                x = block(x)
        assert len(found.hidden_states) == 1 + len(module.stack.blocks)
        assert found.patch_states is None
        return
    # The last patch is finished only if the base behind it starts one.
    finished = found.patch_lengths[0, 1:].numpy()
    assert len(finished) in (len(wanted.patch_lengths) - 1, len(wanted.patch_lengths))
    np.testing.assert_array_equal(finished, wanted.patch_lengths[: len(finished)])
    np.testing.assert_allclose(found.patch_states[0, 1:], wanted.patches[: len(finished)], atol=1e-5)


@pytest.mark.parametrize("name", ["isotropic", "ngram", "static"])
def test_padding_on_the_right_changes_nothing(name: str, folders: dict[str, Path], tokenizer: GenomeTokenizer) -> None:
    model, texts = load(folders[name]), [SEQUENCE[:40], SEQUENCE[5:14], ""]
    together = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.inference_mode():
        logits = model(**together).logits
        last = model(**together, logits_to_keep=2).logits
        lengths = model(**together).patch_lengths
        for row, text in enumerate(texts):
            alone = model(**tokenizer(text, return_tensors="pt"))
            found = logits[row, : alone.logits.shape[1]]
            torch.testing.assert_close(found, alone.logits[0], rtol=0, atol=1e-5)
            if lengths is not None:
                assert [length for length in lengths[row].tolist() if length] == alone.patch_lengths[0].tolist()
    torch.testing.assert_close(last, logits[:, -2:], rtol=0, atol=0)
    left = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    with pytest.raises(GenomeModelError, match="padded on the right"):
        model(**left)
    # What is drawn behind padding would not follow its prompt.
    with pytest.raises(GenomeModelError, match="generate for prompts of one length"):
        model.generate(**together, max_new_tokens=2)


@pytest.mark.parametrize("name", CASES)
def test_saving_and_loading_keeps_all(
    name: str,
    natives: dict[str, HyenaBLTModel],
    folders: dict[str, Path],
    tokenizer: GenomeTokenizer,
    tmp_path: Path,
) -> None:
    model, module = load(folders[name]), natives[name].module
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    wanted = dict(module.named_buffers()) | module.state_dict()
    held = {**dict(again.model.named_buffers()), **again.model.state_dict()}
    assert held.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert torch.equal(held[key], tensor), key
    inputs = tokenizer(SEQUENCE, return_tensors="pt")
    with torch.inference_mode():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    if natives[name].patcher is not None:
        assert again.patcher.describe() == natives[name].patcher.describe()
        assert again.patcher.about == natives[name].patcher.about
    assert (again.config.window_bases, again.config.trained_on["data_sha256"]) == (4096, "abc")


@pytest.mark.parametrize("name", ["isotropic", "ngram"])
def test_a_dtype_is_that_of_the_cast_native_model(
    name: str, natives: dict[str, HyenaBLTModel], folders: dict[str, Path], tokenizer: GenomeTokenizer
) -> None:
    model = type(load(folders[name])).from_pretrained(folders[name], dtype=torch.bfloat16)
    native = HyenaBLTModel(build(natives[name].config).bfloat16(), natives[name].config, natives[name].patcher)
    wanted = native_logits(native, SEQUENCE)
    with torch.inference_mode():
        found = model(**tokenizer(SEQUENCE, return_tensors="pt")).logits[0]
    assert found.dtype == torch.bfloat16
    columns = SCORED_COLUMNS if wanted.shape[1] == NUM_SCORED else list(range(512))
    assert torch.equal(found[:-1, columns], wanted[:-1])


@pytest.mark.parametrize("name", ["isotropic", "scored", "ngram"])
def test_the_loss_counts_the_bases_that_are_scored(
    name: str, natives: dict[str, HyenaBLTModel], folders: dict[str, Path], tokenizer: GenomeTokenizer
) -> None:
    model, text = load(folders[name]), "|D__ACGT;P__T|acgNNACGTRacga#CCAT"
    inputs = tokenizer(text, return_tensors="pt")
    wanted = natives[name].score(text)
    num_scored = int((~np.isnan(wanted.log_likelihoods)).sum())
    with torch.inference_mode():
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        share = model(**inputs, labels=inputs["input_ids"], num_items_in_batch=100).loss
        ignored = inputs["input_ids"].clone()
        ignored[:, :-1] = -100
        last = model(**inputs, labels=ignored).loss
    assert loss.item() == pytest.approx(-wanted.total / num_scored, rel=1e-5)
    assert share.item() == pytest.approx(-wanted.total / 100, rel=1e-5)
    assert last.item() == pytest.approx(-wanted.log_likelihoods[-1], rel=1e-5)


def test_training_with_auxiliary_losses_reads_the_bases_loss_alone(
    tmp_path: Path, natives: dict[str, HyenaBLTModel], tokenizer: GenomeTokenizer
) -> None:
    config = HyenaBLTConfig.parse(HYBRID | {"auxiliary": {"reconstruction": 0.5}})
    native = HyenaBLTModel(build(config), config, natives["static"].patcher)
    assert "auxiliary losses" in write(weights_of(native), tmp_path / "export")[0]
    model = load(tmp_path / "export").train()
    inputs = tokenizer(SEQUENCE, return_tensors="pt")
    loss = model(**inputs, labels=inputs["input_ids"]).loss
    loss.backward()
    scored = ~np.isnan(native.score(SEQUENCE).log_likelihoods)
    assert loss.item() == pytest.approx(-native.score(SEQUENCE).total / scored.sum(), rel=1e-5)
    assert model.model.encoder.embedding.bases.weight.grad.abs().max() > 0


def test_the_tokenizer_knows_its_vocabulary(tokenizer: GenomeTokenizer) -> None:
    assert (len(tokenizer), tokenizer.vocab_size) == (512, 512)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 0, 1)
    assert tokenizer.model_max_length == 4096
    assert tokenizer.decode([65, 300, 67]) == "AC"
    assert tokenizer(["A", "ACG"], padding=True)["input_ids"] == [[0, 65, 1, 1], [0, 65, 67, 71]]


def test_shards_load_as_one_file_does(
    natives: dict[str, HyenaBLTModel], folders: dict[str, Path], tokenizer: GenomeTokenizer, tmp_path: Path
) -> None:
    write(weights_of(natives["ngram"]), tmp_path / "sharded", shard_bytes=10_000)
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    inputs = tokenizer(SEQUENCE, return_tensors="pt")
    with torch.inference_mode():
        assert torch.equal(load(tmp_path / "sharded")(**inputs).logits, load(folders["ngram"])(**inputs).logits)


@pytest.mark.parametrize("name", ["isotropic", "ngram"])
def test_the_code_is_closed_and_lies_where_transformers_looks(name: str, folders: dict[str, Path]) -> None:
    from transformers.dynamic_module_utils import get_relative_import_files

    files = {path.name for path in folders[name].glob("*.py")}
    for file in files:
        for node in ast.walk(ast.parse((folders[name] / file).read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("hyena_blt_savanna.")
                wanted = {f"{node.module}.py"} if node.module else {f"{alias.name}.py" for alias in node.names}
                assert node.level == 0 or wanted <= files
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("hyena_blt_savanna") for alias in node.names)
    auto_map = json.loads((folders[name] / "config.json").read_text())["auto_map"]
    entries = [folders[name] / f"{reference.split('.')[0]}.py" for reference in auto_map.values()]
    found = {Path(file).name for entry in entries for file in get_relative_import_files(str(entry))}
    assert found | {entry.name for entry in entries} | {"tokenization_hyena_blt.py"} == files
    needed = {line.split("==")[0] for line in (folders[name] / "requirements.txt").read_text().splitlines()[1:]}
    assert {"torch", "transformers", "pydantic", "pyyaml"} <= needed
    assert ("numba" in needed) == (name == "ngram")
    assert not {"deepspeed", "megatron", "matplotlib"} & needed
    # The isotropic model names the hybrid for type checkers only.
    assert ("hyena_blt_savanna_model_hyena_blt.py" in files) == (name == "ngram")


SCRIPT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hyena_blt_savanna":
            raise ModuleNotFoundError(f"{name} is not here")

sys.meta_path.insert(0, Blocked())
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

torch.set_num_threads(1)
sequence, *folders = sys.argv[1:]
for folder in folders:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    inputs = tokenizer(sequence, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs).logits
    drawn = model.generate(**tokenizer("acgttgca", return_tensors="pt"), max_new_tokens=8)[0]
    model.save_pretrained(folder + "_again")
    tokenizer.save_pretrained(folder + "_again")
    again = AutoModelForCausalLM.from_pretrained(folder + "_again", trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder + "_again", trust_remote_code=True)
    with torch.inference_mode():
        assert torch.equal(again(**tokenizer(sequence, return_tensors="pt")).logits, logits)
    np.savez(folder + ".npz", logits=logits, text=tokenizer.decode(drawn, skip_special_tokens=True))
assert not any(name.split(".")[0] == "hyena_blt_savanna" for name in sys.modules)
"""


def test_a_folder_loads_without_this_package(
    natives: dict[str, HyenaBLTModel], folders: dict[str, Path], tmp_path: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "HF_HOME": str(tmp_path / "home"),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
        # The kernels' copies would be compiled anew, for longer than they run.
        "NUMBA_DISABLE_JIT": "1",
        "OMP_NUM_THREADS": "1",
    }
    # One process loads both, and transformers tells code apart by the names of folders, too.
    copies = {name: tmp_path / name / "export" for name in ("isotropic", "ngram")}
    for name, copy in copies.items():
        shutil.copytree(folders[name], copy)
    command = [sys.executable, "-c", SCRIPT, SEQUENCE, *map(str, copies.values())]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, copy in copies.items():
        found = np.load(f"{copy}.npz")
        wanted = native_logits(natives[name], SEQUENCE)
        columns = SCORED_COLUMNS if wanted.shape[1] == NUM_SCORED else list(range(512))
        np.testing.assert_allclose(found["logits"][0][:, columns], wanted, atol=1e-5)
        assert str(found["text"]) == generate(natives[name], "acgttgca", 8, temperature=0, stop_at_end=True).sequence


@pytest.mark.parametrize("call", [lambda weights, path: write(weights, path), lambda weights, path: load(path)])
def test_without_transformers_it_says_what_to_install(
    call: Callable[[ModelWeights, Path], None],
    natives: dict[str, HyenaBLTModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConversionError, match=r"not installed: pip install transformers==5\.23\.0"):
        call(weights_of(natives["static"]), tmp_path / "export")


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (HNetConfig.model_construct(kind="hnet"), "hnet"),
        (KmerTokensConfig.model_construct(kind="kmer_tokens"), "kmer_tokens"),
    ],
)
def test_other_models_are_refused(config: Config, kind: str, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=f"model.kind is '{kind}'.*hyena_blt and isotropic models are exported"):
        write(ModelWeights(config, {}), tmp_path / "export")


def test_what_does_not_fit_is_refused(natives: dict[str, HyenaBLTModel], tmp_path: Path) -> None:
    weights = weights_of(natives["static"])
    fields = (weights.config, weights.tensors)
    with pytest.raises(ConversionError, match="no patcher"):
        write(ModelWeights(*fields), tmp_path / "export")
    long = Patcher(None, StaticRule(patch_bases=9, max_patch_bases=9))
    with pytest.raises(ConversionError, match="up to 9 bases, and the model has places for 8"):
        write(ModelWeights(*fields, long), tmp_path / "export")
    fewer = {name: tensor for name, tensor in weights.tensors.items() if name != "decoder.start"}
    with pytest.raises(ConversionError, match=r"decoder\.start is missing"):
        write(ModelWeights(weights.config, fewer, weights.patcher), tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_nothing(
    natives: dict[str, HyenaBLTModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path, kind: str) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(transformers_export, "_write_code", fail)
    with pytest.raises(OSError, match="no space left"):
        write(weights_of(natives["static"]), tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConversionError, match=re.escape(f"{tmp_path} holds no model that was exported")):
        load(tmp_path)


def test_damaged_folders_are_refused(
    natives: dict[str, HyenaBLTModel], tokenizer: GenomeTokenizer, tmp_path: Path
) -> None:
    write(weights_of(natives["ngram"]), tmp_path / "export")
    path = tmp_path / "export" / "model.safetensors"
    held = load_file(path)
    save_file({name: tensor for name, tensor in held.items() if "start" not in name}, path, {"format": "pt"})
    with pytest.raises(GenomeModelError, match=r"lacks weights.*model\.decoder\.start"):
        load(tmp_path / "export")
    held["entropy_model"][-1] ^= 1
    save_file(held, path, {"format": "pt"})
    with pytest.raises(EntropyModelError, match="not those of its digest"):
        load(tmp_path / "export")(**tokenizer("ACGT", return_tensors="pt"))


def test_a_hybrid_needs_a_patcher_and_reads_bytes(folders: dict[str, Path]) -> None:
    with pytest.raises(GenomeModelError, match=r"config\.json has no patcher"):
        HyenaBLTForCausalLM(GenomeConfig(architecture=HYBRID))
    with pytest.raises(GenomeModelError, match="go up to 300: bytes are 0 to 255"):
        load(folders["static"])(torch.tensor([[0, 65, 300]]))
