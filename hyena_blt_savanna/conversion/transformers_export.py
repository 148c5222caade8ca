"""Models as folders that Hugging Face transformers loads by itself, without this package.

FOLDER/model.safetensors, or shards        weights under the names of the torch module with `model.` before them, and
                                           the tensors of the entropy model as bytes
FOLDER/config.json                         the model's configuration, and the patcher
FOLDER/generation_config.json              end of document ends a sequence
FOLDER/tokenizer_config.json               a base is its byte
FOLDER/*.py                                code: this package's modules that the model needs, as flat files
FOLDER/requirements.txt, README.md         what the code needs, and how to use the folder
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hyena_blt_savanna
from hyena_blt_savanna.config import Config
from hyena_blt_savanna.conversion.huggingface import REQUIREMENT, why_missing
from hyena_blt_savanna.conversion.huggingface.flat_sources import ENTRIES, flatten
from hyena_blt_savanna.conversion.weights import ConversionError, ModelWeights, check_tensors, state_shapes
from hyena_blt_savanna.evaluation.native_checkpoint import patch_places
from hyena_blt_savanna.evaluation.sealed_folder import written_whole
from hyena_blt_savanna.evaluation.tensor_files import SHARD_BYTES, LazyTensor, lazy, write_safetensors
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.nucleotides import SCORED, VOCABULARY_SIZE

PREFIX = "model."
ENTROPY_MODEL = "entropy_model"
CLASSES = {
    "hyena_blt": "modeling_hyena_blt.HyenaBLTForCausalLM",
    "isotropic": "modeling_isotropic.IsotropicForCausalLM",
}
"""File and class of each kind of model that can be exported."""
CONFIG_CLASS = "configuration_hyena_blt.GenomeConfig"
TOKENIZER_CLASS = "tokenization_hyena_blt.GenomeTokenizer"
_DISTRIBUTIONS = {"yaml": "pyyaml"}
"""Names of packages that are imported by another name."""


def write(weights: ModelWeights, folder: Path, shard_bytes: int = SHARD_BYTES) -> list[str]:
    """Writes a model for transformers, whole or not at all.

    Args:
        weights: an isotropic model, or a hybrid with its patcher.
        folder: where; a folder of that name is replaced.
        shard_bytes: most bytes of one file of weights.

    Returns:
        What the folder does not hold, in words.

    Raises:
        ConversionError: transformers is not installed; the model is of another kind, a hybrid without a patcher or
            with one that does not fit it; or weights are missing.
    """
    _check_installed()
    kind = weights.config.to_dict()["kind"]
    if kind not in CLASSES:
        raise ConversionError(
            f"model.kind is {kind!r}, and there is no class of transformers for it: {' and '.join(CLASSES)} models are "
            "exported"
        )
    check_tensors(
        f"the {kind} model", state_shapes(weights.config), {name: x.shape for name, x in weights.tensors.items()}
    )
    packed, patcher_bytes = _pack_patcher(weights)
    with written_whole(folder) as partial:
        write_safetensors(partial, _tensors(weights, patcher_bytes), shard_bytes=shard_bytes)
        _write_configs(partial, weights, packed)
        _write_code(partial, kind)
    return _notes(weights.config)


def load(folder: Path) -> Any:
    """An exported model by this package's own classes and not by the folder's code.

    Args:
        folder: what `write` wrote.

    Returns:
        A `PreTrainedModel` in evaluation mode: `load(folder)(input_ids).logits`.

    Raises:
        ConversionError: transformers is not installed, or the folder holds no model of this export.
        GenomeModelError: weights are missing.
    """
    _check_installed()
    from hyena_blt_savanna.conversion.huggingface.configuration_hyena_blt import GenomeConfig

    try:
        config = GenomeConfig.from_pretrained(folder, local_files_only=True)
        module, name = CLASSES[config.architecture["kind"]].split(".")
    except (OSError, TypeError, KeyError) as error:
        raise ConversionError(f"{folder} holds no model that was exported for transformers: {error!r}") from error
    return getattr(importlib.import_module(f"{ENTRIES}.{module}"), name).from_pretrained(folder, local_files_only=True)


def _check_installed() -> None:
    reason = why_missing()
    if reason is not None:
        raise ConversionError(f"the export needs transformers: {reason}")


def _pack_patcher(weights: ModelWeights) -> tuple[dict[str, Any] | None, bytes]:
    places = patch_places(weights.config)
    if places is None:
        return None, b""
    from hyena_blt_savanna.conversion.huggingface.modeling_hyena_blt import pack_patcher

    if weights.patcher is None:
        raise ConversionError(
            "the hybrid has no patcher, and could not find its patches: convert from a native checkpoint that holds "
            "patcher/"
        )
    longest = weights.patcher.rule.max_patch_bases
    if longest > places[1]:
        raise ConversionError(
            f"the patcher cuts patches of up to {longest} bases, and the model has places for {places[1]}: give the "
            f"rule a max_patch_bases of at most {places[1]}"
        )
    return pack_patcher(weights.patcher)


def _tensors(weights: ModelWeights, patcher_bytes: bytes) -> dict[str, LazyTensor]:
    """The tensors under transformers' names; of a tied weight one, as transformers writes it."""
    left_out = {"head.weight"} if _is_tied(weights.config) else set()
    tensors = {PREFIX + name: tensor for name, tensor in weights.tensors.items() if name not in left_out}
    if isinstance(weights.config, HyenaBLTConfig):
        tensors[ENTROPY_MODEL] = lazy(torch.from_numpy(np.frombuffer(patcher_bytes, dtype=np.uint8).copy()))
    return tensors


