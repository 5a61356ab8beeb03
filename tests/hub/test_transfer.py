"""Upload and download: the real Hub client and timm in processes of their own, against a test-only server."""

import json
import os
import subprocess
import sys

import pytest
from hub_run import COUNTS, NAMES, make_run
from hub_server import TOKEN, HubServer
from paths import HELPERS

from timm_lt.hub import write_hub_folder
from timm_lt.posthoc import PostHoc


def hub_process(server, home, *args):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(('HF_', 'HUGGING'))}
    environment |= {
        'HF_ENDPOINT': server.endpoint, 'HF_HUB_DISABLE_XET': '1', 'HF_HOME': str(home), 'HF_TOKEN': TOKEN,
        'HF_HUB_DISABLE_TELEMETRY': '1', 'NO_PROXY': '127.0.0.1', 'OMP_NUM_THREADS': '1'}
    script = HELPERS / 'hub_scenario.py'
    return subprocess.Popen(
        [sys.executable, str(script), *map(str, args)], env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE)


@pytest.fixture(scope='module')
def scenario(tmp_path_factory):
    """The real huggingface_hub client and timm against the test-only server, in processes of their own."""
    work = tmp_path_factory.mktemp('hub')
    run_dir = work / 'run'
    folder = write_hub_folder(
        run_dir, make_run(run_dir), posthoc=PostHoc('logit_adjust', tau=0.5, class_counts=COUNTS))
    server = HubServer()
    try:
        # the first push is killed while a plot is on its way and the weights have arrived
        server.mode = 'hold_plots'
        process = hub_process(server, work / 'home', 'push', folder, 'me/name')
        assert server.held.wait(100), process.communicate()
        process.kill()
        outputs = list(process.communicate())
        server.release.set()
        killed = {'uploads': list(server.uploads), 'commits': list(server.commits)}
        process = hub_process(server, work / 'home', 'all', folder, 'me/name', work)
        outputs += process.communicate(timeout=200)
        assert process.returncode == 0, outputs[-1]
    finally:
        server.close()
    result = json.loads((work / 'result.json').read_text())
    return {'result': result, 'server': server, 'killed': killed, 'output': ''.join(outputs), 'work': work}


def test_real_client_continues_an_interrupted_upload(scenario):
    assert scenario['killed'] == {'uploads': ['weights'], 'commits': []}  # nothing half done is visible
    assert 'the Hub failed with status 500' in scenario['result']['commit_fails']
    # the killed push, the failed commit and two pushes that went through: the weights were sent once
    assert scenario['result']['received']['uploads'] == ['weights', 'plot']


def test_real_client_second_push_sends_nothing(scenario):
    commits = scenario['result']['received']['commits']
    assert len(commits) == 1 and {'model.safetensors', 'README.md', 'posthoc.json'} <= set(commits[0])
    assert scenario['result']['first'] == scenario['result']['second']


def test_real_timm_loads_the_pushed_weights_bit_identically(scenario):
    result = scenario['result']
    assert result['timm_loads'] and result['load'] and result['pushed_by_timm']
    assert (result['counts'], result['names']) == (COUNTS, NAMES)
    assert result['posthoc']['method'] == 'logit_adjust' and 0 <= result['top1'] <= 100


def test_private_repository_and_branch_are_made(scenario):
    hidden = scenario['server'].repos['me/hidden']
    assert hidden['private'] and 'model.safetensors' in hidden['branches']['seed-1']
    assert 'model.safetensors' not in hidden['branches']['main']
    assert scenario['result']['revision'] and 'no such revision' in scenario['result']['no_revision']


def test_pull_and_list_find_what_was_pushed(scenario):
    result = scenario['result']
    assert result['cli_pull'] == 0 and {'model.safetensors', 'README.md', 'recipe.yaml'} <= set(result['pulled'])
    assert result['listed'] == [['me/name'], []]


def test_second_pull_removes_a_correction_that_no_longer_holds_and_nothing_else(scenario):
    assert scenario['result']['pulled_again'] == [False, True, True]
    assert not scenario['result']['corrected_again']


def test_private_push_to_a_public_repository_is_refused(scenario):
    assert 'exists and is public' in scenario['result']['public']
    assert '--private' in scenario['result']['public']


def test_script_pushes_its_checkpoint_and_a_failed_push_leaves_the_finished_run(scenario):
    result = scenario['result']
    assert (result['train_quota'], result['train_again']) == (2, 0)
    metrics = json.loads((scenario['work'] / 'trained' / 'metrics.json').read_text())
    assert result['trained'] == metrics['top1']
    assert 'train_lt.py: error: cannot upload to me/trained: the storage' in scenario['output']


def test_wrong_sha256_is_refused_on_the_way_up_and_down(scenario):
    assert 'SHA-256 of the content is not its name' in scenario['result']['corrupt']
    assert 'was changed after it was written' in scenario['result']['tampered']


def test_pickled_repository_is_refused(scenario):
    assert 'has no model.safetensors' in scenario['result']['pickled']


def test_new_push_removes_a_correction_that_no_longer_holds(scenario):
    files = scenario['server'].repos['me/name']['branches']['main']
    assert b"'hf-hub:me/name'" in files['README.md']  # the card says how to load this very checkpoint
    assert 'posthoc.json' not in files and 'model.safetensors' in files and '.gitattributes' in files


@pytest.mark.parametrize('case, advice', [
    ('quota', 'storage of the account is used up'), ('taken', 'the name is taken by someone else'),
    ('no_token', 'hf auth login'), ('wrong_token', 'token'), ('odd_token', 'invalid characters'),
    ('no_network', 'the Hub cannot be reached')])
def test_failed_upload_keeps_the_folder_and_says_what_to_do(scenario, case, advice):
    message = scenario['result'][case]
    assert advice in message and f'kept in {scenario["work"]}/run/hub' in message and 'push it again with' in message
    assert scenario['result']['no_network_cli'] == 2


def test_missing_repository_is_one_message(scenario):
    assert 'does not exist' in scenario['result']['missing']


def test_no_token_is_printed_or_written(scenario):
    texts = [scenario['output'], json.dumps(scenario['result'])]
    texts += [p.read_text(errors='ignore') for p in scenario['work'].rglob('*') if p.is_file()]
    assert not any(TOKEN in text for text in texts)
