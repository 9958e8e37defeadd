"The command line as people expect it: quick, quiet where asked, plain about mistakes; and cards."
import json
import os
import pty
import re
import subprocess
import sys
import pytest
from conftest import ROOT

pytestmark = pytest.mark.once

ALL = '''
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
sys.path.insert(0, {root!r})
from sfr_repro.cli import main
found = []
for words in {commands!r}:
    sys.argv, out, err = ['sfr-repro', *words], io.StringIO(), io.StringIO()
    code = 0
    with redirect_stdout(out), redirect_stderr(err):
        try: main()
        except SystemExit as e: code = e.code or 0
    found.append([words, code, out.getvalue(), err.getvalue(), 'torch' in sys.modules])
print(json.dumps(found))
'''

def in_one_process(commands, cwd):
    "Each command's words, exit status, outputs, and whether torch has been loaded by then"
    env = {**os.environ, 'SFR_DATA': 'none', 'HF_HUB_OFFLINE': '1'}
    done = subprocess.run([sys.executable, '-c', ALL.format(root=str(ROOT), commands=commands)],
                          cwd=cwd, capture_output=True, text=True, env=env)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)

def test_what_needs_no_torch_loads_none(tmp_path, settings):
    commands = [['--help'], ['--version'], ['presets'], ['losses', '--names'], ['records', 'list'],
                ['run', '--help'], ['compare', str(ROOT/'nbs/records/runs'), '--help']]
    found = in_one_process([*commands, ['losses']], tmp_path)
    for words, code, out, err, torch in found[:-1]:
        assert code == 0 and out and not err.startswith('sfr-repro:') and not torch, (words, err)
    assert found[-1][-1], 'the control: losses with their constants load it'
    assert found[1][2].strip() == f"sfr-repro {settings['version']}"

def test_the_catalogue_is_that_of_the_registry():
    from sfr_repro.losses.catalogue import WHEN
    from sfr_repro.losses.registry import LOSSES
    assert list(WHEN) == list(LOSSES)

EARLY = {
    ('run', 'nowhere.toml'): 'neither an experiment file nor a preset',
    ('run', 'smoke', '--set', 'loss.name=infonse'): "loss is 'infonse': it must be one of infonce",
    ('run', 'smoke', '--set', 'train.select=lost.tsv'): 'lost.tsv is not there',
    ('run', 'smoke', '--set', 'data.corpus=["lost.txt"]'): "data.corpus names 'lost.txt'",
    ('run', 'smoke', '--bach', '3'): 'No such option',
    ('run',): "Missing argument",
    ('bar',): "No such command 'bar'",
    ('evaluate', 'sfr-mini', '--pooler', 'avg'): "pooler is 'avg'",
    ('evaluate', 'sfr-mini', '--precision', 'fp8'): "precision is 'fp8'",
    ('evaluate', 'sfr-mini', '--rendering', 'moses'): "rendering is 'moses'",
    ('evaluate', 'sfr-mini', '--tasks', 'stss'): "tasks is 'stss'",
    ('evaluate', 'sfr-mini', '--sets', 'MR'): "sets is 'MR'",
    ('evaluate', 'sfr-mini', '--source', 'cloud'): "source is 'cloud'",
    ('evaluate', './nowhere'): 'this is no folder with a model',
    ('analyse', 'sfr-mini', '--against', './nowhere'): 'this is no folder with a model',
    ('analyse', 'sfr-mini', '--sentences', 'lost.txt'): 'lost.txt cannot be read as text',
    ('compare', 'nowhere'): 'there is no such record',
    ('records', 'list', '--format', 'xls'): "format is 'xls'",
    ('losses', '--format', 'xls'): "format is 'xls'",
}
LATER = ['run', 'smoke', '--set', 'loss.scale=20']

def test_mistakes_are_told_before_torch_is_loaded(tmp_path):
    found = in_one_process([*map(list, EARLY), LATER], tmp_path)
    for words, code, out, err, torch in found[:-1]:
        said = EARLY[tuple(words)]
        assert code == 2 and said in err and err.startswith('sfr-repro: ') and not out, (words, err)
        assert len(err.strip().splitlines()) == 1 and not torch, (words, err)
    assert found[-1][1] == 2 and found[-1][-1], 'the control: a constant is told by the loss itself'
    assert not list(tmp_path.iterdir())

def commands_of(group, name='sfr-repro'):
    "Every command with its parameters"
    for word, c in getattr(group, 'commands', {}).items():
        yield from commands_of(c, f'{name} {word}')
    if not hasattr(group, 'commands'): yield name, group

