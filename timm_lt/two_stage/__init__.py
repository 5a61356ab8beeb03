"""Second stages: what is done to the classifier of a trained model. Imported when first used."""

from typing import TYPE_CHECKING, Any

from .._registry import STAGE2, call_factory, import_siblings
from ..models.scaled_classifier import ScaledClassifier
from ._base import Stage2Method, batchnorm_layers, classifier_inputs

if TYPE_CHECKING:  # type checkers do not see the names that import_siblings adds
    from .ccsam import CCSAMStage2 as CCSAMStage2
    from .crt import ClassifierRetraining as ClassifierRetraining
    from .disalign import DisAlign as DisAlign
    from .lws import LearnableWeightScaling as LearnableWeightScaling
    from .mislas import MiSLAS as MiSLAS
    from .ncm import NearestClassMean as NearestClassMean
    from .tau_norm import TauNormalization as TauNormalization

__all__ = ['ScaledClassifier', 'Stage2Method', 'batchnorm_layers', 'classifier_inputs', 'create_stage2', 'list_stage2']
__all__ += import_siblings(__name__)


def list_stage2(filter: str = '') -> list[str]:
    """Names of the second stages, sorted; ``filter`` is a wildcard."""
    return STAGE2.names(filter)


def create_stage2(name: str, class_counts: Any, **kwargs: Any) -> Stage2Method:
    """Create a second stage by name.

    Args:
        name: One of :func:`list_stage2`.
        class_counts: Training images per class, (C,), each >= 1, or a ``ClassDistribution``.
        **kwargs: Options of the method.

    Raises:
        ValueError: If the name is unknown or an option out of range.
        TypeError: If the method has no such option.

    Examples:
        >>> method = create_stage2('crt', class_counts=[500, 50, 5])
    """
    return call_factory(STAGE2.info(name), 'second stage', class_counts, **kwargs)
