"""Random programs of operations: AutoAugment, TrivialAugment, colour jitter, grey, blur, by torchvision's laws.

Papers: E. Cubuk et al., "AutoAugment", CVPR 2019, https://arxiv.org/abs/1805.09501; S. Mueller, F. Hutter,
"TrivialAugment", ICCV 2021, https://arxiv.org/abs/2103.10158
Source: the tables are torchvision's own, read from its transforms.
"""

import functools
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torchvision import transforms

from .draws import Draws
from .operations import CODES, IDENTITY, NEAREST_BLACK, Program, Style, run_program

_FACTORS = ('Brightness', 'Color', 'Contrast', 'Sharpness')
_JITTER = ('Brightness', 'Contrast', 'Color', 'Hue')


class RandomProgram(ABC):
    """A step of augmentation that draws one program per image and runs them.

    Args:
        style: Resampling of geometric operations.
    """

    def __init__(self, style: Style = NEAREST_BLACK) -> None:
        self.style = style

    @abstractmethod
    def draw(self, draws: Draws, height: int, width: int) -> Program:
        """Programs for images of this size."""

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        return run_program(images, self.draw(draws, *images.shape[-2:]), self.style)


def argument(name: str, magnitude: float) -> float:
    """Argument of an operation from torchvision's magnitude."""
    if name in _FACTORS:
        return 1 + magnitude
    if name in ('TranslateX', 'TranslateY'):
        return -int(magnitude)  # where a pixel comes from, torchvision's magnitude is where it goes
    return int(magnitude) if name == 'Posterize' else magnitude


def _signed(name: str, magnitude: float, signed: bool) -> tuple[float, float]:
    """Arguments for the negative and the positive sign."""
    return argument(name, -magnitude if signed else magnitude), argument(name, magnitude)


class AutoAugment(RandomProgram):
    """One of the sub-policies of two operations, each with its probability and a random sign.

    Args:
        transform: torchvision's.
    """

    def __init__(self, transform: transforms.AutoAugment) -> None:
        super().__init__()
        self.transform = transform
        policies = transform.policies
        self.codes = torch.tensor([[CODES[name] for name, _, _ in policy] for policy in policies])
        self.probabilities = torch.tensor([[p for _, p, _ in policy] for policy in policies])
        self._arguments = functools.lru_cache(maxsize=2)(self._arguments_of)

    def _arguments_of(self, height: int, width: int) -> Tensor:
        """(policies, 2 operations, 2 signs)."""
        space = self.transform._augmentation_space(10, (height, width))

        def pair(name: str, _: float, level: int | None) -> tuple[float, float]:
            magnitudes, signed = space[name]
            return _signed(name, 0. if level is None else float(magnitudes[level]), signed)

        return torch.tensor([[pair(*op) for op in policy] for policy in self.transform.policies], dtype=torch.float64)

    def draw(self, draws: Draws, height: int, width: int) -> Program:
        policy, chance, sign = draws.integers(len(self.codes)), draws.uniform(2), draws.integers(2, 2)
        used = chance <= self.probabilities[policy].T
        arguments = self._arguments(height, width)[policy].gather(2, sign.T.unsqueeze(2)).squeeze(2)
        return Program(torch.where(used, self.codes[policy].T, CODES[IDENTITY]), arguments.T)


class TrivialAugment(RandomProgram):
    """One operation, any of its magnitudes, a random sign.

    Args:
        transform: torchvision's ``TrivialAugmentWide``.
    """

    def __init__(self, transform: transforms.TrivialAugmentWide) -> None:
        super().__init__()
        self.bins = transform.num_magnitude_bins
        space = transform._augmentation_space(self.bins)
        self.codes = torch.tensor([CODES[name] for name in space])
        # (operations, bins, 2 signs)
        self.arguments = torch.tensor([
            [_signed(name, float(m), signed) for m in magnitudes.expand(self.bins)]
            for name, (magnitudes, signed) in space.items()], dtype=torch.float64)

    def draw(self, draws: Draws, height: int, width: int) -> Program:
        operation, level, sign = (draws.integers(n) for n in (len(self.codes), self.bins, 2))
        return Program(self.codes[operation][None], self.arguments[operation, level, sign][None])


class ColorJitter(RandomProgram):
    """Brightness, contrast, saturation and hue in random order.

    Args:
        transform: torchvision's.
        probability: That an image is changed at all.
    """

    def __init__(self, transform: transforms.ColorJitter, probability: float = 1.) -> None:
        super().__init__()
        self.probability = probability
        ranges = [getattr(transform, name) for name in ('brightness', 'contrast', 'saturation', 'hue')]
        self.codes = torch.tensor([
            CODES[IDENTITY if r is None else name] for name, r in zip(_JITTER, ranges)]).view(4, 1)
        self.low, self.high = torch.tensor([r or (0., 0.) for r in ranges], dtype=torch.float64).view(4, 2, 1).unbind(1)

    def draw(self, draws: Draws, height: int, width: int) -> Program:
        changed = draws.uniform() < self.probability
        order = draws.uniform(4).argsort(0)
        arguments = self.low + (self.high - self.low) * draws.uniform(4)
        codes = torch.where(changed, self.codes, CODES[IDENTITY])
        return Program(codes.gather(0, order), arguments.gather(0, order))


class RandomOperation(RandomProgram):
    """One operation with a probability.

    Args:
        name: Operation.
        probability: That an image is changed.
        low: Smallest argument.
        high: Largest argument.
    """

    def __init__(self, name: str, probability: float, low: float = 0., high: float = 0.) -> None:
        super().__init__()
        self.code = CODES[name]
        self.probability = probability
        self.low = low
        self.high = high

    def draw(self, draws: Draws, height: int, width: int) -> Program:
        used, place = draws.uniform(2)
        codes = torch.where(used < self.probability, self.code, CODES[IDENTITY])
        return Program(codes[None], (self.low + (self.high - self.low) * place.double())[None])
