"""Floor 4: what a run tells: results.json for machines, report.md, a table on the console, a bar while it trains."""

from hf_transfer.report.comparison_console import print_comparison
from hf_transfer.report.console import print_results
from hf_transfer.report.markdown import to_markdown
from hf_transfer.report.progress import Progress
from hf_transfer.report.results import build_results, describe_environment, read_results, write_json, write_text

__all__ = [
    "Progress",
    "build_results",
    "describe_environment",
    "write_json",
    "write_text",
    "read_results",
    "to_markdown",
    "print_results",
    "print_comparison",
]
