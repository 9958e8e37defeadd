"""The docs site in _docs/: stage, build, bring home. `make docs` runs it.

stage  nbdev runs the exported cells of every notebook for their API tables and writes the pages'
       sources to _proc/
build  Quarto where `quarto` is on the PATH, else smalldocs; both read the one _quarto.yml
dress  signatures, tables, style and page tools, by dress.py
home   KaTeX of the version in settings.ini comes from npm into the site, and nothing a page loads
       lies elsewhere
A warning of any of them stops the build, and _docs/ is replaced only by a site that is whole.
"""
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from dress import dress_site, dress_stage

ROOT = Path(__file__).resolve().parents[1]
CDN = r'https?://[^"\'\s>]*/katex@[^/"\']+/dist/'           # where both builders point
FAR_IMPORT = (r'@import\s+(url\(\s*["\']?(https?:)?//[^)]*\)|"(https?:)?//[^"]*"'
              r'|\'(https?:)?//[^\']*\')[^;]*;')
STAGE = ('import sys; from nbdev.quarto import proc_nbs; '
         'proc_nbs(path=sys.argv[1], n_workers=2, force=True)')

def setting(key):
    cfg = configparser.ConfigParser(delimiters=['='])
    cfg.read(ROOT/'settings.ini', encoding='utf-8')
    return cfg['DEFAULT'][key]

def run(what, args, **kwargs):
    "Run a command; stop on failure and on any warning, showing what it said"
    done = subprocess.run(args, text=True, capture_output=True, stdin=subprocess.DEVNULL, cwd=ROOT,
                          **kwargs)
    said = (done.stdout + done.stderr).strip()
    if done.returncode or re.search(r'\bwarn(ing)?\b|Traceback', said, re.I):
        sys.exit(f'{said}\nmake: {what} did not pass without error or warning')

def part_title(notebook):
    "Give title and subtitle a cell of their own: nbdev makes it the page's head and drops the rest"
    nb = json.loads(notebook.read_text(encoding='utf-8'))
    first = nb['cells'][0]
    head = re.match(r'# .+\n\s*\n> .+\n(?=\s*\S)', ''.join(first['source']))
    if not head: return
    rest = ''.join(first['source'])[head.end():].strip('\n')
    nb['cells'][:1] = [first | {'source': head[0].strip()},
                       first | {'source': rest, 'id': 'opening'}]
    notebook.write_text(json.dumps(nb), encoding='utf-8')

def stage():
    "Notebooks -> _proc/, by way of a copy"
    shutil.rmtree(ROOT/'_proc', ignore_errors=True)
    code = 'from nbdev.quarto import refresh_quarto_yml; refresh_quarto_yml()'
    run('nbdev', [sys.executable, '-c', code])
    with tempfile.TemporaryDirectory() as tmp:
        nbs = Path(tmp)/'nbs'
        shutil.copytree(ROOT/'nbs', nbs, ignore=shutil.ignore_patterns('.*', '__pycache__'))
        for notebook in nbs.rglob('*.ipynb'): part_title(notebook)
        run('nbdev', [sys.executable, '-c', STAGE, str(nbs)])
    dress_stage(ROOT/'_proc')
    return ROOT/'_proc'

def plain_names(proc):
    """Give the staged pages the names that nbdev's links expect: 00_infonce.ipynb -> infonce.ipynb.

    Quarto does so itself, by the `output-file` that nbdev writes into each page; smalldocs does not
    read that."""
    plain = lambda name: re.sub(r'^\d+[a-zA-Z0-9]*_', '', name.lower())
    pages = {p: p.with_name(plain(p.name)) for p in proc.rglob('*.ipynb')}
    if len(set(pages.values())) < len(pages):
        sys.exit('make: two notebooks of a folder have one name but for their number')
    def link(m, page):
        to = pages.get((page.parent/m[2]).resolve())
        return m[0] if to is None else m[1] + os.path.relpath(to, page.parent) + m[3]
    target = r'(\]\()([^)#\s]+\.ipynb)((?:#[^)\s]*)?\))'
    def relink(text, page): return re.sub(target, lambda m: link(m, page), text)
    for page, to in pages.items():
        nb = json.loads(page.read_text(encoding='utf-8'))
        for cell in nb['cells']:
            text = ''.join(cell['source'])
            if cell['cell_type'] == 'raw':
                text = re.sub(r'^output-file: .*\n', '', text, flags=re.M)
            if cell['cell_type'] == 'markdown': text = relink(text, page)
            cell['source'] = text
            # tables that cells print have links too
            for data in (o['data'] for o in cell.get('outputs', []) if 'data' in o):
                if 'text/markdown' not in data: continue
                data['text/markdown'] = relink(''.join(data['text/markdown']), page)
        page.unlink()
        to.write_text(json.dumps(nb), encoding='utf-8')
    plan = (proc/'_quarto.yml').read_text(encoding='utf-8')
    for page, to in pages.items():
        name, new = (p.relative_to(proc).as_posix() for p in (page, to))
        plan = re.sub(rf'(?<=[\s"\'-]){re.escape(name)}(?=["\'\s]|$)', new, plan)
    (proc/'_quarto.yml').write_text(plan, encoding='utf-8')

