"""`python -m smart_r1.cli` is `smart-r1`; `torchrun -m smart_r1.cli` starts it many times."""

from smart_r1.cli import main

if __name__ == "__main__":
    main(prog_name="smart-r1")
