"use strict";
// Colours (CSS variables), dashes and markers: each configuration differs in all.
const Style = {
  series: 8,
  dashes: ["solid", "dash", "dot", "dashdot", "longdash"],
  symbols: ["circle", "square", "diamond", "triangle-up", "cross", "x", "triangle-down", "star"],
  parts: {
    light: { weights: "#7C8791", activations: "#B9C0C6", graphs: "#E69F00", kv: "#0B6E8F", rest: "#DDE0E2" },
    dark: { weights: "#77828B", activations: "#505A62", graphs: "#E69F00", kv: "#3FA7C6", rest: "#343B41" },
  },
  dark() {
    return document.documentElement.dataset.theme === "dark";
  },
  of(index) {
    return {
      color: Style.css(`--s${index % Style.series}`),
      dash: Style.dashes[(index + Math.floor(index / 8)) % Style.dashes.length],
      symbol: Style.symbols[(index + Math.floor(index / 8)) % Style.symbols.length],
    };
  },
  // The mark of a figure that was not measured: at the upper right corner, beside the data and never on it.
  simulated(theme, x = 1, y = 1) {
    return { text: "<b>SIMULATED</b>", xref: "paper", yref: "paper", x, y, xanchor: "right", yanchor: "bottom", yshift: 5, showarrow: false,
      font: { size: 11.5, color: theme.warn }, bgcolor: theme.warnWash, borderpad: 3, name: "simulated" };
  },
  css(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  },
  theme() {
    return { ink: Style.css("--ink"), soft: Style.css("--soft"), faint: Style.css("--faint"), grid: Style.css("--grid"),
      rule: Style.css("--rule"), paper: Style.css("--paper"), accent: Style.css("--accent"), warn: Style.css("--warn"), warnWash: Style.css("--warn-wash"),
      parts: Style.parts[Style.dark() ? "dark" : "light"] };
  },
};
