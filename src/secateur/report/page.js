"use strict";
// Draws the figures that the page carries, and wires its two sets of buttons. Loads nothing.

const figures = JSON.parse(document.getElementById("figures").textContent);
const config = { displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: false, showTips: false };
const font = getComputedStyle(document.body).fontFamily;

for (const figure of figures) {
  figure.layout.font.family = font;
  Plotly.newPlot(figure.id, figure.data, figure.layout, config);
}

// One button of a group is pressed; `then` is told which.
function choose(group, then) {
  if (!group) return;
  const buttons = [...group.querySelectorAll("button")];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      then(button.dataset);
    });
  }
}

choose(document.getElementById("metric"), ({ metric }) => {
  for (const figure of figures.filter((f) => f.id.startsWith("sweep-"))) {
    Plotly.restyle(figure.id, { visible: figure.data.map((trace) => !trace.meta || trace.meta === metric) });
  }
  for (const scale of document.querySelectorAll(".scale")) scale.hidden = scale.dataset.metric !== metric;
});

choose(document.getElementById("filter"), ({ kind }) => {
  for (const row of document.querySelectorAll("table.changed tbody tr")) {
    row.hidden = Boolean(kind) && row.dataset.kind !== kind;
  }
});

function fit() {
  for (const figure of figures) Plotly.Plots.resize(figure.id);
}
addEventListener("beforeprint", fit);
addEventListener("afterprint", fit);
