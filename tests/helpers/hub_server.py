"""A server for tests only that speaks as much of the Hugging Face Hub's protocol as the client uses.

It keeps repositories in memory on 127.0.0.1, checks the token and the SHA-256 of what it gets, counts what is uploaded,
and misbehaves on demand (``POST /_test/mode``). It shows that the real client and this package work together; it is no
evidence about the real Hub.
"""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = 'hf_onlyForTheServerOfTheseTests'


class HubServer:
    """In-memory Hub; ``uploads`` lists the objects received, ``mode`` is '' or a way to fail."""

    def __init__(self):
        self.repos = {}  # repo -> {'private': bool, 'branches': {branch: {path: bytes}}, 'lfs': {path: oid}}
        self.objects = {}  # oid -> bytes
        self.uploads = []
        self.commits = []
        self.mode = ''
        self.weights_stored = threading.Event()
        self.held = threading.Event()
        self.release = threading.Event()
        server = self

        class Handler(_Handler):
            hub = server

        self.http = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.http.daemon_threads = True
        self.endpoint = f'http://127.0.0.1:{self.http.server_port}'
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self):
        self.release.set()
        self.http.shutdown()
        self.http.server_close()

    def commit_id(self, repo, branch):
        files = self.repos[repo]['branches'][branch]
        return hashlib.sha1(repr(sorted((k, git_oid(v)) for k, v in files.items())).encode()).hexdigest()

    def find(self, repo, revision):
        """Branch of a repository by its name or commit, or None."""
        for branch in self.repos[repo]['branches']:
            if revision in (branch, self.commit_id(repo, branch)):
                return branch
        return None


def is_large(path):
    return path.endswith(('.safetensors', '.bin', '.png'))