def _is_tied(config: Config) -> bool:
    return isinstance(config, IsotropicConfig) and config.head == "tied"


def _write_configs(folder: Path, weights: ModelWeights, packed: dict[str, Any] | None) -> None:
    from transformers import GenerationConfig

    from hyena_blt_savanna.conversion.huggingface.configuration_hyena_blt import GenomeConfig
    from hyena_blt_savanna.conversion.huggingface.tokenization_hyena_blt import GenomeTokenizer

    config = weights.config
    assert isinstance(config, HyenaBLTConfig | IsotropicConfig)
    stack = config.global_model if isinstance(config, HyenaBLTConfig) else config.stack
    model_class = CLASSES[config.kind]
    exported = GenomeConfig(
        architecture=config.to_dict(),
        patcher=packed,
        window_bases=weights.window_bases,
        trained_on=weights.trained_on,
        trained_in=weights.trained_in,
        code_version=hyena_blt_savanna.__version__,
        hidden_size=stack.width,
        num_hidden_layers=len(stack.blocks),
        tie_word_embeddings=_is_tied(config),
        architectures=[model_class.split(".")[1]],
        dtype=_dtype(weights),
    )
    exported.auto_map = {"AutoConfig": CONFIG_CLASS, "AutoModelForCausalLM": model_class}
    exported.save_pretrained(folder)
    ids = {"bos_token_id": exported.bos_token_id, "eos_token_id": exported.eos_token_id}
    GenerationConfig(
        **ids, pad_token_id=exported.pad_token_id, use_cache=False, suppress_tokens=_suppressed(config)
    ).save_pretrained(folder)
    GenomeTokenizer(model_max_length=weights.window_bases).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": [TOKENIZER_CLASS, None]}
    path.write_text(json.dumps(tokenizer, indent=2) + "\n")


def _suppressed(config: Config) -> list[int] | None:
    """Bytes that are never drawn although the head has columns for them: it was not trained on them."""
    if not isinstance(config, IsotropicConfig) or config.head == "scored":
        return None
    return [index for index in range(VOCABULARY_SIZE) if index not in set(SCORED)]


def _dtype(weights: ModelWeights) -> str:
    """Of most of the weights."""
    num_values: dict[torch.dtype, int] = {}
    for tensor in weights.tensors.values():
        num_values[tensor.dtype] = num_values.get(tensor.dtype, 0) + tensor.num_bytes // tensor.dtype.itemsize
    return str(max(num_values, key=lambda dtype: num_values[dtype])).removeprefix("torch.")


def _write_code(folder: Path, kind: str) -> None:
    classes = (CLASSES[kind], CONFIG_CLASS, TOKENIZER_CLASS)
    sources = flatten([f"{ENTRIES}.{name.split('.')[0]}" for name in classes])
    for name, text in sources.files.items():
        (folder / name).write_text(text)
    # transformers keeps one class of model for each class of configuration, and takes folders of one name for the same
    # if their files of configuration are: another kind, or code of another version, needs another file.
    digest = hashlib.sha256("".join(sources.files.values()).encode()).hexdigest()
    with (folder / f"{CONFIG_CLASS.split('.')[0]}.py").open("a") as file:
        file.write(f"# The code around this file has SHA-256 {digest}.\n")
    packages = [_DISTRIBUTIONS.get(name, name) for name in sources.requirements]
    versions = {name: importlib.metadata.version(name).split("+")[0] for name in packages}
    (folder / "requirements.txt").write_text(
        "# Written with these versions.\n" + "".join(f"{name}=={version}\n" for name, version in versions.items())
    )
    (folder / "README.md").write_text(_README.format(requirement=REQUIREMENT, version=hyena_blt_savanna.__version__))


def _notes(config: Config) -> list[str]:
    if isinstance(config, HyenaBLTConfig) and config.auxiliary.has_losses:
        return [
            "auxiliary losses: their weights are in the folder, but the loss that transformers' classes compute from "
            "labels is that of the bases alone"
        ]
    return []


_README = """---
library_name: transformers
tags:
- genomics
- dna
---

A genomic language model on single bases, exported by hyena_blt_savanna {version}. The code of the model lies in this
folder: `pip install -r requirements.txt`, then

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER", trust_remote_code=True)
inputs = tokenizer("ACGTACGTTAGC", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0], skip_special_tokens=True))
states = model(**inputs, output_hidden_states=True).hidden_states[-1]  # of each base
```

Tested with {requirement}.
"""
