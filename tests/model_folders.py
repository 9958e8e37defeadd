"Small model folders made for tests, none of them downloaded, and ways to break them"
import json
import shutil
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, PreTrainedTokenizerFast
from sfr_repro.encode.families import tiny_config
from sfr_repro.encode.weights import model_class

TEXTS = ['Two boats leave the harbour.', 'rain', 'A letter arrived from an old friend in spring.',
         'boats '*50]
WORDS = 'two boats leave the harbour rain a letter from an old friend in spring'.split()
SPECIAL = ['[CLS]', '[PAD]', '[SEP]', '[UNK]', '[MASK]']

def tokenizer(lower=True, pad='[PAD]'):
    "Words, and letters for what is none of them"
    letters = [chr(i) for i in range(33, 127)]
    pieces = dict.fromkeys([*SPECIAL, *letters, *('##'+c for c in letters), *WORDS])
    vocab = {piece: i for i, piece in enumerate(pieces)}
    t = Tokenizer(models.WordPiece(vocab, unk_token='[UNK]'))
    if lower: t.normalizer = normalizers.BertNormalizer(lowercase=True)
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(name, vocab[name]) for name in ('[CLS]', '[SEP]')]
    t.post_processor = processors.TemplateProcessing(single='[CLS] $A [SEP]', special_tokens=ends)
    named = dict(unk_token='[UNK]', cls_token='[CLS]', sep_token='[SEP]', mask_token='[MASK]')
    if pad: named['pad_token'] = pad
    return PreTrainedTokenizerFast(tokenizer_object=t, **named)

def random_model(kind='bert', vocabulary=None, scale=4, **settings):
    "A tiny model with random weights, larger than usual so that vectors differ"
    vocabulary = vocabulary or len(tokenizer())
    config = AutoConfig.for_model(kind, **(tiny_config(kind, vocabulary) | settings))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = model_class(config)(config).eval()
    for p in model.parameters():
        if p.dim() > 1: p.data *= scale
    return model

def plain_folder(path, kind='bert', lower=True, pad='[PAD]', **settings):
    "A model as `transformers` saves it"
    random_model(kind, **settings).save_pretrained(path)
    tokenizer(lower, pad).save_pretrained(path)
    return path

def edit(path, **changes):
    "Change keys of a JSON table; `...` takes one out"
    said = (json.loads(path.read_text()) if path.exists() else {}) | changes
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({k: v for k, v in said.items() if v is not ...}))

def listed_folder(path, *modules, lower=True, **settings):
    "A folder with a `modules.json`: a transformer, and (kind, config, weights) of each module"
    plain_folder(path, lower=lower, **settings)
    said = [('', 'Transformer')]
    for i, (kind, config, weights) in enumerate(modules, 1):
        place = f'{i}_{kind}'
        (path/place).mkdir()
        (path/place/'config.json').write_text(json.dumps(config))
        if weights: save_file(weights, path/place/'model.safetensors')
        said.append((place, kind))
    write_modules(path, said)
    return path

def write_modules(path, said):
    stock = 'sentence_transformers.models.'
    rows = [{'idx': i, 'name': str(i), 'path': place, 'type': stock+kind}
            for i, (place, kind) in enumerate(said)]
    (path/'modules.json').write_text(json.dumps(rows))

def pooling(mode='mean', width=32, **more):
    return 'Pooling', {'word_embedding_dimension': width, 'pooling_mode': mode} | more, None

def dense(into=32, out=16, act='torch.nn.modules.activation.Tanh', **more):
    g = torch.Generator().manual_seed(2)
    weights = {'linear.weight': torch.randn(out, into, generator=g),
               'linear.bias': torch.randn(out, generator=g)}
    config = {'in_features': into, 'out_features': out, 'bias': True, 'activation_function': act}
    return 'Dense', config | more, weights

def layer_norm(width=16):
    g = torch.Generator().manual_seed(3)
    weights = {'norm.weight': torch.rand(width, generator=g), 'norm.bias': torch.zeros(width)}
    return 'LayerNorm', {'dimension': width}, weights

def normalize(): return 'Normalize', {}, None

def dropout(p=.3): return 'Dropout', {'dropout': p}, None

def reference(path, texts=TEXTS, **how):
    "What `sentence_transformers` makes of a folder"
    from sentence_transformers import SentenceTransformer
    model = SentenceTransformer(str(path), device='cpu', model_kwargs={'dtype': torch.float32})
    return model.encode(list(texts), show_progress_bar=False, **how)

# ---------------------------------------------------------------- mutations

PAYLOAD = 'import pathlib; pathlib.Path({marker!r}).write_text("ran")\n'
VALUES = [None, 'x', 0, -1, 3, 1.5, 10**12, True, False, [], {}, float('nan'), '../x', '']
JSONS = ['config.json', 'modules.json', '1_Pooling/config.json', '2_Dense/config.json',
         '3_LayerNorm/config.json', 'sentence_bert_config.json', 'tokenizer_config.json',
         'config_sentence_transformers.json']