def git_oid(content):
    return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    hub = None

    def log_message(self, *args):
        pass

    def reply(self, status, content=b'', headers=(), code=None):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header('Content-Length', str(len(body)))
        if code:
            self.send_header('X-Error-Code', code)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body)

    def body(self):
        return self.rfile.read(int(self.headers.get('Content-Length', 0)))

    def do_POST(self):
        body, path = self.body(), unquote(urlsplit(self.path).path)
        if path == '/_test/mode':
            self.hub.mode = body.decode()
            return self.reply(200, {'uploads': self.hub.uploads, 'commits': self.hub.commits})
        if path == '/api/validate-yaml':
            try:
                yaml.safe_load(json.loads(body)['content'].split('---')[1])
            except (IndexError, yaml.YAMLError) as e:
                return self.reply(400, {'errors': [{'message': str(e)}], 'warnings': []})
            return self.reply(200, {'errors': [], 'warnings': []})
        if self.headers.get('Authorization') != f'Bearer {TOKEN}':
            return self.reply(401, {'error': 'Invalid credentials in Authorization header'})
        if path == '/lfs/verify':
            asked = json.loads(body)
            stored = self.hub.objects.get(asked['oid'])
            return self.reply(200 if stored is not None and len(stored) == asked['size'] else 404)
        if path == '/api/repos/create':
            return self.create(json.loads(body))
        if path.endswith('.git/info/lfs/objects/batch'):
            return self.batch(json.loads(body))
        user, name, action, revision = path.removeprefix('/api/models/').split('/', 3)
        repo = self.hub.repos[f'{user}/{name}']
        if action == 'branch':
            if revision in repo['branches']:
                return self.reply(409)
            repo['branches'][revision] = dict(repo['branches']['main'])
            return self.reply(200)
        files = repo['branches'][revision]
        if action == 'preupload':
            return self.reply(200, {'files': [self.preupload(f['path'], files) for f in json.loads(body)['files']]})
        return self.commit(f'{user}/{name}', revision, files, [json.loads(line) for line in body.splitlines()])

    def create(self, asked):
        repo = f'{asked["organization"]}/{asked["name"]}'
        if asked['organization'] == 'other':
            return self.reply(403, {'error': "You don't have the rights to create a model under the namespace"})
        if repo in self.hub.repos:
            return self.reply(409, {'url': f'{self.hub.endpoint}/{repo}', 'error': 'You already created this model'})
        private = asked.get('visibility') == 'private' or asked.get('private') is True
        self.hub.repos[repo] = {'private': private, 'branches': {'main': {'.gitattributes': b''}}}
        return self.reply(200, {'url': f'{self.hub.endpoint}/{repo}'})

    def preupload(self, path, files):
        entry = {'path': path, 'uploadMode': 'lfs' if is_large(path) else 'regular', 'shouldIgnore': False}
        if path in files:
            content = files[path]
            entry['oid'] = hashlib.sha256(content).hexdigest() if is_large(path) else git_oid(content)
        return entry

    def batch(self, asked):
        if self.hub.mode == 'quota':
            return self.reply(403, {'error': 'Private repository storage limit reached'})
        objects = []
        for o in asked['objects']:
            entry = {'oid': o['oid'], 'size': o['size']}
            if o['oid'] not in self.hub.objects:
                entry['actions'] = {
                    'upload': {'href': f'{self.hub.endpoint}/lfs/{o["oid"]}'},
                    'verify': {'href': f'{self.hub.endpoint}/lfs/verify'}}
            objects.append(entry)
        self.reply(200, {'transfer': 'basic', 'objects': objects})

    def do_PUT(self):
        oid, content = self.path.rsplit('/', 1)[1], self.body()
        if self.hub.mode == 'corrupt':
            content = content[:-1] + bytes([content[-1] ^ 1])
        if hashlib.sha256(content).hexdigest() != oid:
            return self.reply(422, {'error': 'SHA-256 of the content is not its name'})
        is_plot = content[:4] == b'\x89PNG'
        if self.hub.mode == 'hold_plots' and is_plot:
            self.hub.weights_stored.wait(60)
            self.hub.held.set()
            self.hub.release.wait(60)
            self.close_connection = True
            return
        self.hub.objects[oid] = content
        self.hub.uploads.append('plot' if is_plot else 'weights')
        if not is_plot:
            self.hub.weights_stored.set()
        self.reply(200)

    def commit(self, repo, revision, files, lines):
        if self.hub.mode == 'commit_fails':
            return self.reply(500)
        new = dict(files)
        for line in lines[1:]:
            path, value = line['value']['path'], line['value']
            if line['key'] == 'file':
                new[path] = base64.b64decode(value['content'])
            elif line['key'] == 'lfsFile':
                if value['oid'] not in self.hub.objects:
                    return self.reply(400, {'error': f'object of {path} was not uploaded'})
                new[path] = self.hub.objects[value['oid']]
            else:
                del new[path]
        self.hub.repos[repo]['branches'][revision] = new
        self.hub.commits.append([line['value'].get('path') for line in lines[1:]])
        commit = self.hub.commit_id(repo, revision)
        self.reply(200, {'commitUrl': f'{self.hub.endpoint}/{repo}/commit/{commit}', 'commitOid': commit})

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        url = urlsplit(self.path)
        path = unquote(url.path)
        if path == '/api/models':
            return self.list_models(parse_qs(url.query))
        if path.startswith('/api/models/'):
            user, name, *rest = path.removeprefix('/api/models/').split('/', 3)
        else:
            user, name, *rest = path.removeprefix('/').split('/', 2)
        repo = f'{user}/{name}'
        known = self.hub.repos.get(repo)
        allowed = known and (not known['private'] or self.headers.get('Authorization') == f'Bearer {TOKEN}')
        if not allowed:
            return self.reply(404, code='RepoNotFound')
        if path.startswith('/api/models/'):
            action, revision = rest[0] if rest else 'revision', rest[1] if len(rest) > 1 else 'main'
        else:
            action, revision, file = rest[0].split('/', 2)
        branch = self.hub.find(repo, revision)
        if branch is None:
            return self.reply(404, code='RevisionNotFound')
        files, commit = known['branches'][branch], self.hub.commit_id(repo, branch)
        if action == 'revision':
            return self.reply(200, {'id': repo, 'sha': commit, 'private': known['private'], 'siblings': []})
        if action == 'tree':
            return self.reply(200, [self.tree_entry(k, v) for k, v in files.items()])
        if file not in files:
            return self.reply(404, code='EntryNotFound', headers=[('X-Repo-Commit', commit)])
        content = files[file]
        etag = hashlib.sha256(content).hexdigest() if is_large(file) else git_oid(content)
        if self.hub.mode == 'tampered' and file.endswith('.safetensors'):
            content = content[:-1] + bytes([content[-1] ^ 1])
        self.reply(200, content, [('X-Repo-Commit', commit), ('ETag', f'"{etag}"')])

    def tree_entry(self, path, content):
        entry = {'type': 'file', 'path': path, 'size': len(content), 'oid': git_oid(content)}
        if is_large(path):
            entry['lfs'] = {'oid': hashlib.sha256(content).hexdigest(), 'size': len(content), 'pointerSize': 134}
        return entry

    def list_models(self, query):
        tag, found = query['filter'][0], []
        for repo, content in self.hub.repos.items():
            card = content['branches']['main'].get('README.md', b'').decode()
            tags = yaml.safe_load(card.split('---')[1])['tags'] if card else []
            if tag in tags and ('author' not in query or repo.startswith(query['author'][0] + '/')):
                found.append({'id': repo})
        self.reply(200, found)
