"""Second stages: what is done to the classifier of a trained model. Imported when first used."""

from typing import TYPE_CHECKING, Any

from .._moved import renamed
from .._registry import SECOND_STAGES, call_factory, import_siblings
from ..models.scaled_classifier import ScaledClassifier
from ._base import SecondStageMethod, batchnorm_layers, classifier_inputs

if TYPE_CHECKING:  # type checkers do not see the names that import_siblings adds
    from .ccsam import CCSAMSecondStage as CCSAMSecondStage
    from .crt import ClassifierRetraining as ClassifierRetraining
    from .disalign import DisAlign as DisAlign
    from .h2t import HeadToTail as HeadToTail
    from .los import LabelOverSmoothing as LabelOverSmoothing
    from .lws import LearnableWeightScaling as LearnableWeightScaling
    from .mislas import MiSLAS as MiSLAS
    from .ncm import NearestClassMean as NearestClassMean
    from .tau_norm import TauNormalization as TauNormalization
    from .weight_balancing import WeightBalancing as WeightBalancing

__all__ = [
    'ScaledClassifier', 'SecondStageMethod', 'batchnorm_layers', 'classifier_inputs', 'create_second_stage',
    'list_second_stages',
]
__all__ += import_siblings(__name__)


def list_second_stages(filter: str = '') -> list[str]:
    """Names of the second stages, sorted; ``filter`` is a wildcard."""
    return SECOND_STAGES.names(filter)


def create_second_stage(name: str, class_counts: Any, **kwargs: Any) -> SecondStageMethod:
    """Create a second stage by name.

    Args:
        name: One of :func:`list_second_stages`.
        class_counts: Training images per class, (C,), each >= 1, or a ``ClassDistribution``.
        **kwargs: Options of the method.

    Raises:
        ValueError: If the name is unknown or an option out of range.
        TypeError: If the method has no such option.

    Examples:
        >>> method = create_second_stage('crt', class_counts=[500, 50, 5])
    """
    return call_factory(SECOND_STAGES.info(name), 'second stage', class_counts, **kwargs)


if not TYPE_CHECKING:
    __getattr__ = renamed(
        __name__, Stage2Method='SecondStageMethod', CCSAMStage2='CCSAMSecondStage', create_stage2='create_second_stage',
        list_stage2='list_second_stages')
