"""Labels and counts as users hold them: every type, every container, each by one rule."""

from collections import Counter

import numpy as np
import pytest
import timm
import torch
from torch.utils.data import TensorDataset

import timm_lt
from timm_lt import ClassDistribution, create_sampler
from timm_lt._labels import read_counts, read_labels
from timm_lt._registry import OPTIMIZERS
from timm_lt._validate import check_class_counts
from timm_lt.data import split_indices

pd = pytest.importorskip('pandas')
LABELS = [2, 0, 2, 1, 2, 0]
NUMPY = [np.uint8, np.uint16, np.uint32, np.uint64, np.int8, np.int16, np.int32, np.int64, '>i4', '>u2']
TORCH = [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32, torch.int64]


def forms():
    yield from ((f'numpy {np.dtype(kind)}', np.array(LABELS, dtype=kind)) for kind in NUMPY)
    yield from ((str(kind), torch.tensor(LABELS).to(kind)) for kind in TORCH)
    yield 'list', LABELS
    yield 'tuple', tuple(LABELS)
    yield 'iterator', iter(LABELS)
    yield '0-d tensors', [torch.tensor(label, dtype=torch.int32) for label in LABELS]
    yield 'numpy scalars', [np.uint16(label) for label in LABELS]
    yield 'mixed integer types', [np.uint64(2), np.int8(0), 2, torch.tensor(1), *LABELS[4:]]
    yield 'objects', np.array(LABELS, dtype=object)
    yield 'reversed view', np.array(LABELS[::-1])[::-1]
    yield 'read only', np.frombuffer(np.array(LABELS, dtype=np.int64).tobytes(), dtype=np.int64)
    yield 'masked array without gaps', np.ma.array(LABELS, mask=[False] * 6)
    yield 'tensor with gradient elsewhere', torch.tensor(LABELS)[:, None].expand(6, 2)[:, 1]
    yield 'series', pd.Series(LABELS)
    yield 'series with another index', pd.Series(LABELS, index=[5, 3, 1, 0, 2, 4])
    yield 'series with names as index', pd.Series(LABELS, index=list('abcdef'))
    yield 'nullable', pd.Series(LABELS, dtype='Int64')
    yield 'nullable unsigned', pd.Series(LABELS, dtype='UInt8')
    yield 'categorical', pd.Series(LABELS).astype('category')
    yield 'index', pd.Index(LABELS)


FORMS = dict(forms())


@pytest.fixture(params=FORMS)
def labels(request):
    return dict(forms())[request.param]


def test_labels_of_every_form_are_read_in_their_order(labels):
    seen = read_labels(labels)
    assert seen.tolist() == LABELS and seen.dtype == torch.int64 and seen.device.type == 'cpu'


def test_labels_of_every_form_are_counted(labels):
    assert ClassDistribution.from_targets(labels).counts.tolist() == [2, 1, 3]


@pytest.mark.parametrize('name', ['class_balanced', 'instance_balanced'])
def test_samplers_take_labels_of_every_form(labels, name):
    assert list(create_sampler(name, labels)) == list(create_sampler(name, LABELS))


def test_a_split_takes_labels_of_every_form(labels):
    assert split_indices(labels, 0.5)[1].tolist() == split_indices(LABELS, 0.5)[1].tolist()


@pytest.mark.parametrize('library', ['pyarrow', 'datasets'])
def test_columns_of_other_libraries_are_read(library):
    module = pytest.importorskip(library)
    if library == 'pyarrow':
        columns = [module.array(LABELS, type=module.uint16()), module.chunked_array([LABELS[:2], LABELS[2:]])]
    else:
        columns = [module.Dataset.from_dict({'label': LABELS})['label']]
    for column in columns:
        assert read_labels(column).tolist() == LABELS


