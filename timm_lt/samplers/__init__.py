"""Samplers that re-balance classes, registered by name."""

from .._registry import import_siblings
from ._factory import create_sampler, list_samplers

__all__ = ['create_sampler', 'list_samplers', *import_siblings(__name__)]
