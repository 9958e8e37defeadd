"A model folder is followed as it says, or refused in one sentence"
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from model_folders import (
    TEXTS,
    dense,
    dropout,
    edit,
    layer_norm,
    listed_folder,
    normalize,
    plain_folder,
    pooling,
    random_model,
    reference,
    tokenizer,
    write_modules,
)
from sfr_repro.core.config import load_experiment
from sfr_repro.core.errors import UserError
from sfr_repro.core.records import read_record
from sfr_repro.data.corpus import load_corpus
from sfr_repro.encode.cache import model_key
from sfr_repro.encode.encoder import SentenceEncoder, tokenize, weights_sha256
from sfr_repro.encode.names import EncoderError
from sfr_repro.encode.weights import left_over
from sfr_repro.train.run import run

pytestmark = pytest.mark.once

def opened(path, **how): return SentenceEncoder.from_pretrained(path, precision='fp32', **how)

def vectors(path, texts=TEXTS, **how): return opened(path, **how).encode(texts, progress=False)

def refused(path, *said, **how):
    "One sentence, with each of these words"
    with pytest.raises(UserError) as e: vectors(path, **how)
    assert '\n' not in str(e.value) and all(s in str(e.value) for s in said), str(e.value)

def agree(path, **how):
    x, y = vectors(path), reference(path, **how)
    assert x.shape == y.shape
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-6*max(1, np.abs(y).max()))

# ---------------------------------------------------------------- 1: the pipeline

PIPELINES = {
    'mean': [pooling('mean')], 'cls': [pooling('cls')], 'max': [pooling('max')],
    'normalised': [pooling('mean'), normalize()],
    'dense': [pooling('cls'), dense()], 'wide': [pooling('mean'), dense(32, 48)],
    'residual': [pooling('mean'), dense(32, 32, use_residual=True)],
    'gelu': [pooling('mean'), dense(act='torch.nn.modules.activation.GELU')],
    'linear': [pooling('mean'), dense(act='torch.nn.modules.linear.Identity')],
    'all': [pooling('mean'), dense(), layer_norm(), dropout(), normalize()],
    'old names': [('Pooling', {'word_embedding_dimension': 32, 'pooling_mode_cls_token': True,
                               'pooling_mode_mean_tokens': False}, None)]}

@pytest.mark.parametrize('name', PIPELINES)
def test_vectors_are_those_of_sentence_transformers(name, tmp_path):
    agree(listed_folder(tmp_path/'m', *PIPELINES[name]))

def test_the_comparison_sees_a_module_that_is_left_out(tmp_path):
    "The control: the same folder with its Dense taken off the list"
    p = listed_folder(tmp_path/'m', pooling('mean'), dense(32, 32))
    y = reference(p)
    write_modules(p, [('', 'Transformer'), ('1_Pooling', 'Pooling')])
    assert np.abs(vectors(p)-y).max() > .1

@pytest.mark.parametrize('kind', ['WordWeights', 'StaticEmbedding', 'CLIPModel', 'LSTM', 'CNN',
                                  'BoW', 'WeightedLayerPooling', 'Router'])
def test_other_modules_are_refused_by_name(kind, tmp_path):
    p = listed_folder(tmp_path/'m', pooling('mean'), normalize())
    write_modules(p, [('', 'Transformer'), ('1_Pooling', 'Pooling'), ('2_Normalize', kind)])
    refused(p, kind)

def test_own_classes_are_refused_and_not_run(tmp_path):
    p = listed_folder(tmp_path/'m', pooling('mean'))
    (p/'own.py').write_text('raise SystemExit("ran")')
    said = json.loads((p/'modules.json').read_text())
    said[0]['type'] = 'own.Transformer'
    (p/'modules.json').write_text(json.dumps(said))
    refused(p, "'own.Transformer'", 'not followed')

def test_the_list_is_above_the_note(tmp_path):
    p = listed_folder(tmp_path/'m', pooling('cls'))
    edit(p/'config.json', sfr_repro={'pooler': 'mean', 'precision': 'fp32'})
    assert opened(p).pooler == 'cls'
    agree(p)
    (p/'modules.json').unlink()
    shutil.rmtree(p/'1_Pooling')
    assert opened(p).pooler == 'mean'                 # control: without the list the note counts
    edit(p/'config.json', sfr_repro={'pooler': 'sum'})
    refused(p, "'sum'")

