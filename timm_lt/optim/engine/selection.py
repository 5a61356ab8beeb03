"""The parameters that a method may perturb: the options ``layers`` and ``exclude_norm_bias``."""

import operator
import warnings
from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any

import torch.nn as nn
from torch import Tensor

from ..._classifier import find_classifiers

CLASSIFIER = 'classifier'


class ParameterSelection:
    """The parameters of an optimizer that may be perturbed; ``p in selection`` asks for one of them.

    The choice follows the optimizer and the model. :meth:`update` finds parameters that were added later and a
    classifier that was replaced.

    Args:
        who: Name of the method, for messages.
        layers: Wildcards of parameter names, or 'classifier'; None: all.
        exclude_norm_bias: Leave out parameters with at most one dimension.
    """

    def __init__(self, who: str, layers: Sequence[str] | None, exclude_norm_bias: bool) -> None:
        self.who = who
        self.layers = layers
        self.exclude_norm_bias = exclude_norm_bias
        self.model: nn.Module | None = None
        self._seen: list[Tensor] | None = None  # kept alive, so that no new parameter gets the id of an old one
        self._allowed: set[int] = set()
        self._warned: set[str] = set()

    def __contains__(self, p: Tensor) -> bool:
        return id(p) in self._allowed

    def update(self, model: nn.Module | None, params: Sequence[Tensor]) -> bool:
        """Choose among ``params``; returns whether model, classifier or parameters are others than the last time.

        Raises:
            TypeError: If names are needed and there is no model.
            ValueError: If ``layers`` names no parameter of the model.
        """
        if self.layers is not None and model is None:
            raise TypeError(
                'layers=... needs the names of the parameters; call optimizer.attach(model) or pass a BatchClosure')
        heads = self._classifier(model)
        seen = [*params, *heads]
        if self._seen is not None and model is self.model and _same(seen, self._seen):
            return False
        self.model, self._seen = model, seen
        chosen = list(params)
        if self.layers is not None:
            chosen = self._of_layers(model, self.layers, params, heads)
        if self.exclude_norm_bias:
            chosen = [p for p in chosen if p.ndim > 1]
            self._warn_if_none('exclude_norm_bias=True', chosen)
        self._allowed = {id(p) for p in chosen}
        return True

    def _classifier(self, model: Any) -> list[Tensor]:
        """Parameters of the classifier, of all heads where a model was distilled; none unless ``layers`` asks for it.
        """
        if self.layers is None or CLASSIFIER not in self.layers:
            return []
        if not hasattr(model, 'get_classifier'):
            raise ValueError(
                f"layers='classifier' needs a model with get_classifier(), as timm's have; {type(model).__name__} has "
                f'none, name its layers by a wildcard')
        return [p for head in find_classifiers(model) for p in head.parameters()]

    def _of_layers(
            self, model: Any, layers: Sequence[str], params: Sequence[Tensor], heads: list[Tensor],
    ) -> list[Tensor]:
        names = {id(p): name.replace('_orig_mod.', '') for name, p in model.named_parameters()}
        chosen: dict[int, Tensor] = {}
        for pattern in layers:
            wanted = {i for i, name in names.items() if fnmatch(name, pattern)}
            if pattern == CLASSIFIER:
                wanted |= {id(p) for p in heads}
            if not wanted:
                raise ValueError(
                    f'layers={pattern!r} is the name of no parameter of {type(model).__name__}; theirs are such as '
                    f'{list(names.values())[:3]}, and * matches any characters')
            mine = [p for p in params if id(p) in wanted]
            self._warn_if_none(f'layers={pattern!r}', mine)
            chosen.update({id(p): p for p in mine})
        return list(chosen.values())

    def _warn_if_none(self, option: str, chosen: Sequence[Tensor]) -> None:
        if chosen or option in self._warned:
            return
        self._warned.add(option)
        warnings.warn(
            f'{self.who}: {option} leaves none of the parameters that this optimizer steps, so it perturbs nothing '
            f'there. Add the parameters by add_param_group, or name other ones.', stacklevel=2)


def _same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return len(a) == len(b) and all(map(operator.is_, a, b))
