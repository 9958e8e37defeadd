"Collections, exact search and its measures: made-up ones always, the real ones where they are"
import math
import zlib
from importlib.util import find_spec
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from sfr_repro.data.retrieval import (
    HUB_RETRIEVAL,
    LEFT_OUT,
    RERANKING,
    RETRIEVAL_COUNTS,
    RETRIEVAL_SETS,
    load_retrieval,
    retrieval_set,
    retrieval_sets,
)
from sfr_repro.data.sources import DataError, Source, find_folder
from sfr_repro.evaluate.alignment import alignment, uniformity
from sfr_repro.evaluate.retrieval import (
    MEASURES,
    evaluate_retrieval,
    ranking_measures,
    rerank,
    search,
    unit64,
)

FOLDER = find_folder()[0]
needs_folder = pytest.mark.skipif(FOLDER is None or not (FOLDER/"retrieval").is_dir(),
                                  reason="no data folder with collections")
needs_library = pytest.mark.skipif(find_spec("pytrec_eval") is None,
                                   reason="pytrec-eval-terrier is not installed")

def words(sentences, D=512):
    "Bags of hashed words and a little of everything: no vector is zero, the same on every machine"
    x = np.full((len(sentences), D), .01, np.float32)
    for i,s in enumerate(sentences):
        for w in s.lower().split(): x[i, zlib.crc32(w.encode("utf-8","surrogatepass")) % D] += 1
    return x

def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name,lines in files.items():
        (folder/f"{name}.tsv").write_text("\n".join(lines)+"\n", encoding="utf-8")
    return str(folder)

def small(folder, qrels=("1\ta\t1",), queries=("1\tWhere is tin?",),
          corpus=("a\tTin\tmelts.","b\t\tIron.")):
    return write(folder, corpus=["docid\ttitle\ttext",*corpus], queries=["qid\ttext",*queries],
                 qrels=["qid\tdocid\trel",*qrels])

# --- data -----------------------------------------------------------------------------------------

BAD = {"an unknown document": (dict(qrels=("1\tz\t1",)),
                               "qrels.tsv line 2 judges the document 'z', which own does not have"),
       "an unknown query": (dict(qrels=("1\ta\t1","9\ta\t1")),
                            "qrels.tsv line 3 judges for the query '9'"),
       "an empty query": (dict(queries=("1\t  ",)), "queries.tsv line 2 has an empty query"),
       "a grade below 0 alone": (dict(qrels=("1\ta\t-1",)), "no query with a judgement above 0"),
       "a word for a grade": (dict(qrels=("1\ta\tyes",)), "qrels.tsv line 2 has the grade 'yes'"),
       "a document twice": (dict(corpus=("a\t\tTin.","a\t\tIron.")),
                            "corpus.tsv line 3 has the identifier 'a', as a row before it has"),
       "no document": (dict(corpus=()), "own has no document"),
       "a grade beyond 31 bits": (dict(qrels=(f"1\ta\t{2**31}",)),
                                  "qrels.tsv line 2 has the grade '2147483648': it must be below "
                                  "2**31"),
       "a grade of 5000 digits": (dict(qrels=("1\ta\t"+"9"*5000,)),
                                  "qrels.tsv line 2 has the grade '999"),
       "nothing of use": (dict(qrels=("1\ta\t0",)), "own has no query with a judgement above 0"),
       "a column short": (dict(queries=("1",)), "queries.tsv line 2 has 1 columns"),
       "two grades": (dict(qrels=("1\ta\t1","1\ta\t2")),
                      "qrels.tsv line 3 judges the document 'a' for the query '1' a second time")}

@pytest.mark.parametrize("kind", BAD)
def test_bad_rows_are_named_by_file_and_line(kind, tmp_path):
    change,said = BAD[kind]
    with pytest.raises(DataError) as e: load_retrieval(small(tmp_path/"own", **change))
    assert said in str(e.value) and "\n" not in str(e.value)

