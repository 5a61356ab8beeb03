"""The timm model under the wrappers that training puts around it."""

from typing import Any
from weakref import WeakKeyDictionary

import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel

# walking all modules at every step would cost more than a launch-bound step can hide
_flags: WeakKeyDictionary[nn.Module, dict[str, Any]] = WeakKeyDictionary()


def plain_model(model: Any) -> nn.Module:
    """The timm model under wrappers of processes, compilation and training heads (BCL), in whatever order.

    The wrappers stay usable, and the model keeps the autocast that Accelerate has put around its ``forward``.

    Args:
        model: A timm model, wrapped or not.
    """
    while True:
        inner: Any = unwrap_model(model)[0]
        if hasattr(inner, 'plain_model'):
            inner = inner.plain_model()
        if inner is model:
            return model
        model = inner


def finished_model(model: nn.Module) -> nn.Module:
    """:func:`plain_model` after training, in place without Accelerate's autocast: it can be copied and prepared again.

    Accelerate's own ``unwrap_model(keep_fp32_wrapper=False)`` breaks the ``forward`` of a compiled model. The reason is
    that ``prepare`` notes the old ``forward`` on the model but replaces that of the compile wrapper.

    Args:
        model: A timm model, wrapped or not.
    """
    model = plain_model(model)
    if vars(model).pop('_original_forward', None) is not None:
        vars(model).pop('forward', None)
    return model


def unwrap_model(model: Any) -> tuple[nn.Module, DistributedDataParallel | None, bool]:
    """The module under compile and DDP wrappers, the DDP wrapper if there is one, and whether anything is compiled."""
    ddp: DistributedDataParallel | None = None
    compiled = False
    while True:
        if hasattr(model, '_orig_mod'):
            model, compiled = model._orig_mod, True
        elif isinstance(model, DistributedDataParallel):
            model, ddp = model.module, model
        else:
            break
    return model, ddp, compiled or _has_compiled_parts(model)


def _has_compiled_parts(model: nn.Module) -> bool:
    flags = _flags.setdefault(model, {})
    if 'compiled' not in flags:
        flags['compiled'] = any(
            hasattr(m, '_orig_mod') or getattr(m, '_compiled_call_impl', None) is not None for m in model.modules())
    return flags['compiled']