def test_no_help_text_has_a_hole(command):
    import typer
    from sfr_repro.cli import app
    seen = 0
    for name, c in commands_of(typer.main.get_command(app)):
        code, out, _ = command(*name.split()[1:], '--help')
        shown = ''.join(out.split())
        assert code == 0 and ''.join(c.help.split()) in shown, name
        for p in c.params:
            if p.name == 'help': continue
            assert p.help and ''.join(p.help.split()) in shown, (name, p.name)
            seen += 1
    assert seen > 40
    assert '[pretrain]' in command('pretrain', '--help')[1]

def test_the_shell_completes_commands_and_names(tmp_path):
    def complete(*words):
        env = {**os.environ, '_SFR_REPRO_COMPLETE': 'complete_bash', 'COMP_WORDS': ' '.join(words),
               'COMP_CWORD': str(len(words)-1), 'PYTHONPATH': str(ROOT)}
        code = 'from sfr_repro.cli import main; main()'
        return subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=env, text=True,
                              capture_output=True).stdout.split()
    assert complete('sfr-repro', 'eval') == ['evaluate']
    assert complete('sfr-repro', 'run', 'smo') == ['smoke']
    assert complete('sfr-repro', 'plan', 'smoke', '--device', 'h') == ['h100']

def test_quiet_leaves_the_result(command, tmp_path):
    code, out, err = command('run', 'smoke', '--set', 'train.steps=0', '--quiet')
    assert code == 0 and len(out.splitlines()) == 2 and not err, (out, err)
    assert out.startswith('STS ') and (tmp_path/out.splitlines()[1]).is_file()
    code, again, _ = command('run', 'smoke', '--set', 'train.steps=0')
    assert again.splitlines()[1:] == out.splitlines() and len(again.splitlines()) == 3

def test_work_that_lasts_is_told_in_calm_lines(command, monkeypatch):
    from sfr_repro.core.progress import Progress
    monkeypatch.setitem(Progress.__init__.__kwdefaults__, 'wait', (0., 0.))
    code, _, err = command('run', 'smoke', '--set', 'train.steps=2', '--out', 'a')
    assert code == 0 and re.search(r'^encode: [\d,]+ of [\d,]+ sentences, \d+ s$', err, re.M), err
    assert re.search(r'^train: 2 of 2 steps, \d+ s', err, re.M) and '\r' not in err
    code, _, err = command('evaluate', 'sfr-mini', '--out', 'b')
    assert code == 0 and re.search(r'^encode: ', err, re.M), err
    code, _, err = command('evaluate', 'sfr-mini', '--out', 'c', '--quiet')
    assert code == 0 and not err, 'the control'

def on_a_terminal(*words, cwd, **env):
    "What a command writes to standard error where that is a terminal"
    main_end, end = pty.openpty()
    code = 'from sfr_repro.cli import main; main()'
    env = {**os.environ, 'PYTHONPATH': str(ROOT), **env}
    subprocess.run([sys.executable, '-c', code, *words], cwd=cwd, stderr=end, env=env,
                   stdout=subprocess.DEVNULL)
    os.close(end)
    try: said = os.read(main_end, 1 << 16).decode()
    finally: os.close(main_end)
    return said

def test_colours_are_for_terminals_that_want_them(tmp_path, command):
    assert '\x1b[' in on_a_terminal('bar', cwd=tmp_path)
    assert '\x1b[' not in on_a_terminal('bar', cwd=tmp_path, NO_COLOR='1')
    assert '\x1b[' not in command('bar')[2]

def test_losses_say_when_to_use_them(command):
    code, out, _ = command('losses', '--format', 'json')
    rows = json.loads(out)
    assert code == 0 and all(len(r['when to use']) > 20 for r in rows)
    assert rows[0]['constants'] == 'tau=0.05, hard_negative_weight=None'

def test_a_plan_of_several_devices(command):
    words = ('plan', 'smoke', '--set', 'train.batch=64')
    one, eight = command(*words), command(*words, '--devices', '8')
    assert one[0] == eight[0] == 0 and 'communication' in eight[1] and '8 x h100' in eight[1]
    assert 'communication' not in one[1]
    for bad, said in (('7', 'it must divide train.batch, 64'), ('0', 'devices is 0'),
                      ('x', "Invalid value for '--devices'")):
        code, out, err = command(*words, '--devices', bad)
        assert code == 2 and said in err and not out and len(err.splitlines()) == 1, err

def test_make_lab_takes_arguments_and_runs_as_root(tmp_path):
    def line(uid):
        (tmp_path/'id').write_text(f'#!/bin/sh\necho {uid}\n')
        (tmp_path/'id').chmod(0o755)
        done = subprocess.run(['make', '-n', 'lab', f'VENV={sys.prefix}', 'LAB_ARGS=--port 9000'],
                              cwd=ROOT, capture_output=True, text=True,
                              env={**os.environ, 'PATH': f"{tmp_path}:{os.environ['PATH']}"})
        return next(o for o in done.stdout.splitlines() if 'jupyter lab' in o).split('lab ', 1)[1]
    assert line(0).split() == ['--allow-root', '--port', '9000', 'nbs']
    assert line(1000).split() == ['--port', '9000', 'nbs']

