"""The ``hub/`` folder of a run.

=============================  ======================================================================================
``config.json``                timm's description of the network and its input
``model.safetensors``          the weights
``manifest.json``              SHA-256 of the weights, versions
``class_distribution.json``    training images per class, timm's class-stats format, with the class names
``recipe.yaml``                the resolved options, as ``--config`` reads them, less paths of the machine
``metrics.json``               measured metrics and their protocol
``posthoc.json``               the post-hoc correction with its values, where there is one
``open_set.json``              the open-set threshold, where :func:`write_open_set` has stored one
``README.md``                  the model card
``plots/``                     plots of the report
``protocol.md``                the rules of its metrics
=============================  ======================================================================================
"""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import yaml

from .._files import replace_folder
from .._private_options import PRIVATE_OPTIONS
from .._unwrap import plain_model
from .._version import __version__
from ..class_distribution import ClassDistribution
from ..models.adaptformer import adaptformer_network_args
from ..models.cosine_network import cosine_network_args
from ..posthoc import PostHoc
from .card import write_card
from .errors import HubError
from .weights import DTYPES, WEIGHTS, write_manifest

__all__ = ['write_hub_card', 'write_hub_folder']


def write_hub_folder(
        run_dir: str | Path,
        model: nn.Module,
        *,
        model_args: dict[str, Any] | None = None,
        data_config: dict[str, Any] | None = None,
        posthoc: PostHoc | None = None,
        dtype: str = 'float32',
        card: bool = True,
) -> Path:
    """Write ``run_dir/hub`` from the files of a run; the folder appears whole or not at all.

    Args:
        run_dir: Has ``args.yaml``, ``metrics.json``, ``class_distribution.json``; ``plots/`` and ``posthoc.json`` are
            taken where they exist.
        model: A timm model with the weights to publish, also as training has wrapped it.
        model_args: Arguments of ``timm.create_model`` that rebuild it.
        data_config: Input size, mean, deviation, interpolation, crop.
        posthoc: Correction to apply to the logits; None takes that of ``posthoc.json``.
        dtype: Type the weights are stored in: ``'float32'``, ``'float16'`` or ``'bfloat16'``. Loading copies them
            into the float32 model. The metrics stay those of the run, measured before rounding; ``protocol`` says so.
        card: Also write the model card and copy the plots; else :func:`write_hub_card` adds them later.

    Returns:
        The folder.

    Raises:
        HubError: If a file of the run is missing or unreadable.
    """
    run_dir, model = Path(run_dir), plain_model(model)
    if dtype not in DTYPES:
        raise HubError(f'dtype must be one of {tuple(DTYPES)}, got {dtype!r}')
    distribution, options, metrics = _read_run(run_dir)
    posthoc = posthoc or _read_posthoc(run_dir)
    new = run_dir / 'hub.new'
    shutil.rmtree(new, ignore_errors=True)
    _write_network(new, model, dict(model_args or {}), data_config, distribution.class_names, dtype)
    if dtype != 'float32':
        note = f'{dtype}; the metrics were measured before rounding'
        metrics['protocol'] = {**metrics.get('protocol', {}), 'stored_weights': note}
    _write_facts(new, distribution, options, metrics, posthoc)
    if card:
        _decorate(new, run_dir / 'plots')
    replace_folder(new, run_dir / 'hub')
    return run_dir / 'hub'


