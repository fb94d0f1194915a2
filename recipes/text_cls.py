"""Text classification: `accelerate launch recipes/text_cls.py [--config FILE] [--section.field VALUE ...]`.

The task and its defaults, nothing else: the steps are in `hf_transfer/page.py`, the loop in `hf_transfer/train.py`.
Without arguments it adapts all-MiniLM-L6-v2 to bundled reviews of two domains and scores it on four.
"""

import sys

from hf_transfer import load_config
from hf_transfer.cli import exit_codes

DEFAULTS = {"task": "classification", "output_dir": "runs/text_cls"}

if __name__ == "__main__":
    with exit_codes():
        config = load_config(sys.argv[1:], "text_cls.py", DEFAULTS)  # before the heavy imports: a typo costs no wait
        from hf_transfer.page import run

        run(config)
