"Learning dynamics and analyses: what records say, end to end on the project's own sentences"
import copy
import shutil
from pathlib import Path
import numpy as np
import pytest
import torch
from scipy import stats
from transformers import (
    BertConfig,
    BertModel,
    BloomConfig,
    BloomModel,
    DebertaV2Config,
    DebertaV2Model,
    T5Config,
    T5Model,
)
from sfr_repro.analysis.dynamics import GEOMETRY_CLAIMS, seed_changes, trajectories
from sfr_repro.analysis.geometry_record import missing_reading, model_names, record_geometry
from sfr_repro.core.config import load_experiment
from sfr_repro.core.errors import UserError
from sfr_repro.core.records import metrics_table, read_record
from sfr_repro.data.mini_sts import load_mini_corpus
from sfr_repro.encode.encoder import SentenceEncoder
from sfr_repro.results.isotropy import (
    before_after,
    layer_figure,
    token_shifts,
    token_table,
    wide_table,
    write_analysis,
)
from sfr_repro.results.learning_dynamics import geometry_claims_table, judge_changes
from sfr_repro.results.report import sts_scores
from sfr_repro.train.run import run

pytestmark = pytest.mark.once          # the embedded source only

SMALL = dict(vocab_size=12288, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
             intermediate_size=32, max_position_embeddings=64)

def analyse(model, **options):
    "Measure and draw, as `sfr-repro analyse` does"
    written = record_geometry(model, **options)
    return write_analysis([record for record, _ in written], written[0][1])

def records_by_name(folder):
    "The records of a folder by the name of their model"
    return {r.encoder.name: r for r in map(read_record, folder.glob("*/record.json"))}

@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    "A run that is measured on the way"
    out = tmp_path_factory.mktemp("runs")
    config, = load_experiment("smoke", ("train.measure_every=2",))
    return run(config, out, progress=False)

@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    "Two models of one architecture, saved"
    tokenizer = SentenceEncoder.from_pretrained("sfr-mini").tokenizer
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("old", "new")):
        torch.manual_seed(seed)
        config = BertConfig(**{**SMALL, "vocab_size": len(tokenizer)})
        model = BertModel(config, add_pooling_layer=False)
        SentenceEncoder(model.eval(), tokenizer, name=name).save_pretrained(folder/name)
    return folder

def test_a_measured_run_has_a_trajectory_of_geometry(watched):
    record = read_record(watched)
    table = trajectories([record])
    assert sorted(table.step.unique()) == [0, 2, 4]
    assert set(table.place) == {*(f"layer:{l}" for l in range(5)), "last", "pooled"}
    assert [d.rows for d in record.data if d.name.startswith("geometry/")] == [350]
    assert {c.measure for c in GEOMETRY_CLAIMS} <= set(table.measure)
    at = (table.step == 0) & (table.place == "last") & (table.measure == "anisotropy")
    first = table[at].value.item()
    key = next(k for k in record.trajectory[0].metrics if k.endswith("/layer:4/anisotropy"))
    assert first == record.trajectory[0].metrics[key]
    claims = geometry_claims_table(table)
    assert set(claims.state) == {"exploratory"} and len(claims) == len(GEOMETRY_CLAIMS)
    assert set(claims.side) == {"one seed"} and claims.low.isna().all() and not claims.holds.any()

def test_training_does_not_feel_that_it_is_measured(watched, tmp_path):
    config, = load_experiment("smoke")
    plain, measured = read_record(run(config, tmp_path, progress=False)), read_record(watched)
    assert plain.metrics == measured.metrics and plain.id != measured.id
    assert not len(trajectories([plain]))

def test_claims_are_judged_by_the_one_rule():
    "Student's interval of the changes by SciPy, and the words of results/verdict written again"
    rng, states, sides = np.random.default_rng(0), set(), set()
    for _ in range(400):
        claim, n = GEOMETRY_CLAIMS[rng.integers(len(GEOMETRY_CLAIMS))], int(rng.integers(2, 8))
        a = rng.uniform(.2, 1, n)
        b = a + rng.choice([-.3, 0, .3]) + rng.choice([1e-4, .2])*rng.normal(size=n)
        d = claim.sign*(b-a)/(a if claim.relative else 1)
        low, high = stats.ttest_1samp(d, 0).confidence_interval(.95)
        if low > 0 and d.mean() >= claim.least: word, side = "supported", "as claimed"
        elif high < 0 and d.mean() <= -claim.least: word, side = "contradicted", "opposite"
        elif max(-low, high) <= claim.least: word, side = "no difference", "within least"
        else: word, side = "undecided", "open"
        row = judge_changes(claim, seed_changes(claim, a, b))
        assert row["state"] == (word if n >= 5 else "exploratory") and row["side"] == side
        np.testing.assert_allclose(sorted((claim.sign*row["low"], claim.sign*row["high"])),
                                   (low, high), rtol=1e-9)
        states.add(row["state"])
        sides.add(side)
    assert states == {"supported", "contradicted", "no difference", "undecided", "exploratory"}
    assert sides == {"as claimed", "opposite", "within least", "open"}