# ---------------------------------------------------------------- cards

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "A run with its model and card"
    from sfr_repro.core.config import load_experiment
    from sfr_repro.train.run import run
    with pytest.MonkeyPatch.context() as patch:
        for k, v in {'SFR_DATA': 'none', 'HF_HUB_OFFLINE': '1'}.items(): patch.setenv(k, v)
        config, = load_experiment('smoke', ('train.precision=fp32',))
        return run(config, tmp_path_factory.mktemp('runs'), progress=False).parent

def test_a_run_leaves_a_card_that_the_hub_reads(trained):
    ModelCard = pytest.importorskip('huggingface_hub').ModelCard
    card = ModelCard.load(trained/'model'/'README.md')
    record = json.loads((trained/'record.json').read_text())
    data = card.data.to_dict()
    assert data['license'] == 'apache-2.0' and data['language'] == 'en'
    assert data['pipeline_tag'] == 'sentence-similarity' and 'loss:infonce' in data['tags']
    result, = card.data.eval_results
    own = record['metrics']['sts/mini-sts/test/all/spearman']
    assert result.metric_value == round(100*own, 2) and result.dataset_name == 'mini-sts'
    for said in ('`infonce`, tau = 0.2', 'mini-sts dev was measured', 'smoke-level pairs',
                 f"checkpoint of step {record['selection']['best_step']}",
                 record['encoder']['sha256']):
        assert said in card.text, said

@pytest.mark.filterwarnings('ignore')
def test_the_three_ways_to_load_it_give_the_same_vectors(trained):
    import numpy as np
    text = (trained/'model'/'README.md').read_text()
    blocks = re.findall(r'^```python\n(.*?)^```', text, re.S | re.M)
    assert len(blocks) == 4
    found = []
    for code in blocks[1:]:
        if 'sentence_transformers' in code: pytest.importorskip('sentence_transformers')
        names = {}
        exec(blocks[0]+code.replace('path/to/model', str(trained/'model')), names)
        found.append(np.asarray(names.get('vectors', names.get('x'))))
    for x in found[1:]: assert abs(x-found[0]).max() < 1e-4*abs(found[0]).max()
    assert abs(found[0][::-1]-found[0]).max() > 1e-2*abs(found[0]).max(), 'the control'

def test_what_cannot_be_pushed(trained, command, monkeypatch, tmp_path):
    import sfr_repro.train.cards as cards
    code, _, err = command('push', trained, 'owner/mine')
    assert code == 2 and 'push needs the hub, but HF_HUB_OFFLINE is set' in err
    monkeypatch.setattr(cards, 'hub_problem', lambda: '')
    monkeypatch.setattr(cards, 'get_token', lambda: None)
    for words, said in (((trained, 'owner/mine'), 'push needs a token: set HF_TOKEN'),
                        ((trained, 'mine'), "repo is 'mine': it must be owner/name"),
                        (('nowhere', 'owner/mine'), 'nowhere: there is no such folder'),
                        ((tmp_path, 'owner/mine'), 'has no config.json')):
        code, out, err = command('push', *words)
        assert code == 2 and said in err and not out and len(err.splitlines()) == 1, err

class FakeApi:
    "The part of `HfApi` that is used, with its own signatures"
    def __init__(self, token=None): FakeApi.last, self.commits = self, []
    def create_repo(self, repo_id, *, private=None, exist_ok=False): self.repo = repo_id, private
    def create_commit(self, repo_id, operations, *, commit_message):
        self.commits.append({o.path_in_repo: o for o in operations})
        return f'https://example.org/{repo_id}'

def test_a_push_is_one_commit_with_card_and_weights(trained, command, monkeypatch):
    import inspect
    import sfr_repro.train.cards as cards
    for name in ('create_repo', 'create_commit'):                 # the fake is like the real one
        real = inspect.signature(getattr(cards.HfApi, name)).parameters
        assert set(inspect.signature(getattr(FakeApi, name)).parameters) <= set(real), name
    for name, x in (('hub_problem', lambda: ''), ('get_token', lambda: 'secret'),
                    ('HfApi', FakeApi)): monkeypatch.setattr(cards, name, x)
    code, out, err = command('push', trained, 'owner/mine', '--license', 'mit', '--private')
    assert code == 0 and out.strip() == 'https://example.org/owner/mine', err
    api = FakeApi.last
    assert api.repo == ('owner/mine', True) and len(api.commits) == 1
    sent = api.commits[0]
    assert {'README.md', 'model.safetensors', 'config.json', 'modules.json'} <= set(sent)
    card = sent['README.md'].path_or_fileobj.decode()
    assert 'license: "mit"' in card and "SentenceTransformer('owner/mine')" in card
    assert 'secret' not in card
