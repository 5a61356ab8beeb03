"""Every recipe loads strictly, builds what it names, and runs two steps on made data.

Made images of 32x32 pixels stand in for the data; ``resnet20_cifar``, or ``test_vit`` where one is tuned, stands in for
the network, whose real one is built without memory (device ``meta``). Batches have 16 images; 8,142 and 1,000 classes
become 20.
"""

from pathlib import Path

import pytest
import timm
import torch
import yaml
from accelerate.state import AcceleratorState
from paths import ROOT
from timm.data import Mixup

from timm_lt.data import InMemoryImages
from timm_lt.hub.card import write_card
from timm_lt.training import build
from timm_lt.training.config import METADATA, ConfigError, load_config, parse_args, to_yaml
from timm_lt.training.data import DataParts
from timm_lt.training.device import make_accelerator
from timm_lt.training.finetuning import apply_finetuning, initialize_classifier
from timm_lt.training.options import check_names
from timm_lt.training.outputs import RunFolder
from timm_lt.training.pipeline import InputPipeline
from timm_lt.training.posthoc import apply_posthoc, check_posthoc
from timm_lt.training.results import MetricRules, StageResult
from timm_lt.training.stage import NetworkObjective, Stage

FOLDER = ROOT / 'hub_configs'
RECIPES = sorted(p.relative_to(FOLDER).as_posix() for p in FOLDER.rglob('*.yaml'))
METHODS = ('ce', 'balanced_softmax', 'ldam_drw', 'gala', 'gala_rebalance', 'bcl', 'sam', 'imbsam', 'ssesam',
           'ccsam', 'gkp_gsa')
PUBLISHED_CLASSES = {'cifar10': 10, 'cifar100': 100}


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def options_of(name, *options):
    return parse_args(['--config', str(FOLDER / name), *options])


