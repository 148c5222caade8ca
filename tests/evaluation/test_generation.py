import numpy as np
import pytest
import torch

from hyena_blt_savanna.evaluation import generation
from hyena_blt_savanna.evaluation.generation import GenerationError, generate, generate_many
from hyena_blt_savanna.evaluation.pretrained import HyenaBLTModel
from hyena_blt_savanna.evaluation.row_readers import WholePassRows, row_reader
from hyena_blt_savanna.evaluation.sampling import SamplingError
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.patching.patcher import Patcher, SequenceError
from hyena_blt_savanna.patching.rules import StaticRule
from hyena_blt_savanna.testing.toy_genomes import random_genome

PROMPTS = {
    "empty": "",
    "one base": "A",
    "lower": random_genome(57, seed=8).tobytes().decode(),
    "unknown letters": "ACGTNNNNNNNNNNNNNNACGTRYACG",
    "tag": "|D__BACTERIA|ACGTAC",
}


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_drawn_bases_score_as_when_they_were_drawn(model: HyenaBLTModel, prompt: str) -> None:
    drawn = generate(model, prompt, 80, seed=1)
    assert len(drawn.bases) == 80
    assert set(drawn.bases) <= set("ACGT")
    scored = model.score(drawn.sequence).log_likelihoods[len(prompt) :]
    np.testing.assert_allclose(drawn.log_likelihoods, scored, rtol=1e-4, atol=2e-5)
    assert drawn.log_likelihoods.sum() == pytest.approx(scored.sum(), rel=1e-4)
    if model.patcher is not None:
        np.testing.assert_array_equal(drawn.patch_lengths, model.patcher.segment_sequence(drawn.sequence.upper()))


def test_long_patches_reach_past_the_local_modules(model_of) -> None:
    """A long unfinished patch alone holds more bases than the local modules read."""
    model = model_of("budget")
    drawn = generate(model, "N" * 40 + "ACG", 60, seed=3)
    scored = model.score(drawn.sequence).log_likelihoods[43:]
    np.testing.assert_allclose(drawn.log_likelihoods, scored, rtol=1e-4, atol=2e-5)


LOCAL_MODULES = {
    "attention": {
        "positions": {"place": True, "periods": [3, 10.5]},
        "encoder": {
            "blocks": ["attention"],
            "num_heads": 2,
            "attention": {"window": 6},
            "to_patches": {"kind": "cross_attention", "num_queries": 2, "num_heads": 2},
        },
        "decoder": {
            "blocks": ["gated_convolution"],
            "from_patches": {"kind": "cross_attention", "num_vectors": 2, "num_heads": 2},
        },
    },
    "hyena": {
        "positions": {"place": True, "periods": [3, 147], "patch_length": False},
        "encoder": {"blocks": ["hyena_se"], "to_patches": {"kind": "summary"}},
        "decoder": {"blocks": ["hyena_mr"], "hyena": {"mr_taps": 9}, "from_patches": {"kind": "broadcast"}},
    },
}


@pytest.mark.parametrize("local", LOCAL_MODULES.values(), ids=LOCAL_MODULES)
def test_local_modules_that_know_positions_read_the_tail_as_the_whole(local, hybrid_config, patchers) -> None:
    config = HyenaBLTConfig.parse(hybrid_config.to_dict() | local)
    torch.manual_seed(0)
    module = config.build().eval()
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.add_(torch.randn_like(weight) * (0.5 if "head" in name else 0.2))
    model = HyenaBLTModel(module, config, patchers["budget"])
    drawn = generate(model, PROMPTS["lower"], 100, seed=2)
    scored = model.score(drawn.sequence).log_likelihoods[57:]
    np.testing.assert_allclose(drawn.log_likelihoods, scored, rtol=1e-3, atol=1e-4)


def test_greedy_takes_the_most_likely_base(model: HyenaBLTModel) -> None:
    drawn = generate(model, "ACG", 20, temperature=0)
    sequence = drawn.sequence
    for position in range(3, 23):
        scores = {base: model.score(sequence[:position] + base).log_likelihoods[-1] for base in "ACGT"}
        assert sequence[position] == max(scores, key=scores.__getitem__)


