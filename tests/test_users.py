"What a user of the command line meets: tables, own data, mistakes, cards."
import csv
import io
import json
import numpy as np
import pytest
from conftest import ROOT

RECORDS = ROOT/'nbs/records/runs'

@pytest.fixture
def run(command): return command

def refused(run, args, said, tmp_path):
    "One sentence, exit 2, nothing left"
    before = sorted(tmp_path.rglob('*'))
    code, out, err = run(*args)
    assert code == 2 and said in err and err.startswith('sfr-repro: '), (code, out, err)
    assert len(err.strip().splitlines()) == 1 and not out, (out, err)
    assert sorted(tmp_path.rglob('*')) == before

# ---------------------------------------------------------------- tables

@pytest.mark.once
def test_a_comparison_holds_the_means_of_the_records(run):
    files = sorted(RECORDS.glob('sweep_tau-*.json'))
    code, out, err = run('compare', *files, '--format', 'json')
    rows = json.loads(out)
    assert code == 0 and 'paired by seed' in err and len(rows) == 7, err
    by_id = {}
    for f in files:
        r = json.loads(f.read_text())
        scores = [v for k, v in r['metrics'].items() if k.endswith('/test/all/spearman')]
        assert len(scores) == 7
        tau = str(r['config']['loss']['constants']['tau'])
        by_id.setdefault(tau, []).append(100*sum(scores)/7)
    for row in rows:
        own, first = by_id[row['loss.tau']], by_id[rows[0]['loss.tau']]
        assert row['seeds'] == len(own) and abs(row['mean']-sum(own)/len(own)) < 1e-9
        if row is rows[0]: continue
        assert abs(row['difference']-(sum(own)-sum(first))/len(own)) < 1e-9
        assert row['low'] < row['difference'] < row['high'] and row['verdict'] == 'exploratory'

@pytest.mark.once
def test_each_format_has_each_record(run):
    found = {}
    for name in ('table', 'csv', 'markdown', 'latex', 'json'):
        code, found[name], _ = run('records', 'list', RECORDS, '--format', name)
        assert code == 0
    rows = list(csv.DictReader(io.StringIO(found['csv'])))
    assert [r['id'] for r in rows] == [r['id'] for r in json.loads(found['json'])]
    assert len(rows) > 300
    for name in ('table', 'markdown', 'latex'):
        for r in rows[::40]: assert found[name].count(r['id']) >= 1, name
    assert found['latex'].startswith('Spearman x 100\n\\begin{tabular}')

BAD_TABLES = {
    'unknown format': (('compare', RECORDS, '--format', 'xls'), "format is 'xls'"),
    'no such record': (('compare', 'nowhere'), 'nowhere: there is no such record'),
    'an empty folder': (('compare', '.'), 'holds no record'),
    'unknown task': (('compare', RECORDS/'infonce-d15c5418f84a-s0.json', '--task', 'nli'),
                     "task is 'nli'"),
    'no score of the task': (('compare', RECORDS/'infonce-d15c5418f84a-s0.json', '--task',
                              'retrieval'), 'has no score of retrieval'),
    'a negative size': (('compare', RECORDS/'infonce-d15c5418f84a-s0.json', '--least', '-1'),
                        'least is -1.0'),
    'a list of nothing': (('records', 'list', 'nowhere'), 'there is no such record'),
    'a format of evaluate': (('evaluate', 'sfr-mini', '--format', 'xls'), "format is 'xls'"),
    'a format of analyse': (('analyse', 'sfr-mini', '--format', 'xls'), "format is 'xls'"),
}

@pytest.mark.once
@pytest.mark.parametrize('name', BAD_TABLES)
def test_what_no_table_can_be_made_of(name, run, tmp_path):
    refused(run, *BAD_TABLES[name], tmp_path)

@pytest.mark.once
def test_a_run_ends_with_scores_data_and_path(run, tmp_path):
    code, out, _ = run('run', 'smoke', '--set', 'train.steps=2')
    _, scores, path = out.splitlines()
    assert code == 0 and json.loads((tmp_path/path).read_text())['kind'] == 'train'
    for word in ('STS ', 'mini-sts', 'data: embedded', 'chosen on mini-sts dev'):
        assert word in scores, scores
    code, out, err = run('evaluate', 'sfr-mini', '--format', 'json')
    assert code == 0 and 'data: embedded' in err
    assert json.loads(out)[0]['set'] == 'mini-sts'
    code, out, _ = run('compare', 'runs')
    assert code == 0 and 'smoke-level' in out and 'kind=train' in out, out

