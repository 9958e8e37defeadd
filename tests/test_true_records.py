"""Never a record that is not true: changed inputs, damaged checkpoints, signals, two at once.

`SFR_LARGE=1 pytest tests/test_true_records.py` damages 200 folders and sends 60 signals; the suite
damages 10 and sends 6.
"""
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
import pytest
from conftest import ROOT
from mutate import mutate_bytes
from sfr_repro.analysis.geometry_record import record_geometry
from sfr_repro.core.config import load_experiment
from sfr_repro.core.errors import UserError
from sfr_repro.core.records import equal_records, read_record
from sfr_repro.encode.encoder import SentenceEncoder
from sfr_repro.evaluate.tasks import evaluate_model
from sfr_repro.train import trainer
from sfr_repro.train.queue import run_all
from sfr_repro.train.run import run

pytestmark = pytest.mark.once
LARGE = os.environ.get('SFR_LARGE') == '1'
FOLDERS, SIGNALS = (200, 60) if LARGE else (10, 6)
CHANGES = ('train.steps=9', 'train.eval_every=3', 'train.chunk=10')

def setting(*changes): return load_experiment('smoke', (*CHANGES, *changes))[0]

class Broken(BaseException): "Ends a run from within, as a kill does"

@pytest.fixture
def break_at(monkeypatch):
    "A function that runs a setting until some step, and leaves its checkpoints"
    real = trainer.Watch.record_point
    def broken(config, out, last):
        def record_point(self, step, *args, **kwargs):
            if step == last: raise Broken
            real(self, step, *args, **kwargs)
        monkeypatch.setattr(trainer.Watch, 'record_point', record_point)
        with pytest.raises(Broken): run(config, out, progress=False, minutes=0.)
        monkeypatch.setattr(trainer.Watch, 'record_point', real)
    return broken

# ---------------------------------------------------------------- inputs

def corpus(file, word):
    lines = [f'the {word} number {i} runs in the park of {i*7%13}' for i in range(60)]
    file.write_text('\n'.join(lines))

def test_another_corpus_is_told_before_during_and_after(tmp_path, break_at):
    file, out = tmp_path/'mine.txt', tmp_path/'runs'
    config = setting(f"data.corpus=['{file}']")
    corpus(file, 'dog')
    break_at(config, out, 6)
    corpus(file, 'volcano')
    with pytest.raises(UserError, match='was made with another corpus.*--again'):
        run(config, out, progress=False)
    beside = run(config, out, progress=False, again=True)
    corpus(file, 'dog')
    first = run(config, out, progress=False)
    corpus(file, 'volcano')
    with pytest.raises(UserError, match='was made with another corpus'): run(config, out)
    assert run(config, out, progress=False, again=True) == beside
    a, b = read_record(first), read_record(beside)
    assert a.id == b.id and a.inputs != b.inputs and a.metrics != b.metrics
    assert beside.parent.name == f'{first.parent.name}-{b.inputs[:6]}'

def test_a_record_that_does_not_say_what_it_is_made_from(tmp_path):
    path = run(load_experiment('smoke', ('train.steps=0',))[0], tmp_path, progress=False)
    (path.parent/'inputs.json').unlink()
    with pytest.raises(UserError, match='does not say what it was made from'):
        run(load_experiment('smoke', ('train.steps=0',))[0], tmp_path, progress=False)

@pytest.mark.parametrize('text', ['', '{}', '[]', '{"schema": 1', 'null'])
def test_a_file_that_is_no_record_is_never_done(tmp_path, text, break_at):
    config = setting()
    break_at(config, tmp_path, 6)
    folder = next(tmp_path.glob('smoke-*'))
    (folder/'record.json').write_text(text)
    with pytest.raises(UserError, match='record.json.*move it away'):
        run(config, tmp_path, progress=False)
    assert len(list(folder.glob('checkpoint-*/complete'))) > 0, 'nothing was deleted'

def small_model(folder, **changes):
    "The shipped encoder, saved, with some words of its files changed"
    SentenceEncoder.from_pretrained('sfr-mini', pooler='mean').save_pretrained(folder)
    for name, (old, new) in changes.items():
        file = next(folder.glob(f'{name}.json'))
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

