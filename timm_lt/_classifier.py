"""The classifier layer of a network, found and replaced in one place."""

import torch.nn as nn

__all__ = ['find_classifier', 'find_classifiers', 'kind_of_classifier', 'replace_classifier']


def find_classifiers(model: nn.Module) -> tuple[nn.Module, ...]:
    """Classifier layers that ``model.get_classifier()`` names; a timm model that was distilled has several.

    Returns:
        The layers; empty for a model without ``get_classifier()`` or with ``num_classes=0``.
    """
    get_classifier = getattr(model, 'get_classifier', None)
    found = None if get_classifier is None else get_classifier()
    layers = found if isinstance(found, (tuple, list)) else (found,)
    return tuple(m for m in layers if isinstance(m, nn.Module) and not isinstance(m, nn.Identity))


def find_classifier(model: nn.Module) -> nn.Module | None:
    """The classifier layer of a timm model, or None where the model has none or several."""
    found = find_classifiers(model)
    return found[0] if len(found) == 1 else None


def kind_of_classifier(model: nn.Module) -> str:
    """Class names of the classifier layers for an error message, or 'none'."""
    return ' and '.join(type(m).__name__ for m in find_classifiers(model)) or 'none'


def replace_classifier(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` where ``old`` is in ``model``, in the same mode (training or evaluation)."""
    if new is old:
        return
    name = next(n for n, m in model.named_modules() if m is old)
    new.train(old.training)
    model.set_submodule(name, new)