def test_any_folder_by_its_path(tmp_path):
    own = load_retrieval(small(tmp_path/"own"))
    assert (own.docs, own.queries, own.judged, own.source) == (["Tin melts.","Iron."],
                                                               ["Where is tin?"], [{0:1}], "file")
    with pytest.raises(DataError, match="nowhere is not there: its folder holds own"):
        load_retrieval(str(tmp_path/"nowhere"))
    assert str(tmp_path) not in str(own.describe())
    assert load_retrieval(tmp_path/"own").docs == own.docs
    assert evaluate_retrieval(words, sets=tmp_path/"own")["own"] > 0
    for name in ("", " "):
        with pytest.raises(DataError, match="the name of a collection is empty"):
            load_retrieval(name)

def test_a_name_of_the_tables_is_not_for_a_set_of_ones_own(tmp_path):
    with pytest.raises(DataError, match="a set of your own needs another name"):
        load_retrieval(small(tmp_path/"cisi"))

def test_a_folder_offers_the_four_or_else_what_it_holds(tmp_path):
    small(tmp_path/"retrieval/mine")
    assert retrieval_sets(tmp_path) == ("mine",)
    small(tmp_path/"retrieval/cisi")
    assert retrieval_sets(tmp_path) == RETRIEVAL_SETS

def test_a_repeated_candidate_takes_one_place():
    docs = [("r","a","tin"), ("r","b","lead")]
    own = retrieval_set("own", docs, [("r","q","lead?")], [("r","q","b",1)],
                        candidates=dict(q=["a"]*10+["b"]))
    assert own.candidates == [[0,1]]

@needs_library
def test_a_stroke_in_a_name_leaves_the_keys_whole():
    result = evaluate_retrieval(words,
                                sets=retrieval_set("a/b", [("r","d","tin"), ("r","e","lead")],
                                                   [("r","q","tin?")], [("r","q","d",1)]))
    assert set(result.to_metrics()) == {f"retrieval/a.b/test/all/{m}" for m in MEASURES}

def test_the_set_that_is_left_out_is_refused_by_name_and_not_offered(tmp_path):
    (tmp_path/"retrieval").mkdir()
    assert set(RERANKING) <= set(retrieval_sets(Source("hub")))
    assert not set(LEFT_OUT) & {*HUB_RETRIEVAL, *retrieval_sets(Source("hub"))}
    for source in (Source("hub"), Source("hub", tmp_path), tmp_path):
        with pytest.raises(DataError,
                           match="MindSmallReranking cannot be had: its repository has 97 million"):
            load_retrieval("MindSmallReranking", source)

def test_a_rerank_file_with_repeated_candidates(tmp_path):
    head = "split\tqid\tlabel\tquestion\tsentence"
    own = load_retrieval(write(tmp_path/"own",
                               rerank=[head, "test\t1\t0\tWhen?\tNow.", "test\t1\t1\tWhen?\tNow.",
                                       "test\t1\t0\tWhen?\tNever.", "dev\t9\t1\tWho?\tI."]))
    assert (own.docs, own.candidates, own.judged) == (["Now.","Never."], [[0,1]], [{0:1,1:0}])
    with pytest.raises(DataError, match="line 3 has another question for '1'"):
        load_retrieval(write(tmp_path/"own",
                             rerank=[head, "test\t1\t1\tWhen?\tNow.", "test\t1\t0\tWho?\tI."]))
    with pytest.raises(DataError, match="has no row with split 'test'"):
        load_retrieval(write(tmp_path/"own", rerank=[head, "dev\t1\t1\tWhen?\tNow."]))

def test_hub_ids_are_pinned_and_offline_is_one_sentence(monkeypatch):
    assert all(len(h.revision)==40
               for h in HUB_RETRIEVAL.values()) and set(RERANKING) <= set(HUB_RETRIEVAL)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1"); monkeypatch.setenv("SFR_DATA", "none")
    assert retrieval_sets() == ()
    for name in ("cisi","SciFact"):
        with pytest.raises(DataError,
                           match=f"{name} cannot be had: the source is embedded .*which has no "
                                 f"collection to search"):
            load_retrieval(name)

