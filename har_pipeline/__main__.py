"""`har` and `python -m har_pipeline`: the command line, which Ctrl-C ends in order while it still imports."""

from har_pipeline.core.signals import signals_as_lines


def main() -> None:
    """Import the command line and run it."""
    with signals_as_lines():
        from har_pipeline.cli import main as run

        run()


if __name__ == "__main__":
    main()