def test_a_pooling_may_lie_anywhere_and_must_be_there(tmp_path):
    p = listed_folder(tmp_path/'m', pooling('cls'))
    (p/'1_Pooling').rename(p/'elsewhere')
    refused(p, '1_Pooling/config.json, is not there', 'pooler=')
    assert opened(p, pooler='max').pooler == 'max'
    write_modules(p, [('', 'Transformer'), ('elsewhere', 'Pooling')])
    agree(p)

@pytest.mark.parametrize('mode', ['lasttoken', 'weightedmean', ['cls', 'max']])
def test_other_poolings_are_refused_unless_one_is_given(mode, tmp_path):
    p = listed_folder(tmp_path/'m', pooling(mode))
    refused(p, 'pools in a way of its own', 'pooler=')
    assert np.isfinite(vectors(p, pooler='mean')).all()

def test_a_pooling_that_nothing_names(tmp_path):
    p = plain_folder(tmp_path/'m')
    edit(p/'1_Pooling/config.json', pooling_mode='mean')
    agree(p)
    edit(p/'1_Pooling/config.json', pooling_mode='cls')
    refused(p, 'no modules.json names it', 'pooler=')

def test_longest_text_and_case(tmp_path):
    p = listed_folder(tmp_path/'m', pooling('mean'), lower=False)
    edit(p/'sentence_bert_config.json', max_seq_length=8, do_lower_case=False)
    assert opened(p).max_length == 8
    agree(p)
    before = vectors(p)
    edit(p/'sentence_bert_config.json', max_seq_length=60, do_lower_case=True)
    agree(p)
    assert np.abs(vectors(p)-before).max() > .1             # control: both settings matter
    edit(p/'sentence_bert_config.json', query_length=8)
    refused(p, 'query_length', 'not followed')

@pytest.mark.parametrize('pooled', [True, False])
@pytest.mark.parametrize('mode', ['cls', 'mean', 'max'])
def test_prompts(mode, pooled, tmp_path):
    p = listed_folder(tmp_path/'m', pooling(mode, include_prompt=pooled))
    bare = vectors(p)
    edit(p/'config_sentence_transformers.json', prompts={'q': 'an old harbour ', 'd': 'rain '},
         default_prompt_name='q')
    agree(p)
    e = opened(p)
    for name in ('q', 'd'):
        y = reference(p, prompt_name=name)
        x = e.encode(TEXTS, progress=False, prompt_name=name)
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-6*np.abs(y).max())
    assert np.abs(e.encode(TEXTS, progress=False)-bare).max() > .1
    with pytest.raises(EncoderError, match="prompts of this model are 'q', 'd'"):
        e.encode(TEXTS, prompt_name='z')

def test_a_cut_is_followed_and_saved(tmp_path):
    p = listed_folder(tmp_path/'m', pooling('mean'), dense(), normalize())
    edit(p/'config_sentence_transformers.json', truncate_dim=5)
    agree(p)
    e = opened(p)
    assert e.dim == 5
    e.save_pretrained(tmp_path/'again')
    np.testing.assert_array_equal(vectors(tmp_path/'again'), vectors(p))

def test_saving_keeps_the_pipeline(tmp_path):
    p = listed_folder(tmp_path/'m', *PIPELINES['all'])
    edit(p/'config_sentence_transformers.json', prompts={'q': 'rain '}, default_prompt_name='q')
    e = opened(p)
    before = weights_sha256(e.model), model_key(e)
    e.save_pretrained(tmp_path/'again')
    assert (weights_sha256(e.model), model_key(e)) == before
    np.testing.assert_array_equal(vectors(tmp_path/'again'), vectors(p))
    agree(tmp_path/'again')
    assert not any(k.startswith('sfr_') for k in load_file(tmp_path/'again/model.safetensors'))

