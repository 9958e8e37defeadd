"The command line: every mistake is one sentence and exit code 2, and leaves nothing half-written."
import json
import os
import subprocess
import sys
from pathlib import Path
import pytest

def sfr(*args, cwd, **env):
    return subprocess.run([sys.executable, '-c', 'from sfr_repro.cli import main; main()',
                           *map(str, args)], cwd=cwd, capture_output=True, text=True,
                          env={**os.environ, 'HF_HUB_OFFLINE': '1', **env})

def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob('*') if p.is_file())

MISTAKES = {
    'unknown loss': (('run', 'smoke', '--set', 'loss.name=infonse'),
                     "loss is 'infonse': it must be one of infonce"),
    'unknown constant': (('run', 'smoke', '--set', 'loss.scale=20'),
                         "infonce has no constant 'scale'"),
    'constant out of range': (('run', 'smoke', '--set', 'loss.tau=-1'), 'tau is -1'),
    'batch beyond the corpus': (('run', 'smoke', '--set', 'train.batch=100000'),
                                'a batch cannot be larger'),
    'unknown key': (('run', 'wrong.toml'), "[train] has no key 'lrr'"),
    'unknown preset': (('reproduce', '--preset', 'huge'),
                       'neither an experiment file nor a preset'),
    'no weights': (('evaluate', 'empty_model'), 'has no model.safetensors'),
    'no such model': (('evaluate', './nowhere'), 'this is no folder with a model'),
    'unknown pooler': (('evaluate', 'sfr-mini', '--pooler', 'avg'),
                       "pooler is 'avg': it must be one of"),
    'empty corpus': (('run', 'smoke', '--set', "data.corpus=['empty.txt']", '--set',
                      'data.source=embedded'), 'has no sentence'),
    'one sentence': (('run', 'smoke', '--set', "data.corpus=['one.txt']"), 'has one sentence'),
    'output is a file': (('run', 'smoke', '--out', 'a_file'), 'cannot be written'),
    'learning rate without end': (('run', 'smoke', '--set', 'train.lr=inf'), '[train] lr is inf'),
    'a folder for a record': (('records', 'add', 'empty_model'), 'cannot be read (Is a directory)'),
    'record cut in half': (('records', 'add', 'half.json'), 'not a whole JSON file'),
}

@pytest.fixture
def folder(tmp_path):
    (tmp_path/'wrong.toml').write_text('[train]\nlrr = 1\n')
    (tmp_path/'empty_model').mkdir()
    (tmp_path/'empty_model/config.json').write_text('{"model_type": "bert"}')
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
    for name in ('STS12', 'STS13', 'STS14', 'STS15', 'STS16', 'STS-B', 'SICK-R'):
        (sts/f'{name}.tsv').write_text('\n'.join(rows)+'\n')
    rows[2] = 'test\tx\tnan\tOne.\tTwo.'
    (sts/'STS12.tsv').write_text('\n'.join(rows)+'\n')
    r = sfr('evaluate', 'sfr-mini', cwd=folder, SFR_DATA=str(folder/'data'))
    assert r.returncode == 2 and 'STS12.tsv' in r.stderr and 'line 3' in r.stderr
    assert 'Traceback' not in r.stderr
    (sts/'STS12.tsv').write_text('split\tsubset\tsentence1\tsentence2\ntest\tx\tOne.\tTwo.\n')
    r = sfr('evaluate', 'sfr-mini', cwd=folder, SFR_DATA=str(folder/'data'))
    assert r.returncode == 2 and 'STS12.tsv' in r.stderr and 'score' in r.stderr

ANALYSES = {
    'no such model': (('./nowhere',), 'this is no folder with a model'),
    'no such model to hold against': (('tiny', '--against', './nowhere'),
                                      'this is no folder with a model'),
    'no such file': (('tiny', '--sentences', 'nowhere.txt'), 'nowhere.txt cannot be read as text'),
    'one sentence': (('tiny', '--sentences', 'one.txt'), 'sentences has 1: at least 4 are needed'),
    'unknown pooler': (('tiny', '--pooler', 'avg'), "pooler is 'avg'"),
    'two models of one name': (('a/x/model', '--against', 'b/x/model'),
                               "two models with one name, 'x/model'"),
    'encoder and decoder': (('t5',), 'a t5 model is an encoder with a decoder'),
    'output is a file': (('tiny', '--sentences', 'texts.txt', '--out', 'a_file'),
                         'cannot be written'),
}