def test_analyse_two_models_by_path(tiny, tmp_path):
    page = analyse(tiny/"new", against=tiny/"old", source="embedded", out=tmp_path)
    by_name = records_by_name(tmp_path)
    new, old = by_name["new"], by_name["old"]
    assert page.parent == tmp_path/f"analyse-{new.id}-s0"
    shown = [p for p in page.parent.iterdir() if p.name != ".lock"]
    assert {p.suffix for p in shown} == {".png", ".json", ".html"}
    text = page.read_text()
    assert "new against old" in text and text.count("<img") == 3
    assert "http" not in text and "Traceback" not in text
    shifts = token_shifts([old], [new])
    by = {r.token: r for r in shifts.itertuples()}
    for t in token_table(old).itertuples():
        assert by[t.token].before == t.value and by[t.token].contexts >= 5
    assert len(shifts) == len(token_table(old)) > 50 and (np.diff(shifts.value) >= 0).all()
    claims = before_after([old], [new])
    assert len(claims) == len(GEOMETRY_CLAIMS) and set(claims.state) == {"exploratory"}
    assert "exploratory" in text and "supported" not in text and "contradicted" not in text
    assert not len(sts_scores([old, new]))                      # the other tables are not disturbed
    assert set(metrics_table([old, new]).task) == {"geometry"}

def test_one_model_on_sentences_of_a_file(tiny, tmp_path):
    (tmp_path/"texts.txt").write_text("\n\n".join(load_mini_corpus()[:80]), encoding="utf-8")
    page = analyse(tiny/"new", sentences=tmp_path/"texts.txt", out=tmp_path)
    record = read_record(page.parent/"record.json")
    data, written = record.data[0], page.read_text() + (page.parent/"record.json").read_text()
    assert (data.name, data.source, data.rows) == ("geometry/given/all", "given", 80)
    assert not any(s in written for s in load_mini_corpus()[:80])           # no sentence is kept

def test_other_weights_under_one_name_are_refused(tiny, tmp_path):
    options = dict(sentences=load_mini_corpus()[:80], out=tmp_path)
    old, other = (SentenceEncoder.from_pretrained(tiny/n, precision="fp32") for n in ("old", "new"))
    analyse(old, **options)
    other.name = "old"
    with pytest.raises(UserError, match="was made with another encoder weights"):
        analyse(other, **options)

@pytest.mark.parametrize("said, options", [
    ("cannot be read as text", dict(sentences=Path("nowhere.txt"))),
    ("sentences has 1: at least 4 are needed", dict(sentences=["one lamp"])),
    ("sentence 80 has more than 64 word pieces: new reads no more",
     dict(sentences=[*load_mini_corpus()[:80], "lamp "*80])),
    ("no token type is seen 5 times",
     dict(sentences=["red lamp", "green door", "old roof", "blue hat"])),
    ("source", dict(source="nowhere"))])
def test_what_cannot_be_analysed(tiny, tmp_path, said, options):
    with pytest.raises(UserError, match=said) as e:
        analyse(tiny/"new", out=tmp_path/"out", **options)
    assert "\n" not in str(e.value) and not (tmp_path/"out").exists()

def test_two_folders_of_one_name_are_two_models(tiny, tmp_path):
    for n in ("old", "new"): shutil.copytree(tiny/n, tmp_path/n/"model")
    model, options = tmp_path/"new/model", dict(source="embedded", progress=False)
    page = analyse(model, against=tmp_path/"old/model", out=tmp_path/"runs", **options)
    records = records_by_name(tmp_path/"runs")
    assert set(records) == {"new/model", "old/model"}
    assert len({(r.id, r.encoder.sha256) for r in records.values()}) == 2
    assert len({r.id for r in records.values()}) == 2
    assert "new/model against old/model" in page.read_text()
    same = analyse(model, against=tmp_path/"new/../new/model", out=tmp_path/"one", **options)
    assert len(list((tmp_path/"one").iterdir())) == 1 and "(against)" in same.read_text()

def test_names_are_as_short_as_they_can_be(tiny, tmp_path):
    for n in ("a/x/model", "b/x/model", "a/sfr-mini"): (tmp_path/n).mkdir(parents=True)
    assert model_names(tiny/"new", tiny/"old") == [("new", 0), ("old", 0)]
    assert model_names(tmp_path/"a/sfr-mini", "sfr-mini") == [("a/sfr-mini", 0), ("sfr-mini", 0)]
    with pytest.raises(UserError, match="two models with one name, 'x/model'") as e:
        analyse(tmp_path/"a/x/model", against=tmp_path/"b/x/model", out=tmp_path/"out")
    assert "\n" not in str(e.value) and not (tmp_path/"out").exists()
    new, old, again = (SentenceEncoder.from_pretrained(tiny/n) for n in ("new", "old", "new"))
    assert model_names(new, again) == [("new", 0)]*2
    old.name = "new"
    with pytest.raises(UserError, match="two models with one name"): model_names(new, old)

