"""The built site in a real browser: console, equations, widths, signatures, the explorer.

`make docs` first, else these are skipped. Without Chromium they are left out, in one sentence.
SFR_LARGE=1 looks at every page in every width. First screens go to _proc/shots.
"""
import json
import math
import os
import random
from collections import Counter
import pytest
import browser
import make_docs
from conftest import ROOT

DOCS = ROOT/make_docs.setting('doc_path')
SHOTS = ROOT/'_proc/shots'
WIDTHS = 1400, 800, 390
SIX = ('index.html', 'results/claims.html', 'losses/infonce.html', 'losses/explorer.html',
       'results/gradient_paradigm.html', 'results/deviations.html')
ALLOWED = {'code'}          # code scrolls by choice; its button wraps it
pytestmark = [pytest.mark.once,
    pytest.mark.skipif(not (DOCS/'index.html').exists(), reason='make docs first'),
    pytest.mark.skipif(not browser.chromium(),
        reason='Chromium is not installed, so the site was not looked at in a browser')]

@pytest.fixture(scope='module')
def tab():
    with browser.Browser(DOCS) as b: yield b

PLANTED = '''<!doctype html><html><head>
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,"><style>
main{width:400px;margin:0;padding:0} .katex-display{position:relative;display:block;height:20px}
.base{position:absolute;left:0;width:370px;height:20px} .tag{position:absolute;right:0;height:20px}
</style></head><body><main>
<div><span class="katex-display"><span class="katex"><span class="katex-html">
<span class="base">long</span><span class="tag"><span class="mord text">(tag)</span></span>
</span></span></span></div>
<div><table style="width:900px"><tr><td>wide</td></tr></table></div>
<pre class="raw">f(x) # [`g`](https://example.github.io/p.html)</pre>
<div class="cell-output"><pre>| a | b |
| --- | --- |
| 1 | 2 |</pre></div><a href="https://example.github.io/x">far</a>
<script>console.error("planted"); undefinedName()</script></main></body></html>'''

def test_planted_faults_are_seen(tmp_path):
    (tmp_path/'planted.html').write_text(PLANTED)
    with browser.Browser(tmp_path) as b:
        b.open('planted.html', 390)
        kinds = {f[0] for f in b.measure()}
        assert {'tag', 'table', 'page', 'raw link', 'printed', 'no address'} <= kinds, kinds
        assert {f[0] for f in b.column(380)} == {'tag'}
        assert len(b.errors) == 2 and 'planted' in b.errors[0], b.errors
        b.open('nowhere.html')
        assert b.errors

def pages():
    return [p.relative_to(DOCS).as_posix() for p in sorted(DOCS.rglob('*.html'))]

def test_every_page(tab):
    "No error in the console, nothing wider than its column, no equation under its tag"
    every, faults = bool(os.environ.get('SFR_LARGE')), []
    for page in pages():
        widths = WIDTHS if every or page in SIX else (390,)
        tab.open(page, widths[0])
        for w in widths:
            tab.width(w)
            faults += [(page, w, *f) for f in tab.measure() if f[0] not in ALLOWED]
            if page in SIX: tab.shot(SHOTS/f'{page.replace("/", "_")[:-5]}_{w}.png')
        if tab.run('!!document.querySelector(".katex-display")'):
            for w in (760, 360): faults += [(page, w, *f) for f in tab.column(w)]
        faults += [(page, 0, 'console', e, 0) for e in tab.errors]
    counts = Counter((f[2], f[1]) for f in faults)
    assert not faults, f'{counts}\n' + '\n'.join(map(str, faults[:40]))

def test_equations_are_set(tab):
    "The measure above would be content with a page whose formulas never rendered"
    tab.open('losses/softcse.html')
    assert tab.run('document.querySelectorAll("main .katex-display .tag").length') >= 5

# ---------------------------------------------------------------- finding one's way

def test_sidebar_opens_at_the_page_and_folds_the_rest(tab):
    tab.open('results/gpu.html')
    sections = '[...document.querySelectorAll("#quarto-sidebar ul.sidebar-section")]'
    shown = tab.run(sections + '.filter(u => u.offsetHeight)'
                    '.map(u => u.previousElementSibling.innerText.trim())')
    assert shown == ['Results'], shown
    active = 'document.querySelector("#quarto-sidebar .sidebar-link.active")'
    assert tab.run(f'(() => {{ const r = {active}.getBoundingClientRect();'
                   ' return r.top > 0 && r.bottom < innerHeight; })()')

