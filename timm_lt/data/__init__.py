"""Long-tailed subsets, list files, embedded digits, images kept in memory, loaders."""

from .._dataset_labels import get_class_names, get_targets
from ..samplers import with_sampler
from .augment import BatchAugment
from .batches import Batch, EpochBatches, EvalBatches
from .digits import Digits
from .factory import create_dataset, create_reader, find_split, numbers_its_own_classes
from .found import Found, LeftOut
from .image_files import ImageFiles
from .list_file import ListFileDataset
from .loaders import MemoryLoader, SeededImages, WorkerLoader, create_eval_loader, create_train_loader
from .memory import ImagesDoNotFit, InMemoryImages, keep_in_memory
from .mixing import BatchMixing, PairedLoader, create_mixing, list_mixings
from .pixels import convert_image, open_image
from .readers import DatasetReader, DigitsReader, FolderReader, HubReader, ListReader, StreamReader, TorchvisionReader
from .reading import ImageReadError, read_image, read_sample
from .subset import ImageSubset, long_tailed_counts, long_tailed_subset, split_indices, split_validation
from .transforms import Augmentation, MultiView, SplitViews, contrastive_views, eval_transform, three_views
from .unreadable import drop_unreadable, find_unreadable

__all__ = [
    'Augmentation', 'Batch', 'BatchAugment', 'BatchMixing', 'DatasetReader', 'Digits', 'DigitsReader', 'EpochBatches',
    'EvalBatches', 'FolderReader', 'Found', 'HubReader', 'ImageFiles', 'ImageReadError', 'ImageSubset',
    'ImagesDoNotFit', 'InMemoryImages', 'LeftOut', 'ListFileDataset', 'ListReader', 'MemoryLoader', 'MultiView',
    'PairedLoader', 'SeededImages', 'SplitViews', 'StreamReader', 'TorchvisionReader', 'WorkerLoader',
    'contrastive_views', 'convert_image', 'create_dataset', 'create_eval_loader', 'create_mixing', 'create_reader',
    'create_train_loader', 'drop_unreadable', 'eval_transform', 'find_split', 'find_unreadable', 'get_class_names',
    'get_targets', 'keep_in_memory', 'list_mixings', 'long_tailed_counts', 'long_tailed_subset',
    'numbers_its_own_classes', 'open_image', 'read_image', 'read_sample', 'split_indices', 'split_validation',
    'three_views', 'with_sampler',
]
