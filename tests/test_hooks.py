import json
import subprocess
import sys
import warnings

import pytest
import timm
import torch
from torch.utils.data import TensorDataset

import timm_lt
from timm_lt import _timm_hooks


@pytest.fixture
def unregistered():
    timm_lt.unregister()
    yield
    timm_lt.register()


def our_names():
    return (
        set(timm_lt.list_networks()) & set(timm.list_models()),
        set(timm_lt.list_optimizers()) & set(timm.optim.list_optimizers()),
    )


def test_names_stand_in_the_lists_of_timm():
    networks, optimizers = our_names()
    assert networks == set(timm_lt.list_networks()) and 'resnet32_cifar' in networks
    assert optimizers == set(timm_lt.list_optimizers()) and 'sam' in optimizers
    descriptions = dict(timm.optim.list_optimizers(with_description=True))
    assert all(descriptions[name] for name in optimizers)


def test_unregister_takes_everything_back(unregistered):
    assert our_names() == (set(), set())
    model = torch.nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match='Unknown model'):
        timm.create_model('resnet32_cifar')
    with pytest.raises(ValueError, match='sam'):
        timm.optim.create_optimizer_v2(model, 'sam', lr=0.1)
    with pytest.raises(ValueError, match='balanced_softmax'):
        timm.loss.create_classification_loss('balanced_softmax', class_counts=[2, 1])
    with pytest.raises(TypeError, match='sampler'):
        timm.data.create_loader(TensorDataset(), (3, 8, 8), 2, sampler='class_balanced')
    for module in (timm.loss, timm.data):
        for name in ('create_classification_loss', 'create_loader'):
            assert not hasattr(getattr(module, name, None), '__wrapped__')
    assert not _timm_hooks.is_registered()


def test_register_brings_everything_back(unregistered):
    timm_lt.register()
    assert len(our_names()[0]) == len(timm_lt.list_networks()) and len(our_names()[1]) == len(timm_lt.list_optimizers())
    model = timm.create_model('resnet20_cifar', num_classes=3)
    assert isinstance(timm.optim.create_optimizer_v2(model, 'sam', lr=0.1), torch.optim.Optimizer)
    assert timm.loss.create_classification_loss('balanced_softmax', class_counts=[3, 2, 1]) is not None
    assert timm.models.get_pretrained_cfg('resnet20_cifar').input_size == (3, 32, 32)


def test_second_call_changes_nothing(caplog):
    wrapped = timm.data.create_loader, timm.loss.create_classification_loss
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # timm warns when a name is overwritten
        timm_lt.register()
    assert (timm.data.create_loader, timm.loss.create_classification_loss) == wrapped
    assert not caplog.records
    timm_lt.unregister()
    timm_lt.unregister()
    timm_lt.register()
    assert timm.data.create_loader.__wrapped__ is wrapped[0].__wrapped__


def test_name_that_someone_else_registered_is_kept():
    timm_lt.unregister()
    registry = _timm_hooks.default_registry
    own = _timm_hooks.OptimInfo(name='sam', opt_class=torch.optim.SGD, description='of someone else')
    try:
        registry.register(own)
        timm_lt.register()
        assert registry._optimizers['sam'] is own
        timm_lt.unregister()
        assert registry._optimizers['sam'] is own
    finally:
        registry._optimizers.pop('sam')
        timm_lt.register()
    assert registry._optimizers['sam'] is not own


@pytest.mark.parametrize('name,options', [
    (None, {}), ('ce', {}), ('ce', dict(smoothing=0.1)), ('ce', dict(soft_targets=True)), ('bce', dict(smoothing=0.1)),
    ('poly', {}), ('asl', dict(multi_label=True)),
])
def test_losses_of_timm_are_built_by_timm(name, options):
    original = _timm_hooks._originals[timm.loss, 'create_classification_loss']
    ours, theirs = timm.loss.create_classification_loss(name, **options), original(name, **options)
    assert type(ours) is type(theirs)
    logits = torch.randn(4, 3)
    target = torch.randint(0, 2, (4, 3)).float() if options.get('multi_label') else torch.tensor([0, 2, 1, 1])
    if options.get('soft_targets'):
        target = torch.eye(3)[target]
    assert torch.equal(ours(logits, target), theirs(logits, target))


def test_error_of_timm_for_wrong_options_stays():
    original = _timm_hooks._originals[timm.loss, 'create_classification_loss']
    with pytest.raises(TypeError) as theirs:
        original('ce', nonsense=1)
    with pytest.raises(TypeError) as ours:
        timm.loss.create_classification_loss('ce', nonsense=1)
    assert str(ours.value) == str(theirs.value)


def test_optimizers_and_models_of_timm_are_untouched():
    def train():
        torch.manual_seed(0)
        model = timm.create_model('test_resnet', num_classes=3)
        optimizer = timm.optim.create_optimizer_v2(model, 'adamw', lr=1e-2, weight_decay=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(2, 3, 32, 32)).logsumexp(1).sum().backward()
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    registered = train()
    timm_lt.unregister()
    try:
        assert torch.equal(train(), registered)
    finally:
        timm_lt.register()


SCRIPT = '''
import json, sys, time
import timm, timm.data, timm.loss, timm.optim
from timm.models import _registry
from timm.optim._optim_factory import default_registry

def state():
    return [sorted(_registry._model_entrypoints), sorted(_registry._model_pretrained_cfgs),
            sorted(k for k, v in _registry._module_to_models.items() if v), sorted(_registry._model_default_cfgs),
            sorted(default_registry._optimizers), id(timm.data.create_loader), id(timm.loss.create_classification_loss)]

before, start = state(), time.perf_counter()
import timm_lt
seconds, after = time.perf_counter() - start, state()
timm_lt.unregister()
print(json.dumps({'changed': after != before, 'back': state() == before, 'seconds': seconds,
    'heavy': [m for m in ('accelerate', 'sklearn', 'datasets', 'matplotlib', 'torchmetrics') if m in sys.modules]}))
'''


def test_import_changes_registries_only_and_is_light():
    process = subprocess.run([sys.executable, '-c', SCRIPT], capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    assert result['changed'] and result['back']
    assert result['heavy'] == []
    assert result['seconds'] < 2  # about 0.1 on an idle machine
