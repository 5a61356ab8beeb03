"""An optimizer around another one: groups, state and defaults are the inner one's, the checkpoint holds both."""

import copy
import inspect
from typing import Any

import torch

from ... import _timm_hooks
from ..._registry import OPTIMIZERS
from ..._types import ParamsT
from ..._validate import nearest_names
from .._tensors import DTensor

STATE_KEY = 'sharpness_aware'
# options of timm's factory besides those of the optimizer itself
_FACTORY_OPTIONS = ('lr', 'weight_decay', 'momentum', 'eps', 'betas', 'foreach')


class OptimizerWrapper(torch.optim.Optimizer):
    """Steps ``base`` and shares its groups, state and defaults, so that schedulers and ``prepare`` reach it.

    Args:
        base: A built optimizer.
        own: State of this wrapper that checkpoints keep; plain numbers, strings and lists.
    """

    base: torch.optim.Optimizer
    _own: dict[str, Any]
    _transient: tuple[str, ...] = ()  # attributes of this class that are not copied or pickled

    def __init__(self, base: torch.optim.Optimizer, own: dict[str, Any]) -> None:
        # Optimizer.__init__ would make groups and state beside those of the base; this sets up the hooks alone
        self.__setstate__({'base': base, '_own': own})

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.base.param_groups = groups

    @property
    def state(self) -> Any:
        return self.base.state

    @state.setter
    def state(self, state: Any) -> None:
        self.base.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        return self.base.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.base.defaults = defaults

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.base.add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.base.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        state = {**self.base.state_dict(), STATE_KEY: copy.deepcopy(self._own)}
        if any(isinstance(p, DTensor) for group in self.param_groups for p in group['params']):
            # torch's sharded checkpoints keep nothing but groups and state
            state['param_groups'][0][STATE_KEY] = state[STATE_KEY]
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            result = post_hook(self, state)
            state = state if result is None else result
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of this optimizer, or of the bare base, which leaves the own state unchanged."""
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            result = hook(self, state_dict)
            state_dict = state_dict if result is None else result
        groups = state_dict['param_groups']
        own = state_dict.get(STATE_KEY) or next((g[STATE_KEY] for g in groups if STATE_KEY in g), None)
        groups = [{key: value for key, value in group.items() if key != STATE_KEY} for group in groups]
        self.base.load_state_dict({
            **{key: value for key, value in state_dict.items() if key != STATE_KEY}, 'param_groups': groups})
        if own is not None:
            # entries that this version no longer keeps are dropped
            self._own.update({key: copy.deepcopy(value) for key, value in own.items() if key in self._own})
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        hooks = [name for name in self.__dict__ if name.startswith('_optimizer_')]
        return {k: v for k, v in self.__dict__.items()
                if k not in (*self._all_transient(), *hooks, 'step', '_zero_grad_profile_name')}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**dict.fromkeys(self._all_transient()), **state})

    @classmethod
    def _all_transient(cls) -> list[str]:
        return [name for ancestor in cls.__mro__ for name in ancestor.__dict__.get('_transient', ())]


def create_base(kind: type, params: ParamsT, base: str, options: dict[str, Any]) -> torch.optim.Optimizer:
    """The optimizer that takes the steps, built by timm's factory.

    Raises:
        ValueError: If ``base`` is no other optimizer, or needs second-order gradients.
        TypeError: If an option belongs neither to the method nor to the base.
    """
    name = str(base).lower().removeprefix('lookahead_')
    known = _timm_hooks.optimizer_names() - set(OPTIMIZERS.names())
    if name not in known:
        what = 'is sharpness-aware itself' if name in OPTIMIZERS else 'is not an optimizer of timm'
        raise ValueError(f'base={base!r} {what}. {nearest_names(name, known)}')
    own = {
        parameter.name for cls in kind.__mro__ if issubclass(cls, OptimizerWrapper) and cls is not OptimizerWrapper
        for parameter in inspect.signature(cls.__init__).parameters.values()
        if parameter.kind is not parameter.VAR_KEYWORD}
    accepted = base_options(name)
    for key in options:
        if accepted is not None and key not in accepted:
            names = {*accepted, *own} - {'self', 'params'}
            raise TypeError(
                f'{kind.__name__} with base={base!r} has no option {key!r}. {nearest_names(key, names)}')
    optimizer = _timm_hooks.create_base_optimizer(params, base, **options)
    if getattr(optimizer, 'is_second_order', False):
        raise ValueError(f'base={base!r} needs second-order gradients, which no pass here keeps; choose another base')
    return optimizer


def base_options(name: str) -> set[str] | None:
    """Options that a base optimizer accepts, or None if it accepts any."""
    constructor: Any = _timm_hooks.optimizer_class(name).__init__  # type: ignore[misc]
    parameters = inspect.signature(constructor).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    return {*parameters, *_FACTORY_OPTIONS} - {'self', 'params'}
