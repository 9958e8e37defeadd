"Data from every source: a made-up folder and a made-up hub always, the real folder where it is"
import gzip
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
import pytest
from sfr_repro.data.corpus import FOLDER_CORPORA, load_corpus
from sfr_repro.data.sources import (
    AREAS,
    HUB,
    DataError,
    Source,
    find_folder,
    hub_problem,
    read_tsv,
    resolve,
)
from sfr_repro.data.sts import STS_COUNTS, STS_SETS, load_sts, sts_sets

ROOT = Path(__file__).resolve().parents[1]
FOLDER = find_folder()[0]
needs_folder = pytest.mark.skipif(FOLDER is None, reason="no data folder")
HEAD = "split\tsubset\tscore\tsentence1\tsentence2"

def offline(monkeypatch, folder="none"):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1"); monkeypatch.setenv("SFR_DATA", str(folder))

def made_up(n, split="test"):
    return [f"{split}\tpart {i%3}\t{i%11/2}\tLamp {i} is on.\tLamp {i+1} is off." for i in range(n)]

def write_tsv(path, rows, head=HEAD):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([head, *rows])+"\n")

@pytest.fixture
def folder(tmp_path, monkeypatch):
    "A data folder in the layout of SOURCES.md, every set at full size, of made-up sentences"
    root = tmp_path/"data"
    for name,splits in STS_COUNTS.items():
        if name not in STS_SETS: continue
        rows = [r for split,n in splits.items() for r in made_up(n, split)]
        write_tsv(root/f"sts/{name}.tsv", rows)
        write_tsv(root/f"sts/senteval_tok/{name}.tsv", [r.lower() for r in rows])
    (root/"corpus").mkdir()
    towns = "".join(f"Town {i} lies on river {i%9}.\n" for i in range(5000))
    (root/"corpus/wiki_2014.txt.gz").write_bytes(gzip.compress(towns.encode()))
    offline(monkeypatch, root)
    return root

# --- which source ---------------------------------------------------------------------------------

def test_order_is_folder_hub_embedded(folder, monkeypatch):
    assert str(resolve(area="sts")) == "folder (named by SFR_DATA)" and sts_sets() == STS_SETS
    assert resolve(area="transfer").kind == "embedded"          # this folder has no transfer/
    monkeypatch.setenv("SFR_DATA", "none")
    assert str(resolve()) == "embedded (SFR_DATA=none; hub skipped: HF_HUB_OFFLINE is set)"
    assert sts_sets() == ("mini-sts",)
    monkeypatch.setattr("sfr_repro.data.sources.hub_problem", lambda: "")
    assert str(resolve()) == "hub (SFR_DATA=none)" and sts_sets() == (*STS_SETS[:-1], "SICK-R-all")

def test_no_network_is_known_in_under_a_second(monkeypatch):
    for v in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(v, raising=False)
    # an address that nothing answers from
    monkeypatch.setenv("HF_ENDPOINT", "http://10.255.255.1:9")
    monkeypatch.setenv("no_proxy", "*")
    start = time.monotonic()
    assert hub_problem() == "10.255.255.1 does not answer"
    # 0.9 s and a thread, on a machine that is busy
    assert time.monotonic()-start < 1.5
    start = time.monotonic(); hub_problem()
    assert time.monotonic()-start < .05                         # asked once a process

@pytest.mark.parametrize("value, said",
                         [("nowhere", "must be an existing folder"),
                          (".", "holds none of the folders sts, transfer, retrieval, corpus")])
def test_sfr_data_that_leads_nowhere_is_an_error(value, said, tmp_path, monkeypatch):
    monkeypatch.setenv("SFR_DATA", str(tmp_path/value))
    with pytest.raises(DataError, match=said): resolve()

def test_development_folder_is_found_from_a_notebook_but_not_any_shared_data(tmp_path, monkeypatch):
    monkeypatch.delenv("SFR_DATA", raising=False)
    (tmp_path/"shared/data/sts").mkdir(parents=True); (tmp_path/"tree/nbs/data").mkdir(parents=True)
    assert find_folder([tmp_path/"tree/nbs/data"])[0] != tmp_path/"shared/data"
    (tmp_path/"shared/data/SOURCES.md").touch()
    assert find_folder([tmp_path/"tree/nbs/data"]) == (tmp_path/"shared/data",
                                                       "found as shared/data")