# ---------------------------------------------------------------- own data

@pytest.fixture
def own(tmp_path):
    "An experiment with a corpus and a dev set of the user's, in a folder of its own"
    folder = tmp_path/'study'
    folder.mkdir()
    nouns, ways = ('cup', 'sea', 'oven', 'road', 'tent', 'lamp'), ('old', 'new', 'wet', 'red')
    texts = [f'The {n} of the {m} is {how}.' for n in nouns for m in nouns for how in ways]
    (folder/'mine.txt').write_text('\n'.join(texts)+'\n')
    rows = [f'{i%6}\tThe {n} is {how}.\tThe {n} was {how} once.'
            for i, (n, how) in enumerate((n, how) for n in nouns for how in ways)]
    (folder/'mydev.tsv').write_text('\n'.join(['Similarity\ttext1\ttext2', *rows])+'\n')
    (folder/'mine.toml').write_text('preset = "smoke"\n[data]\ncorpus = ["mine.txt"]\n'
        '[train]\nselect = "mydev.tsv"\nbatch = 8\nsteps = 2\neval_every = 1\n')
    return folder

@pytest.mark.once
def test_a_corpus_and_a_dev_set_by_path(run, own, tmp_path):
    code, out, err = run('run', 'study/mine.toml')
    assert code == 0 and 'the checkpoint chosen on mydev.tsv' in out.splitlines()[0], (out, err)
    assert 'chosen on mydev dev' in out.splitlines()[1]
    path, = (tmp_path/'runs').glob('mine-*/record.json')
    r = json.loads(path.read_text())
    assert r['selection']['metric'] == 'sts/mydev/dev/all/spearman'
    assert [d['source'] for d in r['data'][:2]] == ['file', 'file'] and r['data'][0]['rows'] == 144
    inputs = json.loads((path.parent/'inputs.json').read_text())
    assert r['data'][1]['sha256'] in json.dumps(inputs)
    # another content under the same name is another run, and nothing is lost
    before = path.read_bytes()
    text = (own/'mydev.tsv').read_text()
    (own/'mydev.tsv').write_text(text.replace('0\tThe cup', '3\tThe cup', 1))
    code, out, err = run('run', 'study/mine.toml')
    assert code == 2 and 'dev set' in err and '--again' in err, err
    assert path.read_bytes() == before

BAD_FILES = {
    'several faults': ('mydev.tsv', 'score\ttext1\ttext2\nx\tA.\tB.\n1\tA.\n2\tA.\t\n',
                       "line 2 has the score 'x': it must be a number from 0 to 5; "
                       'line 3 has 2 columns, its header has 3; line 4 has an empty sentence2'),
    'no score': ('mydev.tsv', 'text1\ttext2\nA.\tB.\n', "line 1 has no column 'score'"),
    'two scores': ('mydev.tsv', 'gold\trating\ttext1\ttext2\n1\t2\tA.\tB.\n',
                   "'gold' and 'rating', which may both be 'score'"),
    'one score only': ('mydev.tsv', 'score\ttext1\ttext2\n1\tA.\tB.\n1\tC.\tD.\n',
                       'its scores are all the same'),
    'no row of dev': ('mydev.tsv', 'split\tscore\ttext1\ttext2\ntest\t1\tA.\tB.\n',
                      "no row with split 'dev': it has test"),
    'an empty file': ('mydev.tsv', '', "line 1 has no column 'score'"),
    'an empty corpus': ('mine.txt', '\n\n', 'has no sentence'),
    'not UTF-8': ('mydev.tsv', b'score\ttext1\ttext2\n1\tA\xff.\tB.\n', 'is not UTF-8'),
}

@pytest.mark.once
@pytest.mark.parametrize('name', BAD_FILES)
def test_what_is_wrong_with_an_own_file(name, run, own, tmp_path):
    file, content, said = BAD_FILES[name]
    if isinstance(content, str): content = content.encode()
    (own/file).write_bytes(content)
    before = sorted(tmp_path.rglob('*'))
    code, out, err = run('run', 'study/mine.toml')
    assert code == 2 and said in err and len(err.strip().splitlines()) == 1, err
    assert sorted(tmp_path.rglob('*')) == before

