"use strict";
// Draws every wanted figure once and leaves each as a data address in the page, for qwenbench to read out of it.
(async function () {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const doc = read("data"), wanted = read("wanted");
  doc.configs.forEach((config, index) => { config.index = index; });
  const byId = new Map(doc.configs.map((config) => [config.id, config]));
  const busiest = doc.timelines.reduce((best, line) => ((line.level ?? 0) > (best?.level ?? -1) ? line : best), null);

  for (const { name, figure, metric } of wanted.figures) {
    const { data, layout } = Figures[figure]({
      doc, configs: doc.configs, points: doc.points, workloads: doc.workloads, theme: Style.theme(), width: wanted.width, background: Style.css("--paper"),
      legend: doc.configs.length <= 12, metric, log: false, timeline: busiest, cards: (id) => byId.get(id)?.cards ?? 1, index: (id) => byId.get(id)?.index ?? 0,
    });
    if (!data.length) continue;
    const place = document.createElement("div");
    document.body.append(place);
    await Plotly.newPlot(place, data, layout, { staticPlot: true });
    const address = await Plotly.toImage(place, { format: wanted.format, width: wanted.width, height: layout.height, scale: wanted.format === "png" ? 2 : 1 });
    Plotly.purge(place);
    place.remove();
    const output = document.createElement("output");
    output.dataset.name = name;
    output.textContent = address;
    document.body.append(output);
  }
  document.title = "done";
})();