def test_data_rooms_work_from_anywhere_and_load_datasets_only_for_the_hub(tmp_path):
    code = ("import sys, sfr_repro.data.sts as s, sfr_repro.data.corpus as c; "
            "print(len(c.load_corpus()), len(s.load_sts('mini-sts')), 'datasets' in sys.modules)")
    env = dict(os.environ, SFR_DATA="none", HF_HUB_OFFLINE="1", PYTHONPATH=str(ROOT))
    out = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True,
                         capture_output=True, text=True).stdout.split()
    assert int(out[0]) > 1000 and int(out[1]) >= 100 and out[2:] == ["False"]

def test_records_hold_no_path(folder):
    said = json.dumps([load_sts("STS-B", "dev").describe(), load_corpus("wiki_2014", 10).describe(),
                       load_corpus(str(folder/"corpus/wiki_2014.txt.gz"), 10).describe()])
    assert str(folder) not in said and "/" not in said.replace("sts/STS-B/dev",
                                                               "").replace("corpus/wiki_2014","")

# --- scored pairs from a folder -------------------------------------------------------------------

@pytest.mark.parametrize("name", STS_SETS)
def test_every_set_split_and_rendering(folder, name):
    for split,n in STS_COUNTS[name].items():
        raw,senteval = (load_sts(name, split, r) for r in ("raw","senteval"))
        assert len(raw) == len(senteval) == n
        assert raw.sentence1[0].lower() == senteval.sentence1[0] != raw.sentence1[0]
        assert (raw.scores == senteval.scores).all() and raw.subsets[:4] == ["part 0","part 1",
                                                                             "part 2","part 0"]
        assert raw.describe()["sha256"] != senteval.describe()["sha256"]

BAD = {"a column short": (["test\tp\t1\tA."], "line 2 has 4 columns, its header has 5"),
       "nan": (["test\tp\tnan\tA.\tB."], "line 2 has the score 'nan'"),
       "a word": ([*made_up(3), "test\tp\tgood\tA.\tB."], "line 5 has the score 'good'"),
       "no score": (["test\tp\t\tA.\tB."], "line 2 has the score ''"),
       "out of range": (["test\tp\t5.5\tA.\tB."],
                        "line 2 has the score 5.5: it must lie between 0 and 5"),
       "no sentence": (["test\tp\t1\t\tB."], "line 2 has an empty sentence1"),
       "an empty line": ([*made_up(1), "", *made_up(1)], "line 3 is empty, and rows follow it"),
       "a row too few": (made_up(1185), "has 1185 pairs in split 'test': STS16 has 1186"),
       "another split": (made_up(5, "train"), "has no row with split 'test': it has train"),
       "no rows": ([], "has no pair")}

@pytest.mark.parametrize("kind", BAD)
def test_bad_rows_are_named_by_file_and_line(folder, kind):
    rows,said = BAD[kind]
    write_tsv(folder/"sts/STS16.tsv", rows)
    with pytest.raises(DataError) as e: load_sts("STS16")
    assert said in str(e.value) and "STS16" in str(e.value) and "\n" not in str(e.value)

def test_bad_files(folder):
    path = folder/"sts/STS16.tsv"
    write_tsv(path, made_up(1186), HEAD.replace("score","points"))
    with pytest.raises(DataError, match="STS16.tsv line 1 has no column 'score'"): load_sts("STS16")
    path.write_bytes((HEAD+"\ntest\tp\t1\tA caf\xe9.\tB.").encode("latin-1"))
    with pytest.raises(DataError, match="STS16.tsv line 2 is not UTF-8 at byte 15"):
        load_sts("STS16")
    path.unlink()
    with pytest.raises(DataError, match="STS16.tsv is not there: its folder holds SICK-R.tsv"):
        load_sts("STS16")
    path.mkdir()
    with pytest.raises(DataError, match="STS16.tsv cannot be read"): load_sts("STS16")
    for args,said in ((("STS12","dev"), "split 'dev': it has test"),
                      (("STS12","test","moses"), "rendering is 'moses'"),
                      (("SICK-R-all",), "is not there")):
        with pytest.raises(DataError, match=said): load_sts(*args)

def test_windows_line_ends_quotes_and_odd_separators_are_text(folder):
    (folder/"sts/own.tsv").write_bytes(("\ufeff"+HEAD
                                        +"\r\ntest\tp\t1\t\"Open\u2028quote.\tB\x0b.\r\n").encode())
    own = load_sts("own")
    assert (own.sentence1, own.sentence2) == (['"Open\u2028quote.'], ["B\x0b."])

# --- scored pairs from a hub laid out like the repositories ---------------------------------------

def columns(n):
    return dict(sentence1=[f"Lamp {i} is on." for i in range(n)],
                sentence2=[f"Lamp {i+1} is off." for i in range(n)],
                score=[i%11/2 for i in range(n)])

