"""CC-SAM, first stage: the optimizer, and the closed form of a step on a linear or cosine classifier."""

from .optimizer import CCSAM

__all__ = ['CCSAM']
