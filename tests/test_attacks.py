"Inputs that a second pair of eyes found to go wrong, each with what is right"
import json
import os
import shutil
import signal
import socket
import sys
from pathlib import Path
import numpy as np
import pytest
from conftest import ROOT
from sfr_repro.core.config import load_experiment
from sfr_repro.core.errors import UserError
from sfr_repro.core.folders import found_record, write_inputs
from sfr_repro.core.records import MODEL_FILES, read_record, record_fault, write_folder_whole
from sfr_repro.encode.encoder import EncoderError, SentenceEncoder
from sfr_repro.train import distributed
from sfr_repro.train.run import run

pytestmark = pytest.mark.once

@pytest.fixture
def sfr(command): return command

def refused(done, said):
    code, out, err = done
    assert code == 2 and said in err and len(err.strip().splitlines()) == 1, done

TRIPLES = [f'the dog {i} runs\tthe hound {i} is running\tthe door {i} is shut' for i in range(40)]

def write_triples(name, header=True):
    head = ['anchor\tpositive\tnegative'] if header else []
    Path(name).write_text('\n'.join([*head, *TRIPLES])+'\n')

def losses_of(path): return [p.metrics for p in read_record(path).trajectory]

# ---------------------------------------------------------------- triples

def test_a_corpus_with_the_lines_of_a_table_does_not_train_in_its_place(here):
    write_triples('tri.tsv')
    write_triples('lines.txt', header=False)
    steps = 'train.steps=3', 'train.eval_every=1'
    triples, = load_experiment('smoke', (*steps, "data.triples='tri.tsv'"))
    plain, = load_experiment('smoke', (*steps, "data.corpus=['lines.txt']"))
    alone = losses_of(run(triples, 'alone', progress=False))
    run(plain, 'after', progress=False)
    after = losses_of(run(triples, 'after', progress=False))
    assert after == alone

def test_a_number_of_triples_is_kept_in_any_order(here):
    write_triples('tri.tsv'), write_triples('tri2.tsv')
    number, table = 'data.sentences=20', "data.triples='tri.tsv'"
    for both in ((number, table), (table, number)):
        assert load_experiment('smoke', both)[0].data.sentences == 20
    Path('x.toml').write_text('preset = "smoke"\nseeds = [0]\n[data]\ntriples = "tri.tsv"\n'
                              'sentences = 20\n[sweep]\n"data.triples" = ["tri.tsv", "tri2.tsv"]\n')
    assert [c.data.sentences for c in load_experiment('x.toml')] == [20, 20]
    assert load_experiment('smoke', (table,))[0].data.sentences is None, "a corpus's number"

def test_triples_need_no_dropout_and_views_do(sfr):
    write_triples('tri.tsv')
    words = 'run', 'smoke', '--check', '--set', 'encoder.dropout=0'
    refused(sfr(*words), 'the encoder has no dropout')
    code, out, err = sfr(*words, '--set', "data.triples='tri.tsv'")
    assert code == 0 and 'valid' in out, err

def test_a_check_refuses_what_a_run_would(sfr, here):
    refused(sfr('run', 'smoke', '--check', '--set', "data.triples='nli_for_simcse'"), 'hub')
    SentenceEncoder.from_pretrained('sfr-mini').save_pretrained(here/'short')
    name = here/'short/sentence_bert_config.json'
    name.write_text(json.dumps({'max_seq_length': 8}))
    Path('x.toml').write_text('preset = "smoke"\nseeds = [0]\n[train]\nmeasure_every = 2\n'
                              '[encoder]\nmax_length = 8\n[sweep]\n'
                              '"encoder.name" = ["sfr-mini", "./short"]\n')
    code, _, err = sfr('run', 'x.toml', '--check')
    if code: assert 'Traceback' not in err and len(err.splitlines()) == 1
    done = sfr('run', 'x.toml')
    assert (done[0] == 0) == (code == 0), 'the check says what the run will'