@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    "Parquet for one, CSV for another, compressed JSON lines for a third, with the hub's splits"
    from datasets import Dataset
    root = tmp_path_factory.mktemp("hub")
    for name in (n for n in STS_COUNTS if n in HUB):
        place = root/HUB[name].repo; place.mkdir(parents=True)
        for split,n in STS_COUNTS[name].items():
            data,stem = Dataset.from_dict(columns(n)), str(place/dict(dev="validation").get(split,
                                                                                            split))
            if name == "STS-B": data.to_csv(stem+".csv")
            elif name == "STS13": data.to_json(stem+".jsonl.gz", compression="gzip")
            else: data.to_parquet(stem+".parquet")
    place = root/HUB["wiki1m"].repo; place.mkdir(parents=True)
    (place/HUB["wiki1m"].file).write_text("".join(f"Town {i} lies on river {i%9}.\n"
                                                  for i in range(500)))
    (place/"nli_for_simcse.csv").write_text("sent0,sent1,hard_neg\nA.,B.,C.\n")
    return Source("hub", root)

def test_hub_ids_are_pinned():
    assert all(len(h.revision) == 40 for n,h in HUB.items()
               if n not in ("wiki1m", "nli_for_simcse")) and set(STS_COUNTS)-{"SICK-R"} <= set(HUB)

@pytest.mark.parametrize("name", [n for n in STS_COUNTS if n != "SICK-R-all"])
def test_hub_gives_the_same_content_as_a_folder(hub, folder, name):
    for split in STS_COUNTS[name] if name != "SICK-R" else ("test",):
        there = load_sts(name, split, source=hub)
        if name == "SICK-R": assert (there.name, len(there)) == ("SICK-R-all", 9927)
        else: assert there.describe()["sha256"] == load_sts(name, split).describe()["sha256"]
        assert set(there.subsets) == {""} and there.source == f"mirror {HUB[there.name].repo}"

def test_hub_refuses(hub, tmp_path):
    for args,said in ((("STS12","test","senteval"), "the hub has 'raw' only"),
                      (("SICK-R","train"), "SICK-R-all has test on the hub"),
                      (("STS17",), "the hub has no 'STS17'")):
        with pytest.raises(DataError, match=said): load_sts(*args, source=hub)
    with pytest.raises(DataError, match="the mirror has no folder mteb/sts12-sts"):
        load_sts("STS12", source=Source("hub", tmp_path))
    (tmp_path/"mteb/sts12-sts").mkdir(parents=True)
    (tmp_path/"mteb/sts12-sts/test.csv").write_text("sentence1,score\nA.,1\n")
    with pytest.raises(DataError, match="no column 'sentence2'"):
        load_sts("STS12", source=Source("hub", tmp_path))
    (tmp_path/"mteb/sts12-sts/test.csv").write_text("sentence1,sentence2,score\nA.,B.,1\nA.,B.,\n")
    with pytest.raises(DataError, match="row 2 has the score"):
        load_sts("STS12", source=Source("hub", tmp_path))

def test_hub_corpus_is_its_first_lines(hub):
    c = load_corpus(["wiki_2014","novels_pd"], 7, source=hub)
    assert (c.name, c.taken, c.source, c[6]) == ("wiki1m", "first 7",
                                                 "mirror princeton-nlp/datasets-for-simcse",
                                                 "Town 6 lies on river 6.")
    assert len(load_corpus("wiki1m", source=hub)) == 500
    with pytest.raises(DataError, match="sentences is 501: corpus wiki1m has 500"):
        load_corpus("wiki1m", 501, source=hub)
    with pytest.raises(DataError, match="corpus is 'wiki_2041'"):
        load_corpus("wiki_2041", source=hub)

# --- corpora --------------------------------------------------------------------------------------

def test_samples_are_nested_ordered_and_repeatable(folder):
    all_ = load_corpus("wiki_2014").sentences
    small,again,large,other = (load_corpus("wiki_2014", n, seed=s).sentences
                               for n,s in ((100,0),(100,0),(900,0),(100,1)))
    assert small == again and small != other and set(small) < set(large) < set(all_)
    assert [s for s in all_ if s in set(small)] == small
    assert load_corpus("wiki_2014", 100, seed=None).sentences == all_[:100]
    assert len(load_corpus("wiki_2014", 5000)) == 5000
    text = "".join(s+"\n" for s in small)
    expected = dict(name="corpus/wiki_2014", source="folder", rows=100,
                    sha256=hashlib.sha256(text.encode()).hexdigest(), rendering="raw")
    assert load_corpus("wiki_2014", 100).describe() == expected

