"Learning dynamics and analyses: what a run's record and two models' records say, end to end on the project's own sentences"
from pathlib import Path
import numpy as np, pytest, torch
from transformers import BertConfig, BertModel

from sfr_repro.analysis.dynamics import CLAIMS, claims_table, judge, trajectories
from sfr_repro.core.config import load_experiment
from sfr_repro.core.notation import UserError
from sfr_repro.core.records import metrics_table, read_record
from sfr_repro.data.mini_sts import load_mini_corpus
from sfr_repro.encode.encoder import SentenceEncoder
from sfr_repro.results.isotropy import analyse, before_after, token_shifts, token_table
from sfr_repro.results.report import sts_scores
from sfr_repro.train.run import run

pytestmark = pytest.mark.once          # the embedded source only

@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    "A run that is measured on the way"
    out = tmp_path_factory.mktemp("runs")
    config, = load_experiment("smoke", ("train.measure_every=2",))
    return run(config, out, progress=False)

@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    "Two models of one architecture, saved"
    tokenizer, folder = SentenceEncoder.from_pretrained("sfr-mini").tokenizer, tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("old", "new")):
        torch.manual_seed(seed)
        model = BertModel(BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=64), add_pooling_layer=False)
        SentenceEncoder(model.eval(), tokenizer, name=name).save_pretrained(folder/name)
    return folder

def test_a_measured_run_has_a_trajectory_of_geometry(watched):
    record = read_record(watched)
    table = trajectories([record])
    assert sorted(table.step.unique()) == [0, 2, 4] and set(table.place) == {*(f"layer:{l}" for l in range(5)), "last", "pooled"}
    assert [d.rows for d in record.data if d.name.startswith("geometry/")] == [350]
    assert {c.measure for c in CLAIMS} <= set(table.measure)
    first = table[(table.step == 0) & (table.place == "last") & (table.measure == "anisotropy")].value.item()
    key = next(k for k in record.trajectory[0].metrics if k.endswith("/layer:4/anisotropy"))
    assert first == record.trajectory[0].metrics[key]
    assert set(claims_table(table).verdict) <= {"too few seeds", "no room"} and len(claims_table(table)) == len(CLAIMS)

def test_training_does_not_feel_that_it_is_measured(watched, tmp_path):
    config, = load_experiment("smoke")
    plain, measured = read_record(run(config, tmp_path, progress=False)), read_record(watched)
    assert plain.metrics == measured.metrics and plain.id != measured.id
    assert not len(trajectories([plain]))

def test_judge_is_the_rule_in_the_notebook():
    rng, seen = np.random.default_rng(0), set()
    for _ in range(400):
        claim, n = CLAIMS[rng.integers(len(CLAIMS))], rng.integers(1, 6)
        a, b = rng.uniform(.2, 1, n), rng.uniform(.2, 1, n)*rng.choice([.02, 1])
        delta = claim.sign*(b-a)/(a.mean() if claim.relative else 1)
        word = "no room" if a.mean() >= claim.top else "too few seeds" if n < 3 else "undecided"
        if n >= 3 and a.mean() < claim.top:
            threshold = max(claim.least, 2*delta.std(ddof=1))
            word = "supported" if delta.mean() > threshold else "contradicted" if delta.mean() < -threshold else "undecided"
        assert judge(claim, a, b).word == word
        seen.add(word)
    assert seen >= {"supported", "contradicted", "undecided", "too few seeds"}

def test_analyse_two_models_by_path(tiny, tmp_path):
    page = analyse(tiny/"new", against=tiny/"old", source="embedded", out=tmp_path)
    new, old = (read_record(next(p for p in tmp_path.glob("*/record.json") if read_record(p).encoder.name == n)) for n in ("new", "old"))
    assert page.parent == tmp_path/f"analyse-{new.id}-s0" and {p.suffix for p in page.parent.iterdir()} == {".png", ".json", ".html"}
    text = page.read_text()
    assert "new against old" in text and "http" not in text and "Traceback" not in text and text.count("<img") == 3
    shifts = token_shifts([old], [new])
    by = {r.token: r for r in shifts.itertuples()}
    for t in token_table(old).itertuples(): assert by[t.token].before == t.value and by[t.token].contexts >= 5
    assert len(shifts) == len(token_table(old)) > 50 and (np.diff(shifts.value) >= 0).all()
    assert len(before_after([old], [new])) == len(CLAIMS)
    assert not len(sts_scores([old, new])) and set(metrics_table([old, new]).task) == {"geometry"}          # the other tables are not disturbed

def test_one_model_on_sentences_of_a_file(tiny, tmp_path):
    (tmp_path/"texts.txt").write_text("\n\n".join(load_mini_corpus()[:80]), encoding="utf-8")
    page = analyse(tiny/"new", sentences=tmp_path/"texts.txt", out=tmp_path)
    record = read_record(page.parent/"record.json")
    assert (record.data[0].name, record.data[0].source, record.data[0].rows) == ("geometry/given/all", "given", 80)
    assert not any(s in page.read_text() + (page.parent/"record.json").read_text() for s in load_mini_corpus()[:80])    # no sentence is kept

def test_other_weights_under_one_name_are_refused(tiny, tmp_path):
    texts = load_mini_corpus()[:80]
    analyse(SentenceEncoder.from_pretrained(tiny/"old", precision="fp32"), sentences=texts, out=tmp_path)
    other = SentenceEncoder.from_pretrained(tiny/"new", precision="fp32"); other.name = "old"
    with pytest.raises(UserError, match="a record is never overwritten"): analyse(other, sentences=texts, out=tmp_path)

@pytest.mark.parametrize("said, options", [("cannot be read as text", dict(sentences=Path("nowhere.txt"))), ("sentences has 1 sentence", dict(sentences=["one lamp"])),
    ("sentence 80 has more than 64 word pieces: new has no positions", dict(sentences=[*load_mini_corpus()[:80], "lamp "*80])), ("no token type is seen 5 times", dict(sentences=["red lamp", "green door", "old roof", "blue hat"])),
    ("source", dict(source="nowhere"))])
def test_what_cannot_be_analysed(tiny, tmp_path, said, options):
    with pytest.raises(UserError, match=said) as e: analyse(tiny/"new", out=tmp_path/"out", **options)
    assert "\n" not in str(e.value) and not (tmp_path/"out").exists()
