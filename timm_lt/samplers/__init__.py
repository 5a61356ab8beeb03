"""Samplers that re-balance classes, registered by name."""

from .._registry import import_siblings
from ._base import LongTailSampler, check_not_divided
from ._factory import create_sampler, list_samplers

__all__ = ['LongTailSampler', 'check_not_divided', 'create_sampler', 'list_samplers', *import_siblings(__name__)]
