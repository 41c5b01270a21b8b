"use strict";
// The page: reads the document, draws what is selected, and keeps filters, theme, hints and copy buttons alive.
(function () {
  const doc = JSON.parse(document.getElementById("data").textContent);
  const terms = JSON.parse(document.getElementById("terms").textContent);
  doc.configs.forEach((config, index) => { config.index = index; });
  const byId = new Map(doc.configs.map((config) => [config.id, config]));
  const off = { workload: new Set(), config: new Set() };
  const plots = [...document.querySelectorAll("figure.plot")];
  const all = (selector) => [...document.querySelectorAll(selector)];
  const PAPER = 680; // CSS pixels: what A4 and Letter both hold between their margins
  let printing = false;
  const pick = document.getElementById("pick");

  function environment(plot) {
    const shown = (point) => !off.workload.has(point.workload) && !off.config.has(point.config);
    const configs = doc.configs.filter((config) => !off.config.has(config.id));
    return {
      doc, configs, points: doc.points.filter(shown), workloads: doc.workloads.filter((name) => !off.workload.has(name)),
      theme: Style.theme(), width: printing ? PAPER : Math.max(280, Math.floor(plot.clientWidth)), legend: configs.length <= 8,
      metric: plot.dataset.metric, log: document.getElementById("latency-log").checked && plot.id === "f-latency",
      timeline: doc.timelines[Number(pick.value)], cards: (id) => byId.get(id)?.cards ?? 1, index: (id) => byId.get(id)?.index ?? 0,
    };
  }

  function draw(plot) {
    const { data, layout } = Figures[plot.dataset.figure](environment(plot));
    const empty = !data.length;
    plot.classList.toggle("none", empty);
    if (empty) {
      Plotly.purge(plot);
      plot.textContent = Figures.possible(doc, plot.dataset.figure) ? "Nothing to draw with this selection." : "";
      plot.dataset.drawn = "empty";
      return;
    }
    if (plot.dataset.drawn !== "yes") plot.textContent = "";
    Plotly.react(plot, data, layout, { displaylogo: false, displayModeBar: false, responsive: false, scrollZoom: false });
    plot.dataset.drawn = "yes";
  }

  // One figure per frame, so that the page answers while it draws; those in view come first.
  let queue = [];
  let running = false;
  function redraw(which = plots) {
    const height = window.innerHeight;
    const distance = (plot) => { const { top, bottom } = plot.getBoundingClientRect(); return bottom < 0 ? -bottom : Math.max(0, top - height); };
    queue = [...new Set([...queue, ...which])].sort((a, b) => distance(a) - distance(b));
    document.documentElement.dataset.ready = "no";
    if (!running) { running = true; window.setTimeout(step, 0); }
  }
  function step() {
    const next = queue.shift();
    if (next) { draw(next); window.setTimeout(step, 0); return; }
    running = false;
    document.documentElement.dataset.ready = "yes";
  }

  function swatches() {
    for (const place of all("[data-swatch]")) {
      const config = byId.get(place.dataset.swatch);
      if (!config) continue;
      place.replaceChildren(swatch(Style.of(config.index)));
    }
  }
  function swatch({ color, dash, symbol }) {
    const shapes = { circle: "M9 6a4 4 0 1 0 8 0a4 4 0 1 0-8 0", square: "M9.5 2.5h7v7h-7z", diamond: "M13 1l5 5-5 5-5-5z", "triangle-up": "M13 1.5l4.6 8.5h-9.2z",
      "triangle-down": "M13 10.5l4.6-8.5h-9.2z", cross: "M11.5 1.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z", x: "M9 3.5l1.5-1.5 2.5 2.5 2.5-2.5 1.5 1.5-2.5 2.5 2.5 2.5-1.5 1.5-2.5-2.5-2.5 2.5-1.5-1.5 2.5-2.5z",
      star: "M13 .8l1.5 3.4 3.7.3-2.8 2.4.9 3.6-3.3-1.9-3.3 1.9.9-3.6-2.8-2.4 3.7-.3z" };
    const dashes = { solid: "", dash: "6 3", dot: "2 2", dashdot: "6 2 2 2", longdash: "9 3" };
    const make = (name, attributes) => {
      const element = document.createElementNS("http://www.w3.org/2000/svg", name);
      for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
      return element;
    };
    const svg = make("svg", { viewBox: "0 0 26 12", width: 26, height: 12 });
    svg.append(make("path", { d: "M0 6H26", stroke: color, "stroke-width": 2, "stroke-dasharray": dashes[dash] }), make("path", { d: shapes[symbol], fill: color }));
    return svg;
  }

  // Filters: one selection for every figure and table. A double click leaves only that one.
  function filtersChanged() {
    for (const box of all("[data-filter]")) {
      if (box.checked) off[box.dataset.filter].delete(box.value); else off[box.dataset.filter].add(box.value);
    }
    const hidden = (element) => off.config.has(element.dataset.config) || off.workload.has(element.dataset.workload);
    for (const element of all("[data-config], [data-workload]")) element.toggleAttribute("data-off", hidden(element));
    document.getElementById("reset").hidden = !off.config.size && !off.workload.size;
    listTimelines();
    redraw();
  }
  function only(box) {
    for (const other of all(`[data-filter="${box.dataset.filter}"]`)) other.checked = other === box;
    filtersChanged();
  }
  for (const box of all("[data-filter]")) {
    box.addEventListener("change", filtersChanged);
    box.closest("label").addEventListener("dblclick", (event) => { event.preventDefault(); only(box); });
  }
  document.getElementById("reset").addEventListener("click", () => {
    for (const box of all("[data-filter]")) box.checked = true;
    filtersChanged();
  });

  function listTimelines() {
    const before = pick.value;
    const options = doc.timelines.map((line, index) => [line, index])
      .filter(([line]) => !off.workload.has(line.workload) && !off.config.has(line.config))
      .map(([line, index]) => new Option(`${line.config} · ${line.workload} · load ${Format.level(line.level)}`, String(index)));
    pick.replaceChildren(...options);
    const kept = options.find((option) => option.value === before);
    if (kept) pick.value = before; else if (options.length) pick.value = options[busiest(options)].value;
    const note = doc.timelines_left_out ? `${doc.timelines_left_out.toLocaleString("en-US")} more points were watched; their samples lie in the run's folder.` : "";
    document.getElementById("timeline-note").textContent = doc.timelines.length ? note : "No point of this run carries samples.";
  }
  function busiest(options) {
    const load = (option) => doc.timelines[Number(option.value)].level ?? 0;
    return options.reduce((best, option, index) => (load(option) > load(options[best]) ? index : best), 0);
  }
  pick.addEventListener("change", () => redraw([document.getElementById("f-timeline")]));

  // Which metric a curve shows.
  function metricMenus() {
    const present = new Set(doc.points.flatMap((point) => Object.keys(point.metrics)));
    for (const menu of all("select[data-for]")) {
      const plot = document.getElementById(menu.dataset.for), latency = plot.id === "f-latency";
      const metrics = doc.metrics.filter((metric) => (metric.unit === "ms") === latency && present.has(metric.key));
      menu.replaceChildren(...metrics.map((metric) => new Option(metric.title, metric.key)));
      if (metrics.some((metric) => metric.key === plot.dataset.metric)) menu.value = plot.dataset.metric;
      else if (metrics.length) plot.dataset.metric = menu.value;
      menu.addEventListener("change", () => { plot.dataset.metric = menu.value; redraw([plot]); });
    }
  }
  document.getElementById("latency-log").addEventListener("change", () => redraw([document.getElementById("f-latency")]));

  Theme.start(() => { swatches(); redraw(); });
  swatches();

  // Definitions on hover, focus and touch.
  const tip = document.getElementById("tip");
  function showTip(event) {
    const term = event.target.closest?.(".term");
    if (!term) { tip.hidden = true; return; }
    tip.textContent = terms[term.dataset.term] || "";
    tip.hidden = !tip.textContent;
    const box = term.getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(box.left, window.innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${box.bottom + 6 + tip.offsetHeight > window.innerHeight ? box.top - tip.offsetHeight - 6 : box.bottom + 6}px`;
    term.setAttribute("aria-describedby", "tip");
  }
  for (const kind of ["mouseover", "focusin", "click"]) document.addEventListener(kind, showTip);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });
  window.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

  // Copy buttons and the tabs of the docker line.
  for (const button of all("[data-copy]")) {
    button.addEventListener("click", async () => {
      const text = document.getElementById(button.dataset.copy).textContent;
      try { await navigator.clipboard.writeText(text); } catch { copyOldWay(text); }
      button.textContent = "Copied";
      window.setTimeout(() => { button.textContent = "Copy"; }, 1600);
    });
  }
  function copyOldWay(text) {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  for (const tab of all("[data-tab]")) {
    tab.addEventListener("click", () => {
      for (const other of all("[data-tab]")) {
        other.setAttribute("aria-pressed", String(other === tab));
        document.getElementById(other.dataset.tab).hidden = other !== tab;
      }
    });
  }

  // Paper: light colours and a width that fits, drawn at once.
  let themeBeforePrint = "light";
  window.addEventListener("beforeprint", () => {
    themeBeforePrint = document.documentElement.dataset.theme;
    printing = true;
    Theme.set("light");
    swatches();
    for (const plot of plots) draw(plot);
  });
  window.addEventListener("afterprint", () => { printing = false; Theme.set(themeBeforePrint); swatches(); redraw(); });

  let width = window.innerWidth, timer = 0;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    window.clearTimeout(timer);
    timer = window.setTimeout(() => redraw(), 120);
  });

  // Once the page is scrolled, the filters take one line.
  const filters = document.getElementById("filters");
  new IntersectionObserver(([entry]) => { filters.classList.toggle("stuck", !entry.isIntersecting); }).observe(document.getElementById("above"));

  metricMenus();
  listTimelines();
  redraw();
})();
