"""The parts of a data set that an evaluation reads, and which of them hold images in common."""

import argparse
from pathlib import Path
from typing import Any

from timm.data import resolve_data_config
from torch import Tensor

from ...class_distribution import ClassDistribution
from ...data import create_dataset, create_eval_loader, eval_transform, find_split, get_class_names
from ...data.factory import create_reader
from ...hub import Checkpoint
from ..metrics.views import ViewAverage, viewed_size
from .network import EvaluationError, collect
from .run_parts import RunParts


class Data:
    """The parts of the data set that an evaluation reads.

    Args:
        args: Options.
        network: Decides input size, normalisation, number and names of classes.
        distribution: Training class sizes.
        run: Parts of the run that trained the network, where the data are its own; else None.
    """

    def __init__(
            self,
            args: argparse.Namespace,
            network: Checkpoint,
            distribution: ClassDistribution,
            run: RunParts | None = None,
    ) -> None:
        self.args, self.network, self.run = args, network, run
        self.class_names = network.class_names or distribution.class_names
        self.names_note: str | None = None

    def tested(self) -> tuple[str, Any]:
        """Name and images of the part to evaluate."""
        args = self.args
        if not args.dataset and not args.data_dir:
            raise EvaluationError(
                'no data to evaluate: name a data set by --dataset, or a folder of class folders by --data-dir')
        _check_root(args.dataset, args.data_dir, '--data-dir')
        split = args.split
        if split is None and self.run is not None:
            split = 'test'
        split = split or find_split(args.dataset, args.data_dir, ('test', 'validation'))
        if split is None:
            raise EvaluationError('the data have no test or validation part; name the part to evaluate by --split')
        dataset = self.known(split)
        if self.run is not None and not args.allow_trained and self._was_trained_on(split, dataset):
            raise EvaluationError(
                f'the network was trained on images of {split!r}, whose metrics say nothing about new images; leave '
                f'out --split for the test part of the run, or pass --allow-trained')
        return split, dataset

    def _was_trained_on(self, split: str, dataset: Any) -> bool:
        assert self.run is not None
        if self.run.has(split):
            return split == 'train'
        return self.run.trained_on(split, dataset, self.class_names)

    def for_threshold(self, tested: tuple[str, Any]) -> tuple[str, Any]:
        """Name and images of the part that sets the threshold; none of them is an image of the tested part."""
        named = self.args.threshold_split
        split = named or find_split(self.args.dataset, self.args.data_dir, ('validation',))
        if split is not None:
            part = split, self.known(split)
            if not self.share_images(part, tested):
                return part
        if named is None or split is None:
            return 'train', self.apart('the threshold cannot be chosen', 'train', tested)
        return split, self.apart('the threshold cannot be chosen', split, tested)

    def apart(self, what: str, split: str, tested: tuple[str, Any]) -> Any:
        """Images of a part, which must hold no image of the tested part."""
        part = split, self.known(split)
        if self.share_images(part, tested):
            a_list = self.args.dataset.startswith('list/')
            hint = ' (a list is one for each part only if its name holds {split})' if a_list else ''
            raise EvaluationError(
                f'{what} on {split!r}, which holds images of {tested[0]!r}, the part that is tested; name another part '
                f'by --threshold-split, or test another by --split{hint}')
        return part[1]

    def share_images(self, one: tuple[str, Any], two: tuple[str, Any]) -> bool:
        """Whether two parts hold an image in common, as far as the reader of the data set can tell."""
        return create_reader(self.args.dataset, self.args.data_dir).shares_images(one, two)

    def known(self, split: str) -> Any:
        """Images of a part, with the classes of the network."""
        name = self.args.dataset
        if self.run is not None and self.run.has(split):
            dataset = self.run.images(split, self.class_names)
        else:
            dataset = self._create(name, self.args.data_dir, split, class_names=self.class_names)
        names, classes = get_class_names(dataset), self.network.num_classes
        found = max(len(names) if names else 0, int(dataset.targets.max()) + 1)
        if found > classes or (names and len(names) != classes):
            raise EvaluationError(f'{name or self.args.data_dir} has {found} classes, but the network has {classes}')
        if names and self.class_names and list(names) != list(self.class_names):
            c = next(c for c in range(classes) if names[c] != self.class_names[c])
            differ = f'class {c} is {names[c]!r} in the data set and {self.class_names[c]!r} in the checkpoint'
            if not self.args.ignore_class_names:
                raise EvaluationError(
                    f'{name} has other classes than the checkpoint: {differ}; if only the names differ, pass '
                    f'--ignore-class-names')
            self.names_note = f'not compared: {differ}; labels are used as they are'
        return dataset

    def unknown(self) -> Any:
        """Images of unknown classes."""
        args = self.args
        _check_root(args.open_set, args.open_set_dir, '--open-set-dir')
        split = args.open_set_split or find_split(args.open_set, args.open_set_dir, ('test', 'validation', 'train'))
        return self._create(args.open_set, args.open_set_dir, split or 'train')

    @staticmethod
    def _create(name: str, root: str | None, split: str, **options: Any) -> Any:
        try:
            return create_dataset(name, root, split, **options)
        except TypeError as e:  # a dataset that only streams
            raise EvaluationError(str(e)) from e

    def loader(self, dataset: Any, views: int = 0) -> Any:
        config = resolve_data_config({}, model=self.network.model)
        size = viewed_size(views, config['input_size'], config['crop_pct'])
        crop_pct = config['crop_pct'] if size == tuple(config['input_size']) else 1.0
        transform = eval_transform(size, config['interpolation'], crop_pct, config['crop_mode'])
        return create_eval_loader(
            dataset, config['mean'], config['std'], self.args.batch_size, transform=transform,
            device=self.args.device, workers=self.args.workers)

    def collect(self, dataset: Any, label: str, with_features: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
        model, views = self.network.model, 0 if with_features else self.views
        if views > 1:
            model = ViewAverage(model, views, resolve_data_config({}, model=model)['input_size'][1:])
        return collect(model, self.loader(dataset, views), with_features=with_features, progress=label)

    @property
    def views(self) -> int:
        """Views of an image over which the run averages its logits."""
        return 0 if self.run is None else self.run.options.get('tta', 0)


def _check_root(name: str, root: str | None, option: str) -> None:
    """Refuse a missing folder before the data set looks for its parts there."""
    try:
        stored = create_reader(name, root).stored
    except TypeError as e:  # a dataset that only streams
        raise EvaluationError(str(e)) from e
    if not stored:
        return
    if root is None:
        raise EvaluationError(f'data set {name!r} needs the folder of its images: {option} DIR')
    if not Path(root).is_dir():
        raise EvaluationError(f'there is no folder {root} ({option})')
