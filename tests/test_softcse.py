"SoftCSE from files: every rule and teacher trains; every mistake is one sentence."
import sys
import numpy as np
import pytest
import torch
from sfr_repro.core.config import load_experiment
from sfr_repro.core.errors import UserError
from sfr_repro.core.records import read_record
from sfr_repro.data.mini_sts import load_mini_corpus
from sfr_repro.encode.cache import check_unit_vectors
from sfr_repro.encode.encoder import SentenceEncoder
from sfr_repro.encode.piece_vectors import ppmi_vectors
from sfr_repro.encode.teachers import frozen_teacher, self_teacher, teacher_vectors
from sfr_repro.losses.registry import make_loss
from sfr_repro.losses.softcse import softcse_temperature_energy, softcse_weight_energy
from sfr_repro.results.softcse import comparable_runs, comparison_table, summary, variant
from sfr_repro.train.run import run

pytestmark = pytest.mark.once                              # own sentences only

SMALL = ('train.steps=2', 'train.eval_every=2', 'train.batch=8', 'data.sentences=40',
         'evaluate.tasks=["sts"]')

def small(*overrides): return load_experiment('smoke', (*SMALL, *overrides))[0]

@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('SFR_CACHE', str(tmp_path/'cache'))
    return tmp_path/'cache'

# ---------------------------------------------------------------- training

def test_variants_train_from_their_settings(cache, tmp_path):
    "The model itself, piece vectors, and a checkpoint of the first run as teacher"
    def record(*overrides):
        path = run(small(*overrides), tmp_path/'runs', progress=False)
        return path.parent, read_record(path)
    folder, first = record('loss.name=softcse_weight', 'teacher.name=self')
    assert first.trajectory[-1].step == 2 and first.trajectory[-1].loss > 0
    assert variant(first) == 'W1' and not list(cache.glob('*.vectors'))
    second = record('loss.name=softcse_temperature', 'loss.rule=T2', 'teacher.name=ppmi')[1]
    assert variant(second) == 'T2, teacher ppmi' and len(list(cache.glob('*.vectors'))) == 1
    third = record('loss.name=softcse_weight', 'loss.rule=W4', f'teacher.name={folder/"model"}')[1]
    assert variant(third).startswith('W4, teacher ') and len(list(cache.glob('*.vectors'))) == 2
    assert len({r.trajectory[-1].loss for r in (first, second, third)}) == 3
    runs = comparable_runs([first, second, third])
    table = comparison_table(runs)
    assert len(table) == 3 and set(table['over InfoNCE']) == {'no InfoNCE run with its seeds'}
    assert set(table.state) == {''} and 'there is no verdict' in summary(runs)

def test_one_similarity_for_all_is_infonce(tmp_path):
    "A teacher that says nothing: the same loss bit for bit, as the trainer asks for it"
    h, h_pos = (torch.nn.functional.normalize(torch.randn(9, 5,
        generator=torch.Generator().manual_seed(s)), dim=1) for s in (0, 1))
    dull = frozen_teacher(torch.eye(1, 4).expand(20, 4)*1.)
    rows = list(range(9))
    sim = {'sim_ref': dull(rows)['sim_ref']*.5}
    infonce = make_loss('infonce', tau=.1)(h, h_pos)
    for name, rules in (('softcse_weight', ('W1', 'W3')), ('softcse_temperature', ('T1', 'T2'))):
        for rule in rules:
            assert torch.equal(make_loss(name, tau=.1, rule=rule)(h, h_pos, **sim), infonce), rule
    spread = self_teacher(h, h_pos)
    assert not torch.equal(make_loss('softcse_weight', tau=.1)(h, h_pos, **spread), infonce)

# ---------------------------------------------------------------- mistakes

def said(argv, monkeypatch, capsys):
    "The command line in this process: exit code and what it wrote to stderr"
    from sfr_repro.cli import main
    monkeypatch.setattr(sys, 'argv', ['sfr-repro', *map(str, argv)])
    with pytest.raises(SystemExit) as e: main()
    return e.value.code, capsys.readouterr().err

