"""python tools/count_parameters.py configs/model/evo2_7b.yaml [model.stack.mlp.width=11008 ...]

Counts the weights of a model by part without building it. YAML files and key=value overrides are merged as for a
training run; only the key `model` is read.
"""

from __future__ import annotations

import argparse
import sys

from hyena_blt_savanna.config import Config, ConfigError, merge
from hyena_blt_savanna.model.parameters import count_parameters
from hyena_blt_savanna.training.model_config import ModelConfig


class Preset(Config):
    """What is read of the files."""

    model: ModelConfig
    """The model."""


def main() -> int:
    """Reads the command line, counts, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", help="YAML files and key=value overrides")
    sources = parser.parse_args().sources
    try:
        tree = {key: value for key, value in merge(sources).items() if key == "model"}
        counts = count_parameters(Preset.parse(tree, " ".join(sources)).model)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    for part, number in [*counts.items(), ("all", sum(counts.values()))]:
        print(f"{part:16} {number:>16,}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
