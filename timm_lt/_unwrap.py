"""The timm model under the wrappers that training puts around it."""

import torch.nn as nn

from .optim.closure import unwrap_model


def plain_model(model: nn.Module) -> nn.Module:
    """The timm model under wrappers of processes, compilation and training heads (BCL), in whatever order.

    The wrappers stay usable, and the model keeps the autocast that Accelerate has put around its ``forward``.

    Args:
        model: A timm model, wrapped or not.
    """
    while True:
        inner = unwrap_model(model)[0]
        if hasattr(inner, 'plain_model'):
            inner = inner.plain_model()
        if inner is model:
            return model
        model = inner


def finished_model(model: nn.Module) -> nn.Module:
    """:func:`plain_model` after training, in place without Accelerate's autocast: it can be copied and prepared again.

    Accelerate's own ``unwrap_model(keep_fp32_wrapper=False)`` breaks the ``forward`` of a compiled model, because
    ``prepare`` notes the old ``forward`` on the model but replaces that of the compile wrapper.

    Args:
        model: A timm model, wrapped or not.
    """
    model = plain_model(model)
    if vars(model).pop('_original_forward', None) is not None:
        vars(model).pop('forward', None)
    return model
