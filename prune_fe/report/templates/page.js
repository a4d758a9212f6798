"use strict";
const { config, specifications } = JSON.parse(document.getElementById("charts").textContent);
// ast: expressions are interpreted, which the page's policy allows; by default they are compiled with eval.
const options = {
  actions: false, ast: true, config, defaultStyle: false, renderer: "svg", tooltip: { disableDefaultStyle: true },
};

function pointAt(mark, type) {
  const box = mark.getBoundingClientRect();
  const [clientX, clientY] = [box.left + box.width / 2, box.top + box.height / 2];
  mark.dispatchEvent(new PointerEvent(type, { bubbles: true, clientX, clientY }));
}

// Arrow keys move the focus among the marks of a chart, in their order; each shows its tooltip.
function moveFocus(event) {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const marks = [...event.currentTarget.querySelectorAll(".role-mark > path[aria-label]")];
  const next = marks[marks.indexOf(document.activeElement) + step];
  if (!next) return;
  next.setAttribute("tabindex", "-1");
  next.onblur = () => pointAt(next, "pointerout");
  next.focus();
  pointAt(next, "pointermove");
}

// Entries of a legend that select a series are buttons.
function makeButtons(chart) {
  for (const label of chart.querySelectorAll(".role-legend-label text")) {
    label.setAttribute("tabindex", "0");
    label.setAttribute("role", "button");
    label.setAttribute("aria-label", label.textContent);
    label.onkeydown = (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      label.dispatchEvent(new MouseEvent("click", { bubbles: true, shiftKey: event.shiftKey }));
    };
  }
}

function draw(chart) {
  const specification = specifications[chart.dataset.chart];
  vegaEmbed(chart, specification, options).then(
    () => { if (specification.params) makeButtons(chart); },
    (error) => { chart.textContent = `This chart cannot be drawn: ${error.message}`; },
  );
  chart.addEventListener("keydown", moveFocus);
}

// A chart takes its width from the page. Where a browser knows no width inside a closed fold, the chart is drawn when the
// fold is opened.
for (const chart of document.querySelectorAll(".chart")) {
  const fold = chart.closest("details:not([open])");
  if (fold && !chart.clientWidth) fold.addEventListener("toggle", () => draw(chart), { once: true });
  else draw(chart);
}
