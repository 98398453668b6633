"""The command line: each command parses, makes one library call, prints.

Heavy imports are inside the commands, so that `deploytool --help` answers at once.
"""

import click

from deploytool import __version__
from deploytool.cli import edge, explain, explainer, hardware, labels, library, listing, robustness, training
from deploytool.cli.base import Commands

COMMANDS = (
    training.train, training.pipeline, training.compare,
    robustness.evaluate, robustness.verify, robustness.robustness,
    explain.stability, explain.reasoning, labels.labels, explainer.explain, library.library,
    edge.export, edge.specialize, edge.bench, edge.predict,
    hardware.cost, hardware.calibrate,
    listing.models, listing.schema,
)  # fmt: skip


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="deploytool")
def cli() -> None:
    """Compress and export robust vision models: one ONNX file, lambda tuned in the field."""


for command in COMMANDS:
    cli.add_command(command)