# ---------------------------------------------------------------- what is said at the end

def own_table(name):
    rows = [f'{i%6}\tA dog {i} runs.\tA dog {i*7%13} is running.' for i in range(30)]
    Path(name).write_text('\n'.join(['score\tsentence1\tsentence2', *rows])+'\n')

def test_the_last_line_names_the_sets_that_its_number_is_of(sfr, here):
    own_table('my.tsv')
    rows = '\n'.join(f'{i%2}\tall\tA dog {i} runs.' for i in range(60))
    Path('tr.tsv').write_text(f'label\tsplit\tsentence1\n{rows}\n')
    code, out, err = sfr('evaluate', 'sfr-mini', '--tasks', 'sts,transfer', '--sets',
                         'transfer=tr.tsv')
    assert code == 0, err
    assert 'file' in out.splitlines()[-2].partition('data: ')[2], out
    record = read_record(next(Path('runs').glob('*/record.json')))
    from sfr_repro.evaluate.headlines import scores_line, task_average
    metrics = {'sts/my/test/all/spearman': -.1, 'sts/STS-B/test/all/spearman': .51}
    line = scores_line(metrics, [d.model_dump() for d in record.data])
    assert line.startswith('STS 51.00 (Spearman x 100, STS-B, test)'), line
    assert task_average({('my', 'test'): -.1, ('STS-B', 'test'): .51})[1] == (('STS-B', 'test'),)

def test_a_table_of_the_users_is_raw(sfr):
    own_table('my.tsv')
    assert sfr('evaluate', 'sfr-mini', '--sets', 'sts=my.tsv', '--rendering', 'senteval')[0] == 0
    record = read_record(next(Path('runs').glob('*/record.json')))
    assert [d.rendering for d in record.data] == ['raw']

# ---------------------------------------------------------------- records

@pytest.fixture
def record():
    return read_record(sorted((ROOT/'nbs/records/runs').glob('infonce-*.json'))[0])

def changed(record, **update): return record.model_copy(update=update)

def test_a_record_in_a_folder_is_looked_at_before_it_is_believed(tmp_path, record):
    write_inputs(tmp_path, {'a': 'b'})
    first = next(iter(record.metrics))
    wrong = {'from -1 to 1': changed(record, metrics={first: 7.3}),
             'no metrics': changed(record, metrics={}),
             'a key is task': changed(record, metrics={'foo': .5}),
             'the hash of its config': changed(record, config={}),
             'was not made from what': changed(record, inputs='0'*64)}
    for said, r in wrong.items():
        (tmp_path/'record.json').write_text(r.model_dump_json(by_alias=True))
        with pytest.raises(UserError, match=said): found_record(tmp_path, record.id, record.seed)
    (tmp_path/'record.json').write_text(record.model_dump_json(by_alias=True))
    assert found_record(tmp_path, record.id, record.seed) == record

def test_what_no_table_could_read_is_not_kept(record):
    first = next(iter(record.metrics))
    layer = {'geometry/STS-B/test/layer:abc/anisotropy': .1}
    point = record.trajectory[0].model_copy(update={'metrics': {'foo': .4}})
    selection = record.selection.model_copy(update={'metric': 'foo', 'best_step': point.step})
    data = [record.data[0].model_copy(update={'sha256': 'zz'})]
    wrong = {'a layer is a number': changed(record, metrics={first: .5} | layer),
             'selection.metric is': changed(record, trajectory=[point], selection=selection),
             'names no data': changed(record, data=[]), 'hexadecimal': changed(record, data=data)}
    for said, r in wrong.items(): assert said in record_fault(r), said
    commit = record.code.model_copy(update={'commit': '../../x'})
    assert 'code.commit' in record_fault(changed(record, code=commit))
    assert not record_fault(record)

