"Learning dynamics and analyses: what a run's record and two models' records say, end to end on the project's own sentences"
import copy, shutil
from pathlib import Path
import numpy as np, pytest, torch
from transformers import BertConfig, BertModel, BloomConfig, BloomModel, DebertaV2Config, DebertaV2Model, T5Config, T5Model

from sfr_repro.analysis.dynamics import CLAIMS, claims_table, judge, trajectories
from sfr_repro.analysis.geometry_record import missing_reading, model_names, record_geometry
from sfr_repro.core.config import load_experiment
from sfr_repro.core.notation import UserError
from sfr_repro.core.records import metrics_table, read_record
from sfr_repro.data.mini_sts import load_mini_corpus
from sfr_repro.encode.encoder import SentenceEncoder
from sfr_repro.results.isotropy import before_after, layer_figure, token_shifts, token_table, wide_table, write_analysis
from sfr_repro.results.report import sts_scores
from sfr_repro.train.run import run

pytestmark = pytest.mark.once          # the embedded source only

def analyse(model, **options):
    "Measure and draw, as `sfr-repro analyse` does"
    kept = record_geometry(model, **options)
    return write_analysis([record for record, _ in kept], kept[0][1])

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

def test_two_folders_of_one_name_are_two_models(tiny, tmp_path):
    for n in ("old", "new"): shutil.copytree(tiny/n, tmp_path/n/"model")
    page = analyse(tmp_path/"new/model", against=tmp_path/"old/model", source="embedded", out=tmp_path/"runs", progress=False)
    records = [read_record(p) for p in (tmp_path/"runs").glob("*/record.json")]
    assert {r.encoder.name for r in records} == {"new/model", "old/model"} and len({r.id for r in records}) == len({r.encoder.sha256 for r in records}) == 2
    assert "new/model against old/model" in page.read_text()
    same = analyse(tmp_path/"new/model", against=tmp_path/"new/../new/model", source="embedded", out=tmp_path/"one", progress=False)     # one model twice stays one
    assert len(list((tmp_path/"one").iterdir())) == 1 and "(against)" in same.read_text()

def test_names_are_as_short_as_they_can_be(tiny, tmp_path):
    for n in ("a/x/model", "b/x/model", "a/sfr-mini"): (tmp_path/n).mkdir(parents=True)
    assert model_names(tiny/"new", tiny/"old") == [("new", 0), ("old", 0)]
    assert model_names(tmp_path/"a/sfr-mini", "sfr-mini") == [("a/sfr-mini", 0), ("sfr-mini", 0)]
    with pytest.raises(UserError, match="two models with one name, 'x/model'") as e: analyse(tmp_path/"a/x/model", against=tmp_path/"b/x/model", out=tmp_path/"out")
    assert "\n" not in str(e.value) and not (tmp_path/"out").exists()
    new, old, again = (SentenceEncoder.from_pretrained(tiny/n) for n in ("new", "old", "new"))
    assert model_names(new, again) == [("new", 0)]*2
    old.name = "new"
    with pytest.raises(UserError, match="two models with one name"): model_names(new, old)

SMALL = dict(vocab_size=12288, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=64)
class Claims(torch.nn.Module):
    "A model whose config names another attention than it has"
    def __init__(self, model, attention):
        super().__init__(); self.inner, self.config = model, copy.deepcopy(model.config)
        self.config._attn_implementation_internal = attention
    def forward(self, **kw): return self.inner(**kw)

@pytest.mark.parametrize("kind, why", [("deberta", "hidden state at layer 0 that is zero"), ("flash", "attention is 'flash_attention_2', which may skip padded positions")])
def test_an_encoder_without_the_official_reading_keeps_the_clean_one(kind, why, tiny, tmp_path):
    torch.manual_seed(0)
    old = SentenceEncoder.from_pretrained(tiny/"old", precision="fp32")
    model = DebertaV2Model(DebertaV2Config(**SMALL)).eval() if kind == "deberta" else Claims(old.model, "flash_attention_2")
    page = analyse(SentenceEncoder(model, old.tokenizer, precision="fp32", name=kind), against=old, source="embedded", out=tmp_path, progress=False)
    records = {r.encoder.name: r for r in map(read_record, tmp_path.glob("*/record.json"))}
    odd, text = records[kind], page.read_text()
    assert why in missing_reading(odd) and missing_reading(odd).startswith("not to be had, ") and missing_reading(records["old"]) == ""
    assert not any("official" in k for k in odd.metrics) and {k for k in records["old"].metrics if "official" not in k and "token:" not in k} == {k for k in odd.metrics if "token:" not in k}
    assert f"{kind}: official reading: not to be had, " in text and "old: official reading" not in text and text.count("<img") == 3
    solid, both = (layer_figure({k: [records[k]] for k in names}).axes[0].lines for names in ((kind,), (kind, "old")))
    assert (len(solid), len(both)) == (1, 3) and len(wide_table({kind: [odd]})) == 3
    assert analyse(SentenceEncoder(model, old.tokenizer, precision="fp32", name=kind), source="embedded", out=tmp_path, progress=False) == page      # as often as wanted

def test_a_model_that_counts_no_positions(tiny, tmp_path):
    tokenizer = SentenceEncoder.from_pretrained("sfr-mini").tokenizer
    SentenceEncoder(BloomModel(BloomConfig(vocab_size=12288, hidden_size=16, n_layer=1, n_head=2)).eval(), tokenizer).save_pretrained(tmp_path/"bloom")
    assert SentenceEncoder.from_pretrained(tmp_path/"bloom").max_length == tokenizer.model_max_length
    page = analyse(tmp_path/"bloom", sentences=load_mini_corpus()[:80], out=tmp_path/"runs", progress=False)
    assert read_record(page.parent/"record.json").encoder.name == "bloom"

def test_a_model_with_a_decoder_is_refused(tmp_path):
    T5Model(T5Config(vocab_size=100, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)).save_pretrained(tmp_path/"t5")
    SentenceEncoder.from_pretrained("sfr-mini").tokenizer.save_pretrained(tmp_path/"t5")
    with pytest.raises(UserError, match="a t5 model is an encoder with a decoder: only an encoder alone can be opened") as e: analyse(tmp_path/"t5", out=tmp_path/"out")
    assert "\n" not in str(e.value) and not (tmp_path/"out").exists()

def test_progress_is_shown_when_asked_for(tiny, tmp_path, monkeypatch):
    from sfr_repro.encode import encoder
    from sfr_repro.geometry import measure
    asked = []
    for module in (measure, encoder):
        bar = module.tqdm
        monkeypatch.setattr(module, "tqdm", lambda *a, bar=bar, **kw: asked.append((kw["desc"], kw["disable"])) or bar(*a, **kw))
    for progress in (True, False): analyse(tiny/"new", sentences=load_mini_corpus()[:80], out=tmp_path, progress=progress)
    assert asked == [(desc, None if progress else True) for progress in (True, False) for desc in ("geometry", "geometry", "encode")]

def test_results_open_no_model():
    "What draws is a function of records: it has no name of what opens, encodes or trains"
    from sfr_repro.results import isotropy, learning_dynamics
    for module in (isotropy, learning_dynamics):
        names = vars(module)
        assert not {"SentenceEncoder", "measure_geometry", "analyse_record", "record_geometry", "run", "torch"} & set(names), module.__name__
