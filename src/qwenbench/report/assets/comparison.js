"use strict";
// Overlaid curves of several runs: one figure per workload, one line per run and configuration.
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const unique = (values) => [...new Set(values)];
  const configs = unique(data.points.map((point) => point.config));
  const levels = unique(data.points.map((point) => point.level)).filter((level) => level > 0).sort((a, b) => a - b);
  const workloads = unique(data.points.map((point) => point.workload));
  const select = document.getElementById("metric"), holder = document.getElementById("figures");

  function traces(workload, metric) {
    const found = [];
    data.runs.forEach((run, place) => configs.forEach((config, index) => {
      const points = data.points
        .filter((p) => p.run === run && p.config === config && p.workload === workload && p.figures[metric])
        .sort((a, b) => a.level - b.level);
      if (!points.length) return;
      const figures = points.map((p) => p.figures[metric]), { color } = Style.of(index);
      found.push({
        x: points.map((p) => p.level), y: figures.map(([value]) => value),
        error_y: { type: "data", symmetric: false, thickness: 1.2, width: 3,
          array: figures.map(([value, , high]) => (high === null ? 0 : high - value)),
          arrayminus: figures.map(([value, low]) => (low === null ? 0 : value - low)) },
        name: Format.short(`${run} · ${config}`, 60), mode: "lines+markers", type: "scatter",
        line: { color, dash: Style.dashes[place % Style.dashes.length], width: 2 },
        marker: { color, symbol: Style.symbols[place % Style.symbols.length], size: 8 },
      });
    }));
    return found;
  }

  function draw() {
    const metric = select.value, theme = Style.theme();
    const axis = (title, more) => ({ title: { text: title, standoff: 10 }, gridcolor: theme.grid, linecolor: theme.rule, showline: true, zeroline: false,
      tickcolor: theme.rule, ticks: "outside", ticklen: 4, automargin: true, ...more });
    workloads.forEach((workload, place) => {
      const figure = document.getElementById(`figure-${place}`);
      const annotations = [{ text: `<b>${Format.short(workload, 60)}</b>`, xref: "paper", yref: "paper", x: 0, y: 1, xanchor: "left", yanchor: "bottom",
        yshift: 6, showarrow: false, font: { color: theme.ink, size: 13 } }];
      if (data.simulated) annotations.push(Style.simulated(theme));
      Plotly.react(figure, traces(workload, metric), {
        height: 380, width: Math.max(280, Math.floor(figure.clientWidth)), margin: { l: 64, r: 16, t: 34, b: 96 },
        xaxis: axis("Load (streams, or sessions per second)", { type: "log", tickvals: levels, ticktext: levels.map(String) }),
        yaxis: axis(data.metrics[metric], { rangemode: "tozero" }),
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        font: { family: "system-ui, -apple-system, Segoe UI, Noto Sans, DejaVu Sans, sans-serif", size: 12.5, color: theme.soft },
        hoverlabel: { bgcolor: theme.paper, bordercolor: theme.rule, font: { color: theme.ink, size: 12.5 } },
        legend: { orientation: "h", y: -0.22, font: { color: theme.ink } }, hovermode: "closest", annotations,
      }, { displaylogo: false, displayModeBar: false, responsive: false });
    });
    document.documentElement.dataset.ready = "yes";
  }

  const measured = unique(data.points.flatMap((point) => Object.keys(point.figures)));
  for (const key of Object.keys(data.metrics).filter((name) => measured.includes(name))) {
    select.add(new Option(data.metrics[key], key, false, key === "output_tokens_per_s"));
  }
  workloads.forEach((_, place) => {
    const figure = document.createElement("figure");
    figure.className = "plot";
    figure.id = `figure-${place}`;
    holder.append(figure);
  });
  select.addEventListener("change", draw);
  Theme.start(() => { if (measured.length) draw(); });
  let width = window.innerWidth, timer = 0;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    window.clearTimeout(timer);
    timer = window.setTimeout(() => { if (measured.length) draw(); }, 120);
  });
  if (measured.length) draw();
  document.documentElement.dataset.ready = "yes";
})();