T1 = ('loss.name=softcse_temperature', 'teacher.name=self')
W1 = ('loss.name=softcse_weight', 'teacher.name=self')
MISTAKES = {
    'temperature of 0': ((*T1, 'loss.tau=0'), 'tau is 0'),
    'negative temperature': ((*W1, 'loss.tau=-0.1'), 'tau is -0.1'),
    'temperatures that reach 0': ((*T1, 'loss.alpha=30', 'loss.control=reversed'),
                                  'temperatures reach 0, it must be below'),
    'negative strength': ((*T1, 'loss.alpha=-1'), 'alpha is -1'),
    'weights that could be negative': (
        (*W1, 'loss.rule=W4', 'loss.alpha=1.5'),
        'alpha is 1.5: it must be a finite number of at least 0 and below 1'),
    'unknown rule': ((*W1, 'loss.rule=W9'), "rule is 'W9': it must be one of"),
    'no teacher': (('loss.name=softcse_weight',), 'it needs sim_ref from a teacher'),
    'a teacher for nobody': (('teacher.name=self',), 'it needs no teacher'),
    'no such teacher': (('loss.name=softcse_weight', 'teacher.name=./nowhere'),
                        'this is no folder with a model'),
}

@pytest.mark.parametrize('name', MISTAKES)
def test_mistakes_are_one_sentence_and_exit_2(name, tmp_path, cache, monkeypatch, capsys):
    settings, wanted = MISTAKES[name]
    code, text = said(['run', 'smoke', '--out', tmp_path/'runs',
                       *(x for s in (*SMALL, *settings) for x in ('--set', s))], monkeypatch,
                       capsys)
    assert code == 2 and wanted in text and 'Traceback' not in text, text
    assert sum(wanted in line for line in text.splitlines()) == 1

def test_a_teacher_that_gives_no_number_is_refused(tmp_path, cache, monkeypatch, capsys):
    monkeypatch.setattr(SentenceEncoder, 'encode',
                        lambda self, sentences, progress=True: np.full((len(sentences), 4), np.nan,
                            np.float32))
    code, text = said(['run', 'smoke', '--out', tmp_path/'runs',
                       *(x for s in (*SMALL, 'loss.name=softcse_weight', 'teacher.name=sfr-mini')
                         for x in ('--set', s))], monkeypatch, capsys)
    assert code == 2 and 'teacher sfr-mini: the vector of sentence 0 is not finite' in text
    assert 'Traceback' not in text
    assert not list(cache.glob('*.vectors'))

def test_vectors_are_checked():
    x = torch.eye(3, 5)
    assert check_unit_vectors(x, 3, 't') is x
    bad = {'not finite': x/0, 'has length 0.5: it must be 1': torch.cat([x[:2], x[2:]/2]),
           'has 3 vectors: the corpus has 4 sentences': x, 'of shape (3,)': x[:, 0]}
    for text, vectors in bad.items():
        with pytest.raises(UserError) as e:
            check_unit_vectors(vectors, 4 if '4' in text else 3, 't')
        assert text in str(e.value) and '\n' not in str(e.value)

def test_weights_and_temperatures_are_checked():
    h = torch.eye(3, 4)
    for weights, text in ((-torch.ones(3, 3), 'weights holds -1'),
                          (torch.zeros(3, 3), 'weights of row 0 sum to 0'),
                          (torch.full((3, 3), float('nan')), 'weights holds nan')):
        with pytest.raises(UserError) as e: softcse_weight_energy(h, h, weights)
        assert text in str(e.value)
    for t in (0., -1., float('nan'), float('inf')):
        with pytest.raises(UserError, match='a temperature must be a finite number above 0'):
            softcse_temperature_energy(h, h, torch.full((3, 3), t))

# ---------------------------------------------------------------- the cache

def test_vectors_are_computed_once_and_belong_to_their_content(cache):
    encoder = SentenceEncoder.from_pretrained('sfr-mini', precision='fp32')
    sentences = load_mini_corpus()[:30]
    first = teacher_vectors(encoder, sentences, progress=False)
    pieces = ppmi_vectors(encoder.tokenizer, sentences, width=8)
    assert len(list(cache.glob('*.vectors'))) == 2
    encoder.encode = None                                             # whoever asks now, fails
    assert torch.equal(teacher_vectors(encoder, sentences, progress=False), first)
    assert torch.equal(ppmi_vectors(encoder.tokenizer, sentences, width=8), pieces)
    # a teacher that was trained further is another teacher
    encoder.model.embeddings.word_embeddings.weight.data[100] += 1
    with pytest.raises(TypeError): teacher_vectors(encoder, sentences, progress=False)
    other = ppmi_vectors(encoder.tokenizer,
                         sentences[:-1] + ['Something else entirely stands here.'], width=8)
    assert not torch.equal(other, pieces)
