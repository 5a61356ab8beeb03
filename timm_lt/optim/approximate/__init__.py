"""Passes that treat BatchNorm approximately, for ``batchnorm='stacked'`` and ``'exact_ascent'``.

A stacked pass runs one batch in which the samples of each group use the weights of that group. A layer with parameters
works on the slices of a batch sorted by group; every other layer sees one batch. One pass serves any number of groups.

BatchNorm mixes the samples of a batch, so this is approximate in two places:

- The first pass normalises by the statistics of the whole batch. The exact gradient of a group reaches every sample
  through these statistics. Here it stays inside the group, where it is centred. ``exact_ascent`` takes the exact one.
- The second pass would need the statistics of the whole batch under the perturbation of group k. They are estimated as
  ``mean + (mean_k' - mean_k)``, the clean mean moved by the change of the group's own mean. The variance is estimated
  likewise. The gradient is centred over the whole batch, so that it equals the plain one without a perturbation.
"""

from .layers import check_stacked as check_stacked
from .layers import stacked_forward as stacked_forward
from .passes import exact_gradients as exact_gradients
from .passes import stacked_gradients as stacked_gradients
