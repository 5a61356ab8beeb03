"""The model card: what was measured and how, in the Hub's metadata format, and how to load the checkpoint."""

import inspect
import re
from pathlib import Path
from typing import Any

from .._files import write_text
from .._protocol import PROTOCOL_URL, protocol_text
from .._registry import FINETUNING, LOSSES, MIXINGS, OPTIMIZERS, SAMPLERS, SECOND_STAGES, MethodInfo
from .._text import printable
from ..class_distribution import ClassDistribution
from ..posthoc import PostHoc

__all__ = ['citations', 'write_card']

LICENSE = 'apache-2.0'
PROTOCOL_FILE = 'protocol.md'
METRICS = {
    'top1': 'Top-1', 'many': 'Many-shot', 'medium': 'Medium-shot', 'few': 'Few-shot', 'balanced_accuracy': 'Balanced',
    'ece': 'ECE',
}
# data sets of the Hub, by the option that names them
DATASETS = {
    'torch/cifar10': ('uoft-cs/cifar10', 'CIFAR-10'),
    'torch/cifar100': ('uoft-cs/cifar100', 'CIFAR-100'),
    'timm_lt/digits': (None, 'Digits (scikit-learn)'),
}

# papers of methods without a registry
PAPERS = {
    'drw': 'K. Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", NeurIPS 2019, '
           'https://arxiv.org/abs/1906.07413, Algorithm 1',
    'adrw': 'Z. Wang et al., "A Unified Generalization Analysis of Re-Weighting and Logit-Adjustment for Imbalanced '
            'Learning", NeurIPS 2023, https://arxiv.org/abs/2310.04752',
    'gkp': 'Chen et al., "GKP+GSA", CVPR 2026',
    'mixup': 'H. Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, '
             'https://arxiv.org/abs/1710.09412',
    'cutmix': 'S. Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", '
              'ICCV 2019, https://arxiv.org/abs/1905.04899',
    'rebalance': 'F. Zhang et al., "Gradient-Aware Logit Adjustment Loss for Long-tailed Classifier", ICASSP 2024, '
                 'https://arxiv.org/abs/2403.09036',
    'logit_adjust': 'A. Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, '
                    'https://arxiv.org/abs/2007.07314, Eq. (9)',
    'tau_normalize': 'B. Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", '
                     'ICLR 2020, https://arxiv.org/abs/1910.09217, Eq. (4)',
    'temperature': 'C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, '
                   'https://arxiv.org/abs/1706.04599',
}


def write_card(
        folder: Path,
        recipe: dict[str, Any],
        metrics: dict[str, Any],
        distribution: ClassDistribution,
        posthoc: PostHoc | None = None,
) -> None:
    """Write ``README.md`` of a hub folder, and ``protocol.md``, to which it links.

    Args:
        folder: The hub folder; its ``plots/`` are shown.
        recipe: Resolved options; ``hub`` (licence, tags, dataset, title) and ``published`` are read if present.
        metrics: Contents of ``metrics.json``.
        distribution: Training images per class.
        posthoc: Correction of ``posthoc.json``.
    """
    from huggingface_hub import ModelCard, ModelCardData
    hub = recipe.get('hub') or {}
    dataset_id, dataset_name = _dataset(recipe, hub)
    title = f'{recipe["model"]}, {_methods_line(recipe)}, {dataset_name} {_tail(distribution)}'
    name = printable(hub.get('title') or title)
    data = ModelCardData(
        library_name='timm', pipeline_tag='image-classification', license=hub.get('license', LICENSE),
        tags=['image-classification', 'timm', 'timm_lt', 'long-tailed', 'class-imbalance', *hub.get('tags', [])],
        datasets=[dataset_id] if dataset_id else None, metrics=['accuracy'], model_name=name,
        eval_results=_results(metrics, distribution, dataset_id, dataset_name))
    sections = [
        f'# {_markdown(name)}', _intro(recipe, metrics, distribution, _markdown(dataset_name)), '## Results',
        _results_table(metrics, recipe), '## Protocol', _protocol(metrics), '## Use', _usage(posthoc),
    ]
    if posthoc is not None:
        sections += ['## Post-hoc correction', _posthoc(posthoc)]
    elif reason := metrics.get('correction_left_out'):
        sections += ['## Post-hoc correction', f'None is kept for this model. {reason}.']
    if plots := sorted((folder / 'plots').glob('*.png')):
        sections += ['## Plots', '\n\n'.join(f'![{p.stem.replace("_", " ")}](plots/{p.name})' for p in plots)]
    if cited := citations(recipe):
        sections += ['## Methods', '\n'.join(f'- {c}' for c in cited)]
    card = ModelCard(f'---\n{data.to_yaml()}\n---\n\n' + '\n\n'.join(sections) + '\n')
    if not PROTOCOL_URL:
        write_text(folder / PROTOCOL_FILE, protocol_text())
    card.save(folder / 'README.md')


