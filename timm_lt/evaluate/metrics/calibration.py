"""Calibration of confidences: reliability bins and the expected calibration error.

Paper: C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, Section 2 and Eq. (3).
Source: written from the paper.
Differs from the paper: no. Bin m holds the confidences in ((m - 1) / M, m / M], so that 1 belongs to the last bin.
"""

import torch
from torch import Tensor

ECE_BINS = 15


def calibration_bins(confidence: Tensor, right: Tensor, num_bins: int = ECE_BINS) -> dict[str, Tensor]:
    """Images, accuracy and mean confidence of each bin.

    Args:
        confidence: Probability of the predicted class, (N,), in [0, 1]. NaN belongs to no bin.
        right: Whether the prediction is right, (N,), bool.
        num_bins: M, the number of bins of equal width.

    Returns:
        ``images`` (M,), int64; ``accuracy`` and ``confidence`` (M,), float64, in [0, 1], NaN for an empty bin.
    """
    known = ~confidence.isnan()
    confidence, right = confidence[known].double(), right[known].double()
    upper = torch.arange(1, num_bins, dtype=torch.float64) / num_bins
    place = torch.bucketize(confidence, upper)  # the number of upper edges below the confidence
    images = torch.bincount(place, minlength=num_bins)
    return {
        'images': images,
        'accuracy': torch.bincount(place, weights=right, minlength=num_bins) / images,
        'confidence': torch.bincount(place, weights=confidence, minlength=num_bins) / images,
    }


def expected_calibration_error(confidence: Tensor, right: Tensor, num_bins: int = ECE_BINS) -> float | None:
    """ECE in percent: the gap between accuracy and confidence of a bin, averaged over the images.

    Args:
        confidence: Probability of the predicted class, (N,).
        right: Whether the prediction is right, (N,), bool.
        num_bins: Number of bins.

    Returns:
        The error in [0, 100], or None without an image or if a confidence is not finite.
    """
    if confidence.numel() == 0 or not bool(torch.isfinite(confidence).all()):
        return None
    bins = calibration_bins(confidence, right, num_bins)
    gaps = (bins['accuracy'] - bins['confidence']).abs().nan_to_num(0.0)
    return 100.0 * float((gaps * bins['images']).sum() / confidence.numel())