@pytest.mark.once
def test_files_that_are_not_there_are_told_together(run, own, tmp_path):
    (own/'mine.txt').unlink(), (own/'mydev.tsv').unlink()
    refused(run, ('run', 'study/mine.toml'), "data.corpus names 'mine.txt': there is no such file; "
            'train.select: ', tmp_path)

@pytest.mark.once
def test_the_identifiers_of_committed_records_stay():
    "A field that nobody set is not hashed; the control is one that is set"
    from dataclasses import replace
    from sfr_repro.core.config import SECTIONS, RunConfig
    from sfr_repro.core.values import with_tuples
    seen = 0
    for f in sorted(RECORDS.glob('*.json')):
        r = json.loads(f.read_text())
        if r['kind'] != 'train': continue
        sections = {k: SECTIONS[k](**v) for k, v in with_tuples(r['config']).items()}
        config = RunConfig(r['experiment']['name'], r['seed'], **sections)
        assert config.id == r['id'], f.name
        seen += 1
    assert seen > 300
    assert replace(config, train=replace(config.train, select='mydev.tsv')).id != config.id

# ---------------------------------------------------------------- encoders in other tools

@pytest.fixture(scope='module')
def encoder():
    from sfr_repro.encode.encoder import SentenceEncoder
    return SentenceEncoder.from_pretrained('sfr-mini', precision='fp32')

TEXTS = ['The cup is on the table.', 'Rain falls.', 'A road by the sea.', 'The lamp.', 'Rain.']

@pytest.mark.once
def test_an_encoder_is_called_as_mteb_calls_it(encoder):
    "mteb 2.26: `EncoderProtocol.encode` has these arguments, and the loader gives dicts of lists"
    from torch.utils.data import DataLoader
    rows = [{'id': str(i), 'text': t, 'title': ''} for i, t in enumerate(TEXTS)]
    given = encoder.encode(DataLoader(rows, batch_size=2), task_metadata=object(), hf_split='test',
                           hf_subset='default', prompt_type=None, batch_size=32,
                           show_progress_bar=False)
    plain = encoder.encode(TEXTS, progress=False)
    assert abs(given-plain).max() < 2e-6*abs(plain).max()
    assert abs(given[::-1]-plain).max() > 1e-3*abs(plain).max(), 'the control: order matters'
    for name in ('encode', 'similarity', 'similarity_pairwise'):
        assert callable(getattr(encoder, name))

@pytest.mark.once
def test_similarities_are_those_of_sentence_transformers(encoder):
    util = pytest.importorskip('sentence_transformers.util')
    import torch
    x = encoder.encode(TEXTS, progress=False)
    torch.testing.assert_close(encoder.similarity(x, x[:2]), util.cos_sim(x, x[:2]))
    torch.testing.assert_close(encoder.similarity_pairwise(x, x[::-1].copy()),
                               util.pairwise_cos_sim(x, x[::-1].copy()))

@pytest.mark.once
def test_vectors_do_not_depend_on_the_batch_size(encoder):
    import numpy as np
    plain = encoder.encode(TEXTS, progress=False, normalize=True)
    for size in (1, 2, 100):
        x = encoder.encode(TEXTS, progress=False, normalize=True, batch_size=size)
        assert x.dtype == np.float32 and x.flags.c_contiguous and abs(x-plain).max() < 2e-6
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match='batch_size is'):
            encoder.encode(TEXTS, batch_size=wrong)
    with pytest.raises(ValueError, match="encode has no option 'convert_to_tensor'"):
        encoder.encode(TEXTS, convert_to_tensor=True)

def test_settings_are_paired_by_seed_wherever_it_lies():
    from sfr_repro.core.records import read_record
    from sfr_repro.results.compare import ComparedSetting, pair_by_seed
    record = read_record(sorted(RECORDS.glob('sweep_tau-*.json'))[0])
    def setting(*seeds): return ComparedSetting({}, {s: record for s in seeds})
    x, y = np.array([[1.], [2.], [3.]]), np.array([[10.], [20.], [30.]])
    found = pair_by_seed(setting(0, 2, 3), x, setting(1, 2, 3), y)
    assert found.tolist() == [[2.-20.], [3.-30.]]
    assert len(pair_by_seed(setting(0, 1, 2), x, setting(3, 4, 5), y)) == 0