def test_a_users_file_in_a_model_folder_stays(tmp_path):
    encoder = SentenceEncoder.from_pretrained('sfr-mini')
    encoder.save_pretrained(tmp_path/'model')
    (tmp_path/'model/notes.txt').write_text('mine')
    (tmp_path/'model/figures').mkdir()
    (tmp_path/'model/figures/a.png').write_text('mine')
    (tmp_path/'model/2_results').mkdir()
    like_ours = ['vocabulary_notes.md', 'config_of_mine.json', 'tokenizer.md', 'model-card.txt']
    for name in like_ours: (tmp_path/'model'/name).write_text('mine')
    (tmp_path/'model/model.safetensors.index.json').write_text('{}')    # of an older model
    encoder.save_pretrained(tmp_path/'model')
    assert (tmp_path/'model/notes.txt').read_text() == 'mine'
    assert (tmp_path/'model/figures/a.png').read_text() == 'mine'
    assert not (tmp_path/'model/model.safetensors.index.json').exists()
    with write_folder_whole(tmp_path/'model', ours=MODEL_FILES) as new:
        (new/'config.json').write_text('{}')
    left = sorted(p.name for p in (tmp_path/'model').iterdir())
    assert left == sorted(['config.json', 'figures', 'notes.txt', '2_results', *like_ours])

def test_a_foreign_record_beside_a_model_is_no_obstacle(sfr, here):
    SentenceEncoder.from_pretrained('sfr-mini').save_pretrained(here/'fo/model')
    (here/'fo/record.json').write_text('{"a": 1}')
    assert sfr('evaluate', 'fo/model', '--tasks', 'sts')[0] == 0

# ---------------------------------------------------------------- names and tables

@pytest.mark.parametrize('words', [
    ('evaluate', 'sfr-mini', '--sets', 'sts=~nouser/x.tsv'),
    ('evaluate', 'sfr-mini', '--sets', 'transfer=~nouser/x.tsv'),
    ('evaluate', 'sfr-mini', '--sets', 'retrieval=~nouser/x'),
    ('run', 'smoke', '--set', "data.corpus=['~nouser/x.txt']"),
    ('run', 'smoke', '--set', 'train.select=~nouser/x.tsv'),
    ('run', 'smoke', '--set', 'data.triples=~nouser/x.tsv'),
    ('run', 'smoke', '--set', r'train.select="a\u0000.tsv"'),
    ('compare', '~nouser/x')], ids=lambda words: words[-1])
def test_names_that_lead_nowhere(sfr, words):
    code, out, err = sfr(*words)
    assert code == 2 and 'Traceback' not in err and len(err.strip().splitlines()) == 1, err

def test_endings_and_commas_in_names(sfr):
    own_table('my.TSV'), own_table('a,b.tsv')
    assert sfr('evaluate', 'sfr-mini', '--sets', 'sts=a,b.tsv')[0] == 0
    words = 'run', 'smoke', '--check', '--set', 'train.select=my.TSV'
    assert sfr(*words)[0] == 0

def test_a_column_that_is_there_twice_is_told(sfr):
    Path('my.tsv').write_text('score\tscore\tsentence1\tsentence2\n1\t2\ta dog\ta cat\n')
    refused(sfr('evaluate', 'sfr-mini', '--sets', 'sts=my.tsv'), "may both be 'score'")

def test_a_table_is_no_list_of_texts():
    import pandas as pd
    encoder = SentenceEncoder.from_pretrained('sfr-mini')
    table = pd.DataFrame({'text': ['a dog runs'], 'b': ['x']})
    for wrong in (table, table.to_numpy(), np.array('x')):
        with pytest.raises(EncoderError, match='it must be a list of texts'): encoder.encode(wrong)
    assert encoder.encode(table.text).shape == (1, 256)

def test_a_stamp_that_says_something_else(here, monkeypatch):
    from sfr_repro.core.provenance import stamped_code
    Path('code.json').write_text('[]')
    with pytest.raises(UserError, match='SFR_CODE is'): stamped_code('code.json', here)

# ---------------------------------------------------------------- launchers

