"""What is installed, and which of it is known not to work together: said before a run fails in a kernel."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from hyena_blt_savanna.savanna_plugin.checkout import SavannaError
from hyena_blt_savanna.savanna_plugin.settings import Settings

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "deepspeed", "numpy", "transformer_engine", "flash_attn", "causal_conv1d", "apex")
"""Whose versions are looked at; the last four are optional, and need CUDA."""
_IMPORTED = ("lazy_import_plus", "requests", "opt_einsum", "sentencepiece", "boto3", "scipy", "einops", "tokenizers",
             "regex")  # fmt: skip
"""What Savanna imports whether it uses it or not."""
_HALF = ("fp16", "bfloat16")
_KERNEL_CAPABILITY = (8, 0)
_FP8_CAPABILITY = (8, 9)


def missing_packages() -> list[str]:
    """What Savanna imports and is not installed here."""
    return [name for name in _IMPORTED if importlib.util.find_spec(name) is None]


@dataclass(frozen=True)
class Machine:
    """What there is to run on.

    Attributes:
        versions: of PACKAGES, as far as they are installed.
        capability: of the CUDA device; None without one.
        has_pkg_resources: whether setuptools still has it.
        saves_asynchronously: whether DeepSpeed's `save_checkpoint` takes `async_save`, as a fork of Savanna's authors.
    """

    versions: dict[str, str]
    capability: tuple[int, int] | None
    has_pkg_resources: bool
    saves_asynchronously: bool

    @classmethod
    def here(cls) -> Machine:
        """This one."""
        import deepspeed

        versions = {}
        for name in PACKAGES:
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
        return cls(
            versions,
            torch.cuda.get_device_capability() if torch.cuda.is_available() else None,
            importlib.util.find_spec("pkg_resources") is not None,
            "async_save" in inspect.signature(deepspeed.DeepSpeedEngine.save_checkpoint).parameters,
        )


@dataclass(frozen=True)
class _Rule:
    """A combination that is known not to work.

    Attributes:
        holds: whether it is this one.
        message: what happens, and what to change.
    """

    holds: Callable[[Settings, Machine], bool]
    message: str


def _uses_fp8(settings: Settings) -> bool:
    return any(value for key, value in settings.keys.items() if key.startswith("use_fp8"))


def _operators(settings: Settings) -> set[str]:
    found, left = set(), [settings.get("operator_config", [])]
    while left:
        item = left.pop()
        if isinstance(item, list):
            left += item
        elif isinstance(item, str):
            found.add(item)
    return found if settings.block.global_blocks == "savanna" else set()


def _uses(settings: Settings, *operators: str) -> bool:
    return bool(_operators(settings) & set(operators))


RULES = (
    _Rule(
        lambda settings, here: bool(settings.get("async_save")) and not here.saves_asynchronously,
        "async_save: DeepSpeedEngine.save_checkpoint of this DeepSpeed has no async_save (a fork of Savanna's authors "
        "has): set it to false",
    ),
    _Rule(
        lambda settings, here: _uses_fp8(settings) and "transformer_engine" not in here.versions,
        "use_fp8_*: TransformerEngine is not installed, and Savanna would call None: install it, or set these to false",
    ),
    _Rule(
        lambda settings, here: _uses_fp8(settings) and not here.has_pkg_resources,
        "use_fp8_*: savanna/model/tengine.py imports pkg_resources, which setuptools has dropped; Savanna takes that "
        "for a missing TransformerEngine and would call None: install setuptools<81, or set these to false",
    ),
    _Rule(
        lambda settings, here: _uses_fp8(settings) and here.capability is not None
        and here.capability < _FP8_CAPABILITY,
        "use_fp8_*: this GPU has no fp8 matrix products (Ada and Hopper have): set these to false",
    ),
    _Rule(
        lambda settings, here: _uses(settings, "flash", "flash_v2") and here.capability is not None
        and "flash_attn" not in here.versions,
        "operator-config has flash or flash_v2, and flash_attn is not installed: install it, or set "
        "hyena-blt.global_blocks to ours",
    ),
    _Rule(
        lambda settings, here: _uses(settings, "flash", "flash_v2", "ring", "flash_te") and here.capability is not None
        and here.capability < _KERNEL_CAPABILITY,
        "attention of flash_attn needs a GPU of compute capability 8.0 or later: set hyena-blt.global_blocks to ours",
    ),
    _Rule(
        lambda settings, here: _uses(settings, "flash", "flash_v2", "ring", "flash_te") and here.capability is not None
        and settings.get("precision") not in _HALF,
        "attention of flash_attn takes fp16 and bfloat16 only: set precision to bfloat16",
    ),
    _Rule(
        lambda settings, here: _uses(settings, "flash_te") and "transformer_engine" not in here.versions,
        "operator-config has flash_te, and TransformerEngine is not installed: install it, or use flash_v2",
    ),
    _Rule(
        lambda settings, here: bool(settings.get("fast_conv_proj") or settings.get("fast_conv_mixer"))
        and settings.block.global_blocks == "savanna" and "causal_conv1d" not in here.versions,
        "fast_conv_proj or fast_conv_mixer is on, and causal_conv1d is not installed: install it, or set them to false",
    ),
)  # fmt: skip
"""Each was met, or follows from upstream's code at the pinned commit."""


def check_versions(settings: Settings, is_first: bool, machine: Machine | None = None) -> None:
    """Logs what is installed, and refuses what is known not to work.

    Args:
        settings: of the run.
        is_first: whether this rank logs.
        machine: None for this one.

    Raises:
        SavannaError: a package is missing, or a combination is known not to work; all that are wrong are listed.
    """
    here = machine or Machine.here()
    if is_first:
        logger.info("found %s", ", ".join(f"{name} {version}" for name, version in here.versions.items()))
    problems = [f"{name} is not installed: see requirements-savanna.txt" for name in missing_packages()]
    problems += [rule.message for rule in RULES if rule.holds(settings, here)]
    if problems:
        raise SavannaError("this can't run here:\n" + "\n".join(f"  {line}" for line in problems))
