"Architectures of transformers: alone or in company, the longest text, no padding token"
import numpy as np
import pytest
import torch
from model_folders import TEXTS, plain_folder, random_model, reference
from sfr_repro.encode.encoder import POOLERS, SentenceEncoder, first_position
from sfr_repro.encode.families import (
    AFTER_PADDING,
    ONE_LENGTH,
    PADDED,
    TINY,
    padding_effect,
    position_limit,
)
from sfr_repro.encode.names import EncoderError

pytestmark = pytest.mark.once

READ = [kind for kind in TINY if kind in (*ONE_LENGTH, *PADDED)]
LONG = [*TEXTS, 'boats '*100, 'a']

def test_at_least_25_families():
    assert len(READ) >= 40 and set(READ) == {*ONE_LENGTH, *PADDED}

@pytest.mark.parametrize('kind', READ)
def test_a_vector_does_not_depend_on_its_company(kind, tmp_path):
    "Each pooler, texts longer than the model reads among them, and no padding token"
    p = plain_folder(tmp_path/'m', kind, pad=None)
    e = SentenceEncoder.from_pretrained(p, precision='fp32')
    assert e.one_length == (kind in ONE_LENGTH) and e.tokenizer.pad_token_id is None
    for pooler in POOLERS:
        e.pooler = pooler
        x = e.encode(LONG, progress=False)
        alone = np.concatenate([e.encode([s], progress=False) for s in LONG])
        assert x.shape == (len(LONG), e.dim)
        np.testing.assert_allclose(x, alone, rtol=0, atol=3e-6*max(1, np.abs(x).max()))

@pytest.mark.parametrize('kind', READ)
def test_the_longest_text_is_cut_at_the_last_position(kind):
    model = random_model(kind)
    limit, begins_later = position_limit(model), kind in AFTER_PADDING
    if limit is None: assert kind == 'xlnet'; return
    assert limit == 64-first_position(model.config) or kind == 'esm'
    assert (limit < 64) == (begins_later or kind == 'esm')
    ids = torch.full((1, limit), 9)
    with torch.no_grad(): model(input_ids=ids, attention_mask=torch.ones_like(ids))
    if begins_later:                            # control: one token more has no position
        ids = torch.full((1, limit+1), 9)
        with pytest.raises((IndexError, RuntimeError)): model(input_ids=ids)

@pytest.mark.parametrize('kind', ['bert', 'roberta', 'modernbert', 'deberta-v2', 'xlnet',
                                  'electra'])
def test_vectors_are_those_of_sentence_transformers(kind, tmp_path):
    p = plain_folder(tmp_path/'m', kind)
    short = TEXTS[:3]                           # it lets RoBERTa read beyond its positions
    x, y = SentenceEncoder.from_pretrained(p, precision='fp32').encode(short, progress=False), \
        reference(p, short)
    np.testing.assert_allclose(x, y, rtol=0, atol=2e-6*max(1, np.abs(y).max()))

def test_padding_is_seen():
    "The control: FNet with padding and BERT"
    assert padding_effect(random_model('fnet'), 1) > .01 > 1e-5 > padding_effect(random_model(), 1)

def test_fnet_is_not_trained_on_texts_of_many_lengths(tmp_path):
    e = SentenceEncoder.from_pretrained(plain_folder(tmp_path/'m', 'fnet'), precision='fp32')
    ids = torch.tensor([[0, 9, 10, 2], [0, 9, 2, 1]])
    assert e.forward(ids, torch.ones_like(ids)).shape == (2, 32)
    with pytest.raises(EncoderError, match='depend on padding'): e.forward(ids, (ids != 1).long())

@pytest.mark.parametrize('kind, settings, said', [
    ('mra', {}, 'no attention without its CUDA kernel'), ('funnel', {}, 'texts of few tokens'),
    ('yoso', {'use_expectation': False}, 'at random'),
    ('big_bird', {'block_size': 4, 'num_random_blocks': 1}, 'as the texts before them decide'),
    ('nystromformer', {'num_landmarks': 8}, 'makes no vectors of texts')])
def test_families_that_are_refused(kind, settings, said, tmp_path):
    if kind == 'nystromformer':
        from unittest import mock
        with mock.patch.dict(TINY, {kind: {}}): p = plain_folder(tmp_path/'m', kind, **settings)
    else: p = plain_folder(tmp_path/'m', kind, **settings)
    with pytest.raises(EncoderError, match=said): SentenceEncoder.from_pretrained(p)

def test_big_bird_with_full_attention_is_read(tmp_path):
    p = plain_folder(tmp_path/'m', 'big_bird', attention_type='original_full')
    x = SentenceEncoder.from_pretrained(p, precision='fp32').encode(LONG, progress=False)
    assert np.isfinite(x).all()
