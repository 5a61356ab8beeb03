"""Checkpoints that carry their evidence: the ``hub/`` folder of a run, its model card, upload, download, loading.

``timm_lt.hub.list()`` names the checkpoints that come with the package, and ``timm_lt.hub.load('digits')`` loads one
without a network. ``python -m timm_lt.hub push|pull|list`` talks to the Hugging Face Hub.
"""

from .errors import HubError
from .folder import write_hub_card, write_hub_folder
from .loading import Checkpoint, load, shipped
from .loading import list_shipped as list
from .network import load_network
from .open_set import OpenSetThreshold, write_open_set
from .remote import check_repo_id, has_token, list_remote, pull, push

__all__ = [
    'Checkpoint', 'HubError', 'OpenSetThreshold', 'check_repo_id', 'has_token', 'list', 'list_remote', 'load',
    'load_network', 'pull', 'push', 'shipped', 'write_hub_card', 'write_hub_folder', 'write_open_set',
]
