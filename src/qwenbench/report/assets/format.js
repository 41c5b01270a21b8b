"use strict";
// Text for people: numbers with separators, units, and escaping for Plotly, which reads a subset of HTML in labels.
const Format = {
  number(value, digits) {
    if (value === null || value === undefined || !Number.isFinite(value)) return "–";
    const places = digits ?? (Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2);
    return value.toLocaleString("en-US", { minimumFractionDigits: places, maximumFractionDigits: places });
  },
  estimate([value, low, high], unit) {
    const shown = Format.number(value) + (unit ? " " + unit : "");
    return low === null ? shown : `${shown} (95 %: ${Format.number(low)} to ${Format.number(high)})`;
  },
  label(text) {
    return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  },
  short(text, most) {
    const letters = Array.from(String(text));
    return Format.label(letters.length > most ? letters.slice(0, most - 1).join("") + "…" : text);
  },
  level(value) {
    return value === null ? "trace" : String(value);
  },
};
