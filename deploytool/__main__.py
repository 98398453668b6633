"""Run with `deploytool` or `python -m deploytool`."""

from deploytool.cli import cli


def main() -> None:
    """Run the command line."""
    cli(prog_name="deploytool")


if __name__ == "__main__":
    main()
