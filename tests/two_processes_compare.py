"""Run by torchrun: a comparison as the command line gives it."""

import sys

from hf_transfer.cli import exit_codes, main

if __name__ == "__main__":
    with exit_codes():
        main(["compare", *sys.argv[1:]])
