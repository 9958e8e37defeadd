"""Bad input of every kind, by generators: one sentence, never a traceback or a wrong number.

`SFR_LARGE=1 pytest tests/test_bad_input.py` draws 1,000 of each kind and 2,000 records; the suite
draws 100 of each. What a reader of files may do is read the mutation, if it is still right, or
raise a `UserError` of one line.
"""
import json
import os
import random
import sys
import pytest
from conftest import ROOT
from mutate import ODD, mutate_bytes, mutated_records
from sfr_repro.core.config import load_experiment, setting_id
from sfr_repro.core.errors import UserError
from sfr_repro.core.records import add_record, read_records
from sfr_repro.data.corpus import load_corpus
from sfr_repro.data.retrieval import load_retrieval
from sfr_repro.data.sts import load_sts
from sfr_repro.data.transfer import load_transfer
from sfr_repro.pretrain.config import pretrain_config
from sfr_repro.results.report import NO_SCORE, headline, sts_scores, summarise

pytestmark = pytest.mark.once

LARGE = os.environ.get('SFR_LARGE') == '1'
N = 1000 if LARGE else 100
RECORDS = 2000 if LARGE else 100

def tried(read, *args):
    "Whether something was read; a refusal is one line"
    try: read(*args)
    except UserError as e:
        assert str(e).strip() and '\n' not in str(e).strip(), repr(str(e))
        return False
    return True

# ---------------------------------------------------------------- records

def tables_of(folder):
    "What the tables make of a folder of records; it raises where they cannot"
    records = read_records(folder)
    scores = sts_scores(records)
    headline(records), summarise(scores).to_string(), scores.to_string(float_format='%.2f')
    for r in records:
        key = r.selection.metric if r.selection else None
        assert key is None or any(key in p.metrics for p in r.trajectory)
        if key: assert -1 <= r.chosen <= 1
    for column in set(scores)-set(NO_SCORE):
        assert scores[column].dropna().between(-100, 100).all(), column

def committed(pattern):
    return json.loads(next((ROOT/'nbs/records/runs').glob(pattern)).read_text())

@pytest.mark.parametrize('pattern', ['infonce-*.json', 'untrained-*.json'])
def test_mutated_records_are_refused_or_read_by_every_table(tmp_path, pattern):
    accepted, n = 0, RECORDS//2
    for i, raw in enumerate(mutated_records(committed(pattern), n)):
        file, kept = tmp_path/'r.json', tmp_path/f'{i}/nbs/records/runs'
        file.write_bytes(raw)
        if not tried(add_record, file, kept): continue
        name, = kept.iterdir()
        r = json.loads(name.read_text())
        assert setting_id(r['config']) == r['id'] and 0 <= r['seed'] < 2**32
        tables_of(kept)
        accepted += 1
    assert 0 < accepted < n, 'the control: some mutations change nothing that matters, most do'

def test_the_tables_fail_on_what_is_refused(tmp_path):
    "The control: the same record without the check breaks a table"
    r = committed('infonce-*.json')
    score = next(k for k in r['metrics'] if k.startswith('sts/') and k.endswith('spearman'))
    r['metrics'][score] = 7.
    (tmp_path/'r.json').write_text(json.dumps(r))
    with pytest.raises(AssertionError): tables_of(tmp_path)
    with pytest.raises(UserError, match='is 7'): add_record(tmp_path/'r.json', tmp_path)

# ---------------------------------------------------------------- files

EXPERIMENT = '''preset = "smoke"
seeds = [0, 1]
[encoder]
name = "sfr-mini"
pooler = "mean"
max_length = 32
[loss]
name = "infonce"
tau = 0.2
[train]
batch = 16
steps = 4
lr = 1e-4
[evaluate]
tasks = ["sts"]
[sweep]
"loss.tau" = [0.1, 0.2]
'''
PRETRAIN = '''preset = "smoke"
[pretrain]
seed = 3
vocab = 2000
lr = 5e-3
clip = 1.0
threads = 1
schedule = [[0, 0], [5, 1.0], [20, 0]]
'''

def toml_value(x):
    "An odd value as TOML may hold it, or text that TOML refuses"
    if x is None or isinstance(x, dict): return '{}'
    return json.dumps(x).replace('NaN', 'nan').replace('Infinity', 'inf')

def mutated_toml(text, draw):
    "A value of one line replaced, or bytes changed"
    if draw.random() < .3: return mutate_bytes(text.encode(), draw)
    lines = text.splitlines()
    i = draw.choice([k for k, line in enumerate(lines) if '=' in line])
    lines[i] = lines[i].partition('=')[0]+'= '+toml_value(draw.choice(ODD))
    return '\n'.join(lines).encode('utf-8', 'surrogatepass')

@pytest.mark.parametrize('text,read', [(EXPERIMENT, load_experiment), (PRETRAIN, pretrain_config)])
def test_toml(tmp_path, text, read):
    draw, file, right = random.Random(0), tmp_path/'x.toml', 0
    for _ in range(N):
        file.write_bytes(mutated_toml(text, draw))
        right += tried(read, file)
    assert 0 < right < N