def made_parts(num_classes):
    """A long-tailed training set and a balanced test set of noise."""
    generator = torch.Generator().manual_seed(0)
    counts = [max(2, 24 // (c + 1)) for c in range(num_classes)]

    def images(per_class):
        targets = torch.repeat_interleave(torch.arange(num_classes), torch.tensor(per_class))
        return InMemoryImages(
            torch.randint(0, 256, (len(targets), 3, 32, 32), generator=generator, dtype=torch.uint8), targets)

    from timm_lt import ClassDistribution
    train = images(counts)
    return DataParts(
        train, None, images([1] * num_classes), ClassDistribution.from_targets(train.targets), 'made', 'none')


def test_there_is_a_recipe_for_every_published_method_and_system():
    names = {Path(r).stem for r in RECIPES}
    assert {f'{data}-{m}' for data in ('cifar10_lt', 'cifar100_lt') for m in METHODS} <= names
    systems = ('ccsam', 'gala', 'gkp_gsa', 'ssesam')
    assert {f'{data}-{s}' for data in ('imagenet_lt', 'places_lt', 'inaturalist2018') for s in systems} <= names


@pytest.mark.parametrize('name', [r for r in RECIPES if not r.startswith('base/')])
def test_recipe_names_source_for_its_figure_and_seed_and_data(name):
    args = options_of(name)
    assert args.run.seed == 0 and args.data.dataset and args.notes.hub['dataset_name']
    if published := args.notes.published:
        assert published['source'] and published['top1']
    else:  # said in the head of the file
        head = ''.join(line for line in (FOLDER / name).read_text().splitlines() if line.startswith('#'))
        assert 'none is aimed at' in head or 'not read' in head


@pytest.mark.parametrize('name', [r for r in RECIPES if r.startswith('cifar')])
def test_cutout_is_black_where_a_published_pipeline_is_reproduced(name):
    options = options_of(name).augmentation
    assert not options.cutout or options.cutout_fill == ('mean' if name.endswith('-ours.yaml') else 'black')


def test_options_reach_the_augmentation():
    options = options_of('cifar10_lt-bcl.yaml', '--gaussian-blur-prob', '0.3', '--aa', 'trivial')
    config = {'input_size': (3, 32, 32), 'mean': (0.5,) * 3, 'std': (0.5,) * 3, 'interpolation': 'bilinear'}
    pipeline = InputPipeline(options.data, options.augmentation, config, None, 0)
    augmentation = pipeline.training_augmentation(made_parts(3).train)
    assert augmentation.batchwise and augmentation.cutout == 16
    assert (augmentation.cutout_fill, augmentation.gaussian_blur_prob, augmentation.auto_augment) == (
        'black', 0.3, 'trivial')


@pytest.mark.parametrize('name', [r for r in RECIPES if r.startswith('cifar')])
def test_cifar_recipe_changes_its_ratio_by_one_option(name, tmp_path):
    args = options_of(name, '--imbalance-ratio', '50').flat()
    plain = options_of(name).flat()
    assert (args['imbalance_ratio'], plain['imbalance_ratio']) == (50, 100)
    differing = {k for k in args if args[k] != plain[k]}
    assert differing == {'imbalance_ratio'}


@pytest.mark.parametrize('name', [r for r in RECIPES if r.startswith('cifar')])
def test_cifar_recipe_names_the_ratio_of_each_figure(name):
    published = options_of(name).notes.published or {}
    assert all(isinstance(published[k], dict) for k in ('top1', 'many', 'medium', 'few') if k in published)


@pytest.mark.parametrize('name', RECIPES)
def test_recipe_is_echoed_resolved(name, tmp_path):
    """What ``args.yaml`` of a run holds needs no base file any more and means the same."""
    args = options_of(name)
    (tmp_path / 'args.yaml').write_text(to_yaml(args))
    assert 'base' not in yaml.safe_load(to_yaml(args))
    again = parse_args(['--config', str(tmp_path / 'args.yaml')])
    again, args = again.flat(), args.flat()
    assert {k: v for k, v in again.items() if k not in METADATA} == {k: v for k, v in args.items() if k not in METADATA}


@pytest.mark.parametrize('name', RECIPES)
def test_recipe_loads_strictly_builds_and_runs_two_steps(name, tmp_path):
    options = options_of(name)
    check_names(options)
    with torch.device('meta'):
        timm.create_model(options.model.model, num_classes=options.data.num_classes or 10)
    stand_in = {'model': 'resnet20_cifar'}
    if options.finetune.finetune:
        stand_in = {'model': 'test_vit', 'img_size': 32, 'model_kwargs': {'patch_size': 8}}
    options = options.replace(**stand_in, pretrained=False, batch_size=16, workers=0, quiet=True)
    if options.gkp.gkp:
        options = options.replace(gkp_kwargs={**options.gkp.gkp_kwargs, 'regroup_every': 1})
    data = made_parts(PUBLISHED_CLASSES.get(options.data.dataset.removeprefix('torch/'), 20))
    accelerator = make_accelerator(options.run)
    torch.manual_seed(0)
    cosine = build.cosine_scale(options.model, options.loss.loss)
    model, _ = build.build_model(options.model, data.distribution.num_classes, cosine)
    apply_finetuning(options.finetune, model)
    config = build.data_config(options.model, model)
    pipeline = InputPipeline(options.data, options.augmentation, config, accelerator, options.run.seed)
    rules = MetricRules(data.distribution, 'thirds')
    stage = Stage(options, accelerator, RunFolder(tmp_path), data, pipeline, rules)
    initialize_classifier(stage, model)
    trainer = stage.build(NetworkObjective(model))
    learner, epochs = trainer.learner, options.schedule.epochs
    assert trainer.epochs == epochs
    assert isinstance(trainer.windows.mix, Mixup) == (options.augmentation.mixup > 0)
    assert trainer.optimizer.param_groups[0]['lr'] > 0

    before = {k: v.clone() for k, v in learner.plain_model.state_dict().items()}
    learner.model.train()
    for callback in trainer.callbacks:
        callback.on_train_start(trainer)
    for epoch in (0, epochs - 1):  # what a recipe switches on late is on in the second step
        learner.start_epoch(epoch, epochs, trainer.windows.updates_per_epoch)
        trainer.windows.set_epoch(epoch)
        for callback in trainer.callbacks:
            callback.on_epoch_start(trainer, epoch)
        result, _ = learner.step(next(iter(trainer.windows)), (epoch + 1) / epochs)
        assert torch.isfinite(result.loss) and not result.skipped
        if epoch == 0:
            for callback in trainer.callbacks:
                callback.on_epoch_end(trainer, epoch)
    after = learner.plain_model.state_dict()
    assert all(torch.isfinite(v).all() for v in after.values())
    assert any(not torch.equal(before[k], v) for k, v in after.items())
    if options.posthoc.posthoc:
        check_posthoc(options.posthoc, validation=False)
        trained = StageResult(learner.plain_model, *stage.evaluate(learner.plain_model, data.test))
        entry = apply_posthoc(options.posthoc, stage, trained, stage.folder)['corrected']
        tau = options.posthoc.posthoc_kwargs['tau']
        assert entry['label'].startswith(f'rebalance, tau {tau:g}') and 'test images' in entry['fitted_on']
    if options.second_stage.stage2:
        from timm_lt.training.second_stage import create_method
        create_method(options.second_stage, data.distribution.counts, validation=False).prepare(learner.plain_model)


def test_recipe_figure_goes_into_the_card(tmp_path):
    args = options_of('cifar100_lt-gkp_gsa.yaml', '--imbalance-ratio', '10')
    metrics = {'top1': 40.0, 'seed': 0, 'protocol': {}}
    write_card(tmp_path, args.flat(), metrics, made_parts(10).distribution)
    text = (tmp_path / 'README.md').read_text()
    assert 'Top-1 68.7 at imbalance ratio 10, Many-shot 67.3 at imbalance ratio 100' in text
    assert 'datasets:\n- uoft-cs/cifar100' in text


def test_readme_names_every_recipe_and_every_own_key():
    text = (FOLDER / 'README.md').read_text()
    for name in RECIPES:
        assert f'`{name.removesuffix(".yaml")}`' in text, name
    for key in ('base', *METADATA, *(k for keys in METADATA.values() for k in keys)):
        assert f'`{key}`' in text, key


@pytest.mark.parametrize('line, words', [('los: ce', "'loss'"), ('lr: fast', 'float'), ('stage2_kwargs: 3', 'pairs')])
def test_mistyped_recipe_is_refused(tmp_path, line, words):
    (tmp_path / 'r.yaml').write_text(f'base: {FOLDER}/base/cifar100_lt.yaml\n{line}\n')
    with pytest.raises(ConfigError, match=words):
        load_config(tmp_path / 'r.yaml')
