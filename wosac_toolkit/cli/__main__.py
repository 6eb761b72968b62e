"""`python -m wosac_toolkit.cli` is `wosac`."""

from wosac_toolkit.cli import main

if __name__ == "__main__":
    main(prog_name="wosac")
