"""Cards of the methods: every registered method has one in the fixed form, with the defaults of the code."""

import inspect
import re
from pathlib import Path

import pytest
from paths import ROOT

import timm_lt
import timm_lt.finetune  # registers its methods
import timm_lt.two_stage
from timm_lt import posthoc
from timm_lt._registry import (
    FINETUNING,
    LOSSES,
    MIXINGS,
    OPTIMIZERS,
    POSTHOC,
    SAMPLERS,
    SECOND_STAGES,
    _constructor_parameters,
)
from timm_lt.cli import COMMANDS
from timm_lt.gkp import GKP
from timm_lt.losses import DeferredReweighting
from timm_lt.optim import SharpnessAware
from timm_lt.samplers import LongTailSampler

METHODS = ROOT / 'docs' / 'methods'
FOLDERS = {'losses': LOSSES, 'samplers': SAMPLERS, 'mixing': MIXINGS, 'optimizers': OPTIMIZERS,
           'second_stages': SECOND_STAGES, 'corrections': POSTHOC, 'finetune': FINETUNING}
HEADINGS = ['Idea', 'Equation', 'When to use it', 'Settings', 'Cost', 'Measured here', 'Paper and released code',
            'Citation']
# cards of what no registry holds
OTHERS = {'losses/drw': DeferredReweighting, 'optimizers/gkp': GKP}
FUNCTIONS = {'rebalance': posthoc.rebalance_predictions, 'logit_adjust': posthoc.logit_adjust,
             'tau_normalize': posthoc.tau_normalize, 'temperature': posthoc.scale_temperature}


def parameters(function):
    return _constructor_parameters(function)[0]


# settings that all methods of a kind share; docs/methods/index.md explains them
SHARED = {
    'losses': {'class_counts', 'reduction', 'class_weight', 'criterion'},
    'samplers': set(parameters(LongTailSampler)),
    'mixing': {'class_counts'},
    'optimizers': {*parameters(SharpnessAware), 'class_counts', 'tail_weight', 'loader', 'splits'},
    'second_stages': {'class_counts'},
    'corrections': {'logits', 'class_counts', 'classifier'}, 'finetune': set(),
}
CARDS = sorted(path.relative_to(METHODS).with_suffix('').as_posix() for path in METHODS.glob('*/*.md'))


def method_of(card):
    folder, name = card.split('/')
    if card in OTHERS:
        return OTHERS[card]
    return FUNCTIONS[name] if folder == 'corrections' else FOLDERS[folder].info(name).factory


def settings_of(text):
    section = text.split('\n## Settings\n')[1].split('\n## ')[0]
    return dict(re.findall(r'^\| `(\w+)` \| `([^`]*)` \|', section, re.MULTILINE))


def test_every_method_has_a_card_and_every_card_a_method():
    methods = {f'{folder}/{info.name}' for folder, registry in FOLDERS.items() for info in registry.infos()}
    assert methods | set(OTHERS) == set(CARDS), 'write docs/methods/FOLDER/NAME.md in the form of the other cards'


@pytest.mark.parametrize('card', CARDS)
def test_a_card_has_the_fixed_headings_and_the_paper(card):
    text = (METHODS / f'{card}.md').read_text()
    assert re.findall(r'^## (.*)$', text, re.MULTILINE) == HEADINGS
    sections = [section.strip() for section in re.split(r'^## .*$', text, flags=re.MULTILINE)[1:]]
    assert all(sections), 'no section is empty'
    assert sections[1].startswith('$$') and len(re.findall(r'\.(?:\s|$)', sections[0])) <= 3
    folder, name = card.split('/')
    if card not in OTHERS:
        assert FOLDERS[folder].info(name).paper.split(' et al.')[0] in text, 'the card names the registered paper'


@pytest.mark.parametrize('card', CARDS)
def test_settings_of_a_card_are_those_of_the_code(card):
    found, folder = parameters(method_of(card)), card.split('/')[0]
    written = settings_of((METHODS / f'{card}.md').read_text())
    defaults = {name: 'required' if p.default is inspect.Parameter.empty else repr(p.default)
                for name, p in found.items()}
    assert written == {name: defaults.get(name) for name in written}
    missing = set(found) - SHARED[folder] - set(written)
    assert not missing, f'the card lacks the settings {missing}'


@pytest.mark.parametrize('path', sorted((ROOT / 'docs').rglob('*.md')), ids=lambda p: p.stem)
def test_options_in_the_text_exist(path):
    parsers = [command.build_parser() for command in COMMANDS]
    known = {flag for parser in parsers for action in parser._actions for flag in action.option_strings}
    known |= {'--...-kwargs', '--help-all'}
    text = re.sub(r'<!-- generated.*?<!-- end -->', '', path.read_text(), flags=re.DOTALL)
    text = re.sub(r'```.*?```', '', text, flags=re.DOTALL)
    for code in re.findall(r'`([^`\n]+)`', text):
        if code.startswith('--'):
            unknown = {word for word in code.split() if word.startswith('--')} - known
            assert not unknown, f'{path.name}: {code}'


@pytest.mark.parametrize('kind', FOLDERS)
def test_tables_of_the_readme_and_the_overview_link_to_the_cards(kind):
    readme, overview = (ROOT / 'README.md').read_text(), (METHODS / 'index.md').read_text()
    for info in FOLDERS[kind].infos():
        if kind != 'finetune':  # of these the README links to the guide
            assert f'[`{info.name}`](docs/methods/{kind}/{info.name}.md)' in readme
        assert f'| [`{info.name}`]({kind}/{info.name}.md) |' in overview


def test_the_guide_links_to_every_fine_tuning_method():
    text = (ROOT / 'docs' / 'guides' / 'fine_tuning.md').read_text()
    assert all(f'| [`{info.name}`](../methods/finetune/{info.name}.md)' in text for info in FINETUNING.infos())


def test_every_network_is_on_its_page():
    text = Path(METHODS / 'networks.md').read_text()
    assert all(f'`{name}`' in text for name in timm_lt.list_networks())