def citations(recipe: dict[str, Any]) -> list[str]:
    """The papers of the methods that a recipe names."""
    cited: list[str] = []
    registries = {'loss': LOSSES, 'sampler': SAMPLERS, 'mix': MIXINGS, 'opt': OPTIMIZERS, 'stage2': SECOND_STAGES}
    for option, registry in registries.items():
        name = recipe.get(option)
        if name and name in registry:
            info = registry.info(name)
            if paper := _paper(info):
                cited.append(f'`{name}`: {paper}')
    tuning = str(recipe.get('finetune') or '').partition(':')[0]
    if tuning in FINETUNING:
        cited.append(f'`{tuning}`: {_paper(FINETUNING.info(tuning))}')
    return cited + [f'`{name}`: {PAPERS[name]}' for name in _further_methods(recipe) if name in PAPERS]


def _paper(info: MethodInfo) -> str:
    """The citation in the head of the method's module, else the registered short one."""
    doc = inspect.getdoc(inspect.getmodule(info.factory)) or ''
    found = re.search(r'^Papers?: (.+?)(?=\n\n|\n[A-Z][A-Za-z ]*:|\Z)', doc, re.DOTALL | re.MULTILINE)
    return ' '.join(found[1].split()) if found else info.paper


def _dataset(recipe: dict[str, Any], hub: dict[str, Any]) -> tuple[str | None, str]:
    option = recipe.get('dataset') or ''
    if option in DATASETS:
        dataset_id, name = DATASETS[option]
    elif option.startswith(('hfds/', 'hfids/')):
        dataset_id, name = option.split('/', 1)[1], option.split('/', 1)[1]
    else:
        dataset_id, name = None, Path(option).stem or 'image folder'
    return hub.get('dataset', dataset_id), printable(hub.get('dataset_name', name))


def _markdown(text: Any) -> str:
    """Text that Markdown shows as it is: no emphasis, link, tag, table cell or formula."""
    return re.sub(r'([\\`*$<\[|])', r'\\\1', printable(text))


def _tail(distribution: ClassDistribution) -> str:
    return f'(imbalance ratio {distribution.imbalance_ratio:.4g})'


def _methods_line(recipe: dict[str, Any]) -> str:
    names = [recipe.get('loss'), recipe.get('opt')]
    if recipe.get('sampler') not in (None, 'instance_balanced'):
        names.append(recipe['sampler'])
    names.append(recipe.get('mix'))
    if recipe.get('stage2') not in (None, '', 'none'):
        names.append(recipe['stage2'])
    if recipe.get('finetune'):
        names.append(f'{recipe["finetune"]} fine-tuning')
    names += _further_methods(recipe)
    return ' + '.join(str(n) for n in names if n)


def _further_methods(recipe: dict[str, Any]) -> list[str]:
    deferred = recipe.get('drw_epoch') is not None
    adrw = deferred and recipe.get('drw_rule') == 'prior_power'
    used = {
        'drw': deferred and not adrw, 'adrw': adrw, 'gkp': recipe.get('gkp'), 'mixup': recipe.get('mixup'),
        'cutmix': recipe.get('cutmix')}
    return [name for name, on in used.items() if on] + [recipe['posthoc']] * bool(recipe.get('posthoc'))


def _results(
        metrics: dict[str, Any],
        distribution: ClassDistribution,
        dataset_id: str | None,
        dataset_name: str,
) -> list[Any]:
    """The measured metrics for ``model-index``; an absent split is left out, never 0."""
    from huggingface_hub import EvalResult
    protocol = metrics.get('protocol', {})
    args = {k: protocol[k] for k in ('test_part', 'epoch_chosen_by', 'split_rule', 'transductive') if k in protocol}
    args['seed'] = metrics.get('seed')
    rows = [(metrics, '', args)]
    if corrected := metrics.get('corrected'):
        own = {'transductive': 'yes' if corrected['transductive'] else 'no', 'posthoc': corrected['label'],
               'posthoc_fitted_on': corrected['fitted_on']}
        rows.append((corrected, f', {corrected["label"]}', args | own))
    return [
        EvalResult(
            task_type='image-classification', task_name='Long-tailed image classification',
            dataset_type=dataset_id or re.sub(r'[^a-z0-9]+', '-', dataset_name.lower()).strip('-'),
            dataset_name=f'{dataset_name}, {_tail(distribution).strip("()")}',
            dataset_split=_split(str(protocol.get('test_part', 'test'))),
            metric_type='ece' if key == 'ece' else 'accuracy', metric_name=label + suffix,
            metric_value=round(float(row[key]), 4), metric_args=row_args)
        for row, suffix, row_args in rows for key, label in METRICS.items() if row.get(key) is not None]