def test_each_part_of_a_pipeline_is_in_the_key(tmp_path):
    keys = [model_key(opened(listed_folder(tmp_path/str(i), *PIPELINES[name])))
            for i, name in enumerate(('mean', 'normalised', 'dense', 'gelu', 'all'))]
    top = tmp_path/'0/config_sentence_transformers.json'
    edit(top, prompts={'q': 'a '}, default_prompt_name='q')
    keys.append(model_key(opened(tmp_path/'0')))
    assert len(set(keys)) == len(keys)

def test_a_pipeline_trains_as_a_whole(tmp_path):
    e = opened(listed_folder(tmp_path/'m', *PIPELINES['all']))
    ids, mask = torch.tensor([[0, 9, 10, 2], [0, 9, 2, 1]]), torch.tensor([[1]*4, [1, 1, 1, 0]])
    e.forward(ids, mask)[:, 0].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in e.steps.parameters())

# ---------------------------------------------------------------- offline

def in_cache(root, name, folder, absent=()):
    "A folder in a hub cache, with files that are known not to be there"
    place, revision = root/('models--'+name.replace('/', '--')), 'b'*40
    shutil.copytree(folder, place/'snapshots'/revision)
    (place/'refs').mkdir()
    (place/'refs/main').write_text(revision)
    for file in absent:
        mark = place/'.no_exist'/revision/file
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()

OFFLINE = '''
import sys, warnings
from sfr_repro.core.errors import UserError
from sfr_repro.encode.encoder import SentenceEncoder
for name, pooler in (a.split('=') for a in sys.argv[1:]):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        try:
            e = SentenceEncoder.from_pretrained(name, pooler=pooler or None, precision='fp32')
            said = [str(w.message) for w in told]
            print('opened', e.pooler, e.dim, *[s for s in said if 'cache' in s])
        except UserError as e: print('refused', e)
'''

