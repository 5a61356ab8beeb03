"""All options of a run, group by group."""

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError
from ._data import AugmentationOptions, DataOptions
from ._finetune import FinetuneOptions
from ._learning import (
    GKPOptions,
    LossOptions,
    OptimizerOptions,
    PosthocOptions,
    ScheduleOptions,
    SecondStageOptions,
)
from ._model import ModelOptions
from ._option import OptionGroup, OptionInfo, declared_options
from ._run import EvaluationOptions, HubOptions, RecipeNotes, RunOptions


@dataclass(frozen=True)
class Options:
    """The options of a run. A builder takes the group that it reads.

    The value of ``--batch-size`` is ``options.data.batch_size``; :meth:`flat` holds it under ``'batch_size'``.
    """
    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    finetune: FinetuneOptions = field(default_factory=FinetuneOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    gkp: GKPOptions = field(default_factory=GKPOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    augmentation: AugmentationOptions = field(default_factory=AugmentationOptions)
    posthoc: PosthocOptions = field(default_factory=PosthocOptions)
    second_stage: SecondStageOptions = field(default_factory=SecondStageOptions)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    run: RunOptions = field(default_factory=RunOptions)
    hub: HubOptions = field(default_factory=HubOptions)
    notes: RecipeNotes = field(default_factory=RecipeNotes)

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> 'Options':
        """Options from values by name; what is left out takes its default.

        Raises:
            ConfigError: If a name is no option.
        """
        return cls().replace(**values)

    def flat(self) -> dict[str, Any]:
        """The value of each option by its name."""
        groups = [getattr(self, g.name) for g in dataclasses.fields(self)]
        return {f.name: getattr(group, f.name) for group in groups for f in dataclasses.fields(group)}

    def replace(self, **values: Any) -> 'Options':
        """A copy with other values of the options that are named.

        Raises:
            ConfigError: If a name is no option.
        """
        for name in values:
            if name not in OPTIONS:
                raise ConfigError(f'unknown option {name!r}')
        groups = {}
        for g in dataclasses.fields(self):
            group = getattr(self, g.name)
            own = {f.name: copy.copy(values[f.name]) for f in dataclasses.fields(group) if f.name in values}
            groups[g.name] = dataclasses.replace(group, **own)
        return Options(**groups)


GROUPS: tuple[type[OptionGroup], ...] = tuple(
    type(getattr(Options(), f.name)) for f in dataclasses.fields(Options))
OPTIONS: dict[str, OptionInfo] = {info.name: info for group in GROUPS for info in declared_options(group)}

if len(OPTIONS) != sum(len(dataclasses.fields(group)) for group in GROUPS):
    raise TypeError('two groups declare an option of the same name')
