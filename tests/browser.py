"""A real browser for the tests: headless Chromium, spoken to over the DevTools protocol.

    with Browser(folder) as b:                  # serves the folder, opens one tab
        b.open('losses/infonce.html', 390)      # waits until fonts and formulas are set
        b.run('document.title')                 # the value of an expression
        b.errors                                # what the console complained about

`python tests/browser.py` measures every page of the built site and prints the faults by kind.
"""
import base64
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

NAMES = 'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'
HEIGHT = {1400: 900, 800: 900}                  # px by width; phones are 844 high
PATIENCE = 120                                  # seconds that one command may take
MEASURE, CONTRAST = (Path(__file__).with_name(name).read_text(encoding='utf-8')
                     for name in ('measure.js', 'contrast.js'))
READY = '''(async () => { await document.fonts.ready;
  await new Promise(ok => requestAnimationFrame(() => setTimeout(ok, 0))); })()'''
FLAGS = ('--headless=new', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--mute-audio',
         '--disable-dev-shm-usage', '--disable-extensions', '--disable-background-networking',
         '--no-first-run', '--remote-debugging-port=0', '--remote-allow-origins=*')

def chromium():
    "The path of Chromium; None where it is not installed"
    return next(filter(None, map(shutil.which, NAMES)), None)

class Quiet(http.server.SimpleHTTPRequestHandler):
    "Serves files without a line for each"
    def log_message(self, *args): pass

class Browser:
    "One tab of headless Chromium on a folder served from this machine"
    def __init__(self, folder):
        self.folder = folder
        self.errors = []                        # what the console complained about since `open`
        self._number = 0

    def __enter__(self):
        handler = functools.partial(Quiet, directory=str(self.folder))
        self.server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.home = f'http://127.0.0.1:{self.server.server_port}/'
        self.profile = Path(tempfile.mkdtemp(prefix='browser-'))
        self.process = subprocess.Popen(
            [chromium(), *FLAGS, f'--user-data-dir={self.profile}', 'about:blank'],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        self._connect()
        for domain in ('Page', 'Runtime', 'Log'): self.send(f'{domain}.enable')
        return self

    def _connect(self):
        from websocket import create_connection
        file = self.profile/'DevToolsActivePort'
        end = time.monotonic() + PATIENCE
        while not (file.exists() and file.read_text().count('\n')):
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError('Chromium did not start')
            time.sleep(.1)
        port, path = file.read_text().split()[:2]
        self.socket = create_connection(f'ws://127.0.0.1:{port}{path}', timeout=PATIENCE)
        self.session = None
        target = self.send('Target.createTarget', url='about:blank')['targetId']
        opened = self.send('Target.attachToTarget', targetId=target, flatten=True)
        self.session = opened['sessionId']

    def __exit__(self, *_):
        try: self.socket.close()
        finally:
            os.killpg(self.process.pid, 9)      # the group that this object started, no other
            self.process.wait()
            self.server.shutdown()
            shutil.rmtree(self.profile, ignore_errors=True)

    def send(self, method, until=None, **params):
        "One command and its result; with `until`, the wait for that event too"
        self._number += 1
        number, result = self._number, None
        message = {'id': number, 'method': method, 'params': params}
        if self.session: message['sessionId'] = self.session
        self.socket.send(json.dumps(message))
        while result is None or until:
            said = json.loads(self.socket.recv())
            self._note(said)
            if said.get('id')==number:
                if 'error' in said: raise RuntimeError(f'{method}: {said["error"]["message"]}')
                result = said['result']
            if said.get('method')==until: until = None
        return result

    def _note(self, message):
        "Keep what the console shows in red"
        kind, p = message.get('method'), message.get('params', {})
        if kind=='Runtime.exceptionThrown':
            e = p['exceptionDetails']
            self.errors.append(e.get('exception', {}).get('description', e['text']))
        if kind=='Runtime.consoleAPICalled' and p['type'] in ('error', 'assert'):
            said = [str(a.get('value', a.get('description'))) for a in p['args']]
            self.errors.append(' '.join(said))
        if kind=='Log.entryAdded' and p['entry']['level']=='error':
            self.errors.append(f'{p["entry"]["text"]} {p["entry"].get("url", "")}'.strip())

    def run(self, expression):
        "The value of a JavaScript expression, awaited"
        done = self.send('Runtime.evaluate', expression=expression, returnByValue=True,
                         awaitPromise=True, userGesture=True)
        if 'exceptionDetails' in done:
            e = done['exceptionDetails']
            raise RuntimeError(e.get('exception', {}).get('description', e['text']))
        return done['result'].get('value')

    def width(self, width):
        "A window of this many px; below 600 a phone"
        self.send('Emulation.setDeviceMetricsOverride', width=width, deviceScaleFactor=1,
                  height=HEIGHT.get(width, 844), mobile=width < 600)
        self.run(READY)

    def open(self, page, width=1400, wait=True):
        "Go to a page; without `wait`, where scripts are off, do not wait for fonts and formulas"
        self.errors.clear()
        self.send('Emulation.setDeviceMetricsOverride', width=width, deviceScaleFactor=1,
                  height=HEIGHT.get(width, 844), mobile=width < 600)
        self.send('Page.navigate', until='Page.loadEventFired', url=self.home + page)
        if wait: self.run(READY)

    def measure(self):
        "The faults of the page as it is now: a list of `kind, what, px over`"
        return self.run(f'({MEASURE})()')

    def column(self, width):
        "The faults of the equations in a column of exactly this width"
        return self.run(f'({MEASURE})({width})')

    def pale(self):
        "The texts without enough contrast: `contrast, how often, element and colours, example`"
        return self.run(f'({CONTRAST})()')

    def key(self, key, **more):
        "Press and release a key, such as ArrowLeft or Tab"
        for kind in ('keyDown', 'keyUp'):
            self.send('Input.dispatchKeyEvent', type=kind, key=key, code=key, **more)

    def shot(self, file):
        "The first screen as a PNG"
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        data = self.send('Page.captureScreenshot', format='png')['data']
        Path(file).write_bytes(base64.b64decode(data))

def main(folder, *widths):
    "Faults by kind over all pages, in windows of these widths and columns of 760 and 360 px"
    folder, widths = Path(folder), [int(w) for w in widths] or [1400, 800, 390]
    total = Counter()
    with Browser(folder) as b:
        for file in sorted(folder.rglob('*.html')):
            page = file.relative_to(folder).as_posix()
            b.open(page, widths[0])
            found = []
            for w in widths:
                b.width(w)
                found += [(w, *f) for f in b.measure()]
            for w in (760, 360): found += [(w, *f) for f in b.column(w)]
            found += [(0, 'console', e, 0) for e in b.errors]
            for w, kind, what, over in found:
                total[kind, w] += 1
                print(f'{page}\t{w}\t{kind}\t{over}\t{what}')
    print()
    for (kind, w), n in sorted(total.items()): print(f'{kind:12} {w:5} {n:5}')

if __name__ == '__main__': main(*sys.argv[1:] or ['_docs'])