@pytest.mark.parametrize('file,old,new,what', [
    ('config', '"hidden_act": "gelu"', '"hidden_act": "relu"', 'configuration'),
    ('tokenizer', '"lowercase": true', '"lowercase": false', 'tokenizer')])
def test_evaluate_and_analyse_tell_a_changed_model_folder(tmp_path, file, old, new, what):
    options = dict(source='embedded', progress=False, out=tmp_path/'runs')
    small_model(tmp_path/'m')
    path = evaluate_model(tmp_path/'m', 'sts', cache=False, **options)
    (_, folder), = record_geometry(tmp_path/'m', **options)
    small_model(tmp_path/'m', **{file: (old, new)})
    with pytest.raises(UserError, match=f'was made with another encoder {what}'):
        evaluate_model(tmp_path/'m', 'sts', cache=False, **options)
    with pytest.raises(UserError, match=f'was made with another encoder {what}'):
        record_geometry(tmp_path/'m', **options)
    beside = evaluate_model(tmp_path/'m', 'sts', cache=False, again=True, **options)
    assert beside != path and read_record(beside).id == read_record(path).id
    (_, other), = record_geometry(tmp_path/'m', again=True, **options)
    assert other.name.startswith(folder.name+'-')

# ---------------------------------------------------------------- checkpoints

def damage(folder, draw):
    "One thing wrong with a run's folder"
    files = [p for p in folder.rglob('*') if p.is_file() and p.name not in ('.lock', 'inputs.json')]
    file = draw.choice([p for p in files if p.parent.name.startswith('checkpoint-')])
    how = draw.choice(('gone', 'bit', 'cut', 'empty', 'folder gone', 'extra', 'moved', 'bytes'))
    if how == 'gone': file.unlink()
    if how == 'empty': file.write_bytes(b'')
    if how == 'bytes': file.write_bytes(mutate_bytes(file.read_bytes(), draw))
    if how == 'cut': os.truncate(file, draw.randrange(file.stat().st_size+1))
    if how == 'folder gone': shutil.rmtree(file.parent)
    if how == 'moved': file.parent.rename(folder/'checkpoint-7')
    if how == 'bit' and file.stat().st_size:
        with open(file, 'r+b') as f:
            at = draw.randrange(file.stat().st_size)
            f.seek(at)
            x = f.read(1)[0]
            f.seek(at)
            f.write(bytes([x ^ 1 << draw.randrange(8)]))
    (folder/'notes.txt').write_text("the user's own")
    if file.parent.exists(): (file.parent/'notes.txt').write_text("the user's own")
    return how, file.name

def test_damaged_checkpoints_never_change_a_record(tmp_path, break_at):
    config, draw = setting(), random.Random(0)
    whole = read_record(run(config, tmp_path/'whole', progress=False))
    break_at(config, tmp_path/'broken', 9)
    name = next((tmp_path/'broken').iterdir()).name
    assert len(list((tmp_path/'broken'/name).glob('checkpoint-*/complete'))) == 2
    for k in range(FOLDERS):
        out = tmp_path/f'{k}'
        shutil.copytree(tmp_path/'broken', out)
        done = [damage(out/name, draw) for _ in range(draw.choice((1, 1, 2)))]
        noted = len(list(out.rglob('notes.txt')))
        assert equal_records(read_record(run(config, out, progress=False)), whole), done
        assert len(list(out.rglob('notes.txt'))) == noted, 'things of the user stay'
        shutil.rmtree(out)

def test_the_seal_is_what_sees_it(tmp_path, break_at, monkeypatch):
    "The control: without the seal a changed weight gives another record"
    config = setting()
    whole = read_record(run(config, tmp_path/'whole', progress=False))
    break_at(config, tmp_path/'broken', 9)
    file, = (tmp_path/'broken').glob('*/checkpoint-6/trajectory.json')
    assert '"loss": 0.' in file.read_text()
    file.write_text(file.read_text().replace('"loss": 0.', '"loss": 1.'))
    monkeypatch.setattr('sfr_repro.train.checkpoints.checkpoint_damage', lambda *_: '')
    assert not equal_records(read_record(run(config, tmp_path/'broken', progress=False)), whole)

