"""README.md from nbs/index.ipynb by nbconvert, with Quarto installed or not: `make readme`.

As on the site, cells marked `#| hide`, `#| export` or `#| default_exp` are left out,
`#| echo: false` hides the code and `#| output: false` the output. Tables come as Markdown. The
index's one picture becomes the file PICTURE, which the README shows with its caption. Where
settings.ini has an address of this project, a line opens the notebooks in Binder and Colab.
"""
import base64
import configparser
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAD = '<!-- Made from nbs/index.ipynb by `make readme`: edit that. -->\n\n'
HIDDEN = {'hide', 'export', 'exporti', 'default_exp', 'include: false'}
TEXT = ('text/markdown', 'text/plain')
PICTURE = 'records/index.png'       # in nbs/

def directives(source):
    "The directives at the head of a cell's source, and the source without them"
    found = re.findall(r'^#\|[ \t]*(.*?)[ \t]*$', source, re.M)
    return found, re.sub(r'^#\|.*\n?', '', source, flags=re.M).strip('\n')

def option(found, key):
    "The text of a directive such as fig-cap; empty without it"
    text = next((d.partition(':')[2] for d in found if d.startswith(f'{key}:')), '')
    return text.strip().strip('"')

def text_only(output, found):
    "Keep Markdown, or else plain text; a picture as a link to its file, with its caption"
    data = output.get('data')
    if data is None:
        printed = output.output_type == 'stream' and output.name == 'stdout'
        return output if printed else None
    if 'image/png' in data:
        link = f"![{option(found, 'fig-alt')}]({PICTURE})\n\n*{option(found, 'fig-cap')}*"
        output['data'] = {'text/markdown': link}
        return output
    best = next((k for k in TEXT if k in data), None)
    if best is None: return None
    output['data'] = {best: data[best]}
    return output

def visible(cells):
    "The cells, or parts of them, that a reader sees"
    for cell in cells:
        if cell.cell_type == 'code':
            found, cell.source = directives(cell.source)
            if any(d == h or d.startswith(h + ' ') for d in found for h in HIDDEN): continue
            texts = [text_only(o, found) for o in cell.outputs]
            texts = [o for o in texts if o is not None]
            cell.outputs = [] if 'output: false' in found else texts
            if 'echo: false' in found or not cell.source:
                cell.metadata['transient'] = {'remove_source': True}
            if not cell.outputs and (not cell.source or 'echo: false' in found): continue
        yield cell

def at_root(text):
    "Links of the index start in nbs/, those of the README in the folder above"
    def move(m):
        target = m[2]
        local = not re.match(r'[a-z]+:|#|/', target) and (ROOT/'nbs'/target.split('#')[0]).exists()
        return f'{m[1]}(nbs/{target})' if local else m[0]
    return re.sub(r'(\]) ?\(([^)\s]+)\)', move, text)

def picture():
    "The bytes of the index's one picture"
    import nbformat
    nb = nbformat.read(ROOT/'nbs/index.ipynb', as_version=4)
    outputs = [o for c in nb.cells if c.cell_type == 'code' for o in c.outputs]
    pngs = [o['data']['image/png'] for o in outputs if 'image/png' in o.get('data', {})]
    if len(pngs) != 1: raise SystemExit(f'index.ipynb has {len(pngs)} pictures: it must have one')
    return base64.b64decode(pngs[0])

def address():
    "Where settings.ini says that the project lies, and its branch"
    found = configparser.ConfigParser(delimiters=['='])
    found.read(ROOT/'settings.ini', encoding='utf-8')
    return found['DEFAULT']['git_url'], found['DEFAULT']['branch']

def elsewhere(git_url, branch):
    "A line with links to Binder and Colab; empty without an address on GitHub that is no example"
    found = re.fullmatch(r'https://github\.com/((?!example/)[\w.-]+/[\w.-]+?)/?', git_url)
    if not found: return ''
    page = 'nbs/losses/00_infonce.ipynb'
    binder = f'https://mybinder.org/v2/gh/{found[1]}/{branch}?urlpath=lab/tree/{page}'
    colab = f'https://colab.research.google.com/github/{found[1]}/blob/{branch}/{page}'
    return (f'Without installing anything: [in Binder]({binder}), or [in Colab]({colab}) with '
            f'`%pip install git+{found[0]}` in a first cell.\n\n')

def readme():
    "The text of README.md"
    import nbformat
    from nbconvert import MarkdownExporter
    nb = nbformat.read(ROOT/'nbs/index.ipynb', as_version=4)
    nb.cells = list(visible(nb.cells))
    nb.metadata['language_info'] = {'name': 'python'}   # nbdev_clean drops it; the fences need it
    exporter = MarkdownExporter()
    exporter.display_data_priority = list(TEXT)
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    text, _ = exporter.from_notebook_node(nb)
    text = re.sub(r'[ \t]+$', '', at_root(text), flags=re.M)
    text = text.replace('## As a library\n', elsewhere(*address()) + '## As a library\n', 1)
    return HEAD + re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'

if __name__ == '__main__':
    (ROOT/'nbs'/PICTURE).write_bytes(picture())
    (ROOT/'README.md').write_text(readme(), encoding='utf-8')
