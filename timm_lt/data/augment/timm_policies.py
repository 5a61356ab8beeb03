"""timm's AutoAugment, RandAugment and AugMix on whole batches, read from timm's own transforms.

Papers: E. Cubuk et al., "RandAugment", 2020, https://arxiv.org/abs/1909.13719; D. Hendrycks et al., "AugMix", ICLR
2020, https://arxiv.org/abs/1912.02781
Source: the magnitudes are those of timm's ``LEVEL_TO_ARG``, for whole batches.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from timm.data import auto_augment as timm_policies
from torch import Tensor

from .colour import blend
from .draws import Draws
from .geometry import INTERPOLATIONS
from .operations import CODES, IDENTITY, Program, Style, run_program
from .policies import RandomProgram

FULL = 10  # timm's highest magnitude
# argument from level (n,) in 0..1, sign (n,) of -1 or 1, width in pixels, height, hparams
Argument = Callable[[Tensor, Tensor, int, int, dict], Tensor]


def _factor(level: Tensor, sign: Tensor, *_: Any) -> Tensor:
    return 1.8 * level + 0.1


def _increasing_factor(level: Tensor, sign: Tensor, *_: Any) -> Tensor:
    return (1 + sign * 0.9 * level).clamp_(min=0.1)


def _whole(number: float) -> Argument:
    return lambda level, *_: (level * number).floor()


def _shear(level: Tensor, sign: Tensor, *_: Any) -> Tensor:
    return sign * 0.3 * level


def _pixels(level: Tensor, sign: Tensor, width: int, height: int, hparams: dict) -> Tensor:
    return sign * level * float(hparams['translate_const'])


def _share(axis: int) -> Argument:
    return lambda level, sign, *rest: sign * level * rest[2].get('translate_pct', 0.45) * rest[axis]


def _nothing(level: Tensor, *_: Any) -> Tensor:
    return torch.zeros_like(level)


# timm's name: operation, argument
OPERATIONS: dict[str, tuple[str, Argument]] = {
    'AutoContrast': ('AutoContrast', _nothing),
    'Equalize': ('Equalize', _nothing),
    'Invert': ('Invert', _nothing),
    'Rotate': ('Rotate', lambda level, sign, *_: sign * 30 * level),
    'Posterize': ('Posterize', _whole(4)),
    'PosterizeIncreasing': ('Posterize', lambda level, *_: 4 - (level * 4).floor()),
    'PosterizeOriginal': ('Posterize', lambda level, *_: 4 + (level * 4).floor()),
    'Solarize': ('Solarize', lambda level, *_: (level * 256).floor().clamp_(max=256)),
    'SolarizeIncreasing': ('Solarize', lambda level, *_: 256 - (level * 256).floor().clamp_(max=256)),
    'SolarizeAdd': ('SolarizeAdd', lambda level, *_: (level * 110).floor().clamp_(max=128)),
    **{name: (name, _factor) for name in ('Color', 'Contrast', 'Brightness', 'Sharpness')},
    **{f'{name}Increasing': (name, _increasing_factor) for name in ('Color', 'Contrast', 'Brightness', 'Sharpness')},
    'Desaturate': ('Color', lambda level, *_: (0.5 - 0.5 * level).clamp_(0, 0.5)),
    'ShearX': ('ShearX', _shear),
    'ShearY': ('ShearY', _shear),
    'TranslateX': ('TranslateX', _pixels),
    'TranslateY': ('TranslateY', _pixels),
    'TranslateXRel': ('TranslateX', _share(0)),
    'TranslateYRel': ('TranslateY', _share(1)),
}
_INTERPOLATIONS = {
    getattr(Image.Resampling, name.upper()): name for name in INTERPOLATIONS}


def has_batch_form(operations: Sequence[timm_policies.AugmentOp]) -> bool:
    """Whether each of timm's operations, and its interpolation, runs on whole batches."""
    return all(op.name in OPERATIONS and op.kwargs['resample'] in _INTERPOLATIONS for op in operations)


