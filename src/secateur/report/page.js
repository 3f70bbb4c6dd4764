"use strict";
// Draws the figures that the page carries, in the colors of the mode, and wires its buttons. Loads nothing.

const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = JSON.parse(document.getElementById("dark").textContent);
const mode = matchMedia("(prefers-color-scheme: dark)");

// The same values with dark colors: only what stands under a key such as `color` or `bgcolor` is a color.
function tinted(value, key) {
  if (Array.isArray(value)) return value.map((item) => tinted(item, key));
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, tinted(item, name)]));
  }
  return (/color/.test(key) && dark[value]) || value;
}

function saved(figure, format) {
  return (drawing) => Plotly.downloadImage(drawing, { format, scale: 2, filename: `secateur-${figure.id}` });
}

function settings(figure) {
  const icon = Plotly.Icons.camera;
  const files = ["png", "svg"].map((format) => (
    { name: format, title: `Save as ${format.toUpperCase()}`, icon: format === "png" ? icon : Plotly.Icons.disk, click: saved(figure, format) }
  ));
  const buttons = [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"], files];
  return { displayModeBar: "hover", modeBarButtons: buttons, displaylogo: false, responsive: true, scrollZoom: false, doubleClick: "reset", showTips: false };
}

function draw(night) {
  const font = getComputedStyle(document.body).fontFamily;
  for (const figure of figures) {
    const { data, layout } = night ? { data: tinted(figure.data, ""), layout: tinted(figure.layout, "") } : figure;
    Plotly.react(figure.id, structuredClone(data), { ...structuredClone(layout), font: { ...layout.font, family: font } }, settings(figure));
  }
  document.querySelector("#metric [aria-pressed=true]")?.click();
}

// plotly travels compressed: it is two thirds of the page.
async function begin() {
  const packed = document.getElementById("plotly");
  if (!packed) return;
  const bytes = Uint8Array.from(atob(packed.textContent), (letter) => letter.charCodeAt(0));
  const opened = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const library = document.createElement("script");
  library.textContent = await new Response(opened).text();
  document.head.append(library);
  draw(mode.matches);
  mode.addEventListener("change", () => draw(mode.matches));
  addEventListener("beforeprint", () => draw(false));
  addEventListener("afterprint", () => draw(mode.matches));
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
  for (const figure of figures.filter((f) => f.data.some((trace) => trace.meta))) {
    Plotly.restyle(figure.id, { visible: figure.data.map((trace) => !trace.meta || trace.meta === metric) });
  }
  for (const scale of document.querySelectorAll(".scale")) scale.hidden = scale.dataset.metric !== metric;
});

choose(document.getElementById("filter"), ({ kind }) => {
  for (const row of document.querySelectorAll("table.changed tbody tr")) {
    row.hidden = Boolean(kind) && row.dataset.kind !== kind;
  }
});

// The contents mark the section that is being read.
const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
const reading = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    for (const [name, link] of links) link.toggleAttribute("aria-current", name === target.id);
  }
}, { rootMargin: "-20% 0px -70% 0px" });
for (const name of links.keys()) reading.observe(document.getElementById(name));

begin();
