// Texts too pale for their ground: [[contrast, how often, element and colours, an example], ...].
// Contrast as in WCAG 2.2: at least 4.5 to 1, and 3 to 1 for letters of 24 px. Colours and layers
// only: a faded ancestor, a picture as the ground and the text of an SVG are not seen.
function () {
  const numbers = css => css.match(/[\d.]+/g).map(Number);
  const colour = css => {
    const [r, g, b, a = 1] = numbers(css), k = css.startsWith('color(') ? 255 : 1;
    return [k*r, k*g, k*b, a];
  };
  const over = (top, ground) => [0, 1, 2].map(i => top[i]*top[3] + ground[i]*(1 - top[3])).concat(1);
  const light = c => {
    const [r, g, b] = c.map(v => v/255).map(v => v <= .03928 ? v/12.92 : ((v + .055)/1.055)**2.4);
    return .2126*r + .7152*g + .0722*b;
  };
  const ground = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      const c = colour(getComputedStyle(e).backgroundColor);
      if (c[3] > 0) layers.push(c);
      if (c[3] === 1) break;
    }
    return layers.reduceRight((below, c) => over(c, below), [255, 255, 255, 1]);
  };
  const faults = new Map(), texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const text = texts.currentNode.textContent.trim(), e = texts.currentNode.parentElement;
    if (!text || ['SCRIPT', 'STYLE', 'NOSCRIPT'].includes(e.tagName)) continue;
    const s = getComputedStyle(e);
    if (!e.getClientRects().length || s.visibility === 'hidden' || e.closest('.katex-mathml')) continue;
    const below = ground(e), pair = [light(over(colour(s.color), below)), light(below)];
    const contrast = (Math.max(...pair) + .05)/(Math.min(...pair) + .05);
    if (contrast >= (parseFloat(s.fontSize) >= 24 ? 3 : 4.5)) continue;
    const what = e.tagName.toLowerCase() + (e.getAttribute('class') ? '.' + e.getAttribute('class') : '');
    const key = `${what} ${s.color} on ${below.slice(0, 3).map(Math.round)}`;
    const found = faults.get(key) || [contrast.toFixed(2), 0, key, text.slice(0, 40)];
    found[1] += 1;
    faults.set(key, found);
  }
  return [...faults.values()];
}
