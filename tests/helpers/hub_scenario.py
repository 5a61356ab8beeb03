"""What the subprocess of the integration test does: timm, timm_lt and huggingface_hub as a user runs them.

``python hub_scenario.py push FOLDER REPO`` pushes; ``... all FOLDER REPO WORK`` goes through everything and writes
``WORK/result.json``.
"""

import json
import os
import sys
import urllib.request
from pathlib import Path

import huggingface_hub
import timm
import torch

import timm_lt
from timm_lt.hub import HubError
from timm_lt.hub.__main__ import main
from timm_lt.training import main as train_main


def server_mode(mode):
    """Change the server's behaviour; returns what it has received so far."""
    request = urllib.request.Request(os.environ['HF_ENDPOINT'] + '/_test/mode', data=mode.encode(), method='POST')
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def error_of(action, *args, **kwargs):
    try:
        action(*args, **kwargs)
    except HubError as e:
        return str(e)
    return ''


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def everything(folder, repo, work):
    result, hub = {}, timm_lt.hub
    expected = hub.load(folder).model.state_dict()

    server_mode('commit_fails')
    result['commit_fails'] = error_of(hub.push, folder, repo)
    server_mode('')
    result['first'] = hub.push(folder, repo)
    result['second'] = hub.push(folder, repo)
    result['received'] = server_mode('tampered')  # before the client's cache has the right file
    result['tampered'] = error_of(hub.pull, repo, f'{work}/tampered')
    server_mode('')

    model = timm.create_model(f'hf-hub:{repo}', pretrained=True)
    result['timm_loads'] = equal(model.state_dict(), expected)
    checkpoint = hub.load(repo)
    result['load'] = equal(checkpoint.model.state_dict(), expected)
    result['counts'] = checkpoint.distribution.counts.tolist()
    result['names'] = checkpoint.class_names
    result['posthoc'] = checkpoint.posthoc.to_dict()
    result['top1'] = checkpoint.metrics['top1']

    timm.models.push_to_hf_hub(model, 'me/by-timm', safe_serialization=True)
    result['pushed_by_timm'] = equal(hub.load('hf-hub:me/by-timm').model.state_dict(), expected)
    timm.models.push_to_hf_hub(model, 'me/pickled', safe_serialization=False)
    result['pickled'] = error_of(hub.load, 'me/pickled')

    hub.push(folder, 'me/hidden', private=True, revision='seed-1')
    result['revision'] = equal(hub.load('me/hidden', revision='seed-1').model.state_dict(), expected)
    result['no_revision'] = error_of(hub.load, 'me/hidden@seed-2')
    result['cli_pull'] = main(['pull', repo, f'{work}/pulled'])
    result['pulled'] = sorted(str(p.relative_to(f'{work}/pulled')) for p in Path(work, 'pulled').rglob('*')
                              if p.is_file() and '.cache' not in p.parts)
    result['listed'] = hub.list_remote(), hub.list_remote('nobody')

    server_mode('corrupt')
    Path(folder, 'plots', 'new.png').write_bytes(b'\x89PNG new')
    result['corrupt'] = error_of(hub.push, folder, repo)
    server_mode('quota')
    result['quota'] = error_of(hub.push, folder, repo)
    train = ['--epochs', '1', '--output', work, '--experiment', 'trained', '--quiet', '--push-to-hub', 'me/trained']
    result['train_quota'] = train_main(train)
    server_mode('')
    result['train_again'] = train_main([*train, '--resume', 'auto'])
    result['trained'] = hub.load('me/trained').metrics['top1']
    Path(folder, 'plots', 'new.png').unlink()
    Path(folder, 'posthoc.json').unlink()
    hub.push(folder, repo)
    Path(work, 'pulled', 'plots', 'mine.png').write_bytes(b'mine')
    hub.pull(repo, f'{work}/pulled')
    files = ('posthoc.json', 'README.md', 'plots/mine.png')
    result['pulled_again'] = [Path(work, 'pulled', f).is_file() for f in files]
    result['corrected_again'] = hub.load(f'{work}/pulled').posthoc is not None

    result['public'] = error_of(hub.push, folder, repo, private=True)
    result['taken'] = error_of(hub.push, folder, 'other/name')
    result['missing'] = error_of(hub.load, 'me/nothing')
    token = os.environ.pop('HF_TOKEN')
    result['no_token'] = error_of(hub.push, folder, repo)
    os.environ['HF_TOKEN'] = token[:-1] + 'X'
    result['wrong_token'] = error_of(hub.push, folder, repo)
    os.environ['HF_TOKEN'] = 'hf_' + 20 * 'ö'
    result['odd_token'] = error_of(hub.push, folder, repo)
    os.environ['HF_TOKEN'] = token
    huggingface_hub.constants.ENDPOINT = 'http://127.0.0.1:9'
    result['no_network'] = error_of(hub.push, folder, repo)
    result['no_network_cli'] = main(['push', folder, repo])
    Path(work, 'result.json').write_text(json.dumps(result))


if __name__ == '__main__':
    if sys.argv[1] == 'push':
        sys.exit(main(['push', *sys.argv[2:4]]))
    everything(*sys.argv[2:])
