"""A correction with its chosen values, as it is stored beside a model."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .._registry import POSTHOC
from .._validate import check_option, check_range
from ._base import PostHocMethod
from .rebalancing import FLOOR

__all__ = ['PostHoc']


@dataclass(frozen=True)
class PostHoc:
    """A correction with its chosen values: goes into JSON beside the model and is called on logits.

    Made by :func:`choose_tau` and :func:`fit_temperature`, or by hand.

    Attributes:
        method: One of :data:`METHODS`.
        tau: Strength; for ``'temperature'`` the temperature.
        transductive: Only ``'rebalance'``: column sums come from the images it is called on, all test images at once.
        log_column_sums: ``'rebalance'``, inductive: logarithms of the reference column sums, (C,).
        class_counts: ``'logit_adjust'``: training images per class, (C,).
        weight_norms: ``'tau_normalize'``: norms of the classifier's weights, (C,).
        bias: ``'tau_normalize'``: bias of the classifier, (C,), or None.
        floor: ``'rebalance'``: see :func:`rebalance_predictions`; 0 is the published rule.
        metric: What chose tau on validation images, or None.
        score: Its value there, or None.

    Examples:
        >>> correct = PostHoc('logit_adjust', tau=1.0, class_counts=[90, 10])
        >>> correct(torch.tensor([1.0, 0.0])).argmax().item()
        1
    """
    method: str
    tau: float = 1.0
    transductive: bool = False
    log_column_sums: tuple[float, ...] | None = None
    class_counts: tuple[int, ...] | None = None
    weight_norms: tuple[float, ...] | None = None
    bias: tuple[float, ...] | None = None
    floor: float = FLOOR
    metric: str | None = None
    score: float | None = None

    def __post_init__(self) -> None:
        check_option('method', self.method, tuple(POSTHOC.names()))
        check_range('tau', self.tau, 0, low_open=self.method == 'temperature')
        if self.transductive and not self._method.transductive:
            able = [name for name in POSTHOC.names() if POSTHOC.trait(name, 'transductive', False)]
            raise ValueError(f'only method {" or ".join(map(repr, able))} can be transductive, got {self.method!r}')
        needed = self._method.needed(self)
        if needed and getattr(self, needed) is None:
            raise ValueError(f'method {self.method!r} needs {needed}')
        for name in ('log_column_sums', 'class_counts', 'weight_norms', 'bias'):
            values = getattr(self, name)
            if values is not None:
                values = values.tolist() if isinstance(values, Tensor) else values
                if not all(math.isfinite(v) for v in values):
                    raise ValueError(f'{name} must be finite, got {list(values)[:8]}')
                object.__setattr__(self, name, tuple(values))

    @property
    def _method(self) -> PostHocMethod:
        return POSTHOC.info(self.method).factory()

    @property
    def label(self) -> str:
        """For a report, e.g. ``'rebalance, tau 1.4, transductive'``."""
        kind = 'transductive' if self.transductive else 'inductive'
        return f'{self.method}, {self._method.symbol} {self.tau:g}, {kind}'

    def __call__(self, logits: Tensor) -> Tensor:
        """Log-scores of one image (C,) or of several (B, C); transductive: of the whole test set (M, C).

        Raises:
            ValueError: If shapes disagree, or a transductive correction gets a single image.
        """
        return self._method.apply(self, logits)

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON; those that the method does not use are left out."""
        values = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> 'PostHoc':
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: If an entry is unknown, or one is missing.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown or 'method' not in values:
            raise ValueError(f'a post-hoc correction has the entries {known}, got {sorted(values)}')
        return cls(**values)
