"""Images of any kind as 8-bit images, upright and with their grey levels kept.

Rules, the same for folders, lists, Hugging Face sets, torchvision's sets and datasets of users:

- EXIF orientation is applied, as a viewer shows the image.
- 16-bit grey (modes 'I;16', 'I;16B', 'I;16L', and 'I' with values of 16 bits): 65535 becomes 255, linearly. TIFF files
  of 12 bits: 4095 becomes 255.
- Floating point (mode 'F'): 1.0 becomes 255, linearly; values must be in [0, 1].
- Transparency is ignored: the stored colours are used, as in timm and torchvision.
- Files of several frames or pages give the first one.
"""

from typing import Any

import numpy as np
from PIL import Image

__all__ = ['convert_image', 'open_image']

ORIENTATION = 0x0112  # EXIF tag
BITS_PER_SAMPLE = 258  # TIFF tag
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_KEYS = ('exif', 'Raw profile type exif', 'XML:com.adobe.xmp', 'xmp')
_TRANSPARENT_PALETTES = ('P', 'PA')


def open_image(file: Any, mode: str | None = 'RGB') -> Image.Image:
    """Decode an image file.

    Args:
        file: Path, or binary file object.
        mode: 'RGB', 'L' or another 8-bit mode of Pillow; None keeps the image's own 8-bit mode.

    Returns:
        The first frame, upright, 8 bits a channel, without metadata.

    Raises:
        ValueError: If grey levels have no rule, see the module's head.
        Exception: Any error of Pillow.
    """
    with Image.open(file) as image:
        image.load()
        return convert_image(image, mode)


def convert_image(image: Image.Image, mode: str | None = 'RGB') -> Image.Image:
    """An image upright, with 8 bits a channel, in a mode. An image that is so already is returned itself.

    Args:
        image: Image of any mode.
        mode: As for :func:`open_image`.

    Raises:
        ValueError: If grey levels have no rule, see the module's head.
    """
    orientation = _orientation(image)
    ready = orientation == 1 and image.mode[0] not in 'IF' and mode in (None, image.mode)
    if ready and type(image) is Image.Image:
        return image
    converted = _eight_bits(image)
    if mode not in (None, converted.mode):
        if converted.mode in _TRANSPARENT_PALETTES and 'transparency' in converted.info:
            converted = converted.convert('RGBA')  # Pillow warns about palettes with several levels of transparency
        converted = converted.convert(mode)
    if orientation != 1:
        converted = converted.transpose(_TRANSPOSE[orientation])
    if converted is image:
        converted = image.copy()
    for key in _ORIENTATION_KEYS:
        converted.info.pop(key, None)  # applied; a second reading must not turn the image again
    return converted


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 (upright) where there is none or the EXIF block is damaged, as viewers do."""
    if type(image) is Image.Image and not any(key in image.info for key in _ORIENTATION_KEYS):
        return 1
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # noqa: BLE001  a damaged block raises almost anything, and the pixels are sound
        return 1
    return orientation if orientation in _TRANSPOSE else 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey levels of 16 or 32 bits as 8 bits; other images themselves."""
    if image.mode.startswith('I'):
        levels, white = np.asarray(image), 4095 if _bits(image) == 12 else 65535
        low, high = int(levels.min()), int(levels.max())
        if low < 0 or high > white:
            raise ValueError(
                f'mode {image.mode!r} holds values from {low} to {high}, but only 16-bit levels, 0 to 65535, have a '
                f'rule; store the image with 8 or 16 bits')
        # rounded division in whole numbers
        return Image.fromarray(((levels.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8))
    if image.mode.startswith('F'):
        levels = np.asarray(image)
        dark, bright = float(levels.min()), float(levels.max())
        if not (dark >= 0 and bright <= 1):  # also NaN
            raise ValueError(
                f'mode {image.mode!r} (floating point) holds values from {dark:g} to {bright:g}, but only [0, 1] has a '
                f'rule; divide by the white level, or store the image with 8 or 16 bits')
        return Image.fromarray(np.rint(levels * 255).astype(np.uint8))
    return image


def _bits(image: Image.Image) -> int | None:
    bits = getattr(image, 'tag_v2', {}).get(BITS_PER_SAMPLE)
    return bits[0] if bits else None