def test_a_sample_is_the_same_on_every_machine():
    "The keys are numpy's raw PCG64 stream, which may not change: drawn here by numpy 2.4.6"
    from sfr_repro.data.corpus import pick
    assert [k for _,k,_ in pick([("x", 0, [f"{i}" for i in range(1000)])], 5, seed=0)] == DRAWN

DRAWN = [11, 269, 850, 855, 921]

def test_bad_corpora(folder, tmp_path):
    corpus = folder/"corpus"
    for name,data in dict(empty=b"", blank=b"\n \n\t\n", one=b"\nAlone.\n",
                          latin=b"Fine.\nNa\xefve.\nFine too.\n").items():
        (corpus/f"{name}.txt").write_bytes(data)
    (corpus/"cut.txt.gz").write_bytes((corpus/"wiki_2014.txt.gz").read_bytes()[:-20])
    (corpus/"not.txt.gz").write_bytes(b"Plain text.\nUnder a false name.\n")
    for name,said in dict(empty="corpus empty has no sentence",
                          blank="corpus blank has no sentence",
                          one="corpus one has one sentence: training needs at least 2",
                          latin="latin.txt line 2 is not UTF-8",
                          cut="cut.txt.gz cannot be read to its end",
                          wiki="corpus is 'wiki': .* has blank, cut, ",
                          **{"not": "not.txt.gz cannot be read"}).items():
        with pytest.raises(DataError, match=said) as e: load_corpus(name)
        assert "\n" not in str(e.value)
    for n in (0, 1, -5, 2.5, True, "20"):
        with pytest.raises(DataError, match="must be None or an integer of at least 2"):
            load_corpus("wiki_2014", n)
    with pytest.raises(DataError, match="sentences is 5001: corpus wiki_2014 has 5000"):
        load_corpus("wiki_2014", 5001)
    with pytest.raises(DataError, match="mine.txt is not there"):
        load_corpus(str(tmp_path/"mine.txt"))

def test_your_own_file_is_a_corpus(tmp_path, monkeypatch):
    offline(monkeypatch)
    (tmp_path/"mine.txt").write_text("One.\r\n\r\nTwo.")
    c = load_corpus(str(tmp_path/"mine.txt"))
    assert (c.sentences, c.name, c.source, c.smoke) == (["One.","Two."], "mine.txt", "file", False)

def test_embedded_stands_in_and_says_so(monkeypatch):
    offline(monkeypatch)
    c = load_corpus("wiki_2014", 20_000)
    assert c.smoke and c.name == "mini" and c.taken == "all"
    assert c.describe()["source"] == "embedded"
    assert set(load_corpus("wiki_2014", 50)) < set(c)
    with pytest.raises(DataError,
                       match="STS12 cannot be had: the source is embedded .*, which has mini-sts "
                             "only"):
        load_sts("STS12")
    for args,said in ((("mini-sts","train"), "mini-sts has dev, test"),
                      (("mini-sts","test","senteval"), "mini-sts has 'raw' only")):
        with pytest.raises(DataError, match=said): load_sts(*args)

# --- the real folder ------------------------------------------------------------------------------

@needs_folder
def test_real_sets_have_their_counts_and_one_order_in_both_renderings():
    for name in STS_SETS:
        for split in STS_COUNTS[name]:
            raw,senteval = (load_sts(name, split, r, FOLDER) for r in ("raw","senteval"))
            assert (raw.scores == senteval.scores).all() and raw.subsets == senteval.subsets
    assert len(set(load_sts("STS12", source=FOLDER).subsets)) == 5
    assert len(set(load_sts("STS13", source=FOLDER).subsets)) == 3

@needs_folder
def test_real_corpora_are_those_the_code_names():
    assert {p.name.removesuffix(".txt.gz")
            for p in (FOLDER/"corpus").glob("*.txt.gz")} == set(FOLDER_CORPORA)
    c = load_corpus("wiki_2014", 20_000, source=FOLDER)
    assert len(set(c)) == 20_000 and set(load_corpus("wiki_2014", 1000, source=FOLDER)) < set(c)
    place = {s: i for i,s in enumerate(load_corpus("wiki_2014", source=FOLDER))}
    places = [place[s] for s in c]
    # from one end of the file to the other
    assert places == sorted(places) and places[0] < 1000 and places[-1] > 1_000_000

@needs_folder
@pytest.mark.parametrize("name", ["MR","CR","SUBJ","MPQA","SST2","TREC"])
def test_other_tables_of_the_folder_have_the_shape_the_reader_asks_for(name):
    assert "transfer" in AREAS and sum(1 for _ in read_tsv(FOLDER/f"transfer/{name}.tsv",
                                                           ("split","label","sentence1"))) > 3000