@pytest.mark.parametrize('labels, message', [
    ([], 'not empty'),
    ([[0, 1]], 'one-dimensional'),
    (np.zeros((3, 1), dtype=int), 'one-dimensional'),
    (3, 'sequence of whole numbers'),
    ([0.0, 1.0], r'dtype float64; convert them, e.g. by .astype\("int64"\)'),
    (torch.tensor([0.0, 1.0], dtype=torch.bfloat16), 'dtype float64'),
    ([0.5, 1.0], 'whole numbers'),
    ([True, False], 'dtype bool'),
    (torch.tensor([True]), 'dtype bool'),
    (pd.Series([True, None], dtype='boolean'), '1 of 2 values are missing'),
    (['cat', 'dog'], 'dtype <U3'),
    (pd.Series(['cat', 'dog']).astype('category'), 'whole numbers'),
    ([b'0', b'1'], 'whole numbers'),
    ([0, None, 1], '1 of 3 values are missing'),
    ([0, float('nan')], '1 of 2 values are missing'),
    (pd.Series([0, None, 1]), '1 of 3 values are missing'),
    (pd.Series([0, None, 1], dtype='Int64'), '1 of 3 values are missing'),
    (np.ma.array([0, 1, 2], mask=[False, True, False]), '1 of 3 values are missing'),
    ([0, 2**70], 'below 2'),
    (np.array([0, 2**63], dtype=np.uint64), 'below 2'),
    (np.array([0, True], dtype=object), 'whole numbers'),
    (np.array(['2020-01-01'], dtype='datetime64[D]'), 'whole numbers'),
    (torch.tensor([1j]), 'whole numbers'),
    ({0: 5, 1: 3}, 'sequence of whole numbers'),
    (Counter(LABELS), 'sequence of whole numbers'),
    ({0, 1}, 'sequence of whole numbers'),
    ('012', 'sequence of whole numbers'),
    (pd.DataFrame({'label': LABELS}), 'one-dimensional'),
    (TensorDataset(torch.zeros(2, 3)), 'get_targets'),
    (None, 'labels of the training images'),
    (torch.zeros(3, dtype=torch.int64, device='meta'), 'meta device'),
    ([10**9, 0], 'number the classes without gaps'),
])
def test_labels_that_are_none_are_refused_with_the_reason(labels, message):
    with pytest.raises(ValueError, match=message):
        ClassDistribution.from_targets(labels)
    with pytest.raises(ValueError, match=message):
        create_sampler('instance_balanced', labels)


# Counts

COUNTS = [5, 10, 30]
BY_LABEL = {
    'mapping': {2: 30, 0: 5, 1: 10},
    'counter': Counter([2] * 30 + [0] * 5 + [1] * 10),
    'value_counts': pd.Series([2] * 30 + [0] * 5 + [1] * 10).value_counts(),
    'value_counts of uint16': pd.Series([2] * 30 + [0] * 5 + [1] * 10, dtype='uint16').value_counts(),
    'value_counts of nullable': pd.Series([2] * 30 + [0] * 5 + [1] * 10, dtype='Int64').value_counts(),
    'value_counts of categories': pd.Series([2] * 30 + [0] * 5 + [1] * 10).astype('category').value_counts(),
    'group sizes': pd.DataFrame({'y': [2] * 30 + [0] * 5 + [1] * 10}).groupby('y').size(),
    'series in label order': pd.Series(COUNTS),
    'series in another order': pd.Series([30, 5, 10], index=[2, 0, 1]),
    'class statistics': {'pos_counts': COUNTS, 'num_samples': 45},
}
BY_POSITION = {
    'list': COUNTS, 'tensor': torch.tensor(COUNTS), 'whole floats': [5.0, 10.0, 30.0],
    'uint16': np.array(COUNTS, dtype=np.uint16), 'uint64': torch.tensor(COUNTS).to(torch.uint64),
    '0-d tensors': [torch.tensor(n) for n in COUNTS], 'bfloat16': torch.tensor([5.0, 10, 30], dtype=torch.bfloat16),
    'objects': np.array(COUNTS, dtype=object), 'distribution': ClassDistribution(COUNTS),
}


@pytest.mark.parametrize('counts', {**BY_LABEL, **BY_POSITION}.values(), ids={**BY_LABEL, **BY_POSITION}.keys())
def test_counts_of_every_form_are_read_in_label_order(counts):
    assert check_class_counts(counts).tolist() == COUNTS
    assert ClassDistribution(counts).counts.tolist() == COUNTS


@pytest.mark.parametrize('name', timm_lt.list_losses(views=True))
def test_losses_read_counts_by_label(name):
    expected, seen = (timm_lt.create_loss(name, counts) for counts in (COUNTS, BY_LABEL['value_counts']))
    for (key, buffer), (_, other) in zip(expected.named_buffers(), seen.named_buffers()):
        assert torch.equal(buffer, other), key


@pytest.mark.parametrize('name', timm_lt.list_optimizers())
def test_optimizers_read_counts_by_label(name):
    weight = [torch.nn.Parameter(torch.ones(3))]
    aware = 'class_counts' in OPTIMIZERS.info(name).needs
    options = {'class_counts': BY_LABEL['value_counts']} if aware else {}
    optimizer = timm.optim.create_optimizer_v2(weight, name, lr=0.1, **options)
    if name in ('ccsam', 'gsa'):
        assert optimizer.class_counts.tolist() == COUNTS


