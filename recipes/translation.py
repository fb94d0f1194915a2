"""Translation: `accelerate launch recipes/translation.py [--config FILE] [--section.field VALUE ...]`.

The task, nothing else: its defaults are in `hf_transfer/config.py`, the steps in `hf_transfer/page.py`, the loop in
`hf_transfer/train.py`. Without arguments it trains a tiny Marian model from scratch on bundled phrases of one domain
and
scores it on two, with no download; give --model.checkpoint an OPUS-MT, T5, mBART, M2M100 or NLLB checkpoint to adapt
it.
"""

import sys

from hf_transfer import load_config
from hf_transfer.cli import exit_codes

DEFAULTS = {"task": "translation"}

if __name__ == "__main__":
    with exit_codes():
        config = load_config(sys.argv[1:], "translation.py", DEFAULTS)  # before the heavy imports: a typo costs no wait
        from hf_transfer.page import run

        run(config)
