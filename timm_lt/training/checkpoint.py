"""Checkpoints that are whole or absent: a killed or full-disk save leaves the one before."""

import json
import os
import shutil
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError

from .._files import replace_folder
from .._text import counted
from .errors import one_line

DONE = 'complete.json'


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written or read; the message says what is kept and what to do."""


def save_checkpoint(accelerator: Accelerator, folder: Path, note: dict | None = None) -> None:
    """Write all registered state to ``folder``, replacing the older checkpoint once everything is on disk.

    Raises:
        CheckpointError: If writing failed (no space, no permission); the older checkpoint is untouched.
    """
    temporary = folder.with_name(folder.name + '.new')
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
    accelerator.wait_for_everyone()
    problem = ''
    try:
        accelerator.save_state(str(temporary))  # each process makes the folder and writes its files
        if accelerator.is_main_process:
            note = {'processes': accelerator.num_processes} | (note or {})
            (temporary / DONE).write_text(json.dumps(note))
            _flush(temporary)
    except (OSError, RuntimeError, SafetensorError) as e:  # torch reports a failed write as a RuntimeError
        problem = one_line(e)
    if _any_problem(accelerator, problem):
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
        kept = f'the older checkpoint in {folder} is kept' if folder.exists() else 'no older checkpoint exists'
        raise CheckpointError(
            f'could not write a checkpoint: {problem or "another process failed"}; {kept}. '
            f'Free some space or choose another --output, then go on with --resume auto')
    if accelerator.is_main_process:
        replace_folder(temporary, folder)
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, checkpoint: Path) -> None:
    """Load all registered state; a checkpoint that cannot be read is a CheckpointError."""
    try:
        note = json.loads((checkpoint / DONE).read_text())
        saved, here = note.get('processes'), accelerator.num_processes
        if note.get('step') and saved != here:
            raise CheckpointError(
                f'{checkpoint} was written inside an epoch by {counted(saved, "process", "processes")}; with '
                f'{here} a step is another number of images. Go on with {saved}')
        accelerator.load_state(str(checkpoint))
    except CheckpointError:
        raise
    except Exception as e:  # what a damaged file raises depends on its format and on the place of the damage
        raise CheckpointError(
            f'cannot read the checkpoint {checkpoint}: {one_line(e)}. Start a new run with another --experiment') from e


def find_checkpoint(run_folder: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None."""
    for name in ('last', 'last.old'):
        folder = run_folder / name
        if (folder / DONE).is_file():
            return folder
    return None


def _flush(folder: Path) -> None:
    for file in folder.rglob('*'):
        if file.is_file():
            with open(file, 'rb') as f:
                os.fsync(f.fileno())


def _any_problem(accelerator: Accelerator, problem: str) -> bool:
    if accelerator.num_processes == 1:
        return bool(problem)
    from accelerate.utils import gather_object
    return any(gather_object([problem]))
