"""What upstream gets wrong on the path of a run, each seen in its own code, for tests: called on one rank.

Where one of these is no longer seen, upstream has mended it, and what this project does about it can go.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hyena_blt_savanna.savanna_plugin.checkout import FOLDER, import_savanna
from hyena_blt_savanna.savanna_plugin.cpu_mode import cpu_mode
from hyena_blt_savanna.savanna_plugin.replacements import Replacements
from hyena_blt_savanna.testing.savanna_runs import initialised, plain_config, quietly

_BASES = 128


def mistakes(data: Path, folder: Path) -> dict[str, Any]:
    """All that is seen, by what it is about."""
    with quietly(), cpu_mode():
        global_config = plain_config(data)
        with initialised(global_config):
            before = global_config.activation
            model, unset = _built_in_dirty_memory(global_config)
            return {
                "activation": (before, global_config.activation, _activations(model)),
                "decayed": _decayed(model, global_config),
                "lines_of_a_forward_pass": _lines_of_a_forward_pass(model),
                "unset": unset,
                "two_windows": _two_windows(model),
                "time_grid": _time_grid(model),
                "rates": _rates(),
                "layer_types": _layer_types(),
                "losses": _losses(),
                "logits": _logits_after_the_loss(),
                "tags": _masked_of_a_cut_tag(),
                "positions": _positions_on_two_ranks(),
                "place_in_data": _place_in_data(folder),
                "save_iters": _message(plain_config, data, extra_save_iters=[3], checkpoint_factor=None),
                "tokenizer": _message(global_config.tokenizer.tokenize, "ACGT"),
                "upper": type(import_savanna("savanna.utils").make_upper_case(torch.tensor([97]))),
                "missing": _missing_names(),
            }


def _message(call: Any, *given: Any, **named: Any) -> str:
    try:
        call(*given, **named)
    except Exception as error:  # Whatever upstream raises is what is looked at.
        return f"{type(error).__name__}: {error}"
    return ""


def _built_in_dirty_memory(global_config: Any) -> tuple[Any, list[str]]:
    """A plain model, and which of its weights still hold what was in the memory that they were given."""

    empty = torch.empty

    def dirty(*size: Any, **named: Any) -> Tensor:
        x = empty(*size, **named)
        return x.fill_(torch.nan) if x.is_floating_point() else x

    with Replacements() as replaced:
        replaced.set(torch, "empty", dirty)
        model = import_savanna("savanna.training").get_model(global_config)
    unset = [name for name, parameter in model.named_parameters() if parameter.isnan().any()]
    for name, parameter in model.named_parameters():
        if name in unset:
            torch.nn.init.zeros_(parameter)
    return model, unset


def _activations(model: Any) -> list[str]:
    """Of the MLPs of all blocks."""
    mlps = [module for name, module in model.named_modules() if name.endswith(".mlp")]
    return [getattr(mlp.activation_func, "__name__", type(mlp.activation_func).__name__) for mlp in mlps]


def _decayed(model: Any, global_config: Any) -> list[str]:
    """Endings of the names of weights that decay, though they are filters, biases or norms."""
    groups = import_savanna("savanna.model.utils").get_params_for_weight_decay_optimization(model, global_config)
    decayed = {id(parameter) for parameter in groups[0]["params"]}
    names = {".".join(name.split(".")[-2:]) for name, parameter in model.named_parameters() if id(parameter) in decayed}
    return sorted(names)


def _lines_of_a_forward_pass(model: Any) -> tuple[int, int]:
    """Printed lines, and the matrix products behind them."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), torch.inference_mode():
        model((torch.full((1, _BASES), 65), None, None))
    products = [
        module for module in model.modules() if type(module).__name__ in ("ColumnParallelLinear", "RowParallelLinear")
    ]
    return printed.getvalue().count("DEBUG::"), len(products)


def _two_windows(model: Any) -> str:
    with torch.inference_mode():
        return _message(model, (torch.full((2, _BASES), 65), None, None))


def _time_grid(model: Any) -> list[int]:
    """Lengths of the grids for 8 and then for 16 bases."""
    [modal] = [module for module in model.modules() if type(module).__name__ == "ImplicitModalFilter"]
    modal.use_cached_t = False
    return [modal.get_t(length).shape[-1] for length in (8, 16)]


def _rates() -> list[float]:
    """Of a cosine of 100 steps with 10 of warm-up: of the first, and after the last."""
    optimizer = SimpleNamespace(param_groups=[{}, {"lr": 0.3}])
    schedule = import_savanna("savanna.learning_rates").AnnealingLR(
        optimizer, start_lr=1.0, warmup_iter=10, total_iters=100, decay_style="cosine", last_iter=0
    )
    first = [group["lr"] for group in optimizer.param_groups]
    schedule.step(100)
    return [*first, optimizer.param_groups[0]["lr"]]


