"use strict";
// Overlaid curves of several runs: one figure per workload, one line per run and configuration.
const data = JSON.parse(document.getElementById("data").textContent);
const PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8F8A1E", "#555B61"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
const SYMBOLS = ["circle", "diamond", "square", "cross", "triangle-up"];

const unique = (values) => [...new Set(values)];
const configs = unique(data.points.map((point) => point.config));
const levels = unique(data.points.map((point) => point.level)).filter((level) => level > 0).sort((a, b) => a - b);
const workloads = unique(data.points.map((point) => point.workload));

function traces(workload, metric) {
  const found = [];
  data.runs.forEach((run, place) => configs.forEach((config, colour) => {
    const points = data.points
      .filter((p) => p.run === run && p.config === config && p.workload === workload && p.figures[metric])
      .sort((a, b) => a.level - b.level);
    if (!points.length) return;
    const figures = points.map((p) => p.figures[metric]);
    found.push({
      x: points.map((p) => p.level),
      y: figures.map(([value]) => value),
      error_y: {
        type: "data", symmetric: false, thickness: 1, width: 3,
        array: figures.map(([value, , high]) => (high === null ? 0 : high - value)),
        arrayminus: figures.map(([value, low]) => (low === null ? 0 : value - low)),
      },
      name: `${run} · ${config}`, mode: "lines+markers", type: "scatter",
      line: { color: PALETTE[colour % PALETTE.length], dash: DASHES[place % DASHES.length] },
      marker: { symbol: SYMBOLS[place % SYMBOLS.length], size: 8 },
    });
  }));
  return found;
}

function draw() {
  const metric = document.getElementById("metric").value;
  const unit = data.metrics[metric].unit;
  const stamp = { text: "SIMULATED", xref: "paper", yref: "paper", x: 0.5, y: 0.5, showarrow: false, opacity: 0.12, font: { size: 56 } };
  workloads.forEach((workload, place) => {
    Plotly.react(`figure-${place}`, traces(workload, metric), {
      title: { text: workload, font: { size: 15 } }, height: 420, margin: { l: 70, r: 20, t: 40, b: 50 },
      xaxis: { title: { text: "Load (streams, or sessions per second)" }, type: "log", tickvals: levels },
      yaxis: { title: { text: unit ? `${metric} [${unit}]` : metric }, rangemode: "tozero" },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      legend: { orientation: "h", y: -0.2 }, hovermode: "closest",
      annotations: data.simulated ? [stamp] : [],
    }, { responsive: true, displaylogo: false });
  });
}

const select = document.getElementById("metric");
const measured = unique(data.points.flatMap((point) => Object.keys(point.figures)));
for (const key of Object.keys(data.metrics).filter((name) => measured.includes(name))) {
  select.add(new Option(key, key, false, key === "output_tokens_per_s"));
}
workloads.forEach((_, place) => {
  const figure = document.createElement("figure");
  figure.className = "plot";
  figure.id = `figure-${place}`;
  document.getElementById("figures").append(figure);
});
select.addEventListener("change", draw);
if (measured.length) draw();
document.documentElement.dataset.ready = "yes";