class Claims(torch.nn.Module):
    "A model whose config names another attention than it has"
    def __init__(self, model, attention):
        super().__init__(); self.inner, self.config = model, copy.deepcopy(model.config)
        self.config._attn_implementation_internal = attention
    def forward(self, **kw): return self.inner(**kw)

@pytest.mark.parametrize("kind, why", [("deberta", "hidden state at layer 0 that is zero"),
    ("flash", "attention is 'flash_attention_2', which may skip padded positions")])
def test_an_encoder_without_the_official_reading_keeps_the_clean_one(kind, why, tiny, tmp_path):
    torch.manual_seed(0)
    old = SentenceEncoder.from_pretrained(tiny/"old", precision="fp32")
    if kind == "deberta": model = DebertaV2Model(DebertaV2Config(**SMALL)).eval()
    else: model = Claims(old.model, "flash_attention_2")
    encoder = SentenceEncoder(model, old.tokenizer, precision="fp32", name=kind)
    options = dict(source="embedded", out=tmp_path, progress=False)
    page = analyse(encoder, against=old, **options)
    records, text = records_by_name(tmp_path), page.read_text()
    odd, whole = records[kind], records["old"]
    assert missing_reading(odd).startswith("not to be had, ") and why in missing_reading(odd)
    assert missing_reading(whole) == ""
    found, both = ({k for k in r.metrics if "token:" not in k} for r in (odd, whole))
    assert found == {k for k in both if "official" not in k} and found < both
    assert f"{kind}: official reading: not to be had, " in text and text.count("<img") == 3
    assert "old: official reading" not in text
    for groups, lines in (({kind: [odd]}, 1), ({kind: [odd], "old": [whole]}, 3)):
        assert len(layer_figure(groups).axes[0].lines) == lines
    assert len(wide_table({kind: [odd]})) == 3
    assert analyse(encoder, **options) == page                                  # as often as wanted

def test_a_model_that_counts_no_positions(tiny, tmp_path):
    tokenizer = SentenceEncoder.from_pretrained("sfr-mini").tokenizer
    model = BloomModel(BloomConfig(vocab_size=12288, hidden_size=16, n_layer=1, n_head=2)).eval()
    SentenceEncoder(model, tokenizer).save_pretrained(tmp_path/"bloom")
    opened = SentenceEncoder.from_pretrained(tmp_path/"bloom")
    assert opened.max_length == tokenizer.model_max_length
    texts = load_mini_corpus()[:80]
    page = analyse(tmp_path/"bloom", sentences=texts, out=tmp_path/"runs", progress=False)
    assert read_record(page.parent/"record.json").encoder.name == "bloom"

def test_a_model_with_a_decoder_is_refused(tmp_path):
    config = T5Config(vocab_size=100, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    T5Model(config).save_pretrained(tmp_path/"t5")
    SentenceEncoder.from_pretrained("sfr-mini").tokenizer.save_pretrained(tmp_path/"t5")
    said = "a t5 model is an encoder with a decoder: only an encoder alone can be opened"
    with pytest.raises(UserError, match=said) as e: analyse(tmp_path/"t5", out=tmp_path/"out")
    assert "\n" not in str(e.value) and not (tmp_path/"out").exists()

def test_progress_is_shown_when_asked_for(tiny, tmp_path, monkeypatch):
    from sfr_repro.encode import encoder
    from sfr_repro.geometry import measure
    asked = []
    def noted(bar):
        def show(total, what, *args, **options):
            asked.append((what, options["show"]))
            return bar(total, what, *args, **options)
        return show
    for module in (measure, encoder):
        monkeypatch.setattr(module, "Progress", noted(module.Progress))
    for progress in (True, False):
        analyse(tiny/"new", sentences=load_mini_corpus()[:80], out=tmp_path, progress=progress)
    bars = ("geometry", "geometry", "encode")
    assert asked == [(name, show) for show in (True, False) for name in bars]

def test_results_open_no_model():
    "What draws is a function of records: it has no name of what opens, encodes or trains"
    from sfr_repro.results import geometry_claims, isotropy, learning_dynamics, spurious
    opens = {"SentenceEncoder", "measure_geometry", "analyse_record", "record_geometry", "torch"}
    for module in (isotropy, learning_dynamics, spurious, geometry_claims):
        assert not opens & set(vars(module)), module.__name__
