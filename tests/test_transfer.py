"Labelled sentences and the classifier on frozen vectors: made-up sets, and the real ones if there"
import csv
import warnings
import zlib
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
import departures
from sfr_repro.data.sources import DataError, Source, find_folder
from sfr_repro.data.transfer import (
    CLASSES,
    HUB_TRANSFER,
    TRANSFER_COUNTS,
    TRANSFER_SETS,
    load_transfer,
    transfer_set,
    transfer_sets,
)
from sfr_repro.evaluate.transfer import (
    CS,
    SEED,
    cross_validate,
    evaluate_transfer,
    fit_regression,
    nested_cross_validate,
    pair_features,
    regression_path,
    score_transfer,
    senteval_order,
)

FOLDER = find_folder()[0]
needs_folder = pytest.mark.skipif(FOLDER is None or not (FOLDER/"transfer").is_dir(),
                                  reason="no data folder with transfer sets")

def clouds(n, D=6, classes=2, apart=.6, seed=0):
    g = np.random.default_rng(seed)
    y = np.arange(n) % classes
    return g.normal(size=(n,D)) + apart*g.normal(size=(classes,D))[y], y

def words(sentences, D=64):
    "Bags of hashed words: the same vectors on every machine"
    x = np.zeros((len(sentences), D), np.float32)
    for i,s in enumerate(sentences):
        for w in s.split(): x[i, zlib.crc32(w.encode("utf-8","surrogatepass")) % D] += 1
    return x

def toy(name="toy", n=60, splits=("all",), classes=("bad","good"), seed=0):
    g = np.random.default_rng(seed)
    def row(i):
        y = int(g.integers(0, len(classes)))
        text = " ".join(g.permutation([*["tin oak rye".split()[y]]*2,
                                       *g.choice(["fog","elm","jar","owl"], 3)]))
        return (f"row {i}", splits[i%len(splits)], classes[y], text)
    return transfer_set(name, [row(i) for i in range(n)])

# --- data -----------------------------------------------------------------------------------------

def test_folder_sets_have_their_counts_and_labels(tmp_path):
    (tmp_path/"transfer").mkdir()
    for name,splits in TRANSFER_COUNTS.items():
        pair = "\tMore text." if name in ("MRPC","SICK-E") else ""
        rows = [f"{s}\t{CLASSES[name][i%len(CLASSES[name])]}\tLamp {i}.{pair}"
                for s,n in splits.items() for i in range(n)]
        (tmp_path/f"transfer/{name}.tsv").write_text("\n".join(["split\tlabel\tsentence1"
                                                                +("\tsentence2" if pair else ""),
                                                                *rows])+"\n")
        found = load_transfer(name, tmp_path)
        assert found.counts == splits and found.classes == CLASSES[name]
        assert (found.sentence2 is not None) == bool(pair)
        (tmp_path/f"transfer/{name}.tsv").write_text("\n".join(["split\tlabel\tsentence1"
                                                                +("\tsentence2" if pair else ""),
                                                                *rows[:-1]])+"\n")
        with pytest.raises(DataError, match=f"{name}.tsv has .*: {name} has "):
            load_transfer(name, tmp_path)

BAD = {"a label outside the classes": ("all\t1\tA.\nall\tx\tB.",
                                       "TREC.tsv line 2 has the label '1': TREC has ABBR"),
       "an empty file": ("", "TREC has no row"),
       "a column short": ("train\tNUM", "TREC.tsv line 2 has 2 columns"),
       "an unknown split": ("train\tNUM\tA.\nvalid\tLOC\tB.",
                            "TREC.tsv line 3 has the split 'valid'"),
       "one class": ("train\tNUM\tA.\ntest\tNUM\tB.",
                     "TREC.tsv line 2: TREC has only the label 'NUM'"),
       "no test": ("train\tNUM\tA.\ntrain\tLOC\tB.", "has the splits train"),
       "a label train lacks": ("train\tNUM\tA.\ntrain\tLOC\tB.\ntest\tHUM\tC.",
                               "TREC.tsv line 4 has the label 'HUM' in split 'test'")}