def test_steps_draw_what_whole_passes_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {
        "stack": {"width": 16, "num_heads": 2, "blocks": ["hyena_se", "hyena_mr", "hyena_li", "attention"]},
        "kmers": {"sizes": [2, 4]},
    }
    config = IsotropicConfig.parse(tree)
    torch.manual_seed(4)
    module = config.build().eval()
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    model = HyenaBLTModel(module, config, None)
    for prompt in PROMPTS.values():
        stepped = generate(model, prompt, 60, seed=6, stop_at_end=True)
        with monkeypatch.context() as patch:
            plain = lambda model, prompts: WholePassRows(module, None, prompts, model.device)  # noqa: E731
            patch.setattr(generation, "row_reader", plain)
            whole = generate(model, prompt, 60, seed=6, stop_at_end=True)
        assert stepped.sequence == whole.sequence
        assert stepped.ended == whole.ended
        np.testing.assert_allclose(stepped.log_likelihoods, whole.log_likelihoods, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("stop_at_end", [False, True])
@pytest.mark.parametrize("kind", ["budget", "isotropic"])
def test_rows_are_drawn_as_alone(kind: str, stop_at_end: bool, model_of) -> None:
    """Prompts of several lengths, in patches that end at different bases; rows that end before others."""
    model, prompts = model_of(kind), [*PROMPTS.values(), PROMPTS["one base"]]
    settings = {"temperature": 1.3, "seed": 11, "stop_at_end": stop_at_end}
    for batch_rows in (4, 30):
        together = list(generate_many(model, prompts, 30, num_samples=2, batch_rows=batch_rows, **settings))
        assert len(together) == 12
        assert any(drawn.ended for drawn in together) == stop_at_end
        for index, prompt in enumerate(prompts):
            first, second = together[2 * index : 2 * index + 2]
            alone = generate(model, prompt, 30, **settings)
            assert first.sequence == alone.sequence
            assert stop_at_end or first.sequence != second.sequence
            assert first.ended == alone.ended
            np.testing.assert_allclose(first.log_likelihoods, alone.log_likelihoods, rtol=1e-4, atol=2e-5)
            np.testing.assert_array_equal(first.patch_lengths, alone.patch_lengths)
            scored = model.score(second.sequence + "A").log_likelihoods[len(prompt) : -1]
            np.testing.assert_allclose(second.log_likelihoods, scored, rtol=1e-4, atol=2e-5)
        # The same prompt again.
        assert [drawn.sequence for drawn in together[2:4]] == [drawn.sequence for drawn in together[10:]]


def test_what_is_held_does_not_grow_with_the_sequence(hybrid_config) -> None:
    """In the shortest patches, and with logits of one pass over the whole."""
    stack = hybrid_config.global_model.model_copy(update={"blocks": ["hyena_se", "hyena_li", "hyena_mr"]})
    torch.manual_seed(5)
    config = hybrid_config.model_copy(update={"global_model": stack})
    patcher = Patcher(None, StaticRule(patch_bases=1, max_patch_bases=8))
    model = HyenaBLTModel(config.build().eval(), config, patcher)
    bases = random_genome(300, seed=9)
    sizes = set()
    with torch.inference_mode():
        reader = row_reader(model, [bases[:200]])
        for end in range(200, 300):
            whole = torch.tensor([[0, *bases[:end]]])
            wanted = model.module(whole, torch.ones(1, end + 1, dtype=torch.int32))[:, -1]
            torch.testing.assert_close(reader.ready()[1], wanted, rtol=1e-4, atol=1e-5)
            sizes.add(reader.num_bytes)
            reader.push(0, int(bases[end]))
    assert len(sizes) == 1


def test_same_seed_same_sequence(model: HyenaBLTModel) -> None:
    first, second, other = (model.generate("ACGT", 40, seed=seed) for seed in (1, 1, 2))
    assert first == second != other
    state = torch.get_rng_state()
    model.generate("ACGT", 20)
    assert torch.equal(state, torch.get_rng_state())


def test_max_length_counts_the_prompt(model_of) -> None:
    model = model_of("entropy")
    sequence = model.generate("acgTT", max_length=30)
    assert len(sequence) == 30
    assert sequence.startswith("acgTT")
    assert len(model.generate(max_length=12)) == 12
    with pytest.raises(GenerationError, match="5 bases and max_length is 4"):
        model.generate("ACGTA", max_length=4)
    with pytest.raises(GenerationError, match="num_bases is -1"):
        generate(model, "ACGTA", -1)
    for name in ("num_samples", "batch_rows"):
        with pytest.raises(GenerationError, match=f"{name} is 0: give 1 or more"):
            generate_many(model, ["A"], 5, **{name: 0})
    with pytest.raises(SamplingError, match="top_k is 0"):
        generate_many(model, ["A"], 5, top_k=0)
    with pytest.raises(SequenceError, match="'Z' at position 1"):
        generate_many(model, ["A", "AZ"], 5)
    assert list(generate_many(model, [], 5)) == []
    assert generate(model, "ACG", 0).sequence == "ACG"


def test_end_is_drawn_only_when_asked_for(model: HyenaBLTModel) -> None:
    column = int(model.module.class_of_byte[0])
    bias = torch.zeros(512 if model.patcher is None else 5)
    bias[column] = 50.0
    # The isotropic model's head looks bytes up as well.
    said = model.module.head if model.patcher is None else model.module.decoder.head
    handle = said.register_forward_hook(lambda _, inputs, y: y + bias if inputs[0].is_floating_point() else y)
    try:
        never, stopped = generate(model, "ACG", 10), generate(model, "ACG", 10, stop_at_end=True)
    finally:
        handle.remove()
    assert len(never.bases) == 10
    assert not never.ended
    assert stopped.bases == ""
    assert stopped.ended


def test_wrong_letter_in_prompt_is_named(model_of) -> None:
    with pytest.raises(SequenceError, match="'Z' at position 2"):
        generate(model_of("static"), "ACZ", 5)