def build(proc):
    "_proc/ -> the folder with the site, and the builder's name"
    if shutil.which('quarto'):
        with (proc/'nbdev.yml').open('a') as f:
            f.write('format:\n  html:\n    html-math-method: katex\n')
        run('quarto', ['quarto', 'render', str(proc), '--no-cache'])
        name = 'Quarto'
    else:
        plain_names(proc)
        run('smalldocs', [sys.executable, '-m', 'smalldocs.cli', 'render', '--strict', '--quiet',
                          str(proc)])
        name = 'smalldocs'
    return proc/setting('doc_path'), name

def katex_home(version):
    "Where this environment keeps KaTeX"
    return Path(sys.prefix)/'share'/f'katex-{version}'

def katex():
    "The folder with KaTeX, fetched once an environment; None, after one sentence, if there is none"
    version, home = setting('katex'), katex_home(setting('katex'))
    if home.is_dir(): return home
    if not shutil.which('npm'):
        return print('npm was not found, so the formulas of this site show as TeX')
    with tempfile.TemporaryDirectory() as tmp:
        done = subprocess.run(['npm', 'pack', '--silent', f'katex@{version}'], cwd=tmp,
                              capture_output=True, text=True, stdin=subprocess.DEVNULL)
        balls = list(Path(tmp).glob('*.tgz'))
        if done.returncode or not balls:
            return print(f'npm could not fetch KaTeX {version}, '
                         'so the formulas of this site show as TeX')
        with tarfile.open(balls[0]) as tar: tar.extractall(tmp, filter='data')
        dist, new = Path(tmp)/'package/dist', home.with_name(f'{home.name}.{os.getpid()}')
        scripts = dist/'katex.min.js', dist/'katex.min.css', dist/'contrib/auto-render.min.js'
        for f in [*scripts, *(dist/'fonts').iterdir()]:
            to = new/f.relative_to(dist)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(f, to)
        shutil.copy(Path(tmp)/'package/LICENSE', new)
    new.rename(home)
    return home

def bring_home(site, katex):
    "Point the pages at the site's own KaTeX, or at none, and at each other; drop themes' far fonts"
    address = setting('doc_host') + setting('doc_baseurl') + '/'
    if katex:
        shutil.copytree(katex, site/'site_libs/katex')
        # displayed formulas at nearly the text's size, so that they fit the column
        for css in (site/'site_libs/katex').rglob('katex*.css'):
            with open(css, 'a', encoding='utf-8') as f:
                f.write('.katex-display>.katex{font-size:1.05em}')
    for page in site.rglob('*.html'):
        up = '../'*(len(page.relative_to(site).parts) - 1)
        text = page.read_text(encoding='utf-8')
        if katex: text = re.sub(CDN, f'{up}site_libs/katex/', text)
        else:
            far = rf'<link\b[^>]*{CDN}[^>]*>|<script\b[^>]*{CDN}[^>]*></script>'
            text = re.sub(far, '', text)
        text = text.replace(f'<a href="{address}', f'<a href="{up or "./"}')
        page.write_text(text, encoding='utf-8')
    for css in site.rglob('*.css'):
        text = css.read_text(encoding='utf-8')
        css.write_text(re.sub(FAR_IMPORT, '', text), encoding='utf-8')

def main():
    site, builder = build(stage())
    home = katex()
    bring_home(site, home)
    dress_site(site, setting)
    docs = ROOT/setting('doc_path')
    shutil.rmtree(docs, ignore_errors=True)
    site.rename(docs)
    pages = len(list(docs.rglob('*.html')))
    formulas = f'formulas by KaTeX {setting("katex")}' if home else 'formulas as TeX'
    print(f'{docs.name}/: {pages} pages by {builder}, {formulas}')

if __name__ == '__main__': main()
