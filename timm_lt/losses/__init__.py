"""Long-tailed losses, each a function and a module, registered by name."""

from .._registry import import_siblings
from ._base import LongTailLoss
from ._criterion import sample_losses, statistics
from ._factory import create_loss, list_losses

__all__ = ['LongTailLoss', 'create_loss', 'list_losses', 'sample_losses', 'statistics', *import_siblings(__name__)]
