"""Pages: generated parts are up to date, links and names of the API lead somewhere."""

import ast
import importlib
import re

import pytest
import yaml
from paths import ROOT

from timm_lt._protocol import protocol_text

DOCS = ROOT / 'docs'
PAGES = sorted(DOCS.rglob('*.md'))


@pytest.fixture(scope='module')
def generate():
    specification = importlib.util.spec_from_file_location('generate', DOCS / 'generate.py')
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_generated_parts_are_up_to_date(generate):
    for path in [ROOT / 'README.md', *PAGES]:
        text = path.read_text()
        assert generate.filled(text) == text, f'{path.name}: run python docs/generate.py'


def test_a_row_that_does_not_exist_stops_the_generator(generate):
    with pytest.raises(ValueError, match='no row'):
        generate.accuracy('accuracy_quick: nothing')
    with pytest.raises(ValueError, match='no optimizers'):
        generate.cost('cost optimizers: nothing')


def test_the_protocol_page_is_the_text_of_reports_and_cards():
    assert (DOCS / 'protocol.md').read_text() == '--8<-- "timm_lt/protocol.md"\n' and protocol_text()


def anchors(text):
    text = re.sub(r'```.*?```', '', text, flags=re.DOTALL)
    titles = re.findall(r'^#+ (.*)$', text, re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', title.lower()).strip().replace(' ', '-') for title in titles}


def test_links_of_the_readme_lead_somewhere():
    text = re.sub(r'```.*?```', '', (ROOT / 'README.md').read_text(), flags=re.DOTALL)
    for link in re.findall(r'\]\(([^)\s]+)\)', text):
        if not link.startswith('http'):
            path, _, anchor = link.partition('#')
            assert (ROOT / path).exists(), link
            assert not anchor or anchor in anchors((ROOT / path).read_text()), link


@pytest.mark.parametrize('path', PAGES, ids=lambda p: p.relative_to(DOCS).as_posix())
def test_links_of_the_pages_lead_to_files(path):
    text = re.sub(r'```.*?```', '', path.read_text(), flags=re.DOTALL)
    for link in re.findall(r'\]\(([^)\s]+)\)', text):
        assert link.startswith(('http', '#')) or (path.parent / link.partition('#')[0]).exists(), link


@pytest.mark.parametrize('path', sorted((DOCS / 'api').glob('*.md')), ids=lambda p: p.stem)
def test_names_of_the_api_pages_exist(path):
    for name in re.findall(r'^::: (\S+)$', path.read_text(), re.MULTILINE):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            module, _, attribute = name.rpartition('.')
            assert hasattr(importlib.import_module(module), attribute), name


def test_every_page_is_in_the_menu():
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor('tag:', lambda *_: None)
    menu = yaml.load((ROOT / 'mkdocs.yml').read_text(), Loader)['nav']

    def pages(entry):
        if isinstance(entry, str):
            return [entry]
        return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in pages(part)]

    assert sorted(pages(menu)) == sorted(path.relative_to(DOCS).as_posix() for path in PAGES)


def messages_of_the_package():
    """Texts of the package, values of f-strings as '...'."""
    for path in (ROOT / 'timm_lt').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield ''.join(part.value if isinstance(part, ast.Constant) else '...' for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_messages_on_the_page_of_troubles_are_those_of_the_package():
    rows = re.findall(r'^\| `(.+?)` \|', (DOCS / 'troubleshooting.md').read_text(), re.MULTILINE)
    texts = [re.sub(r'%(?:\.\d+)?[sdg]', '...', text) for text in messages_of_the_package()]
    assert len(rows) > 30
    for row in rows:
        parts = [part.strip() for part in row.split('...') if part.strip()]
        assert any(all(part in text for part in parts) for text in texts), row
