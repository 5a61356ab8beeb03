"""The end of a run, which writes weights and metrics first; no failure loses them or hides a missing file.

Exit status of the script: 0, everything is written; 2, the user can mend something; 130, interrupted. 3: trained,
measured and stored, but a report or a model card is missing. 1: a fault after training, noted in ``error.txt``.
"""

import json
import os
import shlex
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..data import ImageReadError
from ..hub import HubError
from .checkpoint import CheckpointError
from .errors import ConfigError, TrainingError, one_line
from .outputs import RunFolder

MENDABLE = (ConfigError, CheckpointError, TrainingError, ImageReadError, HubError, OSError, SafetensorError)
MISSING_ORNAMENT = 3  # exit status
OF_ONE_PROCESS = (ImageReadError, OSError, SafetensorError)  # the others fail alike


class IncompleteRun(RuntimeError):
    """Something failed after training; the message says what is kept and how to go on.

    Attributes:
        status: Exit status of the script.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@contextmanager
def nothing_is_lost(folder: RunFolder) -> Iterator[None]:
    """Turns any failure after training into an :class:`IncompleteRun`; ``error.txt`` keeps an unexpected one."""
    try:
        yield
    except Exception as e:
        details = ''
        if not isinstance(e, MENDABLE):
            details = f' ({type(e).__name__}, see error.txt there)'
            if folder.writes:
                (folder.path / 'error.txt').write_text(traceback.format_exc(), encoding='utf-8')
        raise IncompleteRun(
            f'training is finished and its weights are in {folder.path / "last"}, but the run could not be completed: '
            f'{one_line(e)}{details}. Mend that, then go on with the same options and --resume {folder.path}',
            2 if isinstance(e, MENDABLE) else 1) from e


def write_ornaments(folder: RunFolder, tested: Any) -> str:
    """Write pictures of mistakes, report, plots and model card from the files of the run.

    Args:
        folder: Of the run.
        tested: The tested images.

    Returns:
        What is missing and how to make it; empty where everything was written.
    """
    missing = []
    for name, write in (
            ('mistakes.zip', partial(folder.write_mistakes, tested)), ('report.html and plots/', folder.write_report),
            ('hub/README.md', folder.write_card)):
        try:
            write()
        except Exception as e:  # a drawing fails in many ways, and none is worth a trained network
            missing.append(f'{name} ({type(e).__name__}: {one_line(e)})')
    if not missing:
        return ''
    return (
        f'weights, metrics and predictions are in {folder.path}, but these could not be made: {", ".join(missing)}. '
        f'Make them by: python -m timm_lt.evaluate report {shlex.quote(str(folder.path))}')


def speaks(error: BaseException | None = None) -> bool:
    """Whether this process reports an error: the main one, or any that may have failed alone."""
    return int(os.environ.get('RANK', 0)) == 0 or isinstance(error, OF_ONE_PROCESS)


def tell_launcher(message: str) -> None:
    """Leave a message in the file that torchrun names: its closing lines then show it as the root cause."""
    path = os.environ.get('TORCHELASTIC_ERROR_FILE')
    if path:
        with suppress(OSError):
            content = {'message': message, 'timestamp': str(int(time.time()))}
            Path(path).write_text(json.dumps(content), encoding='utf-8')


def command_to_go_on(argv: Sequence[str], prog: str = 'train_lt.py') -> str:
    """The command line of an interrupted run that goes on with it."""
    resumed = any(a == '--resume' or a.startswith('--resume=') for a in argv)
    return shlex.join([*prog.split(), *argv, *(() if resumed else ('--resume', 'auto'))])
