"""Trains the hybrid through Savanna's own `pretrain()`: the entry that every rank starts in.

launch/train_savanna.sh configs/savanna/quickstart.yml
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch

from hyena_blt_savanna.model import cpu_kernels
from hyena_blt_savanna.savanna_plugin.checkout import add_to_path, import_savanna
from hyena_blt_savanna.savanna_plugin.cpu_mode import cpu_mode
from hyena_blt_savanna.savanna_plugin.registration import registered
from hyena_blt_savanna.savanna_plugin.settings import Settings, read_settings
from hyena_blt_savanna.savanna_plugin.versions import check_versions
from hyena_blt_savanna.training.logs import log_to_terminal
from hyena_blt_savanna.training.ranks import join_ranks

logger = logging.getLogger(__name__)

_OTHERS_WAIT_SECONDS = 5.0


def main(arguments: Sequence[str]) -> int:
    """Trains as Savanna's YAML files with the block hyena-blt say, and `key=value`.

    Args:
        arguments: of the command line.

    Returns:
        The exit code: 0, or 2 after a mistake, told in the log.
    """
    ranks = join_ranks()
    log_to_terminal(ranks.is_first)
    try:
        add_to_path()
        pretrain(read_settings(arguments))
    except (ValueError, OSError) as error:
        if not ranks.is_first:
            time.sleep(_OTHERS_WAIT_SECONDS)
        logger.error("%s", error)
        logging.getLogger("traceback").info("raised here", exc_info=True)
        return 2
    return 0


def pretrain(settings: Settings) -> Any:
    """Runs `savanna.training.pretrain`. Every rank calls.

    Args:
        settings: of the run.

    Returns:
        Savanna's GlobalConfig as the training has left it.

    Raises:
        SavannaError: Savanna is missing, refuses the configuration, or can't run on this machine with what is
            installed.
        DataError: the data or their boundaries are missing, broken, too short, or don't belong together.
    """
    ranks = join_ranks()
    check_versions(settings, ranks.is_first)
    with ExitStack() as stack:
        if not torch.cuda.is_available():
            stack.enter_context(cpu_mode())
            cpu_kernels.use()
        stack.enter_context(registered(settings))
        training = import_savanna("savanna.training")
        global_config = settings.build_global_config(ranks.num_ranks)
        global_config.configure_distributed_args()
        global_config.update_value("world_size", ranks.num_ranks)
        global_config.build_tokenizer()
        global_config.initialize_tensorboard_writer()
        training.pretrain(global_config=global_config)
        return global_config