@pytest.mark.parametrize("kind", BAD)
def test_bad_rows_are_named_by_file_and_line(kind, tmp_path):
    text,said = BAD[kind]
    (tmp_path/"transfer").mkdir()
    (tmp_path/"transfer/TREC.tsv").write_text("split\tlabel\tsentence1\n"+text+"\n" if text
                                              else "split\tlabel\tsentence1\n")
    with pytest.raises(DataError) as e: load_transfer("TREC", tmp_path)
    assert said in str(e.value) and "\n" not in str(e.value)

def test_hub_sets_from_a_mirror(tmp_path):
    from datasets import Dataset
    names = {"text":"text", "sentence":"sentence"}
    for name,sizes in {"SUBJ":(8000,2000), "SST2":(67349,872,1821), "TREC":(5452,500)}.items():
        for part,n in zip(HUB_TRANSFER[name], sizes, strict=True):
            place = tmp_path/part.hub.repo; place.mkdir(parents=True, exist_ok=True)
            label = [CLASSES[name][i%len(CLASSES[name])] for i in range(n)]
            data = {part.columns[0]: label if name=="TREC" else list(map(int, label)),
                    names[part.columns[1]]: [f"Lamp {i}." for i in range(n)]}
            Dataset.from_dict(data).to_parquet(place/f"{part.split}.parquet")
        found = load_transfer(name, Source("hub", tmp_path))
        assert found.counts == TRANSFER_COUNTS[name] and found.classes == CLASSES[name]
        assert found.source.startswith("mirror ")
    assert found.places[5452] == "mirror SetFit/TREC-QC test row 1"
    with pytest.raises(DataError, match="the hub has no 'MPQA' for this project"):
        load_transfer("MPQA", Source("hub", tmp_path))

