"All tasks in one pass: each text once, vectors that survive a kill, one record"
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
import numpy as np
import pytest
import torch
from sfr_repro.core.folders import LOCK
from sfr_repro.core.records import read_record
from sfr_repro.data.retrieval import HUB_RETRIEVAL, retrieval_set
from sfr_repro.data.sources import DataError
from sfr_repro.data.sts import HUB, load_sts, sts_set
from sfr_repro.data.transfer import transfer_set
from sfr_repro.encode.cache import cache_folder, model_key, read_shards, text_key, write_shard
from sfr_repro.encode.encoder import SentenceEncoder, weights_sha256
from sfr_repro.evaluate.options import TASKS
from sfr_repro.evaluate.retrieval import evaluate_retrieval
from sfr_repro.evaluate.sts import evaluate_sts
from sfr_repro.evaluate.tasks import evaluate_model, evaluate_tasks, mteb_model, vectors_of

ROOT = Path(__file__).resolve().parents[1]

@pytest.fixture(scope="module")
def encoder(): return SentenceEncoder.from_pretrained("sfr-mini", precision="fp32")

@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch): monkeypatch.setenv("SFR_CACHE", str(tmp_path/"cache"))

def pairs(n=24):
    return sts_set("own",
                   [(f"row {i}", "", i%6, f"Lamp {i} is on.", f"Lamp {i%5} is off.")
                    for i in range(n)])
def labelled(n=60):
    return transfer_set("lamps",
                        [(f"row {i}", "test" if i%3==0 else "train", str(i%2),
                          f"Lamp {i%30} is {'on' if i%2 else 'off'}.") for i in range(n)])

class Counting:
    def __init__(self): self.seen = []
    def encode(self, sentences):
        self.seen += sentences
        return np.random.default_rng(0).normal(size=(len(sentences),8)).astype(np.float32)

def test_each_distinct_text_is_encoded_once_over_all_tasks():
    e = Counting()
    result = evaluate_tasks(e, "sts, transfer", sets=dict(sts=[pairs()], transfer=[labelled()]),
                            progress=False)
    assert len(e.seen) == len(set(e.seen)) == result.texts
    assert sorted(result.results) == ["sts","transfer"]
    assert {k.split("/")[0] for k in result.to_metrics()} == {"sts",
                                                              "transfer"} and len(result.data) == 2

def test_sts_alone_gives_what_sts_gives(encoder):
    data = pairs()
    found = evaluate_tasks(encoder, "sts", sets=dict(sts=[data]), progress=False)["sts"]["own"]
    alone = evaluate_sts(encoder, sets=data, progress=False)["own"]
    assert found == pytest.approx(alone, abs=1e-4)

def test_names_of_tasks():
    for tasks,said in (("sts,stss", "tasks is 'stss'"), ((), "tasks is empty"),
                       ("", "tasks is ''")):
        with pytest.raises(ValueError, match=said):
            evaluate_tasks(Counting(), tasks, progress=False)