class Pickled:
    "Runs code where it is unpickled"
    def __init__(self, code): self.code = code
    def __reduce__(self): return exec, (self.code,)

def one_value(p, rng, code):
    "Another value for a key of a JSON file, or none"
    file = p/rng.choice([f for f in JSONS if (p/f).exists()])
    said = json.loads(file.read_text())
    table = said[rng.integers(len(said))] if isinstance(said, list) else said
    key = sorted(table)[rng.integers(len(table))] if table else 'added'
    value = VALUES[rng.integers(len(VALUES))]
    if rng.random() < .2: table.pop(key, None)
    else: table[key] = value
    file.write_text(json.dumps(said))
    return f'{file.relative_to(p)}: {key} = {value!r}', False

def broken_json(p, rng, code):
    "A JSON file cut short, with a mark, or of another kind"
    file = p/rng.choice([f for f in JSONS if (p/f).exists()])
    text, how = file.read_bytes(), rng.integers(5)
    odd = [text[:len(text)//2], b'\xef\xbb\xbf'+text, b'[]', b'"text"', b'\xff\xfe\x00'+text]
    file.write_bytes(odd[how])
    return f'{file.relative_to(p)} broken in way {how}', False

def lost_file(p, rng, code):
    "A file that is not there"
    files = sorted(f for f in p.rglob('*') if f.is_file() and f.name != 'README.md')
    file = files[rng.integers(len(files))]
    file.unlink()
    needed = file.name in ('tokenizer.json', 'model.safetensors')
    return f'without {file.relative_to(p)}', needed or file.name=='config.json' and file.parent==p

def weights_of(p, rng):
    files = sorted(p.rglob('*.safetensors'))
    return files[rng.integers(len(files))] if files else None

def odd_tensor(p, rng, code):
    "A tensor more, less, of another name or another shape"
    if (file := weights_of(p, rng)) is None: return 'no weights', False
    x, how = load_file(file), rng.integers(5)
    keys = sorted(k for k in x if 'pooler' not in k)
    key = keys[rng.integers(len(keys))]
    if how == 0: x.pop(key)
    if how == 1: x[key+'.more'] = torch.zeros(2)
    if how == 2: x['encoder.layer.7.'+key.split('.')[-1]] = x.pop(key)
    if how == 3: x[key] = torch.zeros(tuple(n+1 for n in x[key].shape))
    if how == 4: x[key] = torch.full_like(x[key], float('nan'))
    save_file(x, file, metadata={'format': 'pt'})
    return f'{file.relative_to(p)}: {key} changed in way {how}', True

def damaged_weights(p, rng, code):
    "Bytes of a weight file's beginning"
    if (file := weights_of(p, rng)) is None: return 'no weights', False
    b = bytearray(file.read_bytes())
    for i in rng.integers(0, 60, 3): b[i] ^= 1 << int(rng.integers(8))
    file.write_bytes(bytes(b[:len(b)//2]) if rng.random() < .3 else bytes(b))
    return f'{file.relative_to(p)} damaged', False

def other_layers(p, rng, code):
    "Another number of layers, heads or tokens"
    n = int(rng.choice([0, -1, 1, 3, 10**9]))
    key = str(rng.choice(['num_hidden_layers', 'vocab_size', 'hidden_size', 'intermediate_size']))
    edit(p/'config.json', **{key: n})
    return f'{key} = {n}', True

def pickled_weights(p, rng, code):
    "A pickle in the place of weights"
    how = rng.integers(3)
    body = Pickled(code)
    if how == 0:
        torch.save(body, p/'x.bin')
        (p/'model.safetensors').unlink(missing_ok=True)
        said = {'metadata': {}, 'weight_map': {'embeddings.word_embeddings.weight': 'x.bin'}}
        (p/'model.safetensors.index.json').write_text(json.dumps(said))
    if how == 1:
        (p/'model.safetensors').unlink(missing_ok=True)
        torch.save(body, p/'pytorch_model.bin')
    if how == 2: torch.save(body, p/'model.safetensors')
    return f'pickle in way {how}', True

def foreign_code(p, rng, code):
    "Python of the folder's own"
    (p/'own.py').write_text(code)
    how = rng.integers(5)
    if how == 0: edit(p/'config.json', model_type='own', auto_map={'AutoConfig': 'own.C',
                                                                  'AutoModel': 'own.M'})
    if how == 1: write_modules(p, [('', 'Transformer'), ('1_Pooling', 'Pooling'), ('', 'x')]); \
        (p/'modules.json').write_text((p/'modules.json').read_text().replace(
            'sentence_transformers.models.x', 'own.Step'))
    if how == 2: edit(p/'tokenizer_config.json', tokenizer_class='Own',
                      auto_map={'AutoTokenizer': ['own.T', None]})
    if how == 3: edit(p/'config.json', attn_implementation='somebody/kernel')
    if how == 4: edit(p/'config.json', transformers_weights='../x.bin')
    return f'foreign code in way {how}', how in (0, 1, 3, 4)

def outside(p, rng, code):
    "A path that leaves the folder"
    how, away = rng.integers(3), str(rng.choice(['../x', '/etc', 'a/../../x', '..']))
    if how == 0 and (p/'modules.json').exists():
        said = json.loads((p/'modules.json').read_text())
        said[-1]['path'] = away
        (p/'modules.json').write_text(json.dumps(said))
        return f'modules.json names {away}', True
    x = load_file(p/'model.safetensors') if (p/'model.safetensors').exists() else {}
    (p/'model.safetensors').unlink(missing_ok=True)
    said = {'metadata': {}, 'weight_map': {k: f'{away}.safetensors' for k in x or 'a'}}
    (p/'model.safetensors.index.json').write_text(json.dumps(said))
    return f'index names {away}', True

def more_tokens(p, rng, code):
    "A tokenizer with more tokens than the embedding"
    t = tokenizer()
    t.add_tokens(['harbourmaster', 'lighthouse'])
    t.save_pretrained(p)
    return 'tokens added', True

def adapter(p, rng, code):
    "An adapter beside the weights"
    said = {'peft_type': 'LORA', 'base_model_name_or_path': str(p), 'r': 2, 'lora_alpha': 8,
            'target_modules': ['query'], 'task_type': 'FEATURE_EXTRACTION'}
    (p/'adapter_config.json').write_text(json.dumps(said))
    return 'an adapter without weights', True

def another_pipeline(p, rng, code):
    "Modules in another order, of another kind, or with other settings"
    if not (p/'modules.json').exists(): return one_value(p, rng, code)
    said, how = json.loads((p/'modules.json').read_text()), rng.integers(4)
    if how == 0: said = [said[i] for i in rng.permutation(len(said))]
    if how == 1: said.pop(int(rng.integers(len(said))))
    if how == 2:
        other = ['WordWeights', 'Normalize', 'CNN', 'LSTM', 'Dropout', 'StaticEmbedding', 'Pooling']
        said[int(rng.integers(1, len(said)))]['type'] = 'sentence_transformers.models.' + \
            str(rng.choice(other))
    if how == 3:
        edit(p/'config_sentence_transformers.json', prompts={'q': 'the harbour '},
             default_prompt_name='q')
        edit(p/'1_Pooling/config.json', include_prompt=bool(rng.random() < .5))
    (p/'modules.json').write_text(json.dumps(said))
    return f'pipeline changed in way {how}', False

def other_reading(p, rng, code):
    "Other settings of the tokenizer and of the pooling, all of them valid"
    mode = str(rng.choice(['cls', 'max', 'mean', 'lasttoken', 'weightedmean']))
    if (p/'1_Pooling').exists(): edit(p/'1_Pooling/config.json', pooling_mode=mode)
    edit(p/'sentence_bert_config.json', max_seq_length=int(rng.integers(5, 60)),
         do_lower_case=bool(rng.random() < .5))
    edit(p/'tokenizer_config.json', model_max_length=int(rng.integers(5, 60)))
    return f'read otherwise, pooled by {mode}', False

MUTATIONS = (one_value, one_value, one_value, broken_json, lost_file, odd_tensor, damaged_weights,
             other_layers, pickled_weights, foreign_code, outside, more_tokens, adapter,
             another_pipeline, other_reading)

def bases(root):
    "Whole folders of several kinds"
    plain_folder(root/'plain')
    plain_folder(root/'roberta', 'roberta')
    listed_folder(root/'mean', pooling('mean'), normalize(), lower=False)
    listed_folder(root/'long', pooling('cls'), dense(), layer_norm(), dropout(), normalize())
    model = random_model()
    headed = {f'bert.{k}': v for k, v in model.state_dict().items()}
    plain_folder(root/'headed')
    save_file(headed | {'cls.predictions.bias': torch.zeros(3)}, root/'headed/model.safetensors',
              metadata={'format': 'pt'})
    return sorted(p for p in root.iterdir() if p.is_dir())

def mutated(root, base, seed, marker):
    "A broken copy of a folder: where it is, what was done, and whether it must be refused"
    rng = np.random.default_rng(seed)
    shutil.copytree(base, path := root/f'{base.name}-{seed}')
    done, refuse = [], False
    for _ in range(1 + int(rng.random() < .3)):
        change = MUTATIONS[rng.integers(len(MUTATIONS))]
        try: what, must = change(path, rng, PAYLOAD.format(marker=str(marker)))
        except (FileNotFoundError, ValueError): continue        # the first change took its file
        done.append(what)
        if refuse := must: break                    # a second change might undo the first
    return path, '; '.join(done), refuse
