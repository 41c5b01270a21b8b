"use strict";
// From the document and what is selected to Plotly traces and layouts. Pure: nothing here touches the page.

// What every figure shares: fonts, colours, the mark of simulated runs, no buttons that a still report does not need.
function baseLayout(env, height) {
  const { theme } = env;
  const layout = {
    height, width: env.width, autosize: false, margin: { l: 64, r: 20, t: 34, b: 56 },
    paper_bgcolor: env.background || "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, -apple-system, Segoe UI, Noto Sans, DejaVu Sans, sans-serif", size: 12.5, color: theme.soft },
    hoverlabel: { bgcolor: theme.paper, bordercolor: theme.rule, font: { color: theme.ink, size: 12.5 }, align: "left" },
    hovermode: "closest", showlegend: false, annotations: [], shapes: [],
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", itemclick: false, itemdoubleclick: false, font: { color: theme.ink } },
  };
  if (env.doc.subject.simulated) layout.annotations.push(Style.simulated(env.theme));
  return layout;
}

function axis(env, title, more) {
  const { theme } = env;
  return { title: { text: title, standoff: 10 }, gridcolor: theme.grid, zeroline: false, linecolor: theme.rule, showline: true,
    tickcolor: theme.rule, ticks: "outside", ticklen: 4, automargin: true, ...more };
}

// One panel per workload, two in a row where there is room.
function panels(env, layout, names, xTitle, yTitle, xMore, yMore, panelHeight = 270) {
  const columns = names.length > 1 && env.width >= 640 ? 2 : 1;
  const rows = Math.max(1, Math.ceil(names.length / columns));
  const legendRoom = layout.showlegend ? 30 : 0;
  layout.height = rows * panelHeight + 60 + legendRoom;
  layout.margin.t += legendRoom;
  layout.legend.y = 1 + 30 / (layout.height - layout.margin.t - layout.margin.b);
  const gapX = 0.1, gapY = 74 / (rows * panelHeight);
  const wide = (1 - gapX * (columns - 1)) / columns, tall = (1 - gapY * (rows - 1)) / rows;
  layout.annotations = env.doc.subject.simulated ? [{ ...Style.simulated(env.theme), yshift: 5 + legendRoom }] : [];
  return names.map((name, index) => {
    const column = index % columns, row = Math.floor(index / columns), suffix = index ? String(index + 1) : "";
    const left = column * (wide + gapX), top = 1 - row * (tall + gapY);
    const lastInColumn = index + columns >= names.length;
    layout["xaxis" + suffix] = axis(env, lastInColumn ? xTitle : "", { domain: [left, left + wide], anchor: "y" + suffix, ...xMore });
    layout["yaxis" + suffix] = axis(env, column === 0 ? yTitle : "", { domain: [Math.max(0, top - tall), top], anchor: "x" + suffix, rangemode: "tozero", ...yMore });
    layout.annotations.push({ text: `<b>${Format.short(name, 48)}</b>`, xref: "paper", yref: "paper", x: left, y: top, xanchor: "left",
      yanchor: "bottom", yshift: 4, showarrow: false, font: { color: env.theme.ink, size: 13 } });
    return { name, x: "x" + suffix, y: "y" + suffix };
  });
}

function levelAxis(doc, points) {
  const levels = [...new Set(points.map((point) => point.level).filter((level) => level !== null))].sort((a, b) => a - b);
  const ticks = levels.length <= 9 ? { tickvals: levels, ticktext: levels.map(String) } : {};
  return doc.level_log ? { type: "log", ...ticks } : { ...ticks };
}

function errorBars(points, key) {
  if (!points.some((point) => point.metrics[key][1] !== null)) return undefined;
  const part = (index) => points.map((point) => {
    const [value, low, high] = point.metrics[key];
    return low === null ? 0 : index ? value - low : high - value;
  });
  return { type: "data", symmetric: false, array: part(0), arrayminus: part(1), thickness: 1.2, width: 3 };
}