def test_what_a_source_lacks_is_an_error_by_name_and_left_out_otherwise(encoder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1"); monkeypatch.setenv("SFR_DATA", "none")
    for task in ("transfer","retrieval"):
        with pytest.raises(DataError, match=f"{task} cannot be evaluated: the source is embedded"):
            evaluate_tasks(encoder, task, progress=False)
    result = evaluate_tasks(encoder, progress=False)
    assert sorted(result.results) == ["geometry","sts"] and sorted(result.skipped) == ["retrieval",
                                                                                       "transfer"]
    table = result.table()
    assert "| sts | mini-sts | spearman |" in table
    assert "Without transfer: the source is embedded" in table and "smoke-level" in table
    layers = {k.split("/")[3] for k in result.to_metrics()
              if k.startswith("geometry/mini-sts/test/")}
    assert layers == {f"layer:{l}" for l in range(encoder.model.config.num_hidden_layers+1)}

@pytest.mark.parametrize("sets,said",
                         ((dict(transferr="lamps"),
                           "'transferr': it must be one of 'sts', 'transfer', 'retrieval'"),
                           (dict(transfer=[]), "sets has no transfer set"),
                           (dict(retrieval="x"),
                            "sets names retrieval, which is not among the tasks: transfer")))
def test_sets_that_name_nothing_are_refused(sets, said):
    e = Counting()
    with pytest.raises(ValueError, match=said):
        evaluate_tasks(e, "transfer", sets=sets, progress=False)
    assert not e.seen

def labelled_file(path):
    d = labelled()
    rows = zip(d.splits, d.labels, d.sentence1, strict=True)
    lines = [f"{s}\t{d.classes[y]}\t{t}\n" for s,y,t in rows]
    path.write_text("split\tlabel\tsentence1\n"+"".join(lines))
    return path

@pytest.mark.parametrize("wrap", (str, Path, lambda p: [p], lambda p: (str(p),)))
def test_one_name_or_path_is_a_list_of_one(wrap, tmp_path):
    path = labelled_file(tmp_path/"lamps.tsv")
    assert list(evaluate_tasks(Counting(), "transfer", sets=dict(transfer=wrap(path)),
                               progress=False)["transfer"]) == ["lamps"]
    assert evaluate_tasks(Counting(), "transfer", sets=dict(transfer=labelled()),
                          progress=False)["transfer"]["lamps"] >= 0

@pytest.mark.skipif(find_spec("pytrec_eval") is None, reason="pytrec-eval-terrier is not installed")
def test_the_command_takes_own_folders_named_sets_and_a_seed(tmp_path, monkeypatch):
    from typer.testing import CliRunner
    from sfr_repro.cli import app
    labelled_file(tmp_path/"lamps.tsv")
    for name,text in dict(corpus="docid\ttitle\ttext\na\t\tTin.\nb\t\tRain.\n",
                          queries="qid\ttext\n1\tTin?\n",
                          qrels="qid\tdocid\trel\n1\ta\t1\n").items():
        (tmp_path/"retrieval/mine").mkdir(parents=True, exist_ok=True)
        (tmp_path/f"retrieval/mine/{name}.tsv").write_text(text)
    monkeypatch.setenv("SFR_RUNS", str(tmp_path/"runs"))
    def said(*args):
        r = CliRunner().invoke(app, ["evaluate", "sfr-mini", "--precision", "fp32",
                                     "--format", "markdown", *args])
        return r.output if r.exit_code == 0 else str(r.exception)
    both = said("--sets", f"transfer={tmp_path/'lamps.tsv'}", "--sets",
                f"retrieval={tmp_path/'retrieval/mine'}", "--seed", "3")
    assert "| transfer | lamps | accuracy |" in both and "| retrieval | mine | ndcg@10 |" in both
    r = read_record(next((tmp_path/"runs").glob("*-s3/record.json")))
    assert r.seed == 3 and r.config["evaluate"] == {"tasks":["transfer","retrieval"],
                                                    "rendering":"raw",
                                                    "sets":{"transfer":["lamps.tsv"],
                                                            "retrieval":["mine"]}}
    assert "| retrieval | mine | ndcg@10 |" in said("--tasks", "retrieval", "--source",
                                                    str(tmp_path))
    assert "sets names transfer, which is not among the tasks: sts" in said("--tasks", "sts",
                                                                            "--sets", "transfer=MR")
    assert "sets is 'MR': it must be TASK=NAME" in said("--sets", "MR")
    assert "seed is -1: it must be a whole number" in said("--seed", "-1")

# --- vectors that are kept ------------------------------------------------------------------------

def test_shards_are_found_again_by_text_and_model(encoder, tmp_path):
    texts = ["A lamp.", "", "half \ud800 a pair", "雪と氷", "a\u0000b"]
    folder,x = cache_folder(encoder), np.arange(5*4, dtype=np.float32).reshape(5,4)
    write_shard(folder, list(map(text_key, texts)), x)
    out = np.zeros((6,4), np.float32)
    there = read_shards(folder, {text_key(t):i for i,t in enumerate([*texts[::-1], "unknown"])},
                        out)
    assert there.tolist() == [True]*5+[False] and (out[:5] == x[::-1]).all()
    assert sorted(p.suffix for p in folder.iterdir() if p.name != LOCK) == [".vectors"]
    other = SentenceEncoder.from_pretrained("sfr-mini", precision="fp32", pooler="max")
    assert cache_folder(other) != folder and model_key(other) == model_key(other)

def test_the_same_weights_under_another_configuration_are_another_model(encoder, tmp_path):
    import json
    encoder.save_pretrained(tmp_path/"same"); encoder.save_pretrained(tmp_path/"heads")
    config = json.loads((tmp_path/"heads/config.json").read_text())
    config["num_attention_heads"] *= 2
    (tmp_path/"heads/config.json").write_text(json.dumps(config))
    same,heads = (SentenceEncoder.from_pretrained(tmp_path/n, precision="fp32")
                  for n in ("same","heads"))
    # where it lies decides nothing
    assert model_key(same) == model_key(encoder)
    assert weights_sha256(heads.model) == weights_sha256(encoder.model)
    assert model_key(heads) != model_key(encoder)
    texts = ["A lamp.", "Rain falls on the roof."]
    x = vectors_of(encoder, texts)
    assert np.abs(vectors_of(heads, texts)-x).max() > .01 and (vectors_of(same, texts) == x).all()

def test_the_forward_pass_has_a_number_in_the_key(encoder, monkeypatch):
    before = model_key(encoder)
    monkeypatch.setattr("sfr_repro.encode.cache.FORWARD", 0)
    assert model_key(encoder) != before

def flip(path, i):
    "One wrong bit"
    raw = bytearray(path.read_bytes()); raw[i] ^= 1 << i%8
    path.write_bytes(raw)

DAMAGES = {"cut": lambda path: path.write_bytes(path.read_bytes()[:-30]),
           "empty": lambda path: path.write_bytes(b""),
           "foreign": lambda path: path.write_bytes(b"PK\x03\x04 and then something else"),
           "a bit of the checksum": lambda path: flip(path, 5),
           "a bit of the key": lambda path: flip(path,
                                                 path.read_bytes().index(text_key("A lamp."))),
           "a bit of a vector": lambda path: flip(path, path.stat().st_size//2)}

@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_file_is_a_miss_and_is_mended(encoder, what):
    texts = ["A lamp.", "Rain."]
    x = vectors_of(encoder, texts)
    path = next(cache_folder(encoder).glob("*.vectors"))
    whole = path.read_bytes()
    DAMAGES[what](path)
    assert path.read_bytes() != whole
    assert (vectors_of(encoder, texts) == x).all() and path.read_bytes() == whole

def test_files_of_another_width_another_model_or_an_older_format_are_misses(encoder):
    folder,out = cache_folder(encoder), np.zeros((1, encoder.dim), np.float32)
    wanted,ones = {text_key("A lamp."):0}, np.ones((1, encoder.dim), np.float32)
    write_shard(folder, list(wanted), ones[:,:3])
    assert not read_shards(folder, wanted, out).any()
    write_shard(folder.parent/"another", list(wanted), ones)
    for path in (folder.parent/"another").iterdir(): path.replace(folder/path.name)
    np.savez(folder/"old.npz", keys=np.frombuffer(text_key("A lamp."), np.uint8).reshape(-1,16),
             vectors=ones)
    assert not read_shards(folder, wanted, out).any() and not out.any()
    write_shard(folder, list(wanted), ones)                              # control
    assert read_shards(folder, wanted, out).all() and out.all()

def test_a_cache_that_cannot_be_written_is_named(encoder, tmp_path):
    (tmp_path/"file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        vectors_of(encoder, ["A lamp."], tmp_path/"file")

def test_cache_off_keeps_nothing(encoder, tmp_path):
    x = vectors_of(encoder, ["A lamp.", "Rain."], False)
    assert not (tmp_path/"cache").exists()
    assert (vectors_of(encoder, ["A lamp.", "Rain."], None)
            == x).all() and len(list((tmp_path/"cache").rglob("*.vectors"))) == 1

SLOW = """
import sys, time; sys.path.insert(0, sys.argv[1])
import sfr_repro.evaluate.tasks as t
class Slow(t.SentenceEncoder):
    def encode(self, sentences, *, progress=True):
        time.sleep(.3); return super().encode(sentences, progress=progress)
texts = [f"Lamp {i} is on." for i in range(300)]
t.vectors_of(Slow.from_pretrained("sfr-mini", precision="fp32"), texts, portion=10)
"""

class Counted(SentenceEncoder):
    n = 0
    def encode(self, sentences, *, progress=True):
        Counted.n += len(sentences); return super().encode(sentences, progress=progress)

@pytest.fixture
def one_thread():
    "Another number of threads may give another last digit"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

@pytest.mark.once
def test_two_at_once_killed_and_taken_up_again(tmp_path, one_thread):
    env = {**os.environ, "SFR_CACHE":str(tmp_path/"shared"), "OMP_NUM_THREADS":"1"}
    both = [subprocess.Popen([sys.executable, "-c", SLOW, str(ROOT)], env=env) for _ in range(2)]
    files = lambda: list((tmp_path/"shared").rglob("*.vectors"))
    deadline = time.monotonic()+240
    while len(files()) < 3 and time.monotonic() < deadline: time.sleep(.05)
    for p in both: p.send_signal(signal.SIGKILL); p.wait(60)
    kept,texts = len(files()), [f"Lamp {i} is on." for i in range(300)]
    assert 3 <= kept < 30
    encoder = Counted.from_pretrained("sfr-mini", precision="fp32")
    resumed = vectors_of(encoder, texts, tmp_path/"shared", portion=10)
    assert Counted.n == 300-10*kept and len(files()) == 30
    assert (resumed == vectors_of(encoder, texts, False, portion=10)).all()

# --- one record -----------------------------------------------------------------------------------

def test_one_record_that_tables_can_read(tmp_path):
    from sfr_repro.results.report import sts_scores
    options = dict(source="embedded", progress=False, out=tmp_path/"runs", precision="fp32")
    path = evaluate_model("sfr-mini", "all", **options)
    record = read_record(path)
    row = sts_scores([record]).iloc[0]
    assert row["mini-sts"] == pytest.approx(100*record.metrics["sts/mini-sts/test/all/spearman"])
    assert row.kind == "evaluate"
    assert not [c for c in row.index if c.startswith(("geometry","layer"))]
    assert all(len(k.split("/")) == 5
               for k in record.metrics) and record.config["evaluate"]["tasks"] == list(TASKS)
    before = path.read_bytes()
    # not done twice
    assert evaluate_model("sfr-mini", "all", **options) == path and path.read_bytes() == before
    assert evaluate_model("sfr-mini", "sts", **options) != path
    assert str(tmp_path) not in before.decode()

def test_a_record_of_other_data_is_not_taken_for_this_one(tmp_path):
    options = dict(progress=False, out=tmp_path/"runs", precision="fp32")
    evaluate_model("sfr-mini", "sts", sets=dict(sts=[pairs()]), **options)
    with pytest.raises(ValueError, match="was made with another set .*: move it away"):
        evaluate_model("sfr-mini", "sts", sets=dict(sts=[pairs(23)]), **options)

def test_a_runs_model_goes_by_its_run(encoder, tmp_path):
    first = evaluate_model("sfr-mini", "sts", source="embedded", progress=False,
                           out=tmp_path/"runs", precision="fp32")
    encoder.save_pretrained(first.parent/"model")
    r = read_record(evaluate_model(first.parent/"model", "sts", source="embedded", progress=False,
                                   out=tmp_path/"runs"))
    old = read_record(first)
    assert r.encoder.name == f"evaluate-sfr-mini-{old.id}-s0"
    assert r.encoder.sha256 == old.encoder.sha256
    assert r.experiment.name == "evaluate-"+r.encoder.name
    assert r.metrics == old.metrics and r.id != old.id

def test_a_class_too_rare_is_refused_before_anything_is_encoded():
    rare = transfer_set("rare",
                        [(f"row {i}", "all", str(int(i in (3,5))), f"tin {i}") for i in range(40)])
    e = Counting()
    with pytest.raises(DataError, match="the next one 2 times: 10-fold"):
        evaluate_tasks(e, "transfer", sets=dict(transfer=[rare]), progress=False)
    assert not e.seen

# --- inside mteb ----------------------------------------------------------------------------------

needs_mteb = pytest.mark.skipif(find_spec("mteb") is None, reason="mteb is not installed")

@pytest.fixture(scope="module")
def own_tasks():
    "Classes of mteb tasks made of mini-sts, and the same as sets of ours"
    from datasets import Dataset
    from mteb import TaskMetadata
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.sts import AbsTaskSTS
    pairs = load_sts("mini-sts")
    near,docs = [i for i,s in enumerate(pairs.scores)
                 if s >= 3.5], list(dict.fromkeys(pairs.sentence2))
    queries = {f"q{i}":pairs.sentence1[i] for i in near}
    judged = {f"q{i}":{f"d{docs.index(pairs.sentence2[i])}":1} for i in near}
    some = {q: list(dict.fromkeys([*j, *(f"d{(7*k+11*i)%len(docs)}" for k in range(9))]))
            for i,(q,j) in enumerate(judged.items())}
    def task(base, kind, score, data):
        about = TaskMetadata(dataset=dict(path="own", revision="own"), name=f"Own{kind}",
                             description="own pairs", type=kind, category="t2t",
                             eval_langs=["eng-Latn"], main_score=score)
        def load_data(self, num_proc=None, **_): self.dataset,self.data_loaded = data(),True
        return type(f"Own{kind}", (base,), dict(metadata=about, load_data=load_data))
    table = lambda texts: Dataset.from_dict(dict(id=list(texts), text=list(texts.values())))
    corpus = {f"d{i}":s for i,s in enumerate(docs)}
    columns = dict(sentence1=pairs.sentence1, sentence2=pairs.sentence2, score=list(pairs.scores))
    similar = lambda: dict(test=Dataset.from_dict(columns))
    def search(top=None):
        test = dict(corpus=table(corpus), queries=table(queries), relevant_docs=judged,
                    top_ranked=top)
        return dict(default=dict(test=test))
    rows = lambda texts: [("row", k, s) for k,s in texts.items()]
    judgements = [("row",q,d,g) for q,j in judged.items() for d,g in j.items()]
    ours = lambda **how: retrieval_set("own", rows(corpus), rows(queries), judgements, **how)
    reranked = task(AbsTaskRetrieval, "Reranking", "map_at_1000", lambda: search(some))
    return {"sts": (task(AbsTaskSTS, "STS", "cosine_spearman", similar), pairs),
            "search": (task(AbsTaskRetrieval, "Retrieval", "ndcg_at_10", search), ours()),
            "rerank": (reranked, ours(candidates=some))}

def inside(model, task):
    import mteb
    result = mteb.evaluate(model, task(), cache=None, co2_tracker=False, show_progress_bar=False)
    return result, result.task_results[0].scores["test"][0]["main_score"]

@needs_mteb
@pytest.mark.parametrize("kind", ("sts","search","rerank"))
def test_an_encoder_of_ours_scores_inside_mteb_what_it_scores_here(kind, encoder, own_tasks):
    task,data = own_tasks[kind]
    evaluate = evaluate_sts if kind=="sts" else evaluate_retrieval
    score = lambda e: evaluate(e, sets=data, progress=False)[data.name]
    other = SentenceEncoder.from_pretrained("sfr-mini", precision="fp32", pooler="max")
    (result,theirs),(_,of_other) = (inside(mteb_model(e), task) for e in (encoder,other))
    # of a search, mteb keeps five digits
    tolerance = 1e-9 if kind=="sts" else 1.1e-5
    assert theirs == pytest.approx(score(encoder), abs=tolerance)
    assert of_other == pytest.approx(score(other), abs=tolerance)
    # control: it is this encoder that was scored
    assert abs(theirs-of_other) > 1e-3
    assert result.model_name == "sfr_repro/sfr-mini"
    revision = f"{weights_sha256(encoder.model)[:12]}-mean-fp32-"
    assert result.model_revision.startswith(revision)
    assert result.model_revision != mteb_model(other).mteb_model_meta.revision

@needs_mteb
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pooler", ("mean","first_last"))
def test_a_saved_encoder_opens_in_sentence_transformers_and_goes_to_mteb(pooler, own_tasks,
                                                                         tmp_path):
    SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer
    encoder = SentenceEncoder.from_pretrained("sfr-mini", precision="fp32", pooler=pooler)
    encoder.save_pretrained(tmp_path/"saved")
    task,data = own_tasks["sts"]
    theirs = inside(SentenceTransformer(str(tmp_path/"saved"), device="cpu"), task)[1]
    here = evaluate_sts(encoder, sets=data, progress=False)[data.name]
    assert theirs == pytest.approx(here, abs=1e-4)

@needs_mteb
def test_pinned_revisions_are_those_of_mteb():
    import mteb
    of = {"STS-B":"STSBenchmark", "SICK-R-all":"SICK-R"}
    for name,hub in ({n:h for n,h in HUB.items() if h.repo.startswith("mteb/")}
                     | HUB_RETRIEVAL).items():
        theirs = mteb.get_task(of.get(name, name)).metadata.dataset
        assert (theirs["path"], theirs["revision"]) == (hub.repo, hub.revision), name

def test_without_mteb_the_error_names_it(encoder, monkeypatch):
    monkeypatch.setattr("sfr_repro.evaluate.tasks.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="mteb_model needs the package mteb: pip install mteb"):
        mteb_model(encoder)