def test_a_rank_without_a_launcher_silences_nothing(sfr, monkeypatch):
    monkeypatch.setenv('RANK', '1')
    monkeypatch.delenv('WORLD_SIZE', raising=False)
    code, out, err = sfr('evaluate', 'sfr-mini', '--tasks', 'sts')
    assert code == 0 and 'STS ' in out, (out, err)

def launched(monkeypatch, port, address='127.0.0.1'):
    for k, v in {'WORLD_SIZE': '2', 'RANK': '0', 'MASTER_ADDR': address,
                 'MASTER_PORT': str(port)}.items(): monkeypatch.setenv(k, v)

def test_a_port_in_use_is_told(monkeypatch):
    with socket.create_server(('127.0.0.1', 0)) as server:
        launched(monkeypatch, server.getsockname()[1])
        with pytest.raises(UserError, match='the processes do not meet there'):
            distributed._meeting_place(None, minutes=.05)

def test_processes_that_do_not_come_are_told(monkeypatch):
    with socket.create_server(('127.0.0.1', 0)) as server: port = server.getsockname()[1]
    launched(monkeypatch, port)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(UserError, match='the processes do not meet there'):
        distributed._meeting_place(None, minutes=.05)
    assert signal.getsignal(signal.SIGTERM) == before

@pytest.mark.skipif(shutil.which('kill') is None, reason='needs kill')
def test_a_wait_for_others_can_be_ended(tmp_path):
    import subprocess
    with socket.create_server(('127.0.0.1', 0)) as server: port = server.getsockname()[1]
    env = os.environ | {'WORLD_SIZE': '2', 'RANK': '0', 'MASTER_ADDR': '127.0.0.1',
                        'MASTER_PORT': str(port), 'PYTHONPATH': str(ROOT)}
    program = ('from sfr_repro.train.distributed import join_processes\n'
               'print("waits", flush=True)\njoin_processes()')
    child = subprocess.Popen([sys.executable, '-c', program], env=env, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True)
    assert child.stdout.readline() == 'waits\n'
    try:
        child.communicate(timeout=3)
        raise AssertionError('it ended by itself')
    except subprocess.TimeoutExpired: child.terminate()
    child.communicate(timeout=30)
    assert child.returncode == -signal.SIGTERM

# ---------------------------------------------------------------- folders that vanish

def test_a_card_does_not_bring_back_a_folder_that_has_vanished(here, monkeypatch):
    from sfr_repro.train import cards
    path = run(load_experiment('smoke', ('train.steps=1',))[0], 'runs', progress=False)
    card = cards.card_of(path.parent/'model', 'a/b')
    assert 'AutoModel' in card, 'a transformer and a pooling open in transformers alone'
    def vanish(*args):
        shutil.rmtree(path.parent)
        return card
    monkeypatch.setattr(cards, 'card_of', vanish)
    with pytest.raises(UserError, match='cannot be written'): cards.write_card(path.parent/'model')
    assert not path.parent.exists()

def test_a_model_folder_that_vanishes_while_it_is_opened():
    from sfr_repro.encode.loading import ModelFiles, read_config
    gone = ModelFiles('gone/x/model', 'gone/x/model')
    with pytest.raises(EncoderError, match='gone/x/model: the folder has vanished'):
        read_config(gone)

def test_checkpoints_that_vanish_while_they_are_listed(tmp_path, monkeypatch):
    from sfr_repro.train import checkpoints
    for k in (2, 4, 6): (tmp_path/f'checkpoint-{k}').mkdir()
    real, asked = checkpoints._step, []
    def step(path):
        asked.append(path)
        if len(asked) == 4: shutil.rmtree(tmp_path)         # all are found, none is sorted yet
        return real(path)
    monkeypatch.setattr(checkpoints, '_step', step)
    found = checkpoints.checkpoints(tmp_path)
    assert [p.name for p in found] == ['checkpoint-6', 'checkpoint-4', 'checkpoint-2']
    checkpoints.remove_older(tmp_path/'checkpoint-6')
