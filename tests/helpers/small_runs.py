"""Runs of the training script inside the test's process."""

import json
from pathlib import Path

from accelerate.state import AcceleratorState

from timm_lt.training import main


def run_script(options, output: Path, *args, name='run', epochs=1, status=0):
    """Metrics of a run with ``options`` and further ones; None if the script should end with another status."""
    arguments = [*options, '--epochs', epochs, '--output', output, '--experiment', name, *args]
    assert main([str(a) for a in arguments]) == status
    AcceleratorState._reset_state(reset_partial_state=True)
    return json.loads((output / name / 'metrics.json').read_text()) if status == 0 else None