def _write_network(
        folder: Path,
        model: nn.Module,
        model_args: dict[str, Any],
        data_config: dict[str, Any] | None,
        class_names: list[str] | None,
        dtype: str,
) -> None:
    """Weights in ``dtype``, their description for timm, and the manifest."""
    from timm.models import get_model_args, save_for_hf
    config: dict[str, Any] = {'label_names': class_names} if class_names else {}
    if adaptformer_args := adaptformer_network_args(model):
        config['architecture'] = 'adaptformer_network'
        model_args |= adaptformer_args
    elif 'cosine_scale' not in get_model_args(model, model_args) and (cosine_args := cosine_network_args(model)):
        config['architecture'] = 'cosine_network'
        model_args |= cosine_args
    # safetensors takes contiguous weights only, and the caller's model keeps its memory format
    stored = copy.deepcopy(model).to(DTYPES[dtype]).to(memory_format=torch.contiguous_format)
    save_for_hf(
        stored, str(folder), model_config=config, model_args=model_args or None, safe_serialization=True,
        data_config=data_config)
    # safetensors makes its file readable for the owner only
    (folder / WEIGHTS).chmod((folder / 'config.json').stat().st_mode)
    write_manifest(folder, dtype=dtype, versions={'timm_lt': __version__, 'timm': _timm(), 'torch': torch.__version__})


def _write_facts(
        folder: Path,
        distribution: ClassDistribution,
        options: dict[str, Any],
        metrics: dict[str, Any],
        posthoc: PostHoc | None,
) -> None:
    """Class counts, recipe, metrics and post-hoc correction."""
    distribution.to_json(folder / 'class_distribution.json')
    recipe = {k: v for k, v in options.items() if k not in PRIVATE_OPTIONS}
    (folder / 'recipe.yaml').write_text(yaml.safe_dump(recipe, sort_keys=True), encoding='utf-8')
    (folder / 'metrics.json').write_text(json.dumps(metrics, indent=1) + '\n', encoding='utf-8')
    if posthoc is not None:
        (folder / 'posthoc.json').write_text(json.dumps(posthoc.to_dict(), indent=1) + '\n', encoding='utf-8')


def write_hub_card(run_dir: str | Path) -> Path:
    """Write the model card of ``run_dir/hub``, with the run's plots where they show the stored network.

    Args:
        run_dir: A run folder with ``hub/``.

    Returns:
        The card.

    Raises:
        HubError: If there is no ``hub/``, or a file of it is missing or unreadable.
    """
    run_dir = Path(run_dir)
    per_class = [_read_run(folder, options)[2].get('per_class')
               for folder, options in ((run_dir, 'args.yaml'), (run_dir / 'hub', 'recipe.yaml'))]
    # plots of another classifier than the stored one would not be its evidence
    return _decorate(run_dir / 'hub', run_dir / 'plots' if per_class[0] == per_class[1] else None)


def _decorate(folder: Path, plots: Path | None) -> Path:
    """Plots and card of a hub folder, the card from the folder's own files."""
    distribution, recipe, metrics = _read_run(folder, 'recipe.yaml')
    for plot in sorted(plots.glob('*.png')) if plots is not None else []:
        (folder / 'plots').mkdir(exist_ok=True)
        shutil.copy(plot, folder / 'plots' / plot.name)
    write_card(folder, recipe, metrics, distribution, _read_posthoc(folder))
    return folder / 'README.md'


def _read_run(
        run_dir: Path, options_file: str = 'args.yaml') -> tuple[ClassDistribution, dict[str, Any], dict[str, Any]]:
    try:
        distribution = ClassDistribution.from_json(run_dir / 'class_distribution.json')
        options = yaml.safe_load((run_dir / options_file).read_text(encoding='utf-8'))
        metrics = json.loads((run_dir / 'metrics.json').read_text(encoding='utf-8'))
    except FileNotFoundError as e:
        raise HubError(f'{run_dir} is no finished run: {Path(e.filename).name} is missing') from e
    except (ValueError, yaml.YAMLError) as e:
        raise HubError(f'{run_dir}: {e}') from e
    return distribution, options, metrics


def _read_posthoc(folder: Path) -> PostHoc | None:
    file = folder / 'posthoc.json'
    return PostHoc.from_dict(json.loads(file.read_text(encoding='utf-8'))) if file.is_file() else None


def _timm() -> str:
    import timm
    return timm.__version__