def test_what_the_cache_lacks_is_told(tmp_path):
    cache = tmp_path/'hub'
    optional = ('modules.json', 'adapter_config.json', 'tokenizer_config.json', 'config.json')
    whole = listed_folder(tmp_path/'whole', pooling('cls'), dense())
    in_cache(cache, 'a/whole', whole)
    (whole/'1_Pooling/config.json').unlink()
    in_cache(cache, 'a/no-pooling', whole)
    shutil.rmtree(whole/'2_Dense')
    in_cache(cache, 'a/no-dense', whole)
    plain = plain_folder(tmp_path/'plain')
    in_cache(cache, 'a/plain', plain)
    in_cache(cache, 'a/known', plain, [f for f in optional if not (plain/f).exists()]
             + ['1_Pooling/config.json'])
    env = {**os.environ, 'HF_HUB_OFFLINE': '1', 'HF_HUB_CACHE': str(cache), 'SFR_DATA': 'none'}
    asked = ['a/whole=', 'a/no-pooling=', 'a/no-pooling=mean', 'a/no-dense=mean', 'a/plain=',
             'a/plain=mean', 'a/known=', 'a/nothing=']
    done = subprocess.run([sys.executable, '-c', OFFLINE, *asked], env=env, capture_output=True,
                          text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(asked), done.stderr
    assert lines[0].startswith('opened cls 16')
    assert lines[1].startswith('refused')
    assert '1_Pooling/config.json, is not there in the cache' in lines[1]
    assert lines[2].startswith('opened mean 16')
    assert lines[3].startswith('refused') and '2_Dense/config.json is not there' in lines[3]
    assert lines[4].startswith('refused')
    assert 'does not say whether it has a modules.json' in lines[4]
    assert lines[5].startswith('opened mean 32') and 'modules.json' in lines[5]
    assert lines[6] == 'opened mean 32'                  # control: what is known is not told
    assert lines[7].startswith('refused') and 'Hugging Face hub or its cache' in lines[7]

# ---------------------------------------------------------------- 2: parts that must be there

@pytest.mark.parametrize('kind', ['bert', 'roberta', 'albert', 'mpnet'])
def test_a_missing_tokenizer_is_refused(kind, tmp_path):
    settings = {'embedding_size': 32} if kind == 'albert' else {}
    p = plain_folder(tmp_path/'m', kind, **settings)
    assert vectors(p).shape == (4, 32)                                              # control
    for file in ('tokenizer.json', 'tokenizer_config.json'): (p/file).unlink()
    refused(p, 'has no tokenizer')

def test_more_tokens_than_rows_are_refused(tmp_path):
    p, t = plain_folder(tmp_path/'m'), tokenizer()
    t.add_tokens(['lighthouse'])
    t.save_pretrained(p)
    refused(p, f'a token number {len(t)-1}', f'{len(t)-1} rows')

@pytest.mark.parametrize('layers', [0, -1, 1, 3, 10**9])
def test_layers_of_the_file_are_those_of_the_config(layers, tmp_path):
    p = plain_folder(tmp_path/'m')
    edit(p/'config.json', num_hidden_layers=layers)
    refused(p, str(p))

def test_every_weight_is_used_and_none_is_made_up(tmp_path):
    p = plain_folder(tmp_path/'m')
    x, y = load_file(p/'model.safetensors'), vectors(p)
    def write(**tensors): save_file(tensors, p/'model.safetensors', metadata={'format': 'pt'})
    write(**x, **{'encoder.layer.2.output.dense.bias': torch.zeros(32)})
    refused(p, 'no place', 'encoder.layer.2.output.dense.bias')
    write(**{k: v for k, v in x.items() if k != 'encoder.layer.1.output.dense.bias'})
    refused(p, 'lack or misfit')
    write(**{k: v for k, v in x.items() if 'pooler' not in k})
    np.testing.assert_array_equal(vectors(p), y)
    head = {'cls.predictions.bias': torch.zeros(3),
            'bert.embeddings.position_ids': torch.arange(64)}
    write(**{f'bert.{k}': v for k, v in x.items()}, **head)
    np.testing.assert_array_equal(vectors(p), y)
    write(**{f'bert.{k}': v for k, v in x.items()},
          **{'bert.encoder.layer.2.output.dense.bias': torch.zeros(32)})
    refused(p, 'no place', 'bert.encoder.layer.2')
    assert left_over(random_model(), ['pooler.dense.bias', 'x'], ['x']) == ['x']

def test_an_adapter_is_applied_or_refused(tmp_path):
    p = plain_folder(tmp_path/'m')
    x = vectors(p)
    said = {'peft_type': 'LORA', 'base_model_name_or_path': str(p), 'r': 4, 'lora_alpha': 64,
            'target_modules': ['query'], 'task_type': 'FEATURE_EXTRACTION'}
    (p/'adapter_config.json').write_text(json.dumps(said))
    name = 'base_model.model.encoder.layer.{}.attention.self.query.lora_{}.weight'
    low = {name.format(i, n): torch.randn(s) for i in (0, 1)
           for n, s in (('A', (4, 32)), ('B', (32, 4)))}
    save_file(low, p/'adapter_model.safetensors')
    if find_spec('peft') is None: refused(p, 'needs the package peft'); return
    assert np.abs(vectors(p)-x).max() > .01
    base = load_file(p/'model.safetensors')
    for i in (0, 1):
        w = low[name.format(i, 'B')] @ low[name.format(i, 'A')]*16
        base[f'encoder.layer.{i}.attention.self.query.weight'] += w
    adapted = vectors(p)
    (p/'adapter_config.json').unlink()
    save_file(base, p/'model.safetensors', metadata={'format': 'pt'})
    np.testing.assert_allclose(adapted, vectors(p), rtol=0, atol=1e-5)

# ---------------------------------------------------------------- 3: safetensors, inside the folder

class Evil:
    def __init__(self, path): self.path = path
    def __reduce__(self): return Path.touch, (self.path,)

@pytest.mark.parametrize('shard', ['x.bin', '../x.safetensors', '/tmp/x.safetensors',
                                   'a/../../x.safetensors'])
def test_shards_are_safetensors_inside_the_folder(shard, tmp_path):
    p, marker = plain_folder(tmp_path/'m'), tmp_path/'ran'
    x = load_file(p/'model.safetensors')
    (p/'model.safetensors').unlink()
    torch.save(Evil(marker), p/'x.bin')
    save_file(x, tmp_path/'x.safetensors')
    said = {'metadata': {}, 'weight_map': dict.fromkeys(x, shard)}
    (p/'model.safetensors.index.json').write_text(json.dumps(said))
    refused(p, 'model.safetensors.index.json names', repr(shard))
    assert not marker.exists()
    torch.load(p/'x.bin', weights_only=False)
    assert marker.exists()                                  # control: the pickle would have run

def test_a_pickle_beside_or_instead_of_weights_is_not_opened(tmp_path):
    p, marker = plain_folder(tmp_path/'m'), tmp_path/'ran'
    torch.save(Evil(marker), p/'pytorch_model.bin')
    assert vectors(p).shape == (4, 32)
    torch.save(Evil(marker), p/'model.safetensors')
    refused(p, 'model.safetensors cannot be read')
    (p/'model.safetensors').unlink()
    refused(p, 'safetensors only')
    assert not marker.exists()

# ---------------------------------------------------------------- 5: dropout

@pytest.mark.parametrize('kind, count', [('bert', 7), ('modernbert', 4), ('deberta-v2', 6),
                                         ('xlnet', 6), ('distilbert', 5), ('electra', 7)])
def test_every_dropout_is_set(kind, count, tmp_path):
    from sfr_repro.encode.loading import config_dropouts, dropout_places
    p = plain_folder(tmp_path/'m', kind, scale=1)
    e = opened(p, dropout=.37)
    places = dropout_places(e.model)
    assert len(places) >= count and {getattr(m, a) for m, a in places} == {.37}
    named = config_dropouts(e.model.config)
    assert named and {getattr(e.model.config, a) for a in named} == {.37}
    inside = {id(m) for m, _ in places}
    assert all(id(m) in inside for m in e.model.modules() if isinstance(m, torch.nn.Dropout))
    assert {getattr(m, a) for m, a in dropout_places(opened(p).model)} != {.37}       # control

def test_equal_views_stop_the_training(tmp_path):
    p = plain_folder(tmp_path/'m', 'albert', embedding_size=16, hidden_dropout_prob=0.,
                     attention_probs_dropout_prob=0.)
    name = f'encoder.name={json.dumps(str(p))}'
    config, = load_experiment('smoke', (name, "train.precision='fp32'"))
    with pytest.raises(UserError, match='the two views of a batch are equal'):
        run(config, tmp_path/'runs', progress=False)
    assert not list((tmp_path/'runs').rglob('record.json'))
    config, = load_experiment('smoke', (name, "train.precision='fp32'", 'encoder.dropout=0.1'))
    assert read_record(run(config, tmp_path/'runs', progress=False)).status == 'complete'

# ---------------------------------------------------------------- 6: texts

@pytest.mark.parametrize('blank', ['\u00a0', '\u3000', '\u2003 \t', '\ufeff', '\u200b'])
def test_blank_lines_are_no_sentences(blank, tmp_path):
    lines = [f'the boat number {i} leaves' for i in range(6)]
    (tmp_path/'a.txt').write_bytes('\n'.join(f'{s}\n{blank}' for s in lines).encode())
    assert load_corpus(str(tmp_path/'a.txt')).sentences == lines
    (tmp_path/'a.txt').write_bytes(f'{blank}x\n'.encode() + '\n'.join(lines).encode())
    assert len(load_corpus(str(tmp_path/'a.txt')).sentences) == 7                    # control

@pytest.mark.parametrize('wrong', ['one text', (s for s in ('a', 'b')), {'a': 1}, None, b'bytes'])
def test_what_is_no_list_of_texts(wrong):
    with pytest.raises(EncoderError, match='it must be a list of texts'):
        opened('sfr-mini').encode(wrong, progress=False)

def test_a_length_without_room_for_a_token():
    t = opened('sfr-mini').tokenizer
    assert len(tokenize(t, ['boats '*50], 3)[0]) == 3
    for n in (2, 1, 0, -1):
        with pytest.raises(EncoderError, match=f'max_length is {n}'): tokenize(t, ['boats'], n)

def test_a_vector_is_finite_or_told(tmp_path):
    p = plain_folder(tmp_path/'m')
    x = load_file(p/'model.safetensors')
    x['encoder.layer.0.output.dense.bias'][3] = float('inf')
    save_file(x, p/'model.safetensors', metadata={'format': 'pt'})
    refused(p, 'sentence 0', 'not finite')
    q = plain_folder(tmp_path/'n')
    t = tokenizer()
    t.backend_tokenizer.post_processor = None
    t.save_pretrained(q)
    with pytest.raises(EncoderError, match="sentence 1 is '': it has no token"):
        vectors(q, ['rain', ''])
    assert np.isfinite(vectors(q, ['rain', 'a'])).all()

# ---------------------------------------------------------------- 8: no traceback

SIZES = [('num_attention_heads', 0), ('hidden_size', None), ('hidden_size', 'wide'),
         ('vocab_size', -5), ('vocab_size', 10**12), ('intermediate_size', 10**13),
         ('num_hidden_layers', 2.5), ('max_position_embeddings', 10**11), ('num_labels', 10**12),
         ('hidden_act', 'no such'), ('layer_norm_eps', 'x'), ('model_type', 3), ('model_type', ...),
         ('max_position_embeddings', 0)]

@pytest.mark.parametrize('key, value', SIZES)
def test_sizes_that_are_none(key, value, tmp_path):
    p = plain_folder(tmp_path/'m')
    edit(p/'config.json', **{key: value})
    refused(p, str(p))

@pytest.mark.parametrize('file', ['config.json', 'modules.json', '1_Pooling/config.json',
    'sentence_bert_config.json', 'config_sentence_transformers.json', 'tokenizer_config.json',
    'tokenizer.json'])
@pytest.mark.parametrize('text', ['{', '', '[]', '"x"', '\xff', '{"a": '+'['*100_000])
def test_broken_files(file, text, tmp_path):
    p = listed_folder(tmp_path/'m', pooling('cls'))
    (p/file).write_bytes(text.encode('latin-1'))
    refused(p, str(p))

def test_byte_order_marks(tmp_path):
    p = listed_folder(tmp_path/'m', pooling('cls'))
    y = vectors(p)
    for file in ('modules.json', '1_Pooling/config.json'):
        (p/file).write_bytes(b'\xef\xbb\xbf'+(p/file).read_bytes())
    np.testing.assert_array_equal(vectors(p), y)
    (p/'config.json').write_bytes(b'\xef\xbb\xbf'+(p/'config.json').read_bytes())
    refused(p, 'cannot be read')

@pytest.mark.parametrize('name', ['x'*300, 'a/'+'x'*300, '', ' ', 'a\0b', '../nowhere', 'a b/c'])
def test_names_that_are_none(name): refused(name)

AS_NOBODY = ['setpriv', '--reuid=54321', '--regid=54321', '--clear-groups',
             '--inh-caps=+dac_read_search', '--ambient-caps=+dac_read_search']
EVALUATE = ['evaluate', 'sfr-mini', '--tasks', 'sts', '--out', 'runs']

ROOT = os.getuid() == 0 and shutil.which('setpriv')

@pytest.mark.skipif(not ROOT, reason='needs root and setpriv')
@pytest.mark.parametrize('home', [None, '/'])
def test_a_user_without_home(home, tmp_path):
    if subprocess.run([*AS_NOBODY, 'true'], capture_output=True).returncode:
        pytest.skip('this machine lets root become no other user')
    out = tmp_path/'out'
    out.mkdir(mode=0o777)
    out.chmod(0o777)
    env = {k: v for k, v in os.environ.items() if k not in ('HOME', 'USER', 'LOGNAME', 'SFR_CACHE')}
    env |= {'SFR_DATA': 'none', 'HF_HUB_OFFLINE': '1', 'OMP_NUM_THREADS': '1'}
    env |= {'HOME': home} if home else {}
    code = 'from sfr_repro.cli import main; main()'
    done = subprocess.run([*AS_NOBODY, sys.executable, '-c', code, *EVALUATE], env=env, cwd=out,
                          capture_output=True, text=True)
    assert done.returncode == 0 and list(out.rglob('record.json')), done.stderr[-800:]
    assert 'vectors are not kept' in done.stderr and 'SFR_CACHE' in done.stderr