def test_previous_next_top_and_dark(tab):
    tab.open('losses/infonce.html')
    links = tab.run('[...document.querySelectorAll(".page-navigation a")]'
                    '.map(a => a.getAttribute("href"))')
    assert len(links) == 2 and links[1].endswith('arccon.html'), links
    assert tab.run('!!document.querySelector("#quarto-back-to-top")')
    light = tab.run('getComputedStyle(document.body).backgroundColor')
    tab.run('document.querySelector(".quarto-color-scheme-toggle").click()')
    tab.run('new Promise(ok => setTimeout(ok, 300))')
    assert tab.run('getComputedStyle(document.body).backgroundColor') != light
    tab.run('localStorage.clear()')

def test_texts_have_contrast_in_light_and_dark(tab):
    faults = []
    try:
        for page in (*SIX, 'recipes/choose.html', 'cli.html', 'core/glossary.html'):
            tab.open(page)
            faults += [(page, 'light', *f) for f in tab.pale()]
            tab.run('document.querySelector(".quarto-color-scheme-toggle").click()')
            tab.run('new Promise(ok => setTimeout(ok, 300))')
            assert tab.run('document.documentElement.classList.contains("quarto-dark")'), page
            faults += [(page, 'dark', *f) for f in tab.pale()]
            tab.run('localStorage.clear()')
    finally: tab.run('localStorage.clear()')
    assert not faults, '\n'.join(map(str, faults[:40]))

def test_pale_texts_are_seen(tmp_path):
    "The control: grey on white, light on a half transparent layer, and one that is good"
    (tmp_path/'pale.html').write_text('''<!doctype html><html><body style="background:#fff">
<p style="color:#999">pale</p><p style="color:#555">good</p>
<p style="color:#888;font-size:24px">large</p>
<div style="background:rgba(0,0,0,.5)"><p style="color:#fff">veiled</p></div></body></html>''')
    with browser.Browser(tmp_path) as b:
        b.open('pale.html')
        assert sorted(f[3] for f in b.pale()) == ['pale', 'veiled']

def test_search_shows_titles_before_functions(tab):
    tab.open('index.html')
    tab.run('(() => { const i = document.querySelector("#quarto-search input"); i.focus();'
            ' i.value = "infonce"; i.dispatchEvent(new Event("input", {bubbles: true})); })()')
    for _ in range(50):
        hits = tab.run('[...document.querySelectorAll(".search-result")].map(e => e.innerText)')
        if hits: break
        tab.run('new Promise(ok => setTimeout(ok, 100))')
    assert hits and hits[0].splitlines()[0].strip() == 'InfoNCE', hits[:3]

def test_page_tools(tab):
    tab.open('losses/infonce.html')
    href = tab.run('document.querySelector(".page-tools a[download]").getAttribute("href")')
    assert (DOCS/'losses'/href).resolve().is_file()
    assert tab.run('document.querySelectorAll("link[rel=icon]").length') == 1
    title = tab.run('document.querySelector("meta[property=\'og:title\']").content')
    assert title.startswith('InfoNCE')
    tab.run('document.querySelector(".report-fault").click()')
    tab.run('new Promise(ok => setTimeout(ok, 200))')
    assert tab.run('document.querySelector(".report-fault + span").textContent')

# ---------------------------------------------------------------- the explorer