def test_reports_and_corrections_read_counts_by_label():
    from timm_lt import evaluate, posthoc
    logits, targets = torch.randn(30, 3), torch.arange(30) % 3
    report = evaluate.report(logits, targets, BY_LABEL['value_counts'], split_rule='20,8')
    assert report == evaluate.report(logits, targets, COUNTS, split_rule='20,8')
    expected = posthoc.logit_adjust(logits, COUNTS)
    assert torch.equal(posthoc.logit_adjust(logits, BY_LABEL['counter']), expected)


def test_labels_without_a_count_have_none():
    assert read_counts({0: 3, 3: 1}).tolist() == [3, 0, 0, 1]
    assert check_class_counts({0: 3, 1: 1}, num_classes=4, min_count=0).tolist() == [3, 1, 0, 0]
    with pytest.raises(ValueError, match=r'classes \[1, 2\] have \[0, 0\]'):
        timm_lt.create_loss('balanced_softmax', {0: 3, 3: 1})


def test_names_are_read_through_the_class_names():
    counts = pd.Series(['cat', 'ant', 'cat', 'bee', 'cat']).value_counts()
    distribution = ClassDistribution(counts, class_names=['ant', 'bee', 'cat', 'dog'])
    assert distribution.counts.tolist() == [1, 1, 3, 0] and distribution.class_names[3] == 'dog'
    with pytest.raises(ValueError, match='given by class name, and the order of the classes is not known'):
        ClassDistribution(counts)
    with pytest.raises(ValueError, match=r"counts for \['bee'\], which are not among the class names"):
        ClassDistribution(counts, class_names=['ant', 'cat'])


def test_a_class_named_counts_is_no_distribution():
    counts = pd.Series(['counts', 'x', 'x']).value_counts()
    assert ClassDistribution(counts, class_names=['counts', 'x']).counts.tolist() == [1, 2]


@pytest.mark.parametrize('counts, error, message', [
    (pd.Series([1, 2], index=[0, 0]), ValueError, 'several counts for a label'),
    (pd.Series([1, 2], index=[0.0, 1.0]), ValueError, 'labels of class_counts must be whole numbers'),
    (pd.Series([1, 2, 3.5], index=[0, 1, None]), ValueError, 'missing|whole numbers'),
    ({0: 5, -1: 3}, ValueError, 'labels of class_counts must be in'),
    ({0: 5, 10**9: 3}, ValueError, 'number the classes without gaps'),
    ({0: 5, 1: None}, ValueError, '1 of 2 values are missing'),
    ({0: 5, 1: 2.5}, ValueError, 'whole numbers'),
    ({}, ValueError, 'not empty'),
    (Counter({0: 5, 1: 3}).values(), TypeError, 'label order'),
    ({5, 3}, TypeError, 'label order'),
    (pd.DataFrame({'label': [0, 1], 'count': [3, 4]}), TypeError, r"table with the columns \['label', 'count'\]"),
    (Counter([0, 0, 1]).most_common(), ValueError, 'one-dimensional'),
    (np.unique([0, 0, 1], return_counts=True), ValueError, 'one-dimensional'),
    ([True, False], TypeError, 'whole numbers'),
    ([1, float('nan')], ValueError, 'missing'),
    ([1, float('inf')], ValueError, 'whole numbers'),
    ([1, 2.5], ValueError, 'whole numbers'),
    (['1', '2'], TypeError, 'whole numbers'),
    ('12', TypeError, 'whole numbers'),
    (7, TypeError, 'whole numbers'),
    (None, TypeError, 'class_counts is missing'),
    ({'pos_counts': [1, 2], 'num_samples': 4}, ValueError, 'add up to 3, but num_samples is 4'),
])
def test_counts_that_are_none_are_refused_with_the_reason(counts, error, message):
    with pytest.raises(error, match=message):
        check_class_counts(counts, min_count=0)


def test_counts_beyond_the_classes_are_refused():
    with pytest.raises(ValueError, match=r'must be in \[0, 1\] for 2 classes, got labels from 0 to 2'):
        check_class_counts({0: 1, 2: 3}, num_classes=2)
    with pytest.raises(ValueError, match='has 3 entries, but there are 2 classes'):
        check_class_counts([1, 2, 3], num_classes=2)


def test_reports_take_labels_of_every_form(labels):
    from timm_lt import evaluate
    logits = torch.eye(3)[torch.tensor(LABELS)]
    report = evaluate.report(logits, labels, COUNTS, split_rule='20,8')
    assert report['top1'] == 100.0 and report['test_images_per_class'] == [2, 1, 3]