def sts_file(folder):
    rows = '\n'.join(f'test\ta\t{i%6}\tthe cat {i}\ta dog {i}' for i in range(12))
    file = folder/'mine.tsv'
    file.write_text('split\tsubset\tscore\tsentence1\tsentence2\n'+rows+'\n')
    return file

def corpus_file(folder):
    file = folder/'mine.txt'
    file.write_text('\n'.join(f'the cat number {i} runs' for i in range(40))+'\n')
    return file

def transfer_file(folder):
    rows = '\n'.join(f'all\t{i%2}\tthe cat {i} is here' for i in range(40))
    file = folder/'mine.tsv'
    file.write_text('split\tlabel\tsentence1\n'+rows+'\n')
    return file

@pytest.mark.parametrize('make,read', [(sts_file, load_sts), (corpus_file, load_corpus),
                                       (transfer_file, load_transfer)])
def test_data_files(tmp_path, make, read):
    draw, file, right = random.Random(0), make(tmp_path), 0
    whole = file.read_bytes()
    assert tried(read, str(file)), 'the control: the file itself is read'
    for _ in range(N):
        file.write_bytes(mutate_bytes(whole, draw))
        right += tried(read, str(file))
    assert 0 < right < N

def test_a_retrieval_folder(tmp_path):
    draw, folder, right = random.Random(0), tmp_path/'mine', 0
    folder.mkdir()
    rows = {'corpus': ['docid\ttitle\ttext', *(f'd{i}\ta cat\tthe cat {i}' for i in range(9))],
            'queries': ['qid\ttext', *(f'q{i}\tthe cat {i}' for i in range(5))],
            'qrels': ['qid\tdocid\trel', *(f'q{i}\td{i}\t1' for i in range(5))]}
    whole = {name: '\n'.join(lines).encode()+b'\n' for name, lines in rows.items()}
    def write(changed=None):
        for name, raw in whole.items():
            if name == changed: raw = mutate_bytes(raw, draw)
            (folder/f'{name}.tsv').write_bytes(raw)
    write()
    assert tried(load_retrieval, folder)
    for _ in range(N):
        write(draw.choice(list(whole)))
        right += tried(load_retrieval, folder)
    assert 0 < right < N

# ---------------------------------------------------------------- environment and command lines

COMMANDS = (('run', '?', '--check'), ('run', 'smoke', '--check', '--set', '?'), ('plan', '?'),
            ('run', 'smoke', '--check', '--set', 'loss.tau=?'), ('plan', 'smoke', '--device', '?'),
            ('run', 'smoke', '--check', '--set', 'train.steps=?'), ('records', 'add', '?'),
            ('records', 'supersede', '?', '--why', '?'), ('reproduce', '--preset', 'no?'),
            ('pretrain', 'no?'), ('evaluate', 'sfr-mini', '--tasks', 'no?'), ('?',),
            ('records', '?'), ('evaluate', 'sfr-mini', '--sets', 'no?'), ('analyse', './no?'),
            ('?', '?'))

def one_command(words, monkeypatch):
    "The exit status of a command; an exception that is no exit comes through"
    from sfr_repro.cli import main
    monkeypatch.setattr(sys, 'argv', ['sfr-repro', *words])
    with pytest.raises(SystemExit) as ended: main()
    return ended.value.code or 0

def test_command_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for k, v in {'SFR_DATA': 'none', 'HF_HUB_OFFLINE': '1', 'SFR_RUNS': 'runs'}.items():
        monkeypatch.setenv(k, v)
    draw, codes = random.Random(0), []
    odd = [str(x) for x in ODD if '\x00' not in str(x)]
    for _ in range(N):
        words = [w.replace('?', draw.choice(odd)) for w in draw.choice(COMMANDS)]
        code = one_command([w.encode(errors='replace').decode() for w in words], monkeypatch)
        said = capsys.readouterr()
        assert code in (0, 2) and 'Traceback' not in said.err, (words, code, said.err)
        assert code == 0 or said.err.strip(), words
        codes.append(code)
    assert {0, 2} == set(codes)

def test_environment(monkeypatch):
    "Variables of a launcher: none of these can start, so each is refused"
    from sfr_repro.train.distributed import join_processes
    draw, right = random.Random(0), {'WORLD_SIZE': '2', 'RANK': '0', 'MASTER_ADDR': '127.0.0.1',
                                     'MASTER_PORT': '29500'}
    wrong = {'WORLD_SIZE': ('x', '0', '-1', '2.0', '9'*5000, ' 2', '٢', '1e3'),
             'RANK': ('x', '2', '-1', '', '0.5', '9'*5000), 'MASTER_ADDR': ('', ' ', None),
             'MASTER_PORT': ('x', '0', '65536', '-1', '', '1e4', None)}
    for _ in range(N):
        name = draw.choice(list(wrong))
        for k, v in (right | {name: draw.choice(wrong[name])}).items():
            if v is None: monkeypatch.delenv(k, raising=False)
            else: monkeypatch.setenv(k, v)
        assert not tried(join_processes), name
    monkeypatch.delenv('WORLD_SIZE')
    assert join_processes() is None
