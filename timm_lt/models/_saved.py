"""Networks that are built around another network of timm: what a saved folder of one gives back."""

from typing import Any

import torch.nn as nn
from timm.models import load_pretrained


def is_saved(pretrained_cfg: Any) -> bool:
    """Whether ``timm.create_model`` reads a saved folder, local or of the Hub."""
    return isinstance(pretrained_cfg, dict) and pretrained_cfg.get('source') in ('local-dir', 'hf-hub')


def name_and_load(
        model: Any,
        architecture: str,
        pretrained_cfg: Any,
        *,
        pretrained: bool,
        in_chans: int,
        cache_dir: str | None,
) -> nn.Module:
    """Give a built network its name of timm, and the weights of a saved folder where there is one.

    Args:
        model: The network around that of timm.
        architecture: Name that ``timm.create_model`` builds it by.
        pretrained_cfg: As ``timm.create_model`` gives it.
        pretrained: Load the weights, if ``pretrained_cfg`` is of a saved folder.
        in_chans: Channels of the images, >= 1.
        cache_dir: Folder of downloads; None: that of the Hub.
    """
    saved = is_saved(pretrained_cfg)
    model.pretrained_cfg = model.default_cfg = {
        **model.pretrained_cfg, **(pretrained_cfg if saved else {}), 'architecture': architecture}
    if pretrained and saved:
        load_pretrained(model, num_classes=model.num_classes, in_chans=in_chans, cache_dir=cache_dir)
    return model