def _split(test_part: str) -> str:
    found = re.fullmatch(r"split '(.+)'", test_part)
    return found[1] if found else test_part


def _intro(
        recipe: dict[str, Any],
        metrics: dict[str, Any],
        distribution: ClassDistribution,
        dataset_name: str,
) -> str:
    return (
        f'`{recipe["model"]}` ({metrics.get("num_parameters", 0):,} parameters), trained on {dataset_name} with '
        f'{distribution.num_samples:,} training images in {distribution.num_classes} classes, '
        f'{int(distribution.counts.max()):,} in the largest and {int(distribution.counts.min()):,} in the smallest, by '
        f'[timm](https://github.com/huggingface/pytorch-image-models) and timm_lt: {_methods_line(recipe)}, '
        f'{metrics.get("epochs", recipe.get("epochs"))} epochs. {_tuning(metrics)}`recipe.yaml` holds every option.')


def _tuning(metrics: dict[str, Any]) -> str:
    """Sentences on fine-tuning; empty where every parameter was trained."""
    if 'num_tuned_parameters' not in metrics:
        return ''
    text = f'Fine-tuning by `{metrics["finetune"]}` trained {metrics["num_tuned_parameters"]:,} parameters. '
    if metrics['finetune'] == 'adaptformer':
        return text + (
            'The layers of AdaptFormer do not merge into the weights of the network, so timm builds this checkpoint '
            'only after `import timm_lt`. ')
    return text + 'The stored weights are plain weights of the network. '


def _results_table(metrics: dict[str, Any], recipe: dict[str, Any]) -> str:
    rows = [('as trained', metrics)]
    if corrected := metrics.get('corrected'):
        rows.append((f'{corrected["label"]} (fitted on {corrected["fitted_on"]})', corrected))
    lines = [f'| | {" | ".join(METRICS.values())} |', f'| --- |{" ---: |" * len(METRICS)}']
    for name, row in rows:
        cells = ['absent' if row.get(key) is None else f'{row[key]:.2f}' for key in METRICS]
        lines.append(f'| {name} | {" | ".join(cells)} |')
    lines += [
        '',
        f'Percent, one run, seed {metrics.get("seed")}. A split without classes is absent.']
    if published := recipe.get('published'):
        targets = ', '.join(
            f'{METRICS[k]} {_at_ratio(published[k], recipe)}' for k in METRICS if published.get(k) is not None)
        network = f' with {published["network"]}' if published.get('network') else ''
        lines += ['', f'The recipe aims at a published result, which is not a result of this checkpoint: {targets}'
                      f'{network}. Source: {published["source"]}.']
        if published.get('note'):
            lines += ['', str(published['note'])]
    return '\n'.join(lines)


def _at_ratio(result: Any, recipe: dict[str, Any]) -> str:
    """A published result; of several, by imbalance ratio, that of the run."""
    if not isinstance(result, dict):
        return str(result)
    by_ratio = {str(k): v for k, v in result.items()}
    ratio = f'{recipe.get("imbalance_ratio") or 0:g}'
    if ratio in by_ratio:
        return f'{by_ratio[ratio]} at imbalance ratio {ratio}'
    return '; '.join(f'{v} at imbalance ratio {k}' for k, v in by_ratio.items())


def _protocol(metrics: dict[str, Any]) -> str:
    entries = {k.replace('_', ' '): v for k, v in metrics.get('protocol', {}).items()}
    if 'reported epoch' in entries:
        entries['reported epoch'] += 1
    recorded = '\n'.join(f'- {k}: {_markdown(v)}' for k, v in entries.items()) or 'Not recorded.'
    return f'{recorded}\n\nThe [protocol]({PROTOCOL_URL or PROTOCOL_FILE}) explains the terms.'


def _usage(posthoc: PostHoc | None) -> str:
    corrected = ', with the post-hoc correction' if posthoc is not None else ''
    return '\n'.join([
        '```python',
        'import timm, timm_lt',
        "model = timm.create_model('hf-hub:USER/NAME', pretrained=True)       # by timm; logits as trained",
        "checkpoint = timm_lt.hub.load('USER/NAME')                           # weights checked against manifest.json",
        f'scores = checkpoint(checkpoint.transform(image)[None])               # log-scores{corrected}',
        'checkpoint.class_names, checkpoint.distribution.counts, checkpoint.metrics["top1"]',
        '```',
    ])


def _posthoc(posthoc: PostHoc) -> str:
    text = f'`posthoc.json`: {posthoc.label}.'
    if posthoc.transductive:
        text += ' It uses the statistics of all test images at once, so its metrics are not those of a single image.'
    return text