class _TimmOperations:
    """Draws of the magnitudes of timm's operations.

    Args:
        operations: timm's, all with the same hparams.
    """

    def __init__(self, operations: Sequence[timm_policies.AugmentOp]) -> None:
        first = operations[0]
        self.names = [op.name for op in operations]
        self.codes = torch.tensor([CODES[OPERATIONS[name][0]] for name in self.names])
        self.probabilities = torch.tensor([op.prob for op in operations])
        self.magnitudes = torch.tensor([float(op.magnitude) for op in operations], dtype=torch.float64)
        self.hparams = first.hparams
        self.spread = float(first.magnitude_std)
        self.highest = float(first.magnitude_max or FULL)
        self.style = Style(_INTERPOLATIONS[first.kwargs['resample']], tuple(first.kwargs['fillcolor']))

    def draw(self, places: Tensor, draws: Draws, height: int, width: int) -> Program:
        """Program of the operations at these places of the list, (L, n)."""
        chance, direction = draws.uniform(2, len(places))
        magnitude = self.magnitudes[places]
        if self.spread == float('inf'):
            magnitude = magnitude * draws.uniform(len(places))
        elif self.spread > 0:
            magnitude = magnitude + self.spread * draws.normal(len(places)).T
        level = magnitude.clamp(0, self.highest) / FULL
        sign = torch.where(direction < 0.5, 1., -1.).double()
        arguments = torch.zeros_like(level)
        for place, name in enumerate(self.names):
            here = places == place
            argument = OPERATIONS[name][1]
            arguments[here] = argument(level[here], sign[here], width, height, self.hparams)
        used = chance <= self.probabilities[places]
        return Program(torch.where(used, self.codes[places], CODES[IDENTITY]), arguments)


class TimmAutoAugment(RandomProgram):
    """A sub-policy of timm's AutoAugment.

    Args:
        transform: timm's.
    """

    def __init__(self, transform: timm_policies.AutoAugment) -> None:
        self.operations = _TimmOperations([op for policy in transform.policy for op in policy])
        super().__init__(self.operations.style)
        self.length = len(transform.policy[0])
        self.policies = len(transform.policy)

    def draw(self, draws: Draws, height: int, width: int) -> Program:
        places = draws.integers(self.policies) * self.length + torch.arange(self.length).view(-1, 1)
        return self.operations.draw(places, draws, height, width)


class TimmRandAugment(RandomProgram):
    """Some of the operations of timm's RandAugment.

    Args:
        transform: timm's.
    """

    def __init__(self, transform: timm_policies.RandAugment) -> None:
        self.operations = _TimmOperations(transform.ops)
        super().__init__(self.operations.style)
        self.layers = transform.num_layers
        weights = transform.choice_weights
        self.weights = None if weights is None else torch.as_tensor(weights)

    def draw(self, draws: Draws, height: int, width: int) -> Program:
        if self.weights is None:
            places = draws.integers(len(self.operations.names), self.layers)
        else:
            places = draws.choices(self.weights, self.layers)
        return self.operations.draw(places, draws, height, width)


class TimmAugMix:
    """Chains of operations, mixed with each other and with the image, for timm's AugMix with alpha = 1.

    Args:
        transform: timm's.
    """

    LONGEST = 3  # operations of a chain, where their number is drawn

    def __init__(self, transform: timm_policies.AugMixAugment) -> None:
        self.operations = _TimmOperations(transform.ops)
        self.width = transform.width
        self.depth = transform.depth

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        # Dirichlet(1, ..., 1): exponential numbers over their sum; Beta(1, 1) is uniform
        weights = -torch.log1p(-draws.uniform(self.width))
        weights = (weights / weights.sum(0)).to(images.device)
        share = draws.uniform().to(images.device)
        mixed = torch.zeros(images.shape, device=images.device)
        for weight in weights:
            program = self._draw_chain(draws, *images.shape[-2:])
            mixed += weight.view(-1, 1, 1, 1) * run_program(images, program, self.operations.style)
        return blend(images.float(), mixed.clamp_(0, 255).floor_(), share.view(-1, 1, 1, 1))

    def _draw_chain(self, draws: Draws, height: int, width: int) -> Program:
        longest = self.depth if self.depth > 0 else self.LONGEST
        places = draws.integers(len(self.operations.names), longest)
        program = self.operations.draw(places, draws, height, width)
        if self.depth > 0:
            return program
        used = torch.arange(longest).view(-1, 1) <= draws.integers(self.LONGEST)
        return program._replace(codes=torch.where(used, program.codes, CODES[IDENTITY]))