function hoverOf(point, extra) {
  const lines = [`<b>${Format.short(point.config, 60)}</b>`, `${Format.short(point.workload, 60)}, load ${Format.level(point.level)}`, ...extra];
  if (point.bound) lines.push(`bound: ${Format.short(point.bound, 30)}`);
  lines.push(point.n === 1 ? "one repeat: indicative" : `${point.n} repeats`);
  if (!point.valid) lines.push(`<b>invalid</b>: ${Format.short(point.invalid_reason || "no reason given", 90)}`);
  return lines.join("<br>");
}

const openWhereInvalid = (points, symbol) => points.map((point) => (point.valid ? symbol : symbol + "-open"));

const Figures = {
  // Whether the run holds what a figure is made of, whatever is selected.
  possible(doc, figure) {
    const needs = { price: doc.prices.length, timeline: doc.timelines.length, prediction: doc.configs.some((config) => config.prediction.kv_cache_gib != null) };
    return Boolean(needs[figure] ?? doc.points.length);
  },

  // A metric against the load, one line per configuration, one panel per workload.
  curve(env) {
    const { doc, points, workloads } = env, metric = doc.metrics.find((each) => each.key === env.metric), data = [];
    const layout = baseLayout(env, 300);
    layout.showlegend = env.legend;
    const cells = panels(env, layout, workloads, doc.level_label, metric.title, levelAxis(doc, points), env.log ? { type: "log", rangemode: "normal" } : {});
    const legends = new Set();
    for (const cell of cells) {
      for (const config of env.configs) {
        const own = points.filter((point) => point.config === config.id && point.workload === cell.name && point.metrics[metric.key] && point.level !== null);
        if (!own.length) continue;
        const { color, dash, symbol } = Style.of(config.index);
        data.push({
          type: "scatter", mode: "lines+markers", name: Format.short(config.id, 40), legendgroup: config.id, showlegend: !legends.has(config.id),
          x: own.map((point) => point.level), y: own.map((point) => point.metrics[metric.key][0]), xaxis: cell.x, yaxis: cell.y,
          error_y: errorBars(own, metric.key), line: { color, dash, width: 2 }, marker: { color, size: 8, symbol: openWhereInvalid(own, symbol) },
          hovertext: own.map((point) => hoverOf(point, [`${metric.label}: ${Format.estimate(point.metrics[metric.key], metric.unit)}`])), hoverinfo: "text",
        });
        legends.add(config.id);
      }
    }
    return { data, layout };
  },

  // Tokens/s of one user against tokens/s of one card, and the points that nothing beats on both.
  pareto(env) {
    const { points, workloads } = env, layout = baseLayout(env, 300), data = [], legends = new Set();
    layout.showlegend = env.legend;
    const cells = panels(env, layout, workloads, "Output tok/s for one user", "Output tok/s per card", { rangemode: "tozero" }, {});
    const place = (point) => [point.metrics.output_tokens_per_s_per_user[0], point.metrics.output_tokens_per_s[0] / env.cards(point.config)];
    for (const cell of cells) {
      const all = points.filter((point) => point.workload === cell.name && point.metrics.output_tokens_per_s_per_user && point.metrics.output_tokens_per_s);
      const frontier = Figures.frontier(all.filter((point) => point.valid).map(place));
      const leads = ([x, y]) => frontier.some((at) => at[0] === x && at[1] === y);
      data.push({ type: "scatter", mode: "lines", x: frontier.map((at) => at[0]), y: frontier.map((at) => at[1]), xaxis: cell.x, yaxis: cell.y,
        line: { color: env.theme.faint, width: 6, shape: "linear" }, opacity: 0.3, hoverinfo: "skip", name: "not beaten on both", legendgroup: "frontier", showlegend: cell === cells[0] });
      for (const config of env.configs) {
        const own = all.filter((point) => point.config === config.id), { color, symbol } = Style.of(config.index);
        if (!own.length) continue;
        data.push({
          type: "scatter", mode: "markers+text", cliponaxis: false, name: Format.short(config.id, 40),
          legendgroup: config.id, showlegend: !legends.has(config.id), x: own.map((point) => place(point)[0]), y: own.map((point) => place(point)[1]),
          xaxis: cell.x, yaxis: cell.y, text: own.map((point) => (point.valid && leads(place(point)) ? Format.level(point.level) : "")), textposition: "top right", textfont: { size: 11, color: env.theme.ink },
          marker: { color, size: 9, symbol: openWhereInvalid(own, symbol) }, hoverinfo: "text",
          hovertext: own.map((point) => hoverOf(point, [`one user: ${Format.number(place(point)[0])} tok/s`, `per card: ${Format.number(place(point)[1])} tok/s`])),
        });
        legends.add(config.id);
      }
    }
    return { data, layout };
  },

  // Points that no other point reaches or passes on both axes, by falling x.
  frontier(places) {
    const sorted = [...places].sort((a, b) => b[0] - a[0] || b[1] - a[1]), kept = [];
    for (const place of sorted) if (!kept.length || place[1] > kept[kept.length - 1][1]) kept.push(place);
    return kept;
  },

  // The parts of each server's memory, the card's size as a line, and what NVML saw.
  memory(env) {
    const { doc, theme } = env, configs = env.configs.filter((config) => config.ledger.kv_cache_gib != null || config.vram_peak_gib !== null);
    const layout = Figures.rows(env, configs, "GiB"), names = configs.map((config) => config.id), data = [];
    if (!configs.length) return { data, layout };
    const graphs = (ledger) => ledger.graphs_actual_gib ?? ledger.graphs_estimated_gib ?? null;
    const parts = [
      ["weights", "Weights", (ledger) => ledger.weights_gib, ""], ["activations", "Activations", (ledger) => ledger.activations_gib, "/"],
      ["graphs", "CUDA graphs", graphs, "x"], ["kv", "KV cache", (ledger) => ledger.kv_cache_gib, ""], ["rest", "Rest of the budget", (ledger) => ledger.rest_gib, "."],
    ];
    for (const [key, label, read, pattern] of parts) {
      const values = configs.map((config) => read(config.ledger) ?? null);
      if (values.every((value) => value === null)) continue;
      data.push({ type: "bar", orientation: "h", name: label, y: names, x: values.map((value) => (value === null ? null : Math.max(0, value))),
        marker: { color: theme.parts[key], pattern: { shape: pattern, fillmode: "overlay", fgcolor: theme.paper, size: 6, solidity: 0.2 }, line: { color: theme.paper, width: 1 } },
        hovertext: values.map((value, index) => `<b>${Format.short(names[index], 60)}</b><br>${label}: ${Format.number(value, 2)} GiB`), hoverinfo: "text" });
    }
    const seen = [["vram_before_gib", "VRAM before", "line-ns-open"], ["vram_ready_gib", "VRAM ready", "diamond-open"], ["vram_peak_gib", "VRAM peak", "triangle-right"]];
    for (const [key, label, symbol] of seen) {
      const values = configs.map((config) => config[key]);
      if (values.every((value) => value === null)) continue;
      data.push({ type: "scatter", mode: "markers", name: label, y: names, x: values, marker: { symbol, size: 12, color: theme.ink, line: { width: 2, color: theme.ink } },
        hovertext: values.map((value, index) => `<b>${Format.short(names[index], 60)}</b><br>${label}: ${Format.number(value, 2)} GiB`), hoverinfo: "text" });
    }
    layout.barmode = "stack";
    layout.legend.traceorder = "normal";
    layout.xaxis.rangemode = "tozero";
    for (const [size, label, dash] of [[doc.subject.cuda_gib, "CUDA's total", "solid"], [doc.subject.nvml_gib, "NVML's total", "dot"]]) {
      if (size === null) continue;
      layout.shapes.push({ type: "line", x0: size, x1: size, yref: "paper", y0: 0, y1: 1, line: { color: theme.warn, width: 1.6, dash } });
      data.push({ type: "scatter", mode: "lines", x: [null], y: [names[0] ?? null], name: `${Format.short(doc.subject.card ?? "card", 30)}: ${label}, ${Format.number(size, 2)} GiB`, line: { color: theme.warn, dash, width: 1.6 } });
    }
    return { data, layout };
  },

  // A horizontal row per configuration.
  rows(env, configs, title) {
    const longest = Math.max(8, ...configs.map((config) => Math.min(28, config.id.length)));
    const legendRows = env.width < 640 ? 6 : 2, layout = baseLayout(env, configs.length * 36 + 80 + legendRows * 22);
    layout.showlegend = true;
    layout.margin.t = 14 + legendRows * 22;
    layout.margin.l = Math.min(env.width * 0.34, longest * 7.4 + 20);
    layout.xaxis = axis(env, title, {});
    layout.yaxis = axis(env, "", { type: "category", autorange: "reversed", tickvals: configs.map((config) => config.id), automargin: false,
      ticktext: configs.map((config) => Format.short(config.id, Math.floor(layout.margin.l / 7.4))), showgrid: false, ticks: "" });
    return layout;
  },

  // KV cache: what was predicted before the launch against what the server's log said.
  prediction(env) {
    const { theme } = env, configs = env.configs.filter((config) => config.prediction.kv_cache_gib != null);
    const layout = Figures.rows(env, configs, "KV cache, GiB"), names = configs.map((config) => config.id);
    layout.xaxis.rangemode = "tozero";
    const predicted = configs.map((config) => config.prediction.kv_cache_gib);
    const side = (key, sign) => configs.map((config, index) => (config.prediction[key] == null ? 0 : sign * (config.prediction[key] - predicted[index])));
    const seen = env.doc.subject.simulated ? "the simulator's log" : "measured: the server's log";
    const measured = configs.map((config) => config.ledger.kv_cache_gib ?? null);
    const off = configs.map((_, index) => (measured[index] === null ? "no figure in the log" : `off by ${Format.number(100 * (predicted[index] / measured[index] - 1), 1)} %`));
    const data = [
      { type: "scatter", mode: "markers", name: "predicted, with its range", y: names, x: predicted,
        error_x: { type: "data", symmetric: false, array: side("kv_cache_gib_high", 1), arrayminus: side("kv_cache_gib_low", -1), thickness: 1.4, width: 5, color: theme.soft },
        marker: { symbol: "diamond-open", size: 11, color: theme.soft, line: { width: 2 } }, hoverinfo: "text",
        hovertext: configs.map((config, index) => `<b>${Format.short(config.id, 60)}</b><br>predicted: ${Format.number(predicted[index], 2)} GiB<br>${off[index]}<br>${Format.short(config.prediction.basis ?? "", 90)}`) },
      { type: "scatter", mode: "markers", name: seen, y: names, x: measured, marker: { symbol: "circle", size: 10, color: theme.accent }, hoverinfo: "text",
        hovertext: configs.map((config, index) => `<b>${Format.short(config.id, 60)}</b><br>${seen}: ${Format.number(measured[index], 2)} GiB<br>${off[index]}`) },
    ];
    return { data: configs.length ? data : [], layout };
  },

  // What a step of the captured size buys: the change of output tokens/s at each load.
  price(env) {
    const { doc, workloads, theme } = env, layout = baseLayout(env, 300), data = [], legends = new Set();
    const shown = new Set(env.configs.map((config) => config.id));
    const prices = doc.prices.filter((price) => shown.has(price.before) && shown.has(price.after) && price.gains.length);
    if (!prices.length) return { data, layout };
    layout.showlegend = prices.length <= 8;
    const cells = panels(env, layout, workloads, doc.level_label, "Change of output tok/s", levelAxis(doc, doc.points), { zeroline: true, zerolinecolor: theme.faint });
    for (const cell of cells) {
      for (const price of prices) {
        const own = price.gains.filter((gain) => gain.workload === cell.name && gain.change !== null && gain.level !== null).sort((a, b) => a.level - b.level);
        if (!own.length) continue;
        const { color, dash, symbol } = Style.of(env.index(price.after)), sure = own.some((gain) => gain.low !== null);
        data.push({
          type: "scatter", mode: "lines+markers", name: Format.short(price.label, 60), legendgroup: price.label, showlegend: !legends.has(price.label),
          x: own.map((gain) => gain.level), y: own.map((gain) => gain.change), xaxis: cell.x, yaxis: cell.y, line: { color, dash, width: 2 }, marker: { color, symbol, size: 8 },
          error_y: sure ? { type: "data", symmetric: false, thickness: 1.2, width: 3, array: own.map((gain) => (gain.low === null ? 0 : gain.high - gain.change)),
            arrayminus: own.map((gain) => (gain.low === null ? 0 : gain.change - gain.low)) } : undefined,
          hoverinfo: "text", hovertext: own.map((gain) => `<b>${Format.short(price.label, 60)}</b><br>load ${Format.level(gain.level)}: ${Format.number(gain.before, 0)} → ${Format.number(gain.after, 0)} tok/s`
            + `<br>change ${Format.estimate([gain.change, gain.low, gain.high], "tok/s")}<br>${gain.basis}`),
        });
        legends.add(price.label);
      }
    }
    return { data, layout };
  },

  // What was watched while one point ran: four panels over one time axis.
  timeline(env) {
    const line = env.timeline, { theme } = env, layout = baseLayout(env, 620), data = [];
    if (!line) return { data, layout };
    const bands = [
      ["Output tok/s", [["output_tokens_per_s", "output tok/s", "solid"]]],
      ["Requests", [["running", "running", "solid"], ["waiting", "waiting (dashed)", "dash"]]],
      ["KV used (%)", [["kv_cache_usage", "KV cache used", "solid"]]],
      ["Preemptions", [["preemptions", "preemptions", "solid"]]],
      ["VRAM (GiB)", [["vram_gib", "VRAM", "solid"]]],
    ].filter(([, series]) => series.some(([key]) => line[key].some((value) => value !== null)));
    const tall = 1 / Math.max(1, bands.length), gap = 0.035;
    layout.height = Math.max(1, bands.length) * 124 + 90;
    layout.xaxis = axis(env, "Seconds", { anchor: bands.length > 1 ? "y" + bands.length : "y" });
    layout.hovermode = "x unified";
    bands.forEach(([title, series], row) => {
      const suffix = row ? String(row + 1) : "", top = 1 - row * tall;
      layout["yaxis" + suffix] = axis(env, title, { domain: [Math.max(0, top - tall + gap), top], rangemode: title === "VRAM (GiB)" ? "normal" : "tozero", nticks: 4 });
      if (series.length > 1) layout.annotations.push({ text: "dashed: waiting", xref: "paper", yref: "paper", x: 1, y: top, xanchor: "right", yanchor: "top", showarrow: false, font: { size: 11.5, color: theme.warn } });
      if (title === "KV used (%)") layout["yaxis" + suffix].range = [0, 105];
      for (const [key, label, dash] of series) {
        const x = key === "vram_gib" ? line.vram_t : line.t, scale = key === "kv_cache_usage" ? 100 : 1;
        data.push({ type: "scatter", mode: "lines", name: label, x, y: line[key].map((value) => (value === null ? null : value * scale)), xaxis: "x", yaxis: "y" + suffix,
          line: { color: dash === "dash" ? theme.warn : theme.accent, dash, width: 1.8, shape: key === "output_tokens_per_s" ? "linear" : "hv" },
          hovertemplate: `${label}: %{y:,.4~g}<extra></extra>` });
      }
    });
    return { data, layout };
  },
};
