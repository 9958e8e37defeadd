"The command line: every mistake is one sentence and exit code 2, and leaves nothing half-written."
import json
import os
import subprocess
import sys
from pathlib import Path
import pytest

def sfr(*args, cwd, **env):
    return subprocess.run([sys.executable, '-c', 'from sfr_repro.cli import main; main()', *map(str, args)], cwd=cwd, capture_output=True, text=True,
                          env={**os.environ, 'HF_HUB_OFFLINE': '1', **env})

def files(folder): return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob('*') if p.is_file())

MISTAKES = {
    'unknown loss': (('run', 'smoke', '--set', 'loss.name=infonse'), "loss is 'infonse': it must be one of infonce"),
    'unknown constant': (('run', 'smoke', '--set', 'loss.scale=20'), "infonce has no constant 'scale'"),
    'constant out of range': (('run', 'smoke', '--set', 'loss.tau=-1'), 'tau is -1'),
    'batch beyond the corpus': (('run', 'smoke', '--set', 'train.batch=100000'), 'a batch cannot be larger'),
    'unknown key': (('run', 'wrong.toml'), "[train] has no key 'lrr'"),
    'unknown preset': (('reproduce', '--preset', 'huge'), 'neither an experiment file nor a preset'),
    'no weights': (('evaluate', 'empty_model'), 'has no model.safetensors'),
    'no such model': (('evaluate', './nowhere'), 'this is no folder with a model'),
    'unknown pooler': (('evaluate', 'sfr-mini', '--pooler', 'avg'), "pooler is 'avg': it must be one of"),
    'empty corpus': (('run', 'smoke', '--set', "data.corpus=['empty.txt']", '--set', 'data.source=embedded'), 'has no sentence'),
    'one sentence': (('run', 'smoke', '--set', "data.corpus=['one.txt']"), 'has one sentence'),
    'output is a file': (('run', 'smoke', '--out', 'a_file'), 'cannot be written'),
    'learning rate without end': (('run', 'smoke', '--set', 'train.lr=inf'), '[train] lr is inf'),
    'a folder for a record': (('records', 'add', 'empty_model'), 'cannot be read (Is a directory)'),
    'record cut in half': (('records', 'add', 'half.json'), 'not a whole JSON file'),
}

@pytest.fixture
def folder(tmp_path):
    (tmp_path/'wrong.toml').write_text('[train]\nlrr = 1\n')
    (tmp_path/'empty_model').mkdir(); (tmp_path/'empty_model/config.json').write_text('{"model_type": "bert"}')
    (tmp_path/'empty.txt').write_text('\n'); (tmp_path/'one.txt').write_text('Only this one.\n')
    (tmp_path/'a_file').write_text(''); (tmp_path/'half.json').write_text('{"schema": 1,\n "kind"')
    return tmp_path

@pytest.mark.parametrize('name', MISTAKES)
def test_mistakes(name, folder):
    args, said = MISTAKES[name]
    before = files(folder)
    r = sfr(*args, cwd=folder)
    assert r.returncode == 2, r.stderr
    assert said in r.stderr and 'Traceback' not in r.stderr
    assert len(r.stderr.strip().splitlines()) == 1, r.stderr
    assert files(folder) == before

def test_a_bad_score_file_names_file_and_line(folder):
    sts = folder/'data'/'sts'; sts.mkdir(parents=True)
    rows = ['split\tsubset\tscore\tsentence1\tsentence2', *['test\tx\t1.0\tOne.\tTwo.']*3]
    for name in ('STS12', 'STS13', 'STS14', 'STS15', 'STS16', 'STS-B', 'SICK-R'): (sts/f'{name}.tsv').write_text('\n'.join(rows)+'\n')
    rows[2] = 'test\tx\tnan\tOne.\tTwo.'
    (sts/'STS12.tsv').write_text('\n'.join(rows)+'\n')
    r = sfr('evaluate', 'sfr-mini', cwd=folder, SFR_DATA=str(folder/'data'))
    assert r.returncode == 2 and 'STS12.tsv' in r.stderr and 'line 3' in r.stderr and 'Traceback' not in r.stderr
    (sts/'STS12.tsv').write_text('split\tsubset\tsentence1\tsentence2\ntest\tx\tOne.\tTwo.\n')
    r = sfr('evaluate', 'sfr-mini', cwd=folder, SFR_DATA=str(folder/'data'))
    assert r.returncode == 2 and 'STS12.tsv' in r.stderr and 'score' in r.stderr

def test_a_fault_of_ours_keeps_its_traceback(folder):
    code = 'import sfr_repro.cli as c\n@c.app.command()\ndef fault(): raise RuntimeError("ours")\nc.main()'
    r = subprocess.run([sys.executable, '-c', code, 'fault'], cwd=folder, capture_output=True, text=True)
    assert r.returncode == 1 and 'Traceback' in r.stderr

def test_an_experiment_file_runs_and_is_not_repeated(folder):
    (folder/'mine.toml').write_text('preset = "smoke"\nseeds = [0]\n[train]\nsteps = 2\n')
    r = sfr('run', 'mine.toml', cwd=folder)
    assert r.returncode == 0, r.stderr
    path, = (folder/'runs').glob('mine-*/record.json')
    first = path.read_bytes()
    assert json.loads(first)['experiment']['name'] == 'mine'
    assert sfr('run', 'mine.toml', cwd=folder).returncode == 0 and path.read_bytes() == first