# ---------------------------------------------------------------- stopping

MAIN = 'from sfr_repro.cli import main; main()'

BEGUN = 'from sfr_repro.cli import main; open("begun", "w").close(); main()'

def command(*words, cwd, env=None, program=MAIN):
    env = os.environ | {'PYTHONPATH': str(ROOT), 'HF_HUB_OFFLINE': '1', 'SFR_DATA': 'none'}
    return subprocess.Popen([sys.executable, '-c', program, *words], cwd=cwd, env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)

STAGES = (('run', 'x.toml'), ('pretrain', 'p.toml'), ('evaluate', 'sfr-mini'),
          ('analyse', 'sfr-mini'), ('reproduce', '--preset', 'smoke'))
PLAIN = 'preset = "smoke"\nseeds = [0]\n[train]\nsteps = 9\neval_every = 3\n'
TEXT = 'preset = "smoke"\n[pretrain]\nschedule = [[0, 0], [5, 1.0], [30, 0]]\n'

def test_signals_at_any_moment(tmp_path):
    draw, seen = random.Random(0), []
    (tmp_path/'x.toml').write_text(PLAIN)
    (tmp_path/'p.toml').write_text(TEXT)
    whole = {}
    for words in STAGES:
        began = time.monotonic()
        process = command(*words, '--out', 'whole', cwd=tmp_path)
        said = process.communicate()[1]
        assert process.returncode == 0, said
        whole[words] = time.monotonic()-began
    for k in range(SIGNALS):
        words, number = STAGES[k % len(STAGES)], draw.choice((signal.SIGINT, signal.SIGTERM))
        (tmp_path/'begun').unlink(missing_ok=True)
        process = command(*words, '--out', f'out{k}', cwd=tmp_path, program=BEGUN)
        assert wait_for((tmp_path/'begun').exists, 600)      # before, Python's own rule holds
        time.sleep(.2+whole[words]*.6*draw.random())
        process.send_signal(number)
        said = process.communicate(timeout=300)[1]
        assert process.returncode in (0, 128+number), (words, said)
        if process.returncode:
            assert 'Traceback' not in said, said
            assert 'goes on from there: sfr-repro '+words[0] in said
        seen.append(process.returncode)
        again = command(*words, '--out', f'out{k}', cwd=tmp_path)
        assert not again.wait(), again.stderr.read()
        for path in tmp_path.glob(f'out{k}/*/record.json'):
            there = tmp_path/'whole'/path.parent.name/'record.json'
            assert equal_records(read_record(path), read_record(there)), path
        assert not list(tmp_path.glob(f'out{k}/**/.*.sfr-*')), 'hidden files that were left'
    assert any(seen), 'no signal came in time'

def wait_for(found, seconds=60):
    end = time.monotonic()+seconds
    while not found() and time.monotonic() < end: time.sleep(.1)
    return found()

def many(out): run_all([setting(f'seeds=[{s}]', 'train.steps=100000') for s in range(2)], out,
                       processes=2)

@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_process_that_started_them(tmp_path, number):
    parent = multiprocessing.get_context('spawn').Process(target=many, args=(str(tmp_path),))
    parent.start()
    assert wait_for(lambda: len(list(tmp_path.glob('*/tensorboard'))) == 2, 300)
    workers = Path(f'/proc/{parent.pid}/task/{parent.pid}/children').read_text().split()
    assert len(workers) >= 2
    os.kill(parent.pid, number)
    parent.join()
    assert wait_for(lambda: not any(map(alive, workers)))

def alive(pid):
    try: return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError: return False

# ---------------------------------------------------------------- sharing

@pytest.mark.parametrize('words', [STAGES[0], STAGES[1], STAGES[2], STAGES[3]])
def test_two_equal_commands_at_once(tmp_path, words):
    (tmp_path/'x.toml').write_text(PLAIN)
    (tmp_path/'p.toml').write_text(TEXT)
    both = [command(*words, '--out', 'out', cwd=tmp_path) for _ in range(2)]
    said = [p.communicate(timeout=600) for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    record, = tmp_path.glob('out/*/record.json')
    assert read_record(record).status == 'complete'
    assert not list(tmp_path.glob('out/**/.*.sfr-*'))