def test_hub_sets_from_a_mirror(tmp_path):
    from datasets import Dataset
    place = tmp_path/HUB_RETRIEVAL["SciFact"].repo; place.mkdir(parents=True)
    tables = dict(corpus=[dict(_id="4", title="Tin", text="melts."),
                          dict(_id="7", title="", text="Iron.")],
                          queries=[dict(_id="1", text="tin?"), dict(_id="2", text="lead?")],
                          default=[{"query-id":"1","corpus-id":"4","score":1}])
    card = "---\nconfigs:\n"
    for c in tables:
        card += f"- config_name: {c}\n  data_files:\n"
        card += f"  - split: {c if c!='default' else 'test'}\n    path: {c}.parquet\n"
    (place/"README.md").write_text(card+"---\n")
    for c,rows in tables.items(): Dataset.from_list(rows).to_parquet(place/f"{c}.parquet")
    found = load_retrieval("SciFact", Source("hub", tmp_path))
    assert (found.docs, found.queries, found.judged, found.source) == (["Tin melts.","Iron."],
                                                                       ["tin?"], [{0:1}],
                                                                       "mirror mteb/scifact")
    for grade,said in ((.5,"0.5"), (None,"None"), (math.nan,"nan"), (2.**40,"1099511627776")):
        Dataset.from_list([{"query-id":"2","corpus-id":"4","score":2.},
                           {"query-id":"1","corpus-id":"4",
                            "score":grade}]).to_parquet(place/"default.parquet")
        with pytest.raises(DataError, match=f"mirror mteb/scifact row 2 has the grade {said}: "):
            load_retrieval("SciFact", Source("hub", tmp_path))
    Dataset.from_list([{"query-id":"1","corpus-id":"5",
                        "score":1}]).to_parquet(place/"default.parquet")
    with pytest.raises(DataError, match="mirror mteb/scifact row 1 judges the document '5'"):
        load_retrieval("SciFact", Source("hub", tmp_path))

# --- search ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("block", ((256,16384), (3,7), (1,1), (5,40)))
def test_search_is_a_sort_of_all_scores_whatever_the_blocks(block):
    g = np.random.default_rng(0)
    docs = g.integers(-2, 3, (60,4)).astype(np.float32)+.5             # many ties
    queries = g.integers(-2, 3, (9,4)).astype(np.float32)+.5
    unit = lambda x: x.astype(np.float64)/np.linalg.norm(x.astype(np.float64), axis=1,
                                                         keepdims=True)
    scores = (unit(queries)@unit(docs).T).round(9)
    order = np.stack([np.lexsort((np.arange(60), -row)) for row in scores])
    assert sum(len(set(row)) < 55 for row in scores) > 5                # there are ties
    for depth in (1, 20, 60, 1000):
        found,cosine = search(queries, docs, depth, block=block)
        assert found.tolist() == order[:,:depth].tolist()
        np.testing.assert_allclose(cosine, np.take_along_axis(scores, found, 1), atol=1e-8)
        # control: positions count
        assert not np.array_equal(search(queries, docs[::-1], depth, block=block)[0], found)

class Largest(TorchDispatchMode):
    "How many entries the largest tensor has that is made under it"
    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        out = f(*args, **(kwargs or {}))
        self.entries = max([getattr(self, "entries", 0),
                            *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))])
        return out

def largest(f, *args, **kwargs):
    with Largest() as seen: f(*args, **kwargs)
    return seen.entries

def test_search_never_holds_the_whole_matrix():
    g = np.random.default_rng(0)
    queries,docs = g.normal(size=(50,8)), g.normal(size=(900,8))
    assert largest(search, queries, docs, 10, block=(20,100)) == 20*(100+10)
    # control: whole
    assert largest(lambda: unit64(queries)@unit64(docs).T) == 50*900