def test_without_folder_and_hub_there_is_one_sentence(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1"); monkeypatch.setenv("SFR_DATA", "none")
    assert transfer_sets() == ()
    with pytest.raises(DataError,
                       match="MR cannot be had: the source is embedded .*which has no labelled "
                             "sentences"):
        evaluate_transfer(words)

def test_text_in_any_script_and_lone_surrogates_are_text():
    texts = ["Снег и лёд", "雪と氷", "שלג", "half \ud800 a pair", "\u202eright to left", "",
             "e\u0301 and \u00e9", "👩‍🚀"]*4
    data = transfer_set("scripts",
                        [(f"row {i}", "all", str(i//2%2), s) for i,s in enumerate(texts)])
    assert len(data.describe()["sha256"]) == 64
    assert 0 <= evaluate_transfer(words, sets=data)["scripts"] <= 1

def test_the_rendering_is_senteval_s_for_its_own_text_only(tmp_path):
    rows = [(f"row {i}", "all", "01"[i%2], f"Lamp {i}.") for i in range(4)]
    rendering = lambda **how: transfer_set(rows=rows, **how).describe()["rendering"]
    assert rendering(name="MR", source="folder") == "senteval"
    others = (dict(name="own", source="folder"), dict(name="MR", source="hub SetFit/mr@1"),
              dict(name="MR"))
    assert [rendering(**other) for other in others] == ["raw"]*3
    pairs = [(f"row {i}", "all", label, "Lamp.", f"Lamp {i}.")
             for i,label in enumerate(CLASSES["SICK-E"]*2)]
    sick = transfer_set("SICK-E", pairs, source="folder")
    assert sick.describe()["rendering"] == "raw"           # the folder has SICK's own text

@pytest.mark.parametrize("row,said",
                         ((("row 9","all",1,"Hail."),
                           "row 9 has 1: split, label and sentences must be text"),
                           (("row 9","all","a"), "row 9 has 2 values"),
                           (("row 9","all","a","x","y"), "row 9 has 4 values")))
def test_a_row_of_another_shape_is_named(row, said):
    with pytest.raises(DataError, match=said):
        transfer_set("own", [("row 1","all","a","x"), ("row 2","all","b","y"), row])

@pytest.mark.parametrize("seed", (-5000, .5, True, "1", 2**32))
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(ValueError, match="seed is .*: it must be a whole number, at least 0"):
        evaluate_transfer(words, sets=toy(), seed=seed)

def test_names_paths_and_what_a_folder_offers(tmp_path):
    (tmp_path/"transfer").mkdir()
    (tmp_path/"transfer/own.tsv").write_text("split\tlabel\tsentence1\n"
                                             +"".join(f"{s}\t{i%2}\tLamp {i}.\n"
                                                      for s in ("train","test") for i in range(30)))
    assert transfer_sets(tmp_path) == ("own",)
    assert load_transfer(tmp_path/"transfer/own.tsv").name == "own"
    assert list(evaluate_transfer(words, sets=tmp_path/"transfer/own.tsv")) == ["own"]
    text = "split\tlabel\tsentence1\nall\t1\tGood.\nall\t0\tBad.\n"
    (tmp_path/"transfer/MR.tsv").write_text(text)
    assert transfer_sets(tmp_path) == TRANSFER_SETS
    with pytest.raises(DataError, match="a set of your own needs another name"):
        load_transfer(tmp_path/"transfer/MR.tsv")
    for name in (""," "):
        with pytest.raises(DataError, match="the name of a transfer set is empty"):
            load_transfer(name, tmp_path)

# --- the classifier -------------------------------------------------------------------------------

def gradient(m, x, y, C):
    "Of equation (regression) with respect to weights and intercepts, largest entry"
    z = x@m.coef_.T + m.intercept_
    if len(m.coef_) == 1: z = np.hstack([np.zeros_like(z), z])
    p = np.exp(z-z.max(1, keepdims=True)); p /= p.sum(1, keepdims=True)
    off = (C*(p-np.eye(z.shape[1])[y]))[:,-len(m.coef_):]
    return max(np.abs(off.T@x + m.coef_).max(), np.abs(off.sum(0)).max())

@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
@pytest.mark.parametrize("classes", (2,3))
def test_the_fit_minimises_the_equation(classes):
    x,y = clouds(120, classes=classes)
    for C in (CS["all"][0], CS["test"][-1]):
        for m in (fit_regression(x, y, C), regression_path(x, y, (C/2, C))[1]):
            assert gradient(m, x, y, C) < 1e-5*C*len(x)
        # control: on the way there it is not
        assert gradient(LogisticRegression(C=C, max_iter=3).fit(x, y), x, y, C) > 1e-4*C*len(x)

def test_nested_search_sees_the_training_part_only():
    x,y = clouds(150, apart=.3)
    outer = list(StratifiedKFold(10, shuffle=True, random_state=SEED).split(x, y))
    accuracies,_,chosen = nested_cross_validate(x, y)
    for (train,test),a,C in list(zip(outer, accuracies, chosen, strict=True))[:1]:
        table = []
        for c in CS["all"]:
            inner = StratifiedKFold(10, shuffle=True, random_state=SEED).split(x[train], y[train])
            table.append(round(np.mean([fit_regression(x[train][i], y[train][i],
                                                       c).score(x[train][o], y[train][o])
                                                       for i,o in inner]), 4))
        assert C == CS["all"][int(np.argmax(table))]
        assert a == pytest.approx(fit_regression(x[train], y[train], C).score(x[test], y[test]))

def test_dice_are_not_beaten():
    x = np.random.default_rng(0).normal(size=(300,10))
    assert abs(nested_cross_validate(x, np.arange(300)%2)[0].mean()-.5) < .09

def test_each_kind_of_split_has_its_protocol():
    x = lambda d: words(d.sentence1)
    for splits,spread in ((("all",),True), (("train","train","test"),False),
                          (("train","dev","test"),False), (("train","trial","test"),False)):
        d = toy(n=90, splits=splits)
        s = score_transfer(d, x(d))
        assert (s.spread is not None) == spread and s.f1 is None
        assert len(s.C) == (10 if spread else 1) and s.accuracy > .8
    d = toy(n=200, splits=("train","test"))
    train = senteval_order(d, d.rows("train"))
    model,dev = cross_validate(words(d.sentence1)[train].astype(float), d.labels[train], CS["test"])
    assert score_transfer(d, words(d.sentence1)).dev == pytest.approx(dev)
    assert score_transfer(d, words(d.sentence1)).C == (model.C,)

def test_order_is_by_length_then_label():
    d = transfer_set("order",
                     [("r","all","b","one two"), ("r","all","a","one"), ("r","all","a","one two"),
                      ("r","all","b","one"), ("r","all","a","one")])
    assert senteval_order(d, d.rows("all")).tolist() == [1,4,3,2,0]

def test_pairs_do_not_know_their_order():
    g = np.random.default_rng(0)
    u,v = g.normal(size=(2,5,3))
    np.testing.assert_allclose(pair_features(u,v), pair_features(v,u), rtol=1e-12)
    with pytest.raises(ValueError, match=r"u \(5, 3\) and v \(4, 3\) must have one shape"):
        pair_features(u, v[1:])

def test_repeats_are_equal_and_each_text_is_encoded_once():
    seen = []
    def encode(sentences): seen.extend(sentences); return words(sentences)
    data = [toy(n, n=120, splits=("train","test")) for n in ("one","two")]    # the same sentences
    a,b = (evaluate_transfer(encode, sets=data) for _ in range(2))
    assert a.to_metrics() == b.to_metrics() and a["one"] == a["two"]
    assert len(seen) == 2*len(set(data[0].sentence1))

REFUSED = {"long": (lambda s: 1e8*words(s), "row 0: what the classifier reads of it has length"),
           "nan": (lambda s: np.full((len(s),3), np.nan, np.float32),
                   "row 0: its vector holds values that are not finite; 59 more of 60 are wrong "
                   "too"),
           "too few": (lambda s: words(s)[1:], "it must return floats"),
           "a name": ("bert", "encoder is str")}

@pytest.mark.parametrize("kind", REFUSED)
def test_bad_vectors_are_refused(kind):
    encoder,said = REFUSED[kind]
    with pytest.raises(ValueError) as e: evaluate_transfer(encoder, sets=toy())
    assert said in str(e.value) and "\n" not in str(e.value)

@pytest.mark.parametrize("n, part, needs", ((2,"all",3), (1,"train",2)))
def test_two_classes_too_rare_for_the_folds_are_refused_before_anything_is_encoded(n, part, needs):
    rows = [(f"row {i}", part, "rare" if i < n else "often", f"w{i}") for i in range(60)]
    rows += [("row 99","test","often","w")] if part=="train" else []
    with pytest.raises(DataError,
                       match=f"row {n} has the label 'often', which few has {60-n} times in split "
                             f"'{part}', and the next one {n} times: .* and another {needs}"):
        evaluate_transfer(None, sets=transfer_set("few", rows))

@pytest.mark.parametrize("rarest", (3,4,12))
def test_no_fold_has_one_class_only(rarest):
    "The second class that is let through is in every training part, of ten times ten folds"
    y = np.array([0]*rarest+[1]*100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for train,_ in StratifiedKFold(10, shuffle=True, random_state=SEED).split(y, y):
            for inner,test in StratifiedKFold(10, shuffle=True, random_state=SEED).split(train,
                                                                                         y[train]):
                assert len(set(y[train][inner])) == 2
                if rarest == 12: assert len(set(y[train][test])) == 2

def plainly(x, y):
    "The accuracy of each outer fold, with a new classifier for each part and C"
    def fit(x, y, C): return LogisticRegression(solver="newton-cholesky", tol=1e-6, C=C,
                                                max_iter=1000).fit(x, y)
    def folds(x, y): return StratifiedKFold(10, shuffle=True, random_state=SEED).split(x, y)
    found = []
    for train,test in folds(x, y):
        X,Y = x[train], y[train]
        scores = [np.mean([fit(X[a], Y[a], C).score(X[b], Y[b]) for a,b in folds(X, Y)]).round(4)
                  for C in CS["all"]]
        found.append(fit(X, Y, CS["all"][int(np.argmax(scores))]).score(x[test], y[test]))
    return np.mean(found)

def test_a_class_of_four_is_scored_as_plain_folds_score_it():
    labels = ["a"]*20+["b"]*20+["c"]*4
    data = transfer_set("few", [(f"row {i}", "all", y, f"{y} {i}") for i,y in enumerate(labels)])
    x = np.random.default_rng(0).normal(size=(44,3))+data.labels[:,None]
    with pytest.warns(UserWarning, match=r"folds lack a label that is rare.*'c' \(4\)"):
        found = score_transfer(data, x)
    order = senteval_order(data, data.rows("all"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = plainly(x[order], data.labels[order])
    assert abs(found.accuracy-want) < .03 and found.accuracy > .5

def test_constant_vectors_score_the_commonest_class():
    data = toy(n=100)
    found = evaluate_transfer(lambda s: np.ones((len(s),4), np.float32), sets=data)["toy"]
    assert found == pytest.approx(max(np.mean(data.labels), 1-np.mean(data.labels)), abs=.02)

# --- the real sets --------------------------------------------------------------------------------

@needs_folder
def test_the_real_sets_are_read_whole():
    for name in (*TRANSFER_SETS, "SICK-E"):
        assert load_transfer(name, FOLDER).counts == TRANSFER_COUNTS[name]

@needs_folder
def test_bags_of_words_tell_questions_apart():
    "With 32 counts for a vector, far more often than the commonest of the six would be right"
    data = load_transfer("TREC", FOLDER)
    shares = np.bincount(data.labels[data.rows("test")])/500
    assert evaluate_transfer(lambda s: words(s, 32), sets=data)["TREC"] > shares.max()+.2

# --- the program that measures departures from SentEval's classifiers -----------------------------

@pytest.mark.once
@pytest.mark.parametrize("splits,classes",
                         [(("all",),("bad","good")),
                          (("train","train","test"),("bad","good","middling"))])
def test_departures_start_from_the_classifier_here(splits, classes):
    d = toy(n=360, splits=splits, classes=classes)
    x = words(d.sentence1, 16).astype(float) + np.random.default_rng(0).normal(size=(len(d),16))
    found,Cs = departures.variants(d, x), CS["all" if splits==("all",) else "test"]
    np.testing.assert_allclose(departures.accuracy(d, x, departures.choose(departures.Solved, Cs)),
                               found["here"](), rtol=1e-12)
    assert ("one class against the rest" in found) == (len(classes) > 2)
    lone = {k: found[k]()
            for k in ("intercept penalised","SentEval, scikit-learn (liblinear)",
                      "folds of seed 1112")}
    assert all(1/len(classes) < v <= 1 for v in lone.values())
    short = departures.accuracy(d, x/64,
                                departures.choose(departures.Adam, departures.DECAYS[:1],
                                                  held=True))
    # it stops before small weights have grown
    assert short <= found["here"]() + .05

def test_the_table_of_departures_is_whole():
    with open(departures.CSV) as f: rows = list(csv.DictReader(f))
    for name in {r["set"] for r in rows}:
        mine = [r["departure"] for r in rows if r["set"]==name]
        assert "here" in mine and len(set(mine)) == len(mine)
