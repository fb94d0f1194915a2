"""Text classification: `accelerate launch recipes/text_cls.py [--config FILE] [--section.field VALUE ...]`.

The task and its defaults, nothing else: the steps are in `hf_transfer/run.py`, the loop in `hf_transfer/train.py`.
Without arguments it adapts all-MiniLM-L6-v2 to bundled reviews of two domains and scores it on four.
"""

from hf_transfer.cli import run_recipe

DEFAULTS = {"task": "classification", "output_dir": "runs/text_cls"}

if __name__ == "__main__":
    run_recipe(DEFAULTS)