def test_uniformity_is_linear_in_memory():
    h = torch.nn.functional.normalize(torch.randn(600,4,dtype=torch.float64,
                                                  generator=torch.Generator().manual_seed(0)),
                                                  dim=1)
    # control: one block
    assert largest(uniformity, h, block=20) == 20*600 and largest(uniformity, h,
                                                                  block=600) == 600*600
    assert largest(alignment, h, h.flip(0)) == 600*4

@pytest.mark.parametrize("dtype", (torch.float64,torch.float32,torch.bfloat16))
def test_rows_that_are_no_points_of_the_sphere_are_named(dtype):
    h = torch.nn.functional.normalize(torch.randn(9,16, generator=torch.Generator().manual_seed(0)),
                                      dim=1).to(dtype)
    assert -8 < uniformity(h) < 0 and alignment(h, h) == 0
    for value in (float("nan"), float("inf"), 10.):
        bad = h.clone(); bad[3] = value
        for f in (lambda x: alignment(h, x), uniformity):
            said = r"h\w* row 3 has length .*: each row must be finite and of length 1"
            with pytest.raises(ValueError, match=said): f(bad)
    zero = h.clone(); zero[3] = 0
    # as `unit_rows` gives it
    assert math.isfinite(uniformity(zero)) and math.isfinite(alignment(h, zero))
    with pytest.raises(ValueError, match="block is 1.5: it must be a whole number"):
        uniformity(h, block=1.5)

@pytest.mark.parametrize("kwargs,said",
                         ((dict(depth=-1),"depth is -1"), (dict(depth=.5),"depth is 0.5"),
                          (dict(depth=True),"depth is True"), (dict(block=(0,4)),"block is 0")))
def test_search_takes_whole_numbers(kwargs, said):
    with pytest.raises(ValueError, match=f"{said}: it must be a whole number, at least 1"):
        search(np.eye(3), np.eye(3), **kwargs)

def test_what_is_skipped_is_not_found_and_nothing_else_changes():
    g = np.random.default_rng(0)
    docs,queries = g.normal(size=(30,5)), g.normal(size=(4,5))
    plain,skipped = search(queries, docs, 30)[0], search(queries, docs, 30,
                                                         {2:int(search(queries, docs, 1)[0][2,0])},
                                                         block=(3,7))[0]
    assert (plain[[0,1,3]] == skipped[[0,1,3]]).all() and skipped[2].tolist() == [*plain[2,1:], -1]

def test_rerank_is_search_among_candidates():
    g = np.random.default_rng(0)
    docs,query = g.normal(size=(30,5)), g.normal(size=(1,5))
    assert rerank(query, docs).tolist() == search(query, docs, 30)[0][0].tolist()

# --- measures -------------------------------------------------------------------------------------

def loops(ranking, grades):
    gain = [grades.get(d, 0) for d in ranking if d >= 0]
    dcg = lambda values: sum(v/math.log2(r+1) for r,v in enumerate(values[:10], 1))
    R = sum(v > 0 for v in grades.values())
    hits = lambda r: sum(v > 0 for v in gain[:r])
    return [dcg(gain)/dcg(sorted(grades.values(), reverse=True)),
            sum(hits(r)/r for r,v in enumerate(gain[:1000], 1) if v)/R,
            next((1/r for r,v in enumerate(gain[:10], 1) if v), 0), hits(100)/R]

@needs_library
def test_measures_equal_their_equations():
    g = np.random.default_rng(0)
    ranked = [list(map(int, g.permutation(1500)[:g.integers(1,1000)])) for _ in range(300)]
    judged = [{int(d): int(g.integers(0,5)) for d in g.permutation(1500)[:40]} | {0:1}
              for _ in ranked]
    found = ranking_measures(ranked, judged)
    expected = [loops(r,j) for r,j in zip(ranked, judged, strict=True)]
    np.testing.assert_allclose(np.stack(list(found.values()), 1), expected, rtol=1e-6, atol=1e-12)
    assert list(found) == list(MEASURES)

