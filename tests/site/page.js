// What this site adds to its builder, for Quarto and smalldocs alike: wide things fit, the sidebar opens at the page,
// search shows titles first, faults are reported. No foreign address.
(() => {
  "use strict";
  const $$ = (sel, root = document) => Array.from(root.querySelectorAll(sel));
  const main = document.querySelector("main");
  const SMALLEST = .62;                       // of the equation's usual size; what is wider scrolls

  // ---- equations: beside their tag, else above it, else smaller
  const span = (boxes) => Math.max(...boxes.map((r) => r.right)) - Math.min(...boxes.map((r) => r.left));
  function fitEquation(e) {
    const katex = e.querySelector(":scope > .katex");
    if (!katex || !e.offsetParent) return;
    e.classList.remove("below", "scrolls");
    katex.style.fontSize = "";
    const bases = () => $$(":scope > .katex-html > .base", katex).map((b) => b.getBoundingClientRect());
    if (!bases().length) return;
    const tag = katex.querySelector(":scope > .katex-html > .tag"), room = e.clientWidth;
    const wide = span(bases());
    if (tag) {
      const letters = (tag.querySelector(".mord.text") || tag).getBoundingClientRect().width;
      if (wide + 2 * (letters + 12) > room) e.classList.add("below");
    }
    if (wide > room) {
      const usual = parseFloat(getComputedStyle(katex).fontSize);
      const scale = Math.max(SMALLEST, Math.floor(99 * room / wide) / 100);
      katex.style.fontSize = usual * scale + "px";
      if (span(bases()) > room + 1) e.classList.add("scrolls");
    }
  }

  // ---- tables: as they are, smaller, smaller still, then one card a row
  const breakable = (cell) => {
    const walk = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), texts = [];
    while (walk.nextNode()) if (!walk.currentNode.parentElement.closest(".katex")) texts.push(walk.currentNode);
    texts.forEach((t) => {
      if (!/\S{13}/.test(t.data)) return;
      const parts = t.data.split(/(?<=[\w)][_/.,=|-])(?=\w)/);
      if (parts.length < 2) return;
      const piece = document.createDocumentFragment();
      parts.forEach((p, i) => { if (i) piece.append(document.createElement("wbr")); piece.append(p); });
      t.replaceWith(piece);
    });
  };
  function fitTable(t) {
    if (!t.offsetParent) return;
    if (!t.dataset.fitted) {
      t.dataset.fitted = "1";
      $$("th, td", t).forEach(breakable);
      const heads = $$("thead tr:last-child th", t).map((h) => h.textContent.trim());
      $$("tbody tr", t).forEach((r) => Array.from(r.children).forEach((c, i) => { if (heads[i]) c.dataset.label = heads[i]; }));
    }
    const room = t.parentElement.clientWidth;
    const heads = $$("thead th", t);
    const lines = (h) => (h.offsetHeight - 8) / parseFloat(getComputedStyle(h).lineHeight);
    const fits = () => t.scrollWidth <= room + 1 && t.offsetWidth <= room + 1
      && t.getBoundingClientRect().right <= t.parentElement.getBoundingClientRect().right + 1
      && heads.every((h) => h.scrollWidth <= h.clientWidth + 1 && lines(h) <= 4);
    for (const kind of ["", "tight", "tighter", "cards"]) {
      t.classList.remove("tight", "tighter", "cards");
      if (kind) t.classList.add(kind);
      if (kind === "cards" || fits()) break;
    }
  }

  // ---- printed text: smaller while that keeps its columns, else wrapped
  function fitOutput(p) {
    if (!p.offsetParent) return;
    p.style.fontSize = "";
    p.classList.add("aligned");
    const usual = parseFloat(getComputedStyle(p).fontSize), wide = p.scrollWidth, room = p.clientWidth;
    if (wide <= room + 1) return;
    const size = usual * (room - 20) / (wide - 20);
    if (size >= 9.5) p.style.fontSize = Math.floor(size * 20) / 20 + "px";
    if (p.scrollWidth > p.clientWidth + 1) { p.style.fontSize = ""; p.classList.remove("aligned"); }
  }

  // ---- code that is wider than its column: it scrolls, or wraps at the press of a button
  function offerWrap(pre) {
    const box = pre.closest(".code-copy-outer-scaffold") || pre.parentElement;
    const old = box.querySelector(":scope > .wrap-button");
    if (pre.scrollWidth <= pre.clientWidth + 1) { if (old && !box.classList.contains("wrapped")) old.remove(); return; }
    pre.tabIndex = 0;
    if (old) return;
    const b = document.createElement("button");
    b.type = "button"; b.className = "wrap-button"; b.textContent = "wrap";
    b.setAttribute("aria-pressed", "false");
    b.title = "Wrap the long lines of this cell";
    b.addEventListener("click", () => b.setAttribute("aria-pressed", String(box.classList.toggle("wrapped"))));
    box.classList.add("has-wrap-button");
    box.append(b);
  }

  function fit() {
    if (!main) return;
    $$(".katex-display", main).forEach(fitEquation);
    $$("table", main).filter((t) => !t.closest(".explorer")).forEach(fitTable);
    $$(".cell-output pre", main).filter((p) => !p.matches(".sourceCode")).forEach(fitOutput);
    $$("pre.sourceCode", main).forEach(offerWrap);
    // an inline formula wider than its line gets smaller, as a displayed one does
    $$("p .katex, li .katex, td .katex", main).filter((k) => !k.closest(".katex-display")).forEach((k) => {
      k.style.fontSize = "";
      const room = k.closest("p, li, td").clientWidth;
      const wide = Math.max(0, ...$$(".base", k).map((b) => b.getBoundingClientRect().width));
      if (wide > room) k.style.fontSize = Math.max(SMALLEST, room / wide * .98) * parseFloat(getComputedStyle(k).fontSize) + "px";
    });
  }
  window.fitPage = fit;
  let width = 0;
  const again = () => { if (main && main.clientWidth !== width) { width = main.clientWidth; fit(); } };
  const start = () => { width = 0; again(); (document.fonts ? document.fonts.ready : Promise.resolve()).then(fit); };
  if (document.readyState === "complete") start(); else addEventListener("load", start);
  addEventListener("resize", again);
  document.addEventListener("toggle", fit, true);     // details that open

  // ---- the sidebar opens at the current page
  const here = document.querySelector("#quarto-sidebar .sidebar-link.active, #quarto-sidebar .sidebar-item .active");
  const bar = document.querySelector("#quarto-sidebar");
  if (here && bar) {
    here.setAttribute("aria-current", "page");
    const open = () => { const b = bar.getBoundingClientRect(), r = here.getBoundingClientRect();
      if (r.height && (r.bottom > b.bottom - 40 || r.top < b.top)) bar.scrollTop += r.top - b.top - b.height / 3; };
    open(); addEventListener("load", open);
    new MutationObserver(open).observe(bar, {attributes: true, attributeFilter: ["class"]});
  }
  $$("a[data-bs-toggle=collapse], .quarto-color-scheme-toggle, #quarto-back-to-top").forEach((a) => {
    if (!a.getAttribute("role") || a.getAttribute("role") === "navigation") a.setAttribute("role", "button");
    if (!a.getAttribute("href")) a.tabIndex = 0;
    if (a.title && !a.getAttribute("aria-label")) a.setAttribute("aria-label", a.title);
    a.addEventListener("keydown", (ev) => { if (ev.key === "Enter" || ev.key === " ") { ev.preventDefault(); a.click(); } });
  });

  // ---- search: pages whose title has the words, then sections in words, then functions, then text
  const rank = (item, words) => {
    const has = (s) => words.every((w) => (s || "").toLowerCase().includes(w));
    const isName = /^[A-Za-z_][\w.]*$/.test(item.section || "") && /[_A-Z.]|^[a-z]+$/.test(item.section);
    if (!item.section && has(item.title)) return 0;
    if (item.section && !isName && has(item.section)) return 1;
    if (isName && has(item.section)) return 2;
    return item.section ? (isName ? 5 : 4) : 3;
  };
  if (window.Fuse) {
    const search = window.Fuse.prototype.search;
    window.Fuse.prototype.search = function (q, options) {
      const limit = options && options.limit, words = String(q).toLowerCase().split(/\s+/).filter(Boolean);
      const hits = search.call(this, q, {...options, limit: 400});
      hits.forEach((h) => { h.rank = rank(h.item, words); });
      hits.sort((a, b) => a.rank - b.rank);           // stable: within a rank as Fuse has it
      return limit ? hits.slice(0, limit) : hits;
    };
  }

  // ---- report a fault: where no address is configured, the words to paste into a mail
  $$(".report-fault").forEach((b) => b.addEventListener("click", async () => {
    const chosen = String(getSelection()).trim().slice(0, 200);
    const words = `Fault on page "${document.title}", ${b.dataset.page}, version ${b.dataset.version}`
      + `${location.hash ? ", at " + location.hash : ""}\n${chosen ? "Text: " + chosen + "\n" : ""}What is wrong: `;
    let said = "copied: paste it into your report";
    try { await navigator.clipboard.writeText(words); } catch (e) { said = words; }
    b.nextElementSibling.textContent = said;
  }));
})();