def configurations(n, seed=0):
    "Losses, repairs, constants and points, all drawn"
    from sfr_repro.losses.explorer import EXPLORED, repairs, sliders
    r = random.Random(seed)
    kinds = [(name, list(o)) for name in EXPLORED for o in repairs(name)]
    for i in range(n):
        name, repair = kinds[i % len(kinds)]
        k = {}
        for key, v in sliders(name, tuple(repair)).items():
            k[key] = r.uniform(v['low'], v['high']) if v['high'] > v['low'] else v['value']
        points = []
        for _ in range(7):
            v = [r.gauss(0, 1) for _ in range(2 + i//len(kinds) % 2)]
            points.append([x/math.hypot(*v) for x in v])
        yield name, repair, k, points

def deviation(mine, theirs):
    "Largest difference, relative to the largest entry"
    flat = lambda x: x if isinstance(x, list) else [x]
    a, b = flat(mine), flat(theirs)
    assert len(a)==len(b) and all(map(math.isfinite, [*a, *b])), (a, b)
    most = max(map(abs, b))
    return max(abs(x-y) for x, y in zip(a, b, strict=True))/(most or 1)

def test_the_explorer_computes_what_the_losses_do(tab):
    import torch
    from sfr_repro.losses.explorer import explored
    cases = list(configurations(1000))
    tab.open('losses/explorer.html')
    found = json.loads(tab.run('JSON.stringify(' + json.dumps(cases)
                               + '.map(c => explorer.compute(...c)))'))
    worst = Counter()
    for (name, repair, k, points), mine in zip(cases, found, strict=True):
        theirs = explored(name, tuple(repair), k, torch.tensor(points, dtype=torch.float64))
        theirs = {o: v.tolist() if hasattr(v, 'tolist') else v for o, v in theirs.items()}
        moves = theirs['GD'] > 1e-20
        for part in ('GD', 'W', 'R', 'loss'):
            if theirs[part] is None or part in ('W', 'R') and not moves: continue
            if part=='GD' and not moves: assert mine['GD'] < 1e-20; continue
            off = deviation(mine[part], theirs[part])
            worst[part] = max(worst[part], off)
        most = max(math.hypot(*theirs['push']), math.hypot(*theirs['pull']))
        for part in ('push', 'pull', 'sum'):
            off = math.dist(mine[part], theirs[part])/(most or 1)
            worst[part] = max(worst[part], off)
    print('explorer against Python, 1000 configurations, largest relative deviation:',
          f'{max(worst.values()):.1e}')
    assert set(worst) == {'GD', 'W', 'R', 'loss', 'push', 'pull', 'sum'}
    assert max(worst.values()) <= 1e-9, worst
    name, repair, k, points = cases[0]
    changed = tab.run(f'explorer.compute("{name}", [], {json.dumps(k | {"tau": k["tau"]*1.001})}, '
                      f'{json.dumps(points)}).W')
    assert deviation(changed, found[0]['W']) > 1e-6

def test_the_explorer_by_keyboard_pointer_and_without_script(tab):
    for width in (1400, 390):
        tab.open('losses/explorer.html', width)
        at = 'explorer.state.points[0].join()'
        before, words = tab.run(at), tab.run('document.querySelector(".ex-words").textContent')
        tab.run('document.querySelector(".ex-point").focus()')
        for _ in range(3): tab.key('ArrowLeft')
        moved = tab.run(at)
        assert moved != before
        assert tab.run('document.querySelector(".ex-words").textContent') != words
        dot = 'document.querySelector(".ex-point .ex-dot")'
        tab.run(f'{dot}.scrollIntoView({{block: "center", behavior: "instant"}})')
        tab.run(browser.READY)
        x, y = tab.run(f'(() => {{ const r = {dot}.getBoundingClientRect();'
                       ' return [r.x + r.width/2, r.y + r.height/2]; })()')
        drag = ('mouseMoved', 0), ('mousePressed', 0), ('mouseMoved', 30), ('mouseReleased', 60)
        for n, (kind, dx) in enumerate(drag):
            tab.send('Input.dispatchMouseEvent', type=kind, x=x+dx, y=y, clickCount=1,
                     button='left' if n else 'none', buttons=int(n > 0))
        assert tab.run(at) != moved
        for e in tab.run('[...document.querySelectorAll(".explorer input, .explorer select")]'
                         '.map(e => e.getAttribute("aria-label") || e.parentElement.innerText)'):
            assert e.strip(), 'a control without a name'
        small = tab.run('[...document.querySelectorAll(".explorer button, .explorer .ex-hit")]'
                        '.filter(e => e.getBoundingClientRect().width && '
                        'e.getBoundingClientRect().height < 24).length')
        assert not small and not tab.errors, (small, tab.errors)
    tab.send('Emulation.setScriptExecutionDisabled', value=True)
    try:
        tab.open('losses/explorer.html', wait=False)
        doc = tab.send('DOM.getDocument')['root']['nodeId']
        figure = tab.send('DOM.querySelector', nodeId=doc, selector='.explorer img[alt]')['nodeId']
        assert figure and tab.send('DOM.getBoxModel', nodeId=figure)['model']['width'] > 300
    finally: tab.send('Emulation.setScriptExecutionDisabled', value=False)