@needs_library
def test_a_query_is_not_its_own_answer_but_a_namesake_is_a_document():
    docs = [("r","1","tin and iron"), ("r","2","tin then iron"), ("r","3","lead")]
    def score(text):
        own = retrieval_set("own", docs, [("r","1",text)], [("r","1","2",1)])
        return evaluate_retrieval(words, sets=own).scores["own"].measures["mrr@10"]
    assert score("tin and iron") == 1 and score("tin and iron too") == .5

@needs_library
def test_groups_take_the_best_of_their_queries():
    from dataclasses import replace
    docs = [("r",d,t) for d,t in dict(a="rain", b="hail", c="football").items()]
    queries = [("r","1-0","football"), ("r","1-1","hail")]
    data = retrieval_set("own", docs, queries,
                         [("r",q,d,int(d=="b")) for q in ("1-0","1-1") for d in "abc"],
                         candidates={q:list("abc") for q in ("1-0","1-1")})
    # c, a, b for the first, b in front for the second
    assert evaluate_retrieval(words, sets=data)["own"] == pytest.approx((1/3+1)/2)
    assert evaluate_retrieval(words, sets=replace(data, group=[1,1])).scores["own"].queries == 1

@needs_library
def test_long_empty_and_foreign_texts():
    from sfr_repro.encode.encoder import SentenceEncoder
    docs = [("r","long","tin "*25_000), ("r","empty",""), ("r","half","half \ud800 a pair"),
            ("r","снег","Снег и лёд 雪 שלג"), ("r","plain","Tin melts early.")]
    data = retrieval_set("own", docs, [("r","q","Where does tin melt?")], [("r","q","plain",1)])
    result = evaluate_retrieval(SentenceEncoder.from_pretrained("sfr-mini", precision="fp32"),
                                sets=data, progress=False)
    assert len(docs[0][2]) == 100_000 and 0 < result["own"] <= 1
    assert result.scores["own"].queries == 1

def spoil(value, at):
    def encode(sentences): x = words(sentences); x[at] = value; return x
    return encode

REFUSED = {"nan": (spoil(np.nan, 0),
                   "row q: the vector of this query holds values that are not finite"),
           "zero": (spoil(0, 2), "row b: the vector of this document is zero"),
           "two": (spoil(0, [1,2]), "this document is zero; 1 more of 2 is wrong too"),
           "constant": (lambda s: np.ones((len(s),3), np.float32),
                        "own cannot be scored: the vectors of its 2 documents all have one "
                        "direction"),
           "a name": ("bert", "encoder is str")}

@pytest.mark.parametrize("kind", REFUSED)
def test_bad_vectors_are_refused(kind):
    encoder,said = REFUSED[kind]
    data = retrieval_set("own", [("row a","a","tin"),("row b","b","iron")], [("row q","q","ore")],
                         [("row","q","a",1)])
    with pytest.raises(ValueError) as e: evaluate_retrieval(encoder, sets=data)
    assert said in str(e.value) and "\n" not in str(e.value)
    assert ("more of" in str(e.value)) == (kind=="two")

def test_without_the_library_the_error_names_it(monkeypatch):
    monkeypatch.setattr("sfr_repro.evaluate.retrieval.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install pytrec-eval-terrier"):
        ranking_measures([[0]], [{0:1}])

# --- the real collections -------------------------------------------------------------------------

@needs_folder
def test_the_real_collections_are_read_whole():
    found = {n: load_retrieval(n, FOLDER) for n in RETRIEVAL_SETS}
    for name,counts in RETRIEVAL_COUNTS.items():
        if counts: assert (len(found[name].docs), len(found[name])) == counts[:2]
    assert [len(found["quora_dup"]._twins), len(found["cranfield"]._twins)] == [3846, 0]
    assert found["trecqa"].reranking

@needs_folder
@needs_library
def test_bags_of_words_find_abstracts():
    result = evaluate_retrieval(words, sets="cranfield", source=FOLDER).scores["cranfield"].measures
    chance = evaluate_retrieval(lambda s: np.random.default_rng(0).permutation(words(s)),
                                sets="cranfield", source=FOLDER).scores["cranfield"].measures
    assert all(result[m] > 3*chance[m] for m in MEASURES)
