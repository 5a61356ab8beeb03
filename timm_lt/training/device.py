"""Accelerate's object of a stage."""

import torch
from accelerate import Accelerator

from .errors import ConfigError
from .options import RunOptions


def make_accelerator(options: RunOptions, sync_bn: bool = False) -> Accelerator:
    """Accelerate's object; without an accelerator device the CPU is named, so that several processes work there.

    Args:
        options: Device, precision and tracker.
        sync_bn: BatchNorm over all processes is asked for.

    Raises:
        ConfigError: If this machine lacks the device, or the device the precision.
    """
    on_cpu = options.device == 'cpu' or not _has_accelerator()
    tracker = options.tracker
    trackers = {'log_with': tracker, 'project_dir': options.output} if tracker else {}
    precision = options.precision(on_cpu)
    try:
        accelerator = Accelerator(mixed_precision=precision, cpu=on_cpu, **trackers)
    except ValueError as e:
        raise ConfigError(str(e)) from e
    kind = accelerator.device.type
    if options.device and options.device != kind:
        raise ConfigError(
            f"--device {options.device}: accelerate runs on '{kind}' here; name the kind of device alone, and choose "
            f'one of several by CUDA_VISIBLE_DEVICES')
    if tracker and not accelerator.log_with:
        raise ConfigError(f'the tracker {tracker!r} is not installed: pip install {tracker}, or choose another')
    if precision == 'fp16' and accelerator.scaler is None and kind == 'cpu':
        raise ConfigError('fp16 needs a GPU (Accelerate would run fp32 without a word); use --mixed-precision bf16')
    if sync_bn and accelerator.num_processes > 1 and kind == 'cpu':
        raise ConfigError('--sync-bn needs GPUs: torch has no BatchNorm over processes on a CPU; leave it out')
    return accelerator


def _has_accelerator() -> bool:
    return torch.accelerator.is_available() if hasattr(torch, 'accelerator') else torch.cuda.is_available()
