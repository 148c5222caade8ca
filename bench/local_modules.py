"""python bench/local_modules.py [MODEL.yaml ...] [--threads N] [--long]: what each part of a training step costs.

The model is configs/model/quickstart.yaml, with the files given merged into it. Windows of 4,096 bases, two in a
batch, patches of 8 on average: each part runs forward and backward alone, on what the part before it gives, and so
does the whole step; the least of several rounds counts, in milliseconds of CPU time over all threads, which other work
disturbs least. Local are the k-mer tables, the blocks of encoder and decoder, pooling and reading of patches, head and
loss.

With --long also training bases per second of CPU time, of one step each on a window of 131,072 bases, over those of
the isotropic model of the same width, depth and tables.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from measuring import ROOT  # type: ignore[import-not-found]
from torch import Tensor, nn

from hyena_blt_savanna.config import merge
from hyena_blt_savanna.model import cpu_kernels
from hyena_blt_savanna.model.base_nats import weighted_nats
from hyena_blt_savanna.model.hyena_blt import HyenaBLT, HyenaBLTConfig
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.model.patches import close_unfinished, lay_out
from hyena_blt_savanna.training.optimizer import OptimizerConfig

MEAN_PATCH_BASES = 8
NUM_ROUNDS = 7
LONG_WINDOW_BASES = 131_072
GOAL_LOCAL_SHARE = 0.5
GOAL_SPEEDUP = 4.0


def random_window(num_rows: int, num_bases: int, longest: int) -> tuple[Tensor, Tensor]:
    """Bases int64 [B, L] and patch lengths int64 [B, P], spread like those of a rule of equal information."""
    bases = torch.tensor(list(b"ACGT"))[torch.randint(0, 4, (num_rows, num_bases))]
    num_patches = num_bases // MEAN_PATCH_BASES
    spread = (torch.randn(num_rows, num_patches) * 2).round().long()
    lengths = (MEAN_PATCH_BASES + spread).clamp(1, longest)
    # The last patches take up the difference, one base each.
    for row in lengths:
        while (excess := int(row.sum()) - num_bases) != 0:
            step = -1 if excess > 0 else 1
            free = ((row + step >= 1) & (row + step <= longest)).nonzero().flatten()[-abs(excess) :]
            row[free] += step
    return bases, lengths


def loss_of_step(model: nn.Module, bases: Tensor, lengths: Tensor) -> Tensor:
    """The sum of the nats of all bases."""
    assert isinstance(model.class_of_byte, Tensor)
    return weighted_nats(model(bases, lengths), bases, torch.ones(bases.shape), model.class_of_byte)


def milliseconds(run: Callable[[], object]) -> float:
    """CPU time of one run, over all threads."""
    start = time.process_time()
    run()
    return 1e3 * (time.process_time() - start)


def differentiated(run: Callable[..., Tensor], *inputs: Tensor) -> tuple[Callable[[], None], Tensor]:
    """A forward and backward pass of one part, and what it gives."""
    given = [value.detach().requires_grad_(value.is_floating_point()) for value in inputs]
    output = run(*given).detach()
    direction = torch.randn_like(output)

    def both_ways() -> None:
        run(*given).backward(direction)

    return both_ways, output


def parts_of_a_step(model: HyenaBLT, bases: Tensor, lengths: Tensor) -> dict[str, Callable[[], None]]:
    """Each part of a step, as a function to be timed."""
    encoder, decoder, longest = model.encoder, model.decoder, model.config.max_patch_bases
    num_bases = bases.shape[1]
    layout = lay_out(lengths, num_bases, longest)
    next_layout = lay_out(close_unfinished(lengths, num_bases + 1), num_bases + 1, longest)
    weights = torch.ones(bases.shape)
    parts: dict[str, Callable[[], None]] = {}

    def through(blocks: nn.ModuleList, x: Tensor) -> Tensor:
        for block in blocks:
            x = block(x)
        return x

    parts["embedding"], x = differentiated(lambda: encoder.embed(bases, layout))
    if len(encoder.blocks):
        parts["encoder blocks"], x = differentiated(lambda x: through(encoder.blocks, x), x)
    parts["pooling"], patches = differentiated(lambda x: encoder.to_patches(encoder.norm(x), layout), x)
    parts["global model"], after = differentiated(model.global_model, patches)
    behind = torch.cat([after[:, :1], after], 1)
    parts["reading"], said = differentiated(lambda p, x: decoder.from_patches(p, x, next_layout)[:, 1:], behind, x)
    y = x + said
    if len(decoder.blocks):
        parts["decoder blocks"], y = differentiated(lambda y: through(decoder.blocks, y), y)
    parts["head and loss"], _ = differentiated(
        lambda y: weighted_nats(decoder.head(decoder.norm(y)), bases, weights, model.class_of_byte), y
    )
    return parts


def measure_parts(model: HyenaBLT) -> None:
    """Prints the table of a step."""
    bases, lengths = random_window(2, 4096, model.config.max_patch_bases)
    optimizer = OptimizerConfig().build(model)
    parts = parts_of_a_step(model, bases, lengths)
    times: dict[str, list[float]] = {name: [] for name in [*parts, "optimizer", "step"]}
    for _ in range(NUM_ROUNDS):
        for name, run in parts.items():
            optimizer.zero_grad()
            times[name].append(milliseconds(run))
        optimizer.zero_grad()
        loss_of_step(model, bases, lengths).backward()
        times["optimizer"].append(milliseconds(optimizer.step))

        def whole_step() -> None:
            optimizer.zero_grad()
            loss_of_step(model, bases, lengths).backward()
            optimizer.step()

        times["step"].append(milliseconds(whole_step))
    least = {name: min(values) for name, values in times.items()}
    operations = model.config.flops(bases.shape[1], lengths.shape[1])
    print(f"{'part':<16}{'ms':>8}{'of the step':>13}")
    for name, value in least.items():
        print(f"{name:<16}{value:8.1f}{value / least['step']:12.0%}")
    local = sum(least[name] for name in parts if name != "global model")
    share = local / (local + least["global model"])
    of_operations = sum(operations[part] for part in ("local_encoder", "local_decoder", "head")) / sum(
        operations.values()
    )
    print(f"\nlocal modules: {share:.0%} of forward and backward, {of_operations:.0%} of the operations")
    print(f"local modules: {local / least['step']:.0%} of a step (goal: {GOAL_LOCAL_SHARE:.0%} at most)")


def measure_long(config: HyenaBLTConfig) -> None:
    """Prints training bases per second of the hybrid over those of the isotropic model."""
    stack = config.global_model.model_copy(
        update={"blocks": [name for name in config.global_model.blocks if name != "attention"]}
    )
    models = {
        "hybrid": config.model_copy(update={"global_model": stack}).build(),
        "isotropic": IsotropicConfig(stack=stack, kmers=config.kmers).build(),
    }
    bases, lengths = random_window(1, LONG_WINDOW_BASES, config.max_patch_bases)
    took: dict[str, float] = {}
    for name, model in models.items():
        optimizer = OptimizerConfig().build(model)

        def step(model: nn.Module = model, optimizer: torch.optim.Optimizer = optimizer) -> None:
            loss_of_step(model, bases, lengths).backward()
            optimizer.step()

        took[name] = milliseconds(step)
        print(f"{name:<10}{1e3 * LONG_WINDOW_BASES / took[name]:10,.0f} bases per second")
    print(f"hybrid over isotropic: {took['isotropic'] / took['hybrid']:.2f} (goal: at least {GOAL_SPEEDUP:g})")


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(usage=__doc__.splitlines()[0], description=__doc__)
    parser.add_argument("files", nargs="*", default=[])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--long", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    # As training does.
    cpu_kernels.use()
    torch.manual_seed(0)
    config = HyenaBLTConfig.parse(merge([ROOT / "configs/model/quickstart.yaml", *arguments.files])["model"])
    measure_parts(config.build())
    if arguments.long:
        measure_long(config)


if __name__ == "__main__":
    main()
