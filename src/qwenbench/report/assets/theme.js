"use strict";
// Light and dark: the system's choice until the button was pressed once; kept for this address where storage is allowed.
const Theme = {
  set(name) {
    const button = document.getElementById("theme");
    document.documentElement.dataset.theme = name;
    button.textContent = name === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-pressed", String(name === "dark"));
  },
  stored() {
    try { return localStorage.getItem("qwenbench-theme"); } catch { return null; }
  },
  start(changed) {
    Theme.set(Theme.stored() || (window.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
    document.getElementById("theme").addEventListener("click", () => {
      Theme.set(Style.dark() ? "light" : "dark");
      try { localStorage.setItem("qwenbench-theme", document.documentElement.dataset.theme); } catch { /* a file may have no storage */ }
      changed();
    });
  },
};
