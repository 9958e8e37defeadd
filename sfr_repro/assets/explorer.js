// The explorer of losses. `programs` holds the formulas of the notebook's table as lists of tensor operations;
// nothing here knows a loss. No foreign address, no library.
function makeExplorer(root, data) {
  "use strict";
  // ---------------------------------------------------------------- tensors: {s: shape, d: numbers}
  const T = (s, d) => ({s, d});
  const size = (s) => s.reduce((a, b) => a * b, 1);
  const isT = (x) => x !== null && typeof x === "object" && "d" in x;
  const lift = (x) => (isT(x) ? x : T([], [x]));
  function both(a, b, f) {                                  // element by element, shapes broadcast from the right
    a = lift(a); b = lift(b);
    const n = Math.max(a.s.length, b.s.length), pad = (s) => [...Array(n - s.length).fill(1), ...s];
    const sa = pad(a.s), sb = pad(b.s), s = sa.map((x, i) => Math.max(x, sb[i])), d = Array(size(s));
    for (let i = 0; i < d.length; i++) {
      let rest = i, ia = 0, ib = 0, fa = 1, fb = 1;
      for (let k = n - 1; k >= 0; k--) {
        const at = rest % s[k];
        rest = (rest - at) / s[k];
        if (sa[k] > 1) ia += at * fa;
        if (sb[k] > 1) ib += at * fb;
        fa *= sa[k]; fb *= sb[k];
      }
      d[i] = f(a.d[ia], b.d[ib]);
    }
    return T(s, d);
  }
  const each = (f) => (x) => T(lift(x).s, lift(x).d.map(f));
  function along(x, dims, f, start, end = (v) => v) {        // reduce one dimension, or all
    if (!dims || !dims.length || x.s.length < 2) return T([], [end(x.d.reduce(f, start), x.d.length)]);
    const [r, c] = x.s, over = dims[0] < 0 ? dims[0] + 2 : dims[0], out = Array(over ? r : c).fill(start);
    for (let i = 0; i < r; i++) for (let j = 0; j < c; j++) { const k = over ? i : j; out[k] = f(out[k], x.d[i * c + j]); }
    return T([out.length], out.map((v) => end(v, over ? c : r)));
  }
  const add = (a, b) => a + b;
  const OPS = {
    add: (a, b) => both(a, b, add), sub: (a, b) => both(a, b, (x, y) => x - y), rsub: (a, b) => both(a, b, (x, y) => y - x),
    mul: (a, b) => both(a, b, (x, y) => x * y), div: (a, b) => both(a, b, (x, y) => x / y),
    pow: (a, b) => both(a, b, Math.pow), lt: (a, b) => both(a, b, (x, y) => +(x < y)), eq: (a, b) => both(a, b, (x, y) => +(x === y)),
    exp: each(Math.exp), log: each(Math.log), sqrt: each(Math.sqrt), acos: each(Math.acos), sin: each(Math.sin), cos: each(Math.cos),
    reciprocal: each((x) => 1 / x), sigmoid: each((x) => (x < 0 ? Math.exp(x) / (1 + Math.exp(x)) : 1 / (1 + Math.exp(-x)))),
    softplus: each((x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)))), relu: each((x) => Math.max(x, 0)),
    neg: each((x) => -x), _to_copy: (x) => x, clone: (x) => x,
    clamp: (x, low, high = null) => each((v) => Math.min(Math.max(v, low === null ? -Infinity : low), high === null ? Infinity : high))(x),
    eye: (n) => T([n, n], Array.from({length: n * n}, (_, i) => +(i % n === Math.floor(i / n)))),
    full_like: (x, v) => each(() => v)(x), ones_like: (x) => each(() => 1)(x),
    unsqueeze: (x, k) => T(k < 0 || k >= x.s.length ? [...x.s, 1] : [...x.s.slice(0, k), 1, ...x.s.slice(k)], x.d),
    permute: (x) => T([x.s[1], x.s[0]], Array.from({length: x.d.length}, (_, i) => x.d[(i % x.s[0]) * x.s[1] + Math.floor(i / x.s[0])])),
    diagonal: (x) => T([x.s[0]], Array.from({length: x.s[0]}, (_, i) => x.d[i * x.s[1] + i])),
    select: (x, k, i) => (x.s.length < 2 ? T([], [x.d[i]]) : k === 0 ? T([x.s[1]], x.d.slice(i * x.s[1], (i + 1) * x.s[1]))
      : T([x.s[0]], x.d.filter((_, n) => n % x.s[1] === i))),
    mm: (a, b) => { const [n, m] = a.s, c = b.s[1], d = Array(n * c).fill(0);
      for (let i = 0; i < n; i++) for (let k = 0; k < m; k++) for (let j = 0; j < c; j++) d[i * c + j] += a.d[i * m + k] * b.d[k * c + j];
      return T([n, c], d); },
    sum: (x, dims) => along(x, dims, add, 0), mean: (x, dims) => along(x, dims, add, 0, (v, n) => v / n),
    amax: (x, dims) => along(x, dims, Math.max, -Infinity),
  };
  function runProgram(program, given) {                     // a step is [operation, argument...]; "n" is step n, "h" an input
    const steps = [], arg = (x) => (typeof x === "string" ? (x in given ? given[x] : steps[+x]) : x);
    for (const [op, ...rest] of program.steps) steps.push(OPS[op](...rest.map(arg)));
    return program.out.map((x) => (x === null ? null : lift(arg(x))));
  }

  // ---------------------------------------------------------------- a loss at seven points
  const dot = (a, b) => a.reduce((t, x, i) => t + x * b[i], 0), len = (a) => Math.sqrt(dot(a, a));
  const unit = (a) => { const n = len(a) || 1; return a.map((x) => x / n); };
  const tangent = (v, h) => { const c = dot(v, h); return v.map((x, i) => x - c * h[i]); };
  const key = (name, repair) => (repair.length ? `${name}+${[...repair].sort().join("+")}` : name);
  // points: anchor, positive, five negatives. The other five sentences have the same point in both views.
  function compute(name, repair, constants, points) {
    const D = points[0].length, others = points.slice(2), B = others.length + 1;
    const h = T([B, D], [points[0], ...others].flat()), p = T([B, D], [points[1], ...others].flat());
    const program = data.programs[key(name, repair)];
    const [gd, w, r, value] = runProgram(program, {h, p, ...constants});
    const GD = gd.d.length > 1 ? gd.d[0] : gd.d[0], W = w.d.slice(1, B);
    const R = r.s.length > 1 ? r.d.slice(0, D) : [r.d[0]];
    const total = W.reduce(add, 0), wide = R.length > 1 ? R : Array(D).fill(R[0]);
    const push = tangent(points[0].map((_, c) => -GD * W.reduce((t, x, j) => t + x * others[j][c], 0)), points[0]);
    const pull = tangent(points[1].map((x, c) => GD * total * wide[c] * x), points[0]);
    return {GD, W, R, push, pull, sum: push.map((x, c) => x + pull[c]), loss: value ? value.d[0] : null};
  }

  // ---------------------------------------------------------------- the page
  const NAMES = ["anchor", "positive", "negative 1", "negative 2", "negative 3", "negative 4", "negative 5"];
  const SHORT = ["a", "+", "1", "2", "3", "4", "5"], PARTS = ["dissipation", "weight", "ratio"];
  const rad = (x) => x * Math.PI / 180, deg = (x) => x * 180 / Math.PI;
  const onCircle = (...angles) => angles.map((x) => [Math.cos(rad(x)), Math.sin(rad(x)), 0]);
  const SCENES = {
    "a hard negative": onCircle(90, 48, 112, 165, 215, 270, 325), "all easy": onCircle(90, 62, 200, 230, 262, 295, 330),
    "positive far away": onCircle(90, -35, 128, 160, 200, 240, 290), "collapsed": onCircle(90, 84, 94, 98, 102, 79, 74),
  };
  const state = {sphere: false, turn: 25, tilt: 20, points: SCENES["a hard negative"].map((x) => [...x]), playing: null,
    panels: [{loss: "infonce", repair: [], k: {}}, {loss: "vicreg", repair: [], k: {}}]};
  const svgNS = "http://www.w3.org/2000/svg";
  function make(tag, attrs = {}, ...children) {
    const e = tag.startsWith("svg:") ? document.createElementNS(svgNS, tag.slice(4)) : document.createElement(tag);
    for (const [k, v] of Object.entries(attrs)) {
      if (k.startsWith("on")) e.addEventListener(k.slice(2), v); else if (v !== null && v !== false) e.setAttribute(k, v === true ? "" : v);
    }
    e.append(...children);
    return e;
  }
  const say = (x) => (x === null ? "" : !isFinite(x) ? "not finite" : Math.abs(x) >= 1e4 || (x && Math.abs(x) < 1e-3) ? x.toExponential(1)
    : String(+x.toPrecision(3)));
  const shownPoints = () => state.points.map((p) => (state.sphere ? p : unit([p[0], p[1]])));
  const current = (panel) => compute(panel.loss, panel.repair, panel.k, shownPoints());
  function defaults(panel) {
    const given = data.losses[panel.loss], set = panel.repair.length ? given.repaired : given.constants;
    for (const [k, v] of Object.entries(set)) panel.k[k] = v.value;
  }

  // the sphere's view: turn about the vertical, then tilt
  function seen(p) {
    if (!state.sphere) return [p[0], p[1], 0];
    const t = rad(state.turn), u = rad(state.tilt), x = p[0] * Math.cos(t) + p[2] * Math.sin(t), z = -p[0] * Math.sin(t) + p[2] * Math.cos(t);
    return [x, p[1] * Math.cos(u) - z * Math.sin(u), p[1] * Math.sin(u) + z * Math.cos(u)];
  }
  function unseen([x, y, z]) {
    const t = rad(state.turn), u = rad(state.tilt), b = y * Math.cos(u) + z * Math.sin(u), c = -y * Math.sin(u) + z * Math.cos(u);
    return [x * Math.cos(t) - c * Math.sin(t), b, x * Math.sin(t) + c * Math.cos(t)];
  }
  function moveTo(i, x, y) {
    if (!state.sphere) { if (Math.hypot(x, y) > .05) state.points[i] = unit([x, y, 0]); return; }
    const r = Math.hypot(x, y), back = seen(state.points[i])[2] < 0 && r < .98 ? -1 : 1;
    state.points[i] = unit(unseen(r >= 1 ? [x / r, y / r, 0] : [x, y, back * Math.sqrt(1 - r * r)]));
  }
  function nudge(i, across, up) {
    if (!state.sphere) {
      const a = Math.atan2(state.points[i][1], state.points[i][0]) - rad(across) + rad(up);
      state.points[i] = [Math.cos(a), Math.sin(a), 0];
      return;
    }
    let [x, y, z] = seen(state.points[i]);
    const a = rad(across), b = rad(up);
    [x, z] = [x * Math.cos(a) + z * Math.sin(a), -x * Math.sin(a) + z * Math.cos(a)];
    [y, z] = [y * Math.cos(b) + z * Math.sin(b), -y * Math.sin(b) + z * Math.cos(b)];
    state.points[i] = unit(unseen([x, y, z]));
  }

  const panelViews = [];
  function makePanel(panel, n) {
    const letter = "AB"[n], view = {panel};
    const title = make("h4", {class: "ex-title", id: `ex-title-${n}`}, `Loss ${letter}`);
    view.select = make("select", {"aria-label": `Loss ${letter}`, onchange: () => { panel.loss = view.select.value; panel.repair = []; refresh(view); }},
      ...Object.keys(data.losses).map((name) => make("option", {value: name}, data.losses[name].label)));
    view.select.value = panel.loss;
    view.repair = make("div", {class: "ex-repair", role: "group", "aria-label": `Repair the components of loss ${letter}`});
    view.constants = make("div", {class: "ex-constants"});
    view.svg = make("svg:svg", {viewBox: "-1.5 -1.5 3 3", class: "ex-space", role: "group",
      "aria-label": `Anchor, positive and five negatives, with the arrows of loss ${letter}`});
    view.back = make("svg:g", {}); view.arrows = make("svg:g", {}); view.dots = make("svg:g", {});
    view.svg.append(view.back, view.arrows, view.dots);
    view.points = NAMES.map((name, i) => {
      const g = make("svg:g", {class: `ex-point ex-p${Math.min(i, 2)}`, tabindex: 0, role: "slider", "aria-label": name,
        "aria-valuemin": -180, "aria-valuemax": 180},
      make("svg:circle", {r: .21, class: "ex-hit"}), make("svg:circle", {r: .105, class: "ex-dot"}),
      make("svg:text", {"text-anchor": "middle", dy: ".045"}, SHORT[i]));
      g.addEventListener("pointerdown", (ev) => grab(ev, view, g, i));
      g.addEventListener("keydown", (ev) => {
        const step = ev.shiftKey ? 10 : 2, way = {ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, step], ArrowDown: [0, -step]}[ev.key];
        if (!way) return;
        ev.preventDefault(); stop(); nudge(i, ...way); draw();
      });
      return g;
    });
    view.dots.append(...view.points);
    view.svg.addEventListener("pointerdown", (ev) => turnView(ev, view));
    view.bars = make("div", {class: "ex-bars"});
    view.words = make("p", {class: "ex-words", "aria-live": "polite"});
    view.play = make("button", {type: "button", class: "ex-play", onclick: () => (state.playing === n ? stop() : play(n))}, "▶ follow the arrow");
    view.box = make("section", {class: "ex-panel", "aria-labelledby": `ex-title-${n}`}, title, view.select, view.repair, view.svg, view.constants,
      view.play, view.bars, view.words);
    panelViews.push(view);
    return view.box;
  }
  function place(ev, svg) {
    const r = svg.getBoundingClientRect(), k = 3 / r.width;
    return [(ev.clientX - r.left) * k - 1.5, 1.5 - (ev.clientY - r.top) * k];
  }
  function grab(ev, view, g, i) {
    ev.preventDefault(); ev.stopPropagation(); stop(); g.focus({preventScroll: true});
    g.setPointerCapture(ev.pointerId);
    const move = (e) => { moveTo(i, ...place(e, view.svg)); draw(); };
    const end = () => { g.removeEventListener("pointermove", move); g.removeEventListener("pointerup", end); g.removeEventListener("pointercancel", end); };
    g.addEventListener("pointermove", move); g.addEventListener("pointerup", end); g.addEventListener("pointercancel", end);
  }
  function turnView(ev, view) {
    if (!state.sphere) return;
    let at = [ev.clientX, ev.clientY];
    view.svg.setPointerCapture(ev.pointerId);
    const move = (e) => { state.turn = ((state.turn + (e.clientX - at[0]) * .6 + 540) % 360) - 180;
      state.tilt = Math.max(-85, Math.min(85, state.tilt + (e.clientY - at[1]) * .6)); at = [e.clientX, e.clientY]; syncView(); draw(); };
    const end = () => { view.svg.removeEventListener("pointermove", move); view.svg.removeEventListener("pointerup", end); };
    view.svg.addEventListener("pointermove", move); view.svg.addEventListener("pointerup", end); view.svg.addEventListener("pointercancel", end);
  }
  function slider(name, spec, value, set) {
    const out = make("output", {}, say(value)), log = spec.low > 0 && spec.high / spec.low > 20;
    const to = (v) => (log ? Math.log(v) : v), from = (v) => (log ? Math.exp(v) : v);
    const input = make("input", {type: "range", min: to(spec.low), max: to(spec.high), step: (to(spec.high) - to(spec.low)) / 200, "aria-label": `${spec.label}`,
      "aria-valuetext": say(value)});
    input.value = to(value);
    input.addEventListener("input", () => { const v = from(+input.value); out.textContent = say(v); input.setAttribute("aria-valuetext", say(v)); set(v); draw(); });
    return make("label", {class: "ex-slider", "data-name": name}, make("span", {}, spec.label), input, out);
  }
  function refresh(view) {                                   // after another loss or another repair
    const panel = view.panel, given = data.losses[panel.loss], old = panel.k;
    panel.k = {}; defaults(panel);
    if (old.keep === panel.loss) for (const k of Object.keys(panel.k)) if (k in old && old.repaired === !!panel.repair.length) panel.k[k] = old[k];
    panel.k.keep = panel.loss; panel.k.repaired = !!panel.repair.length;
    const set = panel.repair.length ? given.repaired : given.constants;
    view.repair.replaceChildren(...(given.repairs.length ? [make("span", {}, "repair")] : []), ...PARTS.filter((p) => given.repairs.includes(p)).map((part) => {
      const box = make("input", {type: "checkbox", onchange: () => {
        panel.repair = box.checked ? [...panel.repair, part] : panel.repair.filter((x) => x !== part);
        refresh(view);
        const again = [...view.repair.querySelectorAll("input")].find((x) => x.dataset.part === part);
        if (again) again.focus();
      }});
      box.dataset.part = part; box.checked = panel.repair.includes(part);
      return make("label", {}, box, part);
    }));
    view.constants.replaceChildren(...Object.entries(set).filter(([, v]) => v.high > v.low).map(([k, v]) => slider(k, v, panel.k[k], (x) => { panel.k[k] = x; })));
    draw();
  }

  // ---------------------------------------------------------------- drawing
  function arrow(from, v, kind, label) {
    const a = seen(from), b = seen(from.map((x, i) => x + (v[i] || 0))), dx = b[0] - a[0], dy = b[1] - a[1], n = Math.hypot(dx, dy);
    if (n < .02) return [];
    const ux = dx / n, uy = dy / n, head = Math.min(.1, n * .5), x = b[0], y = -b[1], hx = ux * head, hy = -uy * head;
    return [make("svg:path", {class: `ex-arrow ex-${kind}`, d: `M${a[0]} ${-a[1]}L${x - hx * .8} ${y - hy * .8}`}, make("svg:title", {}, label)),
      make("svg:path", {class: `ex-head ex-${kind}`, d: `M${x} ${y}L${x - hx - hy * .5} ${y - hy + hx * .5}L${x - hx + hy * .5} ${y - hy - hx * .5}Z`})];
  }
  function rings() {
    const circle = make("svg:circle", {r: 1, class: "ex-ring"});
    if (!state.sphere) return [circle];
    const path = (f) => { const all = Array.from({length: 61}, (_, i) => seen(f(i * Math.PI / 30)));
      return make("svg:path", {class: "ex-grid", d: all.map((p, i) => `${i ? "L" : "M"}${p[0].toFixed(3)} ${(-p[1]).toFixed(3)}`).join("")}); };
    const level = (y) => (t) => [Math.sqrt(1 - y * y) * Math.cos(t), y, Math.sqrt(1 - y * y) * Math.sin(t)];
    const meridian = (a) => (t) => [Math.sin(t) * Math.cos(a), Math.cos(t), Math.sin(t) * Math.sin(a)];
    return [circle, ...[-.7, 0, .7].map((y) => path(level(y))), ...[0, 60, 120].map((a) => path(meridian(rad(a))))];
  }
  const bar = (label, share, text, kind, mark) => make("div", {class: `ex-bar ${kind}`}, make("span", {class: "ex-name"}, label),
    make("span", {class: "ex-track"}, make("span", {class: `ex-fill${share < 0 ? " ex-less" : ""}`, style: `width:${Math.min(100, 100 * Math.abs(share)).toFixed(1)}%`}),
      ...(mark ? [make("span", {class: "ex-mark", style: `left:${mark}%`})] : [])), make("span", {class: "ex-number"}, text));
  function drawPanel(view) {
    const c = current(view.panel), h = shownPoints()[0], wide = (v) => (v.length < 3 ? [v[0], v[1], 0] : v);
    const most = Math.max(len(c.push), len(c.pull)), scale = most > 1e-12 && isFinite(most) ? .62 / most : 0;
    view.back.replaceChildren(...rings());
    // on a circle all three lie on one line: push and pull are drawn outside it
    const from = wide(h), vec = (v) => wide(v).map((x) => x * scale), out = (r) => from.map((x) => x * (state.sphere ? 1 : 1 + r));
    view.arrows.replaceChildren(...(scale ? [...arrow(out(.3), vec(c.push), "push", "push"), ...arrow(out(.18), vec(c.pull), "pull", "pull"),
      ...arrow(from, vec(c.sum), "sum", "sum")] : []));
    const top = Math.max(...c.W.map(Math.abs), 1e-300), all = c.W.reduce(add, 0);
    state.points.forEach((p, i) => {
      const s = seen(p), g = view.points[i], angle = Math.round(deg(Math.acos(Math.max(-1, Math.min(1, dot(p, state.points[0]))))));
      g.setAttribute("transform", `translate(${s[0].toFixed(4)} ${(-s[1]).toFixed(4)})`);
      g.classList.toggle("ex-behind", s[2] < -.02);
      const plane = Math.round(deg(Math.atan2(p[1], p[0])));
      g.setAttribute("aria-valuenow", plane);
      g.setAttribute("aria-valuetext", i ? `${angle} degrees from the anchor` : `at ${plane} degrees`);
      if (i > 1) g.querySelector(".ex-dot").setAttribute("r", (.085 + .055 * Math.abs(c.W[i - 2]) / top).toFixed(3));
    });
    const R = c.R.reduce(add, 0) / c.R.length, each = c.R.length > 1 ? ` (${c.R.map(say).join(", ")})` : "";
    view.bars.replaceChildren(bar("GD", c.GD, say(c.GD), "ex-gd"), ...c.W.map((w, j) => bar(`W ${j + 1}`, w / top, say(w), "ex-w")),
      bar("R", R / 4, say(R) + each, "ex-r", 25),
      make("div", {class: "ex-loss"}, make("span", {}, c.loss === null ? "loss " : data.losses[view.panel.loss].own ? "loss of this anchor " : "loss of the batch "), make("b", {}, c.loss === null ? "–" : say(c.loss)),
        ...(c.loss === null ? [make("span", {class: "ex-note"}, " repaired losses hold coefficients fixed, so their value does not measure progress")] : [])));
    const hardest = c.W.indexOf(Math.max(...c.W)), less = c.W.filter((w) => w < 0).length, net = len(c.sum);
    const share = !less && all > 0 ? Math.round(100 * c.W[hardest] / all) : null;
    const size = (v) => say(len(v));
    view.words.textContent = c.GD < 1e-6 ? "Dissipated: this loss no longer moves the anchor."
      : `Push ${size(c.push)}, pull ${size(c.pull)}, sum ${say(net)}. `
        + (less === c.W.length ? "All weights are negative: every negative pulls. " : less ? "Weights of both signs: some negatives pull. "
          : share === null ? "" : `Negative ${hardest + 1} has ${share} % of the weight. `)
        + (less ? "" : c.R.length > 1 ? "The ratio differs by coordinate." : R > 1.05 ? "The positive pulls harder than the negatives push."
          : R < .95 ? "The negatives push harder than the positive pulls." : "Push and pull have the same weight.");
  }
  const draw = () => panelViews.forEach(drawPanel);

  // ---------------------------------------------------------------- following the arrow
  function stop() { if (state.playing === null) return; state.playing = null; panelViews.forEach((v) => { v.play.textContent = "▶ follow the arrow"; }); }
  function play(n) {
    stop(); state.playing = n; panelViews[n].play.textContent = "■ stop";
    let still = 0;
    const step = () => {
      if (state.playing !== n) return;
      const c = current(state.panels[n]), most = Math.max(len(c.push), len(c.pull)), h = shownPoints()[0];
      const go = most > 1e-12 && isFinite(most) ? c.sum.map((x) => .03 * x / most) : c.sum.map(() => 0);
      still = len(go) < 4e-4 ? still + 1 : 0;
      if (still > 20) { stop(); return; }
      const next = unit(h.map((x, i) => x + go[i]));
      state.points[0] = [next[0], next[1], next[2] || 0];
      draw(); requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  }

  // ---------------------------------------------------------------- shared controls
  const setSphere = (on) => {
    stop(); state.sphere = on;
    if (!on) state.points = state.points.map((p) => (Math.hypot(p[0], p[1]) < 1e-3 ? [0, 1, 0] : unit([p[0], p[1], 0])));
    else if (state.points.every((p) => Math.abs(p[2]) < 1e-9)) state.points = state.points.map((p, i) => unit([p[0], p[1], [.1, .35, -.4, .6, -.2, .5, -.6][i]]));
    view.hidden = !on; draw();
  };
  const radio = (label, on) => { const box = make("input", {type: "radio", name: "ex-space", onchange: () => setSphere(on)}); box.checked = on === state.sphere;
    return make("label", {}, box, label); };
  const turn = slider("turn", {label: "turn", low: -180, high: 180}, state.turn, (v) => { state.turn = v; });
  const tilt = slider("tilt", {label: "tilt", low: -85, high: 85}, state.tilt, (v) => { state.tilt = v; });
  const view = make("div", {class: "ex-view"}, turn, tilt);
  view.hidden = true;
  function syncView() { [[turn, state.turn], [tilt, state.tilt]].forEach(([e, v]) => { e.querySelector("input").value = v; e.querySelector("output").textContent = say(v); }); }
  const scene = (name) => make("button", {type: "button", onclick: () => { stop(); state.points = SCENES[name].map((x) => [...x]); setSphere(state.sphere); }}, name);
  const random = make("button", {type: "button", onclick: () => { stop();
    state.points = state.points.map(() => { const a = Math.random() * 2 * Math.PI, z = 2 * Math.random() - 1, r = Math.sqrt(1 - z * z);
      return state.sphere ? [r * Math.cos(a), z, r * Math.sin(a)] : [Math.cos(a), Math.sin(a), 0]; }); draw(); }}, "surprise me");
  const legend = make("p", {class: "ex-legend"}, ...[["push", "push of the negatives"], ["pull", "pull of the positive"], ["sum", "their sum, the step of the anchor"]]
    .map(([kind, text]) => make("span", {}, make("i", {class: `ex-key ex-${kind}`}), text)));
  root.replaceChildren(
    make("div", {class: "ex-top"}, make("div", {role: "radiogroup", "aria-label": "Where the points lie"}, radio("circle", false), radio("sphere", true)),
      make("div", {class: "ex-scenes", role: "group", "aria-label": "Scenes"}, ...Object.keys(SCENES).map(scene), random), view),
    legend, make("div", {class: "ex-panels"}, ...state.panels.map(makePanel)));
  panelViews.forEach((v) => defaults(v.panel));
  panelViews.forEach(refresh);
  root.classList.add("ex-ready");
  return {compute, state, draw};
}
