// The faults of a page: [[kind, what, px over], ...]. With a width, the equations in a column that wide.
function (column) {
  const main = document.querySelector('main') || document.body, faults = [];
  const say = (kind, what, over) => faults.push([kind, what.trim().replace(/\s+/g, ' ').slice(0, 90), Math.round(over)]);
  const shown = e => e.offsetParent !== null || getComputedStyle(e).position === 'fixed';
  const inner = e => { const r = e.getBoundingClientRect(), s = getComputedStyle(e);
    return {left: r.left + parseFloat(s.paddingLeft), right: r.right - parseFloat(s.paddingRight)}; };
  const old = main.getAttribute('style');
  if (column) {
    const s = getComputedStyle(main), pad = parseFloat(s.paddingLeft) + parseFloat(s.paddingRight);
    main.style.cssText = `box-sizing:border-box;width:${column + pad}px;min-width:0;max-width:none`;
    dispatchEvent(new Event('resize'));
  }
  const box = inner(main);

  // equations: against the tag, the column, and their own scroller
  for (const e of main.querySelectorAll('.katex-display')) {
    const bases = [...e.querySelectorAll('.katex-html > .base')].map(b => b.getBoundingClientRect());
    if (!bases.length || !shown(e)) continue;
    const left = Math.min(...bases.map(r => r.left)), right = Math.max(...bases.map(r => r.right));
    const top = Math.min(...bases.map(r => r.top)), bottom = Math.max(...bases.map(r => r.bottom));
    const tag = e.querySelector('.katex-html > .tag'), name = tag ? tag.textContent : e.textContent;
    if (tag) {
      const t = tag.querySelector('.mord.text') || tag, r = t.getBoundingClientRect();
      if (right > r.left - 6 && r.top < bottom && r.bottom > top) say('tag', name, right - r.left + 6);
    }
    const over = Math.max(right - inner(e).right, inner(e).left - left, e.scrollWidth - e.clientWidth);
    const small = parseFloat(getComputedStyle(e.querySelector('.katex')).fontSize);
    if (small < 9) say('small', name, small);
    if (over > 1) say('equation', name, over);
  }
  if (column) {
    if (old === null) main.removeAttribute('style'); else main.setAttribute('style', old);
    dispatchEvent(new Event('resize'));
    return faults;
  }

  const scrolls = e => /auto|scroll/.test(getComputedStyle(e).overflowX);
  const code = e => e.closest('div.sourceCode, pre.sourceCode');
  const seen = new Set();
  for (const e of main.querySelectorAll('*')) {
    if (!shown(e) || e.closest('.katex, svg, .visually-hidden, table.cards thead')) continue;
    const own = e.scrollWidth - e.clientWidth;
    if (scrolls(e) && own > 1 && e.clientWidth) {
      const kind = code(e) ? 'code' : e.matches('pre') || e.querySelector(':scope > pre') ? 'output'
        : e.querySelector('table') ? 'table' : e.querySelector('.katex') ? 'equation' : 'scroller';
      say(kind, e.textContent, own);
      seen.add(e);
      continue;
    }
    if ([...seen].some(s => s.contains(e))) continue;
    const over = e.getBoundingClientRect().right - box.right;
    if (over > 1.5) { say(e.closest('table') ? 'table' : 'wide', `${e.tagName} ${e.textContent}`, over); seen.add(e); }
  }
  for (const e of main.querySelectorAll('table:not(.cards) th')) {
    const lines = e.getBoundingClientRect().height / parseFloat(getComputedStyle(e).lineHeight);
    if (lines > 4.5) say('label', e.textContent, lines);
  }
  const page = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  if (page > 1) say('page', document.title, page);

  // what a signature or a printed table should not show
  for (const e of main.querySelectorAll('pre, blockquote')) {
    const t = e.textContent;
    if (e.closest('.cell-output-stdout, .cell-output') && /^\|.*\|\s*$/m.test(t) && /\|\s*:?-{2,}/.test(t)) say('printed', t, 0);
    if (!e.closest('.cell-code') && /\]\((https?:|[\w./-]+\.(ipynb|html))/.test(t)) say('raw link', t, 0);
  }
  for (const a of document.querySelectorAll('a[href*="example.github.io"], link[href*="example.github.io"], meta[content*="example.github.io"]')) say('no address', a.outerHTML, 0);
  return faults;
}