@pytest.fixture(scope='module')
def models(tmp_path_factory):
    "Tiny models and texts"
    import torch
    from transformers import BertConfig, BertModel
    from sfr_repro.data.mini_sts import load_mini_corpus
    from sfr_repro.encode.encoder import SentenceEncoder
    to = tmp_path_factory.mktemp('models')
    tokenizer = SentenceEncoder.from_pretrained('sfr-mini').tokenizer
    small = BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1,
                       num_attention_heads=2, intermediate_size=32, max_position_embeddings=64)
    for seed, name in enumerate(('tiny', 'a/model', 'b/model', 'a/x/model', 'b/x/model')):
        torch.manual_seed(seed)
        SentenceEncoder(BertModel(small, add_pooling_layer=False).eval(),
                        tokenizer).save_pretrained(to/name)
    (to/'t5').mkdir()
    (to/'t5/config.json').write_text('{"model_type": "t5"}')
    (to/'t5/model.safetensors').write_text('')
    (to/'one.txt').write_text('Only this one.\n'); (to/'a_file').write_text('')
    (to/'texts.txt').write_text('\n'.join(load_mini_corpus()[:80])+'\n', encoding='utf-8')
    return to

@pytest.mark.once
@pytest.mark.parametrize('name', ANALYSES)
def test_what_cannot_be_analysed(name, models, monkeypatch, capsys):
    from sfr_repro.cli import main
    (args, said), before = ANALYSES[name], files(models)
    monkeypatch.chdir(models); monkeypatch.setattr(sys, 'argv', ['sfr-repro', 'analyse', *args])
    if '--sentences' not in args: sys.argv += ['--source', 'embedded']
    with pytest.raises(SystemExit) as e: main()
    err = capsys.readouterr().err
    assert e.value.code == 2 and said in err and err.startswith('sfr-repro: '), err
    assert len(err.strip().splitlines()) == 1, err
    assert files(models) == before

@pytest.mark.once
def test_two_tiny_models_are_analysed(models, tmp_path):
    r = sfr('analyse', models/'b/model', '--against', models/'a/model', '--sentences',
            models/'texts.txt', '--out', tmp_path/'runs', cwd=tmp_path)
    assert r.returncode == 0 and 'Traceback' not in r.stderr, r.stderr
    page = Path(r.stdout.splitlines()[-1])
    assert 'anisotropy' in r.stdout and 'data: given' in r.stdout, r.stdout
    assert page.is_file() and 'b/model against a/model' in page.read_text(encoding='utf-8')
    assert sorted(p.name for p in page.parent.iterdir()) == ['.lock', 'inputs.json',
        'layers.png', 'record.json', 'report.html', 'sentences.png', 'tokens.png']
    records = [json.loads(p.read_text()) for p in (tmp_path/'runs').glob('*/record.json')]
    assert {o['encoder']['name'] for o in records} == {'a/model', 'b/model'}
    assert {o['kind'] for o in records} == {'analyse'}

def test_a_fault_of_ours_keeps_its_traceback(folder):
    code = ('import sfr_repro.cli as c\n@c.app.command()\n'
            'def fault(): raise RuntimeError("ours")\nc.main()')
    r = subprocess.run([sys.executable, '-c', code, 'fault'], cwd=folder, capture_output=True,
                       text=True)
    assert r.returncode == 1 and 'Traceback' in r.stderr

def test_an_experiment_file_runs_and_is_not_repeated(folder):
    # without its constants, which the run adds
    (folder/'mine.toml').write_text('preset = "smoke"\nseeds = [0]\n[train]\nsteps = 2\n'
                                    '[loss]\nname = "arccon"\n')
    r = sfr('run', 'mine.toml', cwd=folder)
    assert r.returncode == 0, r.stderr
    path, = (folder/'runs').glob('mine-*/record.json')
    assert f'1/1 {path.parent.name}' in r.stdout.splitlines(), 'the line names the folder'
    first = path.read_bytes()
    assert json.loads(first)['experiment']['name'] == 'mine'
    assert sfr('run', 'mine.toml', cwd=folder).returncode == 0 and path.read_bytes() == first