def _layer_types() -> tuple[tuple[int, ...], str]:
    """How hyena_se, hyena_mr and hyena are counted, and what is said of another operator."""
    parse = import_savanna("savanna.mfu").parse_layer_types
    known = SimpleNamespace(operator_config=["hyena_se", "hyena_mr", "hyena"], num_layers=3)
    other = SimpleNamespace(operator_config=["another"], num_layers=1)
    return parse(known), _message(parse, other)


def _losses() -> tuple[float, float]:
    """Of two windows with different shares of lower case at once, and the mean of one after the other."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 8, 512, generator=generator)
    labels = torch.tensor([[65] * 8, [97] * 7 + [65]])
    loss = import_savanna("savanna.model.backbone").reweighted_cross_entropy

    def of(rows: slice) -> float:
        given = labels[rows].clone()
        return float(loss(logits[rows].clone(), (given, torch.ones(given.shape)), lowercase_weight=0.1))

    return of(slice(0, 2)), (of(slice(0, 1)) + of(slice(1, 2))) / 2


def _logits_after_the_loss() -> bool:
    """Whether they are what they were."""
    logits = torch.randn(1, 8, 512, generator=torch.Generator().manual_seed(1))
    kept = logits.clone()
    import_savanna("savanna.model.backbone").cross_entropy(logits, (torch.full((1, 8), 65), torch.ones(1, 8)))
    return torch.equal(logits, kept)


def _masked_of_a_cut_tag() -> tuple[int, int]:
    """Letters of a tag that are scored: of a whole one, and of one that a window's edge has cut to `TERIA|`."""
    mask = import_savanna("savanna.utils").mask_control_tags
    scored = []
    for text in (b"|D__BACTERIA|ACGT", b"TERIA|ACGTACGTACG"):
        labels = torch.tensor([list(text)])
        kept = mask((labels, torch.ones(labels.shape, dtype=torch.int)), eod_token_id=0)
        scored.append(int(kept[0, : text.rindex(b"|")].sum()))
    return scored[0], scored[1]


def _positions_on_two_ranks() -> dict[str, bool]:
    """Whether two context ranks give their bases the same rotary angles."""
    rotary = import_savanna("savanna.model.operators.positional_embeddings")
    found = {}
    for name in ("RotaryEmbedding", "LinearlyScaledRotaryEmbedding"):
        angles = []
        for rank in range(2):
            group = SimpleNamespace(
                get_sequence_parallel_world_size=lambda: 2, get_sequence_parallel_rank=lambda rank=rank: rank
            )
            with Replacements() as replaced:
                replaced.set(rotary, "mpu", group)
                cosines, _ = getattr(rotary, name)(8, precision=torch.float32)(torch.zeros(16, 1, 1, 8), seq_dim=0)
            angles.append(cosines[:16])
        found[name] = torch.equal(*angles)
    return found


def _place_in_data(folder: Path) -> str:
    """What comes of looking up the place in the data in a checkpoint that keeps random states, as Savanna's do."""
    step = folder / "kept" / "global_step3"
    step.mkdir(parents=True)
    states = {"random_rng_state": random.getstate(), "np_rng_state": np.random.get_state()}
    torch.save({"data_loading": {"train_data_token_index": 7}, **states}, step / "mp_rank_00_model_states.pt")
    given = SimpleNamespace(
        load=str(step.parent), iteration=3, checkpoint=None, zero_optimization={"stage": 1},
        train_data_token_index=None, use_checkpoint_num_samples=False,
    )  # fmt: skip
    # megatron-core, by which data are read here, lets NumPy's arrays pass.
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        return _message(import_savanna("savanna.training").update_data_loading_config, given)
    finally:
        torch.serialization.add_safe_globals(allowed)


def _missing_names() -> dict[str, bool]:
    """What is used, and whether it is there."""
    hyena = import_savanna("savanna.model.operators.hyena.hyena")
    exporter = (FOLDER / "tools" / "convert_checkpoint_to_vortex.py").read_text()
    import_savanna("savanna.data.data_utils").compile_helper()
    return {
        "ParallelHyenaOperator2": hasattr(hyena, "ParallelHyenaOperator2"),
        "ParallelHyenaOperatorJumpy": hasattr(hyena, "ParallelHyenaOperatorJumpy"),
        "vandermonde is imported": "from savanna.ops.vandermonde import" in exporter,
        "vandermonde": importlib.util.find_spec("savanna.ops.vandermonde") is not None,
        "helpers": importlib.util.find_spec("savanna.data.helpers") is not None,
    }
