"""``python -m timm_lt.evaluate``: a report of a checkpoint or a file of predictions; ``compare``: of several runs."""

import sys
from collections.abc import Sequence
from pathlib import Path

from ..._files import write_text
from ..._text import printable
from ...hub import HubError, write_hub_card
from ..reports import write_report
from ..reports.comparison import compare_runs, comparison_text
from ..reports.comparison_page import comparison_page
from .checkpoint import evaluate_checkpoint
from .network import EvaluationError
from .parser import PROG, build_compare_parser, build_parser, build_report_parser
from .predictions import evaluate_predictions

__all__ = ['build_compare_parser', 'build_parser', 'evaluate_checkpoint', 'evaluate_predictions', 'main']


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Run the command line.

    Args:
        argv: Options; None reads those of the process.
        prog: Name of the command, for messages.

    Returns:
        The exit status. 0: done. 3: the report could not be written. 2: an error of the user, told in one sentence.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] in (['compare'], ['report']):
        prog = f'{prog} {argv[0]}'
    try:
        if argv[:1] == ['compare']:
            return _compare(argv[1:], prog)
        if argv[:1] == ['report']:
            return _write_again(Path(build_report_parser(prog).parse_args(argv[1:]).run))
        args = build_parser(prog).parse_args(argv)
        args.checkpoint = args.checkpoint or args.run
        return evaluate_predictions(args) if args.predictions else evaluate_checkpoint(args)
    except (ValueError, OSError) as e:
        sys.stderr.write(f'{prog}: error: {e}\n')
        return 2


def _compare(argv: Sequence[str], prog: str) -> int:
    args = build_compare_parser(prog).parse_args(argv)
    comparison = compare_runs(args.runs, bootstrap=args.bootstrap, seed=args.seed)
    write_text(args.output, comparison_page(comparison))
    sys.stdout.write(f'{comparison_text(comparison)}{printable(Path(args.output))}\n')
    return 0


def _write_again(run_dir: Path) -> int:
    """``report.html`` and ``plots/`` of a run, and the model card where there is a ``hub/``."""
    page = write_report(run_dir)
    if (run_dir / 'hub').is_dir():
        try:
            write_hub_card(run_dir)
        except HubError as e:
            raise EvaluationError(str(e)) from e
    sys.stdout.write(f'{printable(page)}\n')
    return 0
