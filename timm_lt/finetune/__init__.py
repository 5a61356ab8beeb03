"""Fine-tuning of pretrained networks: which parameters are trained, and how they end as plain weights.

``apply(model, 'lora')`` before the optimizer is built, ``merge(model)`` after training. Imported when first used.
"""

from typing import TYPE_CHECKING

from .._registry import FINETUNING, import_siblings
from ._apply import apply, create_method, merge, tuned_parameters
from ._base import FinetuneMethod

if TYPE_CHECKING:  # type checkers do not see the names that import_siblings adds
    from .adaptformer import AdaptFormerTuning as AdaptFormerTuning
    from .bias import BiasTuning as BiasTuning
    from .blocks import BlockTuning as BlockTuning
    from .full import FullTuning as FullTuning
    from .head import HeadTuning as HeadTuning
    from .head_init import initialize_head as initialize_head
    from .lora import LoRATuning as LoRATuning
    from .norm import NormTuning as NormTuning

__all__ = ['FinetuneMethod', 'apply', 'create_method', 'list_finetuning', 'merge', 'tuned_parameters']
__all__ += import_siblings(__name__)


def list_finetuning(filter: str = '') -> list[str]:
    """Names of the fine-tuning methods, sorted; ``filter`` is a wildcard."""
    return FINETUNING.names(filter)
