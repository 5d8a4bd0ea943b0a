"use strict";
// Charts, tables, the matrix and the gallery of a report. No framework; nothing is read from the network.
(() => {
  const specs = JSON.parse(document.getElementById("charts")?.textContent || "{}");
  const text = { labelColor: "var(--ink)", titleColor: "var(--muted)", labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500 };
  const config = {
    aria: false, // each chart is named as a whole, and its numbers are in tables
    background: "transparent", font: "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
    axis: { ...text, gridColor: "var(--line)", domainColor: "var(--line)", tickColor: "var(--line)", titlePadding: 8 },
    legend: { ...text, symbolStrokeWidth: 3 }, view: { stroke: null },
    range: { category: ["var(--accent)", "var(--second)", "var(--right)", "var(--wrong)", "var(--muted)"] },
    text: { color: "var(--ink)" },
  };
  const options = { actions: false, renderer: "svg", logLevel: 1, config };

  // Charts are drawn when they come near: a closed part of the page costs nothing.
  const drawn = new Map();
  const draw = async (node, changed) => {
    if (drawn.has(node) && !changed) return;
    drawn.set(node, true);
    const spec = changed || specs[node.dataset.chart];
    const parts = spec.panels || [spec];
    const boxes = parts.map(() => document.createElement("div"));
    node.replaceChildren(...boxes);
    for (const [place, part] of parts.entries()) {
      boxes[place].className = "panel";
      boxes[place].style.width = "100%";
      await vegaEmbed(boxes[place], { autosize: { type: "fit-x", contains: "padding" }, ...part }, options);
    }
    node.dataset.drawn = "yes";
  };
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { near.unobserve(entry.target); start(entry.target); }
  }, { rootMargin: "600px" });
  const start = (node) => {
    if (drawn.has(node)) return;
    node.closest(".matrix") ? matrix(node.closest(".matrix")) : draw(node);
  };
  for (const node of document.querySelectorAll(".chart")) near.observe(node);

  // The others while nothing else is to be done, so that what is open can be printed.
  const waiting = [...document.querySelectorAll(".chart")];
  const idle = window.requestIdleCallback || ((next) => setTimeout(next, 50));
  const next = () => { const node = waiting.shift(); if (node) { if (node.offsetParent) start(node); idle(next); } };

  // The matrix: counts or shares, and the size of its cells.
  const states = new Map();
  const matrix = (box, change) => {
    const node = box.querySelector(".chart"), base = specs[node.dataset.chart];
    const scales = base.layer[0].encoding, count = scales.x.scale.domain.length;
    const longest = Math.max(...scales.y.scale.domain.map((label) => label.length));
    const room = box.querySelector(".plot-scroll").clientWidth - Math.min(150, 7 * longest) - 60;
    const fit = Math.max(9, Math.min(56, Math.floor(room / count)));
    const state = states.get(box) || { step: fit, shown: base.params[0].value };
    if (change === "in") state.step = Math.min(72, Math.ceil(state.step * 1.3));
    else if (change === "out") state.step = Math.max(5, Math.floor(state.step / 1.3));
    else if (change === "fit") state.step = Math.max(5, Math.min(56, Math.floor(room / count)));
    else if (change) state.shown = change;
    states.set(box, state);
    for (const button of box.querySelectorAll("[data-shown]")) button.setAttribute("aria-pressed", String(button.dataset.shown === state.shown));
    const spec = structuredClone(base), size = Math.max(5, Math.min(12, state.step - 1));
    spec.params[0].value = state.shown;
    spec.width = spec.height = { step: state.step };
    spec.autosize = { type: "pad" };
    for (const layer of spec.layer) {
      for (const name of ["x", "y"]) if (layer.encoding[name]?.axis) layer.encoding[name].axis.labelFontSize = size;
      // Slanted labels would overlap above narrow cells.
      if (state.step < 24 && layer.encoding.x?.axis) Object.assign(layer.encoding.x.axis, { labelAngle: -90, labelAlign: "left" });
      if (layer.mark.type === "text") layer.mark.fontSize = Math.min(13, Math.max(6, state.step * 0.45));
    }
    return draw(node, spec);
  };
  for (const box of document.querySelectorAll(".matrix"))
    for (const button of box.querySelectorAll("button")) button.addEventListener("click", () => matrix(box, button.dataset.shown || button.dataset.zoom));

  addEventListener("load", () => idle(next));
  for (const part of document.querySelectorAll("details")) part.addEventListener("toggle", () => {
    if (part.open) { waiting.push(...part.querySelectorAll(".chart")); idle(next); }
  });

  // Tables: a click sorts, a second one the other way round; empty cells stay last.
  for (const box of document.querySelectorAll("[data-table]")) {
    const body = box.querySelector("tbody"), heads = [...box.querySelectorAll("th")];
    const value = (row, column) => {
      const cell = row.cells[column], number = cell.dataset.value;
      return number === undefined ? cell.textContent.trim().toLowerCase() : number === "" ? null : Number(number);
    };
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const down = before ? before === "ascending" : head.classList.contains("number");
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sign = down ? -1 : 1;
      const rows = [...body.rows].map((row) => [value(row, column), row]);
      const empty = (one) => one === null || one === "";
      rows.sort(([a], [b]) => empty(a) || empty(b) ? Number(empty(a)) - Number(empty(b))
        : sign * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true })));
      body.append(...rows.map(([, row]) => row));
    }));
    const field = box.querySelector("input[type=search]");
    if (!field) continue;
    const said = box.querySelector("output"), all = body.rows.length;
    const texts = new Map([...body.rows].map((row) => [row, row.textContent.toLowerCase()]));
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const [row, own] of texts) { row.hidden = !words.every((word) => own.includes(word)); shown += Number(!row.hidden); }
      said.textContent = shown === all ? `${all} rows` : `${shown} of ${all} rows`;
    });
  }

  // The gallery: a clip takes the place of its frames.
  for (const button of document.querySelectorAll(".play")) button.addEventListener("click", () => {
    const video = document.createElement("video");
    Object.assign(video, { src: button.dataset.clip, controls: true, muted: true, loop: true, playsInline: true });
    video.setAttribute("aria-label", button.getAttribute("aria-label"));
    const media = button.closest(".media");
    media.querySelector("img")?.remove();
    button.replaceWith(video);
    video.focus();
    video.play().catch(() => {});
  });
  for (const box of document.querySelectorAll("[data-gallery]"))
    for (const button of box.querySelectorAll("[data-only]")) button.addEventListener("click", () => {
      for (const other of box.querySelectorAll("[data-only]")) other.setAttribute("aria-pressed", String(other === button));
      for (const item of box.querySelectorAll(".is-right")) item.hidden = button.dataset.only === "mistakes";
    });

  for (const box of document.querySelectorAll("[data-choice]")) box.querySelector("select")?.addEventListener("change", (event) => {
    box.querySelectorAll(".choice").forEach((one, place) => { one.hidden = place !== event.target.selectedIndex; });
  });

  // A link to a closed part opens it.
  const open = () => {
    const details = document.querySelector(`${CSS.escape ? "#" + CSS.escape(location.hash.slice(1)) : location.hash} > details`);
    if (details) details.open = true;
  };
  if (location.hash) open();
  addEventListener("hashchange", () => location.hash && open());
})();
