"""`python -m har_pipeline` is `har`."""

from har_pipeline.cli import main

if __name__ == "__main__":
    main()
